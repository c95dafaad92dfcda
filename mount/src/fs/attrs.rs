//! Attributes: looking at them and changing them.

use super::cache::{Cache, covering};
use super::{Fs, entry};
use crate::client::Patience;
use crate::error::FsError;
use proto::message::{Attr, AttrChange, FileKind, Op, Outcome, Owner, Promise, Upload, View};
use proto::{Ino, Time};

/// Attributes as a program sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub ino: u64,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// In bytes, with what has been written here and not been answered yet.
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub rdev: u32,
    /// What the promise is about under which these attributes were known to be right, if there was one.
    pub covering: Option<Promise>,
}

/// What `setattr` is to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Time),
}

impl Fs {
    pub async fn getattr(&self, ino: u64, patience: &Patience) -> Result<Stat, FsError> {
        let attr = self.attr(self.ino(ino), patience).await?;
        self.shown(&attr, patience).await
    }

    /// The attributes as they are now.
    pub(super) async fn attr(&self, ino: Ino, patience: &Patience) -> Result<Attr, FsError> {
        if let Some(attr) = self.cache().attr(self.promises(), ino) {
            return Ok(attr);
        }
        let reply = self.view(View::Getattr { ino }, patience).await?;
        if let Outcome::Entry(attr) = &reply.outcome {
            self.cache().learn(self.promises(), &reply, |l| l.attr(attr));
        }
        entry(reply, "getattr")
    }

    /// The attributes as they were once, if that is known, else as they are now:
    /// for what never changes, and what is only asked about an open file.
    pub(super) async fn attr_once(&self, ino: Ino, patience: &Patience) -> Result<Attr, FsError> {
        match self.cache().attr_once(ino) {
            Some(attr) => Ok(attr),
            None => self.attr(ino, patience).await,
        }
    }

    /// Changes attributes. Data written before leaves before, so that a size or a
    /// time set now is what remains. With nothing set (a chown that keeps both owners)
    /// only ctime moves.
    pub async fn setattr(&self, ino: u64, set: SetAttr, patience: &Patience) -> Result<Stat, FsError> {
        let ino = self.ino(ino);
        let change = self.stored_change(&set)?;
        let size = change.size;
        if let Some(size) = size {
            if size > Upload::MAX_FILE_BYTES {
                return Err(FsError::FileTooLarge { max: Upload::MAX_FILE_BYTES });
            }
            self.before_truncate(ino, size, patience).await?;
        } else {
            self.before_publishing(ino, patience).await?;
        }
        if change.atime.is_some() {
            self.inner.accessed.forget(ino);
        }
        self.one_more(patience).await?;
        if let Some(done) = self.set_locally(ino, &change) {
            let safe = done?.safe(patience).await;
            if size.is_some() && safe.is_err() {
                // It is cut none the less, and the kernel keeps what was there.
                self.inval_pages(ino);
            }
            return Ok(self.stat(&safe?));
        }
        let (reply, _changing) = self.change(Op::Upload(Upload::Setattr { ino, change }), patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "setattr" }) };
        let mut before = None;
        self.cache().learn(self.promises(), &reply, |l| match size {
            Some(size) => before = l.content_changed(attr, |map| map.truncate(size)),
            None => l.attr(attr),
        });
        if size.is_some() {
            // The kernel has cut its pages itself.
            self.inner.files.pages_follow(ino, before, attr.version);
        }
        Ok(self.stat(attr))
    }

    fn stored_change(&self, set: &SetAttr) -> Result<AttrChange, FsError> {
        let now = self.inner.client.now();
        let time = |time| match time {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        Ok(AttrChange {
            mode: set.mode.map(|mode| mode & 0o7777),
            uid: set.uid.map(|uid| self.stored_owner(uid, self.inner.config.owners.uid)).transpose()?,
            gid: set.gid.map(|gid| self.stored_owner(gid, self.inner.config.owners.gid)).transpose()?,
            size: set.size,
            atime: set.atime.map(time),
            mtime: set.mtime.map(time),
        })
    }

    /// How a number that a program gives is kept. A plain user's mount knows only its own.
    fn stored_owner(&self, number: u32, own: u32) -> Result<Owner, FsError> {
        match self.inner.config.owners.keep_numbers {
            true => Ok(Owner::Number(number)),
            false if number == own => Ok(Owner::Namespace),
            false => Err(FsError::Owner),
        }
    }

    /// The same as [`Fs::stat`], after the answer to what was written here, if that is no longer the newest there is.
    pub(super) async fn shown(&self, found: &Attr, patience: &Patience) -> Result<Stat, FsError> {
        if let FileKind::File = found.kind
            && let Some(file) = self.inner.files.get(found.ino)
        {
            self.not_overtaken(&file, patience).await?;
        }
        Ok(self.stat(found))
    }

    /// What a program is shown of an inode that has been found: what is known of it by now, and over that what is still
    /// to be sent.
    pub(super) fn stat(&self, found: &Attr) -> Stat {
        // First what was written here: what is answered for has left the file, and the file has been forgotten, after
        // it entered the cache; and that may be later than `found` was taken from there.
        let pending = match found.kind {
            FileKind::File => self.inner.files.get(found.ino).and_then(|file| file.pending()),
            _ => None,
        };
        let (attr, is_right) = self.cache().newest(self.promises(), found);
        let mut stat = Stat {
            ino: self.shown_ino(attr.ino),
            kind: attr.kind,
            mode: match attr.kind {
                FileKind::Symlink => attr.mode,
                _ => attr.mode & !self.inner.config.owners.umask,
            },
            uid: self.shown_uid(attr.uid),
            gid: self.shown_gid(attr.gid),
            nlink: attr.nlink,
            size: attr.size,
            blocks: attr.allocated.div_ceil(512),
            atime: attr.atime,
            mtime: attr.mtime,
            ctime: attr.ctime,
            rdev: attr.rdev,
            covering: is_right.then(|| covering(&attr)),
        };
        if let Some(pending) = pending {
            stat.size = stat.size.max(pending.end);
            stat.blocks = stat.blocks.max(pending.end.min(stat.blocks * 512 + pending.bytes).div_ceil(512));
            // As the server will have it. Where the last change is later, it is one of ours that came behind the
            // write in the log, whose answer has only not been taken in; or another mount's, by another clock.
            if pending.mtime >= stat.ctime {
                (stat.mtime, stat.ctime) = (pending.mtime, pending.mtime);
            }
        }
        if let Some(accessed) = self.inner.accessed.of(attr.ino, stat.ctime) {
            stat.atime = stat.atime.max(accessed);
        }
        stat
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.inner.cache
    }

    pub(super) fn promises(&self) -> &crate::client::Promises {
        self.inner.client.promises()
    }
}
