//! What a session on one partition decides: numbering, the window, resending,
//! acknowledging, pushes, renewals, and what to do when the session has ended.
//!
//! Pure: time (milliseconds of one monotonic clock) and messages come in as
//! arguments, [`Action`]s go out; no clock, thread, randomness or I/O inside, so
//! it runs in a simulator. Invariants:
//!
//! * A number's frame is sealed once; every resending is of the same bytes.
//! * What was numbered under a session that may have ended is sent again only
//!   after its successor's open was answered, and only if it was not applied.
//! * Whoever enters a request hears of its end exactly once.

mod acks;
pub(super) mod content;
mod delegated;
mod flight;
mod kernel;
mod line;
mod ordered;
mod parked;
mod pushes;
mod replace;
mod stored;
mod touch;

#[cfg(test)]
mod tests;

use super::promises::Promises;
use super::{CallError, Invalidation, Reply};
use acks::Acks;
use bytes::Bytes;
use delegated::Delegated;
use flight::{Append, Flight, Flights, RESEND_FIRST_MS, backoff_ms};
use kernel::KernelForgets;
use ordered::Ordered;
use parked::ParkedRequests;
use proto::message::{Answer, Each, Ended, Op, Open, Outcome, Push, PushBody, Refusal, Request, Resource, SessionOp};
use proto::planted::{Bug, planted};
use proto::seal::SealError;
use proto::{Epoch, Position, PushNo, RequestNo, SessionId, Time};
use pushes::Pushes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
pub(super) use stored::Stored;

/// One gap is filled at most this often, in milliseconds: of many pipelined
/// requests after a lost one each is answered with the same gap.
const GAP_AGAIN_MS: u64 = 250;

/// Silence after which the mount calls itself offline, in milliseconds.
pub(crate) const OFFLINE_MS: u64 = 10_000;

/// How long an open may stay unanswered before another login, in milliseconds.
const OPEN_MS: u64 = 20_000;

/// Between records of an active session, so that its promises never run out.
const RENEW_ACTIVE_MS: u64 = 4_000;
/// Between records of an idle one, so that the session itself goes on.
const RENEW_IDLE_MS: u64 = 20_000;
/// Without use for this long, a session with nothing open is idle.
const IDLE_AFTER_MS: u64 = 30_000;

/// Requests that wait for the window, at most; a further one is turned away.
pub(crate) const MAX_WAITING: usize = 65_536;

/// Seals a session's records. The only part of the session that the core does
/// not see through.
pub(crate) trait Seal: Send {
    /// The log's epoch in which the session lives.
    fn epoch(&self) -> Epoch;
    fn open(&mut self, body: &Open) -> Result<Bytes, SealError>;
    fn request(&mut self, number: RequestNo, body: &Request, payload: &[u8]) -> Result<Bytes, SealError>;
}

/// Whoever waits for an answer.
pub(crate) trait Waiter {
    /// Nobody will look at the answer any more.
    fn is_gone(&self) -> bool;

    /// The request has been admitted under this number and waits; its answer comes later.
    fn parked(&mut self, session: SessionId, number: RequestNo);
}

/// A change's place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Journaled {
    pub file: u32,
    pub entry: u64,
}

impl Journaled {
    /// The file of this process; the others are adopted.
    pub(crate) const OWN_FILE: u32 = 0;

    pub(crate) fn is_adopted(self) -> bool {
        self.file != Journaled::OWN_FILE
    }
}

/// One request on its way.
pub(crate) struct Entry<W> {
    /// `None` for what the core itself sends.
    pub waiter: Option<W>,
    pub op: Op,
    pub payload: Bytes,
    pub time: Time,
    pub journaled: Option<Journaled>,
    /// Means nothing, or harm, in another session than this one: what is written under a lock.
    pub only_in: Option<SessionId>,
    /// Whoever asked has been answered already, under a delegation.
    pub answered: bool,
    /// That was in the present session.
    pub local: bool,
    /// It has waited in the server and is entered once more, by another order.
    pub asked_again: bool,
    /// Rises with each request entered; the log has them in this order.
    pub order: u64,
    pub entered_ms: u64,
}

impl<W> Entry<W> {
    /// What the core and its driver ask for themselves.
    pub fn own(op: Op, now_ms: u64) -> Entry<W> {
        Entry {
            waiter: None,
            op,
            payload: Bytes::new(),
            time: Time::default(),
            journaled: None,
            only_in: None,
            answered: false,
            local: false,
            asked_again: false,
            order: 0,
            entered_ms: now_ms,
        }
    }
}

