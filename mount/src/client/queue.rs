//! Which content is asked for next. Pure.
//!
//! * What somebody waits for goes before what is only read ahead, also if it was to be read ahead until then.
//! * Those who wait take turns, and each gets what it waits for in the order of its asking. So nobody waits for all
//!   that the kernel reads ahead for somebody else.

use proto::chunk::ChunkName;
use proto::turns::Turns;
use std::collections::VecDeque;

/// Who waits for content: a handle's number, or 0 for who has none.
pub type Reader = u64;

/// Each name is in it once at most; how many there are is the caller's business.
#[derive(Default)]
pub(super) struct Queue {
    waited: Turns<Reader, ChunkName>,
    ahead: VecDeque<ChunkName>,
}

impl Queue {
    pub fn push(&mut self, name: ChunkName, reader: Option<Reader>) {
        match reader {
            Some(reader) => self.waited.push(reader, name),
            None => self.ahead.push_back(name),
        }
    }

    /// Somebody waits for what may stand here as something to be read ahead.
    pub fn hurry(&mut self, name: ChunkName, reader: Reader) {
        let before = self.ahead.len();
        self.ahead.retain(|queued| *queued != name);
        if self.ahead.len() < before {
            self.push(name, Some(reader));
        }
    }

    pub fn pop(&mut self) -> Option<ChunkName> {
        self.waited.pop().or_else(|| self.ahead.pop_front())
    }

    pub fn len(&self) -> usize {
        self.ahead.len() + self.waited.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ahead.is_empty() && self.waited.is_empty()
    }

    /// Whether somebody waits for what is next.
    pub fn is_waited_for(&self) -> bool {
        !self.waited.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::log::Topic;

    fn name(offset: u64) -> ChunkName {
        let (epoch, session) = (proto::Epoch(1), proto::SessionId::default());
        ChunkName { topic: Topic::Chunks, epoch, partition: 0, offset, index: 0, session, hash: [0; 32] }
    }

    #[test]
    fn who_waits_goes_first_and_those_who_wait_take_turns() {
        let mut queue = Queue::default();
        (0..4).for_each(|offset| queue.push(name(offset), None));
        (10..13).for_each(|offset| queue.push(name(offset), Some(1)));
        queue.push(name(20), Some(2));
        queue.hurry(name(2), 2);
        // That is waited for already, or is on its way.
        queue.hurry(name(11), 2);
        queue.hurry(name(99), 2);
        assert_eq!((queue.len(), queue.is_waited_for()), (8, true));
        let order: Vec<u64> = std::iter::from_fn(|| queue.pop()).map(|name| name.offset).collect();
        assert_eq!(order, [10, 20, 11, 2, 12, 0, 1, 3]);
        assert!(queue.is_empty() && !queue.is_waited_for());
    }
}
