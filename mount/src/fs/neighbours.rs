//! Reading ahead from file to file. Programs that look through a tree (grep, tar, cp)
//! open one small file of a directory after the other, and each costs a round trip; so
//! those that come next are asked for side by side, content included: in the order of its listing, or in which they were
//! made, which is that of names in what git and tar have written, and of numbers in what programs have.
//!
//! * Nothing is asked for twice, and what is asked for is what a reader of the whole
//!   directory asks for anyway.
//! * Only in a directory that is known as a whole, so that this itself asks for nothing.
//! * Who has read through a directory goes on in the next ones, as far as they are listed (`ahead.rs`).
//! * How many may be ahead of what is opened is learnt from how many of them were opened, over all directories: from
//!   [`BATCH_FIRST`] to [`UNREAD_MAX`]. Who reads here and there is left alone for longer and longer.

use super::Fs;
use super::ahead::{Asked, Asking};
use super::cache::CachedEntry;
use super::file::content_view;
use crate::client::Patience;
use crate::error::FsError;
use crate::inline;
use lru::LruCache;
use proto::Ino;
use proto::chunk::CHUNK_BYTES;
use proto::message::{Attr, FileKind};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// Files that are opened and waited for before others are thought to follow, at first and at most.
const BEGIN_AFTER: u32 = 3;
const BEGIN_AFTER_MAX: u32 = 192;
/// So many files of a directory are opened and waited for, and none of those that were thought to come next: these do not.
const MISSED_MAX: u32 = 4;
/// Files asked for at once, at first and at most.
const BATCH_FIRST: usize = 8;
const BATCH_MAX: usize = 64;
/// Files that have been asked for and not opened.
const UNREAD_MAX: usize = 128;
/// Directories in which it is known what was opened.
const MAX_DIRS: usize = 64;
/// Of a directory with more entries the order in which they were made is not looked at.
const MAX_SORTED: usize = 4096;
/// So many opened as expected, less those that were not: then what comes next is asked for over all directories.
const TRUSTED: usize = BATCH_MAX / 2;
/// Directories that are looked at for that.
const MAX_COMING: usize = 32;
/// Asked for with one record: the first ones are not to wait for the last ones.
const AT_ONCE: usize = 16;
/// Of so much content as one chunk can hold a file is small; and of those with one record no more than this is fetched, in
/// bytes, unless it comes along.
const SMALL_BYTES: u64 = CHUNK_BYTES as u64;
const AT_ONCE_BYTES: u64 = 1 << 20;

/// Who opens what. Pure.
#[derive(Debug)]
struct Reads {
    dirs: LruCache<Ino, Walk>,
    /// Asked for ahead, and not opened since, each with its directory; the oldest ones first.
    unread: LruCache<Ino, Ino>,
    /// How many of those asked for were opened, less those that were not; from 0 to [`BATCH_MAX`].
    score: usize,
    /// Files waited for since something was last asked for in vain, and how many it takes to ask again.
    waited: u32,
    begin_after: u32,
}

/// One directory.
#[derive(Debug, Default)]
struct Walk {
    /// Of the unread ones, and how many were asked for the last time.
    ahead: usize,
    batch: usize,
    /// Files that were opened and waited for since others were asked for ahead, or one of those was opened.
    missed: u32,
    /// How far into the listing has been looked, and whether nothing is left to be asked for.
    after: u64,
    is_done: bool,
    /// How often a file was opened that was made after the one before, of how many.
    later: u32,
    opens: u32,
    last: Option<Ino>,
    /// How far it has been looked in the order of making.
    made_upto: Ino,
}

impl Default for Reads {
    fn default() -> Reads {
        Reads {
            dirs: LruCache::new(NonZeroUsize::new(MAX_DIRS).expect("the bound is not zero")),
            unread: LruCache::unbounded(),
            score: 0,
            waited: 0,
            begin_after: BEGIN_AFTER,
        }
    }
}

impl Reads {
    fn dir(&mut self, dir: Ino) -> &mut Walk {
        self.dirs.get_or_insert_mut(dir, Walk::default)
    }

