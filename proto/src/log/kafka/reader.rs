//! One consumer instance and one polling thread for each tail.
//!
//! * Offsets are always explicit; `group.id` is set because librdkafka assigns
//!   only then, but no group is joined and nothing is committed.
//! * An instance that has lost a broker while partitions have no leader is given up, as is one
//!   that has stopped reading something ([`super::stalled`]): another one goes on where it
//!   stood, once Kafka names a leader for every partition. In librdkafka 2.12.1 an instance that fetches from a broker
//!   which does not know the leaders yet (it has just started) takes what is in fresh memory
//!   for a partition's leader and epoch; then it refuses to hear of any other for good.
//! * Each offset goes with the leader epoch of the record before it, so that Kafka tells when
//!   the log has been cut meanwhile (KIP-320).
//! * The thread ends within [`STOP_SEEN`] after the tail was dropped, at the latest, or
//!   [`LEADERS_WITHIN`] or [`LOOK_MAX`] while no broker answers; while the tail's queue is full or its sink is
//!   busy it does not poll, and librdkafka stops fetching at its own bound.

use super::client::{self, Trouble, Watch, refusal};
use super::stalled::Stalled;
use super::{Cluster, bounds, retried};
use crate::log::tail::{Poller, Sink};
use crate::log::{LogError, Record, Start, Tail, Topic};
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How late a dropped tail is seen by a thread that has nothing to deliver.
const STOP_SEEN: Duration = Duration::from_millis(100);

/// How long Kafka may take to say who leads what: more than a round trip to any cluster that
/// one would mount from, as little as a dropped tail may take to end while no broker answers.
const LEADERS_WITHIN: Duration = Duration::from_secs(1);

/// Between looks for what has stalled, and of content. More than a slow link may take for the answers to two
/// fetches, each of which librdkafka waits for up to 10 s, or 20: what is still on its way has not stalled.
const LOOK: Duration = Duration::from_secs(30);
const LOOK_BULK: Duration = Duration::from_secs(60);

/// How long a look may take; without an answer it is left to the next one. Kafka answers it
/// after the fetch under way, so this is more than a fetch waits and its content takes on a slow
/// link: a look that is not answered in time costs the connection, and what was on its way.
const LOOK_MAX: Duration = Duration::from_secs(5);
const LOOK_MAX_BULK: Duration = Duration::from_secs(10);

/// The offset that comes next in a partition, and the leader epoch of the record before it, if
/// that has been read.
#[derive(Clone, Copy)]
struct Next {
    offset: u64,
    after_epoch: Option<i32>,
}

pub(super) fn start(cluster: &Arc<Cluster>, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
    Ok(Tail::polled(Box::new(reader(cluster, starts)?)))
}

fn reader(cluster: &Arc<Cluster>, starts: &[(Topic, u32, Start)]) -> Result<Reader, LogError> {
    let bulk = starts.iter().any(|(topic, ..)| topic.is_bulk());
    let (consumer, trouble) = open(cluster, bulk)?;
    let next = resolve(cluster, &consumer, &trouble, starts)?;
    let reader = Reader {
        cluster: Arc::clone(cluster),
        consumer,
        trouble,
        next,
        bulk,
        outage: false,
        stalled: Stalled::default(),
        looked: Instant::now(),
        look_every: if bulk { LOOK_BULK } else { LOOK },
    };
    reader.assign()?;
    Ok(reader)
}

fn open(cluster: &Cluster, bulk: bool) -> Result<(BaseConsumer<Watch>, Trouble), LogError> {
    let watch = Watch::default();
    let trouble = watch.trouble.clone();
    Ok((client::open(&config(cluster, bulk), watch)?, trouble))
}

