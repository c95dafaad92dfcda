//! Serves chunks by name, beside the loop: no order, and any moment is right, since
//! a chunk never changes.
//!
//! * Only a session that lives is served: its key opens the request and seals what
//!   is served. Content itself stays sealed as its writer sealed it.
//! * A chunk that is not ingested yet is waited for, at most [`PATIENCE`]. One that has
//!   come and gone is told of at once: whoever asks has seen an older state of its file.
//! * Bounds: [`SERVED_AT_ONCE`] chunks are read and sent at a time, each until Kafka
//!   has taken it, and sessions take turns; [`ASKED_AT_ONCE`] chunks may be asked for and not served, and
//!   beyond that the topic is not read on.
#![allow(clippy::disallowed_methods)] // Patience is measured here.

mod slots;

use crate::live::Live;
use crate::machine::effect::Peer;
use crate::packs::Packs;
use crate::run::{Ask, Asker, Sessions};
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::frame::{Frame, Kind};
use proto::log::{Log, LogError, Record, Topic};
use proto::message::{Download, Served};
use proto::seal::{Context, Direction, Head, hash_of, open, seal_hashed};
use proto::{Epoch, NamespaceId, SessionId};
use slots::Slots;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

/// How long a chunk that is not here is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

const SERVED_AT_ONCE: usize = 16;

const ASKED_AT_ONCE: usize = 4096;

/// A quiet server remembers this many requests, each for this long: what the answering
/// one has not served when it dies is then not waited for until it is asked again.
const SEEN_MAX: usize = 1024;
const SEEN_FOR: Duration = Duration::from_secs(4);

pub(crate) struct Downloads {
    pub log: Arc<dyn Log>,
    pub packs: Arc<Packs>,
    pub sessions: Arc<Sessions>,
    pub asker: Asker,
    pub epoch: Epoch,
    /// The topic `reads`.
    pub asks: Live,
    /// Where other servers' pulls of a snapshot go, whether or not this server answers.
    pub pulls: mpsc::Sender<Frame>,
    /// Whether this server is the one that answers.
    pub speaks: watch::Receiver<bool>,
}

/// One read frame's common part.
struct Reader {
    peer: Peer,
    number: u64,
    request: [u8; 32],
}

struct Serving {
    log: Arc<dyn Log>,
    packs: Arc<Packs>,
    asker: Asker,
    epoch: Epoch,
    at_once: Arc<Slots>,
}

/// Requests seen while another server answers, to be served after a takeover.
struct Seen {
    records: VecDeque<(Instant, Record)>,
}

impl Seen {
    fn keep(&mut self, record: Record, now: Instant) {
        self.records.push_back((now, record));
        while self.records.len() > SEEN_MAX || self.records.front().is_some_and(|(seen, _)| *seen + SEEN_FOR < now) {
            self.records.pop_front();
        }
    }

    fn take(&mut self, now: Instant) -> impl Iterator<Item = Record> {
        let recent = std::mem::take(&mut self.records).into_iter();
        recent.filter(move |(seen, _)| *seen + SEEN_FOR >= now).map(|(_, record)| record)
    }
}

/// Serves until the server's runtime ends, whenever this server is the one that answers.
pub(crate) async fn serve(downloads: Downloads) {
    let Downloads { log, packs, sessions, asker, epoch, mut asks, pulls, mut speaks } = downloads;
    let asked = Arc::new(Semaphore::new(ASKED_AT_ONCE));
    let at_once = Slots::new(SERVED_AT_ONCE);
    let serving = Arc::new(Serving { log, packs, asker, epoch, at_once });
    let mut seen = Seen { records: VecDeque::new() };
    loop {
        let records = tokio::select! {
            biased;
            changed = speaks.changed() => {
                // The loop has ended, and with it the server.
                if changed.is_err() {
                    return;
                }
                if !*speaks.borrow_and_update() {
                    continue;
                }
                seen.take(Instant::now()).collect()
            }
            record = asks.next() => {
                if let Some(pull) = pull(&record) {
                    // One too many is asked again.
                    let _ = pulls.try_send(pull);
                    continue;
                }
                if !*speaks.borrow() {
                    seen.keep(record, Instant::now());
                    continue;
                }
                vec![record]
            }
        };
        for record in records {
            let Some((reader, chunks)) = authentic(&record, &sessions, epoch) else { continue };
            let reader = Arc::new(reader);
            for name in chunks {
                let Ok(slot) = asked.clone().acquire_owned().await else { return };
                let (serving, reader) = (serving.clone(), reader.clone());
                proto::task::spawn(async move {
                    serving.serve(&reader, name).await;
                    drop(slot);
                });
            }
        }
    }
}

