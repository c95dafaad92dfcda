//! Tasks that go on where what they wait for happens.
//!
//! A waiting system call is mostly woken by the thread that has just read its answer. To
//! hand it to a runtime's thread costs two wake-ups, on a small machine a tenth of the
//! whole round trip; so a [`Task`] that is woken inside [`run_woken`] goes on there, right
//! after the step that woke it. Woken elsewhere, it goes on in its runtime.

use proto::task::spawn_on;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use tokio::runtime::Handle;

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// What was woken during the step under way; `None` outside of one.
    static WOKEN: RefCell<Option<VecDeque<Arc<Task>>>> = const { RefCell::new(None) };
}

/// Work that is polled wherever it is woken.
pub struct Task {
    /// `None` once it is done.
    work: Mutex<Option<Work>>,
    runtime: Handle,
    /// It was woken and has not begun its next poll.
    is_woken: AtomicBool,
}

/// Polls `work` at once, here, and lets it go on by itself if it has to wait.
pub fn start(runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
    let work: Work = Box::pin(work);
    let task = Task { work: Mutex::new(Some(work)), runtime: runtime.clone(), is_woken: AtomicBool::new(true) };
    Arc::new(task).poll();
}

/// Does `step`, then everything that it has woken, on this thread.
pub fn run_woken<T>(step: impl FnOnce() -> T) -> T {
    let is_outer = WOKEN.with_borrow_mut(|woken| woken.is_none() && woken.replace(VecDeque::new()).is_none());
    let _end = is_outer.then_some(End);
    let out = step();
    if is_outer {
        while let Some(task) = WOKEN.with_borrow_mut(|woken| woken.as_mut().and_then(VecDeque::pop_front)) {
            task.poll();
        }
    }
    out
}

/// Wakes are no longer collected, however the step ends.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        for task in WOKEN.with_borrow_mut(Option::take).into_iter().flatten() {
            task.hand_over();
        }
    }
}

impl Task {
    fn poll(self: Arc<Self>) {
        // Timers and tasks that the work makes belong to the runtime.
        let _inside = self.runtime.enter();
        // Only one thread polls at a time; one that comes meanwhile waits for the poll's end.
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        // From here on a wake asks for another poll.
        self.is_woken.store(false, Ordering::SeqCst);
        let Some(future) = work.as_mut() else { return };
        let waker = Waker::from(Arc::clone(&self));
        let polled =
            std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        // A panic ends this work alone, as in a runtime, which has told of it; dropping the work answers its caller.
        if !matches!(polled, Ok(Poll::Pending)) {
            *work = None;
        }
    }

    fn hand_over(self: Arc<Self>) {
        let runtime = self.runtime.clone();
        spawn_on(&runtime, async move { self.poll() });
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if self.is_woken.swap(true, Ordering::SeqCst) {
            return;
        }
        let left = WOKEN.with_borrow_mut(|woken| match woken {
            Some(woken) => {
                woken.push_back(self);
                None
            }
            None => Some(self),
        });
        if let Some(task) = left {
            task.hand_over();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::ThreadId;
    use tokio::sync::oneshot;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    }

    /// A task that waits twice and tells on which thread it ended.
    fn waiting(runtime: &Handle) -> (oneshot::Sender<()>, oneshot::Sender<()>, oneshot::Receiver<ThreadId>) {
        let ((first, a), (second, b), (done, told)) = (oneshot::channel(), oneshot::channel(), oneshot::channel());
        start(runtime, async move {
            a.await.expect("the first wake");
            b.await.expect("the second wake");
            done.send(std::thread::current().id()).expect("somebody waits");
        });
        (first, second, told)
    }

    #[test]
    fn goes_on_where_it_is_woken() {
        let runtime = runtime();
        let (first, second, mut told) = waiting(runtime.handle());
        run_woken(|| {
            first.send(()).expect("it waits");
            second.send(()).expect("it waits");
            assert!(told.try_recv().is_err(), "nothing runs inside the step");
        });
        assert_eq!(told.try_recv(), Ok(std::thread::current().id()));
    }

    #[test]
    fn goes_on_in_the_runtime_when_woken_elsewhere() {
        let runtime = runtime();
        let (first, second, told) = waiting(runtime.handle());
        run_woken(|| first.send(()).expect("it waits"));
        second.send(()).expect("it waits");
        let thread = runtime.block_on(told).expect("it ends");
        assert_ne!(thread, std::thread::current().id());
    }

    #[test]
    fn a_panic_ends_only_the_task() {
        let runtime = runtime();
        let (wake, woken) = oneshot::channel::<()>();
        let (done, mut told) = oneshot::channel::<()>();
        start(runtime.handle(), async move {
            let _done = done;
            let _ = woken.await;
            panic!("as the test wants");
        });
        run_woken(|| wake.send(()).expect("it waits"));
        assert_eq!(told.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let (first, second, mut told) = waiting(runtime.handle());
        run_woken(|| first.send(()).and_then(|()| second.send(())).expect("it waits"));
        assert!(told.try_recv().is_ok());
    }
}
