//! Rows changed since a checkpoint, and reading them together with older ones.

use redb::Range;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound;

/// Changed rows in order; `None` stands for a deleted one.
#[derive(Default)]
pub(super) struct Overlay {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
}

impl Overlay {
    /// `Some(None)` says that the row was deleted here, `None` that older rows tell.
    pub fn get(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.rows.get(key).map(Option::as_deref)
    }

    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.bytes += value.map_or(0, <[u8]>::len);
        match self.rows.get_mut(key) {
            Some(old) => {
                self.bytes -= old.as_ref().map_or(0, Vec::len);
                *old = value.map(<[u8]>::to_vec);
            }
            None => {
                self.bytes += key.len();
                self.rows.insert(key.to_vec(), value.map(<[u8]>::to_vec));
            }
        }
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.rows.iter().map(|(key, value)| (key.as_slice(), value.as_deref()))
    }

    fn range(&self, from: &[u8], to: &[u8]) -> btree_map::Range<'_, Vec<u8>, Option<Vec<u8>>> {
        self.rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
    }
}

/// Visits the rows of `from..to` in rising order until `visit` says `false`: of a
/// key in several places the newest counts, `newer` before `older` before `stored`.
pub(super) fn merge(
    newer: &Overlay,
    older: Option<&Overlay>,
    mut stored: Option<Range<'static, &'static [u8], &'static [u8]>>,
    from: &[u8],
    to: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<(), redb::StorageError> {
    let mut newer = newer.range(from, to).peekable();
    let mut older = older.map(|overlay| overlay.range(from, to)).into_iter().flatten().peekable();
    let mut next_stored = move || stored.as_mut().and_then(Iterator::next).transpose();
    let mut at_stored = next_stored()?;

    loop {
        let keys = [
            newer.peek().map(|(key, _)| key.as_slice()),
            older.peek().map(|(key, _)| key.as_slice()),
            at_stored.as_ref().map(|(key, _)| key.value()),
        ];
        let Some(least) = keys.iter().flatten().min().copied() else { return Ok(()) };
        let [in_newer, in_older, in_stored] = keys.map(|key| key == Some(least));

        let go_on = if in_newer {
            newer.peek().is_none_or(|(key, value)| value.as_ref().is_none_or(|value| visit(key, value)))
        } else if in_older {
            older.peek().is_none_or(|(key, value)| value.as_ref().is_none_or(|value| visit(key, value)))
        } else {
            at_stored.as_ref().is_none_or(|(key, value)| visit(key.value(), value.value()))
        };
        if !go_on {
            return Ok(());
        }
        if in_newer {
            newer.next();
        }
        if in_older {
            older.next();
        }
        if in_stored {
            at_stored = next_stored()?;
        }
    }
}
