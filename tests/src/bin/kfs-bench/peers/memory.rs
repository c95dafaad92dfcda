//! The ceiling: a filesystem that does nothing but keep all in memory, by the same way through the kernel as kfs. What it
//! takes is what FUSE takes. It has no attributes beside the usual ones, which spares the kernel asking for those of files.

use super::Remote;
use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};
use harness::command;
use harness::run::Scratch;
use mount::sys::attach::attach;
use mount::sys::options::MountOptions;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

/// As long as kfs lets the kernel keep what is delegated.
const TTL: Duration = Duration::from_secs(1);
const GENERATION: Generation = Generation(0);
const UNMOUNT_BOUND: Duration = Duration::from_secs(30);

pub struct Memory {
    mount: PathBuf,
    files: Arc<Mutex<Files>>,
    session: Option<BackgroundSession>,
    _dir: Scratch,
}

impl Memory {
    pub fn start() -> Result<Memory> {
        let dir = Scratch::new("memory");
        let mount = dir.join("mnt");
        std::fs::create_dir(&mount)?;
        let mut memory = Memory { mount, files: Arc::default(), session: None, _dir: dir };
        memory.mount()?;
        Ok(memory)
    }

    fn mount(&mut self) -> Result<()> {
        let attached = attach(OsStr::new("memory"), &self.mount, &MountOptions::default())?;
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::from_fd(Serving(self.files.clone()), attached.fd, SessionACL::All, config)?;
        self.session = Some(session.spawn()?);
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        command::run(Command::new("umount").arg(&self.mount), UNMOUNT_BOUND)?.done()?;
        let session = self.session.take().context("it is mounted")?;
        Ok(mount::fuse::unless_gone(session.join())?)
    }
}

impl Remote for Memory {
    fn dir(&self) -> &Path {
        &self.mount
    }

    fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Whatever is left the run takes away at its end.
        let _ = self.unmount();
    }
}

struct Node {
    attr: FileAttr,
    parent: u64,
    body: Body,
}

enum Body {
    File(Vec<u8>),
    /// Each with its place in listings, which rises.
    Dir(BTreeMap<OsString, (u64, u64)>),
    Link(Vec<u8>),
}

struct Files {
    nodes: HashMap<u64, Node>,
    next: u64,
    /// Given out in listings; 1 and 2 are `.` and `..`.
    places: u64,
}

impl Default for Files {
    fn default() -> Files {
        let mut files = Files { nodes: HashMap::new(), next: INodeNo::ROOT.0, places: 2 };
        files.add(INodeNo::ROOT.0, Body::Dir(BTreeMap::new()), 0o755, (0, 0));
        files
    }
}

type Answer<T> = Result<T, Errno>;

