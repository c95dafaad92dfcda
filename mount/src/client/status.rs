//! What `kfs status` shows of a client.

use proto::message::{Delete, LockOp, Op, Upload};
use proto::{Ino, Name};
use serde::Serialize;
use std::path::PathBuf;

/// A client at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct ClientStatus {
    pub user: String,
    pub brokers: String,
    pub prefix: String,
    pub namespace: u32,
    pub session: Option<String>,
    pub online: bool,
    /// How long nothing has been heard although asked, in milliseconds.
    pub offline_ms: Option<u64>,
    /// How long ago the last answer or push came, in milliseconds.
    pub last_heard_ms: u64,
    /// Requests sent or waiting to be sent, and not answered.
    pub unanswered: usize,
    /// Age of the oldest of them, in milliseconds.
    pub oldest_unanswered_ms: Option<u64>,
    /// Content uploaded and not yet quoted by an answered request.
    pub upload_bytes: u64,
    /// Content asked for and not yet served.
    pub download_bytes: u64,
    pub promises: usize,
    pub open_inodes: usize,
    pub journal: Option<JournalStatus>,
    /// What the log last complained about.
    pub last_log_error: Option<String>,
    pub counters: Counters,
}

#[derive(Clone, Debug, Serialize)]
pub struct JournalStatus {
    pub path: PathBuf,
    pub bytes: u64,
    pub max_bytes: u64,
    /// Requests that a restart would send again.
    pub entries: usize,
    /// Why nothing is journaled, if so.
    pub broken: Option<String>,
}

/// Counts since the client was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// What was asked for or changed, once each: no renewals, confirmations or repeats.
    pub requests: u64,
    /// Times that somebody waited for an answer before going on.
    pub waits: u64,
    /// Records that asked for content, of up to 64 chunks each; no repeats.
    pub reads: u64,
    /// Records of requests, of up to 64 each, in which at least one was not sent before.
    pub records_sent: u64,
    /// Those with nothing but repeats.
    pub records_resent: u64,
    pub answers: u64,
    pub pushes: u64,
    /// Records that named this session and did not authenticate, or were not understood.
    pub quarantined: u64,
    pub sessions: u64,
    pub chunks_uploaded: u64,
    pub chunks_downloaded: u64,
}

/// What [`super::Client::drain`] came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Drained {
    /// One line for each request that is still unanswered.
    pub left: Vec<String>,
}

/// A request in words, for a person who is waiting for it.
pub(super) fn describe(op: &Op) -> String {
    let named = |dir: &Ino, name: &Name| format!("{name:?} in directory {}", dir.0);
    match op {
        Op::View(_) => "a look at the namespace".to_owned(),
        Op::Upload(Upload::Create { dir, name, .. }) => format!("create {}", named(dir, name)),
        Op::Upload(Upload::Link { dir, name, .. }) => format!("link {}", named(dir, name)),
        Op::Upload(Upload::Rename { from_dir, from, to_dir, to, .. }) => {
            format!("rename {} to {}", named(from_dir, from), named(to_dir, to))
        }
        Op::Upload(Upload::Setattr { ino, .. }) => format!("change attributes of inode {}", ino.0),
        Op::Upload(Upload::Write { ino, pieces, .. }) => {
            let bytes: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
            format!("write {bytes} bytes to inode {}", ino.0)
        }
        Op::Upload(Upload::SetXattr { ino, .. }) => format!("set an attribute of inode {}", ino.0),
        Op::Upload(Upload::RemoveXattr { ino, .. }) => format!("remove an attribute of inode {}", ino.0),
        Op::Upload(Upload::SetAcl { ino, .. }) => format!("set an access control list of inode {}", ino.0),
        Op::Upload(Upload::Accessed { inodes }) => format!("tell when {} inodes were read", inodes.len()),
        Op::Upload(Upload::Fallocate { ino, len, .. }) => format!("allocate or clear {len} bytes of inode {}", ino.0),
        Op::Upload(Upload::Clone { from, to, .. }) => {
            format!("copy {} bytes of inode {} to inode {}", from.len, from.ino.0, to.0)
        }
        Op::Delete(Delete::Unlink { dir, name }) => format!("remove {}", named(dir, name)),
        Op::Delete(Delete::Rmdir { dir, name }) => format!("remove directory {}", named(dir, name)),
        Op::Lock(LockOp::Lock { ino, .. }) => format!("lock inode {}", ino.0),
        Op::Lock(LockOp::Unlock { ino, .. }) => format!("unlock inode {}", ino.0),
        Op::Lock(LockOp::Test { ino, .. }) => format!("a look at the locks of inode {}", ino.0),
        Op::Session(_) => "a record about the session".to_owned(),
    }
}
