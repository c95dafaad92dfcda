//! How long and how much is kept: constants of the machine's behaviour. The
//! simulator takes smaller ones, the same for all servers of a run, so that what
//! otherwise takes a month happens within a minute.

/// What bounds history and content that nobody refers to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// History is kept this long, in milliseconds of log time.
    pub history_ms: u64,
    /// A session's chunk may be quoted for the first time this long after the
    /// session's end, in milliseconds of log time.
    pub quote_ms: u64,
    /// Bytes that a new namespace may hold. History may take a fifth of that.
    pub bytes_total: u64,
}

/// 30 days, 24 hours, 1 PiB.
const LIMITS: Limits = Limits { history_ms: 30 * 24 * 3_600_000, quote_ms: 24 * 3_600_000, bytes_total: 1 << 50 };

#[cfg(not(any(test, feature = "simulation")))]
pub(crate) fn limits() -> Limits {
    LIMITS
}

#[cfg(any(test, feature = "simulation"))]
mod chosen {
    use super::{LIMITS, Limits};
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Limits> = const { Cell::new(LIMITS) };
    }

    pub(crate) fn limits() -> Limits {
        CHOSEN.get()
    }

    /// Replaces the limits for all machines on this thread.
    pub fn set_limits(limits: Limits) {
        CHOSEN.set(limits);
    }
}

#[cfg(any(test, feature = "simulation"))]
pub(crate) use chosen::limits;
#[cfg(any(test, feature = "simulation"))]
pub use chosen::set_limits;
