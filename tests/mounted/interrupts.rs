//! Programs that wait for a server which does not answer, and get a signal.
//!
//! What waits is a child of this process that does nothing but system calls; its exit code is the errno that it got.

mod written;

use crate::executable;
use harness::{Cluster, run};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Longer than it takes until a waiting caller is looked at, several times over.
const WHILE_WAITING: Duration = Duration::from_millis(400);
/// How soon a killed process must be gone on a busy machine. The goal is 200 ms on an idle one.
const SOON: Duration = Duration::from_secs(10);

/// Only the C library's plain calls may be made between fork and exit.
struct Child {
    pid: libc::pid_t,
}

extern "C" fn caught(_signal: libc::c_int) {}

impl Child {
    /// A child that ends with what `work` gives. `catches` lets it catch this signal, with these flags.
    fn start(catches: Option<(i32, i32)>, work: impl FnOnce() -> i32) -> Child {
        Child::start_with(catches, || (), |()| work())
    }

    /// The same with something that it alone has when it works: no other child is made while it is open here.
    fn start_with<T>(catches: Option<(i32, i32)>, open: impl FnOnce() -> T, work: impl FnOnce(&T) -> i32) -> Child {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        // A test that has failed left nothing half done.
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = open();
        // SAFETY: the child makes only system calls, on values that were made before; it neither returns nor unwinds.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: as above; a struct of numbers and an empty set of signals may be all zeros.
            unsafe {
                if let Some((signal, flags)) = catches {
                    let mut action: libc::sigaction = std::mem::zeroed();
                    action.sa_sigaction = caught as *const () as usize;
                    action.sa_flags = flags;
                    libc::sigaction(signal, &action, std::ptr::null_mut());
                }
                libc::_exit(work(&opened));
            }
        }
        Child { pid }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child, not yet waited for.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    /// The wait status, once it has ended.
    fn ended(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: our own child; the status lives until the call has returned.
        match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
            0 => None,
            pid => {
                assert_eq!(pid, self.pid);
                Some(status)
            }
        }
    }

    fn waits(&self, what: &str) {
        std::thread::sleep(WHILE_WAITING);
        assert_eq!(self.ended(), None, "{what} was to wait");
    }

    fn ends(&self, what: &str) -> i32 {
        self.ends_within(SOON, what)
    }

    fn ends_within(&self, bound: Duration, what: &str) -> i32 {
        run::wait_for(&format!("the end of a process that waited in {what}"), bound, || self.ended()).unwrap()
    }
}

/// What a call came to: 0, or its errno.
fn errno(result: i64) -> i32 {
    // SAFETY: the location of this thread's own errno.
    if result < 0 { unsafe { *libc::__errno_location() } } else { 0 }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A call that cannot be answered while the server is away: its name, and itself with a path.
type Call = (&'static str, fn(&CString) -> i32);

/// Each of these needs an answer.
const CALLS: [Call; 4] = [
    ("mkdir", |path| {
        // SAFETY: a plain system call; the path lives until it has returned.
        errno(unsafe { libc::mkdir(path.as_ptr(), 0o755) }.into())
    }),
    ("symlink", |path| {
        // SAFETY: as above.
        errno(unsafe { libc::symlink(path.as_ptr(), path.as_ptr()) }.into())
    }),
    ("open and creation", |path| {
        // SAFETY: as above.
        errno(unsafe { libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600) }.into())
    }),
    ("mkfifo", |path| {
        // SAFETY: as above.
        errno(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }.into())
    }),
];

fn cluster(user: &str) -> Cluster {
    let cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add(user).unwrap();
    cluster
}

