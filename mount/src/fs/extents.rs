//! What is known of a file's content map: which bytes stand in which chunk,
//! which are holes, and which have not been asked about yet. Pure.
//!
//! Extents do not overlap; every extent lies in the known part; what is known
//! and has no extent is a hole. The owner ([`super::cache`]) says until when it
//! may be believed.

use proto::chunk::{ChunkName, WrappedKey};
use proto::message::StoredExtent;
use std::collections::BTreeMap;

/// "So many file bytes from here are bytes `chunk_from..` of this chunk's content."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: u32,
    pub chunk: ChunkName,
    pub chunk_from: u32,
    pub key: WrappedKey,
}

/// The known part of one file's content map.
#[derive(Clone, Debug, Default)]
pub struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    /// Known ranges, start to end; they do not touch.
    known: BTreeMap<u64, u64>,
}

/// A part of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Hole { len: u64 },
    Data(Extent),
}

impl ExtentMap {
    /// Rough memory of one extent, in bytes.
    pub const EXTENT_BYTES: usize = 240;

    /// The map of a file that has no content.
    pub fn empty_file() -> ExtentMap {
        ExtentMap { extents: BTreeMap::new(), known: BTreeMap::from([(0, u64::MAX)]) }
    }

    /// Rough memory, in bytes.
    pub fn bytes(&self) -> usize {
        128 + self.extents.len() * ExtentMap::EXTENT_BYTES + self.known.len() * 48
    }

    /// Takes in one answer: `extents` are all that overlap `from..to`; `to` is
    /// the end of the last one, or `None` when no extent follows at all.
    /// Returns where the answer ends.
    pub fn learn(&mut self, from: u64, extents: &[StoredExtent], end: bool) -> u64 {
        let last = extents.last().map_or(from, |e| e.offset + u64::from(e.len));
        let to = if end { u64::MAX } else { last.max(from) };
        self.cut(from, to);
        for e in extents {
            self.put(e.offset, Extent { len: e.len, chunk: e.chunk, chunk_from: e.chunk_from, key: e.key.clone() });
        }
        self.mark_known(from, to);
        to
    }

    /// The file's bytes from `offset` on are this now.
    pub fn put(&mut self, offset: u64, extent: Extent) {
        let end = offset + u64::from(extent.len);
        if extent.len == 0 {
            return;
        }
        self.cut(offset, end);
        self.extents.insert(offset, extent);
        self.mark_known(offset, end);
    }

    /// Forgets what stands in a range, so that it is asked about again.
    pub fn forget(&mut self, from: u64, to: u64) {
        self.cut(from, to);
        let overlapping: Vec<(u64, u64)> = self
            .known
            .range(..to)
            .rev()
            .take_while(|(_, end)| **end > from)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in overlapping {
            self.known.remove(&start);
            if start < from {
                self.known.insert(start, from);
            }
            if end > to {
                self.known.insert(to, end);
            }
        }
    }

    /// The file has been cut or extended to `size`: nothing stands behind it.
    pub fn truncate(&mut self, size: u64) {
        self.cut(size, u64::MAX);
        self.mark_known(size, u64::MAX);
    }

    /// Nothing stands in a range any more.
    pub fn clear(&mut self, from: u64, to: u64) {
        self.cut(from, to);
        self.mark_known(from, to);
    }

    /// The parts that make up `from..to`, or the first byte that is not known.
    pub fn parts(&self, from: u64, to: u64) -> Result<Vec<Part>, u64> {
        let known_to = self.known.range(..=from).next_back().map_or(from, |(_, end)| (*end).max(from));
        if known_to < to {
            return Err(known_to);
        }
        let mut parts = Vec::new();
        let mut at = from;
        let first = match self.extents.range(..from).next_back() {
            Some((offset, e)) if offset + u64::from(e.len) > from => *offset,
            _ => from,
        };
        for (offset, extent) in self.extents.range(first..to) {
            let start = (*offset).max(from);
            let end = (offset + u64::from(extent.len)).min(to);
            if start > at {
                parts.push(Part::Hole { len: start - at });
            }
            let skipped = (start - offset) as u32;
            parts.push(Part::Data(Extent {
                len: (end - start) as u32,
                chunk_from: extent.chunk_from + skipped,
                ..extent.clone()
            }));
            at = end;
        }
        if at < to {
            parts.push(Part::Hole { len: to - at });
        }
        Ok(parts)
    }

