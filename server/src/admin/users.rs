//! Users: made, given other passwords, removed, listed, imported.
//!
//! Keys are made here and never leave in the clear: a user's private key is wrapped
//! by what only that user's login gives, the namespace's key is sealed to the user
//! and to the cluster's recovery key.

use super::{Admin, AdminError};
use proto::NamespaceId;
use proto::keys::{ClusterKey, KeyPair, NamespaceKey, PublicKey};
use proto::login::{CredentialId, DeviceCredential, register};
use proto::message::{self, AdminOutcome, NewCredential, NewUser, Refusal, SealedNamespaceKey, UserInfo, UserName};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// How often a change is tried again when another administrator was quicker.
const TRIES: usize = 5;

/// Users staged in one record of an import: about 1 KB each.
const USERS_PER_RECORD: usize = 400;

/// Lines of an import that are told of when they cannot be imported.
const PROBLEMS_SHOWN: usize = 20;

/// The first key epoch of a new namespace.
const FIRST_KEY_EPOCH: u32 = 1;

/// A user to be added.
pub struct UserSpec {
    pub name: UserName,
    pub uid: u32,
    pub gid: u32,
    pub password: Zeroizing<Vec<u8>>,
    /// A device that can log in as this user as well.
    pub device: Option<DeviceCredential>,
}

impl Admin {
    /// Adds users with their namespaces, all or none.
    pub async fn user_add(&mut self, specs: &[UserSpec]) -> Result<(), AdminError> {
        let tried = match specs {
            [one] => format!("add the user {}", one.name),
            _ => format!("add {} users", specs.len()),
        };
        // Slow by design (a tenth of a second a password), so done once, before the
        // namespaces' numbers are known.
        let registered = register_all(&self.cluster, specs)?;
        for _ in 0..TRIES {
            let AdminOutcome::State { next_namespace, .. } = self.ask(&tried, message::Admin::State).await? else {
                return Err(AdminError::WrongAnswer { tried });
            };
            let mut users = Vec::with_capacity(specs.len());
            for (number, registered) in (next_namespace.0..).zip(&registered) {
                users.push(registered.user(&self.recovery, NamespaceId(number))?);
            }
            let mut batches: Vec<Vec<NewUser>> = users.chunks(USERS_PER_RECORD).map(<[_]>::to_vec).collect();
            let last = batches.pop().unwrap_or_default();
            for users in batches {
                let staged = self.change(message::Admin::UserStage { users }).await?;
                staged.map_err(|reason| AdminError::Refused { tried: tried.clone(), reason })?;
            }
            let add = message::Admin::UserAdd { first_namespace: next_namespace, users: last };
            match self.change(add).await? {
                Ok(_) => return Ok(()),
                Err(Refusal::Conflict) => {}
                Err(reason) => return Err(AdminError::Refused { tried, reason }),
            }
        }
        Err(AdminError::Refused { tried, reason: Refusal::Conflict })
    }

    /// Gives a user another password. Nobody but the user can open the user's
    /// private key, so it is made anew, and the namespace's keys are sealed to it
    /// with the help of the recovery key. Devices and sessions of the user end.
    pub async fn user_passwd(
        &mut self,
        name: &UserName,
        password: &[u8],
        recovery: &KeyPair,
    ) -> Result<(), AdminError> {
        let tried = format!("change the password of {name}");
        let keys =
            |reason: &dyn std::fmt::Display| AdminError::Keys { tried: tried.clone(), reason: reason.to_string() };
        let pair = KeyPair::generate();
        let credential = register_one(&self.cluster, name, CredentialId::Password, password, &pair)?;
        for _ in 0..TRIES {
            let asked = self.ask(&tried, message::Admin::User { user: name.clone() }).await?;
            let AdminOutcome::User { info, seen, namespace_keys } = asked else {
                return Err(AdminError::WrongAnswer { tried });
            };
            let mut resealed = Vec::new();
            for old in namespace_keys.iter().filter(|key| key.recipient == recovery.public().as_bytes()) {
                let key =
                    recovery.open_namespace_key(info.namespace, old.key_epoch, &old.sealed).map_err(|e| keys(&e))?;
                resealed.push(old.clone());
                resealed.push(seal_to(&key, &pair.public(), info.namespace).map_err(|e| keys(&e))?);
            }
            if resealed.is_empty() {
                let reason = "the recovery key is not this cluster's: no key of the namespace is sealed to it";
                return Err(keys(&reason));
            }
            let change = message::Admin::UserPasswd {
                user: name.clone(),
                seen,
                credential: credential.clone(),
                public_key: pair.public().as_bytes().to_vec(),
                namespace_keys: resealed,
            };
            match self.change(change).await? {
                Ok(_) => return Ok(()),
                Err(Refusal::Conflict) => {}
                Err(reason) => return Err(AdminError::Refused { tried, reason }),
            }
        }
        Err(AdminError::Refused { tried, reason: Refusal::Conflict })
    }

