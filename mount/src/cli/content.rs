//! Content of whole files without a mount: sealed, uploaded and downloaded a
//! chunk at a time, a few under way, in order.

use super::remote::{Remote, RemoteError, wrong};
use crate::client::Client;
use anyhow::Context;
use bytes::Bytes;
use proto::chunk::{CHUNK_BYTES, INLINE_BYTES, SEALED_OVERHEAD_BYTES};
use proto::message::{
    Attr, Delete, FileKind, Op, Outcome, Piece, RenameHow, Source, StoredExtent, Upload, View, WriteAt,
};
use proto::{Ino, Name};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read;
use tokio::task::JoinHandle;

/// Chunks sealed, uploaded or downloaded at once.
const CHUNKS_UNDER_WAY: usize = 16;
/// Extents asked for at once.
const PAGE_EXTENTS: u32 = 500;

impl Remote {
    /// Puts all of `local` into a new file that then takes the name: whoever
    /// reads meanwhile sees the old content or the new, and an upload that stops
    /// half-way changes nothing.
    pub(super) async fn write_file(
        &self,
        path: &OsStr,
        mut local: impl Read,
        mode: u32,
        mut progress: impl FnMut(u64),
    ) -> anyhow::Result<()> {
        let (dir, name) = self.parent(path).await?;
        let partial = partial_name(&name)?;
        let file = self.create(path, (dir, partial.clone()), FileKind::File, mode, None).await?;
        let done = async {
            self.fill(path, file.ino, &mut local, &mut progress).await?;
            let how = RenameHow::Replace;
            let rename = Upload::Rename { from_dir: dir, from: partial.clone(), to_dir: dir, to: name, how };
            self.call(path, Op::Upload(rename)).await?;
            self.client.sync(&self.client.patience()).await.map_err(RemoteError::call(path))?;
            Ok(())
        };
        let done = done.await;
        if done.is_err() {
            // The failure is what is told; the partial file has a name that says what it is.
            let _ = self.call(path, Op::Delete(Delete::Unlink { dir, name: partial })).await;
        }
        done
    }

    async fn fill(
        &self,
        path: &OsStr,
        ino: Ino,
        local: &mut impl Read,
        progress: &mut impl FnMut(u64),
    ) -> anyhow::Result<()> {
        // Uploads under way and uploads that no request quotes yet stay within half of
        // what the server lets be unquoted, so none ever waits for one behind it.
        let quarter = (self.client.window_bytes() / 4 / CHUNK_BYTES as u64).max(1);
        let at_once = usize::try_from(quarter).unwrap_or(CHUNKS_UNDER_WAY).min(CHUNKS_UNDER_WAY);
        let mut offset = 0;
        let mut uploads: VecDeque<JoinHandle<anyhow::Result<(Piece, Bytes)>>> = VecDeque::new();
        let mut pieces = Vec::new();
        let mut ended = false;
        while !ended || !uploads.is_empty() || !pieces.is_empty() {
            while !ended && uploads.len() < at_once {
                let plain = read_chunk(local).context("cannot read the local file")?;
                ended = plain.len() < CHUNK_BYTES;
                if plain.is_empty() {
                    break;
                }
                let at = offset;
                offset += plain.len() as u64;
                uploads.push_back(tokio::spawn(seal_and_upload(self.client.clone(), at, plain)));
            }
            if let Some(upload) = uploads.pop_front() {
                let (piece, payload) = upload.await??;
                progress(u64::from(piece.len));
                pieces.push(piece);
                if payload.is_empty() && pieces.len() < at_once && !(ended && uploads.is_empty()) {
                    continue;
                }
                let write =
                    Upload::Write { ino, at: WriteAt::Offsets, pieces: std::mem::take(&mut pieces), reserved: false };
                let sent = self.client.call(Op::Upload(write), payload, &self.client.patience()).await;
                sent.map_err(RemoteError::call(path))?;
            }
        }
        Ok(())
    }

