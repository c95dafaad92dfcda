//! A slow link: what is waited for beside much that is on its way.

use crate::content::bytes;
use crate::place::{ME, Place};
use mount::client::Patience;
use mount::fs::{CreateHow, Fs, ROOT};
use std::time::{Duration, Instant};

/// Each record takes so long to the log.
const EACH: Duration = Duration::from_millis(60);

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

/// Somebody unpacks files of 48 KiB, which do not get smaller, in a new directory, much faster than they leave.
async fn unpack(fs: &Fs, files: u64) {
    let dir = fs.mkdir(ME, ROOT, b"unpacked", 0o755, &patience()).await.expect("makes").ino;
    for number in 0..files {
        let (name, how) = (format!("{number}"), CreateHow::default());
        let made = fs.create(ME, dir, name.as_bytes(), 0o644, how, &patience()).await;
        let handle = made.expect("makes").1.handle;
        fs.write(handle, 0, &bytes(number, 48 << 10), &patience()).await.expect("writes");
        fs.flush(handle, &patience()).await.expect("closes");
        fs.release(handle).expect("closes");
    }
}

/// A place where another mount, which is gone, has left a file in a directory.
async fn left() -> Place {
    let place = Place::in_memory().await;
    let other = place.fs().await;
    let dir = other.mkdir(ME, ROOT, b"other", 0o755, &patience()).await.expect("makes").ino;
    other.symlink(ME, dir, b"link", b"there", &patience()).await.expect("makes");
    other.client().clone().close().await;
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_elsewhere_does_not_wait_for_what_is_unpacked() {
    let place = left().await;
    let fs = place.fs_slow(EACH).await;
    let dir = fs.lookup(ROOT, b"other", &patience()).await.expect("is there").ino;
    unpack(&fs, 100).await;
    let before = fs.dirty_bytes();
    let link = fs.lookup(dir, b"link", &patience()).await.expect("is there").ino;
    assert_eq!(fs.readlink(link, &patience()).await.expect("looks")[..], b"there"[..]);
    let left = fs.dirty_bytes();
    assert!(left > 1 << 20, "{before} bytes were on their way, {left} are still");
}

/// `timeout=` is for silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_stands_behind_much_is_waited_for_while_that_goes() {
    let place = left().await;
    let fs = place.fs_slow(EACH).await;
    unpack(&fs, 100).await;
    let (begun, timeout) = (Instant::now(), Duration::from_secs(1));
    // What is used depends on all of it.
    let told = fs.statfs(&Patience::within(timeout)).await.expect("is told in the end");
    assert!(told.inodes_used >= 104, "{told:?}");
    assert!(begun.elapsed() > timeout, "or there was nothing to be waited for: {:?}", begun.elapsed());
}
