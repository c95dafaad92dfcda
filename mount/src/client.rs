//! The protocol as a library, used by the mount, the command line and the tests:
//! logging in, one session on the namespace's partition, requests in order,
//! promises, content up and down, and the journal of what is not known to be applied.
//!
//! * [`core`] decides everything about the session and is pure; [`driver`] feeds
//!   it time and records and does what it says.
//! * [`promises`] is what caches ask; [`transfer`] moves content; [`journal`]
//!   keeps what a crash must not lose.
//! * No cache of names, attributes or content is here: that is `fs`.

mod coming;
pub(crate) mod core;
mod driver;
mod journal;
mod keys;
mod login;
mod patience;
mod promises;
mod queue;
mod reserve;
mod shown;
mod status;
mod transfer;
mod window;

pub use driver::{First, Submitted};
pub use keys::{ContentKeys, KeyError, SealedContent};
pub use patience::{Interrupt, Patience};
pub use promises::{Continued, Grant, LEASE_MS, Promises};
pub use queue::Reader;
pub use shown::{Forget, KEEP_MS, Shown, Since};
pub use status::{ClientStatus, Counters, Drained, JournalStatus};
pub use transfer::{Download, UPLOADS_MOST};

use bytes::Bytes;
use driver::Handle;
use proto::chunk::ChunkName;
use proto::clock::Clock;
use proto::log::{Log, LogError};
use proto::login::DeviceCredential;
use proto::message::{Op, Outcome, Promise, Refusal, Resource, SessionOp, UserName, View};
use proto::{Ino, NamespaceId, Position, RequestNo, SessionId, Time};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::broadcast;
use zeroize::Zeroizing;

/// Who connects, whereto, and how patient they are.
#[derive(Clone)]
pub struct ClientConfig {
    pub log: Arc<dyn Log>,
    /// The brokers as the user wrote them; for messages and `status` only.
    pub brokers: String,
    /// The cluster's topic prefix; logins are bound to it.
    pub prefix: String,
    pub user: UserName,
    pub secret: Secret,
    /// How long connecting may take, and what [`Client::patience`] gives.
    pub timeout: Duration,
    /// Calls wait for ever instead of `timeout`.
    pub hard: bool,
    /// With one, sessions can be delegated what nobody else has to do with, and the client's user answer for it.
    pub journal: Option<JournalConfig>,
    /// What this machine takes for civil time.
    pub clock: Clock,
}

/// What proves who the user is.
#[derive(Clone)]
pub enum Secret {
    Password(Zeroizing<String>),
    Device(DeviceCredential),
}

/// Where what is not known to be applied is kept for the next start.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Made with mode 0700 if it is missing.
    pub dir: PathBuf,
    /// Of one journal file; what does not fit is not journaled.
    pub max_bytes: u64,
}

/// An open session. Clones share it; it ends with [`Client::close`], or some
/// time after the last clone is gone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Handle>,
}

/// Room taken for what is about to be written or made; free again when it is dropped.
pub struct Room {
    client: Client,
    of: Resource,
    amount: u64,
}

impl Room {
    pub fn amount(&self) -> usize {
        self.amount as usize
    }

    /// A request will use the room ([`Client::submit_reserved`]).
    pub fn keep(mut self) {
        self.amount = 0;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.amount > 0 {
            self.client.inner.untake_room(self.of, self.amount);
        }
    }
}

/// On what terms a request is sent.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// When what it asks for was done.
    pub time: Time,
    /// It must not be applied in any other session than this one: it then ends with
    /// [`CallError::SessionLost`], and what the journal holds of it is set aside.
    pub only_in: Option<SessionId>,
    /// Whoever asked is answered at once, since all that it touches is delegated ([`Promises::is_delegated`]).
    pub local: bool,
}

/// The server's yes to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer is true as of this place in the log.
    pub at: Position,
    /// The request's ([`Submitted::order`]): the answer shows what was submitted before it, and nothing after.
    pub order: u64,
    /// The session that it belongs to: what only counts in a session counts in this one.
    pub session: Option<SessionId>,
    pub outcome: Outcome,
    /// Content that came along.
    pub payload: Bytes,
    /// What may be cached from this answer, and under which grants.
    pub granted: Vec<(Promise, Grant)>,
    /// For a change: promises that went on through it.
    pub continued: Vec<Continued>,
}

