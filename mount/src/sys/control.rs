//! Talking to a running mount through a unix socket: its status, and a drain before an unmount.
//!
//! * One socket for each mount, in a directory of the user's own; only that user and root may
//!   connect, by mode bits and by the peer's credentials.
//! * The daemon speaks first, one JSON line that says who it is ([`Hello`]). Then one line asks and
//!   one or more lines answer. Lines are bounded, and so is every wait.
//! * A mount that was detached and still drains is found as well: its socket lives as long as it.
//! * The daemon's side is [`server::ControlServer`]; the client's side here needs no runtime.

use std::ffi::OsStr;
use std::fs::{DirBuilder, Metadata};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::mountinfo::{MountIdentity, at, read, resolve};

pub mod server;

/// The longest line either side accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;
/// How long a client waits for the daemon's first line, or for a status.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Sockets looked at in one directory, at most.
const SOCKETS_MAX: usize = 1024;
/// Raised when a client of before could not understand the lines any more.
const VERSION: u32 = 1;

/// The daemon's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of this exchange of lines; 1.
    pub version: u32,
    /// Where it is mounted, for people; `mount` has the exact bytes.
    pub mountpoint: String,
    /// What is mounted, for people.
    pub source: String,
    /// The daemon's process id, in its own pid namespace.
    pub pid: u32,
    /// How long an unmount may wait for this daemon, in milliseconds.
    pub umount_timeout_ms: u64,
    /// Which mount it is.
    pub mount: MountIdentity,
}

impl Hello {
    /// The line for this process.
    pub fn new(mount: &MountIdentity, source: &OsStr, umount_timeout: Duration) -> Self {
        Self {
            version: VERSION,
            mountpoint: mount.mountpoint().to_string_lossy().into_owned(),
            source: source.to_string_lossy().into_owned(),
            pid: std::process::id(),
            umount_timeout_ms: u64::try_from(umount_timeout.as_millis()).unwrap_or(u64::MAX),
            mount: mount.clone(),
        }
    }
}

/// What waits to be sent, or was left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Changes that the server has not applied yet.
    pub changes: u64,
    /// Bytes of content among them.
    pub bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
enum Ask {
    Status,
    Drain,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Status(serde_json::Value),
    Progress(Pending),
    Drained(Pending),
    Error(String),
}

/// Why a running mount could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no kfs mount of yours runs on {}; see what is mounted: kfs status", .0.display())]
    NoDaemon(PathBuf),
    #[error("cannot use {} for control sockets: {why}", .dir.display())]
    Dir { dir: PathBuf, why: String },
    #[error("the mount on {mountpoint} (pid {pid}) did not answer within {waited:?}")]
    Silent { mountpoint: String, pid: u32, waited: Duration },
    #[error("the mount on {mountpoint} (pid {pid}) says: {said}")]
    Refused { mountpoint: String, pid: u32, said: String },
    #[error("cannot talk to the mount on {mountpoint} (pid {pid}): {why}")]
    Broken { mountpoint: String, pid: u32, why: io::Error },
    #[error("cannot read what is mounted: {0}")]
    Mounts(io::Error),
}

/// The directory for one user's sockets.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// This user's: `/run/kfs` for root, else `$XDG_RUNTIME_DIR/kfs`, else `/tmp/kfs-UID`. Created
    /// if missing; refused if someone else could have put a socket there.
    pub fn mine() -> Result<Self, ControlError> {
        let uid = rustix::process::geteuid().as_raw();
        let mut refused = None;
        for path in places(uid) {
            match Self::at(&path) {
                Ok(dir) => return Ok(dir),
                Err(e) => refused = Some(e),
            }
        }
        Err(refused.expect("there is always one place"))
    }

    /// Another directory, held to the same rules; its parent must exist.
    pub fn at(path: &Path) -> Result<Self, ControlError> {
        let refused = |why: String| ControlError::Dir { dir: path.to_owned(), why };
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(refused(e.to_string())),
            _ => {}
        }
        let meta = std::fs::symlink_metadata(path).map_err(|e| refused(e.to_string()))?;
        if !is_owned_by(&meta, rustix::process::geteuid().as_raw()) {
            return Err(refused("it must be a directory of yours that others cannot write to; remove it".to_owned()));
        }
        Ok(Self { path: path.to_owned() })
    }
}

