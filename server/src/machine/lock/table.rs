//! The locks on one file, and who waits for one: two spaces in one list, since a lock
//! of unknown kind may stand in both.
//!
//! What a session's owner has never overlaps itself within one kind, and what touches and is of
//! one mode is one lock, as in Linux.

use proto::message::{Lock, LockHolder, LockKind, LockMode, LockOwner, LockRange};
use proto::planted::{Bug, planted};
use proto::{RequestNo, SessionId};
use serde::{Deserialize, Serialize};

/// A lock that a session has or wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub session: SessionId,
    pub lock: Lock,
}

impl Held {
    pub fn is_of(&self, session: SessionId, owner: LockOwner) -> bool {
        self.session == session && self.lock.owner == owner
    }

    /// Whether both cannot be had at once.
    pub fn conflicts(&self, other: &Held) -> bool {
        let (one, two) = (&self.lock, &other.lock);
        let is_shared = match planted(Bug::SharedBesideExclusive) {
            true => one.mode == LockMode::Shared || two.mode == LockMode::Shared,
            false => one.mode == LockMode::Shared && two.mode == LockMode::Shared,
        };
        if is_shared || self.is_of(other.session, two.owner) || !one.range.overlaps(two.range) {
            return false;
        }
        // A process that takes locks of both kinds must not wait for itself.
        let is_vague = one.owner.kind == LockKind::Unknown || two.owner.kind == LockKind::Unknown;
        if is_vague && self.session == other.session && one.pid == two.pid && one.pid != 0 {
            return false;
        }
        let (ranges, flocks) = spaces(one);
        let (other_ranges, other_flocks) = spaces(two);
        (ranges && other_ranges) || (flocks && other_flocks)
    }
}

/// Whether a lock counts among ranges, and among flocks.
fn spaces(lock: &Lock) -> (bool, bool) {
    match lock.owner.kind {
        LockKind::Process | LockKind::OpenFile => (true, false),
        LockKind::Flock => (false, true),
        LockKind::Unknown => (true, lock.range == LockRange::WHOLE),
    }
}

/// A request that waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiter {
    pub number: RequestNo,
    pub wants: Held,
}

/// All of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLocks {
    /// By where they begin.
    held: Vec<Held>,
    /// In the order in which they came.
    waiting: Vec<Waiter>,
}

impl FileLocks {
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.waiting.is_empty()
    }

    pub fn held(&self) -> &[Held] {
        &self.held
    }

    pub fn waiting(&self) -> &[Waiter] {
        &self.waiting
    }

    /// How many locks a session has here.
    pub fn held_by(&self, session: SessionId) -> usize {
        self.held.iter().filter(|held| held.session == session).count()
    }

    /// Who stands in the way of this.
    pub fn blockers<'a>(&'a self, wants: &'a Held) -> impl Iterator<Item = &'a Held> + 'a {
        self.held.iter().filter(|held| held.conflicts(wants))
    }

    /// As F_GETLK tells it.
    pub fn holder(&self, wants: &Held) -> Option<LockHolder> {
        self.blockers(wants).next().map(|held| LockHolder {
            range: held.lock.range,
            mode: held.lock.mode,
            pid: if held.session == wants.session { held.lock.pid } else { 0 },
        })
    }

    /// Whether taking this gives up something: an exclusive lock becomes a shared one.
    pub fn is_downgrade(&self, wants: &Held) -> bool {
        let was = |held: &Held| {
            held.is_of(wants.session, wants.lock.owner)
                && held.lock.mode == LockMode::Exclusive
                && held.lock.range.overlaps(wants.lock.range)
        };
        wants.lock.mode == LockMode::Shared && self.held.iter().any(was)
    }

    /// Gives a lock to its owner, whatever others have, in the place of what it had there.
    pub fn take(&mut self, wants: Held) {
        let Held { session, lock } = wants;
        self.give_up(session, lock.owner, lock.range);
        let mut range = lock.range;
        self.held.retain(|held| {
            let touches = held.lock.range.end.checked_add(1) == Some(range.start)
                || range.end.checked_add(1) == Some(held.lock.range.start);
            let is_one = held.is_of(session, lock.owner) && held.lock.mode == lock.mode && touches;
            if is_one {
                range.start = range.start.min(held.lock.range.start);
                range.end = range.end.max(held.lock.range.end);
            }
            !is_one
        });
        self.insert(Held { session, lock: Lock { range, ..lock } });
    }

    /// Ends what an owner has within a range; what reaches beyond it stays. Says whether there was anything.
    pub fn give_up(&mut self, session: SessionId, owner: LockOwner, range: LockRange) -> bool {
        let mut rest = Vec::new();
        let before = self.held.len();
        self.held.retain(|held| {
            let is_hit = held.is_of(session, owner) && held.lock.range.overlaps(range);
            if is_hit {
                rest.push(*held);
            }
            !is_hit
        });
        let was = self.held.len() != before;
        for held in rest {
            let LockRange { start, end } = held.lock.range;
            if start < range.start {
                let range = LockRange { start, end: range.start - 1 };
                self.insert(Held { lock: Lock { range, ..held.lock }, ..held });
            }
            if end > range.end {
                let range = LockRange { start: range.end + 1, end };
                self.insert(Held { lock: Lock { range, ..held.lock }, ..held });
            }
        }
        was
    }

    fn insert(&mut self, new: Held) {
        let place = self.held.partition_point(|held| held.lock.range.start <= new.lock.range.start);
        self.held.insert(place, new);
    }

    pub fn wait(&mut self, waiter: Waiter) {
        self.waiting.push(waiter);
    }

    pub fn stop_waiting(&mut self, session: SessionId, number: RequestNo) {
        self.waiting.retain(|waiter| (waiter.wants.session, waiter.number) != (session, number));
    }

    /// A session has ended.
    pub fn forget(&mut self, session: SessionId) {
        self.held.retain(|held| held.session != session);
        self.waiting.retain(|waiter| waiter.wants.session != session);
    }
}
