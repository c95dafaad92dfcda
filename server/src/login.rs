//! Logins over `auth`: OPAQUE in four messages, nothing remembered in between.
//!
//! Every attempt is a record in partition 0 before it is answered, so guessing is
//! counted and slowed the same by every server. An unknown user is answered as a
//! known one is, and fails at the same step. What a login gives is a ticket, with
//! which the client opens its session in the namespace's partition itself.
#![allow(clippy::disallowed_methods)] // Waits are bounded here, and partitions drawn.

use crate::limits::limits;
use crate::live::Live;
use crate::machine::effect::Verdict;
use crate::machine::{StoredUser, seal_ticket};
use crate::run::own::OwnRecords;
use crate::run::{Ask, Asker, LoginView, UserView};
use proto::Epoch;
use proto::NamespaceId;
use proto::clock::Clock;
use proto::frame::{Frame, Kind};
use proto::keys::ClusterKey;
use proto::log::{Log, REPLY_PARTITIONS, Topic};
use proto::login::{CredentialId, Known, LoginError, ServerDone, public_key, server_finish, server_start};
use proto::message::{LoginAnswer, LoginDone, LoginRequest, ServerRecord, Ticket, UserName};
use proto::seal::{Context, Direction, Head, open, random, seal};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::timeout;

/// Logins worked on at once; more wait in the topic.
const AT_ONCE: usize = 64;

/// Attempts whose decision is waited for; beyond it new ones are not answered.
const ATTEMPTS_MAX: usize = 1024;

/// How long an attempt's record may take to come back. The client asks again anyway.
const DECISION_WAIT: Duration = Duration::from_secs(10);

/// Bytes of content that a session may have under way. The embedded broker forgets
/// what exceeds 5 MiB of a partition.
const WINDOW_BYTES: u64 = 32 << 20;
const WINDOW_BYTES_VOLATILE: u64 = 2 << 20;

/// Who waits for the decision on a login attempt.
#[derive(Default)]
pub(crate) struct Attempts {
    waiting: Mutex<BTreeMap<[u8; 16], oneshot::Sender<Verdict>>>,
}

impl Attempts {
    /// `None` when too many wait.
    fn wait_for(&self, attempt: [u8; 16]) -> Option<oneshot::Receiver<Verdict>> {
        let mut waiting = self.waiting.lock().expect("nobody panics while holding it");
        if waiting.len() >= ATTEMPTS_MAX {
            waiting.retain(|_, waiting| !waiting.is_closed());
        }
        if waiting.len() >= ATTEMPTS_MAX {
            return None;
        }
        let (decided, decision) = oneshot::channel();
        waiting.insert(attempt, decided);
        Some(decision)
    }

    /// The decision has been applied, here or for another server.
    pub fn decided(&self, attempt: [u8; 16], verdict: Verdict) {
        let waiting = self.waiting.lock().expect("nobody panics while holding it").remove(&attempt);
        if let Some(waiting) = waiting {
            // Whoever waited may have given up.
            let _ = waiting.send(verdict);
        }
    }
}

pub(crate) struct Logins {
    pub log: Arc<dyn Log>,
    pub cluster: Arc<ClusterKey>,
    pub own: Arc<OwnRecords>,
    pub asker: Asker,
    pub attempts: Arc<Attempts>,
    pub epoch: Epoch,
    /// The topic `auth`.
    pub asks: Live,
    pub clock: Clock,
    /// Whether this server is the one that answers.
    pub speaks: watch::Receiver<bool>,
}

struct Service {
    log: Arc<dyn Log>,
    cluster: Arc<ClusterKey>,
    own: Arc<OwnRecords>,
    asker: Asker,
    attempts: Arc<Attempts>,
    epoch: Epoch,
    clock: Clock,
}

/// Answers logins until the server's runtime ends.
pub(crate) async fn serve(logins: Logins) {
    let Logins { log, cluster, own, asker, attempts, epoch, mut asks, clock, speaks } = logins;
    let service = Arc::new(Service { log, cluster, own, asker, attempts, epoch, clock });
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(frame) = Frame::parse(asks.next().await.value) else { continue };
        // Answers stand in the same topic. What another server may have left unanswered
        // is asked again within a second.
        if frame.header().kind != Kind::Login || !*speaks.borrow() {
            continue;
        }
        let Ok(turn) = at_once.clone().acquire_owned().await else { return };
        let service = service.clone();
        proto::task::spawn(async move {
            service.answer(&frame).await;
            drop(turn);
        });
    }
}

