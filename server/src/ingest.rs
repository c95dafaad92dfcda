//! Takes uploaded content from `chunks` into the packs.
//!
//! A chunk's header authenticates under a key that follows from the cluster key and
//! the session's id alone, so this needs no state and decides the same at any
//! moment. Who may quote a chunk is decided later, by the machine. How far each
//! partition has been ingested is kept with the packs' index.
#![allow(clippy::disallowed_methods)] // When skipped records were last told of.

use crate::error::ServerError;
use crate::packs::Packs;
use proto::chunk::{ChunkName, verify_chunk};
use proto::frame::Frame;
use proto::keys::ClusterKey;
use proto::log::{Log, LogError, Record, Start, Tail, Topic};
use proto::{Epoch, NamespaceId, SessionId};
use std::time::Duration;
use tokio::time::Instant;

/// Skipped records are told of at most this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// All partitions of `chunks`, each from where it was ingested to. In an epoch that
/// was not ingested before it is the log's beginning, or with `from_end` its end.
pub(crate) fn start(log: &dyn Log, packs: &Packs, epoch: Epoch, from_end: bool) -> Result<Tail, ServerError> {
    let topic = Topic::Chunks.suffix();
    let ingested = packs.ingested()?;
    let mut starts = Vec::new();
    for partition in 0..Topic::Chunks.partitions() {
        let (first, end) = log.bounds(Topic::Chunks, partition)?;
        let next = match ingested.get(&partition) {
            Some((of, next)) if *of == epoch && *next < first => {
                return Err(ServerError::RecordsGone { topic, partition, first, wanted: *next });
            }
            Some((of, next)) if *of == epoch && *next > end => {
                let reason = format!("it ends at offset {end}, this server has ingested it up to {next}");
                return Err(ServerError::LogChanged { topic, partition, reason });
            }
            Some((of, next)) if *of == epoch => *next,
            _ => {
                let next = if from_end { end } else { first };
                // What earlier epochs' names stand for will not be found in the log any more.
                packs.ingest(partition, epoch, next, None)?;
                next
            }
        };
        starts.push((Topic::Chunks, partition, Start::At(next)));
    }
    Ok(log.read_from(&starts)?)
}

/// Ingests until `stop`. For a thread of its own: it waits for the packs' writer.
pub(crate) async fn run(
    mut tail: Tail,
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
            Some(Ok(record)) => match verified(&record, cluster, epoch) {
                Ok(chunk) => packs.ingest(record.partition, epoch, record.offset + 1, Some(chunk))?,
                Err(reason) => {
                    skipped.tell(&record, &reason);
                    packs.ingest(record.partition, epoch, record.offset + 1, None)?;
                }
            },
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
/// authentic and of this epoch.
pub(crate) fn verified(
    record: &Record,
    cluster: &ClusterKey,
    epoch: Epoch,
) -> Result<(NamespaceId, ChunkName, bytes::Bytes), String> {
    let frame = Frame::parse(record.value.clone()).map_err(|e| e.to_string())?;
    if frame.header().epoch != epoch {
        return Err(format!("of epoch {}", frame.header().epoch.0));
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