/// What the world is to do, in this order.
#[expect(clippy::large_enum_variant, reason = "it lives for a moment; a box would cost each request an allocation")]
pub(crate) enum Action<W> {
    /// Append the frame to the session's request partition, behind all sent before. A change's journal
    /// entry must be told the session and number first.
    Send {
        number: RequestNo,
        frame: Bytes,
        journaled: Option<Journaled>,
        /// It was sent before.
        again: bool,
        /// Somebody waits for its answer; else it may be held back for a moment, to leave with others.
        waits: bool,
    },
    /// The entry's end.
    Done {
        entry: Entry<W>,
        result: Result<Reply, CallError>,
    },
    /// The session lives. `ended` are the sessions that it replaces; what was under way in them has been
    /// seen to. `limited` says what there is a quota of.
    Opened {
        ended: Vec<Ended>,
        limited: Each<bool>,
    },
    /// A quota has been set.
    Limited(Resource),
    /// What is reserved and not used is to be given back.
    GiveBack(Resource),
    Invalidate(Invalidation),
    /// [`Core::wants_session`] has become true.
    WantSession,
    /// [`Core::wants_content`] has something.
    WantContent,
}

enum Phase {
    /// There is no session, or it has ended: a login must come.
    Login,
    Opening {
        record: Bytes,
        hash: [u8; 32],
        since_ms: u64,
        sent_ms: u64,
        sends: u32,
    },
    Live,
    /// Nothing is sent or taken any more.
    Closed,
}

/// See the module.
pub(crate) struct Core<W> {
    promises: Arc<Promises>,
    phase: Phase,
    /// The session that is open or being opened, and what seals its records.
    session: Option<(SessionId, Box<dyn Seal>)>,
    window: usize,
    waiting: VecDeque<Entry<W>>,
    /// The order of the last request entered, and of the last among these that the server waits for.
    entered: u64,
    owed: u64,
    delegated: Delegated,
    kernel: KernelForgets,
    flight: Flights<W>,
    /// Whose numbers `flight` has.
    flight_session: Option<SessionId>,
    parked: ParkedRequests<W>,
    ordered: Ordered<W>,
    /// Requests in flight that are not upkeep.
    ordinary: usize,
    /// Sessions to be replaced by the next open, oldest first.
    predecessors: Vec<SessionId>,
    next: RequestNo,
    acks: Acks,
    pushes: Pushes,
    /// The highest position heard of.
    seen: Option<Position>,
    /// Where the last one stands of this session's requests that have been answered.
    answered_offset: u64,
    open_inodes: usize,
    heard_ms: u64,
    /// When a new number was last sent.
    numbered_ms: u64,
    last_submit_ms: u64,
    /// Since when something is unanswered and nothing has been heard.
    silent_since: Option<u64>,
    offline_since: Option<u64>,
    gap_filled: (RequestNo, u64),
    /// No deadline is before this moment.
    wake_ms: u64,
}

impl<W: Waiter> Core<W> {
    /// A core without a session. `predecessors` are those of journals to be adopted.
    /// With `delegable` its sessions can be delegated what nobody else has to do with.
    pub(crate) fn new(promises: Arc<Promises>, predecessors: Vec<SessionId>, delegable: bool) -> Core<W> {
        Core {
            promises,
            entered: 0,
            owed: 0,
            delegated: Delegated::new(delegable),
            kernel: KernelForgets::default(),
            phase: Phase::Login,
            session: None,
            window: 1,
            waiting: VecDeque::new(),
            flight: Flights::default(),
            flight_session: None,
            parked: ParkedRequests::default(),
            ordered: Ordered::default(),
            ordinary: 0,
            predecessors,
            next: RequestNo(1),
            acks: Acks::default(),
            pushes: Pushes::default(),
            seen: None,
            answered_offset: 0,
            open_inodes: 0,
            heard_ms: 0,
            numbered_ms: 0,
            last_submit_ms: 0,
            silent_since: None,
            offline_since: None,
            gap_filled: (RequestNo(0), 0),
            wake_ms: u64::MAX,
        }
    }

