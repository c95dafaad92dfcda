//! When inodes were last read. That breaks no promise: who was promised the attributes is told the new time in
//! passing, and nobody waits for it. So mounts that read the same files do not disturb each other.

use super::rows::{InodeRow, Turn, covering, inode_key};
use proto::message::{Outcome, Refusal, Upload};
use proto::{Ino, Time};

impl Turn<'_> {
    /// Inodes that have gone, or have changed since they were read, are passed over: what was said later counts.
    pub fn accessed(&mut self, inodes: &[(Ino, Time)]) -> Result<Outcome, Refusal> {
        if inodes.len() > Upload::MAX_ACCESSED || inodes.iter().any(|(_, time)| time.nanos > 999_999_999) {
            return Err(Refusal::Invalid);
        }
        for (ino, time) in inodes {
            if ino.namespace() != self.namespace {
                return Err(Refusal::NotPermitted);
            }
            let Some(mut row) = self.get::<InodeRow>(&inode_key(*ino)) else { continue };
            let attr = &mut row.attr;
            let time = (*time).min(self.time);
            if time > attr.atime && time > attr.ctime {
                attr.atime = time;
                self.accesses.push((covering(attr), *ino, time));
                self.put(&inode_key(*ino), &row);
            }
        }
        Ok(Outcome::Done)
    }
}
