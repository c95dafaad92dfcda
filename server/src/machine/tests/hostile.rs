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
        assert!(matches!(world.apply(&Bytes::from(bad)), Applied::Skipped(_)), "byte {at}");
        assert!(matches!(world.apply(&good.slice(..at)), Applied::Skipped(_)), "cut at {at}");
    }
    let thief = Client { key: Key::from_bytes([66; 32]), ..c.clone() };
    let forged = world.sealed(&thief, 2, create(ROOT, "g", FileKind::File), &[]);
    assert!(matches!(world.apply(&forged), Applied::Skipped(_)));
    let stranger = Client { id: SessionId([99; 16]), ..c.clone() };
    let unknown = world.sealed(&stranger, 1, create(ROOT, "g", FileKind::File), &[]);
    assert!(matches!(world.apply(&unknown), Applied::Skipped(_)));
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
    assert!(matches!(machine.apply(&mut kv, 0, 0, &tick), Ok(Applied::Skipped(_))));
    assert!(kv.rows.is_empty());
    assert!(!machine.needs_ticks());
}

#[test]
fn an_authentic_record_that_cannot_be_understood_stops_the_server() {
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
        prop_assert!(matches!(applied, Ok(Applied::Skipped(_))));
    }
}