    /// Enters a request behind all entered before it, a view before what waits and does not concern it. Gives its order; a
    /// view's comes with its answer.
    pub(crate) fn submit(&mut self, now_ms: u64, mut entry: Entry<W>, out: &mut Vec<Action<W>>) -> u64 {
        self.entered += 1;
        entry.order = self.entered;
        if matches!(self.phase, Phase::Closed) {
            out.push(Action::Done { entry, result: Err(CallError::Closed) });
        } else if self.waiting.len() >= MAX_WAITING {
            out.push(Action::Done { entry, result: Err(CallError::Overloaded) });
        } else {
            self.last_submit_ms = now_ms;
            self.line_up(entry);
            self.pump(now_ms, out);
        }
        self.entered
    }

    /// The session is open or being opened.
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.session.as_ref().map(|(id, _)| *id)
    }

    /// The hash of the record that an answer with this number must bind, if one is awaited.
    pub(crate) fn awaited(&self, session: SessionId, number: RequestNo) -> Option<[u8; 32]> {
        if self.session() != Some(session) {
            return None;
        }
        match &self.phase {
            Phase::Opening { hash, .. } => (number == RequestNo(0)).then_some(*hash),
            Phase::Live => self.flight.get(&number).map(|flight| flight.hash),
            Phase::Login | Phase::Closed => None,
        }
    }

    /// An authentic answer to a record that [`Core::awaited`] knows.
    pub(crate) fn answer(
        &mut self,
        now_ms: u64,
        number: RequestNo,
        answer: Answer,
        payload: Bytes,
        out: &mut Vec<Action<W>>,
    ) {
        self.heard(now_ms);
        if let Err(Refusal::SessionEnded) = answer.result {
            return self.ended(now_ms, out);
        }
        if matches!(self.phase, Phase::Opening { .. }) {
            return self.opened(now_ms, answer, out);
        }
        if let Ok(Outcome::Gap { expected }) = answer.result {
            return self.fill_gap(now_ms, expected, out);
        }
        if answer.result == Err(Refusal::NotDelegated) {
            // What was answered under a delegation came too late. All of it is entered again, as what nobody has been
            // told of, in a session that has been delegated nothing.
            return self.ended(now_ms, out);
        }
        let Some(flight) = self.flight.remove(&number) else { return };
        if self.flight.is_empty() {
            self.silent_since = None;
        }
        self.seen = self.seen.max(Some(answer.at));
        self.answered_offset = self.answered_offset.max(answer.at.offset);
        self.acks.answered(number);
        self.ordinary -= usize::from(!is_upkeep(&flight.entry.op));
        if self.overtakes_change(number) {
            self.lost(now_ms, out);
        }
        if self.pushes.told(now_ms, answer.pushed) {
            self.lost(now_ms, out);
        }
        match flight.entry.op {
            Op::Session(SessionOp::Repeat { .. }) => self.pushes.repeated(now_ms, answer.pushed),
            Op::Session(SessionOp::Undelegated) => self.delegated.given_up(flight.entry.order),
            _ => {}
        }
        // An answer that speaks of a push that has not come does not renew:
        // the server does not count it for what that push is about.
        if self.pushes.complete_up_to(answer.pushed)
            && self.promises.extend(
                now_ms,
                if planted(Bug::LeaseFromAnswer) { now_ms } else { flight.first_sent_ms },
                answer.at,
            )
        {
            out.push(Action::Invalidate(Invalidation::All));
            self.give_up_delegations(now_ms);
        }
        if let Some(deadline_ms) = self.pushes.deadline_ms() {
            self.wake_at(deadline_ms);
        }
        match answer.result {
            Ok(Outcome::Waiting) => self.park(now_ms, number, flight.entry, out),
            Err(Refusal::Again) => self.ask_again(flight.entry),
            _ if self.ordered.may_show_later(&flight, answer.at) => self.ask_again(flight.entry),
            _ => self.finish_in_order(now_ms, number, flight.entry, (answer, payload), out),
        }
        self.release_held(now_ms, out);
        self.pump(now_ms, out);
    }

    /// An authentic push of this session. [`Core::flush`] follows when no more are at hand.
    pub(crate) fn push(&mut self, now_ms: u64, number: PushNo, body: PushBody, out: &mut Vec<Action<W>>) {
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        self.heard(now_ms);
        self.seen = self.seen.max(Some(body.at));
        // First of all: an outcome may show what a push takes back that has not come.
        let is_recall = self.delegated.is_recall(&body.push);
        if self.pushes.came(now_ms, number, !is_recall) {
            self.lost(now_ms, out);
        }
        match body.push {
            Push::Invalidate(promises) => {
                if !planted(Bug::IgnorePush) {
                    self.promises.broken(body.at, &promises);
                }
                out.push(Action::Invalidate(Invalidation::Promises(promises)));
            }
            Push::Accessed(inodes) => {
                out.push(Action::Invalidate(Invalidation::Accessed { at: body.at, inodes }));
            }
            Push::LastNameGone(ino) => out.push(Action::Invalidate(Invalidation::LastNameGone(ino))),
            Push::Limited(of) => out.push(Action::Limited(of)),
            Push::GiveBack(of) => out.push(Action::GiveBack(of)),
            Push::Outcome { number, result } => self.outcome(now_ms, body.at, number, result, out),
        }
    }

    /// Sends what has gathered: confirmations, which go at once and beyond the window.
    pub(crate) fn flush(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        if !matches!(self.phase, Phase::Live) {
            return;
        }
        while let Some(pushes) = self.pushes.take_confirmations() {
            self.upkeep(now_ms, SessionOp::Confirm { pushes }, out);
        }
        while let Some(pushes) = self.pushes.take_confirmations_behind() {
            self.kernel.hold(pushes);
        }
        while let Some(pushes) = self.kernel.release(now_ms) {
            self.behind(now_ms, SessionOp::Confirm { pushes }, out);
        }
        if self.delegated.is_to_be_given_up() && self.kernel.is_clear(now_ms) {
            let order = self.behind(now_ms, SessionOp::Undelegated, out);
            self.delegated.giving_up(order);
        }
        if let Some(deadline_ms) = self.kernel.deadline_ms() {
            self.wake_at(deadline_ms);
        }
        if self.pushes.deadline_ms().is_some_and(|due| due <= now_ms) {
            self.repeat(now_ms, out);
        }
    }

    /// The kernel is to forget what it was told it may keep, which it does by itself at `until_ms`. Recalls that have been
    /// taken in are not confirmed before that or [`Core::kernel_forgot`].
    pub(crate) fn kernel_forgets(&mut self, until_ms: u64) -> u64 {
        self.wake_at(until_ms);
        self.kernel.begin(until_ms)
    }

    pub(crate) fn kernel_forgot(&mut self, now_ms: u64, number: u64, out: &mut Vec<Action<W>>) {
        self.kernel.done(number);
        self.flush(now_ms, out);
    }

    /// Whether what is entered is sent at once, as far as the log goes.
    pub(crate) fn has_room(&self) -> bool {
        self.flight.have_room()
    }

    /// The log's word on a record sent: stored at an offset, or not as far as it knows. Says whether somebody's request has
    /// got there for the first time.
    pub(crate) fn appended(&mut self, now_ms: u64, session: SessionId, number: RequestNo, offset: Option<u64>) -> bool {
        if self.session() != Some(session) {
            return false;
        }
        let append = offset.map_or(Append::Failed, |offset| Append::Done { offset, told_ms: now_ms });
        let had_room = self.flight.have_room();
        let Some(flight) = self.flight.told(number, append) else { return false };
        if flight.sends == 1 {
            flight.first_at = offset;
        }
        let is_first = flight.sends == 1 && offset.is_some() && !is_upkeep(&flight.entry.op);
        let due_ms = match offset {
            Some(_) => now_ms + backoff_ms(flight.sends),
            None => now_ms + RESEND_FIRST_MS,
        };
        // What has no room is sent when there is some.
        let is_due = !had_room && self.flight.have_room() && !self.waiting.is_empty();
        self.wake_at(if is_due { now_ms } else { due_ms });
        is_first
    }

    /// Does what is due by now.
    pub(crate) fn poll(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        if let Some(since) = self.silent_since
            && self.offline_since.is_none()
            && now_ms >= since + OFFLINE_MS
        {
            self.offline_since = Some(since);
            if !matches!(self.phase, Phase::Login) {
                out.push(Action::WantSession);
            }
        }
        match &mut self.phase {
            Phase::Login | Phase::Closed => {}
            Phase::Opening { since_ms, .. } if now_ms >= *since_ms + OPEN_MS => self.ended(now_ms, out),
            Phase::Opening { record, sent_ms, sends, .. } => {
                if now_ms >= *sent_ms + backoff_ms(*sends) {
                    (*sent_ms, *sends) = (now_ms, *sends + 1);
                    out.push(Action::Send {
                        number: RequestNo(0),
                        frame: record.clone(),
                        journaled: None,
                        again: true,
                        waits: true,
                    });
                }
            }
            Phase::Live => {
                self.resend_due(now_ms, out);
                self.flush(now_ms, out);
                self.renew(now_ms, out);
                self.pump(now_ms, out);
            }
        }
        self.wake_ms = self.next_deadline_ms();
    }

    /// No deadline is before this moment: [`Core::poll`] may wait until then.
    pub(crate) fn wake_ms(&self) -> u64 {
        self.wake_ms
    }

    /// A login is needed: there is no session, or none that answers.
    pub(crate) fn wants_session(&self) -> bool {
        match self.phase {
            Phase::Login => true,
            Phase::Opening { .. } | Phase::Closed => false,
            Phase::Live => self.offline_since.is_some(),
        }
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// How many inodes are open: while there are any, promises are kept up.
    pub(crate) fn set_open_inodes(&mut self, now_ms: u64, count: usize) {
        let is_first = self.open_inodes == 0 && count > 0;
        self.open_inodes = count;
        if is_first {
            // It may be due earlier from now on: not by now, or each file that is made and closed would wake somebody.
            self.wake_at(self.renewal_ms().max(now_ms));
        }
    }

    /// Since when nothing has been heard although asked, if that is too long.
    pub(crate) fn offline_since_ms(&self) -> Option<u64> {
        self.offline_since
    }

    pub(crate) fn heard_ms(&self) -> u64 {
        self.heard_ms
    }

    /// Requests of callers that are not answered, in order.
    pub(crate) fn unanswered(&self) -> impl Iterator<Item = &Entry<W>> {
        let flight = self.flight.values().map(|flight| &flight.entry);
        // A lock that is waited for is nothing that is still to be done.
        flight.chain(&self.waiting).filter(|entry| !is_upkeep(&entry.op))
    }

    /// Ends everything: what was entered and not answered is handed back as closed.
    pub(crate) fn close(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        self.release_all_held(now_ms, out);
        self.phase = Phase::Closed;
        self.promises.drop_all(self.seen);
        self.ordinary = 0;
        let flight = self.flight.take().into_values().map(|flight| flight.entry);
        let parked = self.parked.take().0.into_values();
        for entry in flight.chain(parked).chain(std::mem::take(&mut self.waiting)) {
            out.push(Action::Done { entry, result: Err(CallError::Closed) });
        }
    }
}

