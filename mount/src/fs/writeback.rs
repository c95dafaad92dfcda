//! Write-back: from dirty ranges to answered requests.
//!
//! * A write copies into the buffer and waits only for room. Whole chunks leave
//!   as they fill; what is left lying leaves after [`LIE_STILL`], at close, or before
//!   an operation that publishes it.
//! * Packs of a file are sealed and uploaded side by side, on worker threads, and
//!   quoted by requests strictly in order ([`Fs::pump`]).
//! * What has left the buffer is sent for ever; only waiting for it is bounded.
//! * A failure is kept and told once, by the next write, flush or fsync.

use super::dirty::Segment;
use super::extents::Extent;
use super::file::{File, FileHandle, Progress, State};
use super::pack::{self, Draft, Pack, Stage, Through};
use super::room::RoomFor;
use super::stamps::Life;
use super::{Fs, Inner};
use crate::client::{CallError, Patience, Reply, Room, Submitted, Terms};
use crate::error::FsError;
use crate::inline;
use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::message::{Attr, Op, Outcome, Piece, Resource, Source, Upload, WriteAt};
use proto::planted::{Bug, planted};
use proto::{Ino, Name};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How long a written range lies still before it is sent unasked, by the next look at all that lies.
const LIE_STILL: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(25);
/// How long one that is being added to may lie.
const LIE_AT_MOST: Duration = Duration::from_millis(500);
/// The most content that travels in its request where the broker keeps little of a partition, in bytes.
const INLINE_VOLATILE_BYTES: usize = 64 << 10;
/// Content that one request quotes before more is waited for, in bytes.
const COMMIT_BYTES: usize = 8 << 20;

/// A request for some packs.
pub struct Sent {
    /// The last of its packs.
    last: u64,
    at: WriteAt,
    /// What the requests says, to bring caches up to it when it is answered.
    pieces: Vec<Piece>,
    /// The hashes of inline pieces, by piece.
    hashes: Vec<Option<[u8; 32]>>,
    /// Where its first piece was thought to stand.
    start: u64,
    answer: Waiting,
    through: Option<Through>,
}

impl State {
    /// Takes packs for sent up to `last`, in this life of the content's promise; gives where the first of them was
    /// thought to stand.
    fn leave(&mut self, last: u64, life: Option<Life>) -> u64 {
        let mut start = u64::MAX;
        for pack in self.packs.iter_mut().filter(|p| p.seq <= last && !matches!(p.stage, Stage::Sent { .. })) {
            start = pack.parts.iter().map(|p| p.offset).min().unwrap_or(start).min(start);
            pack.stage = Stage::Sent { life };
        }
        start
    }

    fn expect(&mut self, file: &File, sent: Sent) {
        let last = sent.last;
        self.answers.push_back(sent);
        file.progress.send_modify(|p| p.sent = p.sent.max(last));
    }
}

/// What came of a write that waits for nothing.
enum Tried {
    Written(u32),
    /// The buffer is full.
    BufferFull,
    /// Under the quota nothing is reserved for it.
    NoRoom,
    /// It is to be appended, and nothing here says where the file ends.
    EndUnknown,
}

/// Files that may have content left lying. Locked behind a file's own state.
#[derive(Default)]
pub(super) struct Lying {
    files: Vec<Arc<File>>,
    is_looked_after: bool,
}

enum Waiting {
    For(Submitted),
    /// It could not be sent.
    Nothing(FsError),
}

impl Fs {
    /// Writes from the thread that asks, if nothing has to be waited for; `None`
    /// says that it has to.
    pub fn write_now(&self, handle: u64, offset: u64, data: &[u8]) -> Result<Option<u32>, FsError> {
        let handle = self.inner.handles.file(handle)?;
        match self.write_with(&handle, offset, data, None, &mut None)? {
            Tried::Written(written) => Ok(Some(written)),
            Tried::BufferFull | Tried::NoRoom | Tried::EndUnknown => Ok(None),
        }
    }

