//! How this incarnation opens in every partition, and what becomes of its own records
//! that take no effect.

use super::{Apply, Opening};
use crate::error::ServerError;
use crate::machine;
use crate::run::partition::Partition;
use proto::Epoch;
use proto::log::{REQUEST_PARTITIONS, Topic};
use proto::message::ServerRecord;

impl Apply {
    /// Once everything that the log had is applied: opens this incarnation everywhere.
    pub(super) fn open_when_caught_up(&mut self) -> Result<(), ServerError> {
        if self.state.opening_sent || !self.partitions.iter().all(Partition::is_caught_up) {
            return Ok(());
        }
        self.compare_with_servers()?;
        self.state.opening_sent = true;
        let known = self.partitions.iter().map(|partition| partition.machine.epoch()).max().unwrap_or_default();
        if known == Epoch(0)
            && let Some(foreign) = self.partitions.iter().find(|partition| partition.next_offset > 0)
        {
            return Err(ServerError::OtherCluster {
                topic: Topic::Requests.suffix(),
                partition: foreign.number,
                records: foreign.next_offset,
            });
        }
        let epoch = match known.max(self.opening.begun.unwrap_or_default()) {
            highest if self.opening.new_epoch => Epoch(highest.0 + 1),
            _ if known == Epoch(0) => Epoch(1),
            _ => known,
        };
        if self.opening.new_epoch {
            self.opening.data.begin_epoch(epoch)?;
        }

        self.state.opening_epoch = epoch;
        for partition in 0..REQUEST_PARTITIONS {
            self.open_partition(partition);
        }
        if let Some(told) = self.opening.epoch.take() {
            // The ingesting side may have failed already, which it says itself.
            let _ = told.send(epoch);
        }
        tracing::info!("replayed the log; opening incarnation {} in epoch {}", self.own.incarnation(), epoch.0);
        Ok(())
    }

    /// No server can have applied more than the log has. Of what they had said when this one started: later on
    /// they may be ahead of it.
    pub(super) fn compare_with_servers(&mut self) -> Result<(), ServerError> {
        if std::mem::replace(&mut self.state.compared, true) || self.opening.new_epoch {
            return Ok(());
        }
        for (by, server) in self.partitions[0].machine.servers() {
            for progress in server.progress.values() {
                let Some(partition) = self.partitions.get(progress.partition as usize) else { continue };
                let (end, applied) = (partition.existing_end, progress.applied);
                if applied > end {
                    let (topic, partition) = (Topic::Requests.suffix(), partition.number);
                    return Err(ServerError::EndLost { topic, partition, end, applied, by: *by });
                }
            }
        }
        Ok(())
    }

    /// Appends the record that opens this incarnation in a partition, unless it is open there.
    pub(super) fn open_partition(&mut self, partition: u32) {
        if self.partitions[partition as usize].opened {
            return;
        }
        let epoch = self.state.opening_epoch;
        let Opening { server, supports, append_time, volatile, .. } = self.opening;
        let record = if self.partitions[partition as usize].machine.epoch() == epoch {
            ServerRecord::Incarnation { server, supports }
        } else {
            // Where the log is still what was applied, the epoch follows all that stands before it.
            let foreign = Some(&self.partitions[partition as usize]).filter(|partition| partition.is_foreign);
            let from = foreign.map(|partition| partition.machine.state_hash());
            ServerRecord::Epoch { server, supports, append_time, volatile, from }
        };
        self.state.opening.push((partition, self.own.open(partition, epoch, record).appended));
    }

    /// One that Kafka has stored twice or late is nothing; whoever waits for it sends another.
    pub(super) fn own_record_skipped(&mut self, partition: u32, number: u64, reason: &str) -> Result<(), ServerError> {
        let at = &mut self.partitions[partition as usize];
        let epoch = at.machine.epoch();
        // Before it is open, what opens it may have been lost, and will be sent again.
        if reason == machine::OF_NO_INCARNATION && at.opened {
            return Err(ServerError::Superseded { server: self.opening.server });
        }
        if at.tick_under_way == Some(number) {
            at.tick_under_way = None;
        }
        if number > 0 || at.opened {
            return Ok(());
        }
        if epoch != self.own.epoch(partition) {
            return Err(ServerError::NotOpened { partition, epoch, reason: reason.to_owned() });
        }
        if !std::mem::replace(&mut at.opened_again, true) {
            // Another server has begun the same epoch just before.
            self.open_partition(partition);
        }
        Ok(())
    }
}
