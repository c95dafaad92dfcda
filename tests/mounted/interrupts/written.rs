//! Programs that wait in fsync or close for what they have written, and get a signal.
//!
//! Each has a file of its own and nothing else open on the mount: what ends also closes.

use super::{Child, SOON, cluster, errno, tick};
use crate::executable;
use harness::broker::Kind;
use harness::{Cluster, Mount, run};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// More than travels in a request itself, so it is uploaded first.
const LARGE: usize = 300_000;
/// Little enough for that.
const LITTLE: usize = 1000;

static CONTENT: [u8; LARGE] = [7; LARGE];

/// How long what was written may take until others see it, once everybody is there again.
const ARRIVES: Duration = Duration::from_secs(60);

/// How a program waits for what it has written: its name, and itself with a descriptor.
type Wait = (&'static str, fn(i32) -> i32);

const FSYNC: Wait = ("fsync", |fd| {
    // SAFETY: a plain system call on a descriptor of this process.
    errno(unsafe { libc::fsync(fd) }.into())
});
const CLOSE: Wait = ("close", |fd| {
    // SAFETY: as above; nobody uses the descriptor afterwards.
    errno(unsafe { libc::close(fd) }.into())
});

/// Holds programs back until all of them are there.
struct Gate(PipeReader, PipeWriter);

impl Gate {
    fn new() -> Gate {
        let (reader, writer) = std::io::pipe().unwrap();
        Gate(reader, writer)
    }

    fn open(&mut self, programs: usize) {
        self.1.write_all(&vec![0; programs]).unwrap();
    }
}

/// A program that has written and waits, and where.
struct Writer {
    what: &'static str,
    name: String,
    len: usize,
    child: Child,
}

impl Writer {
    /// Its file is made now; it writes once the gate lets it, and `begins` with something else before.
    fn start(
        mount: &Mount,
        gate: &Gate,
        (what, wait): Wait,
        (name, len): (String, usize),
        catches: Option<(i32, i32)>,
        begins: impl Fn() -> i32,
    ) -> Writer {
        let path = mount.join(&name);
        let gate = gate.0.as_raw_fd();
        let child = Child::start_with(
            catches,
            || File::create(&path).unwrap(),
            |file| {
                // SAFETY: plain system calls on descriptors that this process has, with buffers of the lengths given.
                unsafe {
                    let mut byte = 0_u8;
                    // Nothing else stays open, so that what ends closes nothing but its own file.
                    if libc::dup2(gate, 0) != 0
                        || libc::dup2(file.as_raw_fd(), 1) != 1
                        || libc::close_range(3, u32::MAX, 0) != 0
                        || libc::read(0, (&raw mut byte).cast(), 1) != 1
                    {
                        return 255;
                    }
                    let begun = begins();
                    if begun != 0 {
                        return begun;
                    }
                    if libc::pwrite(1, CONTENT.as_ptr().cast(), len, 0) != len as isize {
                        return 254;
                    }
                }
                wait(1)
            },
        );
        Writer { what, name, len, child }
    }

    fn dies_of(&self, signal: i32) {
        self.child.signal(signal);
        let status = self.child.ends(self.what);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal, "{}: {status:#x}", self.name);
    }

    fn ends_with(&self, code: i32, bound: Duration) {
        let status = self.child.ends_within(bound, self.what);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, code), "{}", self.name);
    }

    /// All that it has written is where another mount finds it.
    fn is_seen_by(&self, mount: &Mount) {
        let path = mount.join(&self.name);
        let expected = &CONTENT[..self.len];
        let arrived = || std::fs::read(&path).ok().filter(|content| content == expected);
        run::wait_for(&format!("all that was written to {}", self.name), ARRIVES, arrived).unwrap();
    }
}

