//! What is killed or goes away comes back, and nothing that was acknowledged is lost.

use crate::executable;
use harness::cluster::is_mounted;
use harness::tree::{self, Random};
use harness::{Cluster, command, run};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The content of file `i` in the tests below: 0 bytes to 300 KB.
fn content(i: usize) -> Vec<u8> {
    Random::new(i as u64).bytes(i * 7919 % 300_000)
}

fn cluster_with(user: &str) -> Cluster {
    let cluster = Cluster::start(&executable()).expect("the cluster starts");
    cluster.user_add(user).expect("the user can be added");
    cluster
}

#[test]
fn a_server_killed_in_mid_write_loses_nothing_acknowledged() {
    // All of it together is less than the embedded broker keeps of a partition: the server may not come to a checkpoint.
    const FILES: usize = 75;
    let content = |i: usize| Random::new(i as u64).bytes(i * 7919 % 120_000);
    let mut cluster = cluster_with("writer");
    let mount = cluster.mount_with("writer", "timeout=60").unwrap();
    let (closed, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut i = 0;
            while !stop.load(Ordering::Relaxed) && i < FILES {
                // An outage shorter than the timeout shows as a pause, never as an error.
                fs::write(mount.join(format!("file{i}")), content(i))
                    .unwrap_or_else(|error| panic!("file{i}: {error}"));
                i += 1;
                closed.store(i, Ordering::Relaxed);
            }
        });
        for kill in 1..=3 {
            let goal = closed.load(Ordering::Relaxed) + 20;
            let enough = || (closed.load(Ordering::Relaxed) >= goal || writer.is_finished()).then_some(());
            run::wait_for("20 more files", Duration::from_secs(120), enough).unwrap();
            if writer.is_finished() {
                break;
            }
            cluster.kill_server();
            cluster.start_server().unwrap_or_else(|error| panic!("start {kill}: {error:#}"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let closed = closed.load(Ordering::Relaxed);
    assert!(closed >= 60, "only {closed} files");

    // Once more, so that what is read below has been replayed.
    cluster.kill_server();
    cluster.start_server().unwrap();
    let cold = cluster.mount("writer").unwrap();
    for i in 0..closed {
        for mount in [&cold, &mount] {
            let read = fs::read(mount.join(format!("file{i}"))).unwrap_or_else(|error| panic!("file{i}: {error}"));
            assert!(read == content(i), "file{i} has {} bytes, not {}", read.len(), content(i).len());
        }
    }
}

#[test]
fn a_server_ended_in_order_starts_again() {
    let mut cluster = cluster_with("orderly");
    let mount = cluster.mount("orderly").unwrap();
    for i in 0..5 {
        fs::write(mount.join(format!("file{i}")), content(i + 10)).unwrap();
        cluster.stop_server().unwrap();
        cluster.start_server().unwrap();
    }
    let cold = cluster.mount("orderly").unwrap();
    for i in 0..5 {
        assert!(fs::read(cold.join(format!("file{i}"))).unwrap() == content(i + 10));
    }
}

#[test]
fn a_killed_mount_leaves_a_clean_directory_and_nothing_closed_is_lost() {
    let cluster = cluster_with("killed");
    let mount = cluster.mount("killed").unwrap();
    for i in 0..40 {
        fs::write(mount.join(format!("file{i}")), content(i)).unwrap();
    }
    mount.kill().unwrap();
    run::wait_for("the guardian to detach the mount", Duration::from_secs(20), || {
        (!is_mounted(mount.path())).then_some(())
    })
    .unwrap();
    tree::lists(mount.path(), &[]).expect("the directory is an ordinary empty one");

    let again = cluster.mount_at("killed", "", mount.path()).unwrap();
    for i in 0..40 {
        assert!(fs::read(again.join(format!("file{i}"))).unwrap() == content(i), "file{i}");
    }
    again.unmount().unwrap();
    assert!(!is_mounted(mount.path()));
}

#[test]
fn a_dead_mount_is_replaced_by_the_next_one() {
    let cluster = cluster_with("dead");
    let mount = cluster.mount("dead").unwrap();
    fs::write(mount.join("file"), "kept").unwrap();
    // The guardian shares the daemon's session; with both gone the mount is dead and stays visible.
    let family = Command::new("pgrep").args(["-f", "--"]).arg(mount.path()).output().unwrap();
    let family = String::from_utf8_lossy(&family.stdout).into_owned();
    let pids: Vec<i32> = family.lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.contains(&(mount.pid() as i32)), "{pids:?} has no {}", mount.pid());
    // The guardian first, or it would do its work.
    for pid in pids.iter().filter(|pid| **pid != mount.pid() as i32) {
        // SAFETY: a plain system call on processes of this run, found by their mountpoint.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    mount.kill().unwrap();
    let again = cluster.mount_at("dead", "", mount.path()).unwrap();
    assert_eq!(fs::read(again.join("file")).unwrap(), b"kept");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap().matches(mount.path().to_str().unwrap()).count(), 1);
}

#[test]
fn a_broker_that_comes_back_is_used_again() {
    let mut cluster = Cluster::start_with_own_broker(&executable()).unwrap();
    cluster.user_add("patient").unwrap();
    let mount = cluster.mount_with("patient", "timeout=120").unwrap();
    fs::write(mount.join("before"), "before").unwrap();
    cluster.broker.down().unwrap();
    std::thread::scope(|scope| {
        let during = scope.spawn(|| fs::write(mount.join("during"), content(33)));
        std::thread::sleep(Duration::from_secs(3));
        cluster.broker.up().unwrap();
        during.join().unwrap().expect("an outage shorter than the timeout is only a pause");
    });
    fs::write(mount.join("after"), "after").unwrap();
    let cold = cluster.mount("patient").unwrap();
    assert_eq!(fs::read(cold.join("before")).unwrap(), b"before");
    assert!(fs::read(cold.join("during")).unwrap() == content(33));
    assert_eq!(fs::read(cold.join("after")).unwrap(), b"after");
}

#[test]
fn while_the_server_is_away_waits_are_bounded_and_interruptible() {
    let mut cluster = cluster_with("waiting");
    let mount = cluster.mount_with("waiting", "timeout=10").unwrap();
    fs::write(mount.join("file"), "content").unwrap();
    // On a machine that does not get to it for 8 s the mount would have to ask for this.
    let file = fs::OpenOptions::new().write(true).open(mount.join("file")).unwrap();
    cluster.kill_server();

    let start = Instant::now();
    // What it answers itself goes on for some seconds more; a size is none of that.
    let error = file.set_len("content".len() as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());

    // A process that waits is ended by Ctrl-C (SIGINT, default action) and by kill -9 well before the timeout.
    let patient = cluster.mountpoint().unwrap();
    cluster.start_server().unwrap();
    let hard = cluster.mount_at("waiting", "hard", &patient).unwrap();
    let _ = fs::read_dir(hard.path()).unwrap().count();
    cluster.kill_server();
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let mut child = Command::new("truncate").arg("-s7").arg(hard.join("file")).process_group(0).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        assert!(child.try_wait().unwrap().is_none(), "truncate waits while there is no server");
        // SAFETY: a plain system call; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
        run::wait_for("the end of a waiting truncate", Duration::from_secs(5), || child.try_wait().unwrap()).unwrap();
    }

    // When the server is back, both mounts go on by themselves.
    cluster.start_server().unwrap();
    for mount in [&mount, &hard] {
        run::wait_for("the mount to go on", Duration::from_secs(60), || {
            fs::write(mount.join("afterwards"), "works").ok()
        })
        .unwrap();
        assert_eq!(fs::read(mount.join("file")).unwrap(), b"content");
    }
}

