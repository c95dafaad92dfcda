//! What a new inode is of its own and of its directory. The machine decides so, and whoever answers for a delegated directory.

use super::acl::Rights;
use super::attr::{Attr, FileKind, Owner};
use super::upload::NewInode;

const SETGID: u32 = 0o2000;

/// What a new inode is of its own and of its directory.
pub struct Inherited {
    pub mode: u32,
    pub gid: Owner,
    pub rights: Option<Box<Rights>>,
}

impl Inherited {
    pub fn of(parent: &Attr, new: &NewInode) -> Inherited {
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
    /// Sets the permission bits; the access control list then says the same.
    pub fn chmod(&mut self, mode: u32) {
        self.mode = mode & 0o7777;
        if let Some(access) = self.rights.as_mut().and_then(|rights| rights.access.as_mut()) {
            access.chmod(mode);
        }
    }
}
