//! The guardian: a small process that detaches the daemon's mount when the daemon has ended.
//!
//! * A FUSE daemon that is killed leaves a directory that answers ENOTCONN, on which `mount -a`,
//!   automount and autofs all stumble. The guardian holds the read end of a pipe whose write end
//!   only the daemon has; end of file means that the daemon has gone, however it went.
//! * It is told the mount's [`MountIdentity`] after attach, and never touches any other mount.
//! * It ignores the signals that a terminal or a service manager sends to a whole group, is in a
//!   session of its own, and holds nothing of the caller's: no descriptor, no directory.
//! * Fork it in the daemon (after [`super::daemon::daemonize`]) and before any thread exists.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::daemon::{DaemonError, pipe, replace_stdio, single_threaded};
use super::detach::{How, detach};
use super::mountinfo::MountIdentity;

/// Mounts that one guardian watches at most; a daemon has one.
const MOUNTS_MAX: usize = 16;

/// The daemon's handle. The guardian acts when it is dropped, which the daemon's end does as well.
#[derive(Debug)]
pub struct Guardian {
    pipe: File,
    pid: u32,
}

impl Guardian {
    /// Starts the guardian. Call it before any thread exists.
    pub fn fork() -> Result<Self, DaemonError> {
        single_threaded()?;
        let (read_end, write_end) = pipe()?;
        // SAFETY: there is one thread only, so the child may do everything that the parent could.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error().into()),
            0 => {
                drop(write_end);
                // A panic must not unwind into the caller's stack, which is not this process's.
                let _ = std::panic::catch_unwind(|| guard(read_end));
                // SAFETY: ends the process without running the caller's exit handlers.
                unsafe { libc::_exit(0) }
            }
            pid => Ok(Self { pipe: write_end.into(), pid: pid.unsigned_abs() }),
        }
    }

    /// Tells the guardian which mount is the daemon's. To be called right after attach.
    ///
    /// # Errors
    /// The guardian has been killed.
    pub fn watch(&mut self, identity: &MountIdentity) -> io::Result<()> {
        let mut line = serde_json::to_vec(identity)?;
        line.push(b'\n');
        self.pipe
            .write_all(&line)
            .map_err(|e| io::Error::new(e.kind(), format!("the guardian (pid {}) has gone: {e}", self.pid)))
    }

    /// The guardian's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

fn guard(pipe: OwnedFd) {
    let Ok(pipe) = become_nobody_s(pipe) else { return };
    let mut mounts = Vec::new();
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        if let Ok(identity) = serde_json::from_str::<MountIdentity>(&line)
            && mounts.len() < MOUNTS_MAX
        {
            mounts.push(identity);
        }
    }
    for identity in &mounts {
        // There is nobody to tell. Who mounts there next finds it dead and detaches it.
        let _ = detach(identity, How::Lazy);
    }
}

/// Lets go of everything that belongs to the caller, and returns the pipe under its new number.
fn become_nobody_s(pipe: OwnedFd) -> io::Result<File> {
    const PIPE: i32 = 3;
    rustix::process::setsid()?;
    for signal in
        [libc::SIGINT, libc::SIGHUP, libc::SIGTERM, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2]
    {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: an empty mask, and default handling for what a caller may have set for itself.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
    std::env::set_current_dir("/")?;
    replace_stdio(&[0, 1, 2], None)?;
    rustix::thread::set_name(c"kfs-guardian")?;
    // SAFETY: this process has no other user of these descriptors: the stack frames that own them
    // are never returned to. The new descriptor is owned by the `File` alone.
    unsafe {
        if pipe.as_raw_fd() != PIPE && libc::dup3(pipe.as_raw_fd(), PIPE, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(pipe);
        if libc::syscall(libc::SYS_close_range, PIPE + 1, libc::c_uint::MAX, 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(File::from_raw_fd(PIPE))
    }
}
