//! What is on its way into packs: content in memory, what is wanted of the writer,
//! and what it does next. No thread, no lock, no I/O; whoever writes asks
//! [`Buffers::next`], does it, and tells [`Buffers::done`].

use super::{PACK_BYTES, PackError, TAIL_BYTES};
use bytes::Bytes;
use proto::Epoch;
use proto::chunk::ChunkName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far partitions of `chunks` have been ingested.
pub(super) type Ingested = BTreeMap<u32, (Epoch, u64)>;

#[derive(Default)]
pub(super) struct Buffers {
    filling: Buffer,
    /// Being written as a pack.
    writing: Option<Arc<Buffer>>,
    /// Counts what has been added; content is safe up to `safe`.
    added: u64,
    safe: u64,
    flush_wanted: u64,
    failed: Option<PackError>,
}

/// Content in the order in which it came.
#[derive(Default)]
pub(super) struct Buffer {
    pub chunks: BTreeMap<ChunkName, Bytes>,
    pub order: Vec<ChunkName>,
    pub bytes: usize,
    /// The first of `order` that does not stand in the index database's tail.
    untailed: usize,
    /// How far partitions had been ingested when this was added.
    ingested: Ingested,
}

/// What the writer does next, whole or not at all.
pub(super) struct Job {
    pub what: What,
    pub ingested: Ingested,
    /// What counts as safe afterwards.
    upto: u64,
}

pub(super) enum What {
    /// All of it becomes one pack.
    Pack(Arc<Buffer>),
    /// These go into the index database until more has come.
    Tail(Vec<(ChunkName, Bytes)>),
}

impl Buffers {
    /// With the tail that an earlier run has left in the index database.
    pub fn new(tail: Vec<(ChunkName, Bytes)>) -> Buffers {
        let mut filling = Buffer::default();
        for (name, content) in tail {
            filling.insert(name, content);
        }
        filling.untailed = filling.order.len();
        Buffers { filling, ..Buffers::default() }
    }

    /// What stopped writing, for good.
    pub fn failure(&self) -> Result<(), PackError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Whether whoever adds must wait for the writer.
    pub fn is_full(&self) -> bool {
        self.filling.bytes >= PACK_BYTES
    }

    /// Bytes that wait to be written as a pack.
    #[cfg(test)]
    pub fn filling_bytes(&self) -> usize {
        self.filling.bytes
    }

    pub fn find(&self, name: &ChunkName) -> Option<Bytes> {
        let in_writing = || self.writing.as_ref().and_then(|buffer| buffer.chunks.get(name));
        self.filling.chunks.get(name).or_else(in_writing).cloned()
    }

    /// Adds content that is neither here nor in the index.
    pub fn add(&mut self, name: ChunkName, content: Bytes) {
        self.filling.insert(name, content);
        self.added += 1;
    }

    pub fn note_ingested(&mut self, partition: u32, epoch: Epoch, next_offset: u64) {
        self.filling.ingested.insert(partition, (epoch, next_offset));
        self.added += 1;
    }

    /// Wants everything added until now to be safe. Gives what to pass to [`Buffers::is_safe`].
    pub fn want_flush(&mut self) -> u64 {
        self.flush_wanted = self.flush_wanted.max(self.added);
        self.added
    }

    pub fn is_safe(&self, wanted: u64) -> bool {
        self.safe >= wanted
    }

    /// What is to be written now. Until it is [`Buffers::done`] nothing else is.
    pub fn next(&mut self) -> Option<Job> {
        if self.failed.is_some() || (!self.is_full() && self.flush_wanted <= self.safe) {
            return None;
        }
        let (upto, ingested) = (self.added, self.filling.ingested.clone());
        let what = if self.filling.bytes >= TAIL_BYTES {
            let full = Arc::new(std::mem::take(&mut self.filling));
            self.writing = Some(full.clone());
            What::Pack(full)
        } else {
            What::Tail(self.filling.untailed().collect())
        };
        Some(Job { what, ingested, upto })
    }

    pub fn done(&mut self, job: Job, outcome: Result<(), PackError>) {
        if let Err(error) = outcome {
            tracing::error!("{error}; nothing is applied any more");
            self.failed = Some(error);
            return;
        }
        match job.what {
            What::Pack(_) => self.writing = None,
            // Only the writer takes from the buffer, so they are still its first ones.
            What::Tail(chunks) => self.filling.untailed += chunks.len(),
        }
        self.safe = job.upto;
    }
}

impl Buffer {
    fn insert(&mut self, name: ChunkName, content: Bytes) {
        self.bytes += content.len();
        self.order.push(name);
        self.chunks.insert(name, content);
    }

    /// Those at the front of `order` that stand in the index database's tail.
    pub fn tailed(&self) -> &[ChunkName] {
        &self.order[..self.untailed]
    }

    fn untailed(&self) -> impl Iterator<Item = (ChunkName, Bytes)> {
        self.order[self.untailed..].iter().map(|name| (*name, self.chunks[name].clone()))
    }
}
