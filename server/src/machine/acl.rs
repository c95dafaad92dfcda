//! Access control lists: what a new inode has of its directory's, and what becomes of mode and list when one of
//! the two changes. Both always change together.

use super::rows::{InodeRow, Turn};
use proto::Ino;
use proto::message::{Acl, AclKind, FileKind, NewInode, Outcome, Owner, Promise, Refusal, Rights};

const SETGID: u32 = 0o2000;

/// What a new inode is of its own and of its directory.
pub(super) struct Inherited {
    pub mode: u32,
    pub gid: Owner,
    pub rights: Option<Box<Rights>>,
}

impl Inherited {
    pub fn of(parent: &InodeRow, new: &NewInode) -> Inherited {
        let parent = &parent.attr;
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

/// A row after chmod: its access list says the same.
pub(super) fn chmod(row: &mut InodeRow, mode: u32) {
    row.attr.mode = mode & 0o7777;
    if let Some(access) = row.attr.rights.as_mut().and_then(|rights| rights.access.as_mut()) {
        access.chmod(mode);
    }
}

impl Turn<'_> {
    pub fn set_acl(
        &mut self,
        ino: Ino,
        which: AclKind,
        acl: Option<&Acl>,
        clear_setgid: bool,
    ) -> Result<Outcome, Refusal> {
        self.reads.extend([Promise::Dir(ino), Promise::Inode(ino), Promise::Content(ino)]);
        let old = self.inode(ino)?;
        self.reads_attr(&old.attr);
        if acl.is_some_and(|acl| !acl.is_valid()) || old.attr.kind == FileKind::Symlink {
            return Err(Refusal::Invalid);
        }
        if acl.is_some() && which == AclKind::Default && old.attr.kind != FileKind::Dir {
            return Err(Refusal::NotDirectory);
        }
        let before = old.attr.rights.as_deref().and_then(|rights| rights.acl(which));
        if acl.is_none() && before.is_none() {
            return Ok(Outcome::Entry(self.shown(old.attr)));
        }

        let mut new = old.clone();
        let mut rights = new.attr.rights.take().map_or_else(Rights::default, |rights| *rights);
        match which {
            AclKind::Default => rights.default = acl.cloned(),
            AclKind::Access => {
                if let Some(acl) = acl {
                    let setgid = if clear_setgid { 0 } else { new.attr.mode & SETGID };
                    new.attr.mode = acl.shown(new.attr.mode) & !SETGID | setgid;
                }
                rights.access = acl.filter(|acl| !acl.is_mode()).cloned();
            }
        }
        new.attr.rights = rights.some();
        new.attr.ctime = self.time;
        self.save(&old, new.clone());
        Ok(Outcome::Entry(self.changed(new.attr)))
    }
}
