//! The core against the real machine over a log that loses, repeats, delays and
//! reorders, in both directions: every change is applied once and in order, and
//! what a promise lets a client believe is never older than what others were told.
//! One seed, one run.

use super::*;
use crate::client::promises::{Grant, Promises};
use proto::frame::Kind;
use proto::keys::ClusterKey;
use proto::log::Topic;
use proto::message::{AttrChange, FileKind, NewInode, Owner, Promise, ServerBody, ServerRecord, Ticket, UserName};
use proto::message::{Upload, View};
use proto::seal::{Context, Direction, Head, Key, seal};
use proto::{Epoch, IncarnationId, Ino, LogTime, Name, NamespaceId, ServerId};
use server::machine::Machine;
use server::machine::effect::Effect;
use server::machine::kv::MemoryKv;
use std::collections::BTreeMap;

const NAMESPACE: NamespaceId = NamespaceId(3);
const PARTITION: u32 = 3;
const EPOCH: Epoch = Epoch(1);
const TICK_MS: u64 = 500;

/// What can go wrong, in percent of the records, and delays in milliseconds.
#[derive(Clone, Copy)]
struct Trouble {
    lost: u64,
    repeated: u64,
    delay_ms: u64,
    /// Per client and second, in percent: it stands still for up to 90 s.
    pause: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound.max(1)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What is under way, by the time of its arrival.
enum Event {
    ToLog {
        record: Bytes,
    },
    Appended {
        client: usize,
        session: SessionId,
        number: RequestNo,
        stored: bool,
    },
    Answer {
        client: usize,
        session: SessionId,
        number: RequestNo,
        request: [u8; 32],
        answer: Box<Answer>,
        payload: Bytes,
    },
    Push {
        client: usize,
        session: SessionId,
        number: PushNo,
        body: PushBody,
    },
    Login {
        client: usize,
    },
}

struct TestSeal {
    key: Key,
    session: SessionId,
    ticket: Vec<u8>,
}

impl TestSeal {
    fn seal<T: serde::Serialize>(&self, kind: Kind, number: u64, body: &T, payload: &[u8]) -> Result<Bytes, SealError> {
        let head = Head { kind, namespace: NAMESPACE, epoch: EPOCH, sender: self.session.0, number };
        Ok(seal(&self.key, &head, &context(Direction::ToServer), body, payload)?.record)
    }
}

impl Seal for TestSeal {
    fn epoch(&self) -> Epoch {
        EPOCH
    }
    fn open(&mut self, body: &Open) -> Result<Bytes, SealError> {
        self.seal(Kind::Open, 0, body, &self.ticket)
    }
    fn request(&mut self, number: RequestNo, body: &Request, payload: &[u8]) -> Result<Bytes, SealError> {
        self.seal(Kind::Request, number.0, body, payload)
    }
}

fn context(direction: Direction) -> Context {
    Context { direction, topic: Topic::Requests, partition: PARTITION, answers: None }
}

struct Token(u64);

impl Waiter for Token {
    fn is_gone(&self) -> bool {
        false
    }

    fn parked(&mut self, _: SessionId, _: RequestNo) {}
}

struct TestClient {
    core: Core<Token>,
    promises: Arc<Promises>,
    results: BTreeMap<u64, Result<Reply, CallError>>,
    next_token: u64,
    login_pending: bool,
    paused_until: u64,
}

struct Sim {
    random: Random,
    trouble: Trouble,
    now_ms: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    machine: Machine,
    kv: MemoryKv,
    offset: u64,
    secrets: Arc<ClusterKey>,
    incarnation: IncarnationId,
    server_number: u64,
    ticked_ms: u64,
    clients: Vec<TestClient>,
    sessions: u64,
}

impl Sim {
    fn new(seed: u64, clients: usize, trouble: Trouble) -> Sim {
        let secrets = Arc::new(ClusterKey::generate());
        let client = |_| {
            let promises = Arc::new(Promises::default());
            TestClient {
                core: Core::new(Arc::clone(&promises), Vec::new(), false),
                promises,
                results: BTreeMap::new(),
                next_token: 0,
                login_pending: false,
                paused_until: 0,
            }
        };
        let mut sim = Sim {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            trouble,
            now_ms: 1_000,
            events: BTreeMap::new(),
            next_event: 0,
            machine: Machine::new(PARTITION, Arc::clone(&secrets)),
            kv: MemoryKv::default(),
            offset: 0,
            secrets,
            incarnation: IncarnationId([7; 16]),
            server_number: 0,
            ticked_ms: 0,
            clients: (0..clients).map(client).collect(),
            sessions: 0,
        };
        let epoch = ServerRecord::Epoch {
            server: ServerId([1; 16]),
            supports: 1,
            append_time: false,
            volatile: false,
            from: None,
        };
        sim.server_record(epoch);
        for client in 0..clients {
            sim.at(sim.now_ms, Event::Login { client });
            sim.clients[client].login_pending = true;
        }
        sim
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((ms, self.next_event), event);
    }

