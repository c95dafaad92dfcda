//! How long and how much is kept. These are part of the machine's behaviour and of
//! the housekeeping beside it. The simulator takes smaller ones, the same for all
//! servers of a run, so that what otherwise takes a month happens within a minute.

use crate::packs::{PACK_BYTES, TAIL_BYTES};
use std::time::Duration;

/// What bounds history, packs, and content that nobody refers to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// History is kept this long, in milliseconds of log time.
    pub history_ms: u64,
    /// A session's chunk may be quoted for the first time this long after the
    /// session's end, in milliseconds of log time.
    pub quote_ms: u64,
    /// Bytes that a new namespace may hold. History may take a fifth of that.
    pub bytes_total: u64,
    /// How long a chunk outlives its last reference: a reader that was shown the file
    /// before may be about to ask for it.
    pub grace: Duration,
    /// A buffer of content this full becomes a pack.
    pub pack_bytes: usize,
    /// Fewer bytes than this go into the index database until more has come.
    pub tail_bytes: usize,
    /// Between looks at uploads that nothing has quoted.
    pub sweep_every: Duration,
    /// How often a partition that clients change is checkpointed, where the log lasts.
    pub checkpoint_every: Duration,
    /// Requests that a session may have unanswered.
    pub window_requests: u32,
}

/// 30 days, 24 hours, 1 PiB, 10 minutes, 32 MiB, 4 MiB, 10 minutes, 5 seconds, 256.
const LIMITS: Limits = Limits {
    history_ms: 30 * 24 * 3_600_000,
    quote_ms: 24 * 3_600_000,
    bytes_total: 1 << 50,
    grace: Duration::from_secs(600),
    pack_bytes: PACK_BYTES,
    tail_bytes: TAIL_BYTES,
    sweep_every: Duration::from_secs(600),
    checkpoint_every: Duration::from_secs(5),
    window_requests: 256,
};

#[cfg(not(any(test, feature = "simulation")))]
/// What holds.
pub fn limits() -> Limits {
    LIMITS
}

#[cfg(any(test, feature = "simulation"))]
mod chosen {
    use super::{LIMITS, Limits};
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Limits> = const { Cell::new(LIMITS) };
    }

    /// What holds on this thread.
    pub fn limits() -> Limits {
        CHOSEN.get()
    }

    /// Replaces the limits for all servers on this thread.
    pub fn set_limits(limits: Limits) {
        CHOSEN.set(limits);
    }
}

#[cfg(any(test, feature = "simulation"))]
pub use chosen::{limits, set_limits};
