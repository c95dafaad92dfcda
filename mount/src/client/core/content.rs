//! Uploaded content whose epoch is over before a request could quote it: the log that
//! held it may be lost, so the server agrees to no such chunk. Whoever has the content
//! uploads it again, and the requests that quote it wait for that, in their order.

use super::{Action, CallError, Core, Entry, Phase, Waiter};
use proto::Epoch;
use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::message::{Op, Source, Upload};
use std::collections::BTreeMap;

impl<W: Waiter> Core<W> {
    /// Chunks to be uploaded again before anything else can be sent; empty if there are none.
    pub(crate) fn wants_content(&self) -> Vec<ChunkName> {
        match (&self.phase, &self.session, self.waiting.front()) {
            (Phase::Live, Some((_, seal)), Some(entry)) => outdated(&entry.op, seal.epoch()),
            _ => Vec::new(),
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
            match rename(&mut entry, names) {
                Ok(()) => self.waiting.push_back(entry),
                Err(chunk) => out.push(Action::Done { entry, result: Err(CallError::ChunkMissing { chunk }) }),
            }
        }
        self.pump(now_ms, out);
    }
}

/// What a request quotes of other epochs than this one.
fn outdated(op: &Op, epoch: Epoch) -> Vec<ChunkName> {
    let Op::Upload(Upload::Write { pieces, .. }) = op else { return Vec::new() };
    let mut names: Vec<ChunkName> = pieces
        .iter()
        .filter_map(|piece| match piece.source {
            Source::Chunk(name) if name.topic == Topic::Chunks && name.epoch != epoch => Some(name),
            _ => None,
        })
        .collect();
    names.dedup();
    names
}

/// Lets a request quote the new names, or gives the chunk whose content is gone.
fn rename<W>(entry: &mut Entry<W>, names: &BTreeMap<ChunkName, Option<ChunkName>>) -> Result<(), ChunkName> {
    let Op::Upload(Upload::Write { pieces, .. }) = &mut entry.op else { return Ok(()) };
    for piece in pieces {
        if let Source::Chunk(name) = &mut piece.source
            && let Some(renamed) = names.get(name)
        {
            *name = renamed.ok_or(*name)?;
        }
    }
    Ok(())
}
