//! Disks that fill up: below a mount's journal, and below the server.

use crate::{executable, needs_root};
use harness::broker::Broker;
use harness::cluster::{Mount, READY_BOUND};
use harness::tree::Random;
use harness::{Cluster, run, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file system of its own, of this size; detached with the run's directory.
fn small_disk(cluster: &Cluster, name: &str, size: &str) -> PathBuf {
    let dir = cluster.dir().join(name);
    fs::create_dir(&dir).unwrap();
    sh(cluster.dir(), &format!("mount -t tmpfs -o size={size},mode=700 kfs-test \"$1\""), &[&dir]).unwrap();
    dir
}

fn journaling_on(disk: &Path, cluster: &Cluster, user: &str, options: &str) -> Mount {
    let dir = cluster.mountpoint().unwrap();
    let mounting = cluster.mount_command(user, options, &dir).env("XDG_STATE_HOME", disk);
    Mount::start(mounting, dir).expect("mounts")
}

fn content(i: usize) -> Vec<u8> {
    Random::new(i as u64).bytes(100_000 + i)
}

fn assert_whole(dir: &Path, files: impl IntoIterator<Item = usize>) {
    for i in files {
        let read = fs::read(dir.join(format!("file{i}"))).unwrap_or_else(|error| panic!("file{i}: {error}"));
        assert!(read == content(i), "file{i} has {} bytes, not {}", read.len(), content(i).len());
    }
}

#[test]
fn with_a_full_journal_closing_waits_for_the_server() {
    if !needs_root("mount a small file system") {
        return;
    }
    let mut cluster = Cluster::start(&executable()).expect("the cluster starts");
    cluster.user_add("cramped").unwrap();
    let disk = small_disk(&cluster, "small-state", "300k");
    let cramped = journaling_on(&disk, &cluster, "cramped", "timeout=10");
    for i in 0..20 {
        fs::write(cramped.join(format!("file{i}")), content(i)).unwrap_or_else(|error| panic!("file{i}: {error}"));
    }
    // Nothing at all is left, not even for a small request.
    sh(&disk, "cat /dev/zero > ballast || true", &[]).unwrap();
    for i in 20..30 {
        fs::write(cramped.join(format!("file{i}")), content(i)).unwrap_or_else(|error| panic!("file{i}: {error}"));
    }
    let other = cluster.mount("cramped").unwrap();
    assert_whole(other.path(), 0..30);

    // Without the journal only the server makes a close true, and it is away.
    cluster.kill_server();
    let start = Instant::now();
    let closed = fs::write(cramped.join("file30"), content(30));
    assert!(closed.is_err(), "closed after {:?} with neither journal nor server", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(40), "it took {:?} to say so", start.elapsed());
    cluster.start_server().unwrap();
    run::wait_for("the mount to write again", READY_BOUND, || fs::write(cramped.join("file30"), content(30)).ok())
        .unwrap();

    // Killed and mounted again on the same full disk: all that was closed is there.
    cramped.kill().unwrap();
    let again = journaling_on(&disk, &cluster, "cramped", "");
    assert_whole(again.path(), 0..31);
    fs::write(again.join("file31"), content(31)).unwrap();
    assert_whole(other.path(), 0..32);
}

#[test]
fn a_server_whose_disk_is_full_stops_and_goes_on_when_there_is_room() {
    if !needs_root("mount a small file system") {
        return;
    }
    let mut cluster = Cluster::bare(&executable(), Broker::own).expect("the broker starts");
    let disk = small_disk(&cluster, "data", "16m");
    assert_eq!(disk, cluster.data());
    let recovery = cluster.dir().join("recovery.key");
    cluster.server_command(&["init"]).arg("--recovery").arg(recovery).finish().unwrap();
    cluster.start_server().expect("the server starts");
    cluster.user_add("hoarder").unwrap();
    let mount = cluster.mount_with("hoarder", "timeout=10").unwrap();

    let mut written = 0;
    let ended = run::wait_for("the server's disk to be full", Duration::from_secs(240), || {
        if fs::write(mount.join(format!("file{written}")), content(written)).is_ok() {
            written += 1;
        }
        cluster.server().ended()
    })
    .unwrap();
    assert_eq!(ended.code(), Some(1), "it stops by itself, with a reason");
    assert!(written > 20, "{written} files");
    let said = cluster.server().output();
    assert!(said.contains("No space left on device"), "{said}");
    // Still full: it says so again and changes nothing.
    let again = cluster.start_server();
    if again.is_ok() {
        // What it could not write may have left room for what is still to come: more makes it full again.
        run::wait_for("the server to notice", Duration::from_secs(240), || {
            if fs::write(mount.join(format!("file{written}")), content(written)).is_ok() {
                written += 1;
            }
            cluster.server().ended()
        })
        .unwrap();
    }

    sh(cluster.dir(), "mount -o remount,size=200m \"$1\"", &[&disk]).unwrap();
    cluster.start_server().expect("with room it starts");
    run::wait_for("the mount to write again", READY_BOUND, || {
        fs::write(mount.join(format!("file{written}")), content(written)).ok()
    })
    .unwrap();
    assert_whole(mount.path(), 0..=written);
    let cold = cluster.mount("hoarder").unwrap();
    assert_whole(cold.path(), 0..=written);
}
