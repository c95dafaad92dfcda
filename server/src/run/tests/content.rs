//! Content through a whole server: dropped when nothing needs it and not before, and
//! what happens when the disk is full.

use super::*;
use crate::disk::full::Full;
use crate::keeper::{Keeper, Logged};
use crate::limits::{Limits, limits, set_limits};
use proto::Position;
use proto::chunk::WrappedKey;
use proto::log::LogError;
use proto::message::{AttrChange, Piece, Source, Upload, WriteAt};

pub(super) fn quote(ino: Ino, offset: u64, name: ChunkName) -> Op {
    let key = WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] };
    let piece = Piece { offset, len: 1000, source: Source::Chunk(name), chunk_from: 0, key };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

fn truncate(ino: Ino) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { size: Some(0), ..AttrChange::default() } })
}

pub(super) async fn file(client: &mut Client) -> Ino {
    let root = Ino::root(client.done.namespace);
    match client.call(create(root, "f")).await.result {
        Ok(Outcome::Entry(attr)) => attr.ino,
        other => panic!("{other:?}"),
    }
}

/// Drops as if the readers' time had passed; gives how many.
fn collect(server: &Server) -> usize {
    server.packs.collect(1000, Instant::now() + limits().grace).expect("collects")
}

#[tokio::test(flavor = "multi_thread")]
async fn freed_content_goes_when_a_checkpoint_is_past_it() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    let (gone, kept) = (client.upload(&[7; 100_000]).await, client.upload(&[8; 100_000]).await);
    for (offset, name) in [(0, gone), (5000, kept)] {
        assert!(client.call(quote(ino, offset, name)).await.result.is_ok());
        assert_eq!(client.download(name).await.0, Served::Chunk(name));
    }
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    assert_eq!(collect(&server), 0, "everything is in use");

    // Within a minute history keeps nothing. The sync's answer tells of a checkpoint.
    assert!(client.call(quote(ino, 0, kept)).await.result.is_ok());
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    let deadline = Instant::now() + WAIT;
    while collect(&server) == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.packs.read(&gone).await.expect("reads"), None);
    assert_eq!(client.download(kept).await.0, Served::Chunk(kept));

    // Freed, and the server crashes, with or without a checkpoint in between.
    assert!(client.call(truncate(ino)).await.result.is_ok());
    server.crash();
    let report = crate::check::check(&place.data(), None, &Disk::default()).expect("checks");
    assert_eq!(report.violations().told, Vec::<String>::new());
    let server = place.start();
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    let deadline = Instant::now() + WAIT;
    while collect(&server) == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.packs.read(&kept).await.expect("reads"), None);
    server.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_server_and_nothing_is_lost() {
    let place = Place::new();
    let full = Full::default();
    let start = || {
        let config = ServerConfig { disk: full.disk(), ..ServerConfig::embedded(place.data()) };
        let server = Server::start(config, Arc::new(place.log.clone())).expect("starts");
        server.ready().expect("becomes ready");
        server
    };
    let server = start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let root = Ino::root(client.done.namespace);
    assert!(client.call(mkdir(root, "a")).await.result.is_ok());
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());

    full.set(true);
    let name = client.upload(&[7; 100_000]).await;
    // Applied, and in the log; but no sync is answered, since no checkpoint can be taken.
    let made = client.call(mkdir(root, "b")).await;
    assert!(matches!(made.result, Ok(Outcome::Entry(_))), "{made:?}");
    let synced = client.call(Op::Session(SessionOp::Sync));
    assert!(tokio::time::timeout(Duration::from_secs(2), synced).await.is_err());
    let waiter = server.waiter();
    let failed = tokio::task::spawn_blocking(move || waiter.failed());
    let failed = tokio::time::timeout(WAIT, failed).await.expect("in time").expect("runs").to_string();
    assert!(failed.contains("requests wait in Kafka"), "{failed}");
    server.crash();

    full.set(false);
    let server = start();
    assert_eq!(client.call(mkdir(root, "b")).await.result, Err(proto::message::Refusal::Exists));
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    assert_eq!(client.download(name).await.0, Served::Chunk(name));
    server.stop().expect("stops cleanly");
}

/// A log whose content is given out once that is allowed.
struct Slow {
    log: MemoryLog,
    gives: tokio::sync::watch::Receiver<bool>,
}

impl Log for Slow {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> proto::log::Appended {
        self.log.append(topic, partition, value)
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        let mut tail = self.log.read_from(starts)?;
        if starts.iter().all(|(topic, ..)| *topic != Topic::Chunks) {
            return Ok(tail);
        }
        let (queue, items) = tokio::sync::mpsc::channel(Tail::QUEUE_BULK_RECORDS);
        let mut gives = self.gives.clone();
        tokio::spawn(async move {
            let _ = gives.wait_for(|gives| *gives).await;
            while let Some(item) = tail.next().await {
                if queue.send(item).await.is_err() {
                    return;
                }
            }
        });
        Ok(Tail::queue(items))
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        self.log.bounds(topic, partition)
    }

    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        self.log.trim(topic, partition, before)
    }
}

