//! One producer instance with its polling thread, opened at its first use.
//!
//! A record is in librdkafka's queue when `append` returns; the delivery report
//! completes the future. Nothing here waits: a full queue is an error at once.

use super::client::{self, Trouble, Watch};
use super::{Cluster, KafkaSettings};
use crate::log::{Appended, LogError, Topic};
use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use tokio::sync::oneshot;

/// Most bytes that wait or are under way in a lane; beyond it appends fail at once.
const QUEUE_KIB: &str = "131072";
/// Most records, likewise.
const QUEUE_RECORDS: &str = "100000";
/// How long delivery reports may gather on a lane that is busy.
const REPORTS_GATHER: Duration = Duration::from_millis(15);
/// How late a lane's thread sees that it is to end while something is under way.
const STOP_SEEN: Duration = Duration::from_millis(100);
/// How often a lane without anything under way is looked after: what librdkafka has to say (refusals above all) is taken then.
const IDLE_LOOK: Duration = Duration::from_millis(100);
/// How long a lane that is closed goes on sending what it holds.
const CLOSING: Duration = Duration::from_secs(1);

pub(super) struct Lane {
    config: ClientConfig,
    name: &'static str,
    /// Nobody waits for what becomes of a small record, an answer says that; so its delivery
    /// report need not take a processor from that very answer.
    gather: bool,
    running: OnceLock<Running>,
    /// Held while it is being opened.
    opening: Mutex<()>,
}

/// Stops its thread, which then flushes and closes the producer, when dropped.
struct Running {
    producer: Arc<BaseProducer<Delivery>>,
    stop: Arc<AtomicBool>,
    signs: Arc<Signs>,
    thread: Thread,
}

/// What a lane's thread is told, and tells.
#[derive(Default)]
struct Signs {
    /// Somebody waits for the next delivery report.
    hurry: AtomicBool,
    /// Nothing is under way: whoever appends wakes the thread.
    idle: AtomicBool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

impl Lane {
    pub(super) fn new(cluster: &Cluster, durable: bool, bulk: bool) -> Self {
        let timeout_ms = timeout_ms(&cluster.settings);
        let request_timeout_ms = if bulk { client::BULK_TIMEOUT_MS } else { "10000" };
        let ours = [
            ("linger.ms", "0"),
            ("queue.buffering.max.kbytes", QUEUE_KIB),
            ("queue.buffering.max.messages", QUEUE_RECORDS),
            ("request.timeout.ms", request_timeout_ms),
            ("socket.timeout.ms", request_timeout_ms),
            // How long a topic that is not there may still appear.
            ("topic.metadata.propagation.max.ms", "3000"),
            ("message.timeout.ms", &timeout_ms),
        ];
        // Nothing here needs Kafka's own deduplication: requests, answers and servers' records are
        // numbered, a chunk is found by its position. A retry may repeat a record, or let a later
        // one overtake it. An idempotent producer would cost dearly: with its requests under way,
        // librdkafka's thread spins until the next answer (measured on Kafka 4.1 and 4.4: half of
        // the rate for chunks, a third of that for requests with 64 getattrs in flight).
        let mut fixed = vec![("enable.idempotence", "false"), ("acks", if durable { "all" } else { "1" })];
        if !bulk {
            // Small records that come while a few requests are under way leave together after them:
            // a request with many records costs the broker little more than one with one. Measured
            // on Kafka 4.4 with 64 getattrs in flight: 13,400/s before, 19,000/s with both, and
            // nothing added to a single one.
            fixed.push(("max.in.flight.requests.per.connection", "4"));
        }
        let name = match (durable, bulk) {
            (false, false) => "kfs-append-control",
            (false, true) => "kfs-append-bulk",
            (true, false) => "kfs-append-log",
            (true, true) => "kfs-append-chunk",
        };
        let config = client::config(&cluster.settings, &ours, &fixed);
        Lane { config, name, gather: !bulk, running: OnceLock::new(), opening: Mutex::default() }
    }

