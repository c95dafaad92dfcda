//! How many requests, reads and chunks everyday work costs: the cheapest round trip is the one that is not made.

use crate::place::{ME, Place};
use mount::client::Patience;
use mount::fs::{CreateHow, DirEntry, Fs, NewNode, ROOT};
use proto::log::Topic;
use proto::message::{FileKind, Refusal};
use std::time::{Duration, Instant};

/// Of a file as large as the goals speak of, a quarter: this also runs in a debug build.
const LARGE: u64 = 64 << 20;
const CHUNK: u64 = 512 << 10;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

/// What work cost: requests, of which several may share a record, records that ask for content, uploaded chunks.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    requests: u64,
    reads: u64,
    chunks: u64,
}

const NOTHING: Cost = Cost { requests: 0, reads: 0, chunks: 0 };

async fn cost<T>(fs: &Fs, work: impl Future<Output = T>) -> (T, Cost) {
    let before = fs.client().status().counters;
    let done = work.await;
    let after = fs.client().status().counters;
    let cost = Cost {
        requests: after.requests - before.requests,
        reads: after.reads - before.reads,
        chunks: after.chunks_uploaded - before.chunks_uploaded,
    };
    (done, cost)
}

/// What is known and promised costs nothing. Where this process gets no time for 8 s promises lapse, and the next
/// look renews them.
async fn costs_nothing(fs: &Fs, work: impl AsyncFn()) {
    for _ in 0..10 {
        if cost(fs, work()).await.1 == NOTHING {
            return;
        }
    }
    panic!("it costs something each time");
}

/// Makes so many small files, each with its name as its content.
async fn make_small(maker: &Fs, dir: u64, count: usize) {
    make_files(maker, dir, count, |name| name.as_bytes().to_vec()).await;
}

async fn make_files(maker: &Fs, dir: u64, count: usize, content: impl Fn(&str) -> Vec<u8>) {
    for number in 0..count {
        let (name, how) = (format!("small {number}"), CreateHow::default());
        let (_, opened) = maker.create(ME, dir, name.as_bytes(), 0o644, how, &patience()).await.expect("makes");
        maker.write(opened.handle, 0, &content(&name), &patience()).await.expect("writes");
        maker.flush(opened.handle, &patience()).await.expect("closes");
        maker.release(opened.handle).expect("closes");
    }
}

/// All entries of a directory, as a listing brings them.
async fn entries(fs: &Fs, dir: u64) -> Vec<DirEntry> {
    let handle = fs.opendir(dir);
    let (mut all, mut offset) = (Vec::new(), 0);
    loop {
        let entries = fs.readdir(handle, offset, true, &patience()).await.expect("lists");
        let Some(last) = entries.last() else { break };
        offset = last.offset;
        all.extend(entries.into_iter().filter(|entry| !matches!(&entry.name[..], b"." | b"..")));
    }
    fs.releasedir(handle).expect("it is open");
    all
}

