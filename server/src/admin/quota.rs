//! Quotas: decided in partition 0, in force once they have landed where the namespace is, which
//! alone knows what it holds.

use super::{Admin, AdminError};
use proto::message::{self, AdminOutcome, Quota, Refusal, ServerRecord, Usage, UserInfo, UserName};
use proto::{NamespaceId, ServerId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often a change is tried again when another administrator was quicker.
const TRIES: usize = 5;

/// Between looks whether a quota has landed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Admin {
    /// A user with what the namespace holds.
    pub async fn usage(&mut self, name: &UserName) -> Result<(UserInfo, Usage), AdminError> {
        let tried = format!("show the quota of {name}");
        let AdminOutcome::User { info, .. } = self.ask(&tried, message::Admin::User { user: name.clone() }).await?
        else {
            return Err(AdminError::WrongAnswer { tried });
        };
        let usage = self.usages(std::slice::from_ref(&info)).await?.remove(&info.namespace).unwrap_or_default();
        Ok((info, usage))
    }

    /// Changes a user's quota, and waits until it is in force. Gives what it is then, and what the namespace holds.
    pub async fn user_quota(
        &mut self,
        name: &UserName,
        change: impl Fn(Quota) -> Quota,
    ) -> Result<(Quota, Usage), AdminError> {
        let tried = format!("change the quota of {name}");
        let refused = |reason| AdminError::Refused { tried: tried.clone(), reason };
        for _ in 0..TRIES {
            let asked = self.ask(&tried, message::Admin::User { user: name.clone() }).await?;
            let AdminOutcome::User { info, seen, .. } = asked else {
                return Err(AdminError::WrongAnswer { tried });
            };
            let quota = change(info.quota);
            let set = message::Admin::UserQuota { user: name.clone(), seen, quota };
            match self.change(set).await? {
                Ok(_) => return Ok((quota, self.landed(&info, quota).await?)),
                Err(Refusal::Conflict) => {}
                Err(reason) => return Err(refused(reason)),
            }
        }
        Err(refused(Refusal::Conflict))
    }

    async fn landed(&mut self, user: &UserInfo, quota: Quota) -> Result<Usage, AdminError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let usage = self.usages(std::slice::from_ref(user)).await?.remove(&user.namespace).unwrap_or_default();
            if usage.quota == quota {
                return Ok(usage);
            }
            if Instant::now() >= deadline {
                return Err(AdminError::NoServer { waited: self.timeout, change: true });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What these users' namespaces hold.
    pub async fn usages(&mut self, users: &[UserInfo]) -> Result<BTreeMap<NamespaceId, Usage>, AdminError> {
        let tried = "ask what namespaces hold";
        let mut by_partition: BTreeMap<u32, Vec<NamespaceId>> = BTreeMap::new();
        for user in users {
            by_partition.entry(user.partition).or_default().push(user.namespace);
        }
        let mut usages = BTreeMap::new();
        for (partition, namespaces) in by_partition {
            self.open_in(partition).await?;
            for namespaces in namespaces.chunks(message::Admin::MAX_USAGES) {
                let asked = message::Admin::Usage { namespaces: namespaces.to_vec() };
                match self.ask_in(partition, tried, asked).await? {
                    AdminOutcome::Usages(found) => usages.extend(namespaces.iter().copied().zip(found)),
                    _ => return Err(AdminError::WrongAnswer { tried: tried.into() }),
                }
            }
        }
        Ok(usages)
    }

    /// Opens this program's incarnation in a partition, once.
    async fn open_in(&mut self, partition: u32) -> Result<(), AdminError> {
        let epoch = self.own.epoch(0);
        if self.own.epoch(partition) != epoch {
            let record = ServerRecord::Incarnation { server: ServerId::random(), supports: 0 };
            self.own.open(partition, epoch, record).appended.await?;
        }
        Ok(())
    }
}
