//! Servers' own records: incarnations, epochs, and everything else routed on.
//!
//! Each start of a server is a new incarnation, whose records are numbered. Late
//! or replayed records of an ended one are void, and so is whatever comes from an
//! incarnation that never opened here.

use super::rows::{Key, Turn, after, table};
use super::session::LEASE_MS;
use super::{Machine, Stop};
use proto::frame::Frame;
use proto::message::{Admin, ServerRecord};
use proto::{Epoch, IncarnationId, ServerId, SessionId};
use serde::{Deserialize, Serialize};

/// Incarnations kept at once. Programs of administrators open one each and never
/// say that they have ended: of those the one that has spoken least recently goes first. A
/// server may have nothing to say in a partition for long.
const MAX_INCARNATIONS: usize = 1024;

/// Why a server's record is skipped once a later start of the same server has ended
/// the incarnation that wrote it.
pub const OF_NO_INCARNATION: &str = "of no living incarnation";

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Incarnation {
    pub server: ServerId,
    pub supports: u32,
    last_number: u64,
    /// Offset of its last record.
    last_offset: u64,
    /// Whether it has sent its first tick, which moves nothing.
    pub ticked: bool,
}

fn seen_key(id: IncarnationId) -> Vec<u8> {
    Key::new(table::INCARNATION).bytes(&id.0).done()
}

impl Machine {
    pub(super) fn server_record(
        &mut self,
        turn: &mut Turn,
        frame: &Frame,
        record: ServerRecord,
        append_time_ms: i64,
    ) -> Result<(), Stop> {
        let header = frame.header();
        let id = IncarnationId(header.sender);
        let opens = header.epoch == self.live.epoch;
        match record {
            ServerRecord::Epoch { server, supports, append_time, volatile, from } => {
                if header.number != 0 || opens {
                    return Err(Stop::Skip("an epoch that is not a new one"));
                }
                if self.unproven.is_some() {
                    return Err(Stop::Unproven { epoch: header.epoch, by: server });
                }
                if let Some(from) = from.filter(|from| *from != self.live.hash) {
                    return Err(Stop::OtherState { epoch: header.epoch, by: server, from });
                }
                self.begin_epoch(turn, header.epoch, append_time, volatile);
                self.begin_incarnation(turn, id, server, supports);
                return Ok(());
            }
            // Whoever wrote it has begun the epoch here, or seen it begin.
            _ if !opens => return Err(Stop::NotBegun(header.epoch)),
            ServerRecord::Incarnation { server, supports } => {
                if header.number != 0 || turn.get_bytes(&seen_key(id)).is_some() {
                    return Err(Stop::Skip("an incarnation seen before"));
                }
                self.begin_incarnation(turn, id, server, supports);
                return Ok(());
            }
            _ => {}
        }

        let incarnation = self.live.incarnations.get_mut(&id).ok_or(Stop::Skip(OF_NO_INCARNATION))?;
        if header.number <= incarnation.last_number {
            return Err(Stop::Skip("a server record seen before"));
        }
        incarnation.last_number = header.number;
        incarnation.last_offset = turn.at.offset;
        if self.unproven.as_ref().is_some_and(|known| known.contains(&id)) {
            self.unproven = None;
        }
        self.numbered_record(turn, id, frame, record, append_time_ms)
    }

