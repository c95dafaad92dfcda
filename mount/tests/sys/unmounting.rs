//! The control socket, who uses a mount, the umount helper and the remount, with a daemon in this
//! process.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mount::sys::attach::{Attached, attach};
use mount::sys::control::server::{ControlServer, Controlled, Draining};
use mount::sys::control::{Hello, Pending, RunDir, connect_all, connect_for, is_mounted};
use mount::sys::detach::{How, detach};
use mount::sys::helper::{RemountError, remount};
use mount::sys::options::MountOptions;
use mount::sys::umount::{Step, UmountError, parse, umount};
use mount::sys::users_of::{Use, users_of};

use crate::attaching::{entry_at, options};
use crate::filesystem::serve;
use crate::roles::role;
use crate::runner::Needs::{Mounting, RealRoot};
use crate::runner::{Test, eventually, mount, subdir};

pub const TESTS: &[Test] = &[
    ("control::status_and_drain_are_answered", Mounting, status_and_drain),
    ("control::strangers_are_turned_away", RealRoot, strangers),
    ("control::dead_sockets_are_swept", Mounting, dead_sockets),
    ("users_of::names_programs_without_touching_the_mount", Mounting, users),
    ("umount::drains_then_unmounts_and_waits", Mounting, drains_then_unmounts),
    ("umount::is_bounded_and_says_what_is_left", Mounting, is_bounded),
    ("umount::a_busy_mount_names_its_users", Mounting, busy),
    ("umount::refuses_what_is_not_ours", Mounting, not_ours),
    ("remount::changes_ro_and_rw_and_keeps_the_rest", Mounting, remounts),
    ("signals::drain_first_then_at_once", Mounting, signals),
];

/// A daemon with `left` changes that it sends one each 20 ms, or never if `stuck`.
struct Fake {
    left: AtomicU64,
    stuck: bool,
}

struct Sending(Arc<Fake>);

impl Controlled for Sending {
    fn status(&self) -> serde_json::Value {
        serde_json::json!({ "pending": self.0.left.load(Ordering::Relaxed) })
    }

    fn drain(&self, progress: tokio::sync::mpsc::Sender<Pending>) -> Draining {
        let daemon = self.0.clone();
        Box::pin(async move {
            loop {
                let changes = daemon.left.load(Ordering::Relaxed);
                if changes == 0 {
                    return Ok(Pending::default());
                }
                let _ = progress.try_send(Pending { changes, bytes: changes * 10 });
                tokio::time::sleep(Duration::from_millis(20)).await;
                if !daemon.stuck {
                    daemon.left.fetch_sub(1, Ordering::Relaxed);
                }
            }
        })
    }
}

struct Served {
    mounted: mount::sys::mountinfo::MountIdentity,
    daemon: Arc<Fake>,
    _runtime: tokio::runtime::Runtime,
}

fn served(dir: &Path, left: u64, stuck: bool, umount_timeout: Duration) -> Served {
    // A tmpfs per test stands in for /run, so that no daemon of the machine is ever met.
    mount(Some(c"run"), Path::new("/run"), Some(c"tmpfs"), 0, Some(c"mode=755"));
    let Attached { fd, identity } = attach(OsStr::new("h:1"), dir, &MountOptions::default()).expect("mounts");
    let daemon = Arc::new(Fake { left: left.into(), stuck });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    serve(fd);
    let hello = Hello::new(&identity, OsStr::new("h:1"), umount_timeout);
    let server = ControlServer::bind(&RunDir::mine().expect("ours"), hello).expect("binds");
    runtime.spawn({
        let daemon = daemon.clone();
        async move { server.serve(Arc::new(Sending(daemon))).await }
    });
    Served { mounted: identity, daemon, _runtime: runtime }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = detach(&self.mounted, How::Lazy);
        let _ = rustix::mount::unmount("/run", rustix::mount::UnmountFlags::DETACH);
    }
}

