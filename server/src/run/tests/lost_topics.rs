//! Not all of the log is lost: a new epoch keeps what the rest of it holds.

use super::content::{a_pack_of, file, flip_a_bit, keeper, quote};
use super::replicas::while_time_passes;
use super::*;

/// The log with all that it holds but these partitions, which begin anew.
async fn without(log: &MemoryLog, is_lost: impl Fn(Topic, u32) -> bool) -> MemoryLog {
    only(log, |record| !is_lost(record.topic, record.partition)).await
}

/// A client sends again what nobody has answered: what is lost comes to stand where it stood, behind other records.
#[tokio::test(flavor = "multi_thread")]
async fn the_very_last_record_that_came_once_more_is_not_taken_for_itself() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let (topic, partition) = (Topic::Requests, client.done.partition);
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    server.stop().expect("stops cleanly");

    let records = place.log.records(topic, partition);
    let [.., before, last] = &records[..] else { panic!("{} records", records.len()) };
    let rest = only(&place.log, |record| {
        (record.topic, record.partition) != (topic, partition) || record.offset < before.offset
    })
    .await;
    for time_ms in [last.append_time_ms + 1000, last.append_time_ms + 2000] {
        rest.set_time(time_ms);
        rest.append(topic, partition, last.value.clone()).await.expect("appended");
    }
    place.log = rest;
    let error = place.try_start(NewLog::Refuse).err().expect("refused").to_string();
    assert!(error.contains("is not the one that was read there"), "{error}");
}

/// The log with these records, of which each partition must keep the first ones.
async fn only(log: &MemoryLog, is_kept: impl Fn(&Record) -> bool) -> MemoryLog {
    let rest = MemoryLog::new();
    for topic in Topic::ALL {
        for partition in 0..topic.partitions() {
            for record in log.records(topic, partition).into_iter().filter(&is_kept) {
                let offset = rest.append(topic, partition, record.value).await.expect("appended");
                assert_eq!(offset, record.offset);
            }
        }
    }
    rest
}

fn begin_epoch(place: &Place) -> Result<(), ServerError> {
    let server = place.try_start(NewLog::NewEpochOnly)?;
    server.ready()?;
    server.stop()
}

