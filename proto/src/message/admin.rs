//! Users and cluster administration: records in partition 0, written by programs
//! that hold the cluster key, answered on `replies` in frames of kind `AdminAnswer`.

use super::quota::{Quota, Usage};
use super::refusal::Refusal;
use super::server::Progress;
use crate::ids::{NamespaceId, Position, ServerId};
use crate::login::CredentialId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A user's name: 1 to 64 of `a-z A-Z 0-9 . _ -`, not starting with `-` or `.`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a user name is 1 to 64 of a-z A-Z 0-9 . _ - and does not start with - or .")]
pub struct UserNameError;

impl UserName {
    pub const MAX_BYTES: usize = 64;

    pub fn new(name: &str) -> Result<UserName, UserNameError> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty()
            || name.len() > UserName::MAX_BYTES
            || name.starts_with(['-', '.'])
            || !name.bytes().all(valid)
        {
            return Err(UserNameError);
        }
        Ok(UserName(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserName {
    type Error = UserNameError;
    fn try_from(name: String) -> Result<UserName, UserNameError> {
        UserName::new(&name)
    }
}

impl From<UserName> for String {
    fn from(name: UserName) -> String {
        name.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminRequest {
    /// The partition of `replies` that the program reads.
    pub replies_partition: u32,
    pub admin: Admin,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// → `State`.
    State,
    /// Users of an import that is larger than a record; kept until this
    /// incarnation's `UserAdd` takes them, or its end. → `Done`.
    UserStage { users: Vec<NewUser> },
    /// Adds the staged users, then these, all or none. Namespaces are numbered
    /// from `first_namespace` in that order; `Conflict` if that is not the next
    /// free one, `UserExists` if one is taken. → `Done`.
    UserAdd { first_namespace: NamespaceId, users: Vec<NewUser> },
    /// Replaces the user's password, and key pair if its private half had to be
    /// made anew (`public_key` given, with the namespace's keys sealed to it; then every
    /// other credential of the user is gone). Ends the user's sessions. → `Done`.
    UserPasswd {
        user: UserName,
        /// The user as seen by `User`; `Conflict` if changed since.
        seen: Position,
        credential: NewCredential,
        #[serde(with = "serde_bytes")]
        public_key: Vec<u8>,
        namespace_keys: Vec<SealedNamespaceKey>,
    },
    /// Adds a device credential. → `Done`.
    DeviceAdd { user: UserName, seen: Position, credential: NewCredential },
    /// The user can log in no more; sessions end. The content stays. → `Done`.
    UserRemove { user: UserName },
    /// Sets what the user's namespace may hold; `Conflict` if the user has changed since `seen`. → `Done`.
    UserQuota { user: UserName, seen: Position, quota: Quota },
    /// To the partition of these namespaces, at most [`Admin::MAX_USAGES`]: what they hold. → `Usages`.
    Usage { namespaces: Vec<NamespaceId> },
    /// → `User`.
    User { user: UserName },
    /// Up to 1000 users by name. → `Users`.
    UserList { after: Option<UserName> },
    /// The registered servers. → `Servers`.
    Servers,
}

impl Admin {
    pub const MAX_USAGES: usize = 1000;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewUser {
    pub name: UserName,
    /// The numbers that a root mount shows for what the user's plain mounts own.
    pub uid: u32,
    pub gid: u32,
    pub credentials: Vec<NewCredential>,
    #[serde(with = "serde_bytes")]
    pub public_key: Vec<u8>,
    pub namespace_keys: Vec<SealedNamespaceKey>,
}

/// What the servers keep of a password or device: nothing that helps to guess it
/// without trying each guess at the full price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCredential {
    pub id: CredentialId,
    /// The OPAQUE record.
    #[serde(with = "serde_bytes")]
    pub record: Vec<u8>,
    /// The user's private key under a key from the OPAQUE export key.
    #[serde(with = "serde_bytes")]
    pub wrapped_private_key: Vec<u8>,
}

/// One key epoch of a namespace, sealed by HPKE to one recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedNamespaceKey {
    pub key_epoch: u32,
    /// The recipient's public key: the user's, or the cluster's recovery key.
    #[serde(with = "serde_bytes")]
    pub recipient: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

/// The body of a frame of kind `AdminAnswer`; sender and number are the request's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminAnswer {
    pub at: Position,
    pub result: Result<AdminOutcome, Refusal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminOutcome {
    Done,
    State {
        next_namespace: NamespaceId,
        users: u64,
        version: u32,
    },
    User {
        info: UserInfo,
        seen: Position,
        namespace_keys: Vec<SealedNamespaceKey>,
    },
    Users {
        users: Vec<UserInfo>,
        end: bool,
    },
    /// In the order asked for.
    Usages(Vec<Usage>),
    /// `now_ms` counts as the times in them do; `version` is the machine's.
    Servers {
        servers: Vec<ServerInfo>,
        now_ms: i64,
        version: u32,
    },
}

/// A registered server, as of its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    pub server: ServerId,
    /// The newest machine version that it can run.
    pub supports: u32,
    /// Whether that heartbeat claimed to answer.
    pub answers: bool,
    /// When it was heard last, in milliseconds of the broker's time (of log time where
    /// the broker stamps no records).
    pub heard_ms: i64,
    /// When it last said that it had brought more to disk.
    pub progressed_ms: i64,
    /// By rising partition.
    pub partitions: Vec<Progress>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    pub name: UserName,
    pub uid: u32,
    pub gid: u32,
    pub namespace: NamespaceId,
    pub partition: u32,
    pub devices: Vec<String>,
    pub quota: Quota,
}
