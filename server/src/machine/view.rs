//! Requests that read the state, each at its place in the log. They change
//! nothing, so a repeat is simply executed again.

use super::rows::{DirentRow, ExtentRow, NamespaceRow, Turn, ValueRow, covering};
use super::rows::{after, decode, dirent_key, extent_key, inode_key, link_key, namespace_key, table, xattr_key};
use bytes::{Bytes, BytesMut};
use proto::chunk::ChunkName;
use proto::message::{Attr, Cursor, FileKind, Listed, Outcome, Promise, Refusal, StoredExtent, View};
use proto::{Ino, Name};
use std::collections::BTreeMap;

/// Entries of one listing, and extents of one answer.
pub(super) const MAX_PAGE: u32 = 1000;
/// Bytes of one listing's body, estimated from above.
const LISTING_BYTES: usize = 600_000;
/// What a listed entry takes beside its name, from above: attributes with their fields' names.
const LISTED_BYTES: usize = 450;
/// What one named user or group takes in a listing, from above.
const NAMED_BYTES: usize = 8;
/// Users and groups that the access control lists of one listing name, in bytes. One entry may exceed it.
const LISTED_NAMED_BYTES: usize = 150_000;
/// Bytes of one page of extents, without content.
const EXTENTS_BYTES: usize = 400_000;
/// Content from the state that goes along with one page of extents.
const INLINE_BYTES: usize = 256 * 1024;

