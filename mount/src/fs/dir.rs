//! Listings: handle-local paging by cursor.
//!
//! An entry's place is a hash of its name, so entries that are neither added nor
//! removed meanwhile appear exactly once, however often the directory changes
//! between two calls. Offsets 1 and 2 stand behind `.` and `..`; every other
//! offset is the hash of the entry before it. A handle holds one page, and the
//! next one while it is on its way. It also knows where it has been told that
//! nothing follows: a listing that was given at once shows one moment, and its
//! last call, which finds nothing, costs nothing.

use super::cache::Found;
use super::{Fs, Stat};
use crate::client::{Patience, Reply};
use crate::error::FsError;
use proto::message::{Attr, Cursor, FileKind, Listed, Outcome, View};
use proto::{Ino, Name};
use std::sync::{Arc, Mutex, PoisonError};

/// Entries asked for at once; the server gives fewer where they would not fit one record.
const PAGE_ENTRIES: u32 = 1024;
/// Entries given from the cache at once; the kernel's buffer takes fewer.
const CACHED_ENTRIES: usize = 256;

/// One entry of a listing.
#[derive(Clone, Debug)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: FileKind,
    /// What to ask with to go on behind this entry.
    pub offset: u64,
    /// Known for every entry that is not `.` or `..`, if attributes were asked for.
    pub stat: Option<Stat>,
}

/// An open directory.
pub struct DirHandle {
    dir: Ino,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    page: Option<Arc<Page>>,
    /// Where a listing that goes through the handle has been told that nothing follows: it says so again, whatever has
    /// come since, until it begins anew.
    end: Option<u64>,
    /// The page after that one.
    ahead: Option<tokio::task::JoinHandle<Result<Page, FsError>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            ahead.abort();
        }
    }
}

pub(super) struct Page {
    /// The offset that this page was asked for with; 0 is the beginning.
    after: u64,
    entries: Vec<Listed>,
    end: bool,
}

impl Page {
    /// The entries behind `offset`, if the page knows them.
    fn behind(&self, offset: u64) -> Option<&[Listed]> {
        let last = self.entries.last().map_or(self.after, |e| e.cursor().hash);
        if offset < self.after || (offset >= last && !self.end) {
            return None;
        }
        let from = self.entries.partition_point(|e| e.cursor().hash <= offset);
        Some(&self.entries[from..])
    }

    fn next(&self) -> Option<u64> {
        (!self.end).then(|| self.entries.last().map_or(self.after, |e| e.cursor().hash))
    }
}

impl DirHandle {
    fn place(&self) -> std::sync::MutexGuard<'_, Place> {
        // Pages are replaced whole.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fs {
    pub fn opendir(&self, ino: u64) -> u64 {
        self.inner.handles.add_dir(DirHandle { dir: self.ino(ino), place: Mutex::default() })
    }

    pub fn releasedir(&self, handle: u64) -> Result<(), FsError> {
        self.inner.handles.remove_dir(handle).map(drop)
    }

    /// Some entries behind `offset`; none at the end. With `stats` every entry
    /// brings its attributes.
    pub async fn readdir(
        &self,
        handle: u64,
        offset: u64,
        stats: bool,
        patience: &Patience,
    ) -> Result<Vec<DirEntry>, FsError> {
        let handle = self.inner.handles.dir(handle)?;
        self.accessed(handle.dir);
        {
            let mut place = handle.place();
            if offset == 0 {
                place.end = None;
            }
            if place.end.is_some_and(|end| offset >= end) {
                return Ok(Vec::new());
            }
        }
        let mut out = Vec::new();
        if offset < 2 {
            self.dots(handle.dir, offset, &mut out);
        }
        let (entries, is_end) = self.entries_behind(&handle, offset, stats, patience).await?;
        out.extend(entries);
        if is_end {
            handle.place().end = Some(out.last().map_or(offset, |entry| entry.offset));
        }
        Ok(out)
    }

