//! One partition of the request log as the loop sees it: its rows, its machine,
//! how far both have come, and when the next tick and checkpoint are due.

use super::last;
use crate::error::ServerError;
use crate::limits::limits;
use crate::machine::effect::{Applied, Effect};
use crate::machine::{Image, Machine};
use crate::packs::Cut;
use crate::store::{Checkpoint, Frozen, PartitionStore, StoreError, Written};
use bytes::Bytes;
use proto::log::{Record, Topic};
use proto::planted::{Bug, planted};
use std::time::Duration;
use tokio::time::Instant;

/// How often a changed partition is checkpointed where the log goes with this process,
/// and a replay brings nothing back.
const CHECKPOINT_EVERY_VOLATILE: Duration = Duration::from_millis(250);

/// Likewise when nothing but servers' own records (ticks above all) has changed it.
const CHECKPOINT_EVERY_IDLE: Duration = Duration::from_secs(60);

/// `Sync`s that come within this time share a checkpoint.
const SYNC_COALESCE: Duration = Duration::from_millis(10);

/// Changed bytes at which a checkpoint is taken at once.
const CHANGED_BYTES: usize = 32 << 20;

/// Changed bytes at which applying waits for the checkpoint under way. With what
/// that one writes, a partition's changes take at most about twice this.
const CHANGED_BYTES_MAX: usize = 64 << 20;

pub struct Partition {
    pub number: u32,
    pub store: PartitionStore,
    pub machine: Machine,
    /// The first offset that is not applied.
    pub next_offset: u64,
    /// What the log had when the server started ends here.
    pub existing_end: u64,
    /// When the last applied record was appended, and its value; they are hashed at checkpoints only.
    last: Option<(i64, Bytes)>,
    last_hash: Option<[u8; 32]>,
    /// When the first change since the last checkpoint was applied, and whether a
    /// client's record was among them.
    changed: Option<(Instant, bool)>,
    /// The offset that the last written checkpoint, and the one being written, has reached.
    safe_offset: u64,
    writing: Option<Cut>,
    /// Answers that leave when a checkpoint covers their offset, in rising order.
    awaiting: Vec<(u64, Effect)>,
    sync_since: Option<Instant>,
    /// The log is not the one that was applied: what it holds before an epoch begins concerns nobody.
    pub is_foreign: bool,
    /// Whether this incarnation is open here, and whether it had to try twice.
    pub opened: bool,
    pub opened_again: bool,
    /// When the last tick was sent, and its number while it has not been applied.
    pub ticked: Option<Instant>,
    pub tick_under_way: Option<u64>,
}

/// A checkpoint of one partition, to be written beside the loop.
pub struct Begun {
    /// Up to where it reaches.
    pub cut: Cut,
    last_hash: Option<[u8; 32]>,
    machine: Image,
    rows: Frozen,
}

impl Begun {
    /// Writes it and waits until it is safe; the content that it refers to is safe already.
    pub fn write(self) -> Result<Written, StoreError> {
        self.rows.write(Checkpoint {
            epoch: self.cut.epoch,
            next_offset: self.cut.upto + u64::from(planted(Bug::CheckpointOffByOne)),
            last_hash: self.last_hash,
            machine: self.machine.dump(),
        })
    }
}

impl Partition {
    pub fn new(
        number: u32,
        store: PartitionStore,
        machine: Machine,
        next_offset: u64,
        last_hash: Option<[u8; 32]>,
        existing_end: u64,
        is_foreign: bool,
    ) -> Partition {
        Partition {
            number,
            store,
            machine,
            next_offset,
            existing_end,
            last: None,
            last_hash,
            changed: None,
            // Of a log that is not the one applied nothing is on disk before the epoch's first checkpoint.
            safe_offset: if is_foreign { 0 } else { next_offset },
            writing: None,
            awaiting: Vec::new(),
            sync_since: None,
            is_foreign,
            opened: false,
            opened_again: false,
            ticked: None,
            tick_under_way: None,
        }
    }

    /// Whether everything that the log had at the start has been applied.
    pub fn is_caught_up(&self) -> bool {
        self.next_offset >= self.existing_end
    }

