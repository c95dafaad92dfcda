//! A real broker keeps what it has acknowledged over an orderly restart and a kill -9.

use crate::kafka_or_explain;
use harness::kafka::Kafka;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};

fn produce(kafka: &Kafka, topic: &str, values: &[&str]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("acks", "all")
        .set("message.timeout.ms", "20000")
        .create()
        .expect("the settings are right");
    for value in values {
        producer.send(BaseRecord::<(), str>::to(topic).partition(0).payload(value)).expect("the queue has room");
    }
    producer.flush(Duration::from_secs(20)).expect("everything is acknowledged");
}

fn read_all(kafka: &Kafka, topic: &str, count: usize) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .create()
        .expect("the settings are right");
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_offset(topic, 0, Offset::Beginning).expect("a valid offset");
    consumer.assign(&partitions).expect("assigning asks nobody");
    let (start, mut values) = (Instant::now(), Vec::new());
    while values.len() < count {
        assert!(start.elapsed() < Duration::from_secs(30), "only {values:?} arrived");
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) {
            values.push(String::from_utf8(message.payload().expect("a value").to_vec()).expect("text"));
        }
    }
    values
}

#[test]
fn one_broker_keeps_acknowledged_records_over_restart_and_kill() {
    let Some(mut kafka) = kafka_or_explain(1) else { return };
    produce(&kafka, "t", &["a", "b"]);
    assert_eq!(read_all(&kafka, "t", 2), ["a", "b"]);

    kafka.restart(0).expect("Kafka starts again");
    produce(&kafka, "t", &["c"]);
    assert_eq!(read_all(&kafka, "t", 3), ["a", "b", "c"]);

    kafka.kill(0);
    kafka.restart(0).expect("Kafka starts after a kill");
    assert_eq!(read_all(&kafka, "t", 3), ["a", "b", "c"]);
}
