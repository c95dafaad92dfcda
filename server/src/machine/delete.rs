//! Requests that take a name away. An inode that loses its last name is only noted
//! here: whether some session may have it open is the session's side of the machine.

use super::rows::{InodeRow, Turn, covering, inode_key};
use proto::message::{Attr, Delete, FileKind, Outcome, Promise, Refusal};
use proto::planted::{Bug, planted};
use proto::{Ino, Name};

impl Turn<'_> {
    pub fn delete_name(&mut self, delete: &Delete) -> Result<Outcome, Refusal> {
        match delete {
            Delete::Unlink { dir, name } => self.unlink(*dir, name),
            Delete::Rmdir { dir, name } => self.rmdir(*dir, name),
        }
    }

    fn unlink(&mut self, dir: Ino, name: &Name) -> Result<Outcome, Refusal> {
        self.reads.push(Promise::Dir(dir));
        let parent = self.dir(dir)?;
        let dirent = self.dirent(dir, name).ok_or(Refusal::NotFound)?;
        let child = self.named(&dirent);
        self.reads_attr(&child.attr);
        if child.attr.kind == FileKind::Dir {
            return Err(Refusal::IsDirectory);
        }

        self.leave(dir, name, &dirent);
        self.update_dir(parent, -1, 0);
        Ok(Outcome::Removed(self.lose_name(child)))
    }

    fn rmdir(&mut self, dir: Ino, name: &Name) -> Result<Outcome, Refusal> {
        self.reads.push(Promise::Dir(dir));
        let parent = self.dir(dir)?;
        let dirent = self.dirent(dir, name).ok_or(Refusal::NotFound)?;
        let child = self.named(&dirent);
        self.reads_attr(&child.attr);
        if child.attr.kind != FileKind::Dir {
            return Err(Refusal::NotDirectory);
        }
        if child.entries > 0 && !planted(Bug::RemoveFullDirectory) {
            return Err(Refusal::NotEmpty);
        }

        self.leave(dir, name, &dirent);
        self.update_dir(parent, -1, -1);
        Ok(Outcome::Removed(self.lose_name(child)))
    }

    /// An inode one of whose names has just gone. A directory goes with its name;
    /// anything else stays, nameless, until it is known that nobody has it open.
    pub fn lose_name(&mut self, old: InodeRow) -> Attr {
        self.changes.push(covering(&old.attr));
        let mut new = old.clone();
        let ino = new.attr.ino;
        new.attr.unlink(self.time);
        if new.attr.kind == FileKind::Dir {
            self.put(&inode_key(ino), &new);
            self.free(ino);
            return new.attr;
        }
        if planted(Bug::UnlinkDoesNotCount) {
            (new.attr.nlink, new.attr.parent) = (old.attr.nlink, old.attr.parent);
        }
        if new.attr.nlink == 0 {
            self.changes.extend([Promise::Inode(ino), Promise::Content(ino)]);
            self.nameless.push(ino);
        }
        self.save(&old, new.clone());
        new.attr
    }
}
