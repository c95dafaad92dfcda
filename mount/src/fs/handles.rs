//! What programs have open. Numbers are never used twice.

use super::dir::DirHandle;
use super::file::FileHandle;
use crate::error::FsError;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

#[derive(Default)]
pub struct Handles {
    files: RwLock<HashMap<u64, Arc<FileHandle>>>,
    dirs: RwLock<HashMap<u64, Arc<DirHandle>>>,
    next: AtomicU64,
}

impl Handles {
    pub fn add_file(&self, handle: FileHandle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        number
    }

    pub fn file(&self, number: u64) -> Result<Arc<FileHandle>, FsError> {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.get(&number).cloned().ok_or(FsError::BadHandle(number))
    }

    pub fn remove_file(&self, number: u64) -> Result<Arc<FileHandle>, FsError> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        files.remove(&number).ok_or(FsError::BadHandle(number))
    }

    pub fn add_dir(&self, handle: DirHandle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.dirs.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        number
    }

    pub fn dir(&self, number: u64) -> Result<Arc<DirHandle>, FsError> {
        let dirs = self.dirs.read().unwrap_or_else(PoisonError::into_inner);
        dirs.get(&number).cloned().ok_or(FsError::BadHandle(number))
    }

    pub fn remove_dir(&self, number: u64) -> Result<Arc<DirHandle>, FsError> {
        let mut dirs = self.dirs.write().unwrap_or_else(PoisonError::into_inner);
        dirs.remove(&number).ok_or(FsError::BadHandle(number))
    }
}
