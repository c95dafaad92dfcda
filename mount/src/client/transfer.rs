//! Content up and down. Chunks need no order, so they travel beside the ordered
//! requests: uploads to `chunks`, downloads asked on `reads` and served on `bulk`.
//!
//! * Uploaded bytes that no answered request quotes yet are bounded, and so are
//!   bytes asked for and not yet served: a writer or reader waits.
//! * Until then the content is kept, here or in the journal: should the log's epoch end
//!   first, it is uploaded again.
//! * Names that are asked for together travel together; asks for one chunk are one.
//! * Nothing is handed on whose hash is not its name's.

use super::CallError;
use super::coming::{Coming, PROBES};
use super::core::content::quotes;
use super::driver::{Inner, Link};
use super::queue::{Queue, Reader};
use super::window::Window;
use bytes::Bytes;
use proto::chunk::{self, ChunkName, SEALED_MAX_BYTES};
use proto::frame::{Frame, Kind};
use proto::log::{LogError, Topic};
use proto::message::{self, Op, Served};
use proto::seal::{Context, Direction, Head, hash_of, open, seal};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How often the asking task looks for silence while anything is asked for.
const LOOK: Duration = Duration::from_millis(250);

/// Times that a chunk may come damaged, or be said to be missing, before its
/// readers are told so.
const DAMAGED_MAX: u32 = 3;
const MISSING_MAX: u32 = 3;

/// Uploaded content that no answered request quotes within this time no longer counts as under way.
const QUOTED_WITHIN: Duration = Duration::from_secs(120);

/// How long an upload waits for room while what is under way stays within twice
/// the window, and at all: requests that would quote it may be waiting for this very
/// chunk, since a file's are sent in order.
const ROOM_WAIT: Duration = Duration::from_millis(250);
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between uploads of a chunk whose append failed.
const UPLOAD_AGAIN: Duration = Duration::from_millis(500);

/// Chunks that are uploaded side by side, at most; with what is being sealed this is 16 MiB of memory.
pub const UPLOADS_MOST: usize = 16;

/// Chunks that are asked for with one record at least, where so many wait.
const TOGETHER: usize = 12;

/// Reads remembered for their answers' sake, at most; older ones' answers are passed over.
const MAX_READS: usize = 4096;

/// Content on its way, both ways.
#[derive(Default)]
pub(super) struct Transfers {
    uploads: Mutex<Uploads>,
    /// Held by the upload that is next to get room.
    turn: tokio::sync::Mutex<()>,
    room: Notify,
    downloads: Mutex<Downloads>,
    asked: Notify,
}

#[derive(Default)]
struct Uploads {
    bytes: u64,
    /// On their way to the log, and how many had better be.
    appending: usize,
    window: Window,
    /// Uploaded and not quoted by an answered request. Bounded by the buffers of those who
    /// write: they hold the content too, until that answer.
    unquoted: HashMap<ChunkName, Unquoted>,
}

struct Unquoted {
    /// Counted as under way.
    bytes: u64,
    since: Instant,
    /// Unless the journal has it.
    sealed: Option<Bytes>,
}

#[derive(Default)]
struct Downloads {
    /// Ordered, so that they are asked for again in an order.
    chunks: BTreeMap<ChunkName, Ask>,
    /// Names to be asked for.
    queue: Queue,
    /// By number, what was asked for with one record.
    reads: HashMap<u64, Read>,
    next_read: u64,
    /// Chunks asked for and not yet served.
    under_way: usize,
    window: Window,
    coming: Coming,
}

#[derive(Clone, Copy)]
struct Read {
    /// Of its frame, for its answers' seals.
    hash: [u8; 32],
    at: Instant,
}

struct Ask {
    readers: Vec<oneshot::Sender<Result<Bytes, CallError>>>,
    /// The first who has waited for it.
    reader: Option<Reader>,
    /// When it was last asked for; `None` while it is queued.
    asked: Option<Instant>,
    /// How often it has been asked for.
    times: u32,
    damaged: u32,
    missing: u32,
}

/// Gives reserved room back unless the chunk has made it to the log.
struct Reserved<'a> {
    transfers: &'a Transfers,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            lock(&self.transfers.uploads).bytes -= self.bytes;
            self.transfers.room.notify_waiters();
        }
    }
}

