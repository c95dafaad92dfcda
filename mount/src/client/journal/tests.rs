//! The journal over restarts: torn ends, full files, adoption, conflicts.

use super::*;
use proto::Ino;
use proto::log::Topic;
use proto::message::{Delete, Piece, Source, Upload, WriteAt};
use proto::{Epoch, Name};

const S1: SessionId = SessionId([1; 16]);
const S2: SessionId = SessionId([2; 16]);

struct Dir {
    dir: tempfile::TempDir,
    key: Key,
    max_bytes: u64,
}

impl Dir {
    fn new() -> Dir {
        Dir { dir: tempfile::tempdir().expect("made"), key: Key::random(), max_bytes: 1 << 20 }
    }

    fn open(&self) -> (Journal, Adopted) {
        let config = JournalConfig { dir: self.dir.path().join("kfs"), max_bytes: self.max_bytes };
        Journal::open(&config, &self.key, "kfs", &Clock::default())
    }

    fn files(&self) -> Vec<PathBuf> {
        let dir = fs::read_dir(self.dir.path().join("kfs")).expect("there");
        dir.map(|entry| entry.expect("readable").path()).filter(|path| path.is_file()).collect()
    }
}

fn unlink(name: &str) -> Op {
    Op::Delete(Delete::Unlink { dir: Ino(1), name: Name::new(name.as_bytes()).expect("valid") })
}

fn chunk(content: &[u8]) -> ChunkName {
    ChunkName {
        topic: Topic::Chunks,
        epoch: Epoch(1),
        partition: 0,
        offset: 7,
        index: 0,
        session: S1,
        hash: hash_of(content),
    }
}