    /// A file has been opened, and was waited for or not. How many more should be asked for.
    fn opened(&mut self, dir: Ino, ino: Ino, waited: bool) -> usize {
        let was_ahead = self.unread.pop(&ino).is_some();
        self.waited += u32::from(waited);
        if was_ahead {
            (self.score, self.begin_after) = ((self.score + 1).min(BATCH_MAX), BEGIN_AFTER);
        }
        let walk = self.dir(dir);
        if let Some(last) = walk.last.replace(ino) {
            walk.opens += 1;
            walk.later += u32::from(ino > last);
        }
        walk.ahead = walk.ahead.saturating_sub(usize::from(was_ahead));
        walk.missed = if was_ahead { 0 } else { walk.missed + u32::from(waited) };
        if walk.ahead > 0 && walk.missed >= MISSED_MAX {
            self.is_not_coming(dir);
            return 0;
        }
        if waited && !was_ahead && walk.is_done {
            // What was known is not any more.
            (walk.after, walk.is_done) = (0, false);
        }
        // While half of the last ones are being read the next ones come.
        let is_due_here = walk.ahead <= walk.batch / 2;
        let mut batch = if walk.batch == 0 { BATCH_FIRST } else { (walk.batch * 2).min(BATCH_MAX) };
        let most = (BATCH_FIRST + 2 * self.score).min(UNREAD_MAX);
        let is_due_anywhere = self.is_trusted() && self.unread.len() <= most / 2;
        if !(was_ahead || waited) || !(is_due_here || is_due_anywhere) || self.waited < self.begin_after {
            return 0;
        }
        if is_due_anywhere {
            batch = BATCH_MAX;
        }
        let room = most.saturating_sub(self.unread.len());
        if room == 0 && waited && !was_ahead {
            self.was_in_vain();
        }
        let more = batch.min(room);
        if more > 0 {
            self.dir(dir).batch = batch;
        }
        more
    }

    /// Whoever opens files goes through a tree.
    fn is_trusted(&self) -> bool {
        self.score >= TRUSTED
    }

    /// What was asked for of a directory is not what is opened in it.
    fn is_not_coming(&mut self, dir: Ino) {
        let of_dir: Vec<Ino> = self.unread.iter().filter(|(_, of)| **of == dir).map(|(ino, _)| *ino).collect();
        self.score = self.score.saturating_sub(of_dir.len());
        for ino in of_dir {
            self.unread.pop(&ino);
        }
        let walk = self.dir(dir);
        (walk.ahead, walk.batch, walk.missed) = (0, 0, 0);
        if self.score == 0 {
            (self.waited, self.begin_after) = (0, (self.begin_after * 2).min(BEGIN_AFTER_MAX));
        }
    }

    /// As many as may be ahead are not opened.
    fn was_in_vain(&mut self) {
        if let Some((_, dir)) = self.unread.pop_lru()
            && let Some(walk) = self.dirs.peek_mut(&dir)
        {
            walk.ahead = walk.ahead.saturating_sub(1);
        }
        if self.score == 0 {
            (self.waited, self.begin_after) = (0, (self.begin_after * 2).min(BEGIN_AFTER_MAX));
            self.unread.clear();
            self.dirs.clear();
        }
        self.score = self.score.saturating_sub(1);
    }

    /// These of a directory are asked for. Gives those that were not yet.
    fn asks(&mut self, dir: Ino, mut inos: Vec<Ino>) -> Vec<Ino> {
        inos.retain(|ino| self.unread.put(*ino, dir).is_none());
        let walk = self.dir(dir);
        if walk.ahead == 0 {
            walk.missed = 0;
        }
        walk.ahead += inos.len();
        inos
    }
}

impl Walk {
    /// They are opened in the order in which they were made.
    fn is_by_age(&self) -> bool {
        self.opens >= 2 && self.later * 5 >= self.opens * 4
    }
}

/// Its content may come before it is asked for.
fn is_small(attr: &Attr) -> bool {
    attr.size > 0 && attr.size <= SMALL_BYTES
}

#[derive(Default)]
pub struct Neighbours {
    reads: Mutex<Reads>,
    /// No more than have not been opened.
    asked: Asked,
}

impl Fs {
    /// Whether something about a file is being asked ahead.
    pub(super) fn is_neighbour_asked(&self, ino: Ino) -> bool {
        self.inner.neighbours.asked.is_under_way(ino)
    }

    /// Waits for what has been asked ahead about a file, if something has.
    pub(super) async fn neighbour_arrives(&self, ino: Ino, patience: &Patience) -> Result<(), FsError> {
        self.inner.neighbours.asked.arrives(ino, patience).await.map(|_| ())
    }

