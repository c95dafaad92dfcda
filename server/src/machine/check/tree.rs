//! One namespace's tree: inodes, names, extents, attributes' values, and what the
//! namespace counts of them.

use super::{Check, u64_at};
use crate::machine::rows::{DirentRow, ExtentRow, InodeRow, NamespaceRow, ValueRow, namespace_key, table, try_decode};
use proto::chunk::{CHUNK_BYTES, ChunkName};
use proto::message::{Attr, Cursor, FileKind, Rights};
use proto::{Ino, Name, NamespaceId, Position};
use std::collections::BTreeMap;

/// What the rows of one inode add up to.
#[derive(Default)]
struct Seen {
    /// The inode's own row, as far as it matters here.
    row: Option<Own>,
    names: u32,
    /// A directory that has a name for it.
    named_in: Option<Ino>,
    /// Another one has too.
    is_scattered: bool,
    entries: u64,
    subdirs: u32,
    covered: u64,
    last_end: u64,
    xattr_bytes: u64,
    xattrs: bool,
    capability: bool,
    link: bool,
}

struct Own {
    kind: FileKind,
    nlink: u32,
    size: u64,
    allocated: u64,
    parent: Option<Ino>,
    has_xattrs: bool,
    capability: bool,
    entries: u64,
    xattr_bytes: u64,
}