    pub(super) fn append(&self, cluster: &Arc<Cluster>, topic: Topic, partition: u32, value: &[u8]) -> Appended {
        let (done, outcome) = oneshot::channel();
        let receipt = Box::new(Receipt { cluster: Arc::clone(cluster), topic, partition, done });
        self.send(cluster, receipt, value);
        let closed = LogError::NotAppended {
            topic: cluster.name(topic).to_owned(),
            partition,
            reason: "the log was closed".to_owned(),
        };
        Box::pin(async move { outcome.await.unwrap_or(Err(closed)) })
    }

    /// Runs `ask` on the lane's client instance, opening it if need be.
    pub(super) fn with_client<T>(&self, ask: impl FnOnce(&Client<Delivery>, &Trouble) -> T) -> Result<T, LogError> {
        let producer = self.producer()?;
        Ok(ask(producer.client(), &producer.context().watch.trouble))
    }

    /// The next delivery report is taken as soon as it comes.
    pub(super) fn hurry(&self) {
        if let Some(running) = self.running.get()
            && !running.signs.hurry.swap(true, Ordering::Relaxed)
        {
            running.thread.unpark();
        }
    }

    #[cfg(test)]
    pub(super) fn is_open(&self) -> bool {
        self.running.get().is_some()
    }

    fn send(&self, cluster: &Cluster, receipt: Box<Receipt>, value: &[u8]) {
        let running = match self.running() {
            Ok(running) => running,
            Err(error) => return receipt.settle(Err(error)),
        };
        let producer = &running.producer;
        let record = BaseRecord::<(), [u8], Box<Receipt>>::with_opaque_to(cluster.name(receipt.topic), receipt);
        let partition = record.delivery_opaque.partition as i32;
        if let Err((error, record)) = producer.send(record.partition(partition).payload(value)) {
            let receipt = record.delivery_opaque;
            let error = receipt.failure(&error, &producer.context().watch.trouble);
            receipt.settle(Err(error));
        }
        // Behind the append, as the thread looks for appends behind saying that it is idle.
        if running.signs.idle.swap(false, Ordering::SeqCst) {
            running.thread.unpark();
        }
    }

    fn producer(&self) -> Result<&BaseProducer<Delivery>, LogError> {
        Ok(&self.running()?.producer)
    }

    fn running(&self) -> Result<&Running, LogError> {
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let _turn = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = self.running.get() {
            return Ok(running);
        }
        let opened = Running::open(&self.config, self.name, self.gather)?;
        Ok(self.running.get_or_init(|| opened))
    }
}

impl Running {
    fn open(config: &ClientConfig, name: &'static str, gather: bool) -> Result<Self, LogError> {
        let producer: Arc<BaseProducer<Delivery>> =
            Arc::new(client::open(config, Delivery { watch: Watch::default(), told: AtomicU64::new(0) })?);
        let (stop, signs) = (Arc::new(AtomicBool::new(false)), Arc::new(Signs::default()));
        let (its_producer, its_stop, its_signs) = (Arc::clone(&producer), Arc::clone(&stop), Arc::clone(&signs));
        let polls = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || take_reports(&its_producer, gather, &its_stop, &its_signs))
            .map_err(|error| LogError::Refused { tried: "start a client".to_owned(), reason: error.to_string() })?;
        Ok(Running { producer, stop, signs, thread: polls.thread().clone() })
    }
}

