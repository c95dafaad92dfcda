//! Civil time, as a client or a server is given it.
//!
//! Whoever wants to know what time it is asks the [`Clock`] of its configuration,
//! so that a simulated machine can be wrong about it. Durations are measured by
//! `tokio::time::Instant` and by [`monotonic_ms`].

use crate::ids::Time;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Gives nanoseconds since 1970.
type Source = Arc<dyn Fn() -> i128 + Send + Sync>;

/// A clock of civil time; by default this machine's.
#[derive(Clone, Default)]
pub struct Clock(Option<Source>);

impl Clock {
    /// A clock that shows what `source` says, in nanoseconds since 1970.
    pub fn new(source: impl Fn() -> i128 + Send + Sync + 'static) -> Clock {
        Clock(Some(Arc::new(source)))
    }

    /// Nanoseconds since 1970.
    pub fn nanos(&self) -> i128 {
        match &self.0 {
            Some(source) => source(),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128),
        }
    }

    /// Nanoseconds since some moment before this one, as [`monotonic_ms`] counts: whoever sets the clock does not move
    /// it. Of a given clock only what is below a millisecond is its own.
    pub fn steady_nanos(&self) -> i128 {
        match &self.0 {
            Some(source) => i128::from(monotonic_ms()) * 1_000_000 + source().rem_euclid(1_000_000),
            None => boot_time().as_nanos() as i128,
        }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        self.nanos().div_euclid(1_000_000) as i64
    }

    pub fn now(&self) -> Time {
        Time::from_nanos(self.nanos())
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Clock(given)" } else { "Clock(this machine's)" })
    }
}

/// Milliseconds since some moment before this one: monotonic, and going on while
/// the machine is suspended. A laptop that wakes up must not rely on what it was
/// promised before.
pub fn monotonic_ms() -> u64 {
    #[cfg(feature = "simulation")]
    if let Some(ms) = crate::simulation::monotonic_ms() {
        return ms;
    }
    boot_time().as_millis() as u64
}

/// Since the machine was started, also what it was suspended for.
fn boot_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to, and the call does nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(failed, 0, "every Linux since 2.6.39 has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