    /// Notes that a file has been opened, and sets on its way what will be opened next.
    pub(super) fn read_neighbours(&self, ino: Ino, waited: bool) {
        let Some((dir, is_small)) = self.cache().attr_once(ino).and_then(|attr| Some((attr.parent?, is_small(&attr))))
        else {
            return;
        };
        // Others are never asked for ahead, so that one is waited for says nothing.
        let waited = waited && is_small;
        let mut reads = self.inner.neighbours.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = reads.opened(dir, ino, waited);
        if wanted == 0 {
            return;
        }
        let next = self.next_in(&mut reads, dir, ino, wanted);
        let mut next = reads.asks(dir, next);
        if reads.is_trusted() && next.len() < wanted {
            for coming in self.coming(MAX_COMING) {
                let more = self.next_listed(reads.dir(coming), coming, ino, wanted - next.len());
                next.extend(reads.asks(coming, more));
                if next.len() >= wanted {
                    break;
                }
            }
        }
        drop(reads);
        self.ask_ahead(next);
    }

    /// So many that come next in the directory in which this one is opened.
    fn next_in(&self, reads: &mut Reads, dir: Ino, ino: Ino, wanted: usize) -> Vec<Ino> {
        let walk = reads.dir(dir);
        if walk.is_done {
            return Vec::new();
        }
        let all = if walk.is_by_age() { self.cache().listing(self.promises(), dir, 0, MAX_SORTED) } else { None };
        match all {
            Some(mut all) if all.len() < MAX_SORTED => {
                all.sort_unstable_by_key(|entry| entry.ino);
                let from = walk.made_upto.max(ino);
                let later = all.partition_point(|entry| entry.ino <= from);
                // From the first one on again: some may have been left out.
                let round = all[later..].iter().chain(&all[..later]).filter(|entry| self.is_ahead(entry, ino));
                let next: Vec<Ino> = round.take(wanted).map(|entry| entry.ino).collect();
                walk.made_upto = next.last().copied().unwrap_or(from);
                walk.is_done = next.is_empty();
                next
            }
            _ => self.next_listed(walk, dir, ino, wanted),
        }
    }

    /// So many that come next in the listing.
    fn next_listed(&self, walk: &mut Walk, dir: Ino, but: Ino, wanted: usize) -> Vec<Ino> {
        let mut next = Vec::new();
        while next.len() < wanted
            && !walk.is_done
            && let Some(entries) = self.cache().listing(self.promises(), dir, walk.after, BATCH_MAX)
        {
            let Some(last) = entries.last() else {
                walk.is_done = true;
                break;
            };
            walk.after = last.hash;
            for entry in entries.iter().filter(|entry| self.is_ahead(entry, but)) {
                if next.len() == wanted {
                    walk.after = entry.hash - 1;
                    break;
                }
                next.push(entry.ino);
            }
        }
        next
    }

    /// A small file whose content is not known; `but` is being opened, and asked for by itself.
    fn is_ahead(&self, entry: &CachedEntry, but: Ino) -> bool {
        entry.kind == FileKind::File
            && entry.ino != but
            && entry.attr.as_ref().is_some_and(is_small)
            && self.known_version(entry.ino).is_none()
    }

    fn ask_ahead(&self, inos: Vec<Ino>) {
        let begin = |ino: Ino| Some((ino, self.inner.neighbours.asked.begin(ino)?));
        let mut begun: Vec<_> = inos.into_iter().filter_map(begin).collect();
        while !begun.is_empty() {
            let later = begun.split_off(begun.len().min(AT_ONCE));
            self.ask_together(begun);
            begun = later;
        }
    }

