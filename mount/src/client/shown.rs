//! What the kernel was told it may keep for a while: names and attributes in places that are delegated to this session.
//!
//! * Nothing may be kept longer than [`KEEP_MS`], nor than promises count.
//! * What is shown is noted in the step that finds the delegation standing, and what a recall concerns is taken from here
//!   after the delegation has ended: so none is missed.
//! * An operation that began before a recall is shown nothing to keep: what it found may be from before.
//! * The recall is confirmed when the kernel has forgotten, or may not keep it any more: the core's [`super::core`] gate.
//! * Bounded: at most [`MAX_SHOWN`] names and inodes; others are to be asked for again each time.

use super::promises::Promises;
use proto::message::Promise;
use proto::planted::{Bug, planted};
use proto::{Ino, Name};
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The kernel keeps nothing longer, in milliseconds. It is what a recall waits for where the kernel cannot be told: it
/// takes a name back only when no lookup in its directory is under way.
pub const KEEP_MS: u64 = 1_000;

/// Names and inodes that may be noted at once.
const MAX_SHOWN: usize = 1 << 16;

/// What the kernel is to forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forget {
    /// Their attributes.
    pub inodes: Vec<Ino>,
    pub names: Vec<(Ino, Name)>,
    /// It has forgotten by itself at this moment, in milliseconds of [`proto::clock::monotonic_ms`].
    pub until_ms: u64,
}

impl Forget {
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.names.is_empty()
    }
}

/// Before an operation looks at anything: see [`Shown::since`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(u64);

#[derive(Default)]
pub struct Shown {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    places: HashMap<Promise, Place>,
    /// Names and inodes in all of them.
    count: usize,
    recalls: u64,
    until_ms: u64,
}

#[derive(Default)]
struct Place {
    until_ms: u64,
    inodes: HashSet<Ino>,
    names: HashSet<Name>,
}

impl Shown {
    /// To be taken before an operation looks at anything that it is to show.
    pub fn since(&self) -> Since {
        Since(self.table().recalls)
    }

    /// How long the kernel may keep the attributes of an inode that this covers.
    pub fn attributes(&self, promises: &Promises, since: Since, covering: Promise, ino: Ino) -> Duration {
        self.show(promises, since, covering, |place| place.inodes.insert(ino))
    }

    /// How long the kernel may keep what a name in a directory is, or that it is absent.
    pub fn name(&self, promises: &Promises, since: Since, dir: Ino, name: &Name) -> Duration {
        self.show(promises, since, Promise::Dir(dir), |place| place.names.insert(name.clone()))
    }

    fn show(
        &self,
        promises: &Promises,
        since: Since,
        promise: Promise,
        note: impl FnOnce(&mut Place) -> bool,
    ) -> Duration {
        let now_ms = proto::clock::monotonic_ms();
        let mut table = self.table();
        let table = &mut *table;
        if table.recalls != since.0 {
            return Duration::ZERO;
        }
        let Some(until_ms) = promises.delegated_until_ms(now_ms, &promise) else { return Duration::ZERO };
        if table.count >= MAX_SHOWN {
            table.forget_lapsed(now_ms);
            if table.count >= MAX_SHOWN {
                return Duration::ZERO;
            }
        }
        let until_ms = until_ms.min(now_ms + KEEP_MS);
        table.until_ms = table.until_ms.max(until_ms);
        let place = table.places.entry(promise).or_default();
        if place.until_ms <= now_ms {
            table.count -= std::mem::take(place).len();
        }
        place.until_ms = place.until_ms.max(until_ms);
        table.count += usize::from(note(place));
        Duration::from_millis(until_ms.saturating_sub(now_ms))
    }

    /// What the kernel may keep of these, of which nothing is shown any more. The delegations have ended.
    pub fn recall(&self, things: &[Promise]) -> Forget {
        let mut table = self.table();
        let places: Vec<_> =
            things.iter().filter_map(|thing| table.places.remove(thing).map(|place| (*thing, place))).collect();
        table.taken(places)
    }

    /// The same of everything.
    pub fn recall_all(&self) -> Forget {
        let mut table = self.table();
        let places = std::mem::take(&mut table.places);
        table.taken(places)
    }

