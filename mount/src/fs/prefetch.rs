//! Reading ahead. The kernel reads 128 KiB ahead for a plain user's mount, which
//! does not fill a round trip, and nothing for whoever goes from place to place; so the mount itself notices reads in
//! sequence, and reads at even distances (a column of a table, the index of each part of an archive), and keeps up to
//! [`AHEAD_BYTES`] of what follows on their way into the block cache.

use super::Fs;
use super::blocks::BlockState;
use super::extents::{Extent, Part};
use super::file::FileHandle;
use crate::client::{Download, Patience, Reader};
use proto::chunk::{CHUNK_BYTES, ChunkName};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What is kept on its way before a sequential reader, in bytes; the client's
/// window bounds it further.
pub const AHEAD_BYTES: u64 = 20 << 20;
/// Content on its way ahead, in pages, at most: 32 MiB.
pub const PAGES: usize = (32 << 20) / PAGE_BYTES;
const PAGE_BYTES: usize = 4096;
/// What a chunk counts for at least: little of it may be wanted, but all of it comes. So 512 are on their way at most.
const PAGES_MIN: usize = 16;
/// The least worth asking for, in bytes.
const AHEAD_MIN_BYTES: u64 = 1 << 20;
/// How much further than it has read a sequential reader is trusted to go on, as a multiple.
const TRUST: u64 = 4;
/// Kernel read-ahead arrives side by side, so out of order by this much, in bytes.
const DISORDER_BYTES: u64 = 1 << 20;

/// So many distances alike, one after the other, are thought to go on; for how many more, as a multiple, and at most.
const ALIKE: u32 = 2;
const STRIDES_TRUST: u32 = 4;
const STRIDES_MAX: u64 = 64;

/// Where a handle has been reading. Pure.
#[derive(Debug, Default)]
pub struct Sequence {
    stride: Stride,
    /// Behind the last byte read.
    next: u64,
    /// Bytes read in sequence.
    run: u64,
    /// How far has been asked for.
    ahead: u64,
    /// Where the content of what comes next is stored is being asked: once at a time.
    is_map_asked: bool,
}

impl Sequence {
    /// A read has come. What should be fetched now, with at most `limit` bytes ahead.
    pub fn read(&mut self, offset: u64, len: u64, limit: u64) -> Vec<Range<u64>> {
        let end = offset + len;
        if offset > self.next + DISORDER_BYTES || offset + DISORDER_BYTES < self.next {
            let piece = std::mem::replace(&mut self.run, len);
            (self.next, self.ahead) = (end, end);
            return self.stride.goes_to(offset, piece, if self.is_map_asked { 0 } else { limit });
        }
        self.run += len;
        self.next = self.next.max(end);
        if self.is_map_asked || self.stride.covers(self.run) {
            return Vec::new();
        }
        let window = (self.run * TRUST).max(AHEAD_MIN_BYTES).min(limit);
        let from = self.ahead.max(self.next);
        let to = self.next + window;
        // Not one request per read: half of a window that grows at a time, a quarter of one that has grown.
        let step = if window < limit { window / 2 } else { window / 4 };
        if to < from + step.max(1) {
            return Vec::new();
        }
        self.ahead = to;
        std::iter::once(from..to).collect()
    }
}

/// Places at even distances, either way.
#[derive(Debug, Default)]
struct Stride {
    /// Where the last one began, and how far that was from the one before.
    start: u64,
    step: i64,
    /// Bytes read at each.
    piece: u64,
    /// How often the distance was the same as before.
    alike: u32,
    /// Places beyond the last one that have been asked for.
    ahead: u64,
}