    fn delay(&mut self) -> u64 {
        // Mostly short, sometimes long: that is what overtakes.
        let long = self.random.percent(5);
        1 + self.random.below(if long { self.trouble.delay_ms } else { 1 + self.trouble.delay_ms / 20 })
    }

    fn server_record(&mut self, record: ServerRecord) {
        let number = self.server_number;
        self.server_number += 1;
        let head =
            Head { kind: Kind::Server, namespace: NamespaceId(0), epoch: EPOCH, sender: self.incarnation.0, number };
        let key = self.secrets.server_key(EPOCH);
        let record = seal(&key, &head, &context(Direction::ServerToLog), &ServerBody { record }, &[]).expect("seals");
        self.apply(record.record);
    }

    fn apply(&mut self, record: Bytes) {
        let offset = self.offset;
        self.offset += 1;
        let applied = self.machine.apply(&mut self.kv, offset, self.now_ms as i64, &record).expect("understood");
        for effect in applied.effects {
            match effect {
                Effect::Answer { to, number, request, answer, payload, .. } => {
                    self.toward(to.session, |client, session| Event::Answer {
                        client,
                        session,
                        number,
                        request,
                        answer: Box::new(answer.clone()),
                        payload: payload.clone(),
                    });
                }
                Effect::SessionEnded { session, number, request, at, .. } => {
                    let result = Err(Refusal::SessionEnded);
                    let answer = Answer::bare(at, PushNo(0), result);
                    self.toward(session, |client, session| Event::Answer {
                        client,
                        session,
                        number,
                        request,
                        answer: Box::new(answer.clone()),
                        payload: Bytes::new(),
                    });
                }
                Effect::Push { to, number, body } => {
                    self.toward(to.session, |client, session| Event::Push {
                        client,
                        session,
                        number,
                        body: body.clone(),
                    });
                }
                _ => {}
            }
        }
    }

    fn toward(&mut self, session: SessionId, event: impl Fn(usize, SessionId) -> Event) {
        let client = usize::from(session.0[0]);
        let copies = self.copies();
        for _ in 0..copies {
            let ms = self.now_ms + self.delay();
            self.at(ms, event(client, session));
        }
    }

    fn copies(&mut self) -> usize {
        if self.random.percent(self.trouble.lost) {
            0
        } else {
            1 + usize::from(self.random.percent(self.trouble.repeated))
        }
    }

    fn act(&mut self, client: usize, step: impl FnOnce(&mut Core<Token>, u64, &mut Vec<Action<Token>>)) {
        let mut actions = Vec::new();
        step(&mut self.clients[client].core, self.now_ms, &mut actions);
        for action in actions {
            match action {
                Action::Send { number, frame, .. } => {
                    let copies = self.copies();
                    for _ in 0..copies {
                        let ms = self.now_ms + self.delay();
                        self.at(ms, Event::ToLog { record: frame.clone() });
                    }
                    let session = self.clients[client].core.session().expect("records are sent in a session");
                    // The log may say that it failed although it has not, and the other way round.
                    let stored = !self.random.percent(self.trouble.lost);
                    let ms = self.now_ms + self.delay();
                    self.at(ms, Event::Appended { client, session, number, stored });
                }
                Action::Done { entry, result } => {
                    if let Some(Token(token)) = entry.waiter {
                        let twice = self.clients[client].results.insert(token, result);
                        assert!(twice.is_none(), "a request ended twice");
                    }
                }
                Action::WantSession => self.want_session(client),
                // There is one epoch here.
                Action::WantContent => panic!("content of another epoch is wanted"),
                Action::Opened { .. } | Action::Invalidate(_) | Action::Limited(_) | Action::GiveBack(_) => {}
            }
        }
    }