fn status_and_drain(dir: &Path) {
    let served = served(dir, 3, false, Duration::from_secs(5));
    let mut connection = connect_for(dir).expect("found");
    assert_eq!((connection.hello().pid, connection.hello().source.as_str()), (std::process::id(), "h:1"));
    assert!(is_mounted(&connection).expect("readable"));
    assert_eq!(connection.status().expect("answered"), serde_json::json!({ "pending": 3 }));
    let mut seen = Vec::new();
    let left = connection.drain(Duration::from_secs(5), |pending| seen.push(pending.changes)).expect("drained");
    assert_eq!((left, seen.first(), seen.last()), (Pending::default(), Some(&3), Some(&1)));
    assert!(!connection.wait_for_end(Duration::from_millis(10)), "it is this very process");
    // Detached, it is still found by its directory.
    detach(&served.mounted, How::Lazy).expect("detached");
    let connection = connect_for(dir).expect("still drains");
    assert!(!is_mounted(&connection).expect("readable"));
    assert_eq!(connect_all().len(), 1);
    let error = connect_for(&subdir(dir, "other")).expect_err("no daemon").to_string();
    assert!(error.contains("no kfs mount of yours"), "{error}");
}

fn strangers(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _served = served(dir, 0, false, Duration::from_secs(5));
    let socket = std::fs::read_dir("/run/kfs").expect("there").next().expect("one").expect("readable").path();
    assert_eq!(std::fs::metadata(&socket).expect("there").permissions().mode() & 0o777, 0o600);
    // Even if the modes were opened by mistake, the credentials decide.
    for (path, mode) in [(Path::new("/run/kfs"), 0o755), (&socket, 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    let output = crate::plain_user::as_nobody(role("ask", &[socket.as_os_str()])).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "connected, heard 0 bytes\n");
    let output = role("ask", &[socket.as_os_str()]).output().expect("runs");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("heard 0"), "root is heard");
}

fn dead_sockets(dir: &Path) {
    let _served = served(dir, 0, false, Duration::from_secs(5));
    let dead = Path::new("/run/kfs/dead-1-1.sock");
    drop(std::os::unix::net::UnixListener::bind(dead).expect("binds"));
    let other = subdir(dir.parent().expect("scratch"), "swept");
    let second = attach(OsStr::new("h:2"), &other, &MountOptions::default()).expect("mounts");
    let hello = Hello::new(&second.identity, OsStr::new("h:2"), Duration::from_secs(1));
    let server = ControlServer::bind(&RunDir::mine().expect("ours"), hello).expect("binds");
    assert!(!dead.exists() && server.path().exists());
    assert!(connect_for(dir).is_ok(), "a living one stays");
    let path = server.path().to_owned();
    drop(server);
    assert!(!path.exists());
    detach(&second.identity, How::Lazy).expect("detached");
}

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn holder(mut command: Command) -> Holder {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read");
    assert_eq!(line, "ready\n");
    Holder(child)
}

fn open_holder(file: &Path) -> Holder {
    holder(role("hold", &[file.as_os_str()]))
}

fn users(dir: &Path) {
    let served = served(dir, 0, false, Duration::from_secs(5));
    assert_eq!(users_of(&served.mounted), []);
    let open = open_holder(&dir.join("hello"));
    let mut inside = role("hold", &[OsStr::new("/dev/null")]);
    inside.current_dir(dir);
    let inside = holder(inside);
    let mut users = users_of(&served.mounted);
    users.sort_by_key(|user| user.how == Use::OpenFile);
    let seen: Vec<_> = users.iter().map(|user| (user.pid, user.how)).collect();
    assert_eq!(seen, [(inside.0.id(), Use::CurrentDirectory), (open.0.id(), Use::OpenFile)]);
    assert!(!users[0].program.is_empty());
    detach(&served.mounted, How::Lazy).expect("detached");
    let seen: Vec<_> = users_of(&served.mounted).iter().map(|user| (user.pid, user.how)).collect();
    assert_eq!(seen, [(open.0.id(), Use::OpenFile)], "on a detached mount by its id");
}

fn call(words: &[&OsStr]) -> mount::sys::umount::UmountCall {
    parse(&words.iter().map(|word| OsString::from(*word)).collect::<Vec<_>>()).expect("parses")
}

fn drains_then_unmounts(dir: &Path) {
    let served = served(dir, 4, false, Duration::from_millis(700));
    let mut steps = Vec::new();
    umount(&call(&[OsStr::new("h:1")]), |step| steps.push(step.clone())).expect("unmounts by source");
    assert_eq!(served.daemon.left.load(Ordering::Relaxed), 0);
    assert_eq!(entry_at(dir), None);
    assert!(matches!(steps.first(), Some(Step::Draining(Pending { changes: 4, .. }))), "{steps:?}");
    // This process is the daemon, so it does not end; a real one does.
    assert_eq!(steps.last(), Some(&Step::StillDraining { pid: std::process::id() }));
}