    /// Gives the content of the file in order of its offsets; what is not given are holes.
    pub(super) async fn read_file(
        &self,
        path: &OsStr,
        attr: &Attr,
        mut sink: impl FnMut(u64, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut from = 0;
        loop {
            let view = View::Extents { ino: attr.ino, from, limit: PAGE_EXTENTS };
            let reply = self.call(path, Op::View(view)).await?;
            let Outcome::Extents { extents, end, .. } = reply.outcome else {
                return Err(wrong(path).into());
            };
            from = extents.last().map_or(from, |last| last.offset + u64::from(last.len));
            let done = end || extents.is_empty();
            let mut downloads: VecDeque<(u64, JoinHandle<anyhow::Result<Vec<u8>>>)> = VecDeque::new();
            let mut wanted = extents.into_iter();
            loop {
                while downloads.len() < CHUNKS_UNDER_WAY
                    && let Some(extent) = wanted.next()
                {
                    let work = download_and_open(self.client.clone(), reply.payload.clone(), extent.clone());
                    downloads.push_back((extent.offset, tokio::spawn(work)));
                }
                let Some((offset, download)) = downloads.pop_front() else {
                    break;
                };
                sink(offset, &download.await??)?;
            }
            if done {
                return Ok(());
            }
        }
    }
}

/// Seals on a thread for such work; what fits travels in the write request itself.
async fn seal_and_upload(client: Client, offset: u64, plain: Vec<u8>) -> anyhow::Result<(Piece, Bytes)> {
    let len = plain.len() as u32;
    let sealing = client.clone();
    let sealed = tokio::task::spawn_blocking(move || sealing.keys().seal_content(&plain)).await??;
    let key = sealed.key;
    let content = sealed.sealed;
    if content.len() <= INLINE_BYTES + SEALED_OVERHEAD_BYTES {
        let source = Source::Inline { payload_from: 0, payload_len: content.len() as u32 };
        return Ok((Piece { offset, len, source, chunk_from: 0, key }, content));
    }
    let chunk = client.upload_chunk(content, &client.patience()).await?;
    Ok((Piece { offset, len, source: Source::Chunk(chunk), chunk_from: 0, key }, Bytes::new()))
}

async fn download_and_open(client: Client, payload: Bytes, extent: StoredExtent) -> anyhow::Result<Vec<u8>> {
    let sealed = match extent.inline {
        Some((from, len)) => {
            let (from, len) = (from as usize, len as usize);
            let end = from.checked_add(len).filter(|end| *end <= payload.len());
            payload.slice(from..end.context("the server's answer is malformed")?)
        }
        None => client.download(&extent.chunk, Some(0), &client.patience()).await?,
    };
    tokio::task::spawn_blocking(move || {
        let plain = client.keys().open_content(&extent.key, &extent.chunk.hash, &sealed)?;
        let from = extent.chunk_from as usize;
        let part = plain.get(from..from.saturating_add(extent.len as usize));
        Ok(part.context("the file's content is shorter than its extents say")?.to_vec())
    })
    .await?
}

/// Up to one chunk; shorter only at the end.
fn read_chunk(local: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    local.take(CHUNK_BYTES as u64).read_to_end(&mut plain)?;
    Ok(plain)
}

/// A name beside the wanted one that no other upload has.
fn partial_name(name: &Name) -> anyhow::Result<Name> {
    const SUFFIX_BYTES: usize = ".kfs-part-".len() + 8;
    let kept = &name.as_bytes()[..name.as_bytes().len().min(Name::MAX_BYTES - SUFFIX_BYTES)];
    let tag = u32::from_le_bytes(proto::SessionId::random().0[..4].try_into().expect("an id has 16 bytes"));
    let mut partial = kept.to_vec();
    partial.extend_from_slice(format!(".kfs-part-{tag:08x}").as_bytes());
    Ok(Name::new(&partial)?)
}
