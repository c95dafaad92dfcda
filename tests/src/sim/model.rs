//! A filesystem as simple as can be: what every request must have given at its
//! place in the log, and what each directory and file held at each place.

use super::check::FIRST_EPOCH;
use super::history::{Applied, Entry};
use super::work::MARK;
use proto::message::{Attr, Delete, FileKind, Op, Outcome, Refusal, RenameHow, Upload, View, WriteAt};
use proto::{Ino, Position, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens a write's pieces: offset and plain content of each, in order.
pub type Plain<'a> = &'a dyn Fn(&Applied) -> Result<Vec<(u64, Vec<u8>)>, String>;

/// One namespace.
#[derive(Default)]
pub struct Model {
    pub inodes: BTreeMap<u64, Inode>,
    /// By inode, what it was from each place on, in order.
    pub versions: BTreeMap<u64, Vec<(Position, Arc<Inode>)>>,
    /// When the request that is taken in was made.
    now: When,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub entries: BTreeMap<Vec<u8>, u64>,
    pub content: Arc<Vec<u8>>,
    /// The extended attribute [`MARK`].
    pub mark: Option<Vec<u8>>,
    pub target_bytes: u64,
    /// Of a directory: where it stands.
    pub parent: u64,
    /// None of a root's that nothing has been done to.
    pub times: Option<Shown>,
}

/// When something was done.
#[derive(Clone, Copy, Default)]
struct When {
    counts: Time,
    /// As the request has it, which the server corrects where it is ahead of the log.
    sent: Time,
}

/// What an inode's times may be shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    pub counts: Times,
    /// By a mount that has not heard of the server's correction.
    pub sent: Times,
}

impl Shown {
    /// Each of the two by itself: one may have been heard of.
    fn may_be(&self, times: Times) -> bool {
        let both = [self.counts, self.sent];
        both.iter().any(|known| known.mtime == times.mtime) && both.iter().any(|known| known.ctime == times.ctime)
    }
}

/// When an inode's content and when anything of it changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    pub mtime: Time,
    pub ctime: Time,
}

impl Inode {
    fn new(kind: FileKind, mode: u32) -> Inode {
        Inode {
            kind,
            mode,
            nlink: if kind == FileKind::Dir { 2 } else { 1 },
            entries: BTreeMap::new(),
            content: Arc::default(),
            mark: None,
            target_bytes: 0,
            parent: 0,
            times: None,
        }
    }

    /// Its content, which of a directory are its entries, is another one from then on.
    fn modified(&mut self, now: When) {
        let both = |time| Times { mtime: time, ctime: time };
        self.times = Some(Shown { counts: both(now.counts), sent: both(now.sent) });
    }

    /// The same of a file's. What was written is told later than it was done, and its times never go back.
    fn written(&mut self, now: When) {
        let onward = |now: Time, before: Time| if now < before { before.just_after() } else { now };
        let now = self.times.map_or(now, |before| When {
            counts: onward(now.counts, before.counts.ctime),
            sent: onward(now.sent, before.sent.ctime),
        });
        self.modified(now);
    }

    /// Something else of it is.
    fn touched(&mut self, now: When) {
        self.times = self.times.map(|before| Shown {
            counts: Times { ctime: now.counts, ..before.counts },
            sent: Times { ctime: now.sent, ..before.sent },
        });
    }

    /// Whether these are its attributes; whose they are is the caller's to see.
    pub fn is_shown_as(&self, entry: &Entry) -> bool {
        self.kind == entry.kind
            && self.mode == entry.mode
            && self.nlink == entry.nlink
            && entry.size.is_none_or(|size| size == self.content.len() as u64)
            && entry.times.is_none_or(|times| self.times.is_none_or(|known| known.may_be(times)))
    }
}

/// What the model says of a change.
enum Verdict {
    /// It must succeed.
    Yes,
    /// It must be refused.
    No,
    /// An inode without a name may be there or not.
    Either,
}

impl Model {
    pub fn new(root: Ino) -> Model {
        let mut model = Model::default();
        model.inodes.insert(root.0, Inode::new(FileKind::Dir, 0o755));
        model.note(Position::default(), root.0);
        model
    }