impl Stride {
    /// Reading goes on at another place, after `piece` bytes at the last one.
    fn goes_to(&mut self, offset: u64, piece: u64, limit: u64) -> Vec<Range<u64>> {
        let step = offset.wrapping_sub(self.start) as i64;
        let is_alike = step == self.step;
        self.alike = if is_alike { self.alike.saturating_add(1) } else { 0 };
        self.ahead = if is_alike { self.ahead.saturating_sub(1) } else { 0 };
        (self.start, self.step) = (offset, step);
        self.piece = if is_alike { self.piece.max(piece) } else { piece };
        if self.alike < ALIKE {
            return Vec::new();
        }
        // A whole chunk comes, however little of it is wanted.
        let fit = limit / self.piece.max(CHUNK_BYTES as u64);
        let most = fit.min(STRIDES_MAX).min(self.alike.saturating_mul(STRIDES_TRUST).into());
        if self.ahead > most / 2 {
            return Vec::new();
        }
        let place = |number: u64| {
            let from = offset.checked_add_signed(step.checked_mul(number as i64)?)?;
            Some(from..from.saturating_add(self.piece))
        };
        let places = (self.ahead + 1..=most).map_while(place).collect();
        self.ahead = self.ahead.max(most);
        places
    }

    /// Whether what has been read at this place is no more than at those before.
    fn covers(&self, run: u64) -> bool {
        self.alike >= ALIKE && run <= self.piece
    }
}

impl Fs {
    /// Notes a read, and sets on its way what the reader will want next.
    pub(super) fn read_ahead(&self, handle: &Arc<FileHandle>, offset: u64, len: u64, size: u64) {
        let limit = AHEAD_BYTES.min(self.inner.blocks.limit() as u64 / 4);
        let wanted = handle.sequence().read(offset, len, limit);
        let ino = handle.file.ino;
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for range in wanted.into_iter().map(|range| range.start..range.end.min(size)).filter(|range| !range.is_empty())
        {
            let content = self.cache().content(self.promises(), ino, range.start, range.end);
            match content.and_then(|content| content.parts.ok()) {
                Some(parts) => known.extend(parts),
                None => unknown.push(range),
            }
        }
        // At once if it is known where that is: the reader would else come to it first, and ask chunk by chunk.
        self.load_all(&known, None);
        if unknown.is_empty() {
            return;
        }
        handle.sequence().is_map_asked = true;
        let (fs, handle) = (self.clone(), handle.clone());
        proto::task::spawn_on(&self.inner.runtime, async move {
            let patience = Patience::within(fs.inner.config.close_timeout);
            for range in unknown {
                // What cannot be fetched ahead will be asked for, and then says why.
                let Ok((_, parts)) = fs.content(ino, range.start, range.end, &patience).await else { break };
                fs.load_all(&parts, None);
            }
            handle.sequence().is_map_asked = false;
        });
    }

