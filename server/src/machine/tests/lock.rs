//! Locks: ranges as Linux has them, flock, waiting and waking, cancelling, deadlocks, and
//! what becomes of them when a session ends.

use super::audit::audit;
use super::*;
use LockMode::{Exclusive, Shared};
use proptest::prelude::*;
use proto::message::Activity;

const WHOLE: (u64, u64) = (0, LockRange::LAST);

fn owner(id: u64, kind: LockKind) -> LockOwner {
    LockOwner { id, kind }
}

fn process(id: u64) -> LockOwner {
    owner(id, LockKind::Process)
}

fn range((start, end): (u64, u64)) -> LockRange {
    LockRange { start, end }
}

fn lock(ino: Ino, owner: LockOwner, at: (u64, u64), mode: LockMode, wait: bool) -> Op {
    let lock = Lock { owner, pid: owner.id as u32 + 100, range: range(at), mode };
    Op::Lock(LockOp::Lock { ino, lock, wait })
}

fn unlock(ino: Ino, owner: LockOwner, at: (u64, u64)) -> Op {
    Op::Lock(LockOp::Unlock { ino, owner, range: range(at) })
}

fn cancel(number: u64) -> Op {
    Op::Session(SessionOp::Cancel { number: RequestNo(number) })
}

/// Outcomes of waiting requests that are pushed to a client, by their numbers.
fn outcomes(effects: &[Effect], client: &Client) -> Vec<(u64, Result<(), Refusal>)> {
    let outcome = |(_, push)| match push {
        Push::Outcome { number, result: Ok(Outcome::Locked(_)) } => Some((number.0, Ok(()))),
        Push::Outcome { number, result: Err(refusal) } => Some((number.0, Err(refusal))),
        _ => None,
    };
    pushes(effects, client).into_iter().filter_map(outcome).collect()
}

/// Two sessions, and a file.
fn two() -> (World, Client, Client, Ino) {
    let mut world = World::new();
    let (mut a, b) = (world.open(1), world.open(2));
    let ino = world.mkfile(&mut a, ROOT, "f");
    (world, a, b, ino)
}

impl World {
    fn tries(&mut self, client: &mut Client, op: Op) -> Result<(), Refusal> {
        match self.call(client, op)? {
            Outcome::Locked(_) | Outcome::Done => Ok(()),
            other => panic!("not about a lock: {other:?}"),
        }
    }

    /// A request that must wait; its number.
    fn waits(&mut self, client: &mut Client, op: Op) -> u64 {
        assert_eq!(self.call(client, op), Ok(Outcome::Waiting));
        client.number
    }
}