    /// Takes in the next request of the log. Says what is wrong with its result.
    pub fn apply(&mut self, at: Position, applied: &Applied, plain: Plain<'_>) -> Result<(), String> {
        self.now = When { counts: applied.time, sent: applied.sent };
        match &applied.op {
            Op::View(view) => self.view(view, &applied.result),
            Op::Upload(upload) => self.upload(at, upload, applied, plain),
            Op::Delete(delete) => self.delete(at, delete, &applied.result),
            Op::Lock(_) | Op::Session(_) => Ok(()),
        }
    }

    /// What the inode was at a place.
    pub fn version(&self, ino: u64, at: Position) -> Option<&Arc<Inode>> {
        let versions = self.versions.get(&ino)?;
        let index = versions.partition_point(|(from, _)| *from <= at);
        versions.get(index.checked_sub(1)?).map(|(_, inode)| inode)
    }

    fn note(&mut self, at: Position, ino: u64) {
        if let Some(inode) = self.inodes.get(&ino) {
            let versions = self.versions.entry(ino).or_default();
            if versions.last().is_some_and(|(from, _)| *from == at) {
                versions.pop();
            }
            versions.push((at, Arc::new(inode.clone())));
        }
    }

    fn dir(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(&ino.0).filter(|inode| inode.kind == FileKind::Dir && inode.nlink > 0)
    }

    fn named(&self, dir: Ino, name: &[u8]) -> Option<u64> {
        self.dir(dir)?.entries.get(name).copied()
    }