/// A chunk on its way to the log.
struct Appending<'a>(&'a Transfers, Instant);

impl Appending<'_> {
    fn begin(transfers: &Transfers) -> Appending<'_> {
        lock(&transfers.uploads).appending += 1;
        Appending(transfers, Instant::now())
    }

    fn came(self, bytes: usize) {
        let mut uploads = lock(&self.0.uploads);
        let under_way = uploads.appending;
        uploads.window.came(Instant::now(), self.1, bytes, under_way, UPLOADS_MOST);
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        lock(&self.0.uploads).appending -= 1;
    }
}

/// Uploads sealed content; see [`super::Client::upload_chunk`].
pub(super) async fn upload(inner: &Arc<Inner>, sealed: Bytes) -> Result<ChunkName, CallError> {
    let name = upload_again(inner, sealed.clone()).await?;
    if let Some(journal) = &inner.journal
        && journal.keep(&name, &sealed)
        && let Some(unquoted) = lock(&inner.transfers.uploads).unquoted.get_mut(&name)
    {
        unquoted.sealed = None;
    }
    Ok(name)
}

/// [`upload`] of content that the journal holds already.
pub(super) async fn upload_again(inner: &Arc<Inner>, sealed: Bytes) -> Result<ChunkName, CallError> {
    let hash = hash_of(&sealed);
    let mut reserved = inner.transfers.reserve(inner, sealed.len() as u64).await?;
    loop {
        let link = live(inner).await?;
        let upload = chunk::Uploader {
            session: link.session,
            namespace: link.namespace,
            epoch: link.epoch,
            partition: link.partition,
        };
        let record = chunk::chunk_record(&link.chunk_key, &upload, &sealed, hash)
            .map_err(|error| CallError::Unsendable { reason: error.to_string() })?
            .record;
        let appending = Appending::begin(&inner.transfers);
        match inner.config.log.append(Topic::Chunks, link.partition, record).await {
            Ok(offset) => {
                appending.came(sealed.len());
                let name = ChunkName {
                    topic: Topic::Chunks,
                    epoch: link.epoch,
                    partition: link.partition,
                    offset,
                    index: 0,
                    session: link.session,
                    hash,
                };
                let bytes = std::mem::take(&mut reserved.bytes);
                let unquoted = Unquoted { bytes, since: Instant::now(), sealed: Some(sealed) };
                lock(&inner.transfers.uploads).unquoted.insert(name, unquoted);
                inner.counters.uploaded.fetch_add(1, Ordering::Relaxed);
                return Ok(name);
            }
            // Where it is, if anywhere, is not known: nothing will ever quote it.
            Err(error @ (LogError::NotAppended { .. } | LogError::Unreachable { .. })) => {
                inner.log_error(&error);
                tokio::time::sleep(UPLOAD_AGAIN).await;
            }
            Err(error) => return Err(CallError::Log(error)),
        }
    }
}

/// Content that is being downloaded; see [`super::Client::download_all`].
#[derive(Debug)]
pub struct Download(oneshot::Receiver<Result<Bytes, CallError>>);

impl Download {
    /// Waits until it has come.
    pub(super) async fn done(self) -> Result<Bytes, CallError> {
        self.0.await.unwrap_or(Err(CallError::Closed))
    }
}

/// Downloads sealed content, for who waits for it or to have it ahead. What is asked for together leaves together.
pub(super) fn download(inner: &Inner, names: &[ChunkName], reader: Option<Reader>) -> Vec<Download> {
    let mut downloads = lock(&inner.transfers.downloads);
    let started = names.iter().map(|name| downloads.want(name, reader)).collect();
    let is_asked = downloads.queue.is_empty();
    drop(downloads);
    if !is_asked {
        inner.transfers.asked.notify_one();
    }
    started
}

/// Somebody waits for these now, as far as they are being downloaded.
pub(super) fn hurry(inner: &Inner, names: &[ChunkName], reader: Reader) {
    let mut downloads = lock(&inner.transfers.downloads);
    let hurried = names.iter().filter(|name| downloads.hurry(name, reader)).count();
    drop(downloads);
    if hurried > 0 {
        inner.transfers.asked.notify_one();
    }
}

