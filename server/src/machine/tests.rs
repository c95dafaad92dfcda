//! A world for the machine's tests: one machine, its rows, the log it was fed, and
//! clients that seal what they send as real ones do.

mod accessed;
mod acl;
mod audit;
mod delegation;
mod delete;
mod group;
mod history;
mod hostile;
mod lock;
mod model;
mod play;
mod promise;
mod quota;
mod rename;
mod servers;
mod session;
mod upload;
mod users;
mod view;

use super::effect::{Applied, Effect};
use super::kv::MemoryKv;
use super::session::LEASE_MS;
use super::{Machine, seal_ticket};
use bytes::Bytes;
use proto::chunk::{ChunkName, SealedValue, WrappedKey};
use proto::frame::Kind;
use proto::keys::ClusterKey;
use proto::log::Topic;
use proto::message::{
    Acked, Answer, Attr, AttrChange, Delete, FileKind, Lock, LockHolder, LockKind, LockMode, LockOp, LockOwner,
    LockRange, NewInode, Op, Open, Outcome, Owner, Piece, Promise, Push, Refusal, Request, ServerBody, ServerRecord,
    SessionOp, Source, Ticket, Upload, UserName, View, WriteAt,
};
use proto::seal::{Context, Direction, Head, Key, seal};
use proto::{
    Epoch, IncarnationId, Ino, LogTime, Name, NamespaceId, Position, PushNo, RequestNo, ServerId, SessionId, Time,
};
use std::sync::Arc;

/// A namespace of partition 0.
const NAMESPACE: NamespaceId = NamespaceId(16);
const ROOT: Ino = Ino((16 << Ino::COUNTER_BITS) | 1);
const PARTITION: u32 = 0;

/// Sessions with ids from this one on can answer for what they are delegated.
const DELEGABLE: u8 = 100;

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).expect("tests use valid names")
}

struct World {
    machine: Machine,
    kv: MemoryKv,
    secrets: Arc<ClusterKey>,
    log: Vec<(u64, i64, Bytes)>,
    append_ms: i64,
    epoch: Epoch,
    server: ServerId,
    incarnation: IncarnationId,
    server_number: u64,
}

/// What a client keeps to speak.
#[derive(Clone)]
struct Client {
    id: SessionId,
    namespace: NamespaceId,
    key: Key,
    number: u64,
    /// The last record it sent.
    last: Bytes,
}

impl World {
    /// Epoch 1 has begun, by a server that has ticked once.
    fn new() -> World {
        let secrets = Arc::new(ClusterKey::generate());
        let mut world = World {
            machine: Machine::new(PARTITION, secrets.clone()),
            kv: MemoryKv::default(),
            secrets,
            log: Vec::new(),
            append_ms: 1_700_000_000_000,
            epoch: Epoch(1),
            server: ServerId([9; 16]),
            incarnation: IncarnationId([9; 16]),
            server_number: 0,
        };
        world.begin_epoch(1);
        world.tick(0);
        world
    }

    fn begin_epoch(&mut self, epoch: u32) -> Vec<Effect> {
        self.epoch = Epoch(epoch);
        self.incarnation = IncarnationId([epoch as u8; 16]);
        self.server_number = 0;
        let (server, from) = (self.server, Some(self.machine.state_hash()));
        self.server_record(ServerRecord::Epoch { server, supports: 1, append_time: true, volatile: false, from })
    }

    fn apply(&mut self, record: &Bytes) -> Applied {
        let offset = self.log.len() as u64;
        self.log.push((offset, self.append_ms, record.clone()));
        self.machine.apply(&mut self.kv, offset, self.append_ms, record).expect("tests write what is understood")
    }

    /// Where the last record stands.
    fn last_position(&self) -> Position {
        let (offset, ..) = self.log.last().expect("there is one");
        Position { epoch: self.epoch, partition: PARTITION, offset: *offset, index: 0 }
    }

    /// Applies a record that must take effect.
    fn effects(&mut self, record: &Bytes) -> Vec<Effect> {
        let Applied { effects, skipped } = self.apply(record);
        assert_eq!(skipped, None);
        effects
    }

    fn sealed_server_record(&mut self, record: ServerRecord) -> Bytes {
        let head = Head {
            kind: Kind::Server,
            namespace: NamespaceId(0),
            epoch: self.epoch,
            sender: self.incarnation.0,
            number: self.server_number,
        };
        self.server_number += 1;
        let context =
            Context { direction: Direction::ServerToLog, topic: Topic::Requests, partition: PARTITION, answers: None };
        let key = self.secrets.server_key(self.epoch);
        seal(&key, &head, &context, &ServerBody { record }, &[]).expect("small").record
    }

