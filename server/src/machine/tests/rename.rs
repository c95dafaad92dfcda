//! rename in its three kinds, and what it refuses.

use super::*;
use proto::message::RenameHow::{self, Exchange, NoReplace, Replace};

fn rename(from_dir: Ino, from: &str, to_dir: Ino, to: &str, how: RenameHow) -> Op {
    Op::Upload(Upload::Rename { from_dir, from: name(from), to_dir, to: name(to), how })
}

struct Tree {
    world: World,
    c: Client,
    dir: Ino,
    sub: Ino,
    file: Ino,
}

/// `/dir/sub`, `/dir/sub/deep`, `/empty`, `/file`.
fn tree() -> Tree {
    let mut world = World::new();
    let mut c = world.open(1);
    let dir = world.mkdir(&mut c, ROOT, "dir");
    let sub = world.mkdir(&mut c, dir, "sub");
    world.mkfile(&mut c, sub, "deep");
    world.mkdir(&mut c, ROOT, "empty");
    let file = world.mkfile(&mut c, ROOT, "file");
    Tree { world, c, dir, sub, file }
}

#[test]
fn refusals_are_linux_s() {
    let Tree { mut world, mut c, dir, sub, .. } = tree();
    let mut refused = |op| world.call(&mut c, op).unwrap_err();
    assert_eq!(refused(rename(ROOT, "none", ROOT, "x", Replace)), Refusal::NotFound);
    assert_eq!(refused(rename(ROOT, "file", ROOT, "dir", Replace)), Refusal::IsDirectory);
    assert_eq!(refused(rename(ROOT, "dir", ROOT, "file", Replace)), Refusal::NotDirectory);
    assert_eq!(refused(rename(ROOT, "empty", ROOT, "dir", Replace)), Refusal::NotEmpty);
    assert_eq!(refused(rename(ROOT, "dir", sub, "x", Replace)), Refusal::Invalid);
    assert_eq!(refused(rename(ROOT, "dir", dir, "x", Replace)), Refusal::Invalid);
    assert_eq!(refused(rename(sub, "deep", ROOT, "dir", Replace)), Refusal::NotEmpty);
    assert_eq!(refused(rename(sub, "deep", ROOT, "dir", Exchange)), Refusal::Invalid);
    assert_eq!(refused(rename(ROOT, "file", ROOT, "empty", NoReplace)), Refusal::Exists);
    assert_eq!(refused(rename(ROOT, "file", ROOT, "none", Exchange)), Refusal::NotFound);
    let elsewhere = Ino::root(NamespaceId(32));
    assert_eq!(refused(rename(ROOT, "file", elsewhere, "x", Replace)), Refusal::CrossNamespace);
}

#[test]
fn a_directory_takes_its_links_along() {
    let Tree { mut world, mut c, dir, sub, .. } = tree();
    let Ok(Outcome::Renamed { moved, other: gone }) = world.call(&mut c, rename(dir, "sub", ROOT, "empty", Replace))
    else {
        panic!()
    };
    assert_eq!((moved.ino, moved.parent), (sub, Some(ROOT)));
    assert_eq!(gone.expect("it was there").nlink, 0);
    assert_eq!(world.getattr(&mut c, dir).nlink, 2);
    assert_eq!(world.getattr(&mut c, ROOT).nlink, 4);
    assert!(world.call(&mut c, lookup(sub, "deep")).is_ok());
    assert_eq!(world.call(&mut c, rmdir(ROOT, "dir")).map(|_| ()), Ok(()));
}

#[test]
fn exchange_swaps_even_a_file_and_a_directory() {
    let Tree { mut world, mut c, dir, sub, file } = tree();
    assert!(world.call(&mut c, rename(ROOT, "file", dir, "sub", Exchange)).is_ok());
    assert_eq!(world.entry(&mut c, lookup(dir, "sub")).ino, file);
    assert_eq!(world.entry(&mut c, lookup(ROOT, "file")).ino, sub);
    assert_eq!(world.getattr(&mut c, sub).parent, Some(ROOT));
    assert_eq!(world.getattr(&mut c, file).parent, Some(dir));
    assert_eq!(world.getattr(&mut c, dir).nlink, 2);
    assert_eq!(world.getattr(&mut c, ROOT).nlink, 5);
}

#[test]
fn names_of_one_inode_stay_both() {
    let Tree { mut world, mut c, file, .. } = tree();
    assert!(world.call(&mut c, link(file, ROOT, "also")).is_ok());
    assert!(world.call(&mut c, rename(ROOT, "file", ROOT, "also", Replace)).is_ok());
    assert_eq!(world.entry(&mut c, lookup(ROOT, "file")).nlink, 2);
    assert_eq!(world.entry(&mut c, lookup(ROOT, "also")).ino, file);
}

#[test]
fn a_replaced_file_that_nobody_has_open_is_gone() {
    let Tree { mut world, mut c, file, .. } = tree();
    let other = world.mkfile(&mut c, ROOT, "other");
    world.send(&mut c, Op::Session(SessionOp::Release { inos: vec![file] }));
    let Ok(Outcome::Renamed { other: Some(gone), .. }) =
        world.call(&mut c, rename(ROOT, "other", ROOT, "file", Replace))
    else {
        panic!()
    };
    assert_eq!((gone.ino, gone.nlink), (file, 0));
    assert_eq!(world.entry(&mut c, lookup(ROOT, "file")).ino, other);
    assert_eq!(world.call(&mut c, Op::View(View::Getattr { ino: file })), Err(Refusal::Stale));
}
