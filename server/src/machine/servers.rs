//! Which servers there are and how far each has come, as they say in partition 0.
//!
//! A server is registered from its first heartbeat until it is deregistered, alive or
//! not: what it has not brought to disk stays in the log. Who answers is not decided
//! here (`crate::replica`); the state only keeps what everybody said last.

use super::Machine;
use super::effect::Effect;
use super::rows::Turn;
use proto::frame::Frame;
use proto::log::REQUEST_PARTITIONS;
use proto::message::{AdminOutcome, Heartbeat, Progress, ServerInfo};
use proto::{IncarnationId, ServerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Servers registered at once. A cluster has a handful; beyond this the one heard
/// longest ago is deregistered.
const MAX_SERVERS: usize = 256;

/// A server, as of its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    pub incarnation: IncarnationId,
    /// The newest machine version that it can run.
    pub supports: u32,
    /// It was the last one to claim that it answers, and has not taken that back.
    pub answers: bool,
    /// When it was heard, in milliseconds of the broker's time, or of log time where
    /// the broker stamps no records.
    pub heard_ms: i64,
    /// When it last said that it had brought more to disk.
    pub progressed_ms: i64,
    /// What it has said last of each partition.
    pub progress: BTreeMap<u32, Progress>,
}

impl Machine {
    /// Now, on the scale of [`Registered::heard_ms`].
    fn server_time_ms(&self, append_time_ms: i64) -> i64 {
        if self.live.append_time { append_time_ms } else { i64::try_from(self.live.now.0).unwrap_or(i64::MAX) }
    }

    pub(super) fn heartbeat(
        &mut self,
        turn: &mut Turn,
        id: IncarnationId,
        frame: &Frame,
        heartbeat: Heartbeat,
        append_time_ms: i64,
    ) {
        let now_ms = self.server_time_ms(append_time_ms);
        let Heartbeat { answers, ends, partitions } = heartbeat;
        let Some(incarnation) = self.live.incarnations.get(&id) else { return };
        let (server, supports) = (incarnation.server, incarnation.supports);
        let servers = &mut self.live.servers;
        if servers.len() >= MAX_SERVERS
            && !servers.contains_key(&server)
            && let Some(silent) = servers.iter().min_by_key(|(_, other)| other.heard_ms).map(|(id, _)| *id)
        {
            servers.remove(&silent);
            turn.effects.push(Effect::Deregistered { server: silent });
        }
        if answers {
            // One that has died cannot say that it answers no longer.
            servers.values_mut().for_each(|other| other.answers = false);
        }
        let new = Registered {
            incarnation: id,
            supports,
            answers,
            heard_ms: now_ms,
            progressed_ms: now_ms,
            progress: BTreeMap::new(),
        };
        let known = servers.entry(server).or_insert(new);
        known.incarnation = id;
        known.supports = supports;
        known.answers = answers;
        known.heard_ms = now_ms;
        for progress in partitions {
            if progress.partition >= REQUEST_PARTITIONS {
                continue;
            }
            let before = known.progress.get(&progress.partition);
            if before
                .is_none_or(|before| progress.checkpointed > before.checkpointed || progress.ingested > before.ingested)
            {
                known.progressed_ms = now_ms;
            }
            known.progress.insert(progress.partition, progress);
        }
        let number = frame.header().number;
        turn.effects.push(Effect::Heartbeat { server, incarnation: id, number, answers, ends });
    }

    pub(super) fn deregister(&mut self, turn: &mut Turn, server: ServerId) {
        if self.live.servers.remove(&server).is_some() {
            turn.effects.push(Effect::Deregistered { server });
        }
    }

    pub(super) fn server_list(&self, append_time_ms: i64) -> AdminOutcome {
        let info = |(server, known): (&ServerId, &Registered)| ServerInfo {
            server: *server,
            supports: known.supports,
            answers: known.answers,
            heard_ms: known.heard_ms,
            progressed_ms: known.progressed_ms,
            partitions: known.progress.values().cloned().collect(),
        };
        AdminOutcome::Servers {
            servers: self.live.servers.iter().map(info).collect(),
            now_ms: self.server_time_ms(append_time_ms),
            version: self.live.version,
        }
    }
}
