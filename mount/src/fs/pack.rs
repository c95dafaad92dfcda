//! Written content on its way: how dirty ranges become chunks or inline content,
//! and how those become write requests. Pure.
//!
//! A pack is sealed as a whole and may hold several ranges. Packs of a file are
//! in the order in which they were written and are quoted in that order, so a
//! later one may lie over an earlier one; within one request none do.

use super::dirty::Segment;
use super::stamps::Life;
use crate::error::FsError;
use bytes::{Bytes, BytesMut};
use proto::SessionId;
use proto::chunk::{CHUNK_BYTES, ChunkName, INLINE_BYTES, WrappedKey};
use proto::message::{Piece, Source, Upload, WriteAt};
use std::collections::VecDeque;

/// Ranges in one pack, at most.
const MAX_PARTS: usize = 64;

/// Content that is not answered for yet. Reads see it until it is.
pub struct Pack {
    /// Rises by one with each pack of the file, from 1.
    pub seq: u64,
    pub parts: Vec<Part>,
    /// What the parts point into.
    pub plain: Bytes,
    pub stage: Stage,
    /// It was written under a lock of this session, so it may be applied in no other.
    pub only_in: Option<SessionId>,
    /// Its one range stood at the file's end when it was written, wherever that is.
    pub append: bool,
    /// It has no room reserved: its request goes alone, and this one is told what came of it.
    pub through: Option<Through>,
}

/// Who waits for a request that may be refused.
pub type Through = tokio::sync::oneshot::Sender<Result<(), FsError>>;

/// "File bytes from `offset` on are plain bytes `from..from+len`."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub from: u32,
    pub len: u32,
}

impl Part {
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

pub enum Stage {
    /// Being sealed and uploaded.
    Uploading,
    Chunk(ChunkName, WrappedKey),
    /// Sealed content for each part, to travel in the request itself.
    Inline(Vec<Sealed>),
    /// It cannot be sent; why stands with the file.
    Failed,
    /// Quoted by a request that is not answered yet, and that left in this life of the content's promise.
    Sent {
        life: Option<Life>,
    },
}

/// Content sealed for a request's payload.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub sealed: Bytes,
    pub hash: [u8; 32],
    pub key: WrappedKey,
}

/// Ranges that will be one pack.
#[derive(Debug, PartialEq, Eq)]
pub struct Draft {
    pub parts: Vec<Part>,
    pub plain: Bytes,
    /// Little enough to travel in the request.
    pub inline: bool,
}

/// Divides ranges, in order of offset, into packs: as few as the limits allow. Up to `inline_bytes` of content travel in
/// the request.
pub fn drafts(segments: Vec<Segment>, inline_bytes: usize) -> Vec<Draft> {
    let total: usize = segments.iter().map(|s| s.data.len()).sum();
    let inline = total <= inline_bytes && segments.len() <= MAX_PARTS;
    let mut out: Vec<Draft> = Vec::new();
    let mut group: Vec<Segment> = Vec::new();
    let mut bytes = 0;
    for segment in segments {
        if group.len() == MAX_PARTS || (!group.is_empty() && bytes + segment.data.len() > CHUNK_BYTES) {
            out.push(draft(std::mem::take(&mut group), inline));
            bytes = 0;
        }
        bytes += segment.data.len();
        group.push(segment);
    }
    if !group.is_empty() {
        out.push(draft(group, inline));
    }
    out
}

fn draft(mut segments: Vec<Segment>, inline: bool) -> Draft {
    let mut parts = Vec::with_capacity(segments.len());
    let mut from = 0;
    for s in &segments {
        let len = s.data.len() as u32;
        parts.push(Part { offset: s.offset, from, len });
        from += len;
    }
    let plain = match segments.len() {
        1 => Bytes::from(segments.remove(0).data),
        _ => {
            let mut plain = BytesMut::with_capacity(from as usize);
            segments.iter().for_each(|s| plain.extend_from_slice(&s.data));
            plain.freeze()
        }
    };
    Draft { parts, plain, inline }
}

/// Packs that can leave with one request.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// Which, counted in the queue.
    pub packs: std::ops::Range<usize>,
    pub bytes: usize,
    /// The first pack behind it is still being uploaded, so waiting may let more leave together.
    pub more_to_come: bool,
}

/// The packs at the front of the queue that can leave now, as one request.
pub fn next_batch(packs: &VecDeque<Pack>) -> Option<Batch> {
    let first = packs.iter().position(|p| !matches!(p.stage, Stage::Sent { .. }))?;
    let mut batch = Batch { packs: first..first, bytes: 0, more_to_come: false };
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let (mut parts, mut inline) = (0, 0);
    for pack in packs.iter().skip(first) {
        let inline_bytes = match &pack.stage {
            Stage::Uploading => {
                batch.more_to_come = true;
                break;
            }
            Stage::Failed | Stage::Sent { .. } => break,
            Stage::Chunk(..) => 0,
            Stage::Inline(sealed) => sealed.iter().map(|s| s.sealed.len()).sum(),
        };
        let fits = parts + pack.parts.len() <= Upload::MAX_PIECES
            && (inline == 0 || inline + inline_bytes <= INLINE_BYTES)
            && pack.append == packs[first].append
            && (batch.packs.is_empty() || (pack.through.is_none() && packs[first].through.is_none()))
            && pack.only_in == packs[first].only_in
            && pack.parts.iter().all(|p| ranges.iter().all(|(from, to)| p.end() <= *from || p.offset >= *to));
        if !fits {
            break;
        }
        ranges.extend(pack.parts.iter().map(|p| (p.offset, p.end())));
        parts += pack.parts.len();
        inline += inline_bytes;
        batch.bytes += pack.plain.len();
        batch.packs.end += 1;
    }
    (!batch.packs.is_empty()).then_some(batch)
}

