//! One of the directories that a sequence is played in, and what is seen there.
//!
//! Plain system calls, so that nothing stands between what is asked and what is compared: nobody else refuses, repeats
//! or rounds.

use super::op::{Op, Place, SLOTS, Slot, Subject, Text, Time, USERS};
use harness::tree::Random;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// What an operation came to.
pub type Outcome = Result<Value, Errno>;

#[derive(Clone, PartialEq, Eq)]
pub struct Errno(pub i32);

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Error::from_raw_os_error(self.0))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(i64),
    Bytes(Text),
    Stat(Stat),
    /// Sorted; with the kind that the listing says.
    Names(Vec<(Text, u8)>),
    /// The names of extended attributes, sorted.
    Attributes(Vec<Text>),
}

/// Attributes that must be the same everywhere. Not: inode and device numbers, and what says how content is stored
/// (blocks, their size, the size of a directory).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub mode: u32,
    links: u32,
    owner: (u32, u32),
    /// Of files and links.
    size: Option<u64>,
    device: (u32, u32),
    /// Each if it is one that no clock of today shows.
    set: [Option<(i64, u32)>; 2],
}

/// Something that has a name or is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub stat: Stat,
    /// The first of its names in the tree, which tells hard links.
    first_name: Option<Text>,
    target: Option<Text>,
    attributes: Vec<(Text, Text)>,
    /// If it was read.
    content: Option<Text>,
    /// The listing's kind and inode number were those of the attributes.
    is_listed_right: bool,
}

/// What distinguishes a node in one world only, and when it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    ino: u64,
    changed: [(i64, u32); 2],
}

/// Everything with a name, then what is open.
#[derive(Default)]
pub struct Picture {
    pub nodes: BTreeMap<Text, Node>,
    pub marks: BTreeMap<Text, Marks>,
}

impl Picture {
    /// Of each node that was there before: whether its mtime and its ctime moved.
    pub fn moved_since(&self, before: &Picture) -> BTreeMap<&Text, [bool; 2]> {
        let both = self.marks.iter().filter_map(|(name, now)| Some((name, now, before.marks.get(name)?)));
        both.filter(|(_, now, then)| now.ino == then.ino)
            // FUSE keeps what passes through a fifo to itself, and so when that was.
            .filter(|(name, ..)| !self.nodes[*name].stat.is(libc::S_IFIFO))
            .map(|(name, now, then)| (name, [0, 1].map(|i| now.changed[i] != then.changed[i])))
            .collect()
    }
}

pub struct World {
    path: PathBuf,
    root: OwnedFd,
    slots: [Option<OwnedFd>; SLOTS],
}

/// Becomes one of [`USERS`] in this thread alone, as a server that acts for others does; with another one's
/// number goes what setfsuid leaves and a local disk shows `trusted.` attributes by.
pub fn become_user(user: usize) {
    const VERSION: u32 = 0x2008_0522;
    const CAP_SYS_ADMIN: u32 = 1 << 21;
    let (uid, gid, group) = USERS[user];
    let groups = group.as_slice();
    // SAFETY: plain system calls (not the C library's, which change all threads); `groups` lives while the kernel reads it.
    unsafe {
        libc::setfsuid(0);
        assert_eq!(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()), 0);
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        // They say nothing of success, only what was before.
        assert_eq!((libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX)), (gid as i32, uid as i32));
        // This thread's; effective, permitted and inheritable, of the lower and the higher 32 capabilities.
        let (mut header, mut sets) = ([VERSION, 0], [[0_u32; 3]; 2]);
        assert_eq!(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()), 0);
        let [effective, permitted, _] = &mut sets[0];
        *effective = if user == 0 { *effective | *permitted & CAP_SYS_ADMIN } else { *effective & !CAP_SYS_ADMIN };
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()), 0);
    }
}

fn call(result: impl Into<i64>) -> Result<i64, Errno> {
    match result.into() {
        -1 => Err(Errno(Error::last_os_error().raw_os_error().expect("the last error is the system's"))),
        n => Ok(n),
    }
}

fn c(text: &Text) -> CString {
    CString::new(text.0.clone()).expect("no text has a zero in it")
}

