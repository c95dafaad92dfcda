//! The filesystem: names, handles, caches, write-back and reads, as async
//! functions in our own types. `fuse.rs` translates kernel calls into these; the
//! command line and tests call them directly.
//!
//! * What can be answered from caches never waits, so it may be polled once on
//!   the thread that asks.
//! * Every wait is bounded by the caller's [`Patience`].
//! * Locks are held for the length of a look, never across a wait.

mod accessed;
mod acls;
mod ahead;
mod allocate;
mod attrs;
mod blocks;
mod budget;
mod bypass;
mod bytes_lru;
mod cache;
mod changing;
mod dir;
mod dirty;
mod extents;
mod file;
mod handles;
mod local;
mod locks;
mod names;
mod neighbours;
mod pack;
mod pending;
mod prefetch;
mod privileges;
mod read;
mod room;
mod seal;
mod stamps;
mod upload;
mod watch;
mod writeback;
mod xattrs;

pub use acls::acl_kind;
pub use allocate::{COPIED_HERE_BYTES, Seek};
pub use attrs::{SetAttr, SetTime, Stat};
pub use dir::DirEntry;
pub use file::{CreateHow, Opened, Pages};
pub use locks::LockCall;
pub use names::NewNode;

use crate::client::{CallError, Client, Forget, Patience, Reply, Room, Since, Terms};
use crate::error::FsError;
use crate::tier::Tier;
use accessed::Accessed;
use blocks::Blocks;
use budget::Budget;
use bypass::Making;
use bytes::Bytes;
use cache::Cache;
use changing::Changing;
use file::Files;
use handles::Handles;
use local::Locals;
use proto::chunk::INLINE_BYTES;
use proto::message::{Attr, FileKind, Op, Outcome, Owner, Promise, Resource, View};
use proto::{Ino, Name};
use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use upload::Slots;

/// The inode number of a mount's root, whatever directory it shows.
pub const ROOT: u64 = 1;

/// How a mount shows and keeps owners.
#[derive(Clone, Copy, Debug)]
pub struct Owners {
    /// A root mount keeps callers' numbers; a plain user's mount keeps
    /// [`Owner::Namespace`] and lets nobody else own anything.
    pub keep_numbers: bool,
    /// What [`Owner::Namespace`] is shown as.
    pub uid: u32,
    pub gid: u32,
    /// Show `uid` or `gid` for every inode, as the options `uid=` and `gid=` of a plain mount ask.
    pub every_uid: bool,
    pub every_gid: bool,
    /// Permission bits that are not shown.
    pub umask: u32,
}

/// What a filesystem is made with.
#[derive(Clone, Debug)]
pub struct FsConfig {
    pub owners: Owners,
    /// Plain content kept in memory, in bytes.
    pub cache_bytes: usize,
    /// Written content that the server does not have yet, in bytes; a writer waits for room.
    pub dirty_bytes: usize,
    /// The most content that travels in the request that writes it, in bytes; up to [`INLINE_BYTES`].
    pub inline_bytes: usize,
    /// How long close() waits at most, also where everything else waits for ever.
    pub close_timeout: Duration,
    /// Whether reading moves atime, as relatime has it.
    pub relatime: bool,
    /// Where downloaded content is kept on this machine's disk, if it is.
    pub tier: Option<Arc<Tier>>,
}

impl FsConfig {
    pub const CACHE_BYTES: usize = 256 << 20;
    pub const DIRTY_BYTES: usize = 64 << 20;

    pub fn new(owners: Owners) -> FsConfig {
        FsConfig {
            owners,
            cache_bytes: FsConfig::CACHE_BYTES,
            dirty_bytes: FsConfig::DIRTY_BYTES,
            inline_bytes: INLINE_BYTES,
            close_timeout: Duration::from_secs(30),
            relatime: false,
            tier: None,
        }
    }
}

/// Who asks, for what the asker comes to own.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits that it does not mean for what it makes.
    pub umask: u32,
}

/// What the filesystem tells the kernel unasked. Called from tasks, so it must
/// only queue, never wait.
pub trait Kernel: Send + Sync {
    /// The pages that the kernel keeps of this inode may be wrong. Whoever wants to know is told
    /// when they are gone.
    fn inval_inode(&self, ino: u64, done: Option<oneshot::Sender<()>>);

    /// The kernel may keep these no longer. Says when it has forgotten them.
    fn forget(&self, forget: KernelForget, done: Box<dyn FnOnce() + Send>);

    /// The kernel is to ask for these attributes when it needs them next. Done when this returns; never waits.
    fn attributes_changed(&self, ino: u64);

    /// Whether it can forget names.
    fn forgets_names(&self) -> bool;
}

/// What the kernel is to forget, by its own numbers: attributes, and names in directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelForget {
    pub inodes: Vec<u64>,
    pub names: Vec<(u64, Name)>,
}

