//! Translates kernel calls into [`Fs`] calls, and nothing else.
//!
//! * Outside this file, its own modules and `error.rs`, no module names a `fuser` type.
//! * A callback never waits. What the caches can answer is answered here, on the
//!   kernel's thread; the rest goes on as a task and is answered from there.
//! * Each reply is answered once. A dropped one reaches the program as `EIO`.
//! * The kernel keeps names and attributes only as long as [`Showing`] says, which is not at all where others may
//!   change them: then the mount's own caches answer. It keeps pages.

mod convert;
mod forgetter;
mod invalidator;

use crate::client::Patience;
use crate::error::FsError;
use crate::fs::{
    Caller, CreateHow, DirEntry, Fs, Kernel, KernelForget, LockCall, NewNode, Pages, Seek, SetAttr, Stat, acl_kind,
};
use crate::inline;
use crate::sys::group::{keeps_setgid, keeps_setid};
use crate::sys::interrupt::{Kind, Watcher};
use crate::sys::lock_call;
use bytes::Bytes;
use convert::{
    GENERATION, allocate, attr_reply, copy_reply, data_reply, dot_attr, empty_reply, entry_reply, file_attr, file_type,
    found_reply, lock_mode, lock_reply, logged, node_kind, open_flags, seek_reply, set_time, xattr_reply,
};
use forgetter::{Forgetter, KernelNames};
use fuser::{
    AccessFlags, BackgroundSession, Config, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use invalidator::{Invalidator, KernelPages};
use proto::message::{LockRange, Refusal, RenameHow, XattrHow};
use std::ffi::OsStr;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Threads that take the kernel's requests.
const THREADS: usize = 2;
/// The largest write that the kernel sends, in bytes; its own limit by default.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Read-ahead and other background requests that the kernel keeps under way.
const MAX_BACKGROUND: u16 = 64;
/// The unit of `statfs`, in bytes.
const STATFS_BLOCK_BYTES: u64 = 4096;

/// A mount that is being served.
pub struct Serving {
    session: BackgroundSession,
    _invalidator: Invalidator,
    _forgetter: Forgetter,
    /// Gone with the mount, which would hang instead of failing if anything kept its descriptor.
    _notifier: Arc<Notifier>,
}

impl Serving {
    /// Waits until the mount is gone. Fails with what ended it before its time.
    pub fn join(self) -> io::Result<()> {
        unless_gone(self.session.join())
    }

    /// Whether the mount is gone, so that [`Serving::join`] returns at once.
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }
}

/// Serves `fs` on an open `/dev/fuse` that belongs to a mount. When this returns
/// the handshake with the kernel is done. Must be called inside the runtime that
/// is to run what waits.
pub fn serve(fs: Fs, fd: OwnedFd) -> io::Result<Serving> {
    let forgets_names = Arc::new(AtomicBool::new(false));
    let filesystem = KfsFuse {
        fs: fs.clone(),
        forgets_names: forgets_names.clone(),
        maps_bypassed: false,
        runtime: tokio::runtime::Handle::current(),
        watcher: Watcher::start()?,
    };
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // The kernel itself enforces allow_other by the mount's options.
    let device = File::from(fd.try_clone()?);
    let session = Session::from_fd(filesystem, fd, SessionACL::All, config)?;
    let (invalidator, pages) = invalidator::start(session.notifier())?;
    let (forgetter, names) = forgetter::start(session.notifier(), device)?;
    let notifier = Arc::new(session.notifier());
    fs.set_kernel(Arc::new(KernelCaches { pages, names, notifier: Arc::downgrade(&notifier), forgets_names }));
    Ok(Serving { session: session.spawn()?, _invalidator: invalidator, _forgetter: forgetter, _notifier: notifier })
}

/// A request that is being read in the very moment of the last unmount ends with `ECONNABORTED`; every other read says
/// `ENODEV`, which fuser takes for the end.
pub fn unless_gone(ended: io::Result<()>) -> io::Result<()> {
    match ended {
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        ended => ended,
    }
}

/// What the kernel keeps.
struct KernelCaches {
    pages: KernelPages,
    names: KernelNames,
    notifier: Weak<Notifier>,
    forgets_names: Arc<AtomicBool>,
}

