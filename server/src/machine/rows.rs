//! The rows of a partition's state: their keys, their values, and one record's
//! turn at them.
//!
//! A key is a table's byte and big-endian fields, so that ranges are scans. A value
//! is a version byte and MessagePack. Every change goes through [`Turn::put`] and
//! [`Turn::delete`], which feed the state's hash, so replicas that differ show it.
//! A row that ends moves to history with the position of its end; rows that did not
//! outlive a minute of one session's work are not kept.

mod trial;

use super::effect::Effect;
use super::kv::Kv;
use super::quota::Room;
use crate::limits::limits;
use bytes::Bytes;
use proto::chunk::{ChunkName, SealedValue, WrappedKey};
use proto::message::{Attr, Cursor, Each, FileKind, Promise, Quota, Refusal, Resource};
use proto::planted::{Bug, planted};
use proto::{Epoch, Ino, LogTime, Name, NamespaceId, Position, SessionId, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The tables. The bytes are stored; they never change their meaning.
pub(super) mod table {
    pub const CONTENT: u8 = b'B';
    pub const CHUNK: u8 = b'C';
    pub const DIRENT: u8 = b'D';
    pub const EXTENT: u8 = b'E';
    pub const FREED: u8 = b'F';
    pub const STAGED: u8 = b'G';
    pub const HISTORY: u8 = b'H';
    pub const INODE: u8 = b'I';
    pub const LINK: u8 = b'L';
    pub const META: u8 = b'M';
    pub const NAMESPACE: u8 = b'N';
    pub const OUTBOX: u8 = b'O';
    pub const INCARNATION: u8 = b'R';
    pub const ENDED: u8 = b'S';
    pub const ENDED_BY_TIME: u8 = b'T';
    pub const USER: u8 = b'U';
    pub const USER_ENDED: u8 = b'V';
    pub const PAST: u8 = b'W';
    pub const XATTR: u8 = b'X';
}

/// The version of how values are written.
const ROW_VERSION: u8 = 1;

/// Sealed content up to this many bytes stays in the state; more goes to the packs.
pub const STATE_CONTENT_BYTES: usize = 4096 + 64;

/// A key under construction.
#[derive(Clone)]
pub(super) struct Key(Vec<u8>);

impl Key {
    pub fn new(table: u8) -> Key {
        Key(vec![table])
    }

    pub fn u32(mut self, n: u32) -> Key {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn u64(mut self, n: u64) -> Key {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Key {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

pub(super) fn inode_key(ino: Ino) -> Vec<u8> {
    Key::new(table::INODE).u64(ino.0).done()
}

pub(super) fn dirent_key(dir: Ino, cursor: &Cursor) -> Vec<u8> {
    Key::new(table::DIRENT).u64(dir.0).u64(cursor.hash).bytes(cursor.name.as_bytes()).done()
}

/// Extents are keyed by their end: the first one that reaches beyond a place is
/// then the first row after it, however long extents are.
pub(super) fn extent_key(ino: Ino, end: u64) -> Vec<u8> {
    Key::new(table::EXTENT).u64(ino.0).u64(end).done()
}

pub(super) fn xattr_key(ino: Ino, name: &[u8]) -> Vec<u8> {
    Key::new(table::XATTR).u64(ino.0).bytes(name).done()
}

pub(super) fn link_key(ino: Ino) -> Vec<u8> {
    Key::new(table::LINK).u64(ino.0).done()
}

pub(super) fn namespace_key(namespace: NamespaceId) -> Vec<u8> {
    Key::new(table::NAMESPACE).u32(namespace.0).done()
}

pub(super) fn chunk_key(namespace: NamespaceId, name: &[u8]) -> Vec<u8> {
    Key::new(table::CHUNK).u32(namespace.0).bytes(name).done()
}

fn content_key(name: &[u8]) -> Vec<u8> {
    Key::new(table::CONTENT).bytes(name).done()
}

/// The first key after all keys that start with `prefix`.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// A value as it is stored.
pub(super) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    let mut out = vec![ROW_VERSION];
    rmp_serde::encode::write(&mut out, row).expect("a row has an encoding");
    out
}

/// A value read back. Rows come from this machine only, so one that does not
/// decode means that the store is damaged, and the server must not go on.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    try_decode(bytes).expect("a stored row reads back as it was written")
}

/// The same of a row that may be damaged; says what is wrong with it.
pub(super) fn try_decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&ROW_VERSION, row)) => rmp_serde::from_slice(row).map_err(|e| e.to_string()),
        Some((version, _)) => Err(format!("it has the unknown version {version}")),
        None => Err("it is empty".into()),
    }
}

/// Sealed content that the state itself holds; `None` if it is in the packs, or gone.
pub fn content(kv: &mut dyn Kv, name: &ChunkName) -> Option<Bytes> {
    kv.get(&content_key(&name.to_bytes())).map(Bytes::from)
}

