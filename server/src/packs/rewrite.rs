//! Packs that are mostly dead are written anew: what they still hold is read,
//! compared with its hash and put into a new pack. The index points to the new one,
//! safely, before the old ones are deleted; a crash in between leaves at most an
//! object that is replaced or deleted later.

use super::buffers::Chore;
use super::{PackError, Packs};
use crate::limits::limits;
use bytes::Bytes;
use proto::chunk::ChunkName;

/// Packs of which nothing is used that go at once.
const EMPTY_AT_ONCE: usize = 256;

/// What one round has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// Packs that are no more.
    pub packs: usize,
    /// Bytes that were read and written anew.
    pub bytes: u64,
    /// Bytes that are free now.
    pub freed: u64,
}

/// Packs that are mostly dead, and what they still hold.
pub struct Sparse {
    from: Vec<u64>,
    chunks: Vec<(ChunkName, Bytes)>,
    rewritten: Rewritten,
}

impl Packs {
    /// Reads what mostly dead packs hold, at most one pack's worth of it. Packs that
    /// hold nothing come first; one with content that is damaged stays.
    pub async fn sparse(&self) -> Result<Option<Sparse>, PackError> {
        let packs = self.shared.index.packs()?;
        let empty: Vec<_> = packs.iter().filter(|(_, _, used)| *used == 0).take(EMPTY_AT_ONCE).copied().collect();
        if !empty.is_empty() {
            let from = empty.iter().map(|(pack, ..)| *pack).collect();
            let freed = empty.iter().map(|(_, bytes, _)| bytes).sum();
            let rewritten = Rewritten { packs: empty.len(), bytes: 0, freed };
            return Ok(Some(Sparse { from, chunks: Vec::new(), rewritten }));
        }

        let mut sparse: Vec<_> = packs.into_iter().filter(|(_, bytes, used)| used * 2 < *bytes).collect();
        sparse.sort_by_key(|(pack, _, used)| (*used, *pack));
        let (mut from, mut chunks, mut rewritten) = (Vec::new(), Vec::new(), Rewritten::default());
        for (pack, bytes, used) in sparse {
            if rewritten.bytes + used > limits().pack_bytes as u64 {
                break;
            }
            let mut places = self.shared.index.places((pack, 0), u64::MAX)?;
            places.retain(|(_, place)| place.pack == pack);
            let contents = self.shared.contents(pack, &places).await;
            let (mut held, mut whole) = (Vec::new(), true);
            for ((name, _), content) in places.into_iter().zip(contents) {
                match content {
                    Ok(content) => held.push((name, content)),
                    Err(error) => {
                        tracing::error!("{error}");
                        self.note_damaged(name);
                        whole = false;
                    }
                }
            }
            if whole {
                from.push(pack);
                chunks.append(&mut held);
                rewritten.packs += 1;
                rewritten.bytes += used;
                rewritten.freed += bytes - used;
            }
        }
        Ok((!from.is_empty()).then_some(Sparse { from, chunks, rewritten }))
    }

    /// Writes anew what [`Packs::sparse`] has read, and lets the packs go. Waits until it is done.
    pub fn rewrite(&self, sparse: Sparse) -> Result<Rewritten, PackError> {
        let Sparse { from, chunks, rewritten } = sparse;
        self.want(Chore::Rewrite { from, chunks })?;
        Ok(rewritten)
    }

    /// Deletes objects that an earlier run had done with.
    pub fn delete_unused(&self) -> Result<(), PackError> {
        if self.shared.index.doomed()?.is_empty() { Ok(()) } else { self.want(Chore::Delete) }
    }
}
