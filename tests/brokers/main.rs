//! The brokers that the other tests stand on: real Apache Kafka, started by the harness.

mod kafka;
