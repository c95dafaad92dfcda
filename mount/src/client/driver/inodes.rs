//! Inode numbers that this client may give to what it makes under a delegation. They are the namespace's, handed out
//! once, so they outlive the session.

use super::*;
use proto::task;

/// Asked for at once.
const AT_ONCE: u32 = 1024;
/// More are asked for when fewer than this are left.
const ENOUGH: u32 = 512;

/// Numbers that have been given to nobody. At most twice [`AT_ONCE`].
#[derive(Default)]
pub(in crate::client) struct Inodes {
    ranges: VecDeque<(Ino, u32)>,
    is_asking: bool,
}

impl Inner {
    /// A number for a new inode, if one is at hand.
    pub(in crate::client) fn take_ino(self: &Arc<Self>) -> Option<Ino> {
        let mut inodes = lock(&self.inodes);
        let taken = inodes.ranges.front_mut().map(|(next, left)| {
            let ino = *next;
            (*next, *left) = (Ino(ino.0 + 1), *left - 1);
            ino
        });
        if inodes.ranges.front().is_some_and(|(_, left)| *left == 0) {
            inodes.ranges.pop_front();
        }
        let left: u32 = inodes.ranges.iter().map(|(_, left)| *left).sum();
        if left < ENOUGH && !inodes.is_asking {
            inodes.is_asking = true;
            task::spawn(Arc::clone(self).ask_for_inodes());
        }
        taken
    }

    async fn ask_for_inodes(self: Arc<Self>) {
        let (caller, asked) = Submitted::new();
        // What nobody has asked for is not counted as a request.
        self.enter(Some(caller), Op::Session(SessionOp::Inodes { count: AT_ONCE }), Bytes::new(), self.terms(), None);
        let answer = asked.await;
        let mut inodes = lock(&self.inodes);
        inodes.is_asking = false;
        if let Ok(Reply { outcome: Outcome::Inodes { first, count }, .. }) = answer {
            inodes.ranges.push_back((first, count));
        }
    }
}
