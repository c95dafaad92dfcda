//! The deterministic state machine over one partition of the request log: the same
//! records in give the same state, answers and pushes out, on every server and in
//! every replay.
//!
//! Nothing here reads a clock, does I/O, draws random numbers or depends on the
//! order of a hash map; time and order come from the records. What is large lives
//! in rows ([`kv`]); what is small and alive (sessions, promises, held answers, log
//! time) is in memory and is dumped with each checkpoint.
//!
//! A record is checked first and changes things after, so a refused request leaves
//! no trace. What does not authenticate is skipped. What a server sealed and is not
//! understood stops this one, since skipping it would let replicas diverge; what a
//! client sealed and is not understood is refused, at its number.

pub mod check;
pub mod effect;
pub mod kv;

mod accessed;
mod acl;
mod clock;
mod delegation;
mod delete;
mod history;
mod incarnation;
mod lock;
mod opened;
mod park;
mod promise;
mod quota;
mod quotes;
mod rename;
mod request;
mod rows;
mod servers;
mod session;
mod shared;
mod upload;
mod users;
mod view;
mod waiting;
mod write;

#[cfg(test)]
mod tests;

pub use incarnation::OF_NO_INCARNATION;
pub use quotes::{is_referenced, quotes_over};
pub use rows::{STATE_CONTENT_BYTES, content};
pub use servers::Registered;
pub use session::{open_ticket, seal_ticket};
pub use users::{StoredUser, user};

use bytes::Bytes;
use delegation::Delegated;
use effect::{Applied, Effect, NotApplied, Peer};
use incarnation::Incarnation;
use kv::Kv;
use lock::Holdings;
use lock::table::FileLocks;
use park::Parked;
use promise::{Held, Things};
use proto::frame::{self, Frame, Kind};
use proto::keys::ClusterKey;
use proto::log::Topic;
use proto::message::{Activity, Each, Promise, Refusal, Request, ServerBody, UserName};
use proto::planted::{Bug, planted};
use proto::seal::{self, Context, Direction, Key, SealError};
use proto::{Epoch, IncarnationId, Ino, LogTime, NamespaceId, Position, RequestNo, ServerId, SessionId};
use rows::Turn;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use session::{EndedMark, Session};
use shared::Shared;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use users::Bucket;
use waiting::Waiting;

/// The newest behaviour that this program knows; a `Version` record raises the
/// state's own up to it.
pub const MACHINE_VERSION: u32 = 1;

/// One more than that where upgrades are tested; it only chains hashes another way.
const TESTED_VERSION: u32 = if cfg!(any(test, feature = "simulation")) { MACHINE_VERSION + 1 } else { MACHINE_VERSION };

/// The format of [`Image::dump`].
const DUMP_VERSION: u8 = 2;

/// One partition's machine. Its rows are given to each call.
pub struct Machine {
    partition: u32,
    secrets: Arc<ClusterKey>,
    /// The newest version that this program can behave as.
    knows: u32,
    live: Live,
    /// Who holds which promise; follows from the sessions.
    holders: BTreeSet<(Promise, SessionId)>,
    things: Things,
    /// Ended sessions that may be quoted from, by when that ends; follows from [`Live::quotable`].
    quotable_order: BTreeSet<(LogTime, SessionId)>,
    /// The uploads that have been quoted since this program began stand before this.
    quoted: (Epoch, u64),
    holdings: Holdings,
    delegated: Delegated,
    /// What of requests that wait is kept, in bytes; follows from [`Live::waiting`].
    waiting_bytes: u64,
    /// Something that requests may wait for has been given back in this turn.
    is_freed: bool,
    /// Nothing has shown yet that the log is the one that this state comes from; what is to show it is a further record
    /// of one of these incarnations.
    unproven: Option<BTreeSet<IncarnationId>>,
}

