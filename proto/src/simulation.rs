//! What a simulation puts in the place of the world (the feature `simulation`,
//! which nothing but tests switches on): a seed for the kernel's random source, virtual
//! time for the machine's clock, and [`Node`]s, machines whose tasks can be
//! paused and killed.
//!
//! Everything holds for one thread, the one that a [`Simulation`] was begun on:
//! others in the same process live in the real world.

use crate::ids::{NamespaceId, Position, RequestNo, SessionId, Time};
use crate::message::{Each, Op, Outcome, Quota, Refusal};
use crate::planted::Bug;
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

/// Monotonic clocks show this at the beginning, so that nothing falls below zero.
const BEGINNING_MS: u64 = 1_000_000;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
    static NODE: RefCell<Option<Node>> = const { RefCell::new(None) };
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// While it lives, this thread is simulated.
pub struct Simulation(PhantomData<*const ()>);

impl Simulation {
    /// Begins one. Its random numbers follow from `seed`.
    pub fn begin(seed: u64) -> Simulation {
        SEED.set(Some(seed));
        BEGUN.set(None);
        Simulation(PhantomData)
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        SEED.set(None);
        BEGUN.set(None);
        OBSERVER.set(None);
        PLANTED.set(None);
    }
}

/// Plants a bug until the simulation of this thread ends.
pub fn plant(bug: Bug) {
    PLANTED.set(Some(bug));
}

pub(crate) fn planted() -> Option<Bug> {
    PLANTED.get()
}

/// What the real code tells a simulation as it happens.
pub enum Seen<'a> {
    /// A machine has executed an admitted request.
    Applied {
        at: Position,
        session: SessionId,
        number: RequestNo,
        /// The number was admitted before, and this executes it once more.
        again: bool,
        /// Its program was answered before ([`Request::local`](crate::message::Request)).
        local: bool,
        /// The client's own time, which goes with the request for good.
        sent: Time,
        /// The time that counts for the change.
        time: Time,
        op: &'a Op,
        payload: &'a Bytes,
        result: &'a Result<Outcome, Refusal>,
    },
    /// A machine lets an admitted change wait for what others have been delegated. With its session that may end,
    /// and the change comes once more.
    Waits { sent: Time, op: &'a Op },
    /// What a namespace holds and has reserved after a record.
    Room {
        at: Position,
        namespace: NamespaceId,
        quota: Quota,
        used: Each<u64>,
        reserved: Each<u64>,
        /// Some session may not have heard of the quota.
        is_free: Each<bool>,
    },
    /// A machine has taken a record in, skipped or not; its state now has this hash.
    Hash { at: Position, hash: [u8; 32] },
    /// A client has entered a request into its session's order. `time` is the client's own
    /// and goes with the request for good. `is_bound`: it may be applied in one session only; `is_local`: whoever asked is
    /// answered already.
    Entered { time: Time, op: &'a Op, is_bound: bool, is_local: bool },
}

type Observer = Box<dyn FnMut(&Seen<'_>)>;

/// Tells `observer` from now on, until the simulation of this thread ends.
pub fn observe(observer: impl FnMut(&Seen<'_>) + 'static) {
    OBSERVER.set(Some(Box::new(observer)));
}

/// Tells the observer, if there is one.
pub fn seen(seen: &Seen<'_>) {
    OBSERVER.with_borrow_mut(|observer| {
        if let Some(observer) = observer {
            observer(seen);
        }
    });
}

/// Whether this thread is simulated.
pub fn is_on() -> bool {
    SEED.get().is_some()
}

/// Virtual time, while this thread is simulated: what tokio's paused clock shows.
pub(crate) fn monotonic_ms() -> Option<u64> {
    if !is_on() {
        return None;
    }
    let now = Instant::now();
    let begun = BEGUN.get().unwrap_or_else(|| {
        BEGUN.set(Some(now));
        now
    });
    Some(BEGINNING_MS + (now - begun).as_millis() as u64)
}

/// Fills `bytes` from the seed; `false` where this thread is not simulated.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    let Some(mut state) = SEED.get() else { return false };
    for part in bytes.chunks_mut(8) {
        let drawn = split_mix(&mut state).to_le_bytes();
        part.copy_from_slice(&drawn[..part.len()]);
    }
    SEED.set(Some(state));
    true
}

/// The next number of a SplitMix64 sequence.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One simulated machine: the tasks that are begun by its tasks. Clones are the same machine.
#[derive(Clone)]
pub struct Node {
    inner: Arc<NodeInner>,
}

struct NodeInner {
    is_dead: AtomicBool,
    is_paused: AtomicBool,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Tasks that were woken while the machine stood still.
    waiting: Mutex<Vec<Waker>>,
}

impl Default for Node {
    fn default() -> Node {
        Node::new()
    }
}

impl Node {
    pub fn new() -> Node {
        Node {
            inner: Arc::new(NodeInner {
                is_dead: AtomicBool::new(false),
                is_paused: AtomicBool::new(false),
                tasks: Mutex::default(),
                waiting: Mutex::default(),
            }),
        }
    }

    /// The machine whose task is running.
    pub fn current() -> Option<Node> {
        NODE.with_borrow(Clone::clone)
    }

    /// Begins a task of this machine.
    pub fn spawn<F>(&self, runtime: &Handle, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let task = runtime.spawn(OnNode { node: self.clone(), future: Some(Box::pin(future)) });
        let mut tasks = lock(&self.inner.tasks);
        if tasks.len() >= 64 && tasks.len().is_power_of_two() {
            tasks.retain(|task| !task.is_finished());
        }
        tasks.push(task.abort_handle());
        if self.is_dead() {
            task.abort();
        }
        task
    }

    /// Runs `work` as this machine.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = NODE.replace(Some(self.clone()));
        let done = work();
        NODE.set(before);
        done
    }

    pub fn is_dead(&self) -> bool {
        self.inner.is_dead.load(Ordering::Relaxed)
    }

    /// Nothing of it runs any more, as after a kill -9. Its tasks are dropped soon.
    pub fn kill(&self) {
        self.inner.is_dead.store(true, Ordering::Relaxed);
        for task in lock(&self.inner.tasks).drain(..) {
            task.abort();
        }
    }

    /// Stands still, as a stopped or suspended machine, until [`Node::resume`].
    pub fn pause(&self) {
        self.inner.is_paused.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        self.inner.is_paused.store(false, Ordering::Relaxed);
        for waker in std::mem::take(&mut *lock(&self.inner.waiting)) {
            waker.wake();
        }
    }
}

/// A machine's task.
struct OnNode<F> {
    node: Node,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for OnNode<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let node = self.node.clone();
        if node.is_dead() {
            // Its abort is on its way.
            return Poll::Pending;
        }
        if node.inner.is_paused.load(Ordering::Relaxed) {
            lock(&node.inner.waiting).push(context.waker().clone());
            return Poll::Pending;
        }
        let future = self.future.as_mut().expect("taken only when dropped");
        node.enter(|| future.as_mut().poll(context))
    }
}

impl<F> Drop for OnNode<F> {
    fn drop(&mut self) {
        let future = self.future.take();
        self.node.enter(|| drop(future));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
