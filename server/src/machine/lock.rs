//! Locks: requests for them, who is woken when one is given up, and deadlocks.
//!
//! * Ranges are granted, split, merged and converted as Linux does; a flock that is converted is given
//!   up first and may be lost by that, as there.
//! * A new request is held against what others have, not against who waits: whoever waits is
//!   granted a lock in the turn that makes it free, in the order of coming among those that conflict.
//! * A circle of waiting processes is found when it would close, and the request that would close it refused.
//! * Locks and waiters end with their session.

pub(super) mod table;

use super::Machine;
use super::park::Parked;
use super::promise::To;
use super::rows::{InodeRow, Turn, inode_key};
use super::shared::Shared;
use proto::message::{Lock, LockKind, LockOp, LockOwner, LockRange, Locked, Outcome, Promise, Refusal};
use proto::planted::{Bug, planted};
use proto::{Ino, RequestNo, SessionId};
use std::collections::{BTreeMap, BTreeSet};
use table::{FileLocks, Held, Waiter};

/// Locks on one file.
const MAX_HELD_ON_FILE: usize = 4096;
/// Requests that wait for one on a file.
const MAX_WAITING_ON_FILE: usize = 256;
/// Locks of one session.
const MAX_HELD_BY_SESSION: usize = 16_384;
/// Locks looked at in search of one deadlock; a larger circle is not found.
const DEADLOCK_STEPS: usize = 65_536;

/// How many locks each session has, in all and by file. Follows from the files' locks.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Holdings(BTreeMap<SessionId, (usize, BTreeMap<Ino, usize>)>);

impl Holdings {
    fn total(&self, id: SessionId) -> usize {
        self.0.get(&id).map_or(0, |(total, _)| *total)
    }

    /// Of all sessions.
    pub fn all(&self) -> u64 {
        self.0.values().map(|(total, _)| *total as u64).sum()
    }

    fn set(&mut self, id: SessionId, ino: Ino, count: usize) {
        let (total, files) = self.0.entry(id).or_default();
        let before = if count == 0 { files.remove(&ino) } else { files.insert(ino, count) };
        *total = *total + count - before.unwrap_or(0);
        if files.is_empty() {
            self.0.remove(&id);
        }
    }
}

impl Machine {
    /// Makes the index anew after a restore.
    pub(super) fn index_locks(&mut self) {
        for (ino, file) in &self.live.locks {
            let sessions: BTreeSet<SessionId> = file.held().iter().map(|held| held.session).collect();
            for id in sessions {
                self.holdings.set(id, *ino, file.held_by(id));
            }
        }
    }

    pub(super) fn lock_op(&mut self, turn: &mut Turn, to: To, op: &LockOp) -> Result<Outcome, Refusal> {
        match op {
            LockOp::Lock { ino, lock, wait } => self.lock(turn, to, *ino, *lock, *wait),
            LockOp::Unlock { ino, owner, range } => self.unlock(turn, to.session, *ino, *owner, *range),
            LockOp::Test { ino, lock } => {
                turn.reads_gone(*ino);
                turn.inode(*ino)?;
                let wants = wanted(to.session, *lock)?;
                Ok(Outcome::Holder(self.live.locks.get(ino).and_then(|file| file.holder(&wants))))
            }
        }
    }

    fn lock(&mut self, turn: &mut Turn, to: To, ino: Ino, lock: Lock, wait: bool) -> Result<Outcome, Refusal> {
        turn.reads_gone(ino);
        turn.inode(ino)?;
        let wants = wanted(to.session, lock)?;
        // Only whoever gets the lock is shown anything of the file: that one waits is told at once.
        turn.reads.clear();
        let mut given_up = false;
        if lock.owner.kind == LockKind::Flock && !self.has_already(ino, &wants) {
            given_up = self.edit_locks(ino, to.session, |file| file.give_up(to.session, lock.owner, LockRange::WHOLE));
        }
        if !self.is_blocked(ino, &wants) {
            if !self.has_room(ino, &wants) {
                return Err(Refusal::NoLocks);
            }
            turn.reads_gone(ino);
            self.grant_lock(turn, ino, wants, given_up);
            return Ok(Outcome::Locked(locked(turn, ino)));
        }
        if given_up {
            self.wake(turn, ino);
        }
        if !wait {
            return Err(Refusal::WouldBlock);
        }
        if self.would_deadlock(ino, &wants) {
            return Err(Refusal::Deadlock);
        }
        let waiting = self.live.locks.get(&ino).map_or(0, |file| file.waiting().len());
        if waiting >= MAX_WAITING_ON_FILE || !self.may_park(to.session) {
            return Err(Refusal::NoLocks);
        }
        self.edit_locks(ino, to.session, |file| file.wait(Waiter { number: to.number, wants }));
        self.park(to, Parked::Lock(ino));
        Ok(Outcome::Waiting)
    }