/// Makes somebody go away (`true`) or come back, and looks at what becomes of programs that wait meanwhile. What
/// a program that goes on after a signal has written is `caught_len` long.
fn signals(cluster: &mut Cluster, user: &str, away: impl Fn(&mut Cluster, bool), caught_len: usize) {
    let mount = cluster.mount_with(user, "timeout=120").unwrap();
    let other = cluster.mount_with(user, "timeout=120").unwrap();
    let mut gate = Gate::new();
    let mut killed = Vec::new();
    for wait in [FSYNC, CLOSE] {
        for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM] {
            let file = (format!("{}-{signal}", wait.0), LARGE);
            killed.push((signal, Writer::start(&mount, &gate, wait, file, None, || 0)));
        }
    }
    let start = |wait: Wait, flags| {
        let file = (format!("{}-caught-{flags}", wait.0), caught_len);
        Writer::start(&mount, &gate, wait, file, Some((libc::SIGINT, flags)), || 0)
    };
    let interrupted = [start(FSYNC, 0), start(FSYNC, libc::SA_RESTART)];
    let patient = [start(CLOSE, 0), start(CLOSE, libc::SA_RESTART)];

    away(cluster, true);
    gate.open(killed.len() + interrupted.len() + patient.len());
    for writer in killed.iter().map(|(_, writer)| writer).chain(&interrupted).chain(&patient) {
        writer.child.waits(writer.what);
    }
    for (signal, writer) in &killed {
        writer.dies_of(*signal);
    }
    for writer in &interrupted {
        writer.child.signal(libc::SIGINT);
        writer.ends_with(libc::EINTR, SOON);
    }
    // A close that gives up would leave the program without knowing what became of its content.
    for writer in &patient {
        writer.child.signal(libc::SIGINT);
        writer.child.waits("close with a signal that is caught");
    }

    away(cluster, false);
    for writer in &patient {
        writer.ends_with(0, ARRIVES);
    }
    for writer in killed.iter().map(|(_, writer)| writer).chain(&interrupted).chain(&patient) {
        writer.is_seen_by(&other);
    }
}

#[test]
fn while_the_server_is_away_who_waits_for_content_can_be_killed_and_the_content_stays() {
    let mut cluster = cluster("written");
    let away = |cluster: &mut Cluster, is_away| {
        cluster.server().signal(if is_away { libc::SIGSTOP } else { libc::SIGCONT });
    };
    signals(&mut cluster, "written", away, LARGE);
}

/// Nothing can be uploaded, so no journal has large content: who is killed does not wait for that. On real Kafka only:
/// children of other tests inherit the embedded broker's socket, and it aborts if its place is taken when it comes back.
#[test]
fn while_the_broker_is_away_who_waits_for_content_can_be_killed_and_the_content_stays() {
    if Kind::asked_for() == Kind::Embedded {
        eprintln!("nothing to test without real Kafka: set KFS_TEST_BROKER=kafka");
        return;
    }
    let mut cluster = Cluster::start_with_own_broker(&executable()).unwrap();
    cluster.user_add("written").unwrap();
    let away = |cluster: &mut Cluster, is_away| match is_away {
        true => cluster.broker.down().unwrap(),
        false => cluster.broker.up().unwrap(),
    };
    // Who has caught a signal and exits does wait for it.
    signals(&mut cluster, "written", away, LITTLE);
}

#[test]
fn what_was_written_before_writer_and_mount_were_killed_is_in_the_journal() {
    let mut cluster = cluster("inherited");
    let mount = cluster.mount_with("inherited", "timeout=120").unwrap();
    let mut gate = Gate::new();
    let writer = Writer::start(&mount, &gate, FSYNC, ("file".to_owned(), LARGE), None, || 0);
    cluster.server().signal(libc::SIGSTOP);
    gate.open(1);
    let status = || cluster.kfs("inherited", &["status", "--json"]).arg(mount.path()).finish().unwrap().text();
    let is_journaled = || {
        let status: serde_json::Value = serde_json::from_str(&status()).unwrap();
        (status["status"]["client"]["journal"]["entries"].as_u64().unwrap() > 0).then_some(())
    };
    run::wait_for("the write in the journal", ARRIVES, is_journaled).unwrap();
    writer.child.waits(writer.what);
    writer.dies_of(libc::SIGKILL);
    mount.kill().unwrap();

    cluster.server().signal(libc::SIGCONT);
    writer.is_seen_by(&cluster.mount("inherited").unwrap());
}

#[test]
fn timers_and_children_disturb_no_wait_for_content() {
    let mut cluster = cluster("ticking");
    let mount = cluster.mount_with("ticking", "timeout=120").unwrap();
    let other = cluster.mount("ticking").unwrap();
    let mut gate = Gate::new();
    let mut writers = Vec::new();
    for wait in [FSYNC, CLOSE] {
        for signal in [libc::SIGALRM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGPROF] {
            for flags in [0, libc::SA_RESTART] {
                let file = (format!("{}-{signal}-{flags}", wait.0), LARGE);
                writers.push(Writer::start(&mount, &gate, wait, file, Some((signal, flags)), || tick(signal)));
            }
        }
    }
    cluster.server().signal(libc::SIGSTOP);
    gate.open(writers.len());
    for writer in &writers {
        writer.child.waits(writer.what);
    }
    cluster.server().signal(libc::SIGCONT);
    for writer in &writers {
        writer.ends_with(0, ARRIVES);
        writer.is_seen_by(&other);
    }
}
