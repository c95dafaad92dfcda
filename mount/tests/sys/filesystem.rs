//! A trivial filesystem: `hello` can be read; `slow` never answers a read, and `slow-direct`
//! neither, past the page cache; locks on any of them never come. Only an interrupt ends those.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    Request, Session, SessionACL,
};
use mount::sys::interrupt::{Kind, Watcher};

pub const HELLO: &[u8] = b"hello\n";
const NAMES: [&str; 3] = ["hello", "slow", "slow-direct"];
const NO_TTL: Duration = Duration::ZERO;

pub struct Trivial {
    runtime: tokio::runtime::Runtime,
    watcher: Arc<Watcher>,
}

/// Shakes hands with the kernel and serves until the mount is gone, on a thread.
pub fn serve(fd: OwnedFd) -> std::thread::JoinHandle<std::io::Result<()>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let filesystem = Trivial { runtime, watcher: Arc::new(Watcher::start().expect("watcher")) };
    let session = Session::from_fd(filesystem, fd, SessionACL::All, Config::default()).expect("handshake");
    std::thread::spawn(move || mount::fuse::unless_gone(session.run()))
}

impl Trivial {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm) =
            if ino == INodeNo::ROOT { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o666) };
        let id = rustix::process::geteuid().as_raw();
        FileAttr {
            ino,
            size: HELLO.len() as u64,
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: id,
            gid: id,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn until_interrupted(&self, req: &Request, kind: Kind, reply: impl FnOnce() + Send + 'static) {
        let (watcher, tid) = (self.watcher.clone(), req.pid());
        self.runtime.spawn(async move {
            watcher.interrupted(tid, kind).await;
            reply();
        });
    }
}

impl Filesystem for Trivial {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_FLOCK_LOCKS | InitFlags::FUSE_POSIX_LOCKS)
            .expect("the kernel has both");
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match NAMES.iter().position(|known| *known == name) {
            Some(at) => reply.entry(&NO_TTL, &self.attr(INodeNo(at as u64 + 2)), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NO_TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = if ino.0 == 4 { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        reply.opened(FileHandle(ino.0), flags);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match ino.0 {
            2 => {
                let from = HELLO.len().min(offset as usize);
                let to = HELLO.len().min(from + size as usize);
                reply.data(&HELLO[from..to]);
            }
            3 => self.until_interrupted(req, Kind::BufferedRead, || reply.error(Errno::EINTR)),
            _ => self.until_interrupted(req, Kind::Ordinary, || reply.error(Errno::EINTR)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn setlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        typ: i32,
        _pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        match (typ, sleep) {
            (libc::F_UNLCK, _) => reply.ok(),
            (_, true) => self.until_interrupted(req, Kind::BlockingLock, || reply.error(Errno::EINTR)),
            (_, false) => reply.error(Errno::EAGAIN),
        }
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (at, name) in NAMES.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(at as u64 + 2), at as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }
}
