//! The disk cache: what was read once needs no download, whatever mount reads it, and nothing in it is believed.

use crate::{mounted, shared};
use harness::tree::Random;
use harness::{Mount, Scratch, run};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SMALL: usize = 30_000;
const WAIT: Duration = Duration::from_secs(30);

fn make(mount: &Mount) {
    fs::write(mount.join("large"), Random::new(1).bytes(6 << 20)).unwrap();
    for number in 0..20 {
        fs::write(mount.join(format!("small{number}")), Random::new(number + 2).bytes(SMALL)).unwrap();
    }
}

fn reads_all(mount: &Mount) {
    assert!(fs::read(mount.join("large")).unwrap() == Random::new(1).bytes(6 << 20));
    for number in 0..20 {
        assert!(fs::read(mount.join(format!("small{number}"))).unwrap() == Random::new(number + 2).bytes(SMALL));
    }
}

fn status(user: &str, mount: &Mount) -> Value {
    let text = shared().kfs(user, &["status", "--json"]).arg(mount.path()).finish().unwrap().text();
    serde_json::from_str(&text).unwrap()
}

fn downloaded(user: &str, mount: &Mount) -> u64 {
    status(user, mount)["status"]["client"]["counters"]["chunks_downloaded"].as_u64().unwrap()
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn what_was_read_once_is_not_downloaded_again() {
    let scratch = Scratch::new("tier");
    let dir = scratch.join("cache");
    let user = "tier";
    let writer = mounted(user);
    make(&writer);
    let mounts = || shared().mount_with(user, &format!("cache_dir={}", dir.display())).unwrap();
    let first = mounts();
    reads_all(&first);
    assert!(downloaded(user, &first) >= 12, "the large file is more than that");
    let tier = status(user, &first)["status"]["tier"].clone();
    assert_eq!((tier["broken"].clone(), tier["hits"].as_u64()), (Value::Null, Some(0)), "{tier}");
    // What is being written is there soon.
    run::wait_for("all that was downloaded to be kept", WAIT, || {
        let kept: u64 = files(&dir).iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        (kept > (6 << 20) + 20 * SMALL as u64).then_some(())
    })
    .unwrap();
    first.unmount().unwrap();
    let second = mounts();
    reads_all(&second);
    assert_eq!(downloaded(user, &second), 0);
    let text = shared().kfs(user, &["status"]).arg(second.path()).finish().unwrap().text();
    assert!(text.contains("disk cache: 6") && text.contains(&format!("in {}", dir.display())), "{text}");
    for file in files(&dir) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{file:?}");
    }
    // What another mount writes is read, though what was there before is still kept.
    fs::write(writer.join("small3"), b"other").unwrap();
    assert_eq!(fs::read(second.join("small3")).unwrap(), b"other");
    second.unmount().unwrap();
    // Whatever stands there is not believed.
    for file in files(&dir).iter().filter(|file| !file.ends_with("lock")) {
        fs::write(file, b"nonsense").unwrap();
    }
    fs::write(writer.join("small3"), Random::new(5).bytes(SMALL)).unwrap();
    let third = mounts();
    reads_all(&third);
    assert!(downloaded(user, &third) >= 12);
}

#[test]
fn a_directory_that_cannot_be_used_is_named_before_anything_is_mounted() {
    let scratch = Scratch::new("tier-refused");
    fs::write(scratch.join("file"), b"").unwrap();
    let dir = shared().mountpoint().unwrap();
    let options = format!("cache_dir={}", scratch.join("file").display());
    shared().user_add("tier-refused").unwrap();
    let refused = |options: &str| shared().mount_command("tier-refused", options, &dir).refused(1).unwrap();
    let why = refused(&options);
    assert!(why.contains("cannot keep content in") && why.contains("cache_dir="), "{why}");
    // Each look at it would be one at the mount.
    let why = refused(&format!("nonempty,cache_dir={}", dir.join("inside").display()));
    assert!(why.contains("within what is to be mounted") && !dir.join("inside").exists(), "{why}");
}
