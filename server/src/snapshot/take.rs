//! Takes a snapshot of another server into a data directory that has nothing of use.
//!
//! From the moment that its offsets are known the log is kept for this server: it
//! registers itself with them, and makes sure that it was heard. Until all is there,
//! and on disk, the directory is marked and no server starts in it.
#![allow(clippy::disallowed_methods)] // Waits are bounded here, and ids drawn.

use super::{PARTITION, head, pull_context, pulled_context};
use crate::admin::servers::{Role, ServerStatus};
use crate::admin::{self, Admin, AdminError};
use crate::data::{self, DataDir, DataError};
use crate::live::next_frame;
use crate::machine::Machine;
use crate::packs::{PackError, Packs, Reached};
use crate::run::ServerConfig;
use crate::run::own::OwnRecords;
use crate::store::snapshot::StoreWriter;
use crate::store::{Checkpoint, StoreError};
use proto::chunk::ChunkName;
use proto::frame::{Kind, record_hash};
use proto::keys::ClusterKey;
use proto::log::{Log, LogError, REPLY_PARTITIONS, REQUEST_PARTITIONS, Start, Tail, Topic};
use proto::message::{Heartbeat, Held, Progress, Pull, PullPiece, Pulled, ServerRecord};
use proto::seal::{SealError, open, random, seal};
use proto::{Epoch, IncarnationId, ServerId};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// A piece that has not come after this long is asked for again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// A server that gives nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take until the answering server has seen this one registered.
const REGISTERED_WITHIN: Duration = Duration::from_secs(30);

/// Bytes of rows cached in memory while writing, for each partition in turn.
const CACHE_BYTES: usize = 32 << 20;

/// Why no snapshot was taken. What there is of it is no state to start from; taking one
/// again begins anew.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Packs(#[from] PackError),
    #[error("cannot remove {path}: {reason}")]
    Remove { path: String, reason: String },
    #[error("no server of this cluster has written into the log lately; start one, then take the snapshot of it")]
    NoCluster,
    #[error("no other server of this cluster is running: a snapshot is taken of one that is")]
    NoServer,
    #[error("the server {of} cannot give a snapshot: {reason}")]
    Refused { of: ServerId, reason: String },
    #[error("the server {of} has given nothing for {} s; see whether it runs, then take the snapshot again", PATIENCE.as_secs())]
    Silent { of: ServerId },
    #[error(
        "the server {of} no longer holds what it was giving: it was started again, or this one was too slow; take the snapshot again"
    )]
    LetGo { of: ServerId },
    #[error("the server {of} sent something that cannot be used ({reason}); do both run the same kfs-server?")]
    Unusable { of: ServerId, reason: String },
    #[error(
        "{topic}/{partition} was trimmed to offset {first} while the snapshot of offset {needed} was taken; take it again"
    )]
    Trimmed { topic: &'static str, partition: u32, first: u64, needed: u64 },
    #[error("the answering server has not heard of this one within {} s; take the snapshot again", REGISTERED_WITHIN.as_secs())]
    NotRegistered,
}

/// By partition of `chunks`: how far the giving server has its content.
type Ingested = Vec<(u32, Epoch, u64)>;

/// What came.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub of: ServerId,
    pub epoch: Epoch,
    pub rows: u64,
    pub chunks: u64,
    pub bytes: u64,
}

