//! Packs on disk: kept, found again, damaged, foreign.

mod faults;
mod garbage;

use super::*;
use crate::disk::Databases;
use crate::disk::full::Full;
use proto::SessionId;
use proto::log::Topic;

const CLUSTER: [u8; 16] = [7; 16];

fn chunk(offset: u64, bytes: usize) -> (ChunkName, Bytes) {
    let content: Bytes = (0..bytes).map(|i| (i as u64 ^ offset) as u8).collect();
    let hash = *blake3::hash(&content).as_bytes();
    let at = (Topic::Chunks, Epoch(1), 3);
    (
        ChunkName { topic: at.0, epoch: at.1, partition: at.2, offset, index: 0, session: SessionId([1; 16]), hash },
        content,
    )
}

fn open(dir: &Path) -> Packs {
    Packs::open(dir, CLUSTER, &Disk::default(), tokio::runtime::Handle::current()).expect("opens")
}

/// Partition 3 is ingested up to there.
fn at(next_offset: u64) -> Reached {
    Reached { epoch: Epoch(1), next_offset, last: Some([next_offset as u8; 32]) }
}

/// As it is ingested.
fn up((name, content): &(ChunkName, Bytes)) -> (NamespaceId, ChunkName, Bytes) {
    (NamespaceId(3), *name, content.clone())
}

/// As in the simulator: nothing but the caller writes, and both disks are in memory.
fn inline() -> Disk {
    struct Memory;
    impl Databases for Memory {
        fn exists(&self, _: &Path) -> bool {
            true
        }

        fn open(&self, _: &Path, cache_bytes: usize) -> Result<redb::Database, redb::DatabaseError> {
            let backend = redb::backends::InMemoryBackend::new();
            redb::Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
        }
    }
    let objects = Arc::new(object_store::memory::InMemory::new());
    Disk { databases: Arc::new(Memory), objects: Some(objects), inline: true }
}

fn packs_in(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    names.filter(|name| name.to_string_lossy().ends_with(".pack")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_content_survives_and_unflushed_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (small, large, lost) = (chunk(1, 10), chunk(2, TAIL_BYTES), chunk(3, 10));
    let packs = open(dir.path());
    packs.ingest(3, at(2), Some(up(&small))).expect("kept");
    packs.flush().expect("flushed");
    assert_eq!(packs_in(dir.path()), 0, "little content waits in the index");
    packs.ingest(3, at(3), Some(up(&large))).expect("kept");
    packs.flush().expect("flushed");
    assert_eq!(packs_in(dir.path()), 1);
    packs.ingest(3, at(4), Some(up(&lost))).expect("kept");
    assert_eq!(packs.read(&lost.0).await.expect("reads"), Some(lost.1), "readable before it is flushed");
    drop(packs);

    let packs = open(dir.path());
    assert_eq!(packs.ingested().expect("reads"), BTreeMap::from([(3, at(3))]));
    assert_eq!(packs.read(&small.0).await.expect("reads"), Some(small.1));
    assert_eq!(packs.read(&large.0).await.expect("reads"), Some(large.1));
    assert_eq!(packs.read(&lost.0).await.expect("reads"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_survives_and_joins_a_pack_later() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (small, large) = (chunk(1, 10), chunk(2, TAIL_BYTES));
    let packs = open(dir.path());
    packs.keep(small.0, small.1.clone()).expect("kept");
    packs.flush().expect("flushed");
    drop(packs);

    let packs = open(dir.path());
    assert_eq!(packs.read(&small.0).await.expect("reads"), Some(small.1.clone()));
    packs.keep(small.0, small.1.clone()).expect("known already");
    packs.keep(large.0, large.1).expect("kept");
    packs.flush().expect("flushed");
    assert_eq!(packs.shared.index.tail().expect("reads"), []);
    assert_eq!(packs.read(&small.0).await.expect("reads"), Some(small.1));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_buffers_become_packs_by_themselves_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let bytes = 512 << 10;
    let count = (3 * PACK_BYTES / bytes) as u64;
    let hashes: Vec<_> = (0..count)
        .map(|offset| {
            let (name, content) = chunk(offset, bytes);
            packs.ingest(3, at(offset + 1), Some(up(&(name, content)))).expect("kept");
            let buffers = packs.shared.lock();
            assert!(buffers.filling_bytes() <= PACK_BYTES + bytes);
            name
        })
        .collect();
    packs.flush().expect("flushed");
    assert!(packs_in(dir.path()) >= 3);
    for name in hashes {
        assert!(packs.read(&name).await.expect("reads").is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_requests_does_not_wait_for_a_slow_disk_as_uploads_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let slow = Full::default();
    let packs = Packs::open(dir.path(), CLUSTER, &slow.disk(), tokio::runtime::Handle::current()).expect("opens");
    let packs = Arc::new(packs);
    // While a database makes its file larger nobody reads it.
    packs.ingest(3, at(1), Some(up(&chunk(0, TAIL_BYTES)))).expect("kept");
    packs.flush().expect("flushed");
    let stuck = slow.stick();
    // The writer takes the first of these, the other one fills the next buffer.
    for offset in 1..3 {
        packs.ingest(3, at(offset + 1), Some(up(&chunk(offset, PACK_BYTES)))).expect("kept");
        while offset == 1 && packs.shared.lock().is_full() {
            std::thread::yield_now();
        }
    }
    let uploads = packs.clone();
    let upload = std::thread::spawn(move || uploads.ingest(3, at(4), Some(up(&chunk(3, 10)))));
    for small in 100..200 {
        let (name, content) = chunk(small, 10);
        packs.keep(name, content).expect("kept");
    }
    assert!(!packs.has_ingested(3, Epoch(1), 4), "an upload waits");
    drop(stuck);
    upload.join().expect("no panic").expect("kept");
    packs.flush().expect("flushed");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_noticed_when_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (name, content) = chunk(1, TAIL_BYTES);
    let packs = open(dir.path());
    packs.keep(name, content).expect("kept");
    packs.flush().expect("flushed");
    let path = dir.path().join(pack_path(1).as_ref());
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    assert!(matches!(packs.read(&name).await, Err(PackError::Damaged { pack: 1, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_waits_for_a_chunk_to_arrive() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = Arc::new(open(dir.path()));
    let (name, content) = chunk(1, 10);
    let waiting = tokio::spawn({
        let packs = packs.clone();
        async move { packs.read_when_there(&name).await }
    });
    tokio::task::yield_now().await;
    packs.keep(name, content.clone()).expect("kept");
    assert_eq!(waiting.await.expect("runs").expect("reads"), content);
}

#[tokio::test]
async fn without_a_writer_the_caller_writes() {
    let disk = inline();
    let packs = Packs::open(Path::new("nowhere"), CLUSTER, &disk, tokio::runtime::Handle::current()).expect("opens");
    assert!(packs.writer.is_none());
    let bytes = 512 << 10;
    let count = (2 * PACK_BYTES / bytes) as u64;
    for offset in 0..count {
        packs.ingest(3, at(offset + 1), Some(up(&chunk(offset, bytes)))).expect("kept");
    }
    packs.keep(chunk(count, 10).0, chunk(count, 10).1).expect("kept");
    packs.flush().expect("flushed");
    assert_eq!(packs.ingested().expect("reads"), BTreeMap::from([(3, at(count))]));
    for offset in 0..count {
        let (name, content) = chunk(offset, bytes);
        assert_eq!(packs.read(&name).await.expect("reads"), Some(content));
    }
}
