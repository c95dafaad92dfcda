//! What this session has been promised to hear about, and until when that counts.
//!
//! Caches hold no callbacks: an entry stores the promise and the [`Grant`] that it
//! was filled under and is valid as long as [`Promises::grant`] still gives that
//! grant. What must stay true:
//!
//! * A promise that was broken, outlived or lost never comes back: a later grant
//!   of the same thing has a new generation.
//! * An answer grants nothing on a thing that has changed, or may have changed,
//!   at or after the answer's position.
//! * Nothing counts later than [`LEASE_MS`] after the sending of the last record
//!   that has been answered.

use lru::LruCache;
use proto::Position;
use proto::message::Promise;
use proto::planted::{Bug, planted};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long promises are relied on, in milliseconds from the sending of the last
/// answered record: 2 s less than the server counts from its admission.
pub const LEASE_MS: u64 = 8_000;

/// Promises remembered at once; the server gives at most 65,536 a session.
const MAX_PROMISES: usize = 1 << 17;

/// Things whose last change is remembered one by one; what falls out of this
/// memory raises the position below which nothing is granted at all.
const MAX_CHANGES: usize = 1 << 16;

/// One life of a promise. Two grants are equal only if the promise held without
/// a break from the one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grant(u64);

/// An own change's answer has renewed a promise: `before` counted right up to it,
/// so whatever was cached under `before` and is not what the change itself
/// touched may be stamped with `now`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continued {
    pub promise: Promise,
    pub before: Grant,
    pub now: Grant,
}

/// The promises of one session on one partition. All times are milliseconds of
/// one monotonic clock.
pub struct Promises {
    /// When a grant was last asked for: what keeps a mount from being idle.
    last_used_ms: AtomicU64,
    table: Mutex<Table>,
}

struct Table {
    granted: HashMap<Promise, Grant>,
    /// What is delegated to this session beside, while that grant counts.
    delegated: HashMap<Promise, Grant>,
    next: u64,
    /// Promises count before this moment.
    lease_end_ms: u64,
    changes: LruCache<Promise, Position>,
    /// Answers at or before this position grant nothing.
    floor: Option<Position>,
    /// Answers before this position grant nothing: the lease ran out there and began anew.
    lease_from: Option<Position>,
}

impl Default for Promises {
    fn default() -> Promises {
        Promises {
            last_used_ms: AtomicU64::new(0),
            table: Mutex::new(Table {
                granted: HashMap::new(),
                delegated: HashMap::new(),
                next: 1,
                lease_end_ms: 0,
                changes: LruCache::new(NonZeroUsize::new(MAX_CHANGES).expect("the bound is not zero")),
                floor: None,
                lease_from: None,
            }),
        }
    }
}

impl Promises {
    /// The promise's current grant, if it counts right now.
    pub fn grant(&self, promise: &Promise) -> Option<Grant> {
        self.grant_at(proto::clock::monotonic_ms(), promise)
    }

    /// [`Promises::grant`] at a moment that the caller knows.
    pub fn grant_at(&self, now_ms: u64, promise: &Promise) -> Option<Grant> {
        self.last_used_ms.store(now_ms, Ordering::Relaxed);
        let table = self.table();
        if now_ms >= table.lease_end_ms && !planted(Bug::LeaseForever) {
            return None;
        }
        table.granted.get(promise).copied()
    }

    /// Whether promises count at this moment, whichever there are.
    pub(crate) fn count(&self, now_ms: u64) -> bool {
        now_ms < self.table().lease_end_ms
    }

    /// Whether nobody else has to do with it, right now: this session may answer for it.
    pub fn is_delegated(&self, promise: &Promise) -> bool {
        self.grant(promise).is_some_and(|grant| self.table().delegated.get(promise) == Some(&grant))
    }

    /// Until when it may be answered for at most, if it may be right now.
    pub(crate) fn delegated_until_ms(&self, now_ms: u64, promise: &Promise) -> Option<u64> {
        let grant = self.grant_at(now_ms, promise)?;
        let table = self.table();
        (table.delegated.get(promise) == Some(&grant)).then_some(table.lease_end_ms)
    }

    /// What this session has just made is its own, by the delegation of where it was made. Gives the grants.
    pub fn made(&self, things: &[Promise]) -> Vec<(Promise, Grant)> {
        let mut table = self.table();
        let table = &mut *table;
        let grant = |promise: &Promise| {
            table.next += 1;
            let grant = Grant(table.next);
            table.granted.insert(*promise, grant);
            table.delegated.insert(*promise, grant);
            (*promise, grant)
        };
        things.iter().map(grant).collect()
    }