/// What `ls -l` does.
async fn list(fs: &Fs, dir: u64) -> usize {
    let entries = entries(fs, dir).await;
    for entry in &entries {
        fs.getattr(entry.ino, &patience()).await.expect("is there");
    }
    entries.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_costs_a_request_for_each_thousand_names_and_nothing_the_second_time() {
    const NAMES: u64 = 2500;
    let place = Place::in_memory().await;
    let maker = place.fs().await;
    let dir = maker.mkdir(ME, ROOT, b"dir", 0o755, &patience()).await.expect("makes").ino;
    let made: Vec<_> = (0..NAMES)
        .map(|number| {
            let fs = maker.clone();
            let name = format!("file {number}");
            tokio::spawn(async move {
                let how = CreateHow::default();
                let (_, opened) = fs.create(ME, dir, name.as_bytes(), 0o644, how, &patience()).await.expect("makes");
                fs.release(opened.handle).expect("closes");
            })
        })
        .collect();
    for made in made {
        made.await.expect("makes");
    }

    let fs = place.fs().await;
    let (count, first) = cost(&fs, list(&fs, dir)).await;
    assert_eq!(count as u64, NAMES);
    assert!(first.requests <= 1 + NAMES.div_ceil(1000), "{first:?}");
    costs_nothing(&fs, async || assert_eq!(list(&fs, dir).await as u64, NAMES)).await;
    costs_nothing(&fs, async || {
        for number in 0..NAMES {
            let name = format!("file {number}");
            fs.lookup(dir, name.as_bytes(), &patience()).await.expect("is there");
            let absent = fs.lookup(dir, format!("{name}~").as_bytes(), &patience()).await;
            assert!(absent.expect_err("is not").is(Refusal::NotFound));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_costs_little_beside_its_chunks() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let data: Vec<u8> = (0..CHUNK).map(|at| (at % 251) as u8 ^ (at >> 11) as u8).collect();
    let written = async {
        let how = CreateHow::default();
        let (stat, opened) = fs.create(ME, ROOT, b"large", 0o644, how, &patience()).await.expect("makes");
        for offset in (0..LARGE).step_by(CHUNK as usize) {
            fs.write(opened.handle, offset, &data, &patience()).await.expect("writes");
        }
        fs.fsync(opened.handle, &patience()).await.expect("syncs");
        fs.flush(opened.handle, &patience()).await.expect("closes");
        fs.release(opened.handle).expect("closes");
        stat.ino
    };
    let begun = Instant::now();
    let (ino, cost_of_writing) = cost(&fs, written).await;
    assert_eq!(cost_of_writing.chunks, LARGE / CHUNK);
    // 40 for 256 MiB: one for each 8 MiB, and what a slow moment sends earlier: nothing lies for longer than half a second.
    let late = begun.elapsed().as_millis() as u64 / 500;
    assert!(cost_of_writing.requests <= 8 + LARGE / (8 << 20) + late, "{cost_of_writing:?}, {late}");

    let read = async |fs: &Fs| {
        let opened = fs.open(ino, false, &patience()).await.expect("opens");
        let mut offset = 0;
        while offset < LARGE {
            let read = fs.read(opened.handle, offset, 128 << 10, &patience()).await.expect("reads");
            assert!(read[..] == data[(offset % CHUNK) as usize..][..read.len()], "at {offset}");
            offset += read.len() as u64;
        }
        fs.release(opened.handle).expect("closes");
    };
    let cold = place.fs().await;
    let begun = Instant::now();
    let (_, cost_of_reading) = cost(&cold, read(&cold)).await;
    // Its map is asked for too, which is one request while that is promised. What takes long to come, as on a slow link, is
    // asked for in smaller parts, and so are the first chunks, until it is known that they do not: for 256 MiB that is 54, fewer
    // than one for each 4 MiB.
    let late = begun.elapsed().as_millis() as u64 / 100;
    assert!(cost_of_reading.reads <= 12 + LARGE / (6 << 20) + late, "{cost_of_reading:?}, {late}");
    costs_nothing(&cold, async || read(&cold).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_files_are_there_before_they_are_opened() {
    const NAMES: usize = 60;
    let place = Place::in_memory().await;
    let maker = place.fs().await;
    make_small(&maker, ROOT, NAMES).await;
    let fs = place.fs().await;
    let handle = fs.opendir(ROOT);
    let mut entries = Vec::new();
    while entries.len() < NAMES + 2 {
        let offset = entries.last().map_or(0, |entry: &DirEntry| entry.offset);
        entries.extend(fs.readdir(handle, offset, true, &patience()).await.expect("lists"));
    }
    entries.retain(|entry| entry.name.starts_with(b"small"));
    let read = async || {
        for entry in &entries {
            let opened = fs.open(entry.ino, false, &patience()).await.expect("opens");
            let content = fs.read(opened.handle, 0, 1000, &patience()).await.expect("reads");
            assert_eq!(content[..], entry.name[..]);
            fs.release(opened.handle).expect("closes");
        }
    };
    let (_, first) = cost(&fs, read()).await;
    assert!(first.requests <= NAMES as u64 && first.reads == 0, "{first:?}");
    costs_nothing(&fs, read).await;
    // Another mount has read three of them: the others follow by themselves.
    let other = place.fs().await;
    let handle = other.opendir(ROOT);
    while !other.readdir(handle, 0, true, &patience()).await.expect("lists").iter().any(|entry| entry.offset > 2) {}
    for entry in &entries[..3] {
        let opened = other.open(entry.ino, false, &patience()).await.expect("opens");
        other.release(opened.handle).expect("closes");
    }
    let is_ahead = async {
        loop {
            let status = other.client().status();
            if status.counters.requests >= 3 + 8 && status.unanswered == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), is_ahead).await.expect("some are asked for before they are opened");
    costs_nothing(&other, async || {
        let opened = other.open(entries[4].ino, false, &patience()).await.expect("opens");
        other.release(opened.handle).expect("closes");
    })
    .await;
}

/// As `stat dir/name` does, again and again; and removing them one by one.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_an_unknown_directory_cost_a_few_requests_however_many() {
    const NAMES: usize = 500;
    let place = Place::in_memory().await;
    let maker = place.fs().await;
    let dir = maker.mkdir(ME, ROOT, b"dir", 0o755, &patience()).await.expect("makes").ino;
    let name = |number: usize| format!("file {number}");
    for number in 0..NAMES {
        let node = NewNode { kind: FileKind::File, mode: 0o644, rdev: 0 };
        maker.mknod(ME, dir, name(number).as_bytes(), node, &patience()).await.expect("makes");
    }
    maker.client().drain(Duration::from_secs(60)).await;

    let fs = place.fs().await;
    let dir = fs.lookup(ROOT, b"dir", &patience()).await.expect("is there").ino;
    let stat = async |number: usize| fs.lookup(dir, name(number).as_bytes(), &patience()).await.expect("is there");
    let ((), cost) = cost(&fs, async {
        for number in 0..NAMES {
            stat(number * 7 % NAMES).await;
        }
    })
    .await;
    // The first name and some of the listing, then another one and the rest.
    assert_eq!(cost.requests, 4);
    costs_nothing(&fs, async || {
        let absent = fs.lookup(dir, b"absent", &patience()).await;
        assert!(absent.is_err_and(|error| error.is(Refusal::NotFound)));
    })
    .await;
}

/// As find does: each directory is asked for once, whether ahead or not, and hardly any is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_tree_costs_a_request_for_each_directory() {
    const WIDE: usize = 12;
    let place = Place::in_memory().await;
    let maker = place.fs().await;
    let top = maker.mkdir(ME, ROOT, b"top", 0o755, &patience()).await.expect("makes").ino;
    for number in 0..WIDE {
        let name = format!("dir {number}");
        let dir = maker.mkdir(ME, top, name.as_bytes(), 0o755, &patience()).await.expect("makes").ino;
        for inner in 0..WIDE {
            let name = format!("inner {inner}");
            maker.mkdir(ME, dir, name.as_bytes(), 0o755, &patience()).await.expect("makes");
        }
    }
    maker.client().drain(Duration::from_secs(60)).await;

    let fs = place.fs().await;
    let top = fs.lookup(ROOT, b"top", &patience()).await.expect("is there").ino;
    let waits = || fs.client().status().counters.waits;
    let before = waits();
    let (count, cost) = cost(&fs, walk(&fs, top)).await;
    assert_eq!((count, cost.requests as usize), (1 + WIDE + WIDE * WIDE, 1 + WIDE + WIDE * WIDE));
    assert!(waits() - before <= 10, "{} waits", waits() - before);
}

/// Lists a directory and all below it. Gives how many it has listed.
async fn walk(fs: &Fs, dir: u64) -> usize {
    let (mut left, mut count) = (vec![dir], 0);
    while let Some(dir) = left.pop() {
        count += 1;
        let dirs = entries(fs, dir).await.into_iter().filter(|entry| entry.kind == FileKind::Dir);
        // What is inside comes next, in its order.
        left.extend(dirs.rev().map(|entry| entry.ino));
    }
    count
}

/// As grep -r does: each file is asked for once, and hardly any is waited for, small though the directories are.
#[tokio::test(flavor = "multi_thread")]
async fn reading_through_a_tree_waits_for_few_of_its_files() {
    const DIRS: usize = 30;
    const FILES: usize = 6;
    let place = Place::in_memory().await;
    let maker = place.fs().await;
    let top = maker.mkdir(ME, ROOT, b"top", 0o755, &patience()).await.expect("makes").ino;
    for number in 0..DIRS {
        let name = format!("dir {number}");
        let dir = maker.mkdir(ME, top, name.as_bytes(), 0o755, &patience()).await.expect("makes").ino;
        make_small(&maker, dir, FILES).await;
    }
    maker.client().drain(Duration::from_secs(60)).await;

    let fs = place.fs().await;
    let top = fs.lookup(ROOT, b"top", &patience()).await.expect("is there").ino;
    let waits = || fs.client().status().counters.waits;
    let before = waits();
    let (files, cost) = cost(&fs, async {
        let mut files = 0;
        for dir in entries(&fs, top).await {
            for file in entries(&fs, dir.ino).await {
                let opened = fs.open(file.ino, false, &patience()).await.expect("opens");
                let content = fs.read(opened.handle, 0, 1000, &patience()).await.expect("reads");
                assert_eq!(content[..], file.name[..]);
                fs.release(opened.handle).expect("closes");
                files += 1;
            }
        }
        files
    })
    .await;
    assert_eq!((files, cost.requests as usize, cost.reads), (DIRS * FILES, 1 + DIRS + DIRS * FILES, 0));
    assert!(waits() - before <= 20, "{} waits", waits() - before);
}

/// Content that does not get smaller.
fn noise(name: &[u8]) -> Vec<u8> {
    let mut content = vec![0; 16 << 10];
    blake3::Hasher::new().update(name).finalize_xof().fill(&mut content);
    content
}

/// As a table is read by one of its columns.
#[tokio::test(flavor = "multi_thread")]
async fn reads_at_even_distances_are_fetched_many_with_one_record() {
    const STEP: u64 = 3 * CHUNK;
    let place = Place::lasting().await;
    let maker = place.fs().await;
    let (stat, opened) =
        maker.create(ME, ROOT, b"table", 0o644, CreateHow::default(), &patience()).await.expect("makes");
    let piece = noise(b"table").repeat((1 << 20) / (16 << 10));
    for offset in (0..LARGE).step_by(1 << 20) {
        maker.write(opened.handle, offset, &piece, &patience()).await.expect("writes");
    }
    maker.flush(opened.handle, &patience()).await.expect("closes");
    maker.release(opened.handle).expect("closes");
    maker.client().drain(Duration::from_secs(60)).await;

    let fs = place.fs().await;
    let opened = fs.open(stat.ino, false, &patience()).await.expect("opens");
    let places: Vec<u64> = (0..LARGE).step_by(STEP as usize).collect();
    let (_, cost) = cost(&fs, async {
        for place in &places {
            let read = fs.read(opened.handle, *place, 4096, &patience()).await.expect("reads");
            assert!(read[..] == piece[(place % (16 << 10)) as usize..][..4096]);
        }
    })
    .await;
    assert!(cost.reads <= places.len() as u64 / 3, "{cost:?} for {}", places.len());
}

/// What is too large to come along with the answer to an open is fetched ahead too, however much of it is under way.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_some_pages_are_fetched_many_with_one_record() {
    const FILES: usize = 400;
    let place = Place::lasting().await;
    let maker = place.fs().await;
    make_files(&maker, ROOT, FILES, |name| noise(name.as_bytes())).await;
    maker.client().drain(Duration::from_secs(60)).await;

    // Nothing comes before all are open.
    let (fs, held) = place.fs_held(Topic::Reads).await;
    let (_, cost) = cost(&fs, async {
        held.send_replace(true);
        let mut open = Vec::new();
        for file in entries(&fs, ROOT).await {
            let opened = fs.open(file.ino, false, &patience()).await.expect("opens");
            open.push((opened.handle, noise(&file.name)));
        }
        held.send_replace(false);
        for (handle, expected) in open {
            let content = fs.read(handle, 0, 100_000, &patience()).await.expect("reads");
            assert!(content[..] == expected[..]);
            fs.release(handle).expect("closes");
        }
    })
    .await;
    assert!(cost.reads <= FILES as u64 / 8, "{cost:?}");
}
