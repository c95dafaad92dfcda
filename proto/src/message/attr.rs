//! Attributes of an inode, as they cross the wire and as they are stored.

use super::acl::Rights;
use crate::ids::{Ino, Position, Time};
use serde::{Deserialize, Serialize};

/// What an inode is. The numbers are stored; they never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// Who owns an inode. A plain user's mount stores "the namespace's owner", shown
/// as whoever mounts; a root mount stores numbers as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Owner {
    Namespace,
    Number(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub ino: Ino,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    pub uid: Owner,
    pub gid: Owner,
    pub nlink: u32,
    /// Bytes; for a symlink the length of its target.
    pub size: u64,
    /// Bytes that extents cover: what `st_blocks` tells, times 512.
    pub allocated: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub rdev: u32,
    /// The position of the last change to the content: the version of a file's
    /// content map, or of a directory's entries.
    pub version: Position,
    /// The directory in which all of its names stand. `None` for what has no name, and for what has, or has once
    /// had, names in several directories: then its attributes are covered by a promise of its own.
    pub parent: Option<Ino>,
    pub has_xattrs: bool,
    /// Last, since it is left out where there is nothing: rows have no fields' names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<Box<Rights>>,
}
