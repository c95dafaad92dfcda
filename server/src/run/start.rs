//! Before the loop: opens every partition at its checkpoint and compares it with
//! the log. A log that is not the one applied before is never applied on top of it.

use super::last;
use super::partition::Partition;
use super::{NewLog, ServerConfig};
use crate::data::{DataDir, DataError};
use crate::error::ServerError;
use crate::ingest;
use crate::machine::Machine;
use crate::packs::Packs;
use crate::store::{Checkpoint, PartitionStore};
use proto::Epoch;
use proto::keys::ClusterKey;
use proto::log::{Log, LogError, REQUEST_PARTITIONS, Start, Tail, Topic};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the loop begins with.
pub struct Plan {
    pub partitions: Vec<Partition>,
    /// All request partitions, each from its next offset.
    pub tail: Tail,
    /// The log is another one than before, and that was to be expected.
    pub new_epoch: bool,
    /// An epoch that was begun from here before, and may not be whole.
    pub begun: Option<Epoch>,
    /// Where `chunks` is not what was ingested.
    pub uploads: ingest::Changed,
    /// Epoch and next offset of every partition's last checkpoint.
    pub checkpoints: BTreeMap<u32, (Epoch, u64)>,
}

/// Opens the stores in `dir` and says where in the log each goes on.
pub fn plan(
    data: &DataDir,
    config: &ServerConfig,
    cluster: &Arc<ClusterKey>,
    packs: &Packs,
    log: &dyn Log,
) -> Result<Plan, ServerError> {
    let (dir, begun) = (data.state(), data.half_an_epoch()?);
    let cache_bytes = config.cache_bytes / REQUEST_PARTITIONS as usize;
    let opened: Result<Vec<_>, ServerError> = (0..REQUEST_PARTITIONS)
        .map(|number| Ok(PartitionStore::open(&dir, number, cluster.id().0, cache_bytes, &config.disk)?))
        .collect();
    let opened = opened?;
    // Partition 0 first: what servers say there of the other partitions is compared with where these end.
    let bounds: Result<Vec<_>, LogError> =
        (0..REQUEST_PARTITIONS).map(|number| log.bounds(Topic::Requests, number)).collect();
    let bounds = bounds?;

    let reached = (0..)
        .zip(&opened)
        .filter_map(|(number, (_, checkpoint))| {
            checkpoint.as_ref().map(|reached| (number, (reached.epoch, reached.next_offset)))
        })
        .collect();
    let checkpoints: Vec<_> = opened.iter().map(|(_, checkpoint)| checkpoint.as_ref()).collect();
    let mut changed = compare(&checkpoints, &bounds, log)?;
    let mut uploads = ingest::changed(log, packs)?;
    let is_other = !changed.is_empty() || uploads.of_newest.is_some() || begun.is_some();
    let new_epoch = is_other || config.on_new_log == NewLog::NewEpochAnyway;
    if config.on_new_log == NewLog::Refuse {
        if let Some(error) = changed.pop_first().map(|(_, error)| error).or(uploads.of_newest.take()) {
            return Err(error);
        }
        if begun.is_some() {
            return Err(DataError::HalfAnEpoch { path: config.data.clone() }.into());
        }
    }
    if config.on_new_log == NewLog::NewEpochOnly && !new_epoch {
        return Err(ServerError::SameLog);
    }

    let mut partitions = Vec::new();
    for (number, ((store, checkpoint), (first, end))) in (0..).zip(opened.into_iter().zip(bounds)) {
        let machine = match &checkpoint {
            Some(checkpoint) => Machine::restore(number, cluster.clone(), &checkpoint.machine)
                .map_err(|e| ServerError::Restore { partition: number, reason: e.to_string() })?,
            None => Machine::new(number, cluster.clone()),
        };
        if machine.version() > config.supports {
            let reason = format!("its state has version {}; run a newer kfs-server", machine.version());
            return Err(ServerError::Restore { partition: number, reason });
        }
        let machine = machine.knowing(config.supports);
        let is_foreign = changed.contains_key(&number);
        // Who begins an epoch knows what it begins from.
        let is_trimmed = checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.next_offset == first);
        let machine = match is_trimmed && config.on_new_log == NewLog::Refuse {
            true => machine.on_unproven_log(),
            false => machine,
        };
        let (next, last_hash) = match checkpoint {
            // Nothing that such a log holds already belongs to the epoch that begins.
            _ if is_foreign => (end, None),
            Some(checkpoint) => (checkpoint.next_offset, checkpoint.last_hash),
            None => (first, None),
        };
        partitions.push(Partition::new(number, store, machine, next, last_hash, end, is_foreign));
    }
    let starts: Vec<_> = partitions
        .iter()
        .map(|partition| (Topic::Requests, partition.number, Start::At(partition.next_offset)))
        .collect();
    let tail = log.read_from(&starts)?;
    Ok(Plan { partitions, tail, new_epoch, begun, checkpoints: reached, uploads })
}

/// The partitions whose log does not hold any more what was applied: it does not reach as far,
/// or the last applied record is another one.
fn compare(
    checkpoints: &[Option<&Checkpoint>],
    bounds: &[(u64, u64)],
    log: &dyn Log,
) -> Result<BTreeMap<u32, ServerError>, ServerError> {
    let topic = Topic::Requests.suffix();
    let mut changed = BTreeMap::new();
    let mut hashes = BTreeMap::new();
    for (partition, (checkpoint, &(first, end))) in (0..).zip(checkpoints.iter().zip(bounds)) {
        let wanted = checkpoint.map_or(0, |checkpoint| checkpoint.next_offset);
        if wanted < first {
            changed.insert(partition, ServerError::RecordsGone { topic, partition, first, wanted });
        } else if wanted > end {
            let reason = format!("it ends at offset {end}, this server has applied it up to {wanted}");
            changed.insert(partition, ServerError::LogChanged { topic, partition, reason });
        } else if let Some(hash) = checkpoint.and_then(|checkpoint| checkpoint.last_hash)
            && wanted > first
        {
            // A last record that was trimmed cannot be compared any more.
            hashes.insert(partition, (wanted - 1, hash));
        }
    }

    changed.extend(last::compare(log, Topic::Requests, hashes, |record| {
        last::mark(record.append_time_ms, &record.value)
    })?);
    Ok(changed)
}
