//! Requests that read the namespace's state, at their place in the log.

use crate::ids::{Ino, Name};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// → [`Outcome::Entry`](super::Outcome::Entry), or `NotFound`, itself promised.
    Lookup { dir: Ino, name: Name },
    /// → `Entry`.
    Getattr { ino: Ino },
    /// Entries with their attributes, in cursor order, from after `after`. → `Listing`.
    Readdir {
        dir: Ino,
        after: Option<Cursor>,
        /// Entries wanted; the server gives fewer when they would not fit one record.
        limit: u32,
    },
    /// → `Link`.
    Readlink { ino: Ino },
    /// Every extended attribute with its value. → `Xattrs`.
    Xattrs { ino: Ino },
    /// → `Statfs`.
    Statfs,
    /// A file's attributes and extents from byte `from` on; content that the state
    /// itself holds comes in the payload. → `Extents`.
    Extents {
        ino: Ino,
        from: u64,
        /// Extents wanted; fewer come when they would not fit one record.
        limit: u32,
    },
}

/// Where a listing stands: entries are ordered by the hash of their name, then
/// by name, so a place stays valid while the directory changes around it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    pub hash: u64,
    pub name: Name,
}

impl Cursor {
    /// The place of `name`: the first 63 bits of its BLAKE3, so that it fits the
    /// kernel's signed offset, and never below [`Cursor::FIRST`].
    pub fn of(name: &Name) -> Cursor {
        let hash = blake3::hash(name.as_bytes());
        let bytes: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
        Cursor { hash: (u64::from_be_bytes(bytes) >> 1).max(Cursor::FIRST), name: name.clone() }
    }

    /// The lowest hash: offsets below it are the mount's, for `.` and `..`.
    pub const FIRST: u64 = 16;
}
