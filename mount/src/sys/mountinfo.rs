//! What the kernel says is mounted, and in which state a directory is that shall become a mount.
//!
//! * Nothing here touches a mounted filesystem in a way that could wait for its daemon, except
//!   [`probe`], which does it in a process of its own and gives up in time.
//! * Mount ids and device numbers are reused by the kernel. A [`MountIdentity`] therefore also
//!   holds the unique mount id (Linux 6.8 and later), so that a newer mount is never taken for ours.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use serde::{Deserialize, Serialize};

/// The filesystem type of our mounts.
pub const FSTYPE: &str = "fuse.kfs";

/// How long [`examine`] waits for a mounted filesystem to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Symbolic links followed at the end of a mountpoint's path, as many as the kernel follows.
const SYMLINKS_MAX: usize = 40;

/// One line of `/proc/<pid>/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Unique among what is mounted now; reused later.
    pub id: u64,
    /// The mount that this one is attached to.
    pub parent: u64,
    /// Major and minor device number of the superblock.
    pub device: (u32, u32),
    /// Which directory of the filesystem is the mount's root.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Options of the mount, like `rw,nosuid`.
    pub options: String,
    /// Like `ext4` or `fuse.kfs`.
    pub fstype: String,
    /// The first field of fstab, byte for byte.
    pub source: OsString,
    /// Options of the superblock, like `rw,user_id=0`.
    pub super_options: String,
}

impl MountEntry {
    /// Who mounted it, if it is a FUSE mount.
    pub fn user_id(&self) -> Option<u32> {
        self.super_options.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
    }

    /// Whether it is one of ours.
    pub fn is_kfs(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// Everything mounted in this process's mount namespace, lower mounts first.
pub fn read() -> io::Result<Vec<MountEntry>> {
    read_from(Path::new("/proc/self/mountinfo"))
}

/// The same for another file of that form, such as `/proc/<pid>/mountinfo`.
pub fn read_from(file: &Path) -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read(file)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot read {}: {e}; is /proc mounted?", file.display())))?;
    Ok(parse(&text))
}

/// Parses the text of a mountinfo file. Lines that are not of that form are passed over.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// The mount that is seen at `mountpoint` (an absolute path without symbolic links): the last one
/// of those stacked there.
pub fn at<'a>(mounts: &'a [MountEntry], mountpoint: &Path) -> Option<&'a MountEntry> {
    mounts.iter().rev().find(|mount| mount.mountpoint == mountpoint)
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = || fields.next().filter(|field| !field.is_empty());
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
    let id = number(next()?)?;
    let parent = number(next()?)?;
    let (major, minor) = std::str::from_utf8(next()?).ok()?.split_once(':')?;
    let device = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(next()?).into();
    let mountpoint = unescape(next()?).into();
    let options = String::from_utf8_lossy(next()?).into_owned();
    // Optional fields, of which there may be any number, end at a lone hyphen.
    while next()? != b"-" {}
    let fstype = unescape(next()?).to_string_lossy().into_owned();
    // The source may be empty, so that two spaces follow each other.
    let source = unescape(fields.next()?);
    let super_options = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(MountEntry { id, parent, device, root, mountpoint, options, fstype, source, super_options })
}

/// Undoes the kernel's `\040`-like escapes.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Which mount it is, precisely enough never to take another one for it. Travels as one JSON line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    /// The id in mountinfo.
    pub id: u64,
    /// The id that is never reused, where the kernel tells it (Linux 6.8 and later).
    pub unique: Option<u64>,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// Where it was mounted, as raw bytes: a path need not be text.
    mountpoint: Vec<u8>,
}

impl MountIdentity {
    /// The identity of the mount in `entry`, which must be the one seen at its mountpoint.
    pub fn of(entry: &MountEntry) -> io::Result<Self> {
        let handle = open_mountpoint(&entry.mountpoint)?;
        let (id, unique) = ids_of(&handle)?;
        if id != entry.id {
            return Err(io::Error::other(format!("another mount covers {}", entry.mountpoint.display())));
        }
        Ok(Self { id, unique, device: entry.device, mountpoint: entry.mountpoint.as_os_str().as_bytes().to_vec() })
    }

    /// The identity of whatever is mounted at `mountpoint` now, if anything is.
    pub fn at(mountpoint: &Path) -> io::Result<Option<(Self, MountEntry)>> {
        let mounts = read()?;
        at(&mounts, mountpoint).map(|entry| Ok((Self::of(entry)?, entry.clone()))).transpose()
    }