#[test]
fn sigterm_drains_and_unmounts() {
    let cluster = cluster_with("terminated");
    let mount = cluster.mount("terminated").unwrap();
    for i in 0..20 {
        fs::write(mount.join(format!("file{i}")), content(i)).unwrap();
    }
    mount.signal(libc::SIGTERM);
    mount.wait_gone().unwrap();
    assert!(!is_mounted(mount.path()));
    let again = cluster.mount("terminated").unwrap();
    for i in 0..20 {
        assert!(fs::read(again.join(format!("file{i}"))).unwrap() == content(i));
    }
    again.unmount().unwrap();
}

#[test]
fn a_second_server_on_one_data_directory_is_refused() {
    let mut cluster = cluster_with("single");
    let pid = cluster.server().pid().to_string();
    let line = cluster.server_command(&["run"]).refused(1).unwrap();
    assert!(line.contains(&pid), "{line:?} names the process that has it, {pid}");
    // The first one has not noticed.
    let mount = cluster.mount("single").unwrap();
    fs::write(mount.join("file"), "x").unwrap();
    tree::lists(mount.path(), &[OsStr::new("file")]).unwrap();
    let ls = command::run(Command::new("ls").arg(mount.path()), Duration::from_secs(10)).unwrap().done().unwrap();
    assert_eq!(ls.text(), "file\n");
}