impl Service {
    async fn answer(&self, frame: &Frame) {
        let header = frame.header();
        let context = Context { direction: Direction::ToServer, topic: Topic::Auth, partition: 0, answers: None };
        let request = match open::<LoginRequest>(&public_key(), frame, &context) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!("skipped a login: {error}");
                return;
            }
        };
        let answer = match request.body {
            LoginRequest::Start { user, credential, ke1 } => self.start(header.sender, user, credential, &ke1).await,
            LoginRequest::Finish { half_state, ke1, ke3 } => self.finish(header.sender, &half_state, &ke1, &ke3).await,
        };
        // `None`: nothing can be said now, and the client asks again.
        let Some(answer) = answer else { return };

        let head = Head {
            kind: Kind::LoginAnswer,
            namespace: NamespaceId(0),
            epoch: Epoch(0),
            sender: header.sender,
            number: header.number,
        };
        let context = Context { direction: Direction::ToClient, answers: Some(frame.hash()), ..context };
        match seal(&public_key(), &head, &context, &answer, &[]) {
            // A lost answer is asked for again.
            Ok(sealed) => drop(self.log.append(Topic::Auth, 0, sealed.record)),
            Err(error) => tracing::error!("cannot answer a login: {error}"),
        }
    }

    async fn start(
        &self,
        attempt: [u8; 16],
        user: UserName,
        credential: CredentialId,
        ke1: &[u8],
    ) -> Option<LoginAnswer> {
        // Before the record is written, so that the decision finds someone waiting.
        let decision = self.attempts.wait_for(attempt)?;
        let record = ServerRecord::LoginAttempt { attempt, user: user.clone(), credential: credential.clone() };
        if let Err(error) = self.own.append(0, record).appended.await {
            tracing::warn!("a login of {user} cannot be answered: {error}");
            return None;
        }
        let verdict = timeout(DECISION_WAIT, decision).await.ok()?.ok()?;
        if let Verdict::SlowDown { retry_ms } = verdict {
            return Some(LoginAnswer::SlowDown { retry_ms });
        }

        let view = self.view(&user).await?;
        let found = view.home.as_ref().and_then(|home| home.user.credential(&credential));
        let known = found.map(|found| Known { record: &found.record, version: version(&found.record) });
        match server_start(&self.cluster, user.as_str(), &credential, known, ke1, view.now) {
            Ok(started) => Some(LoginAnswer::Challenge { ke2: started.ke2, half_state: started.half_state }),
            Err(error) => Some(refused(&user, &error)),
        }
    }

    async fn finish(&self, attempt: [u8; 16], half_state: &[u8], ke1: &[u8], ke3: &[u8]) -> Option<LoginAnswer> {
        // Its log time is needed before it is known who this is.
        let nobody = UserName::new("nobody").ok()?;
        let now = self.view(&nobody).await?.now;
        let done = match server_finish(&self.cluster, half_state, ke1, ke3, now) {
            Ok(done) => done,
            Err(error) => {
                tracing::info!("a login failed: {error}");
                return Some(LoginAnswer::Refused);
            }
        };
        let user = UserName::new(&done.user).ok()?;
        let Some(home) = self.view(&user).await?.home else { return Some(LoginAnswer::Refused) };
        let Some(found) = home.user.credential(&done.credential) else { return Some(LoginAnswer::Refused) };
        if version(&found.record) != done.credential_version {
            tracing::info!("a login of {user} failed: its {} was changed meanwhile", done.credential);
            return Some(LoginAnswer::Refused);
        }
        let wrapped = found.wrapped_private_key.clone();
        let credential = done.credential.clone();
        let record = ServerRecord::LoginSuccess { attempt, user: user.clone(), credential };
        drop(self.own.append(0, record));
        self.grant(&done, home, wrapped)
            .inspect_err(|error| tracing::error!("cannot answer the login of {user}: {error}"))
            .ok()
    }

    /// What a proven login gives.
    fn grant(
        &self,
        done: &ServerDone,
        home: UserView,
        wrapped: Vec<u8>,
    ) -> Result<LoginAnswer, proto::seal::SealError> {
        let UserView { user, log_time, volatile } = home;
        let StoredUser { name, uid, gid, namespace, partition, public_key, namespace_keys, seen, .. } = user;
        // A client reads the same number of `replies` and `bulk`; sessions may share one.
        let replies_partition = u32::from_le_bytes(random()) % REPLY_PARTITIONS;
        let ticket = Ticket {
            session: done.session,
            user: name,
            namespace,
            partition,
            epoch: self.epoch,
            key: done.session_secret.partition_key(partition),
            issued: log_time,
            user_seen: seen,
            replies_partition,
            bulk_partition: replies_partition,
            uid,
            gid,
        };
        let answer = LoginDone {
            session: done.session,
            epoch: self.epoch,
            namespace,
            partition,
            replies_partition,
            bulk_partition: replies_partition,
            ticket: seal_ticket(&self.cluster, &ticket)?,
            chunk_key: self.cluster.chunk_key(done.session),
            wrapped_private_key: wrapped,
            // The recovery key's copies are of no use to the user.
            namespace_keys: namespace_keys.into_iter().filter(|key| key.recipient == public_key).collect(),
            uid,
            gid,
            volatile,
            window_requests: limits().window_requests,
            window_bytes: if volatile { WINDOW_BYTES_VOLATILE } else { WINDOW_BYTES },
            server_time_ms: self.clock.now_ms(),
        };
        Ok(LoginAnswer::Done { sealed: answer.seal(&done.session_secret.login_key())? })
    }

    async fn view(&self, user: &UserName) -> Option<LoginView> {
        self.asker.ask(|reply| Ask::User { user: user.clone(), reply }).await
    }
}

fn refused(user: &UserName, error: &LoginError) -> LoginAnswer {
    tracing::info!("a login of {user} failed: {error}");
    LoginAnswer::Refused
}

/// Changes whenever the credential does.
fn version(record: &[u8]) -> u64 {
    let hash = blake3::hash(record);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}