fn places(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec![PathBuf::from("/run/kfs"), PathBuf::from("/tmp/kfs-0")];
    }
    let mut places = Vec::new();
    if uid == rustix::process::geteuid().as_raw()
        && let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute())
    {
        places.push(dir.join("kfs"));
    }
    let usual = PathBuf::from(format!("/run/user/{uid}/kfs"));
    if !places.contains(&usual) {
        places.push(usual);
    }
    places.push(PathBuf::from(format!("/tmp/kfs-{uid}")));
    places
}

fn is_owned_by(meta: &Metadata, uid: u32) -> bool {
    meta.is_dir() && meta.uid() == uid && meta.mode() & 0o022 == 0
}

fn socket_prefix(mountpoint: &Path) -> String {
    blake3::hash(mountpoint.as_os_str().as_bytes()).to_hex()[..16].to_owned()
}

/// A conversation with one daemon.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<UnixStream>,
    hello: Hello,
    process: Option<OwnedFd>,
}

/// Connects to the daemon of the mount on `dir`; to one that still drains after a detach if nothing
/// of ours is mounted there. Never touches the mount itself.
pub fn connect_for(dir: &Path) -> Result<Connection, ControlError> {
    let mounts = read().map_err(ControlError::Mounts)?;
    // A directory that is gone can still have a daemon that drains.
    let (path, entry) = resolve(dir, &mounts).unwrap_or_else(|_| (dir.to_owned(), None));
    let mut owners = vec![rustix::process::geteuid().as_raw()];
    if let Some(owner) = entry.as_ref().and_then(|entry| entry.user_id()).filter(|owner| !owners.contains(owner)) {
        owners.push(owner);
    }
    let found = owners.into_iter().flat_map(|uid| connect_below(uid, Some(&path)));
    let now = entry.map(|entry| (entry.id, entry.device));
    found
        .filter(|connection| connection.hello.mount.mountpoint() == path)
        // What is mounted there now comes first, then the youngest.
        .max_by_key(|connection| {
            let mount = &connection.hello.mount;
            (Some((mount.id, mount.device)) == now, mount.unique)
        })
        .ok_or_else(|| ControlError::NoDaemon(dir.to_owned()))
}

/// Connects to all daemons of this user, those that drain after a detach among them.
pub fn connect_all() -> Vec<Connection> {
    connect_below(rustix::process::geteuid().as_raw(), None)
}

/// Whether what `connection` speaks for is still mounted where it was.
pub fn is_mounted(connection: &Connection) -> Result<bool, ControlError> {
    let mounts = read().map_err(ControlError::Mounts)?;
    let mount = &connection.hello.mount;
    Ok(at(&mounts, mount.mountpoint()).is_some_and(|entry| entry.id == mount.id && entry.device == mount.device))
}

fn connect_below(uid: u32, mountpoint: Option<&Path>) -> Vec<Connection> {
    let prefix = mountpoint.map(socket_prefix).unwrap_or_default();
    let mut connections = Vec::new();
    for dir in places(uid) {
        if !std::fs::symlink_metadata(&dir).is_ok_and(|meta| is_owned_by(&meta, uid)) {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().take(SOCKETS_MAX) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".sock") {
                connections.extend(Connection::open(&entry.path(), uid).ok());
            }
        }
    }
    connections
}