    fn want_session(&mut self, client: usize) {
        if !self.clients[client].login_pending && self.clients[client].core.wants_session() {
            self.clients[client].login_pending = true;
            let ms = self.now_ms + 200 + self.delay();
            self.at(ms, Event::Login { client });
        }
    }

    fn login(&mut self, client: usize) {
        self.clients[client].login_pending = false;
        if !self.clients[client].core.wants_session() {
            return;
        }
        self.sessions += 1;
        let mut session = SessionId([0; 16]);
        session.0[0] = client as u8;
        session.0[8..].copy_from_slice(&self.sessions.to_be_bytes());
        let key = Key::random();
        let ticket = Ticket {
            session,
            user: UserName::new("anna").expect("valid"),
            namespace: NAMESPACE,
            partition: PARTITION,
            epoch: EPOCH,
            key: key.clone(),
            issued: LogTime(self.machine.log_time().0),
            user_seen: Position::default(),
            replies_partition: 0,
            bulk_partition: 0,
            uid: 1000,
            gid: 1000,
        };
        let ticket = server::machine::seal_ticket(&self.secrets, &ticket).expect("seals");
        let seal = Box::new(TestSeal { key, session, ticket });
        self.act(client, |core, now, out| core.open(now, session, seal, 16, out).expect("seals"));
    }

    fn submit(&mut self, client: usize, op: Op) -> u64 {
        self.clients[client].next_token += 1;
        let token = self.clients[client].next_token;
        self.act(client, |core, now, out| {
            let entry = Entry {
                waiter: Some(Token(token)),
                op,
                payload: Bytes::new(),
                time: Time::from_millis(now as i64),
                journaled: None,
                only_in: None,
                answered: false,
                local: false,
                asked_again: false,
                order: 0,
                entered_ms: now,
            };
            core.submit(now, entry, out);
        });
        token
    }

    /// One step of one millisecond.
    fn step(&mut self) {
        self.now_ms += 1;
        if self.now_ms >= self.ticked_ms + TICK_MS {
            let elapsed_ms = self.now_ms - self.ticked_ms;
            self.ticked_ms = self.now_ms;
            self.server_record(ServerRecord::Tick { elapsed_ms });
        }
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            let event = entry.remove();
            self.happen(event);
        }
        for client in 0..self.clients.len() {
            if self.now_ms.is_multiple_of(1000) && self.random.percent(self.trouble.pause) {
                self.clients[client].paused_until = self.now_ms + self.random.below(90_000);
            }
            if self.clients[client].paused_until > self.now_ms {
                continue;
            }
            if self.clients[client].core.wake_ms() <= self.now_ms {
                self.act(client, |core, now, out| core.poll(now, out));
            }
            self.want_session(client);
        }
    }

    fn happen(&mut self, event: Event) {
        let concerned = match &event {
            Event::ToLog { .. } => None,
            Event::Appended { client, .. }
            | Event::Answer { client, .. }
            | Event::Push { client, .. }
            | Event::Login { client } => Some(*client),
        };
        if let Some(client) = concerned
            && self.clients[client].paused_until > self.now_ms
        {
            let until = self.clients[client].paused_until;
            return self.at(until, event);
        }
        match event {
            Event::ToLog { record } => self.apply(record),
            Event::Appended { client, session, number, stored } => {
                self.act(client, |core, now, _| {
                    core.appended(now, session, number, stored.then_some(now));
                });
            }
            Event::Answer { client, session, number, request, answer, payload } => {
                if self.clients[client].core.awaited(session, number) == Some(request) {
                    self.act(client, |core, now, out| core.answer(now, number, *answer, payload, out));
                }
            }
            Event::Push { client, session, number, body } => {
                if self.clients[client].core.session() == Some(session) {
                    self.act(client, |core, now, out| {
                        core.push(now, number, body, out);
                        core.flush(now, out);
                    });
                }
            }
            Event::Login { client } => self.login(client),
        }
    }