    fn server_record(&mut self, record: ServerRecord) -> Vec<Effect> {
        let record = self.sealed_server_record(record);
        self.effects(&record)
    }

    fn tick(&mut self, elapsed_ms: u64) -> Vec<Effect> {
        self.append_ms += elapsed_ms as i64;
        self.server_record(ServerRecord::Tick { elapsed_ms })
    }

    /// Lets log time pass.
    fn pass_ms(&mut self, ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut left = ms;
        while left > 0 {
            let step = left.min(500);
            effects.extend(self.tick(step));
            left -= step;
        }
        effects
    }

    /// Lets sessions be opened in an epoch that is not the first.
    fn after_grace(&mut self) {
        self.tick(0);
        self.pass_ms(LEASE_MS);
    }

    fn ticket(&self, id: u8) -> Ticket {
        Ticket {
            session: SessionId([id; 16]),
            user: UserName::new("eve").expect("valid"),
            namespace: NAMESPACE,
            partition: PARTITION,
            epoch: self.epoch,
            key: Key::from_bytes([id; 32]),
            issued: self.machine.log_time(),
            user_seen: Position::default(),
            replies_partition: 3,
            bulk_partition: 4,
            uid: 1000,
            gid: 1000,
        }
    }

    fn sealed_open(&self, ticket: &Ticket, predecessors: &[SessionId]) -> Bytes {
        let head = Head {
            kind: Kind::Open,
            namespace: ticket.namespace,
            epoch: self.epoch,
            sender: ticket.session.0,
            number: 0,
        };
        let sealed = seal_ticket(&self.secrets, ticket).expect("small");
        let body = Open { predecessors: predecessors.to_vec(), delegable: ticket.session.0[0] >= DELEGABLE };
        seal(&ticket.key, &head, &to_server(), &body, &sealed).expect("small").record
    }

    fn open(&mut self, id: u8) -> Client {
        self.open_ticket(&self.ticket(id), &[])
    }

    fn open_ticket(&mut self, ticket: &Ticket, predecessors: &[SessionId]) -> Client {
        let last = self.sealed_open(ticket, predecessors);
        let effects = self.effects(&last);
        assert!(answers(&effects, ticket.session).iter().any(|(n, _)| n.0 == 0), "opened: {effects:?}");
        Client { id: ticket.session, namespace: ticket.namespace, key: ticket.key.clone(), number: 0, last }
    }

    fn sealed(&self, client: &Client, number: u64, op: Op, payload: &[u8]) -> Bytes {
        let time = Time { secs: self.append_ms / 1000, nanos: 5 };
        self.sealed_at(client, number, time, op, payload)
    }

    fn sealed_at(&self, client: &Client, number: u64, time: Time, op: Op, payload: &[u8]) -> Bytes {
        let request = Request { acked: Acked::default(), time, op, local: false };
        self.sealed_request(client, number, &request, payload)
    }

    fn sealed_request(&self, client: &Client, number: u64, request: &Request, payload: &[u8]) -> Bytes {
        let head =
            Head { kind: Kind::Request, namespace: client.namespace, epoch: self.epoch, sender: client.id.0, number };
        seal(&client.key, &head, &to_server(), request, payload).expect("below a record's size").record
    }

    fn send_with(&mut self, client: &mut Client, op: Op, payload: &[u8]) -> Vec<Effect> {
        client.number += 1;
        client.last = self.sealed(client, client.number, op, payload);
        let record = client.last.clone();
        self.effects(&record)
    }

    fn send(&mut self, client: &mut Client, op: Op) -> Vec<Effect> {
        self.send_with(client, op, &[])
    }

    /// Sends a request that is answered at once.
    fn call(&mut self, client: &mut Client, op: Op) -> Result<Outcome, Refusal> {
        self.call_with(client, op, &[])
    }

    /// Sends a request of an earlier (or later) time than now.
    fn call_at(&mut self, client: &mut Client, time: Time, op: Op, payload: &[u8]) -> Result<Outcome, Refusal> {
        client.number += 1;
        client.last = self.sealed_at(client, client.number, time, op, payload);
        let record = client.last.clone();
        let effects = self.effects(&record);
        answer_of(&effects, client).expect("answered at once").result
    }

    fn call_with(&mut self, client: &mut Client, op: Op, payload: &[u8]) -> Result<Outcome, Refusal> {
        let effects = self.send_with(client, op, payload);
        answer_of(&effects, client).expect("answered at once").result
    }

