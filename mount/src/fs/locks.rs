//! Locks: what programs ask for, in the order that makes them worth something.
//!
//! * Before a lock is given up everything written to the file is answered for, so whoever gets it
//!   next sees that.
//! * A lock is reported only when the kernel's pages of the file are not older than it. Caches are
//!   right by then: what was pushed before it has been acted on.
//! * What is written while somebody here has a lock on the file may be applied only in the session that has the
//!   lock. When that session is lost the content is set aside, and the open files that the lock was taken through
//!   fail until they are opened again.
//! * A caller that has given up is not waited for; what becomes of its request is seen to behind its back,
//!   and later calls on the file wait for that.

use super::Fs;
use super::file::{File, FileHandle};
use crate::client::{CallError, First, Patience, Reply, Submitted};
use crate::error::FsError;
use crate::sys::holder;
use bytes::Bytes;
use proto::message::{Lock, LockHolder, LockKind, LockMode, LockOp, LockOwner, LockRange, Locked, Op, Outcome, Upload};
use proto::planted::{Bug, planted};
use proto::{Position, SessionId};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// How long an interrupted caller waits for the server's word on what became of its request.
const CANCEL_WAIT: Duration = Duration::from_millis(100);

/// What owners have locked on one file through this mount.
#[derive(Default)]
pub struct Owners(BTreeMap<LockOwner, Owner>);

struct Owner {
    pid: u32,
    /// The session that has the locks.
    session: SessionId,
    /// Sorted, and apart from each other.
    ranges: Vec<LockRange>,
    /// The open files that they were taken through, by handle.
    handles: BTreeMap<u64, Weak<FileHandle>>,
}

impl Owners {
    /// The session that has locks here, if there are any.
    pub fn session(&self) -> Option<SessionId> {
        self.0.values().next().map(|owner| owner.session)
    }

    fn add(&mut self, lock: &Lock, session: SessionId, number: u64, handle: &Arc<FileHandle>) {
        let owner = self.0.entry(lock.owner).or_insert_with(|| Owner {
            pid: lock.pid,
            session,
            ranges: Vec::new(),
            handles: BTreeMap::new(),
        });
        owner.handles.insert(number, Arc::downgrade(handle));
        let mut range = lock.range;
        owner.ranges.retain(|other| {
            let touches = other.start <= range.end.saturating_add(1) && range.start <= other.end.saturating_add(1);
            if touches {
                range = LockRange { start: range.start.min(other.start), end: range.end.max(other.end) };
            }
            !touches
        });
        owner.ranges.push(range);
        owner.ranges.sort_unstable();
    }

    fn remove(&mut self, of: LockOwner, range: LockRange) {
        let Some(owner) = self.0.get_mut(&of) else { return };
        let before = std::mem::take(&mut owner.ranges);
        for held in before {
            if !held.overlaps(range) {
                owner.ranges.push(held);
                continue;
            }
            if held.start < range.start {
                owner.ranges.push(LockRange { start: held.start, end: range.start - 1 });
            }
            if held.end > range.end {
                owner.ranges.push(LockRange { start: range.end + 1, end: held.end });
            }
        }
        if owner.ranges.is_empty() {
            self.0.remove(&of);
        }
    }

    /// The owners with this number that are of one of these kinds.
    fn of(&self, id: u64, kinds: &[LockKind]) -> Vec<LockOwner> {
        let all = kinds.iter().map(|kind| LockOwner { id, kind: *kind });
        all.filter(|owner| self.0.contains_key(owner)).collect()
    }

    /// The owners that end with an open file.
    fn of_handle(&self, number: u64) -> Vec<LockOwner> {
        let ends = |(of, owner): (&LockOwner, &Owner)| {
            (of.kind != LockKind::Process && owner.handles.contains_key(&number)).then_some(*of)
        };
        self.0.iter().filter_map(ends).collect()
    }

    /// Takes out what belongs to another session than this one.
    fn take_lost(&mut self, session: Option<SessionId>) -> Vec<Owner> {
        let lost: Vec<LockOwner> =
            self.0.iter().filter(|(_, owner)| Some(owner.session) != session).map(|(of, _)| *of).collect();
        lost.iter().filter_map(|of| self.0.remove(of)).collect()
    }
}

/// What a program does with a lock, as far as the kernel tells.
#[derive(Clone, Copy, Debug)]
pub struct LockCall {
    pub owner: u64,
    /// `None` where that cannot be told.
    pub kind: Option<LockKind>,
    pub pid: u32,
    pub range: LockRange,
}