    fn run_until(&mut self, limit_ms: u64, mut done: impl FnMut(&Sim) -> bool) {
        let end = self.now_ms + limit_ms;
        while !done(self) {
            assert!(self.now_ms < end, "not done after {limit_ms} ms of simulated time");
            self.step();
        }
    }

    fn call(&mut self, client: usize, op: Op) -> Result<Reply, CallError> {
        let token = self.submit(client, op);
        self.run_until(600_000, |sim| sim.clients[client].results.contains_key(&token));
        self.clients[client].results.remove(&token).expect("just seen")
    }
}

fn root() -> Ino {
    Ino::root(NAMESPACE)
}

fn create(name: &str) -> Op {
    Op::Upload(Upload::Create {
        dir: root(),
        name: Name::new(name.as_bytes()).expect("valid"),
        new: NewInode {
            kind: FileKind::File,
            mode: 0,
            umask: 0,
            uid: Owner::Namespace,
            gid: Owner::Namespace,
            rdev: 0,
            target: None,
            ino: None,
            reserved: false,
        },
    })
}

fn set_mode(ino: Ino, mode: u32) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } })
}

const QUIET: Trouble = Trouble { lost: 0, repeated: 0, delay_ms: 20, pause: 0 };
const BAD: Trouble = Trouble { lost: 10, repeated: 10, delay_ms: 3_000, pause: 0 };
const AWFUL: Trouble = Trouble { lost: 15, repeated: 15, delay_ms: 15_000, pause: 3 };

#[test]
fn what_was_answered_is_safe_once_the_log_has_all_up_to_it_in_order() {
    let mut sim = Sim::new(7, 1, QUIET);
    let before = sim.call(0, create("before")).expect("is made").at.offset;
    let now = sim.now_ms;
    let core = &mut sim.clients[0].core;
    let (session, mut out) = (core.session().expect("is open"), Vec::new());
    assert_eq!(core.stored(now, core.entered()), Stored::Safe, "nothing is under way");
    let mut enter = |core: &mut Core<Token>, answered| {
        let entry = Entry { answered, local: answered, ..Entry::own(create("local"), now) };
        (core.submit(now, entry, &mut out), RequestNo(core.next.0 - 1))
    };
    let (_, first) = enter(core, true);
    let (_, other) = enter(core, false);
    let (last, second) = enter(core, true);
    let (_, later) = enter(core, true);
    let tell = |core: &mut Core<Token>, number, offset| {
        core.appended(now, session, number, offset);
        core.stored(now, last)
    };
    assert_eq!(tell(core, first, Some(before + 1)), Stored::Awaited);
    assert_eq!(tell(core, second, Some(before + 3)), Stored::Awaited, "one between them is not there");
    assert_eq!(tell(core, other, Some(before + 2)), Stored::Safe);
    assert_eq!(tell(core, later, None), Stored::Safe, "later ones do not matter");
    assert_eq!(core.stored(now, core.entered()), Stored::Unknown, "one is perhaps not there");
    assert_eq!(tell(core, other, Some(before + 4)), Stored::Unknown, "it counts only when it is sent again");
    assert_eq!(tell(core, other, Some(before + 3)), Stored::Safe, "they share a record");
    assert_eq!(tell(core, first, Some(before - 1)), Stored::Unknown, "so does this one");
    assert_eq!(tell(core, first, Some(before + 1)), Stored::Safe);
    assert_eq!(core.stored(now + 60_000, last), Stored::Unknown, "what was delegated may be over");
}

