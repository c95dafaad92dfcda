//! Dropping what nothing refers to any more.
//!
//! * A record that frees a chunk is told of ([`Packs::freed`]). When its partition's
//!   state is set aside for a checkpoint, what was freed until then is *cut off*
//!   ([`Packs::cut`]) and flushed together with content, before the checkpoint is
//!   written. Once it is ([`Packs::covered`]), no replay begins before the freeing,
//!   so nothing can ask for the chunk again; after some grace (`limits.rs`) it is dropped.
//! * After a crash, what was cut off and covered goes on; what was cut off before a
//!   checkpoint that never came to be is forgotten: it will be freed again.
//! * A log may lose its end, and records with it that were applied here. What those
//!   brought is in the index and nothing frees it: what an earlier run has kept behind
//!   the last checkpoint, and the replay does not bring again, counts as freed.
//! * What was uploaded and never quoted is found by its session: the index lists
//!   fresh uploads, and somebody who knows the state looks at those whose session is
//!   over (`keeper.rs`).

use super::buffers::Chore;
use super::{Cut, PackError, Packs};
use crate::limits::limits;
use proto::chunk::ChunkName;
use proto::log::REQUEST_PARTITIONS;
use proto::{Epoch, LogTime, NamespaceId, SessionId};
use std::collections::BTreeMap;
use tokio::time::Instant;

/// Chunks dropped in one transaction.
const AT_ONCE: usize = 1000;

/// Cuts that checkpoints are past, and since when.
pub(super) type Covered = BTreeMap<Cut, Instant>;

impl Packs {
    /// Nothing refers to this chunk any more, since a record of this partition that
    /// has been applied and that no checkpoint covers yet.
    pub fn freed(&self, partition: u32, name: ChunkName) {
        self.shared.lock().note_freed(partition, name);
    }

    /// The partition's state is set aside, with everything before the cut applied.
    pub fn cut(&self, cut: Cut) {
        self.shared.lock().cut(cut);
    }

    /// A checkpoint that reaches up to the cut is safe.
    pub fn covered(&self, cut: Cut, now: Instant) {
        let mut covered = self.shared.covered.lock().expect("nobody panics while holding it");
        covered.entry(cut).or_insert(now);
    }

    /// At a start: what was cut off before these checkpoints, one for each partition
    /// that has any, goes on; what was cut off later is forgotten. What is kept of
    /// requests behind a checkpoint is remembered until [`Packs::replayed`].
    pub fn recover(&self, checkpoints: &BTreeMap<u32, (Epoch, u64)>, now: Instant) -> Result<(), PackError> {
        for cut in self.shared.index.cuts()? {
            if checkpoints.get(&cut.partition).is_some_and(|reached| (cut.epoch, cut.upto) <= *reached) {
                self.covered(cut, now);
            } else {
                self.want(Chore::Forget(cut))?;
            }
        }
        for partition in 0..REQUEST_PARTITIONS {
            let (epoch, offset) = checkpoints.get(&partition).copied().unwrap_or_default();
            let ahead = self.shared.index.of_requests(partition, epoch, offset)?;
            self.shared.lock().note_ahead(partition, ahead);
        }
        Ok(())
    }

    /// All that the partition's log had at the start is applied.
    pub fn replayed(&self, partition: u32) {
        self.shared.lock().note_replayed(partition);
    }

    /// Drops chunks whose time has come, at most `limit` or a few more. Gives how many.
    pub fn collect(&self, limit: usize, now: Instant) -> Result<usize, PackError> {
        let (mut dropped, grace) = (0, limits().grace);
        while dropped < limit {
            let due = {
                let covered = self.shared.covered.lock().expect("nobody panics while holding it");
                let due = covered.iter().find(|(_, since)| now.duration_since(**since) >= grace);
                due.map(|(cut, _)| *cut)
            };
            let Some(cut) = due else { break };
            let names = self.shared.index.freed(cut, AT_ONCE)?;
            if names.is_empty() {
                self.shared.covered.lock().expect("nobody panics while holding it").remove(&cut);
                continue;
            }
            dropped += names.len();
            self.want(Chore::Drop { cut, names })?;
        }
        Ok(dropped)
    }

    /// Sessions with uploads that nothing is known to quote, after this one; each
    /// with the partition of an upload, and when it was seen to be over.
    pub fn fresh_sessions(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<(SessionId, u32, Option<LogTime>)>, PackError> {
        self.shared.index.fresh_sessions(after, limit)
    }

    /// Such uploads of a session, each with its namespace.
    pub fn fresh_of(&self, session: SessionId, limit: usize) -> Result<Vec<(NamespaceId, ChunkName)>, PackError> {
        self.shared.index.fresh_of(session, limit)
    }

    /// Notes which sessions have been seen to be over and when, of which no upload is
    /// in question any more, and which uploads are not.
    pub fn note_over(
        &self,
        seen: Vec<(SessionId, LogTime)>,
        done: Vec<SessionId>,
        settled: Vec<ChunkName>,
    ) -> Result<(), PackError> {
        self.want(Chore::Over { seen, done, settled })
    }
}
