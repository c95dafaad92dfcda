//! Reading ahead. The kernel reads 128 KiB ahead for a plain user's mount, which
//! does not fill a round trip; so the mount itself notices reads in sequence and
//! keeps up to [`AHEAD_BYTES`] of what follows on their way into the block cache.

use super::Fs;
use super::extents::{Extent, Part};
use super::file::FileHandle;
use crate::client::{Download, Patience};
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

/// Where a handle has been reading. Pure.
#[derive(Debug, Default)]
pub struct Sequence {
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
    pub fn read(&mut self, offset: u64, len: u64, limit: u64) -> Option<(u64, u64)> {
        let end = offset + len;
        if offset > self.next + DISORDER_BYTES || offset + DISORDER_BYTES < self.next {
            *self = Sequence { next: end, run: 0, ahead: end, ..*self };
            return None;
        }
        self.run += len;
        self.next = self.next.max(end);
        if self.is_map_asked {
            return None;
        }
        let window = (self.run * TRUST).max(AHEAD_MIN_BYTES).min(limit);
        let from = self.ahead.max(self.next);
        let to = self.next + window;
        // Not one request per read: half of a window that grows at a time, a quarter of one that has grown.
        let step = if window < limit { window / 2 } else { window / 4 };
        if to < from + step.max(1) {
            return None;
        }
        self.ahead = to;
        Some((from, to))
    }
}

impl Fs {
    /// Notes a read, and sets on its way what the reader will want next.
    pub(super) fn read_ahead(&self, handle: &Arc<FileHandle>, offset: u64, len: u64, size: u64) {
        let limit = AHEAD_BYTES.min(self.inner.blocks.limit() as u64 / 4);
        let wanted = handle.sequence().read(offset, len, limit);
        let Some((from, to)) = wanted else { return };
        let to = to.min(size);
        if from >= to {
            return;
        }
        let ino = handle.file.ino;
        // At once if it is known where that is: the reader would else come to it first, and ask chunk by chunk.
        if let Some(content) = self.cache().content(self.promises(), ino, from, to)
            && let Ok(parts) = content.parts
        {
            return self.load_all(&parts);
        }
        handle.sequence().is_map_asked = true;
        let (fs, handle) = (self.clone(), handle.clone());
        proto::task::spawn_on(&self.inner.runtime, async move {
            let patience = Patience::within(fs.inner.config.close_timeout);
            // What cannot be fetched ahead will be asked for, and then says why.
            if let Ok((_, parts)) = fs.content(ino, from, to, &patience).await {
                fs.load_all(&parts);
            }
            handle.sequence().is_map_asked = false;
        });
    }

    /// Sets every chunk of these parts on its way that is not in memory, all with one
    /// record, as far as there is room for them.
    pub(super) fn load_all(&self, parts: &[Part]) {
        let mut missing: Vec<&Extent> = Vec::new();
        for part in parts {
            if let Part::Data(extent) = part
                && missing.last().is_none_or(|last| last.chunk != extent.chunk)
                && !self.inner.blocks.is_coming(&extent.chunk)
            {
                missing.push(extent);
            }
        }
        let slots: Vec<_> = missing.iter().map_while(|extent| self.room_ahead(extent.len as usize)).collect();
        let missing: Vec<_> = missing.into_iter().cloned().zip(slots).collect();
        if missing.is_empty() {
            return;
        }
        let Some(tier) = self.inner.config.tier.clone() else { return self.download_all(missing) };
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            let names: Vec<_> = missing.iter().map(|(extent, _)| extent.chunk).collect();
            let mut seen = tier.seen(&names).await.into_iter();
            let (here, there): (Vec<_>, _) = missing.into_iter().partition(|_| seen.next().unwrap_or(false));
            here.into_iter().for_each(|ahead| fs.load_ahead(ahead, None));
            fs.download_all(there);
        });
    }

    /// Room for so many bytes on their way ahead.
    fn room_ahead(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let pages = bytes.div_ceil(PAGE_BYTES).max(PAGES_MIN);
        self.inner.prefetches.clone().try_acquire_many_owned(pages as u32).ok()
    }

    /// Asks the server for all of these with as few records as they fit in.
    fn download_all(&self, missing: Vec<(Extent, OwnedSemaphorePermit)>) {
        let names: Vec<_> = missing.iter().map(|(extent, _)| extent.chunk).collect();
        let downloads = self.inner.client.download_all(&names);
        missing.into_iter().zip(downloads).for_each(|(ahead, download)| self.load_ahead(ahead, Some(download)));
    }

    /// Brings a chunk into memory, from a download that has begun, or as a reader would.
    fn load_ahead(&self, (extent, slot): (Extent, OwnedSemaphorePermit), download: Option<Download>) {
        let fs = self.clone();
        proto::task::spawn_on(&self.inner.runtime, async move {
            let patience = Patience::within(fs.inner.config.close_timeout);
            // What cannot be fetched ahead will be asked for, and then says why.
            let _ = match download {
                Some(download) => {
                    let download = fs.kept(&extent.chunk, fs.inner.client.downloaded(download, &patience));
                    fs.block_from(&extent, download, &patience).await
                }
                None => fs.block(&extent, &patience).await,
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
        assert_eq!(sequence.read(0, 128 * KIB, AHEAD_BYTES), Some((128 * KIB, (128 + 1024) * KIB)));
        let mut asked = (128 + 1024) * KIB;
        for i in 1..400 {
            if let Some((from, to)) = sequence.read(i * 128 * KIB, 128 * KIB, AHEAD_BYTES) {
                assert_eq!(from, asked, "nothing is asked for twice and nothing left out");
                asked = to;
            }
        }
        assert!(asked >= 399 * 128 * KIB + AHEAD_BYTES * 3 / 4);
    }

    #[test]
    fn scattered_reads_fetch_nothing() {
        let mut sequence = Sequence::default();
        for offset in [50 << 20, 10 << 20, 90 << 20, 30 << 20] {
            assert_eq!(sequence.read(offset, 4096, AHEAD_BYTES), None);
        }
        // Slight disorder is what the kernel makes of a sequence.
        let mut sequence = Sequence::default();
        for offset in [0, 256 * KIB, 128 * KIB, 384 * KIB] {
            sequence.read(offset, 128 * KIB, AHEAD_BYTES);
        }
        assert_eq!(sequence.run, 512 * KIB);
    }
}