impl World {
    pub fn new(path: &Path) -> World {
        let root = std::fs::File::open(path).expect("the directory has just been made").into();
        World { path: path.to_owned(), root, slots: Default::default() }
    }

    /// -1 if nothing is open there, which is an illegal descriptor.
    fn fd(&self, slot: Slot) -> RawFd {
        self.slots[slot].as_ref().map_or(-1, OwnedFd::as_raw_fd)
    }

    fn base(&self, place: &Place) -> RawFd {
        place.base.map_or(self.root.as_raw_fd(), |slot| self.fd(slot))
    }

    /// For calls that know no base.
    fn whole(&self, path: &Text) -> CString {
        let mut whole = self.path.as_os_str().as_bytes().to_vec();
        whole.push(b'/');
        whole.extend(&path.0);
        c(&Text(if path.0.starts_with(b"/") { path.0.clone() } else { whole }))
    }

    pub fn play(&mut self, op: &Op) -> Outcome {
        // SAFETY (of every block below): plain system calls; each pointer is to a value that lives until the call has
        // returned, with the length given beside it.
        let n = match op {
            // Of the thread, not of a world.
            Op::Become { .. } | Op::Umask { .. } => 0,
            Op::Open { at, flags, mode, slot } => {
                let path = c(&at.path);
                // SAFETY: as above.
                let fd = call(unsafe { libc::openat(self.base(at), path.as_ptr(), *flags, *mode) })?;
                if flags & libc::O_TMPFILE == libc::O_TMPFILE {
                    // Only one world may have it, so nobody keeps it.
                    // SAFETY: the kernel has just given us this descriptor.
                    drop(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
                    return Ok(Value::Number(0));
                }
                return self.opened(fd, *slot);
            }
            Op::Reopen { from, flags, slot } => {
                let path = CString::new(format!("/proc/self/fd/{}", self.fd(*from))).expect("no zero");
                // SAFETY: as above.
                let fd = call(unsafe { libc::open(path.as_ptr(), *flags, 0o600) })?;
                return self.opened(fd, *slot);
            }
            Op::Close { slot } => {
                let Some(fd) = self.slots[*slot].take() else { return Err(Errno(libc::EBADF)) };
                // SAFETY: the descriptor is nobody else's any more.
                call(unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(fd)) })?
            }
            Op::Read { slot, len, at } => {
                let mut bytes = vec![0; *len];
                // SAFETY: as above.
                let n = call(unsafe {
                    match at {
                        Some(at) => libc::pread(self.fd(*slot), bytes.as_mut_ptr().cast(), *len, *at),
                        None => libc::read(self.fd(*slot), bytes.as_mut_ptr().cast(), *len),
                    }
                } as i64)?;
                bytes.truncate(n as usize);
                return Ok(Value::Bytes(Text(bytes)));
            }
            Op::Write { slot, len, at, seed } => {
                let bytes = Random::new(*seed).bytes(*len);
                // SAFETY: as above.
                call(unsafe {
                    match at {
                        Some(at) => libc::pwrite(self.fd(*slot), bytes.as_ptr().cast(), *len, *at),
                        None => libc::write(self.fd(*slot), bytes.as_ptr().cast(), *len),
                    }
                } as i64)?
            }
            Op::Lseek { slot, offset, whence } => self.lseek(self.fd(*slot), *offset, *whence)?,
            Op::Truncate { path, size } => {
                let path = self.whole(path);
                // SAFETY: as above.
                call(unsafe { libc::truncate(path.as_ptr(), *size) })?
            }
            // SAFETY: as above.
            Op::Ftruncate { slot, size } => call(unsafe { libc::ftruncate(self.fd(*slot), *size) })?,
            Op::Fallocate { slot, mode, offset, len } => {
                // SAFETY: as above.
                call(unsafe { libc::fallocate(self.fd(*slot), *mode, *offset, *len) })?
            }
            Op::Copy { from, at, to, to_at, len, flags } => {
                let (from, to, mut at, mut to_at) = (self.fd(*from), self.fd(*to), *at, *to_at);
                let pointer = |at: &mut Option<i64>| at.as_mut().map_or(std::ptr::null_mut(), std::ptr::from_mut);
                // SAFETY: as above.
                call(unsafe { libc::copy_file_range(from, pointer(&mut at), to, pointer(&mut to_at), *len, *flags) }
                    as i64)?
            }
            Op::Sync { slot, only_data } => {
                let fd = self.fd(*slot);
                // SAFETY: as above.
                call(unsafe { if *only_data { libc::fdatasync(fd) } else { libc::fsync(fd) } })?
            }
            Op::List { slot } => {
                return Ok(Value::Names(list(self.fd(*slot))?.into_iter().map(|entry| (entry.0, entry.1)).collect()));
            }
            Op::Mkdir { at, mode } => {
                let path = c(&at.path);
                // SAFETY: as above.
                call(unsafe { libc::mkdirat(self.base(at), path.as_ptr(), *mode) })?
            }
            Op::Mknod { at, mode, device } => {
                let path = c(&at.path);
                // SAFETY: as above.
                call(unsafe { libc::mknodat(self.base(at), path.as_ptr(), *mode, *device) })?
            }
            Op::Symlink { target, at } => {
                let (target, path) = (c(target), c(&at.path));
                // SAFETY: as above.
                call(unsafe { libc::symlinkat(target.as_ptr(), self.base(at), path.as_ptr()) })?
            }
            Op::Readlink { at } => return Ok(Value::Bytes(readlink(self.base(at), &at.path)?)),
            Op::Link { from, to, flags } => {
                let (old, new) = (c(&from.path), c(&to.path));
                // SAFETY: as above.
                call(unsafe { libc::linkat(self.base(from), old.as_ptr(), self.base(to), new.as_ptr(), *flags) })?
            }
            Op::Rename { from, to, flags } => {
                let (old, new) = (c(&from.path), c(&to.path));
                // SAFETY: as above.
                call(unsafe { libc::renameat2(self.base(from), old.as_ptr(), self.base(to), new.as_ptr(), *flags) })?
            }
            Op::Unlink { at, flags } => {
                let path = c(&at.path);
                // SAFETY: as above.
                call(unsafe { libc::unlinkat(self.base(at), path.as_ptr(), *flags) })?
            }
            Op::Stat { at, flags } => return Ok(Value::Stat(stat(self.base(at), &at.path, *flags)?.0)),
            Op::Access { at, mode, flags } => {
                let path = c(&at.path);
                // SAFETY: as above. Not the C library's, which answers some flags by itself.
                call(unsafe { libc::syscall(libc::SYS_faccessat2, self.base(at), path.as_ptr(), *mode, *flags) })?
            }
            Op::Chmod { at, mode, flags } => {
                let path = c(&at.path);
                // SAFETY: as above.
                call(unsafe { libc::syscall(libc::SYS_fchmodat2, self.base(at), path.as_ptr(), *mode, *flags) })?
            }
            // SAFETY: as above.
            Op::Fchmod { slot, mode } => call(unsafe { libc::fchmod(self.fd(*slot), *mode) })?,
            Op::Chown { at, uid, gid, flags } => {
                let path = c(&at.path);
                // SAFETY: as above.
                call(unsafe { libc::fchownat(self.base(at), path.as_ptr(), *uid, *gid, *flags) })?
            }
            // SAFETY: as above.
            Op::Fchown { slot, uid, gid } => call(unsafe { libc::fchown(self.fd(*slot), *uid, *gid) })?,
            Op::Utimens { at, times, flags } => {
                let (path, times) = (c(&at.path), times.map(timespec));
                // SAFETY: as above.
                call(unsafe { libc::utimensat(self.base(at), path.as_ptr(), times.as_ptr(), *flags) })?
            }
            Op::Futimens { slot, times } => {
                let times = times.map(timespec);
                // SAFETY: as above.
                call(unsafe { libc::syscall(libc::SYS_utimensat, self.fd(*slot), null::<u8>(), times.as_ptr(), 0) })?
            }
            Op::Setxattr { of, name, value, flags } => {
                let (name, value, len) = (c(name), value.0.as_ptr().cast(), value.0.len());
                match of {
                    Subject::Path(path) => {
                        let path = self.whole(path);
                        // SAFETY: as above.
                        call(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value, len, *flags) })?
                    }
                    Subject::Link(path) => {
                        let path = self.whole(path);
                        // SAFETY: as above.
                        call(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value, len, *flags) })?
                    }
                    Subject::Open(slot) => {
                        // SAFETY: as above.
                        call(unsafe { libc::fsetxattr(self.fd(*slot), name.as_ptr(), value, len, *flags) })?
                    }
                }
            }
            Op::Getxattr { of, name, room } => return self.getxattr(of, name, *room),
            Op::Listxattr { of, room } => return self.listxattr(of, *room),
            Op::Removexattr { of, name } => {
                let name = c(name);
                match of {
                    Subject::Path(path) => {
                        let path = self.whole(path);
                        // SAFETY: as above.
                        call(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) })?
                    }
                    Subject::Link(path) => {
                        let path = self.whole(path);
                        // SAFETY: as above.
                        call(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })?
                    }
                    // SAFETY: as above.
                    Subject::Open(slot) => call(unsafe { libc::fremovexattr(self.fd(*slot), name.as_ptr()) })?,
                }
            }
        };
        Ok(Value::Number(n))
    }

    fn opened(&mut self, fd: i64, slot: Slot) -> Outcome {
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let stat = stat(fd.as_raw_fd(), &Text(Vec::new()), libc::AT_EMPTY_PATH)?.0;
        self.slots[slot] = Some(fd);
        Ok(Value::Stat(stat))
    }

    /// Where holes begin and end is each filesystem's own affair (whole blocks, what is known to be zero); that what
    /// is skipped as a hole is zero is not. So this is looked at here, and only success compared.
    fn lseek(&self, fd: RawFd, offset: i64, whence: i32) -> Result<i64, Errno> {
        // SAFETY: plain system calls on whatever the descriptor is.
        let seek = |offset, whence| call(unsafe { libc::lseek(fd, offset, whence) });
        // A directory's positions mean nothing to anyone but itself.
        if is_directory(fd) {
            return seek(0, libc::SEEK_SET);
        }
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return seek(offset, whence);
        }
        let end = seek(0, libc::SEEK_END)?;
        let found = seek(offset, whence);
        seek(0, libc::SEEK_SET)?;
        if offset < 0 || offset >= end {
            return found;
        }
        let to = match (whence, found) {
            (libc::SEEK_DATA, Ok(to)) if (offset..end).contains(&to) => to,
            // Nothing but a hole.
            (libc::SEEK_DATA, Err(Errno(libc::ENXIO))) => end,
            (libc::SEEK_HOLE, Ok(to)) if (offset..=end).contains(&to) => return Ok(0),
            (_, found) => panic!("lseek({offset}, {whence}) came to {found:?} in a file of {end} bytes"),
        };
        let mut bytes = vec![0; (to - offset) as usize];
        // SAFETY: `bytes` has this length. Of a file that is not open for reading nothing can be said.
        if let Ok(n) = call(unsafe { libc::pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), offset) } as i64) {
            assert!(
                n == to - offset && bytes.iter().all(|byte| *byte == 0),
                "data in {offset}..{to}, said to be a hole"
            );
        }
        Ok(0)
    }

    fn getxattr(&self, of: &Subject, name: &Text, room: usize) -> Outcome {
        let name = c(name);
        let mut value = vec![0_u8; room];
        let to = value.as_mut_ptr().cast();
        // SAFETY: the strings live until the end of the block, and `value` has `room` bytes.
        let n = call(unsafe {
            match of {
                Subject::Path(path) => libc::getxattr(self.whole(path).as_ptr(), name.as_ptr(), to, room),
                Subject::Link(path) => libc::lgetxattr(self.whole(path).as_ptr(), name.as_ptr(), to, room),
                Subject::Open(slot) => libc::fgetxattr(self.fd(*slot), name.as_ptr(), to, room),
            }
        } as i64)?;
        if room == 0 {
            return Ok(Value::Number(n));
        }
        value.truncate(n as usize);
        Ok(Value::Bytes(Text(value)))
    }

    fn listxattr(&self, of: &Subject, room: usize) -> Outcome {
        let mut names = vec![0_u8; room];
        let to = names.as_mut_ptr().cast();
        // SAFETY: the strings live until the end of the statement, and `names` has `room` bytes.
        let n = call(unsafe {
            match of {
                Subject::Path(path) => libc::listxattr(self.whole(path).as_ptr(), to, room),
                Subject::Link(path) => libc::llistxattr(self.whole(path).as_ptr(), to, room),
                Subject::Open(slot) => libc::flistxattr(self.fd(*slot), to, room),
            }
        } as i64)?;
        if room == 0 {
            return Ok(Value::Number(n));
        }
        names.truncate(n as usize);
        let mut names: Vec<Text> =
            names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(|name| Text(name.to_vec())).collect();
        names.sort();
        Ok(Value::Attributes(names))
    }

    /// What is open, has no name any more and is kept by a local disk only: directories, and what is open with `O_PATH`.
    pub fn kept_by_disks_alone(&self) -> Vec<Slot> {
        let is_kept = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd).expect("an open file has attributes");
            let flags = rustix::fs::fcntl_getfl(fd).expect("an open file has flags");
            let is_directory = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            stat.st_nlink == 0 && (is_directory || flags.contains(rustix::fs::OFlags::PATH))
        };
        (0..SLOTS).filter(|slot| self.slots[*slot].as_ref().is_some_and(is_kept)).collect()
    }

    pub fn close(&mut self, slot: Slot) {
        self.slots[slot] = None;
    }

    /// What is there now, as root sees it where this is root's thread.
    pub fn picture(&self, with_content: bool) -> Picture {
        let mut picture = Picture::default();
        let mut first_names = BTreeMap::new();
        self.walk(&self.root, &Text(Vec::new()), with_content, &mut picture, &mut first_names);
        for slot in 0..SLOTS {
            if let Some(fd) = &self.slots[slot] {
                let name = Text(format!("open file {slot}").into_bytes());
                let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("no zero");
                let (stat, ino, times) =
                    stat(fd.as_raw_fd(), &Text(Vec::new()), libc::AT_EMPTY_PATH).expect("an open file has attributes");
                let content = (with_content && stat.is(libc::S_IFREG)).then(|| read_all(libc::AT_FDCWD, &path));
                let first_name = first_names.get(&ino).cloned();
                let node =
                    Node { stat, first_name, target: None, attributes: Vec::new(), content, is_listed_right: true };
                picture.nodes.insert(name.clone(), node);
                picture.marks.insert(name, Marks { ino, changed: times });
            }
        }
        picture
    }

    fn walk(
        &self,
        directory: &OwnedFd,
        path: &Text,
        with_content: bool,
        picture: &mut Picture,
        first_names: &mut BTreeMap<u64, Text>,
    ) {
        let mut entries = list(directory.as_raw_fd()).expect("a directory can be listed by root");
        entries.retain(|(name, ..)| name.0 != b"." && name.0 != b"..");
        for (name, kind, listed_ino) in entries {
            let whole = Text([&path.0[..], if path.0.is_empty() { b"" } else { b"/" }, &name.0].concat());
            let fd = directory.as_raw_fd();
            let (stat, ino, times) = stat(fd, &name, libc::AT_SYMLINK_NOFOLLOW)
                .unwrap_or_else(|error| panic!("{whole:?} is listed: {error:?}"));
            let first_name = first_names.entry(ino).or_insert_with(|| whole.clone()).clone();
            let target = stat.is(libc::S_IFLNK).then(|| readlink(fd, &name).expect("a link has a target"));
            let subject = Subject::Link(whole.clone());
            let Ok(Value::Attributes(names)) = self.listxattr(&subject, 65_536) else {
                panic!("attributes of {whole:?} cannot be listed")
            };
            let attributes = names.into_iter().map(|name| match self.getxattr(&subject, &name, 65_536) {
                Ok(Value::Bytes(value)) => (name, value),
                other => panic!("{name:?} of {whole:?} is listed: {other:?}"),
            });
            let attributes = attributes.collect();
            let content = (with_content && stat.is(libc::S_IFREG)).then(|| read_all(fd, &c(&name)));
            let is_listed_right = u32::from(kind) == (stat.mode & libc::S_IFMT) >> 12 && listed_ino == ino;
            if stat.is(libc::S_IFDIR) {
                let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
                let name = c(&name);
                // SAFETY: a plain system call; the name lives until it has returned, and the descriptor is new.
                let below = unsafe {
                    OwnedFd::from_raw_fd(call(libc::openat(fd, name.as_ptr(), flags)).expect("opens") as RawFd)
                };
                self.walk(&below, &whole, with_content, picture, first_names);
            }
            let first_name = Some(first_name);
            picture
                .nodes
                .insert(whole.clone(), Node { stat, first_name, target, attributes, content, is_listed_right });
            picture.marks.insert(whole, Marks { ino, changed: times });
        }
    }
}

