//! Whether the log still ends, or goes on, where it was read to: by the last record that was.

use crate::error::ServerError;
use proto::log::{Log, Record, Start, Topic};
use std::collections::BTreeMap;

/// What tells a record apart from any other that could stand in its place. The very same request may come once more and
/// stand where it stood before the log has lost its end, behind others than before; but it came at another time.
pub(crate) fn mark(append_time_ms: i64, bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&append_time_ms.to_le_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

/// Reads the record at each partition's offset again: where it is another one than was `marked`
/// so, the log has changed.
pub(crate) fn compare(
    log: &dyn Log,
    topic: Topic,
    mut lasts: BTreeMap<u32, (u64, [u8; 32])>,
    mark: impl Fn(&Record) -> [u8; 32],
) -> Result<BTreeMap<u32, ServerError>, ServerError> {
    let mut changed = BTreeMap::new();
    if lasts.is_empty() {
        return Ok(changed);
    }
    let starts: Vec<_> = lasts.iter().map(|(partition, (offset, _))| (topic, *partition, Start::At(*offset))).collect();
    let topic = topic.suffix();
    let mut tail = log.read_from(&starts)?;
    while !lasts.is_empty() {
        let record = match tail.blocking_next() {
            Some(Ok(record)) => record,
            Some(Err(error)) => {
                tracing::warn!("{error}; waiting for Kafka");
                continue;
            }
            None => {
                return Err(ServerError::System { tried: "read the log again", reason: format!("{topic} has ended") });
            }
        };
        // Later records of partitions that are compared already.
        let Some((offset, marked)) = lasts.remove(&record.partition) else { continue };
        if record.offset != offset || mark(&record) != marked {
            let reason = format!("the record at offset {offset} is not the one that was read there");
            let partition = record.partition;
            changed.insert(partition, ServerError::LogChanged { topic, partition, reason });
        }
    }
    Ok(changed)
}