/// The part of the state that lives in memory.
#[derive(Clone, Serialize, Deserialize)]
struct Live {
    /// 0 before the first epoch: then everything but an `Epoch` record is void.
    epoch: Epoch,
    append_time: bool,
    volatile: bool,
    version: u32,
    applied: Option<Position>,
    hash: [u8; 32],
    now: LogTime,
    last_moved_append_ms: Option<i64>,
    incarnations: BTreeMap<IncarnationId, Incarnation>,
    sessions: BTreeMap<SessionId, Shared<Session>>,
    /// Ended sessions that are still told so, and whose id cannot be used again.
    ended: BTreeMap<SessionId, EndedMark>,
    /// The same by the order of their ends.
    ended_order: BTreeSet<(Position, SessionId)>,
    /// Inodes without names, and who may have them open.
    nameless: BTreeMap<Ino, BTreeSet<SessionId>>,
    held: BTreeMap<u64, Held>,
    next_held: u64,
    buckets: BTreeMap<UserName, Bucket>,
    /// Partition 0: whose checkpoints the log's trimming waits for.
    #[serde(default)]
    servers: BTreeMap<ServerId, Registered>,
    /// Until when sessions that have ended may be quoted from by their successors.
    #[serde(default)]
    quotable: BTreeMap<SessionId, LogTime>,
    /// What sessions have reserved under a quota, and ended ones for their successors. Each has something.
    reserves: BTreeMap<NamespaceId, BTreeMap<SessionId, Each<u64>>>,
    /// Whose history is looked at next.
    #[serde(default)]
    history_turn: NamespaceId,
    /// Sessions of the epoch before may rely on their promises until then, so nobody is
    /// told before that a session is open.
    #[serde(default)]
    grace_until: Option<LogTime>,
    #[serde(default)]
    locks: BTreeMap<Ino, Shared<FileLocks>>,
    /// Requests that wait, by session and number.
    #[serde(default)]
    parked: BTreeMap<(SessionId, RequestNo), Parked>,
    /// Those of them that wait for what others are delegated, in the order of their coming.
    #[serde(default)]
    waiting: BTreeMap<u64, Shared<Waiting>>,
    #[serde(default)]
    next_waiting: u64,
    /// What somebody has had to wait for lately, and until when.
    #[serde(default)]
    contended: BTreeMap<Promise, LogTime>,
}

/// A machine's in-memory part at one moment. Taking it costs little, since what is
/// large is shared until it changes; encoding it may take as long as it likes.
pub struct Image(Live);

impl Image {
    /// What [`Machine::restore`] reads. It holds sessions' keys, so it belongs beside
    /// the cluster key and nowhere else.
    pub fn dump(&self) -> Vec<u8> {
        self.0.dump()
    }
}

impl Live {
    fn dump(&self) -> Vec<u8> {
        let mut out = vec![DUMP_VERSION];
        rmp_serde::encode::write(&mut out, self).expect("the state has an encoding");
        out
    }
}

/// A dump that cannot be read back.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read the checkpoint's dump of partition {partition}: {reason}; restore a snapshot, or run the kfs-server that wrote it"
)]
pub struct DumpError {
    partition: u32,
    reason: String,
}

/// What stops a record from taking effect.
enum Stop {
    Skip(&'static str),
    NotUnderstood(String),
    /// A server's record of a later epoch, whose beginning is not in this log.
    NotBegun(Epoch),
    /// An epoch that begins from a state that is not this one.
    OtherState {
        epoch: Epoch,
        by: ServerId,
        from: [u8; 32],
    },
    /// An epoch that begins where nothing shows that the log is the one that was applied.
    Unproven {
        epoch: Epoch,
        by: ServerId,
    },
}

impl Machine {
    /// The machine of a partition that nothing has been applied to.
    pub fn new(partition: u32, secrets: Arc<ClusterKey>) -> Machine {
        let live = Live {
            epoch: Epoch(0),
            append_time: false,
            volatile: false,
            version: 1,
            applied: None,
            hash: [0; 32],
            now: LogTime(0),
            last_moved_append_ms: None,
            incarnations: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            ended_order: BTreeSet::new(),
            nameless: BTreeMap::new(),
            held: BTreeMap::new(),
            next_held: 0,
            buckets: BTreeMap::new(),
            servers: BTreeMap::new(),
            quotable: BTreeMap::new(),
            reserves: BTreeMap::new(),
            history_turn: NamespaceId(0),
            grace_until: None,
            locks: BTreeMap::new(),
            parked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_waiting: 0,
            contended: BTreeMap::new(),
        };
        Machine::of(partition, secrets, live)
    }