impl LockCall {
    fn lock(&self, mode: LockMode) -> Lock {
        let owner = LockOwner { id: self.owner, kind: self.kind.unwrap_or(LockKind::Unknown) };
        Lock { owner, pid: self.pid, range: self.range, mode }
    }
}

impl Fs {
    /// Takes a lock, or gives an owner's lock another mode. With `wait` it waits in the server for as long as
    /// that takes: only an interrupt ends it.
    pub async fn lock(
        &self,
        handle: u64,
        call: LockCall,
        mode: LockMode,
        wait: bool,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let (number, handle) = (handle, self.inner.handles.file(handle)?);
        let (file, lock) = (&handle.file, call.lock(mode));
        if mode == LockMode::Shared {
            // It may give up an exclusive one.
            self.all_answered(file, patience).await?;
        }
        self.nothing_open(file, patience).await?;
        loop {
            self.check_locks(&handle)?;
            let op = Op::Lock(LockOp::Lock { ino: file.ino, lock, wait });
            let asked = Asked { fs: self, number, handle: &handle, lock };
            let reply = match asked.answer(self.inner.client.submit(op, Bytes::new()), patience).await {
                // Nothing is known to be had; if something else has been lost, the check says so.
                Err(FsError::Call(CallError::SessionLost)) => continue,
                reply => reply?,
            };
            let locked = asked.note(&reply)?;
            self.fresh_pages(file, locked.version, patience).await;
            return self.check_locks(&handle);
        }
    }

