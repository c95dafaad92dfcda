//! What every log must do, run through the trait on the log in memory and on
//! Kafka's client against the embedded broker; then what only a broker does:
//! going away and coming back.

use super::embedded::EmbeddedBroker;
use super::kafka::{KafkaLog, KafkaSettings};
use super::memory::MemoryLog;
use super::*;
use std::time::{Duration, Instant};

/// Far more than anything here takes; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    log: Arc<dyn Log>,
    broker: Option<EmbeddedBroker>,
}

fn settings(broker: &EmbeddedBroker) -> KafkaSettings {
    KafkaSettings::new(broker.bootstrap_servers(), "t")
}

fn on_broker() -> Bench {
    let broker = EmbeddedBroker::start("t").expect("a broker starts");
    let log = KafkaLog::connect(settings(&broker)).expect("the broker answers");
    assert!(log.is_embedded());
    Bench { log: Arc::new(log), broker: Some(broker) }
}

fn both() -> [Bench; 2] {
    [Bench { log: Arc::new(MemoryLog::new()), broker: None }, on_broker()]
}

async fn next(tail: &mut Tail) -> Record {
    next_item(tail).await.expect("a record")
}

async fn next_item(tail: &mut Tail) -> Result<Record, LogError> {
    tokio::time::timeout(PATIENCE, tail.next()).await.expect("in time").expect("the tail goes on")
}

async fn append(log: &Arc<dyn Log>, topic: Topic, partition: u32, value: impl Into<Bytes>) -> u64 {
    log.append(topic, partition, value.into()).await.expect("appended")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_answer_go_round() {
    for Bench { log, broker } in both() {
        let mut requests = log.read_from(&[(Topic::Requests, 3, Start::End)]).expect("readable");
        let mut replies = log.read_from(&[(Topic::Replies, 5, Start::End)]).expect("readable");
        let server = {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                for _ in 0..200 {
                    let request = next(&mut requests).await;
                    append(&log, Topic::Replies, 5, request.value).await;
                }
            })
        };
        let started = Instant::now();
        for n in 0..200u32 {
            let value = Bytes::copy_from_slice(&n.to_be_bytes());
            let asked = log.append(Topic::Requests, 3, value.clone());
            let answer = next(&mut replies).await;
            assert_eq!(answer.value, value);
            assert_eq!(asked.await.expect("appended"), u64::from(n));
        }
        println!("{:?} a round trip", started.elapsed() / 200);
        server.await.expect("the server ends");
        drop((log, broker));
    }
}