#[test]
fn who_waits_dies_of_what_kills_and_gets_eintr_of_what_it_catches() {
    let mut cluster = cluster("signals");
    let mount = cluster.mount_with("signals", "timeout=120").unwrap();
    // Known to the mount, so that opening it needs no answer, and too long ago for its content to be in memory.
    std::fs::write(mount.join("file"), vec![7; 300_000]).unwrap();
    let cold = cluster.mount_with("signals", "timeout=120").unwrap();
    let file = std::fs::File::open(cold.join("file")).unwrap();
    cluster.server().signal(libc::SIGSTOP);

    for (i, (what, call)) in CALLS.into_iter().enumerate() {
        for signal in [libc::SIGKILL, libc::SIGINT, libc::SIGTERM] {
            let path = c(&mount.join(format!("killed-{i}-{signal}")));
            let child = Child::start(None, || call(&path));
            child.waits(what);
            child.signal(signal);
            let status = child.ends(what);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal, "{what}: {status:#x}");
        }
        // Caught, even if the handler asks for a restart: the call has its answer here.
        for flags in [0, libc::SA_RESTART] {
            let path = c(&mount.join(format!("caught-{i}-{flags}")));
            let child = Child::start(Some((libc::SIGINT, flags)), || call(&path));
            child.waits(what);
            child.signal(libc::SIGINT);
            let status = child.ends(what);
            assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, libc::EINTR), "{what}, {flags:#x}");
        }
    }

    // A buffered read goes on, as on a local disk; only what kills ends it.
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    let mut byte = 0_u8;
    let mut read = || {
        // SAFETY: a plain system call on a descriptor that the child has too, into a byte that is its own.
        errno(unsafe { libc::pread(fd, (&raw mut byte).cast(), 1, 200_000) } as i64)
    };
    let child = Child::start(Some((libc::SIGINT, 0)), &mut read);
    child.waits("a read");
    child.signal(libc::SIGINT);
    child.waits("a read with a signal that is caught");
    child.signal(libc::SIGKILL);
    assert!(libc::WIFSIGNALED(child.ends("a read")));

    cluster.server().signal(libc::SIGCONT);
    // What was given up took effect once or not at all: it is one thing of its kind, or it is not there.
    for (i, (what, call)) in CALLS.into_iter().enumerate() {
        let path = mount.join(format!("caught-{i}-0"));
        let there = std::fs::symlink_metadata(&path).is_ok();
        let names = std::fs::read_dir(mount.path()).unwrap().filter(|e| e.as_ref().unwrap().path() == path).count();
        assert_eq!(names, usize::from(there), "{what}");
        if !there {
            assert_eq!(call(&c(&path)), 0, "{what} again");
        }
        assert_eq!(std::fs::symlink_metadata(cold.join(path.file_name().unwrap())).unwrap().ino(), {
            std::fs::symlink_metadata(&path).unwrap().ino()
        });
    }
    let mut content = vec![0; 300_000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == 7));
}

#[test]
fn timers_and_children_disturb_no_call() {
    let mut cluster = cluster("timers");
    let mount = cluster.mount_with("timers", "timeout=120").unwrap();
    std::fs::write(mount.join("file"), "content").unwrap();
    for (i, signal) in [libc::SIGALRM, libc::SIGCHLD, libc::SIGUSR1, libc::SIGPROF].into_iter().enumerate() {
        for flags in [0, libc::SA_RESTART] {
            cluster.server().signal(libc::SIGSTOP);
            let paths = [0, 1, 2].map(|n| c(&mount.join(format!("{i}-{flags}-{n}"))));
            let child = Child::start(Some((signal, flags)), || tick_and_work(signal, &paths));
            child.waits("a call with a timer");
            cluster.server().signal(libc::SIGCONT);
            let status = child.ends("a call with a timer, the server being there again");
            assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0), "signal {signal}, {flags:#x}");
            assert_eq!(std::fs::read(mount.join(format!("{i}-{flags}-2"))).unwrap(), vec![1; 100_000]);
        }
    }
}

/// Has a signal come every millisecond from now on: 0, or an errno.
fn tick(signal: i32) -> i32 {
    // SAFETY: plain system calls on structs of numbers that live until the calls have returned.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        (event.sigev_notify, event.sigev_signo) = (libc::SIGEV_SIGNAL, signal);
        let mut timer: libc::timer_t = std::mem::zeroed();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) != 0 {
            return errno(-1);
        }
        let millisecond = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let often = libc::itimerspec { it_interval: millisecond, it_value: millisecond };
        errno(libc::timer_settime(timer, 0, &often, std::ptr::null_mut()).into())
    }
}

/// System calls of many kinds while a signal comes every millisecond: the first errno, or 0.
fn tick_and_work(signal: i32, paths: &[CString; 3]) -> i32 {
    static CONTENT: [u8; 100_000] = [1; 100_000];
    let [directory, file, renamed] = paths;
    let ticks = tick(signal);
    if ticks != 0 {
        return ticks;
    }
    // SAFETY: plain system calls; what they are given lives as long as this process.
    unsafe {
        // The first of them finds no server.
        if libc::mkdir(directory.as_ptr(), 0o755) != 0 {
            return errno(-1);
        }
        let fd = libc::open(file.as_ptr(), libc::O_CREAT | libc::O_EXCL | libc::O_RDWR, 0o600);
        if fd < 0 {
            return errno(-1);
        }
        let mut read = [0_u8; 100_000];
        let len = CONTENT.len();
        for (result, expected) in [
            (libc::write(fd, CONTENT.as_ptr().cast(), len), len as isize),
            (libc::fsync(fd) as isize, 0),
            (libc::pread(fd, read.as_mut_ptr().cast(), len, 0), len as isize),
            (libc::ftruncate(fd, 50_000) as isize, 0),
            (libc::pwrite(fd, CONTENT.as_ptr().cast(), 50_000, 50_000), 50_000),
            (libc::close(fd) as isize, 0),
            (libc::rename(file.as_ptr(), renamed.as_ptr()) as isize, 0),
            (libc::chmod(renamed.as_ptr(), 0o640) as isize, 0),
            (libc::rmdir(directory.as_ptr()) as isize, 0),
        ] {
            if result != expected {
                return if result < 0 { errno(-1) } else { 255 };
            }
        }
    }
    0
}
