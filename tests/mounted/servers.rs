//! Several servers by the commands that an administrator types: one joins, one comes
//! back from a snapshot, one leaves for good.

use crate::executable;
use harness::cluster::COMMAND_BOUND;
use harness::tree::Random;
use harness::{Cluster, command, run};
use serde_json::Value;
use std::fs::{self, File};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);

/// Some of it is uploaded by itself; the rest is less than the embedded broker keeps of a partition.
fn content(i: usize) -> Vec<u8> {
    Random::new(i as u64).bytes(if i.is_multiple_of(20) { 300_000 } else { i * 7919 % 60_000 })
}

fn servers(cluster: &Cluster) -> Vec<Value> {
    let status = cluster.status().expect("a server answers");
    status["servers"].as_array().expect("the status lists the servers").clone()
}

fn id_of(cluster: &Cluster, server: usize) -> String {
    let text = fs::read_to_string(cluster.data_of(server).join("server.toml")).expect("the server has an id");
    text.lines().find_map(|line| line.strip_prefix("server = \"")?.strip_suffix('"')).expect("an id").to_owned()
}

#[test]
fn a_server_joins_comes_back_from_a_snapshot_takes_over_and_leaves() {
    let mut cluster = Cluster::start(&executable()).expect("the cluster starts");
    cluster.user_add("several").unwrap();
    let mount = cluster.mount_with("several", "timeout=60").unwrap();
    for i in 0..60 {
        fs::write(mount.join(format!("{i}")), content(i)).unwrap();
    }
    let second = cluster.add_server().expect("a second server joins");
    let both = || {
        let servers = servers(&cluster);
        let roles: Vec<&str> = servers.iter().filter_map(|server| server["role"].as_str()).collect();
        let states: Vec<&str> = servers.iter().filter_map(|server| server["state"].as_str()).collect();
        let agree = roles.contains(&"answering") && roles.contains(&"quiet") && states.contains(&"same");
        agree.then_some(())
    };
    run::wait_for("both servers to agree", BOUND, both).unwrap();
    let shown = cluster.server_command(&["status"]).finish().unwrap().text();
    assert!(
        shown.contains("answering") && shown.contains("quiet") && shown.contains(&id_of(&cluster, second)),
        "{shown}"
    );

    // While it runs, its directory is its own.
    let bootstrap = |cluster: &Cluster| {
        let mut bootstrap = cluster.command("kfs-server");
        bootstrap.arg("bootstrap").arg("--data").arg(cluster.data_of(second));
        command::run(&mut bootstrap, COMMAND_BOUND).unwrap()
    };
    let refused = bootstrap(&cluster);
    assert_eq!(refused.code(), 1);
    cluster.kill_server_at(second);
    let taken = bootstrap(&cluster).done().unwrap().text();
    assert!(taken.contains("took a snapshot of the server") && taken.contains(&id_of(&cluster, 0)), "{taken}");
    cluster.start_server_at(second).unwrap();

    // From here on everything comes from what the snapshot and the log have given.
    cluster.kill_server_at(0);
    fs::write(mount.join("after"), "the takeover").unwrap();
    let cold = cluster.mount("several").unwrap();
    for i in 0..60 {
        assert!(fs::read(cold.join(format!("{i}"))).unwrap() == content(i), "{i}");
    }
    assert_eq!(fs::read_to_string(cold.join("after")).unwrap(), "the takeover");

    // Its log is the same, so nobody needs an epoch; and it can be given up.
    let mut epoch = cluster.command("kfs-server");
    epoch.arg("epoch").arg("--from").arg(cluster.data_of(0));
    let refused = command::run(&mut epoch, COMMAND_BOUND).unwrap();
    assert_eq!(refused.code(), 1);
    let first = id_of(&cluster, 0);
    cluster.server_command(&["deregister", &first]).finish().unwrap();
    assert!(!servers(&cluster).iter().any(|server| server["server"] == first.as_str()));
    cluster.server_command(&["deregister", &first]).refused(1).unwrap();
    cluster.start_server_at(0).unwrap();
    run::wait_for("it to be registered again", BOUND, || (servers(&cluster).len() == 2).then_some(())).unwrap();
}

#[test]
fn the_status_tells_of_sessions_locks_and_who_waits_for_one() {
    let cluster = Cluster::start(&executable()).expect("the cluster starts");
    cluster.user_add("busy").unwrap();
    let [one, other] = [(); 2].map(|()| cluster.mount("busy").unwrap());
    let busy = || -> Vec<[u64; 3]> {
        let servers = servers(&cluster);
        let partitions = servers[0]["partitions"].as_array().expect("it tells of partitions");
        let told = |of: &Value| ["sessions", "locks", "waiting"].map(|what| of[what].as_u64().expect("a number"));
        partitions.iter().map(told).filter(|told| *told != [0; 3]).collect()
    };
    let tells = |expected: [u64; 3]| {
        run::wait_for(&format!("the status to tell of {expected:?}"), BOUND, || (busy() == [expected]).then_some(()))
            .unwrap();
    };
    let held = File::create(one.join("file")).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        // Given up where this fails as well, so that nobody waits for ever.
        let held = held;
        scope.spawn(|| File::open(other.join("file")).unwrap().lock().unwrap());
        tells([2, 1, 1]);
        let shown = cluster.server_command(&["status"]).finish().unwrap().text();
        let is_told = |line: &str| line.split_whitespace().skip(1).take(3).eq(["2", "1", "1"]);
        assert!(shown.lines().any(is_told), "{shown}");
        held.unlock().unwrap();
    });
    tells([2, 0, 0]);
}
