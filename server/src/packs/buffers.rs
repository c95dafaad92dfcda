//! What is on its way into packs and out of them: content in memory, what is wanted
//! of the writer, and what it does next. No thread, no lock, no I/O; whoever writes
//! asks [`Buffers::next`], does it, and tells [`Buffers::done`].

use super::{Cut, PackError};
use crate::limits::limits;
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::planted::{Bug, planted};
use proto::{Epoch, LogTime, NamespaceId, SessionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How far a partition of `chunks` has been ingested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The epoch in which its records are.
    pub epoch: Epoch,
    /// The first offset that is not ingested.
    pub next_offset: u64,
    /// What tells the record before that one, if it has been seen: see `ingest::mark`.
    pub last: Option<[u8; 32]>,
}

impl Reached {
    pub fn is_before(&self, epoch: Epoch, next_offset: u64) -> bool {
        (self.epoch, self.next_offset) < (epoch, next_offset)
    }
}

/// By partition.
pub(super) type Ingested = BTreeMap<u32, Reached>;

#[derive(Default)]
pub(super) struct Buffers {
    filling: Buffer,
    /// Being written as a pack.
    writing: Option<Arc<Buffer>>,
    /// To go into the index with what is written next.
    notes: Notes,
    /// How far partitions have been ingested, safely or not.
    reached: Ingested,
    /// What records of a partition have freed since its last cut.
    freed: BTreeMap<u32, Vec<ChunkName>>,
    /// What requests have brought behind a partition's last checkpoint, as an earlier run has kept it,
    /// and what has been applied since does not hold: of at most what is applied between two checkpoints.
    ahead: BTreeMap<u32, BTreeSet<ChunkName>>,
    /// Counts what has been added; it is safe up to `safe`.
    added: u64,
    safe: u64,
    flush_wanted: u64,
    chores: VecDeque<Chore>,
    chores_wanted: u64,
    chores_done: u64,
    scrubbed: Option<(u64, u32)>,
    failed: Option<PackError>,
}

/// Content in the order in which it came.
#[derive(Default)]
pub(super) struct Buffer {
    pub chunks: BTreeMap<ChunkName, Bytes>,
    pub order: Vec<ChunkName>,
    bytes: usize,
    /// The first of `order` that does not stand in the index database's tail.
    untailed: usize,
}

/// What goes into the index together with content.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub ingested: Ingested,
    /// Uploads that nothing has quoted yet, as far as is known here.
    pub fresh: Vec<(NamespaceId, ChunkName)>,
    /// Chunks that nothing refers to once everything before the cut is applied.
    pub freed: Vec<(Cut, ChunkName)>,
    /// Where the scrub stands.
    pub scrubbed: Option<(u64, u32)>,
}

/// What the writer does next, whole or not at all.
pub(super) struct Job {
    pub what: What,
    pub notes: Notes,
    /// What counts as safe afterwards, if it does.
    upto: Option<u64>,
}

pub(super) enum What {
    /// All of it becomes one pack.
    Pack(Arc<Buffer>),
    /// These go into the index database until more has come.
    Tail(Vec<(ChunkName, Bytes)>),
    Chore(Chore),
}

/// Housekeeping that changes the index, and so is the writer's.
#[derive(Clone)]
pub(super) enum Chore {
    /// These chunks are no longer needed, and were freed before the cut.
    Drop { cut: Cut, names: Vec<ChunkName> },
    /// What was freed before the cut will be said again.
    Forget(Cut),
    /// What these packs still hold becomes a pack of its own.
    Rewrite { from: Vec<u64>, chunks: Vec<(ChunkName, Bytes)> },
    /// Objects of packs that are no longer used go.
    Delete,
    /// Sessions that were seen to be over, those of which nothing is fresh any more,
    /// and uploads that are quoted.
    Over { seen: Vec<(SessionId, LogTime)>, done: Vec<SessionId>, settled: Vec<ChunkName> },
}

impl Buffers {
    /// With the tail that an earlier run has left in the index database, and how far that has ingested.
    pub fn new(tail: Vec<(ChunkName, Bytes)>, reached: Ingested) -> Buffers {
        let mut filling = Buffer::default();
        for (name, content) in tail {
            filling.insert(name, content);
        }
        filling.untailed = filling.order.len();
        Buffers { filling, reached, ..Buffers::default() }
    }

    /// What stopped writing, for good.
    pub fn failure(&self) -> Result<(), PackError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Whether there is enough for a pack: uploads wait for the writer then.
    pub fn is_full(&self) -> bool {
        self.filling.bytes >= limits().pack_bytes
    }

