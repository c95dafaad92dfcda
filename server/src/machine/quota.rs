//! Quotas: what a namespace may hold, and the room that sessions have reserved in it.
//!
//! A mount answers a write from its buffer, long before it is in the log; so what it may
//! buffer is reserved before. What is used and what is reserved together grow up to
//! the quota and no further; a write that was reserved turns the one into the other and is
//! never refused for the quota. Whatever was not reserved is refused if it does not fit.
//!
//! A session that has not heard yet of a quota reserves nothing, and its writes are taken
//! whatever they add, until its first `Reserve` shows that it has heard. What a
//! session had reserved that ended without a word stays reserved for its
//! successor, which may still have to send what was written, for as long as it may quote
//! what was uploaded.
//!
//! Where inodes are counted no directory is delegated, and those that are when counting begins are asked back; what a
//! session has made in them by then, and its program believes to be there, is taken whatever there is.

use super::Machine;
use super::promise::To;
use super::rows::{ExtentRow, NamespaceRow, Turn, extent_key, namespace_key};
use super::session::Session;
use super::shared::Shared;
use proto::message::{Outcome, Quota, Refusal};
use proto::planted::{Bug, planted};
use proto::{Ino, NamespaceId, Position, SessionId};

/// Of what is left, a session gets at most this part beyond what it needs.
const SHARE: u64 = 16;

/// What a session may say that it had written before it heard of the quota, in bytes: more
/// than a mount buffers.
const MAX_UNRESERVED: u64 = 256 << 20;

/// What a request may add.
#[derive(Clone, Copy, Default)]
pub(super) struct Room {
    /// The session has not heard of the quota.
    unlimited: bool,
    /// Nor may what it makes have waited for that: its program has been answered.
    pub made_already: bool,
    /// Bytes that the session has reserved, and all sessions together.
    own: u64,
    all: u64,
}

impl Turn<'_> {
    /// Takes room for content of `bytes` that adds `bytes - covered` to the namespace. `covered` is only looked at
    /// where it matters.
    pub fn take_room(
        &mut self,
        bytes: u64,
        reserved: bool,
        covered: impl FnOnce(&mut Self) -> u64,
    ) -> Result<(), Refusal> {
        let spent = if reserved { bytes.min(self.room.own) } else { 0 };
        if bytes > spent && !self.room.unlimited && !planted(Bug::WriteBeyondQuota) {
            let free = self.free_bytes();
            if bytes > spent.saturating_add(free) && bytes - covered(self) > spent.saturating_add(free) {
                return Err(Refusal::QuotaExceeded);
            }
        }
        self.spent = spent;
        Ok(())
    }

    /// Bytes that are neither used nor reserved.
    fn free_bytes(&mut self) -> u64 {
        let Some(row) = self.get::<NamespaceRow>(&namespace_key(self.namespace)) else { return u64::MAX };
        row.quota.bytes.map_or(u64::MAX, |quota| quota.saturating_sub(row.bytes_used).saturating_sub(self.room.all))
    }

    /// How many bytes of `from..to` have an extent.
    pub fn covered(&mut self, ino: Ino, from: u64, to: u64) -> u64 {
        let mut covered = 0;
        let (start, stop) = (extent_key(ino, from.saturating_add(1)), super::rows::after(&extent_key(ino, u64::MAX)));
        self.scan(&start, &stop, &mut |_, value| {
            let extent: ExtentRow = super::rows::decode(value);
            let (start, end) = (extent.offset.max(from), extent.end().min(to));
            covered += end.saturating_sub(start);
            extent.offset < to
        });
        covered
    }

    /// Bytes reserved in the namespace.
    pub fn reserved(&self) -> u64 {
        self.room.all
    }

    pub fn quota(&mut self, namespace: NamespaceId) -> Quota {
        self.get::<NamespaceRow>(&namespace_key(namespace)).map_or(Quota::default(), |row| row.quota)
    }

    /// Whether content is written under a quota.
    pub fn is_limited(&mut self, namespace: NamespaceId) -> bool {
        self.quota(namespace).bytes.is_some()
    }
}

impl Machine {
    /// What a session's request may add.
    pub(super) fn room(&self, id: SessionId, is_answered: bool) -> Room {
        let Some(session) = self.live.sessions.get(&id) else { return Room::default() };
        let reserves = self.live.reserves.get(&session.namespace);
        let own = reserves.and_then(|of| of.get(&id)).copied().unwrap_or(0);
        let all = reserves.map_or(0, |of| of.values().fold(0, |all: u64, bytes| all.saturating_add(*bytes)));
        Room { unlimited: session.unlimited, made_already: is_answered && session.delegations.has_dir(), own, all }
    }

    /// A write has used what was reserved for it.
    pub(super) fn spend(&mut self, turn: &mut Turn, id: SessionId) {
        let spent = std::mem::take(&mut turn.spent);
        if spent > 0 && !planted(Bug::ReserveNotSpent) {
            self.set_reserve(turn.namespace, id, turn.room.own - spent);
        }
    }

    fn set_reserve(&mut self, namespace: NamespaceId, id: SessionId, bytes: u64) {
        let of = self.live.reserves.entry(namespace).or_default();
        if bytes == 0 {
            of.remove(&id)
        } else {
            of.insert(id, bytes)
        };
        if of.is_empty() {
            self.live.reserves.remove(&namespace);
        }
    }

