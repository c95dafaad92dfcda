//! Gives a snapshot of this server, beside everything else that it does: also a quiet
//! one does, so that the answering one need not.
#![allow(clippy::disallowed_methods)] // What nobody asks for any more is let go.

use super::{head, pull_context, pulled_context};
use crate::error::ServerError;
use crate::packs::Packs;
use crate::run::{Ask, Asker};
use crate::store::snapshot::{HeldRows, StoreReader};
use proto::chunk::ChunkName;
use proto::frame::{Frame, Kind};
use proto::keys::ClusterKey;
use proto::log::{Log, REPLY_PARTITIONS, Topic};
use proto::message::{Held, Pull, PullPiece, Pulled, Row, Stored};
use proto::planted::{Bug, planted};
use proto::seal::{open, seal};
use proto::task::offload;
use proto::{Epoch, ServerId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Pulls that wait to be answered; what is lost beyond them is asked again.
pub(crate) const PULLS_WAITING: usize = 16;

/// A checkpoint is held for this long after the last pull: meanwhile the databases
/// cannot use again what changes free.
const HELD_FOR: Duration = Duration::from_secs(60);

/// Servers that take a snapshot of this one at once; further ones ask again.
const TAKERS: usize = 4;

pub(crate) struct Giver {
    pub server: ServerId,
    pub log: Arc<dyn Log>,
    pub cluster: Arc<ClusterKey>,
    pub packs: Arc<Packs>,
    pub asker: Asker,
    pub epoch: Epoch,
}

/// What is held for one asking server.
struct Holding {
    sender: [u8; 16],
    hold: u64,
    /// What it was told of it.
    begun: Pulled,
    stores: Arc<Vec<HeldRows>>,
    /// Still here, but nothing of what is held refers to it.
    freed: BTreeSet<ChunkName>,
    until: Instant,
}

/// Answers pulls until the server's runtime ends.
pub(crate) async fn serve(giver: Giver, mut pulls: mpsc::Receiver<Frame>) {
    let mut holdings: Vec<Holding> = Vec::new();
    loop {
        let until = holdings.iter().map(|holding| holding.until).min();
        let let_go = async move {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            biased;
            frame = pulls.recv() => match frame {
                Some(frame) => frame,
                None => return,
            },
            () = let_go => {
                let now = Instant::now();
                holdings.retain(|holding| holding.until > now);
                continue;
            }
        };
        let Ok(pull) = open::<Pull>(&giver.cluster.admin_key(), &frame, &pull_context()) else { continue };
        let pull = pull.body;
        if pull.of != giver.server || pull.bulk_partition >= REPLY_PARTITIONS || frame.header().epoch != giver.epoch {
            continue;
        }
        let sender = frame.header().sender;
        let pulled = match giver.pulled(&mut holdings, sender, pull.hold, pull.what).await {
            Ok(pulled) => pulled,
            Err(error) => {
                tracing::error!("cannot give a snapshot: {error}");
                Pulled::Failed { reason: error.to_string() }
            }
        };
        giver.answer(&frame, pull.bulk_partition, &pulled).await;
    }
}

impl Giver {
    async fn pulled(
        &self,
        holdings: &mut Vec<Holding>,
        sender: [u8; 16],
        hold: u64,
        piece: PullPiece,
    ) -> Result<Pulled, ServerError> {
        let until = Instant::now() + HELD_FOR;
        let known = holdings.iter().position(|holding| holding.sender == sender);
        match piece {
            // Asked again, since no answer had come: but one may come yet, and must fit what is given.
            PullPiece::Begin if let Some(known) = known => {
                holdings[known].until = until;
                return Ok(holdings[known].begun.clone());
            }
            PullPiece::Begin if holdings.len() >= TAKERS => return Ok(Pulled::NotYet),
            PullPiece::Begin => {
                // Before the rows: content that came in after this is asked of the log.
                let ingested = self.packs.ingested()?;
                let Some(stores) = self.hold().await? else { return Ok(Pulled::NotYet) };
                tracing::info!("giving a snapshot of this server to another one");
                let held = |held: &HeldRows| Held {
                    epoch: held.checkpoint.epoch,
                    next_offset: held.checkpoint.next_offset + u64::from(planted(Bug::SnapshotOffByOne)),
                    last_hash: held.checkpoint.last_hash,
                    dump_bytes: held.checkpoint.machine.len() as u64,
                };
                let partitions: Vec<Held> = stores.iter().map(held).collect();
                let reached: Vec<_> = partitions.iter().map(|held| (held.epoch, held.next_offset)).collect();
                let freed = self.packs.freed_before(&reached)?;
                let ingested =
                    ingested.into_iter().map(|(partition, reached)| (partition, reached.epoch, reached.next_offset));
                let ingested: Vec<_> = ingested.collect();
                let hold = name_of(&partitions, &ingested);
                let begun = Pulled::Begun { hold, partitions, ingested };
                holdings.push(Holding { sender, hold, begun: begun.clone(), stores: Arc::new(stores), freed, until });
                return Ok(begun);
            }
            PullPiece::End => {
                holdings.retain(|holding| holding.sender != sender);
                return Ok(Pulled::Ended);
            }
            _ => {}
        }
        let Some(holding) = known.map(|known| &mut holdings[known]).filter(|holding| holding.hold == hold) else {
            return Ok(Pulled::Unknown);
        };
        holding.until = until;
        let stores = holding.stores.clone();
        match piece {
            PullPiece::Dump { partition, from } => {
                let Some(held) = stores.get(partition as usize) else { return Ok(Pulled::Unknown) };
                let rest = held.checkpoint.machine.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or(&[]);
                Ok(Pulled::Dump(rest[..rest.len().min(Pull::MAX_BYTES)].to_vec()))
            }
            PullPiece::Rows { partition, after, value_from } => {
                let read = offload(move || {
                    let held = stores.get(partition as usize)?;
                    Some(held.rows(&after, value_from, Pull::MAX_BYTES))
                });
                let Some(read) = read.await.map_err(|e| panicked(&e))? else { return Ok(Pulled::Unknown) };
                let (mut rows, end) = read?;
                if planted(Bug::SnapshotLosesRow) && rows.len() > 1 {
                    rows.remove(rows.len() / 2);
                }
                let row = |(key, value, whole)| Row { key, value, whole };
                Ok(Pulled::Rows { rows: rows.into_iter().map(row).collect(), end })
            }
            PullPiece::Content { packed, after } => {
                let (mut chunks, mut bytes, mut after) = (Vec::new(), 0, after);
                let end = 'listed: loop {
                    let (names, all) = self.packs.list(packed, after, Pull::MAX_BYTES)?;
                    for (name, fresh) in names {
                        after = Some(name);
                        if holding.freed.contains(&name) || planted(Bug::SnapshotLosesContent) {
                            continue;
                        }
                        let content = match self.packs.read(&name).await {
                            Ok(Some(content)) => content,
                            // Dropped since it was listed: nobody needs it.
                            Ok(None) => continue,
                            // Else no server could ever be set up from this one again.
                            Err(error) if self.packs.is_given_up(&name) => {
                                tracing::warn!("a snapshot is given without it: {error}");
                                continue;
                            }
                            Err(error) => return Err(error.into()),
                        };
                        bytes += content.len() + PER_CHUNK_BYTES;
                        if bytes > Pull::MAX_BYTES && !chunks.is_empty() {
                            break 'listed false;
                        }
                        chunks.push(Stored { name, fresh, content });
                    }
                    if all || !chunks.is_empty() {
                        break all;
                    }
                };
                Ok(Pulled::Content { chunks, end })
            }
            PullPiece::Begin | PullPiece::End => Ok(Pulled::Ended),
        }
    }

    /// Holds every partition's last checkpoint; `None` if one has none yet.
    async fn hold(&self) -> Result<Option<Vec<HeldRows>>, ServerError> {
        let readers: Option<Vec<Option<StoreReader>>> = self.asker.ask(Ask::Stores).await;
        let Some(readers) = readers else { return Ok(None) };
        let hold = offload(move || -> Result<Option<Vec<HeldRows>>, ServerError> {
            let mut held = Vec::new();
            for reader in readers {
                let Some(reader) = reader else { return Ok(None) };
                let Some(rows) = reader.hold()? else { return Ok(None) };
                held.push(rows);
            }
            Ok(Some(held))
        });
        hold.await.map_err(|e| panicked(&e))?
    }

    async fn answer(&self, frame: &Frame, bulk_partition: u32, pulled: &Pulled) {
        let header = frame.header();
        let head = head(Kind::Served, self.epoch, header.sender, header.number);
        let context = pulled_context(bulk_partition, frame.hash());
        match seal(&self.cluster.admin_key(), &head, &context, pulled, &[]) {
            // A lost one is asked for again.
            Ok(sealed) => {
                if let Err(error) = self.log.append(Topic::Bulk, bulk_partition, sealed.record).await {
                    tracing::warn!("{error}");
                }
            }
            Err(error) => tracing::error!("cannot seal a part of a snapshot: {error}"),
        }
    }
}

/// Tells checkpoints apart by what they are of: an answer to an earlier beginning may be the one that arrives.
fn name_of(partitions: &[Held], ingested: &[(u32, Epoch, u64)]) -> u64 {
    let bytes = rmp_serde::to_vec(&(partitions, ingested)).expect("positions have an encoding");
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(&bytes).as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What a chunk takes in an answer beside its content.
const PER_CHUNK_BYTES: usize = 160;

fn panicked(error: &tokio::task::JoinError) -> ServerError {
    ServerError::Bug { during: "read a snapshot", reason: error.to_string() }
}