    /// Applies the next record. `None` for one that was applied before.
    pub fn apply(&mut self, record: &Record, now: Instant, by_client: bool) -> Result<Option<Applied>, ServerError> {
        if record.offset < self.next_offset {
            return Ok(None);
        }
        if record.offset > self.next_offset {
            return Err(ServerError::LogChanged {
                topic: Topic::Requests.suffix(),
                partition: self.number,
                reason: format!("after offset {} comes {}", self.next_offset.saturating_sub(1), record.offset),
            });
        }

        let (machine, store) = (&mut self.machine, &mut self.store);
        let turn =
            std::panic::AssertUnwindSafe(|| machine.apply(store, record.offset, record.append_time_ms, &record.value));
        // A row that cannot be read looks absent to the machine, which may give up;
        // the store's own error is the better one to tell.
        let applied = std::panic::catch_unwind(turn);
        self.store.check()?;
        let applied = applied.map_err(|panic| ServerError::Bug {
            during: "applied a record",
            reason: format!("{}/{}: {}", self.number, record.offset, panic_reason(&*panic)),
        })??;

        self.next_offset = record.offset + 1;
        if planted(Bug::ReplayOneTwice) && self.next_offset == self.existing_end {
            let _ = self.machine.apply(&mut self.store, record.offset, record.append_time_ms, &record.value);
        }
        self.last = Some((record.append_time_ms, record.value.clone()));
        let (since, client) = self.changed.unwrap_or((now, false));
        self.changed = Some((since, client || by_client));
        Ok(Some(applied))
    }

    /// Moves on by a record that the state is to know nothing of.
    pub fn pass(&mut self, record: &Record, now: Instant) {
        self.next_offset = record.offset + 1;
        self.last = Some((record.append_time_ms, record.value.clone()));
        // The state of another log must not be kept as if it had come from this one.
        if self.opened || !self.is_foreign {
            self.changed.get_or_insert((now, false));
        }
    }

    /// Whether a restart would go on in this log.
    pub fn is_of_this_log(&self) -> bool {
        !self.is_foreign || self.safe_offset > 0
    }

    /// A restart begins here: the first offset that the last checkpoint does not cover.
    pub fn safe_offset(&self) -> u64 {
        self.safe_offset
    }

    /// Everything before it is answered, once what was said has arrived.
    pub fn answered_to(&self) -> u64 {
        self.awaiting.first().map_or(self.next_offset, |(offset, _)| offset.saturating_sub(1))
    }

    /// Keeps an answer until a checkpoint covers what has been applied up to now, and on a
    /// volatile log what had been uploaded.
    pub fn await_checkpoint(&mut self, answer: Effect, now: Instant) {
        self.awaiting.push((self.next_offset, answer));
        self.checkpoint_soon(now);
    }

    /// Lets the next checkpoint be taken as if a sync waited for it.
    pub fn checkpoint_soon(&mut self, now: Instant) {
        self.sync_since.get_or_insert(now);
    }

    /// When the next checkpoint is due, if anything has changed.
    pub fn checkpoint_due(&self) -> Option<Instant> {
        if self.store.is_frozen() {
            return None;
        }
        let (since, client) = self.changed?;
        if self.store.changed_bytes() >= CHANGED_BYTES {
            return Some(since);
        }
        // Partitions differ a little, so that their checkpoints do not coincide.
        let stagger = Duration::from_millis(u64::from(self.number) * 40);
        let every = match (client, self.machine.volatile()) {
            (true, true) => CHECKPOINT_EVERY_VOLATILE,
            (true, false) => limits().checkpoint_every,
            (false, _) => CHECKPOINT_EVERY_IDLE,
        };
        let regular = since + every + stagger;
        Some(self.sync_since.map_or(regular, |since| regular.min(since + SYNC_COALESCE)))
    }

    /// Whether applying here must wait for the checkpoint under way.
    pub fn is_full(&self) -> bool {
        self.store.is_frozen() && self.store.changed_bytes() >= CHANGED_BYTES_MAX
    }

    /// Begins a checkpoint of everything applied, unless nothing was or one is under way.
    pub fn begin_checkpoint(&mut self) -> Option<Begun> {
        if self.store.is_frozen() {
            return None;
        }
        self.changed.take()?;
        self.sync_since = None;
        if let Some(last) = self.last.take() {
            self.last_hash = Some(last::mark(last.0, &last.1));
        }
        let cut = Cut { partition: self.number, epoch: self.machine.epoch(), upto: self.next_offset };
        self.writing = Some(cut);
        let (last_hash, machine) = (self.last_hash, self.machine.image());
        Some(Begun { cut, last_hash, machine, rows: self.store.freeze() })
    }

    /// Ends it; gives the answers that waited for it, and up to where it reaches. Where uploads
    /// are missing in it those answers are dropped: whoever waits asks again.
    pub fn end_checkpoint(&mut self, written: Written, with_uploads: bool) -> (Vec<Effect>, Option<Cut>) {
        self.store.thaw(written);
        let cut = self.writing.take();
        self.safe_offset = cut.map_or(self.safe_offset, |cut| cut.upto);
        let covered = self.awaiting.partition_point(|(offset, _)| *offset <= self.safe_offset);
        let answers = self.awaiting.drain(..covered).map(|(_, answer)| answer);
        (answers.filter(|_| with_uploads).collect(), cut)
    }

    /// Takes a checkpoint in its time though no record has changed anything.
    pub fn checkpoint_sometime(&mut self, now: Instant) {
        self.changed.get_or_insert((now, false));
    }
}

/// What a panic said.
pub fn panic_reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no reason given".into())
}