    /// Lets a user log in no more; the content stays.
    pub async fn user_remove(&mut self, name: &UserName) -> Result<(), AdminError> {
        let removed = self.change(message::Admin::UserRemove { user: name.clone() }).await?;
        let refused = |reason| AdminError::Refused { tried: format!("remove the user {name}"), reason };
        removed.map(|_| ()).map_err(refused)
    }

    /// All users, by name.
    pub async fn user_list(&mut self) -> Result<Vec<UserInfo>, AdminError> {
        let tried = "list the users";
        let mut all: Vec<UserInfo> = Vec::new();
        loop {
            let after = all.last().map(|user| user.name.clone());
            match self.ask(tried, message::Admin::UserList { after }).await? {
                AdminOutcome::Users { users, end } => {
                    let end = end || users.is_empty();
                    all.extend(users);
                    if end {
                        return Ok(all);
                    }
                }
                _ => return Err(AdminError::WrongAnswer { tried: tried.into() }),
            }
        }
    }

    /// Adds the users of a file with lines `name:password`, all or none. Gives their number.
    pub async fn user_import(&mut self, file: &str, text: &str, uid: u32, gid: u32) -> Result<usize, AdminError> {
        let existing = self.user_list().await?.into_iter().map(|user| user.name).collect();
        let specs = read_import(text, uid, gid, &existing).map_err(|problems| AdminError::Import {
            file: file.into(),
            problems: problems.len(),
            list: told(&problems),
        })?;
        if !specs.is_empty() {
            self.user_add(&specs).await?;
        }
        Ok(specs.len())
    }
}

/// The users of an import, or every line that cannot be imported with the reason.
fn read_import(
    text: &str,
    uid: u32,
    gid: u32,
    existing: &std::collections::BTreeSet<UserName>,
) -> Result<Vec<UserSpec>, Vec<(usize, String)>> {
    let mut specs = Vec::new();
    let mut problems = Vec::new();
    let mut seen: BTreeMap<UserName, usize> = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let Some((name, password)) = line.split_once(':') else {
            problems.push((number, "is not `name:password`".to_owned()));
            continue;
        };
        let name = match UserName::new(name) {
            Ok(name) => name,
            Err(error) => {
                problems.push((number, error.to_string()));
                continue;
            }
        };
        if password.is_empty() {
            problems.push((number, format!("has no password for {name}")));
        } else if let Some(first) = seen.get(&name) {
            problems.push((number, format!("{name} is on line {first} already")));
        } else if existing.contains(&name) {
            problems.push((number, format!("the user {name} exists already")));
        } else {
            let password = Zeroizing::new(password.as_bytes().to_vec());
            specs.push(UserSpec { name: name.clone(), uid, gid, password, device: None });
        }
        seen.entry(name).or_insert(number);
    }
    if problems.is_empty() { Ok(specs) } else { Err(problems) }
}

fn told(problems: &[(usize, String)]) -> String {
    let mut lines: Vec<_> =
        problems.iter().take(PROBLEMS_SHOWN).map(|(line, what)| format!("  line {line}: {what}")).collect();
    if problems.len() > PROBLEMS_SHOWN {
        lines.push(format!("  and {} more", problems.len() - PROBLEMS_SHOWN));
    }
    lines.join("\n")
}

