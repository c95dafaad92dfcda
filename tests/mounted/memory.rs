//! What a mount's memory comes to when more passes through it than it may keep.

use crate::{mounted, shared};
use harness::{Mount, command};
use proto::message::{FileKind, NewInode, Op, Outcome, Owner, Upload};
use proto::{Ino, Name};
use std::process::Command;
use std::time::Duration;

/// The most that the mount may take, in bytes, whatever the tree.
const MOST: u64 = 512 << 20;
const FILES_A_DIRECTORY: usize = 1000;
/// For a million files on a busy machine.
const WALK_BOUND: Duration = Duration::from_secs(1800);

fn number_of(variable: &str, default: usize) -> usize {
    match std::env::var(variable) {
        Ok(number) => number.parse().unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    }
}

/// What is resident of a mount's process, in bytes.
fn resident(mount: &Mount) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", mount.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib << 10
}

/// Makes directories of empty files by the client library, many at a time.
fn make_tree(user: &str, directories: usize) {
    const AT_ONCE: usize = 128;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = shared().client(user).await.unwrap();
        let create = |dir: Ino, name: String, kind: FileKind| {
            let (uid, gid) = (Owner::Namespace, Owner::Namespace);
            let mode = if kind == FileKind::Dir { 0o755 } else { 0o644 };
            let new = NewInode { kind, mode, umask: 0, uid, gid, rdev: 0, target: None, ino: None, reserved: false };
            Op::Upload(Upload::Create { dir, name: Name::new(name.as_bytes()).unwrap(), new })
        };
        let mut dirs = Vec::new();
        for number in 0..directories {
            let op = create(client.root(), format!("directory-{number:04}"), FileKind::Dir);
            match client.call(op, Default::default(), &client.patience()).await.unwrap().outcome {
                Outcome::Entry(attr) => dirs.push(attr.ino),
                other => panic!("{other:?}"),
            }
        }
        let mut tasks = tokio::task::JoinSet::new();
        for turn in 0..AT_ONCE {
            let (client, dirs) = (client.clone(), dirs.clone());
            tasks.spawn(async move {
                for (dir, file) in dirs
                    .iter()
                    .flat_map(|dir| (0..FILES_A_DIRECTORY).map(move |file| (*dir, file)))
                    .skip(turn)
                    .step_by(AT_ONCE)
                {
                    let op = create(dir, format!("a-file-with-a-longer-name-{file:04}"), FileKind::File);
                    client.call(op, Default::default(), &client.patience()).await.unwrap();
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        client.close().await;
    });
}

/// `KFS_TEST_FILES=1000000` for what is promised; the default suits a debug build on two cores.
#[test]
fn walking_a_large_tree_takes_bounded_memory() {
    let directories = number_of("KFS_TEST_FILES", 3000).div_ceil(FILES_A_DIRECTORY);
    let files = directories * FILES_A_DIRECTORY;
    shared().user_add("large-tree").unwrap();
    make_tree("large-tree", directories);
    let mount = shared().mount("large-tree").unwrap();
    for walk in 1..=2 {
        // A letter for each file, whose attributes had to be looked at.
        let mut find = Command::new("find");
        find.args([".", "-type", "f", "-size", "0", "-newermt", "2001-01-01", "-printf", "f"])
            .current_dir(mount.path());
        let found = command::run(&mut find, WALK_BOUND).unwrap().done().unwrap().text();
        assert_eq!(found.len(), files);
        let resident = resident(&mount);
        eprintln!("walk {walk} of {files} files: {} MiB", resident >> 20);
        assert!(resident < MOST, "{resident} bytes after walk {walk}");
    }
}

/// `KFS_TEST_LOOKUPS=10000000` for what is promised.
#[test]
fn lookups_leave_nothing_behind() {
    const THREADS: usize = 8;
    const ROUND: usize = 4_000;
    let lookups = number_of("KFS_TEST_LOOKUPS", 2 * ROUND);
    let mount = mounted("lookups");
    std::fs::write(mount.join("there"), "").unwrap();
    let mut first = None;
    for round in 0..lookups.div_ceil(ROUND) {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let mount = &mount;
                scope.spawn(move || {
                    for i in 0..ROUND / THREADS / 2 {
                        // Names that were never asked for before, and one that is there.
                        let absent = mount.join(format!("absent-{round}-{thread}-{i}"));
                        assert!(std::fs::symlink_metadata(absent).is_err());
                        assert!(std::fs::symlink_metadata(mount.join("there")).is_ok());
                    }
                });
            }
        });
        let now = resident(&mount);
        let first = *first.get_or_insert(now);
        if round.is_power_of_two() {
            eprintln!("{} lookups: {} MiB", (round + 1) * ROUND, now >> 20);
        }
        // All names that are kept, of however many, take less.
        assert!(now < first + (128 << 20) && now < MOST, "{now} bytes after round {round}, {first} after the first");
    }
}
