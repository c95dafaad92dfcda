//! Users, credentials and logins: partition 0's own rows.
//!
//! What is decided here about a namespace of another partition goes into an outbox
//! and is delivered there as a server record, again and again until it has landed;
//! the target drops what it has seen. Logins with a password are slowed down here,
//! by user, so that every replica decides the same.

use super::Machine;
use super::effect::{Effect, Verdict};
use super::kv::Kv;
use super::rows::{Key, NamespaceRow, Turn, after, decode, namespace_key, table};
use super::session::Session;
use proto::frame::Frame;
use proto::log::REQUEST_PARTITIONS;
use proto::login::CredentialId;
use proto::message::{
    Admin, AdminAnswer, AdminOutcome, AdminRequest, NewCredential, NewUser, Quota, Refusal, SealedNamespaceKey,
    ServerRecord, Usage, UserInfo, UserName,
};
use proto::{IncarnationId, LogTime, NamespaceId, Position, SessionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Failed attempts before a user's next one has to wait.
const FREE_FAILURES: u32 = 5;
/// The longest wait between attempts, in seconds of log time.
const MAX_WAIT_S: u64 = 60;
/// Failures are forgotten after this much log time.
const BUCKET_MS: u64 = 3_600_000;
/// Users whose failures are counted; beyond them the one longest ago is forgotten.
const MAX_BUCKETS: usize = 65_536;
/// Devices of one user.
const MAX_DEVICES: usize = 256;
/// Users of one page, and its bytes, estimated from above.
const MAX_USERS_PAGE: usize = 1000;
const USERS_PAGE_BYTES: usize = 600_000;
/// Users of one import.
const MAX_IMPORT: usize = 1_000_000;

/// A user as kept in partition 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredUser {
    pub name: UserName,
    pub uid: u32,
    pub gid: u32,
    pub namespace: NamespaceId,
    /// Of the request log, where the namespace lives.
    pub partition: u32,
    pub credentials: Vec<NewCredential>,
    pub public_key: Vec<u8>,
    pub namespace_keys: Vec<SealedNamespaceKey>,
    pub quota: Quota,
    /// The position of the last change.
    pub seen: Position,
}

impl StoredUser {
    pub fn credential(&self, id: &CredentialId) -> Option<&NewCredential> {
        self.credentials.iter().find(|credential| credential.id == *id)
    }

    fn info(&self) -> UserInfo {
        let devices = self.credentials.iter().filter_map(|credential| match &credential.id {
            CredentialId::Password => None,
            CredentialId::Device(device) => Some(device.clone()),
        });
        UserInfo {
            name: self.name.clone(),
            uid: self.uid,
            gid: self.gid,
            namespace: self.namespace,
            partition: self.partition,
            devices: devices.collect(),
            quota: self.quota,
        }
    }
}

/// The user as of now; partition 0 only. A removed user is an unknown one.
pub fn user(kv: &mut dyn Kv, name: &UserName) -> Option<StoredUser> {
    kv.get(&user_key(name)).map(|bytes| decode(&bytes))
}

/// What has been decided and has not landed.
pub(super) fn deliveries(kv: &mut dyn Kv) -> Vec<Effect> {
    let mut effects = Vec::new();
    kv.scan(&[table::OUTBOX], &after(&[table::OUTBOX]), &mut |_, value| {
        effects.push(decode::<OutboxRow>(value).effect());
        true
    });
    effects
}

/// How many login attempts of a user have failed lately.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Bucket {
    failures: u32,
    last: LogTime,
}

pub(super) fn forget_buckets(buckets: &mut BTreeMap<UserName, Bucket>, now: LogTime) {
    buckets.retain(|_, bucket| now < bucket.last.plus_ms(BUCKET_MS));
}

/// A decision on its way to another partition.
#[derive(Clone, Serialize, Deserialize)]
struct OutboxRow {
    partition: u32,
    decision: Position,
    record: ServerRecord,
}

impl OutboxRow {
    fn effect(self) -> Effect {
        Effect::Deliver { partition: self.partition, decision: self.decision, record: self.record }
    }
}

/// Counts over all users; partition 0 only.
#[derive(Clone, Serialize, Deserialize)]
struct UsersRow {
    next_namespace: NamespaceId,
    users: u64,
}

/// That a user's sessions were ended, in the partition where they were.
#[derive(Clone, Serialize, Deserialize)]
struct UserEndedRow {
    decision: Position,
}

