//! What the mount remembers of names, attributes and content maps.
//!
//! * Every entry is under a promise's [`Life`] and counts only while that lives;
//!   nothing here is ever wrong for longer than it takes to look.
//! * An answer enters only under what it granted itself, and before an older
//!   fact only if it is newer.
//! * All is bounded in bytes: [`NAMES_BYTES`], [`ATTRS_BYTES`], [`MAPS_BYTES`],
//!   [`VALUES_BYTES`].

use super::bytes_lru::BytesLru;
use super::changing::Concerned;
use super::extents::{ExtentMap, Part};
use super::stamps::{Life, Stamps};
use crate::client::{Continued, Grant, Promises, Reply};
use bytes::Bytes;
use proto::message::{Attr, Cursor, FileKind, Listed, Promise, StoredExtent};
use proto::planted::{Bug, planted};
use proto::{Ino, Name, Position, Time};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of names, over all directories.
pub const NAMES_BYTES: usize = 64 << 20;
/// Bytes of names in one directory: a larger one is not kept as a whole.
const DIR_BYTES: usize = NAMES_BYTES / 4;
/// Bytes of attributes.
pub const ATTRS_BYTES: usize = 64 << 20;
/// Bytes of content maps, over all files.
pub const MAPS_BYTES: usize = 64 << 20;
/// Bytes of one file's content map: what is more starts anew.
const MAP_BYTES: usize = MAPS_BYTES / 4;
/// Bytes of extended attributes and symlink targets.
pub const VALUES_BYTES: usize = 16 << 20;

const ATTR_BYTES: usize = 256;
/// What access control lists take beside, and each user and group that they name.
const RIGHTS_BYTES: usize = 192;
const NAMED_BYTES: usize = 8;
const NAME_BYTES: usize = 96;

/// What a promise on an inode's attributes is about.
pub fn covering(attr: &Attr) -> Promise {
    match (attr.kind, attr.parent) {
        (FileKind::Dir, _) => Promise::Dir(attr.ino),
        (_, Some(dir)) => Promise::Dir(dir),
        (_, None) => Promise::Inode(attr.ino),
    }
}

/// What is known about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Entry(Attr),
    /// The name is this inode, whose attributes are not known.
    Inode(Ino),
    Absent,
}

/// One entry of a directory that is known as a whole; its attributes where known.
pub struct CachedEntry {
    pub name: Name,
    pub hash: u64,
    pub ino: Ino,
    pub kind: FileKind,
    pub attr: Option<Attr>,
}

/// What is known of a file's content at some range.
pub struct Content {
    pub size: u64,
    pub version: Position,
    pub parts: Result<Vec<Part>, u64>,
}

/// An inode's extended attributes, opened.
pub type Xattrs = std::sync::Arc<Vec<(Vec<u8>, Bytes)>>;

pub struct Cache {
    inner: Mutex<Inner>,
}

pub struct Inner {
    stamps: Stamps,
    /// Own changes to these that are on their way.
    changing: BTreeMap<Promise, u32>,
    /// Own changes on their way to inodes that were not known.
    changing_any: u32,
    attrs: BytesLru<Ino, KnownAttr>,
    dirs: BytesLru<Ino, KnownDir>,
    maps: BytesLru<Ino, KnownMap>,
    xattrs: BytesLru<Ino, (Promise, Life, Xattrs)>,
    /// Symlinks never change, and inode numbers are never used again: no promise needed.
    targets: BytesLru<Ino, Bytes>,
}

struct KnownAttr {
    attr: Attr,
    /// Of the answer that brought it.
    at: Position,
    /// `None`: known once, good for what may be stale.
    life: Option<(Promise, Life)>,
}

struct KnownDir {
    life: Life,
    /// By hash, then name, as listings come. `None` is a name known to be absent.
    names: BTreeMap<(u64, Name), Option<(Ino, FileKind)>>,
    /// Every name up to and including this one is known.
    listed: Reach,
    bytes: usize,
}

/// How far a directory is known without a gap.
#[derive(PartialEq, Eq)]
enum Reach {
    Nothing,
    UpTo(Cursor),
    All,
}

struct KnownMap {
    life: Life,
    size: u64,
    version: Position,
    map: ExtentMap,
}

