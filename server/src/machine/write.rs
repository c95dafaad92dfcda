//! A file's content: which bytes are which bytes of which chunk.
//!
//! Extents never overlap. New content splits and trims what it covers; what it
//! replaces moves to history, and the chunks stay referenced from there. Between
//! extents a file has holes, which read as zeros.

use super::rows::{ExtentRow, InodeRow, Turn, after, decode, extent_key};
use proto::Ino;
use proto::chunk::{CHUNK_BYTES, ChunkName};
use proto::message::{
    Attr, FallocateHow, FileKind, Outcome, Piece, Promise, Range, Refusal, Resource, Source, Upload, WriteAt,
};
use proto::planted::{Bug, planted};

/// Extents handled at a time while a range is cleared: bounds memory, not work.
const CLEAR_BATCH: usize = 1000;

impl Turn<'_> {
    pub fn write(&mut self, ino: Ino, at: WriteAt, pieces: &[Piece], reserved: bool) -> Result<Outcome, Refusal> {
        let old = self.file(ino)?;
        let base = match at {
            WriteAt::Offsets => 0,
            WriteAt::End if planted(Bug::AppendAtZero) => 0,
            WriteAt::End => old.attr.size,
        };
        let extents = self.checked_pieces(base, pieces)?;
        let end = extents.last().map_or(old.attr.size, ExtentRow::end);
        let bytes = extents.iter().map(|extent| u64::from(extent.len)).sum();
        self.find_room(Resource::Bytes, bytes, reserved, |turn| {
            extents.iter().map(|extent| turn.covered(ino, extent.offset, extent.end())).sum()
        })?;

        for (index, (extent, piece)) in extents.iter().zip(pieces).enumerate() {
            if let Source::Inline { payload_from, payload_len } = piece.source {
                debug_assert_eq!(extent.chunk.position().effect(), index as u32);
                let from = payload_from as usize;
                let content = self.payload.slice(from..from + payload_len as usize);
                self.keep(&extent.chunk, content);
            }
        }
        let mut new = old.clone();
        for extent in &extents {
            let freed = match planted(Bug::WriteKeepsExtents) {
                true => 0,
                false => self.clear(ino, extent.offset, extent.end()),
            };
            self.put(&extent_key(ino, extent.end()), extent);
            self.refer(&extent.chunk, 1);
            self.uses_bytes(i64::from(extent.len));
            new.attr.allocated = (new.attr.allocated + u64::from(extent.len)).saturating_sub(freed);
        }
        new.attr.size = old.attr.size.max(end);
        Ok(Outcome::Entry(self.content_changed(old, new)))
    }

    /// Makes a hole, or the file longer, or both.
    pub fn fallocate(&mut self, ino: Ino, offset: u64, len: u64, how: FallocateHow) -> Result<Outcome, Refusal> {
        let old = self.file(ino)?;
        let end = offset.checked_add(len).filter(|end| *end <= Upload::MAX_FILE_BYTES).ok_or(Refusal::TooLarge)?;
        if len == 0 {
            return Err(Refusal::Invalid);
        }
        let mut new = old.clone();
        if how.clears() {
            let freed = self.clear(ino, offset, end);
            new.attr.allocated = new.attr.allocated.saturating_sub(freed);
        }
        if how.extends() {
            new.attr.size = new.attr.size.max(end);
        }
        Ok(Outcome::Entry(self.content_changed(old, new)))
    }

    /// Lets a file have bytes of another one, or of itself, without their content's being sent again.
    pub fn clone_range(&mut self, from: Range, to: Ino, to_offset: u64) -> Result<Outcome, Refusal> {
        if from.ino.namespace() != to.namespace() {
            return Err(Refusal::CrossNamespace);
        }
        self.reads.push(Promise::Content(from.ino));
        let source = self.file(from.ino)?;
        let old = self.file(to)?;
        let from_end = from.offset.saturating_add(from.len).min(source.attr.size);
        let (extents, from_end) = self.extents_in(from.ino, from.offset, from_end);
        let len = from_end.saturating_sub(from.offset);
        let end = to_offset.checked_add(len).filter(|end| *end <= Upload::MAX_FILE_BYTES).ok_or(Refusal::TooLarge)?;
        if from.ino == to && from.offset < end && to_offset < from_end {
            return Err(Refusal::Invalid);
        }
        if len == 0 {
            self.reads_attr(&old.attr);
            return Ok(Outcome::Cloned { to: old.attr, len });
        }

        let ends = |extent: &ExtentRow| (extent.offset.max(from.offset), extent.end().min(from_end));
        let adds = extents.iter().map(ends).map(|(start, stop)| stop - start).sum();
        self.find_room(Resource::Bytes, adds, false, |turn| turn.covered(to, to_offset, end).min(adds))?;

        let mut new = old.clone();
        let freed = self.clear(to, to_offset, end);
        let mut added = 0;
        for extent in extents {
            let (start, stop) = ends(&extent);
            let part = ExtentRow {
                offset: start - from.offset + to_offset,
                len: (stop - start) as u32,
                chunk_from: extent.chunk_from + (start - extent.offset) as u32,
                begin: self.begin(),
                ..extent
            };
            self.put(&extent_key(to, part.end()), &part);
            self.refer(&part.chunk, 1);
            added += u64::from(part.len);
        }
        self.uses_bytes(added as i64);
        new.attr.allocated = (new.attr.allocated + added).saturating_sub(freed);
        new.attr.size = new.attr.size.max(end);
        let attr = self.content_changed(old, new);
        Ok(Outcome::Cloned { to: attr, len })
    }

    /// The extents that overlap `from..to`, and where what they tell ends if there are too many.
    fn extents_in(&mut self, ino: Ino, from: u64, to: u64) -> (Vec<ExtentRow>, u64) {
        let mut extents: Vec<ExtentRow> = Vec::new();
        let (start, stop) = (extent_key(ino, from.saturating_add(1)), after(&extent_key(ino, u64::MAX)));
        self.scan(&start, &stop, &mut |_, value| {
            let extent: ExtentRow = decode(value);
            let inside = extent.offset < to;
            if inside {
                extents.push(extent);
            }
            inside && extents.len() < Upload::MAX_CLONED
        });
        let is_all = extents.len() < Upload::MAX_CLONED;
        let reached = extents.last().filter(|_| !is_all).map_or(to, |last| last.end().min(to));
        (extents, reached)
    }

    /// Notes that a file's content is another one from here on.
    fn content_changed(&mut self, old: InodeRow, mut new: InodeRow) -> Attr {
        let ino = new.attr.ino;
        (new.attr.mtime, new.attr.ctime) = (old.attr.mtime, old.attr.ctime);
        new.attr.written(self.time);
        new.attr.version = self.at;
        self.save(&old, new.clone());
        self.changes.push(Promise::Content(ino));
        self.opened.push(ino);
        self.changed(new.attr)
    }

    /// Brings a file to a size: content beyond it goes, a hole grows before it.
    pub fn resize(&mut self, row: &mut InodeRow, size: u64) {
        if size < row.attr.size && !planted(Bug::TruncateKeepsContent) {
            let freed = self.clear(row.attr.ino, size, u64::MAX);
            row.attr.allocated = row.attr.allocated.saturating_sub(freed);
        }
        row.attr.size = size;
        row.attr.version = self.at;
    }

    /// Ends all content in `from..to`, trimming extents that reach beyond. Returns
    /// how many bytes lost their extent. Work grows with the number of extents there.
    pub fn clear(&mut self, ino: Ino, from: u64, to: u64) -> u64 {
        let mut freed = 0;
        loop {
            let mut batch: Vec<ExtentRow> = Vec::new();
            let (start, stop) = (extent_key(ino, from.saturating_add(1)), after(&extent_key(ino, u64::MAX)));
            self.scan(&start, &stop, &mut |_, value| {
                let extent: ExtentRow = decode(value);
                let inside = extent.offset < to;
                if inside {
                    batch.push(extent);
                }
                inside && batch.len() < CLEAR_BATCH
            });
            let last = batch.len() < CLEAR_BATCH;
            for extent in batch {
                freed += self.cut(ino, &extent, from, to);
            }
            if last {
                return freed;
            }
        }
    }

    /// Ends one extent that overlaps `from..to`, and begins what stays of it.
    fn cut(&mut self, ino: Ino, extent: &ExtentRow, from: u64, to: u64) -> u64 {
        let mut kept = 0;
        if !self.retire(&extent_key(ino, extent.end()), &extent.begin, extent) {
            self.refer(&extent.chunk, -1);
        }
        let parts = [(extent.offset, from.min(extent.end())), (to.max(extent.offset), extent.end())];
        let stay = if planted(Bug::CutLosesTail) { 1 } else { parts.len() };
        for (start, end) in parts.into_iter().take(stay).filter(|(start, end)| start < end) {
            let part = ExtentRow {
                offset: start,
                len: (end - start) as u32,
                chunk_from: extent.chunk_from + (start - extent.offset) as u32,
                begin: self.begin(),
                ..extent.clone()
            };
            self.put(&extent_key(ino, end), &part);
            self.refer(&part.chunk, i64::from(!planted(Bug::CutPartNotCounted)));
            kept += end - start;
        }
        let freed = u64::from(extent.len) - kept;
        self.uses_bytes(-(freed as i64));
        freed
    }

    fn file(&mut self, ino: Ino) -> Result<InodeRow, Refusal> {
        let row = self.inode(ino)?;
        match row.attr.kind {
            FileKind::File => Ok(row),
            FileKind::Dir => Err(Refusal::IsDirectory),
            _ => Err(Refusal::Invalid),
        }
    }

    /// The pieces as extents, if all of them may be written.
    fn checked_pieces(&mut self, base: u64, pieces: &[Piece]) -> Result<Vec<ExtentRow>, Refusal> {
        if pieces.is_empty() || pieces.len() > Upload::MAX_PIECES {
            return Err(Refusal::Invalid);
        }
        let mut extents: Vec<ExtentRow> = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces.iter().enumerate() {
            let offset = base.checked_add(piece.offset).ok_or(Refusal::TooLarge)?;
            let end = offset.checked_add(u64::from(piece.len)).ok_or(Refusal::TooLarge)?;
            if end > Upload::MAX_FILE_BYTES {
                return Err(Refusal::TooLarge);
            }
            let inside = u64::from(piece.chunk_from) + u64::from(piece.len) <= CHUNK_BYTES as u64;
            let rising = extents.last().is_none_or(|before| before.end() <= offset);
            if piece.len == 0 || !inside || !rising {
                return Err(Refusal::Invalid);
            }
            let chunk = match &piece.source {
                Source::Chunk(name) => {
                    if !self.may_quote(name) {
                        return Err(Refusal::ForeignChunk);
                    }
                    *name
                }
                Source::Inline { payload_from, payload_len } => {
                    self.inline_name(index as u32, *payload_from, *payload_len)?
                }
            };
            let (len, chunk_from, key) = (piece.len, piece.chunk_from, piece.key.clone());
            extents.push(ExtentRow { offset, len, chunk, chunk_from, key, begin: self.begin() });
        }
        Ok(extents)
    }

    /// The name of content in this request's own payload.
    fn inline_name(&self, index: u32, from: u32, len: u32) -> Result<ChunkName, Refusal> {
        let end = from.checked_add(len).ok_or(Refusal::Invalid)?;
        let content = self.payload.get(from as usize..end as usize).ok_or(Refusal::Invalid)?;
        if content.is_empty() {
            return Err(Refusal::Invalid);
        }
        let hash = *blake3::hash(content).as_bytes();
        Ok(ChunkName::inline(self.stands, index, self.by, hash))
    }
}
