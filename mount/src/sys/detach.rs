//! Unmounts: root by umount2(2), anyone else by `fusermount3 -u`, always one certain mount.
//!
//! * The mount is named by its [`MountIdentity`]; whatever else is mounted at the same place since
//!   is left alone. Root's lazy detach goes through a descriptor of that very mount, so not even a
//!   race can hit another one; the other ways check just before.
//! * Nothing here waits for the filesystem's daemon.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

use super::attach::is_root;
use super::mountinfo::{MountIdentity, at, open_mountpoint, read};

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Only if nobody uses it; else [`DetachError::Busy`].
    Idle,
    /// At once: out of sight now, gone when the last user has left it.
    Lazy,
    /// Root only (others get `Lazy`): also abort what waits for the daemon. Data on the way to the
    /// daemon is lost.
    Force,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// It is unmounted now.
    Done,
    /// It was unmounted before.
    WasGone,
}

/// Why it is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    #[error("{} is in use; end what uses it (kfs status names it), or detach it: umount -l {}", .0.display(), .0.display())]
    Busy(PathBuf),
    #[error("{} is covered by another mount; unmount that one first: umount {}", .0.display(), .0.display())]
    Covered(PathBuf),
    #[error("not permitted to unmount {}: {why}; do it as root or as who mounted it", .dir.display())]
    NotPermitted { dir: PathBuf, why: String },
    #[error("fusermount3 is not installed, and only root can unmount without it; install it: apt install fuse3")]
    NoFusermount,
    #[error("cannot unmount {}: {why}", .dir.display())]
    Other { dir: PathBuf, why: io::Error },
}

/// Unmounts the mount `identity`, wherever in this mount namespace it has been moved to.
pub fn detach(identity: &MountIdentity, how: How) -> Result<Detached, DetachError> {
    let other = |why: io::Error| DetachError::Other { dir: identity.mountpoint().to_owned(), why };
    let mounts = read().map_err(other)?;
    let Some(entry) = identity.find(&mounts) else { return Ok(Detached::WasGone) };
    let dir = entry.mountpoint.clone();
    if at(&mounts, &dir).is_some_and(|top| top.id != entry.id) {
        return Err(DetachError::Covered(dir));
    }
    let handle = match open_mountpoint(&dir) {
        Ok(handle) => handle,
        // A plain user may be kept from a root-owned daemon's mount; the path will have to do.
        Err(why) => return Err(DetachError::NotPermitted { dir, why: why.to_string() }),
    };
    if !identity.is(&handle).map_err(other)? {
        return Ok(Detached::WasGone);
    }
    let result = if is_root() {
        let lazily = |flags: UnmountFlags| {
            let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
            rustix::mount::unmount(path, flags | UnmountFlags::DETACH).map_err(|e| unmount_error(&dir, e))
        };
        match how {
            How::Lazy => lazily(UnmountFlags::empty()),
            How::Force => lazily(UnmountFlags::FORCE),
            How::Idle => {
                // A descriptor of the mount would keep it busy.
                drop(handle);
                rustix::mount::unmount(&dir, UnmountFlags::NOFOLLOW).map_err(|e| unmount_error(&dir, e))
            }
        }
    } else {
        drop(handle);
        by_helper(&dir, how != How::Idle)
    };
    match result {
        Ok(()) => {
            if is_root() {
                // Left over, it would only be passed over.
                let _ = super::utab::remove(&entry.source, &dir);
            }
            Ok(Detached::Done)
        }
        // Someone else may have been quicker.
        Err(_) if read().is_ok_and(|mounts| identity.find(&mounts).is_none()) => Ok(Detached::WasGone),
        Err(e) => Err(e),
    }
}

fn unmount_error(dir: &Path, errno: rustix::io::Errno) -> DetachError {
    use rustix::io::Errno;
    let dir = dir.to_owned();
    match errno {
        Errno::BUSY => DetachError::Busy(dir),
        Errno::PERM | Errno::ACCESS => DetachError::NotPermitted { dir, why: errno.to_string() },
        _ => DetachError::Other { dir, why: errno.into() },
    }
}

fn by_helper(dir: &Path, lazily: bool) -> Result<(), DetachError> {
    let helper = find_fusermount().ok_or(DetachError::NoFusermount)?;
    let mut command = Command::new(helper);
    command.arg("-u").env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(dir).output().map_err(|why| DetachError::Other { dir: dir.to_owned(), why })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fusermount3:").trim().replace('\n', "; ");
    let dir = dir.to_owned();
    Err(if said.contains("busy") {
        DetachError::Busy(dir)
    } else if said.contains("ermission denied") || said.contains("not permitted") || said.contains("not found in") {
        DetachError::NotPermitted { dir, why: said }
    } else {
        DetachError::Other { dir, why: io::Error::other(said) }
    })
}

/// Where `fusermount3` is: on `PATH`, or where systems install it.
pub(super) fn find_fusermount() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual =
        ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].map(|dir| OsStr::from_bytes(dir.as_bytes()));
    std::env::split_paths(&path)
        .chain(usual.iter().map(PathBuf::from))
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join("fusermount3"))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}
