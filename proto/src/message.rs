//! What a frame's body says. Bodies are MessagePack with named fields, so that
//! old and new versions can talk: fields are only ever added, with a default.
//!
//! Requests come in four families, [`View`], [`Download`], [`Upload`] and
//! [`Delete`]; beside them [`LockOp`], around them [`SessionOp`], [`ServerRecord`] and [`Admin`].

mod acl;
mod admin;
mod answer;
mod attr;
mod delete;
mod download;
mod lock;
mod login;
mod promise;
mod quota;
mod refusal;
mod rules;
mod server;
mod session;
mod snapshot;
mod upload;
mod view;

pub use acl::{Acl, AclKind, Rights};
pub use admin::{
    Admin, AdminAnswer, AdminOutcome, AdminRequest, NewCredential, NewUser, SealedNamespaceKey, ServerInfo, UserInfo,
    UserName,
};
pub use answer::{Answer, Listed, Outcome, StoredExtent};
pub use attr::{Attr, FileKind, Owner};
pub use delete::Delete;
pub use download::{Download, Served};
pub use lock::{Lock, LockHolder, LockKind, LockMode, LockOp, LockOwner, LockRange, Locked};
pub use login::{LoginAnswer, LoginDone, LoginRequest, Ticket};
pub use promise::{Promise, Push, PushBody};
pub use quota::{Each, Quota, Resource, Usage};
pub use refusal::Refusal;
pub use server::{Activity, Heartbeat, Progress, ServerBody, ServerRecord};
pub use session::{Ended, Open, SessionOp};
pub use snapshot::{Held, Piece as PullPiece, Pull, Pulled, Row, Stored};
pub use upload::{
    Access, AttrChange, FallocateHow, NewInode, Piece, Range, RenameHow, Source, Upload, WriteAt, XattrHow,
};
pub use view::{Cursor, View};

use crate::ids::{RequestNo, Time};
use serde::{Deserialize, Serialize};

/// The body of a frame of kind `Request`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub acked: Acked,
    /// The client's time for what the request changes; at most 10 s ahead of the
    /// record's own append time, else that is taken.
    pub time: Time,
    pub op: Op,
    /// Its program has been answered already, under a delegation. `NotDelegated` once one of the session's has ended
    /// otherwise than by its own word.
    #[serde(default, skip_serializing_if = "is_false")]
    pub local: bool,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Which answers the client has taken: the machine forgets those results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// Every number up to and including this one.
    pub floor: RequestNo,
    /// Further ones above the floor; at most [`Acked::MAX_ALSO`].
    pub also: Vec<RequestNo>,
}

impl Acked {
    pub const MAX_ALSO: usize = 1024;
}

/// One operation on a namespace or on the session itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    View(View),
    Upload(Upload),
    Delete(Delete),
    Lock(LockOp),
    Session(SessionOp),
}

impl Op {
    /// Whether a repeat must be answered from the remembered result, since
    /// executing it again would change something twice.
    pub fn is_change(&self) -> bool {
        matches!(self, Op::Upload(_) | Op::Delete(_) | Op::Lock(LockOp::Lock { .. } | LockOp::Unlock { .. }))
    }

    /// Whether it is about the tree or content, and so means the same in a later session.
    pub fn outlives_session(&self) -> bool {
        matches!(self, Op::Upload(_) | Op::Delete(_))
    }
}
