//! Reading ahead from file to file. Programs that look through a tree (grep, tar, cp)
//! open one small file of a directory after the other, and each costs a round trip; so
//! those that come next are asked for side by side, content included: in the order of its listing, or in which they were
//! made, which is that of names in what git and tar have written, and of numbers in what programs have.
//!
//! * Nothing is asked for twice, and what is asked for is what a reader of the whole
//!   directory asks for anyway.
//! * Only in a directory that is known as a whole, so that this itself asks for nothing.
//! * At most [`UNREAD_MAX`] files of a directory that nobody has opened, and where most of what was asked for was not opened
//!   it takes twice as many opened files to begin anew: who reads here and there costs little more than that.
//! * Who has gone through one directory is expected to go through the next one, and so served from its first file on.

use super::Fs;
use super::ahead::Asked;
use super::cache::CachedEntry;
use super::file::content_view;
use crate::client::Patience;
use crate::error::FsError;
use proto::Ino;
use proto::chunk::INLINE_BYTES;
use proto::message::{Attr, FileKind};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Files that are opened and waited for before others are thought to follow, at first and at most.
const BEGIN_AFTER: u32 = 3;
const BEGIN_AFTER_MAX: u32 = 192;
/// Files asked for at once, at first and at most.
const BATCH_FIRST: usize = 8;
const BATCH_MAX: usize = 64;
/// Files that have been asked for and not opened.
const UNREAD_MAX: usize = 128;
/// Of a directory with more entries the order in which they were made is not looked at.
const MAX_SORTED: usize = 4096;

/// Who opens what, in the directory where files were opened last. Pure.
#[derive(Debug)]
struct Walk {
    dir: Option<Ino>,
    /// Files that had to be waited for, also in directories before it, since something was asked for in vain.
    waited: u32,
    /// How many it takes.
    begin_after: u32,
    /// Of this directory's files: asked for ahead, and opened after that.
    asked: u32,
    hits: u32,
    /// Asked for ahead, and not opened since.
    unread: BTreeSet<Ino>,
    batch: usize,
    /// How far into the listing has been looked.
    after: u64,
    /// How often a file was opened that was made after the one before, of how many.
    later: u32,
    opens: u32,
    last: Option<Ino>,
    /// How far it has been looked in the order of making.
    made_upto: Ino,
}

impl Default for Walk {
    fn default() -> Walk {
        Walk {
            dir: None,
            waited: 0,
            begin_after: BEGIN_AFTER,
            asked: 0,
            hits: 0,
            unread: BTreeSet::new(),
            batch: 0,
            after: 0,
            later: 0,
            opens: 0,
            last: None,
            made_upto: Ino(0),
        }
    }
}

impl Walk {
    /// The next directory, where what was learnt in the one before is of use.
    fn enter(&mut self, dir: Ino) {
        let (waited, begin_after) = if self.asked == 0 {
            (self.waited, self.begin_after)
        } else if self.hits * 2 >= self.asked {
            (self.waited, BEGIN_AFTER)
        } else {
            (0, (self.begin_after * 2).min(BEGIN_AFTER_MAX))
        };
        // In which order its files are opened is likely the same.
        let (later, opens) = if self.is_by_age() { (4, 4) } else { (0, self.opens.min(4)) };
        *self = Walk { dir: Some(dir), waited, begin_after, later, opens, ..Walk::default() };
    }

    /// A file has been opened, and was waited for or not. How many more should be asked for.
    fn opened(&mut self, dir: Ino, ino: Ino, waited: bool) -> usize {
        if self.dir != Some(dir) {
            self.enter(dir);
        }
        let was_ahead = self.unread.remove(&ino);
        self.hits += u32::from(was_ahead);
        if let Some(last) = self.last.replace(ino) {
            self.opens += 1;
            self.later += u32::from(ino > last);
        }
        self.waited += u32::from(waited);
        let is_due = if self.batch == 0 {
            waited && self.waited >= self.begin_after
        } else {
            // While half of the last ones are being read the next ones come.
            (was_ahead || waited) && self.unread.len() <= self.batch / 2
        };
        if !is_due {
            return 0;
        }
        self.batch = if self.batch == 0 { BATCH_FIRST } else { (self.batch * 2).min(BATCH_MAX) };
        self.batch.min(UNREAD_MAX - self.unread.len())
    }

    /// They are opened in the order in which they were made.
    fn is_by_age(&self) -> bool {
        self.opens >= 2 && self.later * 5 >= self.opens * 4
    }
}

#[derive(Default)]
pub struct Neighbours {
    walk: Mutex<Walk>,
    /// No more than have not been opened.
    asked: Asked,
}

impl Fs {
    /// Waits for what has been asked ahead about a file, if something has.
    pub(super) async fn neighbour_arrives(&self, ino: Ino, patience: &Patience) -> Result<(), FsError> {
        self.inner.neighbours.asked.arrives(ino, patience).await.map(|_| ())
    }

    /// Notes that a file has been opened, and sets on its way what will be opened next.
    pub(super) fn read_neighbours(&self, ino: Ino, waited: bool) {
        let Some(dir) = self.cache().attr_once(ino).and_then(|attr| attr.parent) else { return };
        let mut walk = self.inner.neighbours.walk.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = walk.opened(dir, ino, waited);
        if wanted == 0 {
            return;
        }
        let all = if walk.is_by_age() { self.cache().listing(self.promises(), dir, 0, MAX_SORTED) } else { None };
        match all {
            Some(mut all) if all.len() < MAX_SORTED => {
                all.sort_unstable_by_key(|entry| entry.ino);
                let from = walk.made_upto.max(ino);
                let later = all.partition_point(|entry| entry.ino <= from);
                // From the first one on again: some may have been left out.
                let round = all[later..].iter().chain(&all[..later]);
                let next: Vec<Ino> =
                    round.filter(|entry| self.is_ahead(entry)).take(wanted).map(|entry| entry.ino).collect();
                walk.made_upto = next.last().copied().unwrap_or(from);
                self.ask_ahead(&mut walk, next);
            }
            _ => self.read_listed(&mut walk, dir, wanted),
        }
    }

