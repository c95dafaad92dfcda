//! Locks of programs, on one mount and across mounts: byte ranges of processes and of open files,
//! flock, waiting, deadlocks, kills, and what becomes of a lock whose session ends.

use crate::{executable, mounted, needs_root, shared};
use harness::{Cluster, command, run};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A session that is not heard of ends after a minute.
const SESSION_ENDS: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(30);
/// Until a program that is started here has done its work. It first closes what it has inherited of this process; where
/// another test has a file open on a mount that it has stopped, that waits until the mount goes on, a session's life later.
const STARTS: Duration = Duration::from_secs(120);

/// Of whom a range's lock is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Process,
    OpenFile,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared = libc::F_RDLCK as isize,
    Exclusive = libc::F_WRLCK as isize,
    None = libc::F_UNLCK as isize,
}

fn request(mode: Mode, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: mode as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

fn fcntl(file: &File, command: i32, request: &mut libc::flock) -> Result<(), i32> {
    // SAFETY: an open descriptor, and a request that lives as long as the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, request as *mut libc::flock) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().expect("a system call sets it")),
        _ => Ok(()),
    }
}

/// Asks for a range of `len` bytes, 0 for all up to the end, without waiting.
fn try_range(file: &File, of: Of, mode: Mode, start: i64, len: i64) -> Result<(), i32> {
    let command = if of == Of::Process { libc::F_SETLK } else { libc::F_OFD_SETLK };
    fcntl(file, command, &mut request(mode, start, len))
}

fn range(file: &File, of: Of, mode: Mode, start: i64, len: i64) -> Result<(), i32> {
    let command = if of == Of::Process { libc::F_SETLKW } else { libc::F_OFD_SETLKW };
    fcntl(file, command, &mut request(mode, start, len))
}

fn flock(file: &File, operation: i32) -> Result<(), i32> {
    // SAFETY: an open descriptor.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        -1 => Err(io::Error::last_os_error().raw_os_error().expect("a system call sets it")),
        _ => Ok(()),
    }
}

fn open(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn is_soon(what: &str, within: Duration, mut done: impl FnMut() -> bool) {
    run::wait_for(what, within, || done().then_some(())).unwrap();
}

/// A process of its own, which makes system calls only and ends with 0 if all went well.
struct InChild(libc::pid_t);

impl InChild {
    fn start(work: impl FnOnce() -> bool) -> InChild {
        // SAFETY: the child makes system calls only.
        match unsafe { libc::fork() } {
            -1 => panic!("{}", io::Error::last_os_error()),
            0 => {
                let code = if work() { 0 } else { 1 };
                // SAFETY: ends the child at once, without what this process would do at its end.
                unsafe { libc::_exit(code) }
            }
            pid => InChild(pid),
        }
    }

    /// Waits for all of the file.
    fn waiting(file: &File, mode: Mode) -> InChild {
        let fd = file.as_raw_fd();
        InChild::start(|| {
            let mut request = request(mode, 0, 0);
            // SAFETY: an open descriptor, and a request that lives as long as the call.
            unsafe { libc::fcntl(fd, libc::F_SETLKW, &raw mut request) == 0 }
        })
    }

    fn signal(&self, signal: i32) {
        // SAFETY: our own child, not waited for yet.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }

    /// The status as waitpid tells it, if it has ended.
    fn ended(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: our own child.
        let ended = unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) };
        (ended == self.0).then_some(status)
    }

    /// It sleeps in the lock's system call.
    fn waits(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['S', 'D']))
    }
}

