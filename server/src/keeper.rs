//! Housekeeping beside the loop: drops content that nothing needs, writes mostly dead
//! packs anew, reads packs again for damage and heals what the log still has.
//!
//! * Slow on purpose: a round every [`ROUND`], in which at most one pack's worth is
//!   written anew and [`SCRUB_BYTES`] are read again.
//! * Nothing is dropped on this task's word alone: what a record has freed is dropped
//!   when a checkpoint is past it, and of uploads that nothing has quoted the loop is
//!   asked, which has the state.
#![allow(clippy::disallowed_methods)] // It waits by the clock; nothing of this is the state's.

use crate::error::ServerError;
use crate::ingest;
use crate::limits::limits;
use crate::machine::quotes_over;
use crate::packs::{PackError, Packs};
use crate::run::{Ask, Asker};
use bytes::Bytes;
use proto::chunk::{ChunkName, INLINE_BYTES};
use proto::frame::{Frame, frames};
use proto::keys::ClusterKey;
use proto::log::{Log, LogError, Start, Topic};
use proto::{LogTime, SessionId, task};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Between rounds.
const ROUND: Duration = Duration::from_secs(5);

/// Bytes read again in one round: 4 MiB a second, 1 TiB in three days.
const SCRUB_BYTES: u64 = 20 << 20;

/// Chunks dropped in one round.
const DROP_AT_ONCE: usize = 20_000;

/// Sessions, and uploads of one session, that are asked about at a time.
const SESSIONS_AT_ONCE: usize = 1000;
const UPLOADS_AT_ONCE: usize = 1000;

/// How long the log may take to give a record that content is to be healed from.
const HEAL_WAIT: Duration = Duration::from_secs(5);

/// How long the loop may take to apply what is in the log: where much goes on, some of it is
/// always on its way.
const APPLY_WAIT: Duration = Duration::from_secs(10);
const APPLY_LOOK: Duration = Duration::from_millis(100);

pub(crate) struct Keeper {
    pub log: Arc<dyn Log>,
    pub packs: Arc<Packs>,
    pub cluster: Arc<ClusterKey>,
    pub asker: Asker,
}

/// Keeps house until the server's runtime ends, or something cannot be written;
/// then whoever writes content finds the same, and stops the server.
pub(crate) async fn run(keeper: Keeper) {
    if let Err(error) = keeper.keep().await {
        tracing::error!("{error}; nothing is dropped, written anew or read again any more");
    }
}

impl Keeper {
    async fn keep(&self) -> Result<(), ServerError> {
        let packs = self.packs.clone();
        offload(move || packs.delete_unused()).await?;
        let mut swept = Instant::now();
        loop {
            sleep(ROUND).await;
            self.heal().await?;
            let packs = self.packs.clone();
            offload(move || packs.collect(DROP_AT_ONCE, Instant::now())).await?;
            if let Some(sparse) = self.packs.sparse().await? {
                let packs = self.packs.clone();
                offload(move || packs.rewrite(sparse)).await?;
            }
            self.scrub().await?;
            // While the log still has it.
            self.heal().await?;
            if swept.elapsed() >= limits().sweep_every {
                swept = Instant::now();
                if self.sweep().await?.is_none() {
                    return Ok(());
                }
            }
        }
    }

    /// Reads on where the last round stopped, over as many packs as that takes.
    async fn scrub(&self) -> Result<(), ServerError> {
        let mut left = SCRUB_BYTES;
        while left > 0 {
            let scrubbed = self.packs.scrub(left).await?;
            if scrubbed.end {
                break;
            }
            left = left.saturating_sub(scrubbed.bytes);
        }
        Ok(())
    }

    /// Looks for uploads that nothing quotes and nothing will. `None` when the server ends.
    pub(crate) async fn sweep(&self) -> Result<Option<()>, ServerError> {
        let mut after = None;
        loop {
            let sessions = self.packs.fresh_sessions(after, SESSIONS_AT_ONCE)?;
            let Some((last, ..)) = sessions.last() else { return Ok(Some(())) };
            after = Some(*last);
            let mut by_partition: BTreeMap<u32, Vec<(SessionId, Option<LogTime>)>> = BTreeMap::new();
            for (session, partition, mark) in sessions {
                by_partition.entry(partition).or_default().push((session, mark));
            }
            for (partition, sessions) in by_partition {
                if self.sweep_partition(partition, &sessions).await?.is_none() {
                    return Ok(None);
                }
            }
        }
    }

