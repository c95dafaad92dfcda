//! A client's programs: each worker does its steps one after the other through the
//! real filesystem, and notes what it was given.

use super::history::{Entry, Found, History, Wrote, as_operation};
use super::kernel::Kernel;
use super::model::Times;
use super::plan::{Content, DIRS, How, Place, Range, Step};
use super::rng::Rng;
use mount::client::{CallError, Patience};
use mount::error::FsError;
use mount::fs::{COPIED_HERE_BYTES, Caller, CreateHow, Fs, NewNode, ROOT, SetAttr, Stat};
use proto::Ino;
use proto::message::{FallocateHow, FileKind, Refusal, RenameHow, XattrHow};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long an operation waits before it counts as not answered.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A session lasts at least this long after its last request was applied.
const SESSION_LASTS: Duration = Duration::from_secs(60);

/// No step makes a larger one, in bytes.
const LARGEST_FILE: u32 = 8 << 20;

/// The one extended attribute that programs set.
pub const MARK: &[u8] = b"user.mark";

pub const ME: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };

/// What was written where, one after the other.
type Pieces = Vec<(u64, Vec<u8>)>;

/// What one worker still has to do; outlives crashes of its client.
pub type Todo = Arc<Mutex<VecDeque<Step>>>;

/// One mount's programs.
#[derive(Clone)]
pub struct Work {
    pub fs: Fs,
    kernel: Kernel,
    pub history: History,
    pub client: usize,
    /// Between two steps everybody thinks for up to so long.
    pub pace_ms: u32,
    /// The root, and the directories below it that steps name.
    pub dirs: Vec<u64>,
    /// Files that this mount is writing or may have written without an answer: what it
    /// shows of them is its own business.
    own: Arc<Mutex<BTreeMap<u64, Own>>>,
}

/// One file's writers in this mount.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Own {
    now: u32,
    /// Since the beginning; changes of its content that are no writes count too.
    ever: u32,
}

impl Work {
    /// Finds the directories that are there from the beginning.
    pub async fn begin(fs: Fs, history: History, client: usize, pace_ms: u32) -> Result<Work, FsError> {
        let mut found = vec![ROOT];
        for number in 1..DIRS {
            found.push(fs.lookup(ROOT, &dir_name(number), &Patience::within(PATIENCE)).await?.ino);
        }
        let kernel = Kernel::before(&fs, client, pace_ms);
        Ok(Work { fs, kernel, history, client, pace_ms, dirs: found, own: Arc::default() })
    }

    /// Does what is to be done until nothing is left.
    pub async fn run(self, todo: Todo) {
        loop {
            let (step, left) = {
                let mut todo = todo.lock().unwrap_or_else(PoisonError::into_inner);
                (todo.pop_front(), todo.len())
            };
            let Some(step) = step else { return };
            self.step(&step).await;
            if self.pace_ms > 0 {
                // By what is left, so that leaving out a step moves no other's pause.
                let mut rng = Rng::new(u64::from(self.pace_ms) << 32 | (self.client << 16 | left) as u64, "pace");
                tokio::time::sleep(Duration::from_millis(rng.range(0, u64::from(self.pace_ms)))).await;
            }
        }
    }