/// Takes delivery reports until it is told to stop. A poll that waits ends with up to a millisecond of spinning (`rdkafka`
/// rounds what is left of its time down), so there is none where nothing is under way, and none where reports gather.
fn take_reports(producer: &BaseProducer<Delivery>, gather: bool, stop: &AtomicBool, signs: &Signs) {
    let told = &producer.context().told;
    let mut is_busy = false;
    while !stop.load(Ordering::Relaxed) {
        let before = told.load(Ordering::Relaxed);
        if gather && is_busy && !signs.hurry.load(Ordering::Relaxed) {
            std::thread::park_timeout(REPORTS_GATHER);
            take_at_hand(producer, told);
        } else if producer.in_flight_count() == 0 {
            signs.idle.store(true, Ordering::SeqCst);
            // An append that has not seen that is seen here.
            if producer.in_flight_count() == 0 {
                std::thread::park_timeout(IDLE_LOOK);
            }
            signs.idle.store(false, Ordering::SeqCst);
            producer.poll(Duration::ZERO);
            // What has begun may go on.
            is_busy = producer.in_flight_count() > 0;
            continue;
        } else {
            // As they come; the time only bounds how late a stop is seen.
            producer.poll(STOP_SEEN);
        }
        is_busy = told.load(Ordering::Relaxed) != before;
        if is_busy {
            signs.hurry.store(false, Ordering::Relaxed);
        }
    }
    if let Err(error) = producer.flush(CLOSING) {
        tracing::debug!(target: "kafka", "closed with appends unsent: {error}");
    }
}

/// Takes the reports that have come.
fn take_at_hand(producer: &BaseProducer<Delivery>, told: &AtomicU64) {
    loop {
        let before = told.load(Ordering::Relaxed);
        producer.poll(Duration::ZERO);
        if told.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

fn timeout_ms(settings: &KafkaSettings) -> String {
    settings.timeout.as_millis().clamp(1, i32::MAX as u128).to_string()
}

/// Where a record's delivery report goes.
pub(super) struct Receipt {
    cluster: Arc<Cluster>,
    topic: Topic,
    partition: u32,
    done: oneshot::Sender<Result<u64, LogError>>,
}

impl Receipt {
    fn settle(self, outcome: Result<u64, LogError>) {
        // Nobody may be waiting any more; the record is in the log all the same.
        let _ = self.done.send(outcome);
    }

    fn not_appended(&self, reason: String) -> LogError {
        LogError::NotAppended { topic: self.cluster.name(self.topic).to_owned(), partition: self.partition, reason }
    }

    fn failure(&self, error: &KafkaError, trouble: &Trouble) -> LogError {
        use RDKafkaErrorCode::*;
        let cluster = &self.cluster;
        match error.rdkafka_error_code() {
            Some(UnknownTopicOrPartition | UnknownTopic | UnknownPartition) => cluster.no_topic(self.topic),
            Some(
                code @ (TopicAuthorizationFailed
                | ClusterAuthorizationFailed
                | PolicyViolation
                | MessageSizeTooLarge
                | InvalidRecord),
            ) => {
                LogError::Refused { tried: format!("append to {}", cluster.name(self.topic)), reason: code.to_string() }
            }
            Some(QueueFull) => {
                self.not_appended("too much is waiting to be sent already; the broker is slow or away".to_owned())
            }
            Some(code) if client::is_passing(code) => cluster.unreachable(trouble),
            Some(code) => self.not_appended(code.to_string()),
            None => self.not_appended(error.to_string()),
        }
    }
}

pub(super) struct Delivery {
    watch: Watch,
    /// Reports taken in so far.
    told: AtomicU64,
}

impl ClientContext for Delivery {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watch.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ProducerContext for Delivery {
    type DeliveryOpaque = Box<Receipt>;

    fn delivery(&self, report: &DeliveryResult<'_>, receipt: Box<Receipt>) {
        self.told.fetch_add(1, Ordering::Relaxed);
        let outcome = match report {
            Ok(message) => match u64::try_from(message.offset()) {
                Ok(offset) => Ok(offset),
                Err(_) => Err(receipt.not_appended("the broker did not tell the offset (a repeated send)".to_owned())),
            },
            Err((error, _)) => Err(receipt.failure(error, &self.watch.trouble)),
        };
        if outcome.is_ok() {
            self.watch.trouble.clear();
        }
        receipt.settle(outcome);
    }
}
