//! Names: finding them, making them, moving them, taking them away.
//!
//! Each of these is one request at most. Its answer tells the attributes of what
//! it touched; what it did to the directories beside is the same everywhere
//! (times, links), so it is noted without asking.

use super::cache::{Found, Lesson};
use super::changing::Changing;
use super::local::RoomToMake;
use super::{Caller, Fs, Stat};
use crate::client::{CallError, Forget, Patience, Reply};
use crate::error::FsError;
use bytes::Bytes;
use proto::message::{Attr, Delete, FileKind, NewInode, Op, Outcome, Owner, Refusal, RenameHow, Upload, View};
use proto::planted::{Bug, planted};
use proto::{Ino, Name};

/// Linux allows no longer one.
const MAX_TARGET_BYTES: usize = 4095;

/// What a new inode is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewNode {
    pub kind: FileKind,
    /// As asked for: the umask is the caller's.
    pub mode: u32,
    pub rdev: u32,
}

impl Fs {
    pub async fn lookup(&self, dir: u64, name: &[u8], patience: &Patience) -> Result<Stat, FsError> {
        let attr = self.lookup_attr(self.ino(dir), &Name::new(name)?, patience).await?;
        self.shown(&attr, patience).await
    }

    pub(super) async fn lookup_attr(&self, dir: Ino, name: &Name, patience: &Patience) -> Result<Attr, FsError> {
        let mut found = self.cache().lookup(self.promises(), dir, name);
        // It may be among those that are on their way.
        if found.is_none() && self.listing_arrives(dir, patience).await? {
            found = self.cache().lookup(self.promises(), dir, name);
        }
        match found {
            Some(_) => self.looks_into(dir),
            None => self.look_around(dir),
        }
        match found {
            Some(Found::Entry(attr)) => return Ok(attr),
            Some(Found::Absent) => return Err(FsError::refused(Refusal::NotFound)),
            Some(Found::Inode(_)) | None => {}
        }
        match self.view(View::Lookup { dir, name: name.clone() }, patience).await {
            Ok(Reply { outcome: Outcome::Entry(attr), at, order, granted, continued, .. }) => {
                self.cache().learn_from(self.promises(), at, order, &granted, &continued, |l| {
                    l.attr(&attr);
                    l.name(dir, name, Some((attr.ino, attr.kind)));
                });
                // It may have been changed here since it was asked for.
                match self.cache().lookup(self.promises(), dir, name) {
                    Some(Found::Entry(newer)) => Ok(newer),
                    Some(Found::Absent) => Err(FsError::refused(Refusal::NotFound)),
                    Some(Found::Inode(_)) | None => Ok(attr),
                }
            }
            Ok(_) => Err(FsError::WrongAnswer { op: "lookup" }),
            Err(error) => {
                if let FsError::Call(CallError::Refused { refusal: Refusal::NotFound, at, order, granted }) = &error {
                    self.cache().learn_from(self.promises(), *at, *order, granted, &[], |l| l.name(dir, name, None));
                }
                Err(error)
            }
        }
    }

    /// Files, fifos, sockets and devices; an open file is [`Fs::create`].
    pub async fn mknod(
        &self,
        who: Caller,
        dir: u64,
        name: &[u8],
        node: NewNode,
        patience: &Patience,
    ) -> Result<Stat, FsError> {
        let attr = self.make(who, self.ino(dir), name, node, None, patience).await?;
        Ok(self.stat(&attr))
    }

    pub async fn mkdir(
        &self,
        who: Caller,
        dir: u64,
        name: &[u8],
        mode: u32,
        patience: &Patience,
    ) -> Result<Stat, FsError> {
        let node = NewNode { kind: FileKind::Dir, mode, rdev: 0 };
        let attr = self.make(who, self.ino(dir), name, node, None, patience).await?;
        Ok(self.stat(&attr))
    }

    pub async fn symlink(
        &self,
        who: Caller,
        dir: u64,
        name: &[u8],
        target: &[u8],
        patience: &Patience,
    ) -> Result<Stat, FsError> {
        if target.len() > MAX_TARGET_BYTES {
            return Err(FsError::TargetTooLong);
        }
        let node = NewNode { kind: FileKind::Symlink, mode: 0o777, rdev: 0 };
        let attr = self.make(who, self.ino(dir), name, node, Some(target), patience).await?;
        self.cache().set_target(attr.ino, Bytes::copy_from_slice(target));
        Ok(self.stat(&attr))
    }