    /// Some entries of the directory behind `offset`, without dots, and whether nothing follows them.
    async fn entries_behind(
        &self,
        handle: &DirHandle,
        offset: u64,
        stats: bool,
        patience: &Patience,
    ) -> Result<(Vec<DirEntry>, bool), FsError> {
        let begins = offset == 0;
        let mut offset = if offset < Cursor::FIRST { 0 } else { offset };
        let (mut was_known, mut asking) = (true, None);
        loop {
            if let Some(cached) = self.cached_entries(handle.dir, offset, stats) {
                if begins {
                    self.walks(handle.dir, was_known);
                }
                return Ok(cached);
            }
            if asking.is_some() || !was_known {
                break;
            }
            asking = self.asks_for_listing(handle.dir);
            // Whoever has waited once, and still does not know it, asks as well: it is not to be kept.
            if asking.is_none() {
                was_known = !self.listing_arrives(handle.dir, patience).await?;
            }
        }
        if offset == 0 {
            // A fresh start sees the directory afresh.
            handle.place().page = None;
        }
        loop {
            let page = self.page(handle, offset, patience).await?;
            drop(asking.take());
            if begins {
                self.walks(handle.dir, false);
            }
            // The page may lack what was done here since it was asked for; and what follows will come from there as well.
            if let Some(cached) = self.cached_entries(handle.dir, offset, stats) {
                return Ok(cached);
            }
            let listed = page.behind(offset).unwrap_or_default();
            let shown: Vec<DirEntry> =
                listed.iter().filter_map(|listed| self.listed_entry(handle.dir, listed, stats)).collect();
            match listed.last() {
                // Nothing of it is left, and no entries would mean the end.
                Some(last) if shown.is_empty() && !page.end => offset = last.cursor().hash,
                _ => return Ok((shown, page.end)),
            }
        }
    }

    /// What by now stands under a name that a page has, as far as that is known: it may have been changed here since.
    fn listed_entry(&self, dir: Ino, listed: &Listed, stats: bool) -> Option<DirEntry> {
        let stat = match self.cache().lookup(self.promises(), dir, &listed.name) {
            Some(Found::Entry(attr)) => self.listed_stat(&attr),
            Some(Found::Absent) => return None,
            // The kernel is to ask for it again.
            Some(Found::Inode(_)) | None => Stat { covering: None, ..self.stat(&listed.attr) },
        };
        Some(DirEntry {
            name: listed.name.as_bytes().to_vec(),
            ino: stat.ino,
            kind: stat.kind,
            offset: listed.cursor().hash,
            stat: stats.then_some(stat),
        })
    }

    /// What is listed of an inode with its name. What an answer has to be waited for is asked for again when it is needed.
    fn listed_stat(&self, attr: &Attr) -> Stat {
        let file = self.inner.files.get(attr.ino).filter(|_| attr.kind == FileKind::File);
        match file.and_then(|file| self.overtaken(&file)) {
            Some(_) => Stat { covering: None, ..self.stat(attr) },
            None => self.stat(attr),
        }
    }

    fn dots(&self, dir: Ino, offset: u64, out: &mut Vec<DirEntry>) {
        let dot = |name: &[u8], ino, offset| DirEntry {
            name: name.to_vec(),
            ino: self.shown_ino(ino),
            kind: FileKind::Dir,
            offset,
            stat: None,
        };
        if offset < 1 {
            out.push(dot(b".", dir, 1));
        }
        let parent = match dir == self.inner.root {
            true => dir,
            false => self.cache().attr_once(dir).and_then(|attr| attr.parent).unwrap_or(dir),
        };
        out.push(dot(b"..", parent, 2));
    }

    /// From the cache, if the directory is known as a whole; and whether nothing follows.
    fn cached_entries(&self, dir: Ino, offset: u64, stats: bool) -> Option<(Vec<DirEntry>, bool)> {
        let entries = self.cache().listing(self.promises(), dir, offset, CACHED_ENTRIES)?;
        if stats && entries.iter().any(|e| e.attr.is_none()) {
            return None;
        }
        let shown = |e: super::cache::CachedEntry| DirEntry {
            ino: self.shown_ino(e.ino),
            kind: e.kind,
            offset: e.hash,
            stat: e.attr.filter(|_| stats).map(|attr| self.listed_stat(&attr)),
            name: e.name.as_bytes().to_vec(),
        };
        let is_end = entries.len() < CACHED_ENTRIES;
        Some((entries.into_iter().map(shown).collect(), is_end))
    }

