//! Promises: pushes, confirmations, held answers, leases.

use super::super::rows::Turn;
use super::*;

fn confirm(pushes: &[u64]) -> Op {
    Op::Session(SessionOp::Confirm { pushes: pushes.iter().map(|n| PushNo(*n)).collect() })
}

/// Two sessions, and a file that the second has looked up.
fn watched() -> (World, Client, Client, Ino) {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    let ino = world.mkfile(&mut a, ROOT, "f");
    assert_eq!(world.entry(&mut b, lookup(ROOT, "f")).ino, ino);
    (world, a, b, ino)
}

#[test]
fn a_change_is_not_answered_before_others_have_heard() {
    let (mut world, mut a, mut b, ino) = watched();
    let effects = world.send(&mut a, create(ROOT, "g", FileKind::File));
    assert_eq!(pushes(&effects, &b), [(PushNo(1), Push::Invalidate(vec![Promise::Dir(ROOT)]))]);
    assert!(answer_of(&effects, &a).is_none());
    // A repeat of the request brings no answer forth either.
    let again = a.last.clone();
    assert!(answer_of(&world.effects(&again), &a).is_none());
    // A third session sees nothing of it, an unrelated answer is not held.
    let mut c = world.open_ticket_held(3);
    assert!(answer_of(&world.send(&mut c, lookup(ROOT, "g")), &c).is_none());
    assert!(answer_of(&world.send(&mut c, Op::View(View::Statfs)), &c).is_some());
    // The addressee itself may ask.
    assert!(answer_of(&world.send(&mut b, Op::View(View::Getattr { ino })), &b).is_some());

    let effects = world.send(&mut b, confirm(&[1]));
    assert_eq!(answers(&effects, a.id).len(), 1);
    let to_c: Vec<u64> = answers(&effects, c.id).iter().map(|(number, _)| number.0).collect();
    assert_eq!(to_c, [0, 1]);
    assert_eq!(answers(&world.effects(&again), a.id).len(), 1);
}

impl World {
    /// Opens a session whose answer is held.
    fn open_ticket_held(&mut self, id: u8) -> Client {
        let ticket = self.ticket(id);
        let last = self.sealed_open(&ticket, &[]);
        assert!(answers(&self.effects(&last), ticket.session).is_empty());
        Client { id: ticket.session, namespace: ticket.namespace, key: ticket.key, number: 0, last }
    }
}

#[test]
fn a_deaf_session_delays_others_by_its_lease_and_no_more() {
    let (mut world, mut a, mut b, _) = watched();
    world.pass_ms(4_000);
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    // Sending on renews nothing of what the push concerns.
    world.send(&mut b, Op::Session(SessionOp::Renew));
    let effects = world.pass_ms(5_500);
    assert!(answers(&effects, a.id).is_empty());
    assert!(!pushes(&effects, &b).is_empty(), "sent again");
    let effects = world.pass_ms(500);
    assert_eq!(answers(&effects, a.id).len(), 1);
}

#[test]
fn a_session_that_ends_delays_nobody() {
    let (mut world, mut a, mut b, _) = watched();
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    let effects = world.send(&mut b, Op::Session(SessionOp::Close));
    assert_eq!(answers(&effects, a.id).len(), 1);
}

#[test]
fn lapsed_promises_cost_nobody_a_push() {
    let (mut world, mut a, b, _) = watched();
    world.pass_ms(10_000);
    let effects = world.send(&mut a, create(ROOT, "g", FileKind::File));
    assert!(pushes(&effects, &b).is_empty());
    assert!(answer_of(&effects, &a).is_some());
}

#[test]
fn what_covers_an_inode_may_change_with_it() {
    let (mut world, mut a, mut b, ino) = watched();
    let mut c = world.open(3);
    let effects = world.send(&mut a, link(ino, ROOT, "g"));
    assert_eq!(pushes(&effects, &b).len(), 1);
    // The inode is now covered by itself; b still believes what the directory covered.
    assert!(answer_of(&world.send(&mut c, Op::View(View::Getattr { ino })), &c).is_none());
    let effects = world.send(&mut b, confirm(&[1]));
    assert_eq!(entry(answer_of(&effects, &c).unwrap().result).nlink, 2);
}

#[test]
fn no_promise_while_a_push_about_it_is_unconfirmed() {
    let (mut world, mut a, mut b, ino) = watched();
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    let effects = world.send(&mut b, lookup(ROOT, "f"));
    let answer = answer_of(&effects, &b).unwrap();
    assert!(!answer.granted.contains(&Promise::Dir(ROOT)));
    assert_eq!(answer.pushed, PushNo(1));
    world.send(&mut b, confirm(&[1]));
    let answer = answer_of(&world.send(&mut b, Op::View(View::Getattr { ino })), &b).unwrap();
    assert_eq!(answer.granted, [Promise::Dir(ROOT)]);
}