/// It has been confirmed, and so the server has forgotten it; the answer that it waits was lost.
#[test]
fn an_outcome_that_came_before_its_answer_counts_although_the_session_ends() {
    let mut sim = Sim::new(8, 1, QUIET);
    let Reply { at, outcome, .. } = sim.call(0, create("before")).expect("is made");
    let Outcome::Entry(attr) = outcome else { panic!("an entry") };
    let now = sim.now_ms;
    let core = &mut sim.clients[0].core;
    let (session, mut out) = (core.session().expect("is open"), Vec::new());
    core.submit(now, Entry { waiter: Some(Token(77)), ..Entry::own(create("waits"), now) }, &mut out);
    let number = RequestNo(core.next.0 - 1);
    let push = Push::Outcome { number, result: Err(Refusal::Exists) };
    core.push(now, PushNo(1), PushBody { at, push }, &mut out);
    core.flush(now, &mut out);
    core.ended(now, &mut out);
    let id = SessionId([9; 16]);
    let seal = TestSeal { key: Key::random(), session: id, ticket: Vec::new() };
    core.open(now, id, Box::new(seal), 16, &mut out).expect("seals");
    let ended = vec![Ended { session, known: true, last: number, results: Vec::new(), at }];
    let opened = Outcome::Opened { root: attr, ended, now: LogTime(0), limited: Each::default() };
    core.answer(now, RequestNo(0), Answer::bare(at, PushNo(0), Ok(opened)), Bytes::new(), &mut out);
    let told = out.iter().find_map(|action| match action {
        Action::Done { entry, result } if entry.waiter.as_ref().is_some_and(|token| token.0 == 77) => Some(result),
        _ => None,
    });
    let is_told = matches!(told, Some(Err(CallError::Refused { refusal: Refusal::Exists, .. })));
    assert!(is_told, "{:?}", told.map(|told| told.as_ref().err()));
}

/// Creates many names without waiting: all come about, each once, in order.
fn every_change_once(seed: u64, trouble: Trouble) {
    let mut sim = Sim::new(seed, 2, trouble);
    let mut tokens = Vec::new();
    for round in 0..120 {
        tokens.push(sim.submit(0, create(&format!("file-{round}"))));
        if round % 3 == 0 {
            let name = Name::new(format!("file-{}", round / 2).as_bytes()).expect("valid");
            sim.submit(0, Op::View(View::Lookup { dir: root(), name: name.clone() }));
            sim.submit(1, Op::View(View::Lookup { dir: root(), name }));
        }
        for _ in 0..sim.random.below(2_000) {
            sim.step();
        }
    }
    let (first, second) = (sim.clients[0].next_token, sim.clients[1].next_token);
    sim.run_until(3_000_000, |sim| {
        sim.clients[0].results.len() as u64 == first && sim.clients[1].results.len() as u64 == second
    });
    let mut last = Ino(0);
    for token in tokens {
        match &sim.clients[0].results[&token] {
            Ok(Reply { outcome: Outcome::Entry(attr), .. }) => {
                assert!(attr.ino > last, "seed {seed}: applied out of order");
                last = attr.ino;
            }
            other => panic!("seed {seed}: a create came to {other:?}"),
        }
    }
    assert_eq!(last.0 - root().0, 120, "seed {seed}: something was created twice");
}

#[test]
fn every_change_is_applied_once_and_in_order() {
    every_change_once(1, QUIET);
    for seed in 1..=8 {
        every_change_once(seed, BAD);
    }
}

#[test]
fn every_change_is_applied_once_although_sessions_end() {
    for seed in 1..=6 {
        every_change_once(seed, AWFUL);
    }
}

