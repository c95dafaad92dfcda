//! Reading and writing.

use crate::place::{ME, Place};
use mount::client::Patience;
use mount::fs::{CreateHow, Fs, Pages, ROOT, Seek, SetAttr, SetTime};
use proto::Time;
use proto::message::{AclKind, FallocateHow, XattrHow};
use std::sync::Arc;
use std::time::Duration;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

/// Numbers that only the seed decides.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What does not get smaller.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut numbers = Numbers(seed | 1);
    (0..len).map(|_| numbers.below(256) as u8).collect()
}

async fn make(fs: &Fs, name: &str, how: CreateHow) -> (u64, u64) {
    let (stat, opened) = fs.create(ME, ROOT, name.as_bytes(), 0o644, how, &patience()).await.expect("makes");
    (stat.ino, opened.handle)
}

async fn write_all(fs: &Fs, handle: u64, mut offset: u64, data: &[u8]) {
    for part in data.chunks(1 << 20) {
        assert_eq!(fs.write(handle, offset, part, &patience()).await.expect("writes"), part.len() as u32);
        offset += part.len() as u64;
    }
}

async fn read_all(fs: &Fs, ino: u64) -> Vec<u8> {
    let p = patience();
    let opened = fs.open(ino, false, &p).await.expect("opens");
    let mut out = Vec::new();
    loop {
        let data = fs.read(opened.handle, out.len() as u64, 128 << 10, &p).await.expect("reads");
        if data.is_empty() {
            break;
        }
        out.extend_from_slice(&data);
    }
    fs.flush(opened.handle, &p).await.expect("closes");
    fs.release(opened.handle).expect("closes");
    out
}

