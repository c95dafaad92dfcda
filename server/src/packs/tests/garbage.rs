//! What is freed goes, in its time and not before, whatever crashes in between; what
//! is left is written anew, read again, and healed.
#![allow(clippy::disallowed_methods)] // Moments are given to what is tested.

use super::*;
use crate::limits::limits;
use proto::LogTime;
use tokio::time::Instant;

const MIB: usize = 1 << 20;

fn cut(upto: u64) -> Cut {
    Cut { partition: 3, epoch: Epoch(1), upto }
}

/// Eight chunks of 4 MiB in one pack.
fn filled(packs: &Packs) -> Vec<(ChunkName, Bytes)> {
    let chunks: Vec<_> = (0..8).map(|offset| chunk(offset, 4 * MIB)).collect();
    for (offset, chunk) in (0..).zip(&chunks) {
        packs.ingest(3, at(offset + 1), Some(up(chunk))).expect("kept");
    }
    packs.flush().expect("flushed");
    chunks
}

/// Frees chunks, with a checkpoint past it, and drops what is due after the grace.
fn free(packs: &Packs, chunks: &[(ChunkName, Bytes)], upto: u64) {
    for (name, _) in chunks {
        packs.freed(3, *name);
    }
    packs.cut(cut(upto));
    packs.flush().expect("flushed");
    let now = Instant::now();
    packs.covered(cut(upto), now);
    assert_eq!(packs.collect(1000, now).expect("collects"), 0, "readers have their time");
    assert_eq!(packs.collect(1000, now + limits().grace).expect("collects"), chunks.len());
}

