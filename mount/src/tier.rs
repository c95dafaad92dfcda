//! The disk tier: downloaded content, kept in a directory of this machine, sealed as it came.
//!
//! * A piece is a file named by the hash of what is in it. So what is read is right or thrown away, and nothing here needs
//!   a promise, a key or an fsync; and nobody learns more from it than from the broker's disk.
//! * It outlives mounts. Those of one user may share a directory: pieces come (rename) and go (unlink) as a whole, and
//!   only one mount at a time makes room.
//! * Bounded in bytes, by [`MAX_PIECES`], and by a tenth of the disk, which stays free. Each mount counts what it adds,
//!   and looks at the whole directory again after a sixteenth of the limit: so much more each of them can let it grow.
//! * What was not used for longest goes first. A use is noted in the piece's mtime, once an hour.
//! * Nobody waits for what is kept: a thread writes it, and what comes too fast or cannot be written is left out. Nor
//!   does anybody wait for a disk that hangs: what it does not give within [`PATIENCE`] is asked of the server.

use crate::worker::{Tasks, Worker};
use bytes::Bytes;
use proto::chunk::{ChunkName, SEALED_MAX_BYTES};
use rustix::fs::{FlockOperation, flock, statvfs};
use serde::Serialize;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// Files in one directory, at most: what makes room has all of their names in memory.
const MAX_PIECES: usize = 262_144;

/// Content that waits to be written, in bytes, at most; what comes beyond that is not kept.
const WAITING_BYTES: usize = 32 << 20;

/// Of the disk, what stays free for others: one part of so many.
const FREE_PART: u64 = 10;

/// A use this soon after the last one is not noted.
const NOTED_EVERY: Duration = Duration::from_secs(3600);

/// Between two times that room is made for others.
const GIVES_WAY_EVERY: Duration = Duration::from_secs(60);

/// What a mount that was killed was just writing is taken away after this time.
const LEFTOVER: Duration = Duration::from_secs(3600);

/// What a file takes of its disk is a multiple of this, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// Pieces that are read at once, at most: a disk that hangs must not take all threads that may block.
const READS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(2);

/// The directory within the given one, so that nothing else that stands there is ever looked at.
const INSIDE: &str = "kfs-content";

/// Begins the name of a piece that is not whole.
const UNFINISHED: &str = "new-";

/// Where content is kept, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierConfig {
    pub dir: PathBuf,
    pub max_bytes: u64,
}

/// Why a directory cannot be used; the text is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error("cannot keep content in {}: {reason}; name another directory with cache_dir=, or leave it out", dir.display())]
    Unusable { dir: PathBuf, reason: io::Error },
    #[error("cannot keep content in {}: it belongs to uid {owner}, and only one's own is trusted; name another directory with cache_dir=", dir.display())]
    NotOwn { dir: PathBuf, owner: u32 },
    #[error("cannot keep content in {}: that is within what is to be mounted; name another directory with cache_dir=", dir.display())]
    Within { dir: PathBuf },
}

/// A disk tier at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct TierStatus {
    pub dir: PathBuf,
    /// As of the last look at the whole directory, with what this mount has added since.
    pub bytes: u64,
    pub max_bytes: u64,
    /// Pieces that were asked for and found, or not.
    pub hits: u64,
    pub misses: u64,
    /// Why the last piece was not kept, if so.
    pub broken: Option<String>,
}

pub struct Tier {
    shelf: Arc<Shelf>,
    reads: Arc<Semaphore>,
    _worker: Worker<Waiting>,
    tasks: Tasks<Waiting>,
}

impl std::fmt::Debug for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tier").field(&self.shelf.dir).finish()
    }
}

/// What readers and the writing thread share.
struct Shelf {
    dir: PathBuf,
    given: PathBuf,
    max_bytes: u64,
    free_part: u64,
    bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    is_warned: AtomicBool,
    broken: Mutex<Option<String>>,
}

enum Task {
    /// To know what is there from before.
    Look,
    Keep(Piece),
}

struct Piece {
    hash: [u8; 32],
    sealed: Bytes,
}

/// Bounded by [`WAITING_BYTES`].
#[derive(Default)]
struct Waiting {
    has_looked: bool,
    pieces: VecDeque<Piece>,
    bytes: usize,
}

impl Waiting {
    fn next(&mut self) -> Option<Task> {
        if !std::mem::replace(&mut self.has_looked, true) {
            return Some(Task::Look);
        }
        let piece = self.pieces.pop_front()?;
        self.bytes -= piece.sealed.len();
        Some(Task::Keep(piece))
    }
}

impl TierConfig {
    /// Fails where the directory would be covered by a mount on `mountpoint`: each look at it would end there.
    pub fn is_outside(&self, mountpoint: &Path) -> Result<(), TierError> {
        // It need not be there yet; what it will stand in is.
        match self.dir.ancestors().find_map(|dir| dir.canonicalize().ok()) {
            Some(dir) if dir.starts_with(mountpoint) => Err(TierError::Within { dir: self.dir.clone() }),
            _ => Ok(()),
        }
    }

