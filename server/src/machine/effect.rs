//! What applying a record asks the world to do. Effects carry no keys' work and no
//! I/O: the server seals, sends and stores; a replica that keeps quiet drops those
//! that only speak to clients.

use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::message::{AdminAnswer, Answer, Outcome, PushBody, ServerRecord};
use proto::seal::Key;
use proto::{Epoch, IncarnationId, NamespaceId, Position, PushNo, RequestNo, ServerId, SessionId};

#[derive(Clone, Debug)]
pub enum Effect {
    /// An answer may leave now. `payload` is content that the state itself holds.
    Answer {
        to: Peer,
        number: RequestNo,
        /// Hash of the request's frame, which the answer's seal binds.
        request: [u8; 32],
        /// Leaves only once a checkpoint covers this position (a `Sync` on a volatile log).
        after_checkpoint: Option<Position>,
        answer: Answer,
        payload: Bytes,
    },
    Push {
        to: Peer,
        number: PushNo,
        body: PushBody,
    },
    /// A request of a session that has ended: to be told so under its chunk key.
    SessionEnded {
        session: SessionId,
        replies_partition: u32,
        number: RequestNo,
        request: [u8; 32],
        at: Position,
    },
    Admin {
        to: IncarnationId,
        replies_partition: u32,
        number: u64,
        request: [u8; 32],
        answer: AdminAnswer,
    },
    /// Whether the login attempt is answered now.
    Decision {
        attempt: [u8; 16],
        verdict: Verdict,
    },
    /// Sealed content to keep in the packs before the next checkpoint.
    Keep {
        name: ChunkName,
        content: Bytes,
    },
    /// The last reference to a chunk, history included, has gone.
    Unreferenced {
        name: ChunkName,
    },
    /// A decision of partition 0, to be appended to another partition by the
    /// answering server, again and again until partition 0 has seen `Landed`.
    Deliver {
        partition: u32,
        decision: Position,
        record: ServerRecord,
    },
    /// A session now lives, or no longer does: what downloads are checked against.
    SessionOpened {
        to: Peer,
    },
    SessionOver {
        session: SessionId,
    },
    /// A server has told how far it is; what of it the state keeps is in `Machine::servers`.
    Heartbeat {
        server: ServerId,
        incarnation: IncarnationId,
        number: u64,
        answers: bool,
        ends: bool,
    },
    Deregistered {
        server: ServerId,
    },
}

impl Effect {
    /// About how many bytes it takes in memory.
    pub fn weight(&self) -> usize {
        const EACH: usize = 256;
        let answer = |answer: &Answer| match &answer.result {
            Ok(Outcome::Listing { entries, .. }) => entries.len() * EACH,
            Ok(Outcome::Extents { extents, .. }) => extents.len() * EACH,
            _ => EACH,
        };
        match self {
            Effect::Answer { answer: given, payload, .. } => EACH + answer(given) + payload.len(),
            Effect::Push { body, .. } => match &body.push {
                proto::message::Push::Invalidate(things) => EACH + things.len() * 16,
                proto::message::Push::Accessed(inodes) => EACH + inodes.len() * 24,
                _ => EACH,
            },
            Effect::Keep { content, .. } => EACH + content.len(),
            _ => EACH,
        }
    }

