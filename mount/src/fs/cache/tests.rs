//! Answers that come late, or after others. Whole mounts show the rest.

use super::super::pending::Effect;
use super::*;
use proto::message::{FileKind, Owner};
use proto::{Epoch, SessionId};

const DIR: Ino = Ino(1);
const ELSEWHERE: Ino = Ino(2);
const FILE: Ino = Ino(7);

/// A cache, and promises that count.
struct Known {
    cache: Cache,
    promises: Promises,
}

fn at(offset: u64) -> Position {
    Position { epoch: Epoch(1), partition: 0, offset, index: 0 }
}

fn attr(parent: Ino) -> Attr {
    let time = Time { secs: 1, nanos: 0 };
    Attr {
        ino: FILE,
        kind: FileKind::File,
        mode: 0o644,
        uid: Owner::Namespace,
        gid: Owner::Namespace,
        nlink: 1,
        size: 8,
        allocated: 8,
        atime: time,
        mtime: time,
        ctime: time,
        rdev: 0,
        version: at(1),
        parent: Some(parent),
        has_xattrs: true,
        rights: None,
    }
}

fn xattrs(value: &'static [u8]) -> Xattrs {
    std::sync::Arc::new(vec![(b"user.a".to_vec(), Bytes::from_static(value))])
}

impl Known {
    fn new() -> Known {
        let known = Known { cache: Cache::new(), promises: Promises::default() };
        let now_ms = proto::clock::monotonic_ms();
        known.promises.extend(now_ms, now_ms, at(1));
        known
    }