impl Files {
    fn add(&mut self, parent: u64, body: Body, mode: u32, (uid, gid): (u32, u32)) -> FileAttr {
        let (now, ino) = (SystemTime::now(), self.next);
        self.next += 1;
        let kind = match &body {
            Body::File(_) => FileType::RegularFile,
            Body::Dir(_) => FileType::Directory,
            Body::Link(_) => FileType::Symlink,
        };
        let attr = FileAttr {
            ino: INodeNo(ino),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.nodes.insert(ino, Node { attr, parent, body });
        attr
    }

    fn node(&mut self, ino: u64) -> Answer<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn names(&mut self, dir: u64) -> Answer<&mut BTreeMap<OsString, (u64, u64)>> {
        match &mut self.node(dir)?.body {
            Body::Dir(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn content(&mut self, ino: u64) -> Answer<(&mut Vec<u8>, &mut FileAttr)> {
        match self.node(ino)? {
            Node { body: Body::File(content), attr, .. } => Ok((content, attr)),
            _ => Err(Errno::EISDIR),
        }
    }

    fn enter(&mut self, dir: u64, name: &OsStr, ino: u64) -> Answer<()> {
        self.places += 1;
        let place = self.places;
        self.names(dir)?.insert(name.to_owned(), (ino, place));
        Ok(())
    }

    fn find(&mut self, dir: u64, name: &OsStr) -> Answer<FileAttr> {
        let (ino, _) = *self.names(dir)?.get(name).ok_or(Errno::ENOENT)?;
        Ok(self.node(ino)?.attr)
    }

    fn make(&mut self, dir: u64, name: &OsStr, body: Body, mode: u32, who: (u32, u32)) -> Answer<FileAttr> {
        if self.names(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let attr = self.add(dir, body, mode, who);
        self.enter(dir, name, attr.ino.0)?;
        self.changed(dir)?;
        Ok(attr)
    }

    fn remove(&mut self, dir: u64, name: &OsStr) -> Answer<()> {
        let (ino, _) = *self.names(dir)?.get(name).ok_or(Errno::ENOENT)?;
        if matches!(&self.node(ino)?.body, Body::Dir(names) if !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.names(dir)?.remove(name);
        let node = self.node(ino)?;
        node.attr.nlink -= 1;
        // Nothing here works on files without a name.
        if node.attr.nlink == 0 || matches!(node.body, Body::Dir(_)) {
            self.nodes.remove(&ino);
        }
        self.changed(dir)
    }

    fn link(&mut self, ino: u64, dir: u64, name: &OsStr) -> Answer<FileAttr> {
        if self.names(dir)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.enter(dir, name, ino)?;
        self.changed(dir)?;
        let attr = &mut self.node(ino)?.attr;
        attr.nlink += 1;
        Ok(*attr)
    }

    fn changed(&mut self, dir: u64) -> Answer<()> {
        let attr = &mut self.node(dir)?.attr;
        attr.mtime = SystemTime::now();
        attr.ctime = attr.mtime;
        Ok(())
    }

    /// What a listing has behind an offset.
    fn listed(&mut self, dir: u64, offset: u64) -> Answer<Vec<(u64, OsString, FileAttr)>> {
        let parent = self.node(dir)?.parent;
        let names = self.names(dir)?.iter().map(|(name, (ino, place))| (*place, name.clone(), *ino));
        let mut all: Vec<_> = [(1, ".".into(), dir), (2, "..".into(), parent)].into_iter().chain(names).collect();
        all.retain(|(place, ..)| *place > offset);
        all.sort_unstable();
        all.into_iter().map(|(place, name, ino)| Ok((place, name, self.node(ino)?.attr))).collect()
    }
}

struct Serving(Arc<Mutex<Files>>);

impl Serving {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.lock().expect("nothing panics under it")
    }
}

fn entry(reply: ReplyEntry, result: Answer<FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&TTL, &attr, GENERATION),
        Err(errno) => reply.error(errno),
    }
}

fn empty(reply: ReplyEmpty, result: Answer<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Serving {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(1 << 20);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.files().find(parent.0, name);
        match found {
            // Kept as well.
            Err(_) => {
                let absent = FileAttr { ino: INodeNo(0), ..self.files().nodes[&INodeNo::ROOT.0].attr };
                reply.entry(&TTL, &absent, GENERATION);
            }
            found => entry(reply, found),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.files().node(ino.0) {
            Ok(node) => reply.attr(&TTL, &node.attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
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
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut files = self.files();
        if let (Some(size), Ok((content, attr))) = (size, files.content(ino.0)) {
            content.resize(size as usize, 0);
            attr.size = size;
        }
        let Ok(node) = files.node(ino.0) else { return reply.error(Errno::ENOENT) };
        let (attr, now) = (&mut node.attr, SystemTime::now());
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now,
        };
        attr.perm = mode.map_or(attr.perm, |mode| (mode & 0o7777) as u16);
        (attr.uid, attr.gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
        (attr.atime, attr.mtime) = (atime.map_or(attr.atime, time), mtime.map_or(attr.mtime, time));
        attr.ctime = now;
        reply.attr(&TTL, attr);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.files().node(ino.0) {
            Ok(Node { body: Body::Link(target), .. }) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let body = Body::Dir(BTreeMap::new());
        entry(reply, self.files().make(parent.0, name, body, mode & !umask, (req.uid(), req.gid())));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.files().remove(parent.0, name));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.files().remove(parent.0, name));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let body = Body::Link(target.as_os_str().as_encoded_bytes().to_vec());
        entry(reply, self.files().make(parent.0, name, body, 0o777, (req.uid(), req.gid())));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut files = self.files();
        let mut rename = || {
            if !flags.is_empty() {
                return Err(Errno::EINVAL);
            }
            let (ino, _) = *files.names(parent.0)?.get(name).ok_or(Errno::ENOENT)?;
            if files.names(newparent.0)?.contains_key(newname) {
                files.remove(newparent.0, newname)?;
            }
            files.names(parent.0)?.remove(name);
            files.enter(newparent.0, newname, ino)?;
            files.node(ino)?.parent = newparent.0;
            files.changed(parent.0)?;
            files.changed(newparent.0)
        };
        empty(reply, rename());
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        entry(reply, self.files().link(ino.0, newparent.0, newname));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let who = (req.uid(), req.gid());
        match self.files().make(parent.0, name, Body::File(Vec::new()), mode & !umask, who) {
            Ok(attr) => reply.created(&TTL, &attr, GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.files().content(ino.0) {
            Ok((content, _)) => {
                let from = content.len().min(offset as usize);
                reply.data(&content[from..content.len().min(from + size as usize)]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.files().content(ino.0) {
            Ok((content, attr)) => {
                let (from, to) = (offset as usize, offset as usize + data.len());
                content.resize(content.len().max(to), 0);
                content[from..to].copy_from_slice(data);
                (attr.size, attr.blocks) = (content.len() as u64, content.len().div_ceil(512) as u64);
                attr.mtime = SystemTime::now();
                reply.written(data.len() as u32);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.files().listed(ino.0, offset) {
            Ok(listed) => {
                for (next, name, attr) in listed {
                    if reply.add(attr.ino, next, attr.kind, &name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.files().listed(ino.0, offset) {
            Ok(listed) => {
                for (next, name, attr) in listed {
                    if reply.add(attr.ino, next, &name, &TTL, &attr, GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }
}
