//! Content, kept in packs: objects of up to [`PACK_BYTES`] in an object store (a
//! local directory unless told otherwise), and an index of which chunk stands where.
//!
//! * A chunk enters a buffer in memory, is readable from there at once, and safe
//!   after the next [`Packs::flush`]. The state's checkpoints flush first, so a
//!   checkpoint never refers to content that is not safe.
//! * A pack is written once, whole, and never changed. A flush of less than
//!   [`TAIL_BYTES`] goes into the index database instead and waits there for
//!   company: many small flushes do not make many small objects.
//! * How far the `chunks` topic has been ingested is kept in the same transaction
//!   as the index, so ingesting goes on exactly where content is safe; what comes
//!   twice is recognised by its name.
//! * Memory: at most two buffers of [`PACK_BYTES`] and a record each; whoever adds
//!   waits for the writer beyond that.
//!
//! Packs are never rewritten or deleted yet: freed content stays where it is.

mod index;

use bytes::Bytes;
use index::{Index, Where};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proto::Epoch;
use proto::chunk::ChunkName;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// A buffer this full becomes a pack.
pub const PACK_BYTES: usize = 32 << 20;

/// A flush of fewer bytes goes into the index database until more has come.
pub const TAIL_BYTES: usize = 4 << 20;

/// Why content cannot be kept or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot {tried} the pack index {path}: {reason}")]
    Index { tried: &'static str, path: String, reason: String },
    #[error("cannot write the pack {pack} to {objects}: {reason}")]
    Write { pack: u64, objects: String, reason: String },
    #[error("cannot read the pack {pack} from {objects}: {reason}")]
    Read { pack: u64, objects: String, reason: String },
    #[error(
        "the pack {pack} in {objects} is damaged: the chunk {name} does not have its hash; restore the pack from a backup"
    )]
    Damaged { pack: u64, objects: String, name: ChunkName },
}

/// Every chunk that this server keeps outside its rows.
pub struct Packs {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    index: Index,
    objects: Arc<dyn ObjectStore>,
    runtime: tokio::runtime::Handle,
    buffers: Mutex<Buffers>,
    /// For the writer: a buffer is full, a flush is wanted, or it should stop.
    wanted: Condvar,
    /// For those who wait for the writer.
    written: Condvar,
    /// For downloads that wait for a chunk.
    arrived: Notify,
}

#[derive(Default)]
struct Buffers {
    filling: Buffer,
    /// Being written as a pack.
    writing: Option<Arc<Buffer>>,
    /// Counts what has been added; content is safe up to `safe`.
    added: u64,
    safe: u64,
    flush_wanted: u64,
    failed: Option<PackError>,
    stop: bool,
}

#[derive(Default)]
struct Buffer {
    chunks: BTreeMap<ChunkName, Bytes>,
    order: Vec<ChunkName>,
    bytes: usize,
    /// The first of `order` that does not stand in the index database's tail.
    untailed: usize,
    /// How far partitions had been ingested when this was added.
    ingested: BTreeMap<u32, (Epoch, u64)>,
}

impl Packs {
    /// Opens `dir/index.redb` and, unless `objects` says otherwise, packs in `dir`
    /// itself. Starts the writer's thread; `runtime` carries the object store's work.
    pub fn open(
        dir: &Path,
        cluster: [u8; 16],
        objects: Option<Arc<dyn ObjectStore>>,
        runtime: tokio::runtime::Handle,
    ) -> Result<Packs, PackError> {
        let index = Index::open(dir, cluster)?;
        let objects = match objects {
            Some(objects) => objects,
            None => {
                let local = object_store::local::LocalFileSystem::new_with_prefix(dir).map_err(|e| {
                    PackError::Read { pack: 0, objects: dir.display().to_string(), reason: e.to_string() }
                })?;
                Arc::new(local.with_fsync(true))
            }
        };
        let mut filling = Buffer::default();
        for (name, content) in index.tail()? {
            filling.insert(name, content);
        }
        filling.untailed = filling.order.len();

        let buffers = Mutex::new(Buffers { filling, ..Buffers::default() });
        let shared = Arc::new(Shared {
            index,
            objects,
            runtime,
            buffers,
            wanted: Condvar::new(),
            written: Condvar::new(),
            arrived: Notify::new(),
        });
        let writer = std::thread::Builder::new().name("kfs-packs".into()).spawn({
            let shared = shared.clone();
            move || shared.write_until_stopped()
        });
        let writer = writer.map_err(|e| PackError::Index {
            tried: "start the writer of",
            path: dir.display().to_string(),
            reason: e.to_string(),
        })?;
        Ok(Packs { shared, writer: Some(writer) })
    }