    pub(super) async fn make(
        &self,
        who: Caller,
        dir: Ino,
        name: &[u8],
        node: NewNode,
        target: Option<&[u8]>,
        patience: &Patience,
    ) -> Result<Attr, FsError> {
        let name = Name::new(name)?;
        let (uid, gid) = match self.inner.config.owners.keep_numbers {
            true => (Owner::Number(who.uid), Owner::Number(who.gid)),
            false => (Owner::Namespace, Owner::Namespace),
        };
        let new = NewInode {
            kind: node.kind,
            mode: node.mode & 0o7777,
            umask: who.umask,
            uid,
            gid,
            rdev: node.rdev,
            target: target.map(|target| self.seal_target(target)),
            ino: None,
            reserved: false,
        };
        self.one_more(patience).await?;
        let (mut room, mut has_asked) = (RoomToMake::NotLookedFor, false);
        if let Some(done) = self.make_locally(dir, &name, &new, &mut room) {
            return done?.safe(patience).await;
        }
        if matches!(room, RoomToMake::Missing) {
            (room, has_asked) = (self.room_to_make(patience).await?, true);
            if let Some(done) = self.make_locally(dir, &name, &new, &mut room) {
                return done?.safe(patience).await;
            }
        }
        let (reply, _changing) = self.make_there(dir, &name, new, (room, has_asked), patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "create" }) };
        self.cache().learn(self.promises(), &reply, |l| {
            l.created(attr);
            l.name(dir, &name, Some((attr.ino, attr.kind)));
            l.dir_changed(dir, attr.ctime, i32::from(attr.kind == FileKind::Dir));
        });
        Ok(attr.clone())
    }

    /// Lets the server make something, with room for it or without.
    async fn make_there(
        &self,
        dir: Ino,
        name: &Name,
        new: NewInode,
        (mut room, mut has_asked): (RoomToMake, bool),
        patience: &Patience,
    ) -> Result<(Reply, Changing), FsError> {
        loop {
            let has_room = room.find(&self.inner.client);
            let new = NewInode { reserved: has_room, ..new.clone() };
            let create = Op::Upload(Upload::Create { dir, name: name.clone(), new });
            match self.change_with(create, room.take(), patience).await {
                // There may be some that others have reserved; where the name is taken none is needed.
                Err(error) if error.is(Refusal::QuotaExceeded) && !has_room && !has_asked => {
                    (room, has_asked) = (self.room_to_make(patience).await?, true);
                }
                made => return made,
            }
        }
    }

    pub async fn readlink(&self, ino: u64, patience: &Patience) -> Result<Bytes, FsError> {
        let ino = self.ino(ino);
        self.accessed(ino);
        if let Some(target) = self.cache().target(ino) {
            return Ok(target);
        }
        match self.view(View::Readlink { ino }, patience).await?.outcome {
            Outcome::Link(sealed) => {
                let target = Bytes::from(self.open_target(&sealed)?);
                self.cache().set_target(ino, target.clone());
                Ok(target)
            }
            _ => Err(FsError::WrongAnswer { op: "readlink" }),
        }
    }

    pub async fn unlink(&self, dir: u64, name: &[u8], patience: &Patience) -> Result<(), FsError> {
        let (dir, name) = (self.ino(dir), Name::new(name)?);
        self.remove(dir, &name, Delete::Unlink { dir, name: name.clone() }, patience).await
    }

    pub async fn rmdir(&self, dir: u64, name: &[u8], patience: &Patience) -> Result<(), FsError> {
        let (dir, name) = (self.ino(dir), Name::new(name)?);
        self.remove(dir, &name, Delete::Rmdir { dir, name: name.clone() }, patience).await
    }

    async fn remove(&self, dir: Ino, name: &Name, delete: Delete, patience: &Patience) -> Result<(), FsError> {
        self.before_publishing_name(dir, name, patience).await?;
        self.one_more(patience).await?;
        if let Some(done) = self.remove_locally(&delete) {
            return done?.safe(patience).await;
        }
        let (reply, _changing) = self.change(Op::Delete(delete), patience).await?;
        let Outcome::Removed(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "remove" }) };
        self.cache().learn(self.promises(), &reply, |l| {
            l.name(dir, name, None);
            l.attr(attr);
            l.dir_changed(dir, attr.ctime, -i32::from(attr.kind == FileKind::Dir));
        });
        Ok(())
    }

    pub async fn link(&self, ino: u64, dir: u64, name: &[u8], patience: &Patience) -> Result<Stat, FsError> {
        let (ino, dir, name) = (self.ino(ino), self.ino(dir), Name::new(name)?);
        self.before_publishing(ino, patience).await?;
        self.one_more(patience).await?;
        if let Some(done) = self.link_locally(ino, dir, &name) {
            let attr = done?.safe(patience).await?;
            return Ok(self.stat(&attr));
        }
        let (reply, _changing) =
            self.change(Op::Upload(Upload::Link { ino, dir, name: name.clone() }), patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "link" }) };
        self.cache().learn(self.promises(), &reply, |l| {
            l.attr(attr);
            l.name(dir, &name, Some((attr.ino, attr.kind)));
            l.dir_changed(dir, attr.ctime, 0);
        });
        Ok(self.stat(attr))
    }

    pub async fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        how: RenameHow,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let (from_dir, from) = (self.ino(from.0), Name::new(from.1)?);
        let (to_dir, to) = (self.ino(to.0), Name::new(to.1)?);
        // Whoever finds a file under its new name finds all of it.
        self.before_publishing_name(from_dir, &from, patience).await?;
        if how == RenameHow::Exchange {
            self.before_publishing_name(to_dir, &to, patience).await?;
        }
        self.one_more(patience).await?;
        if let Some(done) = self.rename_locally((from_dir, &from), (to_dir, &to), how) {
            done?.safe(patience).await?;
            self.moved((from_dir, &from), (to_dir, &to), how);
            return Ok(());
        }
        let op = Upload::Rename { from_dir, from: from.clone(), to_dir, to: to.clone(), how };
        let (reply, _changing) = self.change(Op::Upload(op), patience).await?;
        let Outcome::Renamed { moved, other } = &reply.outcome else {
            return Err(FsError::WrongAnswer { op: "rename" });
        };
        self.cache().learn(self.promises(), &reply, |l| {
            renamed(l, (from_dir, &from), (to_dir, &to), how, moved, other.as_deref());
        });
        self.moved((from_dir, &from), (to_dir, &to), how);
        Ok(())
    }

    /// The kernel moves what it was told along with the names, and keeps it as long: what covers it is another directory's
    /// delegation now.
    fn moved(&self, from: (Ino, &Name), to: (Ino, &Name), how: RenameHow) {
        let names = if how == RenameHow::Exchange { vec![to, from] } else { vec![to] };
        let inodes = names.iter().filter_map(|(dir, name)| self.cache().name_once(*dir, name)).collect();
        let is_kept =
            |(dir, name): &(Ino, &Name)| !self.showing().name(self.shown_ino(*dir), name.as_bytes()).is_zero();
        let names = names.into_iter().filter(|name| !is_kept(name)).map(|(dir, name)| (dir, name.clone())).collect();
        self.have_forgotten(Forget { inodes, names, until_ms: 0 }, Box::new(|| ()));
    }
}

/// What a rename says of the names and inodes that it has touched.
fn renamed(
    l: &mut Lesson<'_>,
    from: (Ino, &Name),
    to: (Ino, &Name),
    how: RenameHow,
    moved: &Attr,
    other: Option<&Attr>,
) {
    let is_dir = |attr: &Attr| attr.kind == FileKind::Dir;
    l.attr(moved);
    if !planted(Bug::RenameForgetsTarget) {
        l.name(to.0, to.1, Some((moved.ino, moved.kind)));
    }
    // Two names of one inode, or one name: POSIX lets all stay.
    if other.is_some_and(|other| other.ino == moved.ino) {
        return;
    }
    if let Some(other) = other {
        l.attr(other);
    }
    let left = other.filter(|_| how == RenameHow::Exchange);
    l.name(from.0, from.1, left.map(|other| (other.ino, other.kind)));
    for dir in [from.0, to.0] {
        // Links of directories move only where a directory is involved, which is
        // rare; then they are asked about again.
        match is_dir(moved) || other.is_some_and(is_dir) {
            true => l.attr_changed(dir),
            false => l.dir_changed(dir, moved.ctime, 0),
        }
    }
}
