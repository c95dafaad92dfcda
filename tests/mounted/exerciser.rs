//! One file under random operations, compared with bytes in memory: what the `fsx` program does, and what it has not:
//! ranges set to zero, O_DIRECT, and turns between two mounts of the file.
//!
//! `KFS_TEST_SEED=N` plays one seed alone, `KFS_TEST_SEEDS` and `KFS_TEST_OPERATIONS` say how many of how many operations.

use crate::{mounted, number, shared};
use harness::Mount;
use harness::tree::Random;
use rustix::fs::{FallocateFlags, copy_file_range, fallocate};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file's largest size, in bytes.
const LARGEST: u64 = 1 << 20;
/// The longest range of one operation, in bytes.
const LONGEST: u64 = 128 << 10;
/// What O_DIRECT is aligned to on a local disk, in bytes.
const BLOCK: u64 = 4096;

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(KEEP);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

#[test]
fn two_mounts_in_turn_do_to_a_file_what_memory_does() {
    let operations = number("KFS_TEST_OPERATIONS").unwrap_or(1000);
    let (from, seeds) = match number("KFS_TEST_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("KFS_TEST_SEEDS").unwrap_or(3)),
    };
    let one = mounted("exerciser");
    let other = shared().mount("exerciser").unwrap();
    for seed in from..from + seeds {
        let mut play = Play::new(seed, [&one, &other]);
        for step in 0..operations {
            play.step = step;
            play.operation();
        }
        play.hand_over();
        play.read_all();
    }
}

struct Play<'a> {
    random: Random,
    seed: u64,
    step: u64,
    name: String,
    mounts: [&'a Mount; 2],
    /// Whose turn it is.
    turn: usize,
    file: File,
    /// The same file for O_DIRECT, on the same mount.
    direct: File,
    /// Opened by the other mount at its last turn and kept, so that it has pages that grow old.
    kept: Option<File>,
    model: Vec<u8>,
}

