//! Delegations: what nobody else has to do with is left to one session (a directory, a file's content, attributes of
//! what has names in several directories). It answers for that itself, and sends what it has answered behind that, in
//! order, as requests that say so (`local`).
//!
//! * Whoever is delegated a thing is promised it too, unless it is being asked back; nobody else is.
//! * Nobody else's request shows or changes what is delegated before it is given back ([`super::waiting`]).
//! * It is asked back by the push that breaks the promise. The session confirms that only when all that it has
//!   answered itself stands in the log before the confirmation: then the delegation is over, and nothing is lost.
//! * One that ends otherwise, by a deadline or with its session's lease, is *forfeited*. What the session
//!   has answered and not sent by then may not fit any more, so from there on nothing is taken that it has answered
//!   itself, until it says that it begins anew (`Undelegated`). Once something was not taken, nothing that follows it
//!   is, answered or not, until the session is replaced: what takes effect is a prefix of what it has entered.

use super::Machine;
use super::rows::Turn;
use proto::message::Promise;
use proto::planted::{Bug, planted};
use proto::{LogTime, NamespaceId, PushNo, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Delegations of one session; beyond them it is delegated nothing more.
const MAX_DELEGATIONS: usize = 16_384;
/// What somebody had to wait for is delegated to nobody for this much log time: sessions that work in one
/// directory share it by promises instead of tossing it to and fro.
const CONTENDED_MS: u64 = 1_000;
/// Things that are remembered for that; beyond them the longest remembered is forgotten.
const MAX_CONTENDED: usize = 4_096;

/// What one session is delegated, and may be.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Delegations {
    /// It can answer for what it is delegated.
    pub able: bool,
    /// Each with the push that asks for it back, if one does.
    pub has: BTreeMap<Promise, Option<PushNo>>,
    pub word: Word,
}

/// What counts of what a session says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    #[default]
    All,
    /// Not that something was answered already.
    Unanswered,
    /// Nothing: something was not taken, and whatever follows that would come before it.
    Nothing,
}

/// Who is delegated what. Follows from the sessions.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Delegated {
    holders: BTreeMap<Promise, SessionId>,
    counts: BTreeMap<(NamespaceId, SessionId), usize>,
}

impl Delegated {
    pub fn holder(&self, thing: &Promise) -> Option<SessionId> {
        self.holders.get(thing).copied()
    }

    /// Whether anybody but this session is delegated anything in the namespace.
    pub fn any_but(&self, namespace: NamespaceId, id: SessionId) -> bool {
        let all = (namespace, SessionId([0; 16]))..=(namespace, SessionId([0xff; 16]));
        self.counts.range(all).any(|((_, holder), _)| *holder != id)
    }

    fn insert(&mut self, thing: Promise, id: SessionId) {
        if self.holders.insert(thing, id).is_none() {
            *self.counts.entry((namespace(thing), id)).or_default() += 1;
        }
    }

    fn remove(&mut self, thing: Promise) {
        if let Some(id) = self.holders.remove(&thing)
            && let Some(count) = self.counts.get_mut(&(namespace(thing), id))
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&(namespace(thing), id));
            }
        }
    }
}

fn namespace(thing: Promise) -> NamespaceId {
    let (Promise::Dir(ino) | Promise::Inode(ino) | Promise::Content(ino)) = thing;
    ino.namespace()
}

impl Machine {
    /// Makes the index anew after a restore.
    pub(super) fn index_delegations(&mut self) {
        for (id, session) in &self.live.sessions {
            for thing in session.delegations.has.keys() {
                self.delegated.insert(*thing, *id);
            }
        }
    }

    /// Delegates to a session what it has just been promised, as far as nobody else has to do with it; says what it
    /// is delegated of that. What it has `made` itself it works in already, so no limit keeps that from it.
    pub(super) fn delegate(&mut self, turn: &mut Turn, id: SessionId, promised: &[Promise]) -> Vec<Promise> {
        let delegations = &self.live.sessions[&id].delegations;
        if !delegations.able || delegations.word != Word::All {
            return Vec::new();
        }
        let mut delegated = Vec::new();
        for thing in promised {
            if self.delegated.holder(thing) != Some(id) {
                let has_room = self.live.sessions[&id].delegations.has.len() < MAX_DELEGATIONS;
                let fits = turn.made == Some(*thing) || has_room && !self.is_contended(thing);
                if !fits || !self.is_left_to(thing, id) {
                    continue;
                }
                let session = self.live.sessions.get_mut(&id).expect("a request's session lives");
                session.delegations.has.insert(*thing, None);
                self.delegated.insert(*thing, id);
            }
            delegated.push(*thing);
        }
        delegated
    }

    /// Whether nobody but this session has to do with a thing.
    fn is_left_to(&self, thing: &Promise, id: SessionId) -> bool {
        let is_promised = self.holders_of(*thing).any(|holder| holder != id) && !planted(Bug::DelegateShared);
        !is_promised && self.delegated.holder(thing).is_none() && self.waits([thing], id).is_empty()
    }

    /// Whether somebody waits for it, be it for something else as well, or has had to lately.
    fn is_contended(&self, thing: &Promise) -> bool {
        let lately = self.live.contended.get(thing).is_some_and(|at| self.live.now < at.plus_ms(CONTENDED_MS));
        lately || self.live.waiting.values().any(|waiting| waiting.things.contains(thing))
    }

    /// Remembers that somebody has had to wait for these.
    pub(super) fn note_contended(&mut self, things: &BTreeSet<Promise>) {
        let live = &mut self.live;
        for thing in things {
            live.contended.insert(*thing, live.now);
            if live.contended.len() > MAX_CONTENDED
                && let Some(first) = live.contended.iter().min_by_key(|(_, at)| **at).map(|(thing, _)| *thing)
            {
                live.contended.remove(&first);
            }
        }
    }

