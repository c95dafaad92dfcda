//! Promises, the pushes that break them, and the answers that wait for those.
//!
//! A change is applied at once, but no answer that depends on what has changed
//! leaves, to anyone but the push's addressee, before every session that relied on
//! it has confirmed its push, has ended, or could no longer rely on anything
//! because its lease is over. An answer is computed at its place in the log, then
//! held, never computed again.
//!
//! A push waits for confirmation under everything that its record changed, not only
//! under what its addressee had been promised: an inode's attributes may be covered
//! by one thing before a change and by another after it.

use super::Machine;
use super::effect::Effect;
use super::rows::Turn;
use super::session::{Session, answer_effect};
use super::shared::Shared;
use bytes::Bytes;
use proto::message::{Answer, Outcome, Promise, Push, PushBody, Refusal, Resource};
use proto::planted::{Bug, planted};
use proto::{Ino, LogTime, PushNo, RequestNo, SessionId, Time};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Promises of one session; beyond them the oldest are revoked.
const MAX_PROMISES: usize = 65_536;
/// As many at once, since each revocation is a push to be confirmed: a session that works with ever new files would else
/// confirm one for each.
const REVOKED_AT_ONCE: usize = 1_024;
/// A session that lets this many deadlines pass within [`BARRED_MS`] gets no promises for as long.
pub(super) const MAX_MISSED: usize = 3;
pub(super) const BARRED_MS: u64 = 60_000;
/// An unconfirmed push is sent again after this much log time.
const RESEND_MS: u64 = 1_000;
/// An unconfirmed push is kept for being asked for this long; an outcome until it is confirmed.
const KEEP_MS: u64 = 60_000;
/// What held answers to views may take in memory; beyond that they are dropped, and
/// the client asks again.
const MAX_HELD_BYTES: u64 = 64 << 20;

/// A push that has not been confirmed.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub body: PushBody,
    /// What answers wait for it under; empty if none do.
    pub things: BTreeSet<Promise>,
    /// When the addressee relies on nothing any more.
    pub deadline: LogTime,
    /// Whether the deadline is still to come.
    pub open: bool,
    pub made: LogTime,
    pub sent: LogTime,
}

impl Pending {
    /// What it takes back.
    fn asked_for(&self) -> &[Promise] {
        match &self.body.push {
            Push::Invalidate(things) => things,
            _ => &[],
        }
    }
}

/// Whom an answer is for.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct To {
    pub session: SessionId,
    pub number: RequestNo,
    /// Hash of the request's frame.
    pub request: [u8; 32],
}

/// What waits for confirmations before it leaves.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Held {
    to: To,
    what: Leaving,
    bytes: u64,
    waits: BTreeSet<(SessionId, PushNo)>,
}

#[derive(Clone, Serialize, Deserialize)]
enum Leaving {
    Answer(Answer, Bytes),
    /// Of a request that was parked; its push is numbered when it leaves.
    Outcome(PushBody),
}

/// Indexes that follow from sessions and held answers.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Things {
    /// Unconfirmed pushes by the things they wait under.
    unconfirmed: BTreeSet<(Promise, SessionId, PushNo)>,
    /// Held answers by the pushes they wait for.
    waiting: BTreeMap<(SessionId, PushNo), BTreeSet<u64>>,
    held_bytes: u64,
}

const FIRST: SessionId = SessionId([0; 16]);
const LAST: SessionId = SessionId([0xff; 16]);

impl Things {
    fn about(&self, thing: Promise) -> impl Iterator<Item = (SessionId, PushNo)> + '_ {
        let all = (thing, FIRST, PushNo(0))..=(thing, LAST, PushNo(u64::MAX));
        self.unconfirmed.range(all).map(|(_, session, number)| (*session, *number))
    }

    fn is_unconfirmed(&self, thing: Promise, session: SessionId) -> bool {
        let all = (thing, session, PushNo(0))..=(thing, session, PushNo(u64::MAX));
        self.unconfirmed.range(all).next().is_some()
    }
}

impl Machine {
    /// Makes the indexes anew after a restore.
    pub(super) fn index_promises(&mut self) {
        for (id, session) in &self.live.sessions {
            if !planted(Bug::RestoreForgetsHolders) {
                self.holders.extend(session.promises.keys().map(|promise| (*promise, *id)));
            }
            for (number, pending) in &session.pending {
                self.things.unconfirmed.extend(pending.things.iter().map(|thing| (*thing, *id, *number)));
            }
        }
        for (id, held) in &self.live.held {
            self.things.held_bytes += held.bytes;
            for wait in &held.waits {
                self.things.waiting.entry(*wait).or_default().insert(*id);
            }
        }
    }

