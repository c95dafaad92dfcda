//! Writes checkpoints: content first, then the rows that refer to it.
#![allow(clippy::disallowed_methods)] // How long content may take is measured here.

use super::Control;
use super::partition::Begun;
use crate::error::ServerError;
use crate::packs::Packs;
use proto::Epoch;
use proto::log::{Log, Topic};
use proto::planted::{Bug, planted};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a checkpoint waits for the next piece of content to be ingested, on a volatile log:
/// longer than a slow disk takes to write a pack.
const UPLOAD_WITHIN: Duration = Duration::from_secs(30);

/// How long a simulated disk takes for a half of a checkpoint, in which a crash can come.
const SIMULATED_HALF: Duration = Duration::from_millis(3);

/// Writes what the loop has begun.
pub struct Checkpoints {
    pub packs: Arc<Packs>,
    pub wanted: mpsc::UnboundedReceiver<Begun>,
    pub control: mpsc::Sender<Control>,
    /// Of a log that is lost with its broker.
    pub volatile: Option<Arc<dyn Log>>,
    /// Nothing takes time by itself.
    pub in_simulation: bool,
}

impl Checkpoints {
    /// One checkpoint at a time, until the loop ends.
    pub async fn write(mut self) {
        while let Some(begun) = self.wanted.recv().await {
            let cut = begun.cut;
            self.pass_time().await;
            let with_uploads = self.await_uploads(cut.partition, cut.epoch).await;
            let flushed = if planted(Bug::CheckpointWithoutPacks) { Ok(()) } else { self.packs.flush() };
            self.pass_time().await;
            let written = flushed.map_err(ServerError::from).and_then(|()| Ok(begun.write()?));
            // The loop may have ended without waiting for it.
            let done = Control::Checkpointed { partition: cut.partition, written, with_uploads };
            let _ = self.control.send(done).await;
        }
    }

    async fn pass_time(&self) {
        if self.in_simulation {
            tokio::time::sleep(SIMULATED_HALF).await;
        }
    }

    /// Elsewhere a checkpoint may refer to content that is still to be ingested: the
    /// log has it. What a volatile log has may be gone at the next start, so there
    /// everything that was uploaded before is ingested first. Whether it has been; a checkpoint
    /// is taken all the same, since a server must be able to end, but no answer relies on it.
    async fn await_uploads(&self, partition: u32, epoch: Epoch) -> bool {
        let Some(log) = &self.volatile else { return true };
        let chunks = Topic::Chunks.suffix();
        let end = match log.bounds(Topic::Chunks, partition) {
            Ok((_, end)) => end,
            Err(error) => {
                tracing::warn!("{error}; a checkpoint is taken without looking at {chunks}/{partition}");
                return false;
            }
        };
        loop {
            match tokio::time::timeout(UPLOAD_WITHIN, self.packs.ingested_before(partition, epoch, end)).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => break,
            }
        }
        tracing::warn!("content at {chunks}/{partition} is not ingested; a checkpoint is taken without");
        false
    }
}
