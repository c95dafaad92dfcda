//! What the kernel is told, from what [`crate::fs`] says: attributes, times and
//! the replies that several operations share. Nothing here waits or decides.

use crate::client::CallError;
use crate::error::FsError;
use crate::fs::{DirEntry, Opened, Pages, SetTime, Showing, Stat};
use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyWrite, ReplyXattr, TimeOrNow,
};
use proto::Time;
use proto::message::{FallocateHow, FileKind, LockHolder, LockMode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What programs are told to read and write at once, in bytes.
const BLOCK_BYTES: u32 = 64 * 1024;
/// Inode numbers are never used twice, so they need no generation.
pub(super) const GENERATION: Generation = Generation(0);

/// The error's errno, with a word in the log if nobody expects it.
pub(super) fn logged(op: &'static str, error: FsError) -> Errno {
    match &error {
        FsError::Call(CallError::Refused { .. } | CallError::Interrupted) | FsError::NoAttribute => {
            tracing::trace!(op, %error);
        }
        _ => tracing::debug!(op, %error),
    }
    error.errno()
}

/// What stands under a name in a directory.
pub(super) fn entry_reply(
    reply: ReplyEntry,
    showing: &Showing,
    (dir, name): (u64, &[u8]),
    result: Result<Stat, Errno>,
) {
    match result {
        Ok(stat) => {
            let (attr_ttl, name_ttl) = (showing.attributes(&stat), showing.name(dir, name));
            reply.entry_with_ttls(&attr_ttl, &name_ttl, &file_attr(&stat), GENERATION);
        }
        Err(errno) => reply.error(errno),
    }
}

/// The same where nothing may stand there, which the kernel keeps as well.
pub(super) fn found_reply(
    reply: ReplyEntry,
    showing: &Showing,
    (dir, name): (u64, &[u8]),
    result: Result<Option<Stat>, Errno>,
) {
    match result.map(|found| found.ok_or_else(|| showing.name(dir, name))) {
        Ok(Ok(stat)) => entry_reply(reply, showing, (dir, name), Ok(stat)),
        Ok(Err(Duration::ZERO)) => reply.error(Errno::ENOENT),
        Ok(Err(ttl)) => reply.entry(&ttl, &absent_attr(), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

/// What a lock call asks for; `None` if it gives up a lock.
pub(super) fn lock_mode(typ: i32) -> Option<LockMode> {
    match typ {
        libc::F_RDLCK => Some(LockMode::Shared),
        libc::F_WRLCK => Some(LockMode::Exclusive),
        _ => None,
    }
}

pub(super) fn lock_reply(reply: ReplyLock, result: Result<Option<LockHolder>, Errno>) {
    match result {
        Ok(None) => reply.locked(0, 0, libc::F_UNLCK, 0),
        Ok(Some(LockHolder { range, mode, pid })) => {
            let typ = if mode == LockMode::Shared { libc::F_RDLCK } else { libc::F_WRLCK };
            reply.locked(range.start, range.end, typ, pid);
        }
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn attr_reply(reply: ReplyAttr, showing: &Showing, result: Result<Stat, Errno>) {
    match result {
        Ok(stat) => reply.attr(&showing.attributes(&stat), &file_attr(&stat)),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn data_reply<T: AsRef<[u8]>>(reply: ReplyData, result: Result<T, Errno>) {
    match result {
        Ok(data) => reply.data(data.as_ref()),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn empty_reply(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn xattr_reply(reply: ReplyXattr, result: Result<Bytes, Errno>, size: u32) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => {
            reply.error(logged("getxattr", FsError::BufferTooSmall(value.len())));
        }
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn seek_reply(reply: ReplyLseek, result: Result<Option<u64>, Errno>) {
    match result {
        // No file is that long.
        Ok(Some(offset)) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
        Ok(None) => reply.error(Errno::ENXIO),
        Err(errno) => reply.error(errno),
    }
}

pub(super) fn copy_reply(reply: ReplyWrite, result: Result<u64, Errno>) {
    match result {
        // No more was asked for.
        Ok(len) => reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
        Err(errno) => reply.error(errno),
    }
}

/// What fallocate(2) asks for, if that is supported. Linux itself refuses a hole that is to make the file longer.
pub(super) fn allocate(mode: i32) -> Option<FallocateHow> {
    match mode {
        0 => Some(FallocateHow::Extend),
        libc::FALLOC_FL_KEEP_SIZE => Some(FallocateHow::Keep),
        _ if mode == libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE => Some(FallocateHow::Clear),
        _ if mode == libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE => Some(FallocateHow::Clear),
        libc::FALLOC_FL_ZERO_RANGE => Some(FallocateHow::ClearAndExtend),
        _ => None,
    }
}

pub(super) fn open_flags(opened: &Opened) -> FopenFlags {
    match opened.pages {
        Pages::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Pages::Drop => FopenFlags::empty(),
        Pages::Bypass => FopenFlags::FOPEN_DIRECT_IO,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.blocks,
        atime: system_time(stat.atime),
        mtime: system_time(stat.mtime),
        ctime: system_time(stat.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(stat.kind),
        perm: (stat.mode & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// A time that the system's type cannot hold becomes 1970.
fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = match time.secs >= 0 {
        true => UNIX_EPOCH.checked_add(whole),
        false => UNIX_EPOCH.checked_sub(whole),
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

fn time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            match before.subsec_nanos() {
                0 => Time { secs: -(before.as_secs() as i64), nanos: 0 },
                nanos => Time { secs: -(before.as_secs() as i64) - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

pub(super) fn set_time(at: TimeOrNow) -> SetTime {
    match at {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(time_from_kernel(at)),
    }
}

/// fuser 0.18 subtracts the nanoseconds of a time before 1970, which the kernel means to be added.
fn time_from_kernel(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(_) => time(at),
        Err(before) => {
            let before = before.duration();
            Time { secs: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
        }
    }
}

pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

pub(super) fn dot_attr(entry: &DirEntry) -> FileAttr {
    placeholder(entry.ino)
}

/// The number 0 says that there is nothing.
fn absent_attr() -> FileAttr {
    placeholder(0)
}

/// Attributes that the kernel does not look at.
fn placeholder(ino: u64) -> FileAttr {
    let zero = Time::default();
    file_attr(&Stat {
        ino,
        kind: FileKind::Dir,
        mode: 0o755,
        uid: 0,
        gid: 0,
        nlink: 2,
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
        rdev: 0,
        covering: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_to_the_kernel_and_back() {
        for at in [(0, 0), (1, 999_999_999), (-1, 1), (-1, 0), (1 << 40, 5), (-(1 << 33), 999_999_999)] {
            let at = Time { secs: at.0, nanos: at.1 };
            assert_eq!(time(system_time(at)), at);
        }
    }
}