impl Turn<'_> {
    /// The outcome, and content from the state that goes along.
    pub fn view(&mut self, view: &View) -> Result<(Outcome, Bytes), Refusal> {
        let outcome = match view {
            View::Lookup { dir, name } => self.lookup(*dir, name)?,
            View::Getattr { ino } => self.getattr(*ino)?,
            View::Readdir { dir, after, limit } => self.readdir(*dir, after.as_ref(), *limit)?,
            View::Readlink { ino } => self.readlink(*ino)?,
            View::Xattrs { ino } => self.xattrs(*ino)?,
            View::Statfs => self.statfs()?,
            View::Extents { ino, from, limit } => return self.extents(*ino, *from, *limit),
        };
        Ok((outcome, Bytes::new()))
    }

    fn lookup(&mut self, dir: Ino, name: &Name) -> Result<Outcome, Refusal> {
        self.reads.push(Promise::Dir(dir));
        self.dir(dir)?;
        // A name that is not there is promised too.
        self.grants.push(Promise::Dir(dir));
        let dirent = self.dirent(dir, name).ok_or(Refusal::NotFound)?;
        let attr = self.named(&dirent).attr;
        Ok(Outcome::Entry(self.shown(attr)))
    }

    fn getattr(&mut self, ino: Ino) -> Result<Outcome, Refusal> {
        self.reads_gone(ino);
        let attr = self.inode(ino)?.attr;
        Ok(Outcome::Entry(self.shown(attr)))
    }

    fn readdir(&mut self, dir: Ino, from: Option<&Cursor>, limit: u32) -> Result<Outcome, Refusal> {
        self.reads.push(Promise::Dir(dir));
        let row = self.dir(dir)?;
        self.grants.push(Promise::Dir(dir));

        let all = [&[table::DIRENT][..], &dir.0.to_be_bytes()].concat();
        let start = match from {
            // No name contains a zero byte, so this is just after the cursor's own row.
            Some(cursor) => [dirent_key(dir, cursor), vec![0]].concat(),
            None => all.clone(),
        };
        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let mut found = Vec::new();
        let (mut bytes, mut end) = (0, true);
        self.scan(&start, &after(&all), &mut |key, value| {
            // Table, directory and hash stand before the name.
            let name = &key[all.len() + 8..];
            bytes += LISTED_BYTES + name.len();
            if found.len() == limit || bytes > LISTING_BYTES {
                end = false;
                return false;
            }
            let name = Name::new(name).expect("a stored name is a name");
            found.push((name, decode::<DirentRow>(value)));
            true
        });
        let mut entries: Vec<Listed> = Vec::with_capacity(found.len());
        let mut named_bytes = 0;
        for (name, dirent) in found {
            let attr = self.named(&dirent).attr;
            named_bytes += attr.rights.as_ref().map_or(0, |rights| rights.named() * NAMED_BYTES);
            if named_bytes > LISTED_NAMED_BYTES && !entries.is_empty() {
                end = false;
                break;
            }
            self.reads_attr(&attr);
            let covering = covering(&attr);
            if covering != Promise::Dir(dir) {
                self.grants.push(covering);
            }
            entries.push(Listed { name, attr });
        }
        Ok(Outcome::Listing { dir: row.attr, entries, end })
    }

    fn readlink(&mut self, ino: Ino) -> Result<Outcome, Refusal> {
        self.reads_gone(ino);
        let attr = self.inode(ino)?.attr;
        if attr.kind != FileKind::Symlink {
            return Err(Refusal::Invalid);
        }
        self.shown(attr);
        let link: ValueRow = self.get(&link_key(ino)).expect("a symlink has a target");
        Ok(Outcome::Link(link.value))
    }

    fn xattrs(&mut self, ino: Ino) -> Result<Outcome, Refusal> {
        self.reads_gone(ino);
        let attr = self.inode(ino)?.attr;
        self.shown(attr);
        let prefix = xattr_key(ino, b"");
        let rows: Vec<(Vec<u8>, ValueRow)> = self.rows(&prefix, usize::MAX);
        let named = |(key, row): (Vec<u8>, ValueRow)| (serde_bytes::ByteBuf::from(&key[prefix.len()..]), row.value);
        Ok(Outcome::Xattrs(rows.into_iter().map(named).collect()))
    }

    fn statfs(&mut self) -> Result<Outcome, Refusal> {
        let row: NamespaceRow = self.get(&namespace_key(self.namespace)).ok_or(Refusal::Stale)?;
        Ok(Outcome::Statfs {
            bytes_total: row.quota.bytes.unwrap_or(row.bytes_total.max(row.bytes_used)),
            // What others have reserved nobody else can have.
            bytes_used: row.bytes_used.saturating_add(self.reserved().bytes),
            inodes_total: row.quota.inodes.unwrap_or(1 << Ino::COUNTER_BITS),
            inodes_used: row.inodes_used.saturating_add(self.reserved().inodes),
        })
    }

    fn extents(&mut self, ino: Ino, from: u64, limit: u32) -> Result<(Outcome, Bytes), Refusal> {
        self.reads_gone(ino);
        let attr = self.inode(ino)?.attr;
        match attr.kind {
            FileKind::File => {}
            FileKind::Dir => return Err(Refusal::IsDirectory),
            _ => return Err(Refusal::Invalid),
        }
        let attr = self.shown(attr);
        self.grants.push(Promise::Content(ino));
        self.opened.push(ino);

        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let mut rows: Vec<ExtentRow> = Vec::new();
        let (start, stop) = (extent_key(ino, from.saturating_add(1)), after(&extent_key(ino, u64::MAX)));
        self.scan(&start, &stop, &mut |_, value| {
            rows.push(decode(value));
            rows.len() <= limit
        });
        let mut end = rows.len() <= limit;
        rows.truncate(limit);

        let mut extents = Vec::with_capacity(rows.len());
        let mut payload = BytesMut::new();
        let mut carried: BTreeMap<ChunkName, Option<(u32, u32)>> = BTreeMap::new();
        let mut bytes = 0;
        for row in rows {
            let inline = match carried.get(&row.chunk) {
                Some(place) => *place,
                None => {
                    let content = self.content(&row.chunk);
                    if payload.len() + content.as_ref().map_or(0, Bytes::len) > INLINE_BYTES {
                        end = false;
                        break;
                    }
                    let place = content.map(|content| {
                        let from = payload.len() as u32;
                        payload.extend_from_slice(&content);
                        (from, content.len() as u32)
                    });
                    carried.insert(row.chunk, place);
                    place
                }
            };
            let extent = StoredExtent {
                offset: row.offset,
                len: row.len,
                chunk: row.chunk,
                chunk_from: row.chunk_from,
                key: row.key,
                inline,
            };
            bytes += rmp_serde::to_vec_named(&extent).expect("an extent has an encoding").len();
            if bytes > EXTENTS_BYTES {
                end = false;
                break;
            }
            extents.push(extent);
        }
        Ok((Outcome::Extents { attr, extents, end }, payload.freeze()))
    }

    /// Notes that the answer shows these attributes, and promises them.
    pub fn shown(&mut self, attr: Attr) -> Attr {
        self.reads_attr(&attr);
        self.grants.push(covering(&attr));
        attr
    }

    /// That an inode is gone is known by its number alone.
    pub fn reads_gone(&mut self, ino: Ino) {
        self.reads.extend([Promise::Inode(ino), Promise::Dir(ino), Promise::Content(ino)]);
    }

    /// Whether the inode exists at all.
    pub fn exists(&mut self, ino: Ino) -> bool {
        self.get_bytes(&inode_key(ino)).is_some()
    }
}