    /// Where it was mounted.
    pub fn mountpoint(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.mountpoint))
    }

    /// Finds it among what is mounted now, wherever it has been moved to. Does not say whether it
    /// is covered by another mount.
    pub fn find<'a>(&self, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
        mounts.iter().find(|mount| mount.id == self.id && mount.device == self.device && mount.is_kfs())
    }

    /// Whether `handle`, opened by [`open_mountpoint`], is on this mount.
    pub fn is(&self, handle: &OwnedFd) -> io::Result<bool> {
        let (id, unique) = ids_of(handle)?;
        Ok(id == self.id && (self.unique.is_none() || unique == self.unique))
    }
}

/// Opens the root of what is mounted at `mountpoint` as a mere place: no message goes to the
/// filesystem, so this returns at once even if its daemon hangs or is dead.
pub fn open_mountpoint(mountpoint: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(mountpoint, flags, Mode::empty())?)
}

fn ids_of(handle: &OwnedFd) -> io::Result<(u64, Option<u64>)> {
    use std::os::fd::AsRawFd;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    let id = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("/proc/self/fdinfo has no mnt_id"))?;
    // Not in every version of rustix; older kernels leave the bit out of the answer.
    let unique_flag = StatxFlags::from_bits_retain(0x4000);
    // With DONT_SYNC the answer comes from the kernel alone.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let unique = match rustix::fs::statx(handle.as_fd(), c"", flags, unique_flag) {
        Ok(stat) if stat.stx_mask & 0x4000 != 0 => Some(stat.stx_mnt_id),
        _ => None,
    };
    Ok((id, unique))
}

/// Whether a mounted filesystem answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// It does.
    Yes,
    /// Its daemon is gone: ENOTCONN.
    Dead,
    /// It did not answer in time.
    Hangs,
}

/// Asks the filesystem at `mountpoint` for its root's attributes, in a process of its own that may
/// hang in the caller's place, and waits for it at most `timeout`.
pub fn probe(mountpoint: &Path, timeout: Duration) -> io::Result<Answers> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: the child calls only async-signal-safe functions (close_range, statx, _exit) and
    // allocates nothing, so this is right even when other threads exist.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: plain system calls on memory of this process; `path` ends in NUL.
        unsafe {
            // A child that hangs must not hold the caller's pipes open.
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            let mut stat: libc::statx = std::mem::zeroed();
            let flags = libc::AT_STATX_FORCE_SYNC | libc::AT_SYMLINK_NOFOLLOW;
            let failed = libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &mut stat) != 0;
            // ECONNABORTED comes once after an abort, ENOTCONN from then on.
            let dead = failed && matches!(*libc::__errno_location(), libc::ENOTCONN | libc::ECONNABORTED);
            libc::_exit(if dead { 1 } else { 0 });
        }
    }
    let deadline = Instant::now() + timeout;
    loop {
        let mut status = 0;
        // SAFETY: `child` is our own child, not yet waited for; `status` is ours.
        match unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } {
            0 if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            0 => {
                // SAFETY: still our own child. It ends when the filesystem lets it go.
                unsafe { libc::kill(child, libc::SIGKILL) };
                return Ok(Answers::Hangs);
            }
            pid if pid == child => {
                let dead = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1;
                return Ok(if dead { Answers::Dead } else { Answers::Yes });
            }
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// The state of a directory that shall become a mountpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory without entries.
    Empty,
    /// A directory with entries.
    NotEmpty,
    /// Nothing there.
    Missing,
    /// Something, but no directory.
    NotADirectory,
    /// A kfs mount whose daemon lives (or only hangs).
    Mounted(MountEntry),
    /// A kfs mount whose daemon is gone; to be detached before mounting again.
    DeadKfs(MountEntry),
    /// Another filesystem that is dead or does not answer; not ours to touch.
    DeadForeign(MountEntry),
}

/// Says in which state `dir` is. Returns the path that the kernel knows it by beside the state.
/// Waits at most two seconds for a filesystem that is mounted there.
///
/// # Errors
/// A directory above that cannot be searched, or an unreadable `dir`.
pub fn examine(dir: &Path) -> io::Result<(PathBuf, Place)> {
    let mounts = read()?;
    let (path, mounted) = match resolve(dir, &mounts) {
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((dir.to_owned(), Place::Missing)),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Ok((dir.to_owned(), Place::NotADirectory)),
        Err(e) => return Err(e),
    };
    if let Some(entry) = mounted {
        match (probe(&path, PROBE_TIMEOUT)?, entry.is_kfs()) {
            (Answers::Dead, true) => return Ok((path, Place::DeadKfs(entry))),
            (_, true) => return Ok((path, Place::Mounted(entry))),
            (Answers::Dead | Answers::Hangs, false) => return Ok((path, Place::DeadForeign(entry))),
            (Answers::Yes, false) => {}
        }
    }
    let place = match std::fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Place::Missing,
        Err(e) => return Err(e),
        Ok(meta) if !meta.is_dir() => Place::NotADirectory,
        Ok(_) => match std::fs::read_dir(&path)?.next() {
            None => Place::Empty,
            Some(_) => Place::NotEmpty,
        },
    };
    Ok((path, place))
}

