//! Records of several frames: each counts as if it stood alone, at a place of its own.

use super::*;
use proto::frame::join;

impl World {
    /// Seals the client's next requests, each with its payload.
    fn sealed_next(&self, client: &mut Client, requests: &[(Op, &[u8])]) -> Vec<Bytes> {
        let mut seal = |(op, payload): &(Op, &[u8])| {
            client.number += 1;
            self.sealed(client, client.number, op.clone(), payload)
        };
        requests.iter().map(&mut seal).collect()
    }

    fn extents(&mut self, client: &mut Client, ino: Ino) -> Vec<ChunkName> {
        match self.call(client, Op::View(View::Extents { ino, from: 0, limit: 10 })) {
            Ok(Outcome::Extents { extents, .. }) => extents.into_iter().map(|extent| extent.chunk).collect(),
            other => panic!("no extents: {other:?}"),
        }
    }
}

fn chmod(ino: Ino, mode: u32) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } })
}

fn without_places(answers: Vec<(RequestNo, Answer)>) -> Vec<(RequestNo, Result<Attr, Refusal>)> {
    let attr = |result| match result {
        Ok(Outcome::Entry(attr) | Outcome::Removed(attr)) => Ok(Attr { version: Position::default(), ..attr }),
        Ok(other) => panic!("no attributes: {other:?}"),
        Err(refusal) => Err(refusal),
    };
    answers.into_iter().map(|(number, answer)| (number, attr(answer.result))).collect()
}

#[test]
fn requests_in_one_record_do_what_they_do_in_records_of_their_own() {
    let dir = Ino::new(NAMESPACE, 2);
    let file = Ino::new(NAMESPACE, 3);
    let requests: [(Op, &[u8]); 7] = [
        (create(ROOT, "d", FileKind::Dir), &[]),
        (create(dir, "f", FileKind::File), &[]),
        (write(file, 0, 5, 5), b"first"),
        (create(dir, "f", FileKind::Dir), &[]),
        (write(file, 5, 4, 4), b"next"),
        (chmod(file, 0o600), &[]),
        (unlink(dir, "absent"), &[]),
    ];
    let (mut one, mut many) = (World::new(), World::new());
    let (mut a, mut b) = (one.open(1), many.open(1));
    let frames = one.sealed_next(&mut a, &requests);
    let together = answers(&one.effects(&join(&frames)), a.id);
    let mut apart = Vec::new();
    for (op, payload) in requests {
        apart.extend(answers(&many.send_with(&mut b, op, payload), b.id));
    }

    let places: Vec<Position> = together.iter().map(|(_, answer)| answer.at).collect();
    let at = one.last_position();
    assert_eq!(places, (0..7).map(|frame| at.of_frame(frame)).collect::<Vec<_>>());
    assert!(places.is_sorted());
    assert_eq!(without_places(together), without_places(apart));
    assert_eq!(one.extents(&mut a, file).len(), 2);
    assert_eq!(one.kv.rows.len(), many.kv.rows.len());
    one.restart();
    one.assert_replayable();
    audit::audit(&one);
}

#[test]
fn what_one_record_brings_is_named_by_its_frame() {
    let mut world = World::new();
    let mut c = world.open(1);
    let files = ["a", "b"].map(|at| world.mkfile(&mut c, ROOT, at));
    // The same bytes, as no client would seal them twice: only the frames tell them apart.
    let content = [4; 9000];
    let small: (Op, &[u8]) = (write(files[0], 0, 3, 3), b"abc");
    let (first, second) = (write(files[0], 10, 9000, 9000), write(files[1], 0, 9000, 9000));
    let frames = world.sealed_next(&mut c, &[small, (first, &content), (second, &content)]);
    let effects = world.effects(&join(&frames));
    let at = world.last_position();
    let kept: Vec<ChunkName> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Keep { name, content: kept } => {
                assert_eq!(kept[..], content);
                Some(*name)
            }
            _ => None,
        })
        .collect();
    let places = |names: &[ChunkName]| names.iter().map(ChunkName::position).collect::<Vec<_>>();
    assert_eq!(places(&kept), [at.of_frame(1), at.of_frame(2)]);
    let names = world.extents(&mut c, files[0]);
    assert_eq!(places(&names), [at, at.of_frame(1)]);
    assert_eq!(crate::machine::content(&mut world.kv, &names[0]).as_deref(), Some(&b"abc"[..]));
    assert_eq!(world.extents(&mut c, files[1]), [kept[1]]);

    // One of them goes, and the other stays.
    let gone = world.send(&mut c, truncate(files[0], 0));
    assert!(gone.iter().any(|effect| matches!(effect, Effect::Unreferenced { name } if *name == kept[0])));
    assert_eq!(world.extents(&mut c, files[1]), [kept[1]]);
    audit::audit(&world);
    world.assert_replayable();
}

