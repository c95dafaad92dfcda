//! One consumer instance and one polling thread for each tail.
//!
//! * Offsets are always explicit; `group.id` is set because librdkafka assigns
//!   only then, but no group is joined and nothing is committed.
//! * The thread ends within [`STOP_SEEN`] after the tail was dropped, at the
//!   latest; while the tail's queue is full or its sink is busy it does not poll,
//!   and librdkafka stops fetching at its own bound.

use super::client::{self, Trouble, Watch, refusal};
use super::{Cluster, bounds, retried};
use crate::log::tail::{Poller, Sink};
use crate::log::{LogError, Record, Start, Tail, Topic};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How late a dropped tail is seen by a thread that has nothing to deliver.
const STOP_SEEN: Duration = Duration::from_millis(100);

pub(super) fn start(cluster: &Arc<Cluster>, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
    let bulk = starts.iter().any(|(topic, ..)| topic.is_bulk());
    let watch = Watch::default();
    let trouble = watch.trouble.clone();
    let consumer: BaseConsumer<Watch> = client::open(&config(cluster, bulk), watch)?;
    let next = resolve(cluster, &consumer, &trouble, starts)?;
    let reader = Reader { cluster: Arc::clone(cluster), consumer, trouble, next, bulk, outage: false };
    reader.assign()?;
    Ok(Tail::polled(Box::new(reader)))
}

fn config(cluster: &Cluster, bulk: bool) -> rdkafka::ClientConfig {
    // Real brokers wake a waiting fetch when a record arrives, the embedded one does not.
    let wait_ms = if cluster.embedded { "1" } else { "500" };
    // Bytes that librdkafka itself may hold for a tail (and one fetch more).
    let (queued_kib, fetch_bytes) = if bulk { ("16384", "8388608") } else { ("4096", "2097152") };
    let ours = [
        ("fetch.wait.max.ms", wait_ms),
        ("fetch.min.bytes", "1"),
        ("fetch.queue.backoff.ms", "1"),
        ("fetch.error.backoff.ms", "50"),
        ("fetch.max.bytes", fetch_bytes),
        ("queued.max.messages.kbytes", queued_kib),
    ];
    let group = format!("{}-unused", cluster.settings.prefix);
    let fixed = [
        ("group.id", group.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "false"),
        ("isolation.level", "read_uncommitted"),
        // A slow reader is not an error.
        ("max.poll.interval.ms", "86400000"),
    ];
    client::config(&cluster.settings, &ours, &fixed)
}

/// The offset at which each partition's reading begins, for all of them in one or two round trips.
fn resolve(
    cluster: &Cluster,
    consumer: &BaseConsumer<Watch>,
    trouble: &Trouble,
    starts: &[(Topic, u32, Start)],
) -> Result<BTreeMap<(Topic, u32), u64>, LogError> {
    let partitions: Vec<(Topic, u32)> = starts.iter().map(|&(topic, partition, _)| (topic, partition)).collect();
    let ends = edges(cluster, consumer, trouble, &partitions, Offset::End)?;
    let explicit = starts.iter().filter(|(.., start)| matches!(start, Start::At(_)));
    let explicit: Vec<(Topic, u32)> = explicit.map(|&(topic, partition, _)| (topic, partition)).collect();
    let firsts = edges(cluster, consumer, trouble, &explicit, Offset::Beginning)?;
    let mut next = BTreeMap::new();
    for &(topic, partition, start) in starts {
        let end = ends[&(topic, partition)];
        let offset = match start {
            Start::End => end,
            Start::At(offset) => {
                let first = firsts[&(topic, partition)];
                if offset < first || offset > end {
                    let topic = cluster.name(topic).to_owned();
                    return Err(LogError::OutOfRange { topic, partition, offset, first, next: end });
                }
                offset
            }
        };
        next.insert((topic, partition), offset);
    }
    Ok(next)
}