    /// An answer that stands there to a request of that order.
    fn learn(&self, offset: u64, order: u64, granted: &[Promise], learn: impl FnOnce(&mut Lesson<'_>)) {
        let granted = self.promises.granted(at(offset), granted);
        self.cache.learn_from(&self.promises, at(offset), order, &granted, &[], learn);
    }

    fn value(&self) -> Option<Bytes> {
        Some(self.cache.xattrs(&self.promises, &attr(DIR))?[0].1.clone())
    }
}

#[test]
fn extended_attributes_from_before_a_change_are_not_kept() {
    let known = Known::new();
    let promise = Promise::Dir(DIR);
    known.learn(2, 1, &[promise], |l| l.attr(&attr(DIR)));
    known.learn(3, 2, &[promise], |l| l.xattrs(promise, FILE, xattrs(b"one")));
    assert_eq!(known.value().as_deref(), Some(&b"one"[..]));
    // Set by request 4, whose answer comes before that of request 3, which only looked.
    known.learn(5, 4, &[promise], |l| {
        l.attr(&attr(DIR));
        l.xattrs_changed(FILE);
    });
    known.learn(4, 3, &[promise], |l| l.xattrs(promise, FILE, xattrs(b"one")));
    assert_eq!(known.value(), None);
    known.learn(6, 5, &[promise], |l| l.xattrs(promise, FILE, xattrs(b"two")));
    assert_eq!(known.value().as_deref(), Some(&b"two"[..]));
}

#[test]
fn a_directory_has_the_time_that_the_server_has_corrected() {
    let known = Known::new();
    let promise = Promise::Dir(FILE);
    let dir = Attr { kind: FileKind::Dir, ..attr(DIR) };
    known.learn(2, 1, &[promise], |l| l.attr(&dir));
    let (sent, corrected) = (Time { secs: 90, nanos: 0 }, Time { secs: 50, nanos: 0 });
    let name = Name::new(b"new").expect("is a name");
    let times = || {
        let dir = known.cache.attr(&known.promises, FILE).expect("is known");
        (dir.mtime, dir.ctime)
    };
    let make = |order| {
        known.cache.locally(&known.promises, |local| {
            local.changed(order, FILE, Effect::Entry { time: sent, links: 0 });
        });
    };
    let answered = |order: u64| {
        let touched = Touched { inodes: vec![FILE], names: vec![(FILE, Cursor::of(&name))] };
        let made = Attr { ino: Ino(8), ctime: corrected, ..attr(FILE) };
        let (outcome, granted) = (Outcome::Entry(made), known.promises.granted(at(order), &[promise]));
        let (session, payload, continued) = (None, Bytes::new(), Vec::new());
        let reply = Reply { at: at(order), order, session, outcome, payload, granted, continued };
        known.cache.settle(&known.promises, order, &reply, &touched, |_| ());
    };
    make(3);
    assert_eq!(times(), (sent, sent));
    make(4);
    answered(3);
    // What came after it is not answered for.
    assert_eq!(times(), (sent, sent));
    answered(4);
    assert_eq!(times(), (corrected, corrected));
}

#[test]
fn an_answer_does_not_hide_what_was_set_here_since_its_request() {
    let known = Known::new();
    let promise = Promise::Dir(DIR);
    known.learn(2, 1, &[promise], |l| l.attr(&attr(DIR)));
    // Request 2 has looked, request 3 is the change.
    known.cache.locally(&known.promises, |local| {
        local.put_xattrs(&attr(DIR), xattrs(b"new"));
        let effect = Effect::Xattrs { has_xattrs: true, capability: None, time: Time { secs: 2, nanos: 0 } };
        local.changed(3, FILE, effect);
    });
    known.learn(3, 2, &[promise], |l| l.xattrs(promise, FILE, xattrs(b"old")));
    assert_eq!(known.value().as_deref(), Some(&b"new"[..]));
}

#[test]
fn extended_attributes_are_forgotten_where_another_promise_covers_their_inode() {
    let known = Known::new();
    let (here, there) = (Promise::Dir(DIR), Promise::Dir(ELSEWHERE));
    known.learn(2, 1, &[here, there], |l| {
        l.attr(&attr(DIR));
        l.xattrs(here, FILE, xattrs(b"one"));
    });
    assert!(known.value().is_some());
    known.learn(3, 2, &[here, there], |l| l.attr(&attr(ELSEWHERE)));
    assert_eq!(known.value(), None);
    // Nor when it comes back: nobody has told of what happened there.
    known.learn(4, 3, &[here, there], |l| l.attr(&attr(DIR)));
    assert_eq!(known.value(), None);
}

/// Two answers may differ in what a file was: a map is only ever of one version.
#[test]
fn a_map_of_another_version_takes_the_place_of_what_was_known() {
    let known = Known::new();
    let content = Promise::Content(FILE);
    let chunk = |offset| StoredExtent {
        offset,
        len: 4,
        chunk_from: 0,
        chunk: proto::chunk::ChunkName {
            topic: proto::log::Topic::Chunks,
            epoch: Epoch(1),
            partition: 0,
            offset,
            index: 0,
            session: SessionId::default(),
            hash: [0; 32],
        },
        key: proto::chunk::WrappedKey { key_epoch: 0, wrapped: [0; proto::chunk::WrappedKey::BYTES] },
        inline: None,
    };
    let parts =
        |from: u64, to: u64| known.cache.content(&known.promises, FILE, from, to).map(|known| known.parts.is_ok());
    let one = attr(DIR);
    known.learn(2, 1, &[content], |l| l.extents(&one, 0, &[chunk(0)], false));
    assert_eq!((parts(0, 4), parts(4, 8)), (Some(true), Some(false)));
    // The rest of the same version joins it.
    known.learn(3, 2, &[content], |l| l.extents(&one, 4, &[chunk(4)], true));
    assert_eq!(parts(0, 8), Some(true));
    // The second half of a later one does not.
    let other = Attr { version: at(4), ..one.clone() };
    known.learn(5, 3, &[content], |l| l.extents(&other, 4, &[chunk(4)], true));
    assert_eq!((parts(0, 4), parts(4, 8)), (Some(false), Some(true)));
    // And what comes late, of the older one, says nothing.
    known.learn(3, 2, &[content], |l| l.extents(&one, 0, &[chunk(0)], false));
    assert_eq!(parts(0, 4), Some(false));
}
