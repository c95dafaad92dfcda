//! One partition's rows on disk: a redb database that moves from checkpoint to
//! checkpoint, and the rows changed since then in memory above it.
//!
//! * The log is the write-ahead log: nothing is written between checkpoints, and
//!   after a crash the database stands at its last one, from where the log is
//!   applied again. A checkpoint is one transaction with rows, machine and place.
//! * A checkpoint is taken in three steps so that applying never waits for the disk:
//!   [`PartitionStore::freeze`] sets the changed rows aside, [`Frozen::write`] puts
//!   them into the database on another thread, [`PartitionStore::thaw`] reads from
//!   the new state. Meanwhile reads see changed, frozen and stored rows, in that order.
//! * [`Kv`] cannot fail, so the first error is kept; whoever applies asks
//!   [`PartitionStore::check`] after each record and stops the server on an error.

mod overlay;
pub mod snapshot;

use crate::disk::Disk;
use crate::machine::kv::Kv;
use overlay::{Overlay, merge};
use proto::Epoch;
use proto::planted::{Bug, planted};
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase, TableDefinition};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ROWS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const CHECKPOINT: &str = "checkpoint";

/// The layout of what [`META`] holds. Another number is refused.
const FORMAT: u32 = 1;

/// Freeing this many bytes of small rows takes milliseconds, which the applying thread does not have.
const DROP_ELSEWHERE_BYTES: usize = 1 << 20;

/// Why a partition's rows cannot be read or kept. The server stops applying.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {tried} {path}: {reason}")]
pub struct StoreError {
    tried: &'static str,
    path: PathBuf,
    reason: String,
}

/// How far a partition's rows have come, and the part of the state that is not rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub epoch: Epoch,
    /// The first offset that is not applied yet.
    pub next_offset: u64,
    /// BLAKE3 of the last applied record's value; `None` before the first of the epoch.
    pub last_hash: Option<[u8; 32]>,
    /// What `Image::dump` gave.
    #[serde(with = "serde_bytes")]
    pub machine: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct StoredCheckpoint {
    format: u32,
    #[serde(with = "serde_bytes")]
    cluster: Vec<u8>,
    checkpoint: Checkpoint,
}

/// Where a partition's database stands and how it is opened.
#[derive(Clone, Debug)]
struct Place {
    path: PathBuf,
    cluster: [u8; 16],
    cache_bytes: usize,
    disk: Disk,
}

/// The rows of one partition.
pub struct PartitionStore {
    place: Place,
    /// `None` until the first checkpoint makes the file.
    database: Option<Arc<Database>>,
    /// The rows as of the last checkpoint.
    base: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    /// Being written by a checkpoint under way.
    frozen: Option<Arc<Overlay>>,
    changed: Overlay,
    failed: Option<StoreError>,
}

/// The rows of a checkpoint, to be written wherever waiting is harmless.
pub struct Frozen {
    place: Place,
    database: Option<Arc<Database>>,
    rows: Arc<Overlay>,
}

