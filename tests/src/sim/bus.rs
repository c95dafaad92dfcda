//! The broker of a simulation: one log of all topics in memory, reached by each
//! machine over a network that delays, loses and repeats as the seed says.
//!
//! * Order within a partition is kept for one machine's appends, and for every
//!   reader; nothing else is in order.
//! * Everything is an event at a virtual moment. One task carries them out one by
//!   one and lets all other tasks run in between.
//! * What a machine appends after it was killed is nothing; what it had on its way
//!   may still arrive.

use super::rng::Rng;
use super::trace::Trace;
use bytes::Bytes;
use proto::chunk::ChunkName;
use proto::frame::{self, Frame, HEADER_BYTES, Header};
use proto::log::{Appended, Log, LogError, MAX_RECORD_BYTES, Record, Start, Tail, Topic};
use proto::seal::hash_of;
use proto::simulation::Node;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

/// Records that a reader may lag behind.
const QUEUE: usize = 1 << 14;

/// Records that no run has in all, however long it goes on.
const RECORDS_EVER: u64 = 100_000;

/// What the network does to records, as chances in a thousand and microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Net {
    /// Each way takes up to this long.
    pub delay_us: u64,
    /// This often it takes up to `slow_us` instead.
    pub slow: u32,
    pub slow_us: u64,
    /// Never arrives; the writer is told after a while.
    pub lost: u32,
    /// Arrives, and the writer hears that it may not have.
    pub no_offset: u32,
    /// Arrives, and the writer hears of it only after up to `slow_us`.
    pub late_ack: u32,
    /// Arrives again some time later.
    pub repeated: u32,
    /// An answer, a push or served content that never arrives.
    pub reply_lost: u32,
}

/// The broker.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

struct Shared {
    begun: Instant,
    state: Mutex<State>,
    changed: Notify,
    trace: Trace,
}

struct State {
    net: Net,
    rng: Rng,
    partitions: BTreeMap<(Topic, u32), Partition>,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    readers: BTreeMap<u64, Reader>,
    next_reader: u64,
    /// By topic and partition.
    subscribed: BTreeMap<(Topic, u32), BTreeSet<u64>>,
    /// Machines that nothing reaches before this, and whether the broker has forgotten by then
    /// what it does not keep for long.
    deaf_until_us: BTreeMap<String, (u64, bool)>,
    /// The broker answers nobody before this.
    down_until_us: u64,
    /// The end of the last time that anybody is mute or deaf or the broker down.
    cut_until_us: u64,
    /// Nothing is appended any more.
    is_frozen: bool,
    /// Nothing is trimmed.
    keeps_all: bool,
    /// Added to virtual time in append times, in milliseconds.
    clock_ms: i64,
    has_append_time: bool,
    appends: u64,
    /// What nobody can read any more, for the checks: trimmed, or lost.
    trimmed: Vec<Record>,
    /// Partition, offset and hash of content that was lost.
    lost: BTreeSet<(u32, u64, [u8; 32])>,
}

#[derive(Default)]
struct Partition {
    first: u64,
    records: VecDeque<Record>,
}

impl Partition {
    fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }
}

enum Event {
    Arrive { from: String, topic: Topic, partition: u32, value: Bytes, told: Option<Told>, repeat_at_us: Option<u64> },
    Ack { told: oneshot::Sender<Result<u64, LogError>>, result: Result<u64, LogError> },
    Deliver { reader: u64, record: Record },
}

/// How the writer hears of an arrival.
struct Told {
    to: oneshot::Sender<Result<u64, LogError>>,
    after_us: u64,
    without_offset: bool,
}

struct Reader {
    machine: String,
    ready_us: BTreeMap<(Topic, u32), u64>,
    queue: mpsc::Sender<Result<Record, LogError>>,
    /// Once set, the last that it reads, before all that waits in the queue.
    end: Arc<OnceLock<LogError>>,
}