impl<'a> Play<'a> {
    fn new(seed: u64, mounts: [&'a Mount; 2]) -> Play<'a> {
        let name = format!("file-{seed}");
        let path = mounts[0].join(&name);
        File::create_new(&path).unwrap();
        let (file, direct) = open(&path);
        Play {
            random: Random::new(seed),
            seed,
            step: 0,
            name,
            mounts,
            turn: 0,
            file,
            direct,
            kept: None,
            model: Vec::new(),
        }
    }

    fn operation(&mut self) {
        let at = self.random.below(LARGEST);
        let len = 1 + self.random.below(LONGEST.min(LARGEST - at));
        match self.random.below(100) {
            0..=19 => self.write(at, len, false),
            20..=27 => self.write(at, len, true),
            28..=35 => self.write_mapped(at, len),
            36..=50 => self.read(at, len, false),
            51..=57 => self.read(at, len, true),
            58..=63 => self.read_mapped(at, len),
            64 => self.truncate(0),
            65..=68 => self.truncate(at),
            69..=71 => self.allocate(FallocateFlags::empty(), at, len),
            72 => self.allocate(KEEP, at, len),
            73..=77 => self.allocate(PUNCH, at, len),
            78..=81 => self.allocate(ZERO, at, len),
            82..=83 => self.allocate(ZERO.union(KEEP), at, len),
            84..=89 => self.copy(at, len),
            90 => self.file.sync_all().unwrap_or_else(|error| self.fail(&format!("fsync: {error}"))),
            91 => self.file.sync_data().unwrap_or_else(|error| self.fail(&format!("fdatasync: {error}"))),
            92..=93 => self.reopen(),
            94 => self.read_all(),
            _ => self.hand_over(),
        }
        let size = self.file.metadata().unwrap().len();
        if size != self.model.len() as u64 {
            self.fail(&format!("a size of {size}, not {}", self.model.len()));
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {} (KFS_TEST_SEED), step {}, turn {}: {what}", self.seed, self.step, self.turn)
    }

    fn grow(&mut self, end: u64) {
        if self.model.len() < end as usize {
            self.model.resize(end as usize, 0);
        }
    }

    /// With O_DIRECT whole blocks, as a local disk would have it.
    fn write(&mut self, mut at: u64, mut len: u64, direct: bool) {
        if direct {
            at -= at % BLOCK;
            len = len.div_ceil(BLOCK) * BLOCK;
        }
        let buffer = Aligned::filled(&self.random.bytes(len as usize));
        let file = if direct { &self.direct } else { &self.file };
        file.write_all_at(buffer.bytes(), at).unwrap_or_else(|error| self.fail(&format!("write {at}+{len}: {error}")));
        self.grow(at + len);
        self.model[at as usize..(at + len) as usize].copy_from_slice(buffer.bytes());
    }

    fn read(&mut self, mut at: u64, mut len: u64, direct: bool) {
        if direct {
            at -= at % BLOCK;
            len = len.div_ceil(BLOCK) * BLOCK;
        }
        let mut buffer = Aligned::filled(&vec![0x55; len as usize]);
        let file = if direct { &self.direct } else { &self.file };
        let n = read_up_to(file, buffer.bytes_mut(), at)
            .unwrap_or_else(|error| self.fail(&format!("read {at}+{len}, direct {direct}: {error}")));
        self.compare(&buffer.bytes()[..n], at, len, if direct { "a direct read" } else { "a read" });
    }

    /// `found` must be what the model has of this range.
    fn compare(&self, found: &[u8], at: u64, len: u64, what: &str) {
        let end = self.model.len().min((at + len) as usize);
        let expected = &self.model[end.min(at as usize)..end];
        if found.len() != expected.len() {
            self.fail(&format!("{what} of {at}+{len} gave {} bytes, not {}", found.len(), expected.len()));
        }
        if let Some(i) = (0..found.len()).find(|i| found[*i] != expected[*i]) {
            let (found, expected) = (found[i], expected[i]);
            self.fail(&format!("{what} of {at}+{len} has {found:#x} at {}, not {expected:#x}", at as usize + i));
        }
    }

    fn write_mapped(&mut self, at: u64, len: u64) {
        // Behind the end of a mapped file there is nothing to write to.
        self.grow(at + len);
        self.file.set_len(self.model.len() as u64).unwrap_or_else(|error| self.fail(&format!("ftruncate: {error}")));
        let bytes = self.random.bytes(len as usize);
        let is_synced = self.random.below(2) == 0;
        self.mapped(at, len, |map| {
            map.copy_from_slice(&bytes);
            is_synced
        });
        self.model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
    }

    fn read_mapped(&mut self, at: u64, len: u64) {
        let end = (self.model.len() as u64).min(at + len);
        if end <= at {
            return;
        }
        let mut found = Vec::new();
        self.mapped(at, end - at, |map| {
            found = map.to_vec();
            false
        });
        self.compare(&found, at, len, "a mapped read");
    }

    /// Shows this range of the file as memory; then syncs it if `with` says so.
    fn mapped(&self, at: u64, len: u64, with: impl FnOnce(&mut [u8]) -> bool) {
        let before = at % BLOCK;
        let (from, whole) = (at - before, (before + len) as usize);
        let fd = self.file.as_raw_fd();
        let (rights, failure) = (libc::PROT_READ | libc::PROT_WRITE, std::io::Error::last_os_error);
        // SAFETY: a new mapping where the kernel wants it; nobody else has it, the file is not shortened meanwhile, and
        // it is unmapped after its last use.
        unsafe {
            let map = libc::mmap(std::ptr::null_mut(), whole, rights, libc::MAP_SHARED, fd, from as i64);
            if map == libc::MAP_FAILED {
                self.fail(&format!("mmap of {at}+{len}: {}", failure()));
            }
            let is_synced = with(std::slice::from_raw_parts_mut(map.cast::<u8>().add(before as usize), len as usize));
            if is_synced && libc::msync(map, whole, libc::MS_SYNC) != 0 {
                self.fail(&format!("msync of {at}+{len}: {}", failure()));
            }
            libc::munmap(map, whole);
        }
    }

    fn truncate(&mut self, size: u64) {
        self.file.set_len(size).unwrap_or_else(|error| self.fail(&format!("ftruncate to {size}: {error}")));
        self.model.resize(size as usize, 0);
    }

    fn allocate(&mut self, flags: FallocateFlags, at: u64, len: u64) {
        fallocate(&self.file, flags, at, len)
            .unwrap_or_else(|error| self.fail(&format!("fallocate {flags:?} of {at}+{len}: {error}")));
        if !flags.contains(KEEP) {
            self.grow(at + len);
        }
        if !flags.difference(KEEP).is_empty() {
            let end = self.model.len().min((at + len) as usize);
            self.model[(at as usize).min(end)..end].fill(0);
        }
    }

    /// To a place of the same file that does not overlap, which would be refused.
    fn copy(&mut self, at: u64, len: u64) {
        let to = self.random.below(LARGEST - len + 1);
        let len = len.min((self.model.len() as u64).saturating_sub(at)).min(at.abs_diff(to));
        if len == 0 {
            return;
        }
        let (mut from, mut into) = (at, to);
        while from < at + len {
            let rest = (at + len - from) as usize;
            match copy_file_range(&self.file, Some(&mut from), &self.file, Some(&mut into), rest) {
                Ok(0) => self.fail(&format!("copy_file_range of {at}+{len} to {to} ended at {from}")),
                Ok(_) => {}
                Err(error) => self.fail(&format!("copy_file_range of {at}+{len} to {to}: {error}")),
            }
        }
        self.grow(to + len);
        self.model.copy_within(at as usize..(at + len) as usize, to as usize);
    }

    fn reopen(&mut self) {
        (self.file, self.direct) = open(&self.path());
    }

    fn path(&self) -> PathBuf {
        self.mounts[self.turn].join(&self.name)
    }

    /// Closes the file and opens it on the other mount, which must then show all of it.
    fn hand_over(&mut self) {
        let path = self.path();
        self.turn = 1 - self.turn;
        let opened = open(&self.path());
        // The one that is opened before the close shows nothing that was promised; the one after it does.
        drop(std::mem::replace(&mut self.direct, opened.1));
        drop(std::mem::replace(&mut self.file, opened.0));
        self.kept = (self.random.below(2) == 0).then(|| File::open(path).unwrap());
        self.reopen();
    }

    fn read_all(&mut self) {
        self.read(0, LARGEST, false);
    }
}

/// With and without O_DIRECT.
fn open(path: &Path) -> (File, File) {
    let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
    (open(0), open(libc::O_DIRECT))
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], at + read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Bytes in memory that begin at the start of a block.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn filled(bytes: &[u8]) -> Aligned {
        let mut memory = vec![0; bytes.len() + BLOCK as usize];
        let from = memory.as_ptr().align_offset(BLOCK as usize);
        memory[from..from + bytes.len()].copy_from_slice(bytes);
        Aligned { memory, from, len: bytes.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}
