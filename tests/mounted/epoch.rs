//! Kafka loses everything: the servers' data is what is left, and a new epoch begins
//! from it while mounts live on.

use crate::executable;
use harness::broker::{Broker, Kind};
use harness::cluster::READY_BOUND;
use harness::tree::Random;
use harness::{Cluster, run};
use std::fs;
use std::io::{Read, Seek, SeekFrom};

fn content(i: usize) -> Vec<u8> {
    Random::new(i as u64).bytes(i * 40_000)
}

#[test]
fn a_mount_lives_through_the_loss_of_the_whole_log() {
    if Kind::asked_for() == Kind::Embedded {
        eprintln!("nothing to test without real Kafka: set KFS_TEST_BROKER=kafka");
        return;
    }
    let mut cluster = Cluster::start_with(&executable(), Broker::own_kafka).expect("the cluster starts");
    cluster.user_add("survivor").unwrap();
    let mount = cluster.mount_with("survivor", "timeout=10").unwrap();
    let write = |i: usize| fs::write(mount.join(format!("file{i}")), content(i));
    for i in 0..10 {
        write(i).unwrap();
    }
    let mut open = fs::File::open(mount.join("file9")).unwrap();

    // Everything acknowledged is on the server's disk when it ends in order.
    cluster.stop_server().unwrap();
    cluster.broker.wipe().expect("Kafka starts with empty disks");
    let refused = cluster.start_server().expect_err("nothing is applied on top of another log").to_string();
    assert!(refused.contains("epoch"), "{refused}");
    let mut begin = cluster.command("kfs-server");
    begin.args(["epoch", "--from"]).arg(cluster.data());
    let begun = harness::command::run(&mut begin, READY_BOUND).unwrap().done().unwrap().text();
    assert!(begun.contains("epoch 2"), "{begun}");
    // Kafka without its disks hands out producer ids from 0 again, while the mount still
    // writes under the one that it had: a server that is given the same ends, once.
    let start = || cluster.start_server().inspect_err(|error| eprintln!("{error:#}")).ok();
    run::wait_for("the server to start in the new epoch", READY_BOUND, start).unwrap();

    // The same mount goes on by itself: logs in anew, and trusts nothing from before.
    run::wait_for("the mount to write again", READY_BOUND, || write(10).ok()).unwrap();
    let whole = |i: usize, dir: &std::path::Path| {
        let read = fs::read(dir.join(format!("file{i}"))).unwrap_or_else(|error| panic!("file{i}: {error}"));
        assert!(read == content(i), "file{i} has {} bytes", read.len());
    };
    (0..=10).for_each(|i| whole(i, mount.path()));
    let mut again = Vec::new();
    open.seek(SeekFrom::Start(0)).unwrap();
    open.read_to_end(&mut again).unwrap();
    assert!(again == content(9), "a file that was open is read on");
    let other = cluster.mount("survivor").unwrap();
    (0..=10).for_each(|i| whole(i, other.path()));
    fs::rename(other.join("file10"), other.join("file11")).unwrap();
    assert!(!mount.join("file10").exists() && mount.join("file11").exists());
    drop(open);
    mount.unmount().unwrap();
}
