//! Records that are foreign, damaged, replayed or not understood.

use super::*;
use proptest::prelude::*;

#[test]
fn foreign_and_damaged_records_are_skipped() {
    let mut world = World::new();
    let mut c = world.open(1);
    world.mkfile(&mut c, ROOT, "f");
    let good = world.sealed(&c, 2, create(ROOT, "g", FileKind::File), &[1, 2, 3]);
    let rows = world.kv.clone();
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x40;
        assert!(world.apply(&Bytes::from(bad)).skipped.is_some(), "byte {at}");
        assert!(world.apply(&good.slice(..at)).skipped.is_some(), "cut at {at}");
    }
    let thief = Client { key: Key::from_bytes([66; 32]), ..c.clone() };
    let forged = world.sealed(&thief, 2, create(ROOT, "g", FileKind::File), &[]);
    assert!(world.apply(&forged).skipped.is_some());
    let stranger = Client { id: SessionId([99; 16]), ..c.clone() };
    let unknown = world.sealed(&stranger, 1, create(ROOT, "g", FileKind::File), &[]);
    assert!(world.apply(&unknown).skipped.is_some());
    assert_eq!(world.kv, rows);
    assert!(answers(&world.effects(&good), c.id)[0].1.result.is_ok());
}

#[test]
fn nothing_counts_before_the_first_epoch() {
    let secrets = Arc::new(ClusterKey::generate());
    let mut machine = Machine::new(PARTITION, secrets);
    let mut kv = MemoryKv::default();
    let mut elsewhere = World::new();
    let tick = elsewhere.sealed_server_record(ServerRecord::Tick { elapsed_ms: 5 });
    assert!(machine.apply(&mut kv, 0, 0, &tick).is_ok_and(|applied| applied.skipped.is_some()));
    assert!(kv.rows.is_empty());
    assert!(!machine.needs_ticks());
}

#[test]
fn what_a_client_sealed_and_nobody_understands_is_refused_at_its_number() {
    let mut world = World::new();
    let refused = |effects: &[Effect], id: SessionId| {
        let answers = answers(effects, id);
        answers.len() == 1 && answers[0].1.result == Err(Refusal::NotUnderstood)
    };
    let ticket = world.ticket(1);
    let sealed = seal_ticket(&world.secrets, &ticket).unwrap();
    let head = Head { kind: Kind::Open, namespace: NAMESPACE, epoch: world.epoch, sender: ticket.session.0, number: 0 };
    let record = seal(&ticket.key, &head, &to_server(), &"from the future", &sealed).unwrap().record;
    assert!(refused(&world.effects(&record), ticket.session));
    assert_eq!(world.machine.sessions().count(), 0);

    let mut c = world.open_ticket(&ticket, &[]);
    let strange = |number| {
        let head = Head { kind: Kind::Request, number, ..head };
        seal(&ticket.key, &head, &to_server(), &"from the future", &[1, 2]).unwrap().record
    };
    let ahead = world.effects(&strange(2));
    assert_eq!(answers(&ahead, c.id)[0].1.result, Ok(Outcome::Gap { expected: RequestNo(1) }));
    let (first, rows) = (strange(1), world.kv.clone());
    assert!(refused(&world.effects(&first), c.id));
    assert!(refused(&world.effects(&first), c.id));
    assert_eq!(answers(&world.effects(&strange(1)), c.id)[0].1.result, Err(Refusal::NumberReused));
    assert_eq!(world.kv, rows);

    // The session goes on behind it, and its successor learns what became of it.
    c.number = 1;
    world.mkfile(&mut c, ROOT, "f");
    let successor = world.ticket(2);
    let record = world.sealed_open(&successor, &[c.id]);
    let Ok(Outcome::Opened { ended, .. }) = answers(&world.effects(&record), successor.session).remove(0).1.result
    else {
        panic!()
    };
    assert_eq!(ended[0].results[0].1.result, Err(Refusal::NotUnderstood));
    assert!(matches!(world.effects(&strange(3))[..], [Effect::SessionEnded { .. }]));
    world.assert_replayable();
}

#[test]
fn what_a_server_sealed_and_this_one_does_not_understand_stops_it() {
    let mut world = World::new();
    let record = world.sealed_server_record(ServerRecord::Version { version: 1000 });
    assert!(world.machine.apply(&mut world.kv, 99, 0, &record).is_err());
    let head = Head {
        kind: Kind::Server,
        namespace: NamespaceId(0),
        epoch: world.epoch,
        sender: world.incarnation.0,
        number: 50,
    };
    let context = Context { direction: Direction::ServerToLog, ..to_server() };
    let key = world.secrets.server_key(world.epoch);
    let record = seal(&key, &head, &context, &"from the future", &[]).unwrap().record;
    assert!(world.machine.apply(&mut world.kv, 99, 0, &record).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut machine = Machine::new(PARTITION, Arc::new(ClusterKey::generate()));
        let applied = machine.apply(&mut MemoryKv::default(), 0, 0, &Bytes::from(bytes));
        prop_assert!(applied.is_ok_and(|applied| applied.skipped.is_some()));
    }
}