    fn of(partition: u32, secrets: Arc<ClusterKey>, live: Live) -> Machine {
        Machine {
            partition,
            secrets,
            knows: MACHINE_VERSION,
            live,
            holders: BTreeSet::new(),
            things: Things::default(),
            quotable_order: BTreeSet::new(),
            quoted: (Epoch(0), 0),
            holdings: Holdings::default(),
            delegated: Delegated::default(),
            waiting_bytes: 0,
            is_freed: false,
            unproven: None,
        }
    }

    /// The same where the record before the next one has been trimmed: that the log goes on from here, nobody can say
    /// before a server of this epoch is seen to go on in it. What clients send shows nothing, since it may come late. An
    /// epoch that begins there may have begun before, and this be another attempt or the same record once more; so no
    /// epoch is followed, even if it is said to begin from this very state.
    pub fn on_unproven_log(self) -> Machine {
        let known = self.live.incarnations.keys().copied().collect();
        Machine { unproven: Some(known), ..self }
    }

    /// The in-memory part as it is now, to be kept with the rows as they are now.
    pub fn image(&self) -> Image {
        Image(self.live.clone())
    }

    /// [`Image::dump`] of the present state.
    pub fn dump(&self) -> Vec<u8> {
        self.live.dump()
    }

    /// The machine that was dumped, given the rows of that moment.
    pub fn restore(partition: u32, secrets: Arc<ClusterKey>, dump: &[u8]) -> Result<Machine, DumpError> {
        let error = |reason: String| DumpError { partition, reason };
        let live: Live = match dump.split_first() {
            Some((&DUMP_VERSION, rest)) => rmp_serde::from_slice(rest).map_err(|e| error(e.to_string()))?,
            Some((version, _)) => return Err(error(format!("unknown version {version}"))),
            None => return Err(error("it is empty".into())),
        };
        let mut machine = Machine::of(partition, secrets, live);
        machine.index_promises();
        machine.index_quotes();
        machine.index_locks();
        machine.index_delegations();
        machine.count_waiting();
        Ok(machine)
    }

    /// The same as a program of this version would run it, older or, in tests, newer
    /// than [`MACHINE_VERSION`].
    pub fn knowing(mut self, version: u32) -> Machine {
        self.knows = version.min(TESTED_VERSION);
        self
    }

    /// Applies the record at `offset`. `append_time_ms` is Kafka's `LogAppendTime`,
    /// ignored in an epoch whose broker has none. Records are given once each, in
    /// order; the state moves on by skipped ones too. Each frame of one that has several is
    /// applied by itself, as if it stood alone there.
    pub fn apply(
        &mut self,
        kv: &mut dyn Kv,
        offset: u64,
        append_time_ms: i64,
        record: &Bytes,
    ) -> Result<Applied, NotApplied> {
        let at = Position { epoch: self.live.epoch, partition: self.partition, offset, index: 0 };
        let frames = match frame::frames(record.clone()) {
            Ok(frames) => frames,
            Err(_) => return Ok(self.skip(kv, at, "malformed")),
        };
        let mut applied = Applied { effects: Vec::new(), skipped: None };
        for (number, frame) in (0..=u8::MAX).zip(&frames) {
            let at = at.of_frame(if planted(Bug::FramesShareAPlace) { 0 } else { number });
            // Only servers' records and opens can stop a server, and they stand alone: no record is applied by half.
            let Applied { effects, skipped } = self.apply_frame(kv, at, append_time_ms, frame)?;
            applied.effects.extend(effects);
            applied.skipped = applied.skipped.or(skipped);
        }
        Ok(applied)
    }