    fn unlock(
        &mut self,
        turn: &mut Turn,
        id: SessionId,
        ino: Ino,
        owner: LockOwner,
        range: LockRange,
    ) -> Result<Outcome, Refusal> {
        if ino.namespace() != turn.namespace {
            return Err(Refusal::NotPermitted);
        }
        if !range.is_valid() {
            return Err(Refusal::Invalid);
        }
        let Some(file) = self.live.locks.get(&ino) else { return Ok(Outcome::Done) };
        // The middle of one lock leaves two.
        if file.held().len() >= MAX_HELD_ON_FILE {
            let mut after = (**file).clone();
            after.give_up(id, owner, range);
            if after.held().len() > MAX_HELD_ON_FILE {
                return Err(Refusal::NoLocks);
            }
        }
        if self.edit_locks(ino, id, |file| file.give_up(id, owner, range)) {
            self.wake(turn, ino);
        }
        Ok(Outcome::Done)
    }

    /// The session has ended: what it had is free.
    pub(super) fn end_locks(&mut self, turn: &mut Turn, id: SessionId) {
        let waited = self.waits_for_locks(id);
        let has = self.holdings.0.get(&id).into_iter().flat_map(|(_, files)| files.keys().copied());
        let files: BTreeSet<Ino> = waited.chain(has).collect();
        self.unpark_all(id);
        if planted(Bug::LockOutlivesSession) {
            return;
        }
        for ino in files {
            self.edit_locks(ino, id, |file| file.forget(id));
            self.wake(turn, ino);
        }
    }

    /// Every session ends at once: nobody is to be woken.
    pub(super) fn drop_locks(&mut self) {
        self.live.locks.clear();
        self.holdings = Holdings::default();
    }

    pub(super) fn stop_waiting_for_lock(&mut self, ino: Ino, id: SessionId, number: RequestNo) {
        self.edit_locks(ino, id, |file| file.stop_waiting(id, number));
    }

