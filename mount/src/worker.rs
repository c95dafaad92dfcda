//! A thread of its own for what may make its caller wait: others only say what is to be done.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The thread, which ends when this is dropped. `T` is what is still to be done, and bounds it.
pub(crate) struct Worker<T: Default> {
    queue: Arc<Queue<T>>,
}

/// The end that others write to.
pub(crate) struct Tasks<T> {
    queue: Arc<Queue<T>>,
}

struct Queue<T> {
    state: Mutex<Waiting<T>>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting<T> {
    tasks: T,
    over: bool,
}

impl<T> Queue<T> {
    fn state(&self) -> MutexGuard<'_, Waiting<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Tasks<T> {
    /// Adds to what is to be done.
    pub fn add(&self, add: impl FnOnce(&mut T)) {
        add(&mut self.queue.state().tasks);
        self.queue.more.notify_one();
    }
}

impl<T: Default + Send + 'static> Worker<T> {
    /// Does what `next` gives, one after the other.
    pub fn start<Task: 'static>(
        name: &str,
        next: fn(&mut T) -> Option<Task>,
        mut work: impl FnMut(Task) + Send + 'static,
    ) -> io::Result<(Worker<T>, Tasks<T>)> {
        let queue = Arc::new(Queue { state: Mutex::new(Waiting::default()), more: Condvar::new() });
        let waiting = queue.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            loop {
                let mut state = waiting.state();
                let task = loop {
                    match next(&mut state.tasks) {
                        Some(task) => break task,
                        None if state.over => return,
                        None => state = waiting.more.wait(state).unwrap_or_else(PoisonError::into_inner),
                    }
                };
                drop(state);
                work(task);
            }
        })?;
        Ok((Worker { queue: queue.clone() }, Tasks { queue }))
    }
}

impl<T: Default> Drop for Worker<T> {
    fn drop(&mut self) {
        *self.queue.state() = Waiting { tasks: T::default(), over: true };
        self.queue.more.notify_all();
    }
}
