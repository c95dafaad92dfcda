//! Several servers over one log: who answers, takeover, trimming, and servers that
//! differ or come too late.

use super::*;
use crate::admin::servers::{Agreement, Role, ServerStatus};
use crate::machine::MACHINE_VERSION;
use crate::replica::Rules;
use crate::run::own::OwnRecords;
use crate::snapshot::take::{SnapshotError, Taken, take};
use proto::ServerId;
use proto::message::{Heartbeat, Progress, ServerRecord};
use std::time::Instant;

/// A takeover takes the silence, an interval, and what tests on a busy machine take.
const TAKEOVER: Duration = Duration::from_millis(2_000 + 500 + 1_500);

impl Place {
    /// The data directory of the n-th server, made by joining the first one's cluster.
    pub(super) fn joined(&self, n: u32) -> PathBuf {
        let dir = self.dir.path().join(format!("data-{n}"));
        if !dir.exists() {
            data::join(&dir, &self.data(), None).expect("joins");
        }
        dir
    }

    fn try_run(&self, data: PathBuf) -> Result<Server, ServerError> {
        self.try_run_version(data, MACHINE_VERSION)
    }

    /// As a program would that knows this version of the machine.
    fn try_run_version(&self, data: PathBuf, supports: u32) -> Result<Server, ServerError> {
        let rules = Rules { upkeep_every_ms: 200, watch_before_ms: 500, ..Rules::default() };
        let config = ServerConfig { rules, supports, ..ServerConfig::new(data) };
        let server = Server::start(config, Arc::new(self.log.clone()))?;
        server.ready()?;
        Ok(server)
    }

    fn run(&self, data: PathBuf) -> Server {
        self.try_run(data).expect("becomes ready")
    }

    async fn servers(&self) -> Vec<ServerStatus> {
        self.admin().await.status(&self.log).await.expect("a server answers").servers
    }

    async fn answering(&self) -> ServerId {
        let servers = self.servers().await;
        let answering = servers.iter().find(|server| server.role == Role::Answering).expect("one answers");
        data::unhex(&answering.server).map(ServerId).expect("an id")
    }

    pub(super) fn id(&self, data: &Path) -> ServerId {
        Identity::read(data, None).expect("reads").server
    }

