//! Reads what stands in packs again, little by little and for ever, and compares it
//! with its hash. What is damaged is told of, never served, and waits to be healed
//! by whoever can get the content from elsewhere.

use super::buffers::Buffers;
use super::{PackError, Packs};
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::planted::{Bug, planted};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Damaged chunks that are remembered, for healing and as given up; the next pass finds the others.
const MAX_DAMAGED: usize = 1024;

/// What one step has read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    pub chunks: u64,
    pub bytes: u64,
    pub damaged: u64,
    /// The last pack was reached, and the next step begins with the first.
    pub end: bool,
}

impl Packs {
    /// Reads the next `bytes` of chunks, at least one.
    pub async fn scrub(&self, bytes: u64) -> Result<Scrubbed, PackError> {
        let from = match self.shared.lock().scrubbed() {
            Some(place) => place,
            None => self.shared.index.scrubbed()?,
        };
        let places = self.shared.index.places(from, bytes)?;
        let mut scrubbed = Scrubbed::default();
        let Some((_, last)) = places.last().copied() else {
            self.shared.lock().note_scrubbed((0, 0));
            return Ok(Scrubbed { end: true, ..scrubbed });
        };
        // They are all of one pack.
        let contents = self.shared.contents(last.pack, &places).await;
        for ((name, place), content) in places.into_iter().zip(contents) {
            scrubbed.chunks += 1;
            scrubbed.bytes += u64::from(place.bytes);
            if let Err(error) = content
                // Its pack may have been rewritten meanwhile, or the chunk dropped.
                && self.shared.index.find(&name)? == Some(place)
            {
                tracing::error!("{error}");
                scrubbed.damaged += 1;
                self.note_damaged(name);
            }
        }
        self.shared.lock().note_scrubbed((last.pack, last.offset + 1));
        Ok(scrubbed)
    }

    /// This chunk cannot be served as it stands.
    pub(crate) fn note_damaged(&self, name: ChunkName) {
        note(&self.shared.damaged, name);
    }

    /// How long a chunk is that stands in a pack.
    pub(crate) fn packed_bytes(&self, name: &ChunkName) -> Result<Option<usize>, PackError> {
        Ok(self.shared.index.find(name)?.map(|place| place.bytes as usize))
    }

    /// Nobody has a damaged chunk's content any more.
    pub(crate) fn give_up(&self, name: ChunkName) {
        note(&self.shared.given_up, name);
    }

    pub(crate) fn is_given_up(&self, name: &ChunkName) -> bool {
        self.shared.given_up.lock().expect("nobody panics while holding it").contains(name)
    }

    /// Damaged chunks to be healed, each told once.
    pub fn take_damaged(&self) -> Vec<ChunkName> {
        let mut damaged = self.shared.damaged.lock().expect("nobody panics while holding it");
        std::mem::take(&mut *damaged).into_iter().collect()
    }

    /// Puts content in the place of damaged content. It must have the name's hash.
    pub fn heal(&self, name: ChunkName, content: Bytes) -> Result<(), PackError> {
        let mut buffers = self.room(Buffers::is_full)?;
        if planted(Bug::NeverHeal) {
            return Ok(());
        }
        if buffers.find(&name).is_none() && *blake3::hash(&content).as_bytes() == name.hash {
            buffers.add(name, content);
            self.shared.given_up.lock().expect("nobody panics while holding it").remove(&name);
        }
        Ok(())
    }
}

fn note(chunks: &Mutex<BTreeSet<ChunkName>>, name: ChunkName) {
    let mut chunks = chunks.lock().expect("nobody panics while holding it");
    if chunks.len() < MAX_DAMAGED {
        chunks.insert(name);
    }
}