    fn ask_together(&self, begun: Vec<(Ino, Asking)>) {
        let submitted = self.inner.client.look_ahead(begun.iter().map(|(ino, _)| content_view(*ino)).collect());
        let (fs, patience) = (Arc::downgrade(&self.inner), self.ahead_patience());
        inline::start(&self.inner.runtime, async move {
            let (mut parts, mut bytes) = (Vec::new(), 0);
            for ((ino, _), submitted) in begun.iter().zip(submitted) {
                let reply = Fs::had_ahead(submitted, &patience).await;
                let Some(fs) = Fs::if_there(&fs) else { return };
                if let Some(reply) = reply {
                    fs.learn_extents(0, reply);
                    let content = fs.cache().content(fs.promises(), *ino, 0, SMALL_BYTES);
                    if let Some(content) = content.filter(|content| bytes + content.size <= AT_ONCE_BYTES) {
                        bytes += content.size;
                        parts.extend(content.parts.unwrap_or_default());
                    }
                }
            }
            let Some(fs) = Fs::if_there(&fs) else { return };
            // What did not come along, side by side too.
            fs.load_all(&parts, None);
            drop(begun);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens a file, and asks for as many after `from` as are due. Gives how many.
    fn open(reads: &mut Reads, (dir, ino): (u64, u64), waited: bool, from: u64) -> u64 {
        let more = reads.opened(Ino(dir), Ino(ino), waited) as u64;
        reads.asks(Ino(dir), (from..from + more).map(Ino).collect()).len() as u64
    }

    #[test]
    fn who_opens_one_file_after_the_other_gets_more_and_more_ahead() {
        let mut reads = Reads::default();
        assert_eq!([1, 2].map(|ino| open(&mut reads, (1, ino), true, 0)), [0, 0]);
        let mut end = 4 + open(&mut reads, (1, 3), true, 4);
        assert_eq!(end, 4 + BATCH_FIRST as u64);
        for ino in 4..400 {
            assert!(ino < end, "it was not asked for in time");
            end += open(&mut reads, (1, ino), false, end);
        }
        assert!(end >= 399 + BATCH_MAX as u64 / 2, "{end}");
    }

    #[test]
    fn who_opens_others_costs_little_more() {
        let mut reads = Reads::default();
        let mut asked = 0;
        for ino in 0..10_000 {
            asked += open(&mut reads, (1 + ino % 7, ino), true, 1_000_000 + asked);
        }
        assert!(asked <= 1000, "{asked}");
        // After a walk too.
        let mut reads = Reads::default();
        let mut end = 4;
        for ino in 1..1000 {
            end += open(&mut reads, (1, ino), ino < 4, end);
        }
        let before = end;
        for ino in 0..10_000 {
            end += open(&mut reads, (2, 1_000_000 + ino), true, end);
        }
        assert!(end - before <= 1000, "{}", end - before);
    }

    #[test]
    fn what_was_learnt_in_one_directory_counts_in_the_next() {
        let mut reads = Reads::default();
        let mut end = 4;
        for ino in 1..40 {
            end += open(&mut reads, (1, ino), ino < 4, end);
        }
        assert_eq!(open(&mut reads, (2, 900), true, 901), BATCH_FIRST as u64, "from the first file on");
        // And where it was left for another one.
        assert_eq!(open(&mut reads, (1, 40), false, end), 0, "enough are ahead");
        // What is known already needs nobody's help.
        let mut reads = Reads::default();
        assert!((0..100).all(|ino| open(&mut reads, (1, ino), false, 0) == 0));
    }

    #[test]
    fn one_file_that_is_none_of_those_ahead_changes_nothing() {
        let mut reads = Reads::default();
        for ino in 1..4 {
            open(&mut reads, (1, ino), true, 4);
        }
        open(&mut reads, (1, 900), true, 0);
        assert_eq!(reads.unread.len(), BATCH_FIRST);
        assert_eq!(open(&mut reads, (1, 4), false, 1000), 0);
        assert_eq!((reads.unread.len(), reads.score), (BATCH_FIRST - 1, 1));
    }

    #[test]
    fn a_wrong_guess_is_soon_given_up() {
        let mut reads = Reads::default();
        for ino in 1..3 {
            open(&mut reads, (1, ino), true, 0);
        }
        assert_eq!(open(&mut reads, (1, 3), true, 1000), BATCH_FIRST as u64, "and these are never opened");
        let mut end = 4;
        for ino in 4..100 {
            end = end.max(ino + 1);
            end += open(&mut reads, (1, ino), ino + 1 == end, end);
        }
        assert!(end > 100 + BATCH_MAX as u64 / 2, "{end}");
    }

    #[test]
    fn the_order_of_opening_is_noticed() {
        let order = |inos: &[u64]| {
            let mut reads = Reads::default();
            for ino in inos {
                reads.opened(Ino(1), Ino(*ino), true);
            }
            reads.dir(Ino(1)).is_by_age()
        };
        assert!(order(&[1, 2, 3]) && order(&[5, 7, 9, 10, 12, 11]));
        assert!(!order(&[1, 2]) && !order(&[3, 1, 2]) && !order(&[4, 9, 2, 7, 1, 8]));
    }
}
