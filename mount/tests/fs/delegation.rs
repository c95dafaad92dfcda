//! A mount that is alone in a place answers for it itself, and others find all of it.

use crate::place::{ME, Place, all_names};
use mount::client::Patience;
use mount::fs::{CreateHow, Fs, NewNode, ROOT, SetAttr, SetTime};
use proto::Time;
use proto::clock::Clock;
use proto::message::{AclKind, FileKind, Refusal, RenameHow, XattrHow};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

/// Records sent and times waited for an answer.
async fn cost<T>(fs: &Fs, work: impl Future<Output = T>) -> (T, (u64, u64)) {
    let before = fs.client().status().counters;
    let done = work.await;
    let after = fs.client().status().counters;
    (done, (after.records_sent - before.records_sent, after.waits - before.waits))
}

/// What tar does with a file.
async fn unpack(fs: &Fs, dir: u64, name: &str) {
    let p = &patience();
    // What the kernel asks before.
    assert!(fs.lookup(dir, name.as_bytes(), p).await.expect_err("is not there").is(Refusal::NotFound));
    let how = CreateHow { exclusive: true, ..CreateHow::default() };
    let (stat, opened) = fs.create(ME, dir, name.as_bytes(), 0o600, how, p).await.expect("makes");
    fs.write(opened.handle, 0, &content(name), p).await.expect("writes");
    let times = SetAttr { mtime: Some(SetTime::At(LONG_AGO)), ..SetAttr::default() };
    fs.setattr(stat.ino, times, p).await.expect("sets times");
    fs.setattr(stat.ino, SetAttr { mode: Some(0o640), ..SetAttr::default() }, p).await.expect("sets the mode");
    fs.flush(opened.handle, p).await.expect("closes");
    fs.release(opened.handle).expect("closes");
    is_unpacked(fs, dir, name).await;
}

const LONG_AGO: Time = Time { secs: 1_000_000_000, nanos: 7 };

fn content(name: &str) -> Vec<u8> {
    name.bytes().cycle().take(4096).collect()
}

async fn is_unpacked(fs: &Fs, dir: u64, name: &str) {
    let stat = fs.lookup(dir, name.as_bytes(), &patience()).await.expect("is there");
    assert_eq!((stat.size, stat.mtime, stat.mode & 0o7777), (4096, LONG_AGO, 0o640), "{name}: {stat:?}");
}

async fn names(fs: &Fs, dir: u64) -> Vec<Vec<u8>> {
    let mut names = all_names(fs, dir).await;
    names.retain(|name| name != b"." && name != b"..");
    names.sort();
    names
}

