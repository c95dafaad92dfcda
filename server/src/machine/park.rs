//! Requests that wait in the machine. One is admitted, answered with `Waiting` at once, and *parked*
//! until its time comes, its client cancels it or its session ends. How it ends is a push of its
//! own, held as every answer is until others have confirmed what it could show, and said again
//! until its client confirms it.
//!
//! What a request waits for decides when that is; here is only that it waits.

use super::Machine;
use super::promise::To;
use super::rows::Turn;
use proto::message::{Outcome, Promise, Refusal};
use proto::planted::{Bug, planted};
use proto::{Ino, RequestNo, SessionId};
use serde::{Deserialize, Serialize};

/// Requests of one session that wait, or whose outcome it has not confirmed; a further one is refused.
pub(super) const MAX_PARKED: usize = 1024;

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Parked {
    /// A lock on this inode.
    Lock(Ino),
    /// What others are delegated; its place among those that wait for that.
    Delegation(u64),
}

const FIRST: RequestNo = RequestNo(0);
const LAST: RequestNo = RequestNo(u64::MAX);

impl Machine {
    /// Whether one more request of the session may wait.
    pub(super) fn may_park(&self, id: SessionId) -> bool {
        let untold = self.live.sessions.get(&id).map_or(0, |session| self.outcomes(id, session).count());
        self.parked_of(id).count() + untold < MAX_PARKED
    }

    /// Lets an admitted request wait; its answer is to be `Waiting`.
    pub(super) fn park(&mut self, to: To, what: Parked) {
        self.live.parked.insert((to.session, to.number), what);
    }

    /// A session's waiting requests, by their numbers.
    pub(super) fn parked_of(&self, id: SessionId) -> impl Iterator<Item = (RequestNo, Parked)> + '_ {
        self.live.parked.range((id, FIRST)..=(id, LAST)).map(|((_, number), what)| (*number, *what))
    }

    /// A waiting request ends with this result, which shows the state of `reads`.
    pub(super) fn decide(
        &mut self,
        turn: &mut Turn,
        id: SessionId,
        number: RequestNo,
        result: Result<Outcome, Refusal>,
        reads: &[Promise],
    ) {
        self.live.parked.remove(&(id, number));
        let waits = self.waits(reads, id);
        // An outcome answers no frame.
        let to = To { session: id, number, request: [0; 32] };
        self.hold_or_push(turn, to, result, waits);
    }

    /// Its client gives up. If the request has ended already, that outcome stands.
    pub(super) fn cancel(&mut self, turn: &mut Turn, id: SessionId, number: RequestNo) {
        let Some(what) = self.live.parked.get(&(id, number)).copied() else { return };
        match what {
            Parked::Lock(_) if planted(Bug::CancelForgotten) => {}
            Parked::Lock(ino) => self.stop_waiting_for_lock(ino, id, number),
            Parked::Delegation(order) => self.stop_waiting(order),
        }
        self.decide(turn, id, number, Err(Refusal::Cancelled), &[]);
    }

    /// The session has ended: nobody is told.
    pub(super) fn unpark_all(&mut self, id: SessionId) {
        let parked: Vec<(RequestNo, Parked)> = self.parked_of(id).collect();
        for (number, what) in parked {
            self.live.parked.remove(&(id, number));
            if let Parked::Delegation(order) = what {
                self.stop_waiting(order);
            }
        }
    }
}