fn user_key(name: &UserName) -> Vec<u8> {
    Key::new(table::USER).bytes(name.as_str().as_bytes()).done()
}

fn users_key() -> Vec<u8> {
    Key::new(table::META).bytes(b"users").done()
}

fn outbox_key(decision: Position) -> Vec<u8> {
    Key::new(table::OUTBOX).u32(decision.epoch.0).u64(decision.offset).u32(decision.index).done()
}

fn user_ended_key(user: &UserName) -> Vec<u8> {
    Key::new(table::USER_ENDED).bytes(user.as_str().as_bytes()).done()
}

fn staged_key(id: IncarnationId) -> Key {
    Key::new(table::STAGED).bytes(&id.0)
}

impl Machine {
    pub(super) fn login_attempt(&mut self, turn: &mut Turn, attempt: [u8; 16], user: UserName, by: CredentialId) {
        let verdict = match by {
            // Its secret cannot be guessed, and a known device is never locked out.
            CredentialId::Device(_) => Verdict::Answer,
            CredentialId::Password => self.count_attempt(user),
        };
        turn.effects.push(Effect::Decision { attempt, verdict });
    }

    /// Counts an attempt as failed until its success is seen, unless it is too early.
    fn count_attempt(&mut self, user: UserName) -> Verdict {
        let now = self.live.now;
        let buckets = &mut self.live.buckets;
        let bucket = buckets.entry(user).or_insert(Bucket { failures: 0, last: now });
        if let Some(beyond) = bucket.failures.checked_sub(FREE_FAILURES) {
            let wait_s = 1_u64.checked_shl(beyond).map_or(MAX_WAIT_S, |wait| wait.min(MAX_WAIT_S));
            let allowed = bucket.last.plus_ms(wait_s * 1000);
            if now < allowed {
                return Verdict::SlowDown { retry_ms: allowed.0 - now.0 };
            }
        }
        bucket.failures = bucket.failures.saturating_add(1);
        bucket.last = now;
        if buckets.len() > MAX_BUCKETS
            && let Some(oldest) = buckets.iter().min_by_key(|(_, bucket)| bucket.last).map(|(user, _)| user.clone())
        {
            buckets.remove(&oldest);
        }
        Verdict::Answer
    }

    pub(super) fn login_success(&mut self, user: &UserName) {
        self.live.buckets.remove(user);
    }

    /// A decision about a user has arrived in the partition of its namespace.
    pub(super) fn user_ended(&mut self, turn: &mut Turn, user: &UserName, decision: Position) {
        let key = user_ended_key(user);
        if turn.get::<UserEndedRow>(&key).is_some_and(|row| decision <= row.decision) {
            // Delivered again; sessions opened since then are none of its business.
            return;
        }
        turn.put(&key, &UserEndedRow { decision });
        let of_user = |session: &Session| session.user == *user && session.user_seen < decision;
        let ended = self.live.sessions.iter().filter(|(_, session)| of_user(session));
        let ids: Vec<SessionId> = ended.map(|(id, _)| *id).collect();
        for id in ids {
            self.end_session(turn, id);
        }
    }

    /// Whether a login of this user that knew nothing after `seen` is void. Positions
    /// tell it, not times: log time stands still between two ticks.
    pub(super) fn is_user_ended(&self, turn: &mut Turn, user: &UserName, seen: Position) -> bool {
        turn.get::<UserEndedRow>(&user_ended_key(user)).is_some_and(|row| seen < row.decision)
    }

    pub(super) fn landed(&mut self, turn: &mut Turn, decision: Position) {
        let key = outbox_key(decision);
        if turn.get_bytes(&key).is_some() {
            turn.delete(&key);
        }
    }

    /// Drops what an incarnation has staged.
    pub(super) fn unstage(&mut self, turn: &mut Turn, id: IncarnationId) {
        let prefix = staged_key(id).done();
        let mut keys = Vec::new();
        turn.scan(&prefix, &after(&prefix), &mut |key, _| {
            keys.push(key.to_vec());
            true
        });
        for key in keys {
            turn.delete(&key);
        }
    }

