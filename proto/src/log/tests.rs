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

#[tokio::test(flavor = "multi_thread")]
async fn many_partitions_in_one_tail_each_keep_their_order() {
    const EACH: u32 = 100;
    for Bench { log, broker } in both() {
        let starts: Vec<_> = (0..Topic::Requests.partitions()).map(|p| (Topic::Requests, p, Start::At(0))).collect();
        let mut tail = log.read_from(&starts).expect("readable");
        let mut appends = Vec::new();
        for n in 0..EACH {
            for &(topic, partition, _) in &starts {
                appends.push(log.append(topic, partition, Bytes::copy_from_slice(&n.to_be_bytes())));
            }
        }
        let mut seen = vec![0u32; starts.len()];
        for _ in 0..appends.len() {
            let record = next(&mut tail).await;
            let expected = &mut seen[record.partition as usize];
            assert_eq!(record.value, &expected.to_be_bytes()[..]);
            assert_eq!(record.offset, u64::from(*expected));
            *expected += 1;
        }
        for (index, appended) in appends.into_iter().enumerate() {
            assert_eq!(appended.await.expect("appended") as usize, index / starts.len());
        }
        assert!(tail.try_next().is_none());
        drop((log, broker));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_begins_where_it_was_told_to() {
    for Bench { log, broker } in both() {
        for value in ["a", "b", "c"] {
            append(&log, Topic::Chunks, 1, value).await;
        }
        append(&log, Topic::Auth, 0, "other").await;
        assert_eq!(log.bounds(Topic::Chunks, 1).expect("known"), (0, 3));
        assert_eq!(log.bounds(Topic::Chunks, 2).expect("known"), (0, 0));

        let starts = [(Topic::Chunks, 1, Start::At(1)), (Topic::Auth, 0, Start::End)];
        let mut middle = log.read_from(&starts).expect("readable");
        let mut end = log.read_from(&[(Topic::Chunks, 1, Start::End)]).expect("readable");
        let mut at_next = log.read_from(&[(Topic::Chunks, 1, Start::At(3))]).expect("readable");
        append(&log, Topic::Chunks, 1, "d").await;

        let mut read = Vec::new();
        for _ in 0..3 {
            let record = next(&mut middle).await;
            read.push((record.topic, record.offset, record.value));
        }
        let expected = [(1, "b"), (2, "c"), (3, "d")].map(|(offset, v)| (Topic::Chunks, offset, Bytes::from(v)));
        assert_eq!(read, expected);
        assert_eq!(next(&mut end).await.offset, 3);
        assert_eq!(next(&mut at_next).await.offset, 3);
        drop((log, broker));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_does_not_have_is_out_of_range() {
    for Bench { log, broker } in both() {
        append(&log, Topic::Requests, 0, "a").await;
        let beyond = log.read_from(&[(Topic::Requests, 0, Start::At(2))]).err().expect("there is no offset 2");
        assert!(matches!(beyond, LogError::OutOfRange { offset: 2, first: 0, next: 1, .. }), "{beyond}");
        let partition = Topic::Requests.partitions();
        let absent = log.read_from(&[(Topic::Requests, partition, Start::End)]).err().expect("no such partition");
        assert!(matches!(absent, LogError::NoTopic { .. }), "{absent}");
        let absent = log.append(Topic::Requests, partition, Bytes::new()).await.expect_err("no such partition");
        assert!(matches!(absent, LogError::NoTopic { .. }), "{absent}");
        let absent = log.bounds(Topic::Requests, partition).expect_err("no such partition");
        assert!(matches!(absent, LogError::NoTopic { .. }), "{absent}");
        drop((log, broker));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_have_a_largest_size() {
    for Bench { log, broker } in both() {
        let largest = Bytes::from(vec![7; MAX_RECORD_BYTES]);
        append(&log, Topic::Chunks, 0, largest.clone()).await;
        let mut tail = log.read_from(&[(Topic::Chunks, 0, Start::At(0))]).expect("readable");
        assert_eq!(next(&mut tail).await.value, largest);
        let larger = Bytes::from(vec![7; MAX_RECORD_BYTES + 1]);
        let refused = log.append(Topic::Chunks, 0, larger).await.expect_err("too large");
        assert!(matches!(refused, LogError::TooLarge { bytes } if bytes == MAX_RECORD_BYTES + 1), "{refused}");
        drop((log, broker));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing() {
    const RECORDS: u64 = 3 * Tail::QUEUE_RECORDS as u64;
    for Bench { log, broker } in both() {
        let mut tail = log.read_from(&[(Topic::Replies, 63, Start::End)]).expect("readable");
        let appends: Vec<_> = (0..RECORDS).map(|_| log.append(Topic::Replies, 63, Bytes::from_static(b"x"))).collect();
        for appended in appends {
            appended.await.expect("appended");
        }
        for offset in 0..RECORDS {
            assert_eq!(next(&mut tail).await.offset, offset);
        }
        drop((log, broker));
    }
}

#[test]
fn a_thread_can_wait_for_a_record() {
    for Bench { log, broker } in both() {
        let mut tail = log.read_from(&[(Topic::Auth, 0, Start::End)]).expect("readable");
        let waiting = std::thread::spawn(move || tail.blocking_next());
        std::thread::sleep(Duration::from_millis(20));
        block_on(log.append(Topic::Auth, 0, Bytes::from_static(b"hello"))).expect("appended");
        let record = waiting.join().expect("no panic").expect("the tail goes on").expect("a record");
        assert_eq!(record.value, "hello");
        drop((log, broker));
    }
}

#[tokio::test]
async fn what_is_trimmed_is_gone() {
    let log = MemoryLog::new();
    log.set_time(1_700_000_000_000);
    let shared: Arc<dyn Log> = Arc::new(log.clone());
    for value in ["a", "b", "c", "d"] {
        append(&shared, Topic::Requests, 0, value).await;
    }
    let mut behind = log.read_from(&[(Topic::Requests, 0, Start::At(1))]).expect("readable");
    assert_eq!(next(&mut behind).await.append_time_ms, 1_700_000_000_000);
    log.trim(Topic::Requests, 0, 3).expect("trimmed");
    log.trim(Topic::Requests, 0, 1).expect("trimmed already");
    assert_eq!(log.bounds(Topic::Requests, 0).expect("known"), (3, 4));
    assert_eq!(log.records(Topic::Requests, 0).len(), 1);
    let gone = next_item(&mut behind).await.expect_err("it was trimmed away");
    assert!(matches!(gone, LogError::OutOfRange { offset: 2, first: 3, next: 4, .. }), "{gone}");
    assert!(behind.next().await.is_none(), "that was its last word");
    let gone = log.read_from(&[(Topic::Requests, 0, Start::At(2))]).err().expect("trimmed");
    assert!(matches!(gone, LogError::OutOfRange { .. }), "{gone}");
    let beyond = log.trim(Topic::Requests, 0, 5).expect_err("not written yet");
    assert!(matches!(beyond, LogError::OutOfRange { .. }), "{beyond}");
    assert_eq!(append(&shared, Topic::Requests, 0, "e").await, 4);
}

#[tokio::test]
async fn the_memory_log_yields_records_in_the_order_of_the_appends() {
    let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
    let starts = [(Topic::Requests, 0, Start::End), (Topic::Requests, 1, Start::End), (Topic::Reads, 0, Start::End)];
    let mut tail = log.read_from(&starts).expect("readable");
    let order = [(Topic::Requests, 1), (Topic::Reads, 0), (Topic::Requests, 0), (Topic::Requests, 1)];
    for (topic, partition) in order {
        append(&log, topic, partition, "x").await;
    }
    for (topic, partition) in order {
        let record = next(&mut tail).await;
        assert_eq!((record.topic, record.partition), (topic, partition));
    }
}

/// The embedded broker cannot delete records on request, but forgets the oldest by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_has_forgotten_is_out_of_range() {
    let Bench { log, broker } = on_broker();
    for _ in 0..12 {
        append(&log, Topic::Bulk, 1, vec![1; 800_000]).await;
    }
    let (first, next) = log.bounds(Topic::Bulk, 1).expect("known");
    assert!(first > 0 && next == 12, "{first}..{next}");
    let gone = log.read_from(&[(Topic::Bulk, 1, Start::At(0))]).err().expect("it is gone");
    assert!(matches!(gone, LogError::OutOfRange { offset: 0, next: 12, .. }), "{gone}");
    log.trim(Topic::Bulk, 1, 12).expect("nothing to do");

    // A reader that has been overtaken is told so, after what had been fetched for it.
    let mut slow = log.read_from(&[(Topic::Bulk, 2, Start::End)]).expect("readable");
    for _ in 0..120 {
        append(&log, Topic::Bulk, 2, vec![1; 800_000]).await;
    }
    let mut expected = 0;
    let gone = loop {
        match next_item(&mut slow).await {
            Ok(record) => assert_eq!((record.offset, record.append_time_ms), (expected, 0)),
            Err(error) => break error,
        }
        expected += 1;
    };
    assert!(matches!(gone, LogError::OutOfRange { offset, .. } if offset == expected), "{gone}");
    assert!(slow.next().await.is_none(), "that was its last word");
    drop(broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_and_appending_resume_after_an_outage() {
    let Bench { log, broker } = on_broker();
    let broker = broker.expect("this one has a broker");
    let mut tail = log.read_from(&[(Topic::Requests, 0, Start::At(0))]).expect("readable");
    append(&log, Topic::Requests, 0, "before").await;
    assert_eq!(next(&mut tail).await.value, "before");
    // Twice: the second outage must be noticed like the first, though no record came in between.
    for round in ["one", "two"] {
        broker.down().expect("down");
        let outage = next_item(&mut tail).await.expect_err("there is no broker");
        assert!(matches!(outage, LogError::Unreachable { .. }), "{outage}");
        let during = log.append(Topic::Requests, 0, Bytes::from(round));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(tail.try_next().is_none(), "one outage is one error");
        broker.up().expect("up");
        during.await.expect("sent when the broker was back");
        // This broker does not notice a repeated send.
        loop {
            let record = next(&mut tail).await;
            if record.value == round {
                break;
            }
            assert_eq!(record.value, "one");
        }
        append(&log, Topic::Requests, 0, "after").await;
        assert_eq!(next(&mut tail).await.value, "after");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_broker_everything_ends_in_time() {
    let broker = EmbeddedBroker::start("t").expect("a broker starts");
    let timeout = Duration::from_secs(2);
    let settings = KafkaSettings { timeout, ..settings(&broker) };
    let log = KafkaLog::connect(settings.clone()).expect("the broker answers");
    log.append(Topic::Requests, 0, Bytes::new()).await.expect("appended");
    broker.down().expect("down");
    let bounded = |what: &str, started: Instant| {
        assert!(started.elapsed() < timeout * 3, "{what} took {:?}", started.elapsed());
    };
    let started = Instant::now();
    let lost = Topic::ALL.map(|topic| (topic, log.append(topic, 0, Bytes::new())));
    for (topic, lost) in lost {
        let lost = tokio::time::timeout(PATIENCE, lost).await.expect("in time").expect_err("there is no broker");
        assert!(matches!(lost, LogError::Unreachable { .. }), "{topic:?}: {lost}");
    }
    bounded("an append to each topic", started);
    let started = Instant::now();
    let error = log.bounds(Topic::Requests, 0).expect_err("there is no broker");
    assert!(matches!(error, LogError::Unreachable { .. }), "{error}");
    bounded("bounds", started);
    let started = Instant::now();
    let error = log.read_from(&[(Topic::Requests, 0, Start::End)]).err().expect("there is no broker");
    assert!(matches!(error, LogError::Unreachable { .. }), "{error}");
    bounded("read_from", started);
    let started = Instant::now();
    let error = KafkaLog::connect(settings).err().expect("there is no broker");
    bounded("connect", started);
    assert!(error.to_string().contains("refused"), "says why: {error}");
}