/// The absolute path without symbolic links by which mountinfo would know `dir`, and what is
/// mounted there. Looks at the directories above it, never into what is mounted at it.
pub fn resolve(dir: &Path, mounts: &[MountEntry]) -> io::Result<(PathBuf, Option<MountEntry>)> {
    let mut path = std::path::absolute(dir)?;
    for _ in 0..SYMLINKS_MAX {
        let Some(name) = path.file_name().map(OsStr::to_owned) else {
            path = std::fs::canonicalize(&path)?;
            let mounted = at(mounts, &path).cloned();
            return Ok((path, mounted));
        };
        let parent = std::fs::canonicalize(path.parent().expect("a path with a file name has a parent"))?;
        path = parent.join(&name);
        if let Some(entry) = at(mounts, &path) {
            return Ok((path, Some(entry.clone())));
        }
        match std::fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            // EINVAL: there, and no symbolic link.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok((path, None)),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        40 27 0:44 / /mnt/with\\040space\\134x rw,nosuid shared:5 master:1 - fuse.kfs ann@h:1/a\\040b rw,user_id=7\n\
        bad line\n\
        41 27 0:45 / /mnt/e rw -  ext4  rw\n\
        42 40 0:46 /sub /mnt/with\\040space\\134x ro - tmpfs none ro\n";

    #[test]
    fn lines_parse_with_escapes_and_optional_fields() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.iter().map(|m| m.id).collect::<Vec<_>>(), [22, 40, 42]);
        let kfs = &mounts[1];
        assert_eq!(kfs.mountpoint, Path::new("/mnt/with space\\x"));
        assert_eq!((kfs.source.as_os_str(), kfs.device), (OsStr::new("ann@h:1/a b"), (0, 44)));
        assert_eq!((kfs.user_id(), kfs.is_kfs()), (Some(7), true));
        assert_eq!(at(&mounts, Path::new("/mnt/with space\\x")).map(|m| m.id), Some(42), "the topmost counts");
    }

    #[test]
    fn an_empty_source_parses() {
        let mounts = parse(b"41 27 0:45 / /mnt/e rw - ext4  rw,x\n");
        assert_eq!((mounts[0].source.as_os_str(), mounts[0].super_options.as_str()), (OsStr::new(""), "rw,x"));
    }

    #[test]
    fn places_are_told_apart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = std::fs::canonicalize(dir.path()).expect("exists");
        let state = |path: &Path| examine(path).expect("examined");
        assert_eq!(state(dir.path()), (real.clone(), Place::Empty));
        std::fs::write(real.join("file"), "x").expect("written");
        assert_eq!(state(dir.path()).1, Place::NotEmpty);
        assert_eq!(state(&real.join("file")).1, Place::NotADirectory);
        assert_eq!(state(&real.join("file/below")).1, Place::NotADirectory);
        assert_eq!(state(&real.join("none")).1, Place::Missing);
        assert_eq!(state(&real.join("none/below")).1, Place::Missing);
        std::fs::create_dir(real.join("d")).expect("created");
        std::os::unix::fs::symlink("d", real.join("link")).expect("linked");
        assert_eq!(state(&real.join("link")), (real.join("d"), Place::Empty));
        std::os::unix::fs::symlink("loop", real.join("loop")).expect("linked");
        assert!(examine(&real.join("loop")).is_err());
    }

    #[test]
    fn the_root_is_mounted_and_has_an_identity() {
        let mounts = read().expect("readable");
        let root = at(&mounts, Path::new("/")).expect("something is mounted at /");
        let identity = MountIdentity::of(root).expect("identified");
        let line = serde_json::to_string(&identity).expect("serializes");
        assert_eq!(serde_json::from_str::<MountIdentity>(&line).expect("parses"), identity);
        assert_eq!(probe(Path::new("/"), Duration::from_secs(5)).expect("probed"), Answers::Yes);
    }
}