#[test]
fn ranges_conflict_where_they_overlap_and_one_is_exclusive() {
    let (mut world, mut a, mut b, ino) = two();
    let (p, q) = (process(1), process(1));
    assert_eq!(world.tries(&mut a, lock(ino, p, (10, 19), Exclusive, false)), Ok(()));
    for (at, mode, result) in [
        ((0, 9), Exclusive, Ok(())),
        ((20, LockRange::LAST), Exclusive, Ok(())),
        ((19, 19), Shared, Err(Refusal::WouldBlock)),
        ((0, 10), Exclusive, Err(Refusal::WouldBlock)),
        (WHOLE, Shared, Err(Refusal::WouldBlock)),
    ] {
        assert_eq!(world.tries(&mut b, lock(ino, q, at, mode, false)), result, "{at:?} {mode:?}");
    }
    // The middle is given up and taken by another.
    assert_eq!(world.tries(&mut a, unlock(ino, p, (13, 15))), Ok(()));
    assert_eq!(world.tries(&mut b, lock(ino, q, (13, 15), Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut b, lock(ino, q, (12, 12), Shared, false)), Err(Refusal::WouldBlock));
    assert_eq!(world.tries(&mut b, lock(ino, q, (16, 16), Shared, false)), Err(Refusal::WouldBlock));
    // Downgraded, so both may read.
    assert_eq!(world.tries(&mut a, lock(ino, p, (10, 19), Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut b, lock(ino, q, (12, 16), Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut a, lock(ino, p, (10, 19), Exclusive, false)), Err(Refusal::WouldBlock));
    audit(&world);
    world.assert_replayable();
}

#[test]
fn flocks_and_ranges_do_not_see_each_other_and_open_files_and_processes_do() {
    let (mut world, mut a, mut b, ino) = two();
    assert_eq!(world.tries(&mut a, lock(ino, owner(1, LockKind::Flock), WHOLE, Exclusive, false)), Ok(()));
    assert_eq!(world.tries(&mut b, lock(ino, process(1), WHOLE, Exclusive, false)), Ok(()));
    let open_file = lock(ino, owner(1, LockKind::OpenFile), (5, 5), Shared, false);
    assert_eq!(world.tries(&mut b, open_file.clone()), Err(Refusal::WouldBlock));
    let other_flock = lock(ino, owner(1, LockKind::Flock), WHOLE, Shared, false);
    assert_eq!(world.tries(&mut b, other_flock), Err(Refusal::WouldBlock));
    let part = lock(ino, owner(1, LockKind::Flock), (0, 5), Shared, false);
    assert_eq!(world.tries(&mut b, part), Err(Refusal::Invalid));
    assert_eq!(world.tries(&mut b, lock(ino, process(1), (9, 5), Shared, false)), Err(Refusal::Invalid));

    // Where the kind is not known, everybody is held against it but its own process.
    assert_eq!(world.tries(&mut b, unlock(ino, process(1), WHOLE)), Ok(()));
    assert_eq!(world.tries(&mut a, unlock(ino, owner(1, LockKind::Flock), WHOLE)), Ok(()));
    let unknown = owner(1, LockKind::Unknown);
    assert_eq!(world.tries(&mut a, lock(ino, unknown, WHOLE, Exclusive, false)), Ok(()));
    assert_eq!(world.tries(&mut b, open_file), Err(Refusal::WouldBlock));
    let flock = lock(ino, owner(1, LockKind::Flock), WHOLE, Shared, false);
    assert_eq!(world.tries(&mut b, flock.clone()), Err(Refusal::WouldBlock));
    assert_eq!(world.tries(&mut a, flock), Ok(()), "of the same process");
}

#[test]
fn a_flock_that_is_converted_is_given_up_first() {
    let (mut world, mut a, mut b, ino) = two();
    let (one, other) = (owner(1, LockKind::Flock), owner(2, LockKind::Flock));
    assert_eq!(world.tries(&mut a, lock(ino, one, WHOLE, Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut b, lock(ino, other, WHOLE, Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut a, lock(ino, one, WHOLE, Exclusive, false)), Err(Refusal::WouldBlock));
    // It is lost, as in Linux: the other one is alone.
    assert_eq!(world.tries(&mut b, lock(ino, other, WHOLE, Exclusive, false)), Ok(()));
}

#[test]
fn who_waits_is_woken_in_the_order_of_coming() {
    let (mut world, mut a, mut b, ino) = two();
    let mut c = world.open(3);
    assert_eq!(world.tries(&mut a, lock(ino, process(1), WHOLE, Exclusive, true)), Ok(()));
    let first = world.waits(&mut b, lock(ino, process(1), (0, 9), Exclusive, true));
    let second = world.waits(&mut c, lock(ino, process(1), (5, 5), Exclusive, true));
    let third = world.waits(&mut c, lock(ino, process(2), (20, 29), Exclusive, true));
    // A repeat of a waiting request is answered as before.
    let again = c.last.clone();
    assert_eq!(answer_of(&world.effects(&again), &c).unwrap().result, Ok(Outcome::Waiting));
    world.restart();

    let effects = world.send(&mut a, unlock(ino, process(1), WHOLE));
    assert_eq!(outcomes(&effects, &b), [(first, Ok(()))]);
    assert_eq!(outcomes(&effects, &c), [(third, Ok(()))], "what does not conflict does not wait for it");
    audit(&world);
    let effects = world.send(&mut b, unlock(ino, process(1), WHOLE));
    assert_eq!(outcomes(&effects, &c), [(second, Ok(()))]);
    audit(&world);
    world.assert_replayable();
}

#[test]
fn an_outcome_is_told_until_it_is_confirmed() {
    let (mut world, mut a, mut b, ino) = two();
    world.tries(&mut a, lock(ino, process(1), WHOLE, Exclusive, true)).unwrap();
    let number = world.waits(&mut b, lock(ino, process(1), WHOLE, Exclusive, true));
    world.send(&mut a, unlock(ino, process(1), WHOLE));
    // Longer than any lease, and than other pushes are kept.
    for _ in 0..3 {
        assert_eq!(outcomes(&world.pass_ms(2_000), &b).first(), Some(&(number, Ok(()))));
        world.pass_ms(25_000);
        world.send(&mut b, Op::Session(SessionOp::Renew));
    }
    let told = pushes(&world.send(&mut b, Op::Session(SessionOp::Repeat { from: PushNo(1) })), &b);
    assert_eq!(told.len(), 1);
    world.send(&mut b, Op::Session(SessionOp::Confirm { pushes: vec![told[0].0] }));
    assert_eq!(outcomes(&world.pass_ms(5_000), &b), []);
}

#[test]
fn a_lock_is_told_of_when_others_have_heard_of_what_was_written_under_it() {
    let (mut world, mut a, mut b, ino) = two();
    let mut c = world.open(3);
    world.call(&mut c, Op::View(View::Extents { ino, from: 0, limit: 9 })).unwrap();
    world.tries(&mut a, lock(ino, process(1), WHOLE, Exclusive, true)).unwrap();
    let number = world.waits(&mut b, lock(ino, process(1), WHOLE, Exclusive, true));
    let effects = world.send_with(&mut a, write(ino, 0, 5, 5), &[1; 5]);
    let push = pushes(&effects, &c)[0].0;
    let effects = world.send(&mut a, Op::Session(SessionOp::Close));
    assert_eq!(outcomes(&effects, &b), [], "the third session still believes the old content");
    world.restart();
    let effects = world.send(&mut c, Op::Session(SessionOp::Confirm { pushes: vec![push] }));
    assert_eq!(outcomes(&effects, &b), [(number, Ok(()))]);
    world.assert_replayable();
}

#[test]
fn whoever_cancels_is_told_once_how_it_ended() {
    let (mut world, mut a, mut b, ino) = two();
    world.tries(&mut a, lock(ino, process(1), WHOLE, Exclusive, true)).unwrap();
    let number = world.waits(&mut b, lock(ino, process(1), WHOLE, Exclusive, true));
    let effects = world.send(&mut b, cancel(number));
    assert_eq!(outcomes(&effects, &b), [(number, Err(Refusal::Cancelled))]);
    assert_eq!(answer_of(&effects, &b).unwrap().result, Ok(Outcome::Done));
    let again = b.last.clone();
    assert_eq!(outcomes(&world.effects(&again), &b), []);
    // It does not stand in the way of others, nor get the lock.
    assert_eq!(outcomes(&world.send(&mut a, unlock(ino, process(1), WHOLE)), &b), []);
    assert_eq!(world.tries(&mut a, lock(ino, process(2), WHOLE, Exclusive, false)), Ok(()));
    // Too late: it has it.
    let number = world.waits(&mut b, lock(ino, process(1), WHOLE, Exclusive, true));
    assert_eq!(outcomes(&world.send(&mut a, unlock(ino, process(2), WHOLE)), &b), [(number, Ok(()))]);
    assert_eq!(outcomes(&world.send(&mut b, cancel(number)), &b), []);
    assert_eq!(world.tries(&mut a, lock(ino, process(2), WHOLE, Shared, false)), Err(Refusal::WouldBlock));
    audit(&world);
}

#[test]
fn a_circle_of_waiting_processes_is_refused() {
    let (mut world, mut a, mut b, ino) = two();
    let other = world.mkfile(&mut a, ROOT, "g");
    let (p, q, r) = (process(1), process(2), process(3));
    world.tries(&mut a, lock(ino, p, (0, 0), Exclusive, true)).unwrap();
    world.tries(&mut a, lock(ino, q, (1, 1), Exclusive, true)).unwrap();
    world.tries(&mut b, lock(other, r, (0, 0), Exclusive, true)).unwrap();
    let first = world.waits(&mut a, lock(ino, p, (1, 1), Exclusive, true));
    world.waits(&mut a, lock(other, q, (0, 0), Shared, true));
    // r waits for p, who waits for q, who waits for r: over two files and two mounts.
    assert_eq!(world.tries(&mut b, lock(ino, r, (0, 0), Exclusive, true)), Err(Refusal::Deadlock));
    assert_eq!(world.tries(&mut b, lock(ino, r, (0, 0), Exclusive, false)), Err(Refusal::WouldBlock));
    // Open files are not looked after, as in Linux.
    world.waits(&mut b, lock(ino, owner(3, LockKind::OpenFile), (0, 0), Exclusive, true));
    let effects = world.send(&mut b, unlock(other, r, WHOLE));
    assert_eq!(outcomes(&effects, &a).len(), 1);
    assert_eq!(outcomes(&world.send(&mut a, unlock(ino, q, (1, 1))), &a), [(first, Ok(()))]);
    audit(&world);
}

#[test]
fn a_lock_that_closes_a_circle_by_being_granted_ends_somebody_s_waiting() {
    let (mut world, mut a, mut b, ino) = two();
    let (p, q) = (process(1), process(2));
    world.tries(&mut a, lock(ino, p, (0, 0), Shared, true)).unwrap();
    world.tries(&mut b, lock(ino, q, (5, 5), Exclusive, true)).unwrap();
    // One of q's threads waits for p; another one of p's has to wait for q, which would be a circle.
    let waiting = world.waits(&mut b, lock(ino, q, (0, 0), Exclusive, true));
    assert_eq!(world.tries(&mut a, lock(ino, p, (5, 5), Exclusive, true)), Err(Refusal::Deadlock));
    // p waits for a third one, and q gets what p then waits for as well.
    let mut c = world.open(3);
    world.tries(&mut c, lock(ino, process(3), (9, 9), Exclusive, true)).unwrap();
    let stuck = world.waits(&mut a, lock(ino, p, (8, 9), Exclusive, true));
    let effects = world.send(&mut b, lock(ino, q, (8, 8), Exclusive, true));
    assert!(answer_of(&effects, &b).unwrap().result.is_ok());
    assert_eq!(outcomes(&effects, &a), [(stuck, Err(Refusal::Deadlock))]);
    assert_eq!(outcomes(&world.send(&mut a, unlock(ino, p, WHOLE)), &b), [(waiting, Ok(()))]);
    audit(&world);
}

#[test]
fn locks_and_waiters_end_with_their_session() {
    let (mut world, mut a, mut b, ino) = two();
    let mut c = world.open(3);
    world.tries(&mut a, lock(ino, process(1), WHOLE, Exclusive, true)).unwrap();
    let first = world.waits(&mut b, lock(ino, process(1), WHOLE, Exclusive, true));
    let second = world.waits(&mut c, lock(ino, process(1), WHOLE, Exclusive, true));
    // A successor has none of it.
    let ticket = world.ticket(4);
    let open = world.sealed_open(&ticket, &[a.id]);
    assert_eq!(outcomes(&world.effects(&open), &b), [(first, Ok(()))]);
    let mut d = Client { id: ticket.session, namespace: NAMESPACE, key: ticket.key, number: 0, last: open };
    assert_eq!(world.tries(&mut d, lock(ino, process(1), WHOLE, Shared, false)), Err(Refusal::WouldBlock));
    // One that is not heard of for a minute.
    world.pass_ms(40_000);
    for client in [&mut c, &mut d] {
        world.send(client, Op::Session(SessionOp::Renew));
    }
    assert_eq!(outcomes(&world.pass_ms(25_000), &c)[0], (second, Ok(())));
    world.send(&mut c, Op::Session(SessionOp::Close));
    assert_eq!(world.tries(&mut d, lock(ino, process(1), WHOLE, Exclusive, false)), Ok(()));
    audit(&world);

    world.begin_epoch(2);
    assert!(world.machine.live.locks.is_empty() && world.machine.live.parked.is_empty());
    audit(&world);
    world.assert_replayable();
}

#[test]
fn whoever_tests_a_lock_is_told_who_stands_in_its_way() {
    let (mut world, mut a, mut b, ino) = two();
    world.tries(&mut a, lock(ino, process(1), (10, 19), Exclusive, true)).unwrap();
    let test = |owner, at, mode| {
        let lock = Lock { owner, pid: 9, range: range(at), mode };
        Op::Lock(LockOp::Test { ino, lock })
    };
    let holder = |pid| LockHolder { range: range((10, 19)), mode: Exclusive, pid };
    assert_eq!(world.call(&mut a, test(process(2), WHOLE, Shared)), Ok(Outcome::Holder(Some(holder(101)))));
    assert_eq!(world.call(&mut b, test(process(2), WHOLE, Shared)), Ok(Outcome::Holder(Some(holder(0)))));
    assert_eq!(world.call(&mut a, test(process(1), WHOLE, Exclusive)), Ok(Outcome::Holder(None)));
    assert_eq!(world.call(&mut b, test(process(2), (20, 30), Exclusive)), Ok(Outcome::Holder(None)));
}

#[test]
fn there_are_only_so_many() {
    let (mut world, mut a, mut b, ino) = two();
    for n in 0..4096 {
        assert_eq!(world.tries(&mut a, lock(ino, process(1), (2 * n, 2 * n), Shared, false)), Ok(()));
    }
    assert_eq!(world.tries(&mut a, lock(ino, process(1), (9999, 9999), Shared, false)), Err(Refusal::NoLocks));
    // What makes it fewer, or no more, goes on.
    assert_eq!(world.tries(&mut a, lock(ino, process(1), (1, 1), Shared, false)), Ok(()));
    assert_eq!(world.tries(&mut a, unlock(ino, process(1), (1, 1))), Ok(()));
    assert_eq!(world.tries(&mut a, lock(ino, process(1), (0, 100), Exclusive, false)), Ok(()));
    for n in 0..50 {
        assert_eq!(world.tries(&mut a, lock(ino, process(1), (9000 + 2 * n, 9000 + 2 * n), Shared, false)), Ok(()));
    }
    assert_eq!(world.tries(&mut a, unlock(ino, process(1), (50, 50))), Err(Refusal::NoLocks), "one would become two");
    for _ in 0..256 {
        world.waits(&mut b, lock(ino, process(1), (0, 0), Exclusive, true));
    }
    assert_eq!(world.tries(&mut b, lock(ino, process(1), (0, 0), Exclusive, true)), Err(Refusal::NoLocks));
    audit(&world);
}

/// Every byte of a small file, each with its holders: nothing could be simpler.
#[derive(Default)]
struct Bytes16(Vec<[Option<LockMode>; 16]>);

#[derive(Clone, Debug)]
struct Step {
    who: usize,
    at: (u64, u64),
    mode: Option<LockMode>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = (0..16_u64, 0..16_u64).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let mode = prop_oneof![Just(None), Just(Some(Shared)), Just(Some(Exclusive))];
    let step = (0..3_usize, at, mode).prop_map(|(who, at, mode)| Step { who, at, mode });
    prop::collection::vec(step, 1..60)
}

impl Bytes16 {
    /// Whether the step can be done; if so it is.
    fn does(&mut self, step: &Step) -> bool {
        let bytes = step.at.0 as usize..=step.at.1 as usize;
        let others = self.0.iter().enumerate().filter(|(who, _)| *who != step.who);
        let in_the_way = others.flat_map(|(_, has)| &has[bytes.clone()]).any(|held| match (step.mode, held) {
            (None, _) | (_, None) => false,
            (Some(wants), Some(has)) => wants == Exclusive || *has == Exclusive,
        });
        if !in_the_way {
            self.0[step.who][bytes].fill(step.mode);
        }
        !in_the_way
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ranges_are_what_a_list_of_bytes_is(steps in steps()) {
        let (mut world, a, b, ino) = two();
        let mut clients = [a.clone(), a, b];
        let mut model = Bytes16(vec![[None; 16]; 3]);
        for step in steps {
            let of = process(step.who as u64);
            let op = match step.mode {
                Some(mode) => lock(ino, of, step.at, mode, false),
                None => unlock(ino, of, step.at),
            };
            // The first two are processes of one session.
            let client = &mut clients[step.who.max(1)];
            let done = world.tries(client, op);
            let expected = if model.does(&step) { Ok(()) } else { Err(Refusal::WouldBlock) };
            prop_assert_eq!(done, expected, "{:?}", step);
        }
        // As few as there can be: neighbours of one mode are one.
        let runs = model.0.iter().map(|has| (0..16).filter(|at| has[*at].is_some() && (*at == 0 || has[at - 1] != has[*at])).count());
        let held = world.machine.live.locks.get(&ino).map_or(0, |file| file.held().len());
        prop_assert_eq!(held, runs.sum::<usize>());
        audit(&world);
    }
}

#[test]
fn what_goes_on_is_counted() {
    let (mut world, mut a, mut b, ino) = two();
    for at in [(0, 9), (20, 29)] {
        world.tries(&mut a, lock(ino, process(1), at, Exclusive, false)).expect("free");
    }
    world.waits(&mut b, lock(ino, process(2), WHOLE, Exclusive, true));
    let busy = Activity { sessions: 2, locks: 2, waiting: 1, reserved_bytes: 0 };
    assert_eq!(world.machine.activity(), busy);
    world.restart();
    assert_eq!(world.machine.activity(), busy);
    world.call(&mut a, Op::Session(SessionOp::Close)).expect("closes");
    assert_eq!(world.machine.activity(), Activity { sessions: 1, locks: 1, waiting: 0, reserved_bytes: 0 });
}
