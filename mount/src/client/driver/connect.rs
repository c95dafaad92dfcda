//! Sessions coming and going: the first login, the open, what earlier clients'
//! journals hold, and every replacement after that.

use super::inbox;
use super::*;
use crate::client::core::content;
use crate::client::journal::Adopted;
use crate::client::transfer;
use proto::chunk::ChunkName;
use proto::message::Answer;
use proto::planted::{Bug, planted};
use proto::task;

/// How long one login that replaces a session may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// Between logins that failed: first, and at most.
const LOGIN_AGAIN: Duration = Duration::from_millis(500);
const LOGIN_AGAIN_MAX: Duration = Duration::from_secs(10);
/// After the server has said no to the password, which was right before.
const LOGIN_REFUSED: Duration = Duration::from_secs(60);

/// What one estimate of the server's time may differ from another by without a clock's having been set.
const CLOCK_SET_MS: u64 = 1_000;

pub(super) async fn connect(config: ClientConfig) -> Result<Handle, ConnectError> {
    let started = Instant::now();
    let timeout = config.timeout;
    let (identity, link, ticket) = login::login(&config, timeout).await?.into();
    let (journal, adopted) = match &config.journal {
        Some(journal) => {
            let (journal, adopted) = Journal::open(journal, identity.keys.journal_key(), &config.prefix, &config.clock);
            (Some(Arc::new(journal)), adopted)
        }
        None => (None, Adopted::default()),
    };
    let promises = Arc::new(Promises::default());
    let (opened, first_open) = oneshot::channel();
    let inner = Arc::new_cyclic(|me| Inner {
        promises: Arc::clone(&promises),
        shown: Shown::default(),
        forgetter: OnceLock::new(),
        me: me.clone(),
        state: Mutex::new(State {
            core: Core::new(promises, adopted.sessions.clone(), journal.is_some()),
            link: None,
            readers: Vec::new(),
            opened: Some(opened),
            open_inodes: HashMap::new(),
            nameless: HashSet::new(),
            release: Vec::new(),
            release_at_ms: u64::MAX,
            group: Group::default(),
            appends: Appends::default(),
        }),
        live: watch::Sender::new(None),
        journal,
        transfers: Transfers::default(),
        reserves: Reserves::of(Reserve::new),
        inodes: Mutex::default(),
        looks_at_appends: tokio::sync::Mutex::default(),
        invalidations: broadcast::Sender::new(INVALIDATIONS),
        armed_ms: AtomicU64::new(u64::MAX),
        timer: Notify::new(),
        wanted: Notify::new(),
        content_wanted: Notify::new(),
        counters: Counts::default(),
        last_log_error: Mutex::default(),
        tasks: Mutex::default(),
        identity,
        server_ahead_ms: AtomicI64::new(link.server_ahead_ms),
        config,
    });
    let handle = Handle { inner: Arc::clone(&inner) };
    let spawn = |task| lock(&inner.tasks).push(task);
    spawn(task::spawn(Arc::clone(&inner).keep_time()));
    spawn(task::spawn(transfer::ask_for_chunks(Arc::clone(&inner))));
    spawn(task::spawn(Arc::clone(&inner).upload_for_another_epoch()));

    inner.open_session(link, ticket).await?;
    // From here on a failing open is replaced by another login.
    spawn(task::spawn(Arc::clone(&inner).keep_session()));
    let left = timeout.saturating_sub(started.elapsed()).max(Duration::from_secs(1));
    let (ended, limited) = match tokio::time::timeout(left, first_open).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(_)) | Err(_) => {
            return Err(ConnectError::NoServer {
                brokers: inner.config.brokers.clone(),
                prefix: inner.config.prefix.clone(),
                waited: started.elapsed(),
            });
        }
    };
    let adopting = inner.adopt(adopted, ended).await;
    // Behind what earlier mounts have reserved room for; the rest of it is given back.
    Resource::ALL.into_iter().filter(|of| limited[*of]).for_each(|of| inner.limited(of));
    // What takes longer goes on behind the mount's back, as any unanswered request does.
    let _ = tokio::time::timeout(inner.config.timeout, adopting).await;
    Ok(handle)
}

impl Inner {
    /// Starts reading where the session is answered, then opens it.
    async fn open_session(self: &Arc<Self>, link: Link, ticket: Vec<u8>) -> Result<(), ConnectError> {
        let link = Arc::new(link);
        self.learn_time(link.server_ahead_ms);
        let replies = inbox::tail(self, Topic::Replies, link.replies_partition).await?;
        let bulk = inbox::tail(self, Topic::Bulk, link.bulk_partition).await?;
        let seal = Box::new(SessionSeal { link: Arc::clone(&link), ticket });
        if let Some(journal) = &self.journal {
            journal.session(link.session);
        }
        // The session that this one replaces answers for nothing any more: the kernel must not either.
        let kept_ms = self.shown.until_ms().saturating_sub(self.now_ms());
        if kept_ms > 0 {
            tokio::time::sleep(Duration::from_millis(kept_ms)).await;
        }
        self.act(|state, now_ms, actions| {
            for reader in state.readers.drain(..) {
                reader.abort();
            }
            state.readers.push(task::spawn(inbox::replies(Arc::clone(self), Arc::clone(&link), replies)));
            state.readers.push(task::spawn(inbox::served(Arc::clone(self), Arc::clone(&link), bulk)));
            state.link = Some(Arc::clone(&link));
            state.core.open(now_ms, link.session, seal, link.window_requests, actions)
        })
        .map_err(|error| ConnectError::Protocol { reason: error.to_string() })
    }

