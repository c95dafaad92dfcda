//! Changes of files and attributes, one by one.

use super::*;
use proto::message::{RenameHow, XattrHow};

fn extents(world: &mut World, c: &mut Client, ino: Ino) -> Vec<(u64, u32, u32)> {
    match world.call(c, Op::View(View::Extents { ino, from: 0, limit: 1000 })) {
        Ok(Outcome::Extents { extents, end: true, .. }) => {
            extents.iter().map(|extent| (extent.offset, extent.len, extent.chunk_from)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn mkdir_on_a_taken_name_is_refused_and_leaves_no_trace() {
    let mut world = World::new();
    let mut c = world.open(1);
    world.mkdir(&mut c, ROOT, "a");
    let rows = world.kv.clone();
    assert_eq!(world.call(&mut c, create(ROOT, "a", FileKind::Dir)), Err(Refusal::Exists));
    assert_eq!(world.kv, rows);
}

#[test]
fn create_sets_what_it_should() {
    let mut world = World::new();
    let mut c = world.open(1);
    let before = world.getattr(&mut c, ROOT);
    world.pass_ms(3000);
    let attr = world.entry(&mut c, create(ROOT, "f", FileKind::File));
    let root = world.getattr(&mut c, ROOT);
    assert_eq!((attr.nlink, attr.size, attr.mode, attr.parent), (1, 0, 0o644, Some(ROOT)));
    assert_eq!((attr.uid, attr.gid), (Owner::Namespace, Owner::Number(7)));
    assert_eq!((root.mtime, root.ctime, root.nlink), (attr.mtime, attr.ctime, 2));
    assert!(root.mtime.secs > before.mtime.secs && root.version > before.version);
    assert_eq!(world.call(&mut c, create(attr.ino, "x", FileKind::File)), Err(Refusal::NotDirectory));
    let foreign = Ino::root(NamespaceId(32));
    assert_eq!(world.call(&mut c, create(foreign, "x", FileKind::File)), Err(Refusal::NotPermitted));
}

#[test]
fn names_in_two_directories_give_the_inode_a_promise_of_its_own() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let dir = world.mkdir(&mut c, ROOT, "d");
    let attr = world.entry(&mut c, link(ino, ROOT, "g"));
    assert_eq!((attr.nlink, attr.parent), (2, Some(ROOT)));
    let attr = world.entry(&mut c, link(ino, dir, "g"));
    assert_eq!((attr.nlink, attr.parent), (3, None));
    // Which of its names is left is not looked for.
    for taken in ["f", "g"] {
        world.call(&mut c, unlink(ROOT, taken)).unwrap();
    }
    assert_eq!((world.getattr(&mut c, ino).nlink, world.getattr(&mut c, ino).parent), (1, None));
    let other = world.mkfile(&mut c, ROOT, "g");
    world.entry(&mut c, link(other, ROOT, "h"));
    let rename = |from, to_dir| {
        let how = RenameHow::Replace;
        Op::Upload(Upload::Rename { from_dir: ROOT, from: name(from), to_dir, to: name("i"), how })
    };
    world.call(&mut c, rename("g", ROOT)).unwrap();
    assert_eq!(world.getattr(&mut c, other).parent, Some(ROOT));
    world.call(&mut c, rename("h", dir)).unwrap();
    assert_eq!(world.getattr(&mut c, other).parent, None);
    assert_eq!(world.call(&mut c, link(ino, ROOT, "i")), Err(Refusal::Exists));
    assert_eq!(world.call(&mut c, link(dir, ROOT, "k")), Err(Refusal::NotPermitted));
    assert_eq!(world.call(&mut c, link(ino, Ino::root(NamespaceId(3)), "g")), Err(Refusal::CrossNamespace));
}

#[test]
fn writes_split_what_they_cover() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    world.call_with(&mut c, write(ino, 0, 100, 5), &[1; 5]).unwrap();
    let attr = entry(world.call_with(&mut c, write(ino, 40, 20, 6), &[2; 6]));
    assert_eq!((attr.size, attr.allocated), (100, 100));
    assert_eq!(extents(&mut world, &mut c, ino), [(0, 40, 0), (40, 20, 0), (60, 40, 60)]);

    let attr = entry(world.call_with(&mut c, write(ino, 200, 10, 6), &[3; 6]));
    assert_eq!((attr.size, attr.allocated), (210, 110));
    let attr = world.entry(&mut c, truncate(ino, 50));
    assert_eq!((attr.size, attr.allocated), (50, 50));
    assert_eq!(extents(&mut world, &mut c, ino), [(0, 40, 0), (40, 10, 0)]);
    let attr = world.entry(&mut c, truncate(ino, 1 << 40));
    assert_eq!((attr.size, attr.allocated), (1 << 40, 50));
}

#[test]
fn content_in_the_state_goes_with_its_last_reference() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    world.call_with(&mut c, write(ino, 0, 10, 5), &[1; 5]).unwrap();
    let contents = |world: &World| world.kv.rows.keys().filter(|key| key[0] == b'B').count();
    assert_eq!(contents(&world), 1);
    // Within a minute of one session, history keeps nothing.
    let effects = world.send(&mut c, truncate(ino, 0));
    // It was never anywhere else.
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Unreferenced { .. })));
    assert_eq!(contents(&world), 0);

    world.call_with(&mut c, write(ino, 0, 10, 5), &[1; 5]).unwrap();
    world.pass_ms(50_000);
    world.send(&mut c, Op::Session(SessionOp::Renew));
    world.pass_ms(50_000);
    world.call(&mut c, truncate(ino, 0)).unwrap();
    assert_eq!(contents(&world), 1);
}

