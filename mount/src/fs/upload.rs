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
use crate::client::{KeyError, Patience, UPLOADS_MOST};
use crate::error::FsError;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Packs of one file that are being sealed at once.
const SEALING: usize = 4;

/// Packs that are being sealed and uploaded, over all files: as many as the way takes. Who waits for a slot gets it in
/// turn, so that a file of one pack does not wait for all of a large one.
pub(super) struct Slots {
    free: Arc<Semaphore>,
    /// Those in use included.
    total: Mutex<usize>,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { free: Arc::new(Semaphore::new(UPLOADS_MOST)), total: Mutex::new(UPLOADS_MOST) }
    }
}

impl Slots {
    /// Gives one back, so that there are so many from now on, or as soon as others come back.
    fn give_back(&self, slot: OwnedSemaphorePermit, wanted: usize) {
        let mut total = self.total.lock().unwrap_or_else(PoisonError::into_inner);
        if *total > wanted {
            slot.forget();
            *total -= 1;
        } else {
            self.free.add_permits(wanted - *total);
            *total = wanted;
        }
    }
}

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
                let slots = self.inner.uploads.free.clone();
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
                fs.inner.uploads.give_back(slot, fs.inner.client.uploads_at_once());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_slots_as_the_way_takes() {
        let slots = Slots::default();
        let take = || slots.free.clone().try_acquire_owned().ok();
        let mut taken: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(taken.len(), UPLOADS_MOST);
        for slot in taken.drain(..) {
            slots.give_back(slot, 2);
        }
        let mut taken: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(taken.len(), 2);
        slots.give_back(taken.pop().expect("was taken"), 5);
        let more: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(more.len(), 4, "5 less the other one");
    }
}
