//! Directories whose listing is asked for before a program asks: each that it asks for itself costs a round trip.
//!
//! * A name that is looked for in a directory that is not known brings the first names of its listing along, the next one
//!   that is not among them more. So one directory costs two round trips, however many of its names are looked at.
//! * Who lists one directory of a tree after the other (find, ls -R, grep -r), or looks for names in one after the other
//!   (git status), finds the next ones listed.
//! * Both only where the answer may be kept; all is bounded by the constants below.

use super::Fs;
use super::cache::Known;
use super::dir::page_view;
use crate::client::{Patience, Reply, Submitted};
use crate::error::FsError;
use crate::inline;
use bytes::Bytes;
use lru::LruCache;
use proto::Ino;
use proto::message::Op;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Names that the first one brings along, and each later one.
const FIRST_ENTRIES: u32 = 64;
const MORE_ENTRIES: u32 = 1024;
/// So often one directory's names are asked for: a larger one is looked at name by name.
const MAX_PAGES: u32 = 8;
/// After this it may be tried again: promises have run out.
const TRIED_FOR: Duration = Duration::from_secs(8);
/// Directories of which is known how far they have been asked for.
const MAX_LOOKED: usize = 1024;

/// Directories of those that come next which are to be listed ahead, at first and at most.
const BATCH_FIRST: usize = 16;
const BATCH_MAX: usize = 64;
/// So many more directories are listed ahead than programs have listed of those.
const CREDIT: usize = 256;
/// How many more for each one that a program has come to, and for each other one: so a walk of those only that stand beside each
/// other costs little, and one that goes here and there no more than twice as much.
const CREDIT_BACK: usize = 2;
const CREDIT_BACK_MISSED: usize = 1;
/// Who looks for names goes through a tree when it has gone so often from a directory to one that is not inside.
const ASIDE: u32 = 2;
/// Directories that are known and may be listed next.
const MAX_NEXT: usize = 4096;
/// How deep below where it began a walk is followed.
const MAX_DEPTH: usize = 64;
/// Directories that a program has listed lately.
const MAX_LATELY: usize = 256;

/// What is being asked for, so that nobody asks for it once more.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<Mutex<BTreeMap<Ino, watch::Receiver<()>>>>);

/// One of these. It is over when this is dropped, which is to be after the answer has been learnt.
pub(super) struct Asking {
    ino: Ino,
    all: Asked,
    _over: watch::Sender<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.all.table().remove(&self.ino);
    }
}

impl Asked {
    fn table(&self) -> MutexGuard<'_, BTreeMap<Ino, watch::Receiver<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins it, unless it is under way.
    pub fn begin(&self, ino: Ino) -> Option<Asking> {
        match self.table().entry(ino) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                let (over, asked) = watch::channel(());
                free.insert(asked);
                Some(Asking { ino, all: self.clone(), _over: over })
            }
        }
    }

    pub fn is_under_way(&self, ino: Ino) -> bool {
        self.table().contains_key(&ino)
    }

    /// Waits for it, if it is under way. Whether it was.
    pub async fn arrives(&self, ino: Ino, patience: &Patience) -> Result<bool, FsError> {
        let asked = self.table().get(&ino).cloned();
        let Some(mut asked) = asked else { return Ok(false) };
        // Nothing is ever sent: it ends.
        let _ = patience.wait(asked.changed()).await?;
        Ok(true)
    }
}

/// How far a directory's names have been asked for.
struct Looked {
    pages: u32,
    since: Instant,
}

/// Where a directory stands in a walk through a tree: which one it is in the listing above it, for each step down from
/// where the walk began. What is inside comes right behind a directory, before what is beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Place(Vec<u32>);

impl Place {
    fn is_inside(&self, other: &Place) -> bool {
        self.0.starts_with(&other.0)
    }

    fn inside(&self, number: u32) -> Place {
        Place([&self.0[..], &[number]].concat())
    }
}

