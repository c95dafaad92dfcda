//! Uploaded content whose epoch is over before a request could quote it: the log that
//! held it may be lost, so the server agrees to no such chunk. Whoever has the content
//! uploads it again, and the requests that quote it wait for that, in their order.

use super::{Action, CallError, Core, Phase, Waiter};
use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::message::{Op, Source, Upload};
use std::collections::{BTreeMap, BTreeSet};

impl<W: Waiter> Core<W> {
    /// Chunks to be uploaded again before anything else can be sent; empty if there are none.
    pub(crate) fn wants_content(&self) -> BTreeSet<ChunkName> {
        match (&self.phase, &self.session, self.waiting.front()) {
            (Phase::Live, Some((_, seal)), Some(entry)) => {
                let mut names = quotes(&entry.op);
                names.retain(|name| name.topic == Topic::Chunks && name.epoch != seal.epoch());
                names
            }
            _ => BTreeSet::new(),
        }
    }

    /// What became of [`Core::wants_content`]: each chunk's new name, or `None` if its content is gone.
    pub(crate) fn content_uploaded(
        &mut self,
        now_ms: u64,
        names: &BTreeMap<ChunkName, Option<ChunkName>>,
        out: &mut Vec<Action<W>>,
    ) {
        let waiting = std::mem::take(&mut self.waiting);
        for mut entry in waiting {
            match rename(&mut entry.op, names) {
                Ok(()) => self.waiting.push_back(entry),
                Err(chunk) => out.push(Action::Done { entry, result: Err(CallError::ChunkMissing { chunk }) }),
            }
        }
        self.pump(now_ms, out);
    }
}

/// The chunks of the log that a request quotes, each once.
pub(crate) fn quotes(op: &Op) -> BTreeSet<ChunkName> {
    let Op::Upload(Upload::Write { pieces, .. }) = op else { return BTreeSet::new() };
    let names = pieces.iter().filter_map(|piece| match piece.source {
        Source::Chunk(name) => Some(name),
        Source::Inline { .. } => None,
    });
    names.collect()
}

/// Lets a request quote the new names, or gives the chunk whose content is gone.
pub(crate) fn rename(op: &mut Op, names: &BTreeMap<ChunkName, Option<ChunkName>>) -> Result<(), ChunkName> {
    let Op::Upload(Upload::Write { pieces, .. }) = op else { return Ok(()) };
    for piece in pieces {
        if let Source::Chunk(name) = &mut piece.source
            && let Some(renamed) = names.get(name)
        {
            *name = renamed.ok_or(*name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::chunk::WrappedKey;
    use proto::message::{Piece, WriteAt};
    use proto::{Epoch, Ino, SessionId};

    fn chunk(epoch: u32, offset: u64) -> ChunkName {
        let session = SessionId([7; 16]);
        ChunkName { topic: Topic::Chunks, epoch: Epoch(epoch), partition: 0, offset, index: 0, session, hash: [0; 32] }
    }

    fn write(chunks: &[ChunkName]) -> Op {
        let piece = |(index, name): (usize, &ChunkName)| Piece {
            offset: 10 * index as u64,
            len: 10,
            source: Source::Chunk(*name),
            chunk_from: 10 * index as u32,
            key: WrappedKey { key_epoch: 1, wrapped: [0; WrappedKey::BYTES] },
        };
        let pieces = chunks.iter().enumerate().map(piece).collect();
        Op::Upload(Upload::Write { ino: Ino(2), at: WriteAt::Offsets, pieces, reserved: false })
    }

    /// A chunk that is asked for twice would be found gone the second time.
    #[test]
    fn pieces_that_alternate_between_chunks_quote_each_once_and_all_get_its_new_name() {
        let (a, b) = (chunk(1, 1), chunk(1, 2));
        let mut op = write(&[a, b, a]);
        assert_eq!(quotes(&op), BTreeSet::from([a, b]));

        let (new_a, new_b) = (chunk(2, 8), chunk(2, 9));
        rename(&mut op, &BTreeMap::from([(a, Some(new_a)), (b, Some(new_b))])).expect("nothing is gone");
        assert_eq!(op, write(&[new_a, new_b, new_a]));
        let gone = rename(&mut op, &BTreeMap::from([(new_b, None)]));
        assert_eq!(gone, Err(new_b));
    }
}
