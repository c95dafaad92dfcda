//! Attach and detach as root, and every way in which a directory is refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mount::sys::attach::{AttachError, Attached, READ_AHEAD_KIB, attach, preflight, set_read_ahead};
use mount::sys::detach::{DetachError, Detached, How, detach};
use mount::sys::mountinfo::{Answers, MountEntry, MountIdentity, at, probe, read};
use mount::sys::options::MountOptions;

use crate::filesystem::{HELLO, serve};
use crate::runner::Needs::{Mounting, RealRoot};
use crate::runner::{Test, mount, subdir};

pub const TESTS: &[Test] = &[
    ("attach::source_and_flags_reach_mountinfo", Mounting, source_and_flags_reach_mountinfo),
    ("attach::unusable_mountpoints_are_refused", Mounting, unusable_mountpoints_are_refused),
    ("attach::a_dead_kfs_mount_is_replaced", Mounting, a_dead_kfs_mount_is_replaced),
    ("attach::a_dead_foreign_mount_is_left_alone", Mounting, a_dead_foreign_mount_is_left_alone),
    ("attach::umount_8_finds_the_helper_through_utab", Mounting, utab),
    ("attach::no_dev_fuse_says_modprobe", RealRoot, no_dev_fuse_says_modprobe),
    ("attach::read_ahead_is_set", RealRoot, read_ahead_is_set),
    ("detach::a_busy_mount_stays_unless_lazy", Mounting, a_busy_mount_stays_unless_lazy),
    ("detach::never_hits_another_mount", Mounting, never_hits_another_mount),
    ("mountinfo::a_hung_mount_is_noticed_in_time", Mounting, a_hung_mount_is_noticed_in_time),
];

pub fn options(text: &str) -> MountOptions {
    MountOptions::parse(OsStr::new(text)).expect("known options")
}

pub fn entry_at(dir: &Path) -> Option<MountEntry> {
    at(&read().expect("readable"), dir).cloned()
}

fn attached(dir: &Path) -> Attached {
    attach(OsStr::new("h:1"), dir, &MountOptions::default()).expect("mounts")
}

fn source_and_flags_reach_mountinfo(dir: &Path) {
    let dir = subdir(dir, "a b");
    let source = OsStr::from_bytes(b"ann@h:1,[::1]:2/with space/\\back,slash\xff#");
    let mounted = attach(source, &dir, &options("ro,noexec,nosuid,noatime,allow_other")).expect("mounts");
    let entry = entry_at(&dir).expect("is mounted");
    assert_eq!((entry.fstype.as_str(), entry.source.as_os_str()), ("fuse.kfs", source));
    for flag in ["ro", "noexec", "nosuid", "noatime"] {
        assert!(entry.options.split(',').any(|o| o == flag), "{flag} in {}", entry.options);
    }
    assert!(!entry.options.contains("nodev"), "root gets what the options say: {}", entry.options);
    assert!(entry.super_options.contains("default_permissions") && entry.super_options.contains("allow_other"));
    let session = serve(mounted.fd);
    assert_eq!(std::fs::read(dir.join("hello")).expect("readable"), HELLO);
    assert_eq!(detach(&mounted.identity, How::Idle).expect("idle"), Detached::Done);
    assert_eq!(detach(&mounted.identity, How::Idle).expect("gone"), Detached::WasGone);
    session.join().expect("no panic").expect("served to the end");
    assert_eq!(entry_at(&dir), None);
}