/// Who lists what. Pure.
#[derive(Debug)]
struct Walk {
    /// By a program.
    lately: LruCache<Ino, Place>,
    /// Known, and listed by no program since; those that are listed ahead are marked.
    next: BTreeMap<Place, (Ino, bool)>,
    places: BTreeMap<Ino, Place>,
    /// Where the program is.
    at: Place,
    /// How often it has gone from a directory to one that is not inside.
    aside: u32,
    /// Directories that came up without standing in a listing.
    unlisted: u32,
    batch: usize,
    credit: usize,
}

impl Default for Walk {
    fn default() -> Walk {
        let lately = LruCache::new(NonZeroUsize::new(MAX_LATELY).expect("the bound is not zero"));
        let (next, places) = (BTreeMap::new(), BTreeMap::new());
        Walk { lately, next, places, at: Place::default(), aside: 0, unlisted: 0, batch: 0, credit: CREDIT }
    }
}

impl Walk {
    /// Whether it was listed ahead and no program has listed it since.
    fn is_unread(&self, dir: Ino) -> bool {
        let place = self.places.get(&dir);
        place.and_then(|place| self.next.get(place)).is_some_and(|(_, is_asked)| *is_asked)
    }

    /// A program begins to list a directory, which was not known or had been asked for ahead.
    fn lists(&mut self, dir: Ino, parent: Option<Ino>) {
        if self.follows(dir, parent) {
            self.reaches_further();
        }
    }

    /// The same for one that looks for a name there: whoever only goes down to something goes through nothing.
    fn looks_into(&mut self, dir: Ino, parent: Option<Ino>) {
        if self.follows(dir, parent) && self.aside >= ASIDE {
            self.reaches_further();
        }
    }

    /// Whether a program that comes to this directory goes on with what it has been going through.
    fn follows(&mut self, dir: Ino, parent: Option<Ino>) -> bool {
        let was_ahead = self.is_unread(dir);
        let follows = was_ahead || parent.is_some_and(|parent| self.lately.contains(&parent));
        let back = if was_ahead { CREDIT_BACK } else { CREDIT_BACK_MISSED };
        let credit = if follows { (self.credit + back).min(CREDIT) } else { self.credit };
        if !follows {
            // Another tree.
            *self = Walk::default();
        }
        self.credit = credit;
        self.goes_to(dir, parent);
        follows
    }

    fn reaches_further(&mut self) {
        self.batch = if self.batch == 0 { BATCH_FIRST } else { (self.batch * 2).min(BATCH_MAX) };
    }

    /// A program lists a directory.
    fn goes_to(&mut self, dir: Ino, parent: Option<Ino>) {
        let known = self.places.get(&dir).or_else(|| self.lately.peek(&dir)).cloned();
        let place = known.or_else(|| self.unlisted(parent?)).unwrap_or_default();
        self.forget(&place);
        self.aside = self.aside.saturating_add(u32::from(!place.is_inside(&self.at)));
        self.at.clone_from(&place);
        self.lately.put(dir, place);
    }

    /// A place for a directory that is in none of the listings: behind those that are.
    fn unlisted(&mut self, parent: Ino) -> Option<Place> {
        self.unlisted = self.unlisted.wrapping_add(1);
        let number = u32::MAX / 2 + self.unlisted % (u32::MAX / 2);
        Some(self.lately.peek(&parent)?.inside(number))
    }

    fn forget(&mut self, place: &Place) {
        if let Some((dir, _)) = self.next.remove(place) {
            self.places.remove(&dir);
        }
    }

    /// These stand in a directory that has been listed.
    fn found(&mut self, dir: Ino, inside: &[Ino]) {
        let Some(place) = self.places.get(&dir).or_else(|| self.lately.peek(&dir)).cloned() else { return };
        if place.0.len() >= MAX_DEPTH {
            return;
        }
        for (number, dir) in (0..).zip(inside) {
            if !self.lately.contains(dir) && !self.places.contains_key(dir) {
                let place = place.inside(number);
                // The listing may be another one by now.
                self.forget(&place);
                self.next.insert(place.clone(), (*dir, false));
                self.places.insert(*dir, place);
            }
        }
        while self.next.len() > MAX_NEXT {
            self.forget_last();
        }
    }