/// What began a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begin {
    pub at: Position,
    pub time: LogTime,
    pub by: SessionId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InodeRow {
    pub attr: Attr,
    /// Names in a directory: whether it is empty costs nothing to know.
    pub entries: u64,
    /// Names and sealed values of all extended attributes together.
    pub xattr_bytes: u64,
    pub begin: Begin,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DirentRow {
    pub ino: Ino,
    pub begin: Begin,
}

/// Stored under the extent's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExtentRow {
    pub offset: u64,
    pub len: u32,
    pub chunk: ChunkName,
    pub chunk_from: u32,
    pub key: WrappedKey,
    pub begin: Begin,
}

impl ExtentRow {
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// A symlink's target, or an extended attribute's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ValueRow {
    pub value: SealedValue,
    pub begin: Begin,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceRow {
    /// The next inode's counter.
    pub next: u64,
    /// The epoch in which it was last counted.
    pub counted: Epoch,
    pub bytes_used: u64,
    pub inodes_used: u64,
    /// What its history takes; not part of what is used.
    #[serde(default)]
    pub history_bytes: u64,
    /// What it may hold where no quota is set.
    #[serde(default = "bytes_total")]
    pub bytes_total: u64,
    pub quota: Quota,
    /// The place in partition 0 that set the quota, and where the last one landed that found no limit.
    pub quota_decision: Option<Position>,
    pub limited_since: Each<Position>,
}

impl NamespaceRow {
    pub fn used(&self, of: Resource) -> u64 {
        match of {
            Resource::Bytes => self.bytes_used,
            Resource::Inodes => self.inodes_used,
        }
    }

    /// Bytes of content that it may hold.
    pub fn may_hold(&self) -> u64 {
        self.quota.bytes.unwrap_or(self.bytes_total)
    }
}

/// An epoch can begin from a state that lacks what was applied last before: so many
/// counters are left out, since a mount may have the inodes open that were given them.
const EPOCH_SKIPS: u64 = 1 << 24;

pub(super) fn bytes_total() -> u64 {
    limits().bytes_total
}

/// What covers an inode's attributes.
pub(super) fn covering(attr: &Attr) -> Promise {
    match (attr.kind, attr.parent) {
        (FileKind::Dir, _) => Promise::Dir(attr.ino),
        (_, Some(parent)) => Promise::Dir(parent),
        (_, None) => Promise::Inode(attr.ino),
    }
}

/// One record's turn at the state: who asks, when, and what came of it so far.
pub(super) struct Turn<'a> {
    kv: &'a mut dyn Kv,
    digest: blake3::Hasher,
    pub at: Position,
    pub now: LogTime,
    /// Civil time of the request.
    pub time: Time,
    pub by: SessionId,
    pub namespace: NamespaceId,
    /// The session and those it replaced: whose chunks it may quote.
    pub lineage: Vec<SessionId>,
    pub payload: Bytes,
    /// Where the request itself stands in the log: what came in it is named by that.
    pub stands: Position,
    /// What the outcome depends on.
    pub reads: Vec<Promise>,
    /// What is no longer as it was.
    pub changes: Vec<Promise>,
    /// What the outcome promises, if the session may have promises.
    pub grants: Vec<Promise>,
    /// What the session has made by its own word, and works with already.
    pub made: Option<Promise>,
    /// Files that the session may have open from now on.
    pub opened: Vec<Ino>,
    /// What was read, by what covers its attributes.
    pub accesses: Vec<(Promise, Ino, Time)>,
    /// Inodes that have lost their last name.
    pub nameless: Vec<Ino>,
    pub effects: Vec<Effect>,
    /// Chunks that nothing refers to any more.
    pub freed: Vec<ChunkName>,
    /// The uploads that are quoted stand before this offset of the partition's chunks.
    pub quoted_before: u64,
    /// What it may add.
    pub room: Room,
    /// Rows that went to history so far, and those that have been made room for.
    pub(super) remembered: usize,
    pub(super) bounded: usize,
    references: BTreeMap<ChunkName, i64>,
    bytes_used: i64,
    inodes_used: i64,
    pub(super) history_bytes: i64,
}

