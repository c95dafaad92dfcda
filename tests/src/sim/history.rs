//! What a run has seen: what machines did with each request, what clients entered,
//! and what each operation of the workload gave, all in one order.

use super::bus::Bus;
use super::counting::Counted;
use super::model::Times;
use bytes::Bytes;
use proto::log::Topic;
use proto::message::{Each, FileKind, Op, Outcome, Quota, Refusal, Resource, Upload};
use proto::simulation::Seen;
use proto::{Position, SessionId, Time};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// Which operation of the workload is being polled.
    static OPERATION: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Which client's clock showed this; see `cluster.rs`.
fn client_of(time: Time) -> u32 {
    time.nanos % 1_000_000 / 10_000
}

/// Shared by everything in one run.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>, Option<Bus>);

#[derive(Default)]
pub struct Inner {
    /// Counts everything that is told here.
    moment: u64,
    pub applied: BTreeMap<Position, Applied>,
    /// Changes that have waited in a machine.
    pub waited: BTreeSet<ChangeId>,
    pub hashes: BTreeMap<Position, [u8; 32]>,
    pub operations: Vec<Operation>,
    /// How many virtual microseconds one of them took that has ended, and which one.
    pub longest: (u64, usize),
    /// Changes in the order in which clients entered them, each with its client's number.
    pub entered: Vec<Entered>,
    /// When clients began their lives.
    pub lives: BTreeMap<usize, Vec<u64>>,
    /// When fsyncs that have returned were begun, and whose.
    pub synced: Vec<(usize, u64)>,
    /// When the log lost what it held.
    pub log_lost: Option<u64>,
    /// What the namespace held and had reserved after each record.
    pub rooms: BTreeMap<Position, Room>,
    /// What had been applied of the ends that partitions lost: others may come to stand in their places.
    pub lost: BTreeMap<Position, Applied>,
    /// Where those ended then.
    pub ends: BTreeMap<(Topic, u32), u64>,
    /// The first thing that cannot be.
    pub violation: Option<String>,
}

/// What a namespace held and had reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub quota: Quota,
    pub used: Each<u64>,
    pub reserved: Each<u64>,
    /// Some session may not have heard of the quota.
    pub is_free: Each<bool>,
}

impl Room {
    /// What others cannot have.
    pub fn full(&self, of: Resource) -> u64 {
        self.used[of] + self.reserved[of]
    }
}

/// What tells a change from every other one: simulated clocks never show the same time twice, and what
/// was written to one file up to then may leave in several requests, whose contents have keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChangeId {
    time: Time,
    key: u64,
}

impl ChangeId {
    fn of(time: Time, op: &Op) -> ChangeId {
        let piece = match op {
            Op::Upload(Upload::Write { pieces, .. }) => pieces.first(),
            _ => None,
        };
        let key = piece.and_then(|piece| piece.key.wrapped.first_chunk()).map_or(0, |key| u64::from_le_bytes(*key));
        ChangeId { time, key }
    }

    /// The client whose clock it was.
    pub fn client(self) -> u32 {
        client_of(self.time)
    }
}

/// What a machine did with a request at its place.
pub struct Applied {
    pub moment: u64,
    pub session: SessionId,
    pub number: u64,
    pub id: ChangeId,
    pub op: Op,
    pub payload: Bytes,
    /// Its client's time, and the one that counts.
    pub sent: Time,
    pub time: Time,
    /// Its program had been answered, under a delegation that counts.
    pub local: bool,
    pub result: Result<Outcome, Refusal>,
}

/// A change as its client entered it.
pub struct Entered {
    pub moment: u64,
    pub id: ChangeId,
    pub operation: Option<usize>,
    /// The file, if it writes to one.
    pub writes: Option<u64>,
    /// Which of its client's lives entered it.
    pub life: usize,
    /// It may be applied in one session only, so it may be missing.
    pub is_bound: bool,
    /// Its program was answered at once, under a delegation.
    pub is_local: bool,
}