    fn view(&self, view: &View, result: &Result<Outcome, Refusal>) -> Result<(), String> {
        match (view, result) {
            (View::Lookup { dir, name }, Ok(Outcome::Entry(attr))) => match self.named(*dir, name.as_bytes()) {
                Some(ino) if ino == attr.ino.0 => self.same(attr),
                other => Err(format!("found inode {}, the model has {other:?}", attr.ino.0)),
            },
            (View::Lookup { dir, name }, Err(Refusal::NotFound)) => match self.named(*dir, name.as_bytes()) {
                Some(ino) => Err(format!("found nothing, the model has inode {ino}")),
                None => Ok(()),
            },
            (View::Getattr { .. }, Ok(Outcome::Entry(attr)))
            | (View::Extents { .. }, Ok(Outcome::Extents { attr, .. })) => self.same(attr),
            (View::Getattr { ino }, Err(_)) => match self.inodes.get(&ino.0) {
                Some(inode) if inode.nlink > 0 => Err("refused, though the model has the inode".into()),
                _ => Ok(()),
            },
            (View::Readdir { dir, after: None, .. }, Ok(Outcome::Listing { entries, end: true, .. })) => {
                let listed: BTreeMap<Vec<u8>, u64> =
                    entries.iter().map(|entry| (entry.name.as_bytes().to_vec(), entry.attr.ino.0)).collect();
                let known = self.dir(*dir).map(|dir| &dir.entries);
                match known {
                    Some(known) if *known == listed => entries.iter().try_for_each(|entry| self.same(&entry.attr)),
                    known => Err(format!("listed {listed:?}, the model has {known:?}")),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether attributes are the model's.
    fn same(&self, attr: &Attr) -> Result<(), String> {
        let Some(inode) = self.inodes.get(&attr.ino.0) else {
            return Err(format!("attributes of inode {}, which the model does not have", attr.ino.0));
        };
        let size = match inode.kind {
            FileKind::File => Some(inode.content.len() as u64),
            FileKind::Symlink => Some(inode.target_bytes),
            _ => None,
        };
        let wrong = attr.kind != inode.kind
            || attr.mode != inode.mode
            || attr.nlink != inode.nlink
            || size.is_some_and(|size| size != attr.size)
            || inode.times.is_some_and(|times| times.counts != Times { mtime: attr.mtime, ctime: attr.ctime });
        match wrong {
            true => Err(format!(
                "{attr:?}, the model has {:?} mode {:o} nlink {} size {size:?} {:?}",
                inode.kind, inode.mode, inode.nlink, inode.times
            )),
            false => Ok(()),
        }
    }

    fn agree(&self, verdict: &Verdict, result: &Result<Outcome, Refusal>) -> Result<bool, String> {
        match (verdict, result) {
            (Verdict::Yes | Verdict::Either, Ok(_)) => Ok(true),
            (Verdict::No | Verdict::Either, Err(_)) => Ok(false),
            (Verdict::Yes, Err(refusal)) => Err(format!("refused ({refusal}), the model says yes")),
            (Verdict::No, Ok(outcome)) => Err(format!("done ({outcome:?}), the model says no")),
        }
    }

    fn upload(&mut self, at: Position, upload: &Upload, applied: &Applied, plain: Plain<'_>) -> Result<(), String> {
        let result = &applied.result;
        if *result == Err(Refusal::QuotaExceeded) {
            return match upload {
                // What had been granted may have gone with the log.
                _ if at.epoch > FIRST_EPOCH => Ok(()),
                Upload::Write { reserved: true, .. } => {
                    Err("refused for the quota, though its writer was told yes".into())
                }
                Upload::Create { new, .. } if new.reserved => {
                    Err("refused for the quota, though room was reserved for it".into())
                }
                Upload::Write { .. } | Upload::Create { .. } | Upload::Clone { .. } => Ok(()),
                _ => Err("refused for the quota, though it adds nothing".into()),
            };
        }
        match upload {
            Upload::Create { dir, name, new } => {
                let free = self.dir(*dir).is_some() && self.named(*dir, name.as_bytes()).is_none();
                if !self.agree(if free { &Verdict::Yes } else { &Verdict::No }, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                if self.versions.contains_key(&attr.ino.0) {
                    return Err(format!("inode {} was used before", attr.ino.0));
                }
                let mut inode = Inode::new(new.kind, new.mode);
                inode.parent = dir.0;
                inode.modified(self.now);
                if new.kind == FileKind::Symlink {
                    inode.target_bytes = attr.size;
                }
                self.inodes.insert(attr.ino.0, inode);
                self.put(at, dir.0, name.as_bytes(), attr.ino.0);
                self.note(at, attr.ino.0);
                self.same(attr)
            }
            Upload::Link { ino, dir, name } => {
                let is_taken = self.dir(*dir).is_none() || self.named(*dir, name.as_bytes()).is_some();
                let verdict = self.may_change(*ino, |inode| inode.kind == FileKind::Dir || is_taken);
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                let inode = self.inodes.get_mut(&ino.0).expect("it was judged to be there");
                inode.nlink += 1;
                inode.touched(self.now);
                self.put(at, dir.0, name.as_bytes(), ino.0);
                self.note(at, ino.0);
                self.same(attr)
            }
            Upload::Rename { from_dir, from, to_dir, to, how } => {
                let verdict = self.may_rename((*from_dir, from.as_bytes()), (*to_dir, to.as_bytes()), *how);
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Renamed { moved, .. }) = result else { return Err(format!("gave {result:?}")) };
                self.rename(at, (from_dir.0, from.as_bytes()), (to_dir.0, to.as_bytes()), *how);
                self.same(moved)
            }
            Upload::Setattr { ino, change } => {
                let verdict = self.may_change(*ino, |inode| change.size.is_some() && inode.kind != FileKind::File);
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                let inode = self.inodes.get_mut(&ino.0).expect("it was judged to be there");
                if let Some(mode) = change.mode {
                    inode.mode = mode;
                }
                if let Some(size) = change.size {
                    Arc::make_mut(&mut inode.content).resize(size as usize, 0);
                    inode.modified(self.now);
                }
                inode.touched(self.now);
                self.note(at, ino.0);
                self.same(attr)
            }
            Upload::Write { ino, at: place, .. } => {
                let verdict = self.may_change(*ino, |inode| inode.kind != FileKind::File);
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                let pieces = plain(applied)?;
                let inode = self.inodes.get_mut(&ino.0).expect("it was judged to be there");
                let content = Arc::make_mut(&mut inode.content);
                let base = if *place == WriteAt::End { content.len() } else { 0 };
                for (offset, bytes) in pieces {
                    let from = base + offset as usize;
                    if content.len() < from + bytes.len() {
                        content.resize(from + bytes.len(), 0);
                    }
                    content[from..from + bytes.len()].copy_from_slice(&bytes);
                }
                inode.written(self.now);
                self.note(at, ino.0);
                self.same(attr)
            }
            Upload::Fallocate { ino, offset, len, how } => {
                let verdict = self.may_change(*ino, |inode| inode.kind != FileKind::File);
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                let inode = self.inodes.get_mut(&ino.0).expect("it was judged to be there");
                let content = Arc::make_mut(&mut inode.content);
                let (from, end) = (*offset as usize, (offset + len) as usize);
                if how.extends() && content.len() < end {
                    content.resize(end, 0);
                }
                let end = end.min(content.len());
                if how.clears() && from < end {
                    content[from..end].fill(0);
                }
                inode.written(self.now);
                self.note(at, ino.0);
                self.same(attr)
            }
            Upload::Clone { from, to, to_offset } => {
                let is_other = |inode: &Inode| inode.kind != FileKind::File;
                let source = self.inodes.get(&from.ino.0).map(|inode| inode.content.clone()).unwrap_or_default();
                let start = (from.offset as usize).min(source.len());
                let part = &source[start..((from.offset + from.len) as usize).min(source.len()).max(start)];
                let end = *to_offset as usize + part.len();
                let overlaps =
                    from.ino == *to && from.offset < end as u64 && *to_offset < from.offset + part.len() as u64;
                let verdict = match (self.may_change(from.ino, is_other), self.may_change(*to, is_other)) {
                    (Verdict::No, _) | (_, Verdict::No) => Verdict::No,
                    (Verdict::Yes, Verdict::Yes) if overlaps => Verdict::No,
                    (Verdict::Yes, Verdict::Yes) => Verdict::Yes,
                    _ => Verdict::Either,
                };
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Cloned { to: attr, len }) = result else { return Err(format!("gave {result:?}")) };
                if *len != part.len() as u64 {
                    return Err(format!("cloned {len} bytes, the model has {}", part.len()));
                }
                if *len > 0 {
                    let inode = self.inodes.get_mut(&to.0).expect("it was judged to be there");
                    let content = Arc::make_mut(&mut inode.content);
                    content.resize(content.len().max(end), 0);
                    content[*to_offset as usize..end].copy_from_slice(part);
                    inode.written(self.now);
                    self.note(at, to.0);
                }
                self.same(attr)
            }
            Upload::SetXattr { ino, name, .. } | Upload::RemoveXattr { ino, name } => {
                let sets = matches!(upload, Upload::SetXattr { .. });
                let verdict = self.may_change(*ino, |inode| name != MARK || (!sets && inode.mark.is_none()));
                if !self.agree(&verdict, result)? {
                    return Ok(());
                }
                let Ok(Outcome::Entry(attr)) = result else { return Err(format!("gave {result:?}")) };
                let mark = plain(applied)?.pop().map(|(_, value)| value);
                let inode = self.inodes.get_mut(&ino.0).expect("it was judged to be there");
                inode.mark = mark;
                inode.touched(self.now);
                self.note(at, ino.0);
                self.same(attr)
            }
            Upload::SetAcl { .. } | Upload::Accessed { .. } => Ok(()),
        }
    }

    fn delete(&mut self, at: Position, delete: &Delete, result: &Result<Outcome, Refusal>) -> Result<(), String> {
        let (dir, name, is_rmdir) = match delete {
            Delete::Unlink { dir, name } => (dir, name, false),
            Delete::Rmdir { dir, name } => (dir, name, true),
        };
        let found = self.named(*dir, name.as_bytes());
        let may = found.and_then(|ino| self.inodes.get(&ino)).is_some_and(|inode| match is_rmdir {
            true => inode.kind == FileKind::Dir && inode.entries.is_empty(),
            false => inode.kind != FileKind::Dir,
        });
        if !self.agree(if may { &Verdict::Yes } else { &Verdict::No }, result)? {
            return Ok(());
        }
        let Ok(Outcome::Removed(attr)) = result else { return Err(format!("gave {result:?}")) };
        let ino = found.expect("it was judged to be there");
        self.take(at, dir.0, name.as_bytes());
        self.drop_name(at, ino);
        if attr.ino.0 != ino {
            return Err(format!("removed inode {}, the model has {ino}", attr.ino.0));
        }
        // A directory that has gone has no attributes to speak of.
        if is_rmdir { Ok(()) } else { self.same(attr) }
    }

    /// Whether a change to an inode goes through. One without a name may be gone already.
    fn may_change(&self, ino: Ino, is_refused: impl Fn(&Inode) -> bool) -> Verdict {
        match self.inodes.get(&ino.0) {
            Some(inode) if is_refused(inode) => Verdict::No,
            Some(inode) if inode.nlink == 0 => Verdict::Either,
            Some(_) => Verdict::Yes,
            None => Verdict::No,
        }
    }

    fn may_rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8]), how: RenameHow) -> Verdict {
        let (Some(moved), true) = (self.named(from.0, from.1), self.dir(to.0).is_some()) else { return Verdict::No };
        let other = self.named(to.0, to.1);
        let (moved_is_dir, other_is_dir) = (self.is_dir(moved), other.is_some_and(|ino| self.is_dir(ino)));
        if moved_is_dir && self.is_below(to.0.0, moved) {
            return Verdict::No;
        }
        let may = match (how, other) {
            (RenameHow::Exchange, None) => false,
            (RenameHow::Exchange, Some(other)) => !(other_is_dir && self.is_below(from.0.0, other)),
            (RenameHow::NoReplace, other) => other.is_none(),
            (RenameHow::Replace, None) => true,
            (RenameHow::Replace, Some(other)) if other == moved => true,
            (RenameHow::Replace, Some(other)) => {
                moved_is_dir == other_is_dir && self.inodes.get(&other).is_some_and(|inode| inode.entries.is_empty())
            }
        };
        if may { Verdict::Yes } else { Verdict::No }
    }

