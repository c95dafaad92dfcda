//! Room for written content that the server does not have yet. Writers wait for
//! it; whatever is answered for, replaced or dropped gives it back.

use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;

pub struct Budget {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
}

impl Budget {
    /// At most `limit` bytes; a single write may always go when nothing else is held.
    pub fn new(limit: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), limit, freed: Notify::new() }
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes room for that many bytes, if there is.
    pub fn try_take(&self, bytes: usize) -> bool {
        let take = |used: usize| (used == 0 || used + bytes <= self.limit).then_some(used + bytes);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    pub fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            self.used.fetch_sub(bytes, Ordering::AcqRel);
            self.freed.notify_waiters();
        }
    }

    /// Resolves when room has been given back after this call.
    pub fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }
}
