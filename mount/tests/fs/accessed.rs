//! Reading moves atime: at once here, soon elsewhere, and nothing waits or is asked again for it.

use crate::place::{ME, Place};
use mount::client::Patience;
use mount::fs::{CreateHow, Fs, ROOT, SetAttr, SetTime};
use proto::Time;
use std::time::Duration;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

async fn read(fs: &Fs, ino: u64, quietly: bool) {
    let handle = fs.open(ino, false, &patience()).await.expect("opens").handle;
    if quietly {
        fs.keep_atime(handle);
    }
    assert_eq!(&fs.read(handle, 0, 100, &patience()).await.expect("reads")[..], b"content");
    fs.release(handle).expect("closes");
}

/// Waits until the other mount has been told of an atime, which it is without asking.
async fn told(fs: &Fs, ino: u64, atime: Time) {
    let waited = async {
        while fs.getattr(ino, &patience()).await.expect("is there").atime != atime {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("it comes to be known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_known_here_at_once_and_elsewhere_soon() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs_with_relatime().await, place.fs_with_relatime().await);
    let p = patience();
    let (file, opened) = fs.create(ME, ROOT, b"f", 0o644, CreateHow::default(), &p).await.expect("makes");
    fs.write(opened.handle, 0, b"content", &p).await.expect("writes");
    fs.flush(opened.handle, &p).await.expect("closes");
    fs.release(opened.handle).expect("closes");
    let unread = other.lookup(ROOT, b"f", &p).await.expect("is there");
    assert!(unread.atime <= unread.mtime);

    read(&fs, file.ino, true).await;
    assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").atime, unread.atime, "O_NOATIME");
    read(&fs, file.ino, false).await;
    let read_once = fs.getattr(file.ino, &p).await.expect("is there");
    assert!(read_once.atime > read_once.mtime);
    assert_eq!((read_once.mtime, read_once.ctime), (unread.mtime, unread.ctime));
    told(&other, file.ino, read_once.atime).await;
    assert_eq!(other.getattr(file.ino, &p).await.expect("is there"), read_once, "all else is as it was");

    // It is not due again, on either mount.
    read(&fs, file.ino, false).await;
    read(&other, file.ino, false).await;
    let before = place.sent();
    for fs in [&fs, &other] {
        for _ in 0..100 {
            read(fs, file.ino, false).await;
            assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").atime, read_once.atime);
        }
    }
    // Promises still stand: no more than renewals.
    assert!(place.sent() < before + 50);

    // What a program sets stays, though a read before it is still to be told of.
    let change = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    fs.setattr(file.ino, change, &p).await.expect("sets");
    read(&fs, file.ino, false).await;
    let past = Time { secs: 5, nanos: 6 };
    let set = other.setattr(file.ino, SetAttr { atime: Some(SetTime::At(past)), ..SetAttr::default() }, &p).await;
    assert_eq!(set.expect("sets").atime, past);
    fs.sync_all(Duration::from_secs(60)).await.expect("all is told");
    for fs in [&fs, &other] {
        assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").atime, past);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_and_links_are_read_too_and_noatime_tells_nothing() {
    let place = Place::in_memory().await;
    let (fs, quiet) = (place.fs_with_relatime().await, place.fs().await);
    let p = patience();
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &p).await.expect("makes");
    let link = fs.symlink(ME, dir.ino, b"l", b"there", &p).await.expect("makes");
    let before = fs.getattr(dir.ino, &p).await.expect("is there");
    for fs in [&quiet, &fs] {
        let listed = fs.opendir(dir.ino);
        fs.readdir(listed, 0, true, &p).await.expect("lists");
        fs.releasedir(listed).expect("is open");
        fs.readlink(link.ino, &p).await.expect("reads");
    }
    assert_eq!(quiet.getattr(dir.ino, &p).await.expect("is there").atime, before.atime);
    let (seen_dir, seen_link) = (fs.getattr(dir.ino, &p).await, fs.getattr(link.ino, &p).await);
    let (seen_dir, seen_link) = (seen_dir.expect("is there"), seen_link.expect("is there"));
    assert!(seen_dir.atime > before.mtime && seen_link.atime > link.mtime);
    fs.sync_all(Duration::from_secs(60)).await.expect("all is told");
    told(&quiet, dir.ino, seen_dir.atime).await;
    told(&quiet, link.ino, seen_link.atime).await;
}

/// The write's answer brings the time of the write; the read came after it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_what_is_still_on_its_way_is_not_forgotten_when_that_is_there() {
    let place = Place::in_memory().await;
    let (fs, p) = (place.fs_slow(Duration::from_millis(200)).await, patience());
    let (file, opened) = fs.create(ME, ROOT, b"f", 0o644, CreateHow::default(), &p).await.expect("makes");
    tokio::time::sleep(Duration::from_millis(5)).await;
    fs.write(opened.handle, 0, b"content", &p).await.expect("writes");
    fs.flush(opened.handle, &p).await.expect("closes");
    assert!(fs.dirty_bytes() > 0, "it is on its way");
    read(&fs, file.ino, false).await;
    let atime = fs.getattr(file.ino, &p).await.expect("is there").atime;
    assert!(atime > file.atime, "{atime:?}, {file:?}");
    fs.fsync(opened.handle, &p).await.expect("syncs");
    let synced = async {
        while fs.dirty_bytes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), synced).await.expect("is answered for");
    assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").atime, atime);
    fs.release(opened.handle).expect("closes");
}
