//! Whole servers over the log in memory, spoken to as a client would.

mod content;
mod lost_topics;
mod replicas;

use super::*;
use crate::admin::Admin;
use crate::admin::users::UserSpec;
use crate::data::{self, Identity};
use bytes::Bytes;
use proto::chunk::{ChunkName, Uploader, chunk_record};
use proto::frame::{Frame, Kind, frames, join, record_hash};
use proto::keys::KeyPair;
use proto::log::memory::MemoryLog;
use proto::log::{LogError, Record, Start, Tail};
use proto::login::{ClientDone, ClientLogin, CredentialId, public_key};
use proto::message::{
    Acked, Answer, Download, FileKind, LoginAnswer, LoginDone, LoginRequest, Op, Open, Outcome, Request, Served,
    SessionOp, UserName, View,
};
use proto::seal::{Context, Direction, Head, hash_of, open, random, seal};
use proto::{Ino, NamespaceId, RequestNo, Time};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use zeroize::Zeroizing;

const WAIT: Duration = Duration::from_secs(20);

struct Place {
    dir: Checked,
    log: MemoryLog,
}

impl Place {
    fn new() -> Place {
        // Shown when a test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let dir = Checked(tempfile::tempdir().expect("a temporary directory"));
        data::init(&dir.path().join("data"), &dir.path().join("recovery.key")).expect("initialises");
        Place { dir, log: MemoryLog::new() }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn start(&self) -> Server {
        let server = self.try_start(NewLog::Refuse).expect("starts");
        server.ready().expect("becomes ready");
        server
    }

    fn try_start(&self, on_new_log: NewLog) -> Result<Server, ServerError> {
        let config = ServerConfig { on_new_log, ..ServerConfig::embedded(self.data()) };
        Server::start(config, Arc::new(self.log.clone()))
    }

    async fn admin(&self) -> Admin {
        let identity = Identity::read(&self.data(), None).expect("reads");
        let epoch = data::epoch(&self.data()).expect("known");
        assert_eq!(
            crate::admin::epoch_of(&identity.cluster_key, &self.log).await.expect("reads"),
            Some(epoch),
            "the log tells it too"
        );
        Admin::connect(&identity, epoch, Arc::new(self.log.clone()), WAIT).await.expect("connects")
    }

    async fn add_user(&self, name: &str, password: &[u8]) {
        self.admin().await.user_add(&[spec(name, password)]).await.expect("adds");
    }
}

/// A directory for data directories.
struct Checked(tempfile::TempDir);

impl std::ops::Deref for Checked {
    type Target = tempfile::TempDir;

    fn deref(&self) -> &tempfile::TempDir {
        &self.0
    }
}

impl Drop for Checked {
    /// Whatever a test has done, what its servers leave behind is sound.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(self.0.path()).expect("a directory") {
            let data = entry.expect("an entry").path();
            if data.join("server.toml").exists() {
                let report = crate::check::check(&data, None, &Disk::default()).expect("its server has ended");
                assert_eq!(report.violations().told, Vec::<String>::new(), "{}", data.display());
            }
        }
    }
}

fn spec(name: &str, password: &[u8]) -> UserSpec {
    let password = Zeroizing::new(password.to_vec());
    UserSpec { name: UserName::new(name).expect("a name"), uid: 1, gid: 2, password, device: None }
}

async fn next(tail: &mut Tail) -> Record {
    tokio::time::timeout(WAIT, tail.next()).await.expect("in time").expect("a record").expect("no trouble")
}

/// What a client is told, frame by frame.
struct Told {
    tail: Tail,
    at_hand: VecDeque<Frame>,
}

impl Told {
    fn new(tail: Tail) -> Told {
        Told { tail, at_hand: VecDeque::new() }
    }

    async fn next(&mut self) -> Frame {
        while self.at_hand.is_empty() {
            self.at_hand.extend(frames(next(&mut self.tail).await.value).expect("frames"));
        }
        self.at_hand.pop_front().expect("there is one")
    }
}

