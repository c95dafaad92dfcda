//! What happened in a run: a hash of everything always, and the lines themselves
//! when somebody wants to read them, with what records of the log say.

use proto::keys::ClusterKey;
use proto::log::{Record, Topic};
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
    /// Opens records, as `kfs-server log dump` does.
    reading: Option<server::trace::Trace>,
}

impl Trace {
    /// With `is_kept`, the lines are kept to be read.
    pub fn new(is_kept: bool) -> Trace {
        let inner = Inner { lines: Vec::new(), hash: blake3::Hasher::new(), count: 0, reading: None };
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

    /// From now on lines tell what records say, if anybody reads them.
    pub fn read_with(&self, cluster: ClusterKey) {
        if self.is_kept {
            self.lock().reading = Some(server::trace::Trace::new(cluster));
        }
    }

    /// Adds to the last line what the record says. No part of the fingerprint: the record's place is.
    pub fn says(&self, record: &Record) {
        if !self.is_kept || !matches!(record.topic, Topic::Requests | Topic::Replies) {
            return;
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        if let Some(reading) = &mut inner.reading {
            let told = reading.lines(record);
            let Some(line) = inner.lines.last_mut() else { return };
            for (frame, told) in told.iter().enumerate() {
                line.push_str(if frame == 0 { ": " } else { "; " });
                line.push_str(&told.told().to_string());
            }
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
