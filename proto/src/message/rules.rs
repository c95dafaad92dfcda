//! What a change makes of attributes. The machine decides so, and whoever answers for it under a delegation.

use super::acl::{Acl, AclKind, Rights};
use super::attr::{Attr, FileKind, Owner};
use super::upload::{AttrChange, NewInode};
use crate::chunk::SealedValue;
use crate::ids::{Ino, Position, Time};

const SETGID: u32 = 0o2000;

/// What a new inode is of its own and of its directory.
struct Inherited {
    mode: u32,
    gid: Owner,
    rights: Option<Box<Rights>>,
}

impl Inherited {
    fn of(parent: &Attr, new: &NewInode) -> Inherited {
        let is_dir = new.kind == FileKind::Dir;
        let mut mode = new.mode & 0o7777;
        let mut gid = new.gid;
        if parent.mode & SETGID != 0 {
            gid = parent.gid;
            mode |= if is_dir { SETGID } else { 0 };
        }
        if new.kind == FileKind::Symlink {
            return Inherited { mode, gid, rights: None };
        }
        let Some(default) = parent.rights.as_ref().and_then(|rights| rights.default.as_ref()) else {
            return Inherited { mode: mode & !(new.umask & 0o777), gid, rights: None };
        };
        let access = default.inherited(mode);
        let rights = Rights {
            default: is_dir.then(|| default.clone()),
            access: Some(access.clone()).filter(|acl| !acl.is_mode()),
            capability: false,
        };
        Inherited { mode: access.shown(mode), gid, rights: rights.some() }
    }
}

impl Attr {
    /// What a directory says of its own size, in bytes.
    pub const DIR_BYTES: u64 = 4096;

    /// Those of a new inode in the directory `parent`.
    pub fn made(ino: Ino, parent: &Attr, new: &NewInode, time: Time, version: Position) -> Attr {
        let Inherited { mode, gid, rights } = Inherited::of(parent, new);
        let is_dir = new.kind == FileKind::Dir;
        let target_bytes = new.target.as_ref().map_or(0, SealedValue::plain_bytes) as u64;
        Attr {
            ino,
            kind: new.kind,
            mode,
            uid: new.uid,
            gid,
            nlink: if is_dir { 2 } else { 1 },
            size: if is_dir { Attr::DIR_BYTES } else { target_bytes },
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            rdev: if matches!(new.kind, FileKind::CharDevice | FileKind::BlockDevice) { new.rdev } else { 0 },
            version,
            parent: Some(parent.ino),
            has_xattrs: false,
            rights,
        }
    }

    /// Makes the change, all but that of the size, with which content goes.
    pub fn set(&mut self, change: &AttrChange, time: Time) {
        if let Some(mode) = change.mode {
            self.chmod(mode);
        }
        self.uid = change.uid.unwrap_or(self.uid);
        self.gid = change.gid.unwrap_or(self.gid);
        self.atime = change.atime.unwrap_or(self.atime);
        self.mtime = change.mtime.unwrap_or(self.mtime);
        self.ctime = time;
    }

    /// Its content is another one from then on. What was written is sent later, with its own time, and others may have
    /// changed the file since: times go forward none the less, so that whoever remembers them sees it.
    pub fn written(&mut self, time: Time) {
        let time = if time < self.ctime { self.ctime.just_after() } else { time };
        (self.mtime, self.ctime) = (time, time);
    }

    /// A non-directory gets one more name, in that directory.
    pub fn link(&mut self, dir: Ino, time: Time) {
        self.nlink += 1;
        self.parent = self.parent.filter(|parent| *parent == dir);
        self.ctime = time;
    }

    /// One of its names moves to that directory.
    pub fn rename(&mut self, dir: Ino, time: Time) {
        self.parent = match self.parent {
            // The others stay where they are.
            Some(parent) if self.kind != FileKind::Dir && self.nlink > 1 && parent != dir => None,
            parent => parent.map(|_| dir),
        };
        self.ctime = time;
    }

    /// It loses one of its names; a directory has only one.
    pub fn unlink(&mut self, time: Time) {
        self.nlink = if self.kind == FileKind::Dir { 0 } else { self.nlink.saturating_sub(1) };
        if self.nlink == 0 && self.kind != FileKind::Dir {
            // No directory covers it any more.
            self.parent = None;
        }
        self.ctime = time;
    }

    /// An extended attribute was set or taken away, and some are left or none. `capability` tells of
    /// [`Rights::CAPABILITY`] whether it is there, if it is that one.
    pub fn xattrs_changed(&mut self, has_xattrs: bool, capability: Option<bool>, time: Time) {
        self.has_xattrs = has_xattrs;
        if let Some(capability) = capability {
            let rights = self.rights.take().map_or_else(Rights::default, |rights| *rights);
            self.rights = Rights { capability, ..rights }.some();
        }
        self.ctime = time;
    }

    /// Sets an access control list or takes it away. The mode then says the same as the list, with the setgid bit only
    /// if that stays.
    pub fn set_acl(&mut self, which: AclKind, acl: Option<&Acl>, clear_setgid: bool, time: Time) {
        let mut rights = self.rights.take().map_or_else(Rights::default, |rights| *rights);
        match which {
            AclKind::Default => rights.default = acl.cloned(),
            AclKind::Access => {
                if let Some(acl) = acl {
                    let setgid = if clear_setgid { 0 } else { self.mode & SETGID };
                    self.mode = acl.shown(self.mode) & !SETGID | setgid;
                }
                rights.access = acl.filter(|acl| !acl.is_mode()).cloned();
            }
        }
        self.rights = rights.some();
        self.ctime = time;
    }

    /// Sets the permission bits; the access control list then says the same.
    fn chmod(&mut self, mode: u32) {
        self.mode = mode & 0o7777;
        if let Some(access) = self.rights.as_mut().and_then(|rights| rights.access.as_mut()) {
            access.chmod(mode);
        }
    }
}
