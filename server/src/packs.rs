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

mod buffers;
mod index;

use crate::disk::{Disk, Wait};
use buffers::{Buffer, Buffers, Ingested, Job, What};
use bytes::Bytes;
use index::{Index, Where};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use proto::Epoch;
use proto::chunk::ChunkName;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// `None` where whoever wants something written writes it.
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    index: Index,
    objects: Arc<dyn ObjectStore>,
    wait: Wait,
    buffers: Mutex<Buffers>,
    stop: AtomicBool,
    /// For the writer: a buffer is full, a flush is wanted, or it should stop.
    wanted: Condvar,
    /// For those who wait for the writer.
    written: Condvar,
    /// For downloads that wait for a chunk.
    arrived: Notify,
}

impl Packs {
    /// Opens `dir/index.redb` and, unless `disk` says otherwise, packs in `dir`
    /// itself. `runtime` carries the object store's work; the writer is a thread,
    /// unless `disk` leaves all waiting to the caller.
    pub fn open(
        dir: &Path,
        cluster: [u8; 16],
        disk: &Disk,
        runtime: tokio::runtime::Handle,
    ) -> Result<Packs, PackError> {
        let index = Index::open(dir, cluster, disk)?;
        let objects = match &disk.objects {
            Some(objects) => objects.clone(),
            None => {
                let local = object_store::local::LocalFileSystem::new_with_prefix(dir).map_err(|e| {
                    PackError::Read { pack: 0, objects: dir.display().to_string(), reason: e.to_string() }
                })?;
                Arc::new(local.with_fsync(true))
            }
        };
        let buffers = Mutex::new(Buffers::new(index.tail()?));
        let shared = Arc::new(Shared {
            index,
            objects,
            wait: Wait::new(disk, runtime),
            buffers,
            stop: AtomicBool::new(false),
            wanted: Condvar::new(),
            written: Condvar::new(),
            arrived: Notify::new(),
        });
        if disk.is_inline() {
            return Ok(Packs { shared, writer: None });
        }
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
        buffers.note_ingested(partition, epoch, next_offset);
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
        let wanted = buffers.want_flush();
        loop {
            buffers.failure()?;
            if buffers.is_safe(wanted) {
                return Ok(());
            }
            buffers = self.write_some(buffers);
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
            buffers.failure()?;
            if !buffers.is_full() {
                return Ok(buffers);
            }
            buffers = self.write_some(buffers);
        }
    }

    fn keep_in(&self, mut buffers: MutexGuard<'_, Buffers>, name: ChunkName, content: Bytes) -> Result<(), PackError> {
        if buffers.find(&name).is_some() || self.shared.index.find(&name)?.is_some() {
            return Ok(());
        }
        buffers.add(name, content);
        if buffers.is_full() {
            self.shared.wanted.notify_one();
        }
        drop(buffers);
        self.shared.arrived.notify_waiters();
        Ok(())
    }

    /// Lets the writer come one job further, or does that job.
    fn write_some<'a>(&'a self, mut buffers: MutexGuard<'a, Buffers>) -> MutexGuard<'a, Buffers> {
        if self.writer.is_some() {
            self.shared.wanted.notify_one();
            return self.shared.written.wait(buffers).expect("the writer does not panic while holding the lock");
        }
        match buffers.next() {
            Some(job) => self.shared.write(buffers, job),
            None => buffers,
        }
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        {
            // Under the lock, so that the writer does not miss it between looking and waiting.
            let _buffers = self.shared.lock();
            self.shared.stop.store(true, Ordering::Relaxed);
        }
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
        while !self.stop.load(Ordering::Relaxed) {
            buffers = match buffers.next() {
                Some(job) => self.write(buffers, job),
                None => self.wanted.wait(buffers).expect("nobody panics while holding the buffers"),
            };
        }
    }

    /// Does one job without the lock, and says so to those who wait.
    fn write<'a>(&'a self, buffers: MutexGuard<'a, Buffers>, job: Job) -> MutexGuard<'a, Buffers> {
        drop(buffers);
        let outcome = match &job.what {
            What::Pack(buffer) => self.write_pack(buffer, &job.ingested),
            What::Tail(chunks) => self.index.add_tail(chunks, &job.ingested),
        };
        let mut buffers = self.lock();
        buffers.done(job, outcome);
        self.written.notify_all();
        buffers
    }

    fn write_pack(&self, buffer: &Buffer, ingested: &Ingested) -> Result<(), PackError> {
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
        self.wait.wait(self.objects.put(&pack_path(pack), payload)).map_err(|e| PackError::Write {
            pack,
            objects: self.objects.to_string(),
            reason: e.to_string(),
        })?;
        self.index.add_pack(pack, &places, buffer.tailed(), ingested)
    }
}

fn pack_path(pack: u64) -> ObjectPath {
    ObjectPath::from(format!("{pack:012}.pack"))
}

#[cfg(test)]
mod tests;
