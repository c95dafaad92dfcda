//! Databases in files whose disk can be full or slow, for tests.

use super::{Databases, Disk};
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageBackend};
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockWriteGuard};

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Full {
    full: Arc<AtomicBool>,
    /// Held for reading while what was written is brought to disk.
    goes: Arc<RwLock<()>>,
}

impl Full {
    pub fn disk(&self) -> Disk {
        Disk { databases: Arc::new(self.clone()), ..Disk::default() }
    }

    /// From now on nothing can be written, or everything again.
    pub fn set(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Until this is dropped nothing comes to disk.
    pub fn stick(&self) -> RwLockWriteGuard<'_, ()> {
        self.goes.write().expect("nobody panics while writing")
    }

    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Databases for Full {
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let backend = Backend { file: FileBackend::new(file)?, disk: self.clone() };
        Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
    }
}

#[derive(Debug)]
struct Backend {
    file: FileBackend,
    disk: Full,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let _goes = self.disk.goes.read();
        self.disk.room()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
