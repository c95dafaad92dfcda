//! A partition's last checkpoint read beside the loop, and one written piece by piece:
//! the two ends of a snapshot.

use super::{CHECKPOINT, Checkpoint, FORMAT, META, PartitionStore, Place, ROWS, StoreError, StoredCheckpoint};
use crate::disk::Disk;
use redb::{Database, Durability, ReadOnlyTable, ReadableDatabase};
use std::path::Path;
use std::sync::Arc;

/// Bytes of rows that one transaction writes.
const WRITE_BYTES: usize = 8 << 20;

/// Reads what is on disk, whatever the loop does meanwhile.
#[derive(Clone)]
pub struct StoreReader {
    place: Place,
    database: Arc<Database>,
}

/// A checkpoint that stays as it is for as long as this lives, however many follow it.
pub struct HeldRows {
    place: Place,
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
    pub checkpoint: Checkpoint,
}

/// A row, or a part of one: key, part of the value, whether the value ends with it.
pub type RowPart = (Vec<u8>, Vec<u8>, bool);

impl PartitionStore {
    /// `None` before the first checkpoint.
    pub fn reader(&self) -> Option<StoreReader> {
        Some(StoreReader { place: self.place.clone(), database: self.database.clone()? })
    }
}

impl StoreReader {
    /// Holds the last checkpoint; `None` if there is none yet.
    pub fn hold(&self) -> Result<Option<HeldRows>, StoreError> {
        let open = || -> Result<_, redb::Error> {
            let read = self.database.begin_read()?;
            let meta = match read.open_table(META) {
                Ok(meta) => meta,
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let stored = meta.get(CHECKPOINT)?.map(|v| v.value().to_vec());
            Ok(Some((stored, read.open_table(ROWS)?)))
        };
        let Some((Some(stored), rows)) = open().map_err(|e| self.place.error("read", &e))? else { return Ok(None) };
        let stored: StoredCheckpoint =
            rmp_serde::from_slice(&stored).map_err(|e| self.place.error("understand", &e))?;
        Ok(Some(HeldRows { place: self.place.clone(), rows, checkpoint: stored.checkpoint }))
    }
}

impl HeldRows {
    /// Rows after a key, of about `bytes`, and whether they are the last ones. With
    /// `value_from` above 0 that very row comes first, from that byte of its value on.
    pub fn rows(&self, after: &[u8], value_from: u64, bytes: usize) -> Result<(Vec<RowPart>, bool), StoreError> {
        let read = || -> Result<_, redb::Error> {
            let mut parts: Vec<RowPart> = Vec::new();
            let mut left = bytes;
            for row in self.rows.range::<&[u8]>(after..)? {
                let (key, value) = row?;
                let (key, mut value) = (key.value(), value.value());
                if key == after && !after.is_empty() {
                    if value_from == 0 {
                        continue;
                    }
                    value = value.get(usize::try_from(value_from).unwrap_or(usize::MAX)..).unwrap_or(&[]);
                }
                // What surrounds a row counts as well, so that many small ones stay within the bound.
                let needed = key.len() + value.len() + 32;
                if needed > left && !parts.is_empty() {
                    return Ok((parts, false));
                }
                if needed > left {
                    let part = &value[..left.saturating_sub(key.len() + 32).min(value.len())];
                    parts.push((key.to_vec(), part.to_vec(), false));
                    return Ok((parts, false));
                }
                left -= needed;
                parts.push((key.to_vec(), value.to_vec(), true));
            }
            Ok((parts, true))
        };
        read().map_err(|e| self.place.error("read", &e))
    }
}

/// Writes another server's rows. Without [`StoreWriter::finish`] the database has no
/// checkpoint, so nobody takes it for a whole one.
pub struct StoreWriter {
    place: Place,
    database: Arc<Database>,
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
}

impl StoreWriter {
    /// Makes `dir/<partition>.redb`, where none is.
    pub fn create(
        dir: &Path,
        partition: u32,
        cluster: [u8; 16],
        cache_bytes: usize,
        disk: &Disk,
    ) -> Result<StoreWriter, StoreError> {
        let place = Place::new(dir, partition, cluster, cache_bytes, disk);
        let database = place.open()?;
        Ok(StoreWriter { place, database, rows: Vec::new(), bytes: 0 })
    }

    pub fn add(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), StoreError> {
        self.bytes += key.len() + value.len();
        self.rows.push((key, value));
        if self.bytes >= WRITE_BYTES { self.write(None) } else { Ok(()) }
    }

    /// All rows are there: makes them last, together with their place in the log.
    pub fn finish(mut self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let cluster = self.place.cluster.to_vec();
        self.write(Some(&StoredCheckpoint { format: FORMAT, cluster, checkpoint }))
    }

    fn write(&mut self, checkpoint: Option<&StoredCheckpoint>) -> Result<(), StoreError> {
        let stored = checkpoint.map(rmp_serde::to_vec).transpose();
        let stored = stored.map_err(|e| self.place.error("encode the checkpoint of", &e))?;
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let commit = || -> Result<(), redb::Error> {
            let mut write = self.database.begin_write()?;
            write.set_durability(Durability::Immediate)?;
            write.set_quick_repair(true);
            {
                let mut table = write.open_table(ROWS)?;
                for (key, value) in &rows {
                    table.insert(key.as_slice(), value.as_slice())?;
                }
                if let Some(stored) = &stored {
                    write.open_table(META)?.insert(CHECKPOINT, stored.as_slice())?;
                }
            }
            write.commit()?;
            Ok(())
        };
        commit().map_err(|e| self.place.error("write a snapshot to", &e))
    }
}