    /// Writes; waits for room in the buffer, and under the quota, if there is none. `O_APPEND` handles write to
    /// the end whatever the offset. Where the quota leaves room for a part only, that is written.
    pub async fn write(&self, handle: u64, offset: u64, data: &[u8], patience: &Patience) -> Result<u32, FsError> {
        let handle = self.inner.handles.file(handle)?;
        let started = Instant::now();
        let (mut data, mut room, mut end) = (data, None, None);
        loop {
            let freed = self.inner.budget.freed();
            tokio::pin!(freed);
            // Registered before looking, so that no release in between is missed.
            freed.as_mut().enable();
            match self.write_with(&handle, offset, data, end, &mut room)? {
                Tried::Written(written) => return Ok(written),
                Tried::BufferFull => {}
                Tried::EndUnknown => {
                    self.reshaped(handle.file.ino, patience).await?;
                    end = Some(self.attr(handle.file.ino, patience).await?.size);
                    continue;
                }
                Tried::NoRoom => match self.room_for(&handle, offset, data, patience).await? {
                    RoomFor::Reserved(reserved) => {
                        data = &data[..reserved.amount()];
                        (room, end) = (Some(reserved), None);
                        continue;
                    }
                    RoomFor::Written(written) => return Ok(written),
                },
            }
            self.inner.files.all().iter().for_each(|file| {
                self.send_all(file);
            });
            // The file may have another end by then.
            end = None;
            match patience.wait_for_content(freed, || self.inner.client.gone_up()).await {
                Ok(()) => {}
                Err(CallError::TimedOut { .. }) => return Err(FsError::BufferFull { waited: started.elapsed() }),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn write_with(
        &self,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
        known_end: Option<u64>,
        room: &mut Option<Room>,
    ) -> Result<Tried, FsError> {
        let file = &handle.file;
        // In this order: a lock that is lost in between must not let the write pass as one without a lock.
        let locked_in = file.owners().session();
        self.check_locks(handle)?;
        if offset.saturating_add(data.len() as u64) > Upload::MAX_FILE_BYTES {
            return Err(FsError::FileTooLarge { max: Upload::MAX_FILE_BYTES });
        }
        let mut state = file.state();
        if let Some(failure) = state.failure.take() {
            return Err(failure);
        }
        let at = match handle.append {
            true => self.end_to_append_at(file, &state, known_end),
            false => Some(offset),
        };
        let Some(at) = at else { return Ok(Tried::EndUnknown) };
        if !self.inner.budget.try_take(data.len()) {
            return Ok(Tried::BufferFull);
        }
        let Some(room) = room.take().or_else(|| self.inner.client.take_room(Resource::Bytes, data.len())) else {
            self.inner.budget.give_back(data.len());
            return Ok(Tried::NoRoom);
        };
        if locked_in.is_some() || state.dirty.is_empty() {
            state.only_in = locked_in;
        }
        let before = state.dirty.bytes();
        state.dirty.write(at, data, handle.append);
        room.keep();
        // What was overwritten takes no more room.
        self.forgotten(before + data.len() - state.dirty.bytes());
        let now = Instant::now();
        state.dirty_since.get_or_insert(now);
        state.written = Some(now);
        state.mtime = self.inner.client.now();
        let append = state.dirty.is_appended();
        let full = if state.dirty.has_full() { state.dirty.take_full() } else { Vec::new() };
        self.enqueue(file, &mut state, full, append);
        if !std::mem::replace(&mut state.is_lying, true) {
            self.lies(file.clone());
        }
        let others_map = handle.bypasses && state.handles > 1;
        drop(state);
        // The kernel has put the data where it thought the end was, or nowhere.
        if at != offset || others_map {
            self.inval_pages(file.ino);
        }
        Ok(Tried::Written(data.len() as u32))
    }

    /// Where what is appended stands, as far as is known here; `known_end` is what was asked for. What a copy or a
    /// cut has left is not known before that is answered for.
    fn end_to_append_at(&self, file: &File, state: &State, known_end: Option<u64>) -> Option<u64> {
        if self.last_reshaped(file.ino).is_some() {
            return None;
        }
        let known = self.cache().content(self.promises(), file.ino, 0, 0).map(|c| c.size).or(known_end);
        known.max(state.pending().map(|pending| pending.end))
    }

    /// Written content of so many bytes will be in no request.
    fn forgotten(&self, bytes: usize) {
        self.inner.budget.give_back(bytes);
        self.inner.client.return_room(bytes);
    }

    /// Takes ranges out of the buffer: inline ones are ready at once, others are
    /// queued for the file's uploader.
    fn enqueue(&self, file: &Arc<File>, state: &mut State, segments: Vec<Segment>, append: bool) {
        if state.dirty.is_empty() {
            state.dirty_since = None;
        }
        for draft in pack::drafts(segments, self.inline_bytes()) {
            state.last_seq += 1;
            let seq = state.last_seq;
            let stage = match draft.inline {
                true => self.seal_inline(state, &draft),
                false => {
                    state.uploads.push_back((seq, draft.plain.clone()));
                    Stage::Uploading
                }
            };
            let only_in = state.only_in;
            let Draft { parts, plain, .. } = draft;
            state.packs.push_back(Pack { seq, parts, plain, stage, only_in, append, through: None });
        }
        if !state.uploads.is_empty() && !state.uploading {
            state.uploading = true;
            proto::task::spawn_on(&self.inner.runtime, self.clone().upload_all(file.clone()));
        }
    }

    fn inline_bytes(&self) -> usize {
        let most = if self.inner.client.volatile() { INLINE_VOLATILE_BYTES } else { usize::MAX };
        self.inner.config.inline_bytes.min(most)
    }

    /// Sends what can leave, in order. Small batches wait for the packs behind
    /// them unless `force` or nothing is to come.
    pub(super) fn pump(&self, file: &Arc<File>, force: bool) {
        // Well before uploads have to wait for these to be quoted.
        let enough = COMMIT_BYTES.min(self.inner.client.window_bytes() as usize / 4);
        let mut state = file.state();
        loop {
            let failed = state
                .packs
                .iter()
                .find(|p| !matches!(p.stage, Stage::Sent { .. }))
                .filter(|p| matches!(p.stage, Stage::Failed));
            if let Some(seq) = failed.map(|p| p.seq) {
                let error = state.failure.clone().unwrap_or(FsError::WrongAnswer { op: "write" });
                let (pieces, hashes, answer) = (Vec::new(), Vec::new(), Waiting::Nothing(error));
                let pack = state.packs.iter_mut().find(|p| p.seq == seq);
                let (bytes, through) = pack.map_or((0, None), |p| (p.plain.len(), p.through.take()));
                if through.is_none() {
                    self.inner.client.return_room(bytes);
                }
                let start = state.leave(seq, None);
                state.expect(file, Sent { last: seq, at: WriteAt::Offsets, pieces, hashes, start, answer, through });
                continue;
            }
            let Some(batch) = pack::next_batch(&state.packs) else { break };
            let first = state.packs[batch.packs.start].seq;
            let last = state.packs[batch.packs.end - 1].seq;
            let asked = first <= state.commit_upto;
            let complete = last >= state.commit_upto || !batch.more_to_come;
            if !(force || batch.bytes >= enough || (asked && complete)) {
                break;
            }
            let (at, pieces, payload) = pack::write_request(state.packs.range(batch.packs.clone()));
            let hashes = inline_hashes(&pieces, state.packs.range(batch.packs.clone()));
            let first = &mut state.packs[batch.packs.start];
            let (only_in, through) = (first.only_in, first.through.take());
            let reserved = through.is_none();
            let write = Op::Upload(Upload::Write { ino: file.ino, at, pieces: pieces.clone(), reserved });
            // Of when it was written, or the file's times would move once more now that it is sent.
            // What has no room reserved may be refused, and what is written under a lock counts in one session only.
            let local = reserved && only_in.is_none() && self.writes_locally(file.ino);
            let terms = Terms { time: state.mtime, only_in, local };
            // Before it leaves: what others write behind it ends this life.
            let life = self.cache().content_life(self.promises(), file.ino);
            // Under the file's lock: requests enter the stream in the order of the packs.
            let submitted = match reserved {
                true => self.inner.client.submit_reserved(terms, write, payload, (Resource::Bytes, batch.bytes)),
                false => self.inner.client.submit_on(terms, write, payload),
            };
            if !(local && submitted.is_journaled()) {
                file.progress.send_modify(|p| p.undelegated = last);
            }
            let answer = Waiting::For(submitted);
            let start = state.leave(last, life);
            state.expect(file, Sent { last, at, pieces, hashes, start, answer, through });
        }
        let begins = !state.answers.is_empty() && !std::mem::replace(&mut state.answering, true);
        drop(state);
        if begins {
            inline::start(&self.inner.runtime, take_answers(Arc::downgrade(&self.inner), file.clone()));
        }
    }

    /// Brings the caches up to an answered write.
    fn answered(
        &self,
        file: &File,
        reply: &Reply,
        at: WriteAt,
        pieces: Vec<Piece>,
        hashes: Vec<Option<[u8; 32]>>,
        start: u64,
    ) -> Result<(), FsError> {
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "write" }) };
        let len = pieces.last().map_or(0, |p| p.offset + u64::from(p.len));
        let base = match at {
            WriteAt::Offsets => 0,
            // What was appended is the file's end now.
            WriteAt::End => attr.size.saturating_sub(len),
        };
        let moved = at == WriteAt::End && base != start;
        let session = self.inner.client.session();
        let extents: Vec<(u64, Option<Extent>, u64)> = pieces
            .into_iter()
            .zip(hashes)
            .enumerate()
            .map(|(index, (piece, hash))| {
                let chunk = match (piece.source, hash, session) {
                    // One of another epoch has been uploaded once more, under another name.
                    (Source::Chunk(name), ..) if name.epoch == reply.at.epoch => Some(name),
                    // Of a request that had to wait, nobody has said where it stands.
                    (Source::Inline { .. }, Some(hash), Some(session)) if reply.at.effect() == 0 => {
                        Some(ChunkName::inline(reply.at, index as u32, session, hash))
                    }
                    _ => None,
                };
                let offset = base + piece.offset;
                let extent =
                    chunk.map(|chunk| Extent { len: piece.len, chunk, chunk_from: piece.chunk_from, key: piece.key });
                (offset, extent, offset + u64::from(piece.len))
            })
            .collect();
        self.keep_blocks(file, &extents, start, base, at);
        let mut before = None;
        self.cache().learn(self.promises(), reply, |l| {
            before = l.content_changed(attr, |map| {
                for (offset, extent, end) in extents {
                    match extent {
                        Some(extent) => map.put(offset, extent),
                        None => map.forget(offset, end),
                    }
                }
            });
        });
        self.inner.files.pages_follow(file.ino, before, attr.version);
        if moved {
            self.inval_pages(file.ino);
        }
        Ok(())
    }

