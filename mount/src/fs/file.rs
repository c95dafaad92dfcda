//! Open files: what all handles on one inode share, and opening and closing them.
//!
//! A [`File`] lives while a handle is open or something written is not answered
//! for. Lock order: the table of files, then one file, then the cache.

use super::bytes_lru::BytesLru;
use super::dirty::Dirty;
use super::locks::Owners;
use super::names::NewNode;
use super::pack::{Pack, Stage};
use super::prefetch::Sequence;
use super::stamps::Life;
use super::writeback::Sent;
use super::{Caller, Fs, Stat};
use crate::client::{Patience, Submitted};
use crate::error::FsError;
use bytes::Bytes;
use proto::message::{Attr, FileKind, Op, Outcome, Refusal, View};
use proto::planted::{Bug, planted};
use proto::{Ino, Name, Position, SessionId, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

/// Extents asked for when a file is opened: most files have fewer.
const OPEN_EXTENTS: u32 = 64;
/// Inodes whose kernel pages are known by version, in bytes of memory.
const PAGES_BYTES: usize = 4 << 20;
const PAGE_ENTRY_BYTES: usize = 96;

/// A file that has just been opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub handle: u64,
    pub pages: Pages,
}

/// What the kernel is to do with the pages that it has of a file that has just been opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// They are still right.
    Keep,
    /// They may be wrong.
    Drop,
    /// Reads and writes go past them (`bypass.rs`).
    Bypass,
}

/// One open() of a file.
pub struct FileHandle {
    pub file: Arc<File>,
    /// Writes go to the end of the file, wherever that is.
    pub append: bool,
    /// The kernel's pages have nothing to do with it.
    pub bypasses: bool,
    keeps_atime: AtomicBool,
    sequence: Mutex<Sequence>,
    /// A lock that was taken through it has been lost.
    pub lost: AtomicBool,
}

impl FileHandle {
    /// Whether its reads move no atime.
    pub fn keeps_atime(&self) -> bool {
        self.keeps_atime.load(Ordering::Relaxed)
    }

    /// Where it has been reading.
    pub fn sequence(&self) -> MutexGuard<'_, Sequence> {
        // Each read's note is whole; a panic elsewhere must not end reading.
        self.sequence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all handles on an inode share.
pub struct File {
    pub ino: Ino,
    state: Mutex<State>,
    pub progress: watch::Sender<Progress>,
    owners: Mutex<Owners>,
    /// Requests about locks that nobody waits for any more and whose end is not known.
    pub unsettled: watch::Sender<u32>,
}

/// Packs up to these have left, and have been answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub sent: u64,
    pub answered: u64,
    /// The last one that has left and whose answer its writer has to wait for: under no delegation.
    pub undelegated: u64,
}

impl Progress {
    /// All up to this one is answered for.
    pub fn is_answered(&self, last: u64) -> bool {
        self.answered >= last
    }

    /// All up to this one is answered for, or in the stream under a delegation.
    pub fn is_safe(&self, last: u64) -> bool {
        self.sent >= last && self.answered >= last.min(self.undelegated)
    }
}

pub struct State {
    pub handles: u32,
    /// Of these, those that go past the kernel's pages.
    pub bypassing: u32,
    pub dirty: Dirty,
    /// The session whose lock what lies in `dirty` was written under, as far as there was one.
    pub only_in: Option<SessionId>,
    /// When the oldest and the newest of it was written.
    pub dirty_since: Option<Instant>,
    pub written: Option<Instant>,
    /// Everything taken and not answered for, in order.
    pub packs: VecDeque<Pack>,
    pub last_seq: u64,
    /// Packs up to this one leave as soon as they can.
    pub commit_upto: u64,
    /// Packs that wait to be sealed and uploaded, in order.
    pub uploads: VecDeque<(u64, Bytes)>,
    pub answers: VecDeque<Sent>,
    /// A task uploads, and one takes the answers.
    pub uploading: bool,
    pub answering: bool,
    /// It is among those that may have content left lying.
    pub is_lying: bool,
    /// What went wrong behind the program's back; told once.
    pub failure: Option<FsError>,
    pub mtime: Time,
}