    /// Removes extents, or their parts, within a range.
    fn cut(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let before = self.extents.range(..from).next_back().map(|(offset, e)| (*offset, offset + u64::from(e.len)));
        if let Some((offset, end)) = before
            && end > from
        {
            let extent = self.extents.get_mut(&offset).expect("found just now");
            let whole = extent.clone();
            extent.len = (from - offset) as u32;
            if end > to {
                self.extents.insert(to, behind(whole, (to - offset) as u32));
            }
        }
        let within: Vec<u64> = self.extents.range(from..to).map(|(offset, _)| *offset).collect();
        for offset in within {
            let extent = self.extents.remove(&offset).expect("listed just now");
            if offset + u64::from(extent.len) > to {
                self.extents.insert(to, behind(extent, (to - offset) as u32));
            }
        }
    }

    fn mark_known(&mut self, mut from: u64, mut to: u64) {
        if from >= to {
            return;
        }
        let touching: Vec<(u64, u64)> = self
            .known
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touching {
            self.known.remove(&start);
            from = from.min(start);
            to = to.max(end);
        }
        self.known.insert(from, to);
    }
}

/// An extent without its first `skipped` bytes.
fn behind(extent: Extent, skipped: u32) -> Extent {
    Extent { len: extent.len - skipped, chunk_from: extent.chunk_from + skipped, ..extent }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::log::Topic;
    use proto::{Epoch, SessionId};

    fn extent(number: u64, len: u32, chunk_from: u32) -> Extent {
        Extent {
            len,
            chunk: ChunkName {
                topic: Topic::Chunks,
                epoch: Epoch(1),
                partition: 0,
                offset: number,
                index: 0,
                session: SessionId::default(),
                hash: [0; 32],
            },
            chunk_from,
            key: WrappedKey { key_epoch: 1, wrapped: [0; WrappedKey::BYTES] },
        }
    }

    #[test]
    fn the_unknown_is_asked_about_and_holes_are_known() {
        let mut map = ExtentMap::default();
        assert_eq!(map.parts(10, 20), Err(10));
        map.put(0, extent(1, 15, 0));
        assert_eq!(map.parts(10, 20), Err(15));
        map.truncate(15);
        assert_eq!(map.parts(10, 20), Ok(vec![Part::Data(extent(1, 5, 10)), Part::Hole { len: 5 }]));
        map.forget(3, 5);
        assert_eq!(map.parts(0, 4), Err(3));
        assert_eq!(map.parts(5, 6), Ok(vec![Part::Data(extent(1, 1, 5))]));
    }

    proptest! {
        #[test]
        fn a_map_says_what_was_put_last(
            changes in proptest::collection::vec((0u64..300, 1u32..100, 0u8..10), 1..40)
        ) {
            // Each byte of the model is (chunk, byte of the chunk).
            let mut model: Vec<Option<Option<(u64, u32)>>> = vec![None; 500];
            let mut map = ExtentMap::default();
            for (number, (offset, len, what)) in changes.into_iter().enumerate() {
                let number = number as u64;
                let to = offset + u64::from(len);
                match what {
                    0 => {
                        map.truncate(offset);
                        model[offset as usize..].fill(Some(None));
                    }
                    1 => {
                        map.forget(offset, to);
                        model[offset as usize..to as usize].fill(None);
                    }
                    _ => {
                        map.put(offset, extent(number, len, 7));
                        for i in 0..len {
                            model[offset as usize + i as usize] = Some(Some((number, 7 + i)));
                        }
                    }
                }
                for (from, to) in [(0, 500), (offset, to), (to, 450), (offset / 2, to)] {
                    let expected = model[from as usize..to as usize].iter().position(|b| b.is_none());
                    match map.parts(from, to) {
                        Err(at) => prop_assert_eq!(Some(at - from), expected.map(|i| i as u64)),
                        Ok(parts) => {
                            prop_assert_eq!(expected, None);
                            let mut bytes = Vec::new();
                            for part in parts {
                                match part {
                                    Part::Hole { len } => bytes.extend((0..len).map(|_| Some(None))),
                                    Part::Data(e) => bytes.extend(
                                        (0..e.len).map(|i| Some(Some((e.chunk.offset, e.chunk_from + i)))),
                                    ),
                                }
                            }
                            prop_assert!(bytes == model[from as usize..to as usize]);
                        }
                    }
                }
            }
        }
    }
}
