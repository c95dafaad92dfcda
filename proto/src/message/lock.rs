//! Locks on files: byte ranges (fcntl, open-file-description locks) and whole files (flock).
//!
//! The two kinds are two spaces: a range never conflicts with a flock. Locks belong to a
//! session and end with it.

use crate::ids::{Ino, Position};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockOp {
    /// Takes a lock, or gives one that the owner has there another mode. Where others' locks
    /// conflict: `WouldBlock`, or `Waiting` if it may wait, and then the outcome is a push
    /// ([`super::Push::Outcome`]). → `Locked`, `Waiting`, `Deadlock` or `NoLocks`.
    Lock { ino: Ino, lock: Lock, wait: bool },
    /// Gives up what the owner has within the range. → `Done`.
    Unlock { ino: Ino, owner: LockOwner, range: LockRange },
    /// A lock that stands in this one's way. → `Holder`.
    Test { ino: Ino, lock: Lock },
}

/// A lock that somebody has or wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub owner: LockOwner,
    /// The process, as its mount knows it; 0 if it does not.
    pub pid: u32,
    pub range: LockRange,
    pub mode: LockMode,
}

/// What a lock belongs to within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner {
    pub id: u64,
    pub kind: LockKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// A process's range (`F_SETLK`). The only kind that is looked after for deadlocks.
    Process,
    /// An open file's range (`F_OFD_SETLK`).
    OpenFile,
    /// An open file's whole file (`flock`).
    Flock,
    /// The mount cannot tell. It is a range, and a flock too where it is the whole file; it does not
    /// conflict with other locks of the same process of its session.
    Unknown,
}

impl LockKind {
    pub const ALL: [LockKind; 4] = [LockKind::Process, LockKind::OpenFile, LockKind::Flock, LockKind::Unknown];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LockMode {
    Shared,
    Exclusive,
}

/// Bytes from `start` up to and including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockRange {
    pub start: u64,
    pub end: u64,
}

impl LockRange {
    /// The last byte that a lock can reach: the kernel's largest offset.
    pub const LAST: u64 = i64::MAX as u64;
    pub const WHOLE: LockRange = LockRange { start: 0, end: LockRange::LAST };

    pub fn is_valid(self) -> bool {
        self.start <= self.end && self.end <= LockRange::LAST
    }

    pub fn overlaps(self, other: LockRange) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

/// Who stands in a lock's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    pub range: LockRange,
    pub mode: LockMode,
    /// 0 if it is a process of another session's.
    pub pid: u32,
}

/// A lock was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// Which version the file's content was of at that moment.
    pub version: Position,
}
