//! A small log in words, and what must never stand there.

use super::*;
use crate::machine::seal_ticket;
use bytes::Bytes;
use proto::chunk::{SealedValue, WrappedKey};
use proto::message::{
    Acked, Delete, FileKind, NewInode, Op, Owner, Piece, Promise, Refusal, ServerRecord, Source, Upload, UserName,
    View, WriteAt,
};
use proto::seal::{Head, seal};
use proto::{Epoch, IncarnationId, Ino, LogTime, Name, Position, PushNo, ServerId, Time};

const NAMESPACE: NamespaceId = NamespaceId(3);
const PARTITION: u32 = 3;
const SESSION: SessionId = SessionId([0xab; 16]);

struct Writing {
    cluster: ClusterKey,
    key: Key,
    offset: u64,
}

impl Writing {
    fn new() -> Writing {
        Writing { cluster: ClusterKey::generate(), key: Key::from_bytes([7; 32]), offset: 0 }
    }

    fn record(
        &mut self,
        key: &Key,
        kind: Kind,
        sender: [u8; 16],
        number: u64,
        body: &impl Serialize,
        payload: &[u8],
    ) -> Record {
        let direction = if kind == Kind::Server { Direction::ServerToLog } else { Direction::ToServer };
        let namespace = if kind == Kind::Server { NamespaceId(0) } else { NAMESPACE };
        let head = Head { kind, namespace, epoch: Epoch(1), sender, number };
        let context = Context { direction, topic: Topic::Requests, partition: PARTITION, answers: None };
        let value = seal(key, &head, &context, body, payload).expect("small").record;
        self.kept(value)
    }

    fn kept(&mut self, value: Bytes) -> Record {
        self.offset += 1;
        let append_time_ms = 1_700_000_000_000;
        Record { topic: Topic::Requests, partition: PARTITION, offset: self.offset - 1, append_time_ms, value }
    }

    fn open(&mut self) -> Record {
        let ticket = Ticket {
            session: SESSION,
            user: UserName::new("ann").expect("valid"),
            namespace: NAMESPACE,
            partition: PARTITION,
            epoch: Epoch(1),
            key: self.key.clone(),
            issued: LogTime(7),
            user_seen: Position::default(),
            replies_partition: 9,
            bulk_partition: 9,
            uid: 0,
            gid: 0,
        };
        let sealed = seal_ticket(&self.cluster, &ticket).expect("small");
        self.record(
            &ticket.key,
            Kind::Open,
            SESSION.0,
            0,
            &Open { predecessors: Vec::new(), delegable: false },
            &sealed,
        )
    }

    fn request(&mut self, number: u64, op: Op, payload: &[u8]) -> Record {
        let local = matches!(op, Op::Upload(Upload::Create { .. }));
        let request = Request { acked: Acked::default(), time: Time::default(), op, local };
        let key = self.key.clone();
        self.record(&key, Kind::Request, SESSION.0, number, &request, payload)
    }
}

/// The only frame of a record.
fn line(trace: &mut Trace, record: &Record) -> Line {
    let mut lines = trace.lines(record);
    assert_eq!(lines.len(), 1);
    lines.remove(0)
}

fn name(name: &[u8]) -> Name {
    Name::new(name).expect("valid")
}