/// One client changes a file again and again, others read it and rely on their
/// promises: nobody reads anything older than what was known to be done.
fn no_stale_reads(seed: u64, trouble: Trouble) -> u64 {
    let mut sim = Sim::new(seed, 3, trouble);
    let Ok(Reply { outcome: Outcome::Entry(attr), .. }) = sim.call(0, create("shared")) else {
        panic!("seed {seed}: cannot create")
    };
    let covering = Promise::Dir(root());
    let mut done = 0;
    let mut writing: Option<(u64, u32)> = None;
    let mut reading: [Option<(u64, u32)>; 3] = [None; 3];
    let mut cached: [Option<(Grant, u32)>; 3] = [None; 3];
    let mut hits = 0;
    let end = sim.now_ms + 150_000;
    while sim.now_ms < end {
        sim.step();
        match writing {
            Some((token, value)) => {
                if let Some(result) = sim.clients[0].results.remove(&token) {
                    assert!(result.is_ok(), "seed {seed}: {result:?}");
                    done = value;
                    writing = None;
                }
            }
            None if sim.random.below(300) == 0 && done < 4000 => {
                writing = Some((sim.submit(0, set_mode(attr.ino, done + 1)), done + 1));
            }
            None => {}
        }
        for client in 0..3 {
            if sim.clients[client].paused_until > sim.now_ms {
                continue;
            }
            if let Some((token, least)) = reading[client] {
                if let Some(result) = sim.clients[client].results.remove(&token) {
                    let Ok(Reply { outcome: Outcome::Entry(attr), granted, .. }) = result else {
                        panic!("seed {seed}: {result:?}")
                    };
                    assert!(attr.mode >= least, "seed {seed}: an answer is stale");
                    let grant = granted.iter().find(|(promise, _)| *promise == covering);
                    cached[client] = grant.map(|(_, grant)| (*grant, attr.mode));
                    reading[client] = None;
                }
            } else if sim.random.below(20) == 0 {
                let now = sim.promises_of(client).grant_at(sim.now_ms, &covering);
                match cached[client] {
                    Some((grant, mode)) if now == Some(grant) => {
                        assert!(mode >= done, "seed {seed} at {}: read {mode} after {done} was done", sim.now_ms);
                        hits += 1;
                    }
                    _ => {
                        reading[client] = Some((sim.submit(client, Op::View(View::Getattr { ino: attr.ino })), done));
                    }
                }
            }
        }
    }
    hits
}

impl Sim {
    fn promises_of(&self, client: usize) -> &Promises {
        &self.clients[client].promises
    }
}

#[test]
fn nobody_reads_what_is_older_than_a_finished_change() {
    assert!(no_stale_reads(1, QUIET) > 1_000, "promises are of use");
    for seed in 1..=8 {
        no_stale_reads(seed, BAD);
    }
    for seed in 1..=8 {
        no_stale_reads(seed, AWFUL);
    }
}

#[test]
fn a_mount_that_hears_nothing_says_so_and_recovers() {
    let mut sim = Sim::new(5, 1, QUIET);
    sim.call(0, create("a")).expect("created");
    sim.trouble.lost = 100;
    let token = sim.submit(0, create("b"));
    for _ in 0..OFFLINE_MS + 100 {
        sim.step();
    }
    assert!(sim.clients[0].core.offline_since_ms().is_some());
    sim.trouble.lost = 0;
    sim.run_until(60_000, |sim| sim.clients[0].results.contains_key(&token));
    assert!(sim.clients[0].results[&token].is_ok());
    assert!(sim.clients[0].core.offline_since_ms().is_none());
}

#[test]
fn an_idle_session_stays_alive_with_few_records() {
    let mut sim = Sim::new(6, 1, QUIET);
    sim.call(0, create("a")).expect("created");
    let (sessions, records, ticks) = (sim.sessions, sim.offset, sim.server_number);
    for _ in 0..400_000 {
        sim.step();
    }
    sim.call(0, create("b")).expect("created");
    assert_eq!(sim.sessions, sessions, "no session was replaced");
    let sent = (sim.offset - records) - (sim.server_number - ticks);
    assert!((15..45).contains(&sent), "{sent} records in 400 s");
}

