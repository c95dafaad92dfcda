//! What is alive: sessions, what they were promised and have open, what was pushed
//! and is held, who has ended; and the indexes that follow from them.

use super::{Check, name_in};
use crate::machine::Machine;
use crate::machine::park::Parked;
use crate::machine::rows::table;
use proto::SessionId;
use serde::de::IgnoredAny;
use std::collections::BTreeSet;

impl Check<'_> {
    pub(super) fn sessions(&mut self) {
        let machine = self.machine;
        let live = &machine.live;
        let violations = &mut self.report.violations;
        for (id, session) in &live.sessions {
            let lives_only = !live.ended.contains_key(id) && !live.quotable.contains_key(id);
            violations.check(lives_only, || format!("session {id} lives and has ended"));
            violations.check(session.lineage.first() == Some(id), || format!("session {id} does not follow itself"));
            violations.check(session.admitted_at <= live.now, || format!("session {id} was heard later than now"));
            let number = session.remembered.last_key_value().map(|(number, _)| *number);
            violations.check(number.is_none_or(|number| number <= session.admitted), || {
                format!("session {id} has a result of {number:?}, and was admitted up to {:?}", session.admitted)
            });
            let push = session.pending.last_key_value().map(|(number, _)| *number);
            violations.check(push.is_none_or(|push| push <= session.pushed), || {
                format!("session {id} has the push {push:?} to confirm, and was pushed {:?}", session.pushed)
            });
            let ordered: BTreeSet<_> =
                session.promise_order.iter().map(|(order, promise)| (*promise, *order)).collect();
            let promised: BTreeSet<_> = session.promises.iter().map(|(promise, order)| (*promise, *order)).collect();
            violations.check(ordered == promised, || format!("session {id} has promises without their order"));
            let delegations = &session.delegations;
            for (thing, recall) in &delegations.has {
                let is_promised = session.promises.contains_key(thing);
                violations.check(is_promised == recall.is_none(), || {
                    format!("session {id} is delegated {thing:?} and not promised it, or not asked for it back")
                });
                let is_asked = recall.is_none_or(|number| session.pending.get(&number).is_some_and(|p| p.open));
                violations.check(is_asked, || format!("session {id} is asked for {thing:?} by no push"));
                let is_alone = machine.holders_of(*thing).all(|holder| holder == *id);
                violations
                    .check(is_alone, || format!("session {id} is delegated {thing:?}, which others are promised"));
                let is_its = machine.delegated.holder(thing) == Some(*id);
                violations.check(is_its, || format!("session {id} is delegated {thing:?}, and so is another"));
            }
            let may_have = delegations.has.is_empty() || delegations.able;
            violations.check(may_have, || format!("session {id} is delegated something and cannot answer for it"));
        }
        for (ino, holders) in &live.nameless {
            for id in holders {
                let has = live.sessions.get(id).is_some_and(|session| session.opened.contains(ino));
                violations
                    .check(has, || format!("inode {} is kept for session {id}, which does not have it open", ino.0));
            }
            violations.check(!holders.is_empty(), || format!("inode {} is kept for nobody", ino.0));
        }
        for id in live.reserves.values().flat_map(std::collections::BTreeMap::keys) {
            let may_use = live.sessions.contains_key(id) || live.quotable.contains_key(id);
            violations.check(may_use, || format!("room is reserved for session {id}, which nobody can use"));
        }
        let order: BTreeSet<_> = live.ended.iter().map(|(id, mark)| (mark.at, *id)).collect();
        violations.check(order == live.ended_order, || "the order of sessions' ends is not theirs".into());
        match Machine::restore(machine.partition, machine.secrets.clone(), &machine.dump()) {
            Ok(again) => {
                violations.check(again.holders == machine.holders, || "the index of promises is another one".into());
                violations.check(again.things == machine.things, || "the index of pushes is another one".into());
                violations.check(again.holdings == machine.holdings, || "the index of locks is another one".into());
                violations
                    .check(again.delegated == machine.delegated, || "the index of delegations is another one".into());
                violations.check(again.waiting_bytes == machine.waiting_bytes, || {
                    "the count of what waits is another one".into()
                });
                violations.check(again.quotable_order == machine.quotable_order, || {
                    "the order of sessions to quote from is another one".into()
                });
            }
            Err(error) => violations.add(|| error.to_string()),
        }
        self.locks();
        self.waiting();
        self.ended();
        self.freed();
        self.users();
    }

    /// That locks are of sessions that live and can be had together, and that who waits is parked.
    fn locks(&mut self) {
        let live = &self.machine.live;
        let violations = &mut self.report.violations;
        let mut waiting = BTreeSet::new();
        for (ino, file) in &live.locks {
            for (index, held) in file.held().iter().enumerate() {
                let lives = live.sessions.contains_key(&held.session);
                violations.check(lives, || format!("inode {} is locked by a session that has ended", ino.0));
                let rivals = file.held()[index + 1..].iter().any(|other| other.conflicts(held));
                violations.check(!rivals, || format!("inode {} is locked twice", ino.0));
            }
            for waiter in file.waiting() {
                waiting.insert((waiter.wants.session, waiter.number));
                let is_blocked = file.blockers(&waiter.wants).next().is_some();
                violations
                    .check(is_blocked, || format!("somebody waits for inode {} though nobody is in the way", ino.0));
            }
            violations.check(!file.is_empty(), || format!("inode {} has an empty list of locks", ino.0));
        }
        let parked = live.parked.iter().filter(|(_, what)| matches!(what, Parked::Lock(_)));
        let parked: BTreeSet<_> = parked.map(|(request, _)| *request).collect();
        violations.check(waiting == parked, || "who waits for locks is not who is parked".into());
    }

    /// That who waits for what others are delegated is parked, lives, and has something to wait for.
    fn waiting(&mut self) {
        let (machine, live) = (self.machine, &self.machine.live);
        let violations = &mut self.report.violations;
        let mut orders = BTreeSet::new();
        for (request, what) in &live.parked {
            violations
                .check(live.sessions.contains_key(&request.0), || format!("session {} waits and has ended", request.0));
            if let Parked::Delegation(order) = what {
                let waits = live.waiting.get(order).map(|waiting| (waiting.to.session, waiting.to.number));
                violations.check(waits == Some(*request), || format!("{request:?} is parked and does not wait"));
                orders.insert(*order);
            }
        }
        for (order, waiting) in &live.waiting {
            violations.check(orders.contains(order), || format!("the request {order} waits and is not parked"));
            violations.check(*order < live.next_waiting, || format!("the request {order} is still to come"));
            let is_free = machine.is_free(waiting);
            violations.check(!is_free, || format!("the request {order} waits for nothing"));
        }
    }

    /// That what ended sessions have left is listed by its time.
    fn ended(&mut self) {
        let (mut by_id, mut by_time) = (BTreeSet::new(), BTreeSet::new());
        self.rows::<IgnoredAny>(&[table::ENDED], |_, key, _| {
            by_id.insert(key[1..].to_vec());
        });
        self.rows::<IgnoredAny>(&[table::ENDED_BY_TIME], |_, key, _| {
            by_time.insert(key.get(9..).unwrap_or_default().to_vec());
        });
        self.report
            .violations
            .check(by_id == by_time, || "what ended sessions have left is not listed by its time".into());
    }

    /// That chunks are marked as freed only while somebody might quote them again.
    fn freed(&mut self) {
        let live = &self.machine.live;
        self.rows::<IgnoredAny>(&[table::FREED], |violations, key, _| {
            let session: Option<&[u8; 16]> = key.get(1..).and_then(<[u8]>::first_chunk);
            let name = key.get(17..).and_then(name_in);
            let Some((session, name)) = session.map(|id| SessionId(*id)).zip(name) else {
                return violations.add(|| "a mark of a freed chunk has no chunk's name".into());
            };
            let quotable = live.sessions.contains_key(&session) || live.quotable.contains_key(&session);
            violations.check(quotable && name.session == session, || {
                format!("the chunk {name} is marked as freed, and nobody could quote it")
            });
        });
    }

    fn users(&mut self) {
        let mut namespaces = BTreeSet::new();
        self.rows::<crate::machine::StoredUser>(&[table::USER], |violations, key, user| {
            violations.check(&key[1..] == user.name.as_str().as_bytes(), || format!("{} has another's key", user.name));
            violations.check(namespaces.insert(user.namespace), || format!("{} shares a namespace", user.name));
        });
        let partition = self.machine.partition;
        let stray = partition != 0 && !namespaces.is_empty();
        self.report.violations.check(!stray, || format!("partition {partition} has users, which belong into 0"));
    }
}