/// Another server's pull: sessions have a namespace, servers none.
fn pull(record: &Record) -> Option<Frame> {
    let frame = Frame::parse(record.value.clone()).ok()?;
    (frame.header().kind == Kind::Read && frame.header().namespace == NamespaceId(0)).then_some(frame)
}

/// What a record asks for, if a session that lives wrote it.
fn authentic(record: &Record, sessions: &Sessions, epoch: Epoch) -> Option<(Reader, Vec<ChunkName>)> {
    let frame = Frame::parse(record.value.clone()).ok()?;
    let header = frame.header();
    if header.kind != Kind::Read || header.epoch != epoch {
        return None;
    }
    let peer = sessions.find(record.partition, SessionId(header.sender))?;
    let context =
        Context { direction: Direction::ToServer, topic: Topic::Reads, partition: record.partition, answers: None };
    let opened = open::<Download>(&peer.key, &frame, &context).ok()?;
    let mut chunks = opened.body.chunks;
    chunks.truncate(Download::MAX_CHUNKS);
    Some((Reader { peer, number: header.number, request: frame.hash() }, chunks))
}

impl Serving {
    async fn serve(&self, reader: &Reader, name: ChunkName) {
        let found = match self.find(reader.peer.session, &name).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        };
        let (body, payload, hash) = match found {
            Some(content) => (Served::Chunk(name), content, name.hash),
            None => (Served::Missing(name), Bytes::new(), hash_of(&[])),
        };

        let _slot = self.at_once.take(reader.peer.session).await;
        let Peer { session, namespace, key, bulk_partition, .. } = &reader.peer;
        let head = Head {
            kind: Kind::Served,
            namespace: *namespace,
            epoch: self.epoch,
            sender: session.0,
            number: reader.number,
        };
        let context = Context {
            direction: Direction::ToClient,
            topic: Topic::Bulk,
            partition: *bulk_partition,
            answers: Some(reader.request),
        };
        match seal_hashed(key, &head, &context, &body, &payload, hash) {
            // A lost one is asked for again.
            Ok(sealed) => match self.log.append(Topic::Bulk, *bulk_partition, sealed.record).await {
                Ok(_) | Err(LogError::Unreachable { .. } | LogError::NotAppended { .. }) => {}
                Err(error) => tracing::warn!("{error}"),
            },
            Err(error) => tracing::error!("cannot seal the chunk {name}: {error}"),
        }
    }

    /// The chunk's content, waited for if need be.
    async fn find(&self, session: SessionId, name: &ChunkName) -> Result<Option<Bytes>, crate::packs::PackError> {
        {
            let _slot = self.at_once.take(session).await;
            if let Some(content) = self.packs.read(name).await? {
                return Ok(Some(content));
            }
        }
        let has_come = if name.topic == Topic::Requests {
            // Small content lives in the rows.
            let ask = |reply| Ask::Content { partition: name.partition, name: *name, reply };
            match self.asker.ask(ask).await {
                Some((Some(content), _)) => return Ok(Some(content)),
                Some((None, has_come)) => has_come,
                None => false,
            }
        } else {
            self.packs.has_ingested(name.partition, name.epoch, name.offset.saturating_add(1))
        };
        if has_come {
            // It may have come just now; otherwise it has gone, and nothing brings it back.
            return self.packs.read(name).await;
        }
        match timeout(PATIENCE, self.packs.read_when_there(name)).await {
            Ok(content) => content.map(Some),
            Err(_) => Ok(None),
        }
    }
}
