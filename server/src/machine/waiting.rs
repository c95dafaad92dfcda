//! Requests that wait until what others are delegated is given back. They are parked: answered `Waiting` at once, and
//! how they end is a push.
//!
//! * A view is not kept. When nothing stands in its way any more it ends with `Again`, and its client asks again.
//! * A change is kept whole and is executed when nothing stands in its way any more, at the end of the turn that saw to
//!   that, at a position of its own. It may meet something else that is delegated by then, and waits on.
//! * Changes of one session that name the same inode stay in order: the later one waits for the earlier one.
//! * Those that are free go on in the order of their coming.

use super::Machine;
use super::park::Parked;
use super::promise::To;
use super::request::Asked;
use super::rows::Turn;
use super::shared::Shared;
use bytes::Bytes;
use proto::message::{Delete, Op, Outcome, Promise, Refusal, Upload};
use proto::planted::{Bug, planted};
use proto::{Ino, Position, RequestNo, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What changes that wait may take in memory and in a dump, all together: operations, encoded, and payloads.
const MAX_WAITING_BYTES: u64 = 64 << 20;

/// A request that waits.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub to: To,
    /// The whole request, of a change.
    pub change: Option<Asked>,
    /// What was delegated to others when it was last looked at.
    pub things: BTreeSet<Promise>,
    /// Earlier ones that it must not overtake; they may have gone by now.
    pub behind: BTreeSet<u64>,
    /// What it takes of [`MAX_WAITING_BYTES`].
    pub bytes: u64,
}

impl Machine {
    /// Makes the count anew after a restore.
    pub(super) fn count_waiting(&mut self) {
        self.waiting_bytes = self.live.waiting.values().map(|waiting| waiting.bytes).sum();
    }

    /// The changes of a session that wait and that this one must not overtake: the last for each inode that it names.
    pub(super) fn behind(&self, id: SessionId, op: &Op) -> BTreeSet<u64> {
        let mut behind = BTreeSet::new();
        if self.live.waiting.is_empty() || !is_kept(op) || planted(Bug::WaitingOvertaken) {
            return behind;
        }
        for ino in named(op) {
            let names_it = |order: &u64| {
                let change = self.live.waiting.get(order).and_then(|waiting| waiting.change.as_ref());
                change.is_some_and(|change| named(&change.op).contains(&ino))
            };
            behind.extend(self.waiting_of(id).filter(names_it).max());
        }
        behind
    }

    /// Lets a request wait until these things are given back and those before it have gone.
    pub(super) fn wait(
        &mut self,
        turn: &mut Turn,
        to: To,
        asked: Asked,
        things: BTreeSet<Promise>,
        behind: BTreeSet<u64>,
    ) {
        turn.touch_nothing();
        self.note_contended(&things);
        self.recall(turn, &things);
        let is_change = asked.op.is_change();
        // Of its own: else it would hold the whole record, whatever else came in it.
        let copied = |mut asked: Asked| {
            asked.payload = Bytes::copy_from_slice(&asked.payload);
            asked
        };
        let change = is_kept(&asked.op).then(|| copied(asked));
        let bytes = change.as_ref().map_or(0, Asked::bytes);
        if !self.may_park(to.session) || self.waiting_bytes + bytes > MAX_WAITING_BYTES {
            // As if it had waited already: that is no program's business, and what it asks for is being given back.
            return self.answer(turn, to, Err(Refusal::Again), Bytes::new(), is_change);
        }
        #[cfg(feature = "simulation")]
        if let Some(asked) = &change {
            proto::simulation::seen(&proto::simulation::Seen::Waits { sent: asked.sent, op: &asked.op });
        }
        let order = self.live.next_waiting;
        self.live.next_waiting += 1;
        self.waiting_bytes += bytes;
        self.live.waiting.insert(order, Shared::new(Waiting { to, change, things, behind, bytes }));
        self.park(to, Parked::Delegation(order));
        // Remembered for views too: a repeat must not begin anew what has an outcome by then.
        self.answer(turn, to, Ok(Outcome::Waiting), Bytes::new(), true);
    }

    /// The request waits no longer; whoever must not overtake it may be free by that.
    pub(super) fn stop_waiting(&mut self, order: u64) {
        if let Some(waiting) = self.live.waiting.remove(&order) {
            self.waiting_bytes -= waiting.bytes;
            self.is_freed = true;
        }
    }

    /// Ends a turn: if something was given back in it, whoever waits for nothing more goes on.
    pub(super) fn go_on(&mut self, turn: &mut Turn) {
        if !self.is_freed {
            return;
        }
        let mut from = 0;
        // Whoever goes on can free later ones of its session only.
        while let Some(order) = self.next_free(from) {
            from = order + 1;
            self.go_on_with(turn, order);
        }
        self.is_freed = false;
    }

