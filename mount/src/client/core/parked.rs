//! Requests that have been admitted and wait in the machine: how they end is told by a push.

use super::{Action, Core, Entry, Waiter};
use bytes::Bytes;
use proto::message::{Answer, Outcome, Refusal, SessionOp};
use proto::{Position, PushNo, RequestNo};
use std::collections::BTreeMap;

/// Outcomes that came before their request's answer are kept for it; at most so many.
const MAX_EARLY: usize = 1024;

pub(super) struct ParkedRequests<W> {
    waiting: BTreeMap<RequestNo, Entry<W>>,
    early: Early,
}

pub(super) type Early = BTreeMap<RequestNo, (Position, Result<Outcome, Refusal>)>;

impl<W> Default for ParkedRequests<W> {
    fn default() -> Self {
        ParkedRequests { waiting: BTreeMap::new(), early: BTreeMap::new() }
    }
}

impl<W> ParkedRequests<W> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry<W>> {
        self.waiting.values()
    }

    /// All that wait, and outcomes that came before their request's answer; nothing waits any more.
    pub(super) fn take(&mut self) -> (BTreeMap<RequestNo, Entry<W>>, Early) {
        (std::mem::take(&mut self.waiting), std::mem::take(&mut self.early))
    }
}

impl<W: Waiter> Core<W> {
    /// The request waits.
    pub(super) fn park(&mut self, now_ms: u64, number: RequestNo, mut entry: Entry<W>, out: &mut Vec<Action<W>>) {
        if let Some((at, result)) = self.parked.early.remove(&number) {
            return self.end_parked(now_ms, at, entry, result, out);
        }
        if let (Some(waiter), Some((session, _))) = (&mut entry.waiter, &self.session) {
            waiter.parked(*session, number);
        }
        self.parked.waiting.insert(number, entry);
    }

    /// A request that waited has ended.
    pub(super) fn outcome(
        &mut self,
        now_ms: u64,
        at: Position,
        number: RequestNo,
        result: Result<Outcome, Refusal>,
        out: &mut Vec<Action<W>>,
    ) {
        if result == Err(Refusal::NotDelegated) {
            // As when an answer says so: it is among what is entered again.
            return self.ended(now_ms, out);
        }
        match self.parked.waiting.remove(&number) {
            Some(entry) => {
                self.end_parked(now_ms, at, entry, result, out);
                self.pump(now_ms, out);
            }
            // Its answer is lost or late; what is not under way has been told before.
            None if self.flight.contains_key(&number) && self.parked.early.len() < MAX_EARLY => {
                self.parked.early.insert(number, (at, result));
            }
            None => {}
        }
    }

    /// Asks the server to let a waiting request end.
    pub(crate) fn cancel(&mut self, now_ms: u64, number: RequestNo, out: &mut Vec<Action<W>>) {
        if self.parked.waiting.contains_key(&number) {
            self.upkeep(now_ms, SessionOp::Cancel { number }, out);
        }
    }

    /// The request is entered once more, before all that waits here: what others were delegated has been given back, or
    /// its answer may be of a later moment than it should be.
    pub(super) fn ask_again(&mut self, mut entry: Entry<W>) {
        (entry.order, entry.asked_again) = (self.order_ahead(), true);
        self.waiting.push_front(entry);
    }

    fn end_parked(
        &mut self,
        now_ms: u64,
        at: Position,
        entry: Entry<W>,
        result: Result<Outcome, Refusal>,
        out: &mut Vec<Action<W>>,
    ) {
        if result == Err(Refusal::Again) {
            return self.ask_again(entry);
        }
        self.finish(now_ms, entry, Answer::bare(at, PushNo(0), result), Bytes::new(), out);
    }
}
