//! History: rows that have ended stay, until they are old or too much.
//!
//! A row that ends moves under a key of its own, with the position of its end, and
//! a second row lists it by the time of its end. What it takes is counted in its
//! namespace, apart from what is in use. It is freed when it is older than
//! the limit of log time, or, oldest first, while the namespace's history takes
//! more than its share of the namespace's bytes. Only then do its chunks lose their
//! references.
//!
//! Work is bounded: a record frees at most [`AT_ONCE`] rows and twice what it adds,
//! a tick at most [`PER_TICK`] rows of one namespace, namespaces in turn.

use super::Machine;
use super::rows::{Begin, ExtentRow, Key, NamespaceRow, Turn, after, decode, namespace_key, table};
use crate::limits::limits;
use proto::{LogTime, NamespaceId};
use serde::{Deserialize, Serialize};

/// History may take this part of what a namespace may hold.
const SHARE: u64 = 5;
/// History does not tell apart versions of one session within this much log time.
const THIN_MS: u64 = 60_000;
/// Rows that a record frees beside twice what it adds.
const AT_ONCE: usize = 16;
/// Rows that a tick frees.
pub(super) const PER_TICK: usize = 64;

/// That a row of history is there, listed by when it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PastRow {
    /// The row's own key.
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    /// What it counts for.
    pub bytes: u64,
}

/// Where the key that a row had before it ended stands in its history key: after
/// the table and the namespace, before epoch, offset and index of its end.
pub(super) fn original(key: &[u8]) -> Option<&[u8]> {
    key.get(5..key.len().checked_sub(16)?)
}

/// What a row of history counts for: itself, and the content that it refers to.
pub(super) fn weight(key: &[u8], value: &[u8]) -> u64 {
    let row = (key.len() + value.len()) as u64;
    match original(key).and_then(<[u8]>::first) {
        Some(&table::EXTENT) => row + u64::from(decode::<ExtentRow>(value).len),
        // Kept in partition 0, where the user's namespace may not be.
        Some(&table::USER) => 0,
        _ => row,
    }
}

/// When the row that this row of [`table::PAST`] lists has ended.
pub(super) fn ended(key: &[u8]) -> Option<LogTime> {
    Some(LogTime(u64::from_be_bytes(*key.get(5..)?.first_chunk()?)))
}

fn past_prefix(namespace: NamespaceId) -> Vec<u8> {
    Key::new(table::PAST).u32(namespace.0).done()
}

impl Turn<'_> {
    /// Ends a row. Says whether history kept it.
    pub fn retire<T: Serialize>(&mut self, key: &[u8], begin: &Begin, row: &T) -> bool {
        self.delete(key);
        self.remember(key, begin, row)
    }

    /// Keeps in history what stood under `key` until now, unless it is too short-lived.
    pub fn remember<T: Serialize>(&mut self, key: &[u8], begin: &Begin, row: &T) -> bool {
        if begin.by == self.by && begin.time.0 / THIN_MS == self.now.0 / THIN_MS {
            return false;
        }
        let (epoch, offset) = (self.at.epoch.0, self.at.offset);
        let kept =
            Key::new(table::HISTORY).u32(self.namespace.0).bytes(key).u32(epoch).u64(offset).u32(self.at.index).done();
        let value = super::rows::encode(row);
        let bytes = weight(&kept, &value);
        self.put_bytes(&kept, &value);
        let past = Key::new(table::PAST)
            .u32(self.namespace.0)
            .u64(self.now.0)
            .u32(epoch)
            .u64(offset)
            // Each frame of a record counts for itself.
            .u32(self.at.frame().into())
            .u32(self.remembered as u32)
            .done();
        self.put(&past, &PastRow { key: kept, bytes });
        self.remembered += 1;
        self.history_bytes += bytes as i64;
        true
    }

    /// Frees what history need not keep any longer, after a record that added to it.
    pub(super) fn bound_history(&mut self) {
        if self.remembered > self.bounded {
            let added = self.remembered - self.bounded;
            self.bounded = self.remembered;
            self.free_history(AT_ONCE + 2 * added);
        }
    }

    /// Frees up to `limit` rows of the namespace's history that are over. Says how many.
    fn free_history(&mut self, limit: usize) -> usize {
        let key = namespace_key(self.namespace);
        let row = self.get::<NamespaceRow>(&key);
        let allowed = row.as_ref().map_or(u64::MAX, |row| row.may_hold() / SHARE);
        let mut bytes = row.map_or(0, |row| row.history_bytes).saturating_add_signed(self.history_bytes);
        let (now, keep_ms) = (self.now, limits().history_ms);
        let mut over: Vec<(Vec<u8>, PastRow)> = Vec::new();
        let prefix = past_prefix(self.namespace);
        self.scan(&prefix, &after(&prefix), &mut |key, value| {
            let old = ended(key).is_some_and(|ended| ended.plus_ms(keep_ms) <= now);
            if over.len() == limit || !(old || bytes > allowed) {
                return false;
            }
            let row: PastRow = decode(value);
            bytes = bytes.saturating_sub(row.bytes);
            over.push((key.to_vec(), row));
            true
        });
        let freed = over.len();
        for (past, row) in over {
            self.delete(&past);
            if original(&row.key).and_then(<[u8]>::first) == Some(&table::EXTENT)
                && let Some(extent) = self.get::<ExtentRow>(&row.key)
            {
                self.refer(&extent.chunk, -1);
            }
            self.delete(&row.key);
            self.history_bytes -= row.bytes as i64;
        }
        freed
    }
}

impl Machine {
    /// Frees old history of one namespace, the next in turn.
    pub(super) fn expire_history(&mut self, turn: &mut Turn) {
        let Some(namespace) = next_with_history(turn, self.live.history_turn) else { return };
        turn.namespace = namespace;
        let freed = turn.free_history(PER_TICK);
        turn.settle();
        // One that has more to free stays in turn.
        let next = if freed < PER_TICK { namespace.0 + 1 } else { namespace.0 };
        self.live.history_turn = NamespaceId(next);
    }
}

/// The first namespace from `from` on that has history, or from the beginning.
fn next_with_history(turn: &mut Turn, from: NamespaceId) -> Option<NamespaceId> {
    let mut first_from = |from: NamespaceId| {
        let mut found = None;
        turn.scan(&past_prefix(from), &after(&[table::PAST]), &mut |key, _| {
            found = key.get(1..).and_then(<[u8]>::first_chunk).map(|bytes| NamespaceId(u32::from_be_bytes(*bytes)));
            false
        });
        found
    };
    first_from(from).or_else(|| first_from(NamespaceId(0)))
}