impl Bus {
    /// A broker whose clock shows `clock_ms` at the beginning. Must be called in the simulation's runtime.
    pub fn new(net: Net, rng: Rng, clock_ms: i64, has_append_time: bool, trace: Trace) -> Bus {
        let state = State {
            net,
            rng,
            partitions: BTreeMap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            readers: BTreeMap::new(),
            next_reader: 0,
            subscribed: BTreeMap::new(),
            deaf_until_us: BTreeMap::new(),
            down_until_us: 0,
            cut_until_us: 0,
            is_frozen: false,
            keeps_all: false,
            clock_ms,
            has_append_time,
            appends: 0,
            trimmed: Vec::new(),
            lost: BTreeSet::new(),
        };
        let shared = Shared { begun: Instant::now(), state: Mutex::new(state), changed: Notify::new(), trace };
        Bus { shared: Arc::new(shared) }
    }

    /// Carries out events until the runtime ends.
    pub async fn run(self) {
        loop {
            let wait_us = {
                let mut state = self.shared.state();
                let now_us = self.now_us();
                match state.events.first_key_value() {
                    Some((&(at_us, _), _)) if at_us <= now_us => {
                        let (due, event) = state.events.pop_first().expect("there is one");
                        self.shared.carry_out(&mut state, now_us, due, event);
                        0
                    }
                    Some((&(at_us, _), _)) => at_us - now_us,
                    None => u64::MAX,
                }
            };
            match wait_us {
                0 => tokio::task::yield_now().await,
                u64::MAX => self.shared.changed.notified().await,
                wait_us => {
                    tokio::select! {
                        biased;
                        () = self.shared.changed.notified() => {}
                        () = tokio::time::sleep(Duration::from_micros(wait_us)) => {}
                    }
                }
            }
        }
    }

    /// The log as one machine sees it.
    pub fn log(&self, machine: &str, node: Node) -> SimLog {
        let way = Way { last_arrival_us: BTreeMap::new(), mute_until_us: 0 };
        SimLog { bus: self.clone(), machine: machine.to_owned(), node, way: Arc::new(Mutex::new(way)) }
    }

    /// When all that is on its way now will have arrived.
    pub fn arrived_by_us(&self) -> u64 {
        let state = self.shared.state();
        let arrives = state.events.iter().filter(|(_, event)| !matches!(event, Event::Ack { .. }));
        arrives.map(|((at_us, _), _)| *at_us).max().unwrap_or(0)
    }