impl Check<'_> {
    /// Gives how often each chunk is referred to.
    pub(super) fn namespace(&mut self, namespace: NamespaceId) -> BTreeMap<ChunkName, u64> {
        let mut inodes: BTreeMap<Ino, Seen> = BTreeMap::new();
        let mut references: BTreeMap<ChunkName, u64> = BTreeMap::new();
        self.inodes(namespace, &mut inodes);
        self.names(namespace, &mut inodes);
        self.extents(namespace, &mut inodes, &mut references);
        self.values(namespace, &mut inodes);
        let mut used = 0;
        for (ino, seen) in &inodes {
            used += seen.covered;
            self.inode(*ino, seen);
        }
        self.reachable(&inodes);
        let history_bytes = self.history(namespace, &mut references);
        self.report.used_bytes += used;
        self.report.history_bytes += history_bytes;
        self.counts(namespace, &inodes, used, history_bytes);
        references
    }

    fn inodes(&mut self, namespace: NamespaceId, inodes: &mut BTreeMap<Ino, Seen>) {
        let (applied, now) = (self.machine.last_applied(), self.machine.live.now);
        let is_applied = |at: Position| applied.is_some_and(|applied| at <= Position { index: u32::MAX, ..applied });
        let mut count = 0;
        self.rows::<InodeRow>(&prefix(table::INODE, namespace), |violations, key, row| {
            let attr = row.attr;
            count += 1;
            violations.check(u64_at(&key[1..]) == attr.ino.0, || format!("inode {} has another's key", attr.ino.0));
            let begun = row.begin.time <= now && is_applied(row.begin.at) && is_applied(attr.version);
            violations.check(begun, || format!("inode {} began later than now: {:?}", attr.ino.0, row.begin));
            violations.check(agrees(&attr), || format!("inode {} has rights that its mode contradicts", attr.ino.0));
            let own = Own {
                kind: attr.kind,
                nlink: attr.nlink,
                size: attr.size,
                allocated: attr.allocated,
                parent: attr.parent,
                has_xattrs: attr.has_xattrs,
                capability: attr.rights.is_some_and(|rights| rights.capability),
                entries: row.entries,
                xattr_bytes: row.xattr_bytes,
            };
            inodes.entry(Ino(u64_at(&key[1..]))).or_default().row = Some(own);
        });
        self.report.inodes += count;
    }

    fn names(&mut self, namespace: NamespaceId, inodes: &mut BTreeMap<Ino, Seen>) {
        let mut count = 0;
        self.rows::<DirentRow>(&prefix(table::DIRENT, namespace), |violations, key, row| {
            count += 1;
            let dir = Ino(u64_at(&key[1..]));
            let cursor = key.get(17..).and_then(|name| Name::new(name).ok()).map(|name| Cursor::of(&name));
            let hash = u64_at(&key[9..]);
            violations.check(cursor.is_some_and(|cursor| cursor.hash == hash), || {
                format!("directory {} has an entry under a wrong key", dir.0)
            });
            let child = inodes.entry(row.ino).or_default();
            child.names += 1;
            child.is_scattered |= child.named_in.is_some_and(|other| other != dir);
            child.named_in = Some(dir);
            let is_dir = child.row.as_ref().is_some_and(|own| own.kind == FileKind::Dir);
            let parent = inodes.entry(dir).or_default();
            parent.entries += 1;
            parent.subdirs += u32::from(is_dir);
        });
        self.report.names += count;
    }

    fn extents(
        &mut self,
        namespace: NamespaceId,
        inodes: &mut BTreeMap<Ino, Seen>,
        references: &mut BTreeMap<ChunkName, u64>,
    ) {
        let mut count = 0;
        self.rows::<ExtentRow>(&prefix(table::EXTENT, namespace), |violations, key, row| {
            count += 1;
            let ino = Ino(u64_at(&key[1..]));
            let seen = inodes.entry(ino).or_default();
            let size = seen.row.as_ref().map_or(0, |own| own.size);
            let sound = u64_at(&key[9..]) == row.end()
                && row.len > 0
                && row.end() <= size
                && u64::from(row.chunk_from) + u64::from(row.len) <= CHUNK_BYTES as u64;
            violations.check(sound, || {
                format!("inode {} of {size} bytes has the extent {}..{}", ino.0, row.offset, row.end())
            });
            violations.check(seen.last_end <= row.offset, || {
                format!("inode {} has extents that overlap at {}", ino.0, row.offset)
            });
            seen.last_end = row.end();
            seen.covered += u64::from(row.len);
            *references.entry(row.chunk).or_default() += 1;
        });
        self.report.extents += count;
    }

    fn values(&mut self, namespace: NamespaceId, inodes: &mut BTreeMap<Ino, Seen>) {
        self.rows::<ValueRow>(&prefix(table::XATTR, namespace), |_, key, row| {
            let seen = inodes.entry(Ino(u64_at(&key[1..]))).or_default();
            seen.xattrs = true;
            seen.capability |= key[9..] == *Rights::CAPABILITY;
            seen.xattr_bytes += (key.len() - 9 + row.value.sealed.len()) as u64;
        });
        self.rows::<ValueRow>(&prefix(table::LINK, namespace), |_, key, _| {
            inodes.entry(Ino(u64_at(&key[1..]))).or_default().link = true;
        });
    }

    fn inode(&mut self, ino: Ino, seen: &Seen) {
        let violations = &mut self.report.violations;
        let Some(own) = &seen.row else {
            return violations.add(|| format!("inode {} is referred to and has no row", ino.0));
        };
        let is_dir = own.kind == FileKind::Dir;
        let is_root = ino == Ino::root(ino.namespace());
        let nlink = if is_dir { 2 + seen.subdirs } else { seen.names };
        violations.check(own.nlink == nlink, || format!("inode {} has {} links and says {}", ino.0, nlink, own.nlink));
        violations.check(own.entries == seen.entries && (is_dir || seen.entries == 0), || {
            format!("inode {} has {} entries and says {}", ino.0, seen.entries, own.entries)
        });
        violations.check(own.allocated == seen.covered && (own.kind == FileKind::File || seen.covered == 0), || {
            format!("inode {} has {} bytes of extents and says {}", ino.0, seen.covered, own.allocated)
        });
        violations.check(own.xattr_bytes == seen.xattr_bytes && own.has_xattrs == seen.xattrs, || {
            format!("inode {} has {} bytes of attributes and says {}", ino.0, seen.xattr_bytes, own.xattr_bytes)
        });
        violations.check(own.capability == seen.capability, || {
            format!("inode {} has capabilities: {}, and says {}", ino.0, seen.capability, own.capability)
        });
        violations.check(seen.link == (own.kind == FileKind::Symlink), || {
            format!("inode {} is a {:?}; it has a target: {}", ino.0, own.kind, seen.link)
        });
        let parent = if is_root {
            own.parent == Some(ino) && seen.names == 0
        } else if is_dir {
            seen.names == 1 && own.parent == seen.named_in
        } else {
            own.parent.is_none() || (!seen.is_scattered && own.parent == seen.named_in)
        };
        violations.check(parent, || {
            format!(
                "inode {} has {} names, one in {:?}, and its parent is {:?}",
                ino.0, seen.names, seen.named_in, own.parent
            )
        });
        let holders = self.machine.live.nameless.get(&ino);
        let nameless = seen.names == 0 && !is_root;
        violations.check(nameless == holders.is_some(), || {
            format!("inode {} has {} names, and is kept for {holders:?}", ino.0, seen.names)
        });
    }

    /// That every directory is below the root.
    fn reachable(&mut self, inodes: &BTreeMap<Ino, Seen>) {
        let parent = |ino: Ino| inodes.get(&ino)?.row.as_ref()?.parent;
        let mut below: std::collections::BTreeSet<Ino> = std::collections::BTreeSet::new();
        for (ino, seen) in inodes {
            if seen.row.as_ref().is_none_or(|own| own.kind != FileKind::Dir) {
                continue;
            }
            let (mut at, mut way) = (*ino, Vec::new());
            let reached = loop {
                if at == Ino::root(at.namespace()) || below.contains(&at) {
                    break true;
                }
                way.push(at);
                match parent(at) {
                    Some(next) if way.len() <= inodes.len() => at = next,
                    _ => break false,
                }
            };
            self.report.violations.check(reached, || format!("directory {} is not below the root", ino.0));
            if reached {
                below.extend(way);
            }
        }
    }

    fn counts(&mut self, namespace: NamespaceId, inodes: &BTreeMap<Ino, Seen>, used: u64, history_bytes: u64) {
        let number = namespace.0;
        let row = self.kv.get(&namespace_key(namespace)).map(|bytes| try_decode::<NamespaceRow>(&bytes));
        let violations = &mut self.report.violations;
        let row = match row {
            Some(Ok(row)) => row,
            Some(Err(reason)) => {
                return violations.add(|| format!("the row of namespace {number} cannot be read: {reason}"));
            }
            // Partition 0 keeps the history of users whose namespaces live elsewhere.
            None if inodes.is_empty() && history_bytes == 0 => return,
            None => return violations.add(|| format!("namespace {number} has inodes or history and no row")),
        };
        let count = inodes.len() as u64;
        violations.check(row.inodes_used == count, || {
            format!("namespace {number} has {count} inodes and says {}", row.inodes_used)
        });
        violations.check(row.bytes_used == used, || {
            format!("namespace {number} has {used} bytes and says {}", row.bytes_used)
        });
        violations.check(row.history_bytes == history_bytes, || {
            format!("namespace {number} has {history_bytes} bytes of history and says {}", row.history_bytes)
        });
        let next = Ino::new(namespace, row.next.min((1 << Ino::COUNTER_BITS) - 1));
        let last = inodes.last_key_value().map_or(Ino(0), |(ino, _)| *ino);
        violations.check(last < next, || format!("namespace {number} would give inode {} again", last.0));
    }
}

/// Whether access control lists are lists, and where they may be, and say what the mode says.
fn agrees(attr: &Attr) -> bool {
    let Some(rights) = &attr.rights else { return true };
    let access = rights.access.as_ref().is_none_or(|acl| {
        acl.is_valid() && !acl.is_mode() && acl.shown(attr.mode) == attr.mode && attr.kind != FileKind::Symlink
    });
    let default = rights.default.as_ref().is_none_or(|acl| acl.is_valid() && attr.kind == FileKind::Dir);
    access && default && **rights != Rights::default()
}

/// What keys of a table begin with whose inode is of this namespace: all of an
/// inode's number above its counter.
fn prefix(table: u8, namespace: NamespaceId) -> Vec<u8> {
    const _: () = assert!(Ino::COUNTER_BITS.is_multiple_of(8));
    let ino = Ino::new(namespace, 0).0.to_be_bytes();
    [&[table][..], &ino[..8 - Ino::COUNTER_BITS as usize / 8]].concat()
}
