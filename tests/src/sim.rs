//! Whole clusters of the real code in one thread and in virtual time: from one seed,
//! with every fault that it draws, twice the same.
//!
//! * [`plan`] is what a seed draws; [`run`] runs it; [`minimise`] makes a failing one smaller.
//! * The world: [`bus`] (the broker and the network), [`disk`], [`servers`], and [`cluster`], which
//!   starts, crashes and pauses machines. The programs: [`work`].
//! * What is promised: [`history`] notes what was seen, [`model`] says what each request
//!   must give, [`check`] holds one against the other.

mod bus;
mod check;
mod cluster;
mod counting;
mod disk;
mod history;
mod kernel;
mod minimise;
mod model;
mod objects;
mod plan;
mod rng;
mod servers;
mod sound;
mod template;
mod trace;
mod work;
mod workload;

pub use cluster::{Counts, Report, run, run_with};
pub use counting::{Count, Kind};
pub use minimise::minimise;
pub use plan::{Fault, Plan, Step, What};
