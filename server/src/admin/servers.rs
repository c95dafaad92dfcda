//! Which servers there are, and how far each has come: what `kfs-server status` shows.
//!
//! The answering server tells what all have said in their heartbeats; the log itself
//! tells where it ends. Nothing is asked of the other servers.

use super::{Admin, AdminError};
use proto::ServerId;
use proto::log::{Log, REQUEST_PARTITIONS, Topic};
use proto::message::{self, Activity, AdminOutcome, Progress, ServerInfo, ServerRecord};
use serde::Serialize;
use std::collections::BTreeMap;

/// A server that has not been heard for longer than this is taken to be down: more
/// than an idle server's heartbeat.
const SILENT_MS: i64 = 15_000;

/// The cluster, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The machine's version.
    pub version: u32,
    pub servers: Vec<ServerStatus>,
    pub partitions: Vec<PartitionStatus>,
}

/// How much of the log there is.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    pub partition: u32,
    /// The first record of `requests` that has not been trimmed, and where the next one goes.
    pub first: u64,
    pub end: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    pub server: String,
    pub role: Role,
    /// The newest machine version that it can run.
    pub supports: u32,
    /// Since its last heartbeat, in milliseconds of the broker's time.
    pub silent_ms: u64,
    /// Since it last brought more to disk.
    pub checkpoint_age_ms: u64,
    /// Records that it has not applied, over all partitions.
    pub lag: u64,
    /// Records that it would apply again after a crash.
    pub unsaved: u64,
    pub state: Agreement,
    pub partitions: Vec<Progressed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Answering,
    Quiet,
    /// Registered, and not heard lately.
    Down,
}

/// Whether the server's state is the answering one's. One that differs stops, so
/// there is no word for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Agreement {
    /// It answers: the others are compared with it.
    Reference,
    /// The same wherever it was compared.
    Same,
    /// Not compared yet.
    Unknown,
}

#[derive(Clone, Debug, Serialize)]
pub struct Progressed {
    pub partition: u32,
    pub applied: u64,
    pub answered: u64,
    pub checkpointed: u64,
    /// Of `chunks`.
    pub ingested: u64,
    pub lag: u64,
    pub hash_at: u64,
    pub hash: String,
    /// Up to where the state was the same as the answering server's.
    pub agreed: u64,
    /// What goes on there, as of the server's last heartbeat.
    #[serde(flatten)]
    pub activity: Activity,
}

impl Admin {
    /// The registered servers. Blocks on the log for its bounds.
    pub async fn status(&mut self, log: &dyn Log) -> Result<Status, AdminError> {
        let tried = "list the servers";
        let AdminOutcome::Servers { servers, now_ms, version } = self.ask(tried, message::Admin::Servers).await? else {
            return Err(AdminError::WrongAnswer { tried: tried.into() });
        };
        let mut partitions = Vec::new();
        for partition in 0..REQUEST_PARTITIONS {
            let (first, end) = log.bounds(Topic::Requests, partition)?;
            partitions.push(PartitionStatus { partition, first, end });
        }
        let ends: BTreeMap<u32, u64> = partitions.iter().map(|of| (of.partition, of.end)).collect();
        let servers = servers.into_iter().map(|info| server_status(info, now_ms, &ends)).collect();
        Ok(Status { version, servers, partitions })
    }

    /// Has a server waited for no longer. `false` if it was not registered.
    pub async fn deregister(&mut self, server: ServerId) -> Result<bool, AdminError> {
        let tried = "list the servers";
        let AdminOutcome::Servers { servers, .. } = self.ask(tried, message::Admin::Servers).await? else {
            return Err(AdminError::WrongAnswer { tried: tried.into() });
        };
        if !servers.iter().any(|info| info.server == server) {
            return Ok(false);
        }
        self.own.append(0, ServerRecord::Deregister { server }).appended.await?;
        Ok(true)
    }
}

