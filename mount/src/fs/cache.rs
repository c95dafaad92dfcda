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
use super::pending::{Effect, Pending, Target, Touched};
use super::stamps::{Life, Stamps};
use crate::client::{Continued, Grant, Promises, Reply};
use bytes::Bytes;
use proto::message::{Attr, Cursor, FileKind, Listed, Outcome, Promise, StoredExtent};
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

/// How far a directory is known without a gap, in the order of listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    Nothing,
    /// All names up to this hash.
    UpTo(u64),
    All,
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
    /// What was changed here and the server has not answered for.
    pending: Pending,
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
    /// A change that was answered here stands there: answers from before it say nothing about names.
    changed_at: Position,
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
                pending: Pending::default(),
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

    /// What is known by now of an inode that was found, and whether that is known to be right. Where its names are others
    /// by now only its content is taken from there: the rest would not fit the name that it was found under.
    pub fn newest(&self, promises: &Promises, found: &Attr) -> (Attr, bool) {
        let mut inner = self.inner();
        let known = match inner.attr(promises, found.ino) {
            Some(known) if (known.nlink, known.parent) == (found.nlink, found.parent) => return (known, true),
            Some(known) => Some(known),
            None => {
                let once = inner.attrs.get(&found.ino).map(|known| &known.attr);
                once.filter(|known| known.version > found.version).cloned()
            }
        };
        let mut attr = found.clone();
        if let Some(known) = known {
            (attr.size, attr.allocated, attr.version) = (known.size, known.allocated, known.version);
            (attr.mtime, attr.ctime) = (known.mtime, known.ctime);
        }
        (attr, false)
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

    /// Whether an own change to what this covers is on its way.
    pub fn is_changing(&self, promise: &Promise) -> bool {
        self.inner().is_changing(promise)
    }

    pub fn lookup(&self, promises: &Promises, dir: Ino, name: &Name) -> Option<Found> {
        self.inner().lookup(promises, dir, name)
    }

    /// Up to `limit` entries behind the hash `after` of a directory that is known
    /// as a whole; fewer only at its end.
    pub fn listing(&self, promises: &Promises, dir: Ino, after: u64, limit: usize) -> Option<Vec<CachedEntry>> {
        let mut inner = self.inner();
        let known = inner.dir(promises, dir).filter(|known| known.listed == Reach::All)?;
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

    /// How far a directory is known.
    pub fn known_of(&self, promises: &Promises, dir: Ino) -> Known {
        let mut inner = self.inner();
        match inner.dir(promises, dir).map(|known| &known.listed) {
            None | Some(Reach::Nothing) => Known::Nothing,
            Some(Reach::UpTo(cursor)) => Known::UpTo(cursor.hash),
            Some(Reach::All) => Known::All,
        }
    }

    /// Up to so many directories that stand in a directory, in the order of its listing, as far as it is known.
    pub fn dirs_in(&self, promises: &Promises, dir: Ino, limit: usize) -> Vec<Ino> {
        let mut inner = self.inner();
        let Some(known) = inner.dir(promises, dir) else { return Vec::new() };
        let dirs = known.names.values().flatten().filter(|(_, kind)| *kind == FileKind::Dir);
        dirs.take(limit).map(|(ino, _)| *ino).collect()
    }

    /// What is known of a file's content in `from..to`, cut at its end.
    pub fn content(&self, promises: &Promises, ino: Ino, from: u64, to: u64) -> Option<Content> {
        self.inner().content(promises, ino, from, to)
    }

    /// The current life of the promise of a file's content.
    pub fn content_life(&self, promises: &Promises, ino: Ino) -> Option<Life> {
        self.inner().stamps.life(promises, &Promise::Content(ino))
    }

    /// All extended attributes of an inode, if they are known to be right; so are these attributes.
    pub fn xattrs(&self, promises: &Promises, attr: &Attr) -> Option<Xattrs> {
        self.inner().xattrs(promises, attr)
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
        self.learn_from(promises, reply.at, reply.order, &reply.granted, &reply.continued, learn);
    }

    pub fn learn_from(
        &self,
        promises: &Promises,
        at: Position,
        order: u64,
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
        learn(&mut Lesson { at, order, lives, promises, inner: &mut inner });
    }

    /// A change that was answered here is answered for: `learn` is told what else may be remembered.
    pub fn settle(
        &self,
        promises: &Promises,
        order: u64,
        reply: &Reply,
        touched: &Touched,
        learn: impl FnOnce(&mut Lesson<'_>),
    ) {
        // The server corrects a time that is ahead of the log's.
        let time = match &reply.outcome {
            Outcome::Entry(attr) | Outcome::Removed(attr) => Some(attr.ctime),
            Outcome::Renamed { moved, .. } => Some(moved.ctime),
            _ => None,
        };
        self.learn(promises, reply, |l| {
            let (at, inner) = (l.at, &mut *l.inner);
            inner.pending.settle(touched, order, Some(at));
            for (dir, _) in &touched.names {
                if let Some(known) = inner.dirs.get(dir) {
                    known.changed_at = known.changed_at.max(at);
                }
                if let Some(known) = inner.attrs.get(dir)
                    && known.at < at
                {
                    (known.at, known.attr.version) = (at, at);
                    if let Some(time) = time.filter(|_| !inner.pending.has_touched(*dir, order)) {
                        (known.attr.mtime, known.attr.ctime) = (time, time);
                    }
                }
            }
            learn(l);
        });
    }

    /// A change that was answered here has not come about: nothing that it touched is known any more.
    pub fn unsettle(&self, order: u64, touched: &Touched) {
        let mut inner = self.inner();
        inner.pending.settle(touched, order, None);
        for ino in &touched.inodes {
            inner.attrs.remove(ino);
            inner.maps.remove(ino);
            inner.xattrs.remove(ino);
        }
        for (dir, _) in &touched.names {
            inner.dirs.remove(dir);
        }
    }

    /// What may be answered here, and what then becomes of what is known, in one step.
    pub fn locally<T>(&self, promises: &Promises, act: impl FnOnce(&mut Local<'_>) -> T) -> T {
        act(&mut Local { promises, inner: &mut self.inner() })
    }
}

impl Inner {
    fn lookup(&mut self, promises: &Promises, dir: Ino, name: &Name) -> Option<Found> {
        let cursor = Cursor::of(name);
        if planted(Bug::AbsentForEver)
            && let Some(None) = self.dirs.get(&dir).and_then(|d| d.names.get(&(cursor.hash, cursor.name.clone())))
        {
            return Some(Found::Absent);
        }
        let known = self.dir(promises, dir)?;
        match known.names.get(&(cursor.hash, cursor.name)) {
            Some(Some((ino, _))) => {
                let ino = *ino;
                Some(self.attr(promises, ino).map_or(Found::Inode(ino), Found::Entry))
            }
            Some(None) => Some(Found::Absent),
            None if known.listed == Reach::All => Some(Found::Absent),
            None => None,
        }
    }

    fn attr(&mut self, promises: &Promises, ino: Ino) -> Option<Attr> {
        let known = self.attrs.get(&ino)?;
        let (promise, life) = known.life?;
        let attr = known.attr.clone();
        (self.life(promises, &promise) == Some(life)).then_some(attr)
    }

    fn xattrs(&mut self, promises: &Promises, attr: &Attr) -> Option<Xattrs> {
        if !attr.has_xattrs {
            return Some(Xattrs::default());
        }
        let (promise, life, xattrs) = self.xattrs.get(&attr.ino)?;
        let (promise, life, xattrs) = (*promise, *life, xattrs.clone());
        (self.stamps.life(promises, &promise) == Some(life) || planted(Bug::XattrsForEver)).then_some(xattrs)
    }

    fn content(&mut self, promises: &Promises, ino: Ino, from: u64, to: u64) -> Option<Content> {
        let life = self.stamps.life(promises, &Promise::Content(ino));
        let known = self.maps.get(&ino).filter(|m| Some(m.life) == life || planted(Bug::ContentForEver))?;
        let to = to.min(known.size);
        let parts = if from < to { known.map.parts(from, to) } else { Ok(Vec::new()) };
        Some(Content { size: known.size, version: known.version, parts })
    }

    /// What is known of a directory's names and counts.
    fn dir(&mut self, promises: &Promises, dir: Ino) -> Option<&mut KnownDir> {
        let life = self.life(promises, &Promise::Dir(dir))?;
        self.dirs.get(&dir).filter(|known| known.life == life)
    }

    /// The life of names and attributes that the promise covers.
    fn life(&self, promises: &Promises, promise: &Promise) -> Option<Life> {
        if self.is_changing(promise) { None } else { self.stamps.life(promises, promise) }
    }

    fn is_changing(&self, promise: &Promise) -> bool {
        self.changing_any > 0 || self.changing.contains_key(promise)
    }
}

/// One answer on its way into the cache.
pub struct Lesson<'a> {
    at: Position,
    /// Of the request.
    order: u64,
    lives: HashMap<Promise, Life>,
    promises: &'a Promises,
    inner: &'a mut Inner,
}

impl Lesson<'_> {
    /// The inode's attributes as of this answer.
    pub fn attr(&mut self, attr: &Attr) {
        let known = self.inner.attrs.get(&attr.ino);
        if known.as_ref().is_some_and(|k| k.at > self.at) {
            return;
        }
        // What has been known of it since may have been forgotten.
        let is_late = known.is_none() && self.inner.pending.is_before(self.at);
        let mut attr = attr.clone();
        let is_put_over = self.inner.pending.put_over(&mut attr, self.order);
        let promise = covering(&attr);
        let life = match self.lives.get(&promise) {
            _ if is_late => None,
            None if is_put_over => self.inner.stamps.life(self.promises, &promise),
            life => life.copied(),
        };
        self.inner.put_attr(KnownAttr { attr, at: self.at, life: life.map(|life| (promise, life)) });
    }

    /// A file that was made here, and is known as its maker knew it, is of the version that this answer tells. Gives the
    /// one before.
    pub fn is_of(&mut self, attr: &Attr) -> Option<Position> {
        let life = self.inner.stamps.life(self.promises, &Promise::Content(attr.ino))?;
        let known = self.inner.maps.get(&attr.ino).filter(|known| known.life == life)?;
        (known.version == Position::default()).then(|| std::mem::replace(&mut known.version, attr.version))
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
        let cursor = Cursor::of(name);
        let target = self.inner.pending.name_after(dir, &cursor, self.order).unwrap_or(target);
        let Some(known) = self.dir(dir) else { return };
        known.put(cursor, target);
        self.inner.sized(dir);
    }

    /// A page of a listing: all names after `after` up to the last one.
    pub fn page(&mut self, dir: &Attr, after: Option<&Cursor>, entries: &[Listed], end: bool) {
        self.attr(dir);
        for entry in entries {
            self.attr(&entry.attr);
        }
        let after_it = |l: &Self, name: &Cursor| l.inner.pending.name_after(dir.ino, name, l.order);
        let targets: Vec<Target> = entries
            .iter()
            .map(|entry| after_it(self, &entry.cursor()).unwrap_or(Some((entry.attr.ino, entry.attr.kind))))
            .collect();
        let Some(known) = self.dir(dir.ino) else { return };
        for (entry, target) in entries.iter().zip(targets) {
            known.put(entry.cursor(), target);
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
        self.inner.sized(dir.ino);
    }

    /// A part of a file's content map, from byte `from` on.
    pub fn extents(&mut self, attr: &Attr, from: u64, extents: &[StoredExtent], end: bool) {
        self.attr(attr);
        let at = self.at;
        let Some(known) = self.map(attr) else { return };
        if at >= known.version || attr.version == known.version {
            if attr.version != known.version {
                // An own change stands before it whose answer is still being taken in: it will not be put on this map.
                known.map = ExtentMap::default();
            }
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

    /// All extended attributes of an inode as of this answer, unless they may have changed here since.
    pub fn xattrs(&mut self, promise: Promise, ino: Ino, xattrs: Xattrs) {
        let inner = &mut *self.inner;
        let is_late = inner.attrs.get(&ino).is_none_or(|known| known.at > self.at)
            || inner.pending.has_touched(ino, self.order)
            || inner.pending.is_before(self.at);
        if let Some(life) = self.lives.get(&promise).filter(|_| !is_late) {
            inner.put_xattrs(ino, (promise, *life), xattrs);
        }
    }

    pub fn xattrs_changed(&mut self, ino: Ino) {
        self.inner.xattrs.remove(&ino);
    }

    /// The directory's names, if this answer grants them.
    fn dir(&mut self, dir: Ino) -> Option<&mut KnownDir> {
        let life = *self.lives.get(&Promise::Dir(dir))?;
        if self.inner.dirs.get(&dir).is_none_or(|d| d.life != life) {
            if self.inner.pending.is_before(self.at) {
                return None;
            }
            self.inner.begin_dir(dir, life);
        }
        self.inner.dirs.get(&dir).filter(|known| known.changed_at <= self.at)
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

impl Inner {
    fn put_attr(&mut self, known: KnownAttr) {
        // Of what happens to it elsewhere the promise says nothing that they are known under.
        let is_elsewhere = |(promise, _, _): &mut (Promise, Life, Xattrs)| *promise != covering(&known.attr);
        if self.xattrs.get(&known.attr.ino).is_some_and(is_elsewhere) {
            self.xattrs.remove(&known.attr.ino);
        }
        let rights = known.attr.rights.as_ref();
        let bytes = ATTR_BYTES + rights.map_or(0, |rights| RIGHTS_BYTES + rights.named() * NAMED_BYTES);
        self.attrs.insert(known.attr.ino, known, bytes);
    }

    fn put_xattrs(&mut self, ino: Ino, (promise, life): (Promise, Life), xattrs: Xattrs) {
        let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len() + NAME_BYTES).sum();
        self.xattrs.insert(ino, (promise, life, xattrs), bytes);
    }

    /// Nothing is known of the directory's names but what was changed here.
    fn begin_dir(&mut self, dir: Ino, life: Life) {
        let mut known = KnownDir {
            life,
            names: BTreeMap::new(),
            changed_at: Position::default(),
            listed: Reach::Nothing,
            bytes: NAME_BYTES,
        };
        for (name, target) in self.pending.names_of(dir) {
            known.put(name.clone(), target);
        }
        let bytes = known.bytes;
        self.dirs.insert(dir, known, bytes);
    }

    fn sized(&mut self, dir: Ino) {
        let Some(known) = self.dirs.get(&dir) else { return };
        let (bytes, life, changed_at) = (known.bytes, known.life, known.changed_at);
        if bytes <= DIR_BYTES {
            return self.dirs.resize(&dir, bytes);
        }
        self.begin_dir(dir, life);
        if let Some(known) = self.dirs.get(&dir) {
            known.changed_at = changed_at;
        }
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

/// What is known while something is answered here.
pub struct Local<'a> {
    promises: &'a Promises,
    inner: &'a mut Inner,
}

impl Local<'_> {
    /// The attributes of a directory that this mount may answer for.
    pub fn dir(&mut self, dir: Ino) -> Option<Attr> {
        self.inode(dir).filter(|attr| attr.kind == FileKind::Dir)
    }

    /// The attributes of an inode that this mount may answer for. What has no name left is the server's to refuse.
    pub fn inode(&mut self, ino: Ino) -> Option<Attr> {
        let attr = self.inner.attr(self.promises, ino).filter(|attr| attr.nlink > 0)?;
        self.promises.is_delegated(&covering(&attr)).then_some(attr)
    }

    /// The attributes of a file whose content, too, this mount may answer for.
    pub fn file(&mut self, ino: Ino) -> Option<Attr> {
        let attr = self.inode(ino).filter(|attr| attr.kind == FileKind::File)?;
        self.promises.is_delegated(&Promise::Content(ino)).then_some(attr)
    }

    /// What is known of a file's content, as far as the server has answered for it.
    pub fn content(&mut self, ino: Ino, from: u64, to: u64) -> Option<Content> {
        self.inner.content(self.promises, ino, from, to)
    }

    pub fn lookup(&mut self, dir: Ino, name: &Name) -> Option<Found> {
        self.inner.lookup(self.promises, dir, name)
    }

    /// All extended attributes of an inode.
    pub fn xattrs(&mut self, attr: &Attr) -> Option<Xattrs> {
        self.inner.xattrs(self.promises, attr)
    }

    /// These are all from now on.
    pub fn put_xattrs(&mut self, attr: &Attr, xattrs: Xattrs) {
        let promise = covering(attr);
        if let Some(life) = self.inner.stamps.life(self.promises, &promise) {
            self.inner.put_xattrs(attr.ino, (promise, life), xattrs);
        }
    }

    /// Whether a directory has no entry, if that is known.
    pub fn is_empty(&mut self, dir: Ino) -> Option<bool> {
        let known = self.inner.dir(self.promises, dir)?;
        match known.names.values().any(Option::is_some) {
            true => Some(false),
            false => (known.listed == Reach::All).then_some(true),
        }
    }

    /// A change of this order has made an inode.
    pub fn made(&mut self, order: u64, attr: &Attr) {
        for (promise, grant) in self.promises.made(Promise::inside(attr.ino, attr.kind).as_slice()) {
            let Some(life) = self.inner.stamps.granted(self.promises, promise, grant) else { continue };
            match promise {
                Promise::Dir(dir) => {
                    self.inner.begin_dir(dir, life);
                    if let Some(known) = self.inner.dirs.get(&dir) {
                        known.listed = Reach::All;
                    }
                }
                Promise::Content(ino) => {
                    let map = ExtentMap::empty_file();
                    let bytes = map.bytes();
                    self.inner.maps.insert(ino, KnownMap { life, size: 0, version: attr.version, map }, bytes);
                }
                Promise::Inode(_) => {}
            }
        }
        self.inner.pending.attr(attr.ino, order, Effect::Made);
        self.put(attr.clone());
    }

    /// A change of this order has touched an inode.
    pub fn changed(&mut self, order: u64, ino: Ino, effect: Effect) {
        if let Some(known) = self.inner.attrs.get(&ino) {
            let mut attr = known.attr.clone();
            effect.apply(&mut attr);
            self.put(attr);
        }
        self.inner.pending.attr(ino, order, effect);
    }

    /// Likewise a name.
    pub fn named(&mut self, order: u64, dir: Ino, name: &Name, target: Target) {
        let cursor = Cursor::of(name);
        self.inner.pending.name(dir, cursor.clone(), order, target);
        if let Some(known) = self.inner.dirs.get(&dir) {
            known.put(cursor, target);
            self.inner.sized(dir);
        }
    }

    /// Attributes as they are now, though no answer has said so yet.
    pub fn put(&mut self, attr: Attr) {
        let at = self.inner.attrs.get(&attr.ino).map_or(Position::default(), |known| known.at);
        let promise = covering(&attr);
        let life = self.inner.stamps.life(self.promises, &promise).map(|life| (promise, life));
        self.inner.put_attr(KnownAttr { attr, at, life });
    }
}

#[cfg(test)]
mod tests;
