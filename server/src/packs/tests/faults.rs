//! Disks that are full: nothing counts as safe that could not be written, and after a
//! new start it goes on.

use super::*;
use crate::disk::full::Full;

fn up_to(packs: &Packs, from: u64, to: u64, bytes: usize) -> Result<(), PackError> {
    for offset in from..to {
        packs.ingest(3, at(offset + 1), Some(up(&chunk(offset, bytes))))?;
    }
    packs.flush()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_cannot_be_written_stop_the_packs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = dir.path().join("objects");
    std::fs::create_dir(&place).expect("a directory");
    let objects = object_store::local::LocalFileSystem::new_with_prefix(&place).expect("a store");
    let disk = Disk { objects: Some(Arc::new(objects)), ..Disk::default() };
    let open = || Packs::open(dir.path(), CLUSTER, &disk, tokio::runtime::Handle::current()).expect("opens");

    let packs = open();
    up_to(&packs, 0, 2, TAIL_BYTES).expect("kept");
    // As if the disk were gone: also root cannot write below a file.
    std::fs::rename(&place, dir.path().join("away")).expect("renames");
    std::fs::write(&place, "").expect("writes");
    assert!(matches!(up_to(&packs, 2, 4, TAIL_BYTES), Err(PackError::Write { .. })));
    assert!(packs.keep(chunk(9, 10).0, chunk(9, 10).1).is_err(), "nothing is taken any more");
    drop(packs);

    std::fs::remove_file(&place).expect("removes");
    std::fs::rename(dir.path().join("away"), &place).expect("renames");
    let packs = open();
    assert_eq!(packs.ingested().expect("reads")[&3], at(2));
    up_to(&packs, 2, 4, TAIL_BYTES).expect("kept");
    drop(packs);
    let names: Vec<_> = (0..4).map(|offset| chunk(offset, TAIL_BYTES).0).collect();
    let report = check(dir.path(), CLUSTER, &disk, &names).expect("checks");
    assert_eq!((report.violations.told, report.chunks), (Vec::new(), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_written_stops_the_packs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let full = Full::default();
    let open = || Packs::open(dir.path(), CLUSTER, &full.disk(), tokio::runtime::Handle::current()).expect("opens");
    let mut packs = open();
    up_to(&packs, 0, 2, 100).expect("kept");
    // Little content goes into the index, much into a pack that the index must know of.
    for bytes in [100, TAIL_BYTES] {
        full.set(true);
        assert!(matches!(up_to(&packs, 2, 4, bytes), Err(PackError::Index { .. })));
        assert!(packs.flush().is_err());
        drop(packs);
        full.set(false);
        packs = open();
        assert_eq!(packs.ingested().expect("reads")[&3], at(2));
        assert_eq!(packs.read(&chunk(2, bytes).0).await.expect("reads"), None);
    }
    up_to(&packs, 2, 4, TAIL_BYTES).expect("kept");
    drop(packs);
    let names: Vec<_> = (0..4).map(|offset| chunk(offset, if offset < 2 { 100 } else { TAIL_BYTES }).0).collect();
    let report = check(dir.path(), CLUSTER, &Disk::default(), &names).expect("checks");
    assert_eq!(report.violations.told, Vec::<String>::new());
}