fn config(cluster: &Cluster, bulk: bool) -> rdkafka::ClientConfig {
    // Real brokers wake a waiting fetch when a record arrives, the embedded one does not.
    let wait_ms = if cluster.embedded { "1" } else { "500" };
    // Bytes that librdkafka itself may hold for a tail (and one fetch more).
    let (queued_kib, fetch_bytes) = if bulk { ("16384", "8388608") } else { ("4096", "2097152") };
    let mut ours = vec![
        ("fetch.wait.max.ms", wait_ms),
        ("fetch.min.bytes", "1"),
        ("fetch.queue.backoff.ms", "1"),
        ("fetch.error.backoff.ms", "50"),
        ("fetch.max.bytes", fetch_bytes),
        // One partition may fill it: with the default of 1 MiB a distant broker sends that much in a round trip, however fast
        // the way is.
        ("fetch.message.max.bytes", fetch_bytes),
        ("queued.max.messages.kbytes", queued_kib),
    ];
    if bulk {
        ours.push(("socket.timeout.ms", client::BULK_TIMEOUT_MS));
    }
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
) -> Result<BTreeMap<(Topic, u32), Next>, LogError> {
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
        next.insert((topic, partition), Next { offset, after_epoch: None });
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
        take_events(consumer);
        match ask_edges(cluster, consumer, partitions, edge, slice) {
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
    let mut edges = told(cluster, &list, partitions);
    for &(topic, partition) in partitions {
        // An empty partition's "time" has no offset on some brokers; its watermarks do.
        if let Entry::Vacant(edge_of) = edges.entry((topic, partition)) {
            let timeout = cluster.settings.timeout;
            let (first, next) = bounds(cluster, consumer.client(), trouble, topic, partition, timeout)?;
            edge_of.insert(if edge == Offset::End { next } else { first });
        }
    }
    Ok(edges)
}

/// The offsets that an answer gives, without the partitions for which it has none.
fn told(cluster: &Cluster, list: &TopicPartitionList, partitions: &[(Topic, u32)]) -> BTreeMap<(Topic, u32), u64> {
    let offset = |&(topic, partition): &(Topic, u32)| {
        let found = list.find_partition(cluster.name(topic), partition as i32)?;
        match (found.error(), found.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some(((topic, partition), u64::try_from(offset).ok()?)),
            _ => None,
        }
    };
    partitions.iter().filter_map(offset).collect()
}

/// Log lines and errors come with polling; no record does before something is assigned.
fn take_events(consumer: &BaseConsumer<Watch>) {
    while let Some(event) = consumer.poll(Duration::ZERO) {
        drop(event);
    }
}

/// Once, without a word about partitions that have an error each.
fn ask_edges(
    cluster: &Cluster,
    consumer: &BaseConsumer<Watch>,
    partitions: &[(Topic, u32)],
    edge: Offset,
    within: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for &(topic, partition) in partitions {
        // Kafka's ListOffsets takes -1 and -2 for "latest" and "earliest" where a time stands otherwise.
        list.add_partition_offset(cluster.name(topic), partition as i32, edge)?;
    }
    consumer.offsets_for_times(list, within)
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
    /// For each partition read.
    next: BTreeMap<(Topic, u32), Next>,
    bulk: bool,
    /// Whether an outage has been reported and not ended.
    outage: bool,
    stalled: Stalled,
    /// When it was last looked for what has stalled, and how often that is done.
    looked: Instant,
    look_every: Duration,
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
        for (&(topic, partition), next) in &self.next {
            list.add_partition_offset(self.cluster.name(topic), partition as i32, Offset::Offset(next.offset as i64))
                .map_err(wrong)?;
        }
        set_epochs(&mut list, self.next.values().map(|next| next.after_epoch));
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
                    self.stalled.ran_dry();
                    sink.rest()?;
                }
                None => {
                    self.stalled.ran_dry();
                    self.look_for_end_of_outage();
                    sink.rest()?;
                    self.look_for_stalled(sink, stop)?;
                }
                Some(Ok(message)) => {
                    let record = self.record(&message);
                    let after_epoch = epoch_of(&message);
                    drop(message);
                    self.outage = false;
                    if let Some(record) = record {
                        let next = Next { offset: record.offset + 1, after_epoch };
                        self.next.insert((record.topic, record.partition), next);
                        sink.take(Ok(record))?;
                        taken += 1;
                    }
                    if taken >= Tail::BATCH {
                        taken = 0;
                        sink.rest()?;
                        self.look_for_stalled(sink, stop)?;
                    }
                }
                Some(Err(error)) => self.trouble(&error, sink, stop)?,
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

    fn trouble(&mut self, error: &KafkaError, sink: &mut dyn Sink, stop: &watch::Receiver<()>) -> ControlFlow<()> {
        use RDKafkaErrorCode::*;
        let Some(code) = error.rdkafka_error_code() else {
            return ControlFlow::Continue(());
        };
        match code {
            AutoOffsetReset | OffsetOutOfRange | LogTruncation => self.out_of_range(code, sink),
            // It may be over by now, or concern one broker of several.
            AllBrokersDown | BrokerTransportFailure | Authentication | SSL if !self.has_leaders() => {
                self.report(sink, self.cluster.unreachable(&self.trouble))?;
                self.read_anew(sink, stop)
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
        self.consumer.fetch_metadata(Some(self.cluster.name(topic)), LEADERS_WITHIN).is_ok()
    }

    /// Reads on with another instance, which fetches nothing before Kafka names all leaders.
    fn read_anew(&mut self, sink: &mut dyn Sink, stop: &watch::Receiver<()>) -> ControlFlow<()> {
        let (consumer, trouble) = match open(&self.cluster, self.bulk) {
            Ok(opened) => opened,
            Err(error) => {
                sink.take(Err(error))?;
                return ControlFlow::Break(());
            }
        };
        let given_up = std::mem::replace(&mut self.consumer, consumer);
        self.trouble = trouble;
        // Its end waits for librdkafka's threads, and nobody shall wait for what may be in no good state.
        if let Err(error) = std::thread::Builder::new().name("kfs-tail-end".to_owned()).spawn(|| drop(given_up)) {
            tracing::debug!(target: "kafka", "closed here for want of a thread: {error}");
        }
        self.stalled = Stalled::default();
        while stop.has_changed().is_ok() {
            let has_leaders = self.has_leaders();
            take_events(&self.consumer);
            if has_leaders {
                self.outage = false;
                self.trouble.clear();
                return self.assign_or_end(sink);
            }
            drop(self.consumer.poll(STOP_SEEN));
            sink.rest()?;
        }
        ControlFlow::Break(())
    }

    /// Whether Kafka says who leads each partition, which needs a broker that answers.
    fn has_leaders(&self) -> bool {
        let mut topics: Vec<Topic> = self.next.keys().map(|&(topic, _)| topic).collect();
        topics.dedup();
        topics.into_iter().all(|topic| {
            let name = self.cluster.name(topic);
            let Ok(metadata) = self.consumer.fetch_metadata(Some(name), LEADERS_WITHIN) else { return false };
            let Some(found) = metadata.topics().first() else { return false };
            let led = |partition: u32| {
                found.partitions().iter().any(|found| found.id() == partition as i32 && found.leader() >= 0)
            };
            self.next.range((topic, 0)..=(topic, u32::MAX)).all(|(&(_, partition), _)| led(partition))
        })
    }

    /// The log's next offsets, as far as Kafka tells them at once.
    fn ends(&self) -> Result<BTreeMap<(Topic, u32), u64>, KafkaError> {
        let partitions: Vec<(Topic, u32)> = self.next.keys().copied().collect();
        let within = if self.bulk { LOOK_MAX_BULK } else { LOOK_MAX };
        let ends = ask_edges(&self.cluster, &self.consumer, &partitions, Offset::End, within)?;
        Ok(told(&self.cluster, &ends, &partitions))
    }

    /// Looks at the log's ends, if it was not done for so long, and reads anew what stands still before them.
    fn look_for_stalled(&mut self, sink: &mut dyn Sink, stop: &watch::Receiver<()>) -> ControlFlow<()> {
        if self.outage || self.looked.elapsed() < self.look_every {
            return ControlFlow::Continue(());
        }
        let ends = self.ends();
        self.looked = Instant::now();
        let Ok(ends) = ends else { return ControlFlow::Continue(()) };
        let next = self.next.iter().map(|(partition, next)| (*partition, next.offset));
        let Some(((topic, partition), offset, end)) = self.stalled.look(next, &ends) else {
            return ControlFlow::Continue(());
        };
        tracing::warn!(
            "the Kafka client has stopped reading {}/{partition} at offset {offset}, though the log goes on to {end}; \
             another one reads on",
            self.cluster.name(topic)
        );
        self.read_anew(sink, stop)
    }

    /// librdkafka does not say which partition it has stopped reading, so all are looked at.
    fn out_of_range(&mut self, code: RDKafkaErrorCode, sink: &mut dyn Sink) -> ControlFlow<()> {
        let timeout = self.cluster.settings.timeout;
        for (&(topic, partition), &Next { offset, .. }) in &self.next {
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
        self.assign_or_end(sink)
    }

    fn assign_or_end(&self, sink: &mut dyn Sink) -> ControlFlow<()> {
        match self.assign() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                sink.take(Err(error))?;
                ControlFlow::Break(())
            }
        }
    }
}

/// The leader epoch under which a record was written, where the broker tells.
fn epoch_of(message: &BorrowedMessage<'_>) -> Option<i32> {
    // SAFETY: the message is borrowed, so librdkafka's own still lives; this only reads it.
    // The crate has no word for it.
    let epoch = unsafe { rdkafka::bindings::rd_kafka_message_leader_epoch(message.ptr()) };
    (epoch >= 0).then_some(epoch)
}

/// Gives each partition of a list its leader epoch, in the list's order.
fn set_epochs(list: &mut TopicPartitionList, epochs: impl Iterator<Item = Option<i32>>) {
    let count = list.count();
    for (index, epoch) in epochs.take(count).enumerate() {
        // SAFETY: the list is borrowed for writing and has that many elements.
        // The crate has no word for it.
        unsafe {
            let element = (*list.ptr()).elems.add(index);
            rdkafka::bindings::rd_kafka_topic_partition_set_leader_epoch(element, epoch.unwrap_or(-1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::kafka::{KafkaLog, KafkaSettings};
    use crate::log::{Log, block_on, embedded::EmbeddedBroker};

    #[test]
    fn a_partition_that_librdkafka_has_forgotten_is_read_on() {
        let broker = EmbeddedBroker::start("t").expect("a broker starts");
        let log = KafkaLog::connect(KafkaSettings::new(broker.bootstrap_servers(), "t")).expect("the broker answers");
        let starts = [0, 1].map(|partition| (Topic::Requests, partition, Start::At(0)));
        let mut reader = reader(&log.cluster, &starts).expect("readable");
        reader.look_every = Duration::from_secs(1);
        // Like one that it has stopped for a reason of its own, which nothing tells either.
        let mut forgotten = TopicPartitionList::new();
        forgotten.add_partition(log.cluster.name(Topic::Requests), 1);
        reader.consumer.pause(&forgotten).expect("it can pause");
        drop(forgotten);
        let mut tail = Tail::polled(Box::new(reader));
        for (partition, value) in [(1, "first"), (1, "second"), (0, "other")] {
            block_on(log.append(Topic::Requests, partition, Bytes::from(value))).expect("appended");
        }
        let mut read = Vec::new();
        while read.len() < 3 {
            let record = tail.blocking_next().expect("it does not end").expect("no trouble");
            read.push((record.partition, String::from_utf8(record.value.to_vec()).expect("text")));
        }
        assert_eq!(read, [(0, "other".into()), (1, "first".into()), (1, "second".into())]);
    }
}
