//! Plain content of chunks, kept by name. A chunk never changes, so nothing here
//! can be wrong; only the map that leads here needs a promise. Bounded in bytes.

use super::Fs;
use super::bytes_lru::BytesLru;
use super::extents::Extent;
use crate::client::{CallError, Patience, Reader};
use crate::error::FsError;
use bytes::Bytes;
use proto::chunk::{ChunkName, WrappedKey};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// Below this, opening content costs less than handing it to another thread.
const OPEN_HERE_BYTES: usize = 16 * 1024;

/// What a cached block takes beside its content, in bytes.
const BLOCK_BYTES: usize = 160;

pub struct Blocks {
    inner: Mutex<Inner>,
}

struct Inner {
    ready: BytesLru<ChunkName, Bytes>,
    /// Being fetched: whoever wants the same waits for the same.
    loading: HashMap<ChunkName, Arc<OnceCell<Bytes>>>,
}

/// Of content that need not be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// In memory.
    Ready,
    /// Being fetched by somebody, perhaps by one who does not wait for it.
    Fetched,
}

impl Blocks {
    pub fn new(limit_bytes: usize) -> Blocks {
        Blocks { inner: Mutex::new(Inner { ready: BytesLru::new(limit_bytes), loading: HashMap::new() }) }
    }

    pub fn get(&self, name: &ChunkName) -> Option<Bytes> {
        self.lock().ready.get(name).cloned()
    }

    pub fn contains(&self, name: &ChunkName) -> bool {
        self.lock().ready.contains(name)
    }

    /// Whether it is in memory or being fetched, and which of these.
    pub fn state(&self, name: &ChunkName) -> Option<BlockState> {
        let inner = self.lock();
        let is_fetched = inner.loading.contains_key(name).then_some(BlockState::Fetched);
        inner.ready.contains(name).then_some(BlockState::Ready).or(is_fetched)
    }

    pub fn insert(&self, name: ChunkName, plain: Bytes) {
        let bytes = plain.len() + BLOCK_BYTES;
        self.lock().ready.insert(name, plain, bytes);
    }

    /// How many bytes fit.
    pub fn limit(&self) -> usize {
        self.lock().ready.limit()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic cannot leave a block that is not its name's.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loading(&self, name: &ChunkName) -> Arc<OnceCell<Bytes>> {
        self.lock().loading.entry(*name).or_default().clone()
    }

    /// The last one who waited for the cell takes it away.
    fn loaded(&self, name: &ChunkName, cell: Arc<OnceCell<Bytes>>) {
        let mut inner = self.lock();
        if let Some(bytes) = cell.get() {
            inner.ready.insert(*name, bytes.clone(), bytes.len() + BLOCK_BYTES);
        }
        drop(cell);
        if inner.loading.get(name).is_some_and(|c| c.initialized() || Arc::strong_count(c) == 1) {
            inner.loading.remove(name);
        }
    }
}

/// Gives the cell back even when its waiter is dropped.
struct Waiting<'a> {
    blocks: &'a Blocks,
    name: ChunkName,
    cell: Option<Arc<OnceCell<Bytes>>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.blocks.loaded(&self.name, cell);
        }
    }
}

impl Fs {
    /// The plain content of an extent's chunk, from memory, from this machine's disk or from the server.
    pub(super) async fn block(
        &self,
        extent: &Extent,
        reader: Option<Reader>,
        patience: &Patience,
    ) -> Result<Bytes, FsError> {
        self.block_from(extent, self.sealed(&extent.chunk, reader, patience), patience).await
    }

    async fn sealed(&self, name: &ChunkName, reader: Option<Reader>, patience: &Patience) -> Result<Bytes, CallError> {
        if let Some(tier) = &self.inner.config.tier
            && let Some(sealed) = tier.get(name).await
        {
            return Ok(sealed);
        }
        self.kept(name, self.inner.client.download(name, reader, patience)).await
    }

    /// What is downloaded, which is then kept on this machine's disk.
    pub(super) async fn kept(
        &self,
        name: &ChunkName,
        download: impl Future<Output = Result<Bytes, CallError>>,
    ) -> Result<Bytes, CallError> {
        let sealed = download.await?;
        if let Some(tier) = &self.inner.config.tier {
            tier.put(name, &sealed);
        }
        Ok(sealed)
    }

    /// Likewise, from a download that may have begun.
    pub(super) async fn block_from(
        &self,
        extent: &Extent,
        download: impl Future<Output = Result<Bytes, CallError>>,
        patience: &Patience,
    ) -> Result<Bytes, FsError> {
        let blocks = &self.inner.blocks;
        if let Some(plain) = blocks.get(&extent.chunk) {
            return Ok(plain);
        }
        let waiting = Waiting { blocks, name: extent.chunk, cell: Some(blocks.loading(&extent.chunk)) };
        let cell = waiting.cell.as_ref().expect("taken only when dropped");
        let load =
            cell.get_or_try_init(|| async { self.open_block(&extent.chunk, &extent.key, download.await?).await });
        let moved = || self.inner.client.downloaded_chunks();
        Ok(patience.wait_for_content(load, moved).await??.clone())
    }

    /// Opens sealed content, on a worker thread unless it is small.
    pub(super) async fn open_block(&self, name: &ChunkName, key: &WrappedKey, sealed: Bytes) -> Result<Bytes, FsError> {
        let fail = |reason: String| FsError::Sealed { what: "content", reason };
        let opened = match sealed.len() <= OPEN_HERE_BYTES {
            true => self.inner.client.keys().open_content(key, &name.hash, &sealed),
            false => {
                let (client, key, hash) = (self.inner.client.clone(), key.clone(), name.hash);
                let open = move || client.keys().open_content(&key, &hash, &sealed);
                proto::task::offload(open).await.map_err(|e| fail(e.to_string()))?
            }
        };
        opened.map_err(|e| fail(e.to_string()))
    }
}