    /// Applies one frame of a record, at its place.
    fn apply_frame(
        &mut self,
        kv: &mut dyn Kv,
        mut at: Position,
        append_time_ms: i64,
        frame: &Frame,
    ) -> Result<Applied, NotApplied> {
        if frame.header().kind == Kind::Server && frame.header().epoch > self.live.epoch {
            at.epoch = frame.header().epoch;
        } else if frame.header().epoch != self.live.epoch {
            return Ok(self.skip(kv, at, "of another epoch"));
        }
        let mut turn = Turn::new(kv, &self.live.hash, at, self.live.now);
        turn.time = proto::Time::from_millis(append_time_ms);
        let done = match frame.header().kind {
            Kind::Open => self.apply_open(&mut turn, frame),
            Kind::Request => self.apply_request(&mut turn, frame, append_time_ms),
            Kind::Server => self.apply_server(&mut turn, frame, append_time_ms),
            _ => Err(Stop::Skip("of a kind that does not belong into the request log")),
        };
        match done {
            Ok(()) => {
                self.go_on(&mut turn);
                self.mark_freed(&mut turn);
                self.tell_room(&mut turn);
                self.quoted = self.quoted.max((at.epoch, turn.quoted_before));
                let (hash, effects) = turn.finish();
                self.live.hash = self.chained(hash);
                self.live.applied = Some(at);
                self.tell_hash(at);
                Ok(Applied { effects, skipped: None })
            }
            Err(Stop::Skip(why)) => {
                drop(turn);
                at.epoch = self.live.epoch;
                Ok(self.skip(kv, at, why))
            }
            Err(Stop::NotUnderstood(reason)) => Err(NotApplied::NotUnderstood { at, reason }),
            Err(Stop::NotBegun(epoch)) => Err(NotApplied::NotBegun { at, epoch }),
            Err(Stop::OtherState { epoch, by, from }) => {
                Err(NotApplied::OtherState { at, epoch, by, from, here: self.live.hash })
            }
            Err(Stop::Unproven { epoch, by }) => Err(NotApplied::Unproven { at, epoch, by }),
        }
    }

    /// What the tested version does otherwise: a server that behaves as another
    /// version than the state says shows it in its hash.
    fn chained(&self, hash: [u8; 32]) -> [u8; 32] {
        if self.live.version > MACHINE_VERSION { *blake3::hash(&hash).as_bytes() } else { hash }
    }

    fn skip(&mut self, kv: &mut dyn Kv, at: Position, why: &'static str) -> Applied {
        let (hash, _) = Turn::new(kv, &self.live.hash, at, self.live.now).finish();
        self.live.hash = self.chained(hash);
        self.live.applied = Some(at);
        self.tell_hash(at);
        Applied { effects: Vec::new(), skipped: Some(why) }
    }

    /// Lets a simulation compare machines.
    fn tell_hash(&self, at: Position) {
        #[cfg(feature = "simulation")]
        proto::simulation::seen(&proto::simulation::Seen::Hash { at, hash: self.live.hash });
        let _ = at;
    }

    /// Whether something here can expire, so that log time must move.
    pub fn needs_ticks(&self) -> bool {
        let live = &self.live;
        let has_sessions = !live.sessions.is_empty() || !live.ended.is_empty() || !live.held.is_empty();
        has_sessions || !live.buckets.is_empty() || live.grace_until.is_some()
    }

    pub fn log_time(&self) -> LogTime {
        self.live.now
    }

    /// A chain over everything applied so far: equal on machines that are equal.
    pub fn state_hash(&self) -> [u8; 32] {
        self.live.hash
    }

    /// 0 before the first `Epoch` record.
    pub fn epoch(&self) -> Epoch {
        self.live.epoch
    }

    /// Where the last record given to [`Machine::apply`] stood, skipped or not.
    pub fn last_applied(&self) -> Option<Position> {
        self.live.applied
    }

    /// Up to where content must have been ingested for all that was quoted since this program
    /// began to be on this server: an epoch, and an offset of its chunks.
    pub fn quoted(&self) -> (Epoch, u64) {
        self.quoted
    }

    /// Whether the log may forget what it has acknowledged.
    pub fn volatile(&self) -> bool {
        self.live.volatile
    }

    /// The version of the machine's behaviour.
    pub fn version(&self) -> u32 {
        self.live.version
    }

