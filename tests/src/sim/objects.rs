//! Packs of a simulated server: objects in memory that are whole or not there, on a
//! disk that can be full or failing, and whose bits flip while they lie there.

use super::disk::Trouble;
use super::rng::Rng;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::sync::Arc;

#[derive(Debug)]
pub struct SimObjects {
    inner: InMemory,
    trouble: Trouble,
}

impl SimObjects {
    pub fn new(trouble: Trouble) -> SimObjects {
        SimObjects { inner: InMemory::new(), trouble }
    }

    /// The same objects on another disk.
    pub fn copy(&self, trouble: Trouble) -> SimObjects {
        SimObjects { inner: self.inner.fork(), trouble }
    }

    /// Flips a bit of some object. Says whether there was any.
    pub fn flip(&self, rng: &mut Rng) -> bool {
        let mut all: Vec<ObjectMeta> = now(self.inner.list(None).filter_map(async |found| found.ok()).collect());
        all.retain(|found| found.size > 0);
        all.sort_by(|one, other| one.location.cmp(&other.location));
        if all.is_empty() {
            return false;
        }
        let place = &rng.pick(&all).location;
        let content: Bytes = now(async { self.inner.get(place).await?.bytes().await }).expect("it is listed");
        let mut content = content.to_vec();
        let at = rng.below(content.len() as u64) as usize;
        content[at] ^= 1 << rng.below(8);
        now(self.inner.put(place, content.into())).expect("memory can be written");
        true
    }
}

/// Objects in memory answer at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}

impl std::fmt::Display for SimObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("simulated objects")
    }
}

#[async_trait]
impl ObjectStore for SimObjects {
    async fn put_opts(&self, place: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.trouble.room().map_err(failed)?;
        self.inner.put_opts(place, payload, options).await
    }

    async fn put_multipart_opts(&self, place: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.trouble.room().map_err(failed)?;
        self.inner.put_multipart_opts(place, options).await
    }

    async fn get_opts(&self, place: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(place, options).await
    }

    fn delete_stream(&self, places: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(places)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.trouble.room().map_err(failed)?;
        self.inner.copy_opts(from, to, options).await
    }
}

fn failed(error: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "simulated objects", source: Box::new(error) }
}

/// What a server's configuration takes.
pub fn shared(objects: &Arc<SimObjects>) -> Arc<dyn ObjectStore> {
    objects.clone()
}
