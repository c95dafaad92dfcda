//! What a quiet server would have said since the answering one's "answered up to":
//! kept to be said at a takeover. Bounded; what is dropped is asked for again by the
//! clients, and answered from remembered results.

use std::collections::{BTreeMap, VecDeque};

/// Kept at once, over all partitions.
const MAX_ENTRIES: usize = 65_536;
const MAX_BYTES: usize = 32 << 20;

/// Things to say, each with the offset of the record that gave rise to it.
pub struct Unsaid<T> {
    partitions: BTreeMap<u32, VecDeque<Entry<T>>>,
    entries: usize,
    bytes: usize,
    next: u64,
    dropped: u64,
}

struct Entry<T> {
    order: u64,
    offset: u64,
    bytes: usize,
    what: T,
}

impl<T> Default for Unsaid<T> {
    fn default() -> Unsaid<T> {
        Unsaid { partitions: BTreeMap::new(), entries: 0, bytes: 0, next: 0, dropped: 0 }
    }
}

impl<T> Unsaid<T> {
    /// Keeps something of about `bytes`; the oldest goes if there is too much. In one
    /// partition offsets never fall.
    pub fn keep(&mut self, partition: u32, offset: u64, bytes: usize, what: T) {
        let order = self.next;
        self.next += 1;
        self.entries += 1;
        self.bytes += bytes;
        self.partitions.entry(partition).or_default().push_back(Entry { order, offset, bytes, what });
        while self.entries > MAX_ENTRIES || self.bytes > MAX_BYTES {
            self.pop();
            self.dropped += 1;
        }
    }

    /// Everything before this offset has been answered by another server.
    pub fn answered(&mut self, partition: u32, before: u64) {
        let Some(queue) = self.partitions.get_mut(&partition) else { return };
        while queue.front().is_some_and(|entry| entry.offset < before)
            && let Some(entry) = queue.pop_front()
        {
            self.entries -= 1;
            self.bytes -= entry.bytes;
        }
    }

    /// Takes out the oldest: its partition, and what it is.
    pub fn pop(&mut self) -> Option<(u32, T)> {
        let fronts = self.partitions.iter().filter_map(|(partition, queue)| Some((queue.front()?.order, *partition)));
        let (_, partition) = fronts.min()?;
        let entry = self.partitions.get_mut(&partition)?.pop_front()?;
        self.entries -= 1;
        self.bytes -= entry.bytes;
        Some((partition, entry.what))
    }

    pub fn len(&self) -> usize {
        self.entries
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many have been dropped for want of room, ever.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn clear(&mut self) {
        self.partitions.clear();
        (self.entries, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_goes_and_the_rest_comes_in_order() {
        let mut unsaid = Unsaid::default();
        for (partition, offset) in [(1, 5), (2, 1), (1, 6), (1, 6), (2, 9)] {
            unsaid.keep(partition, offset, 10, (partition, offset));
        }
        unsaid.answered(1, 6);
        unsaid.answered(7, 100);
        let rest: Vec<_> = std::iter::from_fn(|| unsaid.pop().map(|(_, what)| what)).collect();
        assert_eq!(rest, [(2, 1), (1, 6), (1, 6), (2, 9)]);
        assert_eq!((unsaid.len(), unsaid.dropped(), unsaid.bytes), (0, 0, 0));
    }

    #[test]
    fn it_is_bounded_and_drops_the_oldest() {
        let mut unsaid = Unsaid::default();
        for offset in 0..(MAX_ENTRIES as u64 + 10) {
            unsaid.keep((offset % 3) as u32, offset, 1, offset);
        }
        assert_eq!((unsaid.len(), unsaid.dropped()), (MAX_ENTRIES, 10));
        assert_eq!(unsaid.pop().map(|(_, what)| what), Some(10));
        unsaid.keep(0, u64::MAX, MAX_BYTES, 7);
        assert_eq!(unsaid.pop(), Some((0, 7)));
        assert_eq!(unsaid.bytes, 0);
    }
}
