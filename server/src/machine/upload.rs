//! Requests that add or change something (renames stand in `rename.rs`, content
//! in `write.rs`). Checks stand above, changes below: a refused request leaves no trace.

use super::rows::{DirentRow, InodeRow, Turn, ValueRow};
use super::rows::{covering, dirent_key, inode_key, link_key, xattr_key};
use proto::chunk::SealedValue;
use proto::message::{
    Attr, AttrChange, Cursor, Each, FileKind, NewInode, Outcome, Owner, Promise, Quota, Refusal, Resource, Rights,
    Upload, XattrHow,
};
use proto::planted::{Bug, planted};
use proto::{Ino, Name, NamespaceId, Time};

/// Bytes that sealing may add to a value, from above.
const VALUE_OVERHEAD_BYTES: usize = 1024;
/// A symlink's target, sealed; the kernel's own limit is 4096 before.
const MAX_TARGET_BYTES: usize = 4096 + VALUE_OVERHEAD_BYTES;

impl Turn<'_> {
    pub fn upload(&mut self, upload: &Upload) -> Result<Outcome, Refusal> {
        match upload {
            Upload::Create { dir, name, new } => self.create(*dir, name, new),
            Upload::Link { ino, dir, name } => self.link(*ino, *dir, name),
            Upload::Rename { from_dir, from, to_dir, to, how } => self.rename(*from_dir, from, *to_dir, to, *how),
            Upload::Setattr { ino, change } => self.setattr(*ino, change),
            Upload::Write { ino, at, pieces, reserved } => self.write(*ino, *at, pieces, *reserved),
            Upload::SetXattr { ino, name, value, how } => self.set_xattr(*ino, name, value, *how),
            Upload::RemoveXattr { ino, name } => self.remove_xattr(*ino, name),
            Upload::SetAcl { ino, which, acl, clear_setgid } => self.set_acl(*ino, *which, acl.as_ref(), *clear_setgid),
            Upload::Accessed { inodes } => self.accessed(inodes),
            Upload::Fallocate { ino, offset, len, how } => self.fallocate(*ino, *offset, *len, *how),
            Upload::Clone { from, to, to_offset } => self.clone_range(*from, *to, *to_offset),
        }
    }

    fn create(&mut self, dir: Ino, name: &Name, new: &NewInode) -> Result<Outcome, Refusal> {
        self.reads.push(Promise::Dir(dir));
        let parent = self.dir(dir)?;
        if let Some(taken) = self.dirent(dir, name) {
            let attr = self.named(&taken).attr;
            self.reads_attr(&attr);
            return Err(Refusal::Exists);
        }
        let symlink = new.kind == FileKind::Symlink;
        if symlink != new.target.is_some() {
            return Err(Refusal::Invalid);
        }
        if new.target.as_ref().is_some_and(|target| value_bytes(target) > MAX_TARGET_BYTES) {
            return Err(Refusal::TooLarge);
        }
        self.find_room(Resource::Inodes, 1, new.reserved, |_| 0)?;
        let ino = self.new_ino(new.ino)?;

        let attr = Attr::made(ino, &parent.attr, new, self.time, self.at);
        let is_dir = attr.kind == FileKind::Dir;
        if let Some(target) = &new.target {
            self.put(&link_key(ino), &ValueRow { value: target.clone(), begin: self.begin() });
        }
        self.put(&inode_key(ino), &InodeRow { attr: attr.clone(), entries: 0, xattr_bytes: 0, begin: self.begin() });
        self.enter(dir, name, ino);
        self.update_dir(parent, 1, i64::from(is_dir));
        self.grants.extend(Promise::inside(ino, attr.kind));
        if !is_dir {
            self.opened.push(ino);
        }
        Ok(Outcome::Entry(attr))
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &Name) -> Result<Outcome, Refusal> {
        if ino.namespace() != dir.namespace() {
            return Err(Refusal::CrossNamespace);
        }
        self.reads.extend([Promise::Dir(dir), Promise::Inode(ino), Promise::Content(ino)]);
        let old = self.inode(ino)?;
        self.reads_attr(&old.attr);
        let parent = self.dir(dir)?;
        if self.dirent(dir, name).is_some() {
            return Err(Refusal::Exists);
        }
        if old.attr.kind == FileKind::Dir {
            return Err(Refusal::NotPermitted);
        }
        if old.attr.nlink == 0 {
            return Err(Refusal::NotFound);
        }
        if old.attr.nlink >= Upload::MAX_LINKS {
            return Err(Refusal::TooManyLinks);
        }

        // What covers the inode may be something else from now on.
        self.changes.push(covering(&old.attr));
        let mut new = old.clone();
        new.attr.link(dir, self.time);
        if planted(Bug::LinkDoesNotCount) {
            new.attr.nlink = old.attr.nlink;
        }
        self.save(&old, new.clone());
        self.enter(dir, name, ino);
        self.update_dir(parent, 1, 0);
        Ok(Outcome::Entry(self.changed(new.attr)))
    }

    fn setattr(&mut self, ino: Ino, change: &AttrChange) -> Result<Outcome, Refusal> {
        self.reads.extend([Promise::Dir(ino), Promise::Inode(ino), Promise::Content(ino)]);
        let old = self.inode(ino)?;
        self.reads_attr(&old.attr);
        if let Some(size) = change.size {
            match old.attr.kind {
                FileKind::File if size > Upload::MAX_FILE_BYTES => return Err(Refusal::TooLarge),
                FileKind::File => {}
                FileKind::Dir => return Err(Refusal::IsDirectory),
                _ => return Err(Refusal::Invalid),
            }
        }
        let times = [change.atime, change.mtime];
        if times.iter().flatten().any(|time| time.nanos > 999_999_999) {
            return Err(Refusal::Invalid);
        }

        let mut new = old.clone();
        if let Some(size) = change.size {
            self.resize(&mut new, size);
            new.attr.mtime = self.time;
            self.opened.push(ino);
        }
        new.attr.set(change, self.time);
        if new.attr.kind == FileKind::File && (change.size.is_some() || times.iter().any(Option::is_some)) {
            self.changes.push(Promise::Content(ino));
        }
        self.save(&old, new.clone());
        Ok(Outcome::Entry(self.changed(new.attr)))
    }

    fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &SealedValue, how: XattrHow) -> Result<Outcome, Refusal> {
        self.reads.extend([Promise::Dir(ino), Promise::Inode(ino), Promise::Content(ino)]);
        let old = self.inode(ino)?;
        self.reads_attr(&old.attr);
        if name.is_empty() || name.len() > Upload::MAX_XATTR_NAME_BYTES || name.contains(&0) {
            return Err(Refusal::Invalid);
        }
        let bytes = value_bytes(value);
        if bytes > Upload::MAX_XATTR_VALUE_BYTES + VALUE_OVERHEAD_BYTES {
            return Err(Refusal::TooLarge);
        }
        let key = xattr_key(ino, name);
        let before: Option<ValueRow> = self.get(&key);
        match (how, &before) {
            (XattrHow::Create, Some(_)) => return Err(Refusal::Exists),
            (XattrHow::Replace, None) => return Err(Refusal::NoAttribute),
            _ => {}
        }
        let freed = before.as_ref().map_or(0, |row| (name.len() + value_bytes(&row.value)) as u64);
        let total = old.xattr_bytes.saturating_sub(freed) + (name.len() + bytes) as u64;
        if total > Upload::MAX_XATTRS_BYTES as u64 {
            return Err(Refusal::NoSpace);
        }

        if let Some(row) = before {
            self.retire(&key, &row.begin, &row);
        }
        self.put(&key, &ValueRow { value: value.clone(), begin: self.begin() });
        Ok(Outcome::Entry(self.xattrs_changed(old, total, (name, true))))
    }

    fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<Outcome, Refusal> {
        self.reads.extend([Promise::Dir(ino), Promise::Inode(ino), Promise::Content(ino)]);
        let old = self.inode(ino)?;
        self.reads_attr(&old.attr);
        let key = xattr_key(ino, name);
        let row: ValueRow = self.get(&key).ok_or(Refusal::NoAttribute)?;

        self.retire(&key, &row.begin, &row);
        let total = old.xattr_bytes.saturating_sub((name.len() + value_bytes(&row.value)) as u64);
        Ok(Outcome::Entry(self.xattrs_changed(old, total, (name, false))))
    }

    fn xattrs_changed(&mut self, old: InodeRow, xattr_bytes: u64, (name, is_set): (&[u8], bool)) -> Attr {
        let mut new = old.clone();
        new.xattr_bytes = xattr_bytes;
        let capability = (name == Rights::CAPABILITY).then_some(is_set);
        new.attr.xattrs_changed(xattr_bytes > 0, capability, self.time);
        self.save(&old, new.clone());
        self.changed(new.attr)
    }

    /// Notes that an inode is now like this, and that the answer says so.
    pub fn changed(&mut self, attr: Attr) -> Attr {
        let covering = covering(&attr);
        self.changes.push(covering);
        self.grants.push(covering);
        let content = Promise::Content(attr.ino);
        if attr.kind == FileKind::File {
            self.reads.push(content);
        }
        if self.changes.contains(&content) {
            self.grants.push(content);
        }
        attr
    }

    /// Puts a name into a directory. The directory's own row is [`Self::update_dir`]'s.
    pub fn enter(&mut self, dir: Ino, name: &Name, ino: Ino) {
        let begin = self.begin();
        self.put(&dirent_key(dir, &Cursor::of(name)), &DirentRow { ino, begin });
    }

    /// Takes a name out of a directory.
    pub fn leave(&mut self, dir: Ino, name: &Name, dirent: &DirentRow) {
        self.retire(&dirent_key(dir, &Cursor::of(name)), &dirent.begin, dirent);
    }

    /// A directory after its entries have changed: counts, times, version. Costs
    /// the same however large the directory is.
    pub fn update_dir(&mut self, old: InodeRow, entries: i64, subdirs: i64) {
        let mut new = old.clone();
        new.entries = new.entries.saturating_add_signed(entries);
        new.attr.nlink = new.attr.nlink.saturating_add_signed(subdirs as i32);
        if !planted(Bug::DirKeepsTimes) {
            (new.attr.mtime, new.attr.ctime) = (self.time, self.time);
        }
        new.attr.version = self.at;
        let thing = Promise::Dir(new.attr.ino);
        self.changes.push(thing);
        self.grants.push(thing);
        self.save(&old, new);
    }

    /// Makes a namespace's root, once.
    pub fn ensure_root(&mut self, namespace: NamespaceId, now: Time) {
        use super::rows::{NamespaceRow, namespace_key};
        self.namespace = namespace;
        let root = Ino::root(namespace);
        if self.exists(root) {
            return;
        }
        let attr = Attr {
            ino: root,
            kind: FileKind::Dir,
            mode: 0o755,
            uid: Owner::Namespace,
            gid: Owner::Namespace,
            nlink: 2,
            size: Attr::DIR_BYTES,
            allocated: 0,
            atime: now,
            mtime: now,
            ctime: now,
            rdev: 0,
            version: self.at,
            parent: Some(root),
            has_xattrs: false,
            rights: None,
        };
        // The root's own counter is 1.
        let row = NamespaceRow {
            next: 2,
            counted: self.at.epoch,
            bytes_used: 0,
            inodes_used: 1,
            history_bytes: 0,
            bytes_total: super::rows::bytes_total(),
            quota: Quota::default(),
            quota_decision: None,
            limited_since: Each::default(),
        };
        self.put(&namespace_key(namespace), &row);
        self.put(&inode_key(root), &InodeRow { attr, entries: 0, xattr_bytes: 0, begin: self.begin() });
    }
}

/// What a sealed value takes, in bytes.
fn value_bytes(value: &SealedValue) -> usize {
    value.sealed.len()
}
