//! Real mounts, real processes, on the embedded broker or on Apache Kafka
//! (`KFS_TEST_BROKER=kafka`): what users do, and what goes wrong for them.
//!
//! Tests that stop nothing share one cluster and have users of their own on it.

mod atime;
mod check;
mod cli;
mod coherence;
mod crash;
mod dev;
mod differential;
mod disk_full;
mod epoch;
mod exerciser;
mod files;
mod holes;
mod interrupts;
mod jobs;
mod large;
mod listings;
mod locks;
mod log;
mod login;
mod maps;
mod memory;
mod mount8;
mod owners;
mod plain_user;
mod programs;
mod quota;
mod refusals;
mod rights;
mod secured;
mod servers;
mod suites;
mod takeover;
mod tier;

use harness::{Cluster, Mount};
use std::sync::OnceLock;

/// What has the programs under test in it; a parent test may have put it elsewhere.
fn executable() -> String {
    std::env::var("KFS_TEST_EXECUTABLE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_kfs-programs").to_owned())
}

/// The cluster of all tests that stop nothing; ended by the run's janitor.
fn shared() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::start(&executable()).expect("the shared cluster starts"))
}

/// A new user of the shared cluster, mounted.
fn mounted(user: &str) -> Mount {
    shared().user_add(user).expect("the user can be added");
    shared().mount(user).expect("the user can mount")
}

/// What an environment variable says how many or which; `None` if it is not set.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Whether the test may go on; says why if not.
fn needs_root(why: &str) -> bool {
    let is_root = harness::cluster::is_root();
    if !is_root {
        eprintln!("nothing to test as a plain user: only root may {why}");
    }
    is_root
}