impl Kernel for KernelCaches {
    fn inval_inode(&self, ino: u64, done: Option<oneshot::Sender<()>>) {
        self.pages.drop_pages(ino, done);
    }

    fn forget(&self, forget: KernelForget, done: Box<dyn FnOnce() + Send>) {
        self.names.forget(forget, done);
    }

    fn attributes_changed(&self, ino: u64) {
        if let Some(notifier) = self.notifier.upgrade() {
            // What is negative names no pages, and so takes no lock. The kernel may not have the inode.
            let _ = notifier.inval_inode(INodeNo(ino), -1, 0);
        }
    }

    fn forgets_names(&self) -> bool {
        self.forgets_names.load(Ordering::Relaxed)
    }
}

struct KfsFuse {
    fs: Fs,
    /// The kernel can be told to ask for a name again.
    forgets_names: Arc<AtomicBool>,
    /// What is opened past the kernel's pages can be mapped.
    maps_bypassed: bool,
    runtime: tokio::runtime::Handle,
    watcher: Watcher,
}

impl KfsFuse {
    /// How long this caller waits, and which of its signals end that.
    fn patience(&self, req: &Request, kind: Kind) -> Patience {
        let (watcher, tid) = (self.watcher.clone(), req.pid());
        self.fs.client().patience().or(Arc::new(move || {
            let watcher = watcher.clone();
            Box::pin(async move {
                watcher.interrupted(tid, kind).await;
            })
        }))
    }

    /// Answers with what stands under a name from now on; to be called before it is made.
    fn made(&self, dir: INodeNo, name: &OsStr) -> impl FnOnce(ReplyEntry, Result<Stat, Errno>) + Send + 'static {
        let (showing, name) = (self.fs.showing(), name.to_owned());
        move |reply, result| entry_reply(reply, &showing, (dir.0, name.as_bytes()), result)
    }

    /// Answers with what `work` comes to: at once if it need not wait, else from where it is woken.
    fn answer<T, R>(
        &self,
        op: &'static str,
        reply: R,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        done: impl FnOnce(R, Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Send + 'static,
    {
        inline::start(&self.runtime, async move { done(reply, work.await.map_err(|e| logged(op, e))) });
    }
}

fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), umask }
}

/// Whether the caller may keep setuid and setgid bits of what it changes; to be asked while it waits.
fn keeps(req: &Request) -> impl FnOnce() -> bool + Send + use<> {
    let (tid, uid) = (req.pid(), req.uid());
    move || keeps_setid(tid, uid)
}

/// What a thread asks of locks; of what the kernel tells, fuser leaves out which kind of lock it is.
async fn told(tid: u32, owner: LockOwner, pid: u32, range: LockRange) -> LockCall {
    LockCall { owner: owner.0, kind: lock_call::kind(tid).await, pid, range }
}

