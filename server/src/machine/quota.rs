//! Quotas: what a namespace may hold, and the room that sessions have reserved in it.
//!
//! A mount answers a write from its buffer, and makes what is in a directory that it is delegated, long before that is in
//! the log; so what it may add is reserved before: bytes, and inodes. What is used and what is reserved together grow up to
//! the quota and no further; a request that was reserved for turns the one into the other and is
//! never refused for the quota. Whatever was not reserved is refused if it does not fit.
//!
//! A session that has not heard yet of a quota reserves nothing, and what it sends is taken
//! whatever it adds, until its first `Reserve` shows that it has heard. What a
//! session had reserved that ended without a word stays reserved for its
//! successor, which may still have to send what was answered, for as long as it may quote
//! what was uploaded.

use super::Machine;
use super::promise::To;
use super::rows::{ExtentRow, NamespaceRow, Turn, extent_key, namespace_key};
use proto::message::{Each, Op, Outcome, Quota, Refusal, Resource, Upload};
use proto::planted::{Bug, planted};
use proto::{Ino, NamespaceId, Position, SessionId};
use std::collections::BTreeMap;

/// Of what is left, a session gets at most this part beyond what it needs.
const SHARE: u64 = 16;

/// What a session may say that it had answered before it heard of the quota: more than a mount buffers, and more inodes
/// than it gives before their requests.
const MAX_UNRESERVED: Each<u64> = Each { bytes: 256 << 20, inodes: 4096 };

/// What a request may add.
#[derive(Clone, Copy, Default)]
pub(super) struct Room {
    /// The session has not heard of the quota.
    unlimited: Each<bool>,
    /// What the session has reserved, and all sessions together.
    own: Each<u64>,
    all: Each<u64>,
}

/// What a request adds at most, if it says that this was reserved.
fn claimed(op: &Op) -> Option<(Resource, u64)> {
    match op {
        Op::Upload(Upload::Write { pieces, reserved: true, .. }) => {
            Some((Resource::Bytes, pieces.iter().map(|piece| u64::from(piece.len)).sum()))
        }
        Op::Upload(Upload::Create { new, .. }) if new.reserved => Some((Resource::Inodes, 1)),
        _ => None,
    }
}

impl Turn<'_> {
    /// Looks whether there is room for what adds `amount - covered` to the namespace. `covered` is only looked at
    /// where it matters.
    pub fn find_room(
        &mut self,
        of: Resource,
        amount: u64,
        reserved: bool,
        covered: impl FnOnce(&mut Self) -> u64,
    ) -> Result<(), Refusal> {
        let own = if reserved { self.room.own[of] } else { 0 };
        let beyond = match of {
            Resource::Bytes => Bug::WriteBeyondQuota,
            Resource::Inodes => Bug::CreateBeyondQuota,
        };
        if amount > own && !self.room.unlimited[of] && !planted(beyond) {
            let most = own.saturating_add(self.room_left(of));
            if amount > most && amount - covered(self) > most {
                return Err(Refusal::QuotaExceeded);
            }
        }
        Ok(())
    }

    /// What is neither used nor reserved.
    fn room_left(&mut self, of: Resource) -> u64 {
        let Some(row) = self.get::<NamespaceRow>(&namespace_key(self.namespace)) else { return u64::MAX };
        let left = |quota: u64| quota.saturating_sub(row.used(of)).saturating_sub(self.room.all[of]);
        row.quota[of].map_or(u64::MAX, left)
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

    /// What is reserved in the namespace.
    pub fn reserved(&self) -> Each<u64> {
        self.room.all
    }

    pub fn quota(&mut self, namespace: NamespaceId) -> Quota {
        self.get::<NamespaceRow>(&namespace_key(namespace)).map_or(Quota::default(), |row| row.quota)
    }

    /// What there is a quota of.
    pub fn limited(&mut self, namespace: NamespaceId) -> Each<bool> {
        let quota = self.quota(namespace);
        Each::of(|of| quota[of].is_some())
    }
}

impl Machine {
    /// What a session's request may add.
    pub(super) fn room(&self, id: SessionId) -> Room {
        let Some(session) = self.live.sessions.get(&id) else { return Room::default() };
        let all = self.reserved(session.namespace);
        let own = self.live.reserves.get(&session.namespace).and_then(|reserves| reserves.get(&id));
        Room { unlimited: session.unlimited, own: own.copied().unwrap_or_default(), all }
    }

    /// What sessions have reserved in a namespace, all together.
    fn reserved(&self, namespace: NamespaceId) -> Each<u64> {
        let reserves = self.live.reserves.get(&namespace).into_iter().flat_map(BTreeMap::values);
        reserves.fold(Each::default(), |all: Each<u64>, more| Each::of(|of| all[of].saturating_add(more[of])))
    }

    /// A request has been executed, done or refused: what was reserved for it is not needed any more. Its session counts
    /// that from when it sends it.
    pub(super) fn spend(&mut self, turn: &Turn, id: SessionId, op: &Op) {
        let Some((of, amount)) = claimed(op).filter(|_| !planted(Bug::ReserveNotSpent)) else { return };
        let own = turn.room.own[of];
        if own > 0 {
            self.set_reserve(turn.namespace, id, of, own.saturating_sub(amount));
        }
    }

    /// What is reserved for requests of a session that wait.
    fn waiting_reserved(&self, id: SessionId, of: Resource) -> u64 {
        let claims = self.waiting_changes(id).filter_map(claimed).filter(|(claimed, _)| *claimed == of);
        claims.fold(0, |all: u64, (_, amount)| all.saturating_add(amount))
    }