fn is_bounded(dir: &Path) {
    let _served = served(dir, 4, true, Duration::from_millis(300));
    let (mut steps, begin) = (Vec::new(), Instant::now());
    umount(&call(&[dir.as_os_str()]), |step| steps.push(step.to_string())).expect("unmounts all the same");
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    assert!(steps.iter().any(|step| step.contains("stays in the journal")), "{steps:?}");
    assert_eq!(entry_at(dir), None);
}

fn busy(dir: &Path) {
    let _served = served(dir, 0, false, Duration::from_secs(1));
    let open = open_holder(&dir.join("hello"));
    let error = umount(&call(&[dir.as_os_str()]), |_| ()).expect_err("in use").to_string();
    assert!(error.contains(&format!("(pid {}) has a file open in it", open.0.id())), "{error}");
    let mut steps = Vec::new();
    umount(&call(&[dir.as_os_str(), OsStr::new("-r")]), |step| steps.push(step.clone())).expect("made read-only");
    assert_eq!(steps, [Step::MadeReadOnly]);
    assert!(entry_at(dir).expect("still mounted").options.starts_with("ro"));
    umount(&call(&[dir.as_os_str(), OsStr::new("-l")]), |_| ()).expect("lazily");
    assert_eq!(entry_at(dir), None);
}

fn not_ours(dir: &Path) {
    assert!(matches!(umount(&call(&[dir.as_os_str()]), |_| ()), Err(UmountError::NotMounted(_))));
    assert!(matches!(umount(&call(&[OsStr::new("h:77")]), |_| ()), Err(UmountError::NotMounted(_))));
    mount(Some(c"t"), dir, Some(c"tmpfs"), 0, None);
    assert!(matches!(umount(&call(&[dir.as_os_str()]), |_| ()), Err(UmountError::NotKfs { .. })));
    assert!(matches!(remount(dir, &options("ro")), Err(RemountError::NotKfs { .. })));
    assert_eq!(entry_at(dir).expect("untouched").fstype, "tmpfs");
    rustix::mount::unmount(dir, rustix::mount::UnmountFlags::empty()).expect("unmounts");
    assert!(matches!(remount(dir, &options("ro")), Err(RemountError::NotMounted(_))));
}

fn remounts(dir: &Path) {
    let mounted = attach(OsStr::new("h:1"), dir, &options("nosuid,noexec")).expect("mounts");
    serve(mounted.fd);
    let flags = || {
        let entry = entry_at(dir).expect("mounted");
        let mut flags: Vec<_> = entry.options.split(',').map(str::to_owned).collect();
        flags.retain(|flag| flag != "relatime");
        (flags.join(","), entry.super_options[..2].to_owned())
    };
    assert_eq!(flags(), ("rw,nosuid,noexec".to_owned(), "rw".to_owned()));
    remount(dir, &options("remount,ro")).expect("remounts");
    assert_eq!(flags(), ("ro,nosuid,noexec".to_owned(), "ro".to_owned()));
    remount(dir, &options("remount,rw,exec")).expect("remounts");
    assert_eq!(flags(), ("rw,nosuid".to_owned(), "rw".to_owned()));
    let open = std::fs::File::options().write(true).open(dir.join("hello")).expect("opens");
    assert!(matches!(remount(dir, &options("ro")), Err(RemountError::Busy(_))));
    drop(open);
    // The file is released behind close(2).
    assert!(eventually(2, || remount(dir, &options("ro")).is_ok()));
    detach(&mounted.identity, How::Lazy).expect("detached");
}

fn signals(_: &Path) {
    let mut child = role("signals", &[]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    // SAFETY: our own child, not yet waited for.
    let send = |signal| assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    send(libc::SIGINT);
    assert_eq!(lines.next().as_deref(), Some("Drain"));
    send(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    send(libc::SIGINT);
    assert_eq!(lines.next().as_deref(), Some("AtOnce"));
    assert!(child.wait().expect("ended").success());
}