    /// Forgets what is the last to be listed: what the program has passed, if there is any.
    fn forget_last(&mut self) {
        let passed = self.next.range(..&self.at).next_back();
        if let Some(place) = passed.or_else(|| self.next.last_key_value()).map(|(place, _)| place.clone()) {
            self.forget(&place);
        }
    }

    /// What is to be asked for now: many at once, as soon as one is missing in the first half of what comes next.
    fn due(&mut self) -> Vec<Ino> {
        // What was passed may be a program's that goes by name, and then it is still to come.
        let order = self.next.range(&self.at..).chain(self.next.range(..&self.at));
        let coming: Vec<(Place, Ino, bool)> =
            order.take(self.batch).map(|(place, (dir, is_asked))| (place.clone(), *dir, *is_asked)).collect();
        if coming.iter().take(self.batch.div_ceil(2)).all(|(_, _, is_asked)| *is_asked) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for (place, dir, _) in coming.into_iter().filter(|(_, _, is_asked)| !is_asked) {
            if self.credit == 0 {
                break;
            }
            self.next.insert(place, (dir, true));
            self.credit -= 1;
            due.push(dir);
        }
        due
    }

    /// Those that come next and are listed, or on their way, at most so many.
    fn coming(&self, most: usize) -> Vec<Ino> {
        let listed = self.next.range(&self.at..).filter(|(_, (_, is_asked))| *is_asked);
        listed.take(most).map(|(_, (dir, _))| *dir).collect()
    }
}

pub(super) struct Ahead {
    looked: Mutex<LruCache<Ino, Looked>>,
    walk: Mutex<Walk>,
    listings: Asked,
}

impl Default for Ahead {
    fn default() -> Ahead {
        let looked = LruCache::new(NonZeroUsize::new(MAX_LOOKED).expect("the bound is not zero"));
        Ahead { looked: Mutex::new(looked), walk: Mutex::default(), listings: Asked::default() }
    }
}

impl Ahead {
    fn looked(&self) -> MutexGuard<'_, LruCache<Ino, Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn walk(&self) -> MutexGuard<'_, Walk> {
        self.walk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs {
    /// A name of the directory was not known: the next ones shall be.
    pub(super) fn look_around(&self, dir: Ino) {
        let after = match self.cache().known_of(self.promises(), dir) {
            Known::All => return,
            Known::UpTo(hash) => hash,
            Known::Nothing => 0,
        };
        let (limit, asking) = {
            let mut looked = self.inner.ahead.looked();
            let now = Instant::now();
            let of = looked.get_or_insert_mut(dir, || Looked { pages: 0, since: now });
            let is_long_ago = now.duration_since(of.since) > TRIED_FOR;
            if of.pages >= MAX_PAGES && !is_long_ago {
                return;
            }
            let Some(asking) = self.inner.ahead.listings.begin(dir) else { return };
            self.inner.ahead.walk().looks_into(dir, self.parent(dir));
            if is_long_ago {
                *of = Looked { pages: 0, since: now };
            }
            of.pages += 1;
            (if of.pages == 1 { FIRST_ENTRIES } else { MORE_ENTRIES }, asking)
        };
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            // Behind the question for the name.
            let asked = fs.inner.client.submit(Op::View(page_view(dir, after, limit)), Bytes::new());
            if let Some(reply) = Fs::had_ahead(asked, &fs.ahead_patience()).await {
                let _ = fs.learn_page(after, reply);
                fs.walk_on(dir);
            }
            let is_kept = !matches!(fs.cache().known_of(fs.promises(), dir), Known::Nothing);
            if !is_kept && let Some(of) = fs.inner.ahead.looked().get_mut(&dir) {
                of.pages = MAX_PAGES;
            }
            drop(asking);
        });
    }

