//! The clock that leases are counted by: monotonic, and going on while the machine
//! is suspended. A laptop that wakes up must not rely on what it was promised before.

/// Milliseconds since some moment before this one.
pub(crate) fn now_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec to write to, and the call does nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    assert_eq!(failed, 0, "every Linux since 2.6.39 has this clock");
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