/// The pieces and the payload of the request for these packs, and what each piece is of.
pub fn write_request<'a>(packs: impl Iterator<Item = &'a Pack>) -> (WriteAt, Vec<Piece>, Bytes) {
    let mut payload = BytesMut::new();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = WriteAt::Offsets;
    for pack in packs {
        if pack.append {
            at = WriteAt::End;
        }
        match &pack.stage {
            Stage::Chunk(name, key) => pieces.extend(pack.parts.iter().map(|part| Piece {
                offset: part.offset,
                len: part.len,
                source: Source::Chunk(*name),
                chunk_from: part.from,
                key: key.clone(),
            })),
            Stage::Inline(sealed) => {
                for (part, sealed) in pack.parts.iter().zip(sealed) {
                    let source =
                        Source::Inline { payload_from: payload.len() as u32, payload_len: sealed.sealed.len() as u32 };
                    payload.extend_from_slice(&sealed.sealed);
                    let key = sealed.key.clone();
                    pieces.push(Piece { offset: part.offset, len: part.len, source, chunk_from: 0, key });
                }
            }
            Stage::Uploading | Stage::Failed | Stage::Sent { .. } => {}
        }
    }
    pieces.sort_by_key(|p| p.offset);
    if at == WriteAt::End {
        let start = pieces.first().map_or(0, |p| p.offset);
        pieces.iter_mut().for_each(|p| p.offset -= start);
    }
    (at, pieces, payload.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::log::Topic;
    use proto::{Epoch, SessionId};

    fn segment(offset: u64, len: usize) -> Segment {
        Segment { offset, data: vec![offset as u8; len] }
    }

    fn key() -> WrappedKey {
        WrappedKey { key_epoch: 1, wrapped: [0; WrappedKey::BYTES] }
    }

    fn chunk(seq: u64, offset: u64, len: usize) -> Pack {
        let name = ChunkName {
            topic: Topic::Chunks,
            epoch: Epoch(1),
            partition: 0,
            offset: seq,
            index: 0,
            session: SessionId::default(),
            hash: [0; 32],
        };
        let part = Part { offset, from: 0, len: len as u32 };
        let plain = Bytes::from(vec![0; len]);
        let stage = Stage::Chunk(name, key());
        Pack { seq, parts: vec![part], plain, stage, only_in: None, append: false, through: None }
    }

    #[test]
    fn little_travels_inline_and_scattered_ranges_share_chunks() {
        let small = drafts(vec![segment(0, 10), segment(100, 20)], INLINE_BYTES);
        assert_eq!(small.len(), 1);
        assert!(small[0].inline);
        assert_eq!(small[0].parts[1], Part { offset: 100, from: 10, len: 20 });
        let large = drafts((0..200).map(|i| segment(i * 8192, 4096)).collect(), INLINE_BYTES);
        assert!(large.iter().all(|d| !d.inline && d.plain.len() <= CHUNK_BYTES && d.parts.len() <= MAX_PARTS));
        assert_eq!(large.iter().map(|d| d.plain.len()).sum::<usize>(), 200 * 4096);
        assert_eq!(large.len(), 4);
    }

    #[test]
    fn what_overlaps_leaves_in_two_requests() {
        let mut packs: VecDeque<Pack> = [chunk(1, 0, 100), chunk(2, 200, 100), chunk(3, 50, 100)].into();
        assert_eq!(next_batch(&packs), Some(Batch { packs: 0..2, bytes: 200, more_to_come: false }));
        packs[0].stage = Stage::Sent { life: None };
        packs[1].stage = Stage::Uploading;
        assert_eq!(next_batch(&packs), None, "a later pack never overtakes an earlier one");
        packs[1].stage = Stage::Sent { life: None };
        assert_eq!(next_batch(&packs), Some(Batch { packs: 2..3, bytes: 100, more_to_come: false }));
    }

    #[test]
    fn appended_content_counts_from_the_end() {
        let mut pack = chunk(1, 1000, 100);
        pack.append = true;
        let mut next = chunk(2, 1100, 50);
        next.append = true;
        let (at, pieces, _) = write_request([&pack, &next].into_iter());
        assert_eq!(at, WriteAt::End);
        assert_eq!(pieces.iter().map(|p| (p.offset, p.len)).collect::<Vec<_>>(), [(0, 100), (100, 50)]);
    }
}
