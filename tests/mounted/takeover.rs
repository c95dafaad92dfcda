//! Two servers on three brokers: the one that answers is killed or stopped under load,
//! again and again, and what mounts see of it is a short pause.
//!
//! A minute of it, or as many as `KFS_TEST_MINUTES` says; on real Kafka only.

use crate::executable;
use harness::broker::{Broker, Kind};
use harness::tree::Random;
use harness::{Cluster, Mount, run};
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What the longest operation of any client may take, a takeover included.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Load before each kill.
const LOAD: Duration = Duration::from_secs(8);
const TAKEOVER_BOUND: Duration = Duration::from_secs(60);

fn minutes() -> u64 {
    match std::env::var("KFS_TEST_MINUTES") {
        Err(_) => 1,
        Ok(text) => text.parse().expect("KFS_TEST_MINUTES is a number of minutes"),
    }
}

/// One client's view: every operation must succeed, and is timed.
struct Client<'a> {
    stop: &'a AtomicBool,
    longest: &'a Mutex<(Duration, String)>,
    operations: &'a AtomicUsize,
}

impl Client<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn timed<T>(&self, what: impl Debug, operation: impl FnOnce() -> std::io::Result<T>) -> T {
        let start = Instant::now();
        let result = operation();
        let took = start.elapsed();
        let mut longest = self.longest.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if took > longest.0 {
            *longest = (took, format!("{what:?}"));
        }
        drop(longest);
        self.operations.fetch_add(1, Ordering::Relaxed);
        result.unwrap_or_else(|error| panic!("{what:?} after {took:?}: {error}"))
    }

    fn write(&self, path: &Path, content: &[u8]) {
        self.timed(("write", path), || fs::write(path, content));
    }

    fn reads(&self, path: &Path, content: &[u8]) {
        let read = self.timed(("read", path), || fs::read(path));
        assert!(read == content, "{path:?} has {} bytes that are not the {} written", read.len(), content.len());
    }
}

/// The content of file `i`: 0 bytes to 200 KB.
fn content(i: usize) -> Vec<u8> {
    Random::new(i as u64).bytes(i * 7919 % 200_000)
}

/// Writes by one mount what the other must read, whole and at once, though it had the
/// name's absence and the directory in its caches. Gives the number of files.
fn files(client: &Client, writing: &Mount, reading: &Mount) -> usize {
    let mut i = 0;
    while client.goes_on() {
        let name = format!("files/{i}");
        assert!(!reading.join(&name).exists());
        client.write(&writing.join(&name), &content(i));
        client.reads(&reading.join(&name), &content(i));
        i += 1;
    }
    i
}

/// Replaces one file by renames, by both mounts in turn; it is there, and whole, at every moment.
fn renames(client: &Client, mounts: [&Mount; 2]) -> usize {
    let mut turn = 0;
    while client.goes_on() {
        let (one, other) = (mounts[turn % 2], mounts[(turn + 1) % 2]);
        let text = format!("turn {turn}").repeat(turn % 500 + 1);
        client.write(&one.join("new"), text.as_bytes());
        client.timed(("rename", turn), || fs::rename(one.join("new"), one.join("current")));
        client.reads(&other.join("current"), text.as_bytes());
        assert!(!other.join("new").exists(), "turn {turn}");
        turn += 1;
    }
    turn
}

/// Another user's directories: made, filled, listed, emptied.
fn directories(client: &Client, mount: &Mount) -> usize {
    let mut round = 0;
    while client.goes_on() {
        let dir = mount.join(format!("dir{round}"));
        client.timed(("mkdir", &dir), || fs::create_dir(&dir));
        for i in 0..5 {
            client.timed(("mkdir", i), || fs::create_dir(dir.join(format!("{i}"))));
        }
        let names = client.timed(("list", &dir), || fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>());
        assert_eq!(names.len(), 5, "{dir:?}");
        for i in 0..5 {
            client.timed(("rmdir", i), || fs::remove_dir(dir.join(format!("{i}"))));
        }
        client.timed(("rmdir", &dir), || fs::remove_dir(&dir));
        client.timed("kept", || fs::write(mount.join("rounds"), format!("{round}")));
        round += 1;
    }
    round
}

