//! What belongs to one run of a test binary, and its removal.
//!
//! A run has a directory below the system's temporary one and a mark,
//! `KFS_TEST_RUN`, in the environment of every process it starts (daemons that
//! leave their process group inherit it too). A shell outside the run's process
//! group, the janitor, waits for the binary's end by a pipe, so it also works
//! after a panic, an abort, Ctrl-C and kill -9: it kills what carries the mark,
//! detaches what is mounted below the directory and removes the directory.
//! It never looks for a process or a mount by anything but that mark and path.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The environment variable that every process of a run carries.
pub const MARK: &str = "KFS_TEST_RUN";

/// `$1` is the run's directory. Bounded: 50 rounds of at most 0.1 s for the kills.
const JANITOR: &str = r#"
trap '' INT TERM HUP QUIT
cat >/dev/null
round=0
while [ "$round" -lt 50 ]; do
    # Its exit code also tells of processes that ended meanwhile; only what it found counts.
    left=$(grep -lz -e "^KFS_TEST_RUN=$1" /proc/[0-9]*/environ 2>/dev/null)
    [ -n "$left" ] || break
    for file in $left; do
        pid=${file#/proc/}
        kill -9 "${pid%/environ}" 2>/dev/null
    done
    round=$((round + 1))
    sleep 0.1
done
cut -d' ' -f5 /proc/self/mountinfo | grep -F -e "$1/" | sort -r | while read -r mount; do
    umount -l "$mount" 2>/dev/null || fusermount3 -u -z "$mount" 2>/dev/null
done
[ -n "$KFS_TEST_KEEP" ] || rm -rf --one-file-system "$1"
"#;

struct Run {
    root: PathBuf,
    /// Never waited for: it must outlive this process.
    _janitor: Child,
}

fn run() -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| {
        take_signals();
        let root = tempfile::Builder::new()
            .prefix("kfs-tests-")
            // Other users' processes (the tests as uid 65534) reach what is below.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("the temporary directory is writable")
            .keep();
        let mut janitor = Command::new("/bin/sh");
        janitor.args(["-c", JANITOR, "janitor"]).arg(&root);
        janitor.env_remove(MARK).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe and touches nothing of the parent's.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut janitor, || {
                libc::setsid();
                Ok(())
            });
        }
        let janitor = janitor.spawn().expect("/bin/sh starts");
        Run { root, _janitor: janitor }
    })
}

/// Lets what asks a program to end do so here, and in every process that is started from here: a shell that begins the
/// tests in its background lets them ignore some of these.
fn take_signals() {
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
        // SAFETY: a plain system call; what it sets is what a process begins with.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The run's directory. Removed when this process has ended, unless `KFS_TEST_KEEP` is set.
pub fn root() -> &'static Path {
    &run().root
}

/// A directory of the run with a name that tells what it is for; removed on drop.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new(purpose: &str) -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let path = root().join(format!("{purpose}-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).expect("the run's directory is writable");
        Scratch { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After a failure the files are evidence, and the janitor removes them in the end.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A port on 127.0.0.1 that nobody listens on.
///
/// Below the range from which the kernel takes ports for outgoing connections,
/// so that a program that is stopped and started again finds it still free.
pub fn free_port() -> u16 {
    const FIRST: u32 = 18_000;
    const PORTS: u32 = 14_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let port = FIRST + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if std::net::TcpListener::bind(("127.0.0.1", port as u16)).is_ok() {
            return port as u16;
        }
    }
    panic!("no port on 127.0.0.1 is free between {FIRST} and {}", FIRST + PORTS);
}

/// Asks `ready` every 20 ms until it gives a value, at most `bound` long; the
/// error then names what was waited for.
pub fn wait_for<T>(what: &str, bound: Duration, mut ready: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        anyhow::ensure!(start.elapsed() < bound, "waited {bound:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