impl Connection {
    /// Connects to the socket at `path`, which must belong to a process of `uid` or root.
    fn open(path: &Path, uid: u32) -> io::Result<Self> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Bounds connect() too, which waits while the daemon's queue is full.
        set_socket_timeout(&socket, Timeout::Send, Some(ANSWER_TIMEOUT))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        let peer = socket_peercred(&socket)?;
        if peer.uid.as_raw() != uid && !peer.uid.is_root() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        // Taken while it certainly lives, so that its number cannot be another's.
        let process = rustix::process::pidfd_open(peer.pid, rustix::process::PidfdFlags::empty()).ok();
        let mut stream = BufReader::new(UnixStream::from(socket));
        let line = read_line(&mut stream, Instant::now() + ANSWER_TIMEOUT)?;
        let hello: Hello = serde_json::from_str(&line)?;
        if hello.version != VERSION {
            return Err(io::Error::other(format!("it speaks version {} of the control lines", hello.version)));
        }
        Ok(Self { stream, hello, process })
    }

    /// Who answers.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks for the status. Waits at most [`ANSWER_TIMEOUT`].
    pub fn status(&mut self) -> Result<serde_json::Value, ControlError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        match self.ask(&Ask::Status).and_then(|()| self.answer(deadline)) {
            Ok(Answer::Status(status)) => Ok(status),
            other => Err(self.failed(other, ANSWER_TIMEOUT)),
        }
    }

    /// Asks the daemon to send everything it holds, and tells `progress` how much is left. Returns
    /// what could not be sent: nothing, unless the daemon says otherwise. Waits at most `timeout`.
    pub fn drain(&mut self, timeout: Duration, mut progress: impl FnMut(Pending)) -> Result<Pending, ControlError> {
        let deadline = Instant::now() + timeout;
        let mut answer = self.ask(&Ask::Drain).and_then(|()| self.answer(deadline));
        while let Ok(Answer::Progress(pending)) = answer {
            progress(pending);
            answer = self.answer(deadline);
        }
        match answer {
            Ok(Answer::Drained(left)) => Ok(left),
            other => Err(self.failed(other, timeout)),
        }
    }

    /// Waits until the daemon's process has ended, at most `timeout`; says whether it has.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        // Without a process to watch, it had ended or is not to be seen from here.
        let Some(process) = &self.process else { return true };
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let mut poll = libc::pollfd { fd: process.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which is ours.
            match unsafe { libc::poll(&mut poll, 1, i32::try_from(left).unwrap_or(i32::MAX)) } {
                1.. => return true,
                0 if Instant::now() >= deadline => return false,
                _ => {}
            }
        }
    }

    fn ask(&mut self, ask: &Ask) -> io::Result<()> {
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }

    fn answer(&mut self, deadline: Instant) -> io::Result<Answer> {
        Ok(serde_json::from_str(&read_line(&mut self.stream, deadline)?)?)
    }

    fn failed(&self, answer: io::Result<Answer>, waited: Duration) -> ControlError {
        let (mountpoint, pid) = (self.hello.mountpoint.clone(), self.hello.pid);
        match answer {
            Ok(Answer::Error(said)) => ControlError::Refused { mountpoint, pid, said },
            Ok(_) => ControlError::Broken { mountpoint, pid, why: io::Error::other("it answered something else") },
            Err(e) if e.kind() == io::ErrorKind::TimedOut => ControlError::Silent { mountpoint, pid, waited },
            Err(why) => ControlError::Broken { mountpoint, pid, why },
        }
    }
}

/// Reads one line, not beyond `deadline` nor [`LINE_BYTES_MAX`].
fn read_line(stream: &mut BufReader<UnixStream>, deadline: Instant) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.get_ref().set_read_timeout(Some(left))?;
        let room = (LINE_BYTES_MAX - line.len()) as u64;
        match stream.by_ref().take(room).read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {
                line.pop();
                return String::from_utf8(line).map_err(io::Error::other);
            }
            Ok(_) if line.len() >= LINE_BYTES_MAX => return Err(io::Error::other("its line is too long")),
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
}
