//! What can go wrong with a filesystem operation, and the only place where that
//! becomes an errno. No `_` arm: a new refusal must not compile until it has one.

use crate::client::CallError;
use fuser::Errno;
use proto::NameError;
use proto::message::Refusal;
use std::time::Duration;

/// Why a filesystem operation has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Name(#[from] NameError),
    /// Something written earlier could not be kept by the server; told once.
    #[error("what was written to inode {ino} before could not be saved and is lost: {reason}")]
    Lost { ino: u64, reason: String, errno: i32 },
    /// Its locks went with the session.
    #[error("a lock taken on this open file was lost; open the file again")]
    LockLost,
    #[error("{0} is not open (any more)")]
    BadHandle(u64),
    #[error("the write buffer has been full for {waited:?}; kfs status shows what is pending")]
    BufferFull { waited: Duration },
    #[error("the quota is used up")]
    QuotaExceeded,
    #[error("only the mounting user may own files here; mount as root to keep other owners")]
    Owner,
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("no such extended attribute")]
    NoAttribute,
    #[error("an extended attribute's name or value is too large")]
    AttributeTooLarge,
    #[error("not an access control list")]
    BadAcl,
    #[error("the value has {0} bytes and the buffer fewer")]
    BufferTooSmall(usize),
    #[error("a file cannot be larger than {max} bytes")]
    FileTooLarge { max: u64 },
    #[error("a symlink's target has more than 4095 bytes")]
    TargetTooLong,
    #[error("{what} does not open with this namespace's keys: {reason}")]
    Sealed { what: &'static str, reason: String },
    #[error("{op} got an answer meant for another operation")]
    WrongAnswer { op: &'static str },
    #[error("not a directory")]
    NotDirectory,
    #[error("a flag that means nothing here")]
    BadFlags,
}

impl FsError {
    /// What is known without asking: the server would refuse it.
    pub fn refused(refusal: Refusal) -> FsError {
        FsError::Call(CallError::Refused { refusal, at: Default::default(), order: 0, granted: Vec::new() })
    }

    /// The errno that the program sees.
    pub fn errno(&self) -> Errno {
        match self {
            FsError::Call(error) => call_errno(error),
            FsError::Name(NameError::TooLong) => Errno::ENAMETOOLONG,
            FsError::Name(NameError::Invalid) => Errno::EINVAL,
            FsError::Lost { errno, .. } => Errno::from_i32(*errno),
            FsError::LockLost => Errno::EIO,
            FsError::BadHandle(_) => Errno::EBADF,
            FsError::BufferFull { .. } => Errno::ETIMEDOUT,
            FsError::QuotaExceeded => Errno::EDQUOT,
            FsError::Owner => Errno::EPERM,
            FsError::Unsupported(_) => Errno::EOPNOTSUPP,
            FsError::NoAttribute => Errno::ENODATA,
            FsError::AttributeTooLarge => Errno::E2BIG,
            FsError::BadAcl => Errno::EINVAL,
            FsError::BufferTooSmall(_) => Errno::ERANGE,
            FsError::FileTooLarge { .. } => Errno::EFBIG,
            FsError::TargetTooLong => Errno::ENAMETOOLONG,
            FsError::Sealed { .. } => Errno::EIO,
            FsError::WrongAnswer { .. } => Errno::EIO,
            FsError::NotDirectory => Errno::ENOTDIR,
            FsError::BadFlags => Errno::EINVAL,
        }
    }

    /// Whether the operation was refused for this reason.
    pub fn is(&self, refusal: Refusal) -> bool {
        matches!(self, FsError::Call(CallError::Refused { refusal: r, .. }) if *r == refusal)
    }
}

fn call_errno(error: &CallError) -> Errno {
    match error {
        CallError::Refused { refusal, .. } => refusal_errno(*refusal),
        CallError::TimedOut { .. } => Errno::ETIMEDOUT,
        CallError::Interrupted => Errno::EINTR,
        CallError::SessionLost => Errno::EIO,
        CallError::Closed => Errno::ENOTCONN,
        CallError::Overloaded => Errno::EAGAIN,
        CallError::Log(_) => Errno::EIO,
        CallError::Unsendable { .. } => Errno::EIO,
        CallError::WrongAnswer { .. } => Errno::EIO,
        CallError::ChunkMissing { .. } | CallError::Corrupt { .. } => Errno::EIO,
    }
}

fn refusal_errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::NotFound => Errno::ENOENT,
        Refusal::Exists => Errno::EEXIST,
        Refusal::NotDirectory => Errno::ENOTDIR,
        Refusal::IsDirectory => Errno::EISDIR,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::Stale => Errno::ESTALE,
        Refusal::Invalid => Errno::EINVAL,
        Refusal::CrossNamespace => Errno::EXDEV,
        Refusal::TooManyLinks => Errno::EMLINK,
        Refusal::NoAttribute => Errno::ENODATA,
        Refusal::TooLarge => Errno::EFBIG,
        Refusal::NotPermitted => Errno::EPERM,
        Refusal::NoSpace => Errno::ENOSPC,
        Refusal::QuotaExceeded => Errno::EDQUOT,
        Refusal::WouldBlock => Errno::EAGAIN,
        Refusal::Deadlock => Errno::EDEADLK,
        Refusal::NoLocks => Errno::ENOLCK,
        Refusal::Cancelled => Errno::EINTR,
        // These say that a program of ours is broken or out of date, not the caller's.
        Refusal::ForeignChunk
        | Refusal::NumberReused
        | Refusal::SessionEnded
        | Refusal::NotDelegated
        | Refusal::Again => Errno::EIO,
        Refusal::NotUnderstood => Errno::ENOTSUP,
        Refusal::UserExists => Errno::EEXIST,
        Refusal::NoSuchUser => Errno::ENOENT,
        Refusal::Conflict => Errno::EAGAIN,
    }
}
