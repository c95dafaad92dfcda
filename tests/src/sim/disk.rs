//! A simulated machine's disk: databases in memory that lose and tear what was not
//! synced when the machine crashes, and objects that are whole or not there. It can be
//! full, and writes to it can fail.
//!
//! Pages are shared between copies of a disk, so a prepared one costs nothing.

use super::objects::{self, SimObjects};
use super::rng::Rng;
use redb::{Database, DatabaseError, StorageBackend};
use server::disk::{Databases, Disk};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE_BYTES: usize = 4096;

/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;

/// One machine's disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, SimFile>>>,
    objects: Arc<SimObjects>,
    trouble: Trouble,
}

/// What is wrong with a disk. Clones are of the same disk.
#[derive(Clone, Debug, Default)]
pub struct Trouble(Arc<Mutex<Wrong>>);

#[derive(Debug, Default)]
struct Wrong {
    full: bool,
    /// Failing writes and syncs in a thousand, and what decides which.
    failing: Option<(u32, Rng)>,
    /// There was something wrong since this was last asked for.
    was: bool,
}

impl Wrong {
    fn is_now(&self) -> bool {
        self.full || self.failing.is_some()
    }
}

impl Trouble {
    /// Whether something new can be written.
    pub fn room(&self) -> io::Result<()> {
        let full = lock(&self.0).full;
        if full { Err(io::ErrorKind::StorageFull.into()) } else { self.works() }
    }

    /// Whether this one write or sync goes well.
    fn works(&self) -> io::Result<()> {
        let mut wrong = lock(&self.0);
        let fails = wrong.failing.as_mut().is_some_and(|(failing, rng)| rng.chance(*failing));
        if fails { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }
}

/// One database file. Clones are the same file.
#[derive(Clone)]
struct SimFile(Arc<Mutex<Content>>);

#[derive(Clone, Default)]
struct Content {
    now: Pages,
    /// As of the last sync.
    synced: Pages,
    dirty: BTreeSet<u64>,
    /// Which opening may write: an older one belongs to a machine that was killed.
    generation: u64,
}

#[derive(Clone, Default)]
struct Pages {
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES]>>,
    bytes: u64,
}

impl SimDisk {
    pub fn new() -> SimDisk {
        let trouble = Trouble::default();
        SimDisk { files: Arc::default(), objects: Arc::new(SimObjects::new(trouble.clone())), trouble }
    }

    /// From now on nothing new can be written, or everything again.
    pub fn set_full(&self, full: bool) {
        let mut wrong = lock(&self.trouble.0);
        (wrong.full, wrong.was) = (full, true);
    }

    /// From now on so many writes and syncs in a thousand fail.
    pub fn set_failing(&self, failing: u32, rng: Rng) {
        let mut wrong = lock(&self.trouble.0);
        (wrong.failing, wrong.was) = ((failing > 0).then_some((failing, rng)), true);
    }

    /// Whether anything is wrong now.
    pub fn is_in_trouble(&self) -> bool {
        lock(&self.trouble.0).is_now()
    }

    /// Whether anything was wrong since the last call.
    pub fn take_trouble(&self) -> bool {
        let mut wrong = lock(&self.trouble.0);
        let goes_on = wrong.is_now();
        std::mem::replace(&mut wrong.was, goes_on)
    }

    /// Bits of content flip. Says whether there was any.
    pub fn flip(&self, rng: &mut Rng) -> bool {
        self.objects.flip(rng)
    }

    /// What a server's configuration wants.
    pub fn disk(&self) -> Disk {
        Disk { databases: Arc::new(self.clone()), objects: Some(objects::shared(&self.objects)), inline: true }
    }

    /// The machine loses power, or is killed: whatever was not synced is there, or not, or in part.
    pub fn crash(&self, rng: &mut Rng, keeps_all: bool) {
        for file in lock(&self.files).values() {
            lock(&file.0).crash(rng, keeps_all);
        }
    }

    /// A disk with the same content.
    pub fn copy(&self) -> SimDisk {
        let files = lock(&self.files)
            .iter()
            .map(|(path, file)| (path.clone(), SimFile(Arc::new(Mutex::new(lock(&file.0).clone())))))
            .collect();
        let trouble = Trouble::default();
        let objects = Arc::new(self.objects.copy(trouble.clone()));
        SimDisk { files: Arc::new(Mutex::new(files)), objects, trouble }
    }
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new()
    }
}

