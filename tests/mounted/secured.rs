//! Kafka's own security, from the configuration: a broker that wants TLS and a password.

use crate::executable;
use harness::Cluster;
use harness::broker::{Broker, Kind};
use harness::kafka::PASSWORD;
use std::fs;

#[test]
fn a_broker_that_wants_tls_and_a_password_gets_both_from_the_configuration() {
    if Kind::asked_for() == Kind::Embedded {
        eprintln!("nothing to test without real Kafka: set KFS_TEST_BROKER=kafka");
        return;
    }
    let cluster = Cluster::start_with(&executable(), Broker::secured_kafka).expect("the cluster starts");
    cluster.user_add("secure").unwrap();
    let mount = cluster.mount("secure").unwrap();
    let content = vec![7; 300_000];
    fs::write(mount.join("file"), &content).unwrap();
    let other = cluster.mount("secure").unwrap();
    assert!(fs::read(other.join("file")).unwrap() == content);
    let listed = cluster.kfs("secure", &["ls"]).finish().unwrap().text();
    assert!(listed.contains("file"), "{listed}");

    // One wrong word of it, and there is a reason in one line that tells no secret.
    let config = fs::read_to_string(cluster.dir().join("config.toml")).unwrap();
    let wrongs = [
        (config.replace(PASSWORD, "another password"), "authentication"),
        (config.replace("ca.pem", "broker.key"), "ssl"),
        (config.lines().filter(|line| !line.contains("ssl.ca.location")).collect::<Vec<_>>().join("\n"), "certificate"),
    ];
    for (i, (wrong, word)) in wrongs.into_iter().enumerate() {
        let file = cluster.dir().join(format!("wrong-{i}.toml"));
        fs::write(&file, wrong).unwrap();
        let dir = cluster.mountpoint().unwrap();
        let mounting = cluster.mount_command("secure", "timeout=15", &dir).env("KFS_CONFIG", &file);
        let line = mounting.refused(1).unwrap();
        assert!(line.to_lowercase().contains(word), "{line}");
        assert!(!line.contains(PASSWORD) && !line.contains("another password"), "{line}");
    }
    assert_eq!(fs::metadata(mount.join("file")).unwrap().len(), 300_000);
}
