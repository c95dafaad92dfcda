//! Quotas and owners on real mounts: what dd, rm, df and the administrator see.

use crate::{mounted, shared};
use harness::command;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

fn quota(user: &str, args: &[&str]) -> String {
    shared().server_command(&[&["user", "quota", user], args].concat()).finish().unwrap().text()
}

/// Writes until an error comes: how much went in, and the error.
fn fill(path: &Path) -> (u64, std::io::Error) {
    let mut file = File::create(path).unwrap();
    let block = vec![7; 300_000];
    let mut done = 0;
    loop {
        match file.write(&block) {
            Ok(written) => done += written as u64,
            Err(error) => return (done, error),
        }
    }
}

fn is_quota(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::DQUOT.raw_os_error())
}

/// What `df` says, in bytes: all, used, left.
fn df(dir: &Path) -> (u64, u64, u64) {
    let mut df = Command::new("df");
    df.args(["-B1", "--output=size,used,avail"]).arg(dir);
    let text = command::run(&mut df, command::SCRIPT_BOUND).unwrap().done().unwrap().text();
    let numbers: Vec<u64> = text.lines().last().unwrap().split_whitespace().map(|n| n.parse().unwrap()).collect();
    (numbers[0], numbers[1], numbers[2])
}

#[test]
fn the_quota_is_told_at_the_write_and_what_is_removed_is_free_at_once() {
    let one = mounted("quota");
    let other = shared().mount("quota").unwrap();
    assert!(quota("quota", &[]).contains("0 bytes (no limit), 1 inodes (no limit)"));
    let text = quota("quota", &["--bytes", "4M"]);
    assert!(text.contains("0 bytes (of 4194304)"), "{text}");

    let (done, error) = fill(&one.join("a"));
    assert!(done == 4 << 20 && is_quota(&error), "{done} bytes, then {error}");
    assert_eq!(df(other.path()), (4 << 20, 4 << 20, 0));
    let (done, error) = fill(&other.join("b"));
    assert!(done == 0 && is_quota(&error), "{done} bytes, then {error}");
    // dd says the same, with the kernel's own pages between.
    let mut dd = Command::new("dd");
    dd.args(["if=/dev/zero", "bs=64K", "count=1"]).arg(format!("of={}", other.join("c").display()));
    let dd = command::run(&mut dd, command::SCRIPT_BOUND).unwrap();
    assert!(dd.code() == 1 && dd.stderr.contains("quota exceeded"), "{dd:?}");

    // What is there can be written over.
    let file = File::options().read(true).write(true).open(one.join("a")).unwrap();
    file.write_all_at(&[9; 100_000], 1 << 20).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert_eq!(fs::read(other.join("a")).unwrap()[1 << 20..][..100_000], [9; 100_000]);

    fs::remove_file(one.join("a")).unwrap();
    // The other mount has read it, and says first that it has it open no more.
    harness::run::wait_for("room in df", command::SCRIPT_BOUND, || (df(one.path()).2 == 4 << 20).then_some(()))
        .unwrap();
    fs::remove_file(one.join("b")).unwrap();
    let (done, _) = fill(&other.join("d"));
    assert_eq!(done, 4 << 20);
    // A copy that shares the content counts as well.
    let copied = fs::copy(other.join("d"), one.join("e")).unwrap_err();
    assert!(is_quota(&copied), "{copied}");
    let text = quota("quota", &["--bytes", "none"]);
    assert!(text.contains("4194304 bytes (no limit)"), "{text}");
    fs::copy(other.join("d"), one.join("e")).unwrap();
}

#[test]
fn two_mounts_that_write_at_once_keep_what_they_were_told_is_written() {
    let one = mounted("quota-two");
    let other = shared().mount("quota-two").unwrap();
    quota("quota-two", &["--bytes", "10M"]);
    let (a, b) = (one.join("a"), other.join("b"));
    let ((a_done, a_error), (b_done, b_error)) = std::thread::scope(|scope| {
        let a = scope.spawn(|| fill(&a));
        let b = scope.spawn(|| fill(&b));
        (a.join().unwrap(), b.join().unwrap())
    });
    assert!(is_quota(&a_error) && is_quota(&b_error), "{a_error}, {b_error}");
    assert_eq!(a_done + b_done, 10 << 20);
    assert_eq!(fs::metadata(other.join("a")).unwrap().len(), a_done);
    assert!(fs::read(other.join("a")).unwrap().iter().all(|byte| *byte == 7));
    assert!(fs::read(one.join("b")).unwrap().iter().all(|byte| *byte == 7));
}

#[test]
fn inodes_are_limited_and_kfs_put_is_told_too() {
    let mount = mounted("quota-inodes");
    let cluster = shared();
    quota("quota-inodes", &["--inodes", "3", "--bytes", "100K"]);
    fs::write(mount.join("a"), "a").unwrap();
    fs::create_dir(mount.join("b")).unwrap();
    assert!(is_quota(&File::create(mount.join("c")).unwrap_err()));
    assert!(is_quota(&fs::create_dir(mount.join("c")).unwrap_err()));
    assert!(is_quota(&std::os::unix::fs::symlink("a", mount.join("c")).unwrap_err()));
    let mut df = Command::new("df");
    df.args(["--output=itotal,iavail"]).arg(mount.path());
    let inodes = command::run(&mut df, command::SCRIPT_BOUND).unwrap().done().unwrap().text();
    assert_eq!(inodes.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(), ["3", "0"]);
    let large = cluster.dir().join("large");
    fs::write(&large, vec![1; 200 << 10]).unwrap();
    let put = |to| cluster.kfs("quota-inodes", &["put", large.to_str().unwrap(), to]).refused(1).unwrap();
    let line = put("/c");
    assert!(line.contains("quota"), "{line}");
    let line = put("/a");
    assert!(line.contains("quota"), "{line}");
    fs::remove_dir(mount.join("b")).unwrap();
    fs::write(mount.join("c"), "c").unwrap();
}

#[test]
fn what_makes_no_quota_is_refused() {
    let cluster = shared();
    cluster.user_add("quota-bad").unwrap();
    for (arg, word) in [
        ("--bytes=much", "is not a size"),
        ("--bytes=-1", "is not a size"),
        ("--inodes=0", "at least 1"),
        ("--inodes=1.5", "at least 1"),
    ] {
        let refused = cluster.server_command(&["user", "quota", "quota-bad", arg]).run().unwrap();
        assert!(refused.code() == 2 && refused.stderr.contains(word), "{arg}: {refused:?}");
    }
    let line = cluster.server_command(&["user", "quota", "quota-nobody", "--bytes", "1M"]).refused(1).unwrap();
    assert!(line.contains("quota-nobody") && line.contains("no such user"), "{line}");
    let list = cluster.server_command(&["user", "list"]).finish().unwrap().text();
    assert!(list.lines().any(|line| line.starts_with("quota-bad ") && line.trim_end().ends_with(" -")), "{list}");
}
