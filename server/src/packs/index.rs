//! The database beside the packs: which chunk stands where, what waits to become a
//! pack, what nobody needs any more, and how far `chunks` was ingested.
//!
//! Chunks' keys are whole names. They begin with the position, so a partition's
//! chunks arrive in rising order and lie together. Every change is one durable
//! transaction of the writer's; readers see the last one.

mod keys;

pub use keys::Cut;
pub(super) use keys::Where;

use super::PackError;
use super::buffers::{Notes, Reached};
use super::snapshot::Listed;
use crate::disk::Disk;
use bytes::Bytes;
use keys::{freed_key, fresh_key, next_session, requests_at, requests_key, split_fresh};
use proto::chunk::ChunkName;
use proto::{Epoch, LogTime, NamespaceId, SessionId};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use redb::{ReadTransaction, WriteTransaction};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};

/// Name -> pack, offset, bytes.
const CHUNKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("chunks");
/// Content that waits for company to become a pack.
const TAIL: TableDefinition<&[u8], &[u8]> = TableDefinition::new("tail");
/// Partition of `chunks` -> epoch and first offset not ingested.
const INGESTED: TableDefinition<u32, (u32, u64)> = TableDefinition::new("ingested");
/// Partition of `chunks` -> [`Reached::last`].
const LAST: TableDefinition<u32, [u8; 32]> = TableDefinition::new("last ingested");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
/// Pack and offset -> the name that stands there.
const PLACES: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("places");
/// Pack -> its bytes, and how many of them are of chunks in [`CHUNKS`].
const PACKS: TableDefinition<u64, (u64, u64)> = TableDefinition::new("packs");
/// Packs that are no longer used and may still be there.
const DOOMED: TableDefinition<u64, ()> = TableDefinition::new("doomed");
/// Session and name -> namespace: uploads of sessions that may still quote them.
const FRESH: TableDefinition<&[u8], u32> = TableDefinition::new("fresh");
/// Sessions with fresh uploads that were seen to be over -> when, in log time.
const OVER: TableDefinition<&[u8], u64> = TableDefinition::new("over");
/// [`Cut`] and name: what a partition's records have freed.
const FREED: TableDefinition<&[u8], ()> = TableDefinition::new("freed");

const CLUSTER: &str = "cluster";
const NEXT_PACK: &str = "next pack";
/// Present once [`PLACES`] and [`PACKS`] tell of every chunk.
const PLACED: &str = "placed";
/// Where the last scrub stands: pack and offset.
const SCRUBBED: &str = "scrubbed";

/// Bytes of the index kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// A pack that is written, for the index.
pub(super) struct NewPack<'a> {
    pub pack: u64,
    pub places: &'a [(ChunkName, Where)],
}

pub(super) struct Index {
    path: PathBuf,
    database: Database,
}

impl Index {
    pub fn open(dir: &Path, cluster: [u8; 16], disk: &Disk) -> Result<Index, PackError> {
        let path = dir.join("index.redb");
        let database = disk.database(&path, CACHE_BYTES).map_err(|e| PackError::Index {
            tried: "open",
            path: path.display().to_string(),
            reason: e.to_string(),
        })?;
        let index = Index { path, database };
        let stored = index.run("open", || {
            let mut write = index.database.begin_write()?;
            write.set_quick_repair(true);
            // So that later readers find every table.
            write.open_table(CHUNKS)?;
            write.open_table(TAIL)?;
            write.open_table(INGESTED)?;
            write.open_table(LAST)?;
            write.open_table(PLACES)?;
            write.open_table(PACKS)?;
            write.open_table(DOOMED)?;
            write.open_table(FRESH)?;
            write.open_table(OVER)?;
            write.open_table(FREED)?;
            let stored = {
                let mut meta = write.open_table(META)?;
                let stored = meta.get(CLUSTER)?.map(|v| v.value().to_vec());
                if stored.is_none() {
                    meta.insert(CLUSTER, cluster.as_slice())?;
                }
                stored
            };
            place_all(&write)?;
            write.commit()?;
            Ok(stored)
        })?;
        match stored {
            Some(other) if other != cluster => Err(PackError::Index {
                tried: "use",
                path: index.path.display().to_string(),
                reason: "it belongs to another cluster (another cluster.key)".into(),
            }),
            _ => Ok(index),
        }
    }