impl Databases for SimDisk {
    fn exists(&self, path: &Path) -> bool {
        lock(&self.files).get(&place(path)).is_some_and(|file| lock(&file.0).now.bytes > 0)
    }

    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        let file = {
            let mut files = lock(&self.files);
            files.entry(place(path)).or_insert_with(|| SimFile(Arc::default())).clone()
        };
        let generation = {
            let mut content = lock(&file.0);
            content.generation += 1;
            content.generation
        };
        Database::builder().set_cache_size(cache_bytes).create_with_backend(Opened {
            file,
            generation,
            trouble: self.trouble.clone(),
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.trouble.works()?;
        let mut files = lock(&self.files);
        if let Some(file) = files.remove(&place(from)) {
            files.insert(place(to), file);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.files).remove(&place(path));
        Ok(())
    }
}

/// A file by its directory's name and its own: a copied disk serves another path.
fn place(path: &Path) -> PathBuf {
    let names: Vec<_> = path.iter().rev().take(2).collect();
    names.into_iter().rev().collect()
}

impl Content {
    fn crash(&mut self, rng: &mut Rng, keeps_all: bool) {
        self.generation += 1;
        if keeps_all {
            return;
        }
        let mut pages = self.synced.clone();
        for number in std::mem::take(&mut self.dirty) {
            let Some(new) = self.now.pages.get(&number) else { continue };
            match rng.below(4) {
                0 => {}
                1 => {
                    let mut torn = **pages.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
                    for sector in 0..PAGE_BYTES / SECTOR_BYTES {
                        if rng.chance(500) {
                            let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
                            torn[range.clone()].copy_from_slice(&new[range]);
                        }
                    }
                    pages.pages.insert(number, Arc::new(torn));
                }
                _ => {
                    pages.pages.insert(number, new.clone());
                }
            }
        }
        // Lengths are in the file system's journal: the longer one, never a hole at the end.
        pages.bytes = self.now.bytes.max(self.synced.bytes);
        self.now = pages.clone();
        self.synced = pages;
    }
}

/// One opening of a file.
struct Opened {
    file: SimFile,
    generation: u64,
    trouble: Trouble,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a simulated file")
    }
}

impl Opened {
    /// `None` for an opening whose machine is gone: nothing it does counts.
    fn content(&self) -> Option<MutexGuard<'_, Content>> {
        Some(lock(&self.file.0)).filter(|content| content.generation == self.generation)
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.file.0).now.bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = lock(&self.file.0);
        if offset + out.len() as u64 > content.now.bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        for (page, from, range) in pages_of(offset, out.len()) {
            match content.now.pages.get(&page) {
                Some(bytes) => out[range.clone()].copy_from_slice(&bytes[from..from + range.len()]),
                None => out[range].fill(0),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(mut content) = self.content() else { return Ok(()) };
        if len > content.now.bytes {
            self.trouble.room()?;
        }
        if len < content.now.bytes {
            let from = len.div_ceil(PAGE_BYTES as u64);
            content.now.pages.retain(|page, _| *page < from);
        }
        content.now.bytes = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let Some(mut content) = self.content() else { return Ok(()) };
        self.trouble.works()?;
        let content = &mut *content;
        for page in std::mem::take(&mut content.dirty) {
            if let Some(bytes) = content.now.pages.get(&page) {
                content.synced.pages.insert(page, bytes.clone());
            }
        }
        if content.now.bytes < content.synced.bytes {
            let from = content.now.bytes.div_ceil(PAGE_BYTES as u64);
            content.synced.pages.retain(|page, _| *page < from);
        }
        content.synced.bytes = content.now.bytes;
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(mut content) = self.content() else { return Ok(()) };
        self.trouble.works()?;
        for (page, from, range) in pages_of(offset, data.len()) {
            if !content.now.pages.contains_key(&page) {
                self.trouble.room()?;
            }
            let bytes = content.now.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(bytes)[from..from + range.len()].copy_from_slice(&data[range]);
            content.dirty.insert(page);
        }
        Ok(())
    }
}

/// The pages that a range touches: number, where in the page, and which part of the range.
fn pages_of(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let from = (at % PAGE_BYTES as u64) as usize;
        let part = (PAGE_BYTES - from).min(len - done);
        let range = done..done + part;
        done += part;
        Some((at / PAGE_BYTES as u64, from, range))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