fn flock_program(path: &Path, args: &[&str]) -> Child {
    Command::new("flock").args(args).arg(path).args(["echo", "has it"]).stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn every_kind_of_lock_excludes_its_like_on_all_mounts() {
    let one = mounted("kinds");
    let other = shared().mount("kinds").unwrap();
    fs::write(one.join("file"), "0123456789").unwrap();
    let (a, b) = (open(one.join("file")), open(other.join("file")));
    for of in [Of::Process, Of::OpenFile] {
        assert_eq!(try_range(&a, of, Mode::Exclusive, 0, 5), Ok(()));
        assert_eq!(try_range(&b, of, Mode::Shared, 4, 1), Err(libc::EAGAIN));
        assert_eq!(try_range(&b, of, Mode::Exclusive, 5, 0), Ok(()));
        // Downgraded, both may read; only who is alone may write.
        assert_eq!(try_range(&a, of, Mode::Shared, 0, 5), Ok(()));
        assert_eq!(try_range(&b, of, Mode::Shared, 0, 0), Ok(()));
        assert_eq!(try_range(&a, of, Mode::Exclusive, 0, 1), Err(libc::EAGAIN));
        assert_eq!(try_range(&b, of, Mode::None, 0, 1), Ok(()));
        assert_eq!(try_range(&a, of, Mode::Exclusive, 0, 1), Ok(()));
        for file in [&a, &b] {
            assert_eq!(try_range(file, of, Mode::None, 0, 0), Ok(()));
        }
    }
    // Of two open files of one process on one mount only what belongs to open files conflicts.
    let a2 = open(one.join("file"));
    assert_eq!(try_range(&a, Of::OpenFile, Mode::Exclusive, 0, 0), Ok(()));
    assert_eq!(try_range(&a2, Of::OpenFile, Mode::Exclusive, 0, 0), Err(libc::EAGAIN));
    assert_eq!(try_range(&a2, Of::Process, Mode::Exclusive, 0, 0), Err(libc::EAGAIN));

    // flock is another space, and one that open files share with nobody.
    assert_eq!(flock(&a2, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    assert_eq!(flock(&a, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    assert_eq!(flock(&a2, libc::LOCK_UN), Ok(()));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&a, libc::LOCK_SH | libc::LOCK_NB), Ok(()));

    // What stands in the way, and whose it is as far as that can be told.
    let mut asked = request(Mode::Exclusive, 0, 0);
    fcntl(&b, libc::F_OFD_GETLK, &mut asked).unwrap();
    assert_eq!((asked.l_type, asked.l_start, asked.l_len), (libc::F_WRLCK as i16, 0, 0));
    assert_eq!(try_range(&a, Of::OpenFile, Mode::None, 0, 0), Ok(()));
    asked = request(Mode::Exclusive, 0, 0);
    fcntl(&b, libc::F_OFD_GETLK, &mut asked).unwrap();
    assert_eq!(asked.l_type, libc::F_UNLCK as i16);
    assert_eq!(try_range(&a, Of::Process, Mode::Shared, 3, 4), Ok(()));
    asked = request(Mode::Exclusive, 0, 0);
    fcntl(&b, libc::F_GETLK, &mut asked).unwrap();
    assert_eq!((asked.l_type, asked.l_start, asked.l_len), (libc::F_RDLCK as i16, 3, 4));
    assert_eq!(asked.l_pid, 0, "a process of another mount");
    let told = InChild::start(|| {
        let mut asked = request(Mode::Exclusive, 0, 0);
        // SAFETY: an open descriptor, and a request that lives as long as the call.
        let done = unsafe { libc::fcntl(a.as_raw_fd(), libc::F_GETLK, &raw mut asked) };
        // SAFETY: cannot fail.
        done == 0 && asked.l_pid == unsafe { libc::getppid() }
    });
    is_soon("another process is told whose it is", SOON, || told.ended() == Some(0));
}

#[test]
fn closing_gives_up_what_linux_says_it_does() {
    let one = mounted("closing");
    let other = shared().mount("closing").unwrap();
    fs::write(one.join("file"), "content").unwrap();
    let b = open(other.join("file"));
    // A process's locks go with the first of its open files, whichever they were taken through.
    let (a, a2) = (open(one.join("file")), open(one.join("file")));
    assert_eq!(try_range(&a, Of::Process, Mode::Exclusive, 0, 0), Ok(()));
    assert_eq!(try_range(&b, Of::Process, Mode::Exclusive, 0, 0), Err(libc::EAGAIN));
    drop(a2);
    assert_eq!(try_range(&b, Of::Process, Mode::Exclusive, 0, 0), Ok(()));
    assert_eq!(try_range(&b, Of::Process, Mode::None, 0, 0), Ok(()));

    // An open file's with the last descriptor of that; the kernel tells of it a little later.
    let again = a.try_clone().unwrap();
    assert_eq!(try_range(&a, Of::OpenFile, Mode::Exclusive, 0, 0), Ok(()));
    assert_eq!(flock(&a, libc::LOCK_EX), Ok(()));
    drop(a);
    assert_eq!(try_range(&b, Of::OpenFile, Mode::Shared, 0, 0), Err(libc::EAGAIN));
    assert_eq!(flock(&b, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    drop(again);
    is_soon("the range", SOON, || try_range(&b, Of::OpenFile, Mode::Exclusive, 0, 0).is_ok());
    is_soon("the flock", SOON, || flock(&b, libc::LOCK_EX | libc::LOCK_NB).is_ok());
}

#[test]
fn what_is_counted_under_a_lock_is_counted_right() {
    const ROUNDS: u64 = 25;
    let one = mounted("counter");
    let other = shared().mount("counter").unwrap();
    for (name, of) in [("open-file", Some(Of::OpenFile)), ("flock", None)] {
        fs::write(one.join(name), 0_u64.to_le_bytes()).unwrap();
        std::thread::scope(|scope| {
            for mount in [&one, &other, &one, &other] {
                scope.spawn(move || {
                    let file = open(mount.join(name));
                    for _ in 0..ROUNDS {
                        match of {
                            Some(of) => range(&file, of, Mode::Exclusive, 0, 0).unwrap(),
                            None => flock(&file, libc::LOCK_EX).unwrap(),
                        }
                        let mut bytes = [0; 8];
                        file.read_exact_at(&mut bytes, 0).unwrap();
                        let next = u64::from_le_bytes(bytes) + 1;
                        file.write_all_at(&next.to_le_bytes(), 0).unwrap();
                        match of {
                            Some(of) => range(&file, of, Mode::None, 0, 0).unwrap(),
                            None => flock(&file, libc::LOCK_UN).unwrap(),
                        }
                    }
                });
            }
        });
        for mount in [&one, &other] {
            assert_eq!(fs::read(mount.join(name)).unwrap(), (4 * ROUNDS).to_le_bytes(), "{name}");
        }
    }
}

#[test]
fn processes_that_wait_for_each_other_are_told() {
    let one = mounted("circle");
    let other = shared().mount("circle").unwrap();
    fs::write(one.join("file"), "content").unwrap();
    let (a, b) = (open(one.join("file")), open(other.join("file")));
    // This process is another one to each mount.
    range(&a, Of::Process, Mode::Exclusive, 0, 1).unwrap();
    range(&b, Of::Process, Mode::Exclusive, 1, 1).unwrap();
    // Whoever is told gives way, and then the other one does.
    let take = |file: &File, from| {
        let result = range(file, Of::Process, Mode::Exclusive, from, 1);
        range(file, Of::Process, Mode::None, 0, 0).unwrap();
        result
    };
    let results = std::thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| take(&a, 1)), scope.spawn(|| take(&b, 0)));
        (first.join().unwrap(), second.join().unwrap())
    });
    assert!(
        matches!(results, (Ok(()), Err(libc::EDEADLK)) | (Err(libc::EDEADLK), Ok(()))),
        "one of them is told: {results:?}"
    );
}

#[test]
fn who_waits_can_be_killed_and_takes_nothing_with_it() {
    let one = mounted("killed-waiter");
    let other = shared().mount("killed-waiter").unwrap();
    fs::write(one.join("file"), "content").unwrap();
    let (a, b) = (open(one.join("file")), open(other.join("file")));
    assert_eq!(try_range(&a, Of::Process, Mode::Exclusive, 0, 0), Ok(()));
    assert_eq!(flock(&a, libc::LOCK_EX), Ok(()));
    let waiting = InChild::waiting(&b, Mode::Exclusive);
    let mut flocked = flock_program(&other.join("file"), &[]);
    is_soon("both wait", SOON, || waiting.waits());
    std::thread::sleep(Duration::from_millis(500));
    assert!(waiting.ended().is_none() && flocked.try_wait().unwrap().is_none());
    waiting.signal(libc::SIGKILL);
    is_soon("the killed process's end", SOON, || waiting.ended().is_some());
    // SIGTERM, which it does not catch.
    // SAFETY: our own child, not waited for yet.
    assert_eq!(unsafe { libc::kill(flocked.id() as i32, libc::SIGTERM) }, 0);
    is_soon("the ended program's end", SOON, || flocked.try_wait().unwrap().is_some());

    // Neither gets the lock that it waited for.
    assert_eq!(try_range(&a, Of::Process, Mode::None, 0, 0), Ok(()));
    assert_eq!(flock(&a, libc::LOCK_UN), Ok(()));
    is_soon("the range", SOON, || try_range(&a, Of::OpenFile, Mode::Exclusive, 0, 0).is_ok());
    is_soon("the flock", SOON, || flock(&a, libc::LOCK_EX | libc::LOCK_NB).is_ok());
}

#[test]
fn the_program_flock_works_across_mounts() {
    let one = mounted("flock-program");
    let other = shared().mount("flock-program").unwrap();
    fs::write(one.join("file"), "").unwrap();
    let held = open(one.join("file"));
    assert_eq!(flock(&held, libc::LOCK_EX), Ok(()));
    let path = other.join("file");
    let refused = command::run(Command::new("flock").args(["-n", "-E", "9"]).arg(&path).arg("true"), STARTS).unwrap();
    assert_eq!(refused.code(), 9);
    let gave_up =
        command::run(Command::new("flock").args(["-w", "1", "-E", "9"]).arg(&path).arg("true"), STARTS).unwrap();
    assert_eq!(gave_up.code(), 9, "its timer ends the wait");
    let mut waiting = flock_program(&path, &[]);
    assert_eq!(flock(&held, libc::LOCK_UN), Ok(()));
    is_soon("the program has it", STARTS, || waiting.try_wait().unwrap().is_some());
    assert!(waiting.wait().unwrap().success());
}

/// One mount is killed, one is not heard of for so long that its session ends: others get what they had
/// locked, and whoever relied on a lock that is lost is told.
#[test]
fn locks_end_with_their_session_and_whoever_had_them_is_told() {
    if !needs_root("stop and go on a daemon that it did not start itself") {
        return;
    }
    let cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add("lost").unwrap();
    let [killed, stopped, other] = [(); 3].map(|()| cluster.mount("lost").unwrap());
    fs::write(other.join("killed"), "content").unwrap();
    fs::write(other.join("stopped"), "content").unwrap();
    let (of_killed, of_stopped) = (open(killed.join("killed")), open(stopped.join("stopped")));
    let unlocked = open(stopped.join("killed"));
    range(&of_killed, Of::Process, Mode::Exclusive, 0, 0).unwrap();
    range(&of_stopped, Of::OpenFile, Mode::Exclusive, 0, 0).unwrap();
    of_stopped.write_all_at(b"CONTENT", 0).unwrap();
    of_stopped.sync_all().unwrap();
    stopped.signal(libc::SIGSTOP);
    killed.kill().unwrap();
    let (first, second) = (open(other.join("killed")), open(other.join("stopped")));
    assert_eq!(try_range(&first, Of::OpenFile, Mode::Shared, 0, 0), Err(libc::EAGAIN));
    assert_eq!(try_range(&second, Of::OpenFile, Mode::Shared, 0, 0), Err(libc::EAGAIN));
    let ends = std::sync::mpsc::channel();
    for file in [first, second.try_clone().unwrap()] {
        let told = ends.0.clone();
        std::thread::spawn(move || told.send(range(&file, Of::OpenFile, Mode::Exclusive, 0, 0)));
    }
    for _ in 0..2 {
        assert_eq!(ends.1.recv_timeout(SESSION_ENDS).expect("the locks are free after a minute"), Ok(()));
    }
    second.write_all_at(b"another", 0).unwrap();
    second.sync_all().unwrap();

    stopped.signal(libc::SIGCONT);
    let errno = |result: io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    // The first call may still be answered from what was promised before.
    is_soon("the write is refused", SOON, || errno(of_stopped.write_all_at(b"too late", 0)) == Some(libc::EIO));
    assert_eq!(errno(of_stopped.sync_all()), Some(libc::EIO));
    assert_eq!(try_range(&of_stopped, Of::OpenFile, Mode::Exclusive, 0, 0), Err(libc::EIO));
    let mut bytes = [0; 7];
    assert_eq!(errno(of_stopped.read_exact_at(&mut bytes, 0)), Some(libc::EIO));
    // Opened again, and whatever had no lock, is as ever; nothing came too late.
    unlocked.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(fs::read(stopped.join("stopped")).unwrap(), b"another");
    let again = open(stopped.join("stopped"));
    assert_eq!(try_range(&again, Of::OpenFile, Mode::Shared, 0, 0), Err(libc::EAGAIN));
    drop(of_stopped);
    assert_eq!(fs::read(other.join("stopped")).unwrap(), b"another");
}