/// The next frame that opens as an answer of this kind.
async fn opened<T: DeserializeOwned>(
    told: &mut Told,
    kind: Kind,
    key: &proto::seal::Key,
    topic: Topic,
    partition: u32,
    answers: [u8; 32],
) -> (T, Bytes) {
    loop {
        let frame = told.next().await;
        let context = Context { direction: Direction::ToClient, topic, partition, answers: Some(answers) };
        if frame.header().kind == kind
            && let Ok(opened) = open::<T>(key, &frame, &context)
        {
            return (opened.body, frame.payload());
        }
    }
}

/// A client with as little sense of its own as possible.
struct Client {
    log: MemoryLog,
    done: LoginDone,
    key: proto::seal::Key,
    replies: Told,
    bulk: Told,
    number: u64,
}

async fn login_step(log: &MemoryLog, attempt: [u8; 16], number: u64, request: &LoginRequest) -> LoginAnswer {
    let mut auth = Told::new(log.read_from(&[(Topic::Auth, 0, Start::End)]).expect("reads"));
    let head = Head { kind: Kind::Login, namespace: NamespaceId(0), epoch: Epoch(0), sender: attempt, number };
    let context = Context { direction: Direction::ToServer, topic: Topic::Auth, partition: 0, answers: None };
    let sealed = seal(&public_key(), &head, &context, request, &[]).expect("seals");
    let hash = record_hash(&sealed.record);
    log.append(Topic::Auth, 0, sealed.record).await.expect("appends");
    opened(&mut auth, Kind::LoginAnswer, &public_key(), Topic::Auth, 0, hash).await.0
}

async fn login(log: &MemoryLog, user: &str, password: &[u8]) -> Result<(ClientDone, LoginDone), LoginAnswer> {
    let attempt = random();
    let (client, ke1) = ClientLogin::start(password).expect("starts");
    let user_name = UserName::new(user).expect("a name");
    let start = LoginRequest::Start { user: user_name, credential: CredentialId::Password, ke1: ke1.clone() };
    let (ke2, half_state) = match login_step(log, attempt, 1, &start).await {
        LoginAnswer::Challenge { ke2, half_state } => (ke2, half_state),
        other => return Err(other),
    };
    let Ok(done) = client.finish(password, &ke2, user, &CredentialId::Password) else {
        return Err(LoginAnswer::Refused);
    };
    let finish = LoginRequest::Finish { half_state, ke1, ke3: done.ke3.clone() };
    match login_step(log, attempt, 2, &finish).await {
        LoginAnswer::Done { sealed } => {
            let given = LoginDone::open(&done.session_secret.login_key(), done.session, &sealed).expect("opens");
            Ok((done, given))
        }
        other => Err(other),
    }
}

impl Client {
    async fn open(log: &MemoryLog, user: &str, password: &[u8]) -> Client {
        let (proof, done) = login(log, user, password).await.expect("logs in");
        let pair = KeyPair::unwrap(&done.wrapped_private_key, &proof.export_key, user, &CredentialId::Password);
        let pair = pair.expect("the private key opens");
        for key in &done.namespace_keys {
            pair.open_namespace_key(done.namespace, key.key_epoch, &key.sealed).expect("the namespace's key opens");
        }
        let replies = log.read_from(&[(Topic::Replies, done.replies_partition, Start::End)]).expect("reads");
        let bulk = log.read_from(&[(Topic::Bulk, done.bulk_partition, Start::End)]).expect("reads");
        let key = proof.session_secret.partition_key(done.partition);
        let (replies, bulk) = (Told::new(replies), Told::new(bulk));
        let mut client = Client { log: log.clone(), done, key, replies, bulk, number: 0 };
        let ticket = client.done.ticket.clone();
        let answer = client.send(Kind::Open, 0, &Open { predecessors: Vec::new(), delegable: false }, &ticket).await;
        assert!(matches!(answer.result, Ok(Outcome::Opened { .. })), "{answer:?}");
        client
    }