    /// Virtual microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        (Instant::now() - self.shared.begun).as_micros() as u64
    }

    pub fn trace(&self, text: std::fmt::Arguments<'_>) {
        self.shared.trace.line(self.now_us(), text);
    }

    /// From now on records travel like this.
    pub fn set_net(&self, net: Net) {
        self.shared.state().net = net;
    }

    /// Nobody is answered for so long: the broker restarts.
    pub fn down_for(&self, us: u64) {
        let until_us = self.now_us() + us;
        let mut state = self.shared.state();
        state.down_until_us = state.down_until_us.max(until_us);
        state.cut_until_us = state.cut_until_us.max(until_us);
    }

    /// When everybody reaches the broker, and is reached.
    pub fn cut_until_us(&self) -> u64 {
        self.shared.state().cut_until_us
    }

    /// From now on nothing is appended.
    pub fn freeze(&self) {
        self.shared.state().is_frozen = true;
    }

    /// The leader's clock jumps.
    pub fn jump_clock(&self, ms: i64) {
        self.shared.state().clock_ms += ms;
    }

    /// Records that were ever appended.
    pub fn appends(&self) -> u64 {
        self.shared.state().appends
    }

    /// Puts records there that an earlier life of the cluster has written; `firsts` are the
    /// first offsets that partitions of requests still have.
    pub fn preload(&self, firsts: &[u64], records: &[Record]) {
        let mut state = self.shared.state();
        for (partition, first) in (0..).zip(firsts) {
            state.partitions.entry((Topic::Requests, partition)).or_default().first = *first;
        }
        for record in records {
            state.partitions.entry((record.topic, record.partition)).or_default().records.push_back(record.clone());
        }
    }

    /// What the partition ever held in this run.
    pub fn all_records(&self, topic: Topic, partition: u32) -> Vec<Record> {
        let trimmed = {
            let state = self.shared.state();
            let ours = |record: &&Record| record.topic == topic && record.partition == partition;
            state.trimmed.iter().filter(ours).cloned().collect::<Vec<_>>()
        };
        trimmed.into_iter().chain(self.records(topic, partition)).collect()
    }

    /// The broker loses its disks, or those of some topics: all are there, and these begin anew.
    /// Who reads what must not be lost is told; others go on with what comes.
    pub fn lose(&self, is_lost: impl Fn(Topic) -> bool) {
        let mut state = self.shared.state();
        let lost: BTreeSet<Topic> = Topic::ALL.into_iter().filter(|topic| is_lost(*topic)).collect();
        let told: Vec<&str> = lost.iter().map(|topic| topic.suffix()).collect();
        self.shared.trace.line(self.now_us(), format_args!("all is gone that the log held of {}", told.join(", ")));
        let (gone, kept): (BTreeMap<_, _>, _) =
            std::mem::take(&mut state.partitions).into_iter().partition(|((topic, _), _)| lost.contains(topic));
        state.partitions = kept;
        let ends: BTreeMap<_, _> = gone.iter().map(|(place, partition)| (*place, partition.next())).collect();
        state.has_lost(gone.into_values().flat_map(|partition| partition.records).collect());
        state.events.retain(|_, event| match event {
            Event::Deliver { record, .. } => !lost.contains(&record.topic),
            _ => true,
        });
        let durable = state.subscribed.iter().filter(|((topic, _), _)| topic.is_durable() && lost.contains(topic));
        let told: Vec<_> =
            durable.flat_map(|(place, readers)| readers.iter().map(|reader| (*reader, *place))).collect();
        for (reader, place) in told {
            let Some(reader) = state.readers.remove(&reader) else { continue };
            let (topic, partition) = place;
            let offset = ends.get(&place).copied().unwrap_or(0);
            let topic = topic.suffix().to_owned();
            let _ = reader.queue.try_send(Err(LogError::OutOfRange { topic, partition, offset, first: 0, next: 0 }));
        }
    }

    /// Partitions lose the records with which they end: `len` says how many of a partition's there are. Gives where
    /// these end now. Who reads such a partition is told before anything else, others go on with what comes.
    pub fn lose_ends(&self, mut len: impl FnMut(Topic) -> usize) -> BTreeMap<(Topic, u32), u64> {
        let mut state = self.shared.state();
        let State { partitions, .. } = &mut *state;
        let (mut ends, mut gone) = (BTreeMap::new(), Vec::new());
        for (place, partition) in partitions.iter_mut() {
            let left = partition.records.len().saturating_sub(len(place.0));
            if left < partition.records.len() {
                gone.extend(partition.records.drain(left..));
                ends.insert(*place, partition.next());
            }
        }
        let is_lost = |record: &Record| {
            let end = ends.get(&(record.topic, record.partition));
            end.is_some_and(|end| record.offset >= *end)
        };
        state.events.retain(|_, event| !matches!(event, Event::Deliver { record, .. } if is_lost(record)));
        for ((topic, partition), next) in &ends {
            self.shared.trace.line(self.now_us(), format_args!("{}/{partition} ends at {next} now", topic.suffix()));
            for reader in state.subscribed.get(&(*topic, *partition)).cloned().unwrap_or_default() {
                let Some(reader) = state.readers.remove(&reader) else { continue };
                let (topic, partition, offset) = (topic.suffix().to_owned(), *partition, next + 1);
                let error = LogError::OutOfRange { topic, partition, offset, first: 0, next: *next };
                // It reads several partitions that are shorter now.
                let _ = reader.end.set(error);
            }
        }
        state.has_lost(gone);
        ends
    }

    /// From now on nothing is trimmed.
    pub fn keep_all(&self) {
        self.shared.state().keeps_all = true;
    }

    /// Whether content that was uploaded there was lost.
    pub fn has_lost(&self, name: &ChunkName) -> bool {
        self.shared.state().lost.contains(&(name.partition, name.offset, name.hash))
    }

    /// Whether a record is gone that held content which servers keep in packs.
    pub fn has_lost_content(&self) -> bool {
        self.shared.state().trimmed.iter().any(|record| match record.topic {
            Topic::Chunks => true,
            // What is smaller lives in the rows.
            Topic::Requests => frame::frames(record.value.clone()).is_ok_and(|frames| {
                frames.iter().any(|frame| frame.payload().len() > server::machine::STATE_CONTENT_BYTES)
            }),
            _ => false,
        })
    }

    /// The first offset that the partition still has.
    pub fn first(&self, topic: Topic, partition: u32) -> u64 {
        self.shared.state().partitions.get(&(topic, partition)).map_or(0, |found| found.first)
    }

    /// What the partition holds.
    pub fn records(&self, topic: Topic, partition: u32) -> Vec<Record> {
        let state = self.shared.state();
        state.partitions.get(&(topic, partition)).map_or_else(Vec::new, |found| found.records.iter().cloned().collect())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime's clock has steps: an event's own moment decides what it is put off until,
    /// or what is put off would be overtaken.
    fn carry_out(&self, state: &mut State, now_us: u64, (due_us, number): (u64, u64), event: Event) {
        match event {
            Event::Arrive { .. } if state.is_frozen => {}
            Event::Arrive { from, topic, partition, value, told, repeat_at_us } => {
                if state.down_until_us > due_us {
                    let at_us = state.down_until_us;
                    let event = Event::Arrive { from, topic, partition, value, told, repeat_at_us };
                    state.events.insert((at_us, number), event);
                    return;
                }
                if let Some(at_us) = repeat_at_us {
                    let again = Event::Arrive {
                        from: from.clone(),
                        topic,
                        partition,
                        value: value.clone(),
                        told: None,
                        repeat_at_us: None,
                    };
                    state.at(at_us, again);
                }
                let offset = state.store(now_us, topic, partition, value.clone());
                self.trace
                    .line(now_us, format_args!("{from} -> {}/{partition}@{offset} {}", topic.suffix(), show(&value)));
                self.trace.says(&Record { topic, partition, offset, append_time_ms: 0, value });
                if let Some(Told { to, after_us, without_offset }) = told {
                    let result = match without_offset {
                        true => Err(LogError::NotAppended {
                            topic: topic.suffix().to_owned(),
                            partition,
                            reason: "a retry was acknowledged without an offset".into(),
                        }),
                        false => Ok(offset),
                    };
                    state.at(now_us + after_us, Event::Ack { told: to, result });
                }
            }
            Event::Ack { told, result } => {
                // Whoever appended may not care, or be dead.
                let _ = told.send(result);
            }
            Event::Deliver { reader, record } => {
                if state.down_until_us > due_us {
                    let at_us = state.down_until_us;
                    state.events.insert((at_us, number), Event::Deliver { reader, record });
                    return;
                }
                let first = state.partitions.get(&(record.topic, record.partition)).map_or(0, |found| found.first);
                if record.offset < first {
                    state.out_of_range(reader, &record, first);
                    return;
                }
                let machine = state.readers.get(&reader).map(|reader| reader.machine.as_str()).unwrap_or_default();
                if let Some(&(until_us, forgetful)) =
                    state.deaf_until_us.get(machine).filter(|(until, _)| *until > due_us)
                {
                    // Under its old number, so that the order stays.
                    if record.topic.is_durable() || !forgetful {
                        state.events.insert((until_us, number), Event::Deliver { reader, record });
                    }
                    return;
                }
                if let Some(reader) = state.readers.get_mut(&reader) {
                    self.trace.line(
                        now_us,
                        format_args!(
                            "{} <- {}/{}@{}",
                            reader.machine,
                            record.topic.suffix(),
                            record.partition,
                            record.offset
                        ),
                    );
                    // Full means that its machine has stood still for very long: it is as if it
                    // were still on its way, and that for ever.
                    let _ = reader.queue.try_send(Ok(record));
                }
            }
        }
    }
}

