//! Which pushes have come, which are missing, which are to be confirmed.
//!
//! A push is acted on whenever it comes: dropping a promise too often is harmless. It is
//! confirmed once, by a record that is sent until it is answered. Its number only shows
//! whether one has been lost. One that is spoken of before it has come costs all promises of
//! the partition at once, since the answer that speaks of it may show what it takes back. A
//! little later the server is asked to repeat, and what it does not repeat (nobody waits for
//! it any more) is passed over.

use proto::PushNo;
use std::collections::BTreeSet;

/// How long a push that an answer spoke of may take to come, in milliseconds.
const MISSING_MS: u64 = 50;

/// How long after the answer to `Repeat` the repeated pushes may take to come.
const REPEAT_MS: u64 = 200;

/// Pushes remembered beyond a missing one, at most; more are passed over with it.
const MAX_BEYOND: usize = 1024;

/// Pushes confirmed in one record, at most.
const MAX_CONFIRM: usize = 1024;

/// Confirmed pushes remembered, at most; older ones are confirmed again if they come again.
const MAX_CONFIRMED: usize = 4096;

#[derive(Default)]
pub(crate) struct Pushes {
    /// Every push up to here has come or was passed over.
    floor: PushNo,
    beyond: BTreeSet<PushNo>,
    /// The highest number heard of.
    told: PushNo,
    missing_since: Option<u64>,
    repeat: Repeat,
    confirm: Vec<PushNo>,
    /// To be confirmed behind all that has been entered.
    confirm_behind: Vec<PushNo>,
    /// Confirmed, or to be confirmed. Servers that restart say again what they said before.
    confirmed: BTreeSet<PushNo>,
}

#[derive(Default, PartialEq)]
enum Repeat {
    #[default]
    No,
    Asked,
    /// Answered: until this moment the pushes up to that one may still come.
    Grace(u64, PushNo),
}

impl Pushes {
    /// Nothing up to `pushed` is missing.
    pub(crate) fn complete_up_to(&self, pushed: PushNo) -> bool {
        pushed <= self.floor
    }

    /// An answer speaks of pushes up to `pushed`. Returns whether it is the first to speak of one
    /// that has not come: the answer may show what that one takes back.
    pub(crate) fn told(&mut self, now_ms: u64, pushed: PushNo) -> bool {
        let missed = pushed > self.told && pushed > self.floor;
        self.told = self.told.max(pushed);
        self.settle(now_ms);
        missed
    }

    /// A push has come, which is to be confirmed at once or behind all that has been entered. Returns whether it shows
    /// that an earlier one was lost.
    pub(crate) fn came(&mut self, now_ms: u64, number: PushNo, at_once: bool) -> bool {
        let lost = number > self.floor.next() && !self.beyond.contains(&number);
        self.told = self.told.max(number);
        if number > self.floor {
            self.beyond.insert(number);
        }
        if self.beyond.len() > MAX_BEYOND {
            self.floor = self.beyond.pop_first().unwrap_or(self.floor);
        }
        self.settle(now_ms);
        if self.confirmed.insert(number) {
            if at_once { &mut self.confirm } else { &mut self.confirm_behind }.push(number);
        }
        if self.confirmed.len() > MAX_CONFIRMED {
            self.confirmed.pop_first();
        }
        // What was lost can be asked for at once: there is nothing to wait for.
        if lost && let Some(since) = &mut self.missing_since {
            *since = (*since).min(now_ms.saturating_sub(MISSING_MS));
        }
        lost
    }

    /// The pushes to confirm in one record, if there are any.
    pub(crate) fn take_confirmations(&mut self) -> Option<Vec<PushNo>> {
        take(&mut self.confirm)
    }

    /// Likewise, those that are to be confirmed behind all that has been entered.
    pub(crate) fn take_confirmations_behind(&mut self) -> Option<Vec<PushNo>> {
        take(&mut self.confirm_behind)
    }

