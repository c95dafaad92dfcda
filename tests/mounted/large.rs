//! Large directories: every entry is listed once, found, and removed.

use crate::{mounted, shared};
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::DirEntryExt;

/// 100,000 by `KFS_TEST_ENTRIES=100000`, 1,000,000 likewise; the default suits a debug build on two cores.
fn entries() -> usize {
    match std::env::var("KFS_TEST_ENTRIES") {
        Ok(number) => number.parse().expect("KFS_TEST_ENTRIES is a number"),
        Err(_) => 3_000,
    }
}

#[test]
fn a_large_directory_is_listed_completely() {
    const THREADS: usize = 16;
    let n = entries();
    let mount = mounted("large");
    let dir = mount.join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(mount.join("file"), "one file with many names").unwrap();
    let name = |i: usize| format!("entry-{i:07}");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (dir, file) = (dir.clone(), mount.join("file"));
            scope.spawn(move || {
                for i in (thread..n).step_by(THREADS) {
                    // Directories, files and links, so that every kind of entry is there.
                    match i % 100 {
                        0 => fs::create_dir(dir.join(name(i))).unwrap(),
                        1 => std::os::unix::fs::symlink("target", dir.join(name(i))).unwrap(),
                        2 => fs::write(dir.join(name(i)), "x").unwrap(),
                        _ => fs::hard_link(&file, dir.join(name(i))).unwrap(),
                    }
                }
            });
        }
    });
    let cold = shared().mount("large").unwrap();
    for mount in [&mount, &cold] {
        let mut seen = HashSet::new();
        for entry in fs::read_dir(mount.join("dir")).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.ino() != 0);
            assert!(seen.insert(entry.file_name()), "{:?} is listed twice", entry.file_name());
        }
        assert_eq!(seen.len(), n);
    }
    for i in (0..n).step_by(n / 50) {
        assert!(fs::symlink_metadata(cold.join("dir").join(name(i))).is_ok(), "{}", name(i));
    }
    // Removed while it is listed, as rm -rf does.
    harness::sh(cold.path(), "rm -rf dir && [ ! -e dir ]", &[]).unwrap();
    assert!(!mount.join("dir").exists());
    assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(mount.join("file")).unwrap()), 1);
}
