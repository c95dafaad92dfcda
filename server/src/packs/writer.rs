//! Writes: what the buffers say is next, with or without a thread of its own.

use super::buffers::{Buffers, Chore, Job, Notes, What};
use super::index::{NewPack, Where};
use super::{PackError, Shared, pack_path};
use bytes::Bytes;
use object_store::{ObjectStoreExt, PutPayload};
use proto::chunk::ChunkName;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

impl Shared {
    pub(super) fn write_until_stopped(&self) {
        let mut buffers = self.lock();
        while !self.stop.load(Ordering::Relaxed) {
            buffers = match buffers.next() {
                Some(job) => self.write(buffers, job),
                None => self.wanted.wait(buffers).expect("nobody panics while holding the buffers"),
            };
        }
    }

    /// Lets the writer come one job further, or does that job.
    pub(super) fn write_some<'a>(&'a self, mut buffers: MutexGuard<'a, Buffers>) -> MutexGuard<'a, Buffers> {
        if self.has_writer {
            self.wanted.notify_one();
            return self.written.wait(buffers).expect("the writer does not panic while holding the lock");
        }
        match buffers.next() {
            Some(job) => self.write(buffers, job),
            None => buffers,
        }
    }

    /// Does one job without the lock, and says so to those who wait.
    fn write<'a>(&'a self, buffers: MutexGuard<'a, Buffers>, job: Job) -> MutexGuard<'a, Buffers> {
        drop(buffers);
        let outcome = match &job.what {
            What::Pack(buffer) => {
                let chunks: Vec<_> = buffer.order.iter().map(|name| (*name, buffer.chunks[name].clone())).collect();
                self.write_pack(&chunks, |new| self.index.add_pack(new, buffer.tailed(), &job.notes))
            }
            What::Tail(chunks) => self.index.add_tail(chunks, &job.notes),
            What::Chore(chore) => self.do_chore(chore, &job.notes),
        };
        let mut buffers = self.lock();
        buffers.done(job, outcome);
        self.written.notify_all();
        buffers
    }

    fn do_chore(&self, chore: &Chore, notes: &Notes) -> Result<(), PackError> {
        match chore {
            Chore::Drop { cut, names } => self.index.drop_chunks(names, *cut, notes),
            Chore::Forget(cut) => self.index.forget_cut(*cut, notes),
            Chore::Rewrite { from, chunks } if chunks.is_empty() => {
                self.index.replace_packs(from, None, notes)?;
                self.delete_doomed(notes)
            }
            Chore::Rewrite { from, chunks } => {
                self.write_pack(chunks, |new| self.index.replace_packs(from, Some(new), notes))?;
                self.delete_doomed(notes)
            }
            Chore::Delete => self.delete_doomed(notes),
            Chore::Over { seen, done, settled } => self.index.mark_over(seen, done, settled, notes),
        }
    }

    /// Puts content into the object store as the next pack, then lets the index know.
    fn write_pack(
        &self,
        chunks: &[(ChunkName, Bytes)],
        note: impl FnOnce(&NewPack) -> Result<(), PackError>,
    ) -> Result<(), PackError> {
        let pack = self.index.next_pack()?;
        let mut places = Vec::with_capacity(chunks.len());
        let mut offset = 0u32;
        for (name, content) in chunks {
            let bytes = content.len() as u32;
            places.push((*name, Where { pack, offset, bytes }));
            offset += bytes;
        }
        // Shares the chunks' memory; an object left by a crash before the index was
        // written has the same number and is replaced.
        let payload: PutPayload = chunks.iter().map(|(_, content)| content.clone()).collect();
        self.wait.wait(self.objects.put(&pack_path(pack), payload)).map_err(|e| PackError::Write {
            pack,
            objects: self.objects.to_string(),
            reason: e.to_string(),
        })?;
        note(&NewPack { pack, places: &places })
    }

    /// Deletes objects that the index has done with. One that cannot be deleted now
    /// is only space: it is tried again with the next.
    fn delete_doomed(&self, notes: &Notes) -> Result<(), PackError> {
        let mut gone = Vec::new();
        for pack in self.index.doomed()? {
            match self.wait.wait(self.objects.delete(&pack_path(pack))) {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => gone.push(pack),
                Err(error) => tracing::warn!("cannot delete the pack {pack} from {}: {error}", self.objects),
            }
        }
        if gone.is_empty() { Ok(()) } else { self.index.forget_doomed(&gone, notes) }
    }
}