    /// Ends a request's turn: breaks others' promises, grants new ones, and answers
    /// now or when it may. What a repeat must hear again is remembered.
    pub(super) fn answer(
        &mut self,
        turn: &mut Turn,
        to: To,
        result: Result<Outcome, Refusal>,
        payload: Bytes,
        remember: bool,
    ) {
        let changes = self.break_changed(turn, to.session);
        let mut waits = self.waits(&turn.reads, to.session);
        waits.extend(self.waits(&changes, to.session));
        if planted(Bug::ViewBeforeConfirmed) && !remember {
            waits.clear();
        }
        let grants = std::mem::take(&mut turn.grants);
        let granted = self.grant(turn, to.session, grants);
        let delegated = self.delegate(turn, to.session, &granted);
        let session = self.live.sessions.get_mut(&to.session).expect("a request's session lives");
        let answer = Answer { at: turn.at, pushed: session.pushed, result, granted, delegated };
        if remember && let Some(remembered) = session.remembered.get_mut(&to.number) {
            remembered.answer = Some(answer.clone());
        }
        self.hold_or_send(turn, to, answer, payload, waits);
    }

    /// The pushes that answers showing these things wait for.
    pub(super) fn waits<'a>(
        &self,
        things: impl IntoIterator<Item = &'a Promise>,
        asker: SessionId,
    ) -> BTreeSet<(SessionId, PushNo)> {
        if self.things.unconfirmed.is_empty() {
            return BTreeSet::new();
        }
        let about = things.into_iter().flat_map(|thing| self.things.about(*thing));
        about.filter(|(session, number)| *session != asker && self.is_open(*session, *number)).collect()
    }

    /// What the held answers of a session wait for, whether it lives or not.
    pub(super) fn waits_of_session(&self, id: SessionId) -> BTreeSet<(SessionId, PushNo)> {
        self.live.held.values().filter(|held| held.to.session == id).flat_map(|held| held.waits.clone()).collect()
    }

    fn is_open(&self, session: SessionId, number: PushNo) -> bool {
        let session = self.live.sessions.get(&session);
        session.and_then(|session| session.pending.get(&number)).is_some_and(|pending| pending.open)
    }

    /// Breaks others' promises of what a request of this session has changed; says what that is.
    pub(super) fn break_changed(&mut self, turn: &mut Turn, initiator: SessionId) -> BTreeSet<Promise> {
        let changes: BTreeSet<Promise> = std::mem::take(&mut turn.changes).into_iter().collect();
        if !changes.is_empty() {
            self.break_promises(turn, initiator, &changes);
        }
        changes
    }

    /// Everyone else who was promised one of these things is told, once.
    fn break_promises(&mut self, turn: &mut Turn, initiator: SessionId, changes: &BTreeSet<Promise>) {
        // Who has not confirmed an earlier change of one of these things does not
        // know of this one either.
        let earlier: BTreeSet<(SessionId, PushNo)> =
            changes.iter().flat_map(|thing| self.things.about(*thing)).collect();
        for (id, number) in earlier {
            let session = self.live.sessions.get_mut(&id);
            if let Some(pending) = session.and_then(|session| session.pending.get_mut(&number)) {
                pending.things.extend(changes);
                self.things.unconfirmed.extend(changes.iter().map(|thing| (*thing, id, number)));
            }
        }

        let mut broken: BTreeMap<SessionId, Vec<Promise>> = BTreeMap::new();
        for thing in changes {
            for id in self.holders_of(*thing) {
                let is_forgotten = match thing {
                    Promise::Inode(_) => planted(Bug::ForgetInodeInvalidation),
                    Promise::Content(_) => planted(Bug::ForgetContentInvalidation),
                    Promise::Dir(_) => planted(Bug::TellOneHolder) && broken.keys().any(|told| *told != id),
                };
                if id != initiator && !is_forgotten {
                    broken.entry(id).or_default().push(*thing);
                }
            }
        }
        for (id, things) in broken {
            self.revoke(turn, id, things, changes.clone());
        }
    }

    /// Takes promises from a session. Until it confirms that, answers about `about` wait for it.
    pub(super) fn revoke(&mut self, turn: &mut Turn, id: SessionId, things: Vec<Promise>, about: BTreeSet<Promise>) {
        for thing in &things {
            self.drop_promise(id, *thing);
        }
        self.push(turn, id, Push::Invalidate(things.clone()), about);
        let Some(number) = self.live.sessions.get(&id).map(|session| session.pushed) else { return };
        self.note_recalled(id, &things, number);
    }

    /// Who is promised a thing.
    pub(super) fn holders_of(&self, thing: Promise) -> impl Iterator<Item = SessionId> + '_ {
        self.holders.range((thing, FIRST)..=(thing, LAST)).map(|(_, id)| *id)
    }

    fn drop_promise(&mut self, id: SessionId, thing: Promise) {
        self.holders.remove(&(thing, id));
        if let Some(session) = self.live.sessions.get_mut(&id)
            && let Some(order) = session.promises.remove(&thing)
        {
            session.promise_order.remove(&order);
        }
    }

    /// Promises things to a session, as far as it may have promises.
    pub(super) fn grant(&mut self, turn: &mut Turn, id: SessionId, things: Vec<Promise>) -> Vec<Promise> {
        let now = self.live.now;
        let session = self.live.sessions.get_mut(&id).expect("a request's session lives");
        let is_barred = now < session.barred_until;
        let made = turn.made;
        let things: BTreeSet<Promise> = things.into_iter().filter(|thing| !is_barred || made == Some(*thing)).collect();
        let granted: Vec<Promise> =
            things.into_iter().filter(|thing| !self.things.is_unconfirmed(*thing, id)).collect();
        for thing in &granted {
            let order = session.next_promise;
            session.next_promise += 1;
            if let Some(before) = session.promises.insert(*thing, order) {
                session.promise_order.remove(&before);
            }
            session.promise_order.insert(order, *thing);
            self.holders.insert((*thing, id));
        }
        let beyond = session.promises.len().saturating_sub(MAX_PROMISES);
        let revoked = if beyond > 0 { beyond + REVOKED_AT_ONCE } else { 0 };
        let oldest: Vec<Promise> = session.promise_order.values().take(revoked).copied().collect();
        if !oldest.is_empty() {
            // Until this is confirmed the session still relies on them.
            let things = oldest.iter().copied().collect();
            self.revoke(turn, id, oldest, things);
        }
        granted
    }

    /// A session's lease is over: it relies on nothing, so nothing needs to be pushed.
    pub(super) fn lapse(&mut self, id: SessionId) {
        self.forfeit_all(id);
        if let Some(session) = self.live.sessions.get_mut(&id) {
            session.promise_order.clear();
            for promise in std::mem::take(&mut session.promises).into_keys() {
                self.holders.remove(&(promise, id));
            }
        }
    }

    fn push(&mut self, turn: &mut Turn, id: SessionId, push: Push, things: BTreeSet<Promise>) {
        let body = PushBody { at: turn.at, push };
        self.push_body(turn, id, body, things);
    }

    fn push_body(&mut self, turn: &mut Turn, id: SessionId, body: PushBody, things: BTreeSet<Promise>) {
        let now = self.live.now;
        let Some(session) = self.live.sessions.get_mut(&id) else { return };
        session.pushed = session.pushed.next();
        let number = session.pushed;
        self.things.unconfirmed.extend(things.iter().map(|thing| (*thing, id, number)));
        turn.effects.push(Effect::Push { to: session.peer(id), number, body: body.clone() });
        let deadline = session.lease_end();
        let open = deadline > now;
        session.pending.insert(number, Pending { body, things, deadline, open, made: now, sent: now });
    }

    pub(super) fn push_last_name_gone(&mut self, turn: &mut Turn, id: SessionId, ino: Ino) {
        self.push(turn, id, Push::LastNameGone(ino), BTreeSet::new());
    }

    /// Tells everyone else who was promised attributes that they have been read; nobody waits for it.
    pub(super) fn push_accessed(&mut self, turn: &mut Turn, reader: SessionId) {
        let mut told: BTreeMap<SessionId, Vec<(Ino, Time)>> = BTreeMap::new();
        for (thing, ino, time) in std::mem::take(&mut turn.accesses) {
            for (_, id) in self.holders.range((thing, FIRST)..=(thing, LAST)).filter(|(_, id)| *id != reader) {
                told.entry(*id).or_default().push((ino, time));
            }
        }
        for (id, inodes) in told {
            self.push(turn, id, Push::Accessed(inodes), BTreeSet::new());
        }
    }

    pub(super) fn push_limited(&mut self, turn: &mut Turn, id: SessionId, of: Resource) {
        self.push(turn, id, Push::Limited(of), BTreeSet::new());
    }

    /// Asks a session for the room that it does not use, unless it has not answered yet.
    pub(super) fn push_give_back(&mut self, turn: &mut Turn, id: SessionId, of: Resource) {
        let push = Push::GiveBack(of);
        let asked = |session: &Shared<Session>| session.pending.values().any(|p| p.body.push == push);
        if self.live.sessions.get(&id).is_some_and(|session| !asked(session)) {
            self.push(turn, id, push, BTreeSet::new());
        }
    }

    pub(super) fn repeat_pushes(&mut self, turn: &mut Turn, id: SessionId, from: PushNo) {
        let now = self.live.now;
        let Some(session) = self.live.sessions.get_mut(&id) else { return };
        let to = session.peer(id);
        for (number, pending) in session.pending.range_mut(from..) {
            pending.sent = now;
            let (to, body) = (to.clone(), pending.body.clone());
            turn.effects.push(Effect::Push { to, number: *number, body });
        }
    }

    pub(super) fn confirm(&mut self, turn: &mut Turn, id: SessionId, number: PushNo) {
        let session = self.live.sessions.get_mut(&id);
        if let Some(pending) = session.and_then(|session| session.pending.remove(&number)) {
            self.given_back(id, number, pending.asked_for());
            self.released(turn, id, number, &pending);
        }
    }

    /// A push no longer counts as unconfirmed. It has been taken out of its session.
    pub(super) fn released(&mut self, turn: &mut Turn, id: SessionId, number: PushNo, pending: &Pending) {
        for thing in &pending.things {
            self.things.unconfirmed.remove(&(*thing, id, number));
        }
        self.release_answers(turn, id, number);
    }

    /// Answers that wait for nothing more leave, in the order of their making.
    fn release_answers(&mut self, turn: &mut Turn, id: SessionId, number: PushNo) {
        for held_id in self.things.waiting.remove(&(id, number)).unwrap_or_default() {
            let Some(held) = self.live.held.get_mut(&held_id) else { continue };
            held.waits.remove(&(id, number));
            if self.may_leave(held_id) {
                self.release(turn, held_id);
            }
        }
    }

    /// Nothing that is held leaves any more, whatever is confirmed.
    pub(super) fn keep_back_held(&mut self) {
        self.things.waiting.clear();
    }

    /// What is held is forgotten.
    pub(super) fn drop_held(&mut self) {
        self.live.held.clear();
        self.things.waiting.clear();
        self.things.held_bytes = 0;
    }

    fn release(&mut self, turn: &mut Turn, held_id: u64) {
        let Some(held) = self.live.held.remove(&held_id) else { return };
        self.things.held_bytes = self.things.held_bytes.saturating_sub(held.bytes);
        match held.what {
            Leaving::Answer(answer, payload) => self.send(turn, held.to, answer, payload),
            Leaving::Outcome(body) => self.push_body(turn, held.to.session, body, BTreeSet::new()),
        }
    }

    fn may_leave(&self, held_id: u64) -> bool {
        self.live.held.get(&held_id).is_some_and(|held| held.waits.is_empty() && !self.is_in_grace(held.to))
    }

    /// Whether this opens a session while some of the epoch before rely on their promises.
    fn is_in_grace(&self, to: To) -> bool {
        to.number == RequestNo(0) && self.live.grace_until.is_some()
    }

    /// Promises of the epoch before have lapsed: who waited for that is told that its session is open.
    pub(super) fn end_grace(&mut self, turn: &mut Turn) {
        self.live.grace_until = None;
        let free: Vec<u64> = self.live.held.keys().copied().filter(|held_id| self.may_leave(*held_id)).collect();
        for held_id in free {
            self.release(turn, held_id);
        }
    }

    /// Sends an answer, or holds it until these pushes are confirmed.
    pub(super) fn hold_or_send(
        &mut self,
        turn: &mut Turn,
        to: To,
        answer: Answer,
        payload: Bytes,
        mut waits: BTreeSet<(SessionId, PushNo)>,
    ) {
        waits.retain(|(session, number)| self.is_open(*session, *number) && !planted(Bug::AnswerBeforeConfirmed));
        if waits.is_empty() && !self.is_in_grace(to) {
            return self.send(turn, to, answer, payload);
        }
        let encoded = rmp_serde::to_vec(&answer).expect("an answer has an encoding").len();
        let bytes = (encoded + payload.len()) as u64;
        if !self.set_held(to, true) && self.things.held_bytes + bytes > MAX_HELD_BYTES {
            return;
        }
        self.hold(Held { to, what: Leaving::Answer(answer, payload), bytes, waits });
    }

    /// Pushes the outcome of a request that was parked, or holds it until these pushes are confirmed.
    pub(super) fn hold_or_push(
        &mut self,
        turn: &mut Turn,
        to: To,
        result: Result<Outcome, Refusal>,
        mut waits: BTreeSet<(SessionId, PushNo)>,
    ) {
        waits.retain(|(session, number)| self.is_open(*session, *number));
        let body = PushBody { at: turn.at, push: Push::Outcome { number: to.number, result } };
        if waits.is_empty() {
            return self.push_body(turn, to.session, body, BTreeSet::new());
        }
        // They are bounded by how many requests may be parked.
        self.hold(Held { to, what: Leaving::Outcome(body), bytes: 0, waits });
    }

    /// Outcomes of a session's requests that have not left, or that it has not confirmed.
    pub(super) fn outcomes<'a>(&'a self, id: SessionId, session: &'a Session) -> impl Iterator<Item = &'a PushBody> {
        let pushed = session.pending.values().map(|pending| &pending.body);
        let held =
            self.live.held.values().filter(move |held| held.to.session == id).filter_map(|held| match &held.what {
                Leaving::Outcome(body) => Some(body),
                Leaving::Answer(..) => None,
            });
        pushed.filter(|body| matches!(body.push, Push::Outcome { .. })).chain(held)
    }

    fn hold(&mut self, held: Held) {
        let id = self.live.next_held;
        self.live.next_held += 1;
        for wait in &held.waits {
            self.things.waiting.entry(*wait).or_default().insert(id);
        }
        self.things.held_bytes += held.bytes;
        self.live.held.insert(id, held);
    }

    fn send(&mut self, turn: &mut Turn, to: To, answer: Answer, payload: Bytes) {
        self.set_held(to, false);
        // Of an ended session, the successor is told; it has no more answers itself.
        if let Some(session) = self.live.sessions.get(&to.session) {
            let mut effect = answer_effect(session.peer(to.session), to.number, to.request, answer);
            if let Effect::Answer { payload: empty, .. } = &mut effect {
                *empty = payload;
            }
            turn.effects.push(effect);
        }
    }

    /// Notes whether a remembered answer has left. Says whether it is remembered:
    /// one that is not can be asked for again.
    fn set_held(&mut self, to: To, held: bool) -> bool {
        let Some(session) = self.live.sessions.get_mut(&to.session) else { return false };
        if to.number == RequestNo(0) {
            session.opened_held = held;
            return true;
        }
        match session.remembered.get_mut(&to.number) {
            Some(remembered) if remembered.answer.is_some() && remembered.hash == to.request => {
                remembered.held = held;
                true
            }
            _ => false,
        }
    }

    /// What passing log time does to pushes: deadlines, resending, forgetting.
    pub(super) fn tick_pushes(&mut self, turn: &mut Turn, id: SessionId) {
        let now = self.live.now;
        // Most have nothing to look at, and would only be copied where an image shares them.
        let is_quiet = |session: &Shared<Session>| session.pending.is_empty() && session.missed.is_empty();
        let Some(session) = self.live.sessions.get_mut(&id).filter(|session| !is_quiet(session)) else { return };
        let session = &mut **session;
        let to = session.peer(id);
        let (mut over, mut old) = (Vec::new(), Vec::new());
        for (number, pending) in &mut session.pending {
            if pending.open && now >= pending.deadline {
                pending.open = false;
                over.push((*number, pending.asked_for().to_vec()));
                if !pending.things.is_empty() {
                    session.missed.push(now);
                }
            }
            // Whoever waits for an outcome waits for nothing else, however late it hears.
            let is_outcome = matches!(pending.body.push, Push::Outcome { .. });
            if (pending.open || is_outcome) && now >= pending.sent.plus_ms(RESEND_MS) {
                pending.sent = now;
                let (to, body) = (to.clone(), pending.body.clone());
                turn.effects.push(Effect::Push { to, number: *number, body });
            }
            if !is_outcome && now >= pending.made.plus_ms(KEEP_MS) {
                old.push(*number);
            }
        }
        session.missed.retain(|missed| now < missed.plus_ms(BARRED_MS));
        if session.missed.len() >= MAX_MISSED {
            session.missed.clear();
            session.barred_until = now.plus_ms(BARRED_MS);
        }
        for (number, things) in over {
            self.forfeit_recalled(id, number, &things);
            self.release_answers(turn, id, number);
        }
        for number in old {
            self.confirm(turn, id, number);
        }
    }
}