/// What a program was told of stands in the log between the two copies of a view; its answer would show it twice.
#[test]
fn a_view_that_was_sent_again_shows_nothing_that_was_entered_after_it() {
    let at = |offset| Position { epoch: EPOCH, partition: PARTITION, offset, index: 0 };
    let absent = |offset| Answer::bare(at(offset), PushNo(0), Err(Refusal::NotFound));
    let view = || Op::View(View::Lookup { dir: root(), name: Name::new(b"a").expect("valid") });
    for (answered_at, is_first) in [(20, true), (22, false)] {
        let mut sim = Sim::new(3, 1, QUIET);
        sim.call(0, create("other")).expect("created");
        let mut out = Vec::new();
        let core = &mut sim.clients[0].core;
        let mut now = sim.now_ms;
        let entry =
            |op, answered| Entry { waiter: Some(Token(1)), answered, local: answered, ..Entry::own(op, sim.now_ms) };
        let first = core.submit(now, entry(view(), false), &mut out);
        let number = core.flight.last_key_value().map(|(number, _)| *number).expect("sent");
        let session = core.session().expect("is open");
        core.appended(now, session, number, Some(20));
        let change = core.submit(now, entry(create("a"), true), &mut out);
        now += RESEND_FIRST_MS;
        core.poll(now, &mut out);
        assert_eq!(core.flight[&number].sends, 2);
        out.clear();
        core.answer(now, number, absent(answered_at), Bytes::new(), &mut out);
        let told = told_order(&out);
        if is_first {
            assert_eq!(told, Some(first));
            continue;
        }
        assert_eq!(told, None, "it may have been made between the two");
        let again = core.flight.last_key_value().map(|(number, _)| *number).expect("sent");
        out.clear();
        core.answer(now, again, absent(30), Bytes::new(), &mut out);
        let order = told_order(&out);
        assert!(order.is_some_and(|order| order >= change), "{order:?}");
    }
}

/// Two who work in one directory fill their windows with what waits for the other one's word.
#[test]
fn what_the_server_waits_for_does_not_wait_for_the_window() {
    let mut sim = Sim::new(3, 1, QUIET);
    sim.call(0, create("other")).expect("created");
    let (now, core) = (sim.now_ms, &mut sim.clients[0].core);
    let mut out = Vec::new();
    let at = |offset| Position { epoch: EPOCH, partition: PARTITION, offset, index: 0 };
    core.delegated.delegable = true;
    let view = Op::View(View::Lookup { dir: root(), name: Name::new(b"none").expect("valid") });
    core.submit(now, Entry { waiter: Some(Token(1)), ..Entry::own(view, now) }, &mut out);
    let number = *core.flight.last_key_value().expect("is sent").0;
    let things = vec![Promise::Dir(root())];
    let absent = Answer::bare(at(20), PushNo(0), Err(Refusal::NotFound));
    let answer = Answer { granted: things.clone(), delegated: things.clone(), ..absent };
    core.answer(now, number, answer, Bytes::new(), &mut out);
    for number in 0..20 {
        let op = create(&format!("{number}"));
        core.submit(now, Entry { answered: true, local: true, ..Entry::own(op, now) }, &mut out);
    }
    assert_eq!((core.flight.len(), core.waiting.len()), (16, 4), "the window is full");
    core.push(now, PushNo(1), PushBody { at: at(21), push: Push::Invalidate(things) }, &mut out);
    core.flush(now, &mut out);
    let last = core.flight.last_key_value().map(|(_, flight)| &flight.entry.op);
    assert!(matches!(last, Some(Op::Session(SessionOp::Confirm { .. }))), "{last:?}");
    assert!(core.waiting.is_empty());
}

