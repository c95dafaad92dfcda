//! Makes the mount: from a source, a directory and options to a `/dev/fuse` descriptor for
//! `fuser::Session::from_fd` and the [`MountIdentity`] that everything later goes by.
//!
//! * Root calls mount(2) itself, with type `fuse.kfs`: fuser would say `fuse`, whose remount runs
//!   the source as a shell command. The source reaches mountinfo byte for byte, else `mount -a`
//!   would mount again.
//! * Anyone else goes through `fusermount3`, which hands the descriptor over by a socket.
//! * Each way to fail has a message of its own that says what to do.
//! * Read-ahead is set by [`set_read_ahead`] after the session's handshake, which resets it.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::detach::{How, detach};
use super::mountinfo::{MountIdentity, Place, examine};
use super::options::MountOptions;

/// The read-ahead that [`set_read_ahead`] asks for, in KiB: the fastest of those measured.
pub const READ_AHEAD_KIB: u32 = 8192;

/// How long `fusermount3` may take.
const FUSERMOUNT_TIMEOUT: Duration = Duration::from_secs(30);
const DEV_FUSE: &str = "/dev/fuse";

/// A mount that waits for its session.
#[derive(Debug)]
pub struct Attached {
    /// For `fuser::Session::from_fd`. The mount is dead once all copies of it are closed.
    pub fd: OwnedFd,
    /// Which mount it is.
    pub identity: MountIdentity,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("mountpoint {} does not exist; create it: mkdir -p {}", .0.display(), .0.display())]
    Missing(PathBuf),
    #[error("mountpoint {} is not a directory; name a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("mountpoint {} is not empty; name an empty directory, or hide its content with -o nonempty", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is already mounted on {}; unmount it first: umount {}", .what.to_string_lossy(), .dir.display(), .dir.display())]
    AlreadyMounted { dir: PathBuf, what: OsString },
    #[error("mountpoint {} is a {fstype} mount that does not answer; unmount it first: umount -l {}", .dir.display(), .dir.display())]
    DeadForeign { dir: PathBuf, fstype: String },
    #[error("mountpoint {} is a dead kfs mount that cannot be detached: {why}; as its owner or root: umount -l {}", .dir.display(), .dir.display())]
    DeadKfs { dir: PathBuf, why: String },
    #[error("not permitted to mount on {}: {why}", .dir.display())]
    NotPermitted { dir: PathBuf, why: String },
    #[error("{DEV_FUSE} does not exist, so nothing can be mounted; load the module: modprobe fuse")]
    NoDevFuse,
    #[error("{DEV_FUSE} may not be opened by uid {uid}; let an administrator allow it: chmod 666 {DEV_FUSE}")]
    DevFuseNotPermitted { uid: u32 },
    #[error("cannot open {DEV_FUSE}: {0}; load the module: modprobe fuse")]
    DevFuse(io::Error),
    #[error("fusermount3 is not installed, and only root can mount without it; install it: apt install fuse3")]
    NoFusermount,
    #[error(
        "allow_other is not allowed to plain users here; put the line user_allow_other into /etc/fuse.conf, or mount as root"
    )]
    AllowOther,
    #[error("mount option `{0}` is for root alone; leave it out")]
    RootOnly(&'static str),
    #[error("fusermount3 could not mount on {}: {said}", .dir.display())]
    Fusermount { dir: PathBuf, said: String },
    #[error("the source holds a NUL byte")]
    SourceNul,
    #[error("cannot mount on {}: {why}", .dir.display())]
    Other { dir: PathBuf, why: io::Error },
}

/// Everything that can be known to fail before a password is asked or a broker tried: the state of
/// the directory (a dead kfs mount there is detached), `/dev/fuse`, `fusermount3`, options for root.
/// Returns the path without symbolic links.
pub fn preflight(dir: &Path, options: &MountOptions) -> Result<PathBuf, AttachError> {
    let dir = usable_mountpoint(dir, options)?;
    if is_root() {
        open_dev_fuse()?;
    } else {
        refuse_options_for_root(options)?;
        // Who may open it is fusermount3's business, which need not be the same user.
        if !Path::new(DEV_FUSE).exists() {
            return Err(AttachError::NoDevFuse);
        }
        super::detach::find_fusermount().ok_or(AttachError::NoFusermount)?;
    }
    Ok(dir)
}

