//! What servers write to the request log, sealed under the cluster key.

use super::admin::{AdminRequest, UserName};
use crate::ids::{LogTime, Position, ServerId};
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
    /// Partition 0.
    Admin(AdminRequest),
    /// To a namespace's partition: every session of this user ends, and tickets
    /// issued up to now are void. `decision` is the place in partition 0 that said so.
    UserEnded { user: UserName, decision: Position },
    /// Partition 0: the decision has landed in its partition.
    Landed { decision: Position },
    /// Partition 0: what the server has applied, for other servers and `status`.
    Heartbeat { applied: Vec<(u32, Position, [u8; 32])>, log_times: Vec<LogTime> },
}