impl Cache {
    pub fn new() -> Cache {
        Cache {
            inner: Mutex::new(Inner {
                stamps: Stamps::default(),
                changing: BTreeMap::new(),
                changing_any: 0,
                attrs: BytesLru::new(ATTRS_BYTES),
                dirs: BytesLru::new(NAMES_BYTES),
                maps: BytesLru::new(MAPS_BYTES),
                xattrs: BytesLru::new(VALUES_BYTES / 2),
                targets: BytesLru::new(VALUES_BYTES / 2),
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Entries are replaced whole, so a panic in between leaves only valid ones.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attributes, if they are known to be right.
    pub fn attr(&self, promises: &Promises, ino: Ino) -> Option<Attr> {
        if planted(Bug::AttributesForEver) {
            return self.attr_once(ino);
        }
        self.inner().attr(promises, ino)
    }

    /// The attributes as they were last seen.
    pub fn attr_once(&self, ino: Ino) -> Option<Attr> {
        self.inner().attrs.get(&ino).map(|k| k.attr.clone())
    }

    /// The inode that a name was last known to be of.
    pub fn name_once(&self, dir: Ino, name: &Name) -> Option<Ino> {
        let cursor = Cursor::of(name);
        let mut inner = self.inner();
        inner.dirs.get(&dir)?.names.get(&(cursor.hash, cursor.name))?.map(|(ino, _)| ino)
    }

    /// From now on names and attributes that these cover are not answered for.
    pub fn begin_changing(&self, concerned: &Concerned) {
        let mut inner = self.inner();
        inner.changing_any += u32::from(concerned.any_inode);
        for thing in &concerned.things {
            *inner.changing.entry(*thing).or_default() += 1;
        }
    }

    /// One change less is on its way.
    pub fn end_changing(&self, concerned: &Concerned) {
        let mut inner = self.inner();
        inner.changing_any -= u32::from(concerned.any_inode);
        for thing in &concerned.things {
            if let Some(count) = inner.changing.get_mut(thing) {
                *count -= 1;
                if *count == 0 {
                    inner.changing.remove(thing);
                }
            }
        }
    }

    pub fn lookup(&self, promises: &Promises, dir: Ino, name: &Name) -> Option<Found> {
        let mut inner = self.inner();
        let cursor = Cursor::of(name);
        if planted(Bug::AbsentForEver)
            && let Some(None) = inner.dirs.get(&dir).and_then(|d| d.names.get(&(cursor.hash, cursor.name.clone())))
        {
            return Some(Found::Absent);
        }
        let life = inner.life(promises, &Promise::Dir(dir))?;
        let known = inner.dirs.get(&dir).filter(|d| d.life == life)?;
        match known.names.get(&(cursor.hash, cursor.name)) {
            Some(Some((ino, _))) => {
                let ino = *ino;
                Some(inner.attr(promises, ino).map_or(Found::Inode(ino), Found::Entry))
            }
            Some(None) => Some(Found::Absent),
            None if known.listed == Reach::All => Some(Found::Absent),
            None => None,
        }
    }

    /// Up to `limit` entries behind the hash `after` of a directory that is known
    /// as a whole; fewer only at its end.
    pub fn listing(&self, promises: &Promises, dir: Ino, after: u64, limit: usize) -> Option<Vec<CachedEntry>> {
        let mut inner = self.inner();
        let life = inner.life(promises, &Promise::Dir(dir))?;
        let known = inner.dirs.get(&dir).filter(|d| d.life == life && d.listed == Reach::All)?;
        let first = (after.saturating_add(1), Name::new(b"\x01").expect("one byte is a name"));
        let mut entries: Vec<CachedEntry> = known
            .names
            .range((Bound::Included(first), Bound::Unbounded))
            .filter_map(|((hash, name), target)| {
                target.map(|(ino, kind)| CachedEntry { name: name.clone(), hash: *hash, ino, kind, attr: None })
            })
            .take(limit)
            .collect();
        for entry in &mut entries {
            entry.attr = inner.attr(promises, entry.ino);
        }
        Some(entries)
    }

    /// What is known of a file's content in `from..to`, cut at its end.
    pub fn content(&self, promises: &Promises, ino: Ino, from: u64, to: u64) -> Option<Content> {
        let mut inner = self.inner();
        let life = inner.stamps.life(promises, &Promise::Content(ino));
        let known = inner.maps.get(&ino).filter(|m| Some(m.life) == life || planted(Bug::ContentForEver))?;
        let to = to.min(known.size);
        let parts = if from < to { known.map.parts(from, to) } else { Ok(Vec::new()) };
        Some(Content { size: known.size, version: known.version, parts })
    }

    pub fn xattrs(&self, promises: &Promises, ino: Ino) -> Option<Xattrs> {
        let mut inner = self.inner();
        let (promise, life, xattrs) = inner.xattrs.get(&ino)?;
        let (promise, life, xattrs) = (*promise, *life, xattrs.clone());
        (inner.stamps.life(promises, &promise) == Some(life)).then_some(xattrs)
    }

    pub fn target(&self, ino: Ino) -> Option<Bytes> {
        self.inner().targets.get(&ino).cloned()
    }

    pub fn set_target(&self, ino: Ino, target: Bytes) {
        let bytes = target.len() + NAME_BYTES;
        self.inner().targets.insert(ino, target, bytes);
    }

    /// These were read by somebody: as of `at` their atime is this.
    pub fn accessed(&self, at: Position, inodes: &[(Ino, Time)]) {
        let mut inner = self.inner();
        for (ino, time) in inodes {
            if let Some(known) = inner.attrs.get(ino).filter(|known| known.at < at) {
                known.attr.atime = known.attr.atime.max(*time);
            }
        }
    }

    /// Takes an answer in: `learn` is told what may be remembered under it.
    pub fn learn(&self, promises: &Promises, reply: &Reply, learn: impl FnOnce(&mut Lesson<'_>)) {
        self.learn_from(promises, reply.at, &reply.granted, &reply.continued, learn);
    }

    pub fn learn_from(
        &self,
        promises: &Promises,
        at: Position,
        granted: &[(Promise, Grant)],
        continued: &[Continued],
        learn: impl FnOnce(&mut Lesson<'_>),
    ) {
        let mut inner = self.inner();
        for c in continued {
            inner.stamps.go_on(c);
        }
        let lives = granted
            .iter()
            .filter_map(|(promise, grant)| Some((*promise, inner.stamps.granted(promises, *promise, *grant)?)))
            .collect();
        learn(&mut Lesson { at, lives, inner: &mut inner });
    }
}

impl Inner {
    fn attr(&mut self, promises: &Promises, ino: Ino) -> Option<Attr> {
        let known = self.attrs.get(&ino)?;
        let (promise, life) = known.life?;
        let attr = known.attr.clone();
        (self.life(promises, &promise) == Some(life)).then_some(attr)
    }

    /// The life of names and attributes that the promise covers.
    fn life(&self, promises: &Promises, promise: &Promise) -> Option<Life> {
        if self.changing_any > 0 || self.changing.contains_key(promise) {
            return None;
        }
        self.stamps.life(promises, promise)
    }
}

/// One answer on its way into the cache.
pub struct Lesson<'a> {
    at: Position,
    lives: HashMap<Promise, Life>,
    inner: &'a mut Inner,
}

impl Lesson<'_> {
    /// The inode's attributes as of this answer.
    pub fn attr(&mut self, attr: &Attr) {
        let known = self.inner.attrs.get(&attr.ino);
        if known.is_some_and(|k| k.at > self.at) {
            return;
        }
        let promise = covering(attr);
        let life = self.lives.get(&promise).map(|life| (promise, *life));
        let bytes = ATTR_BYTES + attr.rights.as_ref().map_or(0, |rights| RIGHTS_BYTES + rights.named() * NAMED_BYTES);
        self.inner.attrs.insert(attr.ino, KnownAttr { attr: attr.clone(), at: self.at, life }, bytes);
    }

    /// The inode's attributes have changed, and the answer does not say how.
    pub fn attr_changed(&mut self, ino: Ino) {
        if let Some(known) = self.inner.attrs.get(&ino)
            && known.at < self.at
        {
            known.life = None;
        }
    }

    /// An own change has moved the directory's times, and its links by so many.
    pub fn dir_changed(&mut self, dir: Ino, time: Time, links: i32) {
        if let Some(known) = self.inner.attrs.get(&dir)
            && known.at < self.at
        {
            let attr = &mut known.attr;
            // Also if they stood in the future, where utimens(2) had put them.
            if attr.version < self.at {
                (attr.mtime, attr.ctime, attr.version) = (time, time, self.at);
            }
            attr.nlink = attr.nlink.saturating_add_signed(links);
        }
    }

    /// A new inode: a directory has no names yet, a file no content.
    pub fn created(&mut self, attr: &Attr) {
        self.attr(attr);
        match attr.kind {
            FileKind::Dir => {
                if let Some(known) = self.dir(attr.ino)
                    && known.names.is_empty()
                {
                    known.listed = Reach::All;
                }
            }
            FileKind::File => {
                self.map(attr);
            }
            _ => {}
        }
    }

    /// The name is that inode now, or absent.
    pub fn name(&mut self, dir: Ino, name: &Name, target: Option<(Ino, FileKind)>) {
        let Some(known) = self.dir(dir) else { return };
        let cursor = Cursor::of(name);
        known.put(cursor, target);
        self.sized(dir);
    }

    /// A page of a listing: all names after `after` up to the last one.
    pub fn page(&mut self, dir: &Attr, after: Option<&Cursor>, entries: &[Listed], end: bool) {
        self.attr(dir);
        for entry in entries {
            self.attr(&entry.attr);
        }
        let Some(known) = self.dir(dir.ino) else { return };
        for entry in entries {
            known.put(entry.cursor(), Some((entry.attr.ino, entry.attr.kind)));
        }
        let joins = match (&known.listed, after) {
            (Reach::All, _) => true,
            (_, None) => true,
            (Reach::UpTo(known), Some(after)) => known.hash >= after.hash,
            (Reach::Nothing, Some(_)) => false,
        };
        if joins && known.listed != Reach::All {
            known.listed = match (end, entries.last()) {
                (true, _) => Reach::All,
                (false, Some(last)) => Reach::UpTo(last.cursor()),
                (false, None) => Reach::Nothing,
            };
        }
        self.sized(dir.ino);
    }

    /// A part of a file's content map, from byte `from` on.
    pub fn extents(&mut self, attr: &Attr, from: u64, extents: &[StoredExtent], end: bool) {
        self.attr(attr);
        let at = self.at;
        let Some(known) = self.map(attr) else { return };
        if at >= known.version || attr.version == known.version {
            known.size = attr.size;
            known.version = attr.version;
            known.map.learn(from, extents, end);
        }
        self.map_sized(attr.ino);
    }

    /// An own write or truncation has been answered: `change` brings the map up to
    /// it. Gives the version before, if nobody else has changed the content since.
    pub fn content_changed(&mut self, attr: &Attr, change: impl FnOnce(&mut ExtentMap)) -> Option<Position> {
        self.attr(attr);
        let life = *self.lives.get(&Promise::Content(attr.ino))?;
        let before = self.inner.maps.get(&attr.ino).filter(|m| m.life == life).map(|m| m.version);
        let at = self.at;
        let known = self.map(attr)?;
        // A map from a later answer has this change already, and maybe more.
        if known.version <= at {
            change(&mut known.map);
            known.size = attr.size;
            known.version = attr.version;
        }
        self.map_sized(attr.ino);
        before
    }

    pub fn xattrs(&mut self, promise: Promise, ino: Ino, xattrs: Xattrs) {
        if let Some(life) = self.lives.get(&promise) {
            let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len() + NAME_BYTES).sum();
            self.inner.xattrs.insert(ino, (promise, *life, xattrs), bytes);
        }
    }

    pub fn xattrs_changed(&mut self, ino: Ino) {
        self.inner.xattrs.remove(&ino);
    }

    /// The directory's names, if this answer grants them.
    fn dir(&mut self, dir: Ino) -> Option<&mut KnownDir> {
        let life = *self.lives.get(&Promise::Dir(dir))?;
        let dirs = &mut self.inner.dirs;
        if dirs.get(&dir).is_none_or(|d| d.life != life) {
            let fresh = KnownDir { life, names: BTreeMap::new(), listed: Reach::Nothing, bytes: NAME_BYTES };
            dirs.insert(dir, fresh, NAME_BYTES);
        }
        dirs.get(&dir)
    }

    fn sized(&mut self, dir: Ino) {
        let Some(known) = self.inner.dirs.get(&dir) else { return };
        if known.bytes > DIR_BYTES {
            known.names.clear();
            known.listed = Reach::Nothing;
            known.bytes = NAME_BYTES;
        }
        let bytes = known.bytes;
        self.inner.dirs.resize(&dir, bytes);
    }

    fn map(&mut self, attr: &Attr) -> Option<&mut KnownMap> {
        let life = *self.lives.get(&Promise::Content(attr.ino))?;
        let maps = &mut self.inner.maps;
        if maps.get(&attr.ino).is_none_or(|m| m.life != life) {
            let fresh = KnownMap {
                life,
                size: attr.size,
                version: attr.version,
                map: if attr.allocated == 0 { ExtentMap::empty_file() } else { ExtentMap::default() },
            };
            let bytes = fresh.map.bytes();
            maps.insert(attr.ino, fresh, bytes);
        }
        maps.get(&attr.ino)
    }

    fn map_sized(&mut self, ino: Ino) {
        let Some(known) = self.inner.maps.get(&ino) else { return };
        if known.map.bytes() > MAP_BYTES {
            known.map = ExtentMap::default();
        }
        let bytes = known.map.bytes();
        self.inner.maps.resize(&ino, bytes);
    }
}

impl KnownDir {
    fn put(&mut self, cursor: Cursor, target: Option<(Ino, FileKind)>) {
        let len = cursor.name.as_bytes().len();
        if self.names.insert((cursor.hash, cursor.name), target).is_none() {
            self.bytes += NAME_BYTES + len;
        }
    }
}