/// The log as it is now needs a new epoch; then the server works, with that content and with more.
async fn goes_on_in_a_new_epoch(place: &Place, ino: Ino, kept: ChunkName) {
    let error = place.try_start(NewLog::Refuse).err().expect("refused").to_string();
    assert!(error.contains("kfs-server epoch --from"), "{error}");
    begin_epoch(place).expect("begins");

    let server = place.start();
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    assert_eq!(client.download(kept).await.0, Served::Chunk(kept));
    let later = client.upload(&[8; 100_000]).await;
    assert!(client.call(quote(ino, 0, later)).await.result.is_ok());
    assert_eq!(client.download(later).await.0, Served::Chunk(later));
    server.stop().expect("stops cleanly");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_no_server_has_ingested_is_kept_where_only_requests_are_lost() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    assert!(client.call(Op::Session(SessionOp::Sync)).await.result.is_ok());
    server.stop().expect("stops cleanly");

    // Nobody is there to ingest or to answer.
    let name = client.upload(&[7; 100_000]).await;
    let unanswered = client.call(quote(ino, 0, name));
    assert!(tokio::time::timeout(Duration::from_millis(200), unanswered).await.is_err());
    let other = (client.done.partition + 1) % Topic::Requests.partitions();
    place.log = without(&place.log, |topic, partition| topic == Topic::Requests && partition == other).await;
    goes_on_in_a_new_epoch(&place, ino, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_goes_on_where_only_uploads_are_lost() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    let kept = client.upload(&[7; 100_000]).await;
    assert!(client.call(quote(ino, 0, kept)).await.result.is_ok());
    assert_eq!(client.download(kept).await.0, Served::Chunk(kept));
    server.stop().expect("stops cleanly");

    place.log = without(&place.log, |topic, _| topic == Topic::Chunks).await;
    goes_on_in_a_new_epoch(&place, ino, kept).await;
}

/// The other server had applied what is lost, this one had not.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_is_known_by_what_another_server_has_said() {
    let mut place = Place::new();
    let dirs = [place.data(), place.joined(2)];
    // With the rules of production: nothing is trimmed so soon.
    let run = |place: &Place, dir: &Path, on_new_log: NewLog| -> Result<Server, ServerError> {
        let config = ServerConfig { on_new_log, ..ServerConfig::new(dir) };
        let server = Server::start(config, Arc::new(place.log.clone()))?;
        server.ready()?;
        Ok(server)
    };
    let [a, b] = dirs.each_ref().map(|dir| run(&place, dir, NewLog::Refuse).expect("becomes ready"));
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let (root, partition) = (Ino::root(client.done.namespace), client.done.partition);
    b.stop().expect("stops cleanly");
    let end = place.log.records(Topic::Requests, partition).len() as u64;
    assert!(client.call(mkdir(root, "a")).await.result.is_ok());
    a.stop().expect("stops cleanly");

    let is_lost = |record: &Record| (record.topic, record.partition) == (Topic::Requests, partition);
    place.log = only(&place.log, |record| !is_lost(record) || record.offset < end).await;
    let refused = |on_new_log: NewLog| run(&place, &dirs[1], on_new_log).err().expect("refused").to_string();
    let error = refused(NewLog::Refuse);
    assert!(error.contains(&format!("the server {} has applied it", place.id(&dirs[0]))), "{error}");
    assert!(error.contains("kfs-server epoch --from DIR --anyway"), "{error}");
    let error = refused(NewLog::NewEpochOnly);
    assert!(error.contains("--anyway"), "{error}");
    run(&place, &dirs[1], NewLog::NewEpochAnyway).expect("begins").stop().expect("stops cleanly");

    let b = run(&place, &dirs[1], NewLog::Refuse).expect("becomes ready");
    assert!(run(&place, &dirs[0], NewLog::Refuse).is_err());
    place.bootstrap(&dirs[0]).await.expect("takes it");
    let a = run(&place, &dirs[0], NewLog::Refuse).expect("becomes ready");
    let mut client = while_time_passes(&place.log, Client::open(&place.log, "ann", b"secret")).await;
    assert!(client.call(mkdir(root, "a")).await.result.is_ok());
    b.stop().expect("stops cleanly");
    a.stop().expect("stops cleanly");
}

/// What comes after the loss stands where other content has been ingested from.
#[tokio::test(flavor = "multi_thread")]
async fn content_at_the_place_of_lost_content_is_not_taken_for_it() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let ino = file(&mut client).await;
    let lost = client.upload(&[7; 100_000]).await;
    assert_eq!(client.download(lost).await.0, Served::Chunk(lost));
    server.stop().expect("stops cleanly");

    let later = client.upload(&[8; 100_000]).await;
    let record = place.log.records(Topic::Chunks, later.partition).pop().expect("uploaded").value;
    let name = ChunkName { offset: lost.offset, ..later };
    let unanswered = client.call(quote(ino, 0, name));
    assert!(tokio::time::timeout(Duration::from_millis(200), unanswered).await.is_err());
    place.log = without(&place.log, |topic, _| topic == Topic::Chunks).await;
    assert_eq!(place.log.append(Topic::Chunks, later.partition, record).await.expect("appended"), lost.offset);
    goes_on_in_a_new_epoch(&place, ino, name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_heal_is_left_out_of_snapshots() {
    let mut place = Place::new();
    let server = place.start();
    place.add_user("ann", b"secret").await;
    let mut client = Client::open(&place.log, "ann", b"secret").await;
    let chunks = a_pack_of(&mut client).await;
    server.stop().expect("stops cleanly");
    place.log = without(&place.log, |topic, _| topic == Topic::Chunks).await;
    begin_epoch(&place).expect("begins");
    flip_a_bit(&place);

    let server = place.start();
    let new = place.joined(2);
    let error = place.bootstrap(&new).await.expect_err("it may be healed yet").to_string();
    assert!(error.contains("is damaged"), "{error}");
    keeper(&place, &server).heal().await.expect("tries");
    let taken = place.bootstrap(&new).await.expect("takes the rest");
    assert_eq!(taken.chunks, chunks.len() as u64 - 1);
    server.stop().expect("stops cleanly");
    // What is left is checked to be whole.
    flip_a_bit(&place);
    std::fs::remove_dir_all(new).expect("removed");
}