/// One namespace, or a directory of it, as a filesystem. Clones share it.
#[derive(Clone)]
pub struct Fs {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    config: FsConfig,
    root: Ino,
    runtime: tokio::runtime::Handle,
    cache: Cache,
    blocks: Blocks,
    files: Files,
    handles: Handles,
    accessed: Accessed,
    making: Making,
    locals: Locals,
    budget: Budget,
    lying: std::sync::Mutex<writeback::Lying>,
    uploads: Slots,
    prefetches: Arc<tokio::sync::Semaphore>,
    neighbours: neighbours::Neighbours,
    ahead: ahead::Ahead,
    statfs: std::sync::Mutex<Option<(tokio::time::Instant, Statfs)>>,
    kernel: OnceLock<Arc<dyn Kernel>>,
}

/// Says how long the kernel may keep what an operation has found. It does only where the mount is told before anyone
/// else changes it.
pub struct Showing {
    fs: Fs,
    since: Since,
}

impl Showing {
    /// An inode's attributes.
    pub fn attributes(&self, stat: &Stat) -> Duration {
        let (client, ino) = (&self.fs.inner.client, self.fs.ino(stat.ino));
        let Some(covering) = stat.covering else { return Duration::ZERO };
        if self.fs.inner.kernel.get().is_none() || self.fs.cache().is_changing(&covering) {
            return Duration::ZERO;
        }
        client.shown().attributes(client.promises(), self.since, covering, ino)
    }

    /// Both, where the kernel is told of one time only.
    pub fn entry(&self, dir: u64, name: &[u8], stat: &Stat) -> Duration {
        self.name(dir, name).min(self.attributes(stat))
    }

    /// What a name in a directory is, or that it is absent.
    pub fn name(&self, dir: u64, name: &[u8]) -> Duration {
        let client = &self.fs.inner.client;
        let (dir, Ok(name)) = (self.fs.ino(dir), Name::new(name)) else { return Duration::ZERO };
        let forgets = self.fs.inner.kernel.get().is_some_and(|kernel| kernel.forgets_names());
        if !forgets || self.fs.cache().is_changing(&Promise::Dir(dir)) {
            return Duration::ZERO;
        }
        client.shown().name(client.promises(), self.since, dir, &name)
    }
}

/// How full the namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    pub bytes_total: u64,
    pub bytes_used: u64,
    pub inodes_total: u64,
    pub inodes_used: u64,
}

impl Statfs {
    /// How long one answer is repeated.
    const GOOD_FOR: Duration = Duration::from_secs(1);
}

impl Fs {
    /// For work that goes on by itself and must not keep a filesystem that nobody uses any more.
    fn if_there(fs: &Weak<Inner>) -> Option<Fs> {
        fs.upgrade().map(|inner| Fs { inner })
    }

