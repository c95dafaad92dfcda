//! Reads: what was written here over what the content map says, from blocks in
//! memory or on the server. Nothing is read whole; holes are zeros.

use super::Fs;
use super::extents::{ExtentMap, Part};
use crate::client::{CallError, Patience, Reply};
use crate::error::FsError;
use bytes::Bytes;
use proto::Ino;
use proto::chunk::INLINE_BYTES;
use proto::message::{Outcome, StoredExtent, View};
use std::time::Duration;

/// Extents asked for at once: 128 MiB of a file written in sequence.
const READ_EXTENTS: u32 = 256;

/// After these times a file is looked at anew whose content was not there.
const LOOK_AGAIN: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(1000)];

impl Fs {
    /// Up to `len` bytes from `offset` on; fewer only at the file's end.
    pub async fn read(&self, handle: u64, offset: u64, len: u32, patience: &Patience) -> Result<Bytes, FsError> {
        for wait in LOOK_AGAIN {
            match self.read_once(handle, offset, len, patience).await {
                // Another mount has just replaced it; that it did will be known in a moment.
                Err(FsError::Call(CallError::ChunkMissing { .. })) => patience.wait(tokio::time::sleep(wait)).await?,
                done => return self.still_locked(handle, done?, patience).await,
            }
        }
        let data = self.read_once(handle, offset, len, patience).await?;
        self.still_locked(handle, data, patience).await
    }

    /// What was read under a lock is given to the program only while that is sure to be held: an answer that comes late
    /// may be older than the session's end, which the next one tells.
    async fn still_locked(&self, handle: u64, data: Bytes, patience: &Patience) -> Result<Bytes, FsError> {
        let handle = self.inner.handles.file(handle)?;
        while handle.file.owners().session().is_some() && !self.promises().count(proto::clock::monotonic_ms()) {
            self.view(View::Getattr { ino: handle.file.ino }, patience).await?;
            self.check_locks(&handle)?;
        }
        Ok(data)
    }

    async fn read_once(&self, number: u64, offset: u64, len: u32, patience: &Patience) -> Result<Bytes, FsError> {
        let handle = self.inner.handles.file(number)?;
        self.check_locks(&handle)?;
        let ino = handle.file.ino;
        if !handle.keeps_atime() {
            self.accessed(ino);
        }
        self.reshaped(ino, patience).await?;
        self.not_overtaken(&handle.file, patience).await?;
        // First what was written here: what leaves it meanwhile is in the map by then.
        let (overlay, written_end) = handle.file.overlay(offset, u64::from(len));
        if let Some(data) = covering(&overlay, offset, len) {
            return Ok(data);
        }
        let to = offset.saturating_add(u64::from(len));
        let (size, parts) = self.content(ino, offset, to, patience).await?;
        let size = size.max(written_end);
        let len = size.saturating_sub(offset).min(u64::from(len)) as usize;
        if len == 0 {
            return Ok(Bytes::new());
        }
        self.load_all(&parts, Some(number));
        self.read_ahead(&handle, offset, len as u64, size);
        if let ([Part::Data(extent)], true) = (&parts[..], overlay.is_empty())
            && extent.len as usize == len
        {
            let block = self.block(extent, Some(number), patience).await?;
            return slice(&block, extent.chunk_from, extent.len);
        }
        let mut out = vec![0; len];
        let mut at = 0;
        for part in &parts {
            match part {
                Part::Hole { len } => at += *len as usize,
                Part::Data(extent) => {
                    let block = self.block(extent, Some(number), patience).await?;
                    let data = slice(&block, extent.chunk_from, extent.len)?;
                    out[at..at + data.len()].copy_from_slice(&data);
                    at += data.len();
                }
            }
        }
        for (place, data) in overlay {
            let at = (place - offset) as usize;
            let keep = data.len().min(len.saturating_sub(at));
            out[at..at + keep].copy_from_slice(&data[..keep]);
        }
        Ok(Bytes::from(out))
    }

    /// The file's size on the server, and what makes up `from..to` before its end.
    pub(super) async fn content(
        &self,
        ino: Ino,
        from: u64,
        to: u64,
        patience: &Patience,
    ) -> Result<(u64, Vec<Part>), FsError> {
        if let Some(content) = self.cache().content(self.promises(), ino, from, to)
            && let Ok(parts) = content.parts
        {
            return Ok((content.size, parts));
        }
        // Asked page by page; kept here too, for the case that nothing is promised.
        let mut map = ExtentMap::default();
        let mut next = from;
        loop {
            let reply = self.view(View::Extents { ino, from: next, limit: READ_EXTENTS }, patience).await?;
            let Outcome::Extents { attr, extents, end } = &reply.outcome else {
                return Err(FsError::WrongAnswer { op: "read" });
            };
            let size = attr.size;
            let reached = map.learn(next, extents, *end);
            let stuck = reached <= next;
            self.learn_extents(next, reply);
            let to = to.min(size);
            if from >= to {
                return Ok((size, Vec::new()));
            }
            match map.parts(from, to) {
                Ok(parts) => return Ok((size, parts)),
                Err(_) if stuck => return Err(FsError::WrongAnswer { op: "read" }),
                Err(_) => next = reached,
            }
        }
    }

    /// Takes an answer about extents into the caches, with the content that came along.
    pub(super) fn learn_extents(&self, from: u64, reply: Reply) {
        let Outcome::Extents { attr, extents, end } = &reply.outcome else { return };
        // Content first: whoever finds the map before its content asks for that by name.
        for extent in extents {
            if let Some(plain) = self.came_along(extent, &reply.payload) {
                self.inner.blocks.insert(extent.chunk, plain);
            }
        }
        self.cache().learn(self.promises(), &reply, |l| l.extents(attr, from, extents, *end));
    }

    /// The plain content that an answer brought for an extent. One that does not
    /// open is asked for by name, which then says why.
    fn came_along(&self, extent: &StoredExtent, payload: &Bytes) -> Option<Bytes> {
        let (from, len) = extent.inline?;
        if self.inner.blocks.contains(&extent.chunk) {
            return None;
        }
        let sealed = payload.get(from as usize..from.checked_add(len)? as usize)?;
        if sealed.len() > INLINE_BYTES || *blake3::hash(sealed).as_bytes() != extent.chunk.hash {
            return None;
        }
        let plain = self.inner.client.keys().open_content(&extent.key, &extent.chunk.hash, sealed).ok()?;
        Some(plain)
    }
}

/// The range as one piece of what was written here, if one piece has all of it
/// and nothing lies over it.
fn covering(overlay: &[(u64, Bytes)], offset: u64, len: u32) -> Option<Bytes> {
    match overlay {
        [(at, data)] if *at == offset && data.len() == len as usize => Some(data.clone()),
        _ => None,
    }
}

fn slice(block: &Bytes, from: u32, len: u32) -> Result<Bytes, FsError> {
    let (from, to) = (from as usize, from as usize + len as usize);
    if to > block.len() {
        let reason = format!("{} bytes where {to} are quoted", block.len());
        return Err(FsError::Sealed { what: "content", reason });
    }
    Ok(block.slice(from..to))
}
