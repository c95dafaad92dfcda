//! What the log's own tests show on the embedded broker and in memory, on real
//! Kafka: topics are created with `LogAppendTime`, records come back in order,
//! trimming is noticed, and an outage ends by itself.

use crate::kafka_or_explain;
use harness::kafka::Kafka;
use proto::log::kafka::{KafkaLog, KafkaSettings, create_topics, missing_topics};
use proto::log::{Log, LogError, MAX_RECORD_BYTES, Record, Start, Tail, Topic};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);

async fn next(tail: &mut Tail) -> Record {
    next_in_time(tail).await.expect("a record in time")
}

async fn next_in_time(tail: &mut Tail) -> Option<Record> {
    loop {
        match tokio::time::timeout(BOUND, tail.next()).await.ok()?.expect("the log goes on") {
            Ok(record) => return Some(record),
            // An outage is told once; reading goes on by itself.
            Err(LogError::Unreachable { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_log_keeps_its_promises_on_real_kafka() {
    let Some(mut kafka) = kafka_or_explain(1) else { return };
    let mut settings = KafkaSettings::new(kafka.bootstrap(), "shop");
    // A broker that recovers after a kill on a busy machine takes longer than users would wait.
    settings.timeout = 2 * BOUND;
    assert_eq!(missing_topics(&settings).expect("Kafka answers").len(), Topic::ALL.len());
    assert!(matches!(
        KafkaLog::connect(settings.clone()).map(|log| log.bounds(Topic::Requests, 0)),
        Ok(Err(LogError::NoTopic { .. })) | Err(LogError::NoTopic { .. })
    ));
    let created = create_topics(&settings).expect("topics can be created");
    assert_eq!((created.topics.len(), created.replication), (Topic::ALL.len(), 1));
    assert!(created.warning.is_some(), "one copy is worth a warning");
    assert!(create_topics(&settings).expect("a second time is fine").topics.is_empty());

    let log = KafkaLog::connect(settings).expect("Kafka answers");
    assert!(!log.is_embedded());
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime.block_on(async {
        let mut live = log.read_from(&[(Topic::Requests, 3, Start::End), (Topic::Chunks, 3, Start::End)]).unwrap();
        for i in 0..100u64 {
            assert_eq!(log.append(Topic::Requests, 3, i.to_string().into()).await.unwrap(), i);
        }
        for i in 0..100 {
            let record = next(&mut live).await;
            assert_eq!((record.topic, record.partition, record.offset), (Topic::Requests, 3, i));
            assert_eq!(record.value, i.to_string());
            assert!(record.append_time_ms > 1_700_000_000_000, "LogAppendTime, not {}", record.append_time_ms);
        }

        // The largest record passes a broker with default limits; a larger one never leaves.
        let big = vec![7u8; MAX_RECORD_BYTES];
        assert_eq!(log.append(Topic::Chunks, 3, big.clone().into()).await.unwrap(), 0);
        assert_eq!(next(&mut live).await.value.len(), big.len());
        let too_big = log.append(Topic::Chunks, 3, vec![7u8; MAX_RECORD_BYTES + 1].into()).await;
        assert!(matches!(too_big, Err(LogError::TooLarge { .. })));

        log.trim(Topic::Requests, 3, 40).expect("records can be deleted");
        assert_eq!(log.bounds(Topic::Requests, 3).unwrap(), (40, 100));
        let gone = match log.read_from(&[(Topic::Requests, 3, Start::At(10))]) {
            Err(error) => error,
            Ok(mut tail) => match tokio::time::timeout(BOUND, tail.next()).await.expect("an answer in time") {
                Some(Err(error)) => error,
                other => panic!("a trimmed record was read: {other:?}"),
            },
        };
        assert!(matches!(gone, LogError::OutOfRange { offset: 10, first: 40, .. }), "{gone}");
        let mut rest = log.read_from(&[(Topic::Requests, 3, Start::At(40))]).unwrap();
        assert_eq!(next(&mut rest).await.value, "40");
    });

    // A killed broker comes back: the same log and the same tail go on.
    runtime.block_on(async {
        let mut live = log.read_from(&[(Topic::Requests, 5, Start::End)]).unwrap();
        log.append(Topic::Requests, 5, "before".into()).await.unwrap();
        assert_eq!(next(&mut live).await.value, "before");
        kafka.kill(0);
        let during = log.append(Topic::Requests, 5, "during".into());
        tokio::task::block_in_place(|| kafka.restart(0)).expect("Kafka starts again");
        during.await.expect("what was queued in the outage is stored after it");
        log.append(Topic::Requests, 5, "after".into()).await.unwrap();
        assert_eq!(next(&mut live).await.value, "during");
        // Where the broker came back too slowly, the first one may have been sent twice.
        while next(&mut live).await.value != "after" {}
    });
}

#[test]
fn three_brokers_keep_three_copies_and_lose_nothing_with_one_of_them() {
    let Some(mut kafka): Option<Kafka> = kafka_or_explain(3) else { return };
    let mut settings = KafkaSettings::new(kafka.bootstrap(), "kfs");
    // The brokers wait some 9 s for the copy of a killed one before they do without it. An append
    // that gives its request up sooner sends it again, so that here records do come repeated.
    settings.properties.insert("request.timeout.ms".to_owned(), "2000".to_owned());
    settings.timeout = 2 * BOUND;
    let created = create_topics(&settings).expect("topics can be created");
    assert_eq!((created.replication, created.warning), (3, None));
    let log = KafkaLog::connect(settings).expect("Kafka answers");
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime.block_on(async {
        let mut live = log.read_from(&[(Topic::Requests, 0, Start::End), (Topic::Requests, 1, Start::End)]).unwrap();
        let mut kept = BTreeMap::new();
        for value in ["first", "second"] {
            if value == "second" {
                tokio::task::block_in_place(|| kafka.kill(2));
            }
            for partition in 0..2 {
                let offset = log.append(Topic::Requests, partition, value.into()).await.expect("two of three suffice");
                kept.insert((partition, offset), value);
            }
        }
        assert_eq!(kept.len(), 4, "two appends were told the same offset: {kept:?}");
        while !kept.is_empty() {
            let record = next(&mut live).await;
            if let Some(value) = kept.remove(&(record.partition, record.offset)) {
                assert_eq!(record.value, value);
            }
        }
    });
}

/// Many readers, since it is rare that one of them meets a broker that has just started and
/// does not know yet who leads what.
#[test]
fn readers_of_many_partitions_all_go_on_after_a_broker_has_restarted() {
    const TAILS: usize = 60;
    const RESTARTS: u64 = 3;
    let Some(mut kafka) = kafka_or_explain(1) else { return };
    let mut settings = KafkaSettings::new(kafka.bootstrap(), "shop");
    settings.timeout = 2 * BOUND;
    create_topics(&settings).expect("topics can be created");
    let log = KafkaLog::connect(settings).expect("Kafka answers");
    let partitions = 0..Topic::Chunks.partitions();
    let starts: Vec<_> = partitions.clone().map(|partition| (Topic::Chunks, partition, Start::End)).collect();
    let mut tails: Vec<Tail> = (0..TAILS).map(|_| log.read_from(&starts).expect("readable")).collect();
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    for restart in 0..=RESTARTS {
        // First they all read something.
        if restart > 0 {
            kafka.kill(0);
            kafka.restart(0).expect("Kafka starts again");
        }
        runtime.block_on(async {
            for partition in partitions.clone() {
                log.append(Topic::Chunks, partition, restart.to_string().into()).await.expect("appended");
            }
            for (number, tail) in tails.iter_mut().enumerate() {
                let mut missing: BTreeSet<u32> = partitions.clone().collect();
                while !missing.is_empty() {
                    let Some(record) = next_in_time(tail).await else {
                        panic!("after restart {restart} tail {number} reads nothing more of {missing:?}");
                    };
                    if record.value == restart.to_string() {
                        missing.remove(&record.partition);
                    }
                }
            }
        });
    }
}
