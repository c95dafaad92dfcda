//! The client against a whole server in this process, over the log in memory and
//! over the embedded broker: logging in, changes and views, content both ways,
//! promises between two clients, and everything going away and coming back.

use bytes::Bytes;
use mount::client::{
    CallError, Client, ClientConfig, ConnectError, Invalidation, JournalConfig, Patience, Reply, Secret, Terms,
};
use proto::chunk::ValuePurpose;
use proto::frame::{Kind, frames};
use proto::keys::KeyPair;
use proto::log::embedded::EmbeddedBroker;
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::log::memory::MemoryLog;
use proto::log::{Log, REQUEST_PARTITIONS, Start, Topic};
use proto::message::{
    Delete, FileKind, NewInode, Op, Outcome, Owner, Piece, Promise, Refusal, Source, Upload, UserName, View, WriteAt,
};
use proto::{Ino, Name};
use server::admin::Admin;
use server::admin::users::UserSpec;
use server::data;
use server::{NewLog, Server, ServerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";
const WAIT: Duration = Duration::from_secs(20);

/// A cluster: its log, its data, perhaps its broker.
struct Place {
    dir: tempfile::TempDir,
    log: Arc<dyn Log>,
    broker: Option<EmbeddedBroker>,
}

impl Place {
    fn in_memory() -> Place {
        Place::with(Arc::new(MemoryLog::new()), None)
    }

    fn on_broker() -> Place {
        let broker = EmbeddedBroker::start("kfs").expect("a broker starts");
        let log = kafka(&broker);
        Place::with(log, Some(broker))
    }

    fn with(log: Arc<dyn Log>, broker: Option<EmbeddedBroker>) -> Place {
        // Shown when a test fails.
        let _ = tracing_subscriber::fmt().with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        data::init(&dir.path().join("data"), &dir.path().join("recovery.key")).expect("initialises");
        Place { dir, log, broker }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A log of its own, as another process has.
    fn another_log(&self) -> Arc<dyn Log> {
        self.broker.as_ref().map_or_else(|| Arc::clone(&self.log), kafka)
    }

    fn server(&self) -> Server {
        let config = ServerConfig { on_new_log: NewLog::Refuse, ..ServerConfig::embedded(self.data()) };
        let log = self.another_log();
        // On a thread of its own: a server may not be made inside another runtime.
        let started = std::thread::spawn(move || {
            let since = Instant::now();
            loop {
                match Server::start(config.clone(), Arc::clone(&log)) {
                    Ok(server) => {
                        server.ready().expect("becomes ready");
                        return server;
                    }
                    // One that crashed in this process lets go of its files only when its last task ends.
                    Err(error) => assert!(since.elapsed() < WAIT, "{error}"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        started.join().expect("starts")
    }

    async fn admin(&self) -> Admin {
        let identity = data::Identity::read(&self.data(), None).expect("reads");
        let epoch = data::epoch(&self.data()).expect("known");
        Admin::connect(&identity, epoch, Arc::clone(&self.log), WAIT).await.expect("connects")
    }

    async fn add_user(&self, name: &str) {
        let password = Zeroizing::new(PASSWORD.as_bytes().to_vec());
        let spec = UserSpec { name: user(name), uid: 1000, gid: 1001, password, device: None };
        self.admin().await.user_add(&[spec]).await.expect("adds");
    }

    fn config(&self, name: &str) -> ClientConfig {
        ClientConfig {
            log: self.another_log(),
            brokers: "test".to_owned(),
            prefix: "kfs".to_owned(),
            user: user(name),
            secret: Secret::Password(Zeroizing::new(PASSWORD.to_owned())),
            timeout: WAIT,
            hard: false,
            journal: None,
            clock: proto::clock::Clock::default(),
        }
    }

    fn journaled(&self, name: &str) -> ClientConfig {
        let journal = JournalConfig { dir: self.dir.path().join("journal"), max_bytes: 64 << 20 };
        ClientConfig { journal: Some(journal), ..self.config(name) }
    }
}

fn kafka(broker: &EmbeddedBroker) -> Arc<dyn Log> {
    Arc::new(KafkaLog::connect(KafkaSettings::new(broker.bootstrap_servers(), "kfs")).expect("connects"))
}

fn user(name: &str) -> UserName {
    UserName::new(name).expect("a name")
}

fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).expect("a name")
}

fn create(dir: Ino, new_name: &str, kind: FileKind) -> Op {
    let new = NewInode {
        kind,
        mode: 0o644,
        umask: 0,
        uid: Owner::Namespace,
        gid: Owner::Namespace,
        rdev: 0,
        target: None,
        ino: None,
        reserved: false,
    };
    Op::Upload(Upload::Create { dir, name: name(new_name), new })
}

fn lookup(dir: Ino, of: &str) -> Op {
    Op::View(View::Lookup { dir, name: name(of) })
}

fn attr(reply: &Reply) -> &proto::message::Attr {
    match &reply.outcome {
        Outcome::Entry(attr) => attr,
        other => panic!("not an entry: {other:?}"),
    }
}

async fn call(client: &Client, op: Op) -> Result<Reply, CallError> {
    client.call(op, Bytes::new(), &client.patience()).await
}

async fn make_file(client: &Client, of: &str) -> Ino {
    attr(&call(client, create(client.root(), of, FileKind::File)).await.expect("created")).ino
}

/// Uploads `content` as a chunk; gives the write that puts it at the file's start.
async fn chunk_write(client: &Client, ino: Ino, content: &[u8]) -> Op {
    let sealed = client.keys().seal_content(content).expect("seals");
    let chunk = client.upload_chunk(sealed.sealed, &client.patience()).await.expect("uploads");
    let piece =
        Piece { offset: 0, len: content.len() as u32, source: Source::Chunk(chunk), chunk_from: 0, key: sealed.key };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

/// The file's content, which is one extent.
async fn read(client: &Client, ino: Ino) -> Vec<u8> {
    let reply = call(client, Op::View(View::Extents { ino, from: 0, limit: 10 })).await.expect("answered");
    let Outcome::Extents { extents, .. } = reply.outcome else { panic!("not extents") };
    let extent = &extents[0];
    let sealed = match extent.inline {
        Some((from, len)) => reply.payload.slice(from as usize..(from + len) as usize),
        None => client.download(&extent.chunk, Some(0), &client.patience()).await.expect("downloads"),
    };
    client.keys().open_content(&extent.key, &extent.chunk.hash, &sealed).expect("opens").to_vec()
}

fn pattern(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(bytes)
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_needs_the_right_password_and_a_server() {
    let place = Place::in_memory();
    let impatient = ClientConfig { timeout: Duration::from_secs(2), ..place.config("anna") };
    match Client::connect(impatient).await.err() {
        Some(ConnectError::NoServer { .. }) => {}
        other => panic!("no server, but {other:?}"),
    }
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    assert_eq!(client.owner_ids(), (1000, 1001));
    assert_eq!(client.root(), Ino::root(client.namespace()));
    let wrong = Secret::Password(Zeroizing::new("wrong".to_owned()));
    for config in [ClientConfig { secret: wrong, ..place.config("anna") }, place.config("nobody")] {
        match Client::connect(config).await.err() {
            Some(error @ ConnectError::WrongLogin { .. }) => {
                assert!(error.to_string().contains("wrong user name or password"));
            }
            other => panic!("a wrong login, but {other:?}"),
        }
    }
    client.close().await;
    server.stop().expect("stops");
}

async fn changes_views_and_content(place: Place) {
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    let dir = attr(&call(&client, create(client.root(), "dir", FileKind::Dir)).await.expect("created")).ino;
    let taken = call(&client, create(client.root(), "dir", FileKind::Dir)).await.expect_err("taken");
    assert_eq!(taken.refusal(), Some(Refusal::Exists));

    // An absent name is promised to stay absent until further notice.
    match call(&client, lookup(dir, "x")).await {
        Err(CallError::Refused { refusal: Refusal::NotFound, granted, .. }) => {
            let (promise, grant) = granted[0];
            assert_eq!(promise, Promise::Dir(dir));
            assert_eq!(client.promises().grant(&promise), Some(grant));
        }
        other => panic!("absent, but {other:?}"),
    }

    // Pipelined: applied in the order in which they were submitted.
    let submitted: Vec<_> =
        (0..300).map(|i| client.submit(create(dir, &format!("f{i}"), FileKind::File), Bytes::new())).collect();
    let mut last = Ino(0);
    for submitted in submitted {
        let ino = attr(&submitted.await.expect("created")).ino;
        assert!(ino > last);
        last = ino;
    }

    // Inline and chunked content.
    let small = make_file(&client, "small").await;
    let sealed = client.keys().seal_content(b"inline").expect("seals");
    let piece = Piece {
        offset: 0,
        len: 6,
        source: Source::Inline { payload_from: 0, payload_len: sealed.sealed.len() as u32 },
        chunk_from: 0,
        key: sealed.key,
    };
    let write = Op::Upload(Upload::Write { ino: small, at: WriteAt::End, pieces: vec![piece], reserved: false });
    client.call(write, sealed.sealed, &client.patience()).await.expect("written");
    assert_eq!(read(&client, small).await, b"inline");
    let large = make_file(&client, "large").await;
    let content = pattern(512 * 1024);
    let write = chunk_write(&client, large, &content).await;
    assert!(client.status().upload_bytes > 0);
    call(&client, write).await.expect("written");
    assert_eq!(client.status().upload_bytes, 0, "what is quoted is no longer under way");
    assert_eq!(read(&client, large).await, content);

    let value = client.keys().seal_value(ValuePurpose::Xattr, b"value");
    assert_eq!(client.keys().open_value(ValuePurpose::Xattr, &value).expect("opens"), b"value");
    client.sync(&client.patience()).await.expect("a checkpoint covers it");
    assert!(client.drain(WAIT).await.left.is_empty());
    let status = client.status();
    assert!(status.online && status.unanswered == 0 && status.counters.quarantined == 0, "{status:?}");
    client.close().await;
    server.stop().expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_views_and_content_in_memory() {
    changes_views_and_content(Place::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_views_and_content_on_a_broker() {
    changes_views_and_content(Place::on_broker()).await;
}

/// The numbers of the requests in each record of the log that has any.
fn numbers(place: &Place) -> Vec<Vec<u64>> {
    let starts: Vec<_> = (0..REQUEST_PARTITIONS).map(|number| (Topic::Requests, number, Start::At(0))).collect();
    let mut tail = place.log.read_from(&starts).expect("is there");
    let records = std::iter::from_fn(|| tail.try_next()).map(|record| record.expect("is there"));
    let frames = records.map(|record| frames(record.value).expect("well-formed"));
    let requests = frames.filter(|frames| frames[0].header().kind == Kind::Request);
    requests.map(|frames| frames.iter().map(|frame| frame.header().number).collect()).collect()
}

// On one thread, so that nothing else happens between what stands here without a wait.
#[tokio::test]
async fn what_nobody_waits_for_shares_a_record_with_what_comes_behind_it() {
    let place = Place::in_memory();
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.journaled("anna")).await.expect("connects");
    let local = |op, payload| {
        let terms = Terms { time: client.now(), only_in: None, local: true };
        client.submit_on(terms, op, payload)
    };
    let made = |of: &str| local(create(client.root(), of, FileKind::File), Bytes::new());
    let sent = || client.status().counters.records_sent;
    call(&client, lookup(client.root(), "a")).await.expect_err("is not there");

    // Whoever waits takes along what is held.
    let before = (sent(), numbers(&place).len());
    let three = ["a", "b", "c"].map(made);
    assert_eq!(sent(), before.0);
    let found = client.submit(lookup(client.root(), "c"), Bytes::new());
    assert_eq!(sent(), before.0 + 1);
    let found = attr(&found.await.expect("found")).ino;
    for (made, of) in three.into_iter().zip(["a", "b", "c"]) {
        assert_eq!(attr(&made.await.expect("made")).ino == found, of == "c");
    }
    let records = numbers(&place);
    assert_eq!((records.len(), records[before.1].len()), (before.1 + 1, 4), "{records:?}");

    // Where nothing comes behind it, it leaves by itself, and waiting for what is sent lets it leave.
    let before = sent();
    made("d").await.expect("made");
    assert_eq!(sent(), before + 1);
    let held = made("e");
    client.somebody_waits();
    assert_eq!(sent(), before + 2);
    held.await.expect("made");

    // Large ones leave when a record is full.
    let before = sent();
    let large = ["f", "g", "h"].map(|of| local(create(client.root(), of, FileKind::File), vec![7; 30_000].into()));
    assert_eq!(sent(), before + 1);
    for made in large {
        made.await.expect("made");
    }
    assert_eq!(sent(), before + 2);
    let records = numbers(&place);
    assert_eq!(records[records.len() - 2..].iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    client.close().await;
    server.stop().expect("stops");
}

/// What a journal does not have is no secret between a program and this client: the program waits.
#[tokio::test]
async fn nothing_is_held_back_that_no_journal_has() {
    let place = Place::in_memory();
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    let before = client.status().counters.records_sent;
    let terms = Terms { time: client.now(), only_in: None, local: true };
    let made = client.submit_on(terms, create(client.root(), "a", FileKind::File), Bytes::new());
    assert_eq!(client.status().counters.records_sent, before + 1);
    made.await.expect("made");
    client.close().await;
    server.stop().expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_hears_of_a_change_before_it_is_answered() {
    let place = Place::in_memory();
    let _server = place.server();
    place.add_user("anna").await;
    let a = Client::connect(place.config("anna")).await.expect("connects");
    let b = Client::connect(place.config("anna")).await.expect("connects");
    let mut heard = b.invalidations();
    let file = make_file(&a, "file").await;
    for round in 0..50 {
        let reply = call(&b, Op::View(View::Getattr { ino: file })).await.expect("answered");
        let (promise, grant) = reply.granted[0];
        assert_eq!(b.promises().grant(&promise), Some(grant));
        let change = proto::message::AttrChange { mode: Some(round), ..Default::default() };
        let changing = Instant::now();
        call(&a, Op::Upload(Upload::Setattr { ino: file, change })).await.expect("changed");
        // Without the confirmation it would take until the lease ends.
        assert!(changing.elapsed() < Duration::from_secs(8), "the confirmation releases the answer");
        assert_eq!(b.promises().grant(&promise), None, "it was broken before the change was answered");
        match heard.recv().await.expect("not closed") {
            Invalidation::Promises(promises) => assert!(promises.contains(&promise)),
            other => panic!("heard {other:?}"),
        }
    }
    // A nameless file is kept for whoever has it open, and goes when that closes it.
    call(&b, Op::View(View::Extents { ino: file, from: 0, limit: 1 })).await.expect("answered");
    b.set_open(file);
    call(&a, Op::Delete(Delete::Unlink { dir: a.root(), name: name("file") })).await.expect("removed");
    while !matches!(heard.recv().await.expect("not closed"), Invalidation::LastNameGone(ino) if ino == file) {}
    call(&b, Op::View(View::Getattr { ino: file })).await.expect("still there");
    b.set_closed(file);
    let gone = Instant::now();
    while call(&b, Op::View(View::Getattr { ino: file })).await.is_ok() {
        assert!(gone.elapsed() < WAIT, "released");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    a.close().await;
    b.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_costs_only_time() {
    let place = Place::in_memory();
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    let before: Vec<_> =
        (0..50).map(|i| client.submit(create(client.root(), &format!("a{i}"), FileKind::File), Bytes::new())).collect();
    tokio::task::spawn_blocking(move || server.crash()).await.expect("crashes");
    let during: Vec<_> =
        (0..50).map(|i| client.submit(create(client.root(), &format!("b{i}"), FileKind::File), Bytes::new())).collect();
    let _server = place.server();
    let mut last = Ino(0);
    for submitted in before.into_iter().chain(during) {
        let ino = attr(&tokio::time::timeout(WAIT, submitted).await.expect("in time").expect("created")).ino;
        assert!(ino > last, "in order, and once");
        last = ino;
    }
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_goes_away_costs_only_time() {
    let place = Place::on_broker();
    let _server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    make_file(&client, "before").await;
    let broker = place.broker.as_ref().expect("there");
    broker.down().expect("goes down");
    let waiting = client.submit(create(client.root(), "during", FileKind::File), Bytes::new());
    let short = Patience::within(Duration::from_millis(500));
    match client.call(lookup(client.root(), "before"), Bytes::new(), &short).await {
        Err(CallError::TimedOut { .. }) => {}
        other => panic!("without a broker, {other:?}"),
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    broker.up().expect("comes back");
    tokio::time::timeout(WAIT, waiting).await.expect("in time").expect("created");
    call(&client, lookup(client.root(), "during")).await.expect("there");
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_is_replaced_and_nothing_happens_twice() {
    let place = Place::in_memory();
    let _server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.config("anna")).await.expect("connects");
    let mut heard = client.invalidations();
    make_file(&client, "before").await;
    let session = client.status().session;
    // The same password again: it ends the user's sessions.
    let recovery = KeyPair::read_recovery(&place.dir.path().join("recovery.key")).expect("reads");
    let mut admin = place.admin().await;
    let submitted: Vec<_> = (0..100)
        .map(|i| client.submit(create(client.root(), &format!("f{i}"), FileKind::File), Bytes::new()))
        .collect();
    admin.user_passwd(&user("anna"), PASSWORD.as_bytes(), &recovery).await.expect("set");
    let more: Vec<_> = (100..200)
        .map(|i| client.submit(create(client.root(), &format!("f{i}"), FileKind::File), Bytes::new()))
        .collect();
    let mut last = Ino(0);
    for submitted in submitted.into_iter().chain(more) {
        let ino = attr(&tokio::time::timeout(WAIT * 2, submitted).await.expect("in time").expect("created")).ino;
        assert!(ino > last, "in order, and once");
        last = ino;
    }
    // The last ones may have been answered before the session ended; what comes now is not.
    let replaced = Instant::now();
    while client.status().session == session {
        assert!(replaced.elapsed() < WAIT, "replaced");
        let _ = call(&client, lookup(client.root(), "before")).await;
    }
    assert_eq!(heard.recv().await.expect("not closed"), Invalidation::All);
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_client_left_is_done_by_the_next() {
    let place = Place::in_memory();
    let server = place.server();
    place.add_user("anna").await;
    let client = Client::connect(place.journaled("anna")).await.expect("connects");
    let kept = make_file(&client, "kept").await;
    let content = pattern(300_000);
    server.stop().expect("stops");

    // Nobody answers any more: this is what a crash must not lose.
    let write = chunk_write(&client, kept, &content).await;
    let written = client.submit(write, Bytes::new());
    assert!(written.is_journaled());
    let created = client.submit(create(client.root(), "late", FileKind::File), Bytes::new());
    let doomed =
        client.submit(Op::Delete(Delete::Unlink { dir: client.root(), name: name("never-was") }), Bytes::new());
    assert_eq!(client.status().journal.expect("there is one").entries, 3);
    drop((written, created, doomed, client));
    // Its tasks let go of the journal as soon as they notice.
    tokio::time::sleep(Duration::from_millis(300)).await;

    let _server = place.server();
    let next = Client::connect(place.journaled("anna")).await.expect("connects");
    assert_eq!(read(&next, kept).await, content);
    call(&next, lookup(next.root(), "late")).await.expect("created once");
    assert_eq!(next.status().journal.expect("there is one").entries, 0);
    next.close().await;
    let left: Vec<_> = std::fs::read_dir(place.dir.path().join("journal"))
        .expect("there")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert_eq!(left.len(), 1, "only the conflicts stay: {left:?}");
    assert_eq!(std::fs::read_dir(&left[0]).expect("a directory").count(), 1);
}