impl Filesystem for KfsFuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not requested: write-back, and the automatic invalidation that mtime changes would cause.
        for wanted in [
            // The kernel obeys access control lists, and leaves the umask to whoever knows of default ones.
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Since Linux 5.11; before, the kernel clears setuid bits itself.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_POSIX_LOCKS,
            InitFlags::FUSE_FLOCK_LOCKS,
        ] {
            // A kernel without it works as well, only slower.
            let _ = config.add_capabilities(wanted);
        }
        // Since Linux 6.2.
        let forgets_names = config.add_capabilities(InitFlags::FUSE_HAS_EXPIRE_ONLY).is_ok();
        self.forgets_names.store(forgets_names, Ordering::Relaxed);
        // Since Linux 6.6: whoever opens what is being written past the pages can map it.
        self.maps_bypassed = config.add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP).is_ok();
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        if let Err(most) = config.set_max_readahead(u32::MAX) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn destroy(&mut self) {}

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name, patience) = (self.fs.clone(), name.to_owned(), self.patience(req, Kind::Ordinary));
        let (showing, sought) = (self.fs.showing(), name.clone());
        let work = async move { fs.lookup(parent.0, name.as_bytes(), &patience).await };
        let absent = move |result: Result<Stat, FsError>| match result {
            // So it can be told what to keep of that.
            Err(error) if error.is(Refusal::NotFound) => Ok(None),
            result => result.map(Some),
        };
        self.answer("lookup", reply, async move { absent(work.await) }, move |reply, result| {
            found_reply(reply, &showing, (parent.0, sought.as_bytes()), result);
        });
    }

    /// Nothing is kept per inode that the kernel knows.
    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let showing = self.fs.showing();
        let work = async move { fs.getattr(ino.0, &patience).await };
        self.answer("getattr", reply, work, move |reply, result| attr_reply(reply, &showing, result));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time) };
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let (showing, keeps_setid) = (self.fs.showing(), keeps(req));
        let work = async move {
            let set = fs.disarming(ino.0, set, keeps_setid, &patience).await?;
            fs.setattr(ino.0, set, &patience).await
        };
        self.answer("setattr", reply, work, move |reply, result| attr_reply(reply, &showing, result));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.readlink(ino.0, &patience).await };
        self.answer("readlink", reply, work, data_reply);
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let Some(kind) = node_kind(mode) else { return reply.error(logged("mknod", FsError::BadFlags)) };
        let (fs, name, who) = (self.fs.clone(), name.to_owned(), caller(req, umask));
        let patience = self.patience(req, Kind::Ordinary);
        let node = NewNode { kind, mode, rdev };
        let made = self.made(parent, &name);
        let work = async move { fs.mknod(who, parent.0, name.as_bytes(), node, &patience).await };
        self.answer("mknod", reply, work, made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (fs, name, who) = (self.fs.clone(), name.to_owned(), caller(req, umask));
        let patience = self.patience(req, Kind::Ordinary);
        let made = self.made(parent, &name);
        let work = async move { fs.mkdir(who, parent.0, name.as_bytes(), mode, &patience).await };
        self.answer("mkdir", reply, work, made);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name, patience) = (self.fs.clone(), name.to_owned(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.unlink(parent.0, name.as_bytes(), &patience).await };
        self.answer("unlink", reply, work, empty_reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name, patience) = (self.fs.clone(), name.to_owned(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.rmdir(parent.0, name.as_bytes(), &patience).await };
        self.answer("rmdir", reply, work, empty_reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (fs, name, target) = (self.fs.clone(), name.to_owned(), target.as_os_str().to_owned());
        let (who, patience) = (caller(req, 0), self.patience(req, Kind::Ordinary));
        let made = self.made(parent, &name);
        let work = async move { fs.symlink(who, parent.0, name.as_bytes(), target.as_bytes(), &patience).await };
        self.answer("symlink", reply, work, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            f if f.is_empty() => RenameHow::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameHow::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameHow::Exchange,
            _ => return reply.error(logged("rename", FsError::BadFlags)),
        };
        let (fs, name, newname) = (self.fs.clone(), name.to_owned(), newname.to_owned());
        let patience = self.patience(req, Kind::Ordinary);
        let work = async move {
            fs.rename((parent.0, name.as_bytes()), (newparent.0, newname.as_bytes()), how, &patience).await
        };
        self.answer("rename", reply, work, empty_reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (fs, name, patience) = (self.fs.clone(), newname.to_owned(), self.patience(req, Kind::Ordinary));
        let made = self.made(newparent, &name);
        let work = async move { fs.link(ino.0, newparent.0, name.as_bytes(), &patience).await };
        self.answer("link", reply, work, made);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let append = flags.0 & libc::O_APPEND != 0;
        let reads = flags.0 & libc::O_ACCMODE != libc::O_WRONLY;
        let keeps_atime = flags.0 & libc::O_NOATIME != 0;
        let work = async move {
            let opened = fs.open(ino.0, append, &patience).await?;
            if keeps_atime {
                fs.keep_atime(opened.handle);
            } else if reads && opened.pages == Pages::Keep {
                fs.opened_to_read(opened.handle);
            }
            Ok(opened)
        };
        self.answer("open", reply, work, |reply, result| match result {
            Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(&opened)),
            Err(errno) => reply.error(errno),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, name, who) = (self.fs.clone(), name.to_owned(), caller(req, umask));
        let patience = self.patience(req, Kind::Ordinary);
        let may_bypass =
            self.maps_bypassed && flags & (libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC) == libc::O_WRONLY;
        let (exclusive, append) = (flags & libc::O_EXCL != 0, flags & libc::O_APPEND != 0);
        let how = CreateHow { exclusive, append, may_bypass };
        let (showing, made) = (self.fs.showing(), name.clone());
        let work = async move { fs.create(who, parent.0, name.as_bytes(), mode, how, &patience).await };
        self.answer("create", reply, work, move |reply, result| match result {
            Ok((stat, opened)) => {
                let handle = FileHandle(opened.handle);
                let ttl = showing.entry(parent.0, made.as_bytes(), &stat);
                reply.created(&ttl, &file_attr(&stat), GENERATION, handle, open_flags(&opened));
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::BufferedRead));
        let work = async move { fs.read(fh.0, offset, size, &patience).await };
        self.answer("read", reply, work, data_reply);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // What was mapped and comes late is no program's write any more.
        let disarms = !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) && self.fs.is_armed(ino.0);
        if !disarms {
            // The common case copies straight from the kernel's buffer.
            match self.fs.write_now(fh.0, offset, data) {
                Ok(Some(written)) => return reply.written(written),
                Err(error) => return reply.error(logged("write", error)),
                Ok(None) => {}
            }
        }
        let (fs, data, patience) = (self.fs.clone(), data.to_vec(), self.patience(req, Kind::Ordinary));
        let work = async move {
            if disarms {
                let keeps_setid = || !write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
                fs.disarm(ino.0, keeps_setid, &patience).await?;
            }
            fs.write(fh.0, offset, &data, &patience).await
        };
        self.answer("write", reply, work, |reply, result| match result {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let (fs, patience, parting) =
            (self.fs.clone(), self.patience(req, Kind::Flush), self.patience(req, Kind::Parting));
        let work = async move { fs.flush_and_unlock(fh.0, lock_owner.0, &patience, &parting).await };
        self.answer("flush", reply, work, empty_reply);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        empty_reply(reply, self.fs.release(fh.0).map_err(|e| logged("release", e)));
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        self.answer("fsync", reply, async move { fs.fsync(fh.0, &patience).await }, empty_reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.fs.opendir(ino.0)), FopenFlags::empty());
    }

    fn readdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.readdir(fh.0, offset, false, &patience).await };
        self.answer("readdir", reply, work, |mut reply, result| match result {
            Ok(entries) => {
                for DirEntry { name, ino, kind, offset, .. } in &entries {
                    // Full: the kernel asks again from there.
                    if reply.add(INodeNo(*ino), *offset, file_type(*kind), OsStr::from_bytes(name)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let showing = self.fs.showing();
        let work = async move { fs.readdir(fh.0, offset, true, &patience).await };
        self.answer("readdirplus", reply, work, move |mut reply, result| match result {
            Ok(entries) => {
                for entry in &entries {
                    // Of `.` and `..` the kernel takes nothing but name, kind and offset.
                    let attr = entry.stat.as_ref().map_or_else(|| dot_attr(entry), file_attr);
                    let keep = |stat| showing.entry(ino.0, &entry.name, stat);
                    let ttl = entry.stat.as_ref().map_or(Duration::ZERO, keep);
                    let name = OsStr::from_bytes(&entry.name);
                    if reply.add(attr.ino, entry.offset, name, &ttl, &attr, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        empty_reply(reply, self.fs.releasedir(fh.0).map_err(|e| logged("releasedir", e)));
    }

    fn fsyncdir(&self, req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        self.answer("fsyncdir", reply, async move { fs.fsyncdir(&patience).await }, empty_reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        self.answer("statfs", reply, async move { fs.statfs(&patience).await }, |reply, result| match result {
            Ok(full) => {
                let blocks = full.bytes_total / STATFS_BLOCK_BYTES;
                let free = blocks.saturating_sub(full.bytes_used.div_ceil(STATFS_BLOCK_BYTES));
                let inodes_free = full.inodes_total.saturating_sub(full.inodes_used);
                let unit = STATFS_BLOCK_BYTES as u32;
                reply.statfs(blocks, free, free, full.inodes_total, inodes_free, unit, 255, unit);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let how = match flags {
            0 => XattrHow::Set,
            libc::XATTR_CREATE => XattrHow::Create,
            libc::XATTR_REPLACE => XattrHow::Replace,
            _ => return reply.error(logged("setxattr", FsError::BadFlags)),
        };
        let (fs, name, value) = (self.fs.clone(), name.to_owned(), value.to_vec());
        let patience = self.patience(req, Kind::Ordinary);
        if let Some(which) = acl_kind(name.as_bytes()) {
            let (tid, uid, gid) = (req.pid(), req.uid(), req.gid());
            let keeps_setgid = move |group| keeps_setgid(tid, uid, gid, group);
            let work = async move { fs.set_acl(ino.0, which, &value, keeps_setgid, &patience).await };
            return self.answer("setxattr", reply, work, empty_reply);
        }
        let work = async move { fs.setxattr(ino.0, name.as_bytes(), &value, how, &patience).await };
        self.answer("setxattr", reply, work, empty_reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, name, patience) = (self.fs.clone(), name.to_owned(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.getxattr(ino.0, name.as_bytes(), &patience).await };
        self.answer("getxattr", reply, work, move |reply, result| xattr_reply(reply, result, size));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, patience, trusted) = (self.fs.clone(), self.patience(req, Kind::Ordinary), req.uid() == 0);
        let work = async move { fs.listxattr(ino.0, trusted, &patience).await.map(Bytes::from) };
        self.answer("listxattr", reply, work, move |reply, result| xattr_reply(reply, result, size));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name, patience) = (self.fs.clone(), name.to_owned(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.removexattr(ino.0, name.as_bytes(), &patience).await };
        self.answer("removexattr", reply, work, empty_reply);
    }

    /// The kernel checks mode bits itself (`default_permissions`) and does not ask.
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn getlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let Some(mode) = lock_mode(typ) else { return reply.error(Errno::EINVAL) };
        let (fs, tid, patience) = (self.fs.clone(), req.pid(), self.patience(req, Kind::Ordinary));
        let work = async move {
            let call = told(tid, lock_owner, pid, LockRange { start, end }).await;
            fs.test_lock(fh.0, call, mode, &patience).await
        };
        self.answer("getlk", reply, work, lock_reply);
    }

    fn setlk(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let mode = lock_mode(typ);
        if mode.is_none() && typ != libc::F_UNLCK {
            return reply.error(Errno::EINVAL);
        }
        let kind = if sleep { Kind::BlockingLock } else { Kind::Ordinary };
        let (fs, tid, patience) = (self.fs.clone(), req.pid(), self.patience(req, kind));
        let work = async move {
            let call = told(tid, lock_owner, pid, LockRange { start, end }).await;
            match mode {
                Some(mode) => fs.lock(fh.0, call, mode, sleep, &patience).await,
                None => fs.unlock(fh.0, call, &patience).await,
            }
        };
        self.answer("setlk", reply, work, empty_reply);
    }

    /// There is no block device below.
    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::EINVAL);
    }

    /// Programs try ioctls to find out what a file is; this says "not that".
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// The kernel remembers this and takes files as always ready, as everywhere.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = allocate(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let (fs, patience, keeps_setid) = (self.fs.clone(), self.patience(req, Kind::Ordinary), keeps(req));
        let work = async move {
            fs.disarm(ino.0, keeps_setid, &patience).await?;
            fs.fallocate(fh.0, offset, length, what, &patience).await
        };
        self.answer("fallocate", reply, work, empty_reply);
    }

    /// The kernel asks for holes and data only.
    fn lseek(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (fs, patience) = (self.fs.clone(), self.patience(req, Kind::Ordinary));
        let work = async move { fs.seek(fh.0, offset, what, &patience).await };
        self.answer("lseek", reply, work, seek_reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // What the answer can tell.
        let len = len.min(u64::from(u32::MAX));
        let (fs, patience, keeps_setid) = (self.fs.clone(), self.patience(req, Kind::Ordinary), keeps(req));
        let work = async move {
            fs.disarm(ino_out.0, keeps_setid, &patience).await?;
            fs.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len, &patience).await
        };
        self.answer("copy_file_range", reply, work, copy_reply);
    }
}