#[test]
fn large_inline_content_goes_to_the_packs() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let effects = world.send_with(&mut c, write(ino, 0, 60_000, 60_000), &[4; 60_000]);
    let kept = effects.iter().find_map(|effect| match effect {
        Effect::Keep { name, content } => Some((*name, content.len())),
        _ => None,
    });
    let (name, len) = kept.expect("kept");
    assert_eq!(len, 60_000);
    assert_eq!((name.topic, name.session, name.index), (Topic::Requests, c.id, 0));
    assert_eq!(name.hash, *blake3::hash(&[4; 60_000]).as_bytes());
}

#[test]
fn only_own_or_referenced_chunks_may_be_quoted() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    let chunk = ChunkName {
        topic: Topic::Chunks,
        epoch: Epoch(1),
        partition: PARTITION,
        offset: 77,
        index: 0,
        session: a.id,
        hash: [3; 32],
    };
    let quote = |ino, at| {
        let piece = Piece { offset: 0, len: 9, source: Source::Chunk(chunk), chunk_from: 1, key: wrapped_key() };
        Op::Upload(Upload::Write { ino, at, pieces: vec![piece], reserved: false })
    };
    let ino = world.mkfile(&mut b, ROOT, "f");
    assert_eq!(world.call(&mut b, quote(ino, WriteAt::Offsets)), Err(Refusal::ForeignChunk));
    let effects = world.send(&mut a, quote(ino, WriteAt::Offsets));
    let to_confirm: Vec<PushNo> = pushes(&effects, &b).iter().map(|(n, _)| *n).collect();
    world.send(&mut b, Op::Session(SessionOp::Confirm { pushes: to_confirm }));
    let effects = world.send(&mut b, quote(ino, WriteAt::End));
    assert!(pushes(&effects, &a).len() == 1 && answer_of(&effects, &b).is_none());
    let confirmed = world.send(&mut a, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1)] }));
    assert_eq!(entry(answer_of(&confirmed, &b).unwrap().result).size, 18);

    // Whoever replaces a session may quote what it uploaded.
    world.send(&mut b, Op::Session(SessionOp::Close));
    let ticket = world.ticket(3);
    let mut successor = world.open_ticket(&ticket, &[a.id]);
    let ino = world.mkfile(&mut successor, ROOT, "g");
    let mut other = chunk;
    other.offset = 78;
    let piece = Piece { offset: 0, len: 9, source: Source::Chunk(other), chunk_from: 0, key: wrapped_key() };
    let op = Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false });
    assert_eq!(world.entry(&mut successor, op).size, 9);
}

#[test]
fn malformed_writes_are_refused() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let rows = world.kv.clone();
    let piece = |offset, len, payload_from, payload_len| Piece {
        offset,
        len,
        source: Source::Inline { payload_from, payload_len },
        chunk_from: 0,
        key: wrapped_key(),
    };
    let cases = [
        (vec![], Refusal::Invalid),
        (vec![piece(0, 0, 0, 5)], Refusal::Invalid),
        (vec![piece(0, 5, 0, 6)], Refusal::Invalid),
        (vec![piece(0, 5, u32::MAX, 6)], Refusal::Invalid),
        (vec![piece(0, u32::MAX, 0, 5)], Refusal::Invalid),
        (vec![piece(0, 5, 0, 5), piece(4, 5, 0, 5)], Refusal::Invalid),
        (vec![piece(u64::MAX, 5, 0, 5)], Refusal::TooLarge),
        (vec![piece(1 << 50, 5, 0, 5)], Refusal::TooLarge),
    ];
    for (pieces, refusal) in cases {
        let op = Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces, reserved: false });
        assert_eq!(world.call_with(&mut c, op, &[1; 5]), Err(refusal));
    }
    assert_eq!(world.kv, rows);
}

