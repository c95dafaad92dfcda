//! Locks between two filesystems: who has one sees what was written under it before, waiting ends as it
//! should, and closing gives up what it should.

use crate::place::{ME, Place};
use mount::client::Patience;
use mount::error::FsError;
use mount::fs::{CreateHow, Fs, LockCall};
use proto::log::Topic;
use proto::message::LockKind::{Flock, OpenFile, Process};
use proto::message::LockMode::{Exclusive, Shared};
use proto::message::{LockKind, LockRange, Refusal};
use std::sync::Arc;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(30);

fn patience() -> Patience {
    Patience::within(WAIT)
}

fn of(owner: u64, kind: LockKind) -> LockCall {
    LockCall { owner, kind: Some(kind), pid: 9, range: LockRange::WHOLE }
}

/// Two filesystems and one file, open in both.
async fn two(place: &Place) -> ((Fs, u64), (Fs, u64)) {
    let (one, two) = (place.fs().await, place.fs().await);
    let how = CreateHow::default();
    let (stat, opened) = one.create(ME, one.root(), b"f", 0o644, how, &patience()).await.expect("makes");
    let again = two.open(stat.ino, false, &patience()).await.expect("opens");
    ((one, opened.handle), (two, again.handle))
}

async fn try_lock(fs: &Fs, handle: u64, call: LockCall) -> bool {
    match fs.lock(handle, call, Exclusive, false, &patience()).await {
        Ok(()) => true,
        Err(error) if error.is(Refusal::WouldBlock) => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_a_lock_reads_what_was_written_under_it() {
    let place = Place::in_memory().await;
    let ((one, a), (two, b)) = two(&place).await;
    for round in 0..20_u64 {
        one.lock(a, of(1, Process), Exclusive, true, &patience()).await.expect("locks");
        assert!(!try_lock(&two, b, of(2, Process)).await);
        let waiting = {
            let two = two.clone();
            tokio::spawn(async move {
                two.lock(b, of(2, Process), Exclusive, true, &patience()).await.expect("gets it");
                let read = two.read(b, 0, 8, &patience()).await.expect("reads");
                two.unlock(b, of(2, Process), &patience()).await.expect("gives it up");
                read
            })
        };
        one.write(a, 0, &round.to_le_bytes(), &patience()).await.expect("writes");
        one.unlock(a, of(1, Process), &patience()).await.expect("gives it up");
        let read = tokio::time::timeout(WAIT, waiting).await.expect("is woken").expect("does not panic");
        assert_eq!(read[..], round.to_le_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlock_that_nobody_waits_for_waits_for_what_was_written() {
    let place = Place::in_memory().await;
    let ((one, a), (two, b)) = two(&place).await;
    one.lock(a, of(1, Process), Exclusive, true, &patience()).await.expect("locks");
    // One more is delegated the content, and gives it back late: so the write waits in the server.
    let (third, held) = place.fs_held(Topic::Requests).await;
    let ino = third.lookup(third.root(), b"f", &patience()).await.expect("looks").ino;
    let c = third.open(ino, false, &patience()).await.expect("opens").handle;
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        third.write(c, 0, b"old", &patience()).await.expect("writes");
        third.fsync(c, &patience()).await.expect("syncs");
    }
    held.send_replace(true);
    one.write(a, 0, b"new", &patience()).await.expect("writes");
    let soon = patience().or(Arc::new(|| Box::pin(tokio::time::sleep(Duration::from_millis(100)))));
    assert!(one.unlock(a, of(1, Process), &soon).await.is_err(), "the write is not answered");
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!try_lock(&two, b, of(2, Process)).await, "the write is still to come");
    }
    held.send_replace(false);
    two.lock(b, of(2, Process), Exclusive, true, &patience()).await.expect("gets it");
    assert_eq!(two.read(b, 0, 3, &patience()).await.expect("reads")[..], b"new"[..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_interrupted_has_no_lock_and_is_in_nobody_s_way() {
    let place = Place::in_memory().await;
    let ((one, a), (two, b)) = two(&place).await;
    one.lock(a, of(1, Flock), Exclusive, true, &patience()).await.expect("locks");
    let soon = patience().or(Arc::new(|| Box::pin(tokio::time::sleep(Duration::from_millis(200)))));
    let waited = two.lock(b, of(2, Flock), Exclusive, true, &soon).await;
    assert!(waited.as_ref().is_err_and(|error| error.is(Refusal::Cancelled)), "{waited:?}");
    one.unlock(a, of(1, Flock), &patience()).await.expect("gives it up");
    assert!(try_lock(&one, a, of(3, Flock)).await);
    assert!(!try_lock(&two, b, of(2, Flock)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_gives_up_what_it_should() {
    let place = Place::in_memory().await;
    let ((one, a), (two, b)) = two(&place).await;
    let half = LockCall { range: LockRange { start: 0, end: 9 }, ..of(2, Process) };
    let rest = LockRange { start: 10, end: LockRange::LAST };
    let (process, open_file) = (LockCall { range: rest, ..of(1, Process) }, LockCall { owner: 1, ..half });
    for call in [process, LockCall { kind: Some(OpenFile), ..open_file }] {
        one.lock(a, call, Exclusive, true, &patience()).await.expect("locks");
    }
    assert!(!try_lock(&two, b, half).await);
    one.write(a, 0, b"content", &patience()).await.expect("writes");
    one.flush_and_unlock(a, 1, &patience(), &patience()).await.expect("flushes");
    assert!(try_lock(&two, b, LockCall { range: rest, ..half }).await, "a process's goes with its close");
    assert!(!try_lock(&two, b, half).await, "an open file's goes with that");
    one.release(a).expect("is open");
    two.lock(b, half, Shared, true, &patience()).await.expect("it is free soon");
    assert_eq!(two.read(b, 0, 10, &patience()).await.expect("reads")[..], b"content"[..]);
    assert!(matches!(one.lock(a, half, Shared, true, &patience()).await, Err(FsError::BadHandle(_))));
}