    /// The answer to what nobody waits for. What cannot be had ahead will be asked for, and then says why.
    pub(super) async fn had_ahead(submitted: Submitted, patience: &Patience) -> Option<Reply> {
        patience.wait(submitted).await.ok()?.ok()
    }

    /// How long that is waited for.
    pub(super) fn ahead_patience(&self) -> Patience {
        Patience::within(self.inner.config.close_timeout)
    }

    /// A program asks for a directory's listing itself, unless it has been asked for already.
    pub(super) fn asks_for_listing(&self, dir: Ino) -> Option<Asking> {
        self.inner.ahead.listings.begin(dir)
    }

    /// Waits for a listing that has been asked for, if it is under way. Whether it was.
    pub(super) async fn listing_arrives(&self, dir: Ino, patience: &Patience) -> Result<bool, FsError> {
        self.inner.ahead.listings.arrives(dir, patience).await
    }

    /// A program looks for a name in a directory that is known: it may have been asked for ahead.
    pub(super) fn looks_into(&self, dir: Ino) {
        {
            let mut walk = self.inner.ahead.walk();
            if !walk.is_unread(dir) {
                return;
            }
            walk.looks_into(dir, self.parent(dir));
        }
        self.walk_on(dir);
    }

    /// Directories that a program is thought to come to next, and that have been asked for, at most so many.
    pub(super) fn coming(&self, most: usize) -> Vec<Ino> {
        self.inner.ahead.walk().coming(most)
    }

    fn parent(&self, dir: Ino) -> Option<Ino> {
        self.cache().attr_once(dir).and_then(|attr| attr.parent)
    }

    /// A program begins to list a directory: who follows it through the tree is to find the next ones listed.
    pub(super) fn walks(&self, dir: Ino, was_known: bool) {
        {
            let mut walk = self.inner.ahead.walk();
            let parent = self.parent(dir);
            // What was known all along needs nobody's help.
            if was_known && !walk.is_unread(dir) {
                walk.goes_to(dir, parent);
                return;
            }
            walk.lists(dir, parent);
        }
        self.walk_on(dir);
    }

    /// The directory is known: those in it may be next.
    fn walk_on(&self, dir: Ino) {
        let dirs = self.cache().dirs_in(self.promises(), dir, MAX_NEXT);
        let due = {
            let mut walk = self.inner.ahead.walk();
            walk.found(dir, &dirs);
            walk.due()
        };
        // First it begins: a program that asks itself meanwhile has learnt the answer by the time that it begins.
        let begin = |dir: Ino| Some((dir, self.inner.ahead.listings.begin(dir)?));
        let begun = due.into_iter().filter_map(begin);
        let (known, unknown): (Vec<_>, Vec<_>) = begun.partition(|(dir, _)| self.is_listed(*dir));
        let views = unknown.iter().map(|(dir, _)| page_view(*dir, 0, MORE_ENTRIES)).collect();
        let submitted = self.inner.client.look_ahead(views);
        for ((dir, asking), submitted) in unknown.into_iter().zip(submitted) {
            let (fs, patience) = (Arc::downgrade(&self.inner), self.ahead_patience());
            inline::start(&self.inner.runtime, async move {
                let reply = Fs::had_ahead(submitted, &patience).await;
                let Some(fs) = Fs::if_there(&fs) else { return };
                let is_told = reply.is_some_and(|reply| fs.learn_page(0, reply).is_ok());
                drop(asking);
                if is_told {
                    fs.walk_on(dir);
                }
            });
        }
        // Nobody will miss these; what is below may be.
        let known: Vec<Ino> = known.into_iter().map(|(dir, _)| dir).collect();
        known.into_iter().for_each(|dir| self.walk_on(dir));
    }

