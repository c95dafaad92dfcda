//! What servers write to the request log, sealed under the cluster key.

use super::admin::{AdminRequest, UserName};
use super::quota::Quota;
use crate::ids::{NamespaceId, Position, ServerId};
use crate::login::CredentialId;
use serde::{Deserialize, Serialize};

/// The body of a frame of kind `Server`. Its sender is an incarnation; its number
/// rises by at least 1 from 0, the record that opens the incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerBody {
    pub record: ServerRecord,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerRecord {
    /// Number 0: a start of a server (or an administrator's program); ends that
    /// server's incarnation before it.
    Incarnation {
        server: ServerId,
        /// The newest machine version that this server can run; 0 for a program that runs none.
        supports: u32,
    },
    /// Number 0 as well, and an incarnation as well: begins the epoch of its own
    /// header, which is above the one before. Ends every session and promise.
    Epoch {
        server: ServerId,
        supports: u32,
        /// Whether the broker stamps records with `LogAppendTime`.
        append_time: bool,
        /// Whether an acknowledged record can be lost with the broker's process.
        volatile: bool,
        /// The hash of the state that the epoch begins from. A server whose state is
        /// another one must not go on: it takes a snapshot of one that has this one.
        /// `None` where the partition's log is intact: whoever has applied it has that state.
        #[serde(default)]
        from: Option<[u8; 32]>,
    },
    /// Log time may move by at most this much: the server's monotonic time since
    /// its previous tick in this incarnation.
    Tick { elapsed_ms: u64 },
    /// The machine behaves as this version from here on.
    Version { version: u32 },
    /// Partition 0: a login begins. The machine decides whether it is answered now.
    LoginAttempt { attempt: [u8; 16], user: UserName, credential: CredentialId },
    /// Partition 0: that login succeeded; the user's failures are forgotten.
    LoginSuccess { attempt: [u8; 16], user: UserName, credential: CredentialId },
    /// Partition 0; in the others only [`Admin::Usage`](super::Admin::Usage).
    Admin(AdminRequest),
    /// To a namespace's partition: every session of this user ends whose login took
    /// no account of `decision`, the place in partition 0 that said so; tickets of
    /// such logins are void from now on.
    UserEnded { user: UserName, decision: Position },
    /// To a namespace's partition: what it may hold from here on, unless a later decision has come before.
    Quota { namespace: NamespaceId, quota: Quota, decision: Position },
    /// Partition 0: the decision has landed in its partition.
    Landed { decision: Position },
    /// Partition 0: how far the server has come, and whether it answers. The first one
    /// registers the server: nothing that it has not checkpointed is trimmed from then on.
    Heartbeat(Heartbeat),
    /// Partition 0: this server is waited for no longer. Its next heartbeat would register it again.
    Deregister { server: ServerId },
}

/// What servers tell each other: twice a second while there are sessions, else every 10 s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The server answers clients, or begins to with this record.
    pub answers: bool,
    /// The server stops now, in good order: nobody needs to wait for its silence.
    #[serde(default)]
    pub ends: bool,
    /// The partitions where something has changed since this incarnation's heartbeat
    /// before, by rising number; every few seconds all of them, since one can be lost.
    pub partitions: Vec<Progress>,
}

/// How far a server has come in one partition. Offsets are of `requests` unless said
/// otherwise, and the first ones that are *not* covered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub partition: u32,
    pub applied: u64,
    /// Everything before it has been answered, by this server or by one before it.
    pub answered: u64,
    /// On disk: a restart needs nothing before the record at `checkpointed` - 1.
    pub checkpointed: u64,
    /// Of `chunks`: content before it is on disk.
    pub ingested: u64,
    /// The state's hash when everything before `hash_at` had been applied: the highest
    /// such multiple of [`Progress::HASH_EVERY`], or `applied` where nothing moves.
    pub hash_at: u64,
    #[serde(with = "serde_bytes")]
    pub hash: [u8; 32],
    /// The server's hash at this offset was the same as the answering server's; 0 if never compared.
    pub agreed: u64,
    pub activity: Activity,
}

/// What goes on in a partition, for administrators: as of the same moment as the progress beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    /// Sessions that are open.
    pub sessions: u64,
    /// Locks that they have.
    pub locks: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Bytes reserved under quotas, for ended sessions' successors too.
    pub reserved_bytes: u64,
}

impl Progress {
    /// Hashes are told of at multiples of this, so that servers that are not equally
    /// far have some in common.
    pub const HASH_EVERY: u64 = 64;
}