    /// Gives up what an owner has within a range, after everything written is answered for.
    pub async fn unlock(&self, handle: u64, call: LockCall, patience: &Patience) -> Result<(), FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.check_locks(&handle)?;
        let kinds = match call.kind {
            Some(kind) => vec![kind, LockKind::Unknown],
            None => LockKind::ALL.to_vec(),
        };
        let owners = handle.file.owners().of(call.owner, &kinds);
        self.give_up(&handle.file, owners, call.range, patience).await
    }

    /// A lock of somebody else's that stands in the way of this one.
    pub async fn test_lock(
        &self,
        handle: u64,
        call: LockCall,
        mode: LockMode,
        patience: &Patience,
    ) -> Result<Option<LockHolder>, FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.check_locks(&handle)?;
        let op = Op::Lock(LockOp::Test { ino: handle.file.ino, lock: call.lock(mode) });
        match self.inner.client.call(op, Bytes::new(), patience).await?.outcome {
            Outcome::Holder(holder) => Ok(holder),
            _ => Err(FsError::WrongAnswer { op: "getlk" }),
        }
    }

    /// close() by a process: [`Fs::flush`], then its own locks on the file go, whichever of its
    /// open files they were taken through.
    pub async fn flush_and_unlock(
        &self,
        handle: u64,
        owner: u64,
        patience: &Patience,
        parting: &Patience,
    ) -> Result<(), FsError> {
        let flushed = self.flush_unless_gone(handle, patience, parting).await;
        let file = self.inner.handles.file(handle)?.file.clone();
        let owners = file.owners().of(owner, &[LockKind::Process, LockKind::Unknown]);
        if !owners.is_empty() {
            let bounded = patience.clone().bounded(self.inner.config.close_timeout);
            // It goes on by itself; what close() says is what became of the data.
            let _ = self.give_up(&file, owners, LockRange::WHOLE, &bounded).await;
        }
        flushed
    }

    /// The open file is gone, and with it what it had locked.
    pub(super) fn unlock_handle(&self, number: u64, handle: &FileHandle) {
        let file = &handle.file;
        let owners = file.owners().of_handle(number);
        if !owners.is_empty() {
            self.give_up_behind(file, owners, LockRange::WHOLE);
        }
    }

    async fn give_up(
        &self,
        file: &Arc<File>,
        owners: Vec<LockOwner>,
        range: LockRange,
        patience: &Patience,
    ) -> Result<(), FsError> {
        if owners.is_empty() {
            return Ok(());
        }
        if !planted(Bug::UnlockDoesNotWait)
            && let Err(error) = self.all_answered(file, patience).await
        {
            self.give_up_behind(file, owners, range);
            return Err(error);
        }
        let submitted = self.submit_unlocks(file, owners, range);
        for submitted in submitted {
            match self.inner.client.wait(submitted, patience).await? {
                // It went with its session.
                Ok(_) | Err(CallError::SessionLost) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The same without anybody who waits. That all is in the stream is not enough: a write may have to wait in the
    /// server until somebody gives back what it is delegated, and an unlock would overtake it.
    fn give_up_behind(&self, file: &Arc<File>, owners: Vec<LockOwner>, range: LockRange) {
        let (fs, file) = (self.clone(), file.clone());
        file.unsettled.send_modify(|count| *count += 1);
        let work = async move {
            // With nobody's patience it ends only with the client, and then the locks have gone too.
            let _ = fs.all_answered(&file, &Patience::for_ever()).await;
            for submitted in fs.submit_unlocks(&file, owners, range) {
                let _ = submitted.await;
            }
            file.unsettled.send_modify(|count| *count -= 1);
        };
        proto::task::spawn_on(&self.inner.runtime, work);
    }

    fn submit_unlocks(&self, file: &File, owners: Vec<LockOwner>, range: LockRange) -> Vec<Submitted> {
        let mut noted = file.owners();
        let submit = |owner: LockOwner| {
            noted.remove(owner, range);
            let op = Op::Lock(LockOp::Unlock { ino: file.ino, owner, range });
            self.inner.client.submit(op, Bytes::new())
        };
        owners.into_iter().map(submit).collect()
    }

    /// Waits until what callers have left behind on this file has come to its end.
    async fn nothing_open(&self, file: &File, patience: &Patience) -> Result<(), FsError> {
        let mut unsettled = file.unsettled.subscribe();
        if *unsettled.borrow_and_update() > 0 {
            let settled = patience.wait(unsettled.wait_for(|count| *count == 0)).await?.map(drop);
            settled.map_err(|_| FsError::BadHandle(file.ino.0))?;
        }
        Ok(())
    }

    /// Drops the kernel's pages unless they are of this version, and waits for that.
    async fn fresh_pages(&self, file: &File, version: Position, patience: &Patience) {
        let Some(kernel) = self.inner.kernel.get() else { return };
        if self.inner.files.has_pages_of(file.ino, version) {
            return;
        }
        let (tell, told) = oneshot::channel();
        kernel.inval_inode(self.shown_ino(file.ino), Some(tell));
        // Whoever is interrupted here has the lock all the same. One that is not told has lost the kernel.
        if let Ok(Ok(())) = patience.wait(told).await {
            self.inner.files.pages_became(file.ino, version);
        }
    }

    /// The session whose lock a change of content is made under, if there is one.
    pub(super) fn locked_in(&self, op: &Op) -> Option<SessionId> {
        let ino = match op {
            Op::Upload(Upload::Fallocate { ino, .. } | Upload::Clone { to: ino, .. }) => ino,
            Op::Upload(Upload::Setattr { ino, change }) if change.size.is_some() => ino,
            _ => return None,
        };
        self.inner.files.get(*ino)?.owners().session()
    }

    /// Fails if the open file had a lock that has been lost.
    pub(super) fn check_locks(&self, handle: &FileHandle) -> Result<(), FsError> {
        self.find_lost_locks(&handle.file);
        match handle.lost.load(Ordering::Acquire) {
            true => Err(FsError::LockLost),
            false => Ok(()),
        }
    }

    /// Locks of a session that is over are lost. Everything written under them leaves, to be set aside.
    pub(super) fn find_lost_locks(&self, file: &Arc<File>) {
        let lost = {
            let mut owners = file.owners();
            let lost = match owners.session() {
                None => return,
                Some(_) => owners.take_lost(self.inner.client.sends_in()),
            };
            // Whoever sees the locks gone sees this.
            for handle in lost.iter().flat_map(|owner| owner.handles.values()).filter_map(Weak::upgrade) {
                handle.lost.store(true, Ordering::Release);
            }
            lost
        };
        if lost.is_empty() {
            return;
        }
        for owner in lost {
            self.tell_lost(file, owner.pid);
        }
        self.send_all(file);
    }

    /// For people: which process has lost its lock, and on what.
    fn tell_lost(&self, file: &File, pid: u32) {
        let (ino, runtime) = (self.shown_ino(file.ino), &self.inner.runtime);
        let tell = move || {
            let path = holder::path_of(pid, ino).map_or_else(|| "?".to_owned(), |path| path.display().to_string());
            tracing::warn!(
                ino,
                pid,
                path,
                "a lock was lost with its session: the process gets EIO on that open file until it opens it again, \
                 and what it had written there and was not answered for is set aside"
            );
        };
        proto::task::spawn_on(runtime, async move {
            // A panic in it would only cost the message.
            let _ = proto::task::offload(tell).await;
        });
    }
}

/// One request for a lock.
struct Asked<'a> {
    fs: &'a Fs,
    number: u64,
    handle: &'a Arc<FileHandle>,
    lock: Lock,
}

impl Asked<'_> {
    /// Waits for the answer. The server may take as long as it likes once it has said that the request waits.
    async fn answer(&self, mut submitted: Submitted, patience: &Patience) -> Result<Reply, FsError> {
        let (session, number) = match self.fs.inner.client.wait(submitted.first(), patience).await {
            Ok(First::Answer(answer)) => return Ok((*answer)?),
            Ok(First::Parked(session, number)) => (session, number),
            Err(error) => {
                self.see_to(submitted, false);
                return Err(error.into());
            }
        };
        let until_interrupted = patience.clone().without_timeout();
        if let Ok(answer) = until_interrupted.wait(&mut submitted).await {
            return Ok(answer?);
        }
        self.fs.inner.client.cancel(session, number);
        match tokio::time::timeout(CANCEL_WAIT, &mut submitted).await {
            // The lock may have come first: then it is had.
            Ok(answer) => Ok(answer?),
            Err(_) => {
                self.see_to(submitted, true);
                Err(CallError::Interrupted.into())
            }
        }
    }

    /// Notes a lock that was granted.
    fn note(&self, reply: &Reply) -> Result<Locked, FsError> {
        let (Outcome::Locked(locked), Some(session)) = (&reply.outcome, reply.session) else {
            return Err(FsError::WrongAnswer { op: "setlk" });
        };
        // What another session had is not this one's.
        self.fs.find_lost_locks(&self.handle.file);
        self.handle.file.owners().add(&self.lock, session, self.number, self.handle);
        Ok(*locked)
    }

    /// The caller has been told that it has no lock. If it gets one all the same, that is given up, unless
    /// the owner had something there before, which must not go with it.
    fn see_to(&self, mut submitted: Submitted, mut cancelled: bool) {
        let (fs, number, handle, lock) = (self.fs.clone(), self.number, self.handle.clone(), self.lock);
        handle.file.unsettled.send_modify(|count| *count += 1);
        let work = async move {
            let answer = loop {
                if cancelled {
                    break submitted.await;
                }
                match submitted.first().await {
                    First::Answer(answer) => break *answer,
                    First::Parked(session, number) => {
                        fs.inner.client.cancel(session, number);
                        cancelled = true;
                    }
                }
            };
            let asked = Asked { fs: &fs, number, handle: &handle, lock };
            if let Ok(reply) = answer {
                let had = !handle.file.owners().of(lock.owner.id, &[lock.owner.kind]).is_empty();
                if asked.note(&reply).is_ok() && !had {
                    for submitted in fs.submit_unlocks(&handle.file, vec![lock.owner], lock.range) {
                        let _ = submitted.await;
                    }
                }
            }
            handle.file.unsettled.send_modify(|count| *count -= 1);
        };
        proto::task::spawn_on(&self.fs.inner.runtime, work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> LockRange {
        LockRange { start, end }
    }

    #[test]
    fn what_an_owner_has_is_known_to_the_byte() {
        let mut owners = Owners::default();
        let of = LockOwner { id: 7, kind: LockKind::Process };
        let session = SessionId([1; 16]);
        let handle = Weak::new();
        let owner = Owner { pid: 1, session, ranges: Vec::new(), handles: BTreeMap::from([(1, handle)]) };
        owners.0.insert(of, owner);
        let ranges = |owners: &Owners| owners.0.get(&of).map(|owner| owner.ranges.clone());
        let add = |owners: &mut Owners, new: LockRange| {
            let owner = owners.0.get_mut(&of).expect("it is there");
            owner.ranges.push(new);
            owner.ranges.sort_unstable();
        };
        add(&mut owners, range(0, 9));
        add(&mut owners, range(20, 29));
        owners.remove(of, range(5, 24));
        assert_eq!(ranges(&owners), Some(vec![range(0, 4), range(25, 29)]));
        assert_eq!(owners.of_handle(1), [], "a process's locks do not end with one of its open files");
        owners.remove(of, LockRange::WHOLE);
        assert_eq!((ranges(&owners), owners.session()), (None, None));
    }
}
