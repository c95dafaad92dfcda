//! Names, attributes, listings, links and extended attributes.

use crate::place::{ME, Place, all_names};
use mount::client::Patience;
use mount::error::FsError;
use mount::fs::{CreateHow, Fs, ROOT, SetAttr, SetTime};
use proto::Time;
use proto::message::{FileKind, Refusal, RenameHow, XattrHow};
use std::collections::BTreeSet;
use std::time::Duration;

fn patience() -> Patience {
    Patience::within(Duration::from_secs(30))
}

async fn list(fs: &Fs, dir: u64) -> Vec<String> {
    all_names(fs, dir).await.into_iter().map(|name| String::from_utf8(name).expect("text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_found_moved_and_taken_away() {
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let p = patience();
    let dir = fs.mkdir(ME, ROOT, b"dir", 0o755, &p).await.expect("makes");
    assert_eq!((dir.kind, dir.nlink), (FileKind::Dir, 2));
    assert_eq!(fs.getattr(ROOT, &p).await.expect("is there").nlink, 3);
    let (file, opened) = fs.create(ME, dir.ino, b"a", 0o600, CreateHow::default(), &p).await.expect("makes");
    fs.release(opened.handle).expect("closes");
    assert_eq!(fs.lookup(dir.ino, b"a", &p).await.expect("is there"), file);
    assert!(fs.lookup(dir.ino, b"b", &p).await.expect_err("is not").is(Refusal::NotFound));
    let linked = fs.link(file.ino, dir.ino, b"b", &p).await.expect("links");
    assert_eq!((linked.ino, linked.nlink), (file.ino, 2));
    assert_eq!(fs.lookup(dir.ino, b"a", &p).await.expect("is there").nlink, 2);
    fs.rename((dir.ino, b"b"), (ROOT, b"c"), RenameHow::Replace, &p).await.expect("moves");
    assert!(fs.lookup(dir.ino, b"b", &p).await.expect_err("has gone").is(Refusal::NotFound));
    let taken = fs.rename((dir.ino, b"a"), (ROOT, b"c"), RenameHow::NoReplace, &p).await;
    assert!(taken.expect_err("is taken").is(Refusal::Exists));
    fs.symlink(ME, ROOT, b"l", b"dir/a", &p).await.expect("makes");
    fs.rename((ROOT, b"c"), (ROOT, b"l"), RenameHow::Exchange, &p).await.expect("exchanges");
    assert_eq!(fs.lookup(ROOT, b"l", &p).await.expect("is there").ino, file.ino);
    let link = fs.lookup(ROOT, b"c", &p).await.expect("is there");
    assert_eq!(&fs.readlink(link.ino, &p).await.expect("reads")[..], b"dir/a");
    let full = fs.rmdir(ROOT, b"dir", &p).await;
    assert!(full.expect_err("is not empty").is(Refusal::NotEmpty));
    fs.unlink(dir.ino, b"a", &p).await.expect("takes away");
    fs.rmdir(ROOT, b"dir", &p).await.expect("takes away");
    assert_eq!(fs.getattr(ROOT, &p).await.expect("is there").nlink, 2);
    assert_eq!(
        list(&fs, ROOT).await.into_iter().collect::<BTreeSet<_>>(),
        [".", "..", "c", "l"].map(str::to_owned).into()
    );

    // A second mount sees the same, from the server.
    let other = place.fs().await;
    assert_eq!(other.getattr(ROOT, &p).await.expect("is there"), fs.getattr(ROOT, &p).await.expect("is there"));
    assert_eq!(
        list(&other, ROOT).await.into_iter().collect::<BTreeSet<_>>(),
        [".", "..", "c", "l"].map(str::to_owned).into()
    );
    assert!(matches!(fs.lookup(ROOT, &[b'x'; 256], &p).await, Err(FsError::Name(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directorys_times_are_those_of_its_last_change_wherever_they_stood() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let dir = fs.mkdir(ME, ROOT, b"dir", 0o755, &p).await.expect("makes").ino;
    let far = Time { secs: 5_000_000_000, nanos: 0 };
    let set = SetAttr { mtime: Some(SetTime::At(far)), ..SetAttr::default() };
    assert_eq!(fs.setattr(dir, set, &p).await.expect("is set").mtime, far);
    let made = fs.mkdir(ME, dir, b"below", 0o755, &p).await.expect("makes");
    for fs in [&fs, &other] {
        let dir = fs.getattr(dir, &p).await.expect("is there");
        assert_eq!((dir.mtime, dir.ctime), (made.ctime, made.ctime));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_mounts_see_each_others_names_at_once() {
    let place = Place::in_memory().await;
    let (one, two) = (place.fs().await, place.fs().await);
    let p = patience();
    for i in 0..50 {
        let name = format!("n{i}");
        // The other has just learned that it is absent.
        assert!(two.lookup(ROOT, name.as_bytes(), &p).await.expect_err("is not there").is(Refusal::NotFound));
        let made = one.mkdir(ME, ROOT, name.as_bytes(), 0o755, &p).await.expect("makes");
        assert_eq!(two.lookup(ROOT, name.as_bytes(), &p).await.expect("is there").ino, made.ino);
        two.setattr(made.ino, SetAttr { mode: Some(0o700), ..SetAttr::default() }, &p).await.expect("sets");
        assert_eq!(one.getattr(made.ino, &p).await.expect("is there").mode, 0o700);
        assert_eq!(one.getattr(ROOT, &p).await.expect("is there"), two.getattr(ROOT, &p).await.expect("is there"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_directories_are_listed_once_each_while_they_change() {
    let place = Place::in_memory().await;
    let fs = place.fs().await;
    let p = patience();
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &p).await.expect("makes").ino;
    let makes = (0..3000).map(|i| {
        let fs = fs.clone();
        tokio::spawn(async move {
            let name = format!("file-{i}");
            let (_, opened) =
                fs.create(ME, dir, name.as_bytes(), 0o644, CreateHow::default(), &patience()).await.expect("makes");
            fs.release(opened.handle).expect("closes");
        })
    });
    for made in makes.collect::<Vec<_>>() {
        made.await.expect("makes");
    }
    for fs in [&fs, &place.fs().await] {
        let names = list(fs, dir).await;
        assert_eq!(names.len(), 3002);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3002);
    }
    // Half of them go while another mount lists.
    let other = place.fs().await;
    let handle = other.opendir(dir);
    let (mut names, mut offset, mut round) = (Vec::new(), 0, 0);
    loop {
        let entries = other.readdir(handle, offset, round % 2 == 0, &p).await.expect("lists");
        // As a kernel's buffer would: a part of what is offered.
        let Some(last) = entries.get(99).or(entries.last()) else { break };
        offset = last.offset;
        names.extend(entries.iter().take(100).map(|e| String::from_utf8(e.name.clone()).expect("text")));
        for i in (round * 50..round * 50 + 50).filter(|i| i % 2 == 0 && *i < 3000) {
            fs.unlink(dir, format!("file-{i}").as_bytes(), &p).await.expect("takes away");
        }
        round += 1;
    }
    let unique: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(unique.len(), names.len(), "nothing twice");
    for i in (1..3000).step_by(2) {
        assert!(unique.contains(&format!("file-{i}")), "what stayed is listed: {i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_and_extended_attributes_are_kept() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let (file, opened) = fs.create(ME, ROOT, b"f", 0o644, CreateHow::default(), &p).await.expect("makes");
    fs.release(opened.handle).expect("closes");
    let at = Time { secs: -5, nanos: 7 };
    let set = SetAttr {
        mode: Some(0o4755),
        uid: Some(12),
        gid: Some(34),
        mtime: Some(SetTime::At(at)),
        ..SetAttr::default()
    };
    fs.setattr(file.ino, set, &p).await.expect("sets");
    for fs in [&fs, &other] {
        let stat = fs.getattr(file.ino, &p).await.expect("is there");
        assert_eq!((stat.mode, stat.uid, stat.gid, stat.mtime), (0o4755, 12, 34, at));
    }
    assert!(matches!(fs.getxattr(file.ino, b"user.a", &p).await, Err(FsError::NoAttribute)));
    let big = vec![7; 60_000];
    fs.setxattr(file.ino, b"user.a", b"one", XattrHow::Set, &p).await.expect("sets");
    fs.setxattr(file.ino, b"user.b", &big, XattrHow::Create, &p).await.expect("sets");
    assert!(fs.setxattr(file.ino, b"user.a", b"", XattrHow::Create, &p).await.expect_err("exists").is(Refusal::Exists));
    for fs in [&fs, &other] {
        assert_eq!(&fs.getxattr(file.ino, b"user.a", &p).await.expect("is there")[..], b"one");
        assert_eq!(&fs.getxattr(file.ino, b"user.b", &p).await.expect("is there")[..], &big[..]);
        assert_eq!(fs.listxattr(file.ino, true, &p).await.expect("lists"), b"user.a\0user.b\0");
    }
    other.removexattr(file.ino, b"user.a", &p).await.expect("removes");
    assert!(matches!(fs.getxattr(file.ino, b"user.a", &p).await, Err(FsError::NoAttribute)));
    // What becomes of it in another directory nobody tells whoever looks at the first one.
    let dir = fs.mkdir(ME, ROOT, b"elsewhere", 0o755, &p).await.expect("makes").ino;
    assert_eq!(&fs.getxattr(file.ino, b"user.b", &p).await.expect("is there")[..], &big[..]);
    fs.rename((ROOT, b"f"), (dir, b"f"), RenameHow::Replace, &p).await.expect("moves");
    other.setxattr(file.ino, b"user.b", b"two", XattrHow::Replace, &p).await.expect("sets");
    assert_eq!(&fs.getxattr(file.ino, b"user.b", &p).await.expect("is there")[..], b"two");
    for (name, errno) in
        [(&b"system.other"[..], libc::EOPNOTSUPP), (b"none", libc::EOPNOTSUPP), (b"user.", libc::EINVAL)]
    {
        let set = fs.setxattr(file.ino, name, b"", XattrHow::Set, &p).await;
        assert_eq!(i32::from(set.expect_err("no such namespace").errno()), errno);
        let got = fs.getxattr(file.ino, name, &p).await;
        assert_eq!(i32::from(got.expect_err("no such namespace").errno()), errno);
    }
    let unlabelled = fs.getxattr(file.ino, b"security.selinux", &p).await.expect_err("has no label");
    assert_eq!(i32::from(unlabelled.errno()), libc::EOPNOTSUPP, "or `ls -l` asks for each file");
    for name in [&b"trusted.t"[..], b"security.s", b"security.selinux"] {
        fs.setxattr(file.ino, name, b"", XattrHow::Set, &p).await.expect("sets");
    }
    assert_eq!(
        fs.listxattr(file.ino, true, &p).await.expect("lists"),
        b"security.s\0security.selinux\0trusted.t\0user.b\0"
    );
    assert_eq!(&fs.getxattr(file.ino, b"security.selinux", &p).await.expect("is there")[..], b"");
    let listed = fs.listxattr(file.ino, false, &p).await.expect("lists");
    assert_eq!(listed, b"security.s\0security.selinux\0user.b\0");

    // Below a setgid directory everything is of its group.
    let dir = fs.mkdir(ME, ROOT, b"g", 0o755, &p).await.expect("makes");
    fs.setattr(dir.ino, SetAttr { mode: Some(0o2775), gid: Some(77), ..SetAttr::default() }, &p).await.expect("sets");
    let sub = fs.mkdir(ME, dir.ino, b"s", 0o755, &p).await.expect("makes");
    assert_eq!((sub.mode, sub.gid), (0o2755, 77));
    let below = place.fs_at("/g").await;
    assert_eq!(below.lookup(ROOT, b"s", &p).await.expect("is there").ino, sub.ino);
}