fn write(name: ChunkName) -> Op {
    let key = proto::chunk::WrappedKey { key_epoch: 1, wrapped: [0; proto::chunk::WrappedKey::BYTES] };
    let piece = Piece { offset: 0, len: 5, source: Source::Chunk(name), chunk_from: 0, key };
    Op::Upload(Upload::Write { ino: Ino(2), at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

fn keep(journal: &Journal, op: &Op, payload: &'static [u8]) -> Journaled {
    journal.request(op, &Bytes::from_static(payload), Time { secs: 9, nanos: 1 }, None).expect("there is room")
}

#[test]
fn what_was_not_answered_comes_back_in_order_with_where_it_was_sent() {
    let dir = Dir::new();
    let (journal, adopted) = dir.open();
    assert!(adopted.entries.is_empty() && adopted.sessions.is_empty());
    journal.session(S1);
    let first = keep(&journal, &unlink("a"), b"payload");
    let second = keep(&journal, &unlink("b"), b"");
    keep(&journal, &unlink("c"), b"");
    journal.sent(first, S1, RequestNo(1));
    journal.sent(second, S1, RequestNo(2));
    journal.session(S2);
    journal.sent(second, S2, RequestNo(1));
    journal.done(first);
    drop(journal);

    let (next, adopted) = dir.open();
    assert_eq!(adopted.sessions, [S2]);
    let found: Vec<_> = adopted.entries.iter().map(|e| (e.op.clone(), e.sent, e.time.secs)).collect();
    assert_eq!(found, [(unlink("b"), Some((S2, RequestNo(1))), 9), (unlink("c"), None, 9)]);
    // It is held now: a third one finds nothing.
    let (third, nothing) = dir.open();
    assert!(nothing.entries.is_empty());
    third.close();
    for entry in &adopted.entries {
        next.done(entry.journaled);
    }
    next.close();
    assert!(dir.files().is_empty(), "nothing is pending, so nothing stays");
}

#[test]
fn content_is_kept_until_what_quotes_it_is_answered() {
    let dir = Dir::new();
    let (journal, _) = dir.open();
    let (name, content) = (chunk(b"sealed"), Bytes::from_static(b"sealed"));
    journal.keep(&name, &content);
    let entry = keep(&journal, &write(name), b"");
    drop(journal);

    let (next, adopted) = dir.open();
    assert_eq!(adopted.entries.len(), 1);
    assert_eq!(next.content(&name), Some(content));
    next.conflict(adopted.entries[0].journaled, &adopted.entries[0].op, "the file is gone");
    assert_eq!(next.content(&name), None);
    let _ = entry;
    let kept: Vec<_> = fs::read_dir(dir.dir.path().join("kfs").join(CONFLICTS)).expect("made").collect();
    assert_eq!(kept.len(), 1);
    // What was set aside is itself a whole journal.
    let path = kept[0].as_ref().expect("readable").path();
    let mut file = JournalFile::adopt(&path, &dir.key).expect("readable").expect("not held");
    assert_eq!(file.requests(&dir.key).expect("readable").len(), 1);
    assert!(file.content(&dir.key, &name).is_some());
}

#[test]
fn a_torn_end_costs_only_itself() {
    let dir = Dir::new();
    let (journal, _) = dir.open();
    keep(&journal, &unlink("a"), b"whole");
    keep(&journal, &unlink("b"), b"torn");
    drop(journal);
    let path = dir.files().remove(0);
    let length = fs::metadata(&path).expect("there").len();
    fs::OpenOptions::new().write(true).open(&path).expect("opens").set_len(length - 2).expect("cut");
    let (next, adopted) = dir.open();
    assert_eq!(adopted.entries.len(), 1);
    assert_eq!(adopted.entries[0].op, unlink("a"));
    drop(next);
    // The same for any damage: never a panic, never a wrong entry.
    let whole = fs::read(&path).expect("readable");
    for at in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, damaged).expect("written");
        let (_journal, adopted) = dir.open();
        assert!(adopted.entries.iter().all(|entry| entry.op == unlink("a")));
        drop(_journal);
        fs::write(&path, &whole).expect("written");
    }
}

#[test]
fn a_full_journal_says_so_and_makes_room_of_what_is_over() {
    let mut dir = Dir::new();
    dir.max_bytes = 40_000;
    let (journal, _) = dir.open();
    static PAYLOAD: [u8; 8_000] = [7; 8_000];
    let first = keep(&journal, &unlink("a"), &PAYLOAD);
    let pending = keep(&journal, &unlink("b"), &PAYLOAD);
    journal.done(first);
    let third = keep(&journal, &unlink("c"), &PAYLOAD);
    journal.done(third);
    // Full, but half of it is over: it is rewritten.
    let fourth = keep(&journal, &unlink("d"), b"small");
    let mut held = vec![pending, fourth];
    while let Some(more) = journal.request(&unlink("e"), &Bytes::from_static(&PAYLOAD), Time::default(), None) {
        held.push(more);
        assert!(held.len() < 10, "it is bounded");
    }
    assert!(journal.status().bytes <= 40_000);
    drop(journal);
    let (_, adopted) = dir.open();
    assert_eq!(adopted.entries.len(), held.len());
    assert_eq!(adopted.entries[0].op, unlink("b"));
}

#[test]
fn another_users_journals_are_left_alone() {
    let mut dir = Dir::new();
    let (journal, _) = dir.open();
    keep(&journal, &unlink("a"), b"");
    drop(journal);
    let mine = std::mem::replace(&mut dir.key, Key::random());
    assert!(dir.open().1.entries.is_empty());
    dir.key = mine;
    assert_eq!(dir.open().1.entries.len(), 1);
}

#[test]
fn an_unwritable_place_costs_the_journal_only() {
    let config = JournalConfig { dir: PathBuf::from("/proc/no-such-place"), max_bytes: 1 << 20 };
    let (journal, _) = Journal::open(&config, &Key::random(), "kfs", &Clock::default());
    assert!(journal.request(&unlink("a"), &Bytes::new(), Time::default(), None).is_none());
    assert!(journal.status().broken.is_some());
}
