//! What the session has reserved of a resource under a quota, and what of it is spoken for. Pure.
//!
//! The server counts down what is reserved as it executes requests, and this counts down as they
//! are entered: both stand at the same place of the same order, so the two agree without a
//! word. Before a quota is known of, what is taken is counted as well, since it must be
//! told when one is set.

use proto::message::Resource;
use proto::planted::{Bug, planted};

/// What one asking reserves beyond what is needed, at most.
fn max_extra(of: Resource) -> u64 {
    match of {
        Resource::Bytes => 16 << 20,
        Resource::Inodes => 4096,
    }
}

pub(crate) struct Ledger {
    of: Resource,
    /// A quota is known of. Once it is, room is asked for to the end: it is granted where there is none.
    limited: bool,
    /// Reserved and not spoken for.
    free: u64,
    /// For what is in no request yet.
    taken: u64,
    /// What the next asking reserves beyond what is needed.
    extra: u64,
    asking: bool,
    /// What is to be told once the asking has been answered.
    tell: Option<Tell>,
    /// Since the last look.
    used: bool,
}

/// What the server is to hear of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tell {
    /// What there is.
    All,
    /// What is spoken for: the rest is given back.
    Taken,
}

/// What to ask the server for; of what there is it keeps `keep`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub keep: u64,
    pub need: u64,
    pub extra: u64,
}

impl Ledger {
    pub(crate) fn new(of: Resource) -> Ledger {
        Ledger { of, limited: false, free: 0, taken: 0, extra: 0, asking: false, tell: None, used: false }
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.limited
    }

    /// Takes room, if it is there.
    pub(crate) fn take(&mut self, amount: u64) -> bool {
        if self.limited {
            let regardless = match self.of {
                Resource::Bytes => Bug::WriteUnreserved,
                Resource::Inodes => Bug::MakeUnreserved,
            };
            let Some(free) = self.free.checked_sub(amount).or_else(|| planted(regardless).then_some(0)) else {
                return false;
            };
            self.free = free;
        }
        self.taken += amount;
        self.used = true;
        true
    }

    /// What had room has gone without having been in a request, or takes no more room than before.
    pub(crate) fn untake(&mut self, amount: u64) {
        self.taken -= amount;
        if self.limited {
            self.free += amount;
        }
    }

    /// What has room goes into a request.
    pub(crate) fn spend(&mut self, amount: u64) {
        self.taken -= amount;
    }

    /// What is to be asked for, so that there is room for that much; only one at a time.
    pub(crate) fn ask(&mut self, amount: u64) -> Ask {
        self.asking = true;
        let need = amount.saturating_sub(self.free);
        // Whoever asks again and again adds much.
        self.extra = (self.extra * 2).clamp(need, max_extra(self.of).max(need));
        Ask { keep: self.free + self.taken, need, extra: self.extra }
    }

    /// The asking was answered with so much. Takes `amount`, or less if there is less and `is_all`. Gives
    /// what was taken, and what the server is to keep if it must be told.
    pub(crate) fn answered(&mut self, amount: u64, granted: u64, is_all: bool) -> (u64, Option<u64>) {
        self.asking = false;
        self.free += granted;
        let can = amount.min(self.free);
        let takes = if can == amount || is_all { can } else { 0 };
        self.free -= takes;
        self.taken += takes;
        self.used = true;
        let tell = self.tell.take();
        (takes, tell.and_then(|tell| self.told(tell)))
    }

    /// A quota has been set: what the server is to keep.
    pub(crate) fn limit(&mut self) -> Option<u64> {
        self.limited = true;
        self.told(Tell::All)
    }

    /// Gives back what is not spoken for: what the server is to keep, if there is something to give.
    pub(crate) fn give_back(&mut self) -> Option<u64> {
        if self.free > 0 || self.asking { self.told(Tell::Taken) } else { None }
    }

    /// The same, unless something was taken since the last look. Says whether to look again.
    pub(crate) fn give_back_if_idle(&mut self) -> (Option<u64>, bool) {
        if std::mem::take(&mut self.used) || self.asking {
            return (None, true);
        }
        self.extra = 0;
        (self.give_back(), false)
    }

    fn told(&mut self, tell: Tell) -> Option<u64> {
        if self.asking {
            // What is granted then is not known yet.
            self.tell = self.tell.max(Some(tell));
            return None;
        }
        let keep = if tell == Tell::Taken { self.taken } else { self.free + self.taken };
        if tell == Tell::Taken && !planted(Bug::GiveBackKeeps) {
            self.free = 0;
        }
        Some(if planted(Bug::QuotaForgetsWritten) { self.free } else { keep })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_free_without_a_quota_and_what_was_written_is_told_when_there_is_one() {
        let mut l = Ledger::new(Resource::Bytes);
        assert!(l.take(100) && l.take(50));
        l.spend(100);
        assert_eq!(l.limit(), Some(50));
        assert!(!l.take(1));
        l.untake(20);
        assert!(l.take(20) && !l.take(1));
    }

    #[test]
    fn an_asking_reserves_what_is_missing_and_more_each_time() {
        let mut l = Ledger::new(Resource::Bytes);
        l.limit();
        assert_eq!(l.ask(100), Ask { keep: 0, need: 100, extra: 100 });
        assert_eq!(l.answered(100, 200, true), (100, None));
        assert!(l.take(60) && !l.take(60));
        assert_eq!(l.ask(60), Ask { keep: 200, need: 20, extra: 200 });
        // Too little, and more may come: nothing is taken, and what there is stays free.
        assert_eq!(l.answered(60, 5, false), (0, None));
        l.ask(60);
        assert_eq!(l.answered(60, 0, true), (45, None));
        l.spend(205);
        assert_eq!(l.ask(10).keep, 0);
    }

    #[test]
    fn what_is_not_used_for_a_while_goes_back_and_what_is_asked_back_too() {
        let mut l = Ledger::new(Resource::Bytes);
        l.limit();
        l.ask(10);
        l.answered(10, 50, true);
        assert_eq!(l.give_back_if_idle(), (None, true));
        assert_eq!(l.give_back_if_idle(), (Some(10), false));
        assert_eq!(l.give_back(), None);
        l.ask(10);
        assert_eq!(l.give_back(), None, "not while it is not known what there will be");
        assert_eq!(l.answered(10, 50, true), (10, Some(20)));
        assert!(!l.take(1));
    }

    /// Granted before the quota was set, and not counted then.
    #[test]
    fn a_quota_set_while_room_is_asked_for_is_told_of_all_of_it() {
        let mut l = Ledger::new(Resource::Bytes);
        l.limit();
        l.ask(10);
        assert_eq!(l.limit(), None);
        assert_eq!(l.answered(10, 50, true), (10, Some(50)));
        assert!(l.take(40));
    }
}