    /// What was written stays in memory as plain content of its chunks.
    fn keep_blocks(&self, file: &File, extents: &[(u64, Option<Extent>, u64)], start: u64, base: u64, at: WriteAt) {
        let state = file.state();
        for (offset, extent, _) in extents {
            let Some(extent) = extent else { continue };
            // Where the pack believes it to be.
            let offset = if at == WriteAt::End { offset - base + start } else { *offset };
            let found = state.packs.iter().find_map(|pack| {
                let part = pack.parts.iter().find(|part| part.offset == offset && part.len == extent.len)?;
                (matches!(pack.stage, Stage::Sent { .. })).then_some((pack, part))
            });
            let Some((pack, part)) = found else { continue };
            let plain = match extent.chunk.topic {
                Topic::Requests => pack.plain.slice(part.from as usize..(part.from + part.len) as usize),
                _ => pack.plain.clone(),
            };
            self.inner.blocks.insert(extent.chunk, plain);
        }
    }

    fn lying(&self) -> MutexGuard<'_, Lying> {
        // The list is whole after each step.
        self.inner.lying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file has content that may be left lying.
    fn lies(&self, file: Arc<File>) {
        let mut lying = self.lying();
        lying.files.push(file);
        if !std::mem::replace(&mut lying.is_looked_after, true) {
            proto::task::spawn_on(&self.inner.runtime, self.clone().look_after_lying());
        }
    }

