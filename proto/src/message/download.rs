//! Chunks by name: no order, nothing to keep. Asked on `reads` in frames of kind
//! `Read`, each chunk served as one frame of kind `Served` on `bulk`.

use crate::chunk::ChunkName;
use serde::{Deserialize, Serialize};

/// The body of a `Read` frame. Its number tells the client which read a served
/// chunk belongs to; it is not part of the dense request numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Download {
    /// At most [`Download::MAX_CHUNKS`].
    pub chunks: Vec<ChunkName>,
}

impl Download {
    pub const MAX_CHUNKS: usize = 64;
}

/// The body of a `Served` frame; the payload is the chunk's sealed content. Its
/// number is the `Read` frame's, its seal binds that frame's hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Served {
    Chunk(ChunkName),
    /// It was not ingested within the server's patience, or is gone.
    Missing(ChunkName),
}
