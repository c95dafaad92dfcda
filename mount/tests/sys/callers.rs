//! Programs that wait on a mount and get a signal.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use mount::sys::attach::attach;
use mount::sys::detach::{How, detach};
use mount::sys::options::MountOptions;

use crate::filesystem::serve;
use crate::roles::role;
use crate::runner::Needs::Mounting;
use crate::runner::{Test, eventually};

pub const TESTS: &[Test] = &[
    ("interrupt::uncaught_sigint_and_sigkill_end_every_wait", Mounting, fatal_signals_end_every_wait),
    ("interrupt::a_caught_sigint_is_eintr_except_for_buffered_reads", Mounting, a_caught_sigint),
    ("interrupt::timers_end_locks_alone_and_sa_restart_holds", Mounting, timers),
];

struct Waiter {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

/// Starts a program that waits on `file` below a served mount at `dir`.
fn waiter(dir: &Path, what: &str, file: &str, caught: libc::c_int, restart: &str) -> Waiter {
    let path = dir.join(file);
    let mut child = role(what, &[path.as_os_str(), OsStr::new(&caught.to_string()), OsStr::new(restart)])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("read"), "ready");
    let mut waiter = Waiter { child, lines };
    std::thread::sleep(Duration::from_millis(120));
    assert!(waiter.child.try_wait().expect("asked").is_none(), "it waits");
    waiter
}

impl Waiter {
    fn signal(&self, signal: libc::c_int) {
        // SAFETY: our own child, not yet waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").expect("read")
    }

    fn ends_soon(&mut self) -> bool {
        let child = &mut self.child;
        eventually(2, || child.try_wait().expect("asked").is_some())
    }

    fn still_waits(&mut self) -> bool {
        std::thread::sleep(Duration::from_millis(400));
        self.child.try_wait().expect("asked").is_none()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_a_mount(dir: &Path, body: impl FnOnce()) {
    let mounted = attach(OsStr::new("h:1"), dir, &MountOptions::default()).expect("mounts");
    let session = serve(mounted.fd);
    body();
    detach(&mounted.identity, How::Idle).expect("idle");
    session.join().expect("no panic").expect("served");
}

const WAITS: [(&str, &str); 3] = [("read", "slow"), ("read", "slow-direct"), ("flock", "hello")];

fn fatal_signals_end_every_wait(dir: &Path) {
    on_a_mount(dir, || {
        for (what, file) in WAITS {
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL] {
                let mut waiter = waiter(dir, what, file, 0, "");
                let begin = Instant::now();
                waiter.signal(signal);
                assert!(waiter.ends_soon(), "{what} {file} on signal {signal}");
                println!("  {what} {file}: ended {:.0?} after signal {signal}", begin.elapsed());
            }
        }
        let mut waiter = waiter(dir, "read", "slow-direct", 0, "");
        waiter.signal(libc::SIGQUIT);
        assert!(waiter.ends_soon(), "a signal that dumps core is fatal as well");
    });
}

fn a_caught_sigint(dir: &Path) {
    on_a_mount(dir, || {
        for (what, file) in [("read", "slow-direct"), ("flock", "hello")] {
            let mut waiter = waiter(dir, what, file, libc::SIGINT, "");
            waiter.signal(libc::SIGINT);
            assert_eq!([waiter.line(), waiter.line()], ["caught".to_owned(), format!("-1 {}", libc::EINTR)], "{what}");
        }
        let mut waiter = waiter(dir, "read", "slow", libc::SIGINT, "");
        waiter.signal(libc::SIGINT);
        assert!(waiter.still_waits());
    });
}

fn timers(dir: &Path) {
    on_a_mount(dir, || {
        for signal in [libc::SIGALRM, libc::SIGCHLD] {
            let mut lock = waiter(dir, "flock", "hello", signal, "");
            lock.signal(signal);
            assert_eq!([lock.line(), lock.line()], ["caught".to_owned(), format!("-1 {}", libc::EINTR)]);
            let mut lock = waiter(dir, "flock", "hello", signal, "restart");
            lock.signal(signal);
            assert_eq!(lock.line(), "caught");
            assert!(lock.still_waits(), "the kernel restarts it");
            let mut read = waiter(dir, "read", "slow-direct", signal, "restart");
            read.signal(signal);
            assert!(read.still_waits());
        }
    });
}
