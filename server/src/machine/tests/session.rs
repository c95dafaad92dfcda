//! Sessions: admission, remembered results, opening once, replacing.

use super::*;

#[test]
fn numbers_are_admitted_in_order_and_once() {
    let mut world = World::new();
    let mut c = world.open(1);
    let first = world.sealed(&c, 1, create(ROOT, "a", FileKind::File), &[]);
    let second = world.sealed(&c, 2, create(ROOT, "b", FileKind::File), &[]);

    let gap = world.effects(&second);
    assert_eq!(answers(&gap, c.id)[0].1.result, Ok(Outcome::Gap { expected: RequestNo(1) }));
    let done = answers(&world.effects(&first), c.id).remove(0);
    assert!(done.1.result.is_ok());
    assert_eq!(answers(&world.effects(&first), c.id), [done]);
    assert!(answers(&world.effects(&second), c.id)[0].1.result.is_ok());

    let other = world.sealed(&c, 2, create(ROOT, "c", FileKind::File), &[]);
    assert_eq!(answers(&world.effects(&other), c.id)[0].1.result, Err(Refusal::NumberReused));
    c.number = 2;
    assert_eq!(world.call(&mut c, lookup(ROOT, "c")), Err(Refusal::NotFound));
}

#[test]
fn what_has_been_acknowledged_is_forgotten() {
    let mut world = World::new();
    let mut c = world.open(1);
    world.mkfile(&mut c, ROOT, "a");
    let old = c.last.clone();
    let head = Head { kind: Kind::Request, namespace: NAMESPACE, epoch: world.epoch, sender: c.id.0, number: 2 };
    let acked = Acked { floor: RequestNo(1), also: vec![] };
    let request = Request { acked, time: Time::default(), op: Op::Session(SessionOp::Renew), local: false };
    let record = seal(&c.key, &head, &to_server(), &request, &[]).unwrap().record;
    world.effects(&record);
    assert!(world.effects(&old).is_empty());
}

#[test]
fn an_open_is_valid_once_and_in_time() {
    let mut world = World::new();
    let ticket = world.ticket(1);
    let record = world.sealed_open(&ticket, &[]);
    let first = answers(&world.effects(&record), ticket.session);
    assert_eq!(answers(&world.effects(&record), ticket.session), first);
    let again = world.sealed_open(&ticket, &[]);
    assert!(world.apply(&again).skipped.is_some());

    world.pass_ms(60_500);
    // Expired, and remembered as such.
    assert!(matches!(world.effects(&record)[..], [Effect::SessionEnded { .. }]));
    world.pass_ms(61_000);
    assert!(!world.machine.needs_ticks());
    // Forgotten, but the ticket is too old by now.
    assert!(matches!(world.effects(&record)[..], [Effect::SessionEnded { .. }]));
}

#[test]
fn tickets_fit_one_place() {
    let mut world = World::new();
    let good = world.ticket(1);
    let wrong = [
        Ticket { partition: 5, ..good.clone() },
        Ticket { epoch: Epoch(7), ..good.clone() },
        Ticket { namespace: NamespaceId(0), ..good.clone() },
    ];
    for ticket in wrong {
        let record = world.sealed_open(&ticket, &[]);
        assert!(world.apply(&record).skipped.is_some());
    }
    assert!(!world.machine.needs_ticks());
}

#[test]
fn a_session_lives_as_long_as_it_speaks() {
    let mut world = World::new();
    let mut c = world.open(1);
    for _ in 0..3 {
        world.pass_ms(50_000);
        assert!(world.call(&mut c, Op::Session(SessionOp::Renew)).is_ok());
    }
    let over = world.pass_ms(60_500);
    assert!(over.iter().any(|effect| matches!(effect, Effect::SessionOver { session } if *session == c.id)));
    let effects = world.send(&mut c, Op::Session(SessionOp::Renew));
    assert!(matches!(effects[..], [Effect::SessionEnded { session, .. }] if session == c.id));
}

