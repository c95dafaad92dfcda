//! Sealing packs and uploading them: side by side, but begun in order.
//!
//! Requests quote a file's packs in order, and uploads wait for room until
//! earlier ones are quoted; so a pack must never hold room that one before it is
//! waiting for. The client gives room in the order of asking, and one task per
//! file asks in the order of the packs.

use super::Fs;
use super::file::{File, State};
use super::pack::{self, Sealed, Stage};
use super::writeback::lost;
use crate::client::{KeyError, Patience};
use crate::error::FsError;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Waker};

/// Packs of one file that are being sealed at once.
const SEALING: usize = 4;

impl Fs {
    /// Seals little content here and now.
    pub(super) fn seal_inline(&self, state: &mut State, draft: &pack::Draft) -> Stage {
        let seal = |part: &pack::Part| {
            let plain = &draft.plain[part.from as usize..(part.from + part.len) as usize];
            let sealed = self.inner.client.keys().seal_content(plain)?;
            Ok::<_, KeyError>(Sealed { sealed: sealed.sealed, hash: sealed.hash, key: sealed.key })
        };
        match draft.parts.iter().map(seal).collect() {
            Ok(sealed) => Stage::Inline(sealed),
            Err(error) => {
                state.failure = Some(FsError::Sealed { what: "written content", reason: error.to_string() });
                Stage::Failed
            }
        }
    }

    /// Uploads a file's packs until none is queued.
    pub(super) async fn upload_all(self, file: Arc<File>) {
        let mut sealing = VecDeque::new();
        loop {
            while sealing.len() < SEALING {
                let slots = self.inner.uploads.clone();
                let slot = match sealing.is_empty() {
                    true => slots.acquire_owned().await.expect("never closed"),
                    false => match slots.try_acquire_owned() {
                        Ok(slot) => slot,
                        Err(_) => break,
                    },
                };
                let next = {
                    let mut state = file.state();
                    let next = state.uploads.pop_front();
                    if next.is_none() && sealing.is_empty() {
                        state.uploading = false;
                        return;
                    }
                    next
                };
                let Some((seq, plain)) = next else { break };
                let client = self.inner.client.clone();
                let sealed = proto::task::offload(move || client.keys().seal_content(&plain));
                sealing.push_back((seq, sealed, slot));
            }
            let Some((seq, sealed, slot)) = sealing.pop_front() else { continue };
            let sealed = match sealed.await {
                Ok(Ok(sealed)) => Ok(sealed),
                Ok(Err(error)) => Err(error.to_string()),
                Err(panic) => Err(panic.to_string()),
            };
            let (fs, file) = (self.clone(), file.clone());
            let mut upload = Box::pin(async move {
                let stage = match sealed {
                    Ok(sealed) => match fs.inner.client.upload_chunk(sealed.sealed, &Patience::for_ever()).await {
                        Ok(name) => Ok(Stage::Chunk(name, sealed.key)),
                        Err(error) => Err(FsError::from(error)),
                    },
                    Err(reason) => Err(FsError::Sealed { what: "written content", reason }),
                };
                drop(slot);
                fs.uploaded(&file, seq, stage);
            });
            // The first look puts it into the client's queue for room, behind the pack before it.
            if upload.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                proto::task::spawn_on(&self.inner.runtime, upload);
            }
        }
    }

    fn uploaded(&self, file: &Arc<File>, seq: u64, stage: Result<Stage, FsError>) {
        let mut state = file.state();
        let stage = stage.unwrap_or_else(|error| {
            state.failure = Some(lost(file.ino, &error));
            Stage::Failed
        });
        if let Some(pack) = state.packs.iter_mut().find(|p| p.seq == seq) {
            pack.stage = stage;
        }
        drop(state);
        self.pump(file, false);
    }
}