    pub fn find(&self, name: &ChunkName) -> Result<Option<Where>, PackError> {
        self.read(|read| {
            let chunks = read.open_table(CHUNKS)?;
            Ok(chunks.get(name.to_bytes().as_slice())?.map(|value| Where::decode(value.value())))
        })?
        .map(|place| place.ok_or_else(|| self.error("understand", &"an entry has another length; run a newer one")))
        .transpose()
    }

    /// The tail's chunks with their content, in order.
    pub fn tail(&self) -> Result<Vec<(ChunkName, Bytes)>, PackError> {
        let rows = self.read(|read| {
            let tail = read.open_table(TAIL)?;
            let rows =
                tail.iter()?.map(|row| row.map(|(name, content)| (name.value().to_vec(), content.value().to_vec())));
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        rows.into_iter().map(|(name, content)| Ok((self.name(&name)?, Bytes::from(content)))).collect()
    }

    /// Names in the packs, or in the tail, after this one, each with its namespace if it
    /// is a fresh upload: of about `bytes` of content and at least one, and whether
    /// they are the last ones.
    pub fn names(
        &self,
        packed: bool,
        after: Option<&ChunkName>,
        bytes: usize,
    ) -> Result<(Vec<Listed>, bool), PackError> {
        let after = after.map(|name| name.to_bytes());
        let (rows, end) = self.read(|read| {
            let table = read.open_table(if packed { CHUNKS } else { TAIL })?;
            let from = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_slice()));
            let (mut rows, mut sum) = (Vec::new(), 0);
            for row in table.range::<&[u8]>((from, Bound::Unbounded))? {
                let (name, value) = row?;
                let value = value.value();
                let place = packed.then(|| Where::decode(value)).flatten();
                sum += place.map_or(value.len(), |place| place.bytes as usize);
                if sum > bytes && !rows.is_empty() {
                    return Ok((rows, false));
                }
                rows.push(name.value().to_vec());
            }
            Ok((rows, true))
        })?;
        let names: Vec<ChunkName> = rows.iter().map(|name| self.name(name)).collect::<Result<_, _>>()?;
        let listed = self.read(|read| {
            let fresh = read.open_table(FRESH)?;
            let of = |name: &ChunkName| {
                let found = fresh.get(fresh_key(name).as_slice())?;
                Ok::<_, redb::Error>((*name, found.map(|namespace| NamespaceId(namespace.value()))))
            };
            names.iter().map(of).collect()
        })?;
        Ok((listed, end))
    }

    /// What came in a partition's requests from this offset of this epoch on, and in later epochs.
    pub fn of_requests(&self, partition: u32, epoch: Epoch, offset: u64) -> Result<BTreeSet<ChunkName>, PackError> {
        let names = self.read(|read| {
            let (chunks, tail) = (read.open_table(CHUNKS)?, read.open_table(TAIL)?);
            let mut found = Vec::new();
            for table in [chunks, tail] {
                let mut from = Some((epoch, offset));
                // An epoch's partition after the other, leaving out what lies between.
                while let Some((epoch, offset)) = from.take() {
                    for row in table.range(requests_key(epoch, partition, offset).as_slice()..)? {
                        let (name, _) = row?;
                        match requests_at(name.value()) {
                            Some((at, of)) if (at, of) == (epoch, partition) => found.push(name.value().to_vec()),
                            Some((at, of)) => {
                                let passed = at == epoch || of > partition;
                                from = at.0.checked_add(passed.into()).map(|next| (Epoch(next), 0));
                                break;
                            }
                            None => break,
                        }
                    }
                }
            }
            Ok(found)
        })?;
        names.iter().map(|name| self.name(name)).collect()
    }