    /// Where to ask for repetition from, once that is due; it is then taken as asked.
    pub(crate) fn ask_to_repeat(&mut self, now_ms: u64) -> Option<PushNo> {
        if let Repeat::Grace(until, up_to) = self.repeat
            && now_ms >= until
        {
            self.repeat = Repeat::No;
            self.floor = self.floor.max(up_to);
            self.missing_since = None;
            self.settle(now_ms);
        }
        let due = self.missing_since.is_some_and(|since| now_ms >= since + MISSING_MS);
        if !due || self.repeat != Repeat::No {
            return None;
        }
        self.repeat = Repeat::Asked;
        Some(self.floor.next())
    }

    /// The answer to `Repeat` has come, with the highest push number as of then.
    pub(crate) fn repeated(&mut self, now_ms: u64, pushed: PushNo) {
        self.told(now_ms, pushed);
        self.repeat = Repeat::Grace(now_ms + REPEAT_MS, pushed);
    }

    /// When [`Pushes::ask_to_repeat`] has something to do.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        match self.repeat {
            Repeat::Grace(until, _) => Some(until),
            Repeat::Asked => None,
            Repeat::No => self.missing_since.map(|since| since + MISSING_MS),
        }
    }

    fn settle(&mut self, now_ms: u64) {
        self.beyond = self.beyond.split_off(&self.floor.next());
        while self.beyond.remove(&self.floor.next()) {
            self.floor = self.floor.next();
        }
        if self.told <= self.floor {
            self.missing_since = None;
        } else {
            self.missing_since.get_or_insert(now_ms);
        }
    }
}

fn take(pushes: &mut Vec<PushNo>) -> Option<Vec<PushNo>> {
    if pushes.is_empty() {
        return None;
    }
    let rest = pushes.split_off(pushes.len().min(MAX_CONFIRM));
    Some(std::mem::replace(pushes, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_in_order_miss_nothing() {
        let mut p = Pushes::default();
        assert!(!p.came(0, PushNo(1), true) && !p.came(0, PushNo(2), true) && !p.came(1, PushNo(1), true));
        assert!(p.complete_up_to(PushNo(2)));
        assert_eq!(p.take_confirmations(), Some(vec![PushNo(1), PushNo(2)]));
        assert_eq!((p.take_confirmations(), p.deadline_ms()), (None, None));
    }

    /// One that was passed over has never been confirmed; whatever else comes again has.
    #[test]
    fn a_push_is_confirmed_once() {
        let mut p = Pushes::default();
        p.came(0, PushNo(2), true);
        p.ask_to_repeat(100);
        p.repeated(100, PushNo(2));
        p.ask_to_repeat(400);
        assert_eq!(p.take_confirmations(), Some(vec![PushNo(2)]));
        p.came(500, PushNo(2), true);
        p.came(500, PushNo(1), true);
        p.came(501, PushNo(1), true);
        assert_eq!(p.take_confirmations(), Some(vec![PushNo(1)]));
    }

    #[test]
    fn a_lost_push_is_asked_for_once_and_then_passed_over() {
        let mut p = Pushes::default();
        assert!(p.came(100, PushNo(3), true));
        assert_eq!(p.ask_to_repeat(100), Some(PushNo(1)));
        assert_eq!(p.ask_to_repeat(1000), None);
        p.repeated(1000, PushNo(3));
        p.came(1010, PushNo(2), true);
        assert!(!p.complete_up_to(PushNo(1)));
        assert_eq!(p.ask_to_repeat(1200), None);
        assert!(p.complete_up_to(PushNo(3)));
    }

    #[test]
    fn a_push_that_an_answer_spoke_of_may_be_a_little_late() {
        let mut p = Pushes::default();
        assert!(p.told(0, PushNo(1)));
        assert_eq!((p.ask_to_repeat(49), p.deadline_ms()), (None, Some(50)));
        assert!(!p.came(49, PushNo(1), true));
        assert_eq!(p.ask_to_repeat(50), None);
        assert!(p.told(60, PushNo(2)));
        assert!(!p.told(60, PushNo(2)) && !p.told(60, PushNo(1)));
        assert_eq!(p.ask_to_repeat(110), Some(PushNo(2)));
    }
}