/// What was written here and is not answered for.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    pub end: u64,
    pub bytes: u64,
    pub mtime: Time,
}

impl State {
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.packs.is_empty()
    }

    pub fn pending(&self) -> Option<Pending> {
        if self.is_clean() {
            return None;
        }
        let packs_end = self.packs.iter().flat_map(|p| &p.parts).map(|part| part.end()).max();
        let packs_bytes: usize = self.packs.iter().map(|p| p.plain.len()).sum();
        Some(Pending {
            end: packs_end.max(self.dirty.end()).unwrap_or(0),
            bytes: (packs_bytes + self.dirty.bytes()) as u64,
            mtime: self.mtime,
        })
    }

    /// The last pack that has left in no life of the content's promise, or in another one than this.
    pub fn overtaken(&self, life: Option<Life>) -> Option<u64> {
        let is_overtaken = |pack: &&Pack| match pack.stage {
            Stage::Sent { life: left_in } => left_in.is_none() || left_in != life,
            _ => false,
        };
        self.packs.iter().rev().find(is_overtaken).map(|pack| pack.seq)
    }
}

impl File {
    fn new(ino: Ino) -> File {
        File {
            ino,
            state: Mutex::new(State {
                handles: 0,
                bypassing: 0,
                dirty: Dirty::default(),
                only_in: None,
                dirty_since: None,
                written: None,
                packs: VecDeque::new(),
                last_seq: 0,
                commit_upto: 0,
                uploads: VecDeque::new(),
                answers: VecDeque::new(),
                uploading: false,
                answering: false,
                is_lying: false,
                failure: None,
                mtime: Time::default(),
            }),
            progress: watch::Sender::new(Progress::default()),
            owners: Mutex::default(),
            unsettled: watch::Sender::new(0),
        }
    }

    /// What is locked here; never held together with [`File::state`].
    pub fn owners(&self) -> MutexGuard<'_, Owners> {
        // Changed in steps that each leave it whole.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed in steps that each leave it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pending(&self) -> Option<Pending> {
        self.state().pending()
    }

    /// What was written in a range and is not answered for, oldest first, and
    /// where everything written ends.
    pub fn overlay(&self, offset: u64, len: u64) -> (Vec<(u64, Bytes)>, u64) {
        let state = self.state();
        let Some(pending) = state.pending().filter(|_| !planted(Bug::ReadMissesWritten)) else {
            return (Vec::new(), 0);
        };
        let end = offset.saturating_add(len);
        let mut out = Vec::new();
        for pack in state.packs.iter().filter(|p| !matches!(p.stage, Stage::Failed)) {
            for part in &pack.parts {
                let (from, to) = (offset.max(part.offset), end.min(part.end()));
                if from < to {
                    let start = part.from as usize + (from - part.offset) as usize;
                    out.push((from, pack.plain.slice(start..start + (to - from) as usize)));
                }
            }
        }
        out.extend(state.dirty.parts(offset, len).map(|(at, data)| (at, Bytes::copy_from_slice(data))));
        (out, pending.end)
    }
}

/// Every [`File`], and which version the kernel's pages of an inode are of.
pub struct Files {
    open: Mutex<BTreeMap<Ino, Arc<File>>>,
    pages: Mutex<BytesLru<Ino, Position>>,
}

impl Default for Files {
    fn default() -> Files {
        Files { open: Mutex::default(), pages: Mutex::new(BytesLru::new(PAGES_BYTES)) }
    }
}

impl Files {
    fn open(&self) -> MutexGuard<'_, BTreeMap<Ino, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self) -> MutexGuard<'_, BytesLru<Ino, Position>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<File>> {
        self.open().get(&ino).cloned()
    }

    pub fn all(&self) -> Vec<Arc<File>> {
        self.open().values().cloned().collect()
    }

