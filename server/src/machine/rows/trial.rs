//! A request's work on the rows as long as it is not known whether it may be done: on an overlay, which becomes
//! the state or is dropped. What becomes of the rows and of the state's hash is the same as without.

use super::Turn;
use crate::machine::kv::Kv;
use std::collections::BTreeMap;

/// Changes that are not made yet, over the rows that they change.
struct Overlay<'a> {
    under: &'a mut dyn Kv,
    /// By key the new value; `None` where the row goes.
    changed: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Kv for Overlay<'_> {
    fn get(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        match self.changed.get(key) {
            Some(value) => value.clone(),
            None => self.under.get(key),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.changed.insert(key.to_vec(), Some(value.to_vec()));
    }

    fn delete(&mut self, key: &[u8]) {
        self.changed.insert(key.to_vec(), None);
    }

    fn scan(&mut self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let mut changed = self.changed.range(from.to_vec()..to.to_vec()).peekable();
        let mut goes_on = true;
        self.under.scan(from, to, &mut |key, value| {
            while let Some((new_key, new)) = changed.next_if(|(new_key, _)| new_key.as_slice() < key) {
                goes_on = new.as_ref().is_none_or(|new| visit(new_key, new));
                if !goes_on {
                    return false;
                }
            }
            goes_on = match changed.next_if(|(new_key, _)| new_key.as_slice() == key) {
                Some((_, new)) => new.as_ref().is_none_or(|new| visit(key, new)),
                None => visit(key, value),
            };
            goes_on
        });
        while goes_on && let Some((key, new)) = changed.next() {
            goes_on = new.as_ref().is_none_or(|new| visit(key, new));
        }
    }
}

impl Turn<'_> {
    /// Does a request's work if `may` finds nothing against it afterwards, looking at what it touched; else it has
    /// never been done. The turn must have nothing of another request in it that is not settled.
    pub fn attempt<T, E>(
        &mut self,
        work: impl FnOnce(&mut Turn) -> T,
        may: impl FnOnce(&Turn) -> Result<(), E>,
    ) -> Result<T, E> {
        let mut overlay = Overlay { under: &mut *self.kv, changed: BTreeMap::new() };
        let mut trial = Turn::new(&mut overlay, &[0; 32], self.at, self.now);
        trial.digest = self.digest.clone();
        (trial.time, trial.by, trial.namespace) = (self.time, self.by, self.namespace);
        (trial.lineage, trial.payload) = (self.lineage.clone(), self.payload.clone());
        (trial.stands, trial.room) = (self.stands, self.room);
        (trial.remembered, trial.bounded) = (self.remembered, self.bounded);
        let done = work(&mut trial);
        may(&trial)?;

        // No `..`: what is added to a turn must be thought of here.
        let Turn {
            kv: _,
            at: _,
            now: _,
            time: _,
            by: _,
            namespace: _,
            lineage: _,
            payload: _,
            stands: _,
            room: _,
            digest,
            reads,
            changes,
            grants,
            made,
            opened,
            accesses,
            nameless,
            effects,
            freed,
            quoted_before,
            remembered,
            bounded,
            references,
            bytes_used,
            inodes_used,
            history_bytes,
        } = trial;
        let Overlay { under, changed } = overlay;
        for (key, value) in changed {
            match value {
                Some(value) => under.put(&key, &value),
                None => under.delete(&key),
            }
        }
        self.digest = digest;
        (self.reads, self.changes, self.grants, self.made) = (reads, changes, grants, made);
        (self.opened, self.accesses, self.nameless) = (opened, accesses, nameless);
        self.effects.extend(effects);
        self.freed.extend(freed);
        self.quoted_before = self.quoted_before.max(quoted_before);
        (self.remembered, self.bounded) = (remembered, bounded);
        self.references = references;
        (self.bytes_used, self.inodes_used, self.history_bytes) = (bytes_used, inodes_used, history_bytes);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::kv::MemoryKv;
    use proptest::prelude::*;
    use std::ops::ControlFlow;

    fn changes() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        prop::collection::vec((0..12_u8, any::<Option<u8>>()), 0..12)
    }

    fn make(kv: &mut dyn Kv, changes: &[(u8, Option<u8>)]) {
        for (key, value) in changes {
            match value {
                Some(value) => kv.put(&[*key], &[*value]),
                None => kv.delete(&[*key]),
            }
        }
    }

    fn scanned(kv: &mut dyn Kv, from: u8, to: u8, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let mut end = ControlFlow::Continue(());
        kv.scan(&[from], &[to], &mut |key, value| {
            assert!(end.is_continue(), "visited beyond the end");
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() >= limit {
                end = ControlFlow::Break(());
            }
            end.is_continue()
        });
        rows
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_if_its_changes_were_made(
            before in changes(), later in changes(), from in 0..13_u8, to in 0..13_u8, limit in 1..6_usize
        ) {
            let mut under = MemoryKv::default();
            make(&mut under, &before);
            let mut made = under.clone();
            make(&mut made, &later);
            let mut overlay = Overlay { under: &mut under, changed: BTreeMap::new() };
            make(&mut overlay, &later);
            prop_assert_eq!(scanned(&mut overlay, from, to, limit), scanned(&mut made, from, to, limit));
            for key in 0..12 {
                prop_assert_eq!(overlay.get(&[key]), made.get(&[key]));
            }
        }
    }
}