    /// Nobody will use any more what the session had reserved.
    pub(super) fn drop_reserve(&mut self, id: SessionId) {
        if planted(Bug::ReserveOutlivesSession) {
            return;
        }
        self.live.reserves.retain(|_, of| {
            of.remove(&id);
            !of.is_empty()
        });
    }

    /// What an ended session had reserved is its successor's.
    pub(super) fn inherit_reserve(&mut self, namespace: NamespaceId, from: SessionId, to: SessionId) {
        let Some(of) = self.live.reserves.get_mut(&namespace).filter(|_| !planted(Bug::ReserveNotInherited)) else {
            return;
        };
        if let Some(bytes) = of.remove(&from) {
            let own = of.entry(to).or_default();
            *own = own.saturating_add(bytes);
        }
    }

    /// Reserves room, and gives back what the session does not keep: unless something was not taken that it believes
    /// to have used what it had for, which its successor sends again.
    pub(super) fn reserve(
        &mut self,
        turn: &mut Turn,
        to: To,
        keep: u64,
        (need, extra): (u64, u64),
        part: bool,
    ) -> Outcome {
        let goes_on = !self.is_broken_off(to.session);
        let session = self.live.sessions.get_mut(&to.session).expect("a request's session lives");
        let namespace = session.namespace;
        let row: Option<NamespaceRow> = turn.get(&namespace_key(namespace));
        let Some((used, Some(quota))) = row.map(|row| (row.bytes_used, row.quota.bytes)) else {
            return Outcome::Reserved { bytes: need.saturating_add(extra), more: false };
        };
        let had = turn.room.own;
        let is_new = goes_on && std::mem::take(&mut session.unlimited);
        // What writes that wait will use is used up already for whoever sent them.
        let keep = keep.saturating_add(self.waiting_reserved(to.session));
        let keeps = match goes_on {
            true => keep.min(if is_new { MAX_UNRESERVED } else { had }),
            false => had,
        };

        let others = turn.room.all - had;
        let free = quota.saturating_sub(used).saturating_sub(others).saturating_sub(keeps);
        let may_come = others > 0 || self.has_nameless(namespace);
        let bytes = match free.checked_sub(need) {
            Some(left) => need + extra.min(left / SHARE),
            None if part || !may_come => free,
            None => 0,
        };
        self.set_reserve(namespace, to.session, keeps + bytes);
        if need > free && others > 0 && !part {
            self.ask_back(turn, namespace, to.session);
        }
        Outcome::Reserved { bytes, more: bytes < need && may_come }
    }

    /// Whether files of the namespace have no name any more and are kept for sessions, which may not know yet that
    /// nobody uses them.
    fn has_nameless(&self, namespace: NamespaceId) -> bool {
        let all = Ino::new(namespace, 0)..Ino::new(NamespaceId(namespace.0 + 1), 0);
        self.live.nameless.range(all).next().is_some()
    }

    /// Asks the others for what they do not use.
    fn ask_back(&mut self, turn: &mut Turn, namespace: NamespaceId, but: SessionId) {
        let Some(of) = self.live.reserves.get(&namespace) else { return };
        let holders: Vec<SessionId> = of.keys().filter(|id| **id != but).copied().collect();
        for id in holders {
            self.push_give_back(turn, id);
        }
    }

    /// A decision about a namespace's quota has arrived.
    pub(super) fn set_quota(&mut self, turn: &mut Turn, namespace: NamespaceId, quota: Quota, decision: Position) {
        if namespace.0 == 0 || namespace > NamespaceId::MAX {
            return;
        }
        turn.ensure_root(namespace, turn.time);
        let key = namespace_key(namespace);
        let Some(mut row) = turn.get::<NamespaceRow>(&key) else { return };
        if row.quota_decision.is_some_and(|before| decision <= before) {
            return;
        }
        let (was_limited, was_counted) = (row.quota.bytes.is_some(), row.quota.inodes.is_some());
        row.quota = quota;
        row.quota_decision = Some(decision);
        if quota.bytes.is_some() && !was_limited {
            row.limited_since = turn.at;
        }
        turn.put(&key, &row);
        let of = |(_, session): &(&SessionId, &mut Shared<Session>)| session.namespace == namespace;
        let sessions = self.live.sessions.iter_mut().filter(of);
        if quota.bytes.is_none() {
            sessions.for_each(|(_, session)| session.unlimited = true);
            self.live.reserves.remove(&namespace);
        } else if !was_limited {
            let ids: Vec<SessionId> = sessions.map(|(id, _)| *id).collect();
            for id in ids {
                self.push_limited(turn, id);
            }
        }
        if quota.inodes.is_some() && !was_counted {
            self.recall_dirs(turn, namespace);
        }
    }

    /// Lets a simulation see whether the quota holds.
    pub(super) fn tell_room(&self, turn: &mut Turn) {
        #[cfg(feature = "simulation")]
        if let Some(row) = turn.get::<NamespaceRow>(&namespace_key(turn.namespace)) {
            let reserves = self.live.reserves.get(&turn.namespace);
            proto::simulation::seen(&proto::simulation::Seen::Room {
                at: turn.at,
                namespace: turn.namespace,
                quota: row.quota,
                bytes_used: row.bytes_used,
                inodes_used: row.inodes_used,
                reserved: reserves.map_or(0, |of| of.values().sum()),
                is_free: self.live.sessions.values().any(|s| s.namespace == turn.namespace && s.unlimited),
            });
        }
        let _ = turn;
    }
}
