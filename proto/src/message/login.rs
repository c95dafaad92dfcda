//! Logging in over `auth`, before there is a session. OPAQUE in four messages;
//! the server keeps nothing between them (its half-state travels sealed).
//!
//! Frames of kind `Login` and `LoginAnswer` carry the attempt's random id as
//! sender, and 1 or 2 as number. Their seal is under a key that everyone can
//! derive ([`crate::login::public_key`]) and so is only a checksum; OPAQUE brings
//! the security, and [`LoginAnswer::Done`] is sealed once more under it. Their
//! header has epoch 0 and namespace 0 (a client knows neither yet), and an answer's
//! seal binds the hash of the `Login` frame that it answers.

use super::admin::{SealedNamespaceKey, UserName};
use crate::ids::{Epoch, LogTime, NamespaceId, Position, SessionId};
use crate::login::CredentialId;
use crate::seal::{Key, SealError, open_blob_of, seal_blob_of};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginRequest {
    /// Number 1.
    Start {
        user: UserName,
        credential: CredentialId,
        #[serde(with = "serde_bytes")]
        ke1: Vec<u8>,
    },
    /// Number 2.
    Finish {
        #[serde(with = "serde_bytes")]
        half_state: Vec<u8>,
        #[serde(with = "serde_bytes")]
        ke1: Vec<u8>,
        #[serde(with = "serde_bytes")]
        ke3: Vec<u8>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginAnswer {
    Challenge {
        #[serde(with = "serde_bytes")]
        ke2: Vec<u8>,
        #[serde(with = "serde_bytes")]
        half_state: Vec<u8>,
    },
    /// Too many attempts failed: not before this many milliseconds.
    SlowDown {
        retry_ms: u64,
    },
    /// What [`LoginDone::seal`] gave.
    Done {
        #[serde(with = "serde_bytes")]
        sealed: Vec<u8>,
    },
    Refused,
}

/// What a login gives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LoginDone {
    pub session: SessionId,
    pub epoch: Epoch,
    pub namespace: NamespaceId,
    /// Of the request log (and of chunks and reads), where the namespace lives.
    pub partition: u32,
    pub replies_partition: u32,
    pub bulk_partition: u32,
    /// A sealed [`Ticket`] for that partition.
    #[serde(with = "serde_bytes")]
    pub ticket: Vec<u8>,
    /// Seals chunk headers, and the server's notice that the session is unknown.
    pub chunk_key: Key,
    /// The user's private key, wrapped under a key from the OPAQUE export key.
    #[serde(with = "serde_bytes")]
    pub wrapped_private_key: Vec<u8>,
    /// Every key epoch of the namespace, sealed to the user's public key.
    pub namespace_keys: Vec<SealedNamespaceKey>,
    /// The numbers that a root mount shows for [`super::Owner::Namespace`].
    pub uid: u32,
    pub gid: u32,
    /// The log may forget: sync waits for a checkpoint, and bytes under way are few.
    pub volatile: bool,
    /// Requests that may be unanswered at once.
    pub window_requests: u32,
    /// Bytes of chunks that may be uploaded and not yet quoted by an answered
    /// request, and likewise asked for and not yet served.
    pub window_bytes: u64,
    /// The server's clock, in milliseconds since 1970.
    pub server_time_ms: i64,
}

impl LoginDone {
    const PURPOSE: &str = "kfs login done v1";

    /// For [`LoginAnswer::Done`], under [`SessionSecret::login_key`](crate::keys::SessionSecret::login_key).
    pub fn seal(&self, login_key: &Key) -> Result<Vec<u8>, SealError> {
        seal_blob_of(login_key, LoginDone::PURPOSE, &self.session.0, self)
    }

    /// Opens what the server sealed for the login that gave this session.
    pub fn open(login_key: &Key, session: SessionId, sealed: &[u8]) -> Result<LoginDone, SealError> {
        let done: LoginDone = open_blob_of(login_key, LoginDone::PURPOSE, &session.0, sealed)?;
        if done.session != session {
            return Err(SealError::Forged);
        }
        Ok(done)
    }
}

/// The right to open a session on one partition, sealed under the cluster key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ticket {
    pub session: SessionId,
    pub user: UserName,
    pub namespace: NamespaceId,
    pub partition: u32,
    pub epoch: Epoch,
    /// What seals the session's requests and answers on this partition.
    pub key: Key,
    /// The partition's log time at issue; good for 60 s of it, once.
    pub issued: LogTime,
    /// The last change of the user in partition 0 that the login took account of: a
    /// decision behind it that ends the user's sessions voids the ticket.
    #[serde(default)]
    pub user_seen: Position,
    pub replies_partition: u32,
    pub bulk_partition: u32,
    pub uid: u32,
    pub gid: u32,
}