    pub(super) fn forget_contended(&mut self, now: LogTime) {
        self.live.contended.retain(|_, at| now < at.plus_ms(CONTENDED_MS));
    }

    /// What a request of this session has touched and others are delegated.
    pub(super) fn delegated_to_others(&self, turn: &Turn, id: SessionId) -> BTreeSet<Promise> {
        if planted(Bug::IgnoreDelegations) {
            return BTreeSet::new();
        }
        let touched = turn.reads.iter().chain(&turn.changes).chain(&turn.grants);
        touched.filter(|thing| self.delegated.holder(thing).is_some_and(|holder| holder != id)).copied().collect()
    }

    /// Asks for these back, each once.
    pub(super) fn recall(&mut self, turn: &mut Turn, things: &BTreeSet<Promise>) {
        let mut from: BTreeMap<SessionId, Vec<Promise>> = BTreeMap::new();
        for thing in things {
            let Some(id) = self.delegated.holder(thing) else { continue };
            if self.live.sessions.get(&id).is_some_and(|session| session.delegations.has.get(thing) == Some(&None)) {
                from.entry(id).or_default().push(*thing);
            }
        }
        for (id, recalled) in from {
            let about = recalled.iter().copied().collect();
            self.revoke(turn, id, recalled, about);
        }
    }

    /// These promises of a session are being broken by the push of this number. What it is delegated of them it has
    /// until it confirms that.
    pub(super) fn note_recalled(&mut self, id: SessionId, things: &[Promise], number: PushNo) {
        let Some(session) = self.live.sessions.get_mut(&id).filter(|session| !session.delegations.has.is_empty())
        else {
            return;
        };
        let has = &mut session.delegations.has;
        for thing in things {
            if let Some(recall) = has.get_mut(thing) {
                *recall = Some(number);
            }
        }
        if planted(Bug::RecallDoesNotWait) {
            self.given_back(id, number, things);
        }
    }

    /// The push of this number, which asked for these things, is confirmed: they are given back.
    pub(super) fn given_back(&mut self, id: SessionId, number: PushNo, things: &[Promise]) {
        let asked_for = self.asked_for(id, number, things);
        self.end_delegations(id, &asked_for);
    }

    /// It is not confirmed in time: what it asked for is free, and its session has lost its word.
    pub(super) fn forfeit_recalled(&mut self, id: SessionId, number: PushNo, things: &[Promise]) {
        let asked_for = self.asked_for(id, number, things);
        self.forfeit(id, &asked_for);
    }

    /// The session's lease is over, and all that it was delegated.
    pub(super) fn forfeit_all(&mut self, id: SessionId) {
        let all = self.delegations(id);
        self.forfeit(id, &all);
    }

    /// Those of these things that the session is delegated until it confirms this very push.
    fn asked_for(&self, id: SessionId, number: PushNo, things: &[Promise]) -> Vec<Promise> {
        let Some(session) = self.live.sessions.get(&id) else { return Vec::new() };
        let has = &session.delegations.has;
        things.iter().filter(|thing| has.get(thing) == Some(&Some(number))).copied().collect()
    }

    fn delegations(&self, id: SessionId) -> Vec<Promise> {
        self.live.sessions.get(&id).map_or(Vec::new(), |session| session.delegations.has.keys().copied().collect())
    }

    fn forfeit(&mut self, id: SessionId, over: &[Promise]) {
        if self.end_delegations(id, over)
            && let Some(session) = self.live.sessions.get_mut(&id).filter(|s| s.delegations.word == Word::All)
        {
            session.delegations.word = Word::Unanswered;
        }
    }

    /// Whether what the session has answered itself is not taken any more.
    pub(super) fn has_forfeited(&self, id: SessionId) -> bool {
        self.word(id) != Word::All && !planted(Bug::ForfeitedGoesOn)
    }

    /// Whether nothing is taken any more.
    pub(super) fn is_broken_off(&self, id: SessionId) -> bool {
        self.word(id) == Word::Nothing && !planted(Bug::ForfeitedGoesOn)
    }

    /// Something that the session has answered itself is not taken.
    pub(super) fn break_off(&mut self, id: SessionId) {
        if let Some(session) = self.live.sessions.get_mut(&id) {
            session.delegations.word = Word::Nothing;
        }
    }

    fn word(&self, id: SessionId) -> Word {
        self.live.sessions.get(&id).map(|session| session.delegations.word).unwrap_or_default()
    }

    /// The session begins anew: all that it has answered itself stands before this, or is lost.
    pub(super) fn undelegated(&mut self, id: SessionId) {
        let all = self.delegations(id);
        self.end_delegations(id, &all);
        if let Some(session) = self.live.sessions.get_mut(&id).filter(|s| s.delegations.word == Word::Unanswered) {
            session.delegations.word = Word::All;
        }
    }

    /// The session has ended. It has been taken out.
    pub(super) fn drop_delegations(&mut self, delegations: &Delegations) {
        for thing in delegations.has.keys() {
            self.delegated.remove(*thing);
        }
        self.is_freed |= !delegations.has.is_empty();
    }

    /// Ends these delegations of a session, which it has; whether there are any.
    fn end_delegations(&mut self, id: SessionId, over: &[Promise]) -> bool {
        // Most have none, and would only be copied where an image shares them.
        if over.is_empty() {
            return false;
        }
        let Some(session) = self.live.sessions.get_mut(&id) else { return false };
        for thing in over {
            session.delegations.has.remove(thing);
            self.delegated.remove(*thing);
        }
        self.is_freed = true;
        true
    }
}