fn unusable_mountpoints_are_refused(dir: &Path) {
    let refused = |dir: &Path, text: &str| preflight(dir, &options(text)).expect_err("refused");
    let error = refused(&dir.join("none"), "");
    assert!(matches!(error, AttachError::Missing(_)) && error.to_string().contains("mkdir -p"), "{error}");
    std::fs::write(dir.join("file"), "x").expect("written");
    assert!(matches!(refused(&dir.join("file"), ""), AttachError::NotADirectory(_)));
    assert!(matches!(refused(dir, ""), AttachError::NotEmpty(_)));
    preflight(dir, &options("nonempty")).expect("asked for");
    let used = subdir(dir, "used");
    let mounted = attached(&used);
    let session = serve(mounted.fd);
    let error = refused(&used, "nonempty").to_string();
    assert!(error.contains("h:1 is already mounted"), "{error}");
    std::os::unix::fs::symlink("used", dir.join("link")).expect("linked");
    assert!(matches!(refused(&dir.join("link"), ""), AttachError::AlreadyMounted { .. }));
    detach(&mounted.identity, How::Idle).expect("idle");
    session.join().expect("no panic").expect("served");
}

fn a_dead_kfs_mount_is_replaced(dir: &Path) {
    let first = attached(dir);
    let identity = first.identity.clone();
    drop(first.fd);
    assert!(std::fs::read_dir(dir).is_err(), "nobody serves it");
    assert_eq!(preflight(dir, &MountOptions::default()).expect("cleaned"), dir);
    assert_eq!(entry_at(dir), None);
    let second = attached(dir);
    let session = serve(second.fd);
    assert_eq!(detach(&identity, How::Lazy).expect("gone"), Detached::WasGone);
    assert_eq!(std::fs::read(dir.join("hello")).expect("the second lives"), HELLO);
    detach(&second.identity, How::Idle).expect("idle");
    session.join().expect("no panic").expect("served");
}

fn a_dead_foreign_mount_is_left_alone(dir: &Path) {
    use std::os::fd::AsRawFd;
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse").expect("opens");
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("no NUL");
    mount(Some(c"s"), dir, Some(c"fuse.other"), 0, Some(&data));
    drop(fuse);
    let error = preflight(dir, &MountOptions::default()).expect_err("refused");
    assert!(error.to_string().contains("fuse.other mount that does not answer"), "{error}");
    assert_eq!(entry_at(dir).expect("still there").fstype, "fuse.other");
}

fn no_dev_fuse_says_modprobe(dir: &Path) {
    let null = std::fs::File::open("/dev/null").expect("opens");
    mount(Some(c"dev"), Path::new("/dev"), Some(c"tmpfs"), 0, None);
    std::fs::write("/dev/null", "").expect("written");
    let fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&null));
    let fd = std::ffi::CString::new(fd).expect("no NUL");
    mount(Some(&fd), Path::new("/dev/null"), None, libc::MS_BIND, None);
    let result = preflight(dir, &MountOptions::default());
    rustix::mount::unmount("/dev", rustix::mount::UnmountFlags::DETACH).expect("unmounts");
    let error = result.expect_err("there is no device");
    assert!(matches!(error, AttachError::NoDevFuse) && error.to_string().contains("modprobe fuse"), "{error}");
}

