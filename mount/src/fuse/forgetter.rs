//! Has the kernel ask again for names and attributes that it was told it may keep, from a thread of its own: it takes a
//! name back only when no lookup, create or rename in that directory is under way, and those may wait for the server.
//!
//! What stands under a name is not dropped, it is only asked for again: dropping it would take mounts away that stand
//! there. fuser has no words for that, so this writes the kernel's (`fuse_notify_inval_entry_out` of linux/fuse.h).

use crate::fs::KernelForget;
use crate::worker::{Tasks, Worker};
use fuser::{INodeNo, Notifier};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};

/// `FUSE_NOTIFY_INVAL_ENTRY`, which stands where an answer has its error.
const INVAL_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`
const EXPIRE_ONLY: u32 = 1;
const HEADER_BYTES: usize = 16;
const BODY_BYTES: usize = 16;

type Done = Box<dyn FnOnce() + Send>;

/// What waits; each recall is taken once, and what it concerns is bounded where it was noted.
type Recalls = VecDeque<(KernelForget, Done)>;

pub(super) type Forgetter = Worker<Recalls>;

/// The queue's end that [`crate::fs::Fs`] writes to.
pub(super) struct KernelNames(Tasks<Recalls>);

impl KernelNames {
    pub fn forget(&self, forget: KernelForget, done: Done) {
        self.0.add(|recalls| recalls.push_back((forget, done)));
    }
}

/// `device` is the mount's `/dev/fuse`.
pub(super) fn start(notifier: Notifier, device: File) -> io::Result<(Forgetter, KernelNames)> {
    let (worker, tasks) = Worker::start("kfs-forget", Recalls::pop_front, move |(forget, done)| {
        for ino in forget.inodes {
            // Attributes alone: what is negative names no pages.
            told(notifier.inval_inode(INodeNo(ino), -1, 0), ino);
        }
        for (dir, name) in forget.names {
            told((&device).write_all(&expire(dir, name.as_bytes())), dir);
        }
        done();
    })?;
    Ok((worker, KernelNames(tasks)))
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
