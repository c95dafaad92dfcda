//! The brokers that the other tests stand on: real Apache Kafka, started by the
//! harness, and the log on it. The log's own crate tests it on the embedded broker.

mod kafka;
mod log;

use harness::broker::Kind;
use harness::kafka::Kafka;

/// Kafka, or `None` where this run is to do without Java and Maven.
fn kafka_or_explain(n_brokers: usize) -> Option<Kafka> {
    if Kind::asked_for() == Kind::Embedded {
        eprintln!("nothing to test without real Kafka: set KFS_TEST_BROKER=kafka");
        return None;
    }
    Some(Kafka::start(n_brokers).expect("Kafka starts"))
}