fn report(dir: &Path, referred: &[ChunkName]) -> PacksReport {
    let mut referred = referred.to_vec();
    referred.sort_unstable();
    check(dir, CLUSTER, &Disk::default(), &referred).expect("checks")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_freed_goes_once_a_checkpoint_is_past_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let chunks = filled(&packs);
    let (small, late) = (chunk(100, 10), chunk(101, 20));
    packs.keep(small.0, small.1.clone()).expect("kept");
    packs.flush().expect("flushed");
    packs.keep(late.0, late.1.clone()).expect("kept");

    // Without a checkpoint nothing goes, however long it takes.
    packs.freed(3, chunks[0].0);
    packs.cut(cut(30));
    packs.flush().expect("flushed");
    assert_eq!(packs.collect(1000, Instant::now() + 2 * limits().grace).expect("collects"), 0);
    free(&packs, &[chunks[1].clone(), small.clone(), late.clone()], 40);
    assert_eq!(packs.read(&small.0).await.expect("reads"), None);
    assert_eq!(packs.read(&late.0).await.expect("reads"), None);
    assert_eq!(packs.read(&chunks[1].0).await.expect("reads"), None);
    assert_eq!(packs.read(&chunks[2].0).await.expect("reads"), Some(chunks[2].1.clone()));
    packs.flush().expect("flushed");
    drop(packs);

    let kept: Vec<_> = chunks.iter().map(|(name, _)| *name).filter(|name| *name != chunks[1].0).collect();
    let report = report(dir.path(), &kept);
    assert_eq!(report.violations.told, Vec::<String>::new());
    assert_eq!((report.packs, report.chunks, report.tail_chunks, report.orphans), (1, 7, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_before_the_checkpoint_forgets_the_freeing_and_one_after_it_does_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let chunks = filled(&packs);
    packs.freed(3, chunks[0].0);
    packs.cut(cut(40));
    packs.freed(3, chunks[1].0);
    packs.cut(cut(50));
    packs.flush().expect("flushed");
    drop(packs);

    // The checkpoint up to 40 is there, the one up to 50 never came to be.
    let packs = open(dir.path());
    let now = Instant::now();
    packs.recover(&BTreeMap::from([(3, (Epoch(1), 40))]), now).expect("recovers");
    assert_eq!(packs.collect(1000, now + limits().grace).expect("collects"), 1);
    assert_eq!(packs.read(&chunks[0].0).await.expect("reads"), None);
    assert_eq!(packs.read(&chunks[1].0).await.expect("reads"), Some(chunks[1].1.clone()));
    // The replay frees it again.
    free(&packs, &chunks[1..2], 50);
    assert_eq!(packs.read(&chunks[1].0).await.expect("reads"), None);
}

/// As it came in a request.
fn inline(partition: u32, epoch: u32, offset: u64) -> (ChunkName, Bytes) {
    let (name, content) = chunk(offset, 100);
    (ChunkName { topic: Topic::Requests, epoch: Epoch(epoch), partition, ..name }, content)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_in_requests_that_the_log_has_lost_goes_after_the_replay() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let covered = [inline(3, 1, 39), inline(2, 1, 70), inline(4, 1, 50)];
    let ahead = [inline(3, 1, 40), inline(3, 1, 41), inline(3, 2, 5), inline(3, 4, 1), inline(5, 1, 0)];
    for (name, content) in covered.iter().chain(&ahead) {
        packs.keep(*name, content.clone()).expect("kept");
    }
    packs.flush().expect("flushed");
    drop(packs);

    let packs = open(dir.path());
    let now = Instant::now();
    let checkpoints = BTreeMap::from([(2, (Epoch(1), 71)), (3, (Epoch(1), 40)), (4, (Epoch(1), 51))]);
    packs.recover(&checkpoints, now).expect("recovers");
    // Of partition 3 the log has one of them still, and another record where a lost one was.
    packs.keep(ahead[0].0, ahead[0].1.clone()).expect("kept already");
    let other = (ChunkName { session: SessionId([2; 16]), ..ahead[1].0 }, ahead[1].1.clone());
    packs.keep(other.0, other.1.clone()).expect("kept");
    for partition in 2..=4 {
        packs.replayed(partition);
        packs.cut(Cut { partition, epoch: Epoch(5), upto: 60 });
        packs.covered(Cut { partition, epoch: Epoch(5), upto: 60 }, now);
    }
    packs.flush().expect("flushed");
    assert_eq!(packs.collect(1000, now + limits().grace).expect("collects"), 3);
    for (name, content) in covered.iter().chain([&ahead[0], &other, &ahead[4]]) {
        assert_eq!(packs.read(name).await.expect("reads"), Some(content.clone()), "{name}");
    }
    for (name, _) in &ahead[1..4] {
        assert_eq!(packs.read(name).await.expect("reads"), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mostly_dead_packs_are_written_anew() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let chunks = filled(&packs);
    free(&packs, &chunks[..4], 40);
    assert!(packs.sparse().await.expect("reads").is_none(), "half of it is used");
    free(&packs, &chunks[4..6], 50);
    let sparse = packs.sparse().await.expect("reads").expect("it is mostly dead");
    // Dropped after it was read: it stays dropped.
    free(&packs, &chunks[6..7], 60);
    let rewritten = packs.rewrite(sparse).expect("rewrites");
    assert_eq!((rewritten.packs, rewritten.bytes), (1, 8 * MIB as u64));
    assert_eq!(packs_in(dir.path()), 1);
    assert!(!dir.path().join(pack_path(1).as_ref()).exists());
    assert_eq!(packs.read(&chunks[7].0).await.expect("reads"), Some(chunks[7].1.clone()));
    assert_eq!(packs.read(&chunks[6].0).await.expect("reads"), None);
    drop(packs);
    assert_eq!(report(dir.path(), &[chunks[7].0]).violations.told, Vec::<String>::new());

    // One without anything goes without being read.
    let packs = open(dir.path());
    free(&packs, &chunks[7..], 70);
    let sparse = packs.sparse().await.expect("reads").expect("it is dead");
    assert_eq!(packs.rewrite(sparse).expect("rewrites").bytes, 0);
    assert_eq!(packs_in(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_finds_what_is_rewritten_under_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = Arc::new(open(dir.path()));
    let chunks = filled(&packs);
    free(&packs, &chunks[..7], 40);
    let reading = tokio::spawn({
        let (packs, (name, content)) = (packs.clone(), chunks[7].clone());
        async move {
            for _ in 0..50 {
                assert_eq!(packs.read(&name).await.expect("reads"), Some(content.clone()));
            }
        }
    });
    // Its only chunk moves on as soon as the rest of the pack is dead again.
    let sparse = packs.sparse().await.expect("reads").expect("it is mostly dead");
    packs.rewrite(sparse).expect("rewrites");
    reading.await.expect("reads all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_finds_damage_and_the_same_content_heals_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let chunks = filled(&packs);
    let path = dir.path().join(pack_path(1).as_ref());
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[9 * MIB] ^= 1;
    std::fs::write(&path, bytes).expect("writes");

    let (mut damaged, mut chunks_read, mut steps) = (0, 0, 0);
    loop {
        let scrubbed = packs.scrub(5 * MIB as u64).await.expect("reads");
        (damaged, chunks_read, steps) = (damaged + scrubbed.damaged, chunks_read + scrubbed.chunks, steps + 1);
        if scrubbed.end {
            break;
        }
    }
    assert_eq!((damaged, chunks_read, steps), (1, 8, 5));
    assert_eq!(packs.take_damaged(), [chunks[2].0]);
    assert!(matches!(packs.read(&chunks[2].0).await, Err(PackError::Damaged { pack: 1, .. })));
    assert_eq!(packs.take_damaged(), [chunks[2].0], "a reader tells of it too");

    packs.heal(chunks[2].0, Bytes::from_static(b"something else")).expect("no trouble");
    assert!(packs.read(&chunks[2].0).await.is_err());
    packs.heal(chunks[2].0, chunks[2].1.clone()).expect("keeps it anew");
    assert_eq!(packs.read(&chunks[2].0).await.expect("reads"), Some(chunks[2].1.clone()));
    packs.flush().expect("flushed");
    drop(packs);
    let names: Vec<_> = chunks.iter().map(|(name, _)| *name).collect();
    let report = report(dir.path(), &names);
    assert_eq!(report.violations.told, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_what_is_missing_damaged_and_in_nobodys_use() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let chunks = filled(&packs);
    drop(packs);
    let names: Vec<_> = chunks.iter().map(|(name, _)| *name).collect();
    let (absent, to_come) = (chunk(5, 30).0, chunk(8, 30).0);
    let report_of = |referred: &[ChunkName]| report(dir.path(), referred);
    let found = report_of(&names[2..]);
    assert_eq!((found.violations.count, found.orphans, found.orphan_bytes), (0, 2, 8 * MIB as u64));
    let found = report_of(&[&names[..], &[absent, to_come]].concat());
    assert_eq!((found.violations.count, found.awaited), (1, 1));
    assert!(found.violations.told[0].contains("is not kept"), "{found:?}");

    let path = dir.path().join(pack_path(1).as_ref());
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes.truncate(30 * MIB);
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    assert_eq!(report_of(&names).violations.count, 2);
    std::fs::remove_file(&path).expect("removes");
    let found = report_of(&names);
    assert!(found.violations.told[0].contains("cannot be read"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_listed_by_session_until_they_are_settled() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let packs = open(dir.path());
    let mut by_session = BTreeMap::new();
    for offset in 0..6 {
        let (mut name, content) = chunk(offset, 10);
        name.session = SessionId([offset as u8 % 3; 16]);
        by_session.entry(name.session).or_insert_with(Vec::new).push((NamespaceId(3), name));
        packs.ingest(3, at(offset + 1), Some((NamespaceId(3), name, content))).expect("kept");
    }
    packs.flush().expect("flushed");
    let ids: Vec<_> = by_session.keys().copied().collect();
    assert_eq!(packs.fresh_of(ids[1], 10).expect("reads"), by_session[&ids[1]]);
    packs.note_over(vec![(ids[1], LogTime(7))], Vec::new(), vec![by_session[&ids[0]][0].1]).expect("noted");
    let listed = packs.fresh_sessions(None, 2).expect("reads");
    assert_eq!(listed, [(ids[0], 3, None), (ids[1], 3, Some(LogTime(7)))]);
    assert_eq!(packs.fresh_sessions(Some(ids[1]), 2).expect("reads"), [(ids[2], 3, None)]);
    assert_eq!(packs.fresh_of(ids[0], 10).expect("reads"), by_session[&ids[0]][1..]);
    // What is dropped is not listed any more.
    let name = by_session[&ids[0]][1].1;
    free(&packs, &[(name, Bytes::new())], 9);
    assert_eq!(packs.fresh_sessions(None, 2).expect("reads")[0].0, ids[1]);
}
