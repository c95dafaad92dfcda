//! What this binary does when a test starts it again: a daemon that mounts, or a program that waits
//! on a mount and is interrupted.

use std::ffi::{CString, OsString};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mount::sys::attach::{attach, preflight};
use mount::sys::daemon::{Readiness, Side, daemonize};
use mount::sys::guardian::Guardian;
use mount::sys::options::MountOptions;

/// Holds the role's name; `KFS_SYS_ARG0` and so on hold its arguments.
pub const ROLE: &str = "KFS_SYS_ROLE";

/// This binary, to be started in a role.
pub fn role(name: &str, arguments: &[&std::ffi::OsStr]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(ROLE, name);
    for (at, argument) in arguments.iter().enumerate() {
        command.env(format!("KFS_SYS_ARG{at}"), argument);
    }
    command
}

fn argument(at: usize) -> OsString {
    std::env::var_os(format!("KFS_SYS_ARG{at}")).unwrap_or_default()
}

pub fn play(role: &str) {
    match role {
        "daemon" => daemon(),
        "read" => read(),
        "flock" => flock(),
        "preflight" => match preflight(Path::new(&argument(0)), &MountOptions::default()) {
            Ok(_) => println!("fine"),
            Err(e) => println!("{e}"),
        },
        "hold" => {
            let _open = std::fs::File::open(argument(0)).expect("opens");
            println!("ready");
            loop {
                std::thread::park();
            }
        }
        "detach" => {
            let (identity, _) =
                mount::sys::mountinfo::MountIdentity::at(Path::new(&argument(0))).expect("readable").expect("mounted");
            mount::sys::detach::detach(&identity, mount::sys::detach::How::Idle).expect("detaches");
        }
        "rundir" => match mount::sys::control::RunDir::mine() {
            Ok(_) => println!("fine"),
            Err(e) => println!("{e}"),
        },
        "ask" => {
            let mut stream = std::os::unix::net::UnixStream::connect(argument(0)).expect("connects");
            stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("set");
            let mut heard = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stream, &mut heard);
            println!("connected, heard {} bytes", heard.len());
        }
        "signals" => signals(),
        other => panic!("no role {other}"),
    }
}

/// `SOURCE DIR OPTIONS HOW`, where HOW is `background`, `foreground`, `fail`, `crash` or `late`.
fn daemon() {
    let (source, dir, how) = (argument(0), PathBuf::from(argument(1)), argument(3));
    let options = MountOptions::parse(&argument(2)).expect("known options");
    let dir = match preflight(&dir, &options) {
        Ok(dir) => dir,
        Err(e) => {
            eprintln!("{e}");
            std::process::exit(1);
        }
    };
    let readiness = match how.as_bytes() {
        b"foreground" => Readiness::foreground(),
        _ => match daemonize().expect("one thread") {
            Side::Caller(waiting) => {
                let outcome = waiting.wait();
                if let Some(message) = outcome.message {
                    eprintln!("{message}");
                }
                std::process::exit(outcome.code.into());
            }
            Side::Daemon(readiness) => readiness,
        },
    };
    let mut guardian = Guardian::fork().expect("one thread");
    match how.as_bytes() {
        b"fail" => return readiness.failed(3, "two\nlines"),
        // SAFETY: a signal to oneself.
        b"crash" => drop(unsafe { libc::kill(libc::getpid(), libc::SIGKILL) }),
        _ => {}
    }
    let attached = match attach(&source, &dir, &options) {
        Ok(attached) => attached,
        Err(e) => return readiness.failed(32, &e.to_string()),
    };
    guardian.watch(&attached.identity).expect("the guardian lives");
    let session = crate::filesystem::serve(attached.fd);
    if how == "late" {
        println!("about to report");
        std::thread::sleep(std::time::Duration::from_millis(600));
    }
    let facts = format!("{} {}\n", std::process::id(), guardian.pid());
    if readiness.ready(None).is_err() {
        // The guardian detaches what we leave.
        std::process::exit(9);
    }
    if let Some(file) = std::env::var_os("KFS_SYS_FACTS") {
        std::fs::write(file, facts).expect("writable");
    }
    session.join().expect("no panic").expect("served");
}

extern "C" fn note(_: libc::c_int) {
    let line = b"caught\n";
    // SAFETY: write is async-signal-safe.
    unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
}

/// `FILE SIGNAL [restart]`: reads, catching the signal if it is not 0; prints the errno.
fn read() {
    let file = CString::new(argument(0).as_bytes()).expect("no NUL");
    catch(argument(1));
    // SAFETY: plain system calls on our own memory.
    unsafe {
        let fd = libc::open(file.as_ptr(), libc::O_RDONLY);
        assert!(fd >= 0);
        say("ready");
        let mut byte = [0u8; 1];
        let got = libc::read(fd, byte.as_mut_ptr().cast(), 1);
        say(&format!("{got} {}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0)));
    }
}

/// `FILE SIGNAL [restart]`: the same with a lock.
fn flock() {
    let file = std::fs::File::open(argument(0)).expect("opens");
    catch(argument(1));
    say("ready");
    // SAFETY: our own descriptor.
    let got = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
    say(&format!("{got} {}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0)));
}

/// Prints each request until the last.
fn signals() {
    use mount::sys::signals::{Signals, Stop};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let mut signals = Signals::listen().expect("listens");
        say("ready");
        loop {
            let stop = signals.next().await;
            say(&format!("{stop:?}"));
            if stop == Stop::AtOnce {
                return;
            }
        }
    });
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().expect("the test listens");
}

fn catch(signal: OsString) {
    let signal: libc::c_int = signal.to_string_lossy().parse().expect("a number");
    for ends in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // A shell that starts the tests in the background, and nohup, leave them ignored.
        // SAFETY: this program has no handlers yet.
        unsafe { libc::signal(ends, libc::SIG_DFL) };
    }
    if signal != 0 {
        // SAFETY: the handler only calls write.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = if argument(2) == "restart" { libc::SA_RESTART } else { 0 };
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}
