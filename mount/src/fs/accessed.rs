//! When what is read here was last read: relatime, as local disks have it by default.
//!
//! The kernel keeps no atime of a FUSE filesystem. So a read moves it here, at once for who asks this mount, and some
//! time later for all: nothing waits for it, and what cannot be told is dropped. Many inodes share one request, and
//! one that is read again and again between writes is told of once in [`LAZY`].

use super::{Fs, Stat};
use crate::error::FsError;
use bytes::Bytes;
use proto::message::{Access, Op, Outcome, Upload};
use proto::{Ino, Time};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a read is kept to oneself.
const LAZY: Duration = Duration::from_secs(3);
/// Inodes whose reading is not told yet; more are not noted.
const MAX_WAITING: usize = 4096;
/// An atime as old as this moves though nothing has been written since.
const OLD_SECS: i64 = 24 * 60 * 60;

#[derive(Default)]
pub struct Accessed {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<Ino, Access>,
    /// On its way.
    sent: BTreeMap<Ino, Access>,
    /// A task sends what waits.
    sending: bool,
}

impl Accessed {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each step leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the inode was last read here, if that is not in its attributes yet and nothing has changed it since.
    pub fn of(&self, ino: Ino, ctime: Time) -> Option<Time> {
        let state = self.state();
        let access = state.waiting.get(&ino).or_else(|| state.sent.get(&ino))?;
        (access.ctime == ctime).then_some(access.atime)
    }

    /// Somebody says what the atime is to be.
    pub fn forget(&self, ino: Ino) {
        let mut state = self.state();
        state.waiting.remove(&ino);
        state.sent.remove(&ino);
    }
}

impl Fs {
    /// The inode is being read: its atime moves if it is due. Whether it did. Never waits.
    pub(super) fn accessed(&self, ino: Ino) -> bool {
        if !self.inner.config.relatime {
            return false;
        }
        // One of which nothing is known is read by a program that has never looked at it.
        let Some(attr) = self.cache().attr_once(ino) else { return false };
        let stat = self.stat(&attr);
        let now = self.inner.client.now();
        if !is_due(&stat, now) {
            return false;
        }
        let mut state = self.inner.accessed.state();
        if state.waiting.len() >= MAX_WAITING && !state.waiting.contains_key(&ino) {
            return false;
        }
        // What is written here and on its way counts as a change.
        state.waiting.insert(ino, Access { ino, atime: now, ctime: stat.ctime });
        if !std::mem::replace(&mut state.sending, true) {
            let inner = std::sync::Arc::downgrade(&self.inner);
            proto::task::spawn_on(&self.inner.runtime, async move {
                loop {
                    tokio::time::sleep(LAZY).await;
                    // A filesystem that nobody uses any more has been told of at its end.
                    let Some(fs) = Fs::if_there(&inner) else { return };
                    let _ = fs.tell_accessed().await;
                    let mut state = fs.inner.accessed.state();
                    if state.waiting.is_empty() {
                        state.sending = false;
                        return;
                    }
                }
            });
        }
        true
    }

    /// A file whose pages the kernel has kept is opened to be read: the reads themselves may never come here.
    pub fn opened_to_read(&self, handle: u64) {
        if let Ok(handle) = self.inner.handles.file(handle) {
            let ino = handle.file.ino;
            // Of a read that comes here it knows itself.
            if self.accessed(ino)
                && let Some(kernel) = self.inner.kernel.get()
            {
                kernel.attributes_changed(self.shown_ino(ino));
            }
        }
    }

    /// Tells the server what waits.
    pub(super) async fn tell_accessed(&self) -> Result<(), FsError> {
        loop {
            let batch: Vec<Access> = {
                let mut state = self.inner.accessed.state();
                let batch: Vec<Access> = state.waiting.values().take(Upload::MAX_ACCESSED).copied().collect();
                for access in &batch {
                    state.waiting.remove(&access.ino);
                    state.sent.insert(access.ino, *access);
                }
                batch
            };
            if batch.is_empty() {
                return Ok(());
            }
            let op = Op::Upload(Upload::Accessed { inodes: batch.clone() });
            let told = self.inner.client.submit(op, Bytes::new()).await;
            if let Ok(reply) = &told
                && let Outcome::Accessed(moved) = &reply.outcome
            {
                self.cache().accessed(reply.at, moved);
            }
            let mut state = self.inner.accessed.state();
            for access in &batch {
                if state.sent.get(&access.ino) == Some(access) {
                    state.sent.remove(&access.ino);
                }
            }
            drop(state);
            told?;
        }
    }
}

/// Linux's rule.
fn is_due(stat: &Stat, now: Time) -> bool {
    stat.atime <= stat.mtime || stat.atime <= stat.ctime || now.secs.saturating_sub(stat.atime.secs) >= OLD_SECS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::message::FileKind;

    #[test]
    fn an_atime_moves_once_after_each_change_and_once_a_day() {
        let at = |secs| Time { secs, nanos: 5 };
        let stat = |atime, mtime, ctime| Stat {
            ino: 1,
            kind: FileKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            blocks: 0,
            atime: at(atime),
            mtime: at(mtime),
            ctime: at(ctime),
            rdev: 0,
            covering: None,
        };
        let day = 86_400;
        for (atime, mtime, ctime, now, due) in [
            (10, 10, 10, 10, true),
            (11, 10, 10, 12, false),
            (11, 12, 10, 13, true),
            (11, 10, 12, 13, true),
            (11, 10, 10, 10 + day, false),
            (11, 10, 10, 11 + day, true),
            (11, 10, 10, 1, false),
        ] {
            assert_eq!(is_due(&stat(atime, mtime, ctime), at(now)), due, "{atime} {mtime} {ctime} {now}");
        }
    }
}