impl<W: Waiter> Core<W> {
    /// What has been delegated counts no more here: the server is told so by the next [`Core::flush`], behind all that
    /// was answered under it.
    fn give_up_delegations(&mut self, now_ms: u64) {
        self.delegated.give_up();
        if self.delegated.is_to_be_given_up() {
            self.wake_at(now_ms);
        }
    }

    fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.offline_since = None;
        self.silent_since = (!self.flight.is_empty()).then_some(now_ms);
    }

    /// Takes an answer to its waiter, with what it promises.
    fn finish(&mut self, now_ms: u64, entry: Entry<W>, answer: Answer, payload: Bytes, out: &mut Vec<Action<W>>) {
        let order = entry.order;
        let result = match answer.result {
            Ok(outcome) => {
                let touched = touch::touched(&entry.op, &outcome);
                let (granted, continued) = if touched.is_empty() {
                    (self.promises.granted(answer.at, &answer.granted), Vec::new())
                } else if entry.local {
                    (self.promises.settled(answer.at, &touched, &answer.granted), Vec::new())
                } else {
                    self.promises.changed_here(now_ms, answer.at, &touched, &answer.granted)
                };
                let session = self.session();
                Ok(Reply { at: answer.at, order, session, outcome, payload, granted, continued })
            }
            Err(refusal) => {
                let granted = self.promises.granted(answer.at, &answer.granted);
                Err(CallError::Refused { refusal, at: answer.at, order, granted })
            }
        };
        let granted = match &result {
            Ok(Reply { granted, .. }) | Err(CallError::Refused { granted, .. }) => &granted[..],
            Err(_) => &[],
        };
        if self.delegated.takes(order) {
            let mut delegated = answer.delegated;
            delegated.retain(|thing| granted.iter().any(|(promise, _)| promise == thing));
            self.delegated.have(!delegated.is_empty());
            self.promises.delegated(&delegated);
        }
        out.push(Action::Done { entry, result });
    }

    /// Whether this is the first answer that came before one to an earlier change of its own, which
    /// is lost or held. That change has taken effect, and nobody knows yet on what.
    fn overtakes_change(&mut self, number: RequestNo) -> bool {
        let mut first = false;
        for (_, flight) in self.flight.range_mut(..number) {
            // What was answered under a delegation is known here.
            if flight.entry.op.outlives_session() && !flight.entry.local && !flight.overtaken {
                flight.overtaken = true;
                first = true;
            }
        }
        first
    }

    /// Pushes were missed: nothing that was promised counts.
    fn lost(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        self.promises.drop_all(self.seen);
        out.push(Action::Invalidate(Invalidation::All));
        self.give_up_delegations(now_ms);
    }

    fn repeat(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        if let Some(from) = self.pushes.ask_to_repeat(now_ms) {
            self.lost(now_ms, out);
            self.upkeep(now_ms, SessionOp::Repeat { from }, out);
        }
    }

    fn fill_gap(&mut self, now_ms: u64, expected: RequestNo, out: &mut Vec<Action<W>>) {
        let (filled, when_ms) = self.gap_filled;
        if filled == expected && now_ms < when_ms + GAP_AGAIN_MS {
            return;
        }
        self.gap_filled = (expected, now_ms);
        if self.flight.contains_key(&expected) {
            self.flight.send_again(now_ms, expected.., |_, _| true, out);
        }
    }

    fn resend_due(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        let top = self.acks.top();
        if planted(Bug::ResendRenumbered) {
            let due =
                |(number, flight): &(&RequestNo, &Flight<W>)| now_ms >= flight.due_ms(**number, top, self.heard_ms);
            let due: Vec<RequestNo> = self.flight.iter().filter(due).map(|(number, _)| *number).collect();
            for number in due {
                if let Some(flight) = self.flight.remove(&number) {
                    self.ordinary -= usize::from(!is_upkeep(&flight.entry.op));
                    self.number(now_ms, flight.entry, out);
                }
            }
            return;
        }
        let heard_ms = self.heard_ms;
        self.flight.send_again(now_ms, .., |number, flight| now_ms >= flight.due_ms(number, top, heard_ms), out);
    }

    fn renew(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        if now_ms < self.renewal_ms() {
            return;
        }
        let pending = self.flight.values().any(|flight| matches!(flight.entry.op, Op::Session(SessionOp::Renew)));
        if !pending {
            self.upkeep(now_ms, SessionOp::Renew, out);
        }
    }

    /// When the next renewal is due if nothing else is sent before.
    fn renewal_ms(&self) -> u64 {
        let used_ms = self.last_submit_ms.max(self.promises.last_used_ms());
        let active_ms = self.numbered_ms + RENEW_ACTIVE_MS;
        if self.open_inodes > 0 || active_ms < used_ms + IDLE_AFTER_MS {
            active_ms
        } else {
            self.numbered_ms + RENEW_IDLE_MS
        }
    }

    fn next_deadline_ms(&self) -> u64 {
        let mut next = u64::MAX;
        if let (Some(since), None) = (self.silent_since, self.offline_since) {
            next = next.min(since + OFFLINE_MS);
        }
        match &self.phase {
            Phase::Login | Phase::Closed => {}
            Phase::Opening { since_ms, sent_ms, sends, .. } => {
                next = next.min(since_ms + OPEN_MS).min(sent_ms + backoff_ms(*sends));
            }
            Phase::Live => {
                let top = self.acks.top();
                for (number, flight) in self.flight.iter() {
                    next = next.min(flight.due_ms(*number, top, self.heard_ms));
                }
                next = next.min(self.pushes.deadline_ms().unwrap_or(u64::MAX));
                next = next.min(self.kernel.deadline_ms().unwrap_or(u64::MAX));
                let renewing =
                    self.flight.values().any(|flight| matches!(flight.entry.op, Op::Session(SessionOp::Renew)));
                if !renewing {
                    next = next.min(self.renewal_ms());
                }
            }
        }
        next
    }

    fn wake_at(&mut self, ms: u64) {
        self.wake_ms = self.wake_ms.min(ms);
    }
}

/// Records of the session's own, outside the window; a new session does not need them again.
fn is_upkeep(op: &Op) -> bool {
    matches!(
        op,
        Op::Session(
            SessionOp::Renew
                | SessionOp::Confirm { .. }
                | SessionOp::Repeat { .. }
                | SessionOp::Cancel { .. }
                | SessionOp::Undelegated
        )
    )
}
