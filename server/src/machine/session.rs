//! Sessions: opening, what they say of themselves, remembered results, and the end.
//!
//! A number is used up when it is admitted, and only after the one before it. The
//! hash of every admitted record is kept until its answer has been taken, with the
//! answer itself if the record changed something; so whatever the bus repeats or
//! reorders, each change happens once.

use super::delegation::Delegations;
use super::effect::{Effect, Peer};
use super::opened::MAX_KEPT_OPEN;
use super::promise::{MAX_MISSED, Pending, To};
use super::rows::{Key as RowKey, NamespaceRow, Turn, namespace_key, table};
use super::shared::Shared;
use super::{Machine, Stop};
use bytes::Bytes;
use proto::frame::Frame;
use proto::keys::ClusterKey;
use proto::message::{Acked, Answer, Each, Ended, Open, Outcome, Promise, Push, Refusal, SessionOp, Ticket, UserName};
use proto::planted::{Bug, planted};
use proto::seal::{Key, SealError, open_blob_of, seal_blob_of};
use proto::{Ino, LogTime, NamespaceId, Position, PushNo, RequestNo, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Promises hold this much log time from a session's last admitted record.
pub(super) const LEASE_MS: u64 = 10_000;
/// A session expires after this much log time without an admitted record.
pub(super) const EXPIRY_MS: u64 = 60_000;
/// An ended session's id is remembered for this much log time.
pub(super) const ENDED_MS: u64 = 60_000;
/// A ticket is good for this much log time after its issue.
const TICKET_MS: u64 = 60_000;
/// What an ended session left is kept for its successor this long: 400 days of log time.
const RESULTS_MS: u64 = 400 * 24 * 3_600_000;
/// Ended sessions remembered by id.
pub(super) const MAX_ENDED: usize = 65_536;
/// Sessions whose chunks a session may quote, itself included.
const MAX_LINEAGE: usize = 64;
/// Results of replaced sessions in one answer, encoded; older sessions' are left out first.
const RESULTS_BYTES: usize = 500_000;
const TICKET_PURPOSE: &str = "kfs session ticket v1";

/// Seals a ticket for its session's `Open`.
pub fn seal_ticket(secrets: &ClusterKey, ticket: &Ticket) -> Result<Vec<u8>, SealError> {
    seal_blob_of(&secrets.ticket_key(), TICKET_PURPOSE, &[], ticket)
}

/// Opens what [`seal_ticket`] sealed.
pub fn open_ticket(secrets: &ClusterKey, sealed: &[u8]) -> Result<Ticket, SealError> {
    open_blob_of(&secrets.ticket_key(), TICKET_PURPOSE, &[], sealed)
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Session {
    pub user: UserName,
    /// The user's last change that its login took account of.
    pub user_seen: Position,
    pub namespace: NamespaceId,
    pub key: Key,
    pub replies_partition: u32,
    pub bulk_partition: u32,
    /// Hash of the frame that opened it, and what that was answered.
    pub open_hash: [u8; 32],
    pub opened_answer: Answer,
    pub opened_held: bool,
    /// The last number admitted.
    pub admitted: RequestNo,
    pub admitted_at: LogTime,
    pub lineage: Vec<SessionId>,
    pub remembered: BTreeMap<RequestNo, Remembered>,
    /// Files that it may have open.
    pub opened: BTreeSet<Ino>,
    /// The last push's number.
    pub pushed: PushNo,
    pub pending: BTreeMap<PushNo, Pending>,
    /// What it has been promised, each with its turn.
    pub promises: BTreeMap<Promise, u64>,
    pub promise_order: BTreeMap<u64, Promise>,
    pub next_promise: u64,
    /// When its last deadlines passed unconfirmed; at most [`MAX_MISSED`].
    pub missed: Vec<LogTime>,
    /// Gets no promises before this.
    pub barred_until: LogTime,
    /// Of what it adds without reserving room: there is no quota, or it may not have heard of it.
    pub unlimited: Each<bool>,
    #[serde(default)]
    pub delegations: Delegations,
}

/// An admitted number whose answer has not been taken.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Remembered {
    pub hash: [u8; 32],
    /// Of changes, and of what waits.
    pub answer: Option<Answer>,
    /// The answer has not left yet.
    pub held: bool,
}

impl Session {
    pub fn peer(&self, id: SessionId) -> Peer {
        Peer {
            session: id,
            namespace: self.namespace,
            key: self.key.clone(),
            replies_partition: self.replies_partition,
            bulk_partition: self.bulk_partition,
        }
    }

    /// Until when its promises hold if nothing more is heard.
    pub fn lease_end(&self) -> LogTime {
        self.admitted_at.plus_ms(if planted(Bug::LeaseTooShort) { 1000 } else { LEASE_MS })
    }

    pub fn acknowledge(&mut self, acked: &Acked) {
        while let Some(first) = self.remembered.first_entry()
            && *first.key() <= acked.floor
        {
            first.remove();
        }
        for number in acked.also.iter().take(Acked::MAX_ALSO) {
            self.remembered.remove(number);
        }
    }
}

/// What is remembered of an ended session for a minute.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct EndedMark {
    pub key: Key,
    pub replies_partition: u32,
    pub at: Position,
    pub until: LogTime,
}

