//! Answers to changes, in the order of the changes where that matters.
//!
//! What was answered under a delegation is known here before its answer comes, and is brought up to it then. That answer
//! must not meet what a later one has brought: an answer to a change is held while one to an earlier local change is
//! missing. As many can be held as numbers run ahead of the first unanswered one.
//!
//! A view shows what was entered before it, and nothing after. One that was sent again may have been answered where its
//! later copy stands, behind changes that were entered in between and are put over what it shows: it is asked again.

use super::flight::Flight;
use super::{Action, Core, Entry, Waiter};
use bytes::Bytes;
use proto::message::{Answer, Op};
use proto::{Position, RequestNo};
use std::collections::BTreeMap;

pub(super) struct Ordered<W> {
    held: BTreeMap<RequestNo, (Entry<W>, Answer, Bytes)>,
    /// The highest order of what has been numbered, and of the changes among that whose programs have been answered.
    numbered: u64,
    answered: u64,
}

impl<W> Default for Ordered<W> {
    fn default() -> Self {
        Ordered { held: BTreeMap::new(), numbered: 0, answered: 0 }
    }
}

impl<W> Ordered<W> {
    /// The entry is sent behind all that was before.
    pub(super) fn number(&mut self, entry: &Entry<W>) {
        self.numbered = self.numbered.max(entry.order);
        if entry.answered {
            self.answered = self.answered.max(entry.order);
        }
    }

    /// The highest order of what has been sent.
    pub(super) fn numbered(&self) -> u64 {
        self.numbered
    }

    /// Whether the answer to a view may show changes that were entered after it and whose programs have been answered.
    pub(super) fn may_show_later(&self, flight: &Flight<W>, at: Position) -> bool {
        let is_first = flight.first_at.map_or(flight.sends == 1, |first| first == at.offset);
        matches!(flight.entry.op, Op::View(_)) && !is_first && flight.entry.order < self.answered
    }
}

impl<W: Waiter> Core<W> {
    /// Takes an answer to its waiter, once those to earlier local changes have come.
    pub(super) fn finish_in_order(
        &mut self,
        now_ms: u64,
        number: RequestNo,
        entry: Entry<W>,
        (answer, payload): (Answer, Bytes),
        out: &mut Vec<Action<W>>,
    ) {
        match entry.op.outlives_session() && self.is_behind_local(number) {
            true => drop(self.ordered.held.insert(number, (entry, answer, payload))),
            false => self.finish(now_ms, entry, answer, payload, out),
        }
    }

    /// Goes on with what was held and is not any more.
    pub(super) fn release_held(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        while let Some((number, _)) = self.ordered.held.first_key_value()
            && !self.is_behind_local(*number)
            && let Some((_, (entry, answer, payload))) = self.ordered.held.pop_first()
        {
            self.finish(now_ms, entry, answer, payload, out);
        }
    }

    /// Goes on with all that was held: the answers that are missing are not waited for.
    pub(super) fn release_all_held(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        for (entry, answer, payload) in std::mem::take(&mut self.ordered.held).into_values() {
            self.finish(now_ms, entry, answer, payload, out);
        }
    }

    fn is_behind_local(&self, number: RequestNo) -> bool {
        self.flight.range(..number).any(|(_, flight)| flight.entry.local)
    }
}
