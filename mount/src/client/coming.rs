//! What has come of the content that was asked for says whether what has not is lost, or only behind it. Pure.
//!
//! Content comes in the order in which it was asked for. So what has not come is lost once something has that was asked for
//! much later. Where nothing comes at all, either all of it is lost or the link is slow: a fetch of Kafka's hands over what
//! it brings as a whole, 8 MiB at most, for which 10 Mbit/s need seven seconds. So only a little is asked for again then,
//! less and less often. If the rest was lost it is overtaken by that, and asked for again at once; if it was only slow,
//! hardly anything has come twice. (TCP has the same trouble with timeouts that are none: RFC 5682.)

use std::time::Duration;
use tokio::time::Instant;

/// Silence after which something is asked for again; and how much later something else must have been asked for that has
/// come.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// The longest silence between two of these.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);
/// Chunks that are asked for again after a silence.
pub(super) const PROBES: usize = 1;

#[derive(Default)]
pub(super) struct Coming {
    last: Option<Instant>,
    /// When the latest was asked for of what has come.
    newest: Option<Instant>,
    /// When something was last asked for again after a silence, and how often since something came.
    probed: Option<Instant>,
    probes: u32,
}

impl Coming {
    /// Something has come that was asked for then.
    pub fn came(&mut self, now: Instant, asked: Instant) {
        (self.last, self.probes) = (Some(now), 0);
        self.newest = self.newest.max(Some(asked));
    }

    /// Whether what was asked for then is lost.
    pub fn is_overtaken(&self, asked: Instant) -> bool {
        self.newest.is_some_and(|newest| newest >= asked + ASK_AGAIN)
    }

    /// Whether to ask for a little again: nothing has come for longer than it should take, `expected` being what all takes
    /// that was asked for, `first` at the earliest. If so, that counts as done.
    pub fn probe(&mut self, now: Instant, first: Instant, expected: Duration) -> bool {
        let since = [Some(first), self.last, self.probed].into_iter().flatten().max().unwrap_or(first);
        let silence = expected.max(ASK_AGAIN).saturating_mul(1 << self.probes.min(4)).min(ASK_AGAIN_MAX);
        let is_silent = now >= since + silence;
        if is_silent {
            (self.probed, self.probes) = (Some(now), self.probes + 1);
        }
        is_silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Duration = Duration::ZERO;

    #[test]
    fn after_a_silence_a_little_is_asked_for_again_and_less_and_less_often() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut coming = Coming::default();
        assert!(!coming.probe(at(1999), at(0), NONE) && coming.probe(at(2000), at(0), NONE));
        assert!(!coming.probe(at(5999), at(0), NONE) && coming.probe(at(6000), at(0), NONE));
        coming.came(at(6700), at(0));
        assert!(!coming.probe(at(8699), at(0), NONE) && coming.probe(at(8700), at(0), NONE), "as at first");
        // What is asked for later has its own time.
        coming.came(at(9000), at(0));
        assert!(!coming.probe(at(61_999), at(60_000), NONE) && coming.probe(at(62_000), at(60_000), NONE));
    }

    #[test]
    fn a_link_that_is_known_to_be_slow_has_its_time() {
        let begun = Instant::now();
        let at = |secs: u64| begun + Duration::from_secs(secs);
        let mut coming = Coming::default();
        coming.came(at(4), at(0));
        let expected = Duration::from_secs(13);
        assert!(!coming.probe(at(16), at(0), expected) && coming.probe(at(17), at(0), expected));
        assert!(!coming.probe(at(42), at(0), expected) && coming.probe(at(43), at(0), expected));
        assert!(coming.probe(at(73), at(0), Duration::MAX), "there is a bound");
    }

    #[test]
    fn what_was_asked_for_much_earlier_than_what_has_come_is_lost() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut coming = Coming::default();
        assert!(!coming.is_overtaken(at(0)));
        coming.came(at(3400), at(1900));
        assert!(!coming.is_overtaken(at(0)));
        coming.came(at(5000), at(2000));
        assert!(coming.is_overtaken(at(0)) && !coming.is_overtaken(at(1)));
    }
}