#[test]
fn a_successor_learns_what_was_applied() {
    let mut world = World::new();
    let mut c = world.open(1);
    world.mkfile(&mut c, ROOT, "a");
    assert_eq!(world.call(&mut c, create(ROOT, "a", FileKind::File)), Err(Refusal::Exists));
    let unknown = SessionId([77; 16]);
    let ticket = world.ticket(2);
    let record = world.sealed_open(&ticket, &[c.id, unknown]);
    let answer = answers(&world.effects(&record), ticket.session).remove(0).1;
    let Ok(Outcome::Opened { ended, .. }) = answer.result else { panic!() };
    assert_eq!((ended[0].known, ended[0].last), (true, RequestNo(2)));
    let results: Vec<bool> = ended[0].results.iter().map(|(_, answer)| answer.result.is_ok()).collect();
    assert_eq!(results, [true, false]);
    assert!(!ended[1].known);
    let effects = world.send(&mut c, Op::Session(SessionOp::Renew));
    assert!(matches!(effects[..], [Effect::SessionEnded { .. }]));

    // Another user's sessions are nobody's predecessors.
    let stranger = Ticket { user: UserName::new("mallory").unwrap(), ..world.ticket(3) };
    let record = world.sealed_open(&stranger, &[c.id, ticket.session]);
    let answer = answers(&world.effects(&record), stranger.session).remove(0).1;
    let Ok(Outcome::Opened { ended, .. }) = answer.result else { panic!() };
    assert!(ended.iter().all(|ended| !ended.known));

    // Until forgotten, it can be asked again.
    let mut second = Client { id: ticket.session, number: 0, key: ticket.key.clone(), ..c.clone() };
    assert!(world.call(&mut second, Op::Session(SessionOp::Forget { ended: vec![c.id] })).is_ok());
    let third = world.ticket(4);
    let record = world.sealed_open(&third, &[c.id]);
    let answer = answers(&world.effects(&record), third.session).remove(0).1;
    let Ok(Outcome::Opened { ended, .. }) = answer.result else { panic!() };
    assert!(!ended[0].known);
}

#[test]
fn close_is_answered_and_final() {
    let mut world = World::new();
    let mut c = world.open(1);
    let effects = world.send(&mut c, Op::Session(SessionOp::Close));
    assert_eq!(answer_of(&effects, &c).unwrap().result, Ok(Outcome::Done));
    assert!(matches!(effects.last(), Some(Effect::SessionOver { .. })));
    assert_eq!(world.machine.sessions().count(), 0);
}

#[test]
fn log_time_is_moved_by_ticks_within_bounds() {
    let mut world = World::new();
    world.open(1);
    let start = world.machine.log_time();
    world.tick(500);
    assert_eq!(world.machine.log_time(), start.plus_ms(500));
    world.tick(60_000);
    assert_eq!(world.machine.log_time(), start.plus_ms(2_500));
    // A server's clock that runs ahead of the broker's is not believed.
    world.append_ms += 100;
    world.server_record(ServerRecord::Tick { elapsed_ms: 2_000 });
    assert_eq!(world.machine.log_time(), start.plus_ms(2_600));
    // A broker's clock set back stops time and no more.
    world.append_ms -= 10_000;
    world.server_record(ServerRecord::Tick { elapsed_ms: 2_000 });
    assert_eq!(world.machine.log_time(), start.plus_ms(2_600));
}

#[test]
fn a_new_incarnation_ends_the_one_before() {
    let mut world = World::new();
    world.open(1);
    let late = world.sealed_server_record(ServerRecord::Tick { elapsed_ms: 500 });
    let opening = |world: &mut World| {
        world.incarnation = IncarnationId([50; 16]);
        world.server_number = 0;
        let server = world.server;
        world.sealed_server_record(ServerRecord::Incarnation { server, supports: 1 })
    };
    let record = opening(&mut world);
    world.effects(&record);
    world.append_ms += 1000;
    assert!(world.apply(&late).skipped.is_some());
    assert!(world.apply(&record).skipped.is_some());
    let start = world.machine.log_time();
    world.tick(500);
    assert_eq!(world.machine.log_time(), start, "the first tick of an incarnation moves nothing");
    world.tick(500);
    assert_eq!(world.machine.log_time(), start.plus_ms(500));
}

