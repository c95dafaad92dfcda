//! One request: admitted in order, and executed once, at once or when what others are delegated has been
//! given back. Both ways are one here.

use super::Machine;
use super::promise::To;
use super::rows::Turn;
use super::session::{Remembered, answer_effect};
use bytes::Bytes;
use proto::frame::Frame;
use proto::message::{Op, Outcome, Promise, Refusal, Request, Upload};
use proto::planted::{Bug, planted};
use proto::{Position, RequestNo, SessionId, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Numbers of one session whose hash and result are remembered.
const MAX_REMEMBERED: usize = 1024;
/// A request's time may be this far ahead of its record's own.
const TIME_AHEAD_MS: i64 = 10_000;

/// What a request says, and where.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Asked {
    pub op: Op,
    pub payload: Bytes,
    /// The client's own time, and the one that counts.
    pub sent: Time,
    time: Time,
    pub stands: Position,
    /// Its program has been answered already.
    local: bool,
}

impl Asked {
    /// About how many bytes it takes.
    pub fn bytes(&self) -> u64 {
        let op = rmp_serde::to_vec(&self.op).expect("an operation has an encoding");
        (op.len() + self.payload.len()) as u64
    }
}

/// An outcome, and content from the state that goes along.
type Done = (Result<Outcome, Refusal>, Bytes);

impl Machine {
    /// A request that authenticates, at its place in the log. One that cannot be read
    /// uses up its number like any other, and is refused.
    pub(super) fn request(
        &mut self,
        turn: &mut Turn,
        id: SessionId,
        frame: &Frame,
        request: Result<Request, Refusal>,
        append_time_ms: i64,
    ) {
        let now = self.live.now;
        let (number, hash) = (RequestNo(frame.header().number), frame.hash());
        let session = self.live.sessions.get_mut(&id).expect("the caller found the session");
        let to = To { session: id, number, request: hash };

        if number > session.admitted.next() && !planted(Bug::ApplyAcrossGap) {
            let expected = session.admitted.next();
            return self.tell(turn, to, Ok(Outcome::Gap { expected }));
        }
        let repeat = number <= session.admitted;
        if repeat {
            match session.remembered.get(&number) {
                // Its answer has been taken: a late duplicate.
                None => return,
                Some(known) if known.hash != hash => return self.tell(turn, to, Err(Refusal::NumberReused)),
                Some(Remembered { answer: Some(answer), held, .. }) if !planted(Bug::SkipDedup) => {
                    if !held {
                        let effect = answer_effect(session.peer(id), number, hash, answer.clone());
                        turn.effects.push(effect);
                    }
                    return;
                }
                Some(_) => {}
            }
        } else {
            session.admitted = number;
            session.admitted_at = now;
            if let Ok(request) = &request {
                session.acknowledge(&request.acked);
            }
            session.remembered.insert(number, Remembered { hash, answer: None, held: false });
            if session.remembered.len() > MAX_REMEMBERED {
                session.remembered.pop_first();
            }
        }

        let request = match request {
            Ok(request) => request,
            Err(refusal) => return self.answer(turn, to, Err(refusal), Bytes::new(), true),
        };
        let asked = Asked {
            op: request.op,
            payload: frame.payload(),
            sent: request.time,
            time: self.request_time(request.time, append_time_ms),
            stands: turn.at,
            local: request.local,
        };
        self.prepare(turn, id, &asked);
        if let Op::Session(op) = &asked.op {
            return self.session_op(turn, to, op, repeat);
        }
        if self.is_broken_off(id) {
            return self.answer(turn, to, Err(Refusal::NotDelegated), Bytes::new(), true);
        }
        let behind = self.behind(id, &asked.op);
        if !behind.is_empty() {
            return self.wait(turn, to, asked, BTreeSet::new(), behind);
        }
        match self.execute(turn, to, &asked, repeat) {
            Ok((result, payload)) => self.answer(turn, to, result, payload, asked.op.is_change()),
            Err(things) => self.wait(turn, to, asked, things, BTreeSet::new()),
        }
    }

    /// The request's own time, unless it is ahead of the record's.
    fn request_time(&self, time: Time, append_time_ms: i64) -> Time {
        let time = Time { secs: time.secs, nanos: time.nanos.min(999_999_999) };
        let append = Time::from_millis(append_time_ms);
        let ahead = Time::from_millis(append_time_ms.saturating_add(TIME_AHEAD_MS));
        let is_ahead = (time.secs, time.nanos) > (ahead.secs, ahead.nanos);
        if self.live.append_time && is_ahead { append } else { time }
    }

    /// Makes the turn this request's.
    pub(super) fn prepare(&self, turn: &mut Turn, id: SessionId, asked: &Asked) {
        let session = &self.live.sessions[&id];
        turn.touch_nothing();
        turn.by = id;
        turn.namespace = session.namespace;
        turn.lineage = self.quotable(id, &session.lineage);
        turn.payload = asked.payload.clone();
        turn.stands = asked.stands;
        turn.time = asked.time;
        turn.room = self.room(id);
    }

    /// Executes a request about the tree, its content or locks. If it would show or change what others are delegated
    /// it has done nothing, and these things stand in its way.
    pub(super) fn execute(
        &mut self,
        turn: &mut Turn,
        to: To,
        asked: &Asked,
        repeat: bool,
    ) -> Result<Done, BTreeSet<Promise>> {
        let id = to.session;
        if asked.local && self.has_forfeited(id) {
            self.break_off(id);
            return Ok((Err(Refusal::NotDelegated), Bytes::new()));
        }
        let may = |machine: &Machine, turn: &Turn| {
            let things = machine.delegated_to_others(turn, id);
            if things.is_empty() { Ok(()) } else { Err(things) }
        };
        let may_meet = self.delegated.any_but(turn.namespace, id);
        let (result, payload) = match &asked.op {
            // What is written under a lock is answered for before that is given up, so none of it is still to come.
            Op::Lock(op) => (self.lock_op(turn, to, op), Bytes::new()),
            // When something was read is told in passing.
            Op::Upload(Upload::Accessed { .. }) => perform(turn, &asked.op),
            _ if may_meet => turn.attempt(|turn| perform(turn, &asked.op), |turn| may(self, turn))?,
            op => perform(turn, op),
        };
        if asked.local
            && let (Op::Upload(Upload::Create { .. }), Ok(Outcome::Entry(attr))) = (&asked.op, &result)
        {
            turn.made = Promise::inside(attr.ino, attr.kind);
        }
        if !repeat {
            self.note_opened(turn, id);
        }
        self.note_nameless(turn, id);
        self.push_accessed(turn, id);
        turn.settle();
        self.spend(turn, id, &asked.op);
        #[cfg(feature = "simulation")]
        proto::simulation::seen(&proto::simulation::Seen::Applied {
            at: turn.at,
            session: id,
            number: to.number,
            again: repeat,
            local: asked.local,
            sent: asked.sent,
            time: turn.time,
            op: &asked.op,
            payload: &turn.payload,
            result: &result,
        });
        Ok((result, payload))
    }
}

/// Does what a request asks of the rows.
fn perform(turn: &mut Turn, op: &Op) -> Done {
    match op {
        Op::View(view) => match turn.view(view) {
            Ok((outcome, payload)) => (Ok(outcome), payload),
            Err(refusal) => (Err(refusal), Bytes::new()),
        },
        Op::Upload(upload) => (turn.upload(upload), Bytes::new()),
        Op::Delete(delete) => (turn.delete_name(delete), Bytes::new()),
        Op::Lock(_) | Op::Session(_) => unreachable!("locks and sessions are no rows"),
    }
}
