//! Content through a whole server: dropped when nothing needs it and not before, and
//! what happens when the disk is full.

use super::*;
use crate::disk::full::Full;
use crate::limits::limits;
use proto::chunk::WrappedKey;
use proto::message::{AttrChange, FileKind, NewInode, Owner, Piece, Source, Upload, WriteAt};

fn create(dir: Ino, name: &str) -> Op {
    let name = proto::Name::new(name.as_bytes()).expect("a name");
    let (uid, gid) = (Owner::Namespace, Owner::Namespace);
    let new = NewInode { kind: FileKind::File, mode: 0o644, uid, gid, rdev: 0, target: None };
    Op::Upload(Upload::Create { dir, name, new })
}

fn quote(ino: Ino, offset: u64, name: ChunkName) -> Op {
    let key = WrappedKey { key_epoch: 1, wrapped: [7; WrappedKey::BYTES] };
    let piece = Piece { offset, len: 1000, source: Source::Chunk(name), chunk_from: 0, key };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece] })
}

fn truncate(ino: Ino) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { size: Some(0), ..AttrChange::default() } })
}

async fn file(client: &mut Client) -> Ino {
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