impl Stat {
    pub fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }
}

fn timespec(time: Time) -> libc::timespec {
    libc::timespec { tv_sec: time.0, tv_nsec: time.1 }
}

fn is_directory(fd: RawFd) -> bool {
    stat(fd, &Text(Vec::new()), libc::AT_EMPTY_PATH).is_ok_and(|(stat, ..)| stat.is(libc::S_IFDIR))
}

/// Attributes, inode number, mtime and ctime.
#[allow(clippy::type_complexity)]
fn stat(base: RawFd, path: &Text, flags: i32) -> Result<(Stat, u64, [(i64, u32); 2]), Errno> {
    let path = c(path);
    // SAFETY: for a struct of numbers all bits zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: a plain system call; path and struct live until it has returned.
    call(unsafe { libc::statx(base, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &mut found) })?;
    let time = |time: &libc::statx_timestamp| (time.tv_sec, time.tv_nsec);
    // Between 2020 and 2096 it is a clock's.
    let set = |time: (i64, u32)| (!(1_577_836_800..4_000_000_000).contains(&time.0)).then_some(time);
    let (mtime, ctime) = (time(&found.stx_mtime), time(&found.stx_ctime));
    let mode = u32::from(found.stx_mode);
    let stat = Stat {
        mode,
        links: found.stx_nlink,
        owner: (found.stx_uid, found.stx_gid),
        size: (mode & libc::S_IFMT != libc::S_IFDIR).then_some(found.stx_size),
        device: (found.stx_rdev_major, found.stx_rdev_minor),
        set: [set(mtime), set(ctime)],
    };
    Ok((stat, found.stx_ino, [mtime, ctime]))
}