/// Asks for what is queued, as far as the window allows, and again after silence.
pub(super) async fn ask_for_chunks(inner: Arc<Inner>) {
    let mut live = inner.live();
    loop {
        // A session that has just begun is asked at once for what the one before it did not serve.
        let is_other_session = live.has_changed().unwrap_or(false);
        let link = live.borrow_and_update().clone();
        let busy = match link {
            Some(link) => inner.transfers.ask(&inner, &link, is_other_session),
            None => false,
        };
        let look = async {
            match busy {
                true => tokio::time::sleep(LOOK).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = inner.transfers.asked.notified() => {}
            changed = live.changed() => {
                if changed.is_err() {
                    return;
                }
                live.mark_changed();
            }
            () = look => {}
        }
    }
}

async fn live(inner: &Inner) -> Result<Arc<Link>, CallError> {
    let mut live = inner.live();
    match live.wait_for(Option::is_some).await {
        Ok(link) => link.clone().ok_or(CallError::Closed),
        Err(_) => Err(CallError::Closed),
    }
}

impl Transfers {
    /// Bytes under way, up and down.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let down = lock(&self.downloads).under_way as u64 * SEALED_MAX_BYTES as u64;
        (lock(&self.uploads).bytes, down)
    }

    /// So many chunks had better be uploaded side by side, from what the last ones took.
    pub(super) fn uploads_at_once(&self) -> usize {
        lock(&self.uploads).window.room().min(UPLOADS_MOST)
    }

    /// A request was answered: what it quotes is no longer under way.
    pub(super) fn quoted(&self, op: &Op) {
        let names = quotes(op);
        if names.is_empty() {
            return;
        }
        let mut uploads = lock(&self.uploads);
        let before = uploads.bytes;
        for name in &names {
            uploads.remove(name);
        }
        if uploads.bytes < before {
            self.room.notify_waiters();
        }
    }

    /// Content that nobody has quoted, which is to be uploaded again.
    pub(super) fn take_back(&self, name: &ChunkName) -> Option<Bytes> {
        let unquoted = lock(&self.uploads).remove(name)?;
        self.room.notify_waiters();
        unquoted.sealed
    }

    /// Waits until `bytes` more fit; a chunk alone always does.
    /// Whoever asks first gets it first: a caller that quotes its chunks in order
    /// would else wait for room that only its own later chunks hold.
    async fn reserve(&self, inner: &Inner, bytes: u64) -> Result<Reserved<'_>, CallError> {
        let _turn = self.turn.lock().await;
        let since = Instant::now();
        loop {
            // Registered before looking, so that room made meanwhile is not missed.
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            let window = live(inner).await?.window_bytes;
            {
                let mut uploads = lock(&self.uploads);
                let waited = since.elapsed();
                if uploads.bytes + bytes > window {
                    uploads.count_only_fresh();
                }
                let limit = if waited < ROOM_WAIT { window } else { window.saturating_mul(2) };
                if uploads.bytes == 0 || uploads.bytes + bytes <= limit || waited >= ROOM_WAIT_MAX {
                    uploads.bytes += bytes;
                    return Ok(Reserved { transfers: self, bytes });
                }
            }
            let _ = tokio::time::timeout(ROOM_WAIT, room).await;
        }
    }

    /// Returns whether anything is still to come.
    fn ask(&self, inner: &Inner, link: &Link, is_other_session: bool) -> bool {
        let mut downloads = lock(&self.downloads);
        downloads.ask_again(is_other_session);
        let room = downloads.window.room().min(link.most_chunks());
        loop {
            let (mut chunks, mut are_repeated) = (Vec::new(), true);
            // Where many are queued, what comes makes room for some before more are asked for, or each would have a record.
            let enough = if downloads.queue.is_waited_for() { 1 } else { TOGETHER };
            let together = downloads.queue.len().min(enough).min(room.div_ceil(2));
            while (!chunks.is_empty() || downloads.under_way + together <= room)
                && downloads.under_way < room
                && chunks.len() < message::Download::MAX_CHUNKS
                && let Some(name) = downloads.queue.pop()
            {
                if let Some(ask) = downloads.chunks.get_mut(&name)
                    && ask.asked.is_none()
                {
                    ask.asked = Some(Instant::now());
                    are_repeated &= ask.times > 0;
                    ask.times = ask.times.saturating_add(1);
                    downloads.under_way += 1;
                    chunks.push(name);
                }
            }
            if chunks.is_empty() {
                return !downloads.chunks.is_empty();
            }
            if !are_repeated {
                inner.counters.reads.fetch_add(1, Ordering::Relaxed);
            }
            tracing::debug!(chunks = chunks.len(), under_way = downloads.under_way, room, "content is asked for");
            downloads.send(inner, link, chunks);
        }
    }

    /// A frame of kind `Served` that names this session.
    pub(super) fn served(&self, inner: &Inner, link: &Link, frame: &Frame) {
        let number = frame.header().number;
        let Some(read) = lock(&self.downloads).reads.get(&number).copied() else { return };
        let context = Context {
            direction: Direction::ToClient,
            topic: Topic::Bulk,
            partition: link.bulk_partition,
            answers: Some(read.hash),
        };
        // Opening hashes the whole content, so it is done without the lock.
        let opened = match open::<Served>(&link.key, frame, &context) {
            Ok(opened) => opened,
            Err(error) => return inner.quarantined(&error),
        };
        let mut downloads = lock(&self.downloads);
        let (Served::Chunk(name) | Served::Missing(name)) = &opened.body;
        let (now, under_way) = (Instant::now(), downloads.under_way);
        tracing::debug!(took = ?(now - read.at), is_wanted = downloads.chunks.contains_key(name), "content has come");
        downloads.coming.came(now, read.at);
        if let Served::Chunk(_) = &opened.body {
            downloads.window.came(now, read.at, frame.payload().len(), under_way, link.most_chunks());
        }
        match opened.body {
            Served::Chunk(name) if opened.payload_hash == name.hash => {
                inner.counters.downloaded.fetch_add(1, Ordering::Relaxed);
                downloads.finish(&name, Ok(frame.payload()));
            }
            Served::Chunk(name) => {
                downloads.retry(&name, |ask| {
                    ask.damaged += 1;
                    (ask.damaged >= DAMAGED_MAX).then_some(CallError::Corrupt { chunk: name })
                });
            }
            Served::Missing(name) => {
                downloads.retry(&name, |ask| {
                    ask.missing += 1;
                    (ask.missing >= MISSING_MAX).then_some(CallError::ChunkMissing { chunk: name })
                });
            }
        }
        let is_room_wanted = !downloads.queue.is_empty();
        drop(downloads);
        if is_room_wanted {
            self.asked.notify_one();
        }
    }
}

