//! An embedded broker for `kfs dev` and tests: librdkafka's mock cluster, which
//! speaks the real protocol on a real port of the loopback interface.
//!
//! In memory only, and forgetful: it drops a partition's records beyond 5 MiB or
//! 100,000. It creates no topics on request, deletes no records, stamps no
//! `LogAppendTime`, does not notice a repeated send, and does not wake a waiting
//! fetch (the log on Kafka recognises it and asks every millisecond instead).

use crate::log::{LogError, Topic};
use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A broker with all topics of one cluster; gone when dropped.
///
/// The mock cluster may not change threads, so it lives on one of its own.
pub struct EmbeddedBroker {
    bootstrap_servers: String,
    /// At most a handful of orders, each answered before the next.
    orders: Option<Sender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Down,
    Up,
    RoundTrip(Duration),
}

/// An order and where its outcome goes.
type Asked = (Order, Sender<Result<(), KafkaError>>);

impl EmbeddedBroker {
    /// Starts a broker on a free port of 127.0.0.1, with the topics of the cluster `prefix`.
    pub fn start(prefix: &str) -> Result<Self, LogError> {
        let (orders, received) = channel();
        let (started, start) = channel();
        let topics = Topic::ALL.map(|topic| (format!("{prefix}.{}", topic.suffix()), topic.partitions() as i32));
        let thread = std::thread::Builder::new()
            .name("kfs-broker".to_owned())
            .spawn(move || serve(&topics, &started, &received))
            .map_err(|error| refused(&error))?;
        let bootstrap_servers = match start.recv() {
            Ok(started) => started.map_err(|error| refused(&error))?,
            Err(_) => return Err(refused(&"its thread ended")),
        };
        Ok(EmbeddedBroker { bootstrap_servers, orders: Some(orders), thread: Some(thread) })
    }

    /// `HOST:PORT`, for any Kafka client on this machine.
    pub fn bootstrap_servers(&self) -> &str {
        &self.bootstrap_servers
    }

    /// Drops all connections and takes no new ones, until [`Self::up`].
    pub fn down(&self) -> Result<(), LogError> {
        self.order(Order::Down)
    }

    /// Takes connections again; what was appended before is still there.
    pub fn up(&self) -> Result<(), LogError> {
        self.order(Order::Up)
    }

    /// Answers this much later from here on, as over a long way.
    pub fn round_trip(&self, time: Duration) -> Result<(), LogError> {
        self.order(Order::RoundTrip(time))
    }

    fn order(&self, order: Order) -> Result<(), LogError> {
        let (answer, answered) = channel();
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send((order, answer)).is_ok());
        match answered.recv() {
            Ok(outcome) if sent => outcome.map_err(|error| refused(&error)),
            _ => Err(refused(&"its thread ended")),
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn refused(reason: &dyn std::fmt::Display) -> LogError {
    LogError::Refused { tried: "run an embedded broker".to_owned(), reason: reason.to_string() }
}

/// Runs the broker until the orders end.
fn serve(topics: &[(String, i32)], started: &Sender<Result<String, KafkaError>>, orders: &Receiver<Asked>) {
    let cluster = match open(topics) {
        Ok(cluster) => cluster,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(cluster.bootstrap_servers())).is_err() {
        return;
    }
    for (order, answer) in orders {
        let outcome = match order {
            Order::Down => cluster.broker_down(-1),
            Order::Up => cluster.broker_up(-1),
            Order::RoundTrip(time) => cluster.broker_round_trip_time(-1, time),
        };
        let _ = answer.send(outcome);
    }
}

fn open(topics: &[(String, i32)]) -> Result<MockCluster<'static, DefaultProducerContext>, KafkaError> {
    let cluster = MockCluster::new(1)?;
    for (name, partitions) in topics {
        // An order that comes while the mock cluster's thread is still ending the last one
        // is sometimes noticed a second late.
        std::thread::sleep(Duration::from_millis(1));
        cluster.create_topic(name, *partitions, 1)?;
    }
    Ok(cluster)
}