    /// The files on which a session's requests wait for locks.
    fn waits_for_locks(&self, id: SessionId) -> impl Iterator<Item = Ino> + '_ {
        self.parked_of(id).filter_map(|(_, parked)| match parked {
            Parked::Lock(ino) => Some(ino),
            Parked::Delegation(_) => None,
        })
    }

    fn has_already(&self, ino: Ino, wants: &Held) -> bool {
        self.live.locks.get(&ino).is_some_and(|file| file.held().contains(wants))
    }

    fn is_blocked(&self, ino: Ino, wants: &Held) -> bool {
        self.live.locks.get(&ino).is_some_and(|file| file.blockers(wants).next().is_some())
    }

    /// Whether file and session may have what there is when this has been taken.
    fn has_room(&self, ino: Ino, wants: &Held) -> bool {
        let total = self.holdings.total(wants.session);
        let Some(file) = self.live.locks.get(&ino) else { return total < MAX_HELD_BY_SESSION };
        // One that is cut leaves two more at most.
        if file.held().len() + 2 <= MAX_HELD_ON_FILE && total + 2 <= MAX_HELD_BY_SESSION {
            return true;
        }
        let mut after = (**file).clone();
        after.take(*wants);
        let more = after.held().len().saturating_sub(file.held().len());
        more == 0 || (after.held().len() <= MAX_HELD_ON_FILE && total + more <= MAX_HELD_BY_SESSION)
    }

    /// Changes a file's locks for one session.
    fn edit_locks<T>(&mut self, ino: Ino, id: SessionId, edit: impl FnOnce(&mut FileLocks) -> T) -> T {
        let file = self.live.locks.entry(ino).or_insert_with(|| Shared::new(FileLocks::default()));
        let done = edit(file);
        let count = file.held_by(id);
        if file.is_empty() {
            self.live.locks.remove(&ino);
        }
        self.holdings.set(id, ino, count);
        done
    }

    /// Takes a lock that nothing stands in the way of.
    fn grant_lock(&mut self, turn: &mut Turn, ino: Ino, wants: Held, given_up: bool) {
        let is_downgrade = self.live.locks.get(&ino).is_some_and(|file| file.is_downgrade(&wants));
        self.edit_locks(ino, wants.session, |file| file.take(wants));
        if is_downgrade || given_up {
            self.wake(turn, ino);
        }
        self.break_circles(turn, ino, &[wants]);
    }

    /// Something was given up: whoever can go on does, in the order of coming.
    fn wake(&mut self, turn: &mut Turn, ino: Ino) {
        if planted(Bug::UnlockWakesNobody) {
            return;
        }
        let mut next = 0;
        let mut granted = Vec::new();
        while let Some(file) = self.live.locks.get(&ino)
            && let Some(&Waiter { number, wants }) = file.waiting().get(next)
        {
            if self.is_blocked(ino, &wants) {
                next += 1;
                continue;
            }
            self.edit_locks(ino, wants.session, |file| file.stop_waiting(wants.session, number));
            let result = match self.has_room(ino, &wants) {
                true => {
                    // What it had before and gives up by this may be what an earlier one waits for.
                    if self.live.locks.get(&ino).is_some_and(|file| file.is_downgrade(&wants)) {
                        next = 0;
                    }
                    self.edit_locks(ino, wants.session, |file| file.take(wants));
                    granted.push(wants);
                    Ok(Outcome::Locked(locked(turn, ino)))
                }
                false => Err(Refusal::NoLocks),
            };
            self.decide(turn, wants.session, number, result, &shown(ino));
        }
        self.break_circles(turn, ino, &granted);
    }

    /// These locks have just been granted: whoever waits for one of them and so would wait for itself is refused.
    fn break_circles(&mut self, turn: &mut Turn, ino: Ino, granted: &[Held]) {
        let waiting = self.live.locks.get(&ino).map_or(Vec::new(), |file| file.waiting().to_vec());
        for Waiter { number, wants } in waiting {
            let is_new = granted.iter().any(|held| held.conflicts(&wants));
            if is_new && self.would_deadlock(ino, &wants) {
                self.stop_waiting_for_lock(ino, wants.session, number);
                self.decide(turn, wants.session, number, Err(Refusal::Deadlock), &[]);
            }
        }
    }

    /// Whether somebody who stands in the way of this waits, over however many others, for its owner.
    fn would_deadlock(&self, ino: Ino, wants: &Held) -> bool {
        if wants.lock.owner.kind != LockKind::Process {
            return false;
        }
        let asker = (wants.session, wants.lock.owner);
        let mut steps = 0;
        let mut seen = BTreeSet::new();
        let mut found = self.owners_before(ino, wants, &mut steps);
        while let Some(owner) = found.pop() {
            if owner == asker {
                return true;
            }
            if !seen.insert(owner) || steps > DEADLOCK_STEPS {
                continue;
            }
            let files: BTreeSet<Ino> = self.waits_for_locks(owner.0).collect();
            for ino in files {
                let Some(file) = self.live.locks.get(&ino) else { continue };
                for waiter in file.waiting().iter().filter(|waiter| waiter.wants.is_of(owner.0, owner.1)) {
                    found.extend(self.owners_before(ino, &waiter.wants, &mut steps));
                }
            }
        }
        false
    }

    /// The processes that stand in a lock's way.
    fn owners_before(&self, ino: Ino, wants: &Held, steps: &mut usize) -> Vec<(SessionId, LockOwner)> {
        let Some(file) = self.live.locks.get(&ino) else { return Vec::new() };
        *steps += file.held().len() + 1;
        let blockers = file.blockers(wants).map(|held| (held.session, held.lock.owner));
        blockers.filter(|(_, owner)| owner.kind == LockKind::Process).collect()
    }
}

/// What a request asks for, if it can be had at all.
fn wanted(session: SessionId, lock: Lock) -> Result<Held, Refusal> {
    let fits = lock.range.is_valid() && (lock.owner.kind != LockKind::Flock || lock.range == LockRange::WHOLE);
    if fits { Ok(Held { session, lock }) } else { Err(Refusal::Invalid) }
}

/// What somebody comes to see by having a lock: all that was written under it before.
fn shown(ino: Ino) -> [Promise; 3] {
    [Promise::Inode(ino), Promise::Dir(ino), Promise::Content(ino)]
}

fn locked(turn: &mut Turn, ino: Ino) -> Locked {
    let row: Option<InodeRow> = turn.get(&inode_key(ino));
    Locked { version: row.map_or(turn.at, |row| row.attr.version) }
}