/// Mounts. Checks the directory again, as [`preflight`] does.
pub fn attach(source: &OsStr, dir: &Path, options: &MountOptions) -> Result<Attached, AttachError> {
    let dir = usable_mountpoint(dir, options)?;
    let fd = if is_root() { mount_as_root(source, &dir, options)? } else { mount_by_helper(source, &dir, options)? };
    match MountIdentity::at(&dir) {
        Ok(Some((identity, entry))) if entry.is_kfs() => {
            if is_root()
                && let Err(e) = super::utab::add(source, &dir)
            {
                tracing::debug!("no entry in utab, so umount(8) may not drain: {e}");
            }
            Ok(Attached { fd, identity })
        }
        Ok(_) => Err(AttachError::Other { dir, why: io::Error::other("the mount has gone again") }),
        Err(why) => Err(AttachError::Other { dir, why }),
    }
}

/// Lets the kernel read ahead [`READ_AHEAD_KIB`] on this mount. Call it as root, after the
/// session's handshake; a plain user may not, and stays at what the kernel gave.
pub fn set_read_ahead(identity: &MountIdentity) -> io::Result<()> {
    let (major, minor) = identity.device;
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&file, READ_AHEAD_KIB.to_string())
        .map_err(|e| io::Error::new(e.kind(), format!("cannot set the read-ahead in {file}: {e}")))
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn usable_mountpoint(dir: &Path, options: &MountOptions) -> Result<PathBuf, AttachError> {
    // Detaching a dead mount may uncover another dead one, so look again; a few are plenty.
    for _ in 0..8 {
        let (dir, place) = examine(dir).map_err(|why| not_permitted_or_other(dir, why))?;
        match place {
            Place::Empty => return Ok(dir),
            Place::NotEmpty if options.nonempty => return Ok(dir),
            Place::NotEmpty => return Err(AttachError::NotEmpty(dir)),
            Place::Missing => return Err(AttachError::Missing(dir)),
            Place::NotADirectory => return Err(AttachError::NotADirectory(dir)),
            Place::Mounted(entry) => return Err(AttachError::AlreadyMounted { dir, what: entry.source }),
            Place::DeadForeign(entry) => return Err(AttachError::DeadForeign { dir, fstype: entry.fstype }),
            Place::DeadKfs(entry) => {
                tracing::info!(dir = %dir.display(), source = ?entry.source, "detaching a dead kfs mount");
                MountIdentity::of(&entry)
                    .map_err(|e| e.to_string())
                    .and_then(|identity| detach(&identity, How::Lazy).map_err(|e| e.to_string()))
                    .map_err(|why| AttachError::DeadKfs { dir, why })?;
            }
        }
    }
    Err(AttachError::DeadKfs { dir: dir.to_owned(), why: "dead mounts are stacked there".to_owned() })
}

fn not_permitted_or_other(dir: &Path, why: io::Error) -> AttachError {
    let dir = dir.to_owned();
    match why.kind() {
        io::ErrorKind::PermissionDenied => {
            AttachError::NotPermitted { dir, why: format!("{why}; name a directory of your own") }
        }
        _ => AttachError::Other { dir, why },
    }
}

fn open_dev_fuse() -> Result<OwnedFd, AttachError> {
    use rustix::io::Errno;
    rustix::fs::open(DEV_FUSE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| match e {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => AttachError::NoDevFuse,
        Errno::ACCESS | Errno::PERM => AttachError::DevFuseNotPermitted { uid: rustix::process::geteuid().as_raw() },
        other => AttachError::DevFuse(other.into()),
    })
}

fn mount_as_root(source: &OsStr, dir: &Path, options: &MountOptions) -> Result<OwnedFd, AttachError> {
    use rustix::io::Errno;
    let fd = open_dev_fuse()?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        fd.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("made of numbers and letters");
    let source = CString::new(source.as_bytes()).map_err(|_| AttachError::SourceNul)?;
    rustix::mount::mount(&source, dir, c"fuse.kfs", flags(options), data.as_c_str()).map_err(|e| match e {
        Errno::PERM | Errno::ACCESS => AttachError::NotPermitted {
            dir: dir.to_owned(),
            why: "root lacks CAP_SYS_ADMIN here; in a container, give it --cap-add SYS_ADMIN --device /dev/fuse".into(),
        },
        Errno::NODEV => AttachError::NoDevFuse,
        other => AttachError::Other { dir: dir.to_owned(), why: other.into() },
    })?;
    Ok(fd)
}

/// Mount flags for root, whose mounts get what the options say.
pub(super) fn flags(options: &MountOptions) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.is_read_only());
    flags.set(MountFlags::NOEXEC, options.exec == Some(false));
    flags.set(MountFlags::NOSUID, options.suid == Some(false));
    flags.set(MountFlags::NODEV, options.dev == Some(false));
    flags.set(MountFlags::NOATIME, options.noatime);
    flags
}

fn refuse_options_for_root(options: &MountOptions) -> Result<(), AttachError> {
    match (options.suid, options.dev) {
        (Some(true), _) => Err(AttachError::RootOnly("suid")),
        (_, Some(true)) => Err(AttachError::RootOnly("dev")),
        _ => Ok(()),
    }
}