/// A directory that this mount may answer for, with numbers for new inodes at hand.
async fn own_dir(fs: &Fs, name: &str) -> u64 {
    let p = &patience();
    let dir = fs.mkdir(ME, ROOT, name.as_bytes(), 0o755, p).await.expect("makes").ino;
    for number in 0.. {
        let name = format!("first {number}");
        let ((), (_, waits)) = cost(fs, async {
            fs.lookup(dir, name.as_bytes(), p).await.expect_err("is not there");
            fs.mkdir(ME, dir, name.as_bytes(), 0o755, p).await.expect("makes");
        })
        .await;
        fs.rmdir(dir, name.as_bytes(), p).await.expect("removes");
        if waits == 0 {
            break;
        }
        assert!(number < 50, "it never becomes its own");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fs.fsyncdir(p).await.expect("syncs");
    dir
}

/// Everything that was answered here has been answered by the server too.
async fn sent(fs: &Fs) {
    let drained = fs.client().drain(Duration::from_secs(60)).await;
    assert!(drained.left.is_empty(), "{drained:?}");
}

/// Does something again and again, until it costs no more records than that. What belongs together leaves in parts where
/// this process gets no time, and a session renews itself now and then.
async fn costs_at_most(fs: &Fs, most: u64, mut work: impl AsyncFnMut(u64)) {
    let mut costs = Vec::new();
    for round in 0..10 {
        let ((), (records, waits)) = cost(fs, async {
            work(round).await;
            sent(fs).await;
        })
        .await;
        assert!(waits <= 10, "{waits} waits, {records} records");
        if records <= most {
            return;
        }
        costs.push(records);
    }
    panic!("{costs:?} records, and not {most}");
}

/// The write's answer is not here yet when the file gets another name and mode.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_written_keeps_its_time_under_another_name() {
    let place = Place::lasting().await;
    let (fs, p) = (place.fs().await, &patience());
    let dir = own_dir(&fs, "dir").await;
    for number in 0..20 {
        let name = format!("f{number}");
        let (stat, opened) = fs.create(ME, dir, b"new", 0o644, CreateHow::default(), p).await.expect("makes");
        tokio::time::sleep(Duration::from_millis(3)).await;
        fs.write(opened.handle, 0, b"content", p).await.expect("writes");
        fs.flush(opened.handle, p).await.expect("closes");
        fs.release(opened.handle).expect("closes");
        let written = fs.getattr(stat.ino, p).await.expect("is there").mtime;
        assert!(written > stat.mtime);
        fs.rename((dir, b"new"), (dir, name.as_bytes()), RenameHow::Replace, p).await.expect("renames");
        assert_eq!(fs.getattr(stat.ino, p).await.expect("is there").mtime, written);
        fs.setattr(stat.ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }, p).await.expect("sets the mode");
        assert_eq!(fs.getattr(stat.ino, p).await.expect("is there").mtime, written);
        sent(&fs).await;
        assert_eq!(fs.getattr(stat.ino, p).await.expect("is there").mtime, written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sets_the_clock_does_not_move_what_is_written() {
    const HOUR_NANOS: i128 = 3_600_000_000_000;
    let place = Place::lasting().await;
    let hours = Arc::new(AtomicI64::new(-9));
    let clock = {
        let hours = Arc::clone(&hours);
        Clock::new(move || Clock::default().nanos() + i128::from(hours.load(Ordering::Relaxed)) * HOUR_NANOS)
    };
    let (fs, p) = (place.fs_by(clock).await, &patience());
    let mut before = Clock::default().now().secs - 1;
    for hour in [-9, 0, 7, -30] {
        hours.store(hour, Ordering::Relaxed);
        let name = format!("at {hour}");
        let made = fs.mkdir(ME, ROOT, name.as_bytes(), 0o755, p).await.expect("makes").mtime.secs;
        assert!(made >= before && made <= Clock::default().now().secs + 1, "{made} at {hour}, {before} before");
        before = made;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_is_done_to_a_small_file_is_one_record() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    costs_at_most(&fs, 1, async |round| unpack(&fs, top, &format!("file {round}")).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_is_copied_as_one_record() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let (top, p) = (own_dir(&fs, "top").await, &patience());
    unpack(&fs, top, "from").await;
    let from = fs.lookup(top, b"from", p).await.expect("is there").ino;
    costs_at_most(&fs, 1, async |round| {
        let name = format!("to {round}");
        let source = fs.open(from, false, p).await.expect("opens").handle;
        let (stat, to) = fs.create(ME, top, name.as_bytes(), 0o600, CreateHow::default(), p).await.expect("makes");
        assert_eq!(fs.copy_range((source, 96), (to.handle, 0), 9000, p).await.expect("copies"), 4000);
        assert_eq!(fs.read(to.handle, 0, 9000, p).await.expect("reads")[..], content("from")[96..]);
        for handle in [source, to.handle] {
            fs.flush(handle, p).await.expect("closes");
            fs.release(handle).expect("closes");
        }
        assert_eq!(fs.getattr(stat.ino, p).await.expect("is there").size, 4000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_unpacked_without_waiting() {
    const FILES: u64 = 200;
    const DIRS: u64 = 10;
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let p = &patience();

    let (own, mut top, mut dirs) = (own_dir(&fs, "own").await, 0, Vec::new());
    // A fifth more than there are files, and one for each directory.
    costs_at_most(&fs, FILES * 6 / 5 + DIRS, async |round| {
        let name = format!("top {round}");
        fs.lookup(own, name.as_bytes(), p).await.expect_err("is not there");
        top = fs.mkdir(ME, own, name.as_bytes(), 0o755, p).await.expect("makes").ino;
        dirs.clear();
        for dir in 0..DIRS {
            let name = format!("dir {dir}");
            fs.lookup(top, name.as_bytes(), p).await.expect_err("is not there");
            let made = fs.mkdir(ME, top, name.as_bytes(), 0o755, p).await.expect("makes").ino;
            for file in 0..FILES / DIRS {
                unpack(&fs, made, &format!("file {file}")).await;
            }
            dirs.push(made);
        }
    })
    .await;

    // Another mount finds all of it, and what this one adds to it from now on.
    let other = place.fs().await;
    let found = top;
    assert_eq!(names(&other, found).await.len() as u64, DIRS);
    for (number, dir) in dirs.iter().enumerate() {
        let dir_there = other.lookup(found, format!("dir {number}").as_bytes(), p).await.expect("is there").ino;
        assert_eq!(dir_there, *dir);
        assert_eq!(names(&other, dir_there).await.len() as u64, FILES / DIRS);
        for file in 0..FILES / DIRS {
            let name = format!("file {file}");
            is_unpacked(&other, dir_there, &name).await;
            let ino = other.lookup(dir_there, name.as_bytes(), p).await.expect("is there").ino;
            let opened = other.open(ino, false, p).await.expect("opens");
            assert_eq!(other.read(opened.handle, 0, 8192, p).await.expect("reads")[..], content(&name)[..]);
            other.release(opened.handle).expect("closes");
        }
    }
    unpack(&fs, dirs[0], "another").await;
    is_unpacked(&other, dirs[0], "another").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_is_removed_without_waiting() {
    const FILES: u64 = 50;
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let dir = fs.mkdir(ME, top, b"dir", 0o755, p).await.expect("makes").ino;
    for file in 0..FILES {
        unpack(&fs, dir, &format!("file {file}")).await;
    }
    sent(&fs).await;
    let ((), (records, waits)) = cost(&fs, async {
        for name in names(&fs, dir).await {
            fs.lookup(dir, &name, p).await.expect("is there");
            fs.unlink(dir, &name, p).await.expect("removes");
        }
        assert!(fs.rmdir(top, b"none", p).await.expect_err("is not there").is(Refusal::NotFound));
        fs.rmdir(top, b"dir", p).await.expect("removes");
        sent(&fs).await;
    })
    .await;
    assert!(waits <= 10 && records <= FILES + 1, "{waits} waits, {records} records for {FILES} files");
    assert!(names(&fs, top).await.is_empty());
    let other = place.fs().await;
    let found = other.lookup(ROOT, b"top", p).await.expect("is there").ino;
    assert!(names(&other, found).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_moved_here_and_found_there() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let (a, b) = (
        fs.mkdir(ME, top, b"a", 0o755, p).await.expect("makes").ino,
        fs.mkdir(ME, top, b"b", 0o755, p).await.expect("makes").ino,
    );
    for name in ["one", "two", "three"] {
        unpack(&fs, a, name).await;
    }
    let ((), (_, waits)) = cost(&fs, async {
        fs.rename((a, b"one"), (b, b"uno"), RenameHow::Replace, p).await.expect("moves");
        fs.rename((a, b"two"), (a, b"three"), RenameHow::Replace, p).await.expect("replaces");
        let taken = fs.rename((b, b"uno"), (a, b"three"), RenameHow::NoReplace, p).await;
        assert!(taken.expect_err("is taken").is(Refusal::Exists));
        fs.rename((top, b"a"), (top, b"c"), RenameHow::Replace, p).await.expect("moves a directory");
        fs.rename((top, b"c"), (top, b"b"), RenameHow::Exchange, p).await.expect("two directories change places");
        fs.rename((b, b"uno"), (a, b"three"), RenameHow::Exchange, p).await.expect("two files do");
        let absent = fs.rename((b, b"uno"), (a, b"one"), RenameHow::Exchange, p).await;
        assert!(absent.expect_err("is not there").is(Refusal::NotFound));
        assert_eq!((names(&fs, a).await, names(&fs, b).await), (vec![b"three".to_vec()], vec![b"uno".to_vec()]));
        for (dir, name, was) in [(a, b"three" as &[u8], "one"), (b, b"uno", "two")] {
            let ino = fs.lookup(dir, name, p).await.expect("is there").ino;
            let opened = fs.open(ino, false, p).await.expect("opens");
            assert_eq!(fs.read(opened.handle, 0, 9000, p).await.expect("reads")[..], content(was));
            fs.release(opened.handle).expect("closes");
        }
    })
    .await;
    assert_eq!(waits, 0);
    let other = place.fs().await;
    let found = other.lookup(ROOT, b"top", p).await.expect("is there").ino;
    let there = async |fs: &Fs, dir: u64| {
        names(fs, dir).await.into_iter().map(|n| String::from_utf8(n).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(there(&other, b).await, ["uno"]);
    assert_eq!(there(&other, found).await, there(&fs, top).await);
    assert_eq!(there(&other, a).await, ["three"]);
    let (here, there) =
        (fs.lookup(a, b"three", p).await.expect("is there"), other.lookup(a, b"three", p).await.expect("is there"));
    assert_eq!(here, there);
}

/// As `cp -a`, `rsync -AX` and `setfacl -R` do with each file.
#[tokio::test(flavor = "multi_thread")]
async fn extended_attributes_and_lists_are_set_without_waiting() {
    const ACCESS: &[u8] = b"system.posix_acl_access";
    let list = |named: u8| {
        let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
        let none = u32::MAX;
        let entries =
            [entry(1, 6, none), entry(2, named, 5), entry(4, 4, none), entry(16, 7, none), entry(32, 0, none)];
        [&[2, 0, 0, 0][..], &entries.concat()].concat()
    };
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let mut inodes = Vec::new();
    let ((), (_, waits)) = cost(&fs, async {
        unpack(&fs, top, "file").await;
        inodes.push(fs.lookup(top, b"file", p).await.expect("is there").ino);
        inodes.push(fs.mkdir(ME, top, b"dir", 0o755, p).await.expect("makes").ino);
        for ino in &inodes {
            fs.setxattr(*ino, b"user.b", b"one", XattrHow::Create, p).await.expect("sets");
            fs.setxattr(*ino, b"user.a", b"two", XattrHow::Set, p).await.expect("sets");
            let taken = fs.setxattr(*ino, b"user.a", b"", XattrHow::Create, p).await;
            assert!(taken.expect_err("is there").is(Refusal::Exists));
            fs.setxattr(*ino, b"user.b", b"three", XattrHow::Replace, p).await.expect("replaces");
            fs.removexattr(*ino, b"user.a", p).await.expect("removes");
            for gone in [
                fs.removexattr(*ino, b"user.a", p).await,
                fs.setxattr(*ino, b"user.a", b"", XattrHow::Replace, p).await,
            ] {
                assert!(gone.expect_err("is gone").is(Refusal::NoAttribute));
            }
            fs.removexattr(*ino, ACCESS, p).await.expect("there is none");
            fs.set_acl(*ino, AclKind::Access, &list(6), |_| true, p).await.expect("sets");
            assert_eq!(fs.getattr(*ino, p).await.expect("is there").mode & 0o777, 0o670);
            fs.setattr(*ino, SetAttr { mode: Some(0o751), ..SetAttr::default() }, p).await.expect("sets");
        }
        let default = fs.set_acl(inodes[0], AclKind::Default, &list(6), |_| true, p).await;
        assert!(default.expect_err("is no directory").is(Refusal::NotDirectory));
        fs.set_acl(inodes[1], AclKind::Default, &list(5), |_| true, p).await.expect("sets");
        inodes.push(fs.mkdir(ME, inodes[1], b"inner", 0o777, p).await.expect("makes").ino);
    })
    .await;
    assert_eq!(waits, 0);

    let seen = async |fs: &Fs| {
        let mut seen = Vec::new();
        for ino in &inodes {
            let stat = fs.getattr(*ino, p).await.expect("is there");
            let names = fs.listxattr(*ino, true, p).await.expect("lists");
            let mut values = Vec::new();
            for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                values.push((name.to_vec(), fs.getxattr(*ino, name, p).await.expect("is there").to_vec()));
            }
            seen.push((stat.mode, stat.ctime, values));
        }
        seen
    };
    let here = seen(&fs).await;
    sent(&fs).await;
    let other = place.fs().await;
    assert_eq!((seen(&other).await, seen(&fs).await), (here.clone(), here));
    other.setxattr(inodes[0], b"user.b", b"theirs", XattrHow::Set, p).await.expect("sets");
    assert_eq!(&fs.getxattr(inodes[0], b"user.b", p).await.expect("is there")[..], b"theirs");
    fs.setxattr(inodes[0], b"user.b", b"ours", XattrHow::Set, p).await.expect("sets");
    assert_eq!(&other.getxattr(inodes[0], b"user.b", p).await.expect("is there")[..], b"ours");
}

/// All that one inode has has room up to a limit, which the server counts the same way.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_an_inode_is_refused_at_once() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    unpack(&fs, top, "file").await;
    let ino = fs.lookup(top, b"file", p).await.expect("is there").ino;
    let value = vec![7; 60_000];
    let mut fitted = 0;
    let refused = loop {
        let name = format!("user.{fitted}");
        match fs.setxattr(ino, name.as_bytes(), &value, XattrHow::Set, p).await {
            Ok(()) => fitted += 1,
            Err(error) => break error,
        }
    };
    assert!(refused.is(Refusal::NoSpace) && fitted == 4, "{refused} after {fitted}");
    sent(&fs).await;
    let other = place.fs().await;
    let refused = other.setxattr(ino, b"user.4", &value, XattrHow::Set, p).await;
    assert!(refused.expect_err("is full").is(Refusal::NoSpace));
    other.setxattr(ino, b"user.4", b"small", XattrHow::Set, p).await.expect("fits");
    assert_eq!(fs.listxattr(ino, true, p).await.expect("lists").len(), 5 * "user.0\0".len());
}

/// What is too large to be copied by reading and writing is copied on the server, and nobody waits for that either.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_copied_without_waiting() {
    const BYTES: usize = 300_000;
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let (from, source) = fs.create(ME, top, b"from", 0o600, CreateHow::default(), p).await.expect("makes");
    fs.write(source.handle, 0, &bytes, p).await.expect("writes");
    fs.fsync(source.handle, p).await.expect("syncs");
    sent(&fs).await;
    fs.getattr(from.ino, p).await.expect("is there");

    fs.lookup(top, b"to", p).await.expect_err("is not there");
    let times = SetAttr { mtime: Some(SetTime::At(LONG_AGO)), ..SetAttr::default() };
    let ((to, target), (_, waits)) = cost(&fs, async {
        let (to, target) = fs.create(ME, top, b"to", 0o600, CreateHow::default(), p).await.expect("makes");
        let copied = fs.copy_range((source.handle, 0), (target.handle, 0), BYTES as u64 - 100_000, p).await;
        assert_eq!(copied.expect("copies"), BYTES as u64 - 100_000);
        let copied = fs.copy_range((source.handle, 200_000), (target.handle, 200_000), 1 << 30, p).await;
        assert_eq!(copied.expect("copies the rest"), 100_000);
        let stat = fs.getattr(to.ino, p).await.expect("is there");
        assert_eq!((stat.size, stat.blocks), (BYTES as u64, (BYTES as u64).div_ceil(512)));
        fs.setattr(to.ino, times, p).await.expect("sets times");
        fs.flush(target.handle, p).await.expect("closes");
        (to, target)
    })
    .await;
    assert_eq!(waits, 0);
    // Whoever reads it finds all of it, and what is appended stands behind it.
    let appended = fs.open(to.ino, true, p).await.expect("opens").handle;
    fs.write(appended, 0, b"behind", p).await.expect("appends");
    fs.flush(appended, p).await.expect("closes");
    let mut expected = bytes.clone();
    expected.extend_from_slice(b"behind");
    let found = fs.read(target.handle, 0, 400_000, p).await.expect("reads");
    assert!(found[..] == expected[..], "{} bytes", found.len());
    sent(&fs).await;
    let other = place.fs().await;
    let dir = other.lookup(ROOT, b"top", p).await.expect("is there").ino;
    let there = other.lookup(dir, b"to", p).await.expect("is there");
    assert_eq!(there, fs.lookup(top, b"to", p).await.expect("is there"));
    let opened = other.open(there.ino, false, p).await.expect("opens").handle;
    assert!(other.read(opened, 0, 400_000, p).await.expect("reads")[..] == expected[..]);
}

/// As a shell does with `>` onto a file that is there, and an editor that cuts what was longer before.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_cut_and_written_anew_without_waiting() {
    const BYTES: usize = 1_300_000;
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let (top, p) = (own_dir(&fs, "top").await, &patience());
    let (stat, opened) = fs.create(ME, top, b"file", 0o600, CreateHow::default(), p).await.expect("makes");
    let size = |size: usize| SetAttr { size: Some(size as u64), ..SetAttr::default() };
    let other = place.fs().await;
    for (round, cut) in [0, 700_001, 0, 90, 0, BYTES + 5].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..BYTES).map(|at| ((at + round) % 251) as u8).collect();
        fs.write(opened.handle, 0, &bytes, p).await.expect("writes");
        fs.flush(opened.handle, p).await.expect("closes");
        // All of it is answered for, and its content known.
        sent(&fs).await;
        let mut expected = bytes.clone();
        assert_eq!(fs.read(opened.handle, 0, 2_000_000, p).await.expect("reads").len(), BYTES);
        expected.resize(cut, 0);
        let ((), (_, waits)) = cost(&fs, async {
            let cut = fs.setattr(stat.ino, size(cut), p).await.expect("cuts");
            assert_eq!(fs.getattr(stat.ino, p).await.expect("is there"), cut);
            fs.write(opened.handle, 40, b"new", p).await.expect("writes");
            fs.flush(opened.handle, p).await.expect("closes");
        })
        .await;
        assert_eq!(waits, 0, "cut to {cut}");
        expected.resize(cut.max(43), 0);
        expected[40..43].copy_from_slice(b"new");
        assert_eq!(fs.getattr(stat.ino, p).await.expect("is there").size, expected.len() as u64);
        assert!(fs.read(opened.handle, 0, 2_000_000, p).await.expect("reads")[..] == expected[..], "cut to {cut}");
        sent(&fs).await;
        let here = fs.getattr(stat.ino, p).await.expect("is there");
        let data = if cut == 0 { 3 } else { cut.clamp(43, BYTES) as u64 };
        assert_eq!(here.blocks, data.div_ceil(512), "cut to {cut}");
        if round == 5 {
            assert_eq!(other.getattr(stat.ino, p).await.expect("is there"), here);
            let there = other.open(stat.ino, false, p).await.expect("opens").handle;
            assert!(other.read(there, 0, 2_000_000, p).await.expect("reads")[..] == expected[..]);
        }
    }
}

/// What another mount asks for sees the cut that it was not told of before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_here_is_cut_for_others() {
    let place = Place::lasting().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let (top, p) = (own_dir(&fs, "top").await, &patience());
    let (stat, opened) = fs.create(ME, top, b"file", 0o600, CreateHow::default(), p).await.expect("makes");
    for round in 0_u8..10 {
        fs.write(opened.handle, 0, &[round + 1; 5000], p).await.expect("writes");
        fs.flush(opened.handle, p).await.expect("closes");
        fs.setattr(stat.ino, SetAttr { size: Some(7), ..SetAttr::default() }, p).await.expect("cuts");
        assert_eq!(other.getattr(stat.ino, p).await.expect("is there").size, 7);
        let there = other.open(stat.ino, false, p).await.expect("opens").handle;
        assert_eq!(other.read(there, 0, 100, p).await.expect("reads")[..], [round + 1; 7]);
        other.release(there).expect("closes");
        // So long that it becomes this mount's again.
        tokio::time::sleep(Duration::from_millis(if round % 2 == 0 { 0 } else { 1100 })).await;
    }
}

/// git makes each of its objects under another name, links it and takes the first name away.
#[tokio::test(flavor = "multi_thread")]
async fn links_are_made_and_taken_away_without_waiting() {
    const FILES: u64 = 20;
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let dir = fs.mkdir(ME, top, b"dir", 0o755, p).await.expect("makes").ino;
    let ((), (_, waits)) = cost(&fs, async {
        for file in 0..FILES {
            let (temporary, name) = (format!("tmp {file}"), format!("file {file}"));
            unpack(&fs, top, &temporary).await;
            let ino = fs.lookup(top, temporary.as_bytes(), p).await.expect("is there").ino;
            fs.lookup(top, name.as_bytes(), p).await.expect_err("is not there");
            assert_eq!(fs.link(ino, top, name.as_bytes(), p).await.expect("links").nlink, 2);
            let taken = fs.link(ino, top, name.as_bytes(), p).await;
            assert!(taken.expect_err("is there").is(Refusal::Exists));
            fs.unlink(top, temporary.as_bytes(), p).await.expect("removes");
            let stat = fs.lookup(top, name.as_bytes(), p).await.expect("is there");
            assert_eq!((stat.nlink, stat.ino, stat.mtime), (1, ino, LONG_AGO));
            // And a copy of the tree with its links.
            fs.link(ino, dir, name.as_bytes(), p).await.expect("links");
        }
    })
    .await;
    assert_eq!(waits, 0);
    sent(&fs).await;
    let other = place.fs().await;
    let found = other.lookup(ROOT, b"top", p).await.expect("is there").ino;
    for file in 0..FILES {
        let name = format!("file {file}");
        let [one, two] = [found, dir].map(|dir| (dir, name.as_bytes()));
        let one = other.lookup(one.0, one.1, p).await.expect("is there");
        assert_eq!(one, other.lookup(two.0, two.1, p).await.expect("is there"));
        assert_eq!((one.nlink, one.size, one.mode & 0o7777), (2, 4096, 0o640));
    }
}

/// What has names in several directories is this mount's own when the answers are there.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_names_in_two_directories_is_changed_here() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let dir = fs.mkdir(ME, top, b"dir", 0o755, p).await.expect("makes").ino;
    unpack(&fs, top, "file").await;
    let ino = fs.lookup(top, b"file", p).await.expect("is there").ino;
    fs.lookup(dir, b"link", p).await.expect_err("is not there");
    fs.link(ino, dir, b"link", p).await.expect("links");
    sent(&fs).await;
    let ((), (_, waits)) = cost(&fs, async {
        assert_eq!(fs.lookup(dir, b"link", p).await.expect("is there").nlink, 2);
        let mode = SetAttr { mode: Some(0o604), ..SetAttr::default() };
        fs.setattr(ino, mode, p).await.expect("sets the mode");
        fs.rename((dir, b"link"), (top, b"moved"), RenameHow::Replace, p).await.expect("moves");
        fs.unlink(top, b"file", p).await.expect("removes");
    })
    .await;
    assert_eq!(waits, 0);
    let other = place.fs().await;
    let found = other.lookup(ROOT, b"top", p).await.expect("is there").ino;
    let stat = other.lookup(found, b"moved", p).await.expect("is there");
    assert_eq!((stat.ino, stat.nlink, stat.mode & 0o7777), (ino, 1, 0o604));
    assert_eq!(fs.lookup(top, b"moved", p).await.expect("is there"), stat);
    fs.unlink(top, b"moved", p).await.expect("removes");
    assert!(other.lookup(found, b"moved", p).await.expect_err("is gone").is(Refusal::NotFound));
}

/// Whoever still has a directory that was removed here makes nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_in_what_was_removed() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let p = &patience();
    let dir = fs.mkdir(ME, top, b"dir", 0o755, p).await.expect("makes").ino;
    let ((), (_, waits)) = cost(&fs, async { fs.rmdir(top, b"dir", p).await.expect("removes") }).await;
    assert_eq!(waits, 0);
    let made = fs.mkdir(ME, dir, b"inside", 0o755, p).await;
    assert!(made.expect_err("has gone").is(Refusal::Stale));
}

/// What the server was asked for is known here behind all that was answered here before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_asked_for_is_the_last_one_known() {
    let place = Place::lasting().await;
    let fs = place.fs().await;
    let top = own_dir(&fs, "top").await;
    let busy = (0..8).map(|worker| {
        let fs = fs.clone();
        tokio::spawn(async move {
            let p = &patience();
            let node = NewNode { kind: FileKind::File, mode: 0o644, rdev: 0 };
            for round in 0..100 {
                let name = format!("dir {worker} {round}");
                let dir = fs.mkdir(ME, top, name.as_bytes(), 0o755, p).await.expect("makes").ino;
                let file = fs.mknod(ME, dir, b"one", node, p).await.expect("makes").ino;
                fs.mknod(ME, dir, b"two", node, p).await.expect("makes");
                fs.rename((dir, b"one"), (dir, b"two"), RenameHow::Exchange, p).await.expect("exchanges");
                // The answers to what came before it are taken in by another task.
                tokio::task::yield_now().await;
                let moved = fs.getattr(file, p).await.expect("is there").ctime;
                assert_eq!(fs.getattr(dir, p).await.expect("is there").mtime, moved, "{name}");
            }
        })
    });
    for worker in busy.collect::<Vec<_>>() {
        worker.await.expect("every time is the exchange's");
    }
}

/// Two mounts that work in one place by turns never see an older state than the other one has left.
#[tokio::test(flavor = "multi_thread")]
async fn mounts_that_take_turns_see_each_other() {
    let place = Place::lasting().await;
    let mounts = [place.fs().await, place.fs().await];
    let p = &patience();
    let dir = own_dir(&mounts[0], "turns").await;
    mounts[1].lookup(ROOT, b"turns", p).await.expect("is there");
    for round in 0..60 {
        let (fs, other) = (&mounts[round % 2], &mounts[(round + 1) % 2]);
        let name = format!("round {}", round / 4);
        match round % 4 {
            0 => unpack(fs, dir, &name).await,
            1 => fs
                .setattr(
                    fs.lookup(dir, name.as_bytes(), p).await.expect("is there").ino,
                    SetAttr { mode: Some(0o600), ..SetAttr::default() },
                    p,
                )
                .await
                .map(drop)
                .expect("sets"),
            2 => fs.rename((dir, name.as_bytes()), (dir, b"moved"), RenameHow::Replace, p).await.expect("moves"),
            _ => fs.unlink(dir, b"moved", p).await.expect("removes"),
        }
        let (here, there) = (names(fs, dir).await, names(other, dir).await);
        assert_eq!(here, there, "round {round}");
        if let Some(name) = here.first() {
            assert_eq!(
                fs.lookup(dir, name, p).await.expect("is there"),
                other.lookup(dir, name, p).await.expect("is there"),
                "round {round}"
            );
        }
        if round % 8 > 4 {
            // Long enough for the one who comes next to have it for itself.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}
