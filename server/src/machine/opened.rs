//! What sessions may have open: a file that has lost its last name stays for them,
//! until they release it or end without a successor.

use super::Machine;
use super::rows::{InodeRow, Turn, inode_key};
use super::session::Session;
use super::shared::Shared;
use proto::planted::{Bug, planted};
use proto::{Ino, SessionId};
use std::collections::BTreeSet;

/// Files that one session is remembered to have opened; the lowest is forgotten first.
const MAX_OPENED: usize = 1 << 20;

/// Files that an ended session had open and that its successor has open again.
pub(super) const MAX_KEPT_OPEN: usize = 4096;

impl Machine {
    /// What the session may have open from now on.
    pub(super) fn note_opened(&mut self, turn: &mut Turn, id: SessionId) {
        for ino in std::mem::take(&mut turn.opened) {
            let session = self.live.sessions.get_mut(&id).expect("only its end removes a session");
            session.opened.insert(ino);
            if let Some(holders) = self.live.nameless.get_mut(&ino) {
                holders.insert(id);
            }
            if session.opened.len() > MAX_OPENED
                && let Some(lowest) = session.opened.pop_first()
            {
                self.closed(turn, id, lowest);
            }
        }
    }

    /// A session no longer has this open; if nobody has and it has no name, it goes.
    pub(super) fn closed(&mut self, turn: &mut Turn, id: SessionId, ino: Ino) {
        if let Some(holders) = self.live.nameless.get_mut(&ino) {
            holders.remove(&id);
            if holders.is_empty() {
                self.live.nameless.remove(&ino);
                turn.free(ino);
            }
        }
    }

    /// Inodes that have lost their last name stay for those who may have them open,
    /// who are told; the others go at once.
    pub(super) fn note_nameless(&mut self, turn: &mut Turn, initiator: SessionId) {
        for ino in std::mem::take(&mut turn.nameless) {
            let having = |(id, session): (&SessionId, &Shared<Session>)| session.opened.contains(&ino).then_some(*id);
            let holders: BTreeSet<SessionId> = self.live.sessions.iter().filter_map(having).collect();
            if holders.is_empty() || planted(Bug::FreeOpenFile) {
                turn.free(ino);
                continue;
            }
            for id in holders.iter().filter(|id| **id != initiator) {
                self.push_last_name_gone(turn, *id, ino);
            }
            self.live.nameless.insert(ino, holders);
        }
    }

    /// What a session has open is open for its successor too, as far as it is still there:
    /// whoever uses it may not know yet that its session is another. Of many predecessors no more
    /// is taken than one session may have.
    pub(super) fn hand_on(&mut self, turn: &mut Turn, inos: &[Ino], successor: SessionId, opened: &mut BTreeSet<Ino>) {
        for ino in inos {
            // A session that has just been ended tells of it twice: as it lived, and by its row.
            if opened.len() == MAX_OPENED || opened.contains(ino) || turn.get::<InodeRow>(&inode_key(*ino)).is_none() {
                continue;
            }
            opened.insert(*ino);
            if let Some(holders) = self.live.nameless.get_mut(ino) {
                holders.insert(successor);
            }
        }
    }

    /// Tells a new session what has lost its last name: its predecessor may not have heard
    /// of it, and it releases what is not open any more.
    pub(super) fn tell_nameless(&mut self, turn: &mut Turn, id: SessionId) {
        let Some(session) = self.live.sessions.get(&id) else { return };
        let nameless = session.opened.iter().filter(|ino| self.live.nameless.contains_key(*ino));
        for ino in nameless.take(MAX_KEPT_OPEN).copied().collect::<Vec<Ino>>() {
            self.push_last_name_gone(turn, id, ino);
        }
    }
}