impl EndedMark {
    pub fn tell(&self, session: SessionId, frame: &Frame, at: Position) -> Effect {
        Effect::SessionEnded {
            session,
            replies_partition: self.replies_partition,
            number: RequestNo(frame.header().number),
            request: frame.hash(),
            at,
        }
    }
}

/// What is kept of an ended session for its successor.
#[derive(Clone, Serialize, Deserialize)]
struct EndedRow {
    user: UserName,
    namespace: NamespaceId,
    last: RequestNo,
    results: Vec<(RequestNo, Answer)>,
    lineage: Vec<SessionId>,
    /// What it had open, at most `MAX_KEPT_OPEN`.
    opened: Vec<Ino>,
    /// What it had added of these may not have been reserved.
    unlimited: Each<bool>,
    at: Position,
    until: LogTime,
}

fn ended_key(id: SessionId) -> Vec<u8> {
    RowKey::new(table::ENDED).bytes(&id.0).done()
}

fn ended_time_key(until: LogTime, id: SessionId) -> Vec<u8> {
    RowKey::new(table::ENDED_BY_TIME).u64(until.0).bytes(&id.0).done()
}

impl Machine {
    pub(super) fn open_session(
        &mut self,
        turn: &mut Turn,
        frame: &Frame,
        ticket: Ticket,
        open: Result<Open, Refusal>,
    ) -> Result<(), Stop> {
        let (id, header) = (ticket.session, frame.header());
        let fits = ticket.partition == self.partition
            && ticket.epoch == self.live.epoch
            && ticket.namespace == header.namespace
            && ticket.namespace.0 > 0
            && ticket.namespace <= NamespaceId::MAX
            && id == SessionId(header.sender);
        if !fits {
            return Err(Stop::Skip("an open with a ticket for something else"));
        }
        if let Some(session) = self.live.sessions.get(&id) {
            if session.open_hash != frame.hash() {
                return Err(Stop::Skip("a second open of a session"));
            }
            if !session.opened_held {
                let answer = session.opened_answer.clone();
                turn.effects.push(answer_effect(session.peer(id), RequestNo(0), session.open_hash, answer));
            }
            return Ok(());
        }
        if let Some(mark) = self.live.ended.get(&id) {
            turn.effects.push(mark.tell(id, frame, turn.at));
            return Ok(());
        }
        let too_late = self.live.now > ticket.issued.plus_ms(TICKET_MS);
        if too_late || self.is_user_ended(turn, &ticket.user, ticket.user_seen) {
            // Authentic, so whoever sent it may know that it has to log in again.
            turn.effects.push(Effect::SessionEnded {
                session: id,
                replies_partition: ticket.replies_partition,
                number: RequestNo(0),
                request: frame.hash(),
                at: turn.at,
            });
            return Ok(());
        }

        let open = match open {
            Ok(open) => open,
            Err(refusal) => {
                // Nothing is opened, so the ticket stays good for an open that can be read.
                let answer = Answer::bare(turn.at, PushNo(0), Err(refusal));
                let to = Peer {
                    session: id,
                    namespace: ticket.namespace,
                    key: ticket.key,
                    replies_partition: ticket.replies_partition,
                    bulk_partition: ticket.bulk_partition,
                };
                turn.effects.push(answer_effect(to, RequestNo(0), frame.hash(), answer));
                return Ok(());
            }
        };

        let mut lineage = vec![id];
        let mut ended = Vec::new();
        let mut waits = BTreeSet::new();
        let mut named = BTreeSet::new();
        let mut opened = BTreeSet::new();
        let limited = turn.limited(ticket.namespace);
        let mut unlimited = Each::of(|of| !limited[of]);
        for predecessor in open.predecessors.into_iter().take(Open::MAX_PREDECESSORS) {
            if !named.insert(predecessor) {
                continue;
            }
            waits.extend(self.waits_of_session(predecessor));
            ended.push(self.replace(turn, predecessor, &ticket, &mut lineage, &mut opened, &mut unlimited));
        }
        lineage.truncate(MAX_LINEAGE);
        bound_results(&mut ended);

        turn.by = id;
        turn.ensure_root(ticket.namespace, turn.time);
        let root = turn.inode(Ino::root(ticket.namespace)).expect("the root was made before").attr;
        turn.reads_attr(&root);
        waits.extend(self.waits(&turn.reads, id));
        let result = Ok(Outcome::Opened { root, ended, now: self.live.now, limited });
        let answer = Answer::bare(turn.at, PushNo(0), result);
        let session = Session {
            user: ticket.user,
            user_seen: ticket.user_seen,
            namespace: ticket.namespace,
            key: ticket.key,
            replies_partition: ticket.replies_partition,
            bulk_partition: ticket.bulk_partition,
            open_hash: frame.hash(),
            opened_answer: answer.clone(),
            opened_held: false,
            admitted: RequestNo(0),
            admitted_at: self.live.now,
            lineage,
            remembered: BTreeMap::new(),
            opened,
            pushed: PushNo(0),
            pending: BTreeMap::new(),
            promises: BTreeMap::new(),
            promise_order: BTreeMap::new(),
            next_promise: 0,
            missed: Vec::with_capacity(MAX_MISSED),
            barred_until: LogTime(0),
            unlimited,
            delegations: Delegations { able: open.delegable, ..Delegations::default() },
        };
        let to = To { session: id, number: RequestNo(0), request: session.open_hash };
        turn.effects.push(Effect::SessionOpened { to: session.peer(id) });
        self.live.sessions.insert(id, Shared::new(session));
        self.hold_or_send(turn, to, answer, Bytes::new(), waits);
        self.tell_nameless(turn, id);
        Ok(())
    }