    pub fn ingested(&self) -> Result<BTreeMap<u32, Reached>, PackError> {
        self.read(|read| {
            let (ingested, lasts) = (read.open_table(INGESTED)?, read.open_table(LAST)?);
            let mut all = BTreeMap::new();
            for row in ingested.iter()? {
                let (partition, at) = row?;
                let (partition, (epoch, next_offset)) = (partition.value(), at.value());
                let last = lasts.get(partition)?.map(|last| last.value());
                all.insert(partition, Reached { epoch: Epoch(epoch), next_offset, last });
            }
            Ok(all)
        })
    }

    /// The number of the pack to be written next.
    pub fn next_pack(&self) -> Result<u64, PackError> {
        self.read(|read| {
            let meta = read.open_table(META)?;
            let stored = meta.get(NEXT_PACK)?;
            Ok(stored.and_then(|v| v.value().try_into().ok()).map_or(1, u64::from_be_bytes))
        })
    }

    /// Every pack with its bytes and those in use.
    pub fn packs(&self) -> Result<Vec<(u64, u64, u64)>, PackError> {
        self.read(|read| {
            let packs = read.open_table(PACKS)?;
            let rows = packs.iter()?.map(|row| row.map(|(pack, of)| (pack.value(), of.value().0, of.value().1)));
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    pub fn doomed(&self) -> Result<Vec<u64>, PackError> {
        self.read(|read| {
            let doomed = read.open_table(DOOMED)?;
            let rows = doomed.iter()?.map(|row| row.map(|(pack, _)| pack.value()));
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Chunks in the order in which they stand, from a place on: up to `bytes` of
    /// them, and at least one, all of one pack.
    pub fn places(&self, from: (u64, u32), bytes: u64) -> Result<Vec<(ChunkName, Where)>, PackError> {
        let rows = self.read(|read| {
            let (places, chunks) = (read.open_table(PLACES)?, read.open_table(CHUNKS)?);
            let (mut found, mut sum): (Vec<(Vec<u8>, Where)>, u64) = (Vec::new(), 0);
            for row in places.range(from..)? {
                let (place, name) = row?;
                let (pack, _) = place.value();
                if found.first().is_some_and(|(_, first)| first.pack != pack) || (sum >= bytes && !found.is_empty()) {
                    break;
                }
                if let Some(at) = chunks.get(name.value())?.and_then(|value| Where::decode(value.value())) {
                    sum += u64::from(at.bytes);
                    found.push((name.value().to_vec(), at));
                }
            }
            Ok(found)
        })?;
        rows.into_iter().map(|(name, at)| Ok((self.name(&name)?, at))).collect()
    }

    /// Where the last scrub stands.
    pub fn scrubbed(&self) -> Result<(u64, u32), PackError> {
        self.read(|read| {
            let meta = read.open_table(META)?;
            let stored = meta.get(SCRUBBED)?;
            let place = stored.and_then(|v| Where::decode(v.value()));
            Ok(place.map_or((0, 0), |place| (place.pack, place.offset)))
        })
    }

    /// Sessions with fresh uploads after this one, each with a partition that it
    /// uploaded to and the mark of its end; at most `limit`.
    pub fn fresh_sessions(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<(SessionId, u32, Option<LogTime>)>, PackError> {
        self.read(|read| {
            let (fresh, over) = (read.open_table(FRESH)?, read.open_table(OVER)?);
            let mut from = after.map_or(Some(vec![0; 16]), next_session);
            let mut found = Vec::new();
            while let Some(start) = from.take()
                && found.len() < limit
            {
                let Some(row) = fresh.range(start.as_slice()..)?.next() else { break };
                let (key, _) = row?;
                let Some((session, name)) = split_fresh(key.value()) else { break };
                let mark = over.get(session.0.as_slice())?.map(|at| LogTime(at.value()));
                found.push((session, name.partition, mark));
                from = next_session(session);
            }
            Ok(found)
        })
    }

    /// Fresh uploads of a session, each with its namespace; at most `limit`.
    pub fn fresh_of(&self, session: SessionId, limit: usize) -> Result<Vec<(NamespaceId, ChunkName)>, PackError> {
        self.read(|read| {
            let fresh = read.open_table(FRESH)?;
            let mut found = Vec::new();
            for row in fresh.range(session.0.as_slice()..)? {
                let (key, namespace) = row?;
                match split_fresh(key.value()) {
                    Some((of, name)) if of == session && found.len() < limit => {
                        found.push((NamespaceId(namespace.value()), name));
                    }
                    _ => break,
                }
            }
            Ok(found)
        })
    }

    /// What was freed, by cuts; each cut once.
    pub fn cuts(&self) -> Result<BTreeSet<Cut>, PackError> {
        self.read(|read| {
            let freed = read.open_table(FREED)?;
            let rows = freed.iter()?.map(|row| row.map(|(key, _)| Cut::decode(key.value())));
            Ok(rows.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        })
    }

    /// Chunks freed before this cut; at most `limit`.
    pub fn freed(&self, cut: Cut, limit: usize) -> Result<Vec<ChunkName>, PackError> {
        let names = self.read(|read| {
            let freed = read.open_table(FREED)?;
            let prefix = cut.encode();
            let mut names = Vec::new();
            for row in freed.range(prefix.as_slice()..)? {
                let (key, _) = row?;
                if !key.value().starts_with(&prefix) || names.len() == limit {
                    break;
                }
                names.push(key.value()[prefix.len()..].to_vec());
            }
            Ok(names)
        })?;
        names.iter().map(|name| self.name(name)).collect()
    }

    /// Visits every chunk's name with its place.
    pub fn each(&self, mut visit: impl FnMut(ChunkName, Where)) -> Result<(), PackError> {
        let read = self.run("read", || Ok(self.database.begin_read()?.open_table(CHUNKS)?))?;
        let rows = read.iter().map_err(|e| self.error("read", &e))?;
        for row in rows {
            let (name, place) = row.map_err(|e| self.error("read", &e))?;
            let place = Where::decode(place.value()).ok_or_else(|| self.error("understand", &"a place's length"))?;
            visit(self.name(name.value())?, place);
        }
        Ok(())
    }

    /// Notes a pack that is safe in the object store. `tailed` are those of its
    /// chunks that stood in the tail until now.
    pub fn add_pack(&self, new: &NewPack, tailed: &[ChunkName], notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut tables = Tables::open(write)?;
            for (name, place) in new.places {
                // Content that was damaged is kept anew: the old place is no longer its.
                tables.forget(name)?;
                tables.place(name, *place)?;
            }
            let bytes = new.places.iter().map(|(_, place)| u64::from(place.bytes)).sum();
            tables.packs.insert(new.pack, (bytes, bytes))?;
            let mut tail = write.open_table(TAIL)?;
            for name in tailed {
                tail.remove(name.to_bytes().as_slice())?;
            }
            write.open_table(META)?.insert(NEXT_PACK, (new.pack + 1).to_be_bytes().as_slice())?;
            Ok(())
        })
    }

    /// Keeps content itself, for now.
    pub fn add_tail(&self, chunks: &[(ChunkName, Bytes)], notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut tables = Tables::open(write)?;
            let mut tail = write.open_table(TAIL)?;
            for (name, content) in chunks {
                // Content that was damaged is kept anew: the old place is no longer its.
                tables.forget(name)?;
                tail.insert(name.to_bytes().as_slice(), &content[..])?;
            }
            Ok(())
        })
    }

    /// Chunks of `from` now stand in a new pack, as far as they are still used; the old ones can go.
    pub fn replace_packs(&self, from: &[u64], new: Option<&NewPack>, notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut tables = Tables::open(write)?;
            let (mut bytes, mut used) = (0, 0);
            for (name, place) in new.map_or(&[][..], |new| new.places) {
                bytes += u64::from(place.bytes);
                if tables.find(name)?.is_some_and(|at| from.contains(&at.pack)) {
                    tables.forget(name)?;
                    tables.place(name, *place)?;
                    used += u64::from(place.bytes);
                }
            }
            if let Some(new) = new {
                tables.packs.insert(new.pack, (bytes, used))?;
                write.open_table(META)?.insert(NEXT_PACK, (new.pack + 1).to_be_bytes().as_slice())?;
            }
            let mut doomed = write.open_table(DOOMED)?;
            for pack in from {
                tables.packs.remove(pack)?;
                doomed.insert(pack, ())?;
            }
            Ok(())
        })
    }

    /// Objects of these packs are gone.
    pub fn forget_doomed(&self, packs: &[u64], notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut doomed = write.open_table(DOOMED)?;
            for pack in packs {
                doomed.remove(pack)?;
            }
            Ok(())
        })
    }

