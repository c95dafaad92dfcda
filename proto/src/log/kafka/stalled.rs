//! Notices partitions that librdkafka has stopped reading though there is more to read:
//! a decision only, the reader looks at the log and at its clock.
//!
//! It has stopped, for good and without a word, after brokers' restarts (librdkafka
//! 2.12.1, confluentinc/librdkafka#5593 among others). A partition has stalled when
//! between two looks nothing of it came although there was something at the first, and
//! although the reader ran dry in between: else it may only be slow.

use crate::log::Topic;
use std::collections::BTreeMap;

/// What the last look has found.
#[derive(Default)]
pub(super) struct Stalled {
    /// Next offset to be read, and the log's next one, where the log was ahead.
    behind: BTreeMap<(Topic, u32), (u64, u64)>,
    ran_dry: bool,
}

impl Stalled {
    /// Nothing more was at hand.
    pub(super) fn ran_dry(&mut self) {
        self.ran_dry = true;
    }

    /// Compares what is to be read `next` with where the log `ends`. Gives a partition that has
    /// stalled, where it stands and where the log was at the look before.
    pub(super) fn look(
        &mut self,
        next: impl Iterator<Item = ((Topic, u32), u64)>,
        ends: &BTreeMap<(Topic, u32), u64>,
    ) -> Option<((Topic, u32), u64, u64)> {
        let ran_dry = std::mem::take(&mut self.ran_dry);
        let mut stalled = None;
        let mut behind = BTreeMap::new();
        for (partition, next) in next {
            let Some(end) = ends.get(&partition).filter(|end| **end > next) else { continue };
            if let Some((stood, end)) = self.behind.get(&partition)
                && *stood == next
                && ran_dry
            {
                stalled = Some((partition, next, *end));
            }
            behind.insert(partition, (next, *end));
        }
        self.behind = behind;
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: (Topic, u32) = (Topic::Requests, 1);
    const TWO: (Topic, u32) = (Topic::Requests, 2);

    /// One look, before which the reader ran dry or not.
    fn look(stalled: &mut Stalled, dry: bool, next: [u64; 2], ends: [u64; 2]) -> Option<((Topic, u32), u64, u64)> {
        if dry {
            stalled.ran_dry();
        }
        stalled.look([(ONE, next[0]), (TWO, next[1])].into_iter(), &BTreeMap::from([(ONE, ends[0]), (TWO, ends[1])]))
    }

    #[test]
    fn what_stands_still_before_the_end_has_stalled() {
        let mut stalled = Stalled::default();
        assert_eq!(look(&mut stalled, true, [5, 7], [6, 7]), None, "it may come yet");
        assert_eq!(look(&mut stalled, true, [5, 9], [8, 9]), Some((ONE, 5, 6)));
    }

    #[test]
    fn what_moves_or_has_nothing_to_read_has_not() {
        let mut stalled = Stalled::default();
        for next in [5, 6, 7] {
            assert_eq!(look(&mut stalled, true, [next, 7], [100, 7]), None);
        }
    }

    #[test]
    fn a_reader_that_never_runs_dry_is_slow() {
        let mut stalled = Stalled::default();
        assert_eq!(look(&mut stalled, false, [5, 0], [6, 0]), None);
        assert_eq!(look(&mut stalled, false, [5, 0], [6, 0]), None);
        assert_eq!(look(&mut stalled, true, [5, 0], [6, 0]), Some((ONE, 5, 6)));
    }

    #[test]
    fn a_partition_whose_end_is_not_known_is_left_alone() {
        let mut stalled = Stalled::default();
        for _ in 0..3 {
            stalled.ran_dry();
            assert_eq!(stalled.look([(ONE, 5)].into_iter(), &BTreeMap::new()), None);
        }
    }
}
