//! Reading ahead from file to file. Programs that look through a tree (grep, tar, cp)
//! open one small file of a directory after the other, and each costs a round trip; so
//! those that come next are asked for side by side, content included: in the order of its listing, or in which they were
//! made, which is that of names in what git and tar have written, and of numbers in what programs have.
//!
//! * Nothing is asked for twice, and what is asked for is what a reader of the whole
//!   directory asks for anyway.
//! * Only in a directory that is known as a whole, so that this itself asks for nothing.
//! * At most [`UNREAD_MAX`] files that nobody has opened: who reads here and there
//!   costs no more than those.

use super::Fs;
use super::ahead::Asked;
use super::cache::CachedEntry;
use crate::client::Patience;
use crate::error::FsError;
use proto::Ino;
use proto::chunk::INLINE_BYTES;
use proto::message::{Attr, FileKind};
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Files of one directory that are opened before the others are thought to follow.
const BEGIN_AFTER: u32 = 3;
/// Files asked for at once, at first and at most.
const BATCH_FIRST: usize = 8;
const BATCH_MAX: usize = 64;
/// Files that have been asked for and not opened.
const UNREAD_MAX: usize = 128;
/// Of a directory with more entries the order in which they were made is not looked at.
const MAX_SORTED: usize = 4096;

/// Who opens what, in the directory where files were opened last. Pure.
#[derive(Debug, Default)]
struct Walk {
    dir: Option<Ino>,
    /// Files of it that had to be waited for.
    waited: u32,
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

impl Walk {
    /// A file has been opened, and was waited for or not. How many more should be asked for.
    fn opened(&mut self, dir: Ino, ino: Ino, waited: bool) -> usize {
        if self.dir != Some(dir) {
            *self = Walk { dir: Some(dir), ..Walk::default() };
        }
        let was_ahead = self.unread.remove(&ino);
        if let Some(last) = self.last.replace(ino) {
            self.opens += 1;
            self.later += u32::from(ino > last);
        }
        self.waited += u32::from(waited);
        let is_due = if self.batch == 0 {
            self.waited >= BEGIN_AFTER
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
                for entry in all[later..].iter().chain(&all[..later]).filter(|entry| self.is_ahead(entry)).take(wanted)
                {
                    walk.made_upto = entry.ino;
                    self.ask_ahead(&mut walk, entry.ino);
                }
            }
            _ => self.read_listed(&mut walk, dir, wanted),
        }
    }

    /// Sets so many on their way that come next in the listing.
    fn read_listed(&self, walk: &mut Walk, dir: Ino, mut wanted: usize) {
        while wanted > 0 {
            let Some(entries) = self.cache().listing(self.promises(), dir, walk.after, BATCH_MAX) else { return };
            let Some(last) = entries.last() else { return };
            walk.after = last.hash;
            for entry in entries.iter().filter(|entry| self.is_ahead(entry)) {
                if wanted == 0 {
                    walk.after = entry.hash - 1;
                    break;
                }
                wanted -= 1;
                self.ask_ahead(walk, entry.ino);
            }
        }
    }

    /// A small file whose content is not known.
    fn is_ahead(&self, entry: &CachedEntry) -> bool {
        let is_small = |attr: &Attr| attr.size > 0 && attr.size <= INLINE_BYTES as u64;
        entry.kind == FileKind::File
            && entry.attr.as_ref().is_some_and(is_small)
            && self.known_version(entry.ino).is_none()
    }

    fn ask_ahead(&self, walk: &mut Walk, ino: Ino) {
        if !walk.unread.insert(ino) {
            return;
        }
        let answered = self.inner.neighbours.asked.begin(ino);
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            // What cannot be had ahead will be asked for, and then says why.
            let _ = fs.content_version(ino, &Patience::within(fs.inner.config.close_timeout)).await;
            fs.inner.neighbours.asked.end(ino, answered);
        });
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
    fn another_directory_begins_anew() {
        let mut walk = Walk::default();
        (0..3).for_each(|ino| {
            walk.opened(DIR, Ino(ino), true);
        });
        assert_eq!(walk.opened(Ino(2), Ino(9), true), 0);
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
