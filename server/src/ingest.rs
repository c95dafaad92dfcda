//! Takes uploaded content from `chunks` into the packs.
//!
//! A chunk's header authenticates under a key that follows from the cluster key and
//! the session's id alone, so this needs no state and decides the same at any
//! moment. Who may quote a chunk is decided later, by the machine. How far each
//! partition has been ingested is kept with the packs' index.
#![allow(clippy::disallowed_methods)] // When skipped records were last told of.

use crate::error::ServerError;
use crate::packs::{Packs, Reached};
use crate::run::last;
use bytes::Bytes;
use proto::chunk::{ChunkName, verify_chunk};
use proto::frame::Frame;
use proto::keys::ClusterKey;
use proto::log::{Log, LogError, Record, Start, Tail, Topic};
use proto::{Epoch, NamespaceId, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;
use tokio::time::Instant;

/// Skipped records are told of at most this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What is to be ingested.
pub(crate) struct Uploads {
    tail: Tail,
    /// Where an earlier epoch was ingested last: which, and where the partition ended when this
    /// one began to be. Before that it may hold what was uploaded in either.
    earlier: BTreeMap<u32, (Epoch, u64)>,
}

/// The partitions that cannot be those which were ingested, and why.
#[derive(Default)]
pub(crate) struct Changed {
    partitions: BTreeSet<u32>,
    /// The first one of the newest epoch that was ingested: only there it was not to be expected.
    pub of_newest: Option<ServerError>,
}

/// Compares the log with what was ingested.
pub(crate) fn changed(log: &dyn Log, packs: &Packs) -> Result<Changed, ServerError> {
    let ingested = packs.ingested()?;
    let newest = ingested.values().map(|reached| reached.epoch).max();
    let mut errors = BTreeMap::new();
    let mut lasts = BTreeMap::new();
    for (partition, reached) in &ingested {
        let (first, end) = log.bounds(Topic::Chunks, *partition)?;
        match (holds(*partition, (first, end), reached.next_offset), reached.last) {
            (Err(error), _) => {
                errors.insert(*partition, error);
            }
            (Ok(()), Some(last)) if reached.next_offset > first => {
                lasts.insert(*partition, (reached.next_offset - 1, last));
            }
            // What stood there before was trimmed, or not seen.
            (Ok(()), _) => {}
        }
    }
    errors.extend(last::compare(log, Topic::Chunks, lasts, mark)?);
    let of_newest = |partition: &u32| Some(ingested[partition].epoch) == newest;
    let first = errors.keys().find(|partition| of_newest(partition)).copied();
    let partitions = errors.keys().copied().collect();
    Ok(Changed { partitions, of_newest: first.and_then(|first| errors.remove(&first)) })
}

/// What tells a record apart from any other: of a chunk what is sealed, which names its content.
fn mark(record: &Record) -> [u8; 32] {
    let payload = Frame::parse(record.value.clone()).map_or(0, |frame| frame.payload().len());
    last::mark(record.append_time_ms, &record.value[..record.value.len() - payload])
}

/// Whether a partition holds what comes next.
fn holds(partition: u32, (first, end): (u64, u64), next: u64) -> Result<(), ServerError> {
    let topic = Topic::Chunks.suffix();
    if next < first {
        return Err(ServerError::RecordsGone { topic, partition, first, wanted: next });
    }
    if next > end {
        let reason = format!("it ends at offset {end}, this server has ingested it up to {next}");
        return Err(ServerError::LogChanged { topic, partition, reason });
    }
    Ok(())
}

/// All partitions of `chunks`, each from where it was ingested to, also in an earlier epoch:
/// requests that stand before this one may quote what is not ingested yet. Where a partition
/// has `changed`, it is read from its beginning. `begins` says that this server begins the
/// epoch, and so with whatever there is.
pub(crate) fn start(
    log: &dyn Log,
    packs: &Packs,
    epoch: Epoch,
    begins: bool,
    changed: &Changed,
) -> Result<Uploads, ServerError> {
    let ingested = packs.ingested()?;
    let mut starts = Vec::new();
    let mut earlier = BTreeMap::new();
    for partition in 0..Topic::Chunks.partitions() {
        let (first, end) = log.bounds(Topic::Chunks, partition)?;
        let next = match ingested.get(&partition) {
            Some(reached) if reached.epoch == epoch => {
                holds(partition, (first, end), reached.next_offset)?;
                reached.next_offset
            }
            Some(reached) => {
                let mut reached = *reached;
                if changed.partitions.contains(&partition) {
                    reached = Reached { next_offset: first, last: None, ..reached };
                    packs.ingest(partition, reached, None)?;
                }
                if reached.next_offset < end {
                    earlier.insert(partition, (reached.epoch, end));
                } else {
                    packs.ingest(partition, Reached { epoch, ..reached }, None)?;
                }
                reached.next_offset
            }
            None => {
                if !begins {
                    holds(partition, (first, end), 0)?;
                }
                packs.ingest(partition, Reached { epoch, next_offset: first, last: None }, None)?;
                first
            }
        };
        starts.push((Topic::Chunks, partition, Start::At(next)));
    }
    Ok(Uploads { tail: log.read_from(&starts)?, earlier })
}

/// Ingests until `stop`. For a thread of its own: it waits for the packs' writer.
pub(crate) async fn run(
    Uploads { mut tail, mut earlier }: Uploads,
    packs: &Packs,
    cluster: &ClusterKey,
    epoch: Epoch,
    stop: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let mut stop = std::pin::pin!(stop);
    let mut skipped = Skipped::default();
    loop {
        let record = tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            record = tail.next() => record,
        };
        match record {
            Some(Ok(record)) => {
                let next = record.offset + 1;
                let (since, reached) = match earlier.get(&record.partition).copied() {
                    None => (epoch, epoch),
                    Some((of, end)) if next < end => (of, of),
                    Some((of, _)) => {
                        earlier.remove(&record.partition);
                        (of, epoch)
                    }
                };
                let chunk = verified(&record, cluster, since..=epoch);
                if let Err(reason) = &chunk {
                    skipped.tell(&record, reason);
                }
                let reached = Reached { epoch: reached, next_offset: next, last: Some(mark(&record)) };
                packs.ingest(record.partition, reached, chunk.ok())?;
            }
            Some(Err(LogError::OutOfRange { partition, offset, first, .. })) => {
                let topic = Topic::Chunks.suffix();
                return Err(ServerError::RecordsGone { topic, partition, first, wanted: offset });
            }
            // It passes: reading goes on by itself.
            Some(Err(error)) => tracing::warn!("{error}; waiting for Kafka"),
            None => {
                return Err(ServerError::System { tried: "read uploaded content", reason: "the log has ended".into() });
            }
        }
    }
}

