//! One namespace's history: each row that has ended is listed once, by its end, and
//! nothing is listed that is not there.

use super::{Check, hex, u64_at};
use crate::machine::history::{PastRow, ended, original, weight};
use crate::machine::rows::{ExtentRow, after, table, try_decode};
use proto::NamespaceId;
use proto::chunk::ChunkName;
use std::collections::BTreeMap;

impl Check<'_> {
    /// Adds what history refers to. Gives the bytes that it takes.
    pub(super) fn history(&mut self, namespace: NamespaceId, references: &mut BTreeMap<ChunkName, u64>) -> u64 {
        let number = namespace.0;
        let mut rows: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let mut bytes = 0;
        let prefix = [&[table::HISTORY][..], &number.to_be_bytes()].concat();
        let violations = &mut self.report.violations;
        self.kv.scan(&prefix, &after(&prefix), &mut |key, value| {
            let is_extent = original(key).and_then(<[u8]>::first) == Some(&table::EXTENT);
            if is_extent {
                match try_decode::<ExtentRow>(value) {
                    Ok(row) => *references.entry(row.chunk).or_default() += 1,
                    Err(reason) => {
                        violations.add(|| format!("the row of history {} cannot be read: {reason}", hex(key)));
                        return true;
                    }
                }
            }
            let weight = weight(key, value);
            bytes += weight;
            rows.insert(key.to_vec(), weight);
            true
        });
        self.report.history_rows += rows.len() as u64;

        let now = self.machine.live.now;
        let mut last_place = (0, 0, 0);
        let prefix = [&[table::PAST][..], &number.to_be_bytes()].concat();
        self.rows::<PastRow>(&prefix, |violations, key, past| {
            let weight = rows.remove(&past.key);
            violations.check(weight == Some(past.bytes), || {
                format!("history lists {} for {} bytes, which takes {weight:?}", hex(&past.key), past.bytes)
            });
            violations.check(ended(key).is_some_and(|ended| ended <= now), || {
                format!("history lists {} as ended later than now", hex(&past.key))
            });
            // Log time and positions rise together.
            let epoch_offset =
                key.get(13..25).map_or((0, 0), |at| (u64_at(&[&[0; 4], &at[..4]].concat()), u64_at(&at[4..])));
            let place = (ended(key).map_or(0, |time| time.0), epoch_offset.0, epoch_offset.1);
            violations.check((place.1, place.2) >= (last_place.1, last_place.2), || {
                format!("history lists {} out of its order", hex(&past.key))
            });
            last_place = place;
        });
        for key in rows.keys() {
            self.report.violations.add(|| format!("no list of history has {}", hex(key)));
        }
        bytes
    }
}