    /// Whether the kernel's pages are of this version.
    pub fn has_pages_of(&self, ino: Ino, version: Position) -> bool {
        self.pages().get(&ino) == Some(&mut version.clone())
    }

    /// The kernel has no pages but of this version.
    pub fn pages_became(&self, ino: Ino, version: Position) {
        self.pages().insert(ino, version, PAGE_ENTRY_BYTES);
    }

    /// Whether the kernel's pages are of this version; from now on they are.
    fn pages_are(&self, ino: Ino, version: Position) -> bool {
        let mut pages = self.pages();
        let same = pages.get(&ino) == Some(&mut version.clone());
        pages.insert(ino, version, PAGE_ENTRY_BYTES);
        same
    }

    /// A change of our own, which the kernel's pages know, has led from one version to the next.
    pub fn pages_follow(&self, ino: Ino, before: Option<Position>, now: Position) {
        let mut pages = self.pages();
        match (pages.get(&ino), before) {
            (Some(known), Some(before)) if *known == before => *known = now,
            _ => drop(pages.remove(&ino)),
        }
    }

    /// The kernel's pages may be wrong.
    pub fn pages_unknown(&self, ino: Ino) {
        self.pages().remove(&ino);
    }

    pub fn all_pages_unknown(&self) {
        *self.pages() = BytesLru::new(PAGES_BYTES);
    }
}

impl Fs {
    /// Opens a file; a file of another mount's making is as its last close left it.
    pub async fn open(&self, ino: u64, append: bool, patience: &Patience) -> Result<Opened, FsError> {
        let ino = self.ino(ino);
        // Before asking, so that the server's "its last name is gone" finds it open.
        let file = self.hold(ino);
        let version = match self.known_version(ino) {
            Some(version) => {
                self.read_neighbours(ino, false);
                Ok(version)
            }
            None => self.awaited_version(ino, patience).await,
        };
        match version {
            Ok(version) => {
                let bypasses = {
                    let mut state = file.state();
                    let bypasses = state.bypassing > 0;
                    state.bypassing += u32::from(bypasses);
                    bypasses
                };
                let pages = match bypasses {
                    true => Pages::Bypass,
                    false if self.inner.files.pages_are(ino, version) => Pages::Keep,
                    false => Pages::Drop,
                };
                Ok(Opened { handle: self.add_handle(file, append, bypasses), pages })
            }
            Err(error) => {
                self.let_go(&file);
                Err(error)
            }
        }
    }

    /// The version of a file's content, if that is known without asking.
    pub(super) fn known_version(&self, ino: Ino) -> Option<Position> {
        self.cache().content(self.promises(), ino, 0, 0).map(|content| content.version)
    }

    /// The version of a file's content, from what is being asked ahead about it, or by asking.
    async fn awaited_version(&self, ino: Ino, patience: &Patience) -> Result<Position, FsError> {
        // What a program waits for goes first, by itself.
        let asked = (!self.is_neighbour_asked(ino)).then(|| self.ask_version(ino));
        self.read_neighbours(ino, true);
        let asked = match asked {
            Some(asked) => asked,
            None => {
                self.neighbour_arrives(ino, patience).await?;
                if let Some(version) = self.known_version(ino) {
                    return Ok(version);
                }
                self.ask_version(ino)
            }
        };
        self.content_version(asked, patience).await
    }

    /// Asks for it, and for what comes along; somebody waits for that.
    fn ask_version(&self, ino: Ino) -> Submitted {
        let asked = self.inner.client.submit(Op::View(content_view(ino)), Bytes::new());
        self.inner.client.somebody_waits();
        asked
    }

    /// Takes in the answer.
    async fn content_version(&self, asked: Submitted, patience: &Patience) -> Result<Position, FsError> {
        let reply = self.inner.client.wait(asked, patience).await??;
        let Outcome::Extents { attr, .. } = &reply.outcome else { return Err(FsError::WrongAnswer { op: "open" }) };
        let version = attr.version;
        self.learn_extents(0, reply);
        Ok(version)
    }