    /// The page that has what is behind `offset`.
    async fn page(&self, handle: &DirHandle, offset: u64, patience: &Patience) -> Result<Arc<Page>, FsError> {
        let ahead = {
            let mut place = handle.place();
            match &place.page {
                Some(page) if page.behind(offset).is_some() => return Ok(page.clone()),
                // The very end of this page is where the next one begins.
                Some(page) if page.next() == Some(offset) => place.ahead.take(),
                _ => {
                    if let Some(other) = place.ahead.take() {
                        other.abort();
                    }
                    None
                }
            }
        };
        let page = match ahead {
            // One that was given up (the timeout of its own) is asked for again.
            Some(ahead) => match self.inner.client.wait(ahead, patience).await? {
                Ok(Ok(page)) => page,
                _ => self.fetch_page(handle.dir, offset, PAGE_ENTRIES, patience).await?,
            },
            None => self.fetch_page(handle.dir, offset, PAGE_ENTRIES, patience).await?,
        };
        let page = Arc::new(page);
        let mut place = handle.place();
        place.page = Some(page.clone());
        if let Some(next) = page.next() {
            let (fs, dir) = (self.clone(), handle.dir);
            let patience = Patience::within(self.inner.config.close_timeout);
            let fetch = async move { fs.fetch_page(dir, next, PAGE_ENTRIES, &patience).await };
            place.ahead = Some(proto::task::spawn_on(&self.inner.runtime, fetch));
        }
        Ok(page)
    }

    /// Up to so many entries behind an offset.
    async fn fetch_page(&self, dir: Ino, offset: u64, limit: u32, patience: &Patience) -> Result<Page, FsError> {
        let reply = self.view(page_view(dir, offset, limit), patience).await?;
        self.learn_page(offset, reply)
    }

    /// Takes in what stands behind an offset.
    pub(super) fn learn_page(&self, offset: u64, reply: Reply) -> Result<Page, FsError> {
        let after = cursor_behind(offset);
        let Outcome::Listing { dir: attr, entries, end } = &reply.outcome else {
            return Err(FsError::WrongAnswer { op: "readdir" });
        };
        self.cache().learn(self.promises(), &reply, |l| l.page(attr, after.as_ref(), entries, *end));
        // A page without entries that is not the end would be asked for for ever.
        let end = *end || entries.is_empty();
        match reply.outcome {
            Outcome::Listing { entries, .. } => Ok(Page { after: offset, entries, end }),
            _ => unreachable!("matched above"),
        }
    }
}

/// Asks for up to so many entries behind an offset.
pub(super) fn page_view(dir: Ino, offset: u64, limit: u32) -> View {
    View::Readdir { dir, after: cursor_behind(offset), limit }
}

fn cursor_behind(offset: u64) -> Option<Cursor> {
    (offset > 0).then(|| Cursor { hash: offset, name: last_name() })
}

/// The name that sorts behind all others: a cursor with it stands behind every
/// entry of its hash.
fn last_name() -> Name {
    Name::new(&[0xff; Name::MAX_BYTES]).expect("it is as long as a name may be, and has no slash")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::message::Owner;
    use proto::{Position, Time};

    fn listed(name: &str) -> Listed {
        let attr = Attr {
            ino: Ino(7),
            kind: FileKind::File,
            mode: 0o644,
            uid: Owner::Namespace,
            gid: Owner::Namespace,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            rdev: 0,
            version: Position::default(),
            parent: Some(Ino(1)),
            has_xattrs: false,
            rights: None,
        };
        Listed { name: Name::new(name.as_bytes()).expect("a name"), attr }
    }

    #[test]
    fn a_page_knows_what_stands_behind_an_offset() {
        let mut entries: Vec<Listed> = (0..10).map(|i| listed(&format!("n{i}"))).collect();
        entries.sort_by_key(Listed::cursor);
        let hashes: Vec<u64> = entries.iter().map(|e| e.cursor().hash).collect();
        let mut page = Page { after: 0, entries, end: false };
        assert_eq!(page.behind(0).map(<[Listed]>::len), Some(10));
        assert_eq!(page.behind(hashes[3]).map(<[Listed]>::len), Some(6));
        // An offset between two entries, as after a removal, loses and repeats nothing.
        assert_eq!(page.behind(hashes[3] + 1).map(<[Listed]>::len), Some(6));
        assert!(page.behind(hashes[9]).is_none(), "that is the next page's");
        assert_eq!(page.next(), Some(hashes[9]));
        page.end = true;
        assert_eq!(page.behind(hashes[9]).map(<[Listed]>::len), Some(0));
        assert_eq!(page.next(), None);
    }
}