    fn entry(&mut self, client: &mut Client, op: Op) -> Attr {
        entry(self.call(client, op))
    }

    fn getattr(&mut self, client: &mut Client, ino: Ino) -> Attr {
        self.entry(client, Op::View(View::Getattr { ino }))
    }

    fn mkdir(&mut self, client: &mut Client, dir: Ino, name: &str) -> Ino {
        self.entry(client, create(dir, name, FileKind::Dir)).ino
    }

    fn mkfile(&mut self, client: &mut Client, dir: Ino, name: &str) -> Ino {
        self.entry(client, create(dir, name, FileKind::File)).ino
    }

    /// The same log gives another machine the same state, in every byte.
    fn assert_replayable(&self) {
        let (mut machine, mut kv) = (Machine::new(PARTITION, self.secrets.clone()), MemoryKv::default());
        for (offset, append_ms, record) in &self.log {
            machine.apply(&mut kv, *offset, *append_ms, record).expect("understood before");
        }
        assert_eq!(kv, self.kv);
        assert_eq!(machine.dump(), self.machine.dump());
        assert_eq!(machine.state_hash(), self.machine.state_hash());
    }

    /// Goes on with a machine read back from a dump.
    fn restart(&mut self) {
        let dump = self.machine.dump();
        let restored = Machine::restore(PARTITION, self.secrets.clone(), &dump).expect("just dumped");
        assert_eq!(restored.dump(), dump);
        self.machine = restored;
    }
}

fn to_server() -> Context {
    Context { direction: Direction::ToServer, topic: Topic::Requests, partition: PARTITION, answers: None }
}

fn answers(effects: &[Effect], session: SessionId) -> Vec<(RequestNo, Answer)> {
    let of_session = |effect: &Effect| match effect {
        Effect::Answer { to, number, answer, .. } if to.session == session => Some((*number, answer.clone())),
        _ => None,
    };
    effects.iter().filter_map(of_session).collect()
}

/// The answer to the client's last request, if it has left.
fn answer_of(effects: &[Effect], client: &Client) -> Option<Answer> {
    answers(effects, client.id).into_iter().find(|(number, _)| number.0 == client.number).map(|(_, answer)| answer)
}

fn pushes(effects: &[Effect], client: &Client) -> Vec<(PushNo, Push)> {
    let of_client = |effect: &Effect| match effect {
        Effect::Push { to, number, body } if to.session == client.id => Some((*number, body.push.clone())),
        _ => None,
    };
    effects.iter().filter_map(of_client).collect()
}

fn entry(result: Result<Outcome, Refusal>) -> Attr {
    match result {
        Ok(Outcome::Entry(attr)) => attr,
        other => panic!("not an entry: {other:?}"),
    }
}

fn create(dir: Ino, at: &str, kind: FileKind) -> Op {
    make(dir, at, kind, 0o644, 0)
}

fn make(dir: Ino, at: &str, kind: FileKind, mode: u32, umask: u32) -> Op {
    let target = (kind == FileKind::Symlink).then(|| value(b"there"));
    let new = NewInode {
        kind,
        mode,
        umask,
        uid: Owner::Namespace,
        gid: Owner::Number(7),
        rdev: 0,
        target,
        ino: None,
        reserved: false,
    };
    Op::Upload(Upload::Create { dir, name: name(at), new })
}

fn lookup(dir: Ino, at: &str) -> Op {
    Op::View(View::Lookup { dir, name: name(at) })
}

fn link(ino: Ino, dir: Ino, at: &str) -> Op {
    Op::Upload(Upload::Link { ino, dir, name: name(at) })
}

fn unlink(dir: Ino, at: &str) -> Op {
    Op::Delete(Delete::Unlink { dir, name: name(at) })
}

fn rmdir(dir: Ino, at: &str) -> Op {
    Op::Delete(Delete::Rmdir { dir, name: name(at) })
}

fn truncate(ino: Ino, size: u64) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { size: Some(size), ..AttrChange::default() } })
}

fn wrapped_key() -> WrappedKey {
    WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] }
}

/// A write of `len` bytes whose content is the whole payload.
fn write(ino: Ino, offset: u64, len: u32, payload_len: u32) -> Op {
    let source = Source::Inline { payload_from: 0, payload_len };
    let piece = Piece { offset, len, source, chunk_from: 0, key: wrapped_key() };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

fn value(bytes: &[u8]) -> SealedValue {
    SealedValue { key_epoch: 1, sealed: [&[0; SealedValue::OVERHEAD_BYTES][..], bytes].concat() }
}
