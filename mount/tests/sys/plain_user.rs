//! The same as an unprivileged user, through fusermount3: everything in a process of uid 65534.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::attaching::entry_at;
use crate::filesystem::HELLO;
use crate::roles::role;
use crate::runner::Needs::RealRoot;
use crate::runner::{Test, eventually, mount, subdir};

pub const TESTS: &[Test] = &[
    ("plain_user::mounts_and_unmounts_through_fusermount3", RealRoot, mounts_and_unmounts),
    ("plain_user::kill_9_leaves_a_clean_directory", RealRoot, kill_9),
    ("plain_user::refusals_say_what_to_do", RealRoot, refusals),
    ("plain_user::has_a_private_place_for_control_sockets", RealRoot, run_dir),
];

const NOBODY: u32 = 65534;

pub fn as_nobody(mut command: Command) -> Command {
    command.uid(NOBODY).gid(NOBODY).env_remove("XDG_RUNTIME_DIR").current_dir("/");
    command
}

/// A directory of the plain user's, that it can reach.
fn own_dir(dir: &Path, name: &str) -> std::path::PathBuf {
    let path = subdir(dir, name);
    std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("root may");
    // The scratch directory lies in one that tempfile made for root alone.
    for above in path.ancestors().skip(1).take(2) {
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o755)).expect("ours");
    }
    path
}

/// Runs `body` with a /dev/fuse of mode `mode`.
fn with_dev_fuse(dir: &Path, mode: libc::mode_t, body: impl FnOnce()) {
    assert!(Path::new("/usr/bin/fusermount3").exists(), "this test needs fusermount3: apt install fuse3");
    let node = dir.join("fuse");
    let path = std::ffi::CString::new(node.to_str().expect("text")).expect("no NUL");
    // SAFETY: plain system calls with a path that ends in NUL.
    unsafe {
        assert_eq!(libc::mknod(path.as_ptr(), libc::S_IFCHR | mode, libc::makedev(10, 229)), 0);
        assert_eq!(libc::chmod(path.as_ptr(), mode), 0);
    }
    mount(Some(&path), Path::new("/dev/fuse"), None, libc::MS_BIND, None);
    struct Undo;
    impl Drop for Undo {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount("/dev/fuse", rustix::mount::UnmountFlags::DETACH);
        }
    }
    let _undo = Undo;
    body();
}

fn daemon(source: &str, at: &Path, options: &str, facts: &Path) -> Command {
    let mut command =
        role("daemon", &[OsStr::new(source), at.as_os_str(), OsStr::new(options), OsStr::new("background")]);
    command.env("KFS_SYS_FACTS", facts);
    as_nobody(command)
}

fn stderr(mut command: Command) -> String {
    String::from_utf8_lossy(&command.output().expect("runs").stderr).into_owned()
}

fn mounts_and_unmounts(dir: &Path) {
    let home = own_dir(dir, "home");
    let at = home.join("a b,c");
    std::fs::create_dir(&at).expect("new");
    std::os::unix::fs::chown(&at, Some(NOBODY), None).expect("root may");
    with_dev_fuse(dir, 0o666, || {
        let source = r"ann@h:1,[::1]:2/x\y z";
        assert_eq!(stderr(daemon(source, &at, "noexec", &home.join("f"))), "");
        let entry = entry_at(&at).expect("mounted");
        assert_eq!((entry.fstype.as_str(), entry.source.as_os_str()), ("fuse.kfs", OsStr::new(source)));
        assert_eq!(entry.user_id(), Some(NOBODY));
        for flag in ["nosuid", "nodev", "noexec"] {
            assert!(entry.options.split(',').any(|o| o == flag), "{flag} in {}", entry.options);
        }
        assert!(entry.super_options.contains("default_permissions"));
        let mut cat = Command::new("cat");
        cat.arg(at.join("hello"));
        assert_eq!(as_nobody(cat).output().expect("runs").stdout, HELLO);
        assert_eq!(stderr(as_nobody(role("detach", &[at.as_os_str()]))), "");
        assert_eq!(entry_at(&at), None);
    });
}

fn kill_9(dir: &Path) {
    let at = own_dir(dir, "m");
    let home = own_dir(dir, "home");
    with_dev_fuse(dir, 0o666, || {
        assert_eq!(stderr(daemon("h:1", &at, "", &home.join("f"))), "");
        let (pid, _) = crate::lifecycle::facts(&home.join("f"));
        // SAFETY: a process of this test's own pid namespace.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
        assert!(eventually(5, || entry_at(&at).is_none()));
    });
}

fn refusals(dir: &Path) {
    let at = own_dir(dir, "m");
    let roots = subdir(dir, "roots");
    let home = own_dir(dir, "home");
    let facts = home.join("f");
    with_dev_fuse(dir, 0o600, || {
        let said = stderr(daemon("h:1", &at, "", &facts));
        assert!(said.contains("/dev/fuse may not be opened by uid 65534") && said.contains("chmod 666"), "{said}");
    });
    std::fs::remove_file(dir.join("fuse")).expect("there");
    with_dev_fuse(dir, 0o666, || {
        let said = stderr(daemon("h:1", &at, "allow_other", &facts));
        assert!(said.contains("user_allow_other into /etc/fuse.conf"), "{said}");
        let said = stderr(daemon("h:1", &roots, "", &facts));
        assert!(said.contains("not permitted to mount on") && said.contains("of your own"), "{said}");
        let said = stderr(daemon("h:1", &at, "dev", &facts));
        assert!(said.contains("`dev` is for root alone"), "{said}");
        let nothing = dir.join("nothing");
        std::fs::write(&nothing, "").expect("written");
        let nothing = std::ffi::CString::new(nothing.to_str().expect("text")).expect("no NUL");
        for place in ["/usr/bin/fusermount3", "/bin/fusermount3"] {
            mount(Some(&nothing), Path::new(place), None, libc::MS_BIND, None);
        }
        let said = stderr(daemon("h:1", &at, "", &facts));
        for place in ["/bin/fusermount3", "/usr/bin/fusermount3"] {
            rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).expect("unmounts");
        }
        assert!(said.contains("apt install fuse3"), "{said}");
        assert_eq!((entry_at(&at), entry_at(&roots)), (None, None), "nothing is left mounted");
    });
}

fn run_dir(_: &Path) {
    // A /tmp of this test's own: the machine's may have such a directory in use.
    mount(Some(c"tmp"), Path::new("/tmp"), Some(c"tmpfs"), 0, Some(c"mode=1777"));
    let place = Path::new("/tmp/kfs-65534");
    let ask = || String::from_utf8(as_nobody(role("rundir", &[])).output().expect("runs").stdout).expect("text");
    let first = ask();
    let meta = std::fs::metadata(place);
    let _ = std::fs::remove_dir(place);
    std::fs::create_dir(place).expect("new");
    let second = ask();
    rustix::mount::unmount("/tmp", rustix::mount::UnmountFlags::DETACH).expect("unmounts");
    assert_eq!((first.as_str(), meta.expect("made").permissions().mode() & 0o777), ("fine\n", 0o700));
    assert!(second.contains("directory of yours"), "someone else made it: {second}");
}