#[test]
fn a_log_reads_as_it_happened() {
    let mut log = Writing::new();
    let root = Ino::root(NAMESPACE);
    let server = ServerRecord::Incarnation { server: ServerId([1; 16]), supports: 1 };
    let server_key = log.cluster.server_key(Epoch(1));
    let target = Some(SealedValue { key_epoch: 1, sealed: b"not to be seen".to_vec() });
    let new = NewInode {
        kind: FileKind::Symlink,
        mode: 0o777,
        umask: 0,
        uid: Owner::Namespace,
        gid: Owner::Number(5),
        rdev: 0,
        target,
        ino: Some(Ino::new(NAMESPACE, 9)),
        reserved: false,
    };
    let source = Source::Inline { payload_from: 0, payload_len: 6 };
    let key = WrappedKey { key_epoch: 1, wrapped: [0x5a; WrappedKey::BYTES] };
    let piece = Piece { offset: 10, len: 5, source, chunk_from: 0, key };
    let write =
        Upload::Write { ino: Ino::new(NAMESPACE, 7), at: WriteAt::Offsets, pieces: vec![piece], reserved: false };
    let records = [
        log.record(
            &server_key,
            Kind::Server,
            IncarnationId([2; 16]).0,
            0,
            &proto::message::ServerBody { record: server },
            &[],
        ),
        log.open(),
        log.request(1, Op::Upload(Upload::Create { dir: root, name: name(b"a b"), new }), &[]),
        log.request(2, Op::Upload(write), b"secret"),
        log.request(3, Op::View(View::Lookup { dir: root, name: name(b"\xff\x1b[31m") }), &[]),
        log.kept(Bytes::from_static(b"noise")),
    ];
    let mut trace = Trace::new(log.cluster.clone());
    let lines: Vec<String> = records.iter().map(|record| line(&mut trace, record).to_string()).collect();
    let at = |offset: u64| format!("1/3@{offset} 2023-11-14T22:13:20.000Z");
    assert_eq!(lines[0], format!("{} server 02020202 #0 incarnation server=01010101 supports=1", at(0)));
    let opened = format!("{} ann abababab #0 open namespace=3 issued=7 replies=9 payload=", at(1));
    assert!(lines[1].starts_with(&opened), "{}", lines[1]);
    assert_eq!(
        lines[2],
        format!(
            "{} ann abababab #1 create dir=3:1 name=\"a b\" kind=symlink mode=0777 uid=owner gid=5 ino=3:9 target_bytes=14 acked=0 \
             local=true",
            at(2)
        )
    );
    assert_eq!(
        lines[3],
        format!("{} ann abababab #2 write ino=3:7 pieces=[10..15:inline(6)] acked=0 payload=6", at(3))
    );
    assert_eq!(lines[4], format!("{} ann abababab #3 lookup dir=3:1 name=\"\\xff\\x1b[31m\" acked=0", at(4)));
    assert!(lines[5].contains("UNREAD") && lines[5].ends_with("bytes=5"), "{}", lines[5]);
    assert_eq!(trace.opened(&records[1]), Some((UserName::new("ann").unwrap(), NAMESPACE)));

    // Programs get the same, with numbers as they are.
    let json: Vec<serde_json::Value> =
        records.iter().map(|record| serde_json::to_value(line(&mut trace, record)).expect("has an encoding")).collect();
    assert_eq!(json[2]["what"], "create");
    assert_eq!(json[2]["with"]["dir"], root.0);
    assert_eq!(json[2]["sender"], "ab".repeat(16));
    assert_eq!(json[2]["user"], "ann");
    assert!(json[5]["unread"].is_string());
    let all = format!("{lines:?}{json:?}");
    assert!(!all.contains("not to be seen") && !all.contains("secret") && !all.contains("5a5a5a"));
}

#[test]
fn without_its_open_a_session_is_unread_until_its_key_is_known() {
    let mut log = Writing::new();
    log.open();
    let record = log.request(1, Op::View(View::Statfs), &[]);
    let mut trace = Trace::new(log.cluster.clone());
    let told = line(&mut trace, &record).to_string();
    assert!(told.contains("session abababab #1 UNREAD (sealed under the key of a session"), "{told}");
    trace.know(PARTITION, SESSION, log.key.clone());
    assert!(line(&mut trace, &record).to_string().contains("#1 statfs"));

    // What it is told can be read as well, if what it asked is known.
    let request = Frame::parse(record.value.clone()).unwrap();
    let answer = Answer {
        at: Position { epoch: Epoch(1), partition: PARTITION, offset: 1, index: 0 },
        pushed: PushNo(2),
        result: Err(Refusal::NotFound),
        granted: vec![Promise::Dir(Ino::root(NAMESPACE))],
        delegated: Vec::new(),
    };
    let head = Head { kind: Kind::Answer, namespace: NAMESPACE, epoch: Epoch(1), sender: SESSION.0, number: 1 };
    let context =
        Context { direction: Direction::ToClient, topic: Topic::Replies, partition: 9, answers: Some(request.hash()) };
    let value = seal(&log.key, &head, &context, &answer, &[]).expect("small").record;
    let reply = Record { topic: Topic::Replies, partition: 9, offset: 5, append_time_ms: 0, value };
    let told = line(&mut trace, &reply).to_string();
    assert_eq!(told, "1/9@5 - session abababab #1 refused why=NotFound at=1/3@1.0 pushed=2 granted=[dir(3:1)]");
    let late = line(&mut trace, &Record { partition: 8, ..reply }).to_string();
    assert!(late.contains("UNREAD (answers a request that is not there)"), "{late}");

    // Another cluster's key opens nothing.
    let mut stranger = Trace::new(ClusterKey::generate());
    assert!(line(&mut stranger, &log.open()).to_string().contains("UNREAD"));
}

#[test]
fn each_frame_of_a_record_has_a_line() {
    let mut log = Writing::new();
    let root = Ino::root(NAMESPACE);
    let open = log.open();
    let removed = [b"a", b"b"].map(|file| Op::Delete(Delete::Unlink { dir: root, name: name(file) }));
    let frames = [1, 2].map(|number| log.request(number, removed[number as usize - 1].clone(), &[]).value);
    let both = log.kept(frame::join(&frames));
    let mut trace = Trace::new(log.cluster.clone());
    line(&mut trace, &open);
    let lines = trace.lines(&both);
    let told: Vec<String> = lines.iter().map(Line::to_string).collect();
    assert_eq!(told.len(), 2);
    assert!(told[0].starts_with("1/3@3 ") && told[0].contains("ann abababab #1 unlink dir=3:1 name=a"), "{}", told[0]);
    assert!(
        told[1].starts_with("1/3@3+1 ") && told[1].contains("ann abababab #2 unlink dir=3:1 name=b"),
        "{}",
        told[1]
    );
    assert_eq!(lines.iter().map(|line| line.bytes).sum::<usize>(), both.value.len());
}
