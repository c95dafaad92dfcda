//! Questions that other parts of the server ask of the state.

use super::apply::Apply;
use super::{Ask, LoginView, UserView};
use crate::error::ServerError;
use crate::machine;
use bytes::Bytes;
use proto::message::UserName;
use tokio::time::Instant;

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
                    quoted.push(machine::is_referenced(&mut partition.store, *namespace, name));
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
                let found = self.partitions.get_mut(partition as usize);
                let content: Option<Bytes> = found.and_then(|partition| machine::content(&mut partition.store, &name));
                let _ = reply.send(content);
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
