//! Who still uses a mount: the programs that keep it busy.
//!
//! * Looks only at /proc, never into the mount, so it works on one that hangs.
//! * Paths in /proc are those of the looked-at process's mount namespace; each namespace's own
//!   mountinfo says where the device is mounted there. On a detached mount paths say nothing any
//!   more, but open files still show its id and mappings its device.
//! * Processes that this user may not look at are not seen. Bounded by [`USERS_MAX`] and
//!   [`SCAN_TIMEOUT`].
//! * Reading `maps` can wait for a page fault on the mount itself: not for a thread that serves it.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mountinfo::{MountIdentity, read_from};

/// Users returned, at most.
pub const USERS_MAX: usize = 64;
/// How long the search goes on, at most.
pub const SCAN_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that uses the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub pid: u32,
    /// The program's name, at most 15 bytes of it, as the kernel keeps it.
    pub program: String,
    pub how: Use,
}

/// How a process uses the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is the process's current directory.
    CurrentDirectory,
    /// It is the process's root.
    Root,
    /// The program itself lies there.
    Program,
    /// A file or directory is open.
    OpenFile,
    /// A file is mapped into memory.
    Mapping,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.how {
            Use::CurrentDirectory => "is in it",
            Use::Root => "has its root in it",
            Use::Program => "runs from it",
            Use::OpenFile => "has a file open in it",
            Use::Mapping => "has a file mapped from it",
        };
        write!(f, "{} (pid {}) {how}", self.program, self.pid)
    }
}

/// The processes that use the mount, this one excepted, by pid.
pub fn users_of(mount: &MountIdentity) -> Vec<User> {
    let deadline = Instant::now() + SCAN_TIMEOUT;
    let mut places = Places { mount, by_namespace: HashMap::new() };
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .collect();
    pids.sort_unstable();
    let mut users = Vec::new();
    for pid in pids {
        if users.len() == USERS_MAX || Instant::now() > deadline {
            break;
        }
        let proc = PathBuf::from(format!("/proc/{pid}"));
        if let Some(how) = places.use_by(&proc) {
            let name = std::fs::read(proc.join("comm")).unwrap_or_default();
            users.push(User { pid, program: String::from_utf8_lossy(&name).trim_end().to_owned(), how });
        }
    }
    users
}

struct Places<'a> {
    mount: &'a MountIdentity,
    /// Where the device is mounted, by mount namespace.
    by_namespace: HashMap<OsString, Vec<PathBuf>>,
}

impl Places<'_> {
    fn use_by(&mut self, proc: &Path) -> Option<Use> {
        let namespace = std::fs::read_link(proc.join("ns/mnt")).ok()?.into_os_string();
        let device = self.mount.device;
        let places = self.by_namespace.entry(namespace).or_insert_with(|| {
            let mounts = read_from(&proc.join("mountinfo")).unwrap_or_default();
            mounts.into_iter().filter(|m| m.device == device).map(|m| m.mountpoint).collect()
        });
        let is_inside = |link: &Path| {
            std::fs::read_link(link).is_ok_and(|target| places.iter().any(|place| target.starts_with(place)))
        };
        let links = [("cwd", Use::CurrentDirectory), ("root", Use::Root), ("exe", Use::Program)];
        if let Some((_, how)) = links.iter().find(|(name, _)| is_inside(&proc.join(name))) {
            return Some(*how);
        }
        let mut open = std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        let detached = places.is_empty();
        if open.any(|fd| is_inside(&fd.path()) || (detached && is_open_on(self.mount.id, proc, &fd.file_name()))) {
            return Some(Use::OpenFile);
        }
        let maps = std::fs::read(proc.join("maps")).ok()?;
        let device = format!("{:02x}:{:02x}", device.0, device.1);
        let maps_it = |line: &[u8]| line.split(|b| *b == b' ').nth(3) == Some(device.as_bytes());
        maps.split(|b| *b == b'\n').any(maps_it).then_some(Use::Mapping)
    }
}

/// Mount ids are the same in all namespaces, and not reused while a file is open there.
fn is_open_on(mount_id: u64, proc: &Path, fd: &OsStr) -> bool {
    let info = std::fs::read(proc.join("fdinfo").join(fd)).unwrap_or_default();
    let wanted = format!("mnt_id:\t{mount_id}");
    info.split(|b| *b == b'\n').any(|line| line == wanted.as_bytes())
}