    /// The filesystem below `path` of the client's namespace; an authenticated
    /// look at that directory has succeeded when this returns. Must be called
    /// inside a tokio runtime, which then runs its tasks.
    pub async fn open_root(client: Client, config: FsConfig, path: &Path, patience: &Patience) -> Result<Fs, FsError> {
        use std::os::unix::ffi::OsStrExt;
        let mut attr = entry(call(&client, View::Getattr { ino: client.root() }, patience).await?, "getattr")?;
        for part in path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let view = View::Lookup { dir: attr.ino, name: Name::new(part)? };
            attr = entry(call(&client, view, patience).await?, "lookup")?;
        }
        if attr.kind != FileKind::Dir {
            return Err(FsError::NotDirectory);
        }
        let fs = Fs {
            inner: Arc::new(Inner {
                locals: Locals::new(),
                root: attr.ino,
                runtime: tokio::runtime::Handle::current(),
                cache: Cache::new(),
                blocks: Blocks::new(config.cache_bytes),
                files: Files::default(),
                handles: Handles::default(),
                accessed: Accessed::default(),
                making: Making::default(),
                budget: Budget::new(config.dirty_bytes),
                lying: std::sync::Mutex::default(),
                uploads: Slots::default(),
                prefetches: Arc::new(tokio::sync::Semaphore::new(prefetch::PAGES)),
                neighbours: neighbours::Neighbours::default(),
                ahead: ahead::Ahead::default(),
                statfs: std::sync::Mutex::new(None),
                kernel: OnceLock::new(),
                client,
                config,
            }),
        };
        fs.watch_invalidations();
        Ok(fs)
    }

    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    pub fn tier(&self) -> Option<&Tier> {
        self.inner.config.tier.as_deref()
    }

    /// Where the kernel is told what it must not keep any longer; only the first one counts.
    pub fn set_kernel(&self, kernel: Arc<dyn Kernel>) {
        let _ = self.inner.kernel.set(kernel);
        let inner = Arc::downgrade(&self.inner);
        self.inner.client.set_forgetter(Box::new(move |forget, done| {
            if let Some(fs) = Fs::if_there(&inner) {
                fs.have_forgotten(forget, done);
            }
        }));
    }

    /// The kernel must not keep these any longer. Only queues.
    fn have_forgotten(&self, forget: Forget, done: Box<dyn FnOnce() + Send>) {
        let Some(kernel) = self.inner.kernel.get() else { return };
        let inodes = forget.inodes.into_iter().map(|ino| self.shown_ino(ino)).collect();
        let names = forget.names.into_iter().map(|(dir, name)| (self.shown_ino(dir), name)).collect();
        kernel.forget(KernelForget { inodes, names }, done);
    }

    /// To be taken before an operation looks at anything: what it finds may then be kept by the kernel as long as that says.
    pub fn showing(&self) -> Showing {
        Showing { fs: self.clone(), since: self.inner.client.shown().since() }
    }

    /// Bytes written and not yet answered for.
    pub fn dirty_bytes(&self) -> usize {
        self.inner.budget.used()
    }

    /// The root directory's number, as callers of these functions see it.
    pub fn root(&self) -> u64 {
        ROOT
    }

    pub async fn statfs(&self, patience: &Patience) -> Result<Statfs, FsError> {
        let lock = || self.inner.statfs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_limited = Resource::ALL.into_iter().any(|of| self.inner.client.is_limited(of));
        self.inner.client.free_unused();
        if let Some((when, statfs)) = *lock()
            && when.elapsed() < Statfs::GOOD_FOR
            && !is_limited
        {
            return Ok(statfs);
        }
        match self.view(View::Statfs, patience).await?.outcome {
            Outcome::Statfs { bytes_total, bytes_used, inodes_total, inodes_used } => {
                let statfs = Statfs { bytes_total, bytes_used, inodes_total, inodes_used };
                *lock() = Some((tokio::time::Instant::now(), statfs));
                Ok(statfs)
            }
            _ => Err(FsError::WrongAnswer { op: "statfs" }),
        }
    }

    /// The kfs number behind a kernel's.
    fn ino(&self, ino: u64) -> Ino {
        if ino == ROOT { self.inner.root } else { Ino(ino) }
    }

    /// The kernel's number of an inode.
    fn shown_ino(&self, ino: Ino) -> u64 {
        if ino == self.inner.root { ROOT } else { ino.0 }
    }

    async fn view(&self, view: View, patience: &Patience) -> Result<Reply, FsError> {
        Ok(call(&self.inner.client, view, patience).await?)
    }

    /// Asks for a change of names or attributes. What it concerns is not answered from the
    /// cache before the guard is dropped, which is after the answer is taken in: a later request
    /// may have been answered before, and whoever saw that must not be shown what was before this.
    async fn change(&self, op: Op, patience: &Patience) -> Result<(Reply, Changing), FsError> {
        self.change_with(op, None, patience).await
    }

    /// The same with room for what it adds.
    async fn change_with(&self, op: Op, room: Option<Room>, patience: &Patience) -> Result<(Reply, Changing), FsError> {
        let changing = Changing::begin(self, &op);
        let terms = Terms { time: self.inner.client.now(), only_in: self.locked_in(&op), local: false };
        let mut submitted = self.inner.client.submit_with(terms, op, room);
        self.inner.client.somebody_waits();
        match self.inner.client.wait(&mut submitted, patience).await {
            Ok(answer) => {
                let answer = answer?;
                // What was answered here before it is taken in before it: some answers say only what they have changed.
                self.settled(answer.order, patience).await?;
                Ok((answer, changing))
            }
            Err(error) => {
                // It may still take effect, at any moment.
                changing.given_up();
                proto::task::spawn_on(&self.inner.runtime, async move {
                    let _ = submitted.await;
                    drop(changing);
                });
                Err(error.into())
            }
        }
    }

    fn shown_uid(&self, owner: Owner) -> u32 {
        let owners = &self.inner.config.owners;
        match owner {
            Owner::Number(uid) if !owners.every_uid => uid,
            _ => owners.uid,
        }
    }

    fn shown_gid(&self, owner: Owner) -> u32 {
        let owners = &self.inner.config.owners;
        match owner {
            Owner::Number(gid) if !owners.every_gid => gid,
            _ => owners.gid,
        }
    }
}

async fn call(client: &Client, view: View, patience: &Patience) -> Result<Reply, CallError> {
    client.call(Op::View(view), Bytes::new(), patience).await
}

/// The attributes that an answer consists of.
fn entry(reply: Reply, op: &'static str) -> Result<Attr, FsError> {
    match reply.outcome {
        Outcome::Entry(attr) => Ok(attr),
        _ => Err(FsError::WrongAnswer { op }),
    }
}
