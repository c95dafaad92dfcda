//! Sessions beginning and ending: what was under way in one that may have ended is
//! decided by the answer to its successor's open, and by nothing else.

use super::*;
use proto::planted::{Bug, planted};

impl<W: Waiter> Core<W> {
    /// A login has succeeded: opens its session, naming those it replaces.
    /// `window` is how many requests may be unanswered.
    pub(crate) fn open(
        &mut self,
        now_ms: u64,
        session: SessionId,
        mut seal: Box<dyn Seal>,
        window: usize,
        out: &mut Vec<Action<W>>,
    ) -> Result<(), SealError> {
        if matches!(self.phase, Phase::Closed) {
            return Ok(());
        }
        self.leave_session(now_ms, out);
        let record =
            seal.open(&Open { predecessors: self.predecessors.clone(), delegable: self.delegated.delegable })?;
        self.phase = Phase::Opening {
            hash: proto::frame::record_hash(&record),
            record: record.clone(),
            since_ms: now_ms,
            sent_ms: now_ms,
            sends: 1,
        };
        self.session = Some((session, seal));
        self.window = window.max(1);
        self.silent_since.get_or_insert(now_ms);
        self.wake_at(now_ms + RESEND_FIRST_MS);
        out.push(Action::Send { number: RequestNo(0), frame: record, journaled: None, again: false, waits: true });
        Ok(())
    }

    /// The session has ended, or is to be replaced.
    pub(super) fn ended(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        if matches!(self.phase, Phase::Closed | Phase::Login) {
            return;
        }
        self.silent_since.get_or_insert(now_ms);
        self.leave_session(now_ms, out);
        self.phase = Phase::Login;
        out.push(Action::WantSession);
    }

    /// From here on nothing is sent or taken under the session that there was.
    fn leave_session(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        self.release_all_held(now_ms, out);
        if let Some((session, _)) = self.session.take() {
            self.predecessors.push(session);
            // The first ones are what matters: requests were numbered in them.
            if self.predecessors.len() > Open::MAX_PREDECESSORS {
                self.predecessors.remove(Open::MAX_PREDECESSORS - 1);
            }
            self.promises.drop_all(self.seen);
            out.push(Action::Invalidate(Invalidation::All));
        }
    }

    /// The open was answered. What was under way in the session before it is
    /// completed from its results or entered again, in order.
    pub(super) fn opened(&mut self, now_ms: u64, answer: Answer, out: &mut Vec<Action<W>>) {
        let Ok(Outcome::Opened { root: _, ended, now: _, limited }) = answer.result else {
            // Refused (the ticket has run out, the user was removed meanwhile): the next login will tell.
            return self.ended(now_ms, out);
        };
        self.seen = self.seen.max(Some(answer.at));
        let fate = self.flight_session.and_then(|id| ended.iter().find(|ended| ended.session == id));
        let mut results: BTreeMap<RequestNo, Answer> =
            fate.map(|fate| fate.results.iter().cloned().collect()).unwrap_or_default();
        if planted(Bug::ResendWithoutAsking) {
            results.clear();
        }
        let last =
            fate.filter(|fate| fate.known && !planted(Bug::ResendWithoutAsking)).map_or(RequestNo(0), |fate| fate.last);
        let mut again = Vec::new();
        let flight = self.flight.take().into_iter().map(|(number, flight)| (number, flight.entry));
        let (parked, mut early) = self.parked.take();
        let unfinished: BTreeMap<RequestNo, Entry<W>> = flight.chain(parked).collect();
        for (number, entry) in unfinished {
            // It has been confirmed, so the server need not have it any more.
            let told = early.remove(&number).map(|(at, result)| Answer::bare(at, PushNo(0), result));
            match told.or_else(|| results.remove(&number)) {
                _ if is_upkeep(&entry.op) => {}
                // A lock went with the session; what was written under one may come too late.
                _ if matches!(entry.op, Op::Lock(_)) => {
                    out.push(Action::Done { entry, result: Err(CallError::SessionLost) });
                }
                Some(answer) if answer.is_void() => match entry.only_in {
                    None => again.push(entry),
                    Some(_) => out.push(Action::Done { entry, result: Err(CallError::SessionLost) }),
                },
                // Its grants are of a session that is over.
                Some(answer) if number <= last => {
                    let answer = Answer::bare(answer.at, answer.pushed, answer.result);
                    self.finish(now_ms, Entry { local: false, ..entry }, answer, Bytes::new(), out);
                }
                _ if number <= last && entry.op.outlives_session() => {
                    out.push(Action::Done { entry, result: Err(CallError::SessionLost) });
                }
                _ if entry.only_in.is_some() && !planted(Bug::WrittenOutlivesLock) => {
                    out.push(Action::Done { entry, result: Err(CallError::SessionLost) });
                }
                _ => again.push(entry),
            }
        }
        for entry in again.into_iter().rev() {
            self.waiting.push_front(entry);
        }
        // What was answered under the delegations of another session is asked for like anything else.
        self.waiting.iter_mut().for_each(|entry| entry.local = false);
        self.waiting.retain(|entry| !is_upkeep(&entry.op));
        self.owed = 0;
        self.delegated.anew(self.entered);
        self.kernel.anew();
        self.predecessors.clear();
        self.flight_session = None;
        self.ordinary = 0;
        self.next = RequestNo(1);
        self.answered_offset = 0;
        self.acks = Acks::default();
        self.pushes = Pushes::default();
        self.gap_filled = (RequestNo(0), 0);
        self.numbered_ms = now_ms;
        self.silent_since = None;
        self.phase = Phase::Live;
        self.promises.drop_all(self.seen);
        self.wake_at(now_ms + RENEW_ACTIVE_MS);
        out.push(Action::Opened { ended, limited });
        self.pump(now_ms, out);
    }
}