fn server_status(info: ServerInfo, now_ms: i64, ends: &BTreeMap<u32, u64>) -> ServerStatus {
    let silent_ms = now_ms.saturating_sub(info.heard_ms).max(0);
    let role = match info.answers {
        _ if silent_ms > SILENT_MS => Role::Down,
        true => Role::Answering,
        false => Role::Quiet,
    };
    let progressed = |progress: Progress| Progressed {
        partition: progress.partition,
        applied: progress.applied,
        answered: progress.answered,
        checkpointed: progress.checkpointed,
        ingested: progress.ingested,
        lag: ends.get(&progress.partition).map_or(0, |end| end.saturating_sub(progress.applied)),
        hash_at: progress.hash_at,
        hash: blake3::Hash::from_bytes(progress.hash).to_hex()[..16].to_owned(),
        agreed: progress.agreed,
        activity: progress.activity,
    };
    let partitions: Vec<Progressed> = info.partitions.into_iter().map(progressed).collect();
    let state = match role {
        Role::Answering => Agreement::Reference,
        _ if partitions.iter().any(|of| of.agreed > 0) => Agreement::Same,
        _ => Agreement::Unknown,
    };
    ServerStatus {
        server: info.server.to_string(),
        role,
        supports: info.supports,
        silent_ms: silent_ms as u64,
        checkpoint_age_ms: now_ms.saturating_sub(info.progressed_ms).max(0) as u64,
        lag: partitions.iter().map(|of| of.lag).sum(),
        unsaved: partitions.iter().map(|of| of.applied.saturating_sub(of.checkpointed)).sum(),
        state,
        partitions,
    }
}

/// The status as a person reads it.
impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<32}  {:<9}  {:>9}  {:>9}  {:>9}  {:>11}  {:<9}  {:>7}",
            "SERVER", "ROLE", "HEARD", "BEHIND", "UNSAVED", "CHECKPOINT", "STATE", "VERSION"
        )?;
        for server in &self.servers {
            let role = match server.role {
                Role::Answering => "answering",
                Role::Quiet => "quiet",
                Role::Down => "down",
            };
            let state = match server.state {
                Agreement::Reference => "reference",
                Agreement::Same => "same",
                Agreement::Unknown => "unknown",
            };
            writeln!(
                f,
                "{:<32}  {role:<9}  {:>9}  {:>9}  {:>9}  {:>11}  {state:<9}  {:>4}/{:<2}",
                server.server,
                ago(server.silent_ms),
                server.lag,
                server.unsaved,
                ago(server.checkpoint_age_ms),
                self.version,
                server.supports,
            )?;
        }
        // The same everywhere, but for who is behind.
        let answering = self.servers.iter().find(|server| server.role == Role::Answering);
        let partitions = answering.map_or(&[][..], |server| &server.partitions);
        let mut busy = partitions.iter().filter(|of| of.activity != Activity::default()).peekable();
        if busy.peek().is_some() {
            writeln!(
                f,
                "\n{:<9}  {:>9}  {:>9}  {:>9}  {:>17}",
                "PARTITION", "SESSIONS", "LOCKS", "WAITING", "RESERVED BYTES"
            )?;
        }
        for Progressed { partition, activity, .. } in busy {
            let Activity { sessions, locks, waiting, reserved_bytes } = activity;
            writeln!(f, "{partition:<9}  {sessions:>9}  {locks:>9}  {waiting:>9}  {reserved_bytes:>17}")?;
        }
        let (first, end): (u64, u64) =
            self.partitions.iter().fold((0, 0), |sum, of| (sum.0 + of.first, sum.1 + of.end));
        write!(f, "the log has {} records, {first} were trimmed", end - first)
    }
}

fn ago(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..120 => format!("{s} s ago"),
        s @ 120..7200 => format!("{} min ago", s / 60),
        s => format!("{} h ago", s / 3600),
    }
}