/// First offsets (`Offset::Beginning`) or next ones (`Offset::End`).
fn edges(
    cluster: &Cluster,
    consumer: &BaseConsumer<Watch>,
    trouble: &Trouble,
    partitions: &[(Topic, u32)],
    edge: Offset,
) -> Result<BTreeMap<(Topic, u32), u64>, LogError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let asked = |slice: Duration| -> Result<Option<TopicPartitionList>, KafkaError> {
        // Log lines and errors come with polling; no record does before something is assigned.
        while let Some(event) = consumer.poll(Duration::ZERO) {
            drop(event);
        }
        let mut list = TopicPartitionList::new();
        for &(topic, partition) in partitions {
            // Kafka's ListOffsets takes -1 and -2 for "latest" and "earliest" where a time stands otherwise.
            list.add_partition_offset(cluster.name(topic), partition as i32, edge)?;
        }
        match consumer.offsets_for_times(list, slice) {
            Err(error) if client::is_no_topic(&error) => Ok(None),
            Err(error) => Err(error),
            Ok(list) => {
                for element in list.elements() {
                    match element.error() {
                        Err(error) if client::is_no_topic(&error) => return Ok(None),
                        other => other?,
                    }
                }
                Ok(Some(list))
            }
        }
    };
    let Some(list) = retried(cluster, trouble, cluster.settings.timeout, asked)? else {
        return Err(absent(cluster, consumer, partitions));
    };
    let mut edges = BTreeMap::new();
    for &(topic, partition) in partitions {
        let found = list.find_partition(cluster.name(topic), partition as i32).map(|element| element.offset());
        match found {
            Some(Offset::Offset(offset)) if offset >= 0 => edges.insert((topic, partition), offset as u64),
            // An empty partition's "time" has no offset on some brokers; its watermarks do.
            _ => {
                let timeout = cluster.settings.timeout;
                let (first, next) = bounds(cluster, consumer.client(), trouble, topic, partition, timeout)?;
                edges.insert((topic, partition), if edge == Offset::End { next } else { first })
            }
        };
    }
    Ok(edges)
}

/// Which of the topics is not there.
fn absent(cluster: &Cluster, consumer: &BaseConsumer<Watch>, partitions: &[(Topic, u32)]) -> LogError {
    let is_there = |topic: Topic, partition: u32| {
        let found = consumer.fetch_metadata(Some(cluster.name(topic)), Duration::from_secs(1));
        found.is_ok_and(|metadata| {
            metadata.topics().first().is_some_and(|topic| topic.partitions().len() > partition as usize)
        })
    };
    let missing = partitions.iter().find(|&&(topic, partition)| !is_there(topic, partition));
    cluster.no_topic(missing.unwrap_or(&partitions[0]).0)
}

struct Reader {
    cluster: Arc<Cluster>,
    consumer: BaseConsumer<Watch>,
    trouble: Trouble,
    /// The offset that comes next, for each partition read.
    next: BTreeMap<(Topic, u32), u64>,
    bulk: bool,
    /// Whether an outage has been reported and not ended.
    outage: bool,
}

impl Poller for Reader {
    fn queue(&self) -> usize {
        if self.bulk { Tail::QUEUE_BULK_RECORDS } else { Tail::QUEUE_RECORDS }
    }

    fn run(self: Box<Self>, sink: &mut dyn Sink, stop: &watch::Receiver<()>) {
        // Either way there is nobody left to tell.
        let _: ControlFlow<()> = Reader::run(*self, sink, stop);
    }
}

impl Reader {
    fn assign(&self) -> Result<(), LogError> {
        let wrong = |error: KafkaError| refusal("assign partitions".to_owned(), &error);
        let mut list = TopicPartitionList::new();
        for (&(topic, partition), &offset) in &self.next {
            list.add_partition_offset(self.cluster.name(topic), partition as i32, Offset::Offset(offset as i64))
                .map_err(wrong)?;
        }
        self.consumer.assign(&list).map_err(wrong)
    }

