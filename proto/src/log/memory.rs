//! The log in memory, for tests and the simulator.
//!
//! Deterministic: an append takes effect within the call, the append time is
//! what [`MemoryLog::set_time`] says, a tail of several partitions yields them in
//! the order of the appends, and nothing runs on a thread of its own. Bounded
//! only by what its user appends and does not trim.

use crate::log::{Appended, Log, LogError, MAX_RECORD_BYTES, Record, Start, Tail, Topic};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A log that all its clones share.
#[derive(Clone)]
pub struct MemoryLog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Changes with every append and trim, after it has taken effect.
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    time_ms: i64,
    /// Appends so far, over all partitions.
    appends: u64,
    partitions: BTreeMap<(Topic, u32), Partition>,
}

#[derive(Default)]
struct Partition {
    /// Offset of the first record that is kept.
    first: u64,
    /// Each with its number among all appends.
    records: VecDeque<(u64, Record)>,
}

impl Partition {
    fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    fn out_of_range(&self, topic: Topic, partition: u32, offset: u64) -> LogError {
        let topic = topic.suffix().to_owned();
        LogError::OutOfRange { topic, partition, offset, first: self.first, next: self.next() }
    }
}

impl MemoryLog {
    pub fn new() -> Self {
        let shared = Shared { state: Mutex::default(), changes: watch::Sender::new(()) };
        MemoryLog { shared: Arc::new(shared) }
    }

    /// What the records appended from now on carry as their append time, in
    /// milliseconds since 1970 (0 until this is called).
    pub fn set_time(&self, time_ms: i64) {
        self.shared.state().time_ms = time_ms;
    }

    /// The records that the partition still has.
    pub fn records(&self, topic: Topic, partition: u32) -> Vec<Record> {
        let state = self.shared.state();
        let found = state.partitions.get(&(topic, partition));
        found.into_iter().flat_map(|found| found.records.iter().map(|(_, record)| record.clone())).collect()
    }

    fn store(&self, topic: Topic, partition: u32, value: Bytes) -> Result<u64, LogError> {
        if value.len() > MAX_RECORD_BYTES {
            return Err(LogError::TooLarge { bytes: value.len() });
        }
        check(topic, partition)?;
        let mut state = self.shared.state();
        let append_time_ms = state.time_ms;
        let number = state.appends;
        state.appends += 1;
        let found = state.partitions.entry((topic, partition)).or_default();
        let offset = found.next();
        found.records.push_back((number, Record { topic, partition, offset, append_time_ms, value }));
        drop(state);
        self.shared.changes.send_replace(());
        Ok(offset)
    }
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl Log for MemoryLog {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended {
        Box::pin(std::future::ready(self.store(topic, partition, value)))
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        let mut state = self.shared.state();
        let mut next = BTreeMap::new();
        for &(topic, partition, start) in starts {
            check(topic, partition)?;
            let found = state.partitions.entry((topic, partition)).or_default();
            let offset = match start {
                Start::End => found.next(),
                Start::At(offset) if offset < found.first || offset > found.next() => {
                    return Err(found.out_of_range(topic, partition, offset));
                }
                Start::At(offset) => offset,
            };
            next.insert((topic, partition), offset);
        }
        drop(state);
        let changes = self.shared.changes.subscribe();
        Ok(Tail::memory(Reader { shared: Arc::clone(&self.shared), next, changes, ended: false }))
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        check(topic, partition)?;
        let state = self.shared.state();
        Ok(state.partitions.get(&(topic, partition)).map_or((0, 0), |found| (found.first, found.next())))
    }

    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        check(topic, partition)?;
        let mut state = self.shared.state();
        let found = state.partitions.entry((topic, partition)).or_default();
        if before > found.next() {
            return Err(found.out_of_range(topic, partition, before));
        }
        while found.first < before {
            found.records.pop_front();
            found.first += 1;
        }
        drop(state);
        self.shared.changes.send_replace(());
        Ok(())
    }
}

fn check(topic: Topic, partition: u32) -> Result<(), LogError> {
    if partition < topic.partitions() {
        return Ok(());
    }
    Err(LogError::NoTopic { topic: topic.suffix().to_owned(), partitions: partition + 1 })
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is made in one piece, so a panic elsewhere leaves a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A tail's side of the log: where it stands. It takes records straight from the log.
pub(super) struct Reader {
    shared: Arc<Shared>,
    next: BTreeMap<(Topic, u32), u64>,
    changes: watch::Receiver<()>,
    /// The last word was said.
    ended: bool,
}

impl Reader {
    pub(super) async fn next(&mut self) -> Option<Result<Record, LogError>> {
        loop {
            // Seen before looking, so that a change right after the look is not missed.
            self.changes.borrow_and_update();
            if let Some(found) = self.try_next() {
                return Some(found);
            }
            if self.ended || self.changes.changed().await.is_err() {
                return None;
            }
        }
    }

    pub(super) fn try_next(&mut self) -> Option<Result<Record, LogError>> {
        if self.ended {
            return None;
        }
        let state = self.shared.state();
        let mut earliest: Option<&(u64, Record)> = None;
        for (&(topic, partition), &offset) in &self.next {
            let Some(found) = state.partitions.get(&(topic, partition)) else { continue };
            let Some(index) = offset.checked_sub(found.first) else {
                self.ended = true;
                return Some(Err(found.out_of_range(topic, partition, offset)));
            };
            let candidate = found.records.get(index as usize);
            if candidate.is_some_and(|(number, _)| earliest.is_none_or(|(earliest, _)| number < earliest)) {
                earliest = candidate;
            }
        }
        let record = earliest?.1.clone();
        self.next.insert((record.topic, record.partition), record.offset + 1);
        Some(Ok(record))
    }
}
