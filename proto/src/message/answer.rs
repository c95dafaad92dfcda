//! What the machine answers.

use super::attr::Attr;
use super::lock::{LockHolder, Locked};
use super::promise::Promise;
use super::quota::Each;
use super::refusal::Refusal;
use super::session::Ended;
use super::view::Cursor;
use crate::chunk::{ChunkName, SealedValue, WrappedKey};
use crate::ids::{Ino, LogTime, Name, Position, PushNo, RequestNo, Time};
use serde::{Deserialize, Serialize};

/// The body of a frame of kind `Answer`, whose number is the request's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where the request stands in the log: the answer is true as of there.
    pub at: Position,
    /// The highest push number of the session at that position: a lost push shows.
    pub pushed: PushNo,
    pub result: Result<Outcome, Refusal>,
    /// What the session has been promised by this answer.
    pub granted: Vec<Promise>,
    /// Those of them that nobody else has to do with: the session may answer for them itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub delegated: Vec<Promise>,
}

impl Answer {
    /// One that promises nothing.
    pub fn bare(at: Position, pushed: PushNo, result: Result<Outcome, Refusal>) -> Answer {
        Answer { at, pushed, result, granted: Vec::new(), delegated: Vec::new() }
    }

    /// Whether nothing has come of the request and it is to be sent again: it waited for what others were
    /// delegated, or came too late for what its session was.
    pub fn is_void(&self) -> bool {
        matches!(self.result, Err(Refusal::Again | Refusal::NotDelegated))
    }

    /// Whether the outcome comes later, by a push.
    pub fn is_waiting(&self) -> bool {
        self.result == Ok(Outcome::Waiting)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    Entry(Attr),
    /// So many inode numbers from this one on are the session's to give.
    Inodes {
        first: Ino,
        count: u32,
    },
    /// Those whose atime has moved, and what it is now.
    Accessed(Vec<(Ino, Time)>),
    /// `end` says that nothing follows the last entry.
    Listing {
        dir: Attr,
        entries: Vec<Listed>,
        end: bool,
    },
    Link(SealedValue),
    Xattrs(Vec<(serde_bytes::ByteBuf, SealedValue)>),
    Statfs {
        bytes_total: u64,
        bytes_used: u64,
        inodes_total: u64,
        inodes_used: u64,
    },
    /// `end` says that no extent follows; between extents the file has holes.
    Extents {
        attr: Attr,
        extents: Vec<StoredExtent>,
        end: bool,
    },
    /// The moved inode; and what stood at its new name: replaced (`nlink` 0 means that this was
    /// its last name), moved the other way, or the same inode, and then nothing has changed.
    Renamed {
        moved: Attr,
        other: Option<Box<Attr>>,
    },
    /// The file that was given something, and how many bytes: fewer than asked for if there were no more.
    Cloned {
        to: Attr,
        len: u64,
    },
    /// What was removed; `nlink` 0 means that this was its last name.
    Removed(Attr),
    Locked(Locked),
    /// The request has been admitted and waits; how it ends is told by [`super::Push::Outcome`].
    Waiting,
    /// `None` if nothing stands in the lock's way.
    Holder(Option<LockHolder>),
    Opened {
        root: Attr,
        /// What became of the sessions that this one replaces, in the order named.
        ended: Vec<Ended>,
        now: LogTime,
        /// What there is a quota of: room for it must be reserved.
        limited: Each<bool>,
    },
    /// So much more is reserved. `more` says that what is missing may come: others hold room that they have
    /// been asked for, or files that have no name any more.
    Reserved {
        amount: u64,
        more: bool,
    },
    /// Requests are missing before this one: send again from here.
    Gap {
        expected: RequestNo,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub name: Name,
    pub attr: Attr,
}

impl Listed {
    pub fn cursor(&self) -> Cursor {
        Cursor::of(&self.name)
    }
}

/// "File bytes `offset..offset+len` are bytes `chunk_from..` of this chunk's content."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredExtent {
    pub offset: u64,
    pub len: u32,
    pub chunk: ChunkName,
    pub chunk_from: u32,
    pub key: WrappedKey,
    /// Where the chunk's sealed content stands in this answer's payload, if it came along.
    pub inline: Option<(u32, u32)>,
}