/// An answer lets the mount upload more, and a log in memory has room for a few MiB.
#[tokio::test(flavor = "multi_thread")]
async fn content_that_a_volatile_log_may_forget_is_ingested_before_its_request_is_answered() {
    let place = Place::new();
    let (give, gives) = tokio::sync::watch::channel(false);
    let log = Slow { log: place.log.clone(), gives };
    let server = Server::start(ServerConfig::embedded(place.data()), Arc::new(log)).expect("starts");
    server.ready().expect("becomes ready");
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    let name = client.upload(&[7; 100_000]).await;
    {
        let written = client.call(quote(ino, 0, name));
        tokio::pin!(written);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut written).await.is_err());
        give.send_replace(true);
        assert!(written.await.result.is_ok());
    }
    server.crash();
    let report = crate::check::check(&place.data(), None, &Disk::default()).expect("checks");
    assert_eq!(report.violations().told, Vec::<String>::new());
}

pub(super) fn keeper(place: &Place, server: &Server) -> Keeper {
    Keeper {
        log: Arc::new(place.log.clone()),
        packs: server.packs.clone(),
        cluster: Arc::new(Identity::read(&place.data(), None).expect("reads").cluster_key),
        asker: server.asker.clone(),
    }
}

#[tokio::test]
async fn uploads_that_nothing_quotes_go_after_their_session() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let (mut client, mut other) =
        (Client::open(&place.log, "ann", b"secret").await, Client::open(&place.log, "ann", b"secret").await);
    let keeper = keeper(&place, &server);
    let ino = file(&mut client).await;
    let (quoted, gone) = (client.upload(&[7; 100_000]).await, client.upload(&[8; 100_000]).await);
    let living = other.upload(&[9; 100_000]).await;
    assert!(client.call(quote(ino, 0, quoted)).await.result.is_ok());
    assert!(client.call(Op::Session(SessionOp::Close)).await.result.is_ok());
    assert!(other.call(Op::Session(SessionOp::Sync)).await.result.is_ok());

    // Seen to be over, and its time has not come.
    keeper.sweep().await.expect("sweeps");
    keeper.sweep().await.expect("sweeps");
    assert_eq!(collect(&server), 0);
    assert_eq!(server.packs.fresh_sessions(None, 9).expect("reads").len(), 2);
    // On this thread it has.
    set_limits(Limits { quote_ms: 0, ..limits() });
    keeper.sweep().await.expect("sweeps");
    assert_eq!(collect(&server), 0, "no checkpoint is past it");
    assert!(other.call(mkdir(Ino::root(other.done.namespace), "a")).await.result.is_ok());
    assert!(other.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    let deadline = Instant::now() + WAIT;
    while collect(&server) == 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.packs.read(&gone).await.expect("reads"), None);
    for name in [quoted, living] {
        assert!(server.packs.read(&name).await.expect("reads").is_some());
    }
    keeper.sweep().await.expect("sweeps");
    let left = server.packs.fresh_sessions(None, 9).expect("reads");
    assert_eq!(left.iter().map(|(session, ..)| *session).collect::<Vec<_>>(), [other.done.session]);
    // Whoever asks for what has gone is told so at once.
    let asked = Instant::now();
    assert_eq!(other.download(gone).await.0, Served::Missing(gone));
    assert!(asked.elapsed() < Duration::from_secs(5));
    server.stop().expect("stops cleanly");
}

/// Chunks that a file quotes, enough for a pack.
pub(super) async fn a_pack_of(client: &mut Client) -> Vec<(ChunkName, Vec<u8>)> {
    let ino = file(client).await;
    let mut names = Vec::new();
    for n in 0..10 {
        let content: Vec<u8> = (0..500_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n).collect();
        let name = client.upload(&content).await;
        assert!(client.call(quote(ino, u64::from(n) * 1000, name)).await.result.is_ok());
        names.push((name, content));
    }
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    names
}

/// Damages the first chunk of the first pack.
pub(super) fn flip_a_bit(place: &Place) {
    let packs = place.data().join("packs");
    let pack = std::fs::read_dir(packs).expect("reads").map(|entry| entry.expect("an entry").path());
    let pack = pack.filter(|path| path.extension().is_some_and(|end| end == "pack")).min().expect("a pack");
    let mut bytes = std::fs::read(&pack).expect("reads");
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).expect("writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_healed_from_the_log_and_never_served() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let keeper = keeper(&place, &server);
    let names = a_pack_of(&mut client).await;
    flip_a_bit(&place);
    let (name, content) = &names[0];
    assert_eq!(client.download(*name).await.0, Served::Missing(*name));
    keeper.heal().await.expect("heals");
    assert_eq!(client.download(*name).await, (Served::Chunk(*name), Bytes::from(content.clone())));
    server.packs.flush().expect("flushed");
    server.stop().expect("stops cleanly");
}