/// Kills whoever answers, or stops it for a while (then there are two that answer for a
/// moment), and waits until another one does; then both are there again.
fn strike_the_answering(cluster: &mut Cluster, kill: bool) {
    let answering = |cluster: &Cluster| cluster.answering().expect("a server tells who answers");
    let victim = run::wait_for("a server to answer", TAKEOVER_BOUND, || answering(cluster)).unwrap();
    if kill {
        cluster.kill_server_at(victim);
    } else {
        cluster.server_at(victim).signal(libc::SIGSTOP);
    }
    let heir = run::wait_for("another server to answer", TAKEOVER_BOUND, || {
        answering(cluster).filter(|server| *server != victim)
    });
    if !kill {
        // Before anything can fail, so that it can be ended.
        cluster.server_at(victim).signal(libc::SIGCONT);
        heir.unwrap();
        return;
    }
    heir.unwrap();
    cluster.start_server_at(victim).unwrap_or_else(|error| panic!("server {victim} starts again: {error:#}"));
}

#[test]
fn killing_the_answering_server_under_load_is_a_short_pause_and_loses_nothing() {
    if Kind::asked_for() == Kind::Embedded {
        eprintln!("nothing to test without real Kafka: set KFS_TEST_BROKER=kafka");
        return;
    }
    let mut cluster = Cluster::start_with(&executable(), Broker::replicated_kafka).expect("the cluster starts");
    cluster.add_server().expect("a second server joins");
    for user in ["one", "another"] {
        cluster.user_add(user).expect("the user can be added");
    }
    let mounts: Vec<Mount> =
        ["one", "one", "another"].map(|user| cluster.mount_with(user, "timeout=60").expect("mounts")).into();
    fs::create_dir(mounts[0].join("files")).unwrap();

    let (stop, operations) = (AtomicBool::new(false), AtomicUsize::new(0));
    let longest = Mutex::new((Duration::ZERO, String::new()));
    let client = Client { stop: &stop, longest: &longest, operations: &operations };
    let mut strikes = 0;
    let (written, turns, rounds) = std::thread::scope(|scope| {
        let files = scope.spawn(|| files(&client, &mounts[0], &mounts[1]));
        let renames = scope.spawn(|| renames(&client, [&mounts[0], &mounts[1]]));
        let directories = scope.spawn(|| directories(&client, &mounts[2]));
        let all_go_on = || ![files.is_finished(), renames.is_finished(), directories.is_finished()].contains(&true);
        let end = Instant::now() + Duration::from_secs(60 * minutes());
        // However this ends, the clients must, too.
        let killing = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while Instant::now() < end && all_go_on() {
                let before = operations.load(Ordering::Relaxed);
                std::thread::sleep(LOAD);
                assert!(operations.load(Ordering::Relaxed) > before || !all_go_on(), "nobody does anything");
                strike_the_answering(&mut cluster, strikes % 3 != 2);
                strikes += 1;
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let done = (files.join(), renames.join(), directories.join());
        killing.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (done.0.expect("files"), done.1.expect("renames"), done.2.expect("directories"))
    });

    let (pause, what) = longest.into_inner().unwrap();
    let operations = operations.into_inner();
    eprintln!("{strikes} strikes, {operations} operations; the longest took {pause:?}: {what}");
    assert!(strikes >= 3 && written >= 10 && turns >= 10 && rounds >= 2, "{strikes}, {written}, {turns}, {rounds}");

    // Who comes now sees all that was acknowledged.
    let cold = cluster.mount("one").unwrap();
    let paths: Vec<PathBuf> = [&cold, &mounts[0], &mounts[1]].map(|mount| mount.join("files")).into();
    for dir in &paths {
        assert_eq!(fs::read_dir(dir).unwrap().count(), written, "{dir:?}");
        for i in 0..written {
            let read = fs::read(dir.join(format!("{i}"))).unwrap_or_else(|error| panic!("{dir:?}/{i}: {error}"));
            assert!(read == content(i), "{dir:?}/{i}");
        }
    }
    let last = format!("turn {}", turns - 1).repeat((turns - 1) % 500 + 1);
    assert!(fs::read_to_string(cold.join("current")).unwrap() == last);
    assert_eq!(fs::read_to_string(mounts[2].join("rounds")).unwrap(), (rounds - 1).to_string());

    // The servers are equal, and neither has ended by itself.
    run::wait_for("both servers' states to be compared", TAKEOVER_BOUND, || {
        let status = cluster.status().expect("a server answers");
        let states: Vec<&str> = status["servers"].as_array()?.iter().filter_map(|of| of["state"].as_str()).collect();
        (states.contains(&"reference") && states.contains(&"same")).then_some(())
    })
    .unwrap();
    for server in 0..2 {
        assert!(cluster.server_at(server).ended().is_none(), "server {server} has ended");
    }
    assert!(pause < LONGEST_PAUSE, "{what} took {pause:?}");
}
