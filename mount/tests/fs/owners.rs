//! Who owns what, as root mounts and plain ones keep and show it.

use crate::place::Place;
use mount::client::Patience;
use mount::fs::{Caller, NewNode, Owners, ROOT, SetAttr, Stat};
use proto::message::FileKind;
use std::time::Duration;

/// A root mount: numbers stay, and the namespace's owner is shown as 1000 and 1001.
const ROOTS: Owners = Owners { keep_numbers: true, uid: 1000, gid: 1001, every_uid: false, every_gid: false, umask: 0 };
/// A mount of a user with the number 7.
const PLAIN: Owners = Owners { keep_numbers: false, uid: 7, gid: 8, every_uid: false, every_gid: false, umask: 0 };

fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

fn owner(stat: &Stat) -> (u32, u32) {
    (stat.uid, stat.gid)
}

const FILE: NewNode = NewNode { kind: FileKind::File, mode: 0o666, rdev: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn a_root_mount_keeps_numbers_and_shows_the_owner_as_it_was_told_to() {
    let place = Place::in_memory().await;
    let (root, plain) = (place.fs_of("/", ROOTS).await, place.fs_of("/", PLAIN).await);
    let p = &patience();
    let caller = Caller { uid: 33, gid: 44, umask: 0 };
    let numbered = root.mknod(caller, ROOT, b"numbered", FILE, p).await.expect("makes");
    assert_eq!(owner(&numbered), (33, 44));
    assert_eq!(owner(&plain.lookup(ROOT, b"numbered", p).await.expect("finds")), (33, 44));
    let owned = plain.mknod(Caller { uid: 7, gid: 8, umask: 0 }, ROOT, b"owned", FILE, p).await.expect("makes");
    assert_eq!(owner(&owned), (7, 8));
    assert_eq!(owner(&root.lookup(ROOT, b"owned", p).await.expect("finds")), (1000, 1001));
    assert_eq!(owner(&root.getattr(ROOT, p).await.expect("shows")), (1000, 1001));
    let other = place.fs_of("/", Owners { uid: 5, gid: 6, ..PLAIN }).await;
    assert_eq!(owner(&other.lookup(ROOT, b"owned", p).await.expect("finds")), (5, 6), "whoever mounts");

    // The same number is another owner than the namespace's.
    let own = SetAttr { uid: Some(1000), gid: Some(1001), ..SetAttr::default() };
    root.setattr(owned.ino, own, p).await.expect("changes");
    assert_eq!(owner(&plain.lookup(ROOT, b"owned", p).await.expect("finds")), (1000, 1001));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_mount_lets_nobody_else_own_anything() {
    let place = Place::in_memory().await;
    let (root, plain) = (place.fs_of("/", ROOTS).await, place.fs_of("/", PLAIN).await);
    let p = &patience();
    // allow_other lets others in; what they make is the namespace's as well.
    let file = plain.mknod(Caller { uid: 99, gid: 99, umask: 0 }, ROOT, b"file", FILE, p).await.expect("makes");
    assert_eq!(owner(&file), (7, 8));
    for set in [
        SetAttr { uid: Some(0), ..SetAttr::default() },
        SetAttr { gid: Some(99), ..SetAttr::default() },
        SetAttr { uid: Some(7), gid: Some(0), ..SetAttr::default() },
    ] {
        let error = plain.setattr(file.ino, set, p).await.expect_err("somebody else");
        assert_eq!(i32::from(error.errno()), libc::EPERM, "{set:?}");
    }
    let own = SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() };
    assert_eq!(owner(&plain.setattr(file.ino, own, p).await.expect("it is its own")), (7, 8));
    assert_eq!(owner(&root.lookup(ROOT, b"file", p).await.expect("finds")), (1000, 1001));
}

#[tokio::test(flavor = "multi_thread")]
async fn options_override_what_is_shown_and_not_what_is_kept() {
    let place = Place::in_memory().await;
    let root = place.fs_of("/", ROOTS).await;
    let p = &patience();
    let numbered = root.mknod(Caller { uid: 33, gid: 44, umask: 0 }, ROOT, b"numbered", FILE, p).await.expect("makes");
    let view = Owners { keep_numbers: false, uid: 70, gid: 80, every_uid: true, every_gid: true, umask: 0o027 };
    let shown = place.fs_of("/", view).await;
    let stat = shown.lookup(ROOT, b"numbered", p).await.expect("finds");
    assert_eq!((owner(&stat), stat.mode), ((70, 80), 0o640));
    assert_eq!(owner(&root.getattr(numbered.ino, p).await.expect("shows")), (33, 44));
    assert_eq!(root.getattr(numbered.ino, p).await.expect("shows").mode, 0o666);
    let one = place.fs_of("/", Owners { every_gid: false, ..view }).await;
    assert_eq!(owner(&one.lookup(ROOT, b"numbered", p).await.expect("finds")), (70, 44));
}