/// A checkpoint that is on disk.
pub struct Written {
    database: Arc<Database>,
    base: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl PartitionStore {
    /// Opens `dir/<partition>.redb` at its last checkpoint; a partition that never
    /// had one has no file and begins empty. `cluster` is the cluster's fingerprint:
    /// a database of another cluster is refused.
    pub fn open(
        dir: &Path,
        partition: u32,
        cluster: [u8; 16],
        cache_bytes: usize,
        disk: &Disk,
    ) -> Result<(PartitionStore, Option<Checkpoint>), StoreError> {
        let place = Place::new(dir, partition, cluster, cache_bytes, disk);
        let mut store = PartitionStore {
            place,
            database: None,
            base: None,
            frozen: None,
            changed: Overlay::default(),
            failed: None,
        };
        if !disk.databases.exists(&store.place.path) {
            return Ok((store, None));
        }

        let database = store.place.open()?;
        let Some(checkpoint) = store.place.checkpoint(&database)? else {
            store.database = Some(database);
            return Ok((store, None));
        };
        store.base = Some(store.place.snapshot(&database)?);
        store.database = Some(database);
        Ok((store, Some(checkpoint)))
    }

    /// Whether a checkpoint is under way; only one can be.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Bytes of keys and values changed since the last freeze.
    pub fn changed_bytes(&self) -> usize {
        self.changed.bytes()
    }

    /// Sets the changed rows aside for a checkpoint of what has been applied up to now.
    pub fn freeze(&mut self) -> Frozen {
        assert!(self.frozen.is_none(), "a checkpoint begins only when the one before it is thawed");
        let rows = Arc::new(std::mem::take(&mut self.changed));
        self.frozen = Some(rows.clone());
        Frozen { place: self.place.clone(), database: self.database.clone(), rows }
    }

    /// Reads from the written checkpoint from here on.
    pub fn thaw(&mut self, written: Written) {
        if !planted(Bug::ThawReadsOld) || self.base.is_none() {
            self.base = Some(written.base);
        }
        self.database = Some(written.database);
        let rows = self.frozen.take();
        if !self.place.disk.is_inline() && rows.as_ref().is_some_and(|rows| rows.bytes() >= DROP_ELSEWHERE_BYTES) {
            // Without a thread it is dropped here after all.
            let _ = std::thread::Builder::new().spawn(move || drop(rows));
        }
    }

    /// The first error that reading met: what was applied since is not to be trusted.
    pub fn check(&mut self) -> Result<(), StoreError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn stored(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.base.as_ref()?.get(key);
        match found {
            Ok(value) => value.map(|v| v.value().to_vec()),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn fail(&mut self, error: &dyn std::fmt::Display) {
        if self.failed.is_none() {
            self.failed = Some(self.place.error("read", error));
        }
    }
}

impl Kv for PartitionStore {
    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(row) = self.changed.get(key) {
            return row.map(<[u8]>::to_vec);
        }
        if let Some(row) = self.frozen.as_ref().and_then(|frozen| frozen.get(key))
            && !planted(Bug::FrozenUnseen)
        {
            return row.map(<[u8]>::to_vec);
        }
        self.stored(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.changed.set(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.changed.set(key, None);
    }

    fn scan(&mut self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let stored = match self.base.as_ref().map(|base| base.range::<&[u8]>(from..to)).transpose() {
            Ok(stored) => stored,
            Err(error) => {
                self.fail(&error);
                return;
            }
        };
        let frozen = self.frozen.as_deref();
        if let Err(error) = merge(&self.changed, frozen, stored, from, to, visit) {
            self.fail(&error);
        }
    }
}

impl Frozen {
    /// Writes the checkpoint and waits until it is safe. Every record before
    /// `checkpoint.next_offset` was applied when the rows were frozen, and none after. Only content that these
    /// rows refer to and that is safe itself may be referred to, so packs are flushed first.
    pub fn write(self, checkpoint: Checkpoint) -> Result<Written, StoreError> {
        let database = match self.database {
            Some(database) => database,
            None => self.place.open()?,
        };
        let stored = StoredCheckpoint { format: FORMAT, cluster: self.place.cluster.to_vec(), checkpoint };
        let stored = rmp_serde::to_vec(&stored).map_err(|e| self.place.error("encode the checkpoint of", &e))?;

        let commit = || -> Result<(), redb::Error> {
            let mut write = database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            // After a kill the file opens in milliseconds instead of being walked.
            write.set_quick_repair(true);
            {
                let mut rows = write.open_table(ROWS)?;
                let left_out = if planted(Bug::CheckpointLosesRow) { self.rows.iter().count() / 2 } else { usize::MAX };
                for (number, (key, value)) in self.rows.iter().enumerate() {
                    match value {
                        _ if number == left_out => {}
                        None if planted(Bug::CheckpointKeepsDeleted) => {}
                        Some(value) => drop(rows.insert(key, value)?),
                        None => drop(rows.remove(key)?),
                    }
                }
                write.open_table(META)?.insert(CHECKPOINT, stored.as_slice())?;
            }
            write.commit()?;
            Ok(())
        };
        commit().map_err(|e| self.place.error("write a checkpoint to", &e))?;
        let base = self.place.snapshot(&database)?;
        Ok(Written { database, base })
    }
}

impl Place {
    fn new(dir: &Path, partition: u32, cluster: [u8; 16], cache_bytes: usize, disk: &Disk) -> Place {
        Place { path: dir.join(format!("{partition}.redb")), cluster, cache_bytes, disk: disk.clone() }
    }

    fn open(&self) -> Result<Arc<Database>, StoreError> {
        let opened = self.disk.database(&self.path, self.cache_bytes);
        Ok(Arc::new(opened.map_err(|e| self.error("open", &e))?))
    }

    fn snapshot(&self, database: &Database) -> Result<ReadOnlyTable<&'static [u8], &'static [u8]>, StoreError> {
        let open = || -> Result<_, redb::Error> { Ok(database.begin_read()?.open_table(ROWS)?) };
        open().map_err(|e| self.error("read", &e))
    }

    fn checkpoint(&self, database: &Database) -> Result<Option<Checkpoint>, StoreError> {
        let read = || -> Result<Option<Vec<u8>>, redb::Error> {
            let meta = match database.begin_read()?.open_table(META) {
                Ok(meta) => meta,
                // The file was made, and the first checkpoint never finished.
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            Ok(meta.get(CHECKPOINT)?.map(|v| v.value().to_vec()))
        };
        let Some(bytes) = read().map_err(|e| self.error("read", &e))? else { return Ok(None) };
        let stored: StoredCheckpoint = rmp_serde::from_slice(&bytes).map_err(|e| self.error("understand", &e))?;
        if stored.format != FORMAT {
            let reason = format!("it has format {}, this kfs-server knows {FORMAT}; run a newer one", stored.format);
            return Err(self.error("use", &reason));
        }
        if stored.cluster != self.cluster {
            return Err(self.error("use", &"it belongs to another cluster (another cluster.key)"));
        }
        Ok(Some(stored.checkpoint))
    }

    fn error(&self, tried: &'static str, reason: &dyn std::fmt::Display) -> StoreError {
        StoreError { tried, path: self.path.clone(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests;