fn readlink(base: RawFd, path: &Text) -> Result<Text, Errno> {
    let path = c(path);
    let mut target = vec![0; 4096];
    // SAFETY: a plain system call; path and buffer live until it has returned, and the buffer has the length given.
    let n = call(unsafe { libc::readlinkat(base, path.as_ptr(), target.as_mut_ptr().cast(), target.len()) } as i64)?;
    target.truncate(n as usize);
    Ok(Text(target))
}

fn read_all(base: RawFd, path: &CString) -> Text {
    // SAFETY: a plain system call; the path lives until it has returned, and the descriptor is new.
    let file = unsafe {
        let fd = call(libc::openat(base, path.as_ptr(), libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC));
        std::fs::File::from_raw_fd(fd.unwrap_or_else(|error| panic!("open {path:?}: {error:?}")) as RawFd)
    };
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut &file, &mut content).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
    Text(content)
}

/// All entries from the first one on, sorted: name, kind, inode number.
fn list(fd: RawFd) -> Result<Vec<(Text, u8, u64)>, Errno> {
    // SAFETY: a plain system call. What cannot be rewound says below why it cannot be listed.
    unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
    let mut entries = Vec::new();
    let mut buffer = vec![0_u8; 32_768];
    loop {
        // SAFETY: the buffer has the length given.
        let n = call(unsafe { libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len()) })? as usize;
        if n == 0 {
            entries.sort();
            return Ok(entries);
        }
        // struct linux_dirent64: inode number, position, length of all, kind, name with a zero at its end.
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let ino = u64::from_ne_bytes(rest[..8].try_into().expect("eight bytes"));
            let len = usize::from(u16::from_ne_bytes(rest[16..18].try_into().expect("two bytes")));
            let name = rest[19..len].split(|byte| *byte == 0).next().expect("there is always a first part");
            entries.push((Text(name.to_vec()), rest[18], ino));
            rest = &rest[len..];
        }
    }
}