/// One operation of the workload.
pub struct Operation {
    pub client: usize,
    pub text: String,
    pub invoked: u64,
    /// In virtual microseconds.
    pub invoked_us: u64,
    /// `None` while it has no result, and for ever if its client was killed.
    pub returned: Option<u64>,
    /// It waits for what others do, however long they take.
    pub waits: bool,
    pub found: Found,
}

/// What an operation gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing is known: no answer in time, or its client was killed.
    Nothing,
    /// A change, which the server agreed to or refused.
    Changed(Result<(), Refusal>),
    Entry {
        dir: u64,
        name: Vec<u8>,
        entry: Option<Entry>,
    },
    Inode {
        ino: u64,
        entry: Option<Entry>,
    },
    Names {
        dir: u64,
        names: BTreeMap<Vec<u8>, u64>,
    },
    Content {
        ino: u64,
        content: Vec<u8>,
    },
    /// What [`MARK`](super::work::MARK) is set to.
    Mark {
        ino: u64,
        mark: Option<Vec<u8>>,
    },
    /// What was written to the file before has been answered for.
    Written {
        ino: u64,
        wrote: Wrote,
    },
    /// The number in the shared file, under a lock.
    Counted(Counted),
}

/// What a program wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrote {
    /// Each with its offset, one after the other.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// At the file's end, whatever the offsets.
    pub appended: bool,
}

/// What is compared of an inode's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ino: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    /// Of a file, if nothing that is written here may be shown in it before the server has it.
    pub size: Option<u64>,
    /// Of a file, the same.
    pub times: Option<Times>,
}

impl Found {
    /// For people.
    pub fn short(&self) -> String {
        match self {
            Found::Content { ino, content } => {
                let hash = blake3::hash(content).to_hex();
                format!("inode {ino} with {} bytes, {}", content.len(), &hash[..8])
            }
            Found::Entry { entry: None, .. } => "nothing there".to_owned(),
            Found::Entry { entry: Some(entry), .. } => format!("{entry:?}"),
            Found::Written { ino, wrote } => {
                let bytes: usize = wrote.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
                format!("{bytes} bytes in inode {ino}")
            }
            other => format!("{other:?}"),
        }
    }
}

impl History {
    /// One that writes operations into the bus's trace.
    pub fn traced(bus: Bus) -> History {
        History(Arc::default(), Some(bus))
    }

    /// Takes in what the real code tells. To be given to [`proto::simulation::observe`].
    pub fn observe(&self, seen: &Seen<'_>) {
        let mut inner = self.lock();
        inner.moment += 1;
        let moment = inner.moment;
        match seen {
            Seen::Applied { at, session, number, sent, time, op, payload, local, result, .. } => {
                if let Some(known) = inner.applied.get(at) {
                    if known.result != **result || known.op != **op {
                        let text = format!("at {at} one machine gave {:?}, another {result:?}", known.result);
                        inner.violated(text);
                    }
                    return;
                }
                let applied = Applied {
                    moment,
                    session: *session,
                    number: number.0,
                    id: ChangeId::of(*sent, op),
                    op: (*op).clone(),
                    payload: (*payload).clone(),
                    sent: *sent,
                    time: *time,
                    local: *local,
                    result: (*result).clone(),
                };
                inner.applied.insert(*at, applied);
            }
            Seen::Waits { sent, op } => {
                inner.waited.insert(ChangeId::of(*sent, op));
            }
            Seen::Room { at, quota, used, reserved, is_free, .. } => {
                let room = Room { quota: *quota, used: *used, reserved: *reserved, is_free: *is_free };
                inner.rooms.insert(*at, room);
            }
            Seen::Hash { at, hash } => {
                if let Some(known) = inner.hashes.insert(*at, *hash)
                    && known != *hash
                {
                    inner.violated(format!("two machines differ after {at}"));
                }
            }
            Seen::Entered { time, op, is_bound, is_local } => {
                if op.outlives_session() {
                    let writes = match op {
                        Op::Upload(Upload::Write { ino, .. }) => Some(ino.0),
                        _ => None,
                    };
                    let life = inner.lives.get(&(client_of(*time) as usize)).map_or(0, Vec::len);
                    let (id, is_bound, is_local) = (ChangeId::of(*time, op), *is_bound, *is_local);
                    let operation = OPERATION.get();
                    inner.entered.push(Entered { moment, id, operation, writes, life, is_bound, is_local });
                }
            }
        }
    }

