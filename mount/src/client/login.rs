//! Logging in over `auth`: four messages of OPAQUE, so the password never leaves
//! this process and a server that does not hold the user's record is found out.

use super::{ClientConfig, ConnectError, ContentKeys, Secret};
use bytes::Bytes;
use proto::frame::{Frame, Kind, record_hash};
use proto::keys::KeyPair;
use proto::log::{LogError, Start, Tail, Topic};
use proto::login::{ClientLogin, CredentialId, LoginError, public_key};
use proto::message::{LoginAnswer, LoginDone, LoginRequest};
use proto::seal::{Context, Direction, Head, Key, open, random, seal};
use proto::{Epoch, NamespaceId, task};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Silence after which a login's frame is sent again; doubled each time.
const RESEND: Duration = Duration::from_secs(1);

/// A login that both ends have accepted.
pub(super) struct LoggedIn {
    pub done: LoginDone,
    /// Seals the session's records on its partition.
    pub key: Key,
    pub keys: ContentKeys,
    /// The server's time minus our steady one, in milliseconds.
    pub server_ahead_ms: i64,
}

/// Logs in, within `patience`.
pub(super) async fn login(config: &ClientConfig, patience: Duration) -> Result<LoggedIn, ConnectError> {
    let deadline = Instant::now() + patience;
    let mut attempt = Attempt::begin(config, deadline, patience).await?;
    let credential = match &config.secret {
        Secret::Password(_) => CredentialId::Password,
        Secret::Device(device) => device.id(),
    };
    let (state, ke1) = ClientLogin::start(password(&config.secret)).map_err(|error| unusable(config, error))?;
    let start = LoginRequest::Start { user: config.user.clone(), credential: credential.clone(), ke1: ke1.clone() };
    let (ke2, half_state) = match attempt.ask(1, &start).await? {
        LoginAnswer::Challenge { ke2, half_state } => (ke2, half_state),
        LoginAnswer::SlowDown { retry_ms } => {
            return Err(ConnectError::SlowDown { user: config.user.clone(), retry: Duration::from_millis(retry_ms) });
        }
        LoginAnswer::Refused => return Err(ConnectError::WrongLogin { user: config.user.clone() }),
        LoginAnswer::Done { .. } => return Err(protocol("a login ended before it began")),
    };
    let (secret, user) = (config.secret.clone(), config.user.clone());
    let for_thread = credential.clone();
    let finished = task::offload(move || state.finish(password(&secret), &ke2, user.as_str(), &for_thread))
        .await
        .map_err(|error| protocol(error.to_string()))?
        .map_err(|error| unusable(config, error))?;

    let asked_ms = proto::clock::monotonic_ms() as i64;
    let answer = attempt.ask(2, &LoginRequest::Finish { half_state, ke1, ke3: finished.ke3.clone() }).await?;
    let sealed = match answer {
        LoginAnswer::Done { sealed } => sealed,
        LoginAnswer::Refused => return Err(ConnectError::WrongLogin { user: config.user.clone() }),
        LoginAnswer::SlowDown { retry_ms } => {
            return Err(ConnectError::SlowDown { user: config.user.clone(), retry: Duration::from_millis(retry_ms) });
        }
        LoginAnswer::Challenge { .. } => return Err(protocol("a login was asked for its beginning twice")),
    };
    let answered_ms = proto::clock::monotonic_ms() as i64;
    let done = LoginDone::open(&finished.session_secret.login_key(), finished.session, &sealed)
        .map_err(|error| protocol(error.to_string()))?;
    let keys_failed = |reason: String| ConnectError::Keys { user: config.user.clone(), reason };
    let pair = KeyPair::unwrap(&done.wrapped_private_key, &finished.export_key, config.user.as_str(), &credential)
        .map_err(|error| keys_failed(error.to_string()))?;
    let keys = ContentKeys::open(&pair, &done).map_err(keys_failed)?;
    Ok(LoggedIn {
        key: finished.session_secret.partition_key(done.partition),
        keys,
        server_ahead_ms: done.server_time_ms.saturating_sub(asked_ms + (answered_ms - asked_ms) / 2),
        done,
    })
}

/// One attempt's place on the bus.
struct Attempt<'a> {
    config: &'a ClientConfig,
    id: [u8; 16],
    tail: Tail,
    key: Key,
    deadline: Instant,
    patience: Duration,
}

