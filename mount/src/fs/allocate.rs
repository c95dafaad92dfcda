//! Content that need not travel: holes, which are made and found here, and copies.
//!
//! Nothing is set aside for a range that is allocated; it only counts as part of the file.

use super::extents::Part;
use super::file::FileHandle;
use super::{Fs, entry};
use crate::client::Patience;
use crate::error::FsError;
use proto::message::{FallocateHow, Op, Outcome, Range, Upload};

/// Bytes of a file whose map is looked at in one go.
const SEEK_WINDOW_BYTES: u64 = 1 << 30;

/// So much is read and written to copy it, in bytes; of more the server makes a copy.
pub const COPIED_HERE_BYTES: u64 = 64 << 10;

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

impl Fs {
    /// Sees to a range of a file. What was written before is sent before.
    pub async fn fallocate(
        &self,
        handle: u64,
        offset: u64,
        len: u64,
        how: FallocateHow,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.check_locks(&handle)?;
        let ino = handle.file.ino;
        let max = Upload::MAX_FILE_BYTES;
        let end = offset.checked_add(len).filter(|end| *end <= max).ok_or(FsError::FileTooLarge { max })?;
        self.all_answered(&handle.file, patience).await?;
        let (reply, _changing) = self.change(Op::Upload(Upload::Fallocate { ino, offset, len, how }), patience).await?;
        let mut before = None;
        if let Outcome::Entry(attr) = &reply.outcome {
            self.cache().learn(self.promises(), &reply, |l| {
                before = l.content_changed(attr, |map| {
                    if how.clears() {
                        map.clear(offset, end);
                    }
                });
            });
        }
        let attr = entry(reply, "fallocate")?;
        // The kernel has dropped its pages of a hole itself.
        self.inner.files.pages_follow(ino, before, attr.version);
        Ok(())
    }

    /// Copies bytes between two files, or within one. Gives how many: fewer where the first one ends, or has too many
    /// extents for one request.
    ///
    /// On the server, or, if they are few, as a read and a write: these need not wait for what
    /// is on its way, which most of a small file's copy otherwise is.
    pub async fn copy_range(
        &self,
        (from, offset): (u64, u64),
        (to, to_offset): (u64, u64),
        len: u64,
        patience: &Patience,
    ) -> Result<u64, FsError> {
        let (source, target) = (self.inner.handles.file(from)?, self.inner.handles.file(to)?);
        let (from_ino, ino) = (source.file.ino, target.file.ino);
        if from_ino != ino && len <= COPIED_HERE_BYTES {
            let data = self.read(from, offset, len as u32, patience).await?;
            return match data.is_empty() {
                true => Ok(0),
                false => Ok(self.write(to, to_offset, &data, patience).await?.into()),
            };
        }
        let is_plain = |handle: &FileHandle| handle.file.state().is_clean() && handle.file.owners().session().is_none();
        for handle in [&source, &target] {
            self.check_locks(handle)?;
        }
        if is_plain(&source)
            && is_plain(&target)
            && let Some(done) = self.copy_locally((from_ino, offset), (ino, to_offset), len)
        {
            return done?.safe(patience).await;
        }
        for handle in [&source, &target] {
            self.all_answered(&handle.file, patience).await?;
        }
        let range = Range { ino: from_ino, offset, len };
        let op = Op::Upload(Upload::Clone { from: range, to: ino, to_offset });
        let (reply, _changing) = self.change(op, patience).await?;
        let Outcome::Cloned { to: attr, len } = &reply.outcome else {
            return Err(FsError::WrongAnswer { op: "copy_file_range" });
        };
        let mut before = None;
        self.cache().learn(self.promises(), &reply, |l| {
            before = l.content_changed(attr, |map| map.forget(to_offset, to_offset.saturating_add(*len)));
        });
        // The kernel has dropped its pages of the range itself.
        self.inner.files.pages_follow(ino, before, attr.version);
        Ok(*len)
    }

    /// Where, from `offset` on, there is content or a hole; the file's end is a hole. `None` behind the end, and where
    /// no content follows.
    pub async fn seek(
        &self,
        handle: u64,
        offset: u64,
        what: Seek,
        patience: &Patience,
    ) -> Result<Option<u64>, FsError> {
        let handle = self.inner.handles.file(handle)?;
        self.all_answered(&handle.file, patience).await?;
        self.reshaped(handle.file.ino, patience).await?;
        let mut at = offset;
        loop {
            let (size, parts) =
                self.content(handle.file.ino, at, at.saturating_add(SEEK_WINDOW_BYTES), patience).await?;
            for part in parts {
                let (is_hole, len) = match part {
                    Part::Hole { len } => (true, len),
                    Part::Data(extent) => (false, u64::from(extent.len)),
                };
                if is_hole == (what == Seek::Hole) {
                    return Ok(Some(at));
                }
                at += len;
            }
            if at >= size {
                return Ok((what == Seek::Hole && offset < size).then_some(size));
            }
        }
    }
}