impl Uploads {
    fn remove(&mut self, name: &ChunkName) -> Option<Unquoted> {
        let unquoted = self.unquoted.remove(name)?;
        self.bytes -= unquoted.bytes;
        Some(unquoted)
    }

    fn count_only_fresh(&mut self) {
        for unquoted in self.unquoted.values_mut() {
            if unquoted.since.elapsed() >= QUOTED_WITHIN {
                self.bytes -= std::mem::take(&mut unquoted.bytes);
            }
        }
    }
}

impl Downloads {
    fn want(&mut self, name: &ChunkName, reader: Option<Reader>) -> Download {
        let (done, content) = oneshot::channel();
        let queue = &mut self.queue;
        let ask = self.chunks.entry(*name).or_insert_with(|| {
            queue.push(*name, reader);
            Ask { readers: Vec::new(), reader, asked: None, times: 0, damaged: 0, missing: 0 }
        });
        ask.readers.push(done);
        if let Some(reader) = reader {
            self.hurry(name, reader);
        }
        Download(content)
    }

    /// Whether it was only to be had ahead until now.
    fn hurry(&mut self, name: &ChunkName, reader: Reader) -> bool {
        let Some(ask) = self.chunks.get_mut(name).filter(|ask| ask.reader.is_none()) else { return false };
        ask.reader = Some(reader);
        self.queue.hurry(*name, reader);
        true
    }

