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
//! * Memory: at most three buffers of [`PACK_BYTES`] and a record each. One is being
//!   written, uploads fill another one; then they wait for the writer, and what comes in
//!   requests has the third, so that a slow disk does not stop the loop at once.
//!
//! What nothing refers to any more is dropped from the index once a checkpoint is
//! past its freeing (`garbage.rs`), mostly dead packs are written anew
//! (`rewrite.rs`), and what stands there is read again now and then (`scrub.rs`).

mod buffers;
mod check;
mod garbage;
mod index;
mod rewrite;
mod scrub;
mod snapshot;
mod writer;

pub use buffers::Reached;
pub use check::{PacksReport, check};
pub use index::Cut;

use crate::disk::{Disk, Wait};
use buffers::{Buffers, Chore};
use bytes::Bytes;
use garbage::Covered;
use index::{Index, Where};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::chunk::ChunkName;
use proto::planted::{Bug, planted};
use proto::{Epoch, NamespaceId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// A buffer this full becomes a pack (`limits.rs`).
pub const PACK_BYTES: usize = 32 << 20;

/// A flush of fewer bytes goes into the index database until more has come (`limits.rs`).
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
    has_writer: bool,
    /// Freed before these, and since when a checkpoint is past them.
    covered: Mutex<Covered>,
    /// Chunks that were found damaged and are to be healed, and those that nobody could.
    damaged: Mutex<BTreeSet<ChunkName>>,
    given_up: Mutex<BTreeSet<ChunkName>>,
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
        let objects = objects_of(dir, disk)?;
        let buffers = Mutex::new(Buffers::new(index.tail()?, index.ingested()?));
        let shared = Arc::new(Shared {
            index,
            objects,
            wait: Wait::new(disk, runtime),
            buffers,
            stop: AtomicBool::new(false),
            has_writer: !disk.is_inline(),
            covered: Mutex::default(),
            damaged: Mutex::default(),
            given_up: Mutex::default(),
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

    /// Keeps content that has come in a request; a name that is kept already changes
    /// nothing. Waits while there is twice as much as would make a pack.
    pub fn keep(&self, name: ChunkName, content: Bytes) -> Result<(), PackError> {
        let mut buffers = self.room(Buffers::is_overfull)?;
        buffers.note_kept(&name);
        self.keep_in(buffers, name, content)
    }

    /// Notes how far a partition of `chunks` has been ingested, with what its last
    /// record held, and the namespace that it says it is for.
    pub fn ingest(
        &self,
        partition: u32,
        reached: Reached,
        chunk: Option<(NamespaceId, ChunkName, Bytes)>,
    ) -> Result<(), PackError> {
        let mut buffers = self.room(Buffers::is_full)?;
        buffers.note_ingested(partition, reached);
        match chunk {
            Some((namespace, name, content)) => {
                buffers.note_fresh(namespace, name);
                self.keep_in(buffers, name, content)?;
            }
            None => drop(buffers),
        }
        self.shared.arrived.notify_waiters();
        Ok(())
    }

    /// Whether a partition of `chunks` has been ingested before this offset.
    pub fn has_ingested(&self, partition: u32, epoch: Epoch, next_offset: u64) -> bool {
        self.shared.lock().has_ingested(partition, epoch, next_offset)
    }

    /// Waits until a partition of `chunks` has been ingested before this offset (`true`), or
    /// anything else has arrived; whoever calls bounds the time.
    pub async fn ingested_before(&self, partition: u32, epoch: Epoch, next_offset: u64) -> bool {
        let arrival = self.shared.arrived.notified();
        tokio::pin!(arrival);
        arrival.as_mut().enable();
        if !self.has_ingested(partition, epoch, next_offset) {
            arrival.await;
        }
        self.has_ingested(partition, epoch, next_offset)
    }

    /// How far each partition of `chunks` had been ingested at the last flush.
    pub fn ingested(&self) -> Result<BTreeMap<u32, Reached>, PackError> {
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
            buffers = self.shared.write_some(buffers);
        }
    }

    /// The content of a chunk, checked against its hash; `None` if it is not here.
    pub async fn read(&self, name: &ChunkName) -> Result<Option<Bytes>, PackError> {
        let mut tried = None;
        loop {
            // Buffers first: what leaves them is in the index before it does.
            if let Some(content) = self.shared.lock().find(name) {
                return Ok(Some(content));
            }
            let Some(place) = self.shared.index.find(name)? else { return Ok(None) };
            match self.shared.content(name, place).await {
                // Its pack may have been rewritten just now; then it stands elsewhere.
                Err(error) if tried == Some(place) => {
                    if let PackError::Damaged { .. } = error {
                        self.note_damaged(*name);
                    }
                    return Err(error);
                }
                Err(_) => tried = Some(place),
                Ok(content) => return Ok(Some(content)),
            }
        }
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
    fn room(&self, is_full: fn(&Buffers) -> bool) -> Result<MutexGuard<'_, Buffers>, PackError> {
        let mut buffers = self.shared.lock();
        loop {
            buffers.failure()?;
            if !is_full(&buffers) {
                return Ok(buffers);
            }
            buffers = self.shared.write_some(buffers);
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

    /// Lets the writer do a chore, and waits until it is done.
    fn want(&self, chore: Chore) -> Result<(), PackError> {
        let mut buffers = self.shared.lock();
        let wanted = buffers.want(chore);
        loop {
            buffers.failure()?;
            if buffers.is_done(wanted) {
                return Ok(());
            }
            buffers = self.shared.write_some(buffers);
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

    /// What stands at a place, if it has its name's hash.
    async fn content(&self, name: &ChunkName, place: Where) -> Result<Bytes, PackError> {
        let pack = place.pack;
        let content = self.objects.get_range(&pack_path(pack), place.range()).await.map_err(|e| PackError::Read {
            pack,
            objects: self.objects.to_string(),
            reason: e.to_string(),
        })?;
        self.whole(name, pack, content)
    }

    /// The same of many chunks of one pack, which is opened once.
    async fn contents(&self, pack: u64, held: &[(ChunkName, Where)]) -> Vec<Result<Bytes, PackError>> {
        let ranges: Vec<_> = held.iter().map(|(_, place)| place.range()).collect();
        match self.objects.get_ranges(&pack_path(pack), &ranges).await {
            Ok(all) => all.into_iter().zip(held).map(|(content, (name, _))| self.whole(name, pack, content)).collect(),
            // One of them cannot be read; which one is found by reading each.
            Err(_) => {
                let mut all = Vec::with_capacity(held.len());
                for (name, place) in held {
                    all.push(self.content(name, *place).await);
                }
                all
            }
        }
    }

    fn whole(&self, name: &ChunkName, pack: u64, content: Bytes) -> Result<Bytes, PackError> {
        if *blake3::hash(&content).as_bytes() == name.hash || planted(Bug::ServeDamaged) {
            return Ok(content);
        }
        Err(PackError::Damaged { pack, objects: self.objects.to_string(), name: *name })
    }
}

/// Where packs are.
fn objects_of(dir: &Path, disk: &Disk) -> Result<Arc<dyn ObjectStore>, PackError> {
    if let Some(objects) = &disk.objects {
        return Ok(objects.clone());
    }
    let local = object_store::local::LocalFileSystem::new_with_prefix(dir).map_err(|e| PackError::Read {
        pack: 0,
        objects: dir.display().to_string(),
        reason: e.to_string(),
    })?;
    Ok(Arc::new(local.with_fsync(true)))
}

fn pack_path(pack: u64) -> ObjectPath {
    ObjectPath::from(format!("{pack:012}.pack"))
}

#[cfg(test)]
mod tests;
