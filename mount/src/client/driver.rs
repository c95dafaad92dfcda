//! The tasks around the core: they give it time and records, and do what it says.
//!
//! * Numbers are given and records queued under one lock, so the log has them in
//!   order. Waiters are woken after the lock is free.
//! * An answer's way is short: the thread that reads it opens it, hands it to the
//!   core and wakes the caller itself.
//! * A reading thread for replies, one for served content; a task for time, one for
//!   logins. All end with the last handle.

mod appends;
mod connect;
mod group;
mod inbox;
mod inodes;
mod reserve;
mod submit;

use super::core::{Action, Core, Entry};
use super::journal::Journal;
use super::patience::Patience;
use super::promises::Promises;
use super::status::{ClientStatus, Counters, Drained};
use super::transfer::Transfers;
use super::{CallError, ClientConfig, ConnectError, ContentKeys, Forgetter, Invalidation, Reply, Shown, Terms, login};
use appends::Appends;
use bytes::Bytes;
use group::Group;
use inodes::Inodes;
use proto::chunk::SEALED_MAX_BYTES;
use proto::frame::Kind;
use proto::log::{LogError, Topic};
use proto::message::{Attr, Each, Ended, FileKind, Op, Open, Outcome, Request, Resource, SessionOp};
use proto::seal::{Context, Direction, Head, Key, SealError, seal};
use proto::{Epoch, Ino, NamespaceId, RequestNo, SessionId, Time};
use reserve::{Reserve, Reserves};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use submit::Caller;
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use submit::{First, Submitted};

/// Invalidations that a receiver may lag behind.
const INVALIDATIONS: usize = 1024;

/// How long nameless inodes gather before they are released together, and how many at most.
const RELEASE_AFTER_MS: u64 = 500;
/// The same under a quota, where others may wait for the room.
const RELEASE_SOON_MS: u64 = 20;
const RELEASE_MAX: usize = 512;

/// How long closing waits for the server to hear of it.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// What does not change while the client lives.
pub(super) struct Identity {
    pub namespace: NamespaceId,
    pub uid: u32,
    pub gid: u32,
    pub volatile: bool,
    pub keys: ContentKeys,
}

/// One session's way to and from the server.
pub(super) struct Link {
    pub session: SessionId,
    pub key: Key,
    pub chunk_key: Key,
    pub epoch: Epoch,
    pub namespace: NamespaceId,
    pub partition: u32,
    pub replies_partition: u32,
    pub bulk_partition: u32,
    pub window_requests: usize,
    pub window_bytes: u64,
    /// What the server's time was ahead of this machine's steady one.
    pub server_ahead_ms: i64,
}

impl Link {
    /// Chunks that may be asked for and not have come.
    pub fn most_chunks(&self) -> usize {
        (self.window_bytes as usize / SEALED_MAX_BYTES).max(1)
    }
}

