//! Where the machine keeps its rows: an ordered map of bytes, seen narrowly.
//!
//! The store gives it a write transaction, tests a `BTreeMap`. A `put` is seen by
//! every later `get` and `scan`. Reading cannot fail from the machine's view: a
//! store that fails to read stops the server (the design's section 6), since a
//! machine that skips what it cannot read would no longer be the same everywhere.

use std::collections::BTreeMap;

/// The rows that one call of the machine sees and changes.
pub trait Kv {
    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>>;

    fn put(&mut self, key: &[u8], value: &[u8]);

    fn delete(&mut self, key: &[u8]);

    /// Visits rows with `from <= key < to` in rising order until `visit` says `false`.
    fn scan(&mut self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool);
}

/// Rows in memory, for tests and the simulator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryKv {
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Kv for MemoryKv {
    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        self.rows.get(key).cloned()
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.rows.insert(key.to_vec(), value.to_vec());
    }

    fn delete(&mut self, key: &[u8]) {
        self.rows.remove(key);
    }

    fn scan(&mut self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        for (key, value) in self.rows.range(from.to_vec()..to.to_vec()) {
            if !visit(key, value) {
                break;
            }
        }
    }
}