/// What caches beyond the client's sight must drop. [`Promises`] says so already
/// when this is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    Promises(Vec<Promise>),
    /// Anything may have changed.
    All,
    /// The inode, open here, has no name any more.
    LastNameGone(Ino),
    /// Others have read these: as of that position their atime is this. All else still counts.
    Accessed {
        at: Position,
        inodes: Vec<(Ino, Time)>,
    },
}

/// See [`Client::set_forgetter`].
pub type Forgetter = Box<dyn Fn(Forget, Box<dyn FnOnce() + Send>) + Send + Sync>;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot log in as {user}: wrong user name or password")]
    WrongLogin { user: UserName },
    #[error("cannot log in as {user}: too many failed attempts; try again in {} s", retry.as_secs_f64().ceil())]
    SlowDown { user: UserName, retry: Duration },
    #[error(
        "Kafka answers at {brokers}, but no kfs-server with prefix {prefix:?} did within {} s; start kfs-server, or check the prefix",
        waited.as_secs()
    )]
    NoServer { brokers: String, prefix: String, waited: Duration },
    #[error("the server's answer cannot be used ({reason}); server and mount may be of different versions")]
    Protocol { reason: String },
    #[error("cannot open the keys of {user}: {reason}")]
    Keys { user: UserName, reason: String },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why a request has no reply.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The server's considered no, and what it promised with it (a name that is
    /// absent stays so until further notice).
    #[error("{refusal}")]
    Refused { refusal: Refusal, at: Position, order: u64, granted: Vec<(Promise, Grant)> },
    #[error("no answer within {} s; it may still take effect", waited.as_secs_f32())]
    TimedOut { waited: Duration },
    #[error("interrupted; it may still take effect")]
    Interrupted,
    /// It was applied, but the session ended and its result is not known.
    #[error("the session ended before the result was known")]
    SessionLost,
    #[error("the client is closed")]
    Closed,
    #[error("{} requests wait already", core::MAX_WAITING)]
    Overloaded,
    #[error(transparent)]
    Log(LogError),
    /// The request cannot be put into a record.
    #[error("cannot be sent: {reason}")]
    Unsendable { reason: String },
    #[error("{op} got an answer meant for another operation")]
    WrongAnswer { op: &'static str },
    #[error("the server does not have the content {chunk}")]
    ChunkMissing { chunk: ChunkName },
    #[error("the content {chunk} came damaged again and again")]
    Corrupt { chunk: ChunkName },
}

impl CallError {
    /// The server's refusal, if it is one.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            CallError::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }
}

impl Client {
    /// Logs in, opens the session, and adopts the journals that earlier clients
    /// of this user and cluster left: what was never applied is sent again, in
    /// order, before anything else. Takes at most `config.timeout`, and as long
    /// again for the adopted requests' answers.
    pub async fn connect(config: ClientConfig) -> Result<Client, ConnectError> {
        Ok(Client { inner: Arc::new(Handle::connect(config).await?) })
    }

    pub fn namespace(&self) -> NamespaceId {
        self.inner.identity().namespace
    }

    pub fn root(&self) -> Ino {
        Ino::root(self.namespace())
    }

    /// The uid and gid that a root mount shows for what the namespace owns.
    pub fn owner_ids(&self) -> (u32, u32) {
        (self.inner.identity().uid, self.inner.identity().gid)
    }

    /// The broker may forget what it has acknowledged (`kfs dev`).
    pub fn volatile(&self) -> bool {
        self.inner.identity().volatile
    }

    /// Seals and opens content, values and keys of the namespace.
    pub fn keys(&self) -> &ContentKeys {
        &self.inner.identity().keys
    }

    /// The configured patience: `timeout`, or none when `hard`; no interrupt.
    pub fn patience(&self) -> Patience {
        self.inner.patience()
    }

    /// Sends one request and waits for its answer. `payload` travels raw beside
    /// it. A request whose caller has given up may still take effect.
    pub async fn call(&self, op: Op, payload: Bytes, patience: &Patience) -> Result<Reply, CallError> {
        let submitted = self.submit(op, payload);
        self.inner.somebody_waits();
        self.wait(submitted, patience).await?
    }

    /// Waits for what hangs on requests: on a slow link as long as others still get there that go before.
    pub async fn wait<T>(&self, work: impl Future<Output = T>, patience: &Patience) -> Result<T, CallError> {
        patience.wait_while(work, || self.gone_up()).await
    }

    /// Somebody waits for answers to what has been submitted: none of it is held back any longer. Counted for
    /// whoever wants to know how often.
    pub fn somebody_waits(&self) {
        self.inner.somebody_waits();
    }