    /// Sets every chunk of these parts on its way that is not in memory, all with one
    /// record, as far as there is room for them: for who waits for them, or to have them ahead.
    pub(super) fn load_all(&self, parts: &[Part], reader: Option<Reader>) {
        let (mut missing, mut fetched): (Vec<&Extent>, Vec<ChunkName>) = (Vec::new(), Vec::new());
        for part in parts {
            let Part::Data(extent) = part else { continue };
            match self.inner.blocks.state(&extent.chunk) {
                Some(BlockState::Ready) => {}
                Some(BlockState::Fetched) => fetched.push(extent.chunk),
                None if missing.last().is_some_and(|last| last.chunk == extent.chunk) => {}
                None => missing.push(extent),
            }
        }
        if let Some(reader) = reader.filter(|_| !fetched.is_empty()) {
            self.inner.client.hurry(&fetched, reader);
        }
        let slots: Vec<_> = missing.iter().map_while(|extent| self.room_ahead(extent.len as usize)).collect();
        let missing: Vec<_> = missing.into_iter().cloned().zip(slots).collect();
        if missing.is_empty() {
            return;
        }
        let Some(tier) = self.inner.config.tier.clone() else { return self.download_all(missing, reader) };
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            let names: Vec<_> = missing.iter().map(|(extent, _)| extent.chunk).collect();
            let mut seen = tier.seen(&names).await.into_iter();
            let (here, there): (Vec<_>, _) = missing.into_iter().partition(|_| seen.next().unwrap_or(false));
            here.into_iter().for_each(|ahead| fs.load_ahead(ahead, None, reader));
            fs.download_all(there, reader);
        });
    }

    /// Room for so many bytes on their way ahead.
    fn room_ahead(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let pages = bytes.div_ceil(PAGE_BYTES).max(PAGES_MIN);
        self.inner.prefetches.clone().try_acquire_many_owned(pages as u32).ok()
    }

    /// Asks the server for all of these with as few records as they fit in.
    fn download_all(&self, missing: Vec<(Extent, OwnedSemaphorePermit)>, reader: Option<Reader>) {
        let names: Vec<_> = missing.iter().map(|(extent, _)| extent.chunk).collect();
        let downloads = self.inner.client.download_all(&names, reader);
        missing.into_iter().zip(downloads).for_each(|(ahead, download)| self.load_ahead(ahead, Some(download), reader));
    }

    /// Brings a chunk into memory, from a download that has begun, or as a reader would.
    fn load_ahead(
        &self,
        (extent, slot): (Extent, OwnedSemaphorePermit),
        download: Option<Download>,
        reader: Option<Reader>,
    ) {
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            let patience = Patience::within(fs.inner.config.close_timeout);
            // What cannot be fetched ahead will be asked for, and then says why.
            let _ = match download {
                Some(download) => {
                    let download = fs.kept(&extent.chunk, fs.inner.client.downloaded(download, &patience));
                    fs.block_from(&extent, download, &patience).await
                }
                None => fs.block(&extent, reader, &patience).await,
            };
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn reads_in_sequence_reach_further_and_further() {
        let mut sequence = Sequence::default();
        let first = sequence.read(0, 128 * KIB, AHEAD_BYTES);
        let mut asked = (128 + 1024) * KIB;
        assert_eq!((first.len(), first[0].start, first[0].end), (1, 128 * KIB, asked));
        for i in 1..400 {
            for range in sequence.read(i * 128 * KIB, 128 * KIB, AHEAD_BYTES) {
                assert_eq!(range.start, asked, "nothing is asked for twice and nothing left out");
                asked = range.end;
            }
        }
        assert!(asked >= 399 * 128 * KIB + AHEAD_BYTES * 3 / 4);
    }

    #[test]
    fn scattered_reads_fetch_nothing() {
        let mut sequence = Sequence::default();
        for offset in [50 << 20, 10 << 20, 90 << 20, 30 << 20] {
            assert_eq!(sequence.read(offset, 4096, AHEAD_BYTES), []);
        }
        // Slight disorder is what the kernel makes of a sequence.
        let mut sequence = Sequence::default();
        for offset in [0, 256 * KIB, 128 * KIB, 384 * KIB] {
            sequence.read(offset, 128 * KIB, AHEAD_BYTES);
        }
        assert_eq!(sequence.run, 512 * KIB);
    }

    #[test]
    fn reads_at_even_distances_are_met_by_what_was_asked_for() {
        for (first, step) in [(0, 4i64 << 20), (900 << 20, -(3i64 << 20))] {
            let mut sequence = Sequence::default();
            let mut asked = Vec::new();
            let mut missed = 0;
            for i in 0..200 {
                let place = first + step * i;
                // In two reads each.
                for (from, len) in [(place as u64, 64 * KIB), (place as u64 + 64 * KIB, 32 * KIB)] {
                    missed += usize::from(!asked.iter().any(|r: &Range<u64>| r.start <= from && from + len <= r.end));
                    asked.extend(sequence.read(from, len, AHEAD_BYTES));
                }
                asked.retain(|range| (range.start as i64 - place) * step.signum() >= 0);
                let bytes: u64 = asked.len() as u64 * CHUNK_BYTES as u64;
                assert!(bytes <= AHEAD_BYTES + 2 * CHUNK_BYTES as u64, "{bytes} at {place}");
            }
            assert!(missed <= 10, "{missed} of 400, {step}");
        }
    }

    #[test]
    fn places_behind_the_ends_are_not_asked_for() {
        let mut stride = Stride::default();
        let steps = [9u64 << 20, 6 << 20, 3 << 20].map(|offset| stride.goes_to(offset, 4096, AHEAD_BYTES));
        assert!(steps.iter().all(Vec::is_empty));
        assert_eq!(stride.goes_to(0, 4096, AHEAD_BYTES), [], "nothing is before the beginning");
    }
}