    /// Makes the directory. Begins nothing, so this may come before a daemon is one.
    pub fn prepare(&self) -> Result<(), TierError> {
        let unusable = |reason| TierError::Unusable { dir: self.dir.clone(), reason };
        let inside = self.dir.join(INSIDE);
        DirBuilder::new().recursive(true).mode(0o700).create(&inside).map_err(unusable)?;
        // Whoever else may change what stands in either could lead this astray.
        for dir in [&self.dir, &inside] {
            let owner = fs::metadata(dir).map_err(unusable)?.uid();
            if owner != rustix::process::geteuid().as_raw() {
                return Err(TierError::NotOwn { dir: self.dir.clone(), owner });
            }
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(inside.join("lock")).map_err(unusable)?;
        Ok(())
    }
}

impl Tier {
    pub fn start(config: &TierConfig) -> Result<Tier, TierError> {
        Tier::leaving(config, FREE_PART)
    }

    /// One that leaves a part of so many of the disk free.
    fn leaving(config: &TierConfig, free_part: u64) -> Result<Tier, TierError> {
        config.prepare()?;
        let shelf = Arc::new(Shelf {
            dir: config.dir.join(INSIDE),
            given: config.dir.clone(),
            max_bytes: config.max_bytes,
            free_part,
            bytes: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            is_warned: AtomicBool::new(false),
            broken: Mutex::default(),
        });
        let mut writer = Writer { shelf: shelf.clone(), pieces: 0, added: 0, gave_way: None };
        let started = Worker::start("kfs-tier", Waiting::next, move |task| writer.work(task));
        let (worker, tasks) = started.map_err(|reason| TierError::Unusable { dir: config.dir.clone(), reason })?;
        Ok(Tier { shelf, reads: Arc::new(Semaphore::new(READS)), _worker: worker, tasks })
    }