    fn numbered_record(
        &mut self,
        turn: &mut Turn,
        id: IncarnationId,
        frame: &Frame,
        record: ServerRecord,
        append_time_ms: i64,
    ) -> Result<(), Stop> {
        match record {
            ServerRecord::Tick { elapsed_ms } => self.tick(turn, id, elapsed_ms, append_time_ms),
            ServerRecord::Version { version } if version > self.knows => {
                return Err(Stop::NotUnderstood(format!(
                    "the log asks for machine version {version}, this program knows {}",
                    self.knows
                )));
            }
            ServerRecord::Version { version } => self.live.version = self.live.version.max(version),
            ServerRecord::UserEnded { user, decision } => self.user_ended(turn, &user, decision),
            ServerRecord::Quota { namespace, quota, decision } => self.set_quota(turn, namespace, quota, decision),
            ServerRecord::Admin(request) if matches!(request.admin, Admin::Usage { .. }) => {
                self.admin(turn, id, frame, request, append_time_ms);
            }
            ServerRecord::LoginAttempt { .. }
            | ServerRecord::LoginSuccess { .. }
            | ServerRecord::Admin(_)
            | ServerRecord::Landed { .. }
            | ServerRecord::Heartbeat(_)
            | ServerRecord::Deregister { .. }
                if self.partition != 0 => {}
            ServerRecord::Heartbeat(heartbeat) => self.heartbeat(turn, id, frame, heartbeat, append_time_ms),
            ServerRecord::Deregister { server } => self.deregister(turn, server),
            ServerRecord::LoginAttempt { attempt, user, credential } => {
                self.login_attempt(turn, attempt, user, credential);
            }
            ServerRecord::LoginSuccess { user, .. } => self.login_success(&user),
            ServerRecord::Admin(request) => self.admin(turn, id, frame, request, append_time_ms),
            ServerRecord::Landed { decision } => self.landed(turn, decision),
            ServerRecord::Incarnation { .. } | ServerRecord::Epoch { .. } => {
                unreachable!("the caller has handled what opens an incarnation")
            }
        }
        Ok(())
    }

    /// Starts an epoch: every session and incarnation of the one before is over.
    ///
    /// Their promises cannot be broken: who holds them hears nothing of this epoch. So they
    /// get the time of a lease to lapse, as after a restart of an NFS server (RFC 8881,
    /// section 8.4.2), also where this state knows of none, since it may lack the last that
    /// was applied. A volatile log lacks only what its server's end cut short.
    fn begin_epoch(&mut self, turn: &mut Turn, epoch: Epoch, append_time: bool, volatile: bool) {
        let nobody_relies = self.live.epoch == Epoch(0) || (volatile && self.live.sessions.is_empty());
        if !nobody_relies {
            self.live.grace_until = Some(self.live.now.plus_ms(LEASE_MS));
        }
        // They wait for confirmations that will not come; whoever asked is told by its next session.
        self.keep_back_held();
        self.drop_locks();
        let sessions: Vec<SessionId> = self.live.sessions.keys().copied().collect();
        for id in sessions {
            self.end_session(turn, id);
        }
        self.drop_held();
        let incarnations: Vec<IncarnationId> = self.live.incarnations.keys().copied().collect();
        for id in incarnations {
            self.end_incarnation(turn, id);
        }
        let mut seen = Vec::new();
        turn.scan(&[table::INCARNATION], &after(&[table::INCARNATION]), &mut |key, _| {
            seen.push(key.to_vec());
            true
        });
        for key in seen {
            turn.delete(&key);
        }
        let live = &mut self.live;
        live.epoch = epoch;
        live.append_time = append_time;
        live.volatile = volatile;
        live.last_moved_append_ms = None;
        // Their tickets were of the epoch before, so their ids cannot come back.
        live.ended.clear();
        live.ended_order.clear();
        // What they have reached is told in offsets of the epoch before.
        live.servers.clear();
    }

    fn begin_incarnation(&mut self, turn: &mut Turn, id: IncarnationId, server: ServerId, supports: u32) {
        let before: Vec<IncarnationId> =
            self.live.incarnations.iter().filter(|(_, other)| other.server == server).map(|(id, _)| *id).collect();
        for id in before {
            self.end_incarnation(turn, id);
        }
        if self.live.incarnations.len() >= MAX_INCARNATIONS
            && let Some(idle) = {
                let idle = |(_, other): &(&IncarnationId, &Incarnation)| (other.supports > 0, other.last_offset);
                self.live.incarnations.iter().min_by_key(idle).map(|(id, _)| *id)
            }
        {
            self.end_incarnation(turn, idle);
        }
        turn.put(&seen_key(id), &());
        let last_offset = turn.at.offset;
        let incarnation = Incarnation { server, supports, last_number: 0, last_offset, ticked: false };
        self.live.incarnations.insert(id, incarnation);
    }

    fn end_incarnation(&mut self, turn: &mut Turn, id: IncarnationId) {
        self.live.incarnations.remove(&id);
        self.unstage(turn, id);
    }
}
