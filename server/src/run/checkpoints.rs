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

/// How long a checkpoint waits for content to be ingested, on a volatile log.
const UPLOADS_WITHIN: Duration = Duration::from_secs(10);

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
            self.await_uploads(cut.partition, cut.epoch).await;
            let flushed = if planted(Bug::CheckpointWithoutPacks) { Ok(()) } else { self.packs.flush() };
            self.pass_time().await;
            let written = flushed.map_err(ServerError::from).and_then(|()| Ok(begun.write()?));
            // The loop may have ended without waiting for it.
            let _ = self.control.send(Control::Checkpointed(cut.partition, written)).await;
        }
    }

    async fn pass_time(&self) {
        if self.in_simulation {
            tokio::time::sleep(SIMULATED_HALF).await;
        }
    }

    /// Elsewhere a checkpoint may refer to content that is still to be ingested: the
    /// log has it. What a volatile log has may be gone at the next start, so there
    /// everything that was uploaded before is ingested first.
    async fn await_uploads(&self, partition: u32, epoch: Epoch) {
        let Some(log) = &self.volatile else { return };
        let Ok((_, end)) = log.bounds(Topic::Chunks, partition) else { return };
        let ingested = self.packs.ingested_before(partition, epoch, end);
        if tokio::time::timeout(UPLOADS_WITHIN, ingested).await.is_err() {
            tracing::warn!(
                "content at {}/{partition} is not ingested; a checkpoint is taken without",
                Topic::Chunks.suffix()
            );
        }
    }
}
