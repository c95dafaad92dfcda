//! The harness: starts brokers, servers and mounts for tests, and always ends them.
//!
//! * Everything a test binary starts or mounts belongs to its [`run`]: one
//!   directory and one mark in the environment. Whatever is left of either when
//!   the binary has ended, however it ended, is removed by the run's janitor.
//! * Every wait is bounded, and says what it waited for when the bound is hit.
//! * Ports are free ones, so that test binaries can run side by side.

pub mod broker;
pub mod cluster;
pub mod command;
pub mod distance;
pub mod kafka;
pub mod process;
pub mod programs;
pub mod recorded;
pub mod run;
pub mod servers;
pub mod sim;
pub mod tree;

pub use cluster::{Cluster, Mount};
pub use command::sh;
pub use process::Process;
pub use run::Scratch;
