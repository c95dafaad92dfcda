//! A least-recently-used map bounded in bytes, not in entries: every cache of the
//! mount is one of these, so that none grows with the size of what is mounted.

use lru::LruCache;
use std::borrow::Borrow;
use std::hash::Hash;

/// Entries whose bytes, as told at insertion, sum up to at most `limit`.
pub struct BytesLru<K: Hash + Eq, V> {
    map: LruCache<K, Entry<V>>,
    bytes: usize,
    limit: usize,
}

struct Entry<V> {
    value: V,
    bytes: usize,
}

impl<K: Hash + Eq, V> BytesLru<K, V> {
    pub fn new(limit: usize) -> Self {
        BytesLru { map: LruCache::unbounded(), bytes: 0, limit }
    }

    /// What all entries together take, in bytes.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The value, which becomes the most recently used.
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.map.get_mut(key).map(|e| &mut e.value)
    }

    /// Whether it is there, without using it.
    pub fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.map.contains(key)
    }

    /// Puts a value of that many bytes in, then drops the least recently used
    /// until all fit; one larger than the limit does not stay.
    pub fn insert(&mut self, key: K, value: V, bytes: usize) {
        if let Some(old) = self.map.put(key, Entry { value, bytes }) {
            self.bytes -= old.bytes;
        }
        self.bytes += bytes;
        self.shrink();
    }

    /// Says that the value under `key` takes that many bytes now.
    pub fn resize<Q: Hash + Eq + ?Sized>(&mut self, key: &Q, bytes: usize)
    where
        K: Borrow<Q>,
    {
        if let Some(entry) = self.map.peek_mut(key) {
            self.bytes = self.bytes - entry.bytes + bytes;
            entry.bytes = bytes;
            self.shrink();
        }
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.map.pop(key)?;
        self.bytes -= entry.bytes;
        Some(entry.value)
    }

    fn shrink(&mut self) {
        while self.bytes > self.limit {
            let Some((_, old)) = self.map.pop_lru() else { return };
            self.bytes -= old.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = BytesLru::new(10);
        lru.insert("a", 1, 4);
        lru.insert("b", 2, 4);
        assert_eq!(lru.get("a"), Some(&mut 1));
        lru.insert("c", 3, 4);
        assert!(lru.contains("a") && !lru.contains("b") && lru.contains("c"));
        lru.resize("c", 7);
        assert!(!lru.contains("a"));
        assert_eq!(lru.bytes(), 7);
        lru.insert("d", 4, 11);
        assert_eq!(lru.bytes(), 0, "what cannot fit does not stay, and takes nothing with it in the count");
    }
}
