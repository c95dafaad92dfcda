//! What administrators' programs do: they hold the cluster key, speak to the log as
//! an incarnation of a server that runs nothing, and read the answers on a partition
//! of `replies` of their own choice.
//!
//! A question is asked again while no answer comes; a change is sent once, since
//! nobody but the administrator can say whether it should happen twice.
#![allow(clippy::disallowed_methods)] // Waits are bounded here, and ids drawn.

mod quota;
pub mod servers;
pub mod users;

use crate::data::Identity;
use crate::live::next_frame;
use crate::run::own::{OwnRecords, Sent};
use proto::frame::{Frame, Kind, record_hash};
use proto::keys::{ClusterKey, PublicKey};
use proto::log::{Log, LogError, REPLY_PARTITIONS, Start, Tail, Topic};
use proto::message::{self, AdminAnswer, AdminOutcome, AdminRequest, Refusal, ServerRecord};
use proto::seal::{Context, Direction, SealError, open, random};
use proto::{Epoch, IncarnationId, ServerId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A question that is not answered within this time is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Why an administrator's command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("no kfs-server answered within {} s; is one running on this cluster?{}", waited.as_secs(), if *.change { " The change may still take effect: see `kfs-server user list`" } else { "" })]
    NoServer { waited: Duration, change: bool },
    #[error("cannot {tried}: {reason}")]
    Refused { tried: String, reason: Refusal },
    #[error("the server answered {tried} with something else; do kfs-server and this program have the same version?")]
    WrongAnswer { tried: String },
    #[error("cannot {tried}: {reason}")]
    Keys { tried: String, reason: String },
    #[error("{file}: {problems} of its lines cannot be imported, nothing was\n{list}")]
    Import { file: String, problems: usize, list: String },
}

/// A connection to whichever server answers.
pub struct Admin {
    cluster: Arc<ClusterKey>,
    recovery: PublicKey,
    own: OwnRecords,
    replies: Tail,
    replies_partition: u32,
    timeout: Duration,
}

/// The log's epoch, as its servers' latest records have it; `None` if no server has
/// written into partition 0 lately. Blocks, at most the log's timeout at each step.
///
/// # Errors
/// What the log says.
pub async fn epoch_of(cluster: &ClusterKey, log: &dyn Log) -> Result<Option<Epoch>, LogError> {
    /// How many of the last records are looked through. A server beats every 10 s at least.
    const LAST_RECORDS: [u64; 2] = [1 << 10, 1 << 16];
    /// So often what is about to be read may be trimmed.
    const TRIES: u32 = 5;
    for last in LAST_RECORDS {
        let mut tries = 0;
        let epoch = loop {
            tries += 1;
            match epoch_in_last(cluster, log, last).await {
                Err(LogError::OutOfRange { .. }) if tries < TRIES => {}
                looked => break looked?,
            }
        };
        if epoch.is_some() {
            return Ok(epoch);
        }
    }
    Ok(None)
}

/// As so many of the last records have it.
async fn epoch_in_last(cluster: &ClusterKey, log: &dyn Log, last: u64) -> Result<Option<Epoch>, LogError> {
    let context = Context { direction: Direction::ServerToLog, topic: Topic::Requests, partition: 0, answers: None };
    let (first, next) = log.bounds(Topic::Requests, 0)?;
    let mut at = first.max(next.saturating_sub(last));
    let mut epoch = None;
    let mut tail = log.read_from(&[(Topic::Requests, 0, Start::At(at))])?;
    while at < next {
        let Some(record) = tail.next().await else { break };
        let record = record?;
        at = record.offset + 1;
        let Ok(frame) = Frame::parse(record.value) else { continue };
        let header = frame.header();
        // Its header says so to everyone, but only a server can have sealed it.
        if header.kind == Kind::Server
            && Some(header.epoch) > epoch
            && !matches!(
                open::<message::ServerBody>(&cluster.server_key(header.epoch), &frame, &context),
                Err(SealError::Forged | SealError::Malformed(_))
            )
        {
            epoch = Some(header.epoch);
        }
    }
    Ok(epoch)
}

impl Admin {
    /// Opens an incarnation of its own. `timeout` bounds each answer's wait. Blocks
    /// for at most the log's timeout until reading has begun.
    pub async fn connect(
        identity: &Identity,
        epoch: Epoch,
        log: Arc<dyn Log>,
        timeout: Duration,
    ) -> Result<Admin, AdminError> {
        let replies_partition = u32::from_le_bytes(random()) % REPLY_PARTITIONS;
        let replies = log.read_from(&[(Topic::Replies, replies_partition, Start::End)])?;
        let cluster = Arc::new(identity.cluster_key.clone());
        let own = OwnRecords::new(log, cluster.clone(), IncarnationId::random());
        own.open(0, epoch, ServerRecord::Incarnation { server: ServerId::random(), supports: 0 }).appended.await?;
        Ok(Admin { cluster, recovery: identity.recovery, own, replies, replies_partition, timeout })
    }

    /// Asks something that changes nothing.
    async fn ask(&mut self, tried: &str, admin: message::Admin) -> Result<AdminOutcome, AdminError> {
        self.ask_in(0, tried, admin).await
    }

    /// The same in another partition, where this program has opened.
    async fn ask_in(&mut self, partition: u32, tried: &str, admin: message::Admin) -> Result<AdminOutcome, AdminError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let until = deadline.min(Instant::now() + ASK_AGAIN_AFTER);
            if let Some(answer) = self.send(partition, admin.clone(), until).await? {
                return answer.result.map_err(|reason| AdminError::Refused { tried: tried.into(), reason });
            }
            if Instant::now() >= deadline {
                return Err(AdminError::NoServer { waited: self.timeout, change: false });
            }
        }
    }

    /// Has something changed. `Err(Refusal)` is for the caller to judge.
    async fn change(&mut self, admin: message::Admin) -> Result<Result<AdminOutcome, Refusal>, AdminError> {
        match self.send(0, admin, Instant::now() + self.timeout).await? {
            Some(answer) => Ok(answer.result),
            None => Err(AdminError::NoServer { waited: self.timeout, change: true }),
        }
    }

    /// Sends a request to a partition; `None` if no answer has come by `until`.
    async fn send(
        &mut self,
        partition: u32,
        admin: message::Admin,
        until: Instant,
    ) -> Result<Option<AdminAnswer>, AdminError> {
        let request = AdminRequest { replies_partition: self.replies_partition, admin };
        let Sent { number, record, appended } = self.own.append(partition, ServerRecord::Admin(request));
        appended.await?;
        let context = Context {
            direction: Direction::ToClient,
            topic: Topic::Replies,
            partition: self.replies_partition,
            answers: Some(record_hash(&record)),
        };
        while let Some(frame) = next_frame(&mut self.replies, until).await {
            let header = frame.header();
            if header.kind == Kind::AdminAnswer
                && header.sender == self.own.incarnation().0
                && header.number == number
                && let Ok(answer) = open::<AdminAnswer>(&self.cluster.admin_key(), &frame, &context)
            {
                return Ok(Some(answer.body));
            }
        }
        Ok(None)
    }
}
