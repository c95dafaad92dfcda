//! Content on its way from one server's packs into another's, name by name.

use super::buffers::Buffers;
use super::{Cut, PackError, Packs};
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::{Epoch, NamespaceId};
use std::collections::BTreeSet;

/// A chunk, and the namespace that it is for if its session may still quote it.
pub type Listed = (ChunkName, Option<NamespaceId>);

impl Packs {
    /// Chunks on disk after a name, about `bytes` of them and at least one, and whether
    /// they are the last ones: those in packs, or those that wait to become one. Whoever lists the
    /// waiting ones first misses none, since they only ever move to the others.
    pub fn list(&self, packed: bool, after: Option<ChunkName>, bytes: usize) -> Result<(Vec<Listed>, bool), PackError> {
        self.shared.index.names(packed, after.as_ref(), bytes)
    }

    /// Chunks that are still here, and that nothing in the checkpoints of the partitions
    /// refers to, which reach up to these offsets.
    pub fn freed_before(&self, checkpoints: &[(Epoch, u64)]) -> Result<BTreeSet<ChunkName>, PackError> {
        let mut freed = BTreeSet::new();
        for cut in self.shared.index.cuts()? {
            let Cut { partition, epoch, upto } = cut;
            if checkpoints.get(partition as usize).is_some_and(|reached| (epoch, upto) <= *reached) {
                freed.extend(self.shared.index.freed(cut, usize::MAX)?);
            }
        }
        Ok(freed)
    }

    /// Keeps what another server has kept.
    pub fn adopt(&self, name: ChunkName, fresh: Option<NamespaceId>, content: Bytes) -> Result<(), PackError> {
        if let Some(namespace) = fresh {
            self.room(Buffers::is_full)?.note_fresh(namespace, name);
        }
        self.keep(name, content)
    }
}
