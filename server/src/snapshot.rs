//! A snapshot of a server that works, taken by one that has no usable state: a new
//! one, or one that was away until records that it needs had gone.
//!
//! ```text
//!   take.rs                                    give.rs
//!   Begin                --- reads --->        holds the last checkpoint of each partition
//!   registers itself     --- requests -->      (from here on the log is kept for it)
//!   Dump, Rows, Content  <--- bulk ----        reads them piece by piece
//! ```
//! The taking side pulls, one piece at a time, and asks again for what does not come:
//! both sides need memory for one piece. The giving side holds a read transaction of each
//! store meanwhile. A snapshot that breaks off is taken anew.

pub(crate) mod give;
pub mod take;

use proto::frame::Kind;
use proto::log::Topic;
use proto::seal::{Context, Direction, Head};
use proto::{Epoch, NamespaceId};

/// The partition of `reads` that pulls stand in.
const PARTITION: u32 = 0;

fn pull_context() -> Context {
    Context { direction: Direction::ToServer, topic: Topic::Reads, partition: PARTITION, answers: None }
}

fn pulled_context(bulk_partition: u32, request: [u8; 32]) -> Context {
    Context { direction: Direction::ToClient, topic: Topic::Bulk, partition: bulk_partition, answers: Some(request) }
}

fn head(kind: Kind, epoch: Epoch, sender: [u8; 16], number: u64) -> Head {
    Head { kind, namespace: NamespaceId(0), epoch, sender, number }
}
