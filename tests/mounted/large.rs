//! Large directories: every entry is listed once, found, and removed.

use crate::{mounted, shared};
use mount::client::CallError;
use proto::message::{Delete, Op, Outcome, Upload, View};
use proto::{Ino, Name};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::DirEntryExt;

/// Entries that come and go by the mount itself, one wait each.
const BY_MOUNT: usize = 3_000;

/// Further ones, up to 1,000,000 in all by `KFS_TEST_ENTRIES=1000000`; the default suits a debug
/// build on two cores. They come and go by the client library, many at a time.
fn further() -> std::ops::Range<usize> {
    let all = match std::env::var("KFS_TEST_ENTRIES") {
        Ok(number) => number.parse().expect("KFS_TEST_ENTRIES is a number"),
        Err(_) => BY_MOUNT + 2_000,
    };
    BY_MOUNT..all
}

fn entry(i: usize) -> String {
    format!("entry-{i:07}")
}

/// Makes the further names of `file` in `dir`, or takes them away.
fn change_further(adding: bool) {
    const AT_ONCE: usize = 128;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = shared().client("large").await.unwrap();
        let named = |name: &str| Name::new(name.as_bytes()).unwrap();
        let find = async |name: &str| -> Ino {
            let op = Op::View(View::Lookup { dir: client.root(), name: named(name) });
            match client.call(op, Default::default(), &client.patience()).await.unwrap().outcome {
                Outcome::Entry(attr) => attr.ino,
                other => panic!("{other:?}"),
            }
        };
        let (dir, file) = (find("dir").await, find("file").await);
        let mut tasks = tokio::task::JoinSet::new();
        for turn in 0..AT_ONCE {
            let client = client.clone();
            tasks.spawn(async move {
                for i in further().skip(turn).step_by(AT_ONCE) {
                    let name = named(&entry(i));
                    let op = match adding {
                        true => Op::Upload(Upload::Link { ino: file, dir, name }),
                        false => Op::Delete(Delete::Unlink { dir, name }),
                    };
                    client.call(op, Default::default(), &client.patience()).await?;
                }
                Ok::<_, CallError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap().unwrap();
        }
        client.close().await;
    });
}

#[test]
fn a_large_directory_is_listed_completely() {
    const THREADS: usize = 16;
    let n = further().end;
    let mount = mounted("large");
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(mount.join("file"), "one file with many names").unwrap();
    let started = std::time::Instant::now();
    let told = |what: &str| eprintln!("{what} after {:.1} s", started.elapsed().as_secs_f64());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dir, file) = (dir.clone(), mount.join("file"));
            scope.spawn(move || {
                for i in (thread..BY_MOUNT).step_by(THREADS) {
                    // Directories, files and links, so that every kind of entry is there.
                    match i % 100 {
                        0 => fs::create_dir(dir.join(entry(i))).unwrap(),
                        1 => std::os::unix::fs::symlink("target", dir.join(entry(i))).unwrap(),
                        2 => fs::write(dir.join(entry(i)), "x").unwrap(),
                        _ => fs::hard_link(&file, dir.join(entry(i))).unwrap(),
                    }
                }
            });
        }
    });
    told("made by the mount");
    change_further(true);
    told("made by the library");
    let cold = shared().mount("large").unwrap();
    for mount in [&mount, &cold] {
        let mut seen = HashSet::new();
        for entry in fs::read_dir(mount.join("dir")).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.ino() != 0);
            assert!(seen.insert(entry.file_name()), "{:?} is listed twice", entry.file_name());
        }
        assert_eq!(seen.len(), n);
        told("listed");
    }
    for i in (0..n).step_by(n / 50) {
        assert!(fs::symlink_metadata(cold.join("dir").join(entry(i))).is_ok(), "{}", entry(i));
    }
    change_further(false);
    told("taken away by the library");
    // Removed while it is listed, as rm -rf does.
    harness::sh(cold.path(), "rm -rf dir && [ ! -e dir ]", &[]).unwrap();
    assert!(!mount.join("dir").exists());
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(mount.join("file")).unwrap()), 1);
}