    fn run(mut self, sink: &mut dyn Sink, stop: &watch::Receiver<()>) -> ControlFlow<()> {
        let mut taken = 0;
        while stop.has_changed().is_ok() {
            // What is at hand comes first, then a rest, then what there is to wait for.
            let polled = if taken > 0 { self.consumer.poll(Duration::ZERO) } else { self.consumer.poll(STOP_SEEN) };
            match polled {
                None if taken > 0 => {
                    taken = 0;
                    sink.rest()?;
                }
                None => {
                    self.look_for_end_of_outage();
                    sink.rest()?;
                }
                Some(Ok(message)) => {
                    let record = self.record(&message);
                    drop(message);
                    self.outage = false;
                    if let Some(record) = record {
                        self.next.insert((record.topic, record.partition), record.offset + 1);
                        sink.take(Ok(record))?;
                        taken += 1;
                    }
                    if taken >= Tail::BATCH {
                        taken = 0;
                        sink.rest()?;
                    }
                }
                Some(Err(error)) => self.trouble(&error, sink)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn record(&self, message: &BorrowedMessage<'_>) -> Option<Record> {
        let topic = *self.cluster.names.iter().find(|(_, name)| *name == message.topic())?.0;
        Some(Record {
            topic,
            partition: u32::try_from(message.partition()).ok()?,
            offset: u64::try_from(message.offset()).ok()?,
            append_time_ms: match message.timestamp() {
                Timestamp::LogAppendTime(ms) => ms,
                // What the writer claims is not the log's time.
                Timestamp::CreateTime(_) | Timestamp::NotAvailable => 0,
            },
            value: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        })
    }

    fn trouble(&mut self, error: &KafkaError, sink: &mut dyn Sink) -> ControlFlow<()> {
        use RDKafkaErrorCode::*;
        let Some(code) = error.rdkafka_error_code() else {
            return ControlFlow::Continue(());
        };
        match code {
            AutoOffsetReset | OffsetOutOfRange | LogTruncation => self.out_of_range(code, sink),
            // It may be over by now, or concern one broker of several.
            AllBrokersDown | Authentication | SSL if !self.is_answered() => {
                self.report(sink, self.cluster.unreachable(&self.trouble))
            }
            TopicAuthorizationFailed | ClusterAuthorizationFailed => {
                self.report(sink, refusal(format!("let us read from {}", self.topics()), error))
            }
            UnknownTopicOrPartition | UnknownTopic | UnknownPartition => match self.next.keys().next() {
                Some(&(topic, _)) => self.report(sink, self.cluster.no_topic(topic)),
                None => ControlFlow::Continue(()),
            },
            // One broker of several, the unused group, a request that is tried again.
            _ => ControlFlow::Continue(()),
        }
    }

    fn topics(&self) -> String {
        let mut names: Vec<&str> = self.next.keys().map(|&(topic, _)| self.cluster.name(topic)).collect();
        names.dedup();
        names.join(", ")
    }

    /// Once until it is over.
    fn report(&mut self, sink: &mut dyn Sink, error: LogError) -> ControlFlow<()> {
        if std::mem::replace(&mut self.outage, true) {
            return ControlFlow::Continue(());
        }
        sink.take(Err(error))
    }

    /// No record may come for long after an outage, so its end is asked for.
    fn look_for_end_of_outage(&mut self) {
        if self.outage && self.is_answered() {
            self.outage = false;
            self.trouble.clear();
        }
    }

    /// Whether a broker answers right now.
    fn is_answered(&self) -> bool {
        let Some(&(topic, _)) = self.next.keys().next() else { return false };
        self.consumer.fetch_metadata(Some(self.cluster.name(topic)), STOP_SEEN).is_ok()
    }

    /// librdkafka does not say which partition it has stopped reading, so all are looked at.
    fn out_of_range(&mut self, code: RDKafkaErrorCode, sink: &mut dyn Sink) -> ControlFlow<()> {
        let timeout = self.cluster.settings.timeout;
        for (&(topic, partition), &offset) in &self.next {
            let found = bounds(&self.cluster, self.consumer.client(), &self.trouble, topic, partition, timeout);
            match found {
                Ok((first, next)) if offset < first || offset > next || code == RDKafkaErrorCode::LogTruncation => {
                    let topic = self.cluster.name(topic).to_owned();
                    sink.take(Err(LogError::OutOfRange { topic, partition, offset, first, next }))?;
                    return ControlFlow::Break(());
                }
                Ok(_) => {}
                Err(error) => {
                    sink.take(Err(error))?;
                    return ControlFlow::Break(());
                }
            }
        }
        // All are readable: it was a passing state (a leader behind the last one). Begin again where we are.
        match self.assign() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                sink.take(Err(error))?;
                ControlFlow::Break(())
            }
        }
    }
}