impl<'a> Turn<'a> {
    pub fn new(kv: &'a mut dyn Kv, before: &[u8; 32], at: Position, now: LogTime) -> Turn<'a> {
        let mut digest = blake3::Hasher::new();
        digest.update(before);
        digest.update(&encode(&at));
        Turn {
            kv,
            digest,
            at,
            now,
            time: Time::default(),
            by: SessionId::default(),
            namespace: NamespaceId::default(),
            lineage: Vec::new(),
            payload: Bytes::new(),
            stands: at,
            reads: Vec::new(),
            changes: Vec::new(),
            grants: Vec::new(),
            made: None,
            opened: Vec::new(),
            accesses: Vec::new(),
            nameless: Vec::new(),
            effects: Vec::new(),
            freed: Vec::new(),
            quoted_before: 0,
            room: Room::default(),
            remembered: 0,
            bounded: 0,
            references: BTreeMap::new(),
            bytes_used: 0,
            inodes_used: 0,
            history_bytes: 0,
        }
    }

    /// Forgets what an earlier request of the turn has touched.
    pub fn touch_nothing(&mut self) {
        self.reads.clear();
        self.changes.clear();
        self.grants.clear();
        self.made = None;
        self.opened.clear();
        self.accesses.clear();
        self.nameless.clear();
    }

    /// Ends the turn: the state's hash after it, and what the world is to do.
    pub fn finish(mut self) -> ([u8; 32], Vec<Effect>) {
        for effect in &self.effects {
            effect.digest(&mut self.digest);
        }
        (*self.digest.finalize().as_bytes(), self.effects)
    }

    pub fn get<T: DeserializeOwned>(&mut self, key: &[u8]) -> Option<T> {
        self.kv.get(key).map(|bytes| decode(&bytes))
    }

    pub fn put<T: Serialize>(&mut self, key: &[u8], row: &T) {
        self.put_bytes(key, &encode(row));
    }

    pub fn put_bytes(&mut self, key: &[u8], value: &[u8]) {
        self.digest.update(&[1]);
        self.digest.update(&(key.len() as u32).to_le_bytes());
        self.digest.update(key);
        self.digest.update(&(value.len() as u32).to_le_bytes());
        self.digest.update(value);
        self.kv.put(key, value);
    }

    pub fn get_bytes(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.kv.get(key)
    }

    pub fn delete(&mut self, key: &[u8]) {
        self.digest.update(&[2]);
        self.digest.update(&(key.len() as u32).to_le_bytes());
        self.digest.update(key);
        self.kv.delete(key);
    }

    pub fn scan(&mut self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.kv.scan(from, to, visit);
    }

    /// Up to `limit` rows whose keys start with `prefix`, in order.
    pub fn rows<T: DeserializeOwned>(&mut self, prefix: &[u8], limit: usize) -> Vec<(Vec<u8>, T)> {
        let mut rows = Vec::new();
        if limit > 0 {
            self.kv.scan(prefix, &after(prefix), &mut |key, value| {
                rows.push((key.to_vec(), decode(value)));
                rows.len() < limit
            });
        }
        rows
    }

    /// The mark of a row that begins here.
    pub fn begin(&self) -> Begin {
        Begin { at: self.at, time: self.now, by: self.by }
    }

    /// The mark of a row that began at an earlier position, by nobody's session.
    pub fn begin_of(&self, at: Position) -> Begin {
        Begin { at, time: LogTime(0), by: SessionId::default() }
    }

    /// The inode, if this session may have to do with it.
    pub fn inode(&mut self, ino: Ino) -> Result<InodeRow, Refusal> {
        if ino.namespace() != self.namespace {
            return Err(Refusal::NotPermitted);
        }
        self.get(&inode_key(ino)).ok_or(Refusal::Stale)
    }

    pub fn dir(&mut self, ino: Ino) -> Result<InodeRow, Refusal> {
        let row = self.inode(ino)?;
        if row.attr.kind != FileKind::Dir {
            return Err(Refusal::NotDirectory);
        }
        Ok(row)
    }

    pub fn dirent(&mut self, dir: Ino, name: &Name) -> Option<DirentRow> {
        self.get(&dirent_key(dir, &Cursor::of(name)))
    }

    /// The inode that a directory entry names.
    pub fn named(&mut self, dirent: &DirentRow) -> InodeRow {
        self.get(&inode_key(dirent.ino)).expect("a directory entry names an inode that exists")
    }

    /// Puts an inode's new state in place of `old`, which history keeps if content
    /// or rights have changed; mere times are not kept.
    pub fn save(&mut self, old: &InodeRow, mut new: InodeRow) {
        let (a, b) = (&old.attr, &new.attr);
        let differs = (a.size, a.mode, a.uid, a.gid) != (b.size, b.mode, b.uid, b.gid)
            || a.rights != b.rights
            || (a.kind == FileKind::File && a.version != b.version);
        let key = inode_key(b.ino);
        if differs {
            self.remember(&key, &old.begin, old);
            new.begin = self.begin();
        }
        self.put(&key, &new);
    }

    /// Notes that the outcome shows these attributes.
    pub fn reads_attr(&mut self, attr: &Attr) {
        self.reads.push(covering(attr));
        if attr.kind == FileKind::File {
            self.reads.push(Promise::Content(attr.ino));
        }
    }

    /// One more (or one less) extent or history row that refers to a chunk.
    pub fn refer(&mut self, chunk: &ChunkName, by: i64) {
        *self.references.entry(*chunk).or_default() += by;
    }

    /// Whether the namespace refers to this chunk, history included.
    pub fn is_referenced(&mut self, chunk: &ChunkName) -> bool {
        let key = chunk_key(self.namespace, &chunk.to_bytes());
        self.kv.get(&key).is_some()
    }

    /// Keeps sealed content: small in the state, larger in the packs.
    pub fn keep(&mut self, name: &ChunkName, content: Bytes) {
        if content.len() <= STATE_CONTENT_BYTES {
            self.put_bytes(&content_key(&name.to_bytes()), &content);
        } else {
            self.effects.push(Effect::Keep { name: *name, content });
        }
    }

    pub fn content(&mut self, name: &ChunkName) -> Option<Bytes> {
        content(self.kv, name)
    }

    pub fn uses_bytes(&mut self, by: i64) {
        self.bytes_used += by;
    }

    /// The number of a new inode: the one that its maker gives it, or a fresh one.
    pub fn new_ino(&mut self, given: Option<Ino>) -> Result<Ino, Refusal> {
        let row = self.counted()?;
        let ino = match given {
            // Numbers are handed out once, so whose this is need not be known.
            Some(ino) if ino.namespace() != self.namespace || ino.counter() >= row.next => {
                return Err(Refusal::Invalid);
            }
            Some(ino) if self.exists(ino) => return Err(Refusal::Exists),
            Some(ino) => ino,
            None => self.next_inos(1)?,
        };
        self.inodes_used += 1;
        Ok(ino)
    }

    /// The first of so many fresh inode numbers.
    pub fn next_inos(&mut self, count: u32) -> Result<Ino, Refusal> {
        let mut row = self.counted()?;
        let ino = Ino::new(self.namespace, row.next);
        row.next = row.next.saturating_add(u64::from(count));
        if row.next >> Ino::COUNTER_BITS != 0 {
            return Err(Refusal::NoSpace);
        }
        self.put(&namespace_key(self.namespace), &row);
        Ok(ino)
    }

    /// The namespace's row, whose counter knows of this epoch.
    fn counted(&mut self) -> Result<NamespaceRow, Refusal> {
        let key = namespace_key(self.namespace);
        let mut row: NamespaceRow = self.get(&key).ok_or(Refusal::Stale)?;
        if row.counted != self.at.epoch && !planted(Bug::EpochReusesNumbers) {
            row.counted = self.at.epoch;
            row.next = row.next.saturating_add(EPOCH_SKIPS);
            self.put(&key, &row);
        }
        Ok(row)
    }

    /// Moves an inode without names, and all that belongs to it, to history. Work
    /// grows with its extents: a file of millions is freed within one record.
    pub fn free(&mut self, ino: Ino) {
        let Some(row) = self.get::<InodeRow>(&inode_key(ino)) else { return };
        self.namespace = ino.namespace();
        self.clear(ino, 0, u64::MAX);
        let key = link_key(ino);
        if let Some(link) = self.get::<ValueRow>(&key) {
            self.retire(&key, &link.begin, &link);
        }
        for (key, value) in self.rows::<ValueRow>(&xattr_key(ino, b""), usize::MAX) {
            self.retire(&key, &value.begin, &value);
        }
        self.retire(&inode_key(ino), &row.begin, &row);
        self.inodes_used -= 1;
    }

    /// Brings the namespace's counts and its chunks' references up to date. To be
    /// called once per namespace touched.
    pub fn settle(&mut self) {
        self.bound_history();
        if (self.bytes_used, self.inodes_used, self.history_bytes) != (0, 0, 0) {
            let key = namespace_key(self.namespace);
            if let Some(mut row) = self.get::<NamespaceRow>(&key) {
                row.bytes_used = row.bytes_used.saturating_add_signed(self.bytes_used);
                row.inodes_used = row.inodes_used.saturating_add_signed(self.inodes_used);
                row.history_bytes = row.history_bytes.saturating_add_signed(self.history_bytes);
                self.put(&key, &row);
            }
            (self.bytes_used, self.inodes_used, self.history_bytes) = (0, 0, 0);
        }
        for (name, by) in std::mem::take(&mut self.references) {
            if by == 0 {
                continue;
            }
            let key = chunk_key(self.namespace, &name.to_bytes());
            let count = self.get::<u64>(&key).unwrap_or(0).saturating_add_signed(by);
            if count > 0 {
                self.put(&key, &count);
                continue;
            }
            self.delete(&key);
            self.freed.push(name);
            let content = content_key(&name.to_bytes());
            if self.kv.get(&content).is_some() {
                self.delete(&content);
            } else {
                self.effects.push(Effect::Unreferenced { name });
            }
        }
    }
}
