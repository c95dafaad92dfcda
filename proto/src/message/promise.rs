//! Promises, and the pushes that break them (the design's section 5).

use super::answer::Outcome;
use super::attr::FileKind;
use super::quota::Resource;
use super::refusal::Refusal;
use crate::ids::{Ino, Position, RequestNo, Time};
use serde::{Deserialize, Serialize};

/// What a session has been promised to hear about before anyone sees a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Promise {
    /// A directory: its own attributes, its entries, and the attributes of entries
    /// that are non-directories with all of their names there ([`super::Attr::parent`]).
    Dir(Ino),
    /// The attributes of a non-directory that has no name, or that has, or had, names in several directories.
    Inode(Ino),
    /// A file's content map, its size and its times.
    Content(Ino),
}

impl Promise {
    /// What covers what is inside of an inode: a directory's entries, a file's content.
    pub fn inside(ino: Ino, kind: FileKind) -> Option<Promise> {
        match kind {
            FileKind::Dir => Some(Promise::Dir(ino)),
            FileKind::File => Some(Promise::Content(ino)),
            _ => None,
        }
    }
}

/// The body of a frame of kind `Push`, whose number is the push's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushBody {
    /// The position of the change.
    pub at: Position,
    pub push: Push,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Push {
    /// These promises are over; what they covered has changed.
    Invalidate(Vec<Promise>),
    /// The inode has lost its last name. It is kept for this session until it
    /// sends `Release` for it or ends.
    LastNameGone(Ino),
    /// These have been read, and their atime is now this. What was promised goes on.
    Accessed(Vec<(Ino, Time)>),
    /// A quota has been set. What the session has added so far will be taken however much it is; from its next
    /// [`SessionOp::Reserve`](super::SessionOp::Reserve) on room must be reserved.
    Limited(Resource),
    /// Somebody needs the room that the session has reserved and does not use.
    GiveBack(Resource),
    /// How a request that was answered with [`Outcome::Waiting`] has ended. Told again until it is confirmed.
    Outcome { number: RequestNo, result: Result<Outcome, Refusal> },
}