fn utab(dir: &Path) {
    let (dir, file) = (subdir(dir, "a b"), "/run/mount/utab");
    std::fs::create_dir_all("/run/mount").expect("made");
    let others = "SRC=x TARGET=/x ROOT=/ OPTS=x-y\n";
    std::fs::write(file, others).expect("written");
    let text = || std::fs::read_to_string(file).expect("readable");
    let mounted = attach(OsStr::new("h:1/c d"), &dir, &MountOptions::default()).expect("mounts");
    let ours = format!(
        "SRC=h:1/c\\040d TARGET={} ROOT=/ OPTS=_netdev,uhelper=fuse.kfs\n",
        dir.to_str().expect("text").replace(' ', "\\040")
    );
    assert_eq!(text(), format!("{others}{ours}"));
    let session = serve(mounted.fd);
    // A /sbin with nothing but a helper that notes how it was called.
    mount(Some(c"sbin"), Path::new("/sbin"), Some(c"tmpfs"), 0, None);
    let called = dir.with_file_name("called");
    let script = format!("#!/bin/sh\necho \"$0 $*\" > {}\n", called.display());
    std::fs::write("/sbin/umount.fuse.kfs", script).expect("written");
    std::fs::set_permissions("/sbin/umount.fuse.kfs", PermissionsExt::from_mode(0o755)).expect("ours");
    let umount = std::process::Command::new("umount").arg(&dir).status();
    rustix::mount::unmount("/sbin", rustix::mount::UnmountFlags::DETACH).expect("unmounts");
    assert!(umount.expect("runs").success());
    let call = std::fs::read_to_string(called).expect("the helper was called");
    assert_eq!(call.trim(), format!("/sbin/umount.fuse.kfs {}", dir.display()));
    // umount(8) takes the entry away when its helper has succeeded.
    assert_eq!(text(), others);
    detach(&mounted.identity, How::Idle).expect("idle");
    session.join().expect("no panic").expect("served");
    let again = attach(OsStr::new("h:1/c d"), &dir, &MountOptions::default()).expect("mounts");
    assert_eq!(text(), format!("{others}{ours}"));
    detach(&again.identity, How::Lazy).expect("detached");
    assert_eq!(text(), others, "our own unmount takes it away too");
}

fn read_ahead_is_set(dir: &Path) {
    let mounted = attached(dir);
    let session = serve(mounted.fd);
    set_read_ahead(&mounted.identity).expect("root may");
    let (major, minor) = mounted.identity.device;
    let kib = std::fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")).expect("readable");
    assert_eq!(kib.trim(), READ_AHEAD_KIB.to_string());
    detach(&mounted.identity, How::Idle).expect("idle");
    session.join().expect("no panic").expect("served");
}

fn a_busy_mount_stays_unless_lazy(dir: &Path) {
    let mounted = attached(dir);
    let session = serve(mounted.fd);
    let open = std::fs::File::open(dir.join("hello")).expect("opens");
    assert!(matches!(detach(&mounted.identity, How::Idle), Err(DetachError::Busy(_))));
    assert!(entry_at(dir).is_some());
    assert_eq!(detach(&mounted.identity, How::Lazy).expect("lazily"), Detached::Done);
    assert_eq!(entry_at(dir), None);
    assert_eq!(std::io::read_to_string(&open).expect("still served").as_bytes(), HELLO);
    drop(open);
    session.join().expect("no panic").expect("served");
}

fn never_hits_another_mount(dir: &Path) {
    let first = attached(dir);
    detach(&first.identity, How::Lazy).expect("detached");
    drop(first.fd);
    let second = attached(dir);
    for how in [How::Idle, How::Lazy, How::Force] {
        assert_eq!(detach(&first.identity, how).expect("gone"), Detached::WasGone, "ids may be reused");
    }
    mount(Some(c"t"), dir, Some(c"tmpfs"), 0, None);
    assert!(matches!(detach(&second.identity, How::Lazy), Err(DetachError::Covered(_))));
    assert_eq!(entry_at(dir).expect("covering").fstype, "tmpfs");
    rustix::mount::unmount(dir, rustix::mount::UnmountFlags::empty()).expect("unmounts");
    assert_eq!(detach(&second.identity, How::Lazy).expect("uncovered"), Detached::Done);
}

fn a_hung_mount_is_noticed_in_time(dir: &Path) {
    // A mount whose descriptor is open but never served hangs everybody who enters it.
    let mounted = attached(dir);
    let begin = std::time::Instant::now();
    let bound = std::time::Duration::from_millis(300);
    assert_eq!(probe(dir, bound).expect("probed"), Answers::Hangs);
    assert!(MountIdentity::at(dir).expect("without touching it").is_some());
    assert!(begin.elapsed() < bound * 10);
    assert!(matches!(preflight(dir, &MountOptions::default()), Err(AttachError::AlreadyMounted { .. })));
    detach(&mounted.identity, How::Force).expect("detached");
}