    /// Ends a session that this one replaces, and says what became of it. What it had open
    /// is open for its successor, who may still be using it.
    fn replace(
        &mut self,
        turn: &mut Turn,
        id: SessionId,
        by: &Ticket,
        lineage: &mut Vec<SessionId>,
        opened: &mut BTreeSet<Ino>,
        unlimited: &mut Each<bool>,
    ) -> Ended {
        let unknown = Ended { session: id, known: false, last: RequestNo(0), results: Vec::new(), at: turn.at };
        if let Some(session) = self.live.sessions.get(&id) {
            if (&session.user, session.namespace) != (&by.user, by.namespace) {
                return unknown;
            }
            if planted(Bug::ReplacedGoesOn) {
                return unknown;
            }
            let has_open: Vec<Ino> = session.opened.iter().copied().collect();
            self.hand_on(turn, &has_open, by.session, opened);
            self.end_session(turn, id);
        }
        match turn.get::<EndedRow>(&ended_key(id)) {
            Some(row) if (&row.user, row.namespace) == (&by.user, by.namespace) => {
                lineage.extend(&row.lineage);
                self.hand_on(turn, &row.opened, by.session, opened);
                self.inherit_reserve(row.namespace, id, by.session);
                let freely = self.may_have_added_freely(turn, id, &row);
                *unlimited = Each::of(|of| unlimited[of] || freely[of]);
                if planted(Bug::ReplacedAppliedNothing) {
                    return Ended { known: true, ..unknown };
                }
                Ended { session: id, known: true, last: row.last, results: row.results, at: row.at }
            }
            _ => unknown,
        }
    }

