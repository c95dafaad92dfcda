//! When inodes were last read. That breaks no promise: who was promised the attributes is told the new time in
//! passing, and nobody waits for it. So mounts that read the same files do not disturb each other.

use super::rows::{InodeRow, Turn, covering, inode_key};
use proto::message::{Access, Outcome, Refusal, Upload};

impl Turn<'_> {
    /// Inodes that have gone, or have changed since they were read, are passed over: what was said later counts.
    pub fn accessed(&mut self, inodes: &[Access]) -> Result<Outcome, Refusal> {
        if inodes.len() > Upload::MAX_ACCESSED || inodes.iter().any(|access| access.atime.nanos > 999_999_999) {
            return Err(Refusal::Invalid);
        }
        let mut moved = Vec::new();
        for access in inodes {
            if access.ino.namespace() != self.namespace {
                return Err(Refusal::NotPermitted);
            }
            let Some(mut row) = self.get::<InodeRow>(&inode_key(access.ino)) else { continue };
            let attr = &mut row.attr;
            let time = access.atime.min(self.time);
            if time > attr.atime && access.ctime == attr.ctime {
                attr.atime = time;
                moved.push((access.ino, time));
                self.accesses.push((covering(attr), access.ino, time));
                self.put(&inode_key(access.ino), &row);
            }
        }
        Ok(Outcome::Accessed(moved))
    }
}
