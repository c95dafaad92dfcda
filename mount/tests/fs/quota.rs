//! Quotas: what programs are told, and when.

use crate::place::{ME, Place, all_names};
use mount::client::Patience;
use mount::error::FsError;
use mount::fs::{CreateHow, Fs, ROOT, Statfs};
use proto::message::{Quota, Resource};
use std::time::Duration;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

async fn limited(bytes: u64) -> Place {
    let place = Place::in_memory().await;
    place.quota(Quota { bytes: Some(bytes), inodes: None }).await;
    place
}

async fn make(fs: &Fs, name: &str, append: bool) -> (u64, u64) {
    let how = CreateHow { append, ..CreateHow::default() };
    let (stat, opened) = fs.create(ME, ROOT, name.as_bytes(), 0o644, how, &patience()).await.expect("makes");
    (stat.ino, opened.handle)
}

/// Writes as write(2) is used: until nothing is left, or an error comes. Says how much went in.
async fn write(fs: &Fs, handle: u64, offset: u64, data: &[u8]) -> (usize, Option<FsError>) {
    let mut done = 0;
    while done < data.len() {
        match fs.write(handle, offset + done as u64, &data[done..], &patience()).await {
            Ok(written) => done += written as usize,
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

fn is_quota(error: Option<FsError>) -> bool {
    error.is_some_and(|error| i32::from(error.errno()) == libc::EDQUOT)
}

async fn close(fs: &Fs, handle: u64) {
    fs.flush(handle, &patience()).await.expect("nothing that was written is refused later");
    fs.release(handle).expect("closes");
}

async fn full(fs: &Fs) -> Statfs {
    fs.statfs(&patience()).await.expect("tells")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_is_told_at_the_write_that_exceeds_it_and_not_later() {
    let place = limited(3_000_000).await;
    let fs = place.fs().await;
    let (_, handle) = make(&fs, "a", false).await;
    let (done, error) = write(&fs, handle, 0, &vec![1; 5 << 20]).await;
    assert!(done == 3_000_000 && is_quota(error), "{done}");
    assert!(is_quota(write(&fs, handle, 3_000_000, b"x").await.1), "and again");
    close(&fs, handle).await;
    let told = full(&fs).await;
    assert_eq!((told.bytes_total, told.bytes_used), (3_000_000, 3_000_000));

    // What is removed is free for the next write.
    fs.unlink(ROOT, b"a", &patience()).await.expect("removes");
    assert_eq!(full(&fs).await.bytes_used, 0);
    let (_, handle) = make(&fs, "b", true).await;
    assert_eq!(write(&fs, handle, 0, &vec![2; 2_999_999]).await.0, 2_999_999);
    let (done, error) = write(&fs, handle, 0, b"xyz").await;
    assert!(done == 1 && is_quota(error), "an append is cut as well: {done}");
    close(&fs, handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_namespace_can_be_written_over() {
    let place = limited(200_000).await;
    let fs = place.fs().await;
    let (ino, handle) = make(&fs, "a", false).await;
    assert_eq!(write(&fs, handle, 0, &vec![1; 150_000]).await.0, 150_000);
    assert_eq!(write(&fs, handle, 200_000, &vec![1; 50_000]).await.0, 50_000);
    close(&fs, handle).await;
    let handle = fs.open(ino, false, &patience()).await.expect("opens").handle;
    assert_eq!(write(&fs, handle, 10, &vec![2; 140_000]).await.0, 140_000);
    assert!(is_quota(write(&fs, handle, 150_000, &[2; 10]).await.1), "a hole has nothing to write over");
    assert!(is_quota(write(&fs, handle, 250_000, b"x").await.1));
    close(&fs, handle).await;
    let read = fs.open(ino, false, &patience()).await.expect("opens").handle;
    let content = fs.read(read, 0, 300_000, &patience()).await.expect("reads");
    let expected = [vec![1; 10], vec![2; 140_000], vec![1; 9_990], vec![0; 50_000], vec![1; 50_000]].concat();
    assert!(content == expected, "{} bytes", content.len());
    assert_eq!(full(&fs).await.bytes_used, 200_000);
}

/// What one has reserved and does not use, another one gets.
#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_fill_a_namespace_to_the_last_byte() {
    let place = limited(1 << 20).await;
    let (one, other) = (place.fs().await, place.fs().await);
    let (_, a) = make(&one, "a", false).await;
    let (_, b) = make(&other, "b", false).await;
    assert_eq!(write(&one, a, 0, &vec![1; 100_000]).await.0, 100_000);
    let (done, error) = write(&other, b, 0, &vec![2; 2 << 20]).await;
    assert!(done == (1 << 20) - 100_000 && is_quota(error), "{done}");
    close(&one, a).await;
    close(&other, b).await;
    assert_eq!(full(&one).await.bytes_used, 1 << 20);
    // Removed there, free here, though it was open there a moment before.
    other.unlink(ROOT, b"a", &patience()).await.expect("removes");
    let (_, c) = make(&one, "c", false).await;
    assert_eq!(write(&one, c, 0, &vec![3; 100_000]).await.0, 100_000);
    close(&one, c).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_before_a_quota_is_set_is_kept_and_the_next_write_is_told() {
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let (_, handle) = make(&fs, "a", false).await;
    assert_eq!(write(&fs, handle, 0, &vec![1; 300_000]).await.0, 300_000);
    place.quota(Quota { bytes: Some(100_000), inodes: None }).await;
    while !fs.client().is_limited(Resource::Bytes) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(is_quota(write(&fs, handle, 300_000, b"x").await.1));
    close(&fs, handle).await;
    assert_eq!(full(&fs).await.bytes_used, 300_000);
    place.quota(Quota { bytes: None, inodes: None }).await;
    let (_, handle) = make(&fs, "b", false).await;
    assert_eq!(write(&fs, handle, 0, &vec![1; 3 << 20]).await.0, 3 << 20);
    close(&fs, handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inodes_are_limited_at_their_making() {
    let place = Place::in_memory().await;
    place.quota(Quota { bytes: None, inodes: Some(2) }).await;
    let fs = place.fs().await;
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &patience()).await.expect("the second inode");
    assert!(is_quota(fs.mkdir(ME, dir.ino, b"e", 0o755, &patience()).await.err()));
    assert!(is_quota(fs.symlink(ME, ROOT, b"l", b"d", &patience()).await.err()));
    let told = full(&fs).await;
    assert_eq!((told.inodes_total, told.inodes_used), (2, 2));
    fs.rmdir(ROOT, b"d", &patience()).await.expect("removes");
    fs.symlink(ME, ROOT, b"l", b"d", &patience()).await.expect("there is room again");
}

/// What a mount makes where nobody else is waits for a reserve now and then, not for each.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_under_a_quota_of_inodes_is_answered_here() {
    let place = Place::in_memory().await;
    place.quota(Quota { bytes: None, inodes: Some(100_000) }).await;
    let fs = place.fs().await;
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &patience()).await.expect("makes");
    let before = fs.client().status().counters.waits;
    for number in 0..200 {
        let name = format!("{number}");
        fs.symlink(ME, dir.ino, name.as_bytes(), b"there", &patience()).await.expect("makes");
    }
    let waits = fs.client().status().counters.waits - before;
    assert!(waits <= 12, "twice as many are reserved each time: {waits}");
    assert_eq!(full(&fs).await.inodes_used, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_make_to_the_last_inode_and_nothing_that_was_answered_is_taken_back() {
    let place = Place::in_memory().await;
    place.quota(Quota { bytes: None, inodes: Some(100) }).await;
    let (one, other) = (place.fs().await, place.fs().await);
    let a = one.mkdir(ME, ROOT, b"a", 0o755, &patience()).await.expect("makes");
    let b = other.mkdir(ME, ROOT, b"b", 0o755, &patience()).await.expect("makes");
    let fill = async |fs: &Fs, dir: u64| {
        let mut made = 0;
        loop {
            match fs.mkdir(ME, dir, format!("{made}").as_bytes(), 0o755, &patience()).await {
                Ok(_) => made += 1,
                Err(error) => return (made, is_quota(Some(error))),
            }
        }
    };
    let ((by_one, one_told), (by_other, other_told)) = tokio::join!(fill(&one, a.ino), fill(&other, b.ino));
    assert!(one_told && other_told);
    assert_eq!(by_one + by_other, 97, "one made {by_one}, the other {by_other}");
    // What one removes the other may make.
    one.rmdir(a.ino, b"0", &patience()).await.expect("removes");
    assert_eq!(full(&one).await.inodes_used, 99);
    other.mkdir(ME, b.ino, b"last", 0o755, &patience()).await.expect("there is room again");
    let exists = other.mkdir(ME, b.ino, b"last", 0o755, &patience()).await.expect_err("is there");
    assert_eq!(i32::from(exists.errno()), libc::EEXIST, "what is there needs no room");
    assert_eq!(full(&one).await.inodes_used, 100);
    let third = place.fs().await;
    let (a, b) = (all_names(&third, a.ino).await.len(), all_names(&third, b.ino).await.len());
    assert_eq!((a, b), (by_one - 1 + 2, by_other + 1 + 2), "what was answered is there, beside . and ..");
}