    /// An answer delegates these, which it has granted.
    pub(crate) fn delegated(&self, things: &[Promise]) {
        let mut table = self.table();
        for promise in things {
            if let Some(grant) = table.granted.get(promise).copied() {
                table.delegated.insert(*promise, grant);
            }
        }
        if table.delegated.len() > MAX_PROMISES {
            table.delegated.clear();
        }
    }

    /// A change that was answered under delegations has taken effect at `at`: what it touched is as it was known here, so
    /// grants go on, also those that its answer does not repeat. Gives them, since what is known is to be brought up to it.
    pub(crate) fn settled(&self, at: Position, touched: &[Promise], granted: &[Promise]) -> Vec<(Promise, Grant)> {
        let standing: Vec<Promise> = {
            let mut table = self.table();
            touched.iter().chain(granted).for_each(|promise| table.changed(*promise, at));
            let stands = |promise: &&Promise| !granted.contains(promise) && table.granted.contains_key(promise);
            touched.iter().filter(stands).chain(granted).copied().collect()
        };
        self.granted(at, &standing)
    }

    /// How many promises are held, lapsed or not.
    pub fn held(&self) -> usize {
        self.table().granted.len()
    }

    /// When a grant was last asked for.
    pub(crate) fn last_used_ms(&self) -> u64 {
        self.last_used_ms.load(Ordering::Relaxed)
    }

    /// A record sent at `sent_ms` has been answered, with nothing lost before it
    /// and as of `at`: promises now count until [`LEASE_MS`] after its sending. If
    /// they had run out before, the server may have let them go silently: none is
    /// kept, nor taken from older answers that come late. Returns whether any was lost.
    pub(crate) fn extend(&self, now_ms: u64, sent_ms: u64, at: Position) -> bool {
        let mut table = self.table();
        let mut lapsed = false;
        let is_over = now_ms >= table.lease_end_ms;
        if is_over && !planted(Bug::LeaseForever) && !planted(Bug::LateAnswerRevives) {
            lapsed = !table.granted.is_empty();
            table.granted.clear();
            table.delegated.clear();
            table.lease_from = table.lease_from.max(Some(at));
        }
        table.lease_end_ms = table.lease_end_ms.max(sent_ms.saturating_add(LEASE_MS));
        lapsed
    }

    /// What an answer at `at` promises; things that have changed since are left out.
    pub(crate) fn granted(&self, at: Position, promises: &[Promise]) -> Vec<(Promise, Grant)> {
        let mut table = self.table();
        if table.floor.is_some_and(|floor| at <= floor) || table.lease_from.is_some_and(|from| at < from) {
            return Vec::new();
        }
        let table = &mut *table;
        let mut out = Vec::with_capacity(promises.len());
        for promise in promises {
            if table.changes.peek(promise).is_some_and(|changed| at < *changed) && !planted(Bug::GrantFromOldAnswer) {
                continue;
            }
            if table.granted.len() >= MAX_PROMISES {
                table.granted.clear();
                table.delegated.clear();
            }
            let next = &mut table.next;
            let grant = table.granted.entry(*promise).or_insert_with(|| {
                *next += 1;
                Grant(*next)
            });
            out.push((*promise, *grant));
        }
        out
    }

    /// These things have changed at `at`, by someone else: the promises are over.
    pub(crate) fn broken(&self, at: Position, promises: &[Promise]) {
        let mut table = self.table();
        for promise in promises {
            table.granted.remove(promise);
            table.delegated.remove(promise);
            table.changed(*promise, at);
        }
    }

    /// An own change at `at` has touched these things and its answer promises
    /// `granted` of them anew. Everything cached about them before is void,
    /// except as [`Continued`] says.
    pub(crate) fn changed_here(
        &self,
        now_ms: u64,
        at: Position,
        touched: &[Promise],
        granted: &[Promise],
    ) -> (Vec<(Promise, Grant)>, Vec<Continued>) {
        let mut before = Vec::new();
        {
            let mut table = self.table();
            let counts = now_ms < table.lease_end_ms;
            for promise in touched.iter().chain(granted) {
                // An answer that was overtaken by a later one's says nothing about what came between.
                let newest =
                    table.changes.peek(promise).is_none_or(|changed| *changed <= at) || planted(Bug::OvertakenGoesOn);
                if let Some(grant) = table.granted.remove(promise)
                    && counts
                    && newest
                {
                    before.push((*promise, grant));
                }
                table.changed(*promise, at);
            }
        }
        let now = self.granted(at, granted);
        let continued = before
            .into_iter()
            .filter_map(|(promise, before)| {
                let (_, now) = now.iter().find(|(granted, _)| *granted == promise)?;
                Some(Continued { promise, before, now: *now })
            })
            .collect();
        (now, continued)
    }

