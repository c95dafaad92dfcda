//! What only this module can see: threads that end, settings that are kept to,
//! secrets that do not show.

use super::*;
use crate::log::embedded::EmbeddedBroker;

fn connected() -> (EmbeddedBroker, KafkaLog) {
    let broker = EmbeddedBroker::start("t").expect("a broker starts");
    let log = KafkaLog::connect(KafkaSettings::new(broker.bootstrap_servers(), "t")).expect("the broker answers");
    (broker, log)
}

/// Each thread of a tail holds the cluster, so its end shows here.
fn assert_only_holder(log: &KafkaLog, within: Duration) {
    let deadline = Instant::now() + within;
    while Arc::strong_count(&log.cluster) > 1 {
        assert!(Instant::now() < deadline, "a thread goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_dropped_tail_ends_its_thread() {
    let (_broker, log) = connected();
    let idle = log.read_from(&[(Topic::Requests, 0, Start::End)]).expect("readable");
    assert!(Arc::strong_count(&log.cluster) > 1);
    drop(idle);
    assert_only_holder(&log, Duration::from_secs(5));
}

#[test]
fn a_dropped_tail_ends_its_thread_though_its_queue_is_full() {
    let (_broker, log) = connected();
    let full = log.read_from(&[(Topic::Chunks, 0, Start::End)]).expect("readable");
    let appends: Vec<_> =
        (0..4 * Tail::QUEUE_BULK_RECORDS).map(|_| log.append(Topic::Chunks, 0, Bytes::from_static(b"x"))).collect();
    for appended in appends {
        block_on(appended).expect("appended");
    }
    std::thread::sleep(Duration::from_millis(200));
    drop(full);
    assert_only_holder(&log, Duration::from_secs(5));
}

#[test]
fn a_broker_far_away_is_only_slow() {
    let broker = EmbeddedBroker::start("t").expect("a broker starts");
    broker.round_trip(Duration::from_millis(600)).expect("it can be slow");
    let settings = KafkaSettings::new(broker.bootstrap_servers(), "t");
    let log = KafkaLog::connect(settings).expect("the broker answers");
    let appended = block_on(log.append(Topic::Requests, 3, Bytes::from_static(b"x"))).expect("appended");
    assert_eq!((appended, log.bounds(Topic::Requests, 3).expect("it answers")), (0, (0, 1)));
    let starts: Vec<_> = (0..Topic::Requests.partitions()).map(|n| (Topic::Requests, n, Start::At(0))).collect();
    let mut tail = log.read_from(&starts).expect("readable");
    let record = tail.blocking_next().expect("it does not end").expect("no trouble");
    assert_eq!((record.partition, record.offset), (3, 0));
}

#[test]
fn appends_that_are_queued_outlive_the_log() {
    let (_broker, log) = connected();
    let appends: Vec<_> = (0..100).map(|_| log.append(Topic::Chunks, 0, Bytes::from_static(b"x"))).collect();
    drop(log);
    for appended in appends {
        block_on(appended).expect("appended");
    }
}

#[test]
fn clients_open_only_what_they_use() {
    let (_broker, log) = connected();
    let open = |log: &KafkaLog| log.lanes.iter().filter(|lane| lane.is_open()).count();
    assert_eq!(open(&log), 1);
    block_on(log.append(Topic::Requests, 0, Bytes::new())).expect("appended");
    assert_eq!(open(&log), 1);
    for topic in Topic::ALL {
        block_on(log.append(topic, 0, Bytes::new())).expect("appended");
    }
    assert_eq!(open(&log), 4);
}

#[test]
fn an_embedded_broker_has_all_topics() {
    let (_broker, log) = connected();
    assert_eq!(missing_topics(&log.cluster.settings).expect("it answers"), []);
    let other = KafkaSettings { prefix: "other".to_owned(), ..log.cluster.settings.clone() };
    assert_eq!(missing_topics(&other).expect("it answers"), Topic::ALL);
    let created = create_topics(&log.cluster.settings).expect("nothing to create");
    assert_eq!((created.topics.len(), created.replication), (0, 1));
    assert!(created.warning.expect("one copy only").contains("one copy"));
}

#[test]
fn a_wrong_property_is_named_and_its_value_is_not() {
    let mut settings = KafkaSettings::new("127.0.0.1:9", "t");
    settings.properties.insert("sasl.pasword".to_owned(), "hunter2".to_owned());
    let error = KafkaLog::connect(settings).err().expect("there is no such property").to_string();
    assert!(error.contains("`sasl.pasword`") && !error.contains("hunter2"), "{error}");
}

#[test]
fn nobody_there_says_why() {
    let settings = KafkaSettings { timeout: Duration::from_millis(600), ..KafkaSettings::new("127.0.0.1:9", "t") };
    let error = KafkaLog::connect(settings).err().expect("nobody listens there");
    assert!(matches!(error, LogError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    let settings = KafkaSettings::new("no-such-host.invalid:9092", "t");
    let error = KafkaLog::connect(KafkaSettings { timeout: Duration::from_secs(2), ..settings });
    let error = error.err().expect("there is no such host").to_string();
    assert!(error.contains("no-such-host.invalid"), "{error}");
}

#[test]
fn secrets_do_not_show() {
    let mut settings = KafkaSettings::new("b:1", "t");
    for key in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
        settings.properties.insert(key.to_owned(), "hunter2".to_owned());
    }
    settings.properties.insert("sasl.username".to_owned(), "anna".to_owned());
    let shown = format!("{settings:?}");
    assert!(shown.contains("anna") && shown.contains("ssl.key.pem") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_full_queue_is_an_error_at_once() {
    let broker = EmbeddedBroker::start("t").expect("a broker starts");
    let mut settings = KafkaSettings::new(broker.bootstrap_servers(), "t");
    settings.properties.insert("queue.buffering.max.messages".to_owned(), "10".to_owned());
    let log = KafkaLog::connect(settings).expect("the broker answers");
    block_on(log.append(Topic::Chunks, 0, Bytes::new())).expect("appended");
    broker.down().expect("down");
    let mut appends: Vec<_> = (0..20).map(|_| log.append(Topic::Chunks, 0, Bytes::from_static(b"x"))).collect();
    let refused = block_on(appends.pop().expect("the twentieth")).expect_err("ten are waiting");
    assert!(matches!(refused, LogError::NotAppended { .. }), "{refused}");
    broker.up().expect("up");
    // The very first may still have held its place when the others came.
    let appended = appends.into_iter().map(block_on).filter(Result::is_ok).count();
    assert!((9..=10).contains(&appended), "{appended}");
}

#[test]
fn the_user_replaces_what_no_promise_rests_on() {
    let config = client::config(&KafkaSettings::new("b:1", "t"), &[], &[("acks", "all")]);
    assert_eq!((config.get("bootstrap.servers"), config.get("acks")), (Some("b:1"), Some("all")));
    let mut settings = KafkaSettings::new("b:1", "t");
    settings.properties.insert("acks".to_owned(), "0".to_owned());
    settings.properties.insert("client.id".to_owned(), "mine".to_owned());
    let config = client::config(&settings, &[], &[("acks", "all")]);
    assert_eq!((config.get("client.id"), config.get("acks")), (Some("mine"), Some("all")));
}
