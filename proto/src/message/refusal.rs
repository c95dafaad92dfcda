//! The server's considered no.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("no such name")]
    NotFound,
    #[error("the name is taken")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    /// The inode does not exist (any more).
    #[error("no such inode")]
    Stale,
    #[error("not valid for this inode")]
    Invalid,
    #[error("another namespace")]
    CrossNamespace,
    #[error("too many links")]
    TooManyLinks,
    #[error("no such extended attribute")]
    NoAttribute,
    #[error("too large")]
    TooLarge,
    #[error("the session has no right to do this")]
    NotPermitted,
    /// A write quotes a chunk that its session did not upload.
    #[error("not a chunk of this session")]
    ForeignChunk,
    #[error("the namespace is full")]
    NoSpace,
    #[error("the quota is used up")]
    QuotaExceeded,
    /// The number was used before with other content.
    #[error("the request number was used for something else")]
    NumberReused,
    /// Authentic, but its body is none that this version of the cluster reads.
    #[error("the servers do not understand the request: they are older than the client, or the client is faulty")]
    NotUnderstood,
    /// The session has ended (expired, replaced, closed, revoked); log in again.
    #[error("the session has ended")]
    SessionEnded,
    /// Others have locks there.
    #[error("locked by someone else")]
    WouldBlock,
    /// Whoever has a lock there waits for the one who asks.
    #[error("waiting for the lock would be a deadlock")]
    Deadlock,
    /// The file or the session has as many as there may be.
    #[error("too many locks")]
    NoLocks,
    /// The request says that it was answered already, but what the session had been delegated had ended by then.
    #[error("the delegation has ended")]
    NotDelegated,
    /// It has not been executed, since it had to wait for what another session is delegated and is not kept so long, or
    /// its own session has ended meanwhile: it is to be asked again.
    #[error("ask again")]
    Again,
    /// The session has given up waiting ([`super::SessionOp::Cancel`]).
    #[error("cancelled")]
    Cancelled,
    #[error("the user already exists")]
    UserExists,
    #[error("no such user")]
    NoSuchUser,
    /// What the administrator's program assumed has changed meanwhile; ask and try again.
    #[error("changed meanwhile")]
    Conflict,
}