    /// Sets so many on their way that come next in the listing.
    fn read_listed(&self, walk: &mut Walk, dir: Ino, wanted: usize) {
        let mut next = Vec::new();
        while next.len() < wanted
            && let Some(entries) = self.cache().listing(self.promises(), dir, walk.after, BATCH_MAX)
            && let Some(last) = entries.last()
        {
            walk.after = last.hash;
            for entry in entries.iter().filter(|entry| self.is_ahead(entry)) {
                if next.len() == wanted {
                    walk.after = entry.hash - 1;
                    break;
                }
                next.push(entry.ino);
            }
        }
        self.ask_ahead(walk, next);
    }

    /// A small file whose content is not known.
    fn is_ahead(&self, entry: &CachedEntry) -> bool {
        let is_small = |attr: &Attr| attr.size > 0 && attr.size <= INLINE_BYTES as u64;
        entry.kind == FileKind::File
            && entry.attr.as_ref().is_some_and(is_small)
            && self.known_version(entry.ino).is_none()
    }

    fn ask_ahead(&self, walk: &mut Walk, mut inos: Vec<Ino>) {
        inos.retain(|ino| walk.unread.insert(*ino));
        walk.asked += inos.len() as u32;
        let answered: Vec<_> = inos.iter().map(|ino| self.inner.neighbours.asked.begin(*ino)).collect();
        let submitted = self.inner.client.look_ahead(inos.iter().map(|ino| content_view(*ino)).collect());
        for (ino, (submitted, answered)) in inos.into_iter().zip(submitted.into_iter().zip(answered)) {
            let fs = self.clone();
            proto::task::spawn_on(&self.inner.runtime, async move {
                // What cannot be had ahead will be asked for, and then says why.
                if let Ok(Ok(reply)) = Patience::within(fs.inner.config.close_timeout).wait(submitted).await {
                    fs.learn_extents(0, reply);
                }
                fs.inner.neighbours.asked.end(ino, answered);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(1);

    #[test]
    fn who_opens_one_file_after_the_other_gets_more_and_more_ahead() {
        let mut walk = Walk::default();
        assert_eq!([1, 2].map(|ino| walk.opened(DIR, Ino(ino), true)), [0, 0]);
        assert_eq!(walk.opened(DIR, Ino(3), true), BATCH_FIRST);
        let mut end = 4 + BATCH_FIRST as u64;
        walk.unread.extend((4..end).map(Ino));
        let mut batches = Vec::new();
        for ino in 4..400 {
            assert!(ino < end, "it was not asked for in time");
            let more = walk.opened(DIR, Ino(ino), false) as u64;
            walk.unread.extend((end..end + more).map(Ino));
            batches.extend((more > 0).then_some(more));
            end += more;
        }
        assert_eq!(batches[..4], [16, 32, 64, 64]);
    }

    #[test]
    fn who_opens_others_costs_no_more_than_the_bound() {
        let mut walk = Walk::default();
        let mut asked = 0;
        for ino in 0..10_000 {
            let more = walk.opened(DIR, Ino(ino), true);
            walk.unread.extend((0..more as u64).map(|number| Ino(1_000_000 + asked + number)));
            asked += more as u64;
        }
        assert!(asked <= UNREAD_MAX as u64, "{asked}");
    }

    #[test]
    fn what_was_learnt_in_one_directory_counts_in_the_next() {
        let mut walk = Walk::default();
        for ino in 0..3 {
            walk.opened(DIR, Ino(ino), true);
        }
        let ask = |walk: &mut Walk, inos: std::ops::Range<u64>| {
            walk.asked += inos.clone().count() as u32;
            walk.unread.extend(inos.map(Ino));
        };
        ask(&mut walk, 3..11);
        for ino in 3..11 {
            walk.opened(DIR, Ino(ino), false);
        }
        assert_eq!(walk.opened(Ino(2), Ino(20), true), BATCH_FIRST, "from the first file on");
        ask(&mut walk, 21..29);
        // None of them is opened.
        assert_eq!(walk.opened(Ino(3), Ino(40), true), 0);
        let more = (41..60).map(|ino| walk.opened(Ino(3), Ino(ino), true)).position(|more| more > 0);
        assert_eq!(more, Some(2 * BEGIN_AFTER as usize - 2), "it takes twice as many");
        // What is known already needs nobody's help.
        let mut walk = Walk::default();
        assert!((0..100).all(|ino| walk.opened(DIR, Ino(ino), false) == 0));
    }

    #[test]
    fn the_order_of_opening_is_noticed() {
        let order = |inos: &[u64]| {
            let mut walk = Walk::default();
            for ino in inos {
                let _ = walk.opened(DIR, Ino(*ino), true);
            }
            walk.is_by_age()
        };
        assert!(order(&[1, 2, 3]) && order(&[5, 7, 9, 10, 12, 11]));
        assert!(!order(&[1, 2]) && !order(&[3, 1, 2]) && !order(&[4, 9, 2, 7, 1, 8]));
    }
}