/// The client itself. Its last [`Handle`] ends its tasks.
pub(super) struct Inner {
    pub config: ClientConfig,
    identity: Identity,
    /// What is added to this machine's steady time to get the server's, in milliseconds.
    server_ahead_ms: AtomicI64,
    promises: Arc<Promises>,
    shown: Shown,
    forgetter: OnceLock<Forgetter>,
    me: Weak<Inner>,
    state: Mutex<State>,
    /// The session's link once it is open.
    live: watch::Sender<Option<Arc<Link>>>,
    pub journal: Option<Arc<Journal>>,
    pub transfers: Transfers,
    reserves: Reserves,
    inodes: Mutex<Inodes>,
    /// Held by whoever is woken when something becomes of an append.
    looks_at_appends: tokio::sync::Mutex<()>,
    invalidations: broadcast::Sender<Invalidation>,
    /// The moment that the timer waits for, and what wakes it earlier.
    armed_ms: AtomicU64,
    timer: Notify,
    /// What the core wants: another session, content uploaded again.
    wanted: Notify,
    content_wanted: Notify,
    pub counters: Counts,
    last_log_error: Mutex<Option<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

struct State {
    core: Core<Caller>,
    link: Option<Arc<Link>>,
    /// The reader of the current session's replies and content.
    readers: Vec<JoinHandle<()>>,
    /// Taken by the first `Opened`.
    opened: Option<oneshot::Sender<(Vec<Ended>, Each<bool>)>>,
    open_inodes: HashMap<Ino, u32>,
    nameless: HashSet<Ino>,
    release: Vec<Ino>,
    release_at_ms: u64,
    /// What the core has sent and nobody waits for, for a moment.
    group: Group,
    appends: Appends,
}

#[derive(Default)]
pub(super) struct Counts {
    pub requests: AtomicU64,
    pub waits: AtomicU64,
    pub reads: AtomicU64,
    pub sent: AtomicU64,
    pub resent: AtomicU64,
    pub answers: AtomicU64,
    pub pushes: AtomicU64,
    pub quarantined: AtomicU64,
    pub sessions: AtomicU64,
    /// Requests that the log has: no upkeep and no repeats.
    pub appended: AtomicU64,
    pub uploaded: AtomicU64,
    pub downloaded: AtomicU64,
}

/// Keeps the client's tasks running as long as anyone holds it.
pub(super) struct Handle {
    inner: Arc<Inner>,
}

impl std::ops::Deref for Handle {
    type Target = Arc<Inner>;
    fn deref(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Handle {
    /// Makes the client: see [`super::Client::connect`].
    pub(super) async fn connect(config: ClientConfig) -> Result<Handle, ConnectError> {
        connect::connect(config).await
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.stop_tasks();
    }
}

impl Inner {
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn promises(&self) -> &Promises {
        &self.promises
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    pub(super) fn set_forgetter(&self, forgetter: Forgetter) {
        let _ = self.forgetter.set(forgetter);
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        self.live.borrow().as_ref().map(|link| link.session)
    }

    pub(super) fn sends_in(&self) -> Option<SessionId> {
        self.state().core.session()
    }

    pub(super) fn window_bytes(&self) -> u64 {
        self.live.borrow().as_ref().map_or(0, |link| link.window_bytes)
    }

    pub(super) fn patience(&self) -> Patience {
        if self.config.hard { Patience::for_ever() } else { Patience::within(self.config.timeout) }
    }

    pub(super) fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.invalidations.subscribe()
    }

    /// The server's time, as far as that is known: this machine's clock may be wrong, and be set meanwhile.
    pub(super) fn now(&self) -> Time {
        let ahead_ms = self.server_ahead_ms.load(Ordering::Relaxed);
        Time::from_nanos(self.config.clock.steady_nanos() + i128::from(ahead_ms) * 1_000_000)
    }

    /// Nothing is held back while somebody waits.
    pub(super) fn somebody_waits(&self) {
        self.counters.waits.fetch_add(1, Ordering::Relaxed);
        self.append_held();
    }

    fn append_held(&self) {
        let now_ms = self.now_ms();
        self.append_group(&mut self.state(), now_ms);
    }

    pub(super) fn delegable(&self) -> bool {
        self.journal.is_some()
    }

    /// Of a request of now, which may be applied in any session.
    pub(super) fn terms(&self) -> Terms {
        Terms { time: self.now(), only_in: None, local: false }
    }

    pub(super) fn now_ms(&self) -> u64 {
        proto::clock::monotonic_ms()
    }

    /// The open session's link; `None` while there is none.
    pub(super) fn live(&self) -> watch::Receiver<Option<Arc<Link>>> {
        self.live.subscribe()
    }

    pub(super) fn set_open(&self, ino: Ino) {
        self.act(|state, now_ms, _| {
            *state.open_inodes.entry(ino).or_default() += 1;
            state.core.set_open_inodes(now_ms, state.open_inodes.len());
        });
    }

    pub(super) fn set_closed(&self, ino: Ino) {
        let after_ms = self.release_after_ms();
        self.act(|state, now_ms, _| {
            let Some(handles) = state.open_inodes.get_mut(&ino) else { return };
            *handles -= 1;
            if *handles == 0 {
                state.open_inodes.remove(&ino);
                state.core.set_open_inodes(now_ms, state.open_inodes.len());
                if state.nameless.remove(&ino) {
                    state.release_later(now_ms, after_ms, ino);
                }
            }
        });
    }

    pub(super) fn status(&self) -> ClientStatus {
        let now_ms = self.now_ms();
        let (upload_bytes, download_bytes) = self.transfers.bytes();
        let state = self.state();
        let oldest = state.core.unanswered().map(|entry| entry.entered_ms).min();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ClientStatus {
            user: self.config.user.to_string(),
            brokers: self.config.brokers.clone(),
            prefix: self.config.prefix.clone(),
            namespace: self.identity.namespace.0,
            session: state.core.session().map(|session| session.to_string()),
            online: state.core.is_live() && state.core.offline_since_ms().is_none(),
            offline_ms: state.core.offline_since_ms().map(|since| now_ms.saturating_sub(since)),
            last_heard_ms: now_ms.saturating_sub(state.core.heard_ms()),
            unanswered: state.core.unanswered().count(),
            oldest_unanswered_ms: oldest.map(|entered| now_ms.saturating_sub(entered)),
            upload_bytes,
            download_bytes,
            promises: self.promises.held(),
            open_inodes: state.open_inodes.len(),
            journal: self.journal.as_ref().map(|journal| journal.status()),
            last_log_error: lock(&self.last_log_error).clone(),
            counters: Counters {
                requests: load(&self.counters.requests),
                waits: load(&self.counters.waits),
                reads: load(&self.counters.reads),
                records_sent: load(&self.counters.sent),
                records_resent: load(&self.counters.resent),
                answers: load(&self.counters.answers),
                pushes: load(&self.counters.pushes),
                quarantined: load(&self.counters.quarantined),
                sessions: load(&self.counters.sessions),
                chunks_uploaded: load(&self.counters.uploaded),
                chunks_downloaded: load(&self.counters.downloaded),
            },
        }
    }

    pub(super) async fn drain(&self, limit: Duration) -> Drained {
        self.append_held();
        let deadline = Instant::now() + limit;
        loop {
            let left: Vec<String> =
                self.state().core.unanswered().map(|entry| super::status::describe(&entry.op)).collect();
            if left.is_empty() || Instant::now() >= deadline {
                return Drained { left };
            }
            tokio::time::sleep(Duration::from_millis(10).min(limit)).await;
        }
    }

    pub(super) async fn close(&self) {
        if self.state().core.is_live() {
            let closed = self.submit(Op::Session(SessionOp::Close), Bytes::new(), self.terms());
            // If the server does not hear of it, the session expires by itself.
            let _ = tokio::time::timeout(CLOSE_WAIT, closed).await;
        }
        self.stop_tasks();
        // Closing hands every waiting entry back; what is not known to be applied stays in the journal.
        self.act(|state, now_ms, actions| state.core.close(now_ms, actions));
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Runs a step of the core under the lock, sends what it wants sent, then
    /// does the rest without the lock.
    fn act<T>(&self, step: impl FnOnce(&mut State, u64, &mut Vec<Action<Caller>>) -> T) -> T {
        let mut actions = Vec::new();
        let now_ms = self.now_ms();
        let (out, wake_ms) = {
            let mut state = self.state();
            let out = step(&mut state, now_ms, &mut actions);
            self.forget_shown(&mut state, now_ms, &actions);
            self.send(&mut state, now_ms, &mut actions);
            (out, state.wake_ms())
        };
        if wake_ms < self.armed_ms.load(Ordering::Acquire) {
            self.timer.notify_one();
        }
        for action in actions {
            self.carry_out(action);
        }
        out
    }

    /// Has the kernel forget what it was told it may keep and does not count any more. The core's next step confirms no
    /// recall before that is done.
    fn forget_shown(&self, state: &mut State, now_ms: u64, actions: &[Action<Caller>]) {
        for action in actions {
            let forget = match action {
                Action::Invalidate(Invalidation::Promises(things)) => self.shown.recall(things),
                Action::Invalidate(Invalidation::All) => self.shown.recall_all(),
                _ => continue,
            };
            let Some(forgetter) = self.forgetter.get().filter(|_| !forget.is_empty()) else { continue };
            let number = (forget.until_ms > now_ms).then(|| state.core.kernel_forgets(forget.until_ms));
            let me = self.me.clone();
            let done = move || {
                if let (Some(inner), Some(number)) = (me.upgrade(), number) {
                    inner.act(|state, now_ms, actions| state.core.kernel_forgot(now_ms, number, actions));
                }
            };
            forgetter(forget, Box::new(done));
        }
    }

    /// Takes the records among the actions out, in order, and queues them: at once, if there is one that anybody
    /// waits for.
    fn send(&self, state: &mut State, now_ms: u64, actions: &mut Vec<Action<Caller>>) {
        let Some(session) = state.link.as_ref().map(|link| link.session) else { return };
        let mut at_once = false;
        actions.retain(|action| {
            let Action::Send { number, frame, journaled, again, waits } = action else { return true };
            if let (Some(journal), Some(journaled)) = (&self.journal, journaled) {
                journal.sent(*journaled, session, *number);
            }
            self.hold(state, now_ms, session, (*number, frame.clone()), *again);
            at_once |= *waits;
            false
        });
        if at_once {
            self.append_group(state, now_ms);
        }
    }

    fn carry_out(&self, action: Action<Caller>) {
        match action {
            Action::Send { .. } => {}
            Action::Done { entry, result } => self.done(entry, result),
            Action::Opened { ended, limited } => self.opened(ended, limited),
            Action::Limited(of) => self.limited(of),
            Action::GiveBack(of) => self.give_back_room(of),
            Action::WantSession => self.wanted.notify_one(),
            Action::WantContent => self.content_wanted.notify_one(),
            Action::Invalidate(invalidation) => {
                if let Invalidation::LastNameGone(ino) = invalidation {
                    self.last_name_gone(ino);
                }
                // Nobody listening is fine: the promise table is what counts.
                let _ = self.invalidations.send(invalidation);
            }
        }
    }

    fn done(&self, entry: Entry<Caller>, result: Result<Reply, CallError>) {
        let is_known = !matches!(result, Err(CallError::Closed));
        if is_known {
            if let (Some(journal), Some(journaled)) = (&self.journal, entry.journaled) {
                match &result {
                    // Nobody is left who could be told: what an earlier mount wrote is kept.
                    Err(error) if journaled.is_adopted() || entry.answered => {
                        journal.conflict(journaled, &entry.op, &error.to_string());
                    }
                    // Whoever had the lock since may have written there as well.
                    Err(CallError::SessionLost) if entry.only_in.is_some() => {
                        journal.conflict(journaled, &entry.op, "the lock that it was written under was lost");
                    }
                    _ => journal.done(journaled),
                }
            }
            self.transfers.quoted(&entry.op);
        }
        match &result {
            Ok(Reply { outcome: Outcome::Removed(gone), .. }) => self.lost_a_name(gone),
            Ok(Reply { outcome: Outcome::Renamed { other: Some(gone), .. }, .. }) => self.lost_a_name(gone),
            _ => {}
        }
        if let Some(caller) = entry.waiter {
            // A caller that has given up does not look.
            let _ = caller.answer.send(result);
        }
    }

    fn lost_a_name(&self, attr: &Attr) {
        if attr.nlink == 0 && attr.kind != FileKind::Dir {
            self.last_name_gone(attr.ino);
        }
    }

    /// The inode is kept for us until we say that it is not open here.
    fn last_name_gone(&self, ino: Ino) {
        let after_ms = self.release_after_ms();
        self.act(|state, now_ms, _| {
            if state.open_inodes.contains_key(&ino) {
                state.nameless.insert(ino);
            } else {
                state.release_later(now_ms, after_ms, ino);
            }
        });
    }

    fn release_after_ms(&self) -> u64 {
        let is_limited = Resource::ALL.into_iter().any(|of| self.is_limited(of));
        if is_limited { RELEASE_SOON_MS } else { RELEASE_AFTER_MS }
    }

    /// What is not open any more is free before anything that comes after this.
    pub(super) fn release_now(&self) {
        self.act(|state, now_ms, actions| {
            if state.core.is_live() && !state.release.is_empty() {
                state.release(now_ms, actions);
            }
        });
    }

    fn opened(&self, ended: Vec<Ended>, limited: Each<bool>) {
        self.counters.sessions.fetch_add(1, Ordering::Relaxed);
        let (link, first) = {
            let mut state = self.state();
            (state.link.clone(), state.opened.take())
        };
        self.live.send_replace(link);
        match first {
            // The first open's replaced sessions are of adopted journals: forgotten when those are seen to.
            Some(opened) => {
                let _ = opened.send((ended, limited));
            }
            None => {
                self.forget(ended);
                // What is under way goes before.
                for of in Resource::ALL {
                    if limited[of] && !self.is_limited(of) {
                        self.limited(of);
                    }
                }
            }
        }
    }

    /// The results of ended sessions have been taken.
    fn forget(&self, ended: Vec<Ended>) {
        let ended: Vec<SessionId> = ended.into_iter().filter(|e| e.known).map(|e| e.session).collect();
        if !ended.is_empty() {
            self.enter(None, Op::Session(SessionOp::Forget { ended }), Bytes::new(), self.terms(), None);
        }
    }

    pub(super) fn log_error(&self, error: &LogError) {
        let text = error.to_string();
        let mut last = lock(&self.last_log_error);
        if last.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            *last = Some(text);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn stop_tasks(&self) {
        for task in lock(&self.tasks).drain(..).chain(self.state().readers.drain(..)) {
            task.abort();
        }
    }

    /// Time passes: does what is due, then sleeps until something is.
    async fn keep_time(self: Arc<Self>) {
        loop {
            let wake_ms = self.act(|state, now_ms, actions| {
                state.core.poll(now_ms, actions);
                if now_ms >= state.release_at_ms {
                    if state.core.is_live() {
                        state.release(now_ms, actions);
                    } else {
                        state.release_at_ms = now_ms + RELEASE_AFTER_MS;
                    }
                }
                if now_ms >= state.group.due_ms() {
                    self.append_group(state, now_ms);
                }
                if now_ms >= state.appends.due_ms() {
                    self.look_at_appends_later(state, now_ms);
                }
                let wake_ms = state.wake_ms();
                self.armed_ms.store(wake_ms, Ordering::Release);
                wake_ms
            });
            // Never busy, whatever the core says; never longer than a minute.
            let sleep_ms = wake_ms.saturating_sub(self.now_ms()).clamp(2, 60_000);
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(sleep_ms)) => {}
                () = self.timer.notified() => {}
            }
        }
    }
}

impl State {
    /// When time has something to do next.
    fn wake_ms(&self) -> u64 {
        self.core.wake_ms().min(self.release_at_ms).min(self.group.due_ms()).min(self.appends.due_ms())
    }

    fn release_later(&mut self, now_ms: u64, after_ms: u64, ino: Ino) {
        self.release.push(ino);
        let due_ms = if self.release.len() >= RELEASE_MAX { now_ms } else { now_ms + after_ms };
        self.release_at_ms = self.release_at_ms.min(due_ms);
    }

    fn release(&mut self, now_ms: u64, actions: &mut Vec<Action<Caller>>) {
        self.release_at_ms = u64::MAX;
        // The answer that opened it may have been on its way to its caller when it lost its name.
        let (open, release) = self.release.drain(..).partition(|ino| self.open_inodes.contains_key(ino));
        self.release = release;
        self.nameless.extend::<Vec<Ino>>(open);
        while !self.release.is_empty() {
            let rest = self.release.split_off(self.release.len().min(RELEASE_MAX));
            let inos = std::mem::replace(&mut self.release, rest);
            let entry = Entry::own(Op::Session(SessionOp::Release { inos }), now_ms);
            self.core.submit(now_ms, entry, actions);
        }
    }
}

/// Seals what a session sends to its request partition.
struct SessionSeal {
    link: Arc<Link>,
    ticket: Vec<u8>,
}

impl SessionSeal {
    fn seal<T: serde::Serialize>(
        &self,
        kind: Kind,
        number: RequestNo,
        body: &T,
        payload: &[u8],
    ) -> Result<Bytes, SealError> {
        let link = &self.link;
        let head =
            Head { kind, namespace: link.namespace, epoch: link.epoch, sender: link.session.0, number: number.0 };
        let context = Context {
            direction: Direction::ToServer,
            topic: Topic::Requests,
            partition: link.partition,
            answers: None,
        };
        Ok(seal(&link.key, &head, &context, body, payload)?.record)
    }
}

impl super::core::Seal for SessionSeal {
    fn epoch(&self) -> Epoch {
        self.link.epoch
    }

    fn open(&mut self, body: &Open) -> Result<Bytes, SealError> {
        self.seal(Kind::Open, RequestNo(0), body, &self.ticket)
    }

    fn request(&mut self, number: RequestNo, body: &Request, payload: &[u8]) -> Result<Bytes, SealError> {
        self.seal(Kind::Request, number, body, payload)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is kept under these locks is whole after each step; a panic elsewhere must not take the mount down.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<login::LoggedIn> for (Identity, Link, Vec<u8>) {
    fn from(login: login::LoggedIn) -> Self {
        let done = login.done;
        let link = Link {
            session: done.session,
            key: login.key,
            chunk_key: done.chunk_key,
            epoch: done.epoch,
            namespace: done.namespace,
            partition: done.partition,
            replies_partition: done.replies_partition,
            bulk_partition: done.bulk_partition,
            window_requests: done.window_requests as usize,
            window_bytes: done.window_bytes,
            server_ahead_ms: login.server_ahead_ms,
        };
        let identity = Identity {
            namespace: done.namespace,
            uid: done.uid,
            gid: done.gid,
            volatile: done.volatile,
            keys: login.keys,
        };
        (identity, link, done.ticket)
    }
}
