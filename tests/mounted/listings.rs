//! Listings of a directory that changes, and places in them that stay.

use crate::{mounted, shared};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};
use std::collections::BTreeSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const STAYING: usize = 1500;
const GOING: usize = 1500;

fn opened(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// Up to `limit` entries from where the directory stands, each with the place behind it, as telldir gives it.
fn read(dir: &OwnedFd, limit: usize) -> Vec<(String, u64)> {
    // Small, so that the kernel asks many times.
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut out = Vec::new();
    while out.len() < limit
        && let Some(entry) = entries.next()
    {
        let entry = entry.unwrap();
        out.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    out
}

fn stays(name: &str) -> bool {
    name.starts_with("stays")
}

fn make(dir: &Path, what: &str, n: usize) {
    for i in 0..n {
        fs::write(dir.join(format!("{what}-{i}")), "").unwrap();
    }
}

#[test]
fn a_place_in_a_listing_stays_good_while_the_directory_changes() {
    let mount = mounted("listing-places");
    let other = shared().mount("listing-places").unwrap();
    let path = mount.join("dir");
    fs::create_dir(&path).unwrap();
    make(&path, "stays", STAYING);
    make(&path, "goes", GOING);
    let dir = opened(&path);
    let all = read(&dir, usize::MAX);
    assert_eq!(all.len(), STAYING + GOING + 2);
    assert_eq!(all.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), all.len());
    let next = |dir: &OwnedFd, place: u64| {
        seek(dir, SeekFrom::Start(place)).unwrap();
        read(dir, 1).pop().map(|(name, _)| name)
    };
    for i in (0..all.len()).step_by(37) {
        assert_eq!(next(&dir, all[i].1), all.get(i + 1).map(|(name, _)| name.clone()), "behind entry {i}");
    }
    assert_eq!(next(&dir, all.last().unwrap().1), None);
    // Both mounts take some away and make others. A place then stands before the next one that is still there.
    for (i, mount) in [&mount, &other].into_iter().enumerate() {
        for number in (i..GOING).step_by(2) {
            fs::remove_file(mount.join(format!("dir/goes-{number}"))).unwrap();
        }
        make(&mount.join("dir"), &format!("new{i}"), 100);
    }
    let fresh = opened(&other.join("dir"));
    for dir in [&dir, &fresh] {
        for i in (0..all.len()).step_by(101) {
            seek(dir, SeekFrom::Start(all[i].1)).unwrap();
            let behind: Vec<String> =
                read(dir, usize::MAX).into_iter().map(|(name, _)| name).filter(|n| stays(n)).collect();
            let expected: Vec<String> =
                all[i + 1..].iter().map(|(name, _)| name.clone()).filter(|n| stays(n)).collect();
            assert_eq!(behind, expected, "behind entry {i}");
        }
    }
}

#[test]
fn what_stays_is_listed_once_while_everything_else_comes_and_goes() {
    let mount = mounted("stays");
    let other = shared().mount("stays").unwrap();
    let path = mount.join("dir");
    fs::create_dir(&path).unwrap();
    make(&path, "stays", STAYING);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (turn, mount) in [&mount, &other].into_iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    make(&mount.join("dir"), &format!("goes-{turn}"), 50);
                    for i in 0..50 {
                        fs::remove_file(mount.join(format!("dir/goes-{turn}-{i}"))).unwrap();
                    }
                }
            });
        }
        let listings = || {
            for round in 0..20 {
                let dir = opened(&[&mount, &other][round % 2].join("dir"));
                let names: Vec<String> = read(&dir, usize::MAX).into_iter().map(|(name, _)| name).collect();
                let unique: BTreeSet<&String> = names.iter().collect();
                assert_eq!(names.iter().filter(|name| stays(name)).count(), STAYING, "round {round}");
                assert_eq!(unique.iter().filter(|name| stays(name)).count(), STAYING, "round {round}");
            }
        };
        let listed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(listings));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = listed {
            std::panic::resume_unwind(panic);
        }
    });
    // Removed while it is being listed.
    harness::sh(other.path(), "rm -rf dir && [ ! -e dir ]", &[]).unwrap();
    assert!(!path.exists());
}
