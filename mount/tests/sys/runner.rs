//! Runs the tests inside namespaces of their own, so that nothing is left over whatever happens.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A test: its name, whether it needs the real root (not of a user namespace), and its body, which
/// gets a fresh directory.
pub type Test = (&'static str, Needs, fn(&Path));

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The right to mount in a namespace of one's own.
    Mounting,
    /// The machine's root: device nodes, other users.
    RealRoot,
}

/// Runs those of `tests` that the arguments name, and exits with the result.
pub fn run(tests: &[Test]) -> ! {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        tests.iter().for_each(|(name, ..)| println!("{name}: test"));
        std::process::exit(0);
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen: Vec<Test> = tests
        .iter()
        .filter(|(name, ..)| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str())))
        .copied()
        .collect();
    let scratch = tempfile::tempdir().expect("temporary directory");
    let real_root = rustix::process::geteuid().is_root();
    let code = in_namespaces(real_root, || {
        // What lies in /run is the machine's, and may be in use there.
        mount(Some(c"run"), Path::new("/run"), Some(c"tmpfs"), 0, Some(c"mode=755"));
        mount(Some(c"tests"), scratch.path(), Some(c"tmpfs"), 0, Some(c"mode=755"));
        run_all(&chosen, scratch.path(), real_root)
    });
    drop(scratch);
    std::process::exit(code)
}

fn run_all(tests: &[Test], scratch: &Path, real_root: bool) -> i32 {
    println!("\nrunning {} tests", tests.len());
    let (mut failed, mut not_run) = (Vec::new(), 0);
    for (number, (name, needs, body)) in tests.iter().enumerate() {
        if *needs == Needs::RealRoot && !real_root {
            println!("test {name} ... NOT RUN: it needs root");
            not_run += 1;
            continue;
        }
        let dir = scratch.join(format!("t{number}"));
        std::fs::create_dir(&dir).expect("scratch is writable");
        let begin = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(|| body(&dir))).is_ok();
        println!("test {name} ... {} ({:.1?})", if passed { "ok" } else { "FAILED" }, begin.elapsed());
        if !passed {
            failed.push(name);
        }
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    let passed = tests.len() - failed.len() - not_run;
    println!("\ntest result: {verdict}. {passed} passed; {} failed; {not_run} not run\n", failed.len());
    i32::from(!failed.is_empty())
}

/// Runs `body` as the second process of a new pid namespace, and returns its exit code. The first
/// process only reaps; with it all others end.
fn in_namespaces(real_root: bool, body: impl FnOnce() -> i32) -> i32 {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = if real_root { 0 } else { libc::CLONE_NEWUSER };
    // SAFETY: plain system call; there is one thread only.
    if unsafe { libc::unshare(user | libc::CLONE_NEWPID | libc::CLONE_NEWNS) } != 0 {
        panic!("these tests need root, or user namespaces: {}", io::Error::last_os_error());
    }
    if !real_root {
        for (file, text) in
            [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {uid} 1")), ("gid_map", format!("0 {gid} 1"))]
        {
            std::fs::write(format!("/proc/self/{file}"), text).expect("ids map");
        }
    }
    let first = fork_and(|| {
        // SAFETY: asks to die with the parent.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_PRIVATE, None);
        mount(Some(c"proc"), Path::new("/proc"), Some(c"proc"), 0, None);
        let second = fork_and(body);
        loop {
            let (pid, code) = wait(-1);
            if pid == second {
                return code;
            }
        }
    });
    wait(first).1
}

fn fork_and(body: impl FnOnce() -> i32) -> libc::pid_t {
    // SAFETY: there is one thread only.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: ends the process without returning into the parent's stack.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

fn wait(which: libc::pid_t) -> (libc::pid_t, i32) {
    let mut status = 0;
    loop {
        // SAFETY: `status` is ours.
        let pid = unsafe { libc::waitpid(which, &mut status, 0) };
        if pid > 0 {
            return (pid, if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 102 });
        }
        let error = io::Error::last_os_error();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
    }
}

/// mount(2), or a panic that says what failed.
pub fn mount(source: Option<&CStr>, target: &Path, kind: Option<&CStr>, flags: libc::c_ulong, data: Option<&CStr>) {
    let to = CString::new(target.as_os_str().as_bytes()).expect("no NUL");
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all pointers are null or end in NUL.
    let done = unsafe { libc::mount(pointer(source), to.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    assert_eq!(done, 0, "mount {source:?} on {}: {}", target.display(), io::Error::last_os_error());
}

/// Waits until `condition` holds, at most `seconds`; false if it never did.
pub fn eventually(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A fresh directory `name` below `dir`.
pub fn subdir(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).expect("new");
    path
}
