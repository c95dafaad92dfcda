//! What programs have written to a file and has not been taken for sending yet.
//!
//! Segments do not overlap, do not touch within a chunk, and none crosses a
//! multiple of [`CHUNK_BYTES`]: a full one is a whole chunk. Memory is what was
//! written, however scattered it is. Pure: no clock, no lock, no waiting.

use proto::chunk::CHUNK_BYTES;
use proto::planted::{Bug, planted};
use std::collections::BTreeMap;

const CHUNK: u64 = CHUNK_BYTES as u64;

/// The written ranges of one file.
#[derive(Default)]
pub struct Dirty {
    segments: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    /// Chunks that have become full and wait to be taken, by their offset.
    full: Vec<u64>,
    /// Whether all of it was appended, one write after the other: then it may
    /// stand wherever the file's end turns out to be.
    appended: bool,
}

/// One contiguous written range, within one chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub data: Vec<u8>,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ranges that stand apart.
    #[cfg(test)]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Whether a whole chunk waits to be taken.
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// The end of the last range.
    pub fn end(&self) -> Option<u64> {
        self.segments.last_key_value().map(|(offset, data)| offset + data.len() as u64)
    }

    /// Whether all of it was appended in order.
    pub fn is_appended(&self) -> bool {
        self.appended
    }

    /// Puts `data` at `offset`, over what was there. `append` says that the
    /// program asked for the end of the file and `offset` is that end as known here.
    pub fn write(&mut self, offset: u64, data: &[u8], append: bool) {
        if data.is_empty() {
            return;
        }
        self.appended = append && (self.segments.is_empty() || (self.appended && self.end() == Some(offset)));
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let room = (CHUNK - at % CHUNK) as usize;
            let (part, after) = rest.split_at(room.min(rest.len()));
            self.write_within_chunk(at, part);
            at += part.len() as u64;
            rest = after;
        }
    }

    fn write_within_chunk(&mut self, offset: u64, data: &[u8]) {
        let chunk = offset - offset % CHUNK;
        let end = offset + data.len() as u64;
        let before = self.segments.range(chunk..=offset).next_back();
        let start = match before {
            Some((start, segment)) if start + segment.len() as u64 >= offset => *start,
            _ => {
                self.segments.insert(offset, Vec::new());
                offset
            }
        };
        // What follows and is reached by the new data becomes part of it.
        let reached: Vec<u64> =
            self.segments.range(start + 1..=end).map(|(at, _)| *at).take_while(|at| *at < chunk + CHUNK).collect();
        let mut tail: Option<(u64, Vec<u8>)> = None;
        for at in reached {
            let segment = self.segments.remove(&at).expect("listed just now");
            self.bytes -= segment.len();
            tail = Some((at, segment));
        }
        let segment = self.segments.get_mut(&start).expect("found or inserted just now");
        self.bytes -= segment.len();
        let was_full = segment.len() == CHUNK_BYTES;
        let from = (offset - start) as usize;
        let overlap = data.len().min(segment.len() - from);
        if !planted(Bug::OlderWriteWins) {
            segment[from..from + overlap].copy_from_slice(&data[..overlap]);
        }
        segment.extend_from_slice(&data[overlap..]);
        if let Some((at, behind)) = tail
            && at + behind.len() as u64 > start + segment.len() as u64
        {
            let known = (start + segment.len() as u64 - at) as usize;
            segment.extend_from_slice(&behind[known..]);
        }
        self.bytes += segment.len();
        if segment.len() == CHUNK_BYTES && !was_full {
            self.full.push(start);
        }
    }

    /// Takes the whole chunks out. What was appended leaves from its front on
    /// only, up to a chunk's end, so that its order stays.
    pub fn take_full(&mut self) -> Vec<Segment> {
        if self.appended {
            let Some(last) = self.segments.last_key_value().map(|(offset, _)| *offset) else { return Vec::new() };
            let last_is_full = self.full.contains(&last);
            self.full.clear();
            let upto = if last_is_full { last + 1 } else { last };
            let out: Vec<u64> = self.segments.range(..upto).map(|(offset, _)| *offset).collect();
            return out.into_iter().map(|offset| self.take(offset)).collect();
        }
        let full = std::mem::take(&mut self.full);
        full.into_iter()
            .filter(|offset| self.segments.get(offset).is_some_and(|s| s.len() == CHUNK_BYTES))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|offset| self.take(offset))
            .collect()
    }

    /// Takes everything out, in order of offset.
    pub fn take_all(&mut self) -> Vec<Segment> {
        self.full.clear();
        self.bytes = 0;
        std::mem::take(&mut self.segments).into_iter().map(|(offset, data)| Segment { offset, data }).collect()
    }

    fn take(&mut self, offset: u64) -> Segment {
        let data = self.segments.remove(&offset).expect("the caller has found it");
        self.bytes -= data.len();
        Segment { offset, data }
    }

    /// Forgets what stands at or after `size`.
    pub fn truncate(&mut self, size: u64) {
        for (_, gone) in self.segments.split_off(&size) {
            self.bytes -= gone.len();
        }
        if let Some((offset, data)) = self.segments.iter_mut().next_back() {
            let keep = (size - offset).min(data.len() as u64) as usize;
            self.bytes -= data.len() - keep;
            data.truncate(keep);
        }
        self.full.retain(|offset| self.segments.get(offset).is_some_and(|s| s.len() == CHUNK_BYTES));
    }

    /// The parts of `offset..offset+len` that are held, as (offset, bytes).
    pub fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, &[u8])> {
        let end = offset.saturating_add(len);
        let first = offset - offset % CHUNK;
        self.segments.range(first..end).filter_map(move |(start, data)| {
            let from = offset.max(*start);
            let to = end.min(start + data.len() as u64);
            (from < to).then(|| (from, &data[(from - start) as usize..(to - start) as usize]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(dirty: &Dirty, len: usize) -> Vec<Option<u8>> {
        let mut out = vec![None; len];
        for (offset, bytes) in dirty.parts(0, len as u64) {
            for (i, b) in bytes.iter().enumerate() {
                out[offset as usize + i] = Some(*b);
            }
        }
        out
    }

    #[test]
    fn neighbours_become_one_and_chunks_stay_apart() {
        let mut dirty = Dirty::default();
        dirty.write(0, &[1; 100], false);
        dirty.write(200, &[3; 100], false);
        assert_eq!(dirty.segments(), 2);
        dirty.write(100, &[2; 100], false);
        assert_eq!((dirty.segments(), dirty.bytes()), (1, 300));
        dirty.write(0, &vec![9; CHUNK_BYTES + 5], false);
        assert_eq!((dirty.segments(), dirty.bytes()), (2, CHUNK_BYTES + 5));
        let full = dirty.take_full();
        assert_eq!(full.len(), 1);
        assert_eq!((full[0].offset, full[0].data.len()), (0, CHUNK_BYTES));
        assert_eq!(dirty.end(), Some(CHUNK + 5));
    }

    #[test]
    fn what_is_appended_leaves_in_order() {
        let mut dirty = Dirty::default();
        dirty.write(1000, &vec![1; CHUNK_BYTES], true);
        assert!(dirty.is_appended());
        let taken = dirty.take_full();
        assert_eq!(taken.len(), 1);
        assert_eq!((taken[0].offset, taken[0].data.len()), (1000, CHUNK_BYTES - 1000));
        dirty.write(CHUNK + 1000, &[2; 10], true);
        assert!(dirty.is_appended());
        dirty.write(CHUNK, &[2; 10], false);
        assert!(!dirty.is_appended(), "a write elsewhere makes offsets count");
    }

    proptest! {
        // Each case compares megabytes.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn dirty_ranges_hold_what_was_written(
            writes in proptest::collection::vec((0u64..3 * CHUNK, 1usize..200_000, any::<u8>(), 0u8..8), 1..20)
        ) {
            let len = 4 * CHUNK_BYTES;
            let mut dirty = Dirty::default();
            let mut model = vec![None; len];
            for (offset, bytes, value, what) in writes {
                match what {
                    0 => {
                        dirty.truncate(offset);
                        model[offset as usize..].fill(None);
                    }
                    1 => for segment in dirty.take_full() {
                        prop_assert_eq!(segment.data.len(), CHUNK_BYTES);
                        for (i, b) in segment.data.iter().enumerate() {
                            prop_assert_eq!(model[segment.offset as usize + i].take(), Some(*b));
                        }
                    },
                    _ => {
                        dirty.write(offset, &vec![value; bytes], false);
                        model[offset as usize..offset as usize + bytes].fill(Some(value));
                    }
                }
                for (offset, data) in &dirty.segments {
                    prop_assert!(!data.is_empty() && offset % CHUNK + data.len() as u64 <= CHUNK);
                }
            }
            prop_assert_eq!(dirty.bytes(), model.iter().flatten().count());
            prop_assert!(content(&dirty, len) == model);
            let end = model.iter().rposition(|b| b.is_some()).map(|at| at as u64 + 1);
            prop_assert_eq!(dirty.end(), end);
        }
    }
}