    pub(super) fn admin(
        &mut self,
        turn: &mut Turn,
        id: IncarnationId,
        frame: &Frame,
        request: AdminRequest,
        append_time_ms: i64,
    ) {
        let result = match request.admin {
            Admin::State => Ok(self.admin_state(turn)),
            Admin::UserStage { users } => self.user_stage(turn, id, users),
            Admin::UserAdd { first_namespace, users } => self.user_add(turn, id, first_namespace, users),
            Admin::UserPasswd { user, seen, credential, public_key, namespace_keys } => {
                self.user_passwd(turn, &user, seen, credential, public_key, namespace_keys)
            }
            Admin::DeviceAdd { user, seen, credential } => self.device_add(turn, &user, seen, credential),
            Admin::UserQuota { user, seen, quota } => self.user_quota(turn, &user, seen, quota),
            Admin::Usage { namespaces } => usage(turn, &namespaces),
            Admin::UserRemove { user } => self.user_remove(turn, &user),
            Admin::User { user } => self.known(turn, &user).map(|user| AdminOutcome::User {
                info: user.info(),
                seen: user.seen,
                namespace_keys: user.namespace_keys,
            }),
            Admin::UserList { after } => Ok(self.user_list(turn, after)),
            Admin::Servers => Ok(self.server_list(append_time_ms)),
        };
        turn.effects.push(Effect::Admin {
            to: id,
            replies_partition: request.replies_partition,
            number: frame.header().number,
            request: frame.hash(),
            answer: AdminAnswer { at: turn.at, result },
        });
    }

    fn users(&self, turn: &mut Turn) -> UsersRow {
        turn.get(&users_key()).unwrap_or(UsersRow { next_namespace: NamespaceId(1), users: 0 })
    }

    fn known(&self, turn: &mut Turn, name: &UserName) -> Result<StoredUser, Refusal> {
        turn.get(&user_key(name)).ok_or(Refusal::NoSuchUser)
    }

    fn admin_state(&self, turn: &mut Turn) -> AdminOutcome {
        let row = self.users(turn);
        AdminOutcome::State { next_namespace: row.next_namespace, users: row.users, version: self.live.version }
    }

    fn user_stage(&self, turn: &mut Turn, id: IncarnationId, users: Vec<NewUser>) -> Result<AdminOutcome, Refusal> {
        let key = staged_key(id).u64(turn.at.offset).done();
        turn.put(&key, &users);
        Ok(AdminOutcome::Done)
    }

    fn user_add(
        &mut self,
        turn: &mut Turn,
        id: IncarnationId,
        first: NamespaceId,
        users: Vec<NewUser>,
    ) -> Result<AdminOutcome, Refusal> {
        let staged: Vec<(Vec<u8>, Vec<NewUser>)> = turn.rows(&staged_key(id).done(), usize::MAX);
        self.unstage(turn, id);
        let users: Vec<NewUser> = staged.into_iter().flat_map(|(_, users)| users).chain(users).collect();
        let mut counts = self.users(turn);
        if first != counts.next_namespace {
            return Err(Refusal::Conflict);
        }
        let last = u64::from(first.0) + users.len() as u64;
        if users.len() > MAX_IMPORT || last > u64::from(NamespaceId::MAX.0) {
            return Err(Refusal::TooLarge);
        }
        let mut names = BTreeSet::new();
        for user in &users {
            if !names.insert(&user.name) || turn.get_bytes(&user_key(&user.name)).is_some() {
                return Err(Refusal::UserExists);
            }
        }

        for user in users {
            let namespace = counts.next_namespace;
            counts.next_namespace = NamespaceId(namespace.0 + 1);
            counts.users += 1;
            let stored = StoredUser {
                name: user.name,
                uid: user.uid,
                gid: user.gid,
                namespace,
                partition: namespace.0 % REQUEST_PARTITIONS,
                credentials: user.credentials,
                public_key: user.public_key,
                namespace_keys: user.namespace_keys,
                quota: Quota::default(),
                seen: turn.at,
            };
            turn.put(&user_key(&stored.name), &stored);
        }
        turn.put(&users_key(), &counts);
        Ok(AdminOutcome::Done)
    }

    fn user_passwd(
        &mut self,
        turn: &mut Turn,
        name: &UserName,
        seen: Position,
        credential: NewCredential,
        public_key: Vec<u8>,
        namespace_keys: Vec<SealedNamespaceKey>,
    ) -> Result<AdminOutcome, Refusal> {
        let mut user = self.known(turn, name)?;
        if user.seen != seen {
            return Err(Refusal::Conflict);
        }
        if credential.id != CredentialId::Password {
            return Err(Refusal::Invalid);
        }

        if public_key.is_empty() {
            user.credentials.retain(|other| other.id != CredentialId::Password);
        } else {
            // Nothing sealed to the old key pair can be opened with the new one.
            user.credentials.clear();
            user.public_key = public_key;
            user.namespace_keys = namespace_keys;
        }
        user.credentials.push(credential);
        user.seen = turn.at;
        turn.put(&user_key(name), &user);
        self.live.buckets.remove(name);
        self.end_sessions_of(turn, &user);
        Ok(AdminOutcome::Done)
    }

