//! What happened in a run: a hash of everything always, and the lines themselves
//! when somebody wants to read them.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by everything in one run. Clones write into the same trace.
#[derive(Clone)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
    is_kept: bool,
}

struct Inner {
    lines: Vec<String>,
    hash: blake3::Hasher,
    count: u64,
}

impl Trace {
    /// With `is_kept`, the lines are kept to be read.
    pub fn new(is_kept: bool) -> Trace {
        let inner = Inner { lines: Vec::new(), hash: blake3::Hasher::new(), count: 0 };
        Trace { inner: Arc::new(Mutex::new(inner)), is_kept }
    }

    /// `at_us`: virtual microseconds since the beginning.
    pub fn line(&self, at_us: u64, text: fmt::Arguments<'_>) {
        let line = format!("{:>5}.{:06} {text}", at_us / 1_000_000, at_us % 1_000_000);
        let mut inner = self.lock();
        inner.hash.update(line.as_bytes());
        inner.count += 1;
        if self.is_kept {
            inner.lines.push(line);
        }
    }

    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// A fingerprint of everything that was traced, and how many lines that was.
    pub fn fingerprint(&self) -> (u64, u64) {
        let inner = self.lock();
        let hash = inner.hash.finalize();
        let hash = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
        (hash, inner.count)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