/// Takes a snapshot of a running server into `config.data`, whatever was there before.
/// Prefers a quiet one. `told` hears of progress now and then. Blocks now and then, on the disk and
/// on the log, so not for a runtime that does anything else.
pub async fn take(
    config: &ServerConfig,
    log: Arc<dyn Log>,
    runtime: tokio::runtime::Handle,
    mut told: impl FnMut(&Taken),
) -> Result<Taken, SnapshotError> {
    let identity = data::Identity::read(&config.data, config.key_file.as_deref())?;
    let cluster = Arc::new(identity.cluster_key.clone());
    let me = identity.server;
    let epoch = admin::epoch_of(&cluster, log.as_ref()).await?.ok_or(SnapshotError::NoCluster)?;
    let mut admin = Admin::connect(&identity, epoch, log.clone(), PATIENCE).await?;
    let servers = admin.status(log.as_ref()).await?.servers;
    let of = giver(&servers, me).ok_or(SnapshotError::NoServer)?;

    let data = DataDir::begin_snapshot(&config.data, config.key_file.as_deref())?;
    clear(config, &data)?;
    let mut pulls = Pulls::open(log.clone(), cluster.clone(), epoch, of)?;
    let (partitions, ingested) = begin(&mut pulls).await?;
    if partitions.len() != REQUEST_PARTITIONS as usize || partitions.iter().any(|held| held.epoch != epoch) {
        return Err(pulls.unusable("it has other partitions, or another epoch"));
    }
    register(&mut admin, &log, &cluster, (me, config.supports), epoch, &partitions, &ingested).await?;
    is_kept(log.as_ref(), &partitions, &ingested)?;

    let mut taken = Taken { of, epoch, rows: 0, chunks: 0, bytes: 0 };
    for (partition, held) in (0..).zip(&partitions) {
        take_partition(config, &data, &cluster, &mut pulls, partition, held, &mut taken).await?;
        told(&taken);
    }
    let packs = Packs::open(&data.packs(), cluster.id().0, &config.disk, runtime)?;
    for (partition, epoch, next) in &ingested {
        // What stands before it this server has not seen.
        packs.ingest(*partition, Reached { epoch: *epoch, next_offset: *next, last: None }, None)?;
    }
    for packed in [false, true] {
        take_content(&packs, &mut pulls, packed, &mut taken, &mut told).await?;
    }
    packs.flush()?;
    drop(packs);
    pulls.pull(PullPiece::End).await?;
    is_kept(log.as_ref(), &partitions, &ingested)?;
    data.note_epoch(epoch)?;
    data.end_snapshot()?;
    Ok(taken)
}

async fn begin(pulls: &mut Pulls) -> Result<(Vec<Held>, Ingested), SnapshotError> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match pulls.pull(PullPiece::Begin).await? {
            Pulled::Begun { hold, partitions, ingested } => {
                pulls.hold = hold;
                return Ok((partitions, ingested));
            }
            Pulled::NotYet => tokio::time::sleep(Duration::from_millis(500)).await,
            _ => return Err(pulls.unusable("it did not begin")),
        }
    }
    let reason = "it has not checkpointed every partition yet".into();
    Err(SnapshotError::Refused { of: pulls.of, reason })
}

/// A running server other than this one, best one that has nothing else to say.
fn giver(servers: &[ServerStatus], me: ServerId) -> Option<ServerId> {
    let with = |role| servers.iter().filter(move |server| server.role == role);
    let ids = with(Role::Quiet).chain(with(Role::Answering)).filter_map(|server| data::unhex(&server.server));
    ids.map(ServerId).find(|id| *id != me)
}

/// Forgets what an earlier life or an earlier snapshot has left.
fn clear(config: &ServerConfig, data: &DataDir) -> Result<(), SnapshotError> {
    let databases = &config.disk.databases;
    let stores = (0..REQUEST_PARTITIONS).map(|partition| data.state().join(format!("{partition}.redb")));
    for path in stores.chain([data.packs().join("index.redb")]) {
        databases.remove(&path).map_err(|e| remove_error(&path, &e))?;
    }
    if config.disk.objects.is_none() {
        let packs = data.packs();
        let entries = std::fs::read_dir(&packs).map_err(|e| remove_error(&packs, &e))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.extension().is_some_and(|extension| extension == "pack") {
                std::fs::remove_file(&path).map_err(|e| remove_error(&path, &e))?;
            }
        }
    }
    Ok(())
}

fn remove_error(path: &Path, error: &std::io::Error) -> SnapshotError {
    SnapshotError::Remove { path: path.display().to_string(), reason: error.to_string() }
}