    fn is_listed(&self, dir: Ino) -> bool {
        matches!(self.cache().known_of(self.promises(), dir), Known::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inos(numbers: std::ops::Range<u64>) -> Vec<Ino> {
        numbers.map(Ino).collect()
    }

    #[test]
    fn who_goes_through_a_tree_gets_more_and_more_ahead() {
        let mut walk = Walk::default();
        walk.lists(Ino(1), None);
        walk.found(Ino(1), &inos(10..1000));
        assert_eq!(walk.due(), [], "one directory is no walk");
        walk.lists(Ino(10), Some(Ino(1)));
        assert_eq!(walk.due(), inos(11..11 + BATCH_FIRST as u64));
        for dir in 11..900 {
            assert!(walk.is_unread(Ino(dir)), "always ahead");
            walk.lists(Ino(dir), Some(Ino(1)));
            let _ = walk.due();
            assert!(walk.next.values().filter(|(_, is_asked)| *is_asked).count() <= BATCH_MAX);
        }
        assert!(walk.is_unread(Ino(900)));
    }

    #[test]
    fn what_is_inside_comes_before_what_is_beside() {
        let mut walk = Walk::default();
        walk.lists(Ino(1), None);
        walk.found(Ino(1), &inos(10..200));
        walk.lists(Ino(10), Some(Ino(1)));
        assert_eq!(walk.due(), inos(11..27));
        // All of these have come, the last one first, before the program goes on.
        walk.found(Ino(12), &inos(1200..1205));
        assert_eq!(walk.due(), inos(1200..1205), "though enough are ahead");
        walk.found(Ino(11), &inos(1100..1105));
        assert_eq!(walk.due(), inos(1100..1105));
        for dir in [11].into_iter().chain(1100..1105).chain([12]).chain(1200..1205) {
            assert!(walk.is_unread(Ino(dir)), "{dir}");
            walk.lists(Ino(dir), Some(Ino(1)));
        }
        // Whoever goes the other way round finds them as well.
        walk.lists(Ino(26), Some(Ino(1)));
        assert!(inos(13..26).into_iter().all(|dir| walk.is_unread(dir)));
    }

    #[test]
    fn what_nobody_lists_is_bounded() {
        let mut walk = Walk::default();
        let mut asked = 0;
        walk.lists(Ino(1), None);
        for dir in 2..2000 {
            walk.lists(Ino(dir), Some(Ino(1)));
            walk.found(Ino(dir), &inos(dir * 10_000..dir * 10_000 + 100));
            asked += walk.due().len();
            assert!(walk.next.len() <= MAX_NEXT && walk.next.len() == walk.places.len());
        }
        assert!(asked <= CREDIT + 2000, "{asked}");
    }

    #[test]
    fn who_looks_for_names_goes_through_a_tree_when_it_goes_from_one_to_the_next() {
        let mut walk = Walk::default();
        walk.looks_into(Ino(1), None);
        walk.found(Ino(1), &inos(10..60));
        walk.looks_into(Ino(10), Some(Ino(1)));
        walk.found(Ino(10), &inos(1000..1005));
        walk.looks_into(Ino(1000), Some(Ino(10)));
        assert_eq!(walk.due(), [], "it goes down");
        walk.looks_into(Ino(11), Some(Ino(1)));
        assert_eq!(walk.due(), [], "and to another one");
        walk.looks_into(Ino(12), Some(Ino(1)));
        assert_eq!(walk.due(), inos(13..29));
    }

    #[test]
    fn who_goes_here_and_there_costs_little_more() {
        let mut walk = Walk::default();
        let mut asked = 0;
        for dir in 0..1000 {
            let top = dir * 1_000_000;
            walk.looks_into(Ino(top), None);
            for number in 1..5 {
                walk.found(Ino(top), &inos(top + 1..top + 100));
                walk.looks_into(Ino(top + number * 20), Some(Ino(top)));
                asked += walk.due().len();
            }
        }
        assert!(asked <= CREDIT + 4000, "{asked}");
    }

    #[test]
    fn another_tree_begins_anew() {
        let mut walk = Walk::default();
        walk.lists(Ino(1), None);
        walk.lists(Ino(2), Some(Ino(1)));
        walk.found(Ino(2), &[Ino(3)]);
        walk.lists(Ino(70), Some(Ino(69)));
        assert_eq!((walk.due(), walk.batch), (vec![], 0));
    }
}