    /// Keeps content; a name that is kept already changes nothing. Waits while
    /// both buffers are full.
    pub fn keep(&self, name: ChunkName, content: Bytes) -> Result<(), PackError> {
        let buffers = self.room()?;
        self.keep_in(buffers, name, content)
    }

    /// Notes that a partition of `chunks` has been ingested before `next_offset`,
    /// with what its last record held.
    pub fn ingest(
        &self,
        partition: u32,
        epoch: Epoch,
        next_offset: u64,
        chunk: Option<(ChunkName, Bytes)>,
    ) -> Result<(), PackError> {
        let mut buffers = self.room()?;
        buffers.filling.ingested.insert(partition, (epoch, next_offset));
        buffers.added += 1;
        match chunk {
            Some((name, content)) => self.keep_in(buffers, name, content),
            None => Ok(()),
        }
    }

    /// How far each partition of `chunks` had been ingested at the last flush.
    pub fn ingested(&self) -> Result<BTreeMap<u32, (Epoch, u64)>, PackError> {
        self.shared.index.ingested()
    }

    /// Waits until everything kept before the call is safe.
    pub fn flush(&self) -> Result<(), PackError> {
        let mut buffers = self.shared.lock();
        let wanted = buffers.added;
        buffers.flush_wanted = buffers.flush_wanted.max(wanted);
        self.shared.wanted.notify_one();
        loop {
            if let Some(error) = &buffers.failed {
                return Err(error.clone());
            }
            if buffers.safe >= wanted {
                return Ok(());
            }
            buffers = self.shared.written.wait(buffers).expect("the writer does not panic while holding the lock");
        }
    }

    /// The content of a chunk, checked against its hash; `None` if it is not here.
    pub async fn read(&self, name: &ChunkName) -> Result<Option<Bytes>, PackError> {
        // Buffers first: what leaves them is in the index before it does.
        if let Some(content) = self.shared.lock().find(name) {
            return Ok(Some(content));
        }
        let Some(Where { pack, offset, bytes }) = self.shared.index.find(name)? else { return Ok(None) };
        let range = u64::from(offset)..u64::from(offset) + u64::from(bytes);
        let content = self.shared.objects.get_range(&pack_path(pack), range).await.map_err(|e| PackError::Read {
            pack,
            objects: self.shared.objects.to_string(),
            reason: e.to_string(),
        })?;
        if *blake3::hash(&content).as_bytes() != name.hash {
            let objects = self.shared.objects.to_string();
            return Err(PackError::Damaged { pack, objects, name: *name });
        }
        Ok(Some(content))
    }

    /// As [`Packs::read`], but waits for a chunk that is not here yet; whoever
    /// calls bounds the time.
    pub async fn read_when_there(&self, name: &ChunkName) -> Result<Bytes, PackError> {
        loop {
            let arrival = self.shared.arrived.notified();
            tokio::pin!(arrival);
            // From here on an arrival is noticed, so none is missed while reading.
            arrival.as_mut().enable();
            if let Some(content) = self.read(name).await? {
                return Ok(content);
            }
            arrival.await;
        }
    }