/// On a slow link changes wait for long that nobody waits for.
#[test]
fn a_view_goes_before_changes_that_wait_unless_they_concern_what_it_looks_at() {
    let mut sim = Sim::new(3, 1, QUIET);
    sim.call(0, create("other")).expect("created");
    let (now, core) = (sim.now_ms, &mut sim.clients[0].core);
    let mut out = Vec::new();
    let mut orders = Vec::new();
    for number in 0..10 {
        let op = create(&format!("{number}"));
        let payload = Bytes::from(vec![0; 100 << 10]);
        let entry = Entry { waiter: Some(Token(1)), payload, answered: true, local: true, ..Entry::own(op, now) };
        orders.push(core.submit(now, entry, &mut out));
    }
    let sent = core.flight.len();
    assert!((1..10).contains(&sent), "the log has not told of them: {sent}");
    let view = |view| Entry { waiter: Some(Token(2)), ..Entry::own(Op::View(view), now) };
    core.submit(now, view(View::Lookup { dir: root(), name: Name::new(b"9").expect("valid") }), &mut out);
    assert_eq!(core.flight.len(), sent, "what waits stands in that directory");
    core.submit(now, view(View::Getattr { ino: Ino(77) }), &mut out);
    assert_eq!(core.flight.len(), sent + 1);

    let number = *core.flight.last_key_value().expect("is sent").0;
    let at = Position { epoch: EPOCH, partition: PARTITION, offset: 20, index: 0 };
    out.clear();
    core.answer(now, number, Answer::bare(at, PushNo(0), Err(Refusal::NotFound)), Bytes::new(), &mut out);
    assert_eq!(told_order(&out), Some(orders[sent - 1]), "it shows what was sent before, and nothing that waits");
}

/// On a slow link it stands behind others for long; the server can only answer what it has.
#[test]
fn a_request_that_the_log_took_late_has_its_time_from_then_on() {
    let mut sim = Sim::new(3, 1, QUIET);
    sim.call(0, create("other")).expect("created");
    let mut out = Vec::new();
    let core = &mut sim.clients[0].core;
    let mut now = sim.now_ms;
    core.submit(now, Entry { waiter: Some(Token(1)), ..Entry::own(create("large"), now) }, &mut out);
    let number = *core.flight.last_key_value().expect("is sent").0;
    let session = core.session().expect("is open");
    now += 5 * RESEND_FIRST_MS;
    core.poll(now, &mut out);
    core.appended(now, session, number, Some(20));
    core.poll(now + RESEND_FIRST_MS - 1, &mut out);
    assert_eq!(core.flight[&number].sends, 1);
    core.poll(now + RESEND_FIRST_MS, &mut out);
    assert_eq!(core.flight[&number].sends, 2, "no answer has come");
}

/// Or, on a slow link, the log would have none of them in time, and those that keep the session alive would stand behind.
#[test]
fn only_so_much_is_sent_that_the_log_has_not_told_of() {
    let mut sim = Sim::new(3, 1, QUIET);
    sim.call(0, create("other")).expect("created");
    let mut out = Vec::new();
    let core = &mut sim.clients[0].core;
    let now = sim.now_ms;
    for name in ["a", "b", "c", "d", "e"] {
        let payload = Bytes::from(vec![0; 200 << 10]);
        core.submit(now, Entry { payload, ..Entry::own(create(name), now) }, &mut out);
    }
    let sent = |core: &Core<Token>| core.flight.keys().copied().collect::<Vec<_>>();
    let first = sent(core);
    assert_eq!((first.len(), core.waiting.len()), (3, 2), "a little more than half a MiB");
    let session = core.session().expect("is open");
    core.appended(now, session, first[1], Some(20));
    assert!(core.wake_ms() <= now);
    core.poll(now, &mut out);
    assert_eq!((sent(core).len(), core.waiting.len()), (4, 1));
    // What the log does not have by its own account does not hold up the others.
    core.appended(now, session, first[0], None);
    core.poll(now, &mut out);
    assert_eq!((sent(core).len(), core.waiting.len()), (5, 0));
    // An answer says so too.
    let place = Position { offset: 30, ..core.seen.expect("something was answered") };
    let refused = Answer::bare(place, PushNo(0), Err(Refusal::Exists));
    core.answer(now, first[2], refused, Bytes::new(), &mut out);
    core.submit(now, Entry::own(create("f"), now), &mut out);
    assert_eq!((sent(core).len(), core.waiting.len()), (5, 0));
}

/// The order as of which somebody has been told that there is nothing.
fn told_order(out: &[Action<Token>]) -> Option<u64> {
    out.iter().find_map(|action| match action {
        Action::Done { result: Err(CallError::Refused { order, .. }), .. } => Some(*order),
        _ => None,
    })
}