async fn close(fs: &Fs, handle: u64) {
    fs.flush(handle, &patience()).await.expect("closes");
    fs.release(handle).expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_files_that_are_made_and_only_written_to_the_kernel_has_no_pages() {
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let p = patience();
    let how = CreateHow { may_bypass: true, ..CreateHow::default() };
    let mut made = Vec::new();
    for number in 0..20 {
        made.push(fs.create(ME, ROOT, format!("f{number}").as_bytes(), 0o644, how, &p).await.expect("makes"));
    }
    let pages: Vec<Pages> = made.iter().map(|(_, opened)| opened.pages).collect();
    assert_eq!(pages, [[Pages::Keep; 16].as_slice(), &[Pages::Bypass; 4]].concat());
    let (stat, writer) = made.pop().expect("was made");
    // Nobody else has pages either while it is being written, nor while one of these has it open.
    let first = fs.open(stat.ino, false, &p).await.expect("opens");
    fs.release(writer.handle).expect("closes");
    let second = fs.open(stat.ino, false, &p).await.expect("opens");
    assert_eq!([first.pages, second.pages], [Pages::Bypass; 2]);
    fs.release(first.handle).expect("closes");
    fs.release(second.handle).expect("closes");
    let mut later = Vec::new();
    for _ in 0..2 {
        later.push(fs.open(stat.ino, false, &p).await.expect("opens").pages);
    }
    assert_eq!(later, [Pages::Drop, Pages::Keep], "what was mapped meanwhile may be older");
    let (_, opened) = fs.create(ME, ROOT, b"read too", 0o644, CreateHow::default(), &p).await.expect("makes");
    assert_eq!(opened.pages, Pages::Keep);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_closed_is_read_back_here_and_elsewhere() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    for (i, len) in [0, 1, 4000, 5000, 64 << 10, (64 << 10) + 1, 256 << 10, (256 << 10) + 1, 512 << 10, (3 << 20) + 17]
        .into_iter()
        .enumerate()
    {
        let (ino, handle) = make(&fs, &format!("f{i}"), CreateHow::default()).await;
        let data = bytes(i as u64 + 1, len);
        write_all(&fs, handle, 0, &data).await;
        assert_eq!(fs.getattr(ino, &patience()).await.expect("is there").size, len as u64);
        close(&fs, handle).await;
        assert!(read_all(&fs, ino).await == data, "{len} bytes here");
        assert!(read_all(&other, ino).await == data, "{len} bytes elsewhere");
        assert_eq!(other.getattr(ino, &patience()).await.expect("is there").size, len as u64);
    }
    assert_eq!(fs.dirty_bytes(), 0);
}

/// The server's answer takes what was written out of the open file and into what is known, and then the file is
/// forgotten: whoever looks meanwhile must not see it as it was made.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_has_its_size_while_it_is_answered_for() {
    const FILES: u64 = 200;
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &patience()).await.expect("makes").ino;
    for i in 0..FILES {
        let name = format!("f{i}");
        let how = CreateHow::default();
        let (_, opened) = fs.create(ME, dir, name.as_bytes(), 0o644, how, &patience()).await.expect("makes");
        write_all(&fs, opened.handle, 0, b"1\n").await;
        close(&fs, opened.handle).await;
        let handle = fs.opendir(dir);
        let entries = fs.readdir(handle, 2, true, &patience()).await.expect("lists");
        fs.releasedir(handle).expect("closes");
        assert_eq!(entries.len() as u64, i + 1);
        for entry in entries {
            assert_eq!(entry.stat.expect("it was asked for").size, 2, "{}", String::from_utf8_lossy(&entry.name));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn times_are_those_of_the_writing_and_do_not_move_when_it_is_sent() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let (ino, handle) = make(&fs, "f", CreateHow::default()).await;
    // What travels with the request, and what takes several.
    for len in [100, 12 << 20] {
        write_all(&fs, handle, 0, &bytes(3, len)).await;
        let written = fs.getattr(ino, &p).await.expect("is there");
        assert_eq!(written.mtime, written.ctime);
        fs.flush(handle, &p).await.expect("is sent");
        for fs in [&fs, &other] {
            let sent = fs.getattr(ino, &p).await.expect("is there");
            assert_eq!((sent.mtime, sent.ctime), (written.mtime, written.ctime), "after {len} bytes");
        }
    }
    let before = fs.getattr(ino, &p).await.expect("is there");
    let after = fs.setattr(ino, SetAttr::default(), &p).await.expect("owners are kept");
    assert!(after.ctime > before.ctime && after.mtime == before.mtime, "as chown(-1, -1) has it");
    // A time that was set is not the writing's.
    let far = Time { secs: 5_000_000_000, nanos: 0 };
    let set = SetAttr { mtime: Some(SetTime::At(far)), ..SetAttr::default() };
    fs.setattr(ino, set, &p).await.expect("is set");
    write_all(&fs, handle, 0, b"more").await;
    let written = fs.getattr(ino, &p).await.expect("is there").mtime;
    assert!(written < far, "{written:?}");
    close(&fs, handle).await;
    assert_eq!(fs.getattr(ino, &p).await.expect("is there").mtime, written);
}

/// What comes behind other changes in the log gets a time behind theirs.
#[tokio::test(flavor = "multi_thread")]
async fn what_changes_attributes_comes_behind_what_was_written_before() {
    /// `user::rw-,group::r--,other::r--`
    const ACL: &[u8] =
        b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let (ino, handle) = make(&fs, "f", CreateHow::default()).await;
    for what in ["chmod", "setxattr", "removexattr", "setfacl"] {
        write_all(&fs, handle, 0, what.as_bytes()).await;
        let written = fs.getattr(ino, &p).await.expect("is there").mtime;
        match what {
            "chmod" => {
                let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
                fs.setattr(ino, set, &p).await.map(drop)
            }
            "setxattr" => fs.setxattr(ino, b"user.a", b"value", XattrHow::Set, &p).await,
            "removexattr" => fs.removexattr(ino, b"user.a", &p).await,
            _ => fs.set_acl(ino, AclKind::Access, ACL, |_| true, &p).await,
        }
        .expect(what);
        let changed = fs.getattr(ino, &p).await.expect("is there");
        assert!(changed.mtime == written && changed.ctime > written, "{what}: {written:?}, then {changed:?}");
        fs.flush(handle, &p).await.expect("is sent");
        for fs in [&fs, &other] {
            let sent = fs.getattr(ino, &p).await.expect("is there");
            assert_eq!((sent.mtime, sent.ctime), (changed.mtime, changed.ctime), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_writes_reads_and_truncations_agree_with_a_byte_vector() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    for seed in 1..6 {
        let mut numbers = Numbers(seed * 0x9e37_79b9);
        let (ino, handle) = make(&fs, &format!("r{seed}"), CreateHow::default()).await;
        let mut model: Vec<u8> = Vec::new();
        for step in 0..120 {
            let offset = numbers.below(2 << 20) as usize;
            match numbers.below(10) {
                0 => {
                    fs.setattr(ino, SetAttr { size: Some(offset as u64), ..SetAttr::default() }, &p)
                        .await
                        .expect("cuts");
                    model.resize(offset, 0);
                }
                1 if step % 3 == 0 => fs.fsync(handle, &p).await.expect("syncs"),
                1 => {
                    let len = numbers.below(700_000) + 1;
                    use FallocateHow::{Clear, ClearAndExtend, Extend, Keep};
                    let how = [Extend, Clear, ClearAndExtend, Keep][numbers.below(4) as usize];
                    let end = offset + len as usize;
                    fs.fallocate(handle, offset as u64, len, how, &p).await.expect("allocates");
                    if how.extends() {
                        model.resize(model.len().max(end), 0);
                    }
                    let end = end.min(model.len());
                    if how.clears() && offset < end {
                        model[offset..end].fill(0);
                    }
                }
                2 => tokio::time::sleep(Duration::from_millis(numbers.below(80))).await,
                3 | 4 => {
                    let len = numbers.below(300_000) as u32;
                    let read = fs.read(handle, offset as u64, len, &p).await.expect("reads");
                    let from = offset.min(model.len());
                    let to = (offset + len as usize).min(model.len());
                    assert!(read[..] == model[from..to.max(from)], "seed {seed}, step {step}");
                }
                what => {
                    let len = if what < 8 { numbers.below(5000) } else { numbers.below(900_000) } as usize + 1;
                    let data = bytes(seed * 1000 + step, len);
                    write_all(&fs, handle, offset as u64, &data).await;
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].copy_from_slice(&data);
                }
            }
            assert_eq!(
                fs.getattr(ino, &p).await.expect("is there").size,
                model.len() as u64,
                "seed {seed}, step {step}"
            );
        }
        close(&fs, handle).await;
        assert!(read_all(&fs, ino).await == model, "seed {seed} here");
        assert!(read_all(&other, ino).await == model, "seed {seed} elsewhere");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_are_found_where_they_were_made() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let (ino, handle) = make(&fs, "holes", CreateHow::default()).await;
    write_all(&fs, handle, 0, &bytes(1, 5000)).await;
    write_all(&fs, handle, 3 << 30, &bytes(2, 700_000)).await;
    let end = (3 << 30) + 700_000;
    fs.fallocate(handle, 1000, 500, FallocateHow::Clear, &p).await.expect("makes a hole");
    let before = fs.getattr(ino, &p).await.expect("is there");
    fs.fallocate(handle, 0, 1 << 40, FallocateHow::Keep, &p).await.expect("changes nothing but times");
    let after = fs.getattr(ino, &p).await.expect("is there");
    assert!(after.mtime > before.mtime && (after.size, after.blocks) == (before.size, before.blocks));
    let there = other.open(ino, false, &p).await.expect("opens").handle;
    for (fs, handle) in [(&fs, handle), (&other, there)] {
        let holes = [(0, Some(1000)), (1000, Some(1000)), (1499, Some(1499)), (1500, Some(5000)), (end - 1, Some(end))];
        for (from, found) in holes.into_iter().chain([(end, None), (u64::MAX, None)]) {
            assert_eq!(fs.seek(handle, from, Seek::Hole, &p).await.expect("seeks"), found, "a hole from {from} on");
        }
        let data = [(0, Some(0)), (1000, Some(1500)), (1200, Some(1500)), (5000, Some(3 << 30)), (end, None)];
        for (from, found) in data {
            assert_eq!(fs.seek(handle, from, Seek::Data, &p).await.expect("seeks"), found, "data from {from} on");
        }
    }
    fs.fallocate(handle, end, 10, FallocateHow::Extend, &p).await.expect("makes it longer");
    assert_eq!(fs.getattr(ino, &p).await.expect("is there").size, end + 10);
    assert_eq!(fs.seek(handle, end, Seek::Data, &p).await.expect("seeks"), None);
    assert!(fs.fallocate(handle, 1 << 50, 1, FallocateHow::Extend, &p).await.is_err());
    assert_eq!(other.getattr(ino, &p).await.expect("is there").size, end + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_sends_nothing_but_one_request() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let mut model = bytes(1, 20 << 20);
    let (ino, from) = make(&fs, "from", CreateHow::default()).await;
    write_all(&fs, from, 0, &model).await;
    let (copy, to) = make(&fs, "to", CreateHow::default()).await;
    write_all(&fs, to, 0, &bytes(2, 5000)).await;
    fs.flush(from, &p).await.expect("flushes");
    fs.flush(to, &p).await.expect("flushes");

    let sent = || {
        let counters = fs.client().status().counters;
        (counters.requests, counters.chunks_uploaded)
    };
    let (requests, chunks) = sent();
    assert_eq!(fs.copy_range((from, 0), (to, 3000), u64::from(u32::MAX), &p).await.expect("copies"), 20 << 20);
    assert_eq!(sent(), (requests + 1, chunks));
    let mut copied = bytes(2, 3000);
    copied.extend_from_slice(&model);
    assert!(read_all(&other, copy).await == copied);
    assert!(read_all(&fs, copy).await == copied);

    // Within one file, beside it, behind its end; what overlaps is nothing.
    assert_eq!(fs.copy_range((from, 1_000_000), (from, 7), 300_000, &p).await.expect("copies"), 300_000);
    model.copy_within(1_000_000..1_300_000, 7);
    assert_eq!(fs.copy_range((from, 20 << 20), (to, 0), 1, &p).await.expect("has no more"), 0);
    assert!(fs.copy_range((from, 0), (from, 10), 11, &p).await.is_err());
    // The copy is its own from here on.
    write_all(&fs, from, 100, &[7; 1000]).await;
    model[100..1100].fill(7);
    fs.flush(from, &p).await.expect("flushes");
    assert!(read_all(&other, ino).await == model);
    assert!(read_all(&other, copy).await == copied);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_with_one_file_open_append_without_loss() {
    let place = Place::in_memory().await;
    let (one, two) = (place.fs().await, place.fs().await);
    let append = CreateHow { append: true, ..CreateHow::default() };
    let (ino, a) = make(&one, "log", append).await;
    let b = two.open(ino, true, &patience()).await.expect("opens").handle;
    for i in 0..40 {
        let line = |who: &str| format!("{who} {i:05}\n").into_bytes();
        write_all(&one, a, 0, &line("one")).await;
        write_all(&two, b, 0, &line("two")).await;
        if i % 3 == 0 {
            one.flush(a, &patience()).await.expect("flushes");
        }
        if i % 4 == 0 {
            two.flush(b, &patience()).await.expect("flushes");
        }
    }
    close(&one, a).await;
    close(&two, b).await;
    let here = String::from_utf8(read_all(&one, ino).await).expect("text");
    let there = String::from_utf8(read_all(&two, ino).await).expect("text");
    assert_eq!(here, there);
    assert_eq!(here.lines().count(), 80, "{here}");
    for who in ["one", "two"] {
        let lines: Vec<&str> = here.lines().filter(|line| line.starts_with(who)).collect();
        assert_eq!(lines, (0..40).map(|i| format!("{who} {i:05}")).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_cut_elsewhere_is_not_shown_longer_while_an_answer_is_lost() {
    let (place, losing) = Place::losing().await;
    let (one, two) = (place.fs().await, place.fs().await);
    let (ino, handle) = make(&one, "f", CreateHow::default()).await;
    write_all(&one, handle, 0, b"first").await;
    one.fsync(handle, &patience()).await.expect("syncs");
    losing
        .loses_while(async {
            write_all(&one, handle, 5, b", and more").await;
            // Delegated, it does not wait for the answer.
            let soon = patience().or(Arc::new(|| Box::pin(tokio::time::sleep(Duration::from_millis(100)))));
            let _ = one.flush(handle, &soon).await;
        })
        .await;
    let set = SetAttr { size: Some(3), ..SetAttr::default() };
    assert_eq!(two.setattr(ino, set, &patience()).await.expect("cuts").size, 3);
    assert_eq!(one.lookup(one.root(), b"f", &patience()).await.expect("looks").size, 3);
    assert_eq!(one.getattr(ino, &patience()).await.expect("looks").size, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_are_large_and_holes_are_zeros() {
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let (ino, handle) = make(&fs, "sparse", CreateHow::default()).await;
    let far = (1 << 40) - 5;
    write_all(&fs, handle, far, b"end").await;
    write_all(&fs, handle, 1 << 30, b"middle").await;
    fs.fsync(handle, &patience()).await.expect("syncs");
    let stat = fs.getattr(ino, &patience()).await.expect("is there");
    assert_eq!(stat.size, (1 << 40) - 2);
    assert!(stat.blocks < 1024);
    let read = fs.read(handle, (1 << 30) - 2, 10, &patience()).await.expect("reads");
    assert_eq!(&read[..], b"\0\0middle\0\0");
    assert_eq!(&fs.read(handle, far - 1, 100, &patience()).await.expect("reads")[..], b"\0end");
    close(&fs, handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_outlive_names() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let (ino, handle) = make(&fs, "f", CreateHow::default()).await;
    write_all(&fs, handle, 0, b"content").await;
    let theirs = other.open(ino, false, &p).await.expect("opens").handle;
    other.unlink(ROOT, b"f", &p).await.expect("takes away");
    write_all(&fs, handle, 7, b" and more").await;
    fs.fsync(handle, &p).await.expect("syncs");
    assert_eq!(fs.getattr(ino, &p).await.expect("is there").nlink, 0);
    assert_eq!(&other.read(theirs, 0, 100, &p).await.expect("reads")[..], b"content and more");
    close(&fs, handle).await;
    assert_eq!(&other.read(theirs, 0, 100, &p).await.expect("reads")[..], b"content and more");
    close(&other, theirs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_buffer_holds_is_written_in_bounded_memory() {
    let place = Place::on_broker().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let (ino, handle) = make(&fs, "big", CreateHow::default()).await;
    let part = bytes(3, 1 << 20);
    for i in 0..100 {
        write_all(&fs, handle, i << 20, &part).await;
        assert!(fs.dirty_bytes() <= 64 << 20);
    }
    close(&fs, handle).await;
    let read = read_all(&other, ino).await;
    assert_eq!(read.len(), 100 << 20);
    assert!(read.chunks(1 << 20).all(|chunk| chunk == part));
}

#[test]
fn an_append_that_waits_for_room_asks_where_the_file_ends_by_then() {
    // A runtime that can be left behind: a write that turns round and round gives its thread to nobody.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("starts");
    let ended = runtime.block_on(async {
        let place = Place::on_broker().await;
        let (fs, other) = (place.fs().await, place.fs().await);
        let (ino, log) = make(&fs, "log", CreateHow { append: true, ..CreateHow::default() }).await;
        let (_, big) = make(&fs, "big", CreateHow::default()).await;
        let theirs = other.open(ino, true, &patience()).await.expect("opens").handle;
        let (most, much) = (vec![5; 63 << 20], vec![6; 48 << 20]);
        // The buffer is nearly full when a little is appended, and must be nearly empty for the next part. By then
        // the little one has left, and somebody else has appended, so nothing says where the file ends.
        assert_eq!(fs.write(big, 0, &most, &patience()).await.expect("writes") as usize, most.len());
        write_all(&fs, log, 0, b"a little, ").await;
        let (appending, len) = (fs.clone(), much.len());
        let append = tokio::spawn(async move { appending.write(log, 0, &much, &patience()).await });
        write_all(&other, theirs, 0, b"theirs").await;
        close(&other, theirs).await;
        let Ok(written) = tokio::time::timeout(Duration::from_secs(60), append).await else { return false };
        assert_eq!(written.expect("does not panic").expect("writes") as usize, len);
        close(&fs, log).await;
        close(&fs, big).await;
        let read = read_all(&other, ino).await;
        assert_eq!(read.len(), b"a little, theirs".len() + len);
        true
    });
    runtime.shutdown_background();
    assert!(ended, "it has to end");
}