impl State {
    fn at(&mut self, at_us: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((at_us, self.next_event), event);
    }

    fn delay_us(&mut self) -> u64 {
        if self.net.slow > 0 && self.rng.chance(self.net.slow) {
            let slow_us = self.net.slow_us;
            return self.rng.range(self.net.delay_us, slow_us);
        }
        let delay_us = self.net.delay_us;
        self.rng.range(0, delay_us)
    }

    fn store(&mut self, now_us: u64, topic: Topic, partition: u32, value: Bytes) -> u64 {
        self.appends += 1;
        assert!(self.appends <= RECORDS_EVER, "more than {RECORDS_EVER} records, and no end");
        let append_time_ms = if self.has_append_time { self.clock_ms + (now_us / 1000) as i64 } else { 0 };
        let found = self.partitions.entry((topic, partition)).or_default();
        let offset = found.next();
        let record = Record { topic, partition, offset, append_time_ms, value };
        found.records.push_back(record.clone());
        let is_reply = matches!(topic, Topic::Replies | Topic::Bulk | Topic::Auth);
        for reader in self.subscribed.get(&(topic, partition)).cloned().unwrap_or_default() {
            if is_reply && self.net.reply_lost > 0 && self.rng.chance(self.net.reply_lost) {
                continue;
            }
            self.schedule(now_us, reader, record.clone());
        }
        offset
    }