    /// The lock, when there is room for one more record.
    fn room(&self) -> Result<MutexGuard<'_, Buffers>, PackError> {
        let mut buffers = self.shared.lock();
        loop {
            if let Some(error) = &buffers.failed {
                return Err(error.clone());
            }
            if buffers.filling.bytes < PACK_BYTES {
                return Ok(buffers);
            }
            self.shared.wanted.notify_one();
            buffers = self.shared.written.wait(buffers).expect("the writer does not panic while holding the lock");
        }
    }

    fn keep_in(&self, mut buffers: MutexGuard<'_, Buffers>, name: ChunkName, content: Bytes) -> Result<(), PackError> {
        if buffers.find(&name).is_some() || self.shared.index.find(&name)?.is_some() {
            return Ok(());
        }
        buffers.filling.insert(name, content);
        buffers.added += 1;
        if buffers.filling.bytes >= PACK_BYTES {
            self.shared.wanted.notify_one();
        }
        drop(buffers);
        self.shared.arrived.notify_waiters();
        Ok(())
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wanted.notify_one();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported on its own thread.
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().expect("nobody panics while holding the buffers")
    }

    fn write_until_stopped(&self) {
        let mut buffers = self.lock();
        loop {
            if buffers.stop || buffers.failed.is_some() {
                return;
            }
            let full = buffers.filling.bytes >= PACK_BYTES;
            if !full && buffers.flush_wanted <= buffers.safe {
                buffers = self.wanted.wait(buffers).expect("nobody panics while holding the buffers");
                continue;
            }

            let upto = buffers.added;
            let outcome = if buffers.filling.bytes >= TAIL_BYTES {
                let ingested = buffers.filling.ingested.clone();
                let full = Arc::new(std::mem::take(&mut buffers.filling));
                buffers.writing = Some(full.clone());
                drop(buffers);
                let outcome = self.write_pack(&full, &ingested);
                buffers = self.lock();
                buffers.writing = None;
                outcome
            } else {
                let chunks: Vec<_> = buffers.filling.untailed().collect();
                let ingested = buffers.filling.ingested.clone();
                drop(buffers);
                let outcome = self.index.add_tail(&chunks, &ingested);
                buffers = self.lock();
                // Only this thread takes from the buffer, so they are still its first ones.
                buffers.filling.untailed += chunks.len();
                outcome
            };
            match outcome {
                Ok(()) => buffers.safe = upto,
                Err(error) => {
                    tracing::error!("{error}; nothing is applied any more");
                    buffers.failed = Some(error);
                }
            }
            self.written.notify_all();
        }
    }

    fn write_pack(&self, buffer: &Buffer, ingested: &BTreeMap<u32, (Epoch, u64)>) -> Result<(), PackError> {
        let pack = self.index.next_pack()?;
        let mut places = Vec::with_capacity(buffer.order.len());
        let mut offset = 0u32;
        for name in &buffer.order {
            let bytes = buffer.chunks[name].len() as u32;
            places.push((*name, Where { pack, offset, bytes }));
            offset += bytes;
        }
        // Shares the buffer's memory; an object left by a crash before the index
        // was written has the same number and is replaced.
        let payload: PutPayload = buffer.order.iter().map(|name| buffer.chunks[name].clone()).collect();
        self.runtime.block_on(self.objects.put(&pack_path(pack), payload)).map_err(|e| PackError::Write {
            pack,
            objects: self.objects.to_string(),
            reason: e.to_string(),
        })?;
        let tailed: Vec<_> = buffer.order[..buffer.untailed].to_vec();
        self.index.add_pack(pack, &places, &tailed, ingested)
    }
}

impl Buffers {
    fn find(&self, name: &ChunkName) -> Option<Bytes> {
        let in_writing = || self.writing.as_ref().and_then(|buffer| buffer.chunks.get(name));
        self.filling.chunks.get(name).or_else(in_writing).cloned()
    }
}

impl Buffer {
    fn insert(&mut self, name: ChunkName, content: Bytes) {
        self.bytes += content.len();
        self.order.push(name);
        self.chunks.insert(name, content);
    }

    fn untailed(&self) -> impl Iterator<Item = (ChunkName, Bytes)> {
        self.order[self.untailed..].iter().map(|name| (*name, self.chunks[name].clone()))
    }
}

fn pack_path(pack: u64) -> ObjectPath {
    ObjectPath::from(format!("{pack:012}.pack"))
}

#[cfg(test)]
mod tests;
