//! Several mounts of one user show one tree, at once; those of another user show nothing of it.

use crate::{mounted, shared};
use harness::tree::{self, Random};
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

#[test]
fn what_one_mount_has_closed_the_other_reads_whole_and_at_once() {
    let one = mounted("two-mounts");
    let other = shared().mount("two-mounts").unwrap();
    let mut random = Random::new(4);
    let mounts = [&one, &other];
    for round in 0..30usize {
        let (writer, reader) = (mounts[round % 2], mounts[(round + 1) % 2]);
        let len = [10, 4096, 100_000, 2_000_000][round % 4];
        let content = random.bytes(len);
        fs::write(writer.join("file"), &content).unwrap();
        // No wait and no retry: closed means visible.
        assert!(fs::read(reader.join("file")).unwrap() == content, "round {round}: {len} bytes");
        assert_eq!(fs::metadata(reader.join("file")).unwrap().len(), len as u64);
    }
}

#[test]
fn every_change_of_one_mount_is_seen_by_the_other() {
    let one = mounted("changes");
    let other = shared().mount("changes").unwrap();
    let not_there = |path| fs::metadata(path).unwrap_err().kind() == ErrorKind::NotFound;
    for round in 0..10 {
        // Both have everything in their caches before each change.
        let warm = || {
            for mount in [&one, &other] {
                let _ = fs::read_dir(mount.path()).unwrap().count();
                let _ = fs::metadata(mount.join("dir/file"));
            }
        };
        warm();
        fs::create_dir(one.join("dir")).unwrap();
        assert!(other.join("dir").is_dir(), "round {round}");
        warm();
        fs::write(other.join("dir/file"), "first").unwrap();
        assert_eq!(fs::read(one.join("dir/file")).unwrap(), b"first");
        warm();
        fs::set_permissions(one.join("dir/file"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(other.join("dir/file")).unwrap().mode() & 0o777, 0o600);
        warm();
        OpenOptions::new().append(true).open(other.join("dir/file")).unwrap().write_all(b" second").unwrap();
        assert_eq!(fs::read(one.join("dir/file")).unwrap(), b"first second");
        warm();
        OpenOptions::new().write(true).open(one.join("dir/file")).unwrap().set_len(3).unwrap();
        assert_eq!(fs::read(other.join("dir/file")).unwrap(), b"fir");
        warm();
        fs::rename(other.join("dir/file"), other.join("renamed")).unwrap();
        assert!(not_there(one.join("dir/file")));
        assert_eq!(fs::read(one.join("renamed")).unwrap(), b"fir");
        warm();
        fs::hard_link(one.join("renamed"), one.join("dir/link")).unwrap();
        assert_eq!(fs::metadata(other.join("renamed")).unwrap().nlink(), 2);
        fs::remove_file(other.join("renamed")).unwrap();
        assert_eq!(fs::metadata(one.join("dir/link")).unwrap().nlink(), 1);
        warm();
        fs::remove_file(one.join("dir/link")).unwrap();
        assert!(not_there(other.join("dir/link")));
        fs::remove_dir(other.join("dir")).unwrap();
        tree::lists(one.path(), &[]).unwrap();
    }
}

/// The kernel moves what it was told to keep along with the name.
#[test]
fn a_name_that_was_moved_here_is_forgotten_when_another_mount_moves_it_on() {
    let one = mounted("moved-on");
    let other = shared().mount("moved-on").unwrap();
    for round in 0..5 {
        let (from, to) = (format!("from{round}"), format!("to{round}"));
        fs::create_dir(one.join(&from)).unwrap();
        fs::create_dir(one.join(&to)).unwrap();
        let (from, to) = (|name: &str| format!("{from}/{name}"), |name: &str| format!("{to}/{name}"));
        for name in ["a", "x"] {
            fs::write(one.join(from(name)), name).unwrap();
            fs::metadata(one.join(from(name))).unwrap();
        }
        fs::rename(one.join(from("a")), one.join(from("b"))).unwrap();
        fs::rename(one.join(from("x")), one.join(to("x"))).unwrap();
        fs::rename(other.join(from("b")), other.join(from("c"))).unwrap();
        assert_eq!(fs::metadata(one.join(from("b"))).unwrap_err().kind(), ErrorKind::NotFound, "round {round}");
        assert_eq!(fs::read(one.join(from("c"))).unwrap(), b"a");
        fs::set_permissions(other.join(to("x")), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(fs::metadata(one.join(to("x"))).unwrap().mode() & 0o777, 0o600, "round {round}");
    }
}

#[test]
fn an_open_file_shows_what_another_mount_writes_soon() {
    let one = mounted("open-both");
    let other = shared().mount("open-both").unwrap();
    fs::write(one.join("file"), "aaaa").unwrap();
    let reading = fs::File::open(other.join("file")).unwrap();
    let mut bytes = [0; 4];
    reading.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"aaaa");
    let writing = OpenOptions::new().write(true).open(one.join("file")).unwrap();
    writing.write_all_at(b"bbbb", 0).unwrap();
    writing.sync_all().unwrap();
    harness::run::wait_for("the other mount's bytes", std::time::Duration::from_secs(10), || {
        reading.read_exact_at(&mut bytes, 0).unwrap();
        (&bytes == b"bbbb").then_some(())
    })
    .unwrap();

    // Its last name goes in one mount; the other's handle stays good.
    fs::remove_file(one.join("file")).unwrap();
    reading.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"bbbb");
}

#[test]
fn both_mounts_write_into_one_directory_at_the_same_time() {
    const EACH: usize = 100;
    let one = mounted("crowd");
    let other = shared().mount("crowd").unwrap();
    std::thread::scope(|scope| {
        for (name, mount) in [("one", &one), ("other", &other)] {
            for thread in 0..2 {
                scope.spawn(move || {
                    for i in 0..EACH {
                        fs::write(mount.join(format!("{name}-{thread}-{i}")), name).unwrap();
                        // Only one of all the racers may win.
                        let _ = OpenOptions::new().write(true).create_new(true).open(mount.join(format!("shared-{i}")));
                    }
                });
            }
        }
    });
    for mount in [&one, &other] {
        let names: Vec<_> = fs::read_dir(mount.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 5 * EACH);
        assert!(names.contains(&OsStr::new("other-1-99").to_owned()));
    }
}

#[test]
fn exactly_one_of_many_wins_an_exclusive_create() {
    let one = mounted("exclusive");
    let other = shared().mount("exclusive").unwrap();
    for i in 0..40 {
        let create = |mount: &harness::Mount| {
            OpenOptions::new().write(true).create_new(true).open(mount.join(format!("lock{i}"))).is_ok()
        };
        let wins = std::thread::scope(|scope| {
            let racers = [scope.spawn(|| create(&one)), scope.spawn(|| create(&other)), scope.spawn(|| create(&one))];
            racers.map(|racer| racer.join().unwrap())
        });
        assert_eq!(wins.iter().filter(|won| **won).count(), 1, "lock{i}: {wins:?}");
    }
}

#[test]
fn another_user_sees_nothing() {
    let first = mounted("first-user");
    fs::create_dir(first.join("private")).unwrap();
    fs::write(first.join("private/file"), "mine").unwrap();
    let second = mounted("second-user");
    tree::lists(second.path(), &[]).unwrap();
    assert_eq!(fs::metadata(second.join("private")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::write(second.join("private"), "another's").unwrap();
    assert!(first.join("private").is_dir());
    tree::lists(second.path(), &[OsStr::new("private")]).unwrap();
}