    fn is_dir(&self, ino: u64) -> bool {
        self.inodes.get(&ino).is_some_and(|inode| inode.kind == FileKind::Dir)
    }

    /// Whether `ino` is `above` or stands below it.
    fn is_below(&self, mut ino: u64, above: u64) -> bool {
        loop {
            if ino == above {
                return true;
            }
            match self.inodes.get(&ino) {
                Some(inode) if inode.parent != 0 => ino = inode.parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, at: Position, from: (u64, &[u8]), to: (u64, &[u8]), how: RenameHow) {
        let moved = self.inodes[&from.0].entries[from.1];
        let other = self.inodes[&to.0].entries.get(to.1).copied();
        if other == Some(moved) {
            return;
        }
        self.take(at, from.0, from.1);
        if let Some(other) = other {
            self.take(at, to.0, to.1);
            match how {
                RenameHow::Exchange => {
                    self.put(at, from.0, from.1, other);
                    self.moved(at, other);
                }
                _ => self.drop_name(at, other),
            }
        }
        self.put(at, to.0, to.1, moved);
        self.moved(at, moved);
    }

    /// A name of it stands somewhere else.
    fn moved(&mut self, at: Position, ino: u64) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        inode.touched(self.now);
        self.note(at, ino);
    }

    /// Puts a name there, which changes the directory's links if it is a directory's.
    fn put(&mut self, at: Position, dir: u64, name: &[u8], ino: u64) {
        let is_dir = self.is_dir(ino);
        let parent = self.inodes.get_mut(&dir).expect("the caller looked");
        parent.entries.insert(name.to_vec(), ino);
        parent.nlink += u32::from(is_dir);
        parent.modified(self.now);
        if let Some(inode) = self.inodes.get_mut(&ino).filter(|_| is_dir) {
            inode.parent = dir;
        }
        self.note(at, dir);
    }

    fn take(&mut self, at: Position, dir: u64, name: &[u8]) {
        let parent = self.inodes.get_mut(&dir).expect("the caller looked");
        let Some(ino) = parent.entries.remove(name) else { return };
        parent.modified(self.now);
        if self.is_dir(ino) {
            self.inodes.get_mut(&dir).expect("the caller looked").nlink -= 1;
        }
        self.note(at, dir);
    }

    fn drop_name(&mut self, at: Position, ino: u64) {
        let Some(inode) = self.inodes.get_mut(&ino) else { return };
        match inode.kind {
            FileKind::Dir => inode.nlink = 0,
            _ => inode.nlink -= 1,
        }
        inode.touched(self.now);
        self.note(at, ino);
    }
}