fn mount_by_helper(source: &OsStr, dir: &Path, options: &MountOptions) -> Result<OwnedFd, AttachError> {
    refuse_options_for_root(options)?;
    let helper = super::detach::find_fusermount().ok_or(AttachError::NoFusermount)?;
    let other = |why: io::Error| AttachError::Other { dir: dir.to_owned(), why };
    let (ours, theirs) = UnixStream::pair().map_err(other)?;
    ours.set_read_timeout(Some(FUSERMOUNT_TIMEOUT)).map_err(other)?;
    let theirs_number = theirs.as_raw_fd();
    let mut command = Command::new(helper);
    command
        .arg("-o")
        .arg(helper_options(source, options))
        .arg("--")
        .arg(dir)
        .env("_FUSE_COMMFD", theirs_number.to_string())
        // Its messages are matched below.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: runs between fork and exec, and only calls fcntl, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::fcntl(theirs_number, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn().map_err(other)?;
    drop(theirs);
    let received = receive_fd(&ours);
    drop(ours);
    if received.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
        let mut child = child;
        // It runs as root, so this may not reach it; then it ends by itself once its socket has gone.
        let _ = child.kill();
        let said = format!("it did not answer within {FUSERMOUNT_TIMEOUT:?}");
        return Err(AttachError::Fusermount { dir: dir.to_owned(), said });
    }
    let output = child.wait_with_output().map_err(other)?;
    match received {
        Ok(Some(fd)) => Ok(fd),
        Ok(None) => Err(helper_error(dir, &String::from_utf8_lossy(&output.stderr))),
        Err(why) => Err(other(why)),
    }
}

fn helper_options(source: &OsStr, options: &MountOptions) -> OsString {
    let mut text = b"fsname=".to_vec();
    for byte in source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text.extend_from_slice(b",subtype=kfs,default_permissions,nosuid,nodev");
    for (on, option) in [
        (options.allow_other, ",allow_other"),
        (options.is_read_only(), ",ro"),
        (options.exec == Some(false), ",noexec"),
        (options.noatime, ",noatime"),
    ] {
        if on {
            text.extend_from_slice(option.as_bytes());
        }
    }
    OsString::from_vec(text)
}

/// The descriptor that fusermount3 sends, or `None` if it ended without sending one.
fn receive_fd(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket.as_fd(), &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
            Ok(_) => break,
        }
    }
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fd)
}

fn helper_error(dir: &Path, stderr: &str) -> AttachError {
    let said = stderr.trim().trim_start_matches("fusermount3:").trim().replace('\n', "; ");
    let has = |part: &str| said.contains(part);
    let dir = dir.to_owned();
    if has("user_allow_other") {
        AttachError::AllowOther
    } else if has("fuse device not found") {
        AttachError::NoDevFuse
    } else if has("failed to open /dev/fuse") {
        AttachError::DevFuseNotPermitted { uid: rustix::process::getuid().as_raw() }
    } else if has("no write access to mountpoint") || has("not owner of mountpoint") || has("bad mount point") {
        AttachError::NotPermitted { dir, why: format!("{said}; name a directory of your own") }
    } else if has("mount failed: Operation not permitted") {
        let why = "fusermount3 has no right to mount; it must be installed setuid root (apt install --reinstall fuse3)";
        AttachError::NotPermitted { dir, why: why.to_owned() }
    } else if said.is_empty() {
        AttachError::Fusermount { dir, said: "it ended without a word".to_owned() }
    } else {
        AttachError::Fusermount { dir, said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_gets_the_source_escaped() {
        let options = MountOptions::parse(OsStr::new("ro,noexec,allow_other")).expect("known");
        let text = helper_options(OsStr::new(r"a@h:1,i:2/x\y"), &options);
        assert_eq!(text, r"fsname=a@h:1\,i:2/x\\y,subtype=kfs,default_permissions,nosuid,nodev,allow_other,ro,noexec");
    }

    #[test]
    fn the_helpers_complaints_become_ours() {
        let of = |stderr: &str| helper_error(Path::new("/d"), stderr).to_string();
        assert!(
            of("fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n")
                .contains("/etc/fuse.conf")
        );
        assert!(of("fusermount3: fuse device not found, try 'modprobe fuse' first\n").contains("modprobe fuse"));
        assert!(of("fusermount3: failed to open /dev/fuse: Permission denied\n").contains("chmod 666"));
        assert!(of("fusermount3: user has no write access to mountpoint /d\n").contains("not permitted"));
        assert!(of("fusermount3: mount failed: Operation not permitted\n").contains("setuid root"));
        assert!(of("fusermount3: odd\nthing\n").ends_with("odd; thing"));
        assert!(of("").contains("without a word"));
    }
}