#[test]
fn xattrs_come_and_go() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let set =
        |how, bytes: &[u8]| Op::Upload(Upload::SetXattr { ino, name: b"user.a".to_vec(), value: value(bytes), how });
    assert_eq!(world.call(&mut c, set(XattrHow::Replace, b"1")), Err(Refusal::NoAttribute));
    assert!(world.entry(&mut c, set(XattrHow::Create, b"1")).has_xattrs);
    assert_eq!(world.call(&mut c, set(XattrHow::Create, b"2")), Err(Refusal::Exists));
    assert!(world.call(&mut c, set(XattrHow::Set, b"3")).is_ok());
    let Ok(Outcome::Xattrs(all)) = world.call(&mut c, Op::View(View::Xattrs { ino })) else { panic!() };
    assert_eq!(all, [(serde_bytes::ByteBuf::from(b"user.a"), value(b"3"))]);
    let remove = || Op::Upload(Upload::RemoveXattr { ino, name: b"user.a".to_vec() });
    assert!(!world.entry(&mut c, remove()).has_xattrs);
    assert_eq!(world.call(&mut c, remove()), Err(Refusal::NoAttribute));
    let long = value(&[0; 70_000]);
    let op = Op::Upload(Upload::SetXattr { ino, name: b"user.a".to_vec(), value: long, how: XattrHow::Set });
    assert_eq!(world.call(&mut c, op), Err(Refusal::TooLarge));
}

#[test]
fn times_are_the_request_s_but_not_ahead_of_the_log() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let far = Time { secs: 99_999_999_999, nanos: 0 };
    let change = AttrChange { atime: Some(far), mode: Some(0o107777), ..AttrChange::default() };
    let attr = world.entry(&mut c, Op::Upload(Upload::Setattr { ino, change }));
    assert_eq!((attr.atime, attr.mode), (far, 0o7777));

    let attr = entry(world.call_at(&mut c, far, create(ROOT, "late", FileKind::File), &[]));
    assert_eq!(attr.mtime, Time::from_millis(world.append_ms));
}

#[test]
fn what_is_written_behind_a_clients_back_has_its_own_time() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let made = world.getattr(&mut c, ino).ctime;
    let piece = Piece {
        offset: 0,
        len: 5,
        source: Source::Inline { payload_from: 0, payload_len: 5 },
        chunk_from: 0,
        key: wrapped_key(),
    };
    let write = Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false });
    let mut write_at = |time| {
        let attr = entry(world.call_at(&mut c, time, write.clone(), &[1; 5]));
        assert_eq!(attr.mtime, attr.ctime);
        attr.mtime
    };
    let written = Time { secs: made.secs, nanos: 999_999_999 };
    assert_eq!(write_at(written), written);
    // The next part of the same system call.
    assert_eq!(write_at(written), written);
    // Another client has changed the file since: the time still moves, and not back.
    assert_eq!(write_at(made), Time { secs: made.secs + 1, nanos: 0 });
}

#[test]
fn a_file_can_have_65_000_names() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    for number in 1..65_000 {
        let attr = world.entry(&mut c, link(ino, ROOT, &number.to_string()));
        assert_eq!(attr.nlink, number + 1);
    }
}

#[test]
fn a_symlink_keeps_its_target() {
    let mut world = World::new();
    let mut c = world.open(1);
    let new = NewInode {
        kind: FileKind::Symlink,
        mode: 0o777,
        umask: 0,
        uid: Owner::Namespace,
        gid: Owner::Namespace,
        rdev: 0,
        target: Some(value(b"/to/there")),
        ino: None,
        reserved: false,
    };
    let attr = world.entry(&mut c, Op::Upload(Upload::Create { dir: ROOT, name: name("l"), new: new.clone() }));
    assert_eq!(attr.size, 9);
    let Ok(Outcome::Link(target)) = world.call(&mut c, Op::View(View::Readlink { ino: attr.ino })) else { panic!() };
    assert_eq!(target, value(b"/to/there"));
    let wrong = NewInode { target: None, ..new };
    let op = Op::Upload(Upload::Create { dir: ROOT, name: name("m"), new: wrong });
    assert_eq!(world.call(&mut c, op), Err(Refusal::Invalid));
}