    /// Looks after what programs have written and left lying, as long as there is any. One task for all: most files are
    /// written and closed within a look.
    async fn look_after_lying(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut files = std::mem::take(&mut self.lying().files);
            files.retain(|file| {
                {
                    let mut state = file.state();
                    if state.is_clean() {
                        state.is_lying = false;
                        return false;
                    }
                    let still = state.written.is_none_or(|at| at.elapsed() >= LIE_STILL);
                    let old = state.dirty_since.is_some_and(|at| at.elapsed() >= LIE_AT_MOST);
                    if still || old {
                        self.take_all(file, &mut state);
                    }
                }
                self.pump(file, true);
                true
            });
            let mut lying = self.lying();
            lying.files.append(&mut files);
            if lying.files.is_empty() {
                lying.is_looked_after = false;
                return;
            }
        }
    }

    pub(super) fn take_all(&self, file: &Arc<File>, state: &mut State) -> u64 {
        let append = state.dirty.is_appended();
        let segments = state.dirty.take_all();
        self.enqueue(file, state, segments, append);
        state.commit_upto = state.last_seq;
        state.last_seq
    }

    /// Sets everything that was written on its way; gives the last pack's number.
    pub(super) fn send_all(&self, file: &Arc<File>) -> u64 {
        let last = self.take_all(file, &mut file.state());
        self.pump(file, false);
        last
    }

    /// close(): waits until what was written is answered for, or under a delegation in the stream, bounded even where
    /// everything else waits for ever.
    pub async fn flush(&self, handle: u64, patience: &Patience) -> Result<(), FsError> {
        self.flush_unless_gone(handle, patience, &Patience::for_ever()).await
    }

    /// The same for a caller that may exit meanwhile: then it waits only until the requests are in the stream, and so
    /// in the journal, which large content is once it is uploaded. If `parting` is interrupted it waits no more; what
    /// is not there yet is sent all the same, but no journal has it.
    pub(super) async fn flush_unless_gone(
        &self,
        handle: u64,
        patience: &Patience,
        parting: &Patience,
    ) -> Result<(), FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.check_locks(&handle)?;
        if planted(Bug::CloseDoesNotWait) {
            return Ok(());
        }
        let bounded = |patience: &Patience| patience.clone().bounded(self.inner.config.close_timeout);
        match self.write_back(&handle.file, &bounded(patience), Progress::is_safe).await {
            Err(FsError::Call(CallError::Interrupted)) => self.all_sent(&handle.file, &bounded(parting)).await,
            other => other,
        }
    }

    /// Waits until everything written is as safe as the cluster makes it: in the log under delegations, or answered for.
    pub async fn fsync(&self, handle: u64, patience: &Patience) -> Result<(), FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.check_locks(&handle)?;
        self.write_back(&handle.file, patience, Progress::is_safe).await?;
        if !self.inner.client.stored(patience).await? {
            self.write_back(&handle.file, patience, Progress::is_answered).await?;
            self.all_settled(patience).await?;
        }
        self.check_locks(&handle)?;
        Ok(self.inner.client.sync(patience).await?)
    }

    /// Directories are changed by requests that have been answered, but for what was answered here.
    pub async fn fsyncdir(&self, patience: &Patience) -> Result<(), FsError> {
        if !self.inner.client.stored(patience).await? {
            self.all_settled(patience).await?;
        }
        Ok(self.inner.client.sync(patience).await?)
    }

    /// Everything written so far, by anyone, is answered for, within `limit`.
    pub async fn sync_all(&self, limit: Duration) -> Result<(), FsError> {
        let patience = Patience::within(limit);
        let files = self.inner.files.all();
        files.iter().for_each(|file| {
            self.send_all(file);
        });
        for file in files {
            self.write_back(&file, &patience, Progress::is_answered).await?;
        }
        self.all_settled(&patience).await?;
        patience.wait(self.tell_accessed()).await?
    }

    async fn write_back(
        &self,
        file: &Arc<File>,
        patience: &Patience,
        reached: impl Fn(&Progress, u64) -> bool,
    ) -> Result<(), FsError> {
        self.wait_for(file, patience, reached).await?;
        match file.state().failure.take() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    async fn wait_for(
        &self,
        file: &Arc<File>,
        patience: &Patience,
        reached: impl Fn(&Progress, u64) -> bool,
    ) -> Result<(), FsError> {
        if file.state().is_clean() {
            return Ok(());
        }
        let last = self.send_all(file);
        self.reach(file, last, patience, reached).await
    }

    /// Waits until the file's packs up to `last` are as far as that.
    async fn reach(
        &self,
        file: &File,
        last: u64,
        patience: &Patience,
        reached: impl Fn(&Progress, u64) -> bool,
    ) -> Result<(), FsError> {
        let mut progress = file.progress.subscribe();
        if !reached(&progress.borrow(), last) {
            self.inner.client.somebody_waits();
        }
        let done = progress.wait_for(|p| reached(p, last));
        let moved = || {
            let progress = *file.progress.borrow();
            self.inner.client.gone_up() + progress.sent + progress.answered
        };
        let waited = patience.wait_for_content(done, moved).await?.map(drop);
        waited.map_err(|_| FsError::BadHandle(file.ino.0))
    }

    /// Before an operation on an inode that others may see, or that moves its ctime (what came behind it would get a
    /// later time): what was written to it goes first. Only its place in the stream matters, so no answer is awaited.
    pub(super) async fn before_publishing(&self, ino: Ino, patience: &Patience) -> Result<(), FsError> {
        match self.inner.files.get(ino) {
            Some(file) => self.all_sent(&file, patience).await,
            None => Ok(()),
        }
    }

    /// The same for a name, and for every file if the name is not known here.
    pub(super) async fn before_publishing_name(
        &self,
        dir: Ino,
        name: &Name,
        patience: &Patience,
    ) -> Result<(), FsError> {
        use super::cache::Found;
        if self.inner.budget.used() == 0 {
            return Ok(());
        }
        match self.cache().lookup(self.promises(), dir, name) {
            Some(Found::Absent) => Ok(()),
            Some(Found::Entry(Attr { ino, .. }) | Found::Inode(ino)) => self.before_publishing(ino, patience).await,
            None => {
                for file in self.inner.files.all() {
                    self.all_sent(&file, patience).await?;
                }
                Ok(())
            }
        }
    }

    /// Before a file gets another size: what was written behind it is void, the
    /// rest is answered for, so that nothing old shows up when it grows again.
    pub(super) async fn before_truncate(&self, ino: Ino, size: u64, patience: &Patience) -> Result<(), FsError> {
        let Some(file) = self.inner.files.get(ino) else { return Ok(()) };
        {
            let mut state = file.state();
            let before = state.dirty.bytes();
            state.dirty.truncate(size);
            self.forgotten(before - state.dirty.bytes());
        }
        self.forget_if_done(&file);
        self.all_answered(&file, patience).await
    }

    /// Everything that was written is in requests.
    pub(super) async fn all_sent(&self, file: &Arc<File>, patience: &Patience) -> Result<(), FsError> {
        self.wait_for(file, patience, |p, last| p.sent >= last).await
    }

    /// Before what was written here is read back: what has left may stand in the log by now, and others' content behind
    /// it, unless what was promised when it left still is. Otherwise its answer is awaited.
    pub(super) async fn not_overtaken(&self, file: &File, patience: &Patience) -> Result<(), FsError> {
        match self.overtaken(file) {
            Some(last) => self.reach(file, last, patience, Progress::is_answered).await,
            None => Ok(()),
        }
    }

    /// The last pack of a file that others' changes may stand behind.
    pub(super) fn overtaken(&self, file: &File) -> Option<u64> {
        let state = file.state();
        // Most files have nothing on its way, and then the promise need not be looked up.
        if state.packs.is_empty() {
            return None;
        }
        state.overtaken(self.cache().content_life(self.promises(), file.ino))
    }

    /// Before content is changed or asked about in the file's map: all that was written is answered for.
    pub(super) async fn all_answered(&self, file: &Arc<File>, patience: &Patience) -> Result<(), FsError> {
        self.wait_for(file, patience, Progress::is_answered).await
    }
}

