//! A queue in which nobody waits for all that somebody else has queued: those who wait take turns, and each gets its own
//! in order (round robin, as in J. Nagle's fair queueing, RFC 970).

use std::collections::VecDeque;

/// What waits, by whom it is for. How much that is, is the caller's business.
#[derive(Debug)]
pub struct Turns<K, T> {
    /// None of the queues is empty. The first one's turn is next.
    waiting: VecDeque<(K, VecDeque<T>)>,
}

impl<K, T> Default for Turns<K, T> {
    fn default() -> Turns<K, T> {
        Turns { waiting: VecDeque::new() }
    }
}

impl<K: PartialEq, T> Turns<K, T> {
    /// Behind all that waits for the same one.
    pub fn push(&mut self, key: K, item: T) {
        match self.waiting.iter_mut().find(|(of, _)| *of == key) {
            Some((_, items)) => items.push_back(item),
            None => self.waiting.push_back((key, VecDeque::from([item]))),
        }
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<T> {
        let (key, mut items) = self.waiting.pop_front()?;
        let item = items.pop_front();
        if !items.is_empty() {
            self.waiting.push_back((key, items));
        }
        item
    }

    pub fn len(&self) -> usize {
        self.waiting.iter().map(|(_, items)| items.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_its_own_in_order_and_a_turn() {
        let mut turns = Turns::default();
        for item in ["a1", "a2", "a3"] {
            turns.push('a', item);
        }
        turns.push('b', "b1");
        turns.push('c', "c1");
        assert_eq!(turns.pop(), Some("a1"));
        turns.push('b', "b2");
        turns.push('d', "d1");
        assert_eq!((turns.len(), turns.is_empty()), (6, false));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, ["b1", "c1", "a2", "d1", "b2", "a3"]);
        assert!(turns.is_empty());
    }
}
