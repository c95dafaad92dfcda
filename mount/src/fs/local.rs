//! Changes that are answered here: all that they touch is delegated, and enough of it is known.
//!
//! * Looking, submitting and bringing the cache up to date are one step under the cache's lock, so that what one program
//!   was told is what the next one finds.
//! * What is answered stands in the journal; where it does not, the program waits for the server after all.
//! * One task takes the server's answers, in the order of the requests, where they are read. One that is not a yes (the
//!   delegation had ended, and others have changed something) costs what is known of the places concerned; what was
//!   asked for is set aside in the journal's `conflicts/`.
//! * At most [`UNDER_WAY`] are not answered for; further ones wait until one of them is ([`Fs::one_more`]).

use super::cache::{Found, Local};
use super::extents::{ExtentMap, Part};
use super::pending::{Effect, Target, Touched};
use super::{Fs, Inner};
use crate::client::{Client, Patience, Reply, Room, Submitted, Terms};
use crate::error::FsError;
use crate::inline;
use proto::message::{
    Attr, AttrChange, Cursor, Delete, FileKind, NewInode, Op, Outcome, Promise, Refusal, RenameHow, Resource, Upload,
};
use proto::planted::{Bug, planted};
use proto::{Ino, Name, Position, Time};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Changes that are answered here and not answered for by the server.
const UNDER_WAY: usize = 2048;

/// The changes that are under way.
pub(super) struct Locals {
    slots: Arc<Semaphore>,
    sent: Mutex<Unanswered>,
    progress: watch::Sender<Progress>,
}

/// What the server has not been heard of, in its order; at most [`UNDER_WAY`].
#[derive(Default)]
struct Unanswered {
    sent: VecDeque<Sent>,
    /// A task takes the answers.
    answering: bool,
}

#[derive(Default)]
struct Progress {
    /// The orders of the changes that are under way, rising.
    orders: VecDeque<u64>,
    /// The last of them that has copied into a file or cut it, by file: what is known of its content lacks that before it
    /// is answered for.
    reshaped: BTreeMap<Ino, u64>,
}

impl Progress {
    /// Whether everything up to this order is answered for, and known to be.
    fn is_settled(&self, upto: u64) -> bool {
        self.orders.front().is_none_or(|first| *first > upto)
    }

    fn begin(&mut self, order: u64, reshaped: Option<&Reshaped>) {
        self.orders.push_back(order);
        self.reshaped.extend(reshaped.map(|reshaped| (reshaped.ino, order)));
    }

    fn end(&mut self, order: u64, reshaped: Option<&Reshaped>) {
        self.orders.pop_front();
        if let Some(reshaped) = reshaped
            && self.reshaped.get(&reshaped.ino) == Some(&order)
        {
            self.reshaped.remove(&reshaped.ino);
        }
    }
}

/// A file whose content has changed otherwise than by a write.
struct Reshaped {
    ino: Ino,
    how: How,
}

enum How {
    /// Another file's content is in this range now.
    Copied(Range<u64>),
    /// It ends here.
    Cut(u64),
}

impl Reshaped {
    /// Brings what is known of the content up to the change.
    fn apply(&self, map: &mut ExtentMap) {
        match &self.how {
            How::Copied(range) => map.forget(range.start, range.end),
            How::Cut(size) => map.truncate(*size),
        }
    }
}

struct Sent {
    submitted: Submitted,
    touched: Touched,
    reshaped: Option<Reshaped>,
    /// Whoever waits because the journal does not have it.
    waits: Option<oneshot::Sender<Result<(), FsError>>>,
    slot: OwnedSemaphorePermit,
}

/// A change that has been answered here.
pub(super) struct Done<T> {
    pub value: T,
    /// The journal does not have it: the server's answer is waited for.
    answer: Option<oneshot::Receiver<Result<(), FsError>>>,
}

impl<T> Done<T> {
    /// When the change cannot be lost by a crash of this mount any more.
    pub async fn safe(self, patience: &Patience) -> Result<T, FsError> {
        if let Some(answer) = self.answer {
            patience.wait(answer).await?.map_err(|_| FsError::WrongAnswer { op: "change" })??;
        }
        Ok(self.value)
    }
}

/// Room for an inode that is about to be made.
pub(super) enum RoomToMake {
    NotLookedFor,
    Found(Room),
    Missing,
}

