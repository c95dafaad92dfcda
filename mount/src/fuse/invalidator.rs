//! Drops the kernel's pages of inodes that others have changed, from a thread of
//! its own: the kernel lets the caller wait for pages that are just being read, so
//! no operation and no promise's confirmation may wait for it.

use fuser::{INodeNo, Notifier};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::oneshot;

/// The thread, which ends when this is dropped.
pub(super) struct Invalidator {
    queue: Arc<Queue>,
}

/// Inodes that wait for it; each at most once, so it is bounded by the open files.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// Each with those who want to know when it is done.
    inodes: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
    over: bool,
}

impl Queue {
    fn state(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue's end that [`crate::fs::Fs`] writes to.
pub(super) struct KernelPages {
    queue: Arc<Queue>,
}

impl KernelPages {
    /// Asks for it; somebody wants to know when it is done.
    pub fn drop_pages(&self, ino: u64, done: Option<oneshot::Sender<()>>) {
        self.queue.state().inodes.entry(ino).or_default().extend(done);
        self.queue.more.notify_one();
    }
}

impl Invalidator {
    pub fn start(notifier: Notifier) -> io::Result<(Invalidator, KernelPages)> {
        let queue = Arc::new(Queue::default());
        let waiting = queue.clone();
        std::thread::Builder::new().name("kfs-invalidate".to_owned()).spawn(move || {
            loop {
                let mut state = waiting.state();
                while state.inodes.is_empty() && !state.over {
                    state = waiting.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                let Some((ino, told)) = state.inodes.pop_first() else { return };
                drop(state);
                if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                    tracing::debug!(ino, %error, "the kernel's pages were not dropped");
                }
                for done in told {
                    // Whoever has given up does not look.
                    let _ = done.send(());
                }
            }
        })?;
        Ok((Invalidator { queue: queue.clone() }, KernelPages { queue }))
    }
}

impl Drop for Invalidator {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.over = true;
        state.inodes.clear();
        drop(state);
        self.queue.more.notify_all();
    }
}
