//! What a server's rows and content stand on: databases, objects, and who waits
//! for them.
//!
//! In production databases are files, packs are files beside them unless another
//! object store is configured, and whatever waits for a disk does so on a thread of
//! its own. A test puts failing ones in their place. The simulator puts disks there
//! that lose and tear writes, and lets every wait happen on the caller's thread, so
//! that a run has one order.

#[cfg(test)]
pub mod full;

use object_store::ObjectStore;
use redb::{Database, DatabaseError};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Opens databases by the path that their file has, or would have.
pub trait Databases: Send + Sync {
    /// Whether there is one already.
    fn exists(&self, path: &Path) -> bool;

    /// Opens or makes it, with at most `cache_bytes` of it in memory.
    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError>;

    /// Gives one that nobody has open another path, for ever when it returns.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)?;
        match to.parent() {
            Some(dir) => std::fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Forgets it, if there is one. Nobody has it open.
    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Databases that are files.
pub struct Files;

impl Databases for Files {
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn open(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        Database::builder().set_cache_size(cache_bytes).create(path)
    }
}

/// See the module's text.
#[derive(Clone)]
pub struct Disk {
    pub databases: Arc<dyn Databases>,
    /// Where packs are kept; `None` for the data directory.
    pub objects: Option<Arc<dyn ObjectStore>>,
    /// Nothing here gets a thread: whoever asks waits, and objects answer at once.
    #[cfg(any(test, feature = "simulation"))]
    pub inline: bool,
}

impl Disk {
    /// Opens a database, or makes one: under another name until it is whole, since a file whose
    /// making was cut short could never be opened again.
    pub(crate) fn database(&self, path: &Path, cache_bytes: usize) -> Result<Database, DatabaseError> {
        if !self.databases.exists(path) {
            let new = path.with_extension("new");
            self.databases.remove(&new)?;
            drop(self.databases.open(&new, cache_bytes)?);
            self.databases.rename(&new, path)?;
        }
        self.databases.open(path, cache_bytes)
    }

    /// Whether waiting is the caller's own.
    pub(crate) fn is_inline(&self) -> bool {
        #[cfg(any(test, feature = "simulation"))]
        return self.inline;
        #[cfg(not(any(test, feature = "simulation")))]
        return false;
    }
}

impl Default for Disk {
    /// Files in the data directory.
    fn default() -> Disk {
        Disk {
            databases: Arc::new(Files),
            objects: None,
            #[cfg(any(test, feature = "simulation"))]
            inline: false,
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("objects", &self.objects).finish_non_exhaustive()
    }
}

/// Waits for the object store's futures.
#[derive(Clone)]
pub(crate) enum Wait {
    /// Blocks the calling thread, which must not be one of the runtime's.
    On(tokio::runtime::Handle),
    /// The future is ready when it is first looked at.
    #[cfg(any(test, feature = "simulation"))]
    Never,
}

impl Wait {
    /// `runtime` unless all waiting is left to the caller.
    pub fn new(disk: &Disk, runtime: tokio::runtime::Handle) -> Wait {
        #[cfg(any(test, feature = "simulation"))]
        if disk.inline {
            return Wait::Never;
        }
        let _ = disk;
        Wait::On(runtime)
    }

    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        match self {
            Wait::On(runtime) => runtime.block_on(future),
            #[cfg(any(test, feature = "simulation"))]
            Wait::Never => {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                match std::pin::pin!(future).poll(&mut context) {
                    std::task::Poll::Ready(value) => value,
                    std::task::Poll::Pending => panic!("objects of a simulation answer at once"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_whose_making_was_cut_short_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, half) = (dir.path().join("rows.redb"), dir.path().join("rows.new"));
        std::fs::write(&half, [0; 4096]).unwrap();
        let disk = Disk::default();
        for _ in 0..2 {
            drop(disk.database(&path, 1 << 20).unwrap());
            assert!(path.exists() && !half.exists());
        }
    }
}