    /// Drops chunks, and that they were freed before `cut`.
    pub fn drop_chunks(&self, names: &[ChunkName], cut: Cut, notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut tables = Tables::open(write)?;
            let mut tail = write.open_table(TAIL)?;
            let mut fresh = write.open_table(FRESH)?;
            let mut freed = write.open_table(FREED)?;
            for name in names {
                tables.forget(name)?;
                tail.remove(name.to_bytes().as_slice())?;
                fresh.remove(fresh_key(name).as_slice())?;
                freed.remove(freed_key(cut, name).as_slice())?;
            }
            Ok(())
        })
    }

    /// Forgets that these were freed before `cut`: it will be said again.
    pub fn forget_cut(&self, cut: Cut, notes: &Notes) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut freed = write.open_table(FREED)?;
            let prefix = cut.encode();
            let keys: Vec<Vec<u8>> = freed
                .range(prefix.as_slice()..)?
                .map(|row| row.map(|(key, _)| key.value().to_vec()))
                .take_while(|key| key.as_ref().is_ok_and(|key| key.starts_with(&prefix)))
                .collect::<Result<_, _>>()?;
            for key in keys {
                freed.remove(key.as_slice())?;
            }
            Ok(())
        })
    }

    /// These were seen to be over at a log time; of the others there is nothing fresh any more.
    pub fn mark_over(
        &self,
        seen: &[(SessionId, LogTime)],
        done: &[SessionId],
        settled: &[ChunkName],
        notes: &Notes,
    ) -> Result<(), PackError> {
        self.change(notes, |write| {
            let mut over = write.open_table(OVER)?;
            for (session, at) in seen {
                over.insert(session.0.as_slice(), at.0)?;
            }
            for session in done {
                over.remove(session.0.as_slice())?;
            }
            let mut fresh = write.open_table(FRESH)?;
            for name in settled {
                fresh.remove(fresh_key(name).as_slice())?;
            }
            Ok(())
        })
    }

    fn change(
        &self,
        notes: &Notes,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), PackError> {
        self.run("write to", || {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            write.set_quick_repair(true);
            change(&write)?;
            {
                let (mut ingested, mut lasts) = (write.open_table(INGESTED)?, write.open_table(LAST)?);
                for (partition, reached) in &notes.ingested {
                    ingested.insert(partition, (reached.epoch.0, reached.next_offset))?;
                    match reached.last {
                        Some(last) => lasts.insert(partition, last)?,
                        None => lasts.remove(partition)?,
                    };
                }
                let mut fresh = write.open_table(FRESH)?;
                for (namespace, name) in &notes.fresh {
                    fresh.insert(fresh_key(name).as_slice(), namespace.0)?;
                }
                let mut freed = write.open_table(FREED)?;
                for (cut, name) in &notes.freed {
                    freed.insert(freed_key(*cut, name).as_slice(), ())?;
                }
                if let Some((pack, offset)) = notes.scrubbed {
                    let place = Where { pack, offset, bytes: 0 };
                    write.open_table(META)?.insert(SCRUBBED, place.encode().as_slice())?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    fn read<T>(&self, read: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, PackError> {
        self.run("read", || read(&self.database.begin_read()?))
    }

    fn run<T>(&self, tried: &'static str, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, PackError> {
        work().map_err(|e| self.error(tried, &e))
    }

    pub fn name(&self, bytes: &[u8]) -> Result<ChunkName, PackError> {
        let bytes = bytes.try_into().map_err(|e| self.error("understand", &e))?;
        ChunkName::from_bytes(bytes).map_err(|e| self.error("understand", &e))
    }

    fn error(&self, tried: &'static str, reason: &dyn std::fmt::Display) -> PackError {
        PackError::Index { tried, path: self.path.display().to_string(), reason: reason.to_string() }
    }
}

/// The tables that tell where chunks are, which change together.
struct Tables<'a> {
    chunks: redb::Table<'a, &'static [u8], &'static [u8]>,
    places: redb::Table<'a, (u64, u32), &'static [u8]>,
    packs: redb::Table<'a, u64, (u64, u64)>,
}

impl<'a> Tables<'a> {
    fn open(write: &'a WriteTransaction) -> Result<Tables<'a>, redb::Error> {
        let (chunks, places, packs) = (write.open_table(CHUNKS)?, write.open_table(PLACES)?, write.open_table(PACKS)?);
        Ok(Tables { chunks, places, packs })
    }

    fn find(&self, name: &ChunkName) -> Result<Option<Where>, redb::Error> {
        let found = self.chunks.get(name.to_bytes().as_slice())?;
        Ok(found.and_then(|value| Where::decode(value.value())))
    }

    /// The chunk stands nowhere any more.
    fn forget(&mut self, name: &ChunkName) -> Result<(), redb::Error> {
        let Some(at) = self.find(name)? else { return Ok(()) };
        self.chunks.remove(name.to_bytes().as_slice())?;
        self.places.remove((at.pack, at.offset))?;
        let of = self.packs.get(at.pack)?.map(|of| of.value());
        if let Some((bytes, used)) = of {
            self.packs.insert(at.pack, (bytes, used.saturating_sub(u64::from(at.bytes))))?;
        }
        Ok(())
    }

    /// The chunk stands here. The pack's own row is the caller's.
    fn place(&mut self, name: &ChunkName, at: Where) -> Result<(), redb::Error> {
        let name = name.to_bytes();
        self.chunks.insert(name.as_slice(), at.encode().as_slice())?;
        self.places.insert((at.pack, at.offset), name.as_slice())?;
        Ok(())
    }
}

/// Fills the tables that came later, once.
fn place_all(write: &WriteTransaction) -> Result<(), redb::Error> {
    let mut meta = write.open_table(META)?;
    if meta.get(PLACED)?.is_some() {
        return Ok(());
    }
    let (chunks, mut places) = (write.open_table(CHUNKS)?, write.open_table(PLACES)?);
    let mut sums: BTreeMap<u64, u64> = BTreeMap::new();
    for row in chunks.iter()? {
        let (name, at) = row?;
        if let Some(at) = Where::decode(at.value()) {
            places.insert((at.pack, at.offset), name.value())?;
            *sums.entry(at.pack).or_default() += u64::from(at.bytes);
        }
    }
    let mut packs = write.open_table(PACKS)?;
    for (pack, bytes) in sums {
        packs.insert(pack, (bytes, bytes))?;
    }
    meta.insert(PLACED, [1].as_slice())?;
    Ok(())
}