/// Mounts send several ranges of a file in one request, each its own piece.
#[tokio::test(flavor = "multi_thread")]
async fn every_piece_of_a_request_is_healed() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    let payload: Vec<u8> = (0..33_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut pieces, mut parts) = (Vec::new(), Vec::new());
    for (offset, payload_from, payload_len) in [(0, 6000, 20_000), (50_000, 26_000, 7000), (90_000, 0, 6000)] {
        let key = WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] };
        let source = Source::Inline { payload_from, payload_len };
        pieces.push(Piece { offset, len: 5000, source, chunk_from: 0, key });
        parts.push(payload[payload_from as usize..][..payload_len as usize].to_vec());
    }
    let write = Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces, reserved: false });
    client.number += 1;
    let request = Request { acked: Acked::default(), time: Time::from_millis(0), op: write, local: false };
    let answer = client.send(Kind::Request, client.number, &request, &payload).await;
    assert!(answer.result.is_ok(), "{answer:?}");
    let Position { epoch, partition, offset, .. } = answer.at;
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    let keeper = keeper(&place, &server);
    for (index, part) in (0..).zip(parts) {
        let (topic, session, hash) = (Topic::Requests, client.done.session, hash_of(&part));
        let name = ChunkName { topic, epoch, partition, offset, index, session, hash };
        assert_eq!(client.download(name).await.1, part);
        assert_eq!(keeper.logged(&name, part.len()).await, Logged::Content(part.into()));
        let other = ChunkName { hash: hash_of(b"other"), ..name };
        assert_eq!(keeper.logged(&other, 7000).await, Logged::Gone);
    }
    server.stop().expect("stops cleanly");
}

/// What several requests of one record bring is told apart by their frames, also after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn content_of_every_request_in_a_record_is_served_and_healed() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    // One that lives in the state, and two that go to the packs.
    let contents: Vec<Vec<u8>> = [(100, 1), (9000, 2), (9000, 3)].map(|(len, byte)| vec![byte; len]).into();
    let write = |(number, content): (usize, &Vec<u8>)| {
        let key = WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] };
        let source = Source::Inline { payload_from: 0, payload_len: content.len() as u32 };
        let piece = Piece { offset: number as u64 * 10_000, len: 100, source, chunk_from: 0, key };
        let write = Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false };
        (Op::Upload(write), content.clone())
    };
    let replies = client.done.replies_partition;
    let before = place.log.bounds(Topic::Replies, replies).expect("a partition").1;
    let answers = client.call_together(contents.iter().enumerate().map(write).collect()).await;
    let told = place.log.bounds(Topic::Replies, replies).expect("a partition").1 - before;
    assert_eq!(told, 1, "what came together is answered together");
    assert!(answers.iter().all(|answer| answer.result.is_ok()), "{answers:?}");
    server.crash();
    let server = place.start();
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    let keeper = keeper(&place, &server);
    for (answer, content) in answers.iter().zip(&contents) {
        let name = ChunkName::inline(answer.at, 0, client.done.session, hash_of(content));
        assert_eq!(client.download(name).await, (Served::Chunk(name), content.clone().into()));
        assert_eq!(keeper.logged(&name, content.len()).await, Logged::Content(content.clone().into()));
        let elsewhere = ChunkName { index: name.index ^ 1 << 24, ..name };
        assert_eq!(keeper.logged(&elsewhere, content.len()).await, Logged::Gone);
    }
    server.stop().expect("stops cleanly");
}

/// A log that is away.
struct Away;

impl Log for Away {
    fn append(&self, _: Topic, _: u32, _: Bytes) -> proto::log::Appended {
        Box::pin(std::future::ready(Err(Away::error())))
    }

    fn read_from(&self, _: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        Err(Away::error())
    }

    fn bounds(&self, _: Topic, _: u32) -> Result<(u64, u64), LogError> {
        Err(Away::error())
    }

    fn trim(&self, _: Topic, _: u32, _: u64) -> Result<(), LogError> {
        Err(Away::error())
    }
}

impl Away {
    fn error() -> LogError {
        LogError::Unreachable { brokers: "kafka".into(), reason: "nobody answers".into() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_not_given_up_while_the_log_is_away() {
    let place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let names: Vec<_> = a_pack_of(&mut client).await.into_iter().map(|(name, _)| name).collect();
    let is_packed = |name: &&ChunkName| server.packs.packed_bytes(name).expect("reads").is_some();
    let packed: Vec<_> = names.iter().filter(is_packed).take(2).copied().collect();
    assert_eq!(packed.len(), 2);
    packed.iter().for_each(|name| server.packs.note_damaged(*name));
    let there = keeper(&place, &server);
    let away = Keeper { log: Arc::new(Away), ..keeper(&place, &server) };
    away.heal().await.expect("tries");
    assert_eq!(server.packs.take_damaged(), packed, "all are still to be healed");
    assert!(packed.iter().all(|name| !server.packs.is_given_up(name)));
    packed.iter().for_each(|name| server.packs.note_damaged(*name));
    there.heal().await.expect("heals");
    assert!(server.packs.take_damaged().is_empty());
    server.stop().expect("stops cleanly");
}