    /// Whether everybody waits for the writer.
    pub fn is_overfull(&self) -> bool {
        self.filling.bytes >= 2 * limits().pack_bytes
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

    /// Adds content that is not here.
    pub fn add(&mut self, name: ChunkName, content: Bytes) {
        self.filling.insert(name, content);
        self.added += 1;
    }

    pub fn note_ingested(&mut self, partition: u32, reached: Reached) {
        let next_offset = reached.next_offset + u64::from(planted(Bug::IngestOffByOne));
        let reached = Reached { next_offset, ..reached };
        self.notes.ingested.insert(partition, reached);
        self.reached.insert(partition, reached);
        self.added += 1;
    }

    /// Whether a partition has been ingested before this offset.
    pub fn has_ingested(&self, partition: u32, epoch: Epoch, next_offset: u64) -> bool {
        self.reached.get(&partition).is_some_and(|reached| !reached.is_before(epoch, next_offset))
    }

    /// Notes that an upload has been added, by a session in this namespace.
    pub fn note_fresh(&mut self, namespace: NamespaceId, name: ChunkName) {
        self.notes.fresh.push((namespace, name));
    }

    pub fn note_scrubbed(&mut self, place: (u64, u32)) {
        self.notes.scrubbed = Some(place);
        self.scrubbed = Some(place);
    }

    /// Where the scrub stands, if it has come further than the index says.
    pub fn scrubbed(&self) -> Option<(u64, u32)> {
        self.scrubbed
    }

    /// A record of this partition has freed a chunk.
    pub fn note_freed(&mut self, partition: u32, name: ChunkName) {
        self.freed.entry(partition).or_default().push(name);
    }

    /// An earlier run has kept these, which came in a partition's requests behind its last checkpoint.
    pub fn note_ahead(&mut self, partition: u32, names: BTreeSet<ChunkName>) {
        self.ahead.insert(partition, names);
    }

    /// The log holds this one still.
    pub fn note_kept(&mut self, name: &ChunkName) {
        if let Some(ahead) = self.ahead.get_mut(&name.partition) {
            ahead.remove(name);
        }
    }

    /// The log, as it was at the start, has been applied: what is left is of records that it has lost.
    pub fn note_replayed(&mut self, partition: u32) {
        for name in self.ahead.remove(&partition).into_iter().flatten() {
            self.note_freed(partition, name);
        }
    }

    /// All that has been freed in a partition was freed before this. Says whether anything was.
    pub fn cut(&mut self, cut: Cut) -> bool {
        let Some(names) = self.freed.remove(&cut.partition) else { return false };
        self.notes.freed.extend(names.into_iter().map(|name| (cut, name)));
        self.added += 1;
        true
    }

    /// Wants everything added until now to be safe. Gives what to pass to [`Buffers::is_safe`].
    pub fn want_flush(&mut self) -> u64 {
        self.flush_wanted = self.flush_wanted.max(self.added);
        self.added
    }

    pub fn is_safe(&self, wanted: u64) -> bool {
        self.safe >= wanted
    }

    /// Wants a chore done. Gives what to pass to [`Buffers::is_done`].
    pub fn want(&mut self, chore: Chore) -> u64 {
        self.chores.push_back(chore);
        self.chores_wanted += 1;
        self.chores_wanted
    }

    pub fn is_done(&self, wanted: u64) -> bool {
        self.chores_done >= wanted
    }

    /// What is to be written now. Until it is [`Buffers::done`] nothing else is.
    pub fn next(&mut self) -> Option<Job> {
        if self.failed.is_some() {
            return None;
        }
        if !self.is_full() && self.flush_wanted <= self.safe {
            // A chore says nothing of content that is not written yet.
            let chore = What::Chore(self.chores.pop_front()?);
            return Some(Job { what: chore, notes: Notes::default(), upto: None });
        }
        let what = if self.filling.bytes >= limits().tail_bytes {
            let full = Arc::new(std::mem::take(&mut self.filling));
            self.writing = Some(full.clone());
            What::Pack(full)
        } else {
            What::Tail(self.filling.untailed().collect())
        };
        Some(Job { what, notes: std::mem::take(&mut self.notes), upto: Some(self.added) })
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
            What::Chore(chore) => {
                if let Chore::Drop { names, .. } = chore {
                    self.filling.remove(&names.into_iter().collect());
                }
                self.chores_done += 1;
            }
        }
        self.safe = job.upto.unwrap_or(self.safe);
    }
}

impl Buffer {
    fn insert(&mut self, name: ChunkName, content: Bytes) {
        self.bytes += content.len();
        self.order.push(name);
        self.chunks.insert(name, content);
    }

    fn remove(&mut self, names: &BTreeSet<ChunkName>) {
        let mut gone = names.iter().filter_map(|name| self.chunks.remove(name)).peekable();
        if gone.peek().is_none() {
            return;
        }
        self.bytes -= gone.map(|content| content.len()).sum::<usize>();
        self.untailed -= self.tailed().iter().filter(|name| names.contains(name)).count();
        self.order.retain(|name| !names.contains(name));
    }

    /// Those at the front of `order` that stand in the index database's tail.
    pub fn tailed(&self) -> &[ChunkName] {
        &self.order[..self.untailed]
    }

    fn untailed(&self) -> impl Iterator<Item = (ChunkName, Bytes)> {
        self.order[self.untailed..].iter().map(|name| (*name, self.chunks[name].clone()))
    }
}