    fn next_free(&self, from: u64) -> Option<u64> {
        self.live.waiting.range(from..).find(|(_, waiting)| self.is_free(waiting)).map(|(order, _)| *order)
    }

    /// Whether nothing stands in its way that is known of.
    pub(super) fn is_free(&self, waiting: &Waiting) -> bool {
        let id = waiting.to.session;
        let is_delegated = |thing| self.delegated.holder(thing).is_some_and(|holder| holder != id);
        !waiting.things.iter().any(is_delegated)
            && !waiting.behind.iter().any(|order| self.live.waiting.contains_key(order))
    }

    fn go_on_with(&mut self, turn: &mut Turn, order: u64) {
        let Some(waiting) = self.live.waiting.get(&order).cloned() else { return };
        let Waiting { to, change, things, .. } = &*waiting;
        self.note_contended(things);
        let Some(asked) = change else {
            self.stop_waiting(order);
            return self.decide(turn, to.session, to.number, Err(Refusal::Again), &[]);
        };
        // The frame's number above it is never reached: a change takes more than four of the bytes that may wait.
        turn.at.index += 1;
        self.prepare(turn, to.session, asked);
        match self.execute(turn, *to, asked, false) {
            Ok((result, _)) => {
                self.stop_waiting(order);
                let changes = self.break_changed(turn, to.session);
                if let Some(made) = turn.made {
                    let granted = self.grant(turn, to.session, vec![made]);
                    self.delegate(turn, to.session, &granted);
                }
                let shown: Vec<Promise> = turn.reads.iter().copied().chain(changes).collect();
                self.decide(turn, to.session, to.number, result, &shown);
            }
            Err(things) => {
                self.note_contended(&things);
                self.recall(turn, &things);
                if let Some(waiting) = self.live.waiting.get_mut(&order) {
                    waiting.things = things;
                }
            }
        }
    }

    /// The orders of what of a session waits for a delegation.
    fn waiting_of(&self, id: SessionId) -> impl Iterator<Item = u64> + '_ {
        self.parked_of(id).filter_map(|(_, parked)| match parked {
            Parked::Delegation(order) => Some(order),
            Parked::Lock(_) => None,
        })
    }

    /// The changes of a session that wait.
    pub(super) fn waiting_changes(&self, id: SessionId) -> impl Iterator<Item = &Op> + '_ {
        self.waiting_of(id).filter_map(|order| Some(&self.live.waiting.get(&order)?.change.as_ref()?.op))
    }

    /// Whether the request in this frame is a change that waits: what came with it is not kept yet.
    pub fn is_waiting(&self, at: Position) -> bool {
        let changes = self.live.waiting.values().filter_map(|waiting| waiting.change.as_ref());
        changes.map(|change| change.stands).any(|stands| stands == at.of_frame(at.frame()))
    }

    /// The changes of a session that wait, by their numbers, and so have not been executed.
    pub(super) fn unexecuted(&self, id: SessionId) -> impl Iterator<Item = RequestNo> + '_ {
        self.parked_of(id).filter_map(|(number, parked)| match parked {
            Parked::Delegation(order) => {
                self.live.waiting.get(&order).is_some_and(|waiting| waiting.change.is_some()).then_some(number)
            }
            Parked::Lock(_) => None,
        })
    }
}

/// Whether it is kept while it waits.
fn is_kept(op: &Op) -> bool {
    matches!(op, Op::Upload(_) | Op::Delete(_))
}

/// The inodes that a change names.
fn named(op: &Op) -> Vec<Ino> {
    match op {
        Op::Upload(upload) => match upload {
            Upload::Create { dir, new, .. } => [*dir].into_iter().chain(new.ino).collect(),
            Upload::Link { ino, dir, .. } => vec![*ino, *dir],
            Upload::Rename { from_dir, to_dir, .. } => vec![*from_dir, *to_dir],
            Upload::Setattr { ino, .. }
            | Upload::Write { ino, .. }
            | Upload::SetXattr { ino, .. }
            | Upload::RemoveXattr { ino, .. }
            | Upload::SetAcl { ino, .. }
            | Upload::Fallocate { ino, .. } => vec![*ino],
            Upload::Clone { from, to, .. } => vec![from.ino, *to],
            // When something was read is in nobody's way.
            Upload::Accessed { .. } => Vec::new(),
        },
        Op::Delete(Delete::Unlink { dir, .. } | Delete::Rmdir { dir, .. }) => vec![*dir],
        Op::View(_) | Op::Lock(_) | Op::Session(_) => Vec::new(),
    }
}