    /// The registered servers; partition 0 only.
    pub fn servers(&self) -> &BTreeMap<ServerId, Registered> {
        &self.live.servers
    }

    /// How much there is of what comes and goes, for administrators.
    pub fn activity(&self) -> Activity {
        let reserved = self.live.reserves.values().flat_map(BTreeMap::values);
        Activity {
            sessions: self.live.sessions.len() as u64,
            locks: self.holdings.all(),
            waiting: self.live.parked.len() as u64,
            reserved_bytes: reserved.fold(0, |all: u64, has| all.saturating_add(has.bytes)),
        }
    }

    /// Whether the broker stamps records with their append time.
    pub fn append_time(&self) -> bool {
        self.live.append_time
    }

    /// The sessions that live.
    pub fn sessions(&self) -> impl Iterator<Item = Peer> + '_ {
        self.live.sessions.iter().map(|(id, session)| session.peer(*id))
    }

    /// The keys of the sessions that live or have ended lately, for whoever reads the log.
    pub fn session_keys(&self) -> impl Iterator<Item = (SessionId, Key)> + '_ {
        let live = self.live.sessions.iter().map(|(id, session)| (*id, session.key.clone()));
        live.chain(self.live.ended.iter().map(|(id, mark)| (*id, mark.key.clone())))
    }

    /// What has been decided here and not yet landed elsewhere.
    pub fn deliveries(&mut self, kv: &mut dyn Kv) -> Vec<Effect> {
        users::deliveries(kv)
    }

    fn context(&self, direction: Direction) -> Context {
        Context { direction, topic: Topic::Requests, partition: self.partition, answers: None }
    }

    /// Opens a client's frame under its session's key. A client is no server: what it
    /// sealed itself and cannot be read must not stop any.
    fn open<T: DeserializeOwned>(&self, key: &Key, frame: &Frame) -> Result<Result<T, Refusal>, Stop> {
        match seal::open(key, frame, &self.context(Direction::ToServer)) {
            Ok(opened) => Ok(Ok(opened.body)),
            Err(SealError::Unreadable { .. }) => Ok(Err(Refusal::NotUnderstood)),
            Err(_) => Err(Stop::Skip("not authentic")),
        }
    }

    fn apply_open(&mut self, turn: &mut Turn, frame: &Frame) -> Result<(), Stop> {
        if frame.header().number != 0 {
            return Err(Stop::Skip("an open with a number"));
        }
        let ticket = open_ticket(&self.secrets, &frame.payload()).map_err(by_server("an open without a ticket"))?;
        let body = self.open(&ticket.key, frame)?;
        self.open_session(turn, frame, ticket, body)
    }

    fn apply_request(&mut self, turn: &mut Turn, frame: &Frame, append_time_ms: i64) -> Result<(), Stop> {
        let id = SessionId(frame.header().sender);
        if let Some(mark) = self.live.ended.get(&id) {
            let _: Result<Request, Refusal> = self.open(&mark.key, frame)?;
            turn.effects.push(mark.tell(id, frame, turn.at));
            return Ok(());
        }
        let session = self.live.sessions.get(&id).ok_or(Stop::Skip("of no session"))?;
        if frame.header().namespace != session.namespace {
            return Err(Stop::Skip("of a session of another namespace"));
        }
        let request = self.open(&session.key, frame)?;
        self.request(turn, id, frame, request, append_time_ms);
        Ok(())
    }

    fn apply_server(&mut self, turn: &mut Turn, frame: &Frame, append_time_ms: i64) -> Result<(), Stop> {
        let key = self.secrets.server_key(frame.header().epoch);
        let body: ServerBody =
            seal::open(&key, frame, &self.context(Direction::ServerToLog)).map_err(by_server("not authentic"))?.body;
        self.server_record(turn, frame, body.record, append_time_ms)
    }
}

/// What a server has sealed and this one does not understand stops it; what none has sealed is skipped.
fn by_server(otherwise: &'static str) -> impl Fn(SealError) -> Stop {
    move |error| match error {
        SealError::Unreadable { reason } => Stop::NotUnderstood(reason),
        _ => Stop::Skip(otherwise),
    }
}