#[test]
fn an_epoch_ends_every_session() {
    let mut world = World::new();
    let mut c = world.open(1);
    let before = world.mkfile(&mut c, ROOT, "a");
    let old = world.sealed(&c, 2, lookup(ROOT, "a"), &[]);
    world.begin_epoch(2);
    assert_eq!(world.apply(&old).skipped, Some("of another epoch"));
    world.after_grace();
    let mut d = world.open(2);
    assert!(world.call(&mut d, lookup(ROOT, "a")).is_ok());
    assert_eq!(world.machine.epoch(), Epoch(2));

    // Inodes that were made after the state from which it began keep their numbers for themselves.
    let after = world.mkfile(&mut d, ROOT, "b");
    assert!(after.0 - before.0 > 1 << 20, "{before:?} {after:?}");
    assert_eq!(world.mkfile(&mut d, ROOT, "c").0, after.0 + 1);
}

/// Nobody hears of an epoch at once: who has been promised to hear of changes relies on that for a lease.
#[test]
fn no_session_is_open_before_those_of_the_epoch_before_have_lapsed() {
    let mut world = World::new();
    let c = world.open(1);
    world.begin_epoch(2);
    world.tick(0);
    let ticket = world.ticket(2);
    let open = world.sealed_open(&ticket, &[c.id]);
    assert!(answers(&world.effects(&open), ticket.session).is_empty());
    assert!(world.machine.needs_ticks());
    let early = world.pass_ms(LEASE_MS - 500);
    assert!(answers(&early, ticket.session).is_empty());
    assert!(answers(&world.effects(&open), ticket.session).is_empty(), "it is asked for again");
    let in_time = world.pass_ms(500);
    assert_eq!(answers(&in_time, ticket.session).len(), 1);
    assert!(!answers(&world.effects(&open), ticket.session).is_empty(), "it is told again from here on");
    // From then on it takes no longer than ever.
    world.open(3);
    world.assert_replayable();
}

/// What others have not confirmed when an epoch begins they never will.
#[test]
fn an_answer_that_waits_for_others_does_not_leave_when_an_epoch_begins() {
    for ids in [[1, 2], [2, 1]] {
        let mut world = World::new();
        let [mut holder, mut c] = ids.map(|id| world.open(id));
        assert!(world.call(&mut holder, lookup(ROOT, "a")).is_err());
        c.number = 1;
        let change = world.sealed(&c, 1, create(ROOT, "a", FileKind::File), &[]);
        assert!(answers(&world.effects(&change), c.id).is_empty(), "the holder is told first");
        assert!(answers(&world.begin_epoch(2), c.id).is_empty());
        let ticket = world.ticket(3);
        let open = world.sealed_open(&ticket, &[c.id]);
        world.effects(&open);
        let told = [world.tick(0), world.pass_ms(LEASE_MS)].concat();
        let (_, opened) = answers(&told, ticket.session).remove(0);
        let Ok(Outcome::Opened { ended, .. }) = opened.result else { panic!("{opened:?}") };
        assert!(ended[0].results[0].1.result.is_ok(), "the change took effect");
        world.assert_replayable();
    }
}

/// The state may lack sessions, unless the log ends with its server.
#[test]
fn only_a_volatile_log_that_had_no_sessions_begins_an_epoch_without_waiting() {
    for volatile in [false, true] {
        let mut world = World::new();
        let (server, from) = (world.server, None);
        world.epoch = Epoch(2);
        (world.incarnation, world.server_number) = (IncarnationId([2; 16]), 0);
        world.server_record(ServerRecord::Epoch { server, supports: 1, append_time: true, volatile, from });
        let ticket = world.ticket(1);
        let open = world.sealed_open(&ticket, &[]);
        assert_eq!(answers(&world.effects(&open), ticket.session).is_empty(), !volatile);
    }
}
