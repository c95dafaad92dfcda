//! This server's own records in the request log: its incarnation, ticks, logins,
//! deliveries. Numbers rise with the order of the appends in each partition.

use bytes::Bytes;
use proto::frame::Kind;
use proto::keys::ClusterKey;
use proto::log::{Appended, Log, LogError, REQUEST_PARTITIONS, Topic};
use proto::message::{ServerBody, ServerRecord};
use proto::seal::{Context, Direction, Head, seal};
use proto::{Epoch, IncarnationId, NamespaceId};
use std::sync::{Arc, Mutex};

/// A record on its way into the log.
pub struct Sent {
    pub number: u64,
    /// As it will stand in the log: an answer binds its hash.
    pub record: Bytes,
    /// Its offset, when it is acknowledged.
    pub appended: Appended,
}

/// What one incarnation writes. Shared by the loop and the logins.
pub struct OwnRecords {
    log: Arc<dyn Log>,
    cluster: Arc<ClusterKey>,
    incarnation: IncarnationId,
    /// By partition: the epoch and the next number. The lock is held until the record
    /// is queued, so that numbers stand in the log in rising order.
    next: Vec<Mutex<(Epoch, u64)>>,
}

impl OwnRecords {
    pub fn new(log: Arc<dyn Log>, cluster: Arc<ClusterKey>, incarnation: IncarnationId) -> OwnRecords {
        let next = (0..REQUEST_PARTITIONS).map(|_| Mutex::default()).collect();
        OwnRecords { log, cluster, incarnation, next }
    }

    pub fn incarnation(&self) -> IncarnationId {
        self.incarnation
    }

    pub fn log(&self) -> Arc<dyn Log> {
        self.log.clone()
    }

    /// The epoch that this incarnation has opened in, or means to; 0 before.
    pub fn epoch(&self, partition: u32) -> Epoch {
        self.lock(partition).0
    }

    /// The incarnation's first record in a partition, `Incarnation` or `Epoch`.
    pub fn open(&self, partition: u32, epoch: Epoch, record: ServerRecord) -> Sent {
        {
            // Where it is sent again, numbers given meanwhile are not given once more.
            let mut next = self.lock(partition);
            if next.0 != epoch {
                *next = (epoch, 1);
            }
        }
        self.append_as(partition, epoch, 0, record)
    }

    /// Queues a record.
    pub fn append(&self, partition: u32, record: ServerRecord) -> Sent {
        let mut next = self.lock(partition);
        let (epoch, number) = *next;
        next.1 += 1;
        self.append_as(partition, epoch, number, record)
    }

    fn append_as(&self, partition: u32, epoch: Epoch, number: u64, record: ServerRecord) -> Sent {
        let head = Head { kind: Kind::Server, namespace: NamespaceId(0), epoch, sender: self.incarnation.0, number };
        let context = Context { direction: Direction::ServerToLog, topic: Topic::Requests, partition, answers: None };
        match seal(&self.cluster.server_key(epoch), &head, &context, &ServerBody { record }, &[]) {
            Ok(sealed) => {
                let appended = self.log.append(Topic::Requests, partition, sealed.record.clone());
                Sent { number, record: sealed.record, appended }
            }
            Err(error) => {
                let reason = error.to_string();
                let failed = LogError::NotAppended { topic: Topic::Requests.suffix().into(), partition, reason };
                Sent { number, record: Bytes::new(), appended: Box::pin(std::future::ready(Err(failed))) }
            }
        }
    }

    fn lock(&self, partition: u32) -> std::sync::MutexGuard<'_, (Epoch, u64)> {
        self.next[partition as usize].lock().expect("nobody panics while holding it")
    }
}
