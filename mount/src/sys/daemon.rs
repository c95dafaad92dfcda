//! Going into the background, with the caller waiting until the mount is usable.
//!
//! * [`daemonize`] forks before any thread exists (it refuses otherwise). The parent waits for one
//!   line through a pipe: ready, or an exit code and a message. Ready means ready: nothing else
//!   ends the parent with success, and a daemon that dies without a word is reported as such.
//! * The daemon leaves the terminal's session at once, and lets go of the caller's output when it
//!   reports ready, so that `$(kfs-mount ...)` returns.
//! * If the caller goes away before that, the daemon learns it ([`Readiness::ready`] fails) and
//!   must undo what it did. Ctrl-C on the caller reaches the daemon as SIGTERM, a second one as
//!   SIGKILL.
//! * There is no bound of its own on the wait: the daemon's steps are bounded by `timeout=`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// The longest message that passes from daemon to caller, in bytes.
const MESSAGE_BYTES_MAX: u64 = 16 << 10;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The caller's process: wait, print, exit.
    Caller(Waiting),
    /// The daemon: start up, then report.
    Daemon(Readiness),
}

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The exit code: 0 if the mount is usable.
    pub code: u8,
    /// What to print on stderr, if anything; one line.
    pub message: Option<String>,
}

/// The caller's end.
#[derive(Debug)]
pub struct Waiting {
    pipe: File,
    daemon: libc::pid_t,
}

/// The daemon's end. Dropped without a report, the caller hears that the daemon failed.
#[derive(Debug)]
pub struct Readiness {
    pipe: Option<File>,
}

/// Why there is no second process.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("cannot fork after {0} threads have started; this is a mistake in the program")]
    Threads(usize),
    #[error("cannot start a process in the background: {0}; free some memory or processes, or use -f")]
    Fork(#[from] io::Error),
    #[error("the caller ended before the mount was usable")]
    CallerGone,
}

/// Splits this process in two. Call it before any thread exists.
pub fn daemonize() -> Result<Side, DaemonError> {
    single_threaded()?;
    let (read_end, write_end) = pipe()?;
    // The caller's stdio buffers must not be written twice.
    let _ = io::stdout().flush();
    // SAFETY: there is one thread only, so the child may do everything that the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error().into()),
        0 => {
            drop(read_end);
            // Away from the terminal: its signals and its hang-up are not for the daemon.
            rustix::process::setsid().map_err(io::Error::from)?;
            std::env::set_current_dir("/")?;
            replace_stdio(&[0], None)?;
            Ok(Side::Daemon(Readiness { pipe: Some(write_end.into()) }))
        }
        daemon => {
            drop(write_end);
            Ok(Side::Caller(Waiting { pipe: read_end.into(), daemon }))
        }
    }
}

impl Waiting {
    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.unsigned_abs()
    }

    /// Waits for the daemon's report, or its end.
    pub fn wait(self) -> Outcome {
        forward_signals_to(self.daemon);
        let mut text = String::new();
        let read = self.pipe.take(MESSAGE_BYTES_MAX).read_to_string(&mut text);
        match (read, text.split_once(' ')) {
            (Ok(_), Some(("ready", _))) => Outcome { code: 0, message: None },
            (Ok(_), Some(("failed", rest))) => {
                let (code, message) = rest.split_once(' ').unwrap_or(("1", rest));
                let code = code.parse().ok().filter(|code| *code != 0).unwrap_or(1);
                Outcome { code, message: Some(message.trim_end().to_owned()) }
            }
            _ => Outcome {
                code: 1,
                message: Some(format!("nothing was mounted: the daemon {}", how_ended(self.daemon))),
            },
        }
    }
}

impl Readiness {
    /// For staying in the foreground (`-f`): nobody waits, nothing is let go.
    pub fn foreground() -> Self {
        Self { pipe: None }
    }

    /// Reports that the mount is usable, after letting go of the caller's input and output; what
    /// is written to stderr goes to `log` from then on, if given.
    ///
    /// # Errors
    /// [`DaemonError::CallerGone`]: nobody waits any more; the mount must be undone.
    pub fn ready(mut self, log: Option<BorrowedFd<'_>>) -> Result<(), DaemonError> {
        let Some(mut pipe) = self.pipe.take() else { return Ok(()) };
        let _ = io::stdout().flush();
        replace_stdio(&[0, 1], None)?;
        replace_stdio(&[2], log)?;
        pipe.write_all(b"ready \n").map_err(|_| DaemonError::CallerGone)
    }

    /// Reports that there will be no mount. `code` is the caller's exit code, at least 1. In the
    /// foreground the message goes to stderr.
    pub fn failed(mut self, code: u8, message: &str) {
        let message = message.replace('\n', " ");
        match self.pipe.take() {
            // If the caller has gone there is nobody to tell.
            Some(mut pipe) => drop(pipe.write_all(format!("failed {} {message}\n", code.max(1)).as_bytes())),
            None => eprintln!("{message}"),
        }
    }
}

/// Fails if more than one thread runs: a fork would copy locks held by threads that it does not copy.
pub(super) fn single_threaded() -> Result<(), DaemonError> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(DaemonError::Threads(threads)),
    }
}

pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Puts `new` (or /dev/null) in place of these standard descriptors.
pub(super) fn replace_stdio(which: &[i32], new: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let new = new.unwrap_or(null.as_fd());
    for number in which {
        match number {
            0 => rustix::stdio::dup2_stdin(new)?,
            1 => rustix::stdio::dup2_stdout(new)?,
            _ => rustix::stdio::dup2_stderr(new)?,
        }
    }
    Ok(())
}

static FORWARD_TO: AtomicI32 = AtomicI32::new(0);
static FORWARDED: AtomicU32 = AtomicU32::new(0);

extern "C" fn forward(_signal: libc::c_int) {
    let again = FORWARDED.fetch_add(1, Ordering::Relaxed) > 0;
    // SAFETY: kill is async-signal-safe; the number is our own child's, not yet waited for.
    unsafe { libc::kill(FORWARD_TO.load(Ordering::Relaxed), if again { libc::SIGKILL } else { libc::SIGTERM }) };
}

fn forward_signals_to(daemon: libc::pid_t) {
    FORWARD_TO.store(daemon, Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only uses atomics and kill.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = forward as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

fn how_ended(child: libc::pid_t) -> String {
    let mut status = 0;
    loop {
        // SAFETY: our own child, not yet waited for. Its end of the pipe has closed, so it has
        // ended or is about to.
        match unsafe { libc::waitpid(child, &mut status, 0) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return "ended without saying why".to_owned(),
            _ => break,
        }
    }
    let status = ExitStatus::from_raw(status);
    match status.signal() {
        Some(signal) => format!("was ended by signal {signal} before the mount was usable"),
        None => format!("ended with code {} before the mount was usable", status.code().unwrap_or(1)),
    }
}