    /// Enters the request into the ordered stream now: requests submitted one
    /// after the other are applied in that order. Dropping the result does not
    /// undo the request. At most 65,536 wait; more are [`CallError::Overloaded`].
    pub fn submit(&self, op: Op, payload: Bytes) -> Submitted {
        self.submit_on(self.inner.terms(), op, payload)
    }

    /// The same on terms of its own.
    pub fn submit_on(&self, terms: Terms, op: Op, payload: Bytes) -> Submitted {
        self.inner.submit(op, payload, terms)
    }

    /// Enters looks that nobody waits for yet, in as few records as they fit in.
    pub fn look_ahead(&self, views: Vec<View>) -> Vec<Submitted> {
        self.inner.look_ahead(views)
    }

    /// Whether the session can be delegated anything.
    pub fn delegable(&self) -> bool {
        self.inner.delegable()
    }

    /// A number for what is made under a delegation, if one is at hand; else one is on its way.
    pub fn take_ino(&self) -> Option<Ino> {
        self.inner.take_ino()
    }

    /// Lets a request that waits in the server ([`First::Parked`]) end soon: with what it waits for,
    /// if that comes first, else with [`Refusal::Cancelled`].
    pub fn cancel(&self, session: SessionId, number: RequestNo) {
        self.inner.cancel(session, number);
    }

    /// Takes so much room, if it is there without asking: always, where there is no quota.
    pub fn take_room(&self, of: Resource, amount: usize) -> Option<Room> {
        let amount = amount as u64;
        self.inner.take_room(of, amount).then(|| Room { client: self.clone(), of, amount })
    }

    /// Asks the server for so much room, or with `part` for what there is. `None` says that there is none,
    /// and whether some may come.
    pub async fn ask_for_room(
        &self,
        of: Resource,
        amount: usize,
        part: bool,
        patience: &Patience,
    ) -> Result<(Option<Room>, bool), CallError> {
        let asked = self.wait(self.inner.ask_for_room(of, amount as u64, part), patience).await??;
        let room = (asked.taken > 0).then(|| Room { client: self.clone(), of, amount: asked.taken });
        Ok((room, asked.more))
    }

    /// Content that had room is not written after all, or takes no more than before.
    pub fn return_room(&self, bytes: usize) {
        if bytes > 0 {
            self.inner.untake_room(Resource::Bytes, bytes as u64);
        }
    }

    /// [`Client::submit_on`] for a request without content, which uses this room.
    pub fn submit_with(&self, terms: Terms, op: Op, room: Option<Room>) -> Submitted {
        let Some(room) = room else { return self.submit_on(terms, op, Bytes::new()) };
        let reserved = (room.of, room.amount());
        room.keep();
        self.submit_reserved(terms, op, Bytes::new(), reserved)
    }

    /// [`Client::submit_on`] for a request for which so much room was taken and kept.
    pub fn submit_reserved(&self, terms: Terms, op: Op, payload: Bytes, (of, amount): (Resource, usize)) -> Submitted {
        self.inner.submit_reserved(terms, op, payload, (of, amount as u64))
    }

    /// Whether there is a quota of this.
    pub fn is_limited(&self, of: Resource) -> bool {
        self.inner.is_limited(of)
    }

    /// Under a quota: what is deleted and what is reserved without need is free before whatever is asked next.
    pub fn free_unused(&self) {
        for of in Resource::ALL.into_iter().filter(|of| self.is_limited(*of)) {
            self.inner.release_now();
            self.inner.give_back_room(of);
        }
    }

    /// The civil time for changes: this machine's clock, corrected by how it
    /// differed from the server's at login.
    pub fn now(&self) -> Time {
        self.inner.now()
    }

    /// Uploads sealed content as a chunk and gives its name. Waits while too many
    /// uploaded bytes are not yet quoted by an answered request. Where the log
    /// cannot tell the offset it is uploaded again.
    pub async fn upload_chunk(&self, sealed: Bytes, patience: &Patience) -> Result<ChunkName, CallError> {
        patience.wait_for_content(transfer::upload(&self.inner, sealed), || self.gone_up()).await?
    }

    /// Chunks that have been uploaded since the client was made, and requests that have got to the log: whoever waits for
    /// written content waits while it rises.
    pub fn gone_up(&self) -> u64 {
        let counters = &self.inner.counters;
        counters.uploaded.load(Ordering::Relaxed) + counters.appended.load(Ordering::Relaxed)
    }