    /// Of what an ended session may have added what it has not reserved, and its successor still has to send it.
    fn may_have_added_freely(&self, turn: &mut Turn, id: SessionId, row: &EndedRow) -> Each<bool> {
        let since = turn.get::<NamespaceRow>(&namespace_key(row.namespace)).map(|row| row.limited_since);
        let heard = |of| !row.unlimited[of] && since.is_none_or(|since| since[of] < row.at);
        let is_in_time = self.live.quotable.contains_key(&id);
        Each::of(|of| is_in_time && !heard(of))
    }

    /// Ends a session: what it held is free, and what it had not acknowledged is
    /// kept for a successor.
    pub(super) fn end_session(&mut self, turn: &mut Turn, id: SessionId) {
        let Some(session) = self.live.sessions.remove(&id).map(Shared::into_inner) else { return };
        let results = self.results(id, &session);
        self.quotable_for_now(id);
        self.drop_delegations(&session.delegations);
        for promise in session.promises.keys() {
            self.holders.remove(&(*promise, id));
        }
        for (number, pending) in &session.pending {
            self.released(turn, id, *number, pending);
        }
        for ino in &session.opened {
            self.closed(turn, id, *ino);
        }
        turn.namespace = session.namespace;
        turn.settle();
        self.end_locks(turn, id);

        let until = self.live.now.plus_ms(RESULTS_MS);
        let row = EndedRow {
            user: session.user,
            namespace: session.namespace,
            last: session.admitted,
            results,
            lineage: session.lineage,
            opened: session.opened.iter().take(MAX_KEPT_OPEN).copied().collect(),
            unlimited: session.unlimited,
            at: turn.at,
            until,
        };
        turn.put(&ended_key(id), &row);
        turn.put(&ended_time_key(until, id), &());

        let mark = EndedMark {
            key: session.key,
            replies_partition: session.replies_partition,
            at: turn.at,
            until: self.live.now.plus_ms(ENDED_MS),
        };
        self.live.ended_order.insert((mark.at, id));
        self.live.ended.insert(id, mark);
        if self.live.ended.len() > MAX_ENDED
            && let Some((_, oldest)) = self.live.ended_order.pop_first()
        {
            self.live.ended.remove(&oldest);
        }
        turn.effects.push(Effect::SessionOver { session: id });
    }

    /// What has become of a session's requests that it may not know: answers that it has not taken, and
    /// outcomes that it has not confirmed. A change that still waits will never be executed.
    fn results(&self, id: SessionId, session: &Session) -> Vec<(RequestNo, Answer)> {
        let mut results = BTreeMap::new();
        for (number, remembered) in &session.remembered {
            if let Some(answer) = remembered.answer.as_ref().filter(|answer| !answer.is_waiting()) {
                results.insert(*number, Answer::bare(answer.at, answer.pushed, answer.result.clone()));
            }
        }
        for body in self.outcomes(id, session) {
            if let Push::Outcome { number, result } = &body.push {
                results.insert(*number, Answer::bare(body.at, session.pushed, result.clone()));
            }
        }
        for number in self.unexecuted(id) {
            results.insert(number, Answer::bare(session.opened_answer.at, session.pushed, Err(Refusal::Again)));
        }
        results.into_iter().collect()
    }

    /// Forgets what no successor has asked for in all that time; a few at a time.
    pub(super) fn forget_old_results(&mut self, turn: &mut Turn) {
        const AT_ONCE: usize = 16;
        let mut due = Vec::new();
        let (from, to) = (vec![table::ENDED_BY_TIME], RowKey::new(table::ENDED_BY_TIME).u64(self.live.now.0).done());
        turn.scan(&from, &to, &mut |key, _| {
            due.push(key.to_vec());
            due.len() < AT_ONCE
        });
        for key in due {
            turn.delete(&RowKey::new(table::ENDED).bytes(&key[9..]).done());
            turn.delete(&key);
        }
    }

