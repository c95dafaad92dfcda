//! What raw Kafka can do here: a ping-pong through two topics by way of an echo
//! thread, and records of 512 KiB passing through. Settings are those that the design
//! measured as best for request and reply.

use anyhow::{Context, Result, bail};
use harness::tree::Random;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PING: &str = "raw.ping";
const PONG: &str = "raw.pong";
const BULK: &str = "raw.bulk";
/// About the size of a sealed getattr and of its answer.
const SMALL_BYTES: usize = 200;
const BULK_BYTES: usize = 512 << 10;
/// The longest that a record may take before the measurement is given up.
const LATE: Duration = Duration::from_secs(30);

pub struct Raw {
    bootstrap: String,
    stop: Arc<AtomicBool>,
    echo: Option<std::thread::JoinHandle<Result<()>>>,
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("socket.nagle.disable", "true");
    config
}

fn producer(bootstrap: &str, acks: &str) -> Result<BaseProducer> {
    let mut config = config(bootstrap);
    config
        .set("linger.ms", "0")
        .set("acks", acks)
        .set("enable.idempotence", if acks == "all" { "true" } else { "false" });
    config.set("queue.buffering.max.kbytes", "131072").set("queue.buffering.max.messages", "100000");
    config.create().context("start a raw producer")
}

fn consumer(bootstrap: &str, topic: &str, from: Offset) -> Result<BaseConsumer> {
    let mut config = config(bootstrap);
    config.set("group.id", "raw-unused").set("enable.auto.commit", "false").set("auto.offset.reset", "error");
    config.set("fetch.wait.max.ms", "500").set("fetch.queue.backoff.ms", "1").set("fetch.error.backoff.ms", "50");
    let consumer: BaseConsumer = config.create().context("start a raw consumer")?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, from)?;
    consumer.assign(&list)?;
    Ok(consumer)
}

/// The offset of the next record, known before anything is sent.
fn end(consumer: &BaseConsumer, topic: &str) -> Result<Offset> {
    // A topic made just now has no leader for a moment.
    let deadline = Instant::now() + LATE;
    loop {
        match consumer.fetch_watermarks(topic, 0, LATE) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            marks => return Ok(Offset::Offset(marks?.1)),
        }
    }
}

fn at_end(bootstrap: &str, topic: &str) -> Result<BaseConsumer> {
    let asking: BaseConsumer = config(bootstrap).set("group.id", "raw-unused").create()?;
    consumer(bootstrap, topic, end(&asking, topic)?)
}

fn send(producer: &BaseProducer, topic: &str, value: &[u8]) -> Result<()> {
    let mut record = BaseRecord::<(), [u8]>::to(topic).partition(0).payload(value);
    loop {
        match producer.send(record) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(Duration::from_millis(1));
            }
            Err((error, _)) => return Err(error).context("send a raw record"),
        }
    }
}

impl Raw {
    pub fn start(bootstrap: &str) -> Result<Raw> {
        let admin: AdminClient<DefaultClientContext> = config(bootstrap).create()?;
        let topics = [PING, PONG, BULK].map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for created in runtime.block_on(admin.create_topics(&topics, &AdminOptions::new()))? {
            created.map_err(|(name, code)| anyhow::anyhow!("create {name}: {code}"))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let echo = {
            let (bootstrap, stop) = (bootstrap.to_owned(), Arc::clone(&stop));
            let requests = at_end(&bootstrap, PING)?;
            std::thread::Builder::new().name("echo".to_owned()).spawn(move || echo(&bootstrap, &requests, &stop))?
        };
        Ok(Raw { bootstrap: bootstrap.to_owned(), stop, echo: Some(echo) })
    }

    /// Median round trip of `count`, one at a time, in milliseconds.
    pub fn round_trip(&self, count: usize) -> Result<f64> {
        let (asking, answers) = (producer(&self.bootstrap, "all")?, at_end(&self.bootstrap, PONG)?);
        let value = Random::new(1).bytes(SMALL_BYTES);
        let mut times = Vec::with_capacity(count);
        for i in 0..count + 100 {
            let start = Instant::now();
            send(&asking, PING, &value)?;
            next(&answers)?;
            // The first ones open connections.
            if i >= 100 {
                times.push(start.elapsed().as_secs_f64() * 1000.0);
            }
        }
        Ok(super::median(times.into_iter()))
    }

    /// Round trips a second with `window` in flight.
    pub fn pipelined(&self, count: usize, window: usize) -> Result<f64> {
        let (asking, answers) = (producer(&self.bootstrap, "all")?, at_end(&self.bootstrap, PONG)?);
        let value = Random::new(1).bytes(SMALL_BYTES);
        for _ in 0..10 {
            send(&asking, PING, &value)?;
            next(&answers)?;
        }
        let start = Instant::now();
        let (mut sent, mut answered) = (0, 0);
        while answered < count {
            while sent < count && sent - answered < window {
                send(&asking, PING, &value)?;
                sent += 1;
            }
            next(&answers)?;
            answered += 1;
        }
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// MB/s at which `mib` MiB pass, in records of 512 KiB that do not compress: produced,
    /// acknowledged and consumed at the same time.
    pub fn bulk(&self, mib: usize) -> Result<f64> {
        let records = (mib << 20) / BULK_BYTES;
        let megabytes = (records * BULK_BYTES) as f64 / 1e6;
        let reading = at_end(&self.bootstrap, BULK)?;
        let writing = producer(&self.bootstrap, "all")?;
        let mut random = Random::new(2);
        let values: Vec<Vec<u8>> = (0..16).map(|_| random.bytes(BULK_BYTES)).collect();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let read = scope.spawn(|| (0..records).try_for_each(|_| next(&reading).map(drop)));
            for i in 0..records {
                send(&writing, BULK, &values[i % values.len()])?;
                writing.poll(Duration::ZERO);
            }
            writing.flush(10 * LATE)?;
            read.join().expect("no thread panics")
        })?;
        Ok(megabytes / start.elapsed().as_secs_f64())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.echo.take().map(std::thread::JoinHandle::join) {
            eprintln!("kfs-bench: the echo failed: {error:#}");
        }
    }
}

/// Waits for the next record and says how long it is.
fn next(consumer: &BaseConsumer) -> Result<usize> {
    let start = Instant::now();
    loop {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(message)) => return Ok(message.payload().map_or(0, <[u8]>::len)),
            Some(Err(error)) => return Err(error).context("read a raw record"),
            None if start.elapsed() > LATE => bail!("a raw record did not come within {LATE:?}"),
            None => {}
        }
    }
}

fn echo(bootstrap: &str, requests: &BaseConsumer, stop: &AtomicBool) -> Result<()> {
    let answering = producer(bootstrap, "1")?;
    while !stop.load(Ordering::Relaxed) {
        if let Some(message) = requests.poll(Duration::from_millis(100)) {
            let message = message.context("read a raw request")?;
            send(&answering, PONG, message.payload().unwrap_or_default())?;
            // Takes in the delivery reports, without waiting for any.
            answering.poll(Duration::ZERO);
        }
    }
    Ok(())
}
