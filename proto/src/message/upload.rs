//! Requests that add or change something.

use super::acl::{Acl, AclKind};
use super::attr::{FileKind, Owner};
use crate::chunk::{ChunkName, SealedValue, WrappedKey};
use crate::ids::{Ino, Name, Time};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upload {
    /// A new inode under a new name: file, directory, symlink, fifo, socket or
    /// device. `Exists` if the name is taken. → `Entry`.
    Create { dir: Ino, name: Name, new: NewInode },
    /// A further name for a non-directory. → `Entry`.
    Link { ino: Ino, dir: Ino, name: Name },
    /// → `Renamed`.
    Rename { from_dir: Ino, from: Name, to_dir: Ino, to: Name, how: RenameHow },
    /// → `Entry`.
    Setattr { ino: Ino, change: AttrChange },
    /// Puts content into a file; bytes that no piece covers stay. → `Entry`.
    Write {
        ino: Ino,
        at: WriteAt,
        /// In rising order, not overlapping; at most [`Upload::MAX_PIECES`].
        pieces: Vec<Piece>,
        /// The session has reserved room for all of it ([`SessionOp::Reserve`](super::SessionOp::Reserve)). Else
        /// `QuotaExceeded` if what it adds does not fit.
        reserved: bool,
    },
    /// → `Entry`.
    SetXattr {
        ino: Ino,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
        value: SealedValue,
        how: XattrHow,
    },
    /// → `Entry`, or `NoAttribute`.
    RemoveXattr {
        ino: Ino,
        #[serde(with = "serde_bytes")]
        name: Vec<u8>,
    },
    /// Gives an inode an access control list, or takes it away. An access list moves the mode with it, and where the
    /// mode says the same none is kept. → `Entry`.
    SetAcl {
        ino: Ino,
        which: AclKind,
        acl: Option<Acl>,
        /// Whoever asks is not of the inode's group: its setgid bit goes.
        clear_setgid: bool,
    },
    /// When inodes were last read, at most [`Upload::MAX_ACCESSED`] of them. Moves their atime alone, if nothing has
    /// changed them since. → `Accessed`.
    Accessed { inodes: Vec<Access> },
    /// Sees to `offset..offset + len` of a file, without content. `Invalid` if `len` is 0. → `Entry`.
    Fallocate { ino: Ino, offset: u64, len: u64, how: FallocateHow },
    /// Gives a file what another one has, or it has elsewhere itself: both refer to the same chunks. Ends at the first
    /// one's end, or after [`Upload::MAX_CLONED`] extents. `Invalid` if the ranges overlap. → `Cloned`.
    Clone { from: Range, to: Ino, to_offset: u64 },
}

/// That an inode was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub ino: Ino,
    pub atime: Time,
    /// As its reader knew it: if it is another one by now, the inode has changed since. Clocks of different mounts
    /// would not tell.
    pub ctime: Time,
}

/// Some bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub ino: Ino,
    pub offset: u64,
    pub len: u64,
}

impl Upload {
    pub const MAX_PIECES: usize = 256;
    /// Of one [`Upload::Clone`]: 4 GiB of a file written in sequence.
    pub const MAX_CLONED: usize = 8192;
    /// The kernel's own limit for an attribute's name, in bytes.
    pub const MAX_XATTR_NAME_BYTES: usize = 255;
    /// The kernel's own limit for a value, in bytes before it is sealed.
    pub const MAX_XATTR_VALUE_BYTES: usize = 64 * 1024;
    /// All of one inode's attributes, sealed: they are answered in one record.
    pub const MAX_XATTRS_BYTES: usize = 256 * 1024;
    /// Of one [`Upload::Accessed`].
    pub const MAX_ACCESSED: usize = 512;
    /// Links to one inode.
    pub const MAX_LINKS: u32 = 1_000_000;
    /// The largest file, in bytes.
    pub const MAX_FILE_BYTES: u64 = 1 << 50;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInode {
    pub kind: FileKind,
    /// Permission bits as the program asks for them.
    pub mode: u32,
    /// What of them it does not mean, unless the directory has a default access control list, which then decides.
    pub umask: u32,
    pub uid: Owner,
    /// In a setgid directory the directory's group is taken instead.
    pub gid: Owner,
    /// Device number, for devices only.
    pub rdev: u32,
    /// A symlink's target, for symlinks only.
    pub target: Option<SealedValue>,
    /// Its number, of those that a session has been given; else the next one. `Exists` if there is such an inode, `Invalid`
    /// if it has been given to nobody.
    #[serde(default)]
    pub ino: Option<Ino>,
    /// The session has reserved an inode for it ([`SessionOp::Reserve`](super::SessionOp::Reserve)). Else
    /// `QuotaExceeded` if there is none left.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub reserved: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameHow {
    Replace,
    NoReplace,
    Exchange,
}

/// What becomes of a range, as fallocate(2) has it. Nothing is set aside for what will be written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallocateHow {
    /// Nothing but its times changes.
    Keep,
    /// The file reaches to its end at least.
    Extend,
    /// It reads as zeros: a hole. The file's size stays.
    Clear,
    /// Both.
    ClearAndExtend,
}

impl FallocateHow {
    pub fn clears(self) -> bool {
        matches!(self, FallocateHow::Clear | FallocateHow::ClearAndExtend)
    }

    pub fn extends(self) -> bool {
        matches!(self, FallocateHow::Extend | FallocateHow::ClearAndExtend)
    }
}

/// What `setattr` changes; `None` stays as it is. `ctime` becomes the request's time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    pub mode: Option<u32>,
    pub uid: Option<Owner>,
    pub gid: Option<Owner>,
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// Pieces stand at their own offsets.
    Offsets,
    /// Pieces' offsets count from the file's end as it is at this request's position.
    End,
}

/// "File bytes `offset..offset+len` are bytes `chunk_from..` of this chunk's content."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    pub offset: u64,
    pub len: u32,
    pub source: Source,
    /// Where in the chunk's plain content the piece begins.
    pub chunk_from: u32,
    pub key: WrappedKey,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A chunk uploaded before.
    Chunk(ChunkName),
    /// Sealed content in this request's own payload, at `payload_from..payload_from+payload_len`.
    Inline { payload_from: u32, payload_len: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrHow {
    Set,
    Create,
    Replace,
}
