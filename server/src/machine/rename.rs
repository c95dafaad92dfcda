//! Renames, with Linux's order of refusals: missing names first, then loops, then
//! kinds that do not fit, then directories that are not empty.

use super::rows::{DirentRow, InodeRow, Turn, covering, inode_key};
use proto::message::{Attr, FileKind, Outcome, Promise, Refusal, RenameHow};
use proto::planted::{Bug, planted};
use proto::{Ino, Name};

/// One side of a rename: a directory and a name in it.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: Ino,
    name: &'a Name,
}

/// What stands at a place.
struct Found {
    dirent: DirentRow,
    inode: InodeRow,
}

impl Found {
    fn is_dir(&self) -> bool {
        self.inode.attr.kind == FileKind::Dir
    }
}

impl Turn<'_> {
    pub fn rename(
        &mut self,
        from_dir: Ino,
        from: &Name,
        to_dir: Ino,
        to: &Name,
        how: RenameHow,
    ) -> Result<Outcome, Refusal> {
        if from_dir.namespace() != to_dir.namespace() {
            return Err(Refusal::CrossNamespace);
        }
        let (from, to) = (Place { dir: from_dir, name: from }, Place { dir: to_dir, name: to });
        self.reads.extend([Promise::Dir(from_dir), Promise::Dir(to_dir)]);
        self.dir(from_dir)?;
        self.dir(to_dir)?;
        let moved = self.found(from).ok_or(Refusal::NotFound)?;
        let target = self.found(to);
        match (how, &target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Refusal::Exists),
            (RenameHow::Exchange, None) => return Err(Refusal::NotFound),
            _ => {}
        }
        let exchange = how == RenameHow::Exchange;
        // What stays in its directory comes to stand below nothing else, and so those above have nothing to do with it: whoever
        // is delegated the directory answers for that itself.
        let moves = from_dir != to_dir;
        if moves && moved.is_dir() && self.is_within(to_dir, moved.dirent.ino) {
            return Err(Refusal::Invalid);
        }
        if let Some(target) = &target {
            if moves && target.is_dir() && self.is_within(from_dir, target.dirent.ino) {
                return Err(if exchange { Refusal::Invalid } else { Refusal::NotEmpty });
            }
            if target.dirent.ino == moved.dirent.ino {
                // Two names of one inode: POSIX wants nothing to happen.
                let attr = self.shown(moved.inode.attr);
                return Ok(Outcome::Renamed { moved: attr.clone(), other: Some(attr.into()) });
            }
            if !exchange {
                match (moved.is_dir(), target.is_dir()) {
                    (true, false) => return Err(Refusal::NotDirectory),
                    (false, true) => return Err(Refusal::IsDirectory),
                    _ => {}
                }
                if target.inode.entries > 0 {
                    return Err(Refusal::NotEmpty);
                }
            }
        }

        match target {
            Some(target) if exchange => Ok(self.exchange(from, to, moved, target)),
            target => Ok(self.replace(from, to, moved, target)),
        }
    }

    fn replace(&mut self, from: Place, to: Place, moved: Found, target: Option<Found>) -> Outcome {
        if !planted(Bug::RenameKeepsName) {
            self.leave(from.dir, from.name, &moved.dirent);
        }
        let subdir = i64::from(moved.is_dir());
        self.update_dir_of(from.dir, -1, -subdir);
        let other = match target {
            Some(target) => {
                self.leave(to.dir, to.name, &target.dirent);
                let replaced_subdir = i64::from(target.is_dir());
                let gone = self.lose_name(target.inode);
                self.enter(to.dir, to.name, moved.dirent.ino);
                self.update_dir_of(to.dir, 0, subdir - replaced_subdir);
                Some(gone.into())
            }
            None => {
                self.enter(to.dir, to.name, moved.dirent.ino);
                self.update_dir_of(to.dir, 1, subdir);
                None
            }
        };
        let moved = self.moved(moved.inode, to.dir);
        Outcome::Renamed { moved, other }
    }

    fn exchange(&mut self, from: Place, to: Place, moved: Found, target: Found) -> Outcome {
        self.leave(from.dir, from.name, &moved.dirent);
        self.leave(to.dir, to.name, &target.dirent);
        self.enter(from.dir, from.name, target.dirent.ino);
        self.enter(to.dir, to.name, moved.dirent.ino);
        let gained = i64::from(target.is_dir()) - i64::from(moved.is_dir());
        self.update_dir_of(from.dir, 0, gained);
        self.update_dir_of(to.dir, 0, -gained);
        let other = Some(self.moved(target.inode, from.dir).into());
        let moved = self.moved(moved.inode, to.dir);
        Outcome::Renamed { moved, other }
    }

    /// An inode after one of its names has moved to `dir`.
    fn moved(&mut self, old: InodeRow, dir: Ino) -> Attr {
        self.changes.push(covering(&old.attr));
        let mut new = old.clone();
        new.attr.rename(dir, self.time);
        self.save(&old, new.clone());
        self.changed(new.attr)
    }

    /// Like `update_dir`, for a row that this same record may have changed already.
    fn update_dir_of(&mut self, dir: Ino, entries: i64, subdirs: i64) {
        let row: InodeRow = self.get(&inode_key(dir)).expect("a rename was checked to be between directories");
        self.update_dir(row, entries, subdirs);
    }

    fn found(&mut self, place: Place) -> Option<Found> {
        let dirent = self.dirent(place.dir, place.name)?;
        let inode = self.named(&dirent);
        self.reads_attr(&inode.attr);
        Some(Found { dirent, inode })
    }

    /// Whether `dir` is `ancestor` or below it. Work grows with the depth.
    fn is_within(&mut self, dir: Ino, ancestor: Ino) -> bool {
        let mut at = dir;
        loop {
            self.reads.push(Promise::Dir(at));
            if at == ancestor {
                return true;
            }
            let row: InodeRow = self.get(&inode_key(at)).expect("every directory's parent exists");
            match row.attr.parent {
                Some(parent) if parent != at => at = parent,
                _ => return false,
            }
        }
    }
}