    /// Sealed content that is here, and is what its name says.
    pub async fn get(&self, name: &ChunkName) -> Option<Bytes> {
        let (shelf, hash) = (self.shelf.clone(), name.hash);
        let found = self.ask(move || shelf.read(&hash)).await.flatten();
        let count = if found.is_some() { &self.shelf.hits } else { &self.shelf.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Which of these seem to be here.
    pub async fn seen(&self, names: &[ChunkName]) -> Vec<bool> {
        let (shelf, hashes) = (self.shelf.clone(), names.iter().map(|name| name.hash).collect::<Vec<_>>());
        let look = move || hashes.iter().map(|hash| shelf.place(hash).exists()).collect();
        self.ask(look).await.unwrap_or_else(|| vec![false; names.len()])
    }

    /// What the disk says, if it says so in time.
    async fn ask<T: Send + Unpin + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let asking = async {
            let turn = self.reads.clone().acquire_owned().await.ok()?;
            let look = move || {
                let found = look();
                drop(turn);
                found
            };
            proto::task::offload(look).await.ok()
        };
        tokio::time::timeout(PATIENCE, asking).await.ok().flatten()
    }

    /// Keeps sealed content, if there is time for it.
    pub fn put(&self, name: &ChunkName, sealed: &Bytes) {
        self.tasks.add(|waiting| {
            if waiting.bytes + sealed.len() <= WAITING_BYTES {
                waiting.bytes += sealed.len();
                waiting.pieces.push_back(Piece { hash: name.hash, sealed: sealed.clone() });
            }
        });
    }

    pub fn status(&self) -> TierStatus {
        let shelf = &self.shelf;
        TierStatus {
            dir: shelf.given.clone(),
            bytes: shelf.bytes.load(Ordering::Relaxed),
            max_bytes: shelf.max_bytes,
            hits: shelf.hits.load(Ordering::Relaxed),
            misses: shelf.misses.load(Ordering::Relaxed),
            broken: shelf.broken.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

impl Shelf {
    fn place(&self, hash: &[u8; 32]) -> PathBuf {
        let name = blake3::Hash::from_bytes(*hash).to_hex();
        self.dir.join(&name[..2]).join(name.as_str())
    }

    fn read(&self, hash: &[u8; 32]) -> Option<Bytes> {
        let place = self.place(hash);
        let mut file = File::open(&place).ok()?;
        let metadata = file.metadata().ok()?;
        let mut sealed = Vec::with_capacity(metadata.len().min(SEALED_MAX_BYTES as u64) as usize);
        let read = (&mut file).take(SEALED_MAX_BYTES as u64 + 1).read_to_end(&mut sealed);
        if read.is_err() || blake3::hash(&sealed) != *hash {
            tracing::warn!("{} is not what it was; it is thrown away and asked for again", place.display());
            let _ = fs::remove_file(&place);
            return None;
        }
        let now = SystemTime::now();
        if metadata.modified().is_ok_and(|then| now.duration_since(then).is_ok_and(|since| since > NOTED_EVERY)) {
            // Who may not note it has read it all the same.
            let _ = file.set_modified(now);
        }
        Some(sealed.into())
    }

    /// Whether others need what is left of the disk.
    fn is_disk_full(&self) -> io::Result<bool> {
        let disk = statvfs(&self.dir)?;
        Ok(disk.f_bavail < disk.f_blocks / self.free_part)
    }
}

/// What a file of this length takes.
fn taken(len: u64) -> u64 {
    len.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// The thread's.
struct Writer {
    shelf: Arc<Shelf>,
    pieces: usize,
    /// Bytes since the last look at the whole directory.
    added: u64,
    gave_way: Option<Instant>,
}

impl Writer {
    fn work(&mut self, task: Task) {
        let shelf = self.shelf.clone();
        let done = match &task {
            Task::Look => self.make_room(shelf.max_bytes),
            Task::Keep(piece) => self.keep(piece),
        };
        let why = done.err().map(|error| error.to_string());
        match &why {
            // Once, and again after it has worked.
            Some(why) if !shelf.is_warned.swap(true, Ordering::Relaxed) => {
                tracing::warn!("cannot keep content in {}: {why}; it is read from the server", shelf.given.display());
            }
            Some(_) => {}
            None => shelf.is_warned.store(false, Ordering::Relaxed),
        }
        *shelf.broken.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn keep(&mut self, piece: &Piece) -> io::Result<()> {
        if self.added > self.shelf.max_bytes / 16 || self.pieces > MAX_PIECES {
            self.make_room(self.shelf.max_bytes)?;
        }
        let place = self.shelf.place(&piece.hash);
        if place.exists() {
            return Ok(());
        }
        if self.shelf.is_disk_full()? && !self.gives_way()? {
            let why = format!("less than 1/{} of the disk is free", self.shelf.free_part);
            return Err(io::Error::new(ErrorKind::StorageFull, why));
        }
        let number = u64::from_le_bytes(proto::seal::random());
        let unfinished = self.shelf.dir.join(format!("{UNFINISHED}{number:016x}"));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let written = file.write_all(&piece.sealed).and_then(|()| move_to(&unfinished, &place));
        if written.is_err() {
            let _ = fs::remove_file(&unfinished);
        }
        written?;
        let bytes = taken(piece.sealed.len() as u64);
        self.shelf.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.added += bytes;
        self.pieces += 1;
        Ok(())
    }

    /// Makes room for others on a full disk, by an eighth of what is there; at most once a minute, since that may not be
    /// what fills it. Whether there is room now.
    fn gives_way(&mut self) -> io::Result<bool> {
        if self.gave_way.is_some_and(|at| at.elapsed() < GIVES_WAY_EVERY) {
            return Ok(false);
        }
        self.gave_way = Some(Instant::now());
        self.make_room(self.shelf.bytes.load(Ordering::Relaxed) / 8 * 7)?;
        Ok(!self.shelf.is_disk_full()?)
    }

    /// Looks at all that is there, and takes away what was not used for longest, if it is more than that.
    fn make_room(&mut self, max_bytes: u64) -> io::Result<()> {
        let lock = File::open(self.shelf.dir.join("lock"))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            // Another mount is at it.
            self.added = 0;
            return Ok(());
        }
        let mut pieces = self.all()?;
        let mut bytes: u64 = pieces.iter().map(|(_, bytes, _)| bytes).sum();
        if bytes > max_bytes || pieces.len() > MAX_PIECES {
            pieces.sort_unstable_by_key(|(used, _, _)| std::cmp::Reverse(*used));
            while bytes > max_bytes / 8 * 7 || pieces.len() > MAX_PIECES / 8 * 7 {
                let Some((_, taken, place)) = pieces.pop() else { break };
                // One that cannot be taken away, or that another mount has taken away, is passed over.
                if fs::remove_file(&place).is_ok() || !place.exists() {
                    bytes -= taken;
                }
            }
        }
        self.shelf.bytes.store(bytes, Ordering::Relaxed);
        (self.pieces, self.added) = (pieces.len(), 0);
        Ok(())
    }

    /// Every piece: when it was used, what it takes, where it is. What nobody finishes any more goes.
    fn all(&self) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.shelf.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && is_hex(&entry.file_name(), 2) {
                for piece in fs::read_dir(entry.path())? {
                    let piece = piece?;
                    if !is_hex(&piece.file_name(), 64) {
                        continue;
                    }
                    // Another mount may have taken it away.
                    let Ok(metadata) = piece.metadata() else { continue };
                    all.push((metadata.modified()?, taken(metadata.len()), piece.path()));
                }
            } else if entry.file_name().to_string_lossy().starts_with(UNFINISHED)
                && let Ok(since) = entry.metadata().and_then(|metadata| metadata.modified())
                && since.elapsed().is_ok_and(|since| since > LEFTOVER)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(all)
    }
}

/// Whether a name is so many hexadecimal digits, as ours are.
fn is_hex(name: &OsStr, len: usize) -> bool {
    name.len() == len && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn move_to(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let dir = to.parent().expect("a piece stands in a directory");
            match DirBuilder::new().mode(0o700).create(dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => fs::rename(from, to),
            }
        }
        done => done,
    }
}

#[cfg(test)]
mod tests;
