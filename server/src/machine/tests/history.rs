//! What has ended stays for its time, counts apart, and then goes; and content that
//! nothing refers to can be quoted as long as it is there, and no longer.

use super::audit::audit;
use super::*;
use crate::limits::{Limits, set_limits};
use crate::machine::rows::{NamespaceRow, decode, encode, namespace_key, table};

use std::time::Duration;

const MINUTE: u64 = 60_000;
const LIMITS: Limits = Limits {
    history_ms: 10 * MINUTE,
    quote_ms: 5 * MINUTE,
    bytes_total: 1 << 50,
    grace: Duration::ZERO,
    sweep_every: Duration::ZERO,
    checkpoint_every: Duration::from_secs(5),
    pack_bytes: 32 << 20,
    tail_bytes: 4 << 20,
    window_requests: 256,
};

/// Lets log time pass while sessions live on.
fn pass(world: &mut World, clients: &mut [&mut Client], ms: u64) -> Vec<Effect> {
    let mut effects = Vec::new();
    for _ in 0..ms / 30_000 {
        for c in clients.iter_mut() {
            world.send(c, Op::Session(SessionOp::Renew));
        }
        for _ in 0..15 {
            effects.extend(world.tick(2_000));
        }
    }
    effects
}

fn count(world: &World, table: u8) -> usize {
    world.kv.rows.keys().filter(|key| key[0] == table).count()
}

fn namespace(world: &World) -> NamespaceRow {
    decode(&world.kv.rows[&namespace_key(NAMESPACE)])
}

fn unreferenced(effects: &[Effect]) -> Vec<ChunkName> {
    let names = effects.iter().filter_map(|effect| match effect {
        Effect::Unreferenced { name } => Some(*name),
        _ => None,
    });
    names.collect()
}

fn chunk(session: SessionId, offset: u64) -> ChunkName {
    let (topic, epoch) = (Topic::Chunks, Epoch(1));
    ChunkName { topic, epoch, partition: PARTITION, offset, index: 0, session, hash: [3; 32] }
}

fn quote(ino: Ino, offset: u64, name: ChunkName) -> Op {
    let source = Source::Chunk(name);
    let piece = Piece { offset, len: 1000, source, chunk_from: 0, key: wrapped_key() };
    Op::Upload(Upload::Write { ino, at: WriteAt::Offsets, pieces: vec![piece], reserved: false })
}

#[test]
fn what_has_ended_is_freed_when_it_is_old() {
    set_limits(LIMITS);
    let mut world = World::new();
    let mut c = world.open(1);
    let id = c.id;
    let name = chunk(id, 7);
    let ino = world.mkfile(&mut c, ROOT, "f");
    world.call(&mut c, quote(ino, 0, name)).unwrap();
    pass(&mut world, &mut [&mut c], 2 * MINUTE);
    let effects = world.send(&mut c, unlink(ROOT, "f"));
    assert_eq!(unreferenced(&effects), []);
    // The inode is kept while its maker may have it open.
    let effects = world.send(&mut c, Op::Session(SessionOp::Release { inos: vec![ino] }));
    assert_eq!(unreferenced(&effects), []);
    let row = namespace(&world);
    assert_eq!(row.bytes_used, 0);
    assert!(row.history_bytes > 1000, "{row:?}");
    assert!(count(&world, table::HISTORY) >= 3);
    audit(&world);

    let effects = pass(&mut world, &mut [&mut c], 9 * MINUTE);
    assert_eq!(unreferenced(&effects), []);
    let effects = pass(&mut world, &mut [&mut c], 2 * MINUTE);
    assert_eq!(unreferenced(&effects), [name]);
    assert_eq!((count(&world, table::HISTORY), count(&world, table::PAST)), (0, 0));
    assert_eq!(namespace(&world).history_bytes, 0);
    audit(&world);
    world.assert_replayable();
}

#[test]
fn the_oldest_history_goes_when_it_takes_too_much() {
    set_limits(LIMITS);
    let mut world = World::new();
    let mut c = world.open(1);
    let id = c.id;
    let ino = world.mkfile(&mut c, ROOT, "f");
    let mut row = namespace(&world);
    row.bytes_total = 5 * 5000;
    world.kv.rows.insert(namespace_key(NAMESPACE), encode(&row));
    let mut freed = Vec::new();
    for offset in 0..8 {
        let effects = world.send(&mut c, quote(ino, 0, chunk(id, offset)));
        assert!(matches!(answer_of(&effects, &c).map(|answer| answer.result), Some(Ok(_))));
        freed.extend(unreferenced(&effects));
        assert!(namespace(&world).history_bytes <= 5000);
        audit(&world);
        pass(&mut world, &mut [&mut c], MINUTE);
    }
    // Each version counts for its content and about 400 bytes of rows.
    let expected: Vec<ChunkName> = (0..freed.len() as u64).map(|offset| chunk(id, offset)).collect();
    assert!((3..=5).contains(&freed.len()), "{}", freed.len());
    assert_eq!(freed, expected);
}

