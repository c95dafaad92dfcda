//! Drops the kernel's pages of inodes that others have changed, from a thread of
//! its own: the kernel lets the caller wait for pages that are just being read, so
//! no operation and no promise's confirmation may wait for it.

use crate::worker::{Tasks, Worker};
use fuser::{INodeNo, Notifier};
use std::collections::BTreeMap;
use std::io;
use tokio::sync::oneshot;

/// Inodes that wait for it, each with those who want to know when it is done; each at most once, so it is bounded by the
/// open files.
type Inodes = BTreeMap<u64, Vec<oneshot::Sender<()>>>;

pub(super) type Invalidator = Worker<Inodes>;

/// The queue's end that [`crate::fs::Fs`] writes to.
pub(super) struct KernelPages(Tasks<Inodes>);

impl KernelPages {
    /// Asks for it; somebody wants to know when it is done.
    pub fn drop_pages(&self, ino: u64, done: Option<oneshot::Sender<()>>) {
        self.0.add(|inodes| inodes.entry(ino).or_default().extend(done));
    }
}

pub(super) fn start(notifier: Notifier) -> io::Result<(Invalidator, KernelPages)> {
    let (worker, tasks) = Worker::start("kfs-invalidate", Inodes::pop_first, move |(ino, told)| {
        if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
            tracing::debug!(ino, %error, "the kernel's pages were not dropped");
        }
        for done in told {
            // Whoever has given up does not look.
            let _ = done.send(());
        }
    })?;
    Ok((worker, KernelPages(tasks)))
}
