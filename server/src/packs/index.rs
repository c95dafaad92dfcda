//! Which chunk stands where in which pack, and how far `chunks` was ingested.
//!
//! Keys are whole names. They begin with the position, so a partition's chunks
//! arrive in rising order and lie together.

use super::PackError;
use crate::disk::Disk;
use bytes::Bytes;
use proto::Epoch;
use proto::chunk::ChunkName;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CHUNKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("chunks");
/// Content that waits for company to become a pack.
const TAIL: TableDefinition<&[u8], &[u8]> = TableDefinition::new("tail");
/// Partition of `chunks` -> epoch and first offset not ingested.
const INGESTED: TableDefinition<u32, (u32, u64)> = TableDefinition::new("ingested");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const CLUSTER: &str = "cluster";
const NEXT_PACK: &str = "next pack";

/// Bytes of the index kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// Where a chunk's content stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Where {
    pub pack: u64,
    pub offset: u32,
    pub bytes: u32,
}

pub(super) struct Index {
    path: PathBuf,
    database: Database,
}

impl Index {
    pub fn open(dir: &Path, cluster: [u8; 16], disk: &Disk) -> Result<Index, PackError> {
        let path = dir.join("index.redb");
        let database = disk.databases.open(&path, CACHE_BYTES).map_err(|e| PackError::Index {
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
            let stored = {
                let mut meta = write.open_table(META)?;
                let stored = meta.get(CLUSTER)?.map(|v| v.value().to_vec());
                if stored.is_none() {
                    meta.insert(CLUSTER, cluster.as_slice())?;
                }
                stored
            };
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
        self.run("read", || {
            let chunks = self.database.begin_read()?.open_table(CHUNKS)?;
            let found = chunks.get(name.to_bytes().as_slice())?;
            Ok(found.map(|value| Where::decode(value.value())))
        })?
        .map(|place| place.ok_or_else(|| self.error("understand", &"an entry has another length; run a newer one")))
        .transpose()
    }

    /// The tail's chunks with their content, in order.
    pub fn tail(&self) -> Result<Vec<(ChunkName, Bytes)>, PackError> {
        let rows = self.run("read", || {
            let tail = self.database.begin_read()?.open_table(TAIL)?;
            let rows =
                tail.iter()?.map(|row| row.map(|(name, content)| (name.value().to_vec(), content.value().to_vec())));
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })?;
        let decode = |(name, content): (Vec<u8>, Vec<u8>)| {
            let name = name[..].try_into().map_err(|e| self.error("understand", &e))?;
            let name = ChunkName::from_bytes(name).map_err(|e| self.error("understand", &e))?;
            Ok((name, Bytes::from(content)))
        };
        rows.into_iter().map(decode).collect()
    }

    pub fn ingested(&self) -> Result<BTreeMap<u32, (Epoch, u64)>, PackError> {
        self.run("read", || {
            let ingested = self.database.begin_read()?.open_table(INGESTED)?;
            let rows = ingested
                .iter()?
                .map(|row| row.map(|(partition, at)| (partition.value(), (Epoch(at.value().0), at.value().1))));
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// The number of the pack to be written next.
    pub fn next_pack(&self) -> Result<u64, PackError> {
        self.run("read", || {
            let meta = self.database.begin_read()?.open_table(META)?;
            let stored = meta.get(NEXT_PACK)?;
            Ok(stored.and_then(|v| v.value().try_into().ok()).map_or(1, u64::from_be_bytes))
        })
    }

    /// Notes a pack that is safe in the object store. `tailed` are those of its
    /// chunks that stood in the tail until now.
    pub fn add_pack(
        &self,
        pack: u64,
        places: &[(ChunkName, Where)],
        tailed: &[ChunkName],
        ingested: &BTreeMap<u32, (Epoch, u64)>,
    ) -> Result<(), PackError> {
        self.change(ingested, |write| {
            let mut chunks = write.open_table(CHUNKS)?;
            for (name, place) in places {
                chunks.insert(name.to_bytes().as_slice(), place.encode().as_slice())?;
            }
            let mut tail = write.open_table(TAIL)?;
            for name in tailed {
                tail.remove(name.to_bytes().as_slice())?;
            }
            write.open_table(META)?.insert(NEXT_PACK, (pack + 1).to_be_bytes().as_slice())?;
            Ok(())
        })
    }

    /// Keeps content itself, for now.
    pub fn add_tail(
        &self,
        chunks: &[(ChunkName, Bytes)],
        ingested: &BTreeMap<u32, (Epoch, u64)>,
    ) -> Result<(), PackError> {
        self.change(ingested, |write| {
            let mut tail = write.open_table(TAIL)?;
            for (name, content) in chunks {
                tail.insert(name.to_bytes().as_slice(), &content[..])?;
            }
            Ok(())
        })
    }

    fn change(
        &self,
        ingested: &BTreeMap<u32, (Epoch, u64)>,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), PackError> {
        self.run("write to", || {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            write.set_quick_repair(true);
            change(&write)?;
            {
                let mut table = write.open_table(INGESTED)?;
                for (partition, (epoch, next_offset)) in ingested {
                    table.insert(partition, (epoch.0, *next_offset))?;
                }
            }
            write.commit()?;
            Ok(())
        })
    }

    fn run<T>(&self, tried: &'static str, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, PackError> {
        work().map_err(|e| self.error(tried, &e))
    }

    fn error(&self, tried: &'static str, reason: &dyn std::fmt::Display) -> PackError {
        PackError::Index { tried, path: self.path.display().to_string(), reason: reason.to_string() }
    }
}

const VALUE_BYTES: usize = 8 + 4 + 4;

impl Where {
    /// pack 8 | offset 4 | bytes 4, big-endian.
    fn encode(&self) -> [u8; VALUE_BYTES] {
        let mut value = [0; VALUE_BYTES];
        value[0..8].copy_from_slice(&self.pack.to_be_bytes());
        value[8..12].copy_from_slice(&self.offset.to_be_bytes());
        value[12..16].copy_from_slice(&self.bytes.to_be_bytes());
        value
    }

    fn decode(value: &[u8]) -> Option<Where> {
        let (pack, rest) = value.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Where {
            pack: u64::from_be_bytes(*pack),
            offset: u32::from_be_bytes(*offset),
            bytes: u32::from_be_bytes(rest.try_into().ok()?),
        })
    }
}