#[test]
fn a_tick_frees_a_bounded_part() {
    set_limits(LIMITS);
    let mut world = World::new();
    let mut c = world.open(1);
    let inos: Vec<Ino> = (0..100).map(|i| world.mkfile(&mut c, ROOT, &format!("f{i}"))).collect();
    pass(&mut world, &mut [&mut c], 2 * MINUTE);
    for i in 0..100 {
        world.call(&mut c, unlink(ROOT, &format!("f{i}"))).unwrap();
    }
    world.call(&mut c, Op::Session(SessionOp::Release { inos })).unwrap();
    let kept = count(&world, table::PAST);
    assert!(kept >= 100);
    world.machine.live.now = LogTime(world.machine.live.now.0 + 11 * MINUTE);
    let mut left = kept;
    while left > 0 {
        world.tick(500);
        let now = count(&world, table::PAST);
        assert!(now < left && left - now <= 64, "{left} {now}");
        left = now;
    }
    audit(&world);
}

#[test]
fn what_was_freed_is_dead_for_good() {
    set_limits(LIMITS);
    let mut world = World::new();
    let mut c = world.open(1);
    let id = c.id;
    let ino = world.mkfile(&mut c, ROOT, "f");
    let name = chunk(id, 7);
    world.call(&mut c, quote(ino, 0, name)).unwrap();
    // Quoted twice, it is freed with its second reference.
    world.call(&mut c, quote(ino, 5000, name)).unwrap();
    assert_eq!(unreferenced(&world.send(&mut c, truncate(ino, 5000))), []);
    world.call(&mut c, quote(ino, 5000, name)).unwrap();
    assert_eq!(unreferenced(&world.send(&mut c, truncate(ino, 0))), [name]);
    assert_eq!(world.call(&mut c, quote(ino, 0, name)), Err(Refusal::ForeignChunk));
    // Nor may content be quoted that came in a request and is there no more.
    world.call_with(&mut c, write(ino, 0, 10, 5), &[1; 5]).unwrap();
    let inline = match world.call(&mut c, Op::View(View::Extents { ino, from: 0, limit: 1 })) {
        Ok(Outcome::Extents { extents, .. }) => extents[0].chunk,
        other => panic!("{other:?}"),
    };
    world.call(&mut c, truncate(ino, 0)).unwrap();
    assert_eq!(world.call(&mut c, quote(ino, 0, inline)), Err(Refusal::ForeignChunk));
    audit(&world);

    // A successor knows it too, and the mark goes when nobody could quote it anyway.
    let ticket = world.ticket(2);
    let mut d = world.open_ticket(&ticket, &[c.id]);
    assert_eq!(world.call(&mut d, quote(ino, 0, name)), Err(Refusal::ForeignChunk));
    world.call(&mut d, quote(ino, 0, chunk(id, 8))).unwrap();
    assert_eq!(count(&world, table::FREED), 1);
    audit(&world);
    pass(&mut world, &mut [&mut d], 5 * MINUTE);
    assert_eq!(count(&world, table::FREED), 0);
    audit(&world);
    world.assert_replayable();
}

#[test]
fn a_successor_quotes_for_a_while() {
    set_limits(LIMITS);
    let mut world = World::new();
    let mut c = world.open(1);
    let id = c.id;
    let ino = world.mkfile(&mut c, ROOT, "f");
    let ticket = world.ticket(2);
    let mut d = world.open_ticket(&ticket, &[c.id]);
    world.restart();
    pass(&mut world, &mut [&mut d], 4 * MINUTE);
    world.call(&mut d, quote(ino, 0, chunk(id, 1))).unwrap();
    pass(&mut world, &mut [&mut d], 2 * MINUTE);
    assert_eq!(world.call(&mut d, quote(ino, 0, chunk(id, 2))), Err(Refusal::ForeignChunk));
    // What is referred to can be.
    world.call(&mut d, quote(ino, 5000, chunk(id, 1))).unwrap();
    assert!(!world.machine.is_live(c.id) && world.machine.is_live(d.id));
    audit(&world);
}
