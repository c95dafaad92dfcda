//! Questions that other parts of the server ask of the state.

use super::Control;
use super::apply::Apply;
use crate::error::ServerError;
use crate::machine;
use crate::machine::StoredUser;
use crate::store::snapshot::StoreReader;
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::message::UserName;
use proto::planted::{Bug, planted};
use proto::{LogTime, NamespaceId, SessionId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What logins and downloads ask the loop, which alone has the state.
pub(crate) enum Ask {
    /// What reads each partition's store as it is on disk; `None` for one without a checkpoint.
    Stores(oneshot::Sender<Vec<Option<StoreReader>>>),
    User {
        user: UserName,
        reply: oneshot::Sender<LoginView>,
    },
    /// When it is and which of these sessions live, once everything before `applied`
    /// has been; until then `None`.
    Live {
        partition: u32,
        applied: u64,
        sessions: Vec<SessionId>,
        reply: oneshot::Sender<Option<(LogTime, Vec<bool>)>>,
    },
    /// Which of these uploads are quoted, each in its namespace; the others never
    /// will be, and are dropped.
    Unquoted {
        partition: u32,
        chunks: Vec<(NamespaceId, ChunkName)>,
        reply: oneshot::Sender<Vec<bool>>,
    },
    /// Content that the rows hold, and whether the request that it came in has been applied.
    Content {
        partition: u32,
        name: ChunkName,
        reply: oneshot::Sender<(Option<Bytes>, bool)>,
    },
}

/// What a login needs to know of the state.
pub(crate) struct LoginView {
    /// Log time of partition 0, which logins are bound to.
    pub now: LogTime,
    /// `None` if there is no such user.
    pub home: Option<UserView>,
}

/// A user, and the partition where its namespace lives.
pub(crate) struct UserView {
    pub user: StoredUser,
    /// Log time of the namespace's partition.
    pub log_time: LogTime,
    pub volatile: bool,
}

/// Asks the loop.
#[derive(Clone)]
pub(crate) struct Asker {
    pub control: mpsc::Sender<Control>,
}

impl Asker {
    /// `None` when the server ends.
    pub async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (reply, replied) = oneshot::channel();
        self.control.send(Control::Ask(ask(reply))).await.ok()?;
        replied.await.ok()
    }
}

impl Apply {
    /// Answers a question. Whoever asked may have given up, so a lost answer is nothing.
    pub(super) fn asked(&mut self, ask: Ask) -> Result<(), ServerError> {
        match ask {
            Ask::User { user, reply } => {
                let now = self.partitions[0].machine.log_time();
                let _ = reply.send(LoginView { now, home: self.user(&user) });
            }
            Ask::Live { partition, applied, sessions, reply } => {
                let found = self.partitions.get(partition as usize).filter(|found| found.next_offset >= applied);
                let answer = found.map(|partition| {
                    let live = sessions.iter().map(|session| partition.machine.is_live(*session)).collect();
                    (partition.machine.log_time(), live)
                });
                let _ = reply.send(answer);
            }
            Ask::Unquoted { partition, chunks, reply } => {
                let Some(partition) = self.partitions.get_mut(partition as usize) else { return Ok(()) };
                let mut quoted = Vec::with_capacity(chunks.len());
                for (namespace, name) in &chunks {
                    let is_quoted = machine::is_referenced(&mut partition.store, *namespace, name);
                    quoted.push(is_quoted && !planted(Bug::SweepQuoted));
                }
                // What cannot be read looks as if it were not there.
                partition.store.check()?;
                // As if this partition's last record had freed them.
                for ((_, name), _) in chunks.iter().zip(&quoted).filter(|(_, quoted)| !**quoted) {
                    self.packs.freed(partition.number, *name);
                    partition.checkpoint_sometime(Instant::now());
                }
                let _ = reply.send(quoted);
            }
            Ask::Stores(reply) => {
                let _ = reply.send(self.partitions.iter().map(|partition| partition.store.reader()).collect());
            }
            Ask::Content { partition, name, reply } => {
                let Some(partition) = self.partitions.get_mut(partition as usize) else { return Ok(()) };
                let content: Option<Bytes> = machine::content(&mut partition.store, &name);
                let (at, next) = ((name.epoch, name.offset), (partition.machine.epoch(), partition.next_offset));
                let _ = reply.send((content, at < next && !partition.machine.is_waiting(name.position())));
            }
        }
        Ok(())
    }

    fn user(&mut self, user: &UserName) -> Option<UserView> {
        let zero = &mut self.partitions[0];
        let user = machine::user(&mut zero.store, user)?;
        let home = self.partitions.get(user.partition as usize)?;
        Some(UserView { log_time: home.machine.log_time(), volatile: home.machine.volatile(), user })
    }
}