#[test]
fn lost_pushes_are_repeated_when_asked_for() {
    let (mut world, mut a, mut b, _) = watched();
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    let effects = world.send(&mut b, Op::Session(SessionOp::Repeat { from: PushNo(1) }));
    assert_eq!(pushes(&effects, &b).len(), 1);
    let effects = world.send(&mut b, Op::Session(SessionOp::Repeat { from: PushNo(2) }));
    assert_eq!(pushes(&effects, &b).len(), 0);
}

#[test]
fn who_never_confirms_gets_no_promises_for_a_while() {
    let (mut world, mut a, mut b, ino) = watched();
    for i in 0..3 {
        let effects = world.send(&mut a, create(ROOT, &format!("g{i}"), FileKind::File));
        assert_eq!(pushes(&effects, &b).len(), 1, "{i}");
        world.pass_ms(10_000);
        world.send(&mut b, confirm(&[i + 1]));
        let answer = answer_of(&world.send(&mut b, lookup(ROOT, "f")), &b).unwrap();
        assert_eq!(answer.granted.is_empty(), i == 2);
        world.send(&mut a, Op::Session(SessionOp::Renew));
    }
    for _ in 0..3 {
        world.pass_ms(25_000);
        world.send(&mut b, Op::Session(SessionOp::Renew));
    }
    let answer = answer_of(&world.send(&mut b, Op::View(View::Getattr { ino })), &b).unwrap();
    assert!(!answer.granted.is_empty());
}

#[test]
fn a_successor_s_answer_waits_for_what_its_predecessor_s_waited_for() {
    let (mut world, mut a, mut b, _) = watched();
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    let ticket = world.ticket(3);
    let record = world.sealed_open(&ticket, &[a.id]);
    assert!(answers(&world.effects(&record), ticket.session).is_empty());
    let effects = world.send(&mut b, confirm(&[1]));
    assert_eq!(answers(&effects, ticket.session).len(), 1);
    assert!(answers(&effects, a.id).is_empty());
}

#[test]
fn a_restart_forgets_no_promise_and_no_held_answer() {
    let (mut world, mut a, mut b, _) = watched();
    world.restart();
    world.send(&mut a, create(ROOT, "g", FileKind::File));
    world.restart();
    let effects = world.send(&mut b, confirm(&[1]));
    assert_eq!(answers(&effects, a.id).len(), 1);
    assert!(!world.machine.sessions().any(|peer| peer.session == SessionId([0; 16])));
}

#[test]
fn a_session_that_works_with_ever_new_things_is_told_of_old_ones_now_and_then() {
    let mut world = World::new();
    let b = world.open(2);
    let thing = |n: u64| Promise::Content(Ino::new(NAMESPACE, 1000 + n));
    let mut pushed = 0;
    for n in 0..68_000 {
        let mut turn = Turn::new(&mut world.kv, &[0; 32], Position::default(), world.machine.log_time());
        world.machine.grant(&mut turn, b.id, vec![thing(n)]);
        pushed += pushes(&turn.finish().1, &b).len();
    }
    // Each is a round trip, and a record of confirmation.
    assert_eq!(pushed, 3);
}

#[test]
fn the_oldest_of_too_many_promises_are_revoked() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    world.getattr(&mut b, ROOT);
    let many = (0..65_536).map(|n| Promise::Dir(Ino::new(NAMESPACE, 1000 + n))).collect();
    let mut turn = Turn::new(&mut world.kv, &[0; 32], Position::default(), world.machine.log_time());
    assert_eq!(world.machine.grant(&mut turn, b.id, many).len(), 65_536);
    let (_, effects) = turn.finish();
    let [(PushNo(1), Push::Invalidate(things))] = &pushes(&effects, &b)[..] else { panic!("one push: {effects:?}") };
    // With as many others as make it rare.
    assert_eq!((things[0], things.len()), (Promise::Dir(ROOT), 1_025));

    // Until it has confirmed, it relies on what was revoked.
    let effects = world.send(&mut a, create(ROOT, "g", FileKind::File));
    assert!(pushes(&effects, &b).is_empty() && answer_of(&effects, &a).is_none());
    let effects = world.send(&mut b, confirm(&[1]));
    assert!(answer_of(&effects, &a).is_some());
}