    /// Waits until something holds.
    async fn until(&self, what: &str, holds: impl AsyncFn(&Place) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !holds(self).await {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What stopped a server that has to stop by itself.
fn stopped(server: &Server) -> ServerError {
    let (told, why) = std::sync::mpsc::channel();
    let waiter = server.waiter();
    std::thread::spawn(move || told.send(waiter.failed()));
    why.recv_timeout(WAIT).expect("it stops")
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_answering_server_dies_the_other_one_answers_what_it_left() {
    let place = Place::new();
    let (first, second) = (place.data(), place.joined(2));
    let a = place.run(first.clone());
    let b = place.run(second.clone());
    place.add_user("ann", b"secret").await;
    assert_eq!(place.answering().await, place.id(&first));
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    assert!(matches!(client.call(mkdir(root, "a")).await.result, Ok(Outcome::Entry(_))));
    let chunk = client.upload(&[7; 100_000]).await;
    assert_eq!(client.download(chunk).await.0, Served::Chunk(chunk));

    // Nothing is asked twice here: what nobody has answered is answered after the takeover.
    a.crash();
    let crashed = Instant::now();
    let answer = client.call(mkdir(root, "b")).await;
    assert!(matches!(answer.result, Ok(Outcome::Entry(_))), "{answer:?}");
    assert!(crashed.elapsed() < TAKEOVER, "{:?}", crashed.elapsed());
    assert_eq!(place.answering().await, place.id(&second));
    assert_eq!(client.download(chunk).await.0, Served::Chunk(chunk));
    assert!(login(&place.log, "ann", b"secret").await.is_ok());
    let is_request =
        |record: &Record| Frame::parse(record.value.clone()).is_ok_and(|f| f.header().kind == Kind::Request);
    let records = place.log.records(Topic::Requests, client.done.partition);
    let repeated = records.into_iter().rfind(is_request).expect("the last request").value;
    let hash = record_hash(&repeated);
    place.log.append(Topic::Requests, client.done.partition, repeated).await.expect("appends");
    let (key, partition) = (client.key.clone(), client.done.replies_partition);
    let again: (Answer, Bytes) = opened(&mut client.replies, Kind::Answer, &key, Topic::Replies, partition, hash).await;
    assert!(matches!(again.0.result, Ok(Outcome::Entry(_))), "a repeat is answered as before: {:?}", again.0);

    // The first one comes back and keeps quiet, until the other one says that it ends.
    let a = place.run(first.clone());
    assert_eq!(place.answering().await, place.id(&second));
    let same = async |place: &Place| place.servers().await.iter().any(|server| server.state == Agreement::Same);
    place.until("their states are compared", same).await;
    b.stop().expect("stops cleanly");
    let ended = Instant::now();
    assert!(matches!(client.call(mkdir(root, "c")).await.result, Ok(Outcome::Entry(_))));
    assert!(ended.elapsed() < Duration::from_millis(1_500), "nobody waits for silence: {:?}", ended.elapsed());
    assert_eq!(place.answering().await, place.id(&first));
    a.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_begin_an_empty_log_together_agree() {
    let place = Place::new();
    let dirs = [place.data(), place.joined(2), place.joined(3)];
    let servers: Vec<Server> = std::thread::scope(|scope| {
        let started: Vec<_> = dirs.iter().map(|dir| scope.spawn(|| place.run(dir.clone()))).collect();
        started.into_iter().map(|started| started.join().expect("no panic")).collect()
    });
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    assert!(client.root().await.result.is_ok());
    let settled = async |place: &Place| {
        let servers = place.servers().await;
        let count = |role| servers.iter().filter(|server| server.role == role).count();
        let agreed = servers.iter().filter(|server| server.state == Agreement::Same).count();
        (count(Role::Answering), count(Role::Quiet), agreed) == (1, 2, 2)
    };
    place.until("one answers and all agree", settled).await;
    for server in servers {
        server.stop().expect("stops cleanly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_state_differs_stops() {
    let place = Place::new();
    let a = place.run(place.data());
    let epoch = data::epoch(&place.data()).expect("known");
    let cluster = Arc::new(Identity::read(&place.data(), None).expect("reads").cluster_key.clone());
    let other = OwnRecords::new(Arc::new(place.log.clone()), cluster, IncarnationId::random());
    // The lowest id there is, so the real one yields to it.
    let server = ServerId([0; 16]);
    other.open(0, epoch, ServerRecord::Incarnation { server, supports: 1 }).appended.await.expect("appends");
    let (_, end) = place.log.bounds(Topic::Requests, 3).expect("bounds");
    let wrong = Progress { partition: 3, hash_at: end, hash: [9; 32], ..Progress::default() };
    for partitions in [vec![], vec![wrong]] {
        let heartbeat = Heartbeat { answers: true, ends: false, partitions };
        other.append(0, ServerRecord::Heartbeat(heartbeat)).appended.await.expect("appends");
    }
    let error = stopped(&a).to_string();
    assert!(error.contains("the state of partition 3 before offset") && error.contains("0909090909090909"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_records_stored_twice_change_nothing() {
    let place = Place::new();
    let a = place.run(place.data());
    let b = place.run(place.joined(2));
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    for partition in [0, client.done.partition] {
        for record in place.log.records(Topic::Requests, partition) {
            let is_server = Frame::parse(record.value.clone()).is_ok_and(|f| f.header().kind == Kind::Server);
            if is_server {
                place.log.append(Topic::Requests, partition, record.value).await.expect("appends");
            }
        }
    }
    assert!(client.root().await.result.is_ok());
    let same = async |place: &Place| place.servers().await.iter().any(|server| server.state == Agreement::Same);
    place.until("their states are compared", same).await;
    a.stop().expect("stops cleanly");
    b.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_with_one_id_the_earlier_one_stops() {
    let place = Place::new();
    let a = place.run(place.data());
    let copy = place.dir.path().join("copy");
    std::fs::create_dir(&copy).expect("a directory");
    for file in ["cluster.key", "recovery.pub", "server.toml"] {
        std::fs::copy(place.data().join(file), copy.join(file)).expect("copies");
    }
    let b = place.run(copy);
    let error = stopped(&a).to_string();
    assert!(error.contains("have the same id"), "{error}");
    assert!(b.failure().is_none());
    b.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_trimmed_behind_all_registered_servers_and_no_further() {
    let place = Place::new();
    place.log.set_time(1_000_000);
    let dirs = [place.data(), place.joined(2)];
    let a = place.run(dirs[0].clone());
    let b = place.run(dirs[1].clone());
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    let partition = client.done.partition;
    for n in 0..40 {
        assert!(client.call(mkdir(root, &format!("d{n}"))).await.result.is_ok());
    }
    let (chunk, last) = (client.upload(&[7; 10_000]).await, client.upload(&[8; 10_000]).await);
    for chunk in [chunk, last] {
        assert_eq!(client.download(chunk).await.0, Served::Chunk(chunk));
    }
    let first = |place: &Place, topic| place.log.bounds(topic, partition).expect("bounds").0;
    assert!(first(&place, Topic::Requests) < 10, "only their openings are checkpointed yet");
    // A clean end is a checkpoint.
    b.stop().expect("stops cleanly");
    a.stop().expect("stops cleanly");
    let a = place.run(dirs[0].clone());
    let b = place.run(dirs[1].clone());
    let trimmed = async |place: &Place| first(place, Topic::Requests) > 40 && first(place, Topic::Chunks) > 0;
    place.until("the log is trimmed", trimmed).await;

    // Both start again, also after a crash, and content that has left the log is there.
    a.crash();
    b.crash();
    let a = place.run(dirs[0].clone());
    let b = place.run(dirs[1].clone());
    assert_eq!(client.download(chunk).await.0, Served::Chunk(chunk));
    assert_eq!(client.call(mkdir(root, "d7")).await.result, Err(proto::message::Refusal::Exists));

    // One that is away is waited for, until it is given up.
    b.stop().expect("stops cleanly");
    let at = first(&place, Topic::Requests);
    for n in 0..40 {
        assert!(client.call(mkdir(root, &format!("e{n}"))).await.result.is_ok());
    }
    a.stop().expect("stops cleanly");
    let a = place.run(dirs[0].clone());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(first(&place, Topic::Requests) < at + 30, "the other one needs what came after");
    place.log.set_time(1_000_000 + 25 * 3_600_000);
    place.until("it is deregistered", async |place| place.servers().await.len() == 1).await;
    place.until("the log is trimmed", async |place| first(place, Topic::Requests) >= at + 39).await;
    let error = place.try_run(dirs[1].clone()).err().expect("it cannot go on").to_string();
    assert!(error.contains("snapshot"), "{error}");
    let error = place.try_run(place.joined(3)).err().expect("it cannot begin").to_string();
    assert!(error.contains("snapshot"), "{error}");
    a.stop().expect("stops cleanly");
}

impl Place {
    pub(super) async fn bootstrap(&self, data: &Path) -> Result<Taken, SnapshotError> {
        let (config, log) = (ServerConfig::new(data), Arc::new(self.log.clone()));
        take(&config, log, tokio::runtime::Handle::current(), |_| ()).await
    }
}

/// A write of one piece that the record itself carries, too large for the rows.
fn inline_write(ino: Ino, len: u32) -> Op {
    use proto::chunk::WrappedKey;
    use proto::message::{Piece, Source, Upload, WriteAt};
    let key = WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] };
    let source = Source::Inline { payload_from: 0, payload_len: len };
    let piece = Piece { offset: 0, len, source, chunk_from: 0, key };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_takes_a_snapshot_while_the_others_work_and_then_takes_over() {
    let place = Place::new();
    let (first, new) = (place.data(), place.joined(2));
    let a = place.run(first.clone());
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    for n in 0..200 {
        assert!(client.call(mkdir(root, &format!("{n:0>200}"))).await.result.is_ok());
    }
    let Ok(Outcome::Entry(file)) = client.call(create(root, "f")).await.result else { panic!("created") };
    client.number += 1;
    let acked = Acked { floor: RequestNo(client.number - 1), also: Vec::new() };
    let request = Request { acked, time: Time::from_millis(0), op: inline_write(file.ino, 50_000), local: false };
    let written = client.send(Kind::Request, client.number, &request, &[5; 50_000]).await;
    assert!(written.result.is_ok(), "{written:?}");
    let mut chunks = Vec::new();
    for n in 0..30 {
        let name = client.upload(&vec![n; 300_000]).await;
        assert_eq!(client.download(name).await.0, Served::Chunk(name));
        chunks.push(name);
    }
    a.stop().expect("stops cleanly");
    let a = place.run(first.clone());
    let partition = client.done.partition;
    let gone = async |place: &Place| place.log.bounds(Topic::Requests, partition).expect("bounds").0 > 200;
    place.until("the log is trimmed", gone).await;
    let error = place.try_run(new.clone()).err().expect("it has nothing to begin with").to_string();
    assert!(error.contains("kfs-server bootstrap"), "{error}");

    // The cluster works on meanwhile, and what comes is in the log for the new one.
    let (taken, ()) = tokio::join!(place.bootstrap(&new), async {
        for n in 0..20 {
            assert!(client.call(mkdir(root, &format!("meanwhile-{n}"))).await.result.is_ok());
        }
    });
    let taken = taken.expect("takes it");
    assert_eq!(taken.of, place.id(&first));
    assert!(taken.chunks >= 31 && taken.rows > 200, "{taken:?}");
    let late = client.upload(&[77; 20_000]).await;
    let b = place.run(new.clone());
    let same = async |place: &Place| place.servers().await.iter().any(|server| server.state == Agreement::Same);
    place.until("their states are compared", same).await;
    a.crash();
    let again = client.call(mkdir(root, "meanwhile-19")).await;
    assert_eq!(again.result, Err(proto::message::Refusal::Exists));
    for name in chunks.into_iter().chain([late]) {
        assert_eq!(client.download(name).await.0, Served::Chunk(name));
    }
    let Answer { at, .. } = written;
    let inline = ChunkName {
        topic: Topic::Requests,
        epoch: at.epoch,
        partition,
        offset: at.offset,
        index: 0,
        session: client.done.session,
        hash: hash_of(&[5; 50_000]),
    };
    assert_eq!(client.download(inline).await, (Served::Chunk(inline), Bytes::from(vec![5; 50_000])));
    b.stop().expect("stops cleanly");
    let report = crate::check::check(&new, None, &Disk::default()).expect("checks");
    assert_eq!(report.violations().count, 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_snapshot_is_no_state_to_start_from() {
    let place = Place::new();
    let a = place.run(place.data());
    let dir = place.joined(2);
    drop(data::DataDir::begin_snapshot(&dir, None).expect("begins"));
    let error = place.try_run(dir.clone()).err().expect("refused").to_string();
    assert!(error.contains("kfs-server bootstrap"), "{error}");
    place.bootstrap(&dir).await.expect("takes it");
    let b = place.run(dir.clone());
    b.stop().expect("stops cleanly");
    a.stop().expect("stops cleanly");
}

/// The log's own time stands still otherwise.
pub(super) async fn while_time_passes<T>(log: &MemoryLog, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let mut work = std::pin::pin!(work);
    loop {
        log.set_time(begun.elapsed().as_millis() as i64);
        if let Ok(done) = tokio::time::timeout(Duration::from_millis(100), &mut work).await {
            return done;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_log_was_lost_one_begins_an_epoch_and_the_other_follows_by_a_snapshot() {
    let mut place = Place::new();
    let dirs = [place.data(), place.joined(2)];
    let (a, b) = (place.run(dirs[0].clone()), place.run(dirs[1].clone()));
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    client.call(mkdir(root, "a")).await;
    b.stop().expect("stops cleanly");
    a.stop().expect("stops cleanly");
    let begin = |place: &Place| -> Result<Server, ServerError> {
        let config = ServerConfig { on_new_log: NewLog::NewEpochOnly, ..ServerConfig::new(place.data()) };
        let server = Server::start(config, Arc::new(place.log.clone()))?;
        server.ready()?;
        Ok(server)
    };
    let error = begin(&place).err().expect("needs none").to_string();
    assert!(error.contains("no new epoch is needed"), "{error}");

    place.log = MemoryLog::new();
    let error = place.try_run(dirs[0].clone()).err().expect("refused").to_string();
    assert!(error.contains("kfs-server epoch --from"), "{error}");
    begin(&place).expect("begins").stop().expect("stops cleanly");

    // One that was killed meanwhile is finished first, under a number of its own.
    let mark = dirs[0].join("epoch.begun");
    assert!(!mark.exists());
    std::fs::write(&mark, "6\n").expect("written");
    let error = place.try_run(dirs[0].clone()).err().expect("refused").to_string();
    assert!(error.contains("kfs-server epoch --from"), "{error}");
    begin(&place).expect("begins").stop().expect("stops cleanly");
    assert_eq!(crate::data::epoch(&dirs[0]).expect("noted"), proto::Epoch(7));
    assert!(!mark.exists());

    let a = place.run(dirs[0].clone());
    assert!(place.try_run(dirs[1].clone()).is_err());
    place.bootstrap(&dirs[1]).await.expect("takes it");
    let b = place.run(dirs[1].clone());
    // Nobody is told that a session is open before those of the epoch before have lapsed.
    let mut client = while_time_passes(&place.log, Client::open(&place.log, "ann", b"secret")).await;
    assert_eq!(client.call(mkdir(root, "a")).await.result, Err(proto::message::Refusal::Exists));
    let same = async |place: &Place| place.servers().await.iter().any(|server| server.state == Agreement::Same);
    place.until("their states are compared", same).await;
    b.stop().expect("stops cleanly");
    a.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_raises_the_version_after_the_last_server() {
    let place = Place::new();
    let dirs = [place.data(), place.joined(2)];
    let (old, new) = (MACHINE_VERSION, MACHINE_VERSION + 1);
    let run = |n: usize, version| place.try_run_version(dirs[n].clone(), version).expect("becomes ready");
    let (a, b) = (run(0, old), run(1, old));
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    let version = async |place: &Place| place.admin().await.status(&place.log).await.expect("answers").version;

    b.stop().expect("stops cleanly");
    let b = run(1, new);
    assert!(client.call(mkdir(root, "a")).await.result.is_ok());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(version(&place).await, old, "one of them cannot run it yet");
    a.stop().expect("stops cleanly");
    let a = run(0, new);
    place.until("the version is raised", async |place| version(place).await == new).await;
    let before = place.servers().await.iter().flat_map(|server| &server.partitions).map(|of| of.agreed).sum::<u64>();
    assert!(client.call(mkdir(root, "b")).await.result.is_ok());
    let compared = async |place: &Place| {
        let servers = place.servers().await;
        servers.iter().flat_map(|server| &server.partitions).map(|of| of.agreed).sum::<u64>() > before
    };
    place.until("they still agree", compared).await;

    // A state of the new version is not for the old program.
    a.stop().expect("stops cleanly");
    let error = place.try_run_version(dirs[0].clone(), old).err().expect("it cannot run it").to_string();
    assert!(error.contains("run a newer kfs-server"), "{error}");
    b.stop().expect("stops cleanly");
}