    /// These will never be read again.
    fn has_lost(&mut self, records: Vec<Record>) {
        for record in records.iter().filter(|record| record.topic == Topic::Chunks) {
            if let Ok(frame) = Frame::parse(record.value.clone()) {
                self.lost.insert((record.partition, record.offset, hash_of(&frame.payload())));
            }
        }
        self.trimmed.extend(records);
    }

    /// A reader comes too late for a record, which is the last that it hears of.
    fn out_of_range(&mut self, reader: u64, record: &Record, first: u64) {
        let Some(reader) = self.readers.remove(&reader) else { return };
        let Record { topic, partition, offset, .. } = *record;
        let next = self.partitions.get(&(topic, partition)).map_or(0, Partition::next);
        let topic = topic.suffix().to_owned();
        let _ = reader.queue.try_send(Err(LogError::OutOfRange { topic, partition, offset, first, next }));
    }

    fn forget_readers(&mut self) {
        let gone: Vec<u64> =
            self.readers.iter().filter(|(_, reader)| reader.queue.is_closed()).map(|(number, _)| *number).collect();
        for number in gone {
            self.readers.remove(&number);
            for subscribed in self.subscribed.values_mut() {
                subscribed.remove(&number);
            }
        }
    }

    fn schedule(&mut self, now_us: u64, reader: u64, record: Record) {
        let delay_us = self.delay_us();
        let Some(found) = self.readers.get_mut(&reader) else { return };
        let ready_us = found.ready_us.entry((record.topic, record.partition)).or_default();
        *ready_us = (*ready_us).max(now_us + delay_us);
        let at_us = *ready_us;
        self.at(at_us, Event::Deliver { reader, record });
    }
}

/// One machine's way to the broker.
struct Way {
    last_arrival_us: BTreeMap<(Topic, u32), u64>,
    mute_until_us: u64,
}

/// The log as one machine sees it.
#[derive(Clone)]
pub struct SimLog {
    bus: Bus,
    machine: String,
    node: Node,
    way: Arc<Mutex<Way>>,
}

impl SimLog {
    /// Nothing that this machine appends arrives for so long.
    pub fn mute_for(&self, us: u64) {
        let until_us = self.bus.now_us() + us;
        let mut way = lock(&self.way);
        way.mute_until_us = way.mute_until_us.max(until_us);
        let mut state = self.bus.shared.state();
        state.cut_until_us = state.cut_until_us.max(until_us);
    }

    /// Nothing that it is sent arrives for so long; if `forgetful`, answers, pushes and served content never do.
    pub fn deaf_for(&self, us: u64, forgetful: bool) {
        let until_us = self.bus.now_us() + us;
        let mut state = self.bus.shared.state();
        state.cut_until_us = state.cut_until_us.max(until_us);
        // What was put off until a later moment must not come after what follows it.
        let deaf = state.deaf_until_us.entry(self.machine.clone()).or_default();
        *deaf = (deaf.0.max(until_us), forgetful);
    }
}