    async fn call(&mut self, op: Op) -> Answer {
        self.number += 1;
        let acked = Acked { floor: RequestNo(self.number - 1), also: Vec::new() };
        let request = Request { acked, time: Time::from_millis(0), op, local: false };
        self.send(Kind::Request, self.number, &request, &[]).await
    }

    async fn send<T: Serialize>(&mut self, kind: Kind, number: u64, body: &T, payload: &[u8]) -> Answer {
        let hash = self.append(kind, Topic::Requests, number, body, payload).await;
        let partition = self.done.replies_partition;
        opened(&mut self.replies, Kind::Answer, &self.key, Topic::Replies, partition, hash).await.0
    }

    async fn append<T: Serialize>(&self, kind: Kind, topic: Topic, number: u64, body: &T, payload: &[u8]) -> [u8; 32] {
        let sealed = self.sealed(kind, topic, number, body, payload);
        let hash = record_hash(&sealed);
        self.log.append(topic, self.done.partition, sealed).await.expect("appends");
        hash
    }

    fn sealed<T: Serialize>(&self, kind: Kind, topic: Topic, number: u64, body: &T, payload: &[u8]) -> Bytes {
        let LoginDone { namespace, epoch, session, partition, .. } = self.done;
        let head = Head { kind, namespace, epoch, sender: session.0, number };
        let context = Context { direction: Direction::ToServer, topic, partition, answers: None };
        seal(&self.key, &head, &context, body, payload).expect("seals").record
    }

    /// Sends requests in one record; gives their answers.
    async fn call_together(&mut self, requests: Vec<(Op, Vec<u8>)>) -> Vec<Answer> {
        let mut frames = Vec::new();
        for (op, payload) in requests {
            self.number += 1;
            let request = Request { acked: Acked::default(), time: Time::from_millis(0), op, local: false };
            frames.push(self.sealed(Kind::Request, Topic::Requests, self.number, &request, &payload));
        }
        self.log.append(Topic::Requests, self.done.partition, join(&frames)).await.expect("appends");
        let mut answers = Vec::new();
        for frame in frames {
            let (hash, partition) = (record_hash(&frame), self.done.replies_partition);
            answers.push(opened(&mut self.replies, Kind::Answer, &self.key, Topic::Replies, partition, hash).await.0);
        }
        answers
    }

    async fn upload(&self, content: &[u8]) -> ChunkName {
        let LoginDone { namespace, epoch, session, partition, .. } = self.done;
        let upload = Uploader { namespace, epoch, session, partition };
        let hash = hash_of(content);
        let sealed = chunk_record(&self.done.chunk_key, &upload, content, hash).expect("seals");
        let offset = self.log.append(Topic::Chunks, partition, sealed.record).await.expect("appends");
        ChunkName { topic: Topic::Chunks, epoch, partition, offset, index: 0, session, hash }
    }

    async fn download(&mut self, name: ChunkName) -> (Served, Bytes) {
        let hash = self.append(Kind::Read, Topic::Reads, 1, &Download { chunks: vec![name] }, &[]).await;
        let partition = self.done.bulk_partition;
        opened(&mut self.bulk, Kind::Served, &self.key, Topic::Bulk, partition, hash).await
    }

    async fn root(&mut self) -> Answer {
        let ino = Ino::root(self.done.namespace);
        self.call(Op::View(View::Getattr { ino })).await
    }
}

fn mkdir(dir: Ino, name: &str) -> Op {
    make(dir, name, FileKind::Dir, 0o755)
}

fn create(dir: Ino, name: &str) -> Op {
    make(dir, name, FileKind::File, 0o644)
}