impl<'a> Attempt<'a> {
    async fn begin(
        config: &'a ClientConfig,
        deadline: Instant,
        patience: Duration,
    ) -> Result<Attempt<'a>, ConnectError> {
        let log = Arc::clone(&config.log);
        let reading = task::offload(move || log.read_from(&[(Topic::Auth, 0, Start::End)]));
        let tail = match timeout_at(deadline, reading).await {
            Ok(Ok(tail)) => tail?,
            Ok(Err(error)) => return Err(protocol(error.to_string())),
            Err(_) => {
                return Err(ConnectError::Log(LogError::Unreachable {
                    brokers: config.brokers.clone(),
                    reason: format!("no answer within {} s", patience.as_secs()),
                }));
            }
        };
        Ok(Attempt { config, id: random(), tail, key: public_key(), deadline, patience })
    }

    /// Sends a step and waits for its answer; sends it again while nothing comes.
    async fn ask(&mut self, number: u64, request: &LoginRequest) -> Result<LoginAnswer, ConnectError> {
        let record = self.sealed(number, request)?;
        let context = Context {
            direction: Direction::ToClient,
            topic: Topic::Auth,
            partition: 0,
            answers: Some(record_hash(&record)),
        };
        let mut silence = RESEND;
        loop {
            let mut appended = self.config.log.append(Topic::Auth, 0, record.clone());
            let again = (Instant::now() + silence).min(self.deadline);
            let mut stored = false;
            loop {
                tokio::select! {
                    biased;
                    result = &mut appended, if !stored => {
                        match result {
                            Ok(_) => stored = true,
                            // It may have been stored all the same; it is sent again in time.
                            Err(LogError::NotAppended { .. }) => stored = true,
                            Err(error) => return Err(error.into()),
                        }
                    }
                    next = self.tail.next() => match next {
                        Some(Ok(record)) => {
                            if let Some(answer) = self.answer(number, record.value, &context)? {
                                return Ok(answer);
                            }
                        }
                        Some(Err(error @ (LogError::Refused { .. } | LogError::NoTopic { .. } | LogError::OutOfRange { .. }))) => {
                            return Err(error.into());
                        }
                        Some(Err(_)) => {}
                        None => return Err(protocol("the log has ended")),
                    },
                    () = tokio::time::sleep_until(again) => break,
                }
            }
            if Instant::now() >= self.deadline {
                if !stored {
                    return Err(ConnectError::Log(LogError::Unreachable {
                        brokers: self.config.brokers.clone(),
                        reason: format!("a record was not acknowledged within {} s", self.patience.as_secs()),
                    }));
                }
                return Err(ConnectError::NoServer {
                    brokers: self.config.brokers.clone(),
                    prefix: self.config.prefix.clone(),
                    waited: self.patience,
                });
            }
            silence = (silence * 2).min(Duration::from_secs(8));
        }
    }

    fn sealed(&self, number: u64, request: &LoginRequest) -> Result<Bytes, ConnectError> {
        let head = Head { kind: Kind::Login, namespace: NamespaceId(0), epoch: Epoch(0), sender: self.id, number };
        let context = Context { direction: Direction::ToServer, topic: Topic::Auth, partition: 0, answers: None };
        let sealed = seal(&self.key, &head, &context, request, &[]).map_err(|error| protocol(error.to_string()))?;
        Ok(sealed.record)
    }

    /// The answer in a record, if it is the one awaited. What anyone else wrote is passed over.
    fn answer(&self, number: u64, record: Bytes, context: &Context) -> Result<Option<LoginAnswer>, ConnectError> {
        let Ok(frame) = Frame::parse(record) else { return Ok(None) };
        let header = frame.header();
        if header.kind != Kind::LoginAnswer || header.sender != self.id || header.number != number {
            return Ok(None);
        }
        // Anyone can seal under this key, so an answer not understood is no reason to give up.
        Ok(open::<LoginAnswer>(&self.key, &frame, context).ok().map(|opened| opened.body))
    }
}

fn password(secret: &Secret) -> &[u8] {
    match secret {
        Secret::Password(password) => password.as_bytes(),
        Secret::Device(device) => device.secret.as_password(),
    }
}

fn unusable(config: &ClientConfig, error: LoginError) -> ConnectError {
    match error {
        LoginError::WrongPassword | LoginError::PasswordTooLong => {
            ConnectError::WrongLogin { user: config.user.clone() }
        }
        other => protocol(other.to_string()),
    }
}

fn protocol(reason: impl Into<String>) -> ConnectError {
    ConnectError::Protocol { reason: reason.into() }
}