impl Log for SimLog {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended {
        if value.len() > MAX_RECORD_BYTES {
            return Box::pin(std::future::ready(Err(LogError::TooLarge { bytes: value.len() })));
        }
        if self.node.is_dead() {
            return Box::pin(std::future::pending());
        }
        let (to, told) = oneshot::channel();
        let now_us = self.bus.now_us();
        let mut way = lock(&self.way);
        let mut state = self.bus.shared.state();
        let net = state.net.clone();
        if net.lost > 0 && state.rng.chance(net.lost) {
            let after_us = state.rng.range(1_000_000, 5_000_000);
            let result = Err(LogError::NotAppended {
                topic: topic.suffix().to_owned(),
                partition,
                reason: "no acknowledgement in time".into(),
            });
            self.bus.shared.trace.line(
                now_us,
                format_args!("{} lost on its way to {}/{partition}: {}", self.machine, topic.suffix(), show(&value)),
            );
            state.at(now_us + after_us, Event::Ack { told: to, result });
        } else {
            let delay_us = state.delay_us();
            let last = way.last_arrival_us.get(&(topic, partition)).copied().unwrap_or(0);
            let at_us = (now_us + delay_us).max(last).max(way.mute_until_us);
            way.last_arrival_us.insert((topic, partition), at_us);
            let without_offset = net.no_offset > 0 && state.rng.chance(net.no_offset);
            let mut after_us = state.delay_us();
            if net.late_ack > 0 && state.rng.chance(net.late_ack) {
                after_us += state.rng.range(0, net.slow_us);
            }
            let repeat_at_us = match net.repeated > 0 && state.rng.chance(net.repeated) {
                true => Some(at_us + state.rng.range(0, 20_000)),
                false => None,
            };
            let told = Some(Told { to, after_us, without_offset });
            state.at(at_us, Event::Arrive { from: self.machine.clone(), topic, partition, value, told, repeat_at_us });
        }
        drop(state);
        self.bus.shared.changed.notify_one();
        Box::pin(async move {
            match told.await {
                Ok(result) => result,
                // The broker goes only with the whole simulation.
                Err(_) => std::future::pending().await,
            }
        })
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        let mut state = self.reached()?;
        let number = state.next_reader;
        let mut wanted = Vec::new();
        for &(topic, partition, start) in starts {
            let found = state.partitions.entry((topic, partition)).or_default();
            let offset = match start {
                Start::End => found.next(),
                Start::At(offset) if offset < found.first || offset > found.next() => {
                    let (first, next) = (found.first, found.next());
                    return Err(LogError::OutOfRange {
                        topic: topic.suffix().to_owned(),
                        partition,
                        offset,
                        first,
                        next,
                    });
                }
                Start::At(offset) => offset,
            };
            wanted.extend(found.records.iter().skip((offset - found.first) as usize).cloned());
        }
        state.next_reader += 1;
        let (queue, records) = mpsc::channel(QUEUE + wanted.len());
        // What is there already is read at once.
        for record in wanted {
            let _ = queue.try_send(Ok(record));
        }
        let end = Arc::default();
        let reader = Reader { machine: self.machine.clone(), ready_us: BTreeMap::new(), queue, end: Arc::clone(&end) };
        state.readers.insert(number, reader);
        // Nobody reads the others' any more.
        state.forget_readers();
        for &(topic, partition, _) in starts {
            state.subscribed.entry((topic, partition)).or_default().insert(number);
        }
        Ok(Tail::cuttable(records, end))
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        let state = self.reached()?;
        Ok(state.partitions.get(&(topic, partition)).map_or((0, 0), |found| (found.first, found.next())))
    }

    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        let mut state = self.reached()?;
        if state.keeps_all {
            return Ok(());
        }
        let found = state.partitions.entry((topic, partition)).or_default();
        let mut trimmed = Vec::new();
        while found.first < before && !found.records.is_empty() {
            trimmed.extend(found.records.pop_front());
            found.first += 1;
        }
        let now_us = self.bus.now_us();
        self.bus
            .shared
            .trace
            .line(now_us, format_args!("{} trims {}/{partition} before {before}", self.machine, topic.suffix()));
        state.trimmed.extend(trimmed);
        Ok(())
    }
}

impl SimLog {
    /// The broker, if it answers.
    fn reached(&self) -> Result<MutexGuard<'_, State>, LogError> {
        let now_us = self.bus.now_us();
        let state = self.bus.shared.state();
        if now_us < state.down_until_us {
            return Err(LogError::Unreachable { brokers: "the broker".into(), reason: "it is down".into() });
        }
        Ok(state)
    }
}

/// A record's header in words; the rest is sealed.
fn show(value: &Bytes) -> String {
    let header = value.first_chunk::<HEADER_BYTES>().and_then(|bytes| Header::decode(bytes).ok());
    match header {
        Some(header) => {
            let sender = format!("{:02x}{:02x}", header.sender[0], header.sender[1]);
            format!("{:?} {} of {sender}, {} bytes", header.kind, header.number, value.len())
        }
        None => format!("{} bytes of no frame", value.len()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