    /// Chunks that have been downloaded since, for whoever waits to read.
    pub fn downloaded_chunks(&self) -> u64 {
        self.inner.counters.downloaded.load(Ordering::Relaxed)
    }

    /// Chunks that had better be uploaded side by side: more than that would only wait for each other. From 2 to
    /// [`UPLOADS_MOST`].
    pub fn uploads_at_once(&self) -> usize {
        self.inner.transfers.uploads_at_once()
    }

    /// Downloads sealed content, for who waits for it or to have it ahead; its hash is verified. Asks for the same chunk
    /// at the same time are one; bytes under way are bounded.
    pub async fn download(
        &self,
        chunk: &ChunkName,
        reader: Option<Reader>,
        patience: &Patience,
    ) -> Result<Bytes, CallError> {
        let started = transfer::download(&self.inner, std::slice::from_ref(chunk), reader).pop();
        self.downloaded(started.ok_or(CallError::Closed)?, patience).await
    }

    /// Begins to download several chunks, in as few records as they fit in.
    pub fn download_all(&self, chunks: &[ChunkName], reader: Option<Reader>) -> Vec<Download> {
        transfer::download(&self.inner, chunks, reader)
    }

    /// Somebody waits for these now, as far as they are being downloaded.
    pub fn hurry(&self, chunks: &[ChunkName], reader: Reader) {
        transfer::hurry(&self.inner, chunks, reader);
    }

    /// What a download gives.
    pub async fn downloaded(&self, download: Download, patience: &Patience) -> Result<Bytes, CallError> {
        patience.wait_for_content(download.done(), || self.downloaded_chunks()).await?
    }

    /// The session that is open now: part of the names of content that its requests carry.
    pub fn session(&self) -> Option<SessionId> {
        self.inner.session()
    }

    /// The session that the next request would be sent in. What only counted in another one is over.
    pub fn sends_in(&self) -> Option<SessionId> {
        self.inner.sends_in()
    }

    /// Bytes of content that may be uploaded and not yet quoted by an answered
    /// request; 0 while no session is open.
    pub fn window_bytes(&self) -> u64 {
        self.inner.window_bytes()
    }

    /// What may be cached, right now.
    pub fn promises(&self) -> &Promises {
        self.inner.promises()
    }

    /// What the kernel may keep.
    pub fn shown(&self) -> &Shown {
        self.inner.shown()
    }

    /// Who makes the kernel forget. It must only queue, and call what it is given when that is done.
    /// Only the first one counts.
    pub fn set_forgetter(&self, forgetter: Forgetter) {
        self.inner.set_forgetter(forgetter);
    }

    /// Invalidations from now on. A receiver that lags behind (1024) must drop everything.
    pub fn invalidations(&self) -> broadcast::Receiver<Invalidation> {
        self.inner.invalidations()
    }

    /// One more handle on the inode is open: promises are kept up, and the inode
    /// outlives its last name.
    pub fn set_open(&self, ino: Ino) {
        self.inner.set_open(ino);
    }

    /// One handle less; with the last one a nameless inode is released.
    pub fn set_closed(&self, ino: Ino) {
        self.inner.set_closed(ino);
    }

    pub fn status(&self) -> ClientStatus {
        self.inner.status()
    }

    /// The first half of an fsync: waits until all that was answered under delegations is safe in the log. `false` says
    /// that it cannot be told from there, so that the server's answers are to be waited for.
    ///
    /// # Errors
    /// As `patience` ends; not as long as the log tells of more and more requests.
    pub async fn stored(&self, patience: &Patience) -> Result<bool, CallError> {
        if self.volatile() {
            return Ok(false);
        }
        patience.wait_for_content(self.inner.stored(), || self.gone_up()).await
    }

    /// The second half of an fsync, after the answers to all that it covers: with a
    /// volatile broker it waits for the server's checkpoint, else it is done at once.
    pub async fn sync(&self, patience: &Patience) -> Result<(), CallError> {
        if self.volatile() {
            self.call(Op::Session(SessionOp::Sync), Bytes::new(), patience).await?;
        }
        Ok(())
    }

    /// Waits until nothing is unanswered, at most `limit`.
    pub async fn drain(&self, limit: Duration) -> Drained {
        self.inner.drain(limit).await
    }

    /// Ends the session: waits up to 2 s for the server to hear of it. The
    /// journal goes if nothing is pending; else it stays for the next start.
    pub async fn close(self) {
        self.inner.close().await;
    }
}
