//! Room under a quota: what a write does that finds none, or a create.
//!
//! The server is asked for it. If it has not enough, what is written here is sent first, since content
//! that lies over other content gives room back; the others are asked for theirs, for a
//! while. What is then left is written, and after that `EDQUOT` comes at the write. Writing over
//! what is there adds nothing and must go on in a full namespace: such a write goes through
//! to the server, which knows what it adds, and is answered with its answer.

use super::file::FileHandle;
use super::local::RoomToMake;
use super::pack::{Draft, Pack, Part};
use super::{Fs, file::State};
use crate::client::{CallError, Patience, Room};
use crate::error::FsError;
use bytes::Bytes;
use proto::chunk::INLINE_BYTES;
use proto::message::{Refusal, Resource};
use std::time::Duration;
use tokio::sync::oneshot;

/// Between askings while others may give room back: first, and at most; 1.3 s together.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const ASK_AGAIN_MAX: Duration = Duration::from_millis(640);

/// What was found for a write.
pub(super) enum RoomFor {
    /// Room for as much as it says, at most all of it.
    Reserved(Room),
    /// So much has been written through.
    Written(u32),
}

impl Fs {
    pub(super) async fn room_for(
        &self,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
        patience: &Patience,
    ) -> Result<RoomFor, FsError> {
        if let Some(room) = self.all_room(Resource::Bytes, data.len(), patience).await? {
            return Ok(RoomFor::Reserved(room));
        }
        if !handle.append
            && let written @ 1.. = self.write_over(handle, offset, data, patience).await?
        {
            return Ok(RoomFor::Written(written));
        }
        match self.inner.client.ask_for_room(Resource::Bytes, data.len(), true, patience).await? {
            (Some(room), _) => Ok(RoomFor::Reserved(room)),
            (None, _) => Err(FsError::QuotaExceeded),
        }
    }

    /// Room for an inode, if there is any.
    pub(super) async fn room_to_make(&self, patience: &Patience) -> Result<RoomToMake, FsError> {
        let room = self.all_room(Resource::Inodes, 1, patience).await?;
        Ok(room.map_or(RoomToMake::Missing, RoomToMake::Found))
    }

    /// As much room as is asked for, or none.
    async fn all_room(&self, of: Resource, amount: usize, patience: &Patience) -> Result<Option<Room>, FsError> {
        let mut wait = ASK_AGAIN;
        let mut has_sent = of == Resource::Inodes;
        loop {
            let (room, more) = self.inner.client.ask_for_room(of, amount, false, patience).await?;
            if let Some(room) = room.filter(|room| room.amount() == amount) {
                return Ok(Some(room));
            }
            if !has_sent && self.inner.budget.used() > 0 {
                has_sent = true;
                self.send_everything(patience).await?;
                continue;
            }
            if !more || wait > ASK_AGAIN_MAX {
                return Ok(None);
            }
            patience.wait(tokio::time::sleep(wait)).await?;
            wait *= 2;
        }
    }

    /// All that was written here is in requests.
    async fn send_everything(&self, patience: &Patience) -> Result<(), FsError> {
        for file in self.inner.files.all() {
            self.all_sent(&file, patience).await?;
        }
        Ok(())
    }

    /// Writes over what a file has, as far as that adds nothing that does not fit: says how much that is.
    async fn write_over(
        &self,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
        patience: &Patience,
    ) -> Result<u32, FsError> {
        self.all_answered(&handle.file, patience).await?;
        let size = self.attr(handle.file.ino, patience).await?.size;
        let mut written = 0;
        while written < data.len() && offset + (written as u64) < size {
            let part = &data[written..data.len().min(written + INLINE_BYTES)];
            match self.write_through(handle, offset + written as u64, part, patience).await {
                Ok(()) => written += part.len(),
                Err(FsError::Call(CallError::Refused { refusal: Refusal::QuotaExceeded, .. })) => break,
                // What has been written is not to be lost sight of.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written as u32)
    }

    /// Writes with the server's answer, behind all that was written to the file before.
    async fn write_through(
        &self,
        handle: &FileHandle,
        offset: u64,
        data: &[u8],
        patience: &Patience,
    ) -> Result<(), FsError> {
        loop {
            let freed = self.inner.budget.freed();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.inner.budget.try_take(data.len()) {
                break;
            }
            patience.wait(freed).await?;
        }
        let (through, answer) = oneshot::channel();
        let file = &handle.file;
        // In this order, as every write.
        let locked_in = file.owners().session();
        if let Err(lost) = self.check_locks(handle) {
            self.inner.budget.give_back(data.len());
            return Err(lost);
        }
        {
            let mut state = file.state();
            self.take_all(file, &mut state);
            state.only_in = locked_in;
            self.put_through(&mut state, offset, Bytes::copy_from_slice(data), through);
        }
        self.pump(file, true);
        patience.wait(answer).await?.unwrap_or(Err(FsError::Call(CallError::Closed)))
    }

    fn put_through(&self, state: &mut State, offset: u64, plain: Bytes, through: super::pack::Through) {
        let part = Part { offset, from: 0, len: plain.len() as u32 };
        let draft = Draft { parts: vec![part], plain, inline: true };
        let stage = self.seal_inline(state, &draft);
        state.last_seq += 1;
        let (seq, only_in, Draft { parts, plain, .. }) = (state.last_seq, state.only_in, draft);
        state.packs.push_back(Pack { seq, parts, plain, stage, only_in, append: false, through: Some(through) });
        state.commit_upto = seq;
        state.mtime = self.inner.client.now();
    }
}