/// A user with all keys made, but for those bound to the namespace's number.
struct Registered {
    name: UserName,
    uid: u32,
    gid: u32,
    pair: KeyPair,
    credentials: Vec<NewCredential>,
    namespace_key: NamespaceKey,
}

impl Registered {
    fn new(cluster: &ClusterKey, spec: &UserSpec) -> Result<Registered, AdminError> {
        let pair = KeyPair::generate();
        let mut credentials = vec![register_one(cluster, &spec.name, CredentialId::Password, &spec.password, &pair)?];
        if let Some(device) = &spec.device {
            let secret = device.secret.as_password();
            credentials.push(register_one(cluster, &spec.name, device.id(), secret, &pair)?);
        }
        let namespace_key = NamespaceKey::generate(FIRST_KEY_EPOCH);
        Ok(Registered { name: spec.name.clone(), uid: spec.uid, gid: spec.gid, pair, credentials, namespace_key })
    }

    fn user(&self, recovery: &PublicKey, namespace: NamespaceId) -> Result<NewUser, AdminError> {
        let sealed = |to| {
            seal_to(&self.namespace_key, to, namespace).map_err(|e| AdminError::Keys {
                tried: format!("seal the namespace's key of {}", self.name),
                reason: e.to_string(),
            })
        };
        Ok(NewUser {
            name: self.name.clone(),
            uid: self.uid,
            gid: self.gid,
            credentials: self.credentials.clone(),
            public_key: self.pair.public().as_bytes().to_vec(),
            namespace_keys: vec![sealed(&self.pair.public())?, sealed(recovery)?],
        })
    }
}

/// Registers every user, on all cores.
fn register_all(cluster: &ClusterKey, specs: &[UserSpec]) -> Result<Vec<Registered>, AdminError> {
    #[cfg(feature = "simulation")]
    if proto::simulation::is_on() {
        return specs.iter().map(|spec| Registered::new(cluster, spec)).collect();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = specs.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = specs
            .chunks(share)
            .map(|part| {
                scope.spawn(|| part.iter().map(|spec| Registered::new(cluster, spec)).collect::<Result<Vec<_>, _>>())
            })
            .collect();
        let mut all = Vec::with_capacity(specs.len());
        for worker in workers {
            all.extend(worker.join().expect("registering does not panic")?);
        }
        Ok(all)
    })
}

fn register_one(
    cluster: &ClusterKey,
    user: &UserName,
    id: CredentialId,
    password: &[u8],
    pair: &KeyPair,
) -> Result<NewCredential, AdminError> {
    let registered = register(cluster, user.as_str(), &id, password)
        .map_err(|e| AdminError::Keys { tried: format!("register {user}"), reason: e.to_string() })?;
    let wrapped_private_key = pair.wrap(&registered.export_key, user.as_str(), &id);
    Ok(NewCredential { id, record: registered.record, wrapped_private_key })
}

fn seal_to(
    key: &NamespaceKey,
    recipient: &PublicKey,
    namespace: NamespaceId,
) -> Result<SealedNamespaceKey, proto::keys::KeyError> {
    let sealed = key.seal_to(recipient, namespace)?;
    Ok(SealedNamespaceKey { key_epoch: key.epoch, recipient: recipient.as_bytes().to_vec(), sealed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_names_every_line_that_is_wrong() {
        let existing = [UserName::new("old").expect("a name")].into();
        let text = "ann:secret\n\nno colon\nann:again\nold:x\n-bad:x\nbob:\ncarl:a:b\n";
        let problems = read_import(text, 1, 2, &existing).err().expect("refused");
        let lines: Vec<_> = problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7]);
        let good = read_import("ann:secret\ncarl:a:b\n", 1, 2, &existing).expect("good");
        assert_eq!(good.len(), 2);
        assert_eq!(good[1].password.as_slice(), b"a:b");
    }
}
