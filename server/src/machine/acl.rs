//! Access control lists: what becomes of mode and list when one of the two changes. Both always change together.

use super::rows::Turn;
use proto::Ino;
use proto::message::{Acl, AclKind, FileKind, Outcome, Promise, Refusal};

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
        new.attr.set_acl(which, acl, clear_setgid, self.time);
        self.save(&old, new.clone());
        Ok(Outcome::Entry(self.changed(new.attr)))
    }
}