/// Takes the answers to a file's requests, in their order, where they are read. Ends with the filesystem, which it does
/// not keep.
async fn take_answers(fs: Weak<Inner>, file: Arc<File>) {
    loop {
        let sent = {
            let mut state = file.state();
            match state.answers.pop_front() {
                Some(sent) => sent,
                None => {
                    state.answering = false;
                    break;
                }
            }
        };
        let (order, answer) = match sent.answer {
            Waiting::For(submitted) => (submitted.order(), submitted.await.map_err(FsError::from)),
            Waiting::Nothing(error) => (0, Err(error)),
        };
        // The answer to what has cut the file before is here, and may still be being taken in on another thread.
        let reshaped = Fs::if_there(&fs).filter(|fs| fs.last_reshaped(file.ino).is_some());
        if let Some(settled) = reshaped.map(|fs| fs.when_settled(order)) {
            settled.await;
        }
        let Some(fs) = Fs::if_there(&fs) else { return };
        let (last, start) = (sent.last, sent.start);
        let mut failure = match answer {
            Ok(reply) => fs.answered(&file, &reply, sent.at, sent.pieces, sent.hashes, start).err(),
            Err(error) if sent.through.is_some() => Some(error),
            Err(error) => Some(lost(file.ino, &error)),
        };
        if let Some(through) = sent.through
            && through.send(failure.clone().map_or(Ok(()), Err)).is_ok()
        {
            failure = None;
        }
        if let Some(failure) = &failure {
            tracing::warn!(ino = file.ino.0, error = %failure, "written content is lost");
            fs.inval_pages(file.ino);
        }
        let mut state = file.state();
        if failure.is_some() {
            state.failure = failure;
        }
        let mut freed = 0;
        while state.packs.front().is_some_and(|p| p.seq <= last) {
            freed += state.packs.pop_front().map_or(0, |p| p.plain.len());
        }
        drop(state);
        fs.inner.budget.give_back(freed);
        file.progress.send_modify(|p| p.answered = p.answered.max(last));
    }
    if let Some(fs) = Fs::if_there(&fs) {
        fs.forget_if_done(&file);
    }
}

pub(super) fn lost(ino: Ino, error: &FsError) -> FsError {
    FsError::Lost { ino: ino.0, reason: error.to_string(), errno: i32::from(error.errno()) }
}

fn inline_hashes<'a>(pieces: &[Piece], packs: impl Iterator<Item = &'a Pack>) -> Vec<Option<[u8; 32]>> {
    // Inline content stands in the payload in the order of the packs.
    let mut by_place = std::collections::HashMap::new();
    let mut from = 0;
    for pack in packs {
        if let Stage::Inline(sealed) = &pack.stage {
            for sealed in sealed {
                by_place.insert(from, sealed.hash);
                from += sealed.sealed.len() as u32;
            }
        }
    }
    pieces
        .iter()
        .map(|piece| match piece.source {
            Source::Inline { payload_from, .. } => by_place.get(&payload_from).copied(),
            Source::Chunk(_) => None,
        })
        .collect()
}