    fn set_reserve(&mut self, namespace: NamespaceId, id: SessionId, of: Resource, amount: u64) {
        let reserves = self.live.reserves.entry(namespace).or_default();
        let has = reserves.entry(id).or_default();
        has[of] = amount;
        if *has == Each::default() {
            self.forget_empty_reserves(namespace);
        }
    }

    fn forget_empty_reserves(&mut self, namespace: NamespaceId) {
        if let Some(reserves) = self.live.reserves.get_mut(&namespace) {
            reserves.retain(|_, has| *has != Each::default());
            if reserves.is_empty() {
                self.live.reserves.remove(&namespace);
            }
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
        if let Some(more) = of.remove(&from) {
            let own = of.entry(to).or_default();
            *own = Each::of(|of| own[of].saturating_add(more[of]));
        }
    }

    /// Reserves room, and gives back what the session does not keep: unless something was not taken that it believes
    /// to have used what it had for, which its successor sends again.
    pub(super) fn reserve(
        &mut self,
        turn: &mut Turn,
        to: To,
        of: Resource,
        keep: u64,
        (need, extra): (u64, u64),
        part: bool,
    ) -> Outcome {
        let goes_on = !self.is_broken_off(to.session);
        let session = self.live.sessions.get_mut(&to.session).expect("a request's session lives");
        let namespace = session.namespace;
        let row: Option<NamespaceRow> = turn.get(&namespace_key(namespace));
        let Some((used, Some(quota))) = row.map(|row| (row.used(of), row.quota[of])) else {
            return Outcome::Reserved { amount: need.saturating_add(extra), more: false };
        };
        let had = turn.room.own[of];
        let is_new = goes_on && std::mem::take(&mut session.unlimited[of]);
        // What requests that wait will use is used up already for whoever sent them.
        let keep = keep.saturating_add(self.waiting_reserved(to.session, of));
        let keeps = match goes_on {
            true => keep.min(if is_new { MAX_UNRESERVED[of] } else { had }),
            false => had,
        };

        let others = turn.room.all[of] - had;
        let free = quota.saturating_sub(used).saturating_sub(others).saturating_sub(keeps);
        let may_come = others > 0 || self.has_nameless(namespace);
        let amount = match free.checked_sub(need) {
            Some(left) => need + extra.min(left / SHARE),
            None if part || !may_come => free,
            None => 0,
        };
        self.set_reserve(namespace, to.session, of, keeps + amount);
        if need > free && others > 0 && !part {
            self.ask_back(turn, namespace, of, to.session);
        }
        Outcome::Reserved { amount, more: amount < need && may_come }
    }

    /// Whether files of the namespace have no name any more and are kept for sessions, which may not know yet that
    /// nobody uses them.
    fn has_nameless(&self, namespace: NamespaceId) -> bool {
        let all = Ino::new(namespace, 0)..Ino::new(NamespaceId(namespace.0 + 1), 0);
        self.live.nameless.range(all).next().is_some()
    }

    /// Asks the others for what they do not use.
    fn ask_back(&mut self, turn: &mut Turn, namespace: NamespaceId, of: Resource, but: SessionId) {
        let Some(reserves) = self.live.reserves.get(&namespace) else { return };
        let others = reserves.iter().filter(|(id, has)| **id != but && has[of] > 0);
        let holders: Vec<SessionId> = others.map(|(id, _)| *id).collect();
        for id in holders {
            self.push_give_back(turn, id, of);
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
        let before = row.quota;
        row.quota = quota;
        row.quota_decision = Some(decision);
        for of in Resource::ALL {
            if quota[of].is_some() && before[of].is_none() {
                row.limited_since[of] = turn.at;
            }
        }
        turn.put(&key, &row);
        for of in Resource::ALL {
            match (before[of], quota[of]) {
                (_, None) => self.unlimit(namespace, of),
                (None, Some(_)) => self.limit(turn, namespace, of),
                (Some(_), Some(_)) => {}
            }
        }
    }

    fn unlimit(&mut self, namespace: NamespaceId, of: Resource) {
        let sessions = self.live.sessions.values_mut().filter(|session| session.namespace == namespace);
        sessions.for_each(|session| session.unlimited[of] = true);
        if let Some(reserves) = self.live.reserves.get_mut(&namespace) {
            reserves.values_mut().for_each(|has| has[of] = 0);
        }
        self.forget_empty_reserves(namespace);
    }

    fn limit(&mut self, turn: &mut Turn, namespace: NamespaceId, of: Resource) {
        let sessions = self.live.sessions.iter().filter(|(_, session)| session.namespace == namespace);
        let ids: Vec<SessionId> = sessions.map(|(id, _)| *id).collect();
        for id in ids {
            self.push_limited(turn, id, of);
        }
    }

    /// Lets a simulation see whether the quota holds.
    pub(super) fn tell_room(&self, turn: &mut Turn) {
        #[cfg(feature = "simulation")]
        if let Some(row) = turn.get::<NamespaceRow>(&namespace_key(turn.namespace)) {
            let sessions = || self.live.sessions.values().filter(|session| session.namespace == turn.namespace);
            proto::simulation::seen(&proto::simulation::Seen::Room {
                at: turn.at,
                namespace: turn.namespace,
                quota: row.quota,
                used: Each::of(|of| row.used(of)),
                reserved: self.reserved(turn.namespace),
                is_free: Each::of(|of| sessions().any(|session| session.unlimited[of])),
            });
        }
        let _ = turn;
    }
}
