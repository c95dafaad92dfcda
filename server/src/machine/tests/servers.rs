//! Registered servers: heartbeats, deregistration, and epochs that begin from a state.

use super::super::effect::NotApplied;
use super::super::servers::Registered;
use super::*;
use proto::message::{Admin, AdminOutcome, AdminRequest, Heartbeat, Progress};

fn progress(partition: u32, checkpointed: u64, ingested: u64) -> Progress {
    Progress { partition, checkpointed, ingested, ..Progress::default() }
}

fn heartbeat(answers: bool, partitions: Vec<Progress>) -> ServerRecord {
    ServerRecord::Heartbeat(Heartbeat { answers, ends: false, partitions })
}

impl World {
    fn known(&self) -> Option<&Registered> {
        self.machine.servers().get(&self.server)
    }
}

#[test]
fn a_server_is_registered_from_its_first_heartbeat_until_it_is_deregistered() {
    let mut world = World::new();
    assert!(world.machine.servers().is_empty(), "an incarnation alone, as an administrator's, registers nothing");
    let effects = world.server_record(heartbeat(true, vec![progress(0, 5, 1), progress(3, 7, 0)]));
    let [Effect::Heartbeat { server, incarnation, answers: true, .. }] = effects[..] else { panic!("{effects:?}") };
    assert_eq!((server, incarnation), (world.server, world.incarnation));
    let first_ms = world.append_ms;
    assert_eq!(world.known().expect("registered").progressed_ms, first_ms);

    // What is not told of again stays; nothing on disk is no progress.
    world.append_ms += 1000;
    world.server_record(heartbeat(false, vec![progress(0, 5, 1)]));
    let known = world.known().expect("registered");
    assert!(!known.answers);
    assert_eq!((known.heard_ms, known.progressed_ms), (first_ms + 1000, first_ms));
    assert_eq!(known.progress.keys().copied().collect::<Vec<_>>(), [0, 3]);
    world.append_ms += 1000;
    world.server_record(heartbeat(false, vec![progress(0, 5, 2), progress(99, 1, 1)]));
    let known = world.known().expect("registered");
    assert_eq!((known.progressed_ms, known.progress.len()), (first_ms + 2000, 2));

    let request = AdminRequest { replies_partition: 2, admin: Admin::Servers };
    let effects = world.server_record(ServerRecord::Admin(request));
    let [Effect::Admin { answer, .. }] = &effects[..] else { panic!("{effects:?}") };
    let Ok(AdminOutcome::Servers { servers, now_ms, .. }) = &answer.result else { panic!("{answer:?}") };
    assert_eq!((servers.len(), *now_ms, servers[0].partitions.len()), (1, world.append_ms, 2));

    world.restart();
    let server = world.server;
    let effects = world.server_record(ServerRecord::Deregister { server });
    assert!(matches!(effects[..], [Effect::Deregistered { .. }]));
    assert!(world.server_record(ServerRecord::Deregister { server }).is_empty());
    assert!(world.known().is_none());
    world.server_record(heartbeat(true, Vec::new()));
    assert!(world.known().is_some(), "it comes back by itself");
    world.begin_epoch(2);
    assert!(world.known().is_none(), "its offsets were of the epoch before");
    world.assert_replayable();
}

/// As where a log was made anew and trimmed to the very offset that comes next here.
#[test]
fn a_server_record_of_an_epoch_that_has_not_begun_stops_the_server() {
    let mut world = World::new();
    world.epoch = Epoch(2);
    let record = world.sealed_server_record(ServerRecord::Tick { elapsed_ms: 1 });
    let (rows, dump) = (world.kv.clone(), world.machine.dump());
    let error = world.machine.apply(&mut world.kv, 99, 0, &record).expect_err("it must not go on");
    assert!(matches!(error, NotApplied::NotBegun { epoch: Epoch(2), .. }), "{error}");
    assert_eq!((world.kv, world.machine.dump()), (rows, dump));
}

#[test]
fn an_epoch_from_another_state_stops_the_server() {
    let mut world = World::new();
    world.epoch = Epoch(2);
    world.incarnation = IncarnationId([2; 16]);
    world.server_number = 0;
    let from = Some([1; 32]);
    let server = world.server;
    let record = ServerRecord::Epoch { server, supports: 1, append_time: true, volatile: false, from };
    let record = world.sealed_server_record(record);
    let (rows, dump) = (world.kv.clone(), world.machine.dump());
    let error = world.machine.apply(&mut world.kv, 99, 0, &record).expect_err("it must not go on");
    assert!(matches!(error, NotApplied::OtherState { .. }), "{error}");
    assert_eq!((world.kv, world.machine.dump()), (rows, dump));
}

/// The last record that was applied has been trimmed, so nothing shows whether the epoch began before it and stands here
/// only because it was sent twice.
#[test]
fn an_epoch_is_not_followed_where_the_log_is_not_known_to_go_on() {
    let mut world = World::new();
    let (from, server) = (Some(world.machine.state_hash()), world.server);
    let dump = world.machine.dump();
    let secrets = world.secrets.clone();
    let restored = || Machine::restore(0, secrets.clone(), &dump).expect("a dump");
    let unproven = || restored().on_unproven_log();
    let (proven, mut started, mut applied) = (restored(), unproven(), unproven());
    let tick = world.sealed_server_record(ServerRecord::Tick { elapsed_ms: 1 });
    (world.incarnation, world.server_number) = (IncarnationId([3; 16]), 0);
    let incarnation = world.sealed_server_record(ServerRecord::Incarnation { server, supports: 1 });
    (world.incarnation, world.epoch) = (IncarnationId([2; 16]), Epoch(2));
    let epoch = |world: &mut World, from| {
        world.server_number = 0;
        let record = ServerRecord::Epoch { server, supports: 1, append_time: true, volatile: false, from };
        world.sealed_server_record(record)
    };
    let record = epoch(&mut world, from);
    // Nor where the server that begins it says that its log is whole: it may be the second one that begins there.
    let another = epoch(&mut world, None);
    for record in [&record, &another] {
        let error = { unproven() }.apply(&mut world.kv.clone(), 99, 0, record).expect_err("it must not go on");
        assert!(matches!(error, NotApplied::Unproven { .. }), "{error}");
    }
    { proven }.apply(&mut world.kv.clone(), 99, 0, &record).expect("it goes on");
    // A server that has started by then, this one maybe, knows no more about it.
    let kv = &mut world.kv.clone();
    started.apply(kv, 99, 0, &incarnation).expect("a server that starts");
    let error = started.apply(kv, 100, 0, &another).expect_err("it must not go on");
    assert!(matches!(error, NotApplied::Unproven { .. }), "{error}");
    let kv = &mut world.kv.clone();
    applied.apply(kv, 99, 0, &tick).expect("one of the epoch");
    let record = epoch(&mut world, Some(applied.state_hash()));
    applied.apply(kv, 100, 0, &record).expect("what came before was of this log");
}
