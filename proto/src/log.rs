//! The bus, seen narrowly: append, read from, trim. Real Kafka ([`kafka`]) and
//! an in-memory log ([`memory`]) stand behind the same trait; Kafka's own types
//! never leave [`kafka`].

pub mod embedded;
pub mod kafka;
pub mod memory;
mod tail;

#[cfg(test)]
mod tests;

pub use tail::{Handing, Sink, Tail};

use crate::numbered::numbered;
use bytes::Bytes;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

numbered! {
    /// The topics of a cluster (the design's section 3). The number is part of what
    /// a frame's seal binds, so it never changes its meaning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
    pub enum Topic {
        Requests = 1,
        Chunks = 2,
        Reads = 3,
        Replies = 4,
        Bulk = 5,
        Auth = 6,
    }
}

impl Topic {
    /// The topic's name after the cluster's prefix and a dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Topic::Requests => "requests",
            Topic::Chunks => "chunks",
            Topic::Reads => "reads",
            Topic::Replies => "replies",
            Topic::Bulk => "bulk",
            Topic::Auth => "auth",
        }
    }

    /// Partitions that the topic is created with.
    pub fn partitions(self) -> u32 {
        match self {
            Topic::Requests | Topic::Chunks | Topic::Reads => REQUEST_PARTITIONS,
            Topic::Replies | Topic::Bulk => REPLY_PARTITIONS,
            Topic::Auth => 1,
        }
    }

    /// Whether an acknowledged record must survive (acks=all, replicated), or
    /// is soon worthless (acks=1, kept 10 minutes).
    pub fn is_durable(self) -> bool {
        matches!(self, Topic::Requests | Topic::Chunks)
    }

    /// Whether records of up to 1 MB travel here; control and bulk traffic never
    /// share a connection, since a broker handles one request a connection at a time.
    pub fn is_bulk(self) -> bool {
        matches!(self, Topic::Chunks | Topic::Bulk)
    }
}

/// Namespaces are spread over so many; every server has all of them. A simulator that runs very many clusters opens
/// fewer, since what it looks for needs one or two.
pub const REQUEST_PARTITIONS: u32 = if cfg!(kfs_few_partitions) { 3 } else { 16 };
pub const REPLY_PARTITIONS: u32 = 64;

/// The largest record we write, in bytes: below every broker's default limit,
/// with room for Kafka's own framing.
pub const MAX_RECORD_BYTES: usize = 900_000;

/// One record as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: Topic,
    pub partition: u32,
    pub offset: u64,
    /// Kafka's `LogAppendTime` in milliseconds since 1970; 0 where the broker has none.
    pub append_time_ms: i64,
    pub value: Bytes,
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset. One that the log no longer has, or does not have yet, is [`LogError::OutOfRange`].
    At(u64),
    /// At whatever is appended after `read_from` has returned.
    End,
}

/// What a log cannot do, sorted by the caller's next move.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Nobody answers; it may pass. Whether an append took effect is unknown.
    #[error("no Kafka broker answers at {brokers}: {reason}")]
    Unreachable { brokers: String, reason: String },
    /// Kafka refused for good: authentication, authorisation, a wrong setting.
    #[error("Kafka refused to {tried}: {reason}")]
    Refused { tried: String, reason: String },
    #[error(
        "the topic {topic} does not exist (or has fewer than {partitions} partitions); create it with `kfs-server topics --create`"
    )]
    NoTopic { topic: String, partitions: u32 },
    /// The log does not have the offset: trimmed, truncated or recreated.
    #[error("offset {offset} of {topic}/{partition} is not in the log (it has {first}..{next})")]
    OutOfRange { topic: String, partition: u32, offset: u64, first: u64, next: u64 },
    /// The record was not stored, or stored at an offset that the broker did not
    /// tell (a retried duplicate). It may be in the log all the same.
    #[error("the append to {topic}/{partition} failed: {reason}")]
    NotAppended { topic: String, partition: u32, reason: String },
    #[error("a record of {bytes} bytes is larger than {MAX_RECORD_BYTES}")]
    TooLarge { bytes: usize },
}

pub type Appended = Pin<Box<dyn Future<Output = Result<u64, LogError>> + Send>>;

/// An ordered, partitioned log.
///
/// Appends to one partition from one `Log` take effect in the order of the
/// calls, unless the broker or the way to it fails meanwhile: errors that may pass are
/// retried inside, within the log's timeout, and such a retry can repeat a record or let a
/// later one overtake it. So what must not be repeated or reordered is numbered.
pub trait Log: Send + Sync + 'static {
    /// Queues the record at once, before the first poll, and resolves to its
    /// offset when the broker has acknowledged it.
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended;

    /// Somebody waits for what becomes of appends to this topic, which is told as soon as it is known, at least of
    /// the next one. Without that word it may be told some milliseconds later, of many together.
    fn hurry(&self, _topic: Topic) {}

    /// Reads the given partitions from their starts as one stream. Blocks until
    /// the starts are known (at most the log's timeout).
    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError>;

    /// The first offset that the partition still has and the one that comes next. Blocks as `read_from`.
    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError>;

    /// Forgets every record before `before`. Blocks as `read_from`.
    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError>;
}

/// Waits for a future on this thread, without a runtime: what it is used for is
/// completed by threads of the log's own.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