    /// Something may have been missed up to `at`: no promise is kept, and no
    /// answer up to there grants any.
    pub(crate) fn drop_all(&self, at: Option<Position>) {
        let mut table = self.table();
        table.granted.clear();
        table.delegated.clear();
        table.floor = table.floor.max(at);
    }
}

impl Promises {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every step leaves a table that promises less or the same, so it stays right after a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn changed(&mut self, promise: Promise, at: Position) {
        if let Some(changed) = self.changes.get_mut(&promise) {
            *changed = (*changed).max(at);
            return;
        }
        if let Some((_, forgotten)) = self.changes.push(promise, at) {
            self.floor = self.floor.max(Some(forgotten));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Epoch, Ino};

    const D: Promise = Promise::Dir(Ino(1));
    const C: Promise = Promise::Content(Ino(2));

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch(1), partition: 0, offset, index: 0 }
    }

    fn promises() -> Promises {
        let promises = Promises::default();
        promises.extend(0, 0, at(0));
        promises
    }

    #[test]
    fn a_broken_promise_comes_back_as_another() {
        let p = promises();
        let first = p.granted(at(1), &[D])[0].1;
        assert_eq!(p.grant_at(10, &D), Some(first));
        assert_eq!(p.granted(at(2), &[D]), [(D, first)], "a promise kept is one grant");
        p.broken(at(3), &[D]);
        assert_eq!(p.grant_at(10, &D), None);
        assert!(p.granted(at(2), &[D]).is_empty(), "an answer older than the change grants nothing");
        assert_ne!(p.granted(at(4), &[D])[0].1, first);
    }

    #[test]
    fn promises_end_with_the_lease_and_are_not_revived() {
        let p = promises();
        let first = p.granted(at(1), &[D])[0].1;
        assert_eq!(p.grant_at(LEASE_MS - 1, &D), Some(first));
        assert_eq!(p.grant_at(LEASE_MS, &D), None);
        assert!(p.extend(LEASE_MS, LEASE_MS - 1, at(2)), "it had run out before the answer came");
        assert_eq!(p.grant_at(LEASE_MS + 1, &D), None);
        assert!(p.granted(at(1), &[D]).is_empty(), "an answer from before that comes late grants nothing");
        assert_ne!(p.granted(at(2), &[D])[0].1, first);
    }

    #[test]
    fn an_own_change_voids_what_was_cached_and_says_what_goes_on() {
        let p = promises();
        let first = p.granted(at(1), &[D])[0].1;
        let (granted, continued) = p.changed_here(5, at(2), &[D, C], &[D]);
        assert_ne!(granted[0].1, first);
        assert_eq!(continued, [Continued { promise: D, before: first, now: granted[0].1 }]);
        assert!(p.granted(at(1), &[C]).is_empty());
        // An answer that comes late, after a newer one's: its grant is over, and nothing goes on.
        let (granted, continued) = p.changed_here(6, at(1), &[D], &[D]);
        assert!(granted.is_empty() && continued.is_empty());
        assert_eq!(p.grant_at(7, &D), None);
    }

    #[test]
    fn a_change_that_was_answered_here_goes_on_under_what_stands() {
        let p = promises();
        let [(_, dir), (_, content)] = p.granted(at(1), &[D, C])[..] else { panic!("both are granted") };
        assert_eq!(p.settled(at(2), &[D, C], &[D]), [(C, content), (D, dir)]);
        assert_eq!(p.settled(at(3), &[C], &[]), [(C, content)], "whatever the answer grants");
        p.broken(at(4), &[C]);
        assert_eq!(p.settled(at(5), &[D, C], &[]), [(D, dir)]);
    }

    #[test]
    fn after_a_loss_nothing_older_is_granted() {
        let p = promises();
        p.granted(at(1), &[D]);
        p.drop_all(Some(at(5)));
        assert_eq!(p.grant_at(1, &D), None);
        assert!(p.granted(at(5), &[D]).is_empty());
        assert_eq!(p.granted(at(6), &[D]).len(), 1);
    }
}