    async fn sweep_partition(
        &self,
        partition: u32,
        sessions: &[(SessionId, Option<LogTime>)],
    ) -> Result<Option<()>, ServerError> {
        // A session that the state does not know may be about to open. Whatever was in
        // the log when its upload was seen here must have been applied first.
        let (_, end) = match self.log.bounds(Topic::Requests, partition) {
            Ok(bounds) => bounds,
            Err(error) => {
                tracing::warn!("{error}; uploads are looked at later");
                return Ok(Some(()));
            }
        };
        let ids: Vec<SessionId> = sessions.iter().map(|(session, _)| *session).collect();
        let until = Instant::now() + APPLY_WAIT;
        let (now, live) = loop {
            let ask = |reply| Ask::Live { partition, applied: end, sessions: ids.clone(), reply };
            match self.asker.ask(ask).await {
                None => return Ok(None),
                Some(Some(answer)) => break answer,
                Some(None) if Instant::now() < until => sleep(APPLY_LOOK).await,
                // Uploads are looked at later.
                Some(None) => return Ok(Some(())),
            }
        };

        let (mut seen, mut due) = (Vec::new(), Vec::new());
        for ((session, mark), live) in sessions.iter().zip(live) {
            match mark {
                _ if live => {}
                None => seen.push((*session, now)),
                Some(mark) if quotes_over(*mark) <= now => due.push(*session),
                Some(_) => {}
            }
        }
        let (mut done, mut settled) = (Vec::new(), Vec::new());
        for session in due {
            let uploads = self.packs.fresh_of(session, UPLOADS_AT_ONCE)?;
            let ask = |reply| Ask::Unquoted { partition, chunks: uploads.clone(), reply };
            let Some(quoted) = self.asker.ask(ask).await else { return Ok(None) };
            // What is not quoted stays listed until it is dropped, so that a crash forgets nothing.
            let all = quoted.iter().all(|quoted| *quoted) && uploads.len() < UPLOADS_AT_ONCE;
            settled.extend(uploads.iter().zip(quoted).filter(|(_, quoted)| *quoted).map(|((_, name), _)| *name));
            if all {
                done.push(session);
            }
        }
        if !(seen.is_empty() && done.is_empty() && settled.is_empty()) {
            let packs = self.packs.clone();
            offload(move || packs.note_over(seen, done, settled)).await?;
        }
        Ok(Some(()))
    }

    /// Gets damaged content from the log, as far as that still has it.
    pub(crate) async fn heal(&self) -> Result<(), ServerError> {
        let mut damaged = self.packs.take_damaged().into_iter();
        while let Some(name) = damaged.next() {
            // It may have been dropped meanwhile.
            let Some(bytes) = self.packs.packed_bytes(&name)? else { continue };
            match self.logged(&name, bytes).await {
                Logged::Content(content) => {
                    self.packs.heal(name, content)?;
                    tracing::info!("the chunk {name} was damaged, and is kept anew as the log has it");
                }
                Logged::Gone => {
                    self.packs.give_up(name);
                    tracing::error!("the chunk {name} is damaged, and the log has it no longer; it is not served");
                }
                Logged::Unknown(reason) => {
                    tracing::warn!("cannot ask the log yet for the damaged chunk {name}: {reason}");
                    for name in damaged.by_ref().chain([name]) {
                        self.packs.note_damaged(name);
                    }
                }
            }
        }
        Ok(())
    }

    /// The content of a chunk of `bytes` bytes, as the log has it.
    pub(crate) async fn logged(&self, name: &ChunkName, bytes: usize) -> Logged {
        let tail = match self.log.bounds(name.topic, name.partition) {
            Ok((first, end)) if !(first..end).contains(&name.offset) => return Logged::Gone,
            Ok(_) => self.log.read_from(&[(name.topic, name.partition, Start::At(name.offset))]),
            Err(error) => Err(error),
        };
        let record = match tail {
            Ok(mut tail) => timeout(HEAL_WAIT, tail.next()).await,
            Err(error) => return Logged::Unknown(error.to_string()),
        };
        let record = match record {
            Ok(Some(Ok(record))) => record,
            Ok(Some(Err(LogError::OutOfRange { .. }))) => return Logged::Gone,
            Ok(Some(Err(error))) => return Logged::Unknown(error.to_string()),
            Ok(None) => return Logged::Unknown("the log has ended".into()),
            Err(_) => return Logged::Unknown(format!("no record came within {} s", HEAL_WAIT.as_secs())),
        };
        let found = if name.topic == Topic::Chunks {
            let verified = ingest::verified(&record, &self.cluster, name.epoch..=name.epoch);
            verified.ok().filter(|(_, found, _)| found == name).map(|(.., content)| content)
        } else if let Some(frame) = frame_of(name, record.value) {
            let (payload, hash) = (frame.payload(), name.hash);
            match task::offload(move || piece(&payload, bytes, &hash)).await {
                Ok(found) => found,
                Err(error) => return Logged::Unknown(error.to_string()),
            }
        } else {
            None
        };
        found.map_or(Logged::Gone, Logged::Content)
    }
}

/// What the log says of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Logged {
    Content(Bytes),
    /// It does not hold it any more.
    Gone,
    /// It cannot be asked now, for this reason.
    Unknown(String),
}

/// The request that brought the content, of those in its record.
fn frame_of(name: &ChunkName, record: Bytes) -> Option<Frame> {
    frames(record).ok()?.into_iter().nth(name.position().frame().into())
}

/// The part of a request's payload that has this length and hash. Where it began only the
/// request's session knew: one piece is all of it, the first of several is in front, and so on.
fn piece(payload: &Bytes, bytes: usize, hash: &[u8; 32]) -> Option<Bytes> {
    let last = payload.len().checked_sub(bytes)?;
    // No mount puts more into a request; each place costs a hash of the piece.
    let between = if payload.len() <= 2 * INLINE_BYTES { 1..last } else { 0..0 };
    let mut places = [0, last].into_iter().chain(between).map(|from| payload.slice(from..from + bytes));
    places.find(|part| blake3::hash(part) == *hash)
}

/// What waits for a disk does so elsewhere.
async fn offload<T: Send + Unpin + 'static>(
    work: impl FnOnce() -> Result<T, PackError> + Send + 'static,
) -> Result<T, ServerError> {
    match task::offload(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(ServerError::System { tried: "keep house", reason: error.to_string() }),
    }
}