fn make(dir: Ino, name: &str, kind: FileKind, mode: u32) -> Op {
    use proto::message::{NewInode, Owner, Upload};
    let name = proto::Name::new(name.as_bytes()).expect("a name");
    let (uid, gid) = (Owner::Namespace, Owner::Namespace);
    let new = NewInode { kind, mode, umask: 0, uid, gid, rdev: 0, target: None, ino: None, reserved: false };
    Op::Upload(Upload::Create { dir, name, new })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_a_view_a_chunk_and_a_restart() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    assert!(matches!(client.root().await.result, Ok(Outcome::Entry(_))));
    let root = Ino::root(client.done.namespace);
    assert!(matches!(client.call(mkdir(root, "a")).await.result, Ok(Outcome::Entry(_))));

    let name = client.upload(&[7; 100_000]).await;
    assert_eq!(client.download(name).await, (Served::Chunk(name), Bytes::from(vec![7; 100_000])));

    // A clean stop loses nothing, and the session goes on.
    server.stop().expect("stops cleanly");
    let server = place.start();
    let again = client.call(mkdir(root, "a")).await;
    assert_eq!(again.result, Err(proto::message::Refusal::Exists));
    assert_eq!(client.download(name).await.0, Served::Chunk(name));

    // Nor does a crash: what no checkpoint holds is applied again.
    assert!(matches!(client.call(mkdir(root, "b")).await.result, Ok(Outcome::Entry(_))));
    let late = client.upload(&[8; 1000]).await;
    assert_eq!(client.download(late).await.0, Served::Chunk(late));
    server.crash();
    let server = place.start();
    assert_eq!(client.call(mkdir(root, "b")).await.result, Err(proto::message::Refusal::Exists));
    assert_eq!(client.download(late).await, (Served::Chunk(late), Bytes::from(vec![8; 1000])));
    server.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_on_a_volatile_log_waits_for_a_checkpoint() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    assert!(client.done.volatile);
    let root = Ino::root(client.done.namespace);
    client.call(mkdir(root, "a")).await;
    let answer = client.call(Op::Session(SessionOp::Sync)).await;
    assert_eq!(answer.result, Ok(Outcome::Done));
    server.crash();

    let partition = client.done.partition;
    let cluster = Identity::read(&place.data(), None).expect("reads").cluster_key.id().0;
    let state = place.data().join("state");
    let opened = crate::store::PartitionStore::open(&state, partition, cluster, 1 << 20, &Disk::default());
    let (_, checkpoint) = opened.expect("opens");
    assert!(checkpoint.expect("taken").next_offset > answer.at.offset);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_checked_changed_and_guessing_is_slowed() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    assert_eq!(login(&place.log, "ann", b"wrong").await.err(), Some(LoginAnswer::Refused));
    assert_eq!(login(&place.log, "nobody", b"secret").await.err(), Some(LoginAnswer::Refused));

    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let recovery = KeyPair::read_recovery(&place.dir.path().join("recovery.key")).expect("reads");
    let name = UserName::new("ann").expect("a name");
    place.admin().await.user_passwd(&name, b"new secret", &recovery).await.expect("changes");
    assert_eq!(login(&place.log, "ann", b"secret").await.err(), Some(LoginAnswer::Refused));
    // Good at once: log time need not have moved since the change.
    Client::open(&place.log, "ann", b"new secret").await;
    // The sessions of the old password end once the decision has landed in their
    // partition; a renewal before that is answered under the session's own key.
    let told = async {
        loop {
            let chunk_key = client.done.chunk_key.clone();
            client.number += 1;
            let acked = Acked { floor: RequestNo(client.number - 1), also: Vec::new() };
            let op = Op::Session(SessionOp::Renew);
            let request = Request { acked, time: Time::from_millis(0), op, local: false };
            let hash = client.append(Kind::Request, Topic::Requests, client.number, &request, &[]).await;
            let partition = client.done.replies_partition;
            let ended =
                opened::<Answer>(&mut client.replies, Kind::Answer, &chunk_key, Topic::Replies, partition, hash);
            if let Ok((answer, ..)) = tokio::time::timeout(Duration::from_millis(500), ended).await {
                return answer;
            }
        }
    };
    let told = tokio::time::timeout(WAIT, told).await.expect("in time");
    assert_eq!(told.result, Err(proto::message::Refusal::SessionEnded));

    let mut answers = Vec::new();
    for _ in 0..7 {
        answers.push(login(&place.log, "ann", b"guess").await.err());
    }
    assert!(matches!(answers.last(), Some(Some(LoginAnswer::SlowDown { .. }))), "{answers:?}");
    server.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_are_imported_all_or_none() {
    let place = Place::new();
    let server = place.start();
    let mut admin = place.admin().await;
    assert_eq!(admin.user_import("f", "ann:a\nbob:b\n", 1, 2).await.expect("imports"), 2);
    let error = admin.user_import("f", "carl:c\nbob:b\n", 1, 2).await.expect_err("bob exists").to_string();
    assert!(error.contains("line 2: the user bob exists already"), "{error}");
    let names = |users: Vec<proto::message::UserInfo>| -> Vec<String> {
        users.into_iter().map(|user| user.name.to_string()).collect()
    };
    assert_eq!(names(admin.user_list().await.expect("lists")), ["ann", "bob"]);
    admin.user_remove(&UserName::new("ann").expect("a name")).await.expect("removes");
    assert_eq!(names(admin.user_list().await.expect("lists")), ["bob"]);
    assert_eq!(login(&place.log, "ann", b"a").await.err(), Some(LoginAnswer::Refused));
    server.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_log_is_refused_or_begins_an_epoch() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    client.call(mkdir(root, "a")).await;
    let before = client.done.epoch;
    server.stop().expect("stops cleanly");

    place.log = MemoryLog::new();
    let error = place.try_start(NewLog::Refuse).err().expect("refused").to_string();
    assert!(error.contains("recreated, truncated"), "{error}");
    let server = place.try_start(NewLog::BeginEpoch).expect("starts");
    server.ready().expect("becomes ready");
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    assert_eq!(client.done.epoch, Epoch(before.0 + 1));
    assert_eq!(client.call(mkdir(root, "a")).await.result, Err(proto::message::Refusal::Exists));
    let name = client.upload(&[9; 1000]).await;
    assert_eq!(client.download(name).await.0, Served::Chunk(name));
    server.stop().expect("stops cleanly");
}

#[test]
fn anothers_topics_and_a_directory_in_use_are_refused() {
    let place = Place::new();
    let server = place.start();
    let error = place.try_start(NewLog::Refuse).err().expect("refused").to_string();
    assert!(error.contains("in use"), "{error}");
    server.stop().expect("stops cleanly");

    let other = Place { log: place.log.clone(), ..Place::new() };
    let server = other.try_start(NewLog::Refuse).expect("starts");
    let error = server.ready().expect_err("refused").to_string();
    assert!(error.contains("another kfs cluster"), "{error}");
    assert!(!Path::new(&other.data().join("epoch")).exists());
}

/// A log that is trimmed whenever somebody has just asked where it begins, so many times.
struct Trimmed(MemoryLog, AtomicU32);

impl Log for Trimmed {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> proto::log::Appended {
        self.0.append(topic, partition, value)
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        self.0.read_from(starts)
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        let bounds = self.0.bounds(topic, partition)?;
        if self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            self.0.trim(topic, partition, bounds.0 + 1)?;
        }
        Ok(bounds)
    }

    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        self.0.trim(topic, partition, before)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_epoch_is_found_in_a_log_that_is_trimmed_meanwhile() {
    let place = Place::new();
    let server = place.start();
    for name in ["one", "two", "three"] {
        place.add_user(name, b"password of theirs").await;
    }
    server.stop().expect("stops cleanly");
    let identity = Identity::read(&place.data(), None).expect("reads");
    let epoch = data::epoch(&place.data()).expect("known");
    let find = async |trims| {
        let log = Trimmed(place.log.clone(), AtomicU32::new(trims));
        crate::admin::epoch_of(&identity.cluster_key, &log).await
    };
    assert_eq!(find(3).await.expect("looks again"), Some(epoch));
    let gives_up = find(1000).await.expect_err("not for ever");
    assert!(matches!(gives_up, LogError::OutOfRange { .. }), "{gives_up}");
}