    pub(super) fn session_op(&mut self, turn: &mut Turn, to: To, op: &SessionOp, repeat: bool) {
        let mut after_checkpoint = None;
        match op {
            SessionOp::Renew => {}
            SessionOp::Confirm { pushes } => {
                for number in pushes {
                    self.confirm(turn, to.session, *number);
                }
            }
            SessionOp::Repeat { from } => self.repeat_pushes(turn, to.session, *from),
            // A late repeat could speak of an older opening than the present one.
            SessionOp::Release { .. } if repeat => {}
            SessionOp::Release { inos } => {
                for ino in inos {
                    let session = self.live.sessions.get_mut(&to.session).expect("only its end removes a session");
                    if session.opened.remove(ino) {
                        self.closed(turn, to.session, *ino);
                    }
                }
                turn.settle();
            }
            SessionOp::Cancel { number } => self.cancel(turn, to.session, *number),
            SessionOp::Sync => after_checkpoint = self.live.volatile.then_some(turn.at),
            SessionOp::Forget { ended } => {
                let session = &self.live.sessions[&to.session];
                let owner = (session.user.clone(), session.namespace);
                for id in ended {
                    if let Some(row) = turn.get::<EndedRow>(&ended_key(*id))
                        && (&row.user, row.namespace) == (&owner.0, owner.1)
                    {
                        turn.delete(&ended_key(*id));
                        turn.delete(&ended_time_key(row.until, *id));
                    }
                }
            }
            SessionOp::Reserve { of, keep, need, extra, part } => {
                let outcome = self.reserve(turn, to, *of, *keep, (*need, *extra), *part);
                return self.tell_once(turn, to, Ok(outcome));
            }
            SessionOp::Inodes { count } => {
                let count = (*count).clamp(1, SessionOp::MAX_INODES);
                let first = turn.next_inos(count);
                return self.tell_once(turn, to, first.map(|first| Outcome::Inodes { first, count }));
            }
            // Nor may it speak of what has been granted since.
            SessionOp::Undelegated if repeat => {}
            SessionOp::Undelegated => self.undelegated(to.session),
            SessionOp::Close => {
                self.tell(turn, to, Ok(Outcome::Done));
                self.end_session(turn, to.session);
                // Everything that it had written stands before this.
                return self.drop_reserve(to.session);
            }
        }
        let session = &self.live.sessions[&to.session];
        let answer = Answer::bare(turn.at, session.pushed, Ok(Outcome::Done));
        turn.effects.push(Effect::Answer {
            to: session.peer(to.session),
            number: to.number,
            request: to.request,
            after_checkpoint,
            answer,
            payload: Bytes::new(),
        });
    }

    /// The same for what must not be done twice.
    fn tell_once(&mut self, turn: &mut Turn, to: To, result: Result<Outcome, Refusal>) {
        let session = self.live.sessions.get_mut(&to.session).expect("a request's session lives");
        let answer = Answer::bare(turn.at, session.pushed, result);
        if let Some(remembered) = session.remembered.get_mut(&to.number) {
            remembered.answer = Some(answer.clone());
        }
        turn.effects.push(answer_effect(session.peer(to.session), to.number, to.request, answer));
    }

    /// Answers at once something that depends on no promise.
    pub(super) fn tell(&mut self, turn: &mut Turn, to: To, result: Result<Outcome, Refusal>) {
        let session = &self.live.sessions[&to.session];
        let answer = Answer::bare(turn.at, session.pushed, result);
        turn.effects.push(answer_effect(session.peer(to.session), to.number, to.request, answer));
    }
}

/// An answer that leaves now.
pub(super) fn answer_effect(to: Peer, number: RequestNo, request: [u8; 32], answer: Answer) -> Effect {
    Effect::Answer { to, number, request, after_checkpoint: None, answer, payload: Bytes::new() }
}

/// Keeps an answer below a record's size: most results tell only how a request went that is known anyway to have been
/// applied. That one was not is never left out.
fn bound_results(ended: &mut [Ended]) {
    let mut room = RESULTS_BYTES;
    for session in ended.iter_mut().rev() {
        let bytes = rmp_serde::to_vec_named(&session.results).expect("results have an encoding").len();
        match room.checked_sub(bytes) {
            Some(rest) => room = rest,
            None => session.results.retain(|(_, answer)| answer.is_void()),
        }
    }
}
