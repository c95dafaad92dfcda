//! Writes checkpoints: content first, then the rows that refer to it.
#![allow(clippy::disallowed_methods)] // How long content may take is measured here.

use super::Control;
use crate::error::ServerError;
use crate::packs::Packs;
use crate::store::Frozen;
use proto::Epoch;
use proto::log::{Log, Topic};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a checkpoint waits for content to be ingested, on a volatile log.
const UPLOADS_WITHIN: Duration = Duration::from_secs(10);

/// Writes what the loop has frozen.
pub struct Checkpoints {
    pub packs: Arc<Packs>,
    pub wanted: mpsc::UnboundedReceiver<(u32, Frozen)>,
    pub control: mpsc::Sender<Control>,
    /// Of a log that is lost with its broker.
    pub volatile: Option<Arc<dyn Log>>,
}

impl Checkpoints {
    /// One checkpoint at a time, until the loop ends.
    pub fn write(mut self, runtime: &tokio::runtime::Handle) {
        while let Some((partition, frozen)) = self.wanted.blocking_recv() {
            runtime.block_on(self.await_uploads(partition, frozen.epoch()));
            let written = self.packs.flush().map_err(ServerError::from).and_then(|()| Ok(frozen.write()?));
            // The loop may have ended without waiting for it.
            let _ = self.control.blocking_send(Control::Checkpointed(partition, written));
        }
    }

    /// Elsewhere a checkpoint may refer to content that is still to be ingested: the
    /// log has it. What a volatile log has may be gone at the next start, so there
    /// everything that was uploaded before is ingested first.
    pub async fn await_uploads(&self, partition: u32, epoch: Epoch) {
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