#[test]
fn numbers_count_however_they_are_put_together() {
    let mut world = World::new();
    let mut c = world.open(1);
    let requests: [(Op, &[u8]); 3] = ["a", "b", "c"].map(|at| (create(ROOT, at, FileKind::File), &[][..]));
    let frames = world.sealed_next(&mut c, &requests);
    let gaps = answers(&world.effects(&join(&frames[1..])), c.id);
    let expected = Ok(Outcome::Gap { expected: RequestNo(1) });
    assert!(gaps.len() == 2 && gaps.iter().all(|(_, answer)| answer.result == expected), "{gaps:?}");

    let first = answers(&world.effects(&join(&frames[..2])), c.id);
    let rows = world.kv.clone();
    assert_eq!(answers(&world.effects(&frames[1]), c.id), first[1..], "alone");
    let reversed = answers(&world.effects(&join(&[frames[1].clone(), frames[0].clone()])), c.id);
    assert_eq!(reversed, [first[1].clone(), first[0].clone()]);
    let twice = answers(&world.effects(&join(&[frames[0].clone(), frames[0].clone()])), c.id);
    assert_eq!(twice, [first[0].clone(), first[0].clone()]);
    assert_eq!(world.kv, rows, "done once");
    // Some of it again, and something new behind.
    let all = answers(&world.effects(&join(&frames)), c.id);
    assert_eq!(all[..2], first[..]);
    assert!(all[2].1.result.is_ok());
    audit::audit(&world);
    world.assert_replayable();
}

#[test]
fn frames_of_others_do_not_come_into_a_record() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    let request = |at| (create(ROOT, at, FileKind::File), &[][..]);
    let frames = world.sealed_next(&mut a, &[request("a"), request("b")]);
    let other = world.sealed_next(&mut b, &[request("c")]).remove(0);
    let open = world.sealed_open(&world.ticket(3), &[]);
    let tick = world.sealed_server_record(ServerRecord::Tick { elapsed_ms: 5 });
    let rows = world.kv.clone();
    for stranger in [other, open, tick, Bytes::from_static(b"noise"), frames[1].slice(..80)] {
        let record = join(&[frames[0].clone(), stranger]);
        assert_eq!(world.apply(&record).skipped, Some("malformed"));
    }
    assert_eq!(world.kv, rows);
    // What is forged takes nothing along.
    let forged = world.sealed(&Client { key: Key::from_bytes([66; 32]), ..a.clone() }, 3, request("d").0, &[]);
    let Applied { effects, skipped } = world.apply(&join(&[frames[0].clone(), forged, frames[1].clone()]));
    assert_eq!(skipped, Some("not authentic"));
    let done = answers(&effects, a.id);
    assert!(done.len() == 2 && done.iter().all(|(_, answer)| answer.result.is_ok()), "{done:?}");
    world.assert_replayable();
}

#[test]
fn history_lists_what_has_ended_in_each_frame() {
    let mut world = World::new();
    let mut c = world.open(1);
    let files = ["a", "b"].map(|at| world.mkfile(&mut c, ROOT, at));
    // What lived for less is not kept.
    world.pass_ms(50_000);
    world.send(&mut c, Op::Session(SessionOp::Renew));
    world.pass_ms(50_000);
    let frames = world.sealed_next(&mut c, &files.map(|file| (chmod(file, 0o600), &[][..])));
    let listed = |world: &World| world.kv.rows.keys().filter(|key| key[0] == b'W').count();
    let before = listed(&world);
    world.effects(&join(&frames));
    assert_eq!(listed(&world), before + 2);
    audit::audit(&world);
}