impl RoomToMake {
    /// Takes room if there was none yet; whether there is.
    pub(super) fn find(&mut self, client: &Client) -> bool {
        if !matches!(self, RoomToMake::Found(_)) {
            *self = client.take_room(Resource::Inodes, 1).map_or(RoomToMake::Missing, RoomToMake::Found);
        }
        matches!(self, RoomToMake::Found(_))
    }

    /// What was found.
    pub(super) fn take(&mut self) -> Option<Room> {
        match std::mem::replace(self, RoomToMake::NotLookedFor) {
            RoomToMake::Found(room) => Some(room),
            RoomToMake::NotLookedFor | RoomToMake::Missing => None,
        }
    }
}

/// A change that may be answered here: what is sent, what it does to what is known, and what whoever asked is told.
struct Plan<T> {
    op: Op,
    inodes: Vec<(Ino, Effect)>,
    names: Vec<(Ino, Name, Target)>,
    made: Option<Attr>,
    reshaped: Option<Reshaped>,
    /// For what is made.
    room: Option<Room>,
    value: T,
}

impl Locals {
    pub fn new() -> Locals {
        Locals {
            slots: Arc::new(Semaphore::new(UNDER_WAY)),
            sent: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// Locked behind the cache.
    fn sent(&self) -> MutexGuard<'_, Unanswered> {
        // The queue is whole after each step.
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the server's answers as long as there is something to be answered. Ends with the filesystem, which it does not
/// keep.
async fn take_answers(fs: Weak<Inner>) {
    loop {
        let Sent { submitted, touched, reshaped, waits, slot } = {
            let Some(fs) = Fs::if_there(&fs) else { return };
            let mut unanswered = fs.inner.locals.sent();
            let Some(sent) = unanswered.sent.pop_front() else {
                unanswered.answering = false;
                return;
            };
            sent
        };
        let order = submitted.order();
        let answer = submitted.await;
        let Some(fs) = Fs::if_there(&fs) else { return };
        let result = match answer {
            Ok(reply) => {
                fs.settle(order, &reply, &touched, reshaped.as_ref());
                Ok(())
            }
            Err(error) => {
                tracing::warn!("what was done here could not be done on the server: {error}");
                fs.cache().unsettle(order, &touched);
                Err(error.into())
            }
        };
        if let Some(waits) = waits {
            // Whoever has given up does not look.
            let _ = waits.send(result);
        }
        drop(slot);
        fs.inner.locals.progress.send_modify(|progress| progress.end(order, reshaped.as_ref()));
    }
}

impl Fs {
    /// Everything that was answered here is answered for.
    pub(super) async fn all_settled(&self, patience: &Patience) -> Result<(), FsError> {
        let last = self.inner.locals.progress.borrow().orders.back().copied();
        let Some(last) = last else { return Ok(()) };
        self.inner.client.somebody_waits();
        self.settled(last, patience).await
    }

    /// Waits until one more change may be answered here, where too many are under way: it would have to wait for all of them.
    pub(super) async fn one_more(&self, patience: &Patience) -> Result<(), FsError> {
        let slots = &self.inner.locals.slots;
        if slots.available_permits() == 0 {
            // Whoever takes it before this one does will be waited for.
            drop(self.inner.client.wait(slots.acquire(), patience).await?);
        }
        Ok(())
    }

    /// Everything up to this order that was answered here is answered for.
    pub(super) async fn settled(&self, upto: u64, patience: &Patience) -> Result<(), FsError> {
        // Written content stands in the requests before.
        let moved = || self.inner.locals.progress.borrow().orders.front().copied().unwrap_or(u64::MAX);
        Ok(patience.wait_for_content(self.when_settled(upto), moved).await?)
    }

    /// The same for whoever does not keep the filesystem.
    pub(super) fn when_settled(&self, upto: u64) -> impl Future<Output = ()> + use<> {
        let mut progress = self.inner.locals.progress.subscribe();
        async move {
            // Or there is no filesystem any more.
            let _ = progress.wait_for(|progress| progress.is_settled(upto)).await;
        }
    }

    /// What was copied into a file here, or cut off, is answered for, so that its content can be known.
    pub(super) async fn reshaped(&self, ino: Ino, patience: &Patience) -> Result<(), FsError> {
        let last = self.last_reshaped(ino).filter(|_| !planted(Bug::ReadMissesCut));
        let Some(order) = last else { return Ok(()) };
        self.inner.client.somebody_waits();
        self.settled(order, patience).await
    }

    /// The order of the last change that has copied into a file or cut it, and is not answered for.
    pub(super) fn last_reshaped(&self, ino: Ino) -> Option<u64> {
        self.inner.locals.progress.borrow().reshaped.get(&ino).copied()
    }

    /// Whether what is written to a file may be answered for before the server has it.
    pub(super) fn writes_locally(&self, ino: Ino) -> bool {
        let promises = self.promises();
        promises.is_delegated(&Promise::Content(ino))
            && self.cache().locally(promises, |local| local.inode(ino)).is_some()
    }

    /// Room for the inode is taken from `room`, or looked for.
    pub(super) fn make_locally(
        &self,
        dir: Ino,
        name: &Name,
        new: &NewInode,
        room: &mut RoomToMake,
    ) -> Option<Result<Done<Attr>, FsError>> {
        self.locally(|fs, local, time| {
            let parent = local.dir(dir)?;
            match local.lookup(dir, name)? {
                Found::Absent => {}
                Found::Entry(_) | Found::Inode(_) => return Some(Err(Refusal::Exists)),
            }
            if !room.find(&fs.inner.client) {
                return None;
            }
            let ino = fs.inner.client.take_ino()?;
            let new = NewInode { ino: Some(ino), reserved: true, ..new.clone() };
            let attr = Attr::made(ino, &parent, &new, time, Position::default());
            let is_dir = attr.kind == FileKind::Dir;
            Some(Ok(Plan {
                op: Op::Upload(Upload::Create { dir, name: name.clone(), new }),
                inodes: vec![(dir, Effect::Entry { time, links: i32::from(is_dir) })],
                names: vec![(dir, name.clone(), Some((ino, attr.kind)))],
                made: Some(attr.clone()),
                reshaped: None,
                room: room.take(),
                value: attr,
            }))
        })
    }

    /// When a file that is being written was written last. To be asked before the cache's lock is taken.
    fn when_written(&self, ino: Ino) -> Option<Time> {
        Some(self.inner.files.get(ino)?.pending()?.mtime)
    }

    /// The same of what a name was last known to be of.
    fn when_named_written(&self, dir: Ino, name: &Name) -> Written {
        Written(self.cache().name_once(dir, name).and_then(|ino| Some((ino, self.when_written(ino)?))))
    }

    /// What was written before is in the stream.
    pub(super) fn link_locally(&self, ino: Ino, dir: Ino, name: &Name) -> Option<Result<Done<Attr>, FsError>> {
        let written = self.when_written(ino);
        self.locally(|_, local, time| {
            local.dir(dir)?;
            let (mut attr, mut inodes) = with_written(local, ino, written)?;
            match local.lookup(dir, name)? {
                Found::Absent => {}
                Found::Entry(_) | Found::Inode(_) => return Some(Err(Refusal::Exists)),
            }
            if attr.kind == FileKind::Dir {
                return Some(Err(Refusal::NotPermitted));
            }
            if attr.nlink >= Upload::MAX_LINKS {
                return Some(Err(Refusal::TooManyLinks));
            }
            let effect = Effect::Linked { dir, time };
            effect.apply(&mut attr);
            inodes.extend([(dir, Effect::Entry { time, links: 0 }), (ino, effect)]);
            Some(Ok(Plan {
                op: Op::Upload(Upload::Link { ino, dir, name: name.clone() }),
                inodes,
                names: vec![(dir, name.clone(), Some((ino, attr.kind)))],
                made: None,
                reshaped: None,
                room: None,
                value: attr,
            }))
        })
    }

    pub(super) fn remove_locally(&self, delete: &Delete) -> Option<Result<Done<()>, FsError>> {
        let (Delete::Unlink { dir, name } | Delete::Rmdir { dir, name }) = delete;
        let (dir, is_rmdir) = (*dir, matches!(delete, Delete::Rmdir { .. }));
        let written = self.when_named_written(dir, name);
        self.locally(|_, local, time| {
            local.dir(dir)?;
            let attr = match local.lookup(dir, name)? {
                Found::Absent => return Some(Err(Refusal::NotFound)),
                Found::Entry(attr) => attr,
                Found::Inode(_) => return None,
            };
            let is_dir = attr.kind == FileKind::Dir;
            let mut inodes = Vec::new();
            match (is_rmdir, is_dir) {
                (true, false) => return Some(Err(Refusal::NotDirectory)),
                (false, true) => return Some(Err(Refusal::IsDirectory)),
                (true, true) => {
                    local.dir(attr.ino)?;
                    if !local.is_empty(attr.ino)? {
                        return Some(Err(Refusal::NotEmpty));
                    }
                }
                (false, false) => inodes = with_written(local, attr.ino, written.of(attr.ino))?.1,
            }
            inodes.extend([
                (dir, Effect::Entry { time, links: -i32::from(is_dir) }),
                (attr.ino, Effect::Unlinked { time }),
            ]);
            Some(Ok(Plan {
                op: Op::Delete(delete.clone()),
                inodes,
                names: vec![(dir, name.clone(), None)],
                made: None,
                reshaped: None,
                room: None,
                value: (),
            }))
        })
    }

    pub(super) fn rename_locally(
        &self,
        (from_dir, from): (Ino, &Name),
        (to_dir, to): (Ino, &Name),
        how: RenameHow,
    ) -> Option<Result<Done<()>, FsError>> {
        let written = [self.when_named_written(from_dir, from), self.when_named_written(to_dir, to)];
        self.locally(|_, local, time| {
            local.dir(from_dir)?;
            local.dir(to_dir)?;
            let moved = match local.lookup(from_dir, from)? {
                Found::Absent => return Some(Err(Refusal::NotFound)),
                Found::Entry(attr) => attr,
                Found::Inode(_) => return None,
            };
            // Whether a directory would come to stand below itself only the server knows.
            let stays = |attr: &Attr| attr.kind != FileKind::Dir || from_dir == to_dir;
            let (_, mut inodes) =
                with_written(local, moved.ino, written[0].of(moved.ino)).filter(|(attr, _)| stays(attr))?;
            let mut find_other = |local: &mut Local<'_>, ino| {
                let (attr, effects) = with_written(local, ino, written[1].of(ino))?;
                inodes.extend(effects);
                Some(attr)
            };
            let other = match (local.lookup(to_dir, to)?, how) {
                (Found::Absent, RenameHow::Exchange) => return Some(Err(Refusal::NotFound)),
                (Found::Absent, _) => None,
                (_, RenameHow::NoReplace) => return Some(Err(Refusal::Exists)),
                (Found::Entry(other), RenameHow::Exchange) => Some(find_other(local, other.ino).filter(stays)?),
                (Found::Entry(other), RenameHow::Replace)
                    if moved.kind != FileKind::Dir && other.kind != FileKind::Dir =>
                {
                    Some(find_other(local, other.ino)?)
                }
                (Found::Entry(_) | Found::Inode(_), _) => return None,
            };
            if other.as_ref().is_some_and(|other| other.ino == moved.ino) {
                return None;
            }
            inodes.push((from_dir, Effect::Entry { time, links: 0 }));
            if to_dir != from_dir {
                inodes.push((to_dir, Effect::Entry { time, links: 0 }));
            }
            inodes.push((moved.ino, Effect::Moved { dir: to_dir, time }));
            let left = other.as_ref().filter(|_| how == RenameHow::Exchange).map(|other| (other.ino, other.kind));
            inodes.extend(other.map(|other| match left {
                Some(_) => (other.ino, Effect::Moved { dir: from_dir, time }),
                None => (other.ino, Effect::Unlinked { time }),
            }));
            let (source, target) = (from.clone(), to.clone());
            Some(Ok(Plan {
                op: Op::Upload(Upload::Rename { from_dir, from: from.clone(), to_dir, to: to.clone(), how }),
                inodes,
                names: vec![(from_dir, source, left), (to_dir, target, Some((moved.ino, moved.kind)))],
                made: None,
                reshaped: None,
                room: None,
                value: (),
            }))
        })
    }

    /// A copy to the end of another file, whole. What was written to either is answered for.
    pub(super) fn copy_locally(
        &self,
        (from, offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        len: u64,
    ) -> Option<Result<Done<u64>, FsError>> {
        // Under a quota room would have to be reserved for it.
        if from == to || self.inner.client.is_limited(Resource::Bytes) {
            return None;
        }
        self.locally(|_, local, time| {
            local.file(from).filter(|_| self.last_reshaped(from).is_none())?;
            let target = local.file(to)?;
            let content = local.content(from, offset, offset.saturating_add(len))?;
            let len = content.size.saturating_sub(offset).min(len);
            let end = to_offset.checked_add(len).filter(|end| *end <= Upload::MAX_FILE_BYTES)?;
            let extents = content.parts.ok()?;
            if len == 0 || to_offset < target.size || extents.len() >= Upload::MAX_CLONED {
                return None;
            }
            let range = proto::message::Range { ino: from, offset, len };
            Some(Ok(Plan {
                op: Op::Upload(Upload::Clone { from: range, to, to_offset }),
                inodes: vec![(to, Effect::Copied { end, bytes: data_bytes(&extents), time })],
                names: Vec::new(),
                made: None,
                reshaped: Some(Reshaped { ino: to, how: How::Copied(to_offset..end) }),
                room: None,
                value: len,
            }))
        })
    }

    /// What was written before is in the stream; where the size changes it is answered for, or this is not answered here.
    pub(super) fn set_locally(&self, ino: Ino, change: &AttrChange) -> Option<Result<Done<Attr>, FsError>> {
        let file = self.inner.files.get(ino);
        // A cut under a lock is made in its session or not at all, so the server answers for it.
        if change.size.is_some() && file.as_ref().is_some_and(|file| file.owners().session().is_some()) {
            return None;
        }
        // Before the cache's lock.
        let state = file.as_ref().map(|file| file.state());
        self.locally(|_, local, time| {
            let written = state.as_ref().and_then(|state| Some(state.pending()?.mtime));
            let (mut attr, mut inodes) = with_written(local, ino, written)?;
            let mut effects = Vec::new();
            if let Some(size) = change.size {
                local.file(ino).filter(|_| state.as_ref().is_none_or(|state| state.is_clean()))?;
                let allocated = match size {
                    0 => 0,
                    size if size >= attr.size => attr.allocated,
                    // What is known of the content tells what stays of it.
                    _ if self.last_reshaped(ino).is_some() => return None,
                    size => data_bytes(&local.content(ino, 0, size)?.parts.ok()?),
                };
                effects.push(Effect::Resized { size, allocated, time });
            }
            effects.push(Effect::Set { change: change.clone(), time });
            effects.iter().for_each(|effect| effect.apply(&mut attr));
            inodes.extend(effects.into_iter().map(|effect| (ino, effect)));
            Some(Ok(Plan {
                op: Op::Upload(Upload::Setattr { ino, change: change.clone() }),
                inodes,
                names: Vec::new(),
                made: None,
                reshaped: change.size.map(|size| Reshaped { ino, how: How::Cut(size) }),
                room: None,
                value: attr,
            }))
        })
    }

    /// A change of one inode that no content goes with, as for [`Fs::locally`]; `plan` gets its attributes. What was
    /// written before is in the stream.
    pub(super) fn change_locally(
        &self,
        ino: Ino,
        plan: impl FnOnce(&mut Local<'_>, Attr, Time) -> Option<Result<(Upload, Effect), Refusal>>,
    ) -> Option<Result<Done<()>, FsError>> {
        let written = self.when_written(ino);
        self.locally(|_, local, time| {
            let (attr, mut inodes) = with_written(local, ino, written)?;
            let (upload, effect) = match plan(local, attr, time)? {
                Ok(planned) => planned,
                Err(refusal) => return Some(Err(refusal)),
            };
            inodes.push((ino, effect));
            Some(Ok(Plan {
                op: Op::Upload(upload),
                inodes,
                names: Vec::new(),
                made: None,
                reshaped: None,
                room: None,
                value: (),
            }))
        })
    }

    /// Answers a change here, if `plan` finds that it may be. `None` says that the server is to be asked.
    fn locally<T>(
        &self,
        plan: impl FnOnce(&Fs, &mut Local<'_>, Time) -> Option<Result<Plan<T>, Refusal>>,
    ) -> Option<Result<Done<T>, FsError>> {
        if !self.inner.client.delegable() {
            return None;
        }
        let slot = self.inner.locals.slots.clone().try_acquire_owned().ok()?;
        let done = self.cache().locally(self.promises(), |local| {
            let time = self.inner.client.now();
            let Plan { op, inodes, names, made, reshaped, room, value } = match plan(self, local, time)? {
                Ok(plan) => plan,
                Err(refusal) => return Some(Err(FsError::refused(refusal))),
            };
            let terms = Terms { time, only_in: None, local: true };
            let submitted = self.inner.client.submit_with(terms, op, room);
            let order = submitted.order();
            let mut touched = Touched {
                inodes: inodes.iter().map(|(ino, _)| *ino).collect(),
                names: names.iter().map(|(dir, name, _)| (*dir, Cursor::of(name))).collect(),
            };
            if let Some(attr) = made {
                touched.inodes.push(attr.ino);
                local.made(order, &attr);
            }
            for (dir, name, target) in names {
                local.named(order, dir, &name, target);
            }
            for (ino, effect) in inodes {
                local.changed(order, ino, effect);
            }
            let (waits, answer) = match submitted.is_journaled() {
                true => (None, None),
                false => {
                    let (waits, answer) = oneshot::channel();
                    (Some(waits), Some(answer))
                }
            };
            // Under the lock, so that the task has them in their order.
            self.inner.locals.progress.send_modify(|progress| progress.begin(order, reshaped.as_ref()));
            self.inner.locals.sent().sent.push_back(Sent { submitted, touched, reshaped, waits, slot });
            Some(Ok(Done { value, answer }))
        });
        let begins = {
            let mut unanswered = self.inner.locals.sent();
            !unanswered.sent.is_empty() && !std::mem::replace(&mut unanswered.answering, true)
        };
        if begins {
            inline::start(&self.inner.runtime, take_answers(Arc::downgrade(&self.inner)));
        }
        done
    }

    /// A change that was answered here has taken effect.
    fn settle(&self, order: u64, reply: &Reply, touched: &Touched, reshaped: Option<&Reshaped>) {
        let mut before = None;
        self.cache().settle(self.promises(), order, reply, touched, |l| match &reply.outcome {
            Outcome::Entry(attr) | Outcome::Cloned { to: attr, .. } if let Some(reshaped) = reshaped => {
                before = l.content_changed(attr, |map| reshaped.apply(map));
            }
            Outcome::Entry(attr) => {
                l.attr(attr);
                before = l.is_of(attr);
            }
            Outcome::Removed(attr) => l.attr(attr),
            Outcome::Renamed { moved, other } => {
                l.attr(moved);
                other.iter().for_each(|other| l.attr(other));
            }
            _ => {}
        });
        if let Outcome::Entry(attr) | Outcome::Cloned { to: attr, .. } = &reply.outcome
            && (before.is_some() || reshaped.is_some())
        {
            // The kernel has dropped its pages of what changed itself.
            self.inner.files.pages_follow(attr.ino, before, attr.version);
        }
    }
}

/// When an inode was written last, if it is being written.
struct Written(Option<(Ino, Time)>);

impl Written {
    fn of(&self, ino: Ino) -> Option<Time> {
        self.0.filter(|(written, _)| *written == ino).map(|(_, time)| time)
    }
}

/// How much of a file's parts is no hole.
fn data_bytes(parts: &[Part]) -> u64 {
    let data = parts.iter().filter_map(|part| match part {
        Part::Data(extent) => Some(u64::from(extent.len)),
        Part::Hole { .. } => None,
    });
    data.sum()
}

/// The attributes of an inode that may be answered for here. What is being written has moved the times, and stands in the
/// log before what is done to it now, whose answer tells them: until then they go with that.
fn with_written(local: &mut Local<'_>, ino: Ino, written: Option<Time>) -> Option<(Attr, Vec<(Ino, Effect)>)> {
    let mut attr = local.inode(ino)?;
    let mut effects = Vec::new();
    if let Some(time) = written.filter(|time| *time >= attr.ctime)
        && !planted(Bug::WrittenLosesTime)
    {
        let effect = Effect::Written { time };
        effect.apply(&mut attr);
        effects.push((ino, effect));
    }
    Some((attr, effects))
}
