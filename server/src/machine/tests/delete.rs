//! unlink and rmdir, and when what they removed is really freed.

use super::*;

#[test]
fn unlink_and_rmdir_tell_kinds_apart() {
    let mut world = World::new();
    let mut c = world.open(1);
    let dir = world.mkdir(&mut c, ROOT, "dir");
    world.mkfile(&mut c, ROOT, "file");
    world.mkfile(&mut c, dir, "inner");

    assert_eq!(world.call(&mut c, unlink(ROOT, "dir")), Err(Refusal::IsDirectory));
    assert_eq!(world.call(&mut c, rmdir(ROOT, "file")), Err(Refusal::NotDirectory));
    assert_eq!(world.call(&mut c, rmdir(ROOT, "dir")), Err(Refusal::NotEmpty));
    assert_eq!(world.call(&mut c, unlink(ROOT, "none")), Err(Refusal::NotFound));
    assert_eq!(world.getattr(&mut c, ROOT).nlink, 3);

    assert!(world.call(&mut c, unlink(dir, "inner")).is_ok());
    let Ok(Outcome::Removed(gone)) = world.call(&mut c, rmdir(ROOT, "dir")) else { panic!() };
    assert_eq!((gone.ino, gone.nlink), (dir, 0));
    assert_eq!(world.getattr(&mut c, ROOT).nlink, 2);
    assert_eq!(world.call(&mut c, Op::View(View::Getattr { ino: dir })), Err(Refusal::Stale));
}

#[test]
fn a_nameless_file_stays_until_nobody_has_it_open() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    let ino = world.mkfile(&mut a, ROOT, "f");
    assert!(world.call(&mut b, Op::View(View::Extents { ino, from: 0, limit: 10 })).is_ok());

    let effects = world.send(&mut a, unlink(ROOT, "f"));
    let told = pushes(&effects, &b);
    assert!(told.iter().any(|(_, push)| *push == Push::LastNameGone(ino)), "{told:?}");
    world.send(&mut b, Op::Session(SessionOp::Confirm { pushes: told.iter().map(|(n, _)| *n).collect() }));
    assert_eq!(world.getattr(&mut b, ino).nlink, 0);
    assert_eq!(world.call(&mut b, link(ino, ROOT, "back")), Err(Refusal::NotFound));

    world.send(&mut a, Op::Session(SessionOp::Release { inos: vec![ino] }));
    assert_eq!(world.getattr(&mut b, ino).nlink, 0);
    world.send(&mut b, Op::Session(SessionOp::Close));
    assert_eq!(world.call(&mut a, Op::View(View::Getattr { ino })), Err(Refusal::Stale));
}

#[test]
fn a_successor_has_open_what_its_predecessor_had() {
    let mut world = World::new();
    let (mut a, other) = (world.open(1), world.open(9));
    let (kept, gone) = (world.mkfile(&mut a, ROOT, "kept"), world.mkfile(&mut a, ROOT, "gone"));
    world.call_with(&mut a, write(gone, 0, 10, 10), &[1; 10]).unwrap();
    assert!(world.call(&mut a, unlink(ROOT, "gone")).is_ok());

    // Replaced while it lives: it is told again of the file without a name.
    let ticket = world.ticket(2);
    let open = world.sealed_open(&ticket, &[a.id]);
    let effects = world.effects(&open);
    let mut b = Client { id: ticket.session, namespace: ticket.namespace, key: ticket.key, number: 0, last: open };
    assert_eq!(pushes(&effects, &b), vec![(PushNo(1), Push::LastNameGone(gone))]);
    assert_eq!(world.getattr(&mut b, gone).size, 10);
    world.restart();
    world.send(&mut b, Op::Session(SessionOp::Release { inos: vec![gone] }));
    assert_eq!(world.call(&mut b, Op::View(View::Getattr { ino: gone })), Err(Refusal::Stale));

    // Replaced when it has expired: what still has a name is open again.
    world.pass_ms(61_000);
    let mut c = world.open_ticket(&world.ticket(3), &[b.id]);
    let mut other = world.open_ticket(&world.ticket(10), &[other.id]);
    let effects = world.send(&mut other, unlink(ROOT, "kept"));
    assert_eq!(pushes(&effects, &c), vec![(PushNo(1), Push::LastNameGone(kept))]);
    assert_eq!(world.getattr(&mut c, kept).nlink, 0);
    world.assert_replayable();
}

#[test]
fn an_expired_session_frees_what_it_had_open() {
    let mut world = World::new();
    let mut a = world.open(1);
    let ino = world.mkfile(&mut a, ROOT, "f");
    world.call_with(&mut a, write(ino, 0, 10, 10), &[1; 10]).unwrap();
    assert!(world.call(&mut a, unlink(ROOT, "f")).is_ok());
    assert_eq!(world.getattr(&mut a, ino).size, 10);

    world.pass_ms(61_000);
    let mut b = world.open(2);
    assert_eq!(world.call(&mut b, Op::View(View::Getattr { ino })), Err(Refusal::Stale));
    let Ok(Outcome::Statfs { bytes_used, inodes_used, .. }) = world.call(&mut b, Op::View(View::Statfs)) else {
        panic!()
    };
    assert_eq!((bytes_used, inodes_used), (0, 1));
}
