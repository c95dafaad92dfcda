//! Daemons and their guardians, from the caller's point of view.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

use crate::attaching::entry_at;
use crate::filesystem::HELLO;
use crate::roles::role;
use crate::runner::Needs::Mounting;
use crate::runner::{Test, eventually, subdir};

pub const TESTS: &[Test] = &[
    ("daemon::returns_when_usable_and_lets_go_of_the_caller", Mounting, returns_when_usable),
    ("daemon::failures_reach_the_caller", Mounting, failures_reach_the_caller),
    ("daemon::undoes_the_mount_when_the_caller_is_killed", Mounting, undoes_the_mount),
    ("daemon::ctrl_c_on_the_caller_ends_the_daemon", Mounting, ctrl_c_on_the_caller),
    ("guardian::detaches_after_kill_9", Mounting, detaches_after_kill_9),
    ("guardian::holds_nothing_and_outlives_signals", Mounting, holds_nothing),
    ("guardian::works_in_the_foreground", Mounting, works_in_the_foreground),
];

fn daemon(source: &str, mountpoint: &Path, how: &str, facts: &Path) -> Command {
    let mut command = role("daemon", &[OsStr::new(source), mountpoint.as_os_str(), OsStr::new(""), OsStr::new(how)]);
    command.env("KFS_SYS_FACTS", facts);
    command
}

/// The daemon's process and its guardian's, once it has written them.
pub fn facts(file: &Path) -> (i32, i32) {
    assert!(eventually(5, || std::fs::read_to_string(file).is_ok_and(|text| text.ends_with('\n'))));
    let text = std::fs::read_to_string(file).expect("written");
    let (daemon, guardian) = text.trim().split_once(' ').expect("two numbers");
    (daemon.parse().expect("pid"), guardian.parse().expect("pid"))
}

fn signal(pid: i32, signal: libc::c_int) {
    // SAFETY: a process of this test's own pid namespace.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "kill {pid}");
}

fn lives(pid: i32) -> bool {
    // A zombie is no life.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn returns_when_usable(dir: &Path) {
    let at = subdir(dir, "m");
    // `output` reads until nobody holds the pipes any more.
    let output = daemon("h:1", &at, "background", &dir.join("f")).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(std::fs::read(at.join("hello")).expect("usable at once"), HELLO);
    let (daemon, guardian) = facts(&dir.join("f"));
    let session = |pid: i32| rustix::process::getsid(rustix::process::Pid::from_raw(pid)).expect("lives");
    assert_eq!(session(daemon).as_raw_nonzero().get(), daemon);
    assert_eq!(session(guardian).as_raw_nonzero().get(), guardian);
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).expect("unmounts");
    assert!(eventually(5, || !lives(daemon) && !lives(guardian)), "both end with the mount");
}

fn failures_reach_the_caller(dir: &Path) {
    let at = subdir(dir, "m");
    let output = daemon("h:1", &at, "fail", &dir.join("f")).output().expect("runs");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(3), "two lines\n"));
    let output = daemon("h:1", &at, "crash", &dir.join("f")).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("ended by signal 9"), "{}", stderr(&output));
    assert_eq!(entry_at(&at), None);
    let output = daemon("h:1", &dir.join("none"), "background", &dir.join("f")).output().expect("runs");
    assert!(stderr(&output).contains("does not exist"), "{}", stderr(&output));
}

fn undoes_the_mount(dir: &Path) {
    let at = subdir(dir, "m");
    let mut caller =
        daemon("h:1", &at, "late", &dir.join("f")).stdout(std::process::Stdio::piped()).spawn().expect("runs");
    assert!(eventually(5, || entry_at(&at).is_some()));
    caller.kill().expect("kills");
    caller.wait().expect("ended");
    assert!(eventually(5, || entry_at(&at).is_none()), "the daemon noticed, its guardian cleaned up");
    assert!(!dir.join("f").exists(), "it never became ready");
}

fn ctrl_c_on_the_caller(dir: &Path) {
    let at = subdir(dir, "m");
    let mut command = daemon("h:1", &at, "late", &dir.join("f"));
    let caller =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("runs");
    assert!(eventually(5, || entry_at(&at).is_some()));
    signal(caller.id() as i32, libc::SIGINT);
    let output = caller.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("signal 15"), "{}", stderr(&output));
    assert!(eventually(5, || entry_at(&at).is_none()));
}

fn detaches_after_kill_9(dir: &Path) {
    let at = subdir(dir, "m");
    for round in 0..3 {
        let file = dir.join(format!("f{round}"));
        let output = daemon("h:1", &at, "background", &file).output().expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        let open = std::fs::File::open(at.join("hello")).expect("opens");
        let (daemon, guardian) = facts(&file);
        signal(daemon, libc::SIGKILL);
        assert!(eventually(5, || entry_at(&at).is_none()), "detached although in use");
        assert_eq!(std::fs::read_dir(&at).expect("a clean directory").count(), 0);
        assert!(eventually(5, || !lives(guardian)));
        drop(open);
    }
}

fn holds_nothing(dir: &Path) {
    let at = subdir(dir, "m");
    let output = daemon("h:1", &at, "background", &dir.join("f")).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let (daemon, guardian) = facts(&dir.join("f"));
    let links = |what: &str| std::fs::read_link(format!("/proc/{guardian}/{what}")).expect("its parent may look");
    assert_eq!(links("cwd"), Path::new("/"));
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{guardian}/fd")).expect("readable").collect();
    assert_eq!(open.len(), 4, "stdio and the pipe");
    for number in 0..3 {
        assert_eq!(links(&format!("fd/{number}")), Path::new("/dev/null"));
    }
    assert!(links("fd/3").to_string_lossy().starts_with("pipe:"));
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        signal(guardian, number);
    }
    signal(daemon, libc::SIGKILL);
    assert!(eventually(5, || entry_at(&at).is_none()));
}

fn works_in_the_foreground(dir: &Path) {
    let at = subdir(dir, "m");
    let mut child = daemon("h:1", &at, "foreground", &dir.join("f")).spawn().expect("runs");
    let (daemon, _) = facts(&dir.join("f"));
    assert_eq!(daemon, child.id() as i32);
    assert_eq!(std::fs::read(at.join("hello")).expect("usable"), HELLO);
    child.kill().expect("kills");
    child.wait().expect("ended");
    assert!(eventually(5, || entry_at(&at).is_none()));
}
