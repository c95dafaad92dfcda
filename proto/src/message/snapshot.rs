//! How a server without a usable state takes a snapshot of another one while both
//! work: it pulls, piece by piece, and asks again for what does not come.
//!
//! Both bodies are sealed under the cluster's key for administrators' programs: rows
//! hold names and the machine's dump holds session keys.

use crate::chunk::ChunkName;
use crate::ids::{Epoch, NamespaceId, ServerId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The body of a frame of kind `Read` of namespace 0, in partition 0 of `reads`. Its
/// sender is the asking server's id for this snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    /// The server that is asked.
    pub of: ServerId,
    /// The partition of `bulk` that the asking server reads.
    pub bulk_partition: u32,
    /// What `Begun` called the checkpoints that are wanted; anything with `Begin`.
    pub hold: u64,
    pub what: Piece,
}

/// What is asked for. A cursor names the last thing had; `None` begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// Holds fast the last checkpoint of every partition; asked again by the same sender, it is
    /// the same one. → `Begun`.
    Begin,
    /// The machine's dump from this byte on. → `Dump`.
    Dump { partition: u32, from: u64 },
    /// Rows after a key; with `value_from` above 0 the row of that very key, from that
    /// byte of its value on. → `Rows`.
    Rows {
        partition: u32,
        #[serde(with = "serde_bytes")]
        after: Vec<u8>,
        value_from: u64,
    },
    /// Content in the packs: first what waits to become a pack (`packed` false), then
    /// the rest. → `Content`.
    Content { packed: bool, after: Option<ChunkName> },
    /// Nothing more is wanted. → `Ended`.
    End,
}

/// The body of a frame of kind `Served` that answers a [`Pull`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pulled {
    Begun {
        /// Tells these checkpoints apart from others.
        hold: u64,
        /// Every partition, by rising number.
        partitions: Vec<Held>,
        /// By partition of `chunks`: the epoch, and the first offset whose content is not in the packs.
        ingested: Vec<(u32, Epoch, u64)>,
    },
    Dump(#[serde(with = "serde_bytes")] Vec<u8>),
    Rows {
        rows: Vec<Row>,
        end: bool,
    },
    Content {
        chunks: Vec<Stored>,
        end: bool,
    },
    Ended,
    /// The server has not checkpointed every partition yet: it will soon.
    NotYet,
    /// Nothing is held for this sender: it was too slow, or the server has been
    /// started again. It begins anew.
    Unknown,
    /// The server cannot do this now.
    Failed {
        reason: String,
    },
}

/// A partition's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub epoch: Epoch,
    /// The first offset that is not applied in it.
    pub next_offset: u64,
    /// BLAKE3 of the last applied record.
    pub last_hash: Option<[u8; 32]>,
    pub dump_bytes: u64,
}

/// A row, or a part of one whose value is large.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    #[serde(with = "serde_bytes")]
    pub key: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    /// The value ends here.
    pub whole: bool,
}

/// Content, sealed as its writer sealed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub name: ChunkName,
    /// Its session may still quote it; the namespace that it is for.
    pub fresh: Option<NamespaceId>,
    pub content: Bytes,
}

impl Pull {
    /// Bytes of keys, values and content in one answer, at most. With names and what
    /// surrounds them that stays below a record.
    pub const MAX_BYTES: usize = 800_000;
}