    pub async fn step(&self, step: &Step) {
        let fs = &self.fs;
        let p = &Patience::within(PATIENCE);
        let text = || format!("{step:?}");
        match step {
            Step::Create(at) => {
                let node = NewNode { kind: FileKind::File, mode: 0o644, rdev: 0 };
                self.change(text(), fs.mknod(ME, self.dir(at), &name(at), node, p)).await;
            }
            Step::CreateIn(at, number) => {
                if let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::Dir) {
                    let node = NewNode { kind: FileKind::File, mode: 0o644, rdev: 0 };
                    self.change(text(), fs.mknod(ME, found.ino, &inner_name(*number), node, p)).await;
                }
            }
            Step::UnlinkIn(at, number) => {
                if let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::Dir) {
                    self.change(text(), fs.unlink(found.ino, &inner_name(*number), p)).await;
                }
            }
            Step::Mkdir(at) => self.change(text(), fs.mkdir(ME, self.dir(at), &name(at), 0o755, p)).await,
            Step::Symlink(at) => self.change(text(), fs.symlink(ME, self.dir(at), &name(at), b"target", p)).await,
            Step::Unlink(at) => self.change(text(), fs.unlink(self.dir(at), &name(at), p)).await,
            Step::Rmdir(at) => self.change(text(), fs.rmdir(self.dir(at), &name(at), p)).await,
            Step::Rename(from, to, how) => {
                let how = match how {
                    How::Replace => RenameHow::Replace,
                    How::NoReplace => RenameHow::NoReplace,
                    How::Exchange => RenameHow::Exchange,
                };
                let (from, from_name, to, to_name) = (self.dir(from), name(from), self.dir(to), name(to));
                self.change(text(), fs.rename((from, &from_name), (to, &to_name), how, p)).await;
            }
            Step::Link(from, to) => {
                if let Some(found) = self.lookup(from).await {
                    self.change(text(), fs.link(found.ino, self.dir(to), &name(to), p)).await;
                }
            }
            Step::Chmod(at, mode) => {
                if let Some(found) = self.lookup(at).await {
                    let set = SetAttr { mode: Some(u32::from(*mode)), ..SetAttr::default() };
                    self.change(text(), self.kernel.alone(found.ino, fs.setattr(found.ino, set, p))).await;
                }
            }
            Step::Mark(at, mark) => {
                if let Some(found) = self.lookup(at).await {
                    let marking = Box::pin(async {
                        match mark {
                            Some(mark) => {
                                fs.setxattr(found.ino, MARK, mark.to_string().as_bytes(), XattrHow::Set, p).await
                            }
                            None => fs.removexattr(found.ino, MARK, p).await,
                        }
                    });
                    self.change(text(), self.kernel.alone(found.ino, marking)).await;
                    if mark.is_some_and(|mark| mark % 3 == 0) {
                        self.marked(found.ino).await;
                    }
                }
            }
            Step::Marked(at) => {
                if let Some(found) = self.lookup(at).await {
                    self.marked(found.ino).await;
                }
            }
            Step::Truncate(at, size) => {
                if let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::File) {
                    let set = SetAttr { size: Some(u64::from(*size)), ..SetAttr::default() };
                    self.change(text(), self.alone(found.ino, fs.setattr(found.ino, set, p))).await;
                    // At once, as its answer may still be on its way.
                    match size % 4 {
                        0 => self.stat(found.ino).await,
                        1 => drop(self.read(found.ino).await),
                        _ => {}
                    }
                }
            }
            Step::Fallocate(at, range, how) => self.fallocate(text(), at, *range, *how).await,
            Step::Clone(from, range, to, offset) => self.clone_range(text(), (from, *range), (to, *offset)).await,
            Step::Write(at, content) => self.write(text(), at, &[*content], false, false).await,
            Step::WriteSynced(at, content) => self.write(text(), at, &[*content], false, true).await,
            Step::WriteSome(at, contents) => self.write(text(), at, contents, false, false).await,
            Step::Append(at, content) => self.write(text(), at, &[*content], true, false).await,
            Step::Unlinked(at, content) => self.unlinked(text(), at, content).await,
            Step::Lookup(at) => {
                self.lookup(at).await;
            }
            Step::Stat(at) => {
                if let Some(found) = self.lookup(at).await {
                    self.stat(found.ino).await;
                }
            }
            Step::StatDir(dir) => self.stat(self.dirs[usize::from(*dir)]).await,
            Step::List(dir) => drop(self.list(self.dirs[usize::from(*dir)]).await),
            Step::Read(at) => {
                if let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::File) {
                    drop(self.read(found.ino).await);
                }
            }
            Step::Watch { at, times, every_ms } => {
                self.watch(at, *times, Duration::from_millis((*every_ms).into())).await
            }
            Step::Count(count) => self.count(text(), *count).await,
            Step::SleepMs(ms) => tokio::time::sleep(Duration::from_millis(u64::from(*ms))).await,
        }
    }

    /// Looks at a place until there is something new, or for ever, as far as that goes.
    async fn watch(&self, at: &Place, times: u8, every: Duration) {
        for round in 0..times {
            if let Some(found) = self.lookup(at).await {
                match (round % 3, found.kind) {
                    (0, _) => self.stat(found.ino).await,
                    (1, FileKind::File) => drop(self.read(found.ino).await),
                    (1, FileKind::Dir) => drop(self.list(found.ino).await),
                    (1, _) => {}
                    _ => self.marked(found.ino).await,
                }
            }
            if round % 4 == 3 {
                self.list(self.dir(at)).await;
            }
            tokio::time::sleep(every).await;
        }
    }

    fn dir(&self, place: &Place) -> u64 {
        self.dirs[usize::from(place.0)]
    }

    /// The number that the cluster knows an inode by.
    fn true_ino(&self, ino: u64) -> u64 {
        if ino == ROOT { Ino::root(self.fs.client().namespace()).0 } else { ino }
    }

    /// Notes one operation: what it is, and what it found.
    ///
    /// What passes work on, here and below, boxes it: an `async fn` holds what it is given twice, and each layer
    /// more would double what a step takes of the stack.
    fn operation<T>(
        &self,
        text: String,
        work: impl Future<Output = Result<T, FsError>>,
        found: impl FnOnce(&Result<T, FsError>) -> Found,
    ) -> impl Future<Output = Option<T>> {
        let work = Box::pin(work);
        async move {
            let operation = self.history.invoked(self.client, text);
            let result = as_operation(operation, work).await;
            if let Err(FsError::Call(CallError::SessionLost)) = &result {
                // What is remembered of an ended session is more than a run has under way.
                self.history.violated(format!("nobody knows what became of operation {operation}"));
            }
            self.history.returned(operation, found(&result));
            result.ok()
        }
    }

    fn change<T>(&self, text: String, work: impl Future<Output = Result<T, FsError>>) -> impl Future<Output = ()> {
        let work = Box::pin(work);
        let work = async {
            // It keeps what lists out of a directory that is being changed.
            self.kernel.changed();
            let result = work.await;
            self.kernel.changed();
            result
        };
        let changed = self.operation(text, work, |result| match result {
            Ok(_) => Found::Changed(Ok(())),
            Err(error) => refusal(error).map_or(Found::Nothing, |refusal| Found::Changed(Err(refusal))),
        });
        async { drop(changed.await) }
    }

    async fn lookup(&self, at: &Place) -> Option<Stat> {
        self.lookup_name(self.dir(at), &name(at)).await
    }

    pub async fn lookup_name(&self, dir: u64, name: &[u8]) -> Option<Stat> {
        let true_dir = self.true_ino(dir);
        let text = format!("lookup {}/{}", true_dir, String::from_utf8_lossy(name));
        let patience = Patience::within(PATIENCE);
        let looking = self.kernel.lookup(&self.fs, dir, name, &patience);
        let own = self.all_own();
        self.operation(text, looking, |result| match result {
            Ok(found) => {
                let entry = found.as_ref().map(|stat| self.entry(stat, &own));
                Found::Entry { dir: true_dir, name: name.to_vec(), entry }
            }
            Err(_) => Found::Nothing,
        })
        .await
        .flatten()
    }

    /// What was shown, while `own` was this mount's own when it was asked for.
    fn entry(&self, stat: &Stat, own: &BTreeMap<u64, Own>) -> Entry {
        let own = own.get(&stat.ino).copied().unwrap_or_default();
        let is_file = stat.kind == FileKind::File;
        let is_shared = own.now == 0 && own == self.own(stat.ino);
        let size = (is_file && is_shared).then_some(stat.size);
        let times = (!is_file || is_shared).then_some(Times { mtime: stat.mtime, ctime: stat.ctime });
        Entry { ino: self.true_ino(stat.ino), kind: stat.kind, mode: stat.mode, nlink: stat.nlink, size, times }
    }

    pub async fn stat(&self, ino: u64) {
        let true_ino = self.true_ino(ino);
        let text = format!("stat {true_ino}");
        let patience = Patience::within(PATIENCE);
        let own = self.all_own();
        self.operation(text, self.kernel.getattr(&self.fs, ino, &patience), |result| match result {
            Ok(stat) => Found::Inode { ino: true_ino, entry: Some(self.entry(stat, &own)) },
            Err(error) => match refusal(error) {
                Some(Refusal::Stale) => Found::Inode { ino: true_ino, entry: None },
                _ => Found::Nothing,
            },
        })
        .await;
    }

    async fn marked(&self, ino: u64) {
        let true_ino = self.true_ino(ino);
        let looking = async {
            match self.fs.getxattr(ino, MARK, &Patience::within(PATIENCE)).await {
                Ok(mark) => Ok(Some(mark)),
                Err(FsError::NoAttribute) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.operation(format!("mark of {true_ino}"), looking, |result| match result {
            Ok(mark) => Found::Mark { ino: true_ino, mark: mark.as_deref().map(<[u8]>::to_vec) },
            Err(_) => Found::Nothing,
        })
        .await;
    }

    /// The names in a directory, each with its inode.
    pub async fn list(&self, dir: u64) -> Option<BTreeMap<Vec<u8>, u64>> {
        let true_dir = self.true_ino(dir);
        let listing = async {
            let handle = self.fs.opendir(dir);
            let (mut names, mut offset) = (BTreeMap::new(), 0);
            loop {
                let patience = Patience::within(PATIENCE);
                let entries = self.kernel.list(&self.fs, dir, (handle, offset), &patience).await?;
                let Some(last) = entries.last() else { break };
                offset = last.offset;
                names.extend(entries.into_iter().map(|entry| (entry.name, entry.ino)));
            }
            self.fs.releasedir(handle)?;
            names.remove(&b"."[..]);
            names.remove(&b".."[..]);
            Ok(names)
        };
        self.operation(format!("list {true_dir}"), listing, |result| match result {
            Ok(names) => Found::Names { dir: true_dir, names: names.clone() },
            Err(_) => Found::Nothing,
        })
        .await
    }

    pub async fn read(&self, ino: u64) -> Option<Vec<u8>> {
        let is_own = self.is_own(ino);
        let reading = async {
            let p = &Patience::within(PATIENCE);
            let opened = self.fs.open(ino, false, p).await?;
            let content = self.read_all(opened.handle).await;
            self.fs.release(opened.handle)?;
            content
        };
        self.operation(format!("read {ino}"), reading, |result| match result {
            // What is written here meanwhile is shown here at once.
            Ok(content) if !is_own && !self.is_own(ino) => Found::Content { ino, content: content.clone() },
            _ => Found::Nothing,
        })
        .await
    }

    async fn read_all(&self, handle: u64) -> Result<Vec<u8>, FsError> {
        // In one piece: between two, another mount's write may come.
        let read = self.fs.read(handle, 0, LARGEST_FILE, &Patience::within(PATIENCE)).await?;
        Ok(read.to_vec())
    }

    async fn write(&self, text: String, at: &Place, contents: &[Content], append: bool, synced: bool) {
        let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::File) else { return };
        self.writing(text, found.ino, append, async |handle| {
            let mut pieces = Vec::new();
            for content in contents {
                let mut bytes = content.bytes();
                bytes.truncate(self.write_all((found.ino, handle), u64::from(content.offset), &bytes).await?);
                pieces.push((u64::from(content.offset), bytes));
            }
            if synced {
                let begun = self.history.moment();
                self.fs.fsync(handle, &Patience::within(PATIENCE)).await?;
                self.history.synced(self.client, begun);
            }
            Ok(Some(pieces))
        })
        .await;
    }

    /// Opens a file, has it written to, and closes it. `write` says what it has written, if it knows.
    async fn writing(
        &self,
        text: String,
        ino: u64,
        append: bool,
        write: impl AsyncFnOnce(u64) -> Result<Option<Pieces>, FsError>,
    ) {
        let own = self.owned(ino);
        let writing = async {
            let p = &Patience::within(PATIENCE);
            let opened = self.fs.open(ino, append, p).await?;
            let written = async {
                let pieces = write(opened.handle).await?;
                self.fs.flush(opened.handle, p).await?;
                Ok(pieces)
            };
            let written = written.await;
            self.fs.release(opened.handle)?;
            written
        };
        let written = self
            .operation(text, writing, |result| match result {
                // With another writer beside it, what is written is not its own alone.
                Ok(Some(pieces)) if own.now == 1 && self.own(ino) == own => {
                    let pieces = pieces.iter().filter(|(_, bytes)| !bytes.is_empty()).cloned().collect();
                    Found::Written { ino, wrote: Wrote { pieces, appended: append } }
                }
                Err(error) if i32::from(error.errno()) == libc::EDQUOT => {
                    // What had been granted may have gone with the log.
                    if self.history.lock().log_lost.is_none() {
                        self.history.violated(format!("the quota is told of after the write: {error}"));
                    }
                    Found::Nothing
                }
                _ => Found::Nothing,
            })
            .await;
        // What has not been answered for stays this mount's own for good.
        if written.is_some() {
            self.disowned(ino);
        }
    }

    /// As programs write: until all is written, or there is no room. Says how much was.
    async fn write_all(&self, (ino, handle): (u64, u64), offset: u64, bytes: &[u8]) -> Result<usize, FsError> {
        let p = &Patience::within(PATIENCE);
        let mut written = 0;
        while written < bytes.len() {
            let call = self.fs.write(handle, offset + written as u64, &bytes[written..], p);
            match self.kernel.alone(ino, call).await {
                Ok(more) => written += more as usize,
                Err(FsError::QuotaExceeded) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    async fn fallocate(&self, text: String, at: &Place, range: Range, how: FallocateHow) {
        let Some(found) = self.lookup(at).await.filter(|found| found.kind == FileKind::File) else { return };
        let changing = async {
            let p = &Patience::within(PATIENCE);
            let opened = self.fs.open(found.ino, false, p).await?;
            let (offset, len) = (u64::from(range.offset), u64::from(range.len));
            let call = self.fs.fallocate(opened.handle, offset, len, how, p);
            let changed = self.alone(found.ino, call).await;
            self.fs.release(opened.handle)?;
            changed
        };
        self.change(text, changing).await;
    }

    async fn clone_range(&self, text: String, (from, range): (&Place, Range), (to, to_offset): (&Place, u32)) {
        let (from, to) = (self.lookup(from).await, self.lookup(to).await);
        let file = |found: Option<Stat>| found.filter(|found| found.kind == FileKind::File);
        let (Some(from), Some(to)) = (file(from), file(to)) else { return };
        if from.ino != to.ino && u64::from(range.len) <= COPIED_HERE_BYTES {
            return self.copy(text, (from.ino, range), (to.ino, to_offset)).await;
        }
        let changing = async {
            let p = &Patience::within(PATIENCE);
            let source = self.fs.open(from.ino, false, p).await?.handle;
            let target = self.fs.open(to.ino, false, p).await;
            let copied = match &target {
                Ok(target) => {
                    let (source, target) = ((source, range.offset.into()), (target.handle, to_offset.into()));
                    self.alone(to.ino, self.fs.copy_range(source, target, range.len.into(), p)).await
                }
                Err(error) => Err(error.clone()),
            };
            for handle in [Some(source), target.ok().map(|target| target.handle)].into_iter().flatten() {
                self.fs.release(handle)?;
            }
            copied
        };
        self.change(text, changing).await;
    }

    /// What is as short as this is not cloned: the mount reads and writes it.
    async fn copy(&self, text: String, (from, range): (u64, Range), (to, to_offset): (u64, u32)) {
        let p = &Patience::within(PATIENCE);
        let Ok(source) = self.fs.open(from, false, p).await else { return };
        let part = async || self.fs.read(source.handle, range.offset.into(), range.len, p).await;
        self.writing(text, to, false, async |target| {
            let before = part().await?;
            let target = (target, u64::from(to_offset));
            let copying = self.fs.copy_range((source.handle, range.offset.into()), target, range.len.into(), p);
            match self.kernel.alone(to, copying).await {
                Ok(len) => {
                    let is_same = part().await? == before && len <= before.len() as u64;
                    Ok(is_same.then(|| vec![(u64::from(to_offset), before[..len as usize].to_vec())]))
                }
                // No room.
                Err(FsError::QuotaExceeded) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await;
        // Nothing was written through it.
        let _ = self.fs.release(source.handle);
    }

    /// A temporary file that loses its name while it is open.
    async fn unlinked(&self, text: String, at: &Place, content: &Content) {
        let p = &Patience::within(PATIENCE);
        let how = CreateHow { exclusive: true, ..CreateHow::default() };
        // Nobody else knows the name, or it could be written by others.
        let private = format!("t{}-{}", self.client, content.fill).into_bytes();
        let begun = Instant::now();
        let operation = self.history.invoked(self.client, format!("{text}: create"));
        let created = as_operation(operation, self.fs.create(ME, self.dir(at), &private, 0o600, how, p)).await;
        let found = match &created {
            Ok(_) => Found::Changed(Ok(())),
            Err(error) => refusal(error).map_or(Found::Nothing, |refusal| Found::Changed(Err(refusal))),
        };
        self.history.returned(operation, found);
        let Ok((stat, opened)) = created else { return };
        self.owned(stat.ino);
        self.change(format!("{text}: unlink"), self.fs.unlink(self.dir(at), &private, p)).await;
        let expected = {
            let mut expected = vec![0; content.offset as usize];
            expected.extend_from_slice(&content.bytes());
            // The first half is written over.
            for byte in expected.iter_mut().skip(content.offset as usize).take(content.len as usize / 2) {
                *byte ^= 0x55;
            }
            expected
        };
        let using = async {
            let (from, half) = (content.offset as usize, content.len as usize / 2);
            for bytes in [&content.bytes(), &expected[from..from + half]] {
                if self.write_all((stat.ino, opened.handle), from as u64, bytes).await? < bytes.len() {
                    return Err(FsError::QuotaExceeded);
                }
            }
            let before = self.read_all(opened.handle).await?;
            self.fs.flush(opened.handle, p).await?;
            Ok::<_, FsError>((before, self.read_all(opened.handle).await?))
        };
        let operation = self.history.invoked(self.client, format!("{text}: use"));
        let used = as_operation(operation, using).await;
        self.history.returned(operation, Found::Nothing);
        match used {
            Ok((before, after)) if before != expected || after != expected => {
                self.history.violated(format!("{text}: inode {} is not read as it was written", stat.ino));
            }
            // An epoch ends every session.
            Err(error)
                if error.is(Refusal::Stale)
                    && begun.elapsed() < SESSION_LASTS
                    && self.history.lock().log_lost.is_none() =>
            {
                self.history.violated(format!("{text}: inode {} has gone although it is open", stat.ino));
            }
            _ => {}
        }
        // Its failure would be the handle's, which was open.
        let _ = self.fs.release(opened.handle);
    }

    /// Everything that is there, looked at once more by somebody who knows nothing yet.
    /// What cannot be read at all is a violation, unless the only copy may have been damaged.
    pub async fn look_at_all(&self, may_have_lost: bool) {
        let mut dirs = VecDeque::from([ROOT]);
        let mut seen = BTreeSet::new();
        self.stat(ROOT).await;
        while let Some(dir) = dirs.pop_front() {
            let Some(names) = self.list(dir).await else {
                self.history.violated("the tree cannot be listed when all faults are over".into());
                return;
            };
            for name in names.keys() {
                let Some(stat) = self.lookup_name(dir, name).await else { continue };
                match stat.kind {
                    FileKind::Dir if seen.insert(stat.ino) => dirs.push_back(stat.ino),
                    FileKind::File
                        if seen.insert(stat.ino) && self.read(stat.ino).await.is_none() && !may_have_lost =>
                    {
                        self.history.violated(format!("inode {} cannot be read when all faults are over", stat.ino));
                    }
                    _ => {}
                }
            }
        }
    }

    fn owned(&self, ino: u64) -> Own {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own.entry(ino).or_default();
        *own = Own { now: own.now + 1, ever: own.ever + 1 };
        *own
    }

    /// A call that changes a file's content otherwise than by writing. Who writes to it meanwhile may find it between two of
    /// its writes.
    fn alone<T>(&self, ino: u64, call: impl Future<Output = T>) -> impl Future<Output = T> {
        let call = Box::pin(call);
        self.kernel.alone(ino, async move {
            let done = call.await;
            self.own.lock().unwrap_or_else(PoisonError::into_inner).entry(ino).or_default().ever += 1;
            done
        })
    }

    fn disowned(&self, ino: u64) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = own.get_mut(&ino) {
            own.now -= 1;
        }
    }

    fn all_own(&self) -> BTreeMap<u64, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn own(&self, ino: u64) -> Own {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).get(&ino).copied().unwrap_or_default()
    }

    fn is_own(&self, ino: u64) -> bool {
        self.own(ino).now > 0
    }
}

/// The directory of a number, below the root.
pub fn dir_name(number: u8) -> Vec<u8> {
    format!("dir{number}").into_bytes()
}

fn name(place: &Place) -> Vec<u8> {
    format!("n{}", place.1).into_bytes()
}

/// A name in a directory that steps make.
fn inner_name(number: u8) -> Vec<u8> {
    format!("in{number}").into_bytes()
}

/// The server's no, if it is one.
fn refusal(error: &FsError) -> Option<Refusal> {
    match error {
        FsError::Call(CallError::Refused { refusal, .. }) => Some(*refusal),
        _ => None,
    }
}