    /// Feeds all that tells this effect apart from others into the state's hash.
    /// Content is known by its name, and keys are in the state already.
    pub(super) fn digest(&self, hasher: &mut blake3::Hasher) {
        fn feed<T: serde::Serialize>(hasher: &mut blake3::Hasher, part: &T) {
            let bytes = rmp_serde::to_vec(part).expect("an effect's parts have an encoding");
            hasher.update(&(bytes.len() as u32).to_le_bytes());
            hasher.update(&bytes);
        }
        match self {
            Effect::Answer { to, number, request, after_checkpoint, answer, payload } => {
                hasher.update(&[1]);
                hasher.update(blake3::hash(payload).as_bytes());
                feed(hasher, &(to.session, number, request, after_checkpoint, answer));
            }
            Effect::Push { to, number, body } => {
                hasher.update(&[2]);
                feed(hasher, &(to.session, number, body));
            }
            Effect::SessionEnded { session, replies_partition, number, request, at } => {
                hasher.update(&[3]);
                feed(hasher, &(session, replies_partition, number, request, at));
            }
            Effect::Admin { to, replies_partition, number, request, answer } => {
                hasher.update(&[4]);
                feed(hasher, &(to, replies_partition, number, request, answer));
            }
            Effect::Decision { attempt, verdict } => {
                hasher.update(&[5]);
                let retry_ms = match verdict {
                    Verdict::Answer => None,
                    Verdict::SlowDown { retry_ms } => Some(*retry_ms),
                };
                feed(hasher, &(attempt, retry_ms));
            }
            Effect::Keep { name, content: _ } => {
                hasher.update(&[6]);
                hasher.update(&name.to_bytes());
            }
            Effect::Unreferenced { name } => {
                hasher.update(&[7]);
                hasher.update(&name.to_bytes());
            }
            Effect::Deliver { partition, decision, record } => {
                hasher.update(&[8]);
                feed(hasher, &(partition, decision, record));
            }
            Effect::SessionOpened { to } => {
                hasher.update(&[9]);
                hasher.update(&to.session.0);
            }
            Effect::SessionOver { session } => {
                hasher.update(&[10]);
                hasher.update(&session.0);
            }
            Effect::Heartbeat { server, incarnation, number, answers, ends } => {
                hasher.update(&[11]);
                feed(hasher, &(server, incarnation, number, answers, ends));
            }
            Effect::Deregistered { server } => {
                hasher.update(&[12]);
                hasher.update(&server.0);
            }
        }
    }
}

/// Everything needed to seal something for a session and to put it where it reads.
#[derive(Clone, Debug)]
pub struct Peer {
    pub session: SessionId,
    pub namespace: NamespaceId,
    pub key: Key,
    pub replies_partition: u32,
    pub bulk_partition: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Answer,
    SlowDown { retry_ms: u64 },
}

/// What became of a record.
#[derive(Clone, Debug)]
pub struct Applied {
    /// A refusal is an effect too.
    pub effects: Vec<Effect>,
    /// Why it had no effect: it does not authenticate, is malformed, foreign, void or replayed. Of
    /// several frames, the first that was skipped. Counted, and remembered by position and hash by the server.
    pub skipped: Option<&'static str>,
}

/// What authenticates and cannot be applied here. Skipping it would let replicas
/// diverge, so the server stops.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotApplied {
    #[error("the record at {at} is authentic but cannot be understood ({reason}); run a newer kfs-server")]
    NotUnderstood { at: Position, reason: String },
    #[error(
        "the record at {at} is of epoch {}, which begins nowhere in the log before it: the log is not the one that \
         this server has applied; take a snapshot of another server with `kfs-server bootstrap`", .epoch.0
    )]
    NotBegun { at: Position, epoch: Epoch },
    #[error(
        "the epoch {} begins at {at} from the state {} of the server {by}, this server has the state {}: \
         take a snapshot of that server with `kfs-server bootstrap`",
        .epoch.0, short(.from), short(.here)
    )]
    OtherState { at: Position, epoch: Epoch, by: ServerId, from: [u8; 32], here: [u8; 32] },
    #[error(
        "the epoch {} begins at {at} by the server {by}, and this server cannot tell whether the log before that is what \
         it has applied, since that was trimmed: take a snapshot of that server with `kfs-server bootstrap`", .epoch.0
    )]
    Unproven { at: Position, epoch: Epoch, by: ServerId },
}

/// As much of a hash as a person compares.
pub(crate) fn short(hash: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*hash).to_hex()[..16].to_owned()
}