    /// The log has lost what it held, or only all that stood after these ends of partitions.
    pub fn log_is_lost(&self, ends: &BTreeMap<(Topic, u32), u64>) {
        let mut inner = self.lock();
        inner.moment += 1;
        inner.log_lost = Some(inner.moment);
        inner.ends = ends.clone();
        let is_lost = |at: &Position| {
            let end = ends.get(&(Topic::Requests, at.partition));
            end.is_some_and(|end| at.offset >= *end)
        };
        let (lost, applied) = std::mem::take(&mut inner.applied).into_iter().partition(|(at, _)| is_lost(at));
        (inner.lost, inner.applied) = (lost, applied);
        inner.hashes.retain(|at, _| !is_lost(at));
    }

    /// A client begins another life.
    pub fn born(&self, client: usize) {
        let mut inner = self.lock();
        inner.moment += 1;
        let moment = inner.moment;
        inner.lives.entry(client).or_default().push(moment);
    }

    /// An fsync that was begun at a moment has returned.
    pub fn synced(&self, client: usize, begun: u64) {
        self.lock().synced.push((client, begun));
    }

    /// Whether a client has entered a change that no machine has executed yet; with `synced` one that it has answered
    /// itself, and an fsync that was begun since has returned.
    pub fn is_busy(&self, client: usize, synced: bool) -> bool {
        let inner = self.lock();
        let last_synced = inner.synced.iter().rfind(|(of, _)| *of == client).map_or(0, |(_, begun)| *begun);
        inner.entered.iter().rev().take(4).any(|entered| {
            entered.id.client() as usize == client
                && (!synced || entered.is_local && entered.moment < last_synced)
                && !inner.applied.values().rev().take(20).any(|applied| applied.id == entered.id)
        })
    }

    /// Now, in the order of all that is told.
    pub fn moment(&self) -> u64 {
        let mut inner = self.lock();
        inner.moment += 1;
        inner.moment
    }

    /// An operation begins.
    pub fn invoked(&self, client: usize, text: String) -> usize {
        let mut inner = self.lock();
        inner.moment += 1;
        let invoked = inner.moment;
        let invoked_us = self.1.as_ref().map_or(0, Bus::now_us);
        if let Some(bus) = &self.1 {
            bus.trace(format_args!("client{client} {text} [{}]", inner.operations.len()));
        }
        let (returned, waits, found) = (None, false, Found::Nothing);
        inner.operations.push(Operation { client, text, invoked, invoked_us, returned, waits, found });
        inner.operations.len() - 1
    }

    /// How long an operation takes is up to others.
    pub fn waits(&self, operation: usize) {
        self.lock().operations[operation].waits = true;
    }

    /// It has a result.
    pub fn returned(&self, operation: usize, found: Found) {
        let mut inner = self.lock();
        inner.moment += 1;
        let moment = inner.moment;
        if let Some(bus) = &self.1 {
            let client = inner.operations[operation].client;
            bus.trace(format_args!("client{client} [{operation}] {}", found.short()));
        }
        let now_us = self.1.as_ref().map_or(0, Bus::now_us);
        let took_us = now_us - inner.operations[operation].invoked_us;
        if took_us > inner.longest.0 && !inner.operations[operation].waits {
            inner.longest = (took_us, operation);
        }
        let operation = &mut inner.operations[operation];
        operation.returned = Some(moment);
        operation.found = found;
    }

    pub fn violated(&self, text: String) {
        self.lock().violated(text);
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The first violation counts.
    pub fn violated(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }
}

/// Runs `work` so that what it enters is known to be this operation's.
pub async fn as_operation<T>(operation: usize, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(move |context| {
        let before = OPERATION.replace(Some(operation));
        let polled = work.as_mut().poll(context);
        OPERATION.set(before);
        polled
    })
    .await
}