    fn device_add(
        &mut self,
        turn: &mut Turn,
        name: &UserName,
        seen: Position,
        credential: NewCredential,
    ) -> Result<AdminOutcome, Refusal> {
        let mut user = self.known(turn, name)?;
        if user.seen != seen {
            return Err(Refusal::Conflict);
        }
        if credential.id == CredentialId::Password {
            return Err(Refusal::Invalid);
        }
        if user.credential(&credential.id).is_some() {
            return Err(Refusal::Exists);
        }
        if user.credentials.len() > MAX_DEVICES {
            return Err(Refusal::TooLarge);
        }

        user.credentials.push(credential);
        user.seen = turn.at;
        turn.put(&user_key(name), &user);
        Ok(AdminOutcome::Done)
    }

    fn user_quota(
        &mut self,
        turn: &mut Turn,
        name: &UserName,
        seen: Position,
        quota: Quota,
    ) -> Result<AdminOutcome, Refusal> {
        let mut user = self.known(turn, name)?;
        if user.seen != seen {
            return Err(Refusal::Conflict);
        }

        user.quota = quota;
        user.seen = turn.at;
        turn.put(&user_key(name), &user);
        let decision = turn.at;
        let record = ServerRecord::Quota { namespace: user.namespace, quota, decision };
        self.deliver(turn, OutboxRow { partition: user.partition, decision, record });
        Ok(AdminOutcome::Done)
    }

    fn user_remove(&mut self, turn: &mut Turn, name: &UserName) -> Result<AdminOutcome, Refusal> {
        let user = self.known(turn, name)?;

        let mut counts = self.users(turn);
        counts.users = counts.users.saturating_sub(1);
        turn.put(&users_key(), &counts);
        let begin = turn.begin_of(user.seen);
        turn.namespace = user.namespace;
        turn.retire(&user_key(name), &begin, &user);
        self.end_sessions_of(turn, &user);
        Ok(AdminOutcome::Done)
    }

    fn user_list(&self, turn: &mut Turn, from: Option<UserName>) -> AdminOutcome {
        let start = match &from {
            // No name contains a zero byte, so this is just after the name's own row.
            Some(name) => [user_key(name), vec![0]].concat(),
            None => vec![table::USER],
        };
        let mut users: Vec<UserInfo> = Vec::new();
        let (mut bytes, mut end) = (0, true);
        turn.scan(&start, &after(&[table::USER]), &mut |_, value| {
            let info = decode::<StoredUser>(value).info();
            bytes += 200 + info.devices.iter().map(|device| device.len() + 5).sum::<usize>();
            if users.len() == MAX_USERS_PAGE || (bytes > USERS_PAGE_BYTES && !users.is_empty()) {
                end = false;
                return false;
            }
            users.push(info);
            true
        });
        AdminOutcome::Users { users, end }
    }

    /// Decides that a user's sessions end, where they are.
    fn end_sessions_of(&mut self, turn: &mut Turn, user: &StoredUser) {
        let decision = turn.at;
        let record = ServerRecord::UserEnded { user: user.name.clone(), decision };
        self.deliver(turn, OutboxRow { partition: user.partition, decision, record });
    }

    fn deliver(&mut self, turn: &mut Turn, row: OutboxRow) {
        turn.put(&outbox_key(row.decision), &row);
        turn.effects.push(row.effect());
    }
}

/// What namespaces of this partition hold; one that nobody has opened yet holds nothing.
fn usage(turn: &mut Turn, namespaces: &[NamespaceId]) -> Result<AdminOutcome, Refusal> {
    if namespaces.len() > Admin::MAX_USAGES {
        return Err(Refusal::TooLarge);
    }
    let mut usage = |namespace: &NamespaceId| {
        let row = turn.get::<NamespaceRow>(&namespace_key(*namespace));
        row.map_or(Usage::default(), |row| Usage { bytes: row.bytes_used, inodes: row.inodes_used, quota: row.quota })
    };
    Ok(AdminOutcome::Usages(namespaces.iter().map(&mut usage).collect()))
}
