//! Has the kernel ask again for names and attributes that it was told it may keep, from a thread of its own: it takes a
//! name back only when no lookup, create or rename in that directory is under way, and those may wait for the server.
//!
//! What stands under a name is not dropped, it is only asked for again: dropping it would take mounts away that stand
//! there. fuser has no words for that, so this writes the kernel's (`fuse_notify_inval_entry_out` of linux/fuse.h).

use crate::fs::KernelForget;
use fuser::{INodeNo, Notifier};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// `FUSE_NOTIFY_INVAL_ENTRY`, which stands where an answer has its error.
const INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`
const EXPIRE_ONLY: u32 = 1;
const HEADER_BYTES: usize = 16;
const BODY_BYTES: usize = 16;

/// The thread, which ends when this is dropped.
pub(super) struct Forgetter {
    queue: Arc<Queue>,
}

type Done = Box<dyn FnOnce() + Send>;

/// What waits; each recall is taken once, and what it concerns is bounded where it was noted.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    forget: VecDeque<(KernelForget, Done)>,
    over: bool,
}

impl Queue {
    fn state(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue's end that [`crate::fs::Fs`] writes to.
pub(super) struct KernelNames {
    queue: Arc<Queue>,
}

impl KernelNames {
    pub fn forget(&self, forget: KernelForget, done: Done) {
        self.queue.state().forget.push_back((forget, done));
        self.queue.more.notify_one();
    }
}

impl Forgetter {
    /// `device` is the mount's `/dev/fuse`.
    pub fn start(notifier: Notifier, device: File) -> io::Result<(Forgetter, KernelNames)> {
        let queue = Arc::new(Queue::default());
        let waiting = queue.clone();
        std::thread::Builder::new().name("kfs-forget".to_owned()).spawn(move || {
            loop {
                let mut state = waiting.state();
                while state.forget.is_empty() && !state.over {
                    state = waiting.more.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                let Some((forget, done)) = state.forget.pop_front() else { return };
                drop(state);
                for ino in forget.inodes {
                    // Attributes alone: what is negative names no pages.
                    told(notifier.inval_inode(INodeNo(ino), -1, 0), ino);
                }
                for (dir, name) in forget.names {
                    told((&device).write_all(&expire(dir, name.as_bytes())), dir);
                }
                done();
            }
        })?;
        Ok((Forgetter { queue: queue.clone() }, KernelNames { queue }))
    }
}

impl Drop for Forgetter {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.over = true;
        state.forget.clear();
        drop(state);
        self.queue.more.notify_all();
    }
}

fn told(result: io::Result<()>, ino: u64) {
    match result {
        // The kernel does not have it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::debug!(ino, %error, "the kernel was not told to ask again"),
        Ok(()) => {}
    }
}

/// Asks for a name again.
fn expire(dir: u64, name: &[u8]) -> Vec<u8> {
    let len = HEADER_BYTES + BODY_BYTES + name.len() + 1;
    let mut out = Vec::with_capacity(len);
    out.extend_from_slice(&(len as u32).to_ne_bytes());
    out.extend_from_slice(&INVAL_ENTRY.to_ne_bytes());
    out.extend_from_slice(&0u64.to_ne_bytes());
    out.extend_from_slice(&dir.to_ne_bytes());
    out.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    out.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
    out.extend_from_slice(name);
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_as_the_kernel_reads_it() {
        let told = expire(7, b"name");
        assert_eq!(told.len(), 37);
        let word = |at: usize| u32::from_ne_bytes(told[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(0), word(4), word(24), word(28)), (37, 3, 4, 1));
        assert_eq!((&told[16..24], &told[32..]), (&7u64.to_ne_bytes()[..], &b"name\0"[..]));
    }
}