    /// One of the clocks may have been set since. What estimates differ by of themselves moves nothing: times would go back.
    fn learn_time(&self, ahead_ms: i64) {
        let known_ms = self.server_ahead_ms.load(Ordering::Relaxed);
        if known_ms.abs_diff(ahead_ms) >= CLOCK_SET_MS {
            self.server_ahead_ms.store(ahead_ms, Ordering::Relaxed);
        }
    }

    /// Logs in again whenever the session has ended or nobody answers it.
    async fn keep_session(self: Arc<Self>) {
        let mut again = LOGIN_AGAIN;
        loop {
            while !self.state().core.wants_session() {
                self.wanted.notified().await;
                again = LOGIN_AGAIN;
            }
            let wait = match login::login(&self.config, LOGIN_TIMEOUT).await {
                Ok(login) => {
                    let (_, link, ticket) = login.into();
                    // The server may have been heard meanwhile: then the session goes on.
                    if !self.state().core.wants_session() {
                        continue;
                    }
                    match self.open_session(link, ticket).await {
                        Ok(()) => {
                            tracing::info!("opened another session in place of one that had ended");
                            again
                        }
                        Err(error) => self.failed_to_replace(&error, again),
                    }
                }
                Err(error) => self.failed_to_replace(&error, again),
            };
            tokio::time::sleep(wait).await;
            again = (again * 2).min(LOGIN_AGAIN_MAX);
        }
    }

    fn failed_to_replace(&self, error: &ConnectError, again: Duration) -> Duration {
        let text = format!("the session has ended and could not be replaced yet: {error}");
        let mut last = lock(&self.last_log_error);
        if last.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            *last = Some(text);
        }
        match error {
            ConnectError::WrongLogin { .. } => LOGIN_REFUSED,
            ConnectError::SlowDown { retry, .. } => (*retry).max(again),
            _ => again,
        }
    }

    /// Sends again, in order, what earlier clients' journals hold and was never
    /// applied. What is refused is kept beside the journals and told. Gives what ends with the last answer.
    async fn adopt(self: &Arc<Self>, adopted: Adopted, ended: Vec<Ended>) -> JoinHandle<()> {
        let Some(journal) = self.journal.clone() else { return task::spawn(async {}) };
        let mut sent = Vec::new();
        let mut is_complete = true;
        for entry in adopted.entries {
            let fate = entry.sent.filter(|_| !planted(Bug::JournalResendsAll)).and_then(|(session, number)| {
                let ended = ended.iter().find(|ended| ended.session == session && ended.known)?;
                let answer = ended.results.iter().find(|(of, _)| *of == number).map(|(_, answer)| answer);
                let is_decided = number <= ended.last && !answer.is_some_and(Answer::is_void);
                is_decided.then(|| answer.map(|answer| answer.result.clone()))
            });
            match fate {
                // Applied; whoever waited for more than that is gone.
                Some(None | Some(Ok(_))) => journal.done(entry.journaled),
                Some(Some(Err(refusal))) => journal.conflict(entry.journaled, &entry.op, &refusal.to_string()),
                // The lock that it was written under went with its session.
                None if entry.only_in.is_some() && !planted(Bug::WrittenOutlivesLock) => {
                    journal.conflict(entry.journaled, &entry.op, "the lock that it was written under was lost");
                }
                None => match self.with_content(&entry.op).await {
                    Ok(op) => {
                        sent.push(self.submit_journaled(op, entry.payload, entry.time, entry.journaled));
                    }
                    Err(error) => {
                        // What comes after it may depend on it, so all of it waits for the next start.
                        tracing::warn!("what an earlier mount could not finish stays in its journal: {error}");
                        is_complete = false;
                        break;
                    }
                },
            }
        }
        if !sent.is_empty() {
            tracing::info!("sent {} requests again that an earlier mount could not finish", sent.len());
        }
        let inner = Arc::clone(self);
        let finishing = async move {
            for submitted in sent {
                // What became of it is seen to where every answer is.
                let _ = submitted.await;
            }
            if is_complete {
                inner.forget(ended);
            }
        };
        task::spawn(finishing)
    }

    /// Uploads again what requests quote of an epoch that is over, whenever the core wants it.
    async fn upload_for_another_epoch(self: Arc<Self>) {
        loop {
            let wanted = self.state().core.wants_content();
            if wanted.is_empty() {
                self.content_wanted.notified().await;
                continue;
            }
            let mut names = BTreeMap::new();
            for name in wanted {
                let again = match self.content_of(&name) {
                    Some(content) => transfer::upload_again(&self, content).await.ok(),
                    None => None,
                };
                names.insert(name, again);
            }
            self.act(|state, now_ms, actions| state.core.content_uploaded(now_ms, &names, actions));
        }
    }

    /// Uploaded content that no answered request quotes yet.
    fn content_of(&self, name: &ChunkName) -> Option<Bytes> {
        self.transfers.take_back(name).or_else(|| self.journal.as_ref()?.content(name))
    }

    /// The request with the content that it quotes uploaded again, as far as the
    /// journal has it: what the crash interrupted may never have reached the log.
    async fn with_content(self: &Arc<Self>, op: &Op) -> Result<Op, CallError> {
        let mut names = BTreeMap::new();
        for name in content::quotes(op) {
            if let Some(content) = self.content_of(&name) {
                let again = self.patience().wait(transfer::upload_again(self, content)).await??;
                names.insert(name, Some(again));
            }
        }
        let mut op = op.clone();
        content::rename(&mut op, &names).map_err(|chunk| CallError::ChunkMissing { chunk })?;
        Ok(op)
    }
}
