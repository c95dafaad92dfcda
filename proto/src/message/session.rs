//! What a session says about itself.

use super::answer::Answer;
use super::quota::Resource;
use crate::ids::{Ino, Position, PushNo, RequestNo, SessionId};
use serde::{Deserialize, Serialize};

/// The body of a frame of kind `Open` (request number 0); its payload is the
/// sealed [`Ticket`](super::Ticket). → `Opened`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Sessions that this one replaces, oldest first: the machine ends them here.
    /// At most [`Open::MAX_PREDECESSORS`].
    pub predecessors: Vec<SessionId>,
    /// It can answer for what it is delegated.
    #[serde(default)]
    pub delegable: bool,
}

impl Open {
    pub const MAX_PREDECESSORS: usize = 64;
}

/// What became of a replaced session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub session: SessionId,
    /// Whether the machine knew it as a session of this user. If not, nothing of
    /// it can have been applied in this epoch.
    pub known: bool,
    /// The last request that was admitted: all up to it were applied, but those whose result is `Again`, which waited
    /// for what others were delegated. None of those and none after it ever will be.
    pub last: RequestNo,
    /// Results that the session had not acknowledged, and outcomes of requests that had waited and that it had not
    /// confirmed.
    pub results: Vec<(RequestNo, Answer)>,
    /// Where it ended.
    pub at: Position,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionOp {
    /// Renews the lease, as every admitted request does. → `Done`.
    Renew,
    /// These pushes have been acted on. → `Done`.
    Confirm { pushes: Vec<PushNo> },
    /// Send every unconfirmed push from this one on again. → `Done`.
    Repeat { from: PushNo },
    /// Nothing here is open any more: nameless ones may be freed. → `Done`.
    Release { inos: Vec<Ino> },
    /// Answered when all before it is as safe as the cluster makes it: at once, or
    /// with a volatile log once a checkpoint holds it. → `Done`.
    Sync,
    /// Room under the namespace's quota. Of what the session has reserved it keeps at most `keep`, and
    /// gives back the rest; it needs `need` more, all or (with `part`) what there is, and can use `extra` beside that, of
    /// which it gets a small share of what is left. Without a quota all is granted and nothing counted. → `Reserved`.
    Reserve { of: Resource, keep: u64, need: u64, extra: u64, part: bool },
    /// Inode numbers for what the session makes itself; at most [`SessionOp::MAX_INODES`]. → `Inodes`.
    Inodes { count: u32 },
    /// The session relies on no delegation granted before this, and all that it answered itself stands before it. → `Done`.
    Undelegated,
    /// The request with this number waits no longer, if it still does. Either way its outcome is told
    /// by one push: `Cancelled`, or what came before. → `Done`.
    Cancel { number: RequestNo },
    /// The results of these ended sessions have been taken. → `Done`.
    Forget { ended: Vec<SessionId> },
    /// Ends the session: its last record. → `Done`.
    Close,
}

impl SessionOp {
    pub const MAX_INODES: u32 = 4096;
}