    /// Makes a file and opens it. Without `exclusive`, one that someone else has
    /// made meanwhile is opened.
    pub async fn create(
        &self,
        who: Caller,
        dir: u64,
        name: &[u8],
        mode: u32,
        how: CreateHow,
        patience: &Patience,
    ) -> Result<(Stat, Opened), FsError> {
        let node = NewNode { kind: FileKind::File, mode, rdev: 0 };
        let bypasses = self.inner.making.makes(Instant::now()) && how.may_bypass;
        match self.make(who, self.ino(dir), name, node, None, patience).await {
            Ok(attr) => {
                let file = self.hold(attr.ino);
                file.state().bypassing += u32::from(bypasses);
                let pages = if bypasses { Pages::Bypass } else { Pages::Keep };
                if !bypasses {
                    // There are no pages of it, so whatever there is is right.
                    self.inner.files.pages_are(attr.ino, attr.version);
                }
                Ok((self.stat(&attr), Opened { handle: self.add_handle(file, how.append, bypasses), pages }))
            }
            Err(error) if error.is(Refusal::Exists) && !how.exclusive => {
                let attr: Attr = self.lookup_attr(self.ino(dir), &Name::new(name)?, patience).await?;
                let stat = self.shown(&attr, patience).await?;
                Ok((stat, self.open(self.shown_ino(attr.ino), how.append, patience).await?))
            }
            Err(error) => Err(error),
        }
    }

    /// One that bypasses the kernel's pages is counted as such.
    fn add_handle(&self, file: Arc<File>, append: bool, bypasses: bool) -> u64 {
        self.inner.handles.add_file(FileHandle {
            file,
            append,
            bypasses,
            keeps_atime: AtomicBool::new(false),
            sequence: Mutex::default(),
            lost: AtomicBool::new(false),
        })
    }

    /// One holder more.
    fn hold(&self, ino: Ino) -> Arc<File> {
        let mut open = self.inner.files.open();
        let file = open.entry(ino).or_insert_with(|| {
            self.inner.client.set_open(ino);
            Arc::new(File::new(ino))
        });
        file.state().handles += 1;
        file.clone()
    }

    /// One holder less.
    pub(super) fn let_go(&self, file: &Arc<File>) {
        file.state().handles -= 1;
        self.forget_if_done(file);
    }

    /// Forgets the file if nobody holds it and everything is answered for.
    pub(super) fn forget_if_done(&self, file: &Arc<File>) {
        let mut open = self.inner.files.open();
        let state = file.state();
        let done = state.handles == 0 && state.is_clean();
        if done && open.get(&file.ino).is_some_and(|known| Arc::ptr_eq(known, file)) {
            open.remove(&file.ino);
            drop(state);
            self.inner.client.set_closed(file.ino);
        }
    }

    /// `O_NOATIME`: what is read through this handle moves no atime.
    pub fn keep_atime(&self, handle: u64) {
        if let Ok(handle) = self.inner.handles.file(handle) {
            handle.keeps_atime.store(true, Ordering::Relaxed);
        }
    }

    /// The last close() of a handle has long returned; what is left goes by itself.
    pub fn release(&self, handle: u64) -> Result<(), FsError> {
        let (number, handle) = (handle, self.inner.handles.remove_file(handle)?);
        self.unlock_handle(number, &handle);
        let is_clean = {
            let mut state = handle.file.state();
            state.bypassing -= u32::from(handle.bypasses);
            state.is_clean()
        };
        if !is_clean {
            self.send_all(&handle.file);
        }
        self.let_go(&handle.file);
        Ok(())
    }
}

/// Asks for what opening a file takes.
pub(super) fn content_view(ino: Ino) -> View {
    View::Extents { ino, from: 0, limit: OPEN_EXTENTS }
}

/// How a file is created.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateHow {
    /// `O_EXCL`.
    pub exclusive: bool,
    /// `O_APPEND`.
    pub append: bool,
    /// Nothing is read or mapped through the handle, and no write through it waits until it is stored (`O_SYNC`), so it
    /// may go past the kernel's pages.
    pub may_bypass: bool,
}
