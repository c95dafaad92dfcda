//! Access control lists: what becomes of mode and list when one of the two changes. Both always change together.

use super::rows::Turn;
use proto::Ino;
use proto::message::{Acl, AclKind, FileKind, Outcome, Promise, Refusal, Rights};

const SETGID: u32 = 0o2000;

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