    fn send(&mut self, inner: &Inner, link: &Link, chunks: Vec<ChunkName>) {
        self.next_read += 1;
        let number = self.next_read;
        let head =
            Head { kind: Kind::Read, namespace: link.namespace, epoch: link.epoch, sender: link.session.0, number };
        let context =
            Context { direction: Direction::ToServer, topic: Topic::Reads, partition: link.partition, answers: None };
        match seal(&link.key, &head, &context, &message::Download { chunks }, &[]) {
            Ok(sealed) => {
                let read = Read { hash: proto::frame::record_hash(&sealed.record), at: Instant::now() };
                self.reads.insert(number, read);
                self.reads.retain(|read, _| read + MAX_READS as u64 > number);
                // Its loss shows as silence. Queued at once; nobody needs to hear of the acknowledgement.
                drop(inner.config.log.append(Topic::Reads, link.partition, sealed.record));
            }
            // Names of a fixed length, at most 64: it always fits.
            Err(error) => tracing::error!("cannot ask for chunks: {error}"),
        }
    }

    /// Queues again what was asked for and is lost, as far as that can be told; or `all` of it.
    fn ask_again(&mut self, all: bool) {
        let asked = || self.chunks.iter().filter_map(|(name, ask)| Some((ask.asked?, *name)));
        let Some((first, _)) = asked().min_by_key(|(asked, _)| *asked) else { return };
        let is_silent = self.coming.probe(Instant::now(), first, self.window.takes(self.under_way + 1));
        if !(all || is_silent || self.coming.is_overtaken(first)) {
            return;
        }
        let mut asked: Vec<(Instant, ChunkName)> = asked().collect();
        asked.sort_by_key(|(asked, _)| *asked);
        let probes = if is_silent { PROBES } else { 0 };
        tracing::debug!(under_way = self.under_way, all, is_silent, "some content is asked for again");
        for (number, (asked, name)) in asked.into_iter().enumerate() {
            if !(all || number < probes || self.coming.is_overtaken(asked)) {
                continue;
            }
            let Some(ask) = self.chunks.get_mut(&name) else { continue };
            ask.asked = None;
            self.under_way -= 1;
            ask.readers.retain(|reader| !reader.is_closed());
            if ask.readers.is_empty() {
                self.chunks.remove(&name);
            } else {
                self.queue.push(name, ask.reader);
            }
        }
    }

    fn finish(&mut self, name: &ChunkName, content: Result<Bytes, CallError>) {
        let Some(ask) = self.chunks.remove(name) else { return };
        self.under_way -= usize::from(ask.asked.is_some());
        for reader in ask.readers {
            // A reader that has given up does not look.
            let _ = reader.send(content.clone());
        }
    }

    /// The chunk did not come as it should: asks again, unless that is an error by now.
    fn retry(&mut self, name: &ChunkName, verdict: impl FnOnce(&mut Ask) -> Option<CallError>) {
        let Some(ask) = self.chunks.get_mut(name) else { return };
        match verdict(ask) {
            Some(error) => self.finish(name, Err(error)),
            None => {
                if ask.asked.take().is_some() {
                    self.under_way -= 1;
                    self.queue.push(*name, ask.reader);
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each step leaves a whole table; a panic elsewhere must not take the mount down.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_goes_before_what_is_read_ahead_and_is_asked_for_once() {
        let (epoch, session) = (proto::Epoch(1), proto::SessionId::default());
        let name =
            |offset| ChunkName { topic: Topic::Chunks, epoch, partition: 0, offset, index: 0, session, hash: [0; 32] };
        let mut downloads = Downloads::default();
        let mut begun: Vec<Download> = (0..3).map(|offset| downloads.want(&name(offset), None)).collect();
        let wanted = [(2, Some(7)), (9, Some(8)), (9, None), (2, Some(8)), (1, None)];
        begun.extend(wanted.map(|(offset, reader)| downloads.want(&name(offset), reader)));
        downloads.hurry(&name(1), 7);
        // Nobody downloads that.
        downloads.hurry(&name(5), 7);
        assert_eq!(downloads.chunks[&name(2)].readers.len(), 3);
        let order: Vec<u64> = std::iter::from_fn(|| downloads.queue.pop()).map(|name| name.offset).collect();
        assert_eq!(order, [2, 9, 1, 0]);
        // What is on its way already is not asked for again.
        downloads.chunks.get_mut(&name(0)).expect("is there").asked = Some(Instant::now());
        downloads.under_way = 1;
        begun.push(downloads.want(&name(0), Some(7)));
        assert!(downloads.queue.is_empty());
        // Unless it is lost; then it is waited for still.
        downloads.ask_again(true);
        assert!(downloads.queue.is_waited_for());
    }
}