/// The chunk in a record, and the namespace that it says it is for, if it is
/// authentic and of one of these epochs.
pub(crate) fn verified(
    record: &Record,
    cluster: &ClusterKey,
    epochs: RangeInclusive<Epoch>,
) -> Result<(NamespaceId, ChunkName, Bytes), String> {
    let frame = Frame::parse(record.value.clone()).map_err(|e| e.to_string())?;
    let epoch = frame.header().epoch;
    if !epochs.contains(&epoch) {
        return Err(format!("of epoch {}", epoch.0));
    }
    let hash = verify_chunk(&frame, cluster, record.partition).map_err(|e| e.to_string())?;
    let name = ChunkName {
        topic: Topic::Chunks,
        epoch,
        partition: record.partition,
        offset: record.offset,
        index: 0,
        session: SessionId(frame.header().sender),
        hash,
    };
    Ok((frame.header().namespace, name, frame.payload()))
}

#[derive(Default)]
struct Skipped {
    count: u64,
    told: Option<Instant>,
}

impl Skipped {
    fn tell(&mut self, record: &Record, reason: &str) {
        self.count += 1;
        let now = Instant::now();
        if self.told.is_none_or(|told| now.duration_since(told) >= WARN_EVERY) {
            self.told = Some(now);
            tracing::warn!(
                "skipped the record at {}/{}@{}: {reason}; {} skipped since the start",
                Topic::Chunks.suffix(),
                record.partition,
                record.offset,
                self.count
            );
        }
    }
}
