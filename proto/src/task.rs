//! Where work is handed to tasks and to other threads.
//!
//! Everything that runs beside its caller is begun here, so that a simulation (the
//! feature `simulation`) can stop all tasks of one machine at once, and has nothing
//! that runs at a moment which its seed does not decide.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

/// A task of the runtime that this is called in.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    spawn_on(&Handle::current(), future)
}

/// A task of a runtime; also from threads outside of it.
pub fn spawn_on<F>(runtime: &Handle, future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    #[cfg(feature = "simulation")]
    if let Some(node) = crate::simulation::Node::current() {
        return node.spawn(runtime, future);
    }
    runtime.spawn(future)
}

/// Work on its way on a thread that may block or compute for long; it goes on when this is dropped.
pub struct Offloaded<T>(Where<T>);

enum Where<T> {
    Thread(JoinHandle<T>),
    /// Done already, by the caller.
    #[cfg(feature = "simulation")]
    Here(Option<T>),
}

/// Begins `work` on another thread. Must be called inside a runtime.
pub fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Offloaded<T> {
    #[cfg(feature = "simulation")]
    if crate::simulation::is_on() {
        return Offloaded(Where::Here(Some(work())));
    }
    Offloaded(Where::Thread(tokio::task::spawn_blocking(work)))
}

impl<T: Unpin> Future for Offloaded<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Where::Thread(handle) => Pin::new(handle).poll(context),
            #[cfg(feature = "simulation")]
            Where::Here(done) => Poll::Ready(Ok(done.take().expect("not polled after it was ready"))),
        }
    }
}