    /// The kernel keeps nothing from then on that has been shown before now.
    pub(super) fn until_ms(&self) -> u64 {
        self.table().until_ms
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each step leaves it noting all that is shown, or more.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Nothing is shown of these any more.
    fn taken(&mut self, places: impl IntoIterator<Item = (Promise, Place)>) -> Forget {
        self.recalls += 1;
        let mut forget = Forget::default();
        for (thing, place) in places {
            self.count -= place.len();
            place.into(&thing, &mut forget);
        }
        if planted(Bug::KernelKeepsRecalled) { Forget::default() } else { forget }
    }

    fn forget_lapsed(&mut self, now_ms: u64) {
        self.places.retain(|_, place| place.until_ms > now_ms);
        self.count = self.places.values().map(Place::len).sum();
    }
}

impl Place {
    fn len(&self) -> usize {
        self.inodes.len() + self.names.len()
    }

    fn into(self, thing: &Promise, forget: &mut Forget) {
        forget.until_ms = forget.until_ms.max(self.until_ms);
        forget.inodes.extend(self.inodes);
        if let Promise::Dir(dir) = thing {
            forget.names.extend(self.names.into_iter().map(|name| (*dir, name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::LEASE_MS;
    use proto::{Epoch, Position};

    const D: Promise = Promise::Dir(Ino(1));

    fn delegated() -> Promises {
        let promises = Promises::default();
        let (now_ms, at) = (proto::clock::monotonic_ms(), Position { epoch: Epoch(1), ..Position::default() });
        promises.extend(now_ms, now_ms, at);
        promises.granted(at, &[D, Promise::Dir(Ino(2))]);
        promises.delegated(&[D]);
        promises
    }

    fn name() -> Name {
        Name::new(b"n").expect("a name")
    }

    #[test]
    fn only_what_is_delegated_is_kept_and_forgotten_when_it_is_recalled() {
        let (shown, promises) = (Shown::default(), delegated());
        let since = shown.since();
        assert_eq!(shown.name(&promises, since, Ino(2), &name()), Duration::ZERO, "promised only");
        let kept = shown.name(&promises, since, Ino(1), &name());
        assert!(kept > Duration::from_millis(KEEP_MS / 2) && kept <= Duration::from_millis(KEEP_MS), "{kept:?}");
        assert!(!shown.attributes(&promises, since, D, Ino(7)).is_zero());
        assert!(shown.recall(&[Promise::Dir(Ino(2))]).is_empty());
        promises.broken(Position::default(), &[D]);
        let forget = shown.recall(&[D]);
        assert_eq!((forget.inodes, forget.names), (vec![Ino(7)], vec![(Ino(1), name())]));
        assert!(shown.recall(&[D]).is_empty(), "once");
    }

    /// It may have looked before, and be told that it may keep that after the place has been delegated once more.
    #[test]
    fn an_operation_from_before_a_recall_keeps_nothing() {
        let (shown, promises) = (Shown::default(), delegated());
        let since = shown.since();
        shown.recall(&[D]);
        assert_eq!(shown.attributes(&promises, since, D, Ino(7)), Duration::ZERO);
        assert!(!shown.attributes(&promises, shown.since(), D, Ino(7)).is_zero());
    }

    #[test]
    fn nothing_is_kept_longer_than_promises_count() {
        let (shown, promises) = (Shown::default(), Promises::default());
        let (now_ms, at) = (proto::clock::monotonic_ms(), Position { epoch: Epoch(1), ..Position::default() });
        promises.extend(now_ms, (now_ms + 100).saturating_sub(LEASE_MS), at);
        promises.granted(at, &[D]);
        promises.delegated(&[D]);
        assert!(shown.attributes(&promises, shown.since(), D, Ino(7)) <= Duration::from_millis(100));
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let shown = Shown::default();
        let promises = delegated();
        let since = shown.since();
        let show = |ino| shown.attributes(&promises, since, D, Ino(ino));
        let kept = (0..2 * MAX_SHOWN as u64).filter(|ino| !show(*ino).is_zero()).count();
        // A slow machine may see the first ones lapse.
        assert!(kept >= MAX_SHOWN && shown.recall_all().inodes.len() <= MAX_SHOWN, "{kept}");
        assert_eq!(shown.table().count, 0);
    }
}