/// Has the log kept for this server from these offsets on.
async fn register(
    admin: &mut Admin,
    log: &Arc<dyn Log>,
    cluster: &Arc<ClusterKey>,
    (me, supports): (ServerId, u32),
    epoch: Epoch,
    partitions: &[Held],
    ingested: &[(u32, Epoch, u64)],
) -> Result<(), SnapshotError> {
    let own = OwnRecords::new(log.clone(), cluster.clone(), IncarnationId::random());
    let opened = own.open(0, epoch, ServerRecord::Incarnation { server: me, supports });
    opened.appended.await?;
    let progress = |(partition, held): (u32, &Held)| {
        let next = held.next_offset;
        let of_chunks = ingested.iter().find(|(of, in_epoch, _)| *of == partition && *in_epoch == epoch);
        Progress {
            partition,
            applied: next,
            checkpointed: next,
            ingested: of_chunks.map_or(0, |(_, _, next)| *next),
            ..Progress::default()
        }
    };
    let partitions: Vec<Progress> = (0..).zip(partitions).map(progress).collect();
    let heartbeat = Heartbeat { answers: false, ends: false, partitions: partitions.clone() };
    own.append(0, ServerRecord::Heartbeat(heartbeat)).appended.await?;

    let deadline = Instant::now() + REGISTERED_WITHIN;
    while Instant::now() < deadline {
        let servers = admin.status(log.as_ref()).await?.servers;
        let known = servers.iter().find(|server| data::unhex(&server.server).map(ServerId) == Some(me));
        let has = |progress: &Progress| {
            known.is_some_and(|known| {
                let mut told = known.partitions.iter();
                told.any(|told| told.partition == progress.partition && told.checkpointed == progress.checkpointed)
            })
        };
        if partitions.iter().all(has) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(SnapshotError::NotRegistered)
}

/// Whether the log still has everything from the snapshot on, and the record before it.
fn is_kept(log: &dyn Log, partitions: &[Held], ingested: &[(u32, Epoch, u64)]) -> Result<(), SnapshotError> {
    let check = |topic: Topic, partition: u32, needed: u64| -> Result<(), SnapshotError> {
        let (first, _) = log.bounds(topic, partition)?;
        if first <= needed {
            return Ok(());
        }
        Err(SnapshotError::Trimmed { topic: topic.suffix(), partition, first, needed })
    };
    for (partition, held) in (0..).zip(partitions) {
        check(Topic::Requests, partition, held.next_offset.saturating_sub(1))?;
    }
    for (partition, _, next) in ingested {
        check(Topic::Chunks, *partition, *next)?;
    }
    Ok(())
}

async fn take_partition(
    config: &ServerConfig,
    data: &DataDir,
    cluster: &Arc<ClusterKey>,
    pulls: &mut Pulls,
    partition: u32,
    held: &Held,
    taken: &mut Taken,
) -> Result<(), SnapshotError> {
    let mut dump = Vec::new();
    while (dump.len() as u64) < held.dump_bytes {
        let piece = PullPiece::Dump { partition, from: dump.len() as u64 };
        match pulls.pull(piece).await? {
            Pulled::Dump(part) if !part.is_empty() => dump.extend_from_slice(&part),
            _ => return Err(pulls.unusable("it did not send the dump")),
        }
    }
    let restored = Machine::restore(partition, cluster.clone(), &dump);
    restored.map_err(|e| pulls.unusable(&e.to_string()))?;
    taken.bytes += dump.len() as u64;

    let mut writer = StoreWriter::create(&data.state(), partition, cluster.id().0, CACHE_BYTES, &config.disk)?;
    let (mut after, mut value) = (Vec::new(), Vec::new());
    loop {
        let piece = PullPiece::Rows { partition, after: after.clone(), value_from: value.len() as u64 };
        let Pulled::Rows { rows, end } = pulls.pull(piece).await? else {
            return Err(pulls.unusable("it did not send rows"));
        };
        if rows.is_empty() && !end {
            return Err(pulls.unusable("it sent no row where there are more"));
        }
        for row in rows {
            if !value.is_empty() && row.key != after {
                return Err(pulls.unusable("it sent half a row"));
            }
            taken.bytes += (row.key.len() + row.value.len()) as u64;
            value.extend_from_slice(&row.value);
            after = row.key;
            if row.whole {
                taken.rows += 1;
                writer.add(after.clone(), std::mem::take(&mut value))?;
            }
        }
        if end {
            break;
        }
    }
    let Held { epoch, next_offset, last_hash, .. } = *held;
    Ok(writer.finish(Checkpoint { epoch, next_offset, last_hash, machine: dump })?)
}

async fn take_content(
    packs: &Packs,
    pulls: &mut Pulls,
    packed: bool,
    taken: &mut Taken,
    told: &mut impl FnMut(&Taken),
) -> Result<(), SnapshotError> {
    let mut after: Option<ChunkName> = None;
    loop {
        let Pulled::Content { chunks, end } = pulls.pull(PullPiece::Content { packed, after }).await? else {
            return Err(pulls.unusable("it did not send content"));
        };
        if chunks.last().map(|stored| stored.name) <= after && !end {
            return Err(pulls.unusable("its content does not come in order"));
        }
        for stored in chunks {
            if *blake3::hash(&stored.content).as_bytes() != stored.name.hash {
                return Err(pulls.unusable(&format!("the chunk {} does not have its hash", stored.name)));
            }
            after = Some(stored.name);
            taken.chunks += 1;
            taken.bytes += stored.content.len() as u64;
            packs.adopt(stored.name, stored.fresh, stored.content)?;
        }
        told(taken);
        if end {
            return Ok(());
        }
    }
}

/// Asks for pieces, one after the other.
struct Pulls {
    log: Arc<dyn Log>,
    cluster: Arc<ClusterKey>,
    epoch: Epoch,
    of: ServerId,
    sender: [u8; 16],
    number: u64,
    hold: u64,
    bulk_partition: u32,
    bulk: Tail,
}

impl Pulls {
    fn open(log: Arc<dyn Log>, cluster: Arc<ClusterKey>, epoch: Epoch, of: ServerId) -> Result<Pulls, LogError> {
        let bulk_partition = u32::from_le_bytes(random()) % REPLY_PARTITIONS;
        let bulk = log.read_from(&[(Topic::Bulk, bulk_partition, Start::End)])?;
        Ok(Pulls { log, cluster, epoch, of, sender: random(), number: 0, hold: 0, bulk_partition, bulk })
    }

    fn unusable(&self, reason: &str) -> SnapshotError {
        SnapshotError::Unusable { of: self.of, reason: reason.to_owned() }
    }

    async fn pull(&mut self, what: PullPiece) -> Result<Pulled, SnapshotError> {
        self.number += 1;
        let pull = Pull { of: self.of, bulk_partition: self.bulk_partition, hold: self.hold, what };
        let head = head(Kind::Read, self.epoch, self.sender, self.number);
        let sealed = seal(&self.cluster.admin_key(), &head, &pull_context(), &pull, &[]);
        let record = sealed.map_err(|error: SealError| self.unusable(&error.to_string()))?.record;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            // One that fails is asked again, as one that is lost.
            if let Err(error) = self.log.append(Topic::Reads, PARTITION, record.clone()).await {
                tracing::warn!("{error}");
            }
            let until = deadline.min(Instant::now() + ASK_AGAIN_AFTER);
            match self.answer(record_hash(&record), until).await? {
                Some(Pulled::Unknown) => return Err(SnapshotError::LetGo { of: self.of }),
                Some(Pulled::Failed { reason }) => return Err(SnapshotError::Refused { of: self.of, reason }),
                Some(pulled) => return Ok(pulled),
                None => {}
            }
        }
        Err(SnapshotError::Silent { of: self.of })
    }

    async fn answer(&mut self, request: [u8; 32], until: Instant) -> Result<Option<Pulled>, SnapshotError> {
        while let Some(frame) = next_frame(&mut self.bulk, until).await {
            let header = frame.header();
            if header.kind != Kind::Served || header.sender != self.sender || header.number != self.number {
                continue;
            }
            match open::<Pulled>(&self.cluster.admin_key(), &frame, &pulled_context(self.bulk_partition, request)) {
                Ok(opened) => return Ok(Some(opened.body)),
                Err(SealError::Unreadable { reason }) => return Err(self.unusable(&reason)),
                Err(_) => {}
            }
        }
        // Where nothing comes any more, patience ends it.
        sleep_until(until).await;
        Ok(None)
    }
}
