//! Quotas: what may be written and made, and what is reserved.

use super::*;
use crate::limits::{Limits, limits, set_limits};
use proto::message::{Quota, Resource};

fn set(world: &mut World, bytes: Option<u64>, inodes: Option<u64>) -> Vec<Effect> {
    let decision = Position { epoch: Epoch(1), partition: 0, offset: world.log.len() as u64, index: 0 };
    let quota = Quota { bytes, inodes };
    world.server_record(ServerRecord::Quota { namespace: NAMESPACE, quota, decision })
}

fn reserve(keep: u64, need: u64) -> Op {
    Op::Session(SessionOp::Reserve { of: Resource::Bytes, keep, need, extra: 0, part: false })
}

fn reserved(result: Result<Outcome, Refusal>) -> (u64, bool) {
    match result {
        Ok(Outcome::Reserved { amount, more }) => (amount, more),
        other => panic!("not reserved: {other:?}"),
    }
}

fn put(ino: Ino, offset: u64, len: u32, reserved: bool) -> Op {
    match write(ino, offset, len, 4) {
        Op::Upload(Upload::Write { ino, at, pieces, .. }) => Op::Upload(Upload::Write { ino, at, pieces, reserved }),
        other => other,
    }
}

fn used(world: &mut World, client: &mut Client) -> (u64, u64) {
    match world.call(client, Op::View(View::Statfs)) {
        Ok(Outcome::Statfs { bytes_total, bytes_used, .. }) => (bytes_total, bytes_used),
        other => panic!("{other:?}"),
    }
}

/// A world with a quota of so many bytes, and a session that knows of it.
fn limited(bytes: u64) -> (World, Client) {
    let mut world = World::new();
    set(&mut world, Some(bytes), None);
    let client = world.open(1);
    (world, client)
}

#[test]
fn what_is_not_reserved_is_refused_when_it_does_not_fit() {
    let (mut world, mut a) = limited(100);
    let file = world.mkfile(&mut a, ROOT, "a");
    world.call_with(&mut a, put(file, 0, 60, false), b"abcd").expect("fits");
    assert_eq!(world.call_with(&mut a, put(file, 60, 41, false), b"abcd"), Err(Refusal::QuotaExceeded));
    assert_eq!(used(&mut world, &mut a), (100, 60));
    world.call_with(&mut a, put(file, 40, 60, false), b"abcd").expect("adds 40 only");
    world.call_with(&mut a, put(file, 0, 100, false), b"abcd").expect("adds nothing");
    assert_eq!(world.call_with(&mut a, put(file, 1, 100, false), b"abcd"), Err(Refusal::QuotaExceeded));
    world.entry(&mut a, truncate(file, 10));
    assert_eq!(used(&mut world, &mut a), (100, 10), "what is cut off is free at once");
    world.assert_replayable();
}

#[test]
fn what_is_reserved_is_nobody_elses_and_is_used_up_by_its_write() {
    let (mut world, mut a) = limited(100);
    let mut b = world.open(2);
    let file = world.mkfile(&mut a, ROOT, "a");
    assert_eq!(reserved(world.call(&mut a, reserve(0, 70))), (70, false));
    assert_eq!(used(&mut world, &mut b), (100, 70));
    assert_eq!(world.call_with(&mut b, put(file, 0, 31, false), b"abcd"), Err(Refusal::QuotaExceeded));
    assert_eq!(reserved(world.call(&mut b, reserve(0, 30))), (30, false));
    assert_eq!(world.machine.activity().reserved_bytes, 100);

    world.call_with(&mut a, put(file, 0, 70, true), b"abcd").expect("was reserved");
    assert_eq!(used(&mut world, &mut a), (100, 100));
    assert_eq!(world.machine.activity().reserved_bytes, 30);
    assert_eq!(world.call_with(&mut a, put(file, 70, 1, true), b"abcd"), Err(Refusal::QuotaExceeded));
    // Over what is there: the room that it does not need is free.
    world.send_with(&mut b, put(file, 10, 30, true), b"abcd");
    assert_eq!(used(&mut world, &mut a), (100, 70));
    world.restart();
    assert_eq!(used(&mut world, &mut a), (100, 70));
    world.assert_replayable();
    super::audit::audit(&world);
}

#[test]
fn a_session_gives_back_what_it_does_not_keep_and_is_asked_to_when_others_need_it() {
    let (mut world, mut a) = limited(100);
    let mut b = world.open(2);
    assert_eq!(reserved(world.call(&mut a, reserve(0, 90))), (90, false));
    let effects = world.send(&mut b, reserve(0, 20));
    assert_eq!(reserved(answer_of(&effects, &b).expect("answered").result), (0, true));
    assert_eq!(pushes(&effects, &a), [(PushNo(1), Push::GiveBack(Resource::Bytes))]);
    let again = world.send(&mut b, reserve(0, 20));
    assert_eq!(pushes(&again, &a), [], "asked once as long as it has not confirmed");
    world.call(&mut a, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1)] })).expect("confirms");
    assert_eq!(reserved(world.call(&mut a, reserve(50, 0))), (0, false));
    assert_eq!(reserved(world.call(&mut b, reserve(0, 20))), (20, false));
    // Whoever takes less gets what there is.
    let part = Op::Session(SessionOp::Reserve { of: Resource::Bytes, keep: 20, need: 100, extra: 0, part: true });
    assert_eq!(reserved(world.call(&mut b, part)), (30, true));
    assert_eq!(used(&mut world, &mut a), (100, 100));
}

#[test]
fn beside_what_it_needs_a_session_gets_a_small_share() {
    let (mut world, mut a) = limited(1000);
    let stream = Op::Session(SessionOp::Reserve { of: Resource::Bytes, keep: 0, need: 40, extra: 10_000, part: false });
    assert_eq!(reserved(world.call(&mut a, stream)), (100, false));
}

/// Whatever the log repeats, room is reserved once.
#[test]
fn room_is_reserved_once_however_often_it_is_asked() {
    let (mut world, mut a) = limited(100);
    let effects = world.send(&mut a, reserve(0, 40));
    let record = a.last.clone();
    let again = world.effects(&record);
    assert_eq!(answer_of(&effects, &a), answer_of(&again, &a));
    assert_eq!(used(&mut world, &mut a), (100, 40));
}

#[test]
fn a_closed_session_leaves_nothing_and_one_that_vanishes_leaves_its_successor_what_it_had() {
    let (mut world, mut a) = limited(100);
    let mut other = world.open(2);
    let file = world.mkfile(&mut a, ROOT, "a");
    world.call(&mut other, reserve(0, 30)).expect("fits");
    world.call(&mut other, Op::Session(SessionOp::Close)).expect("closes");
    world.call(&mut a, reserve(0, 60)).expect("fits");
    // It expires, and somebody else takes all that is left.
    world.pass_ms(61_000);
    let mut other = world.open(3);
    assert_eq!(used(&mut world, &mut other), (100, 60));
    assert_eq!(reserved(world.call(&mut other, reserve(0, 40))), (40, false));
    let mut successor = world.open_ticket(&world.ticket(4), &[a.id]);
    world.call_with(&mut successor, put(file, 0, 60, true), b"abcd").expect("was reserved by its predecessor");
    assert_eq!(used(&mut world, &mut other), (100, 100));
    world.restart();
    world.assert_replayable();
    super::audit::audit(&world);
}

#[test]
fn what_nobody_comes_back_for_is_free_when_uploads_are_swept() {
    set_limits(Limits { quote_ms: 90_000, ..limits() });
    let (mut world, mut a) = limited(100);
    world.call(&mut a, reserve(0, 60)).expect("fits");
    let mut other = world.open(2);
    for (ms, left) in [(50_000, 60), (50_000, 60), (52_000, 0)] {
        world.pass_ms(ms);
        assert_eq!(used(&mut world, &mut other), (100, left));
    }
}

#[test]
fn a_session_that_has_not_heard_of_the_quota_writes_freely_until_it_has() {
    let mut world = World::new();
    let mut a = world.open(1);
    let file = world.mkfile(&mut a, ROOT, "a");
    assert_eq!(reserved(world.call(&mut a, reserve(0, 1 << 40))), (1 << 40, false), "nothing is counted");
    let effects = set(&mut world, Some(100), None);
    assert_eq!(pushes(&effects, &a), [(PushNo(1), Push::Limited(Resource::Bytes))]);
    world.call_with(&mut a, put(file, 0, 90, true), b"abcd").expect("was written before");
    // 50 more lie in its buffer when it hears of it.
    assert_eq!(reserved(world.call(&mut a, reserve(50, 10))), (0, false));
    world.call_with(&mut a, put(file, 90, 50, true), b"abcd").expect("was written before");
    assert_eq!(world.call_with(&mut a, put(file, 140, 1, true), b"abcd"), Err(Refusal::QuotaExceeded));
    world.entry(&mut a, truncate(file, 0));
    assert_eq!(used(&mut world, &mut a), (100, 0));
    world.assert_replayable();
}

/// It vanished before it heard of the quota; what it wrote is in its journal.
#[test]
fn the_successor_of_a_session_that_has_not_heard_of_the_quota_writes_freely_too() {
    let mut world = World::new();
    let mut a = world.open(1);
    let file = world.mkfile(&mut a, ROOT, "a");
    world.pass_ms(61_000);
    set(&mut world, Some(100), None);
    let mut successor = world.open_ticket(&world.ticket(2), &[a.id]);
    world.call_with(&mut successor, put(file, 0, 300, true), b"abcd").expect("was written before");
    world.call(&mut successor, reserve(0, 0)).expect("heard of it");
    assert_eq!(world.call_with(&mut successor, put(file, 300, 1, true), b"abcd"), Err(Refusal::QuotaExceeded));
}

#[test]
fn a_quota_that_is_gone_counts_no_more_and_a_new_one_begins_afresh() {
    let (mut world, mut a) = limited(100);
    let file = world.mkfile(&mut a, ROOT, "a");
    world.call(&mut a, reserve(0, 60)).expect("fits");
    set(&mut world, None, None);
    world.call_with(&mut a, put(file, 0, 500, true), b"abcd").expect("no quota");
    let effects = set(&mut world, Some(1000), None);
    assert_eq!(pushes(&effects, &a), [(PushNo(1), Push::Limited(Resource::Bytes))]);
    assert_eq!(reserved(world.call(&mut a, reserve(60, 440))), (440, false));
    assert_eq!(used(&mut world, &mut a), (1000, 1000));
    let late = Position { epoch: Epoch(1), partition: 0, offset: 0, index: 0 };
    let quota = Quota { bytes: Some(1), inodes: None };
    world.server_record(ServerRecord::Quota { namespace: NAMESPACE, quota, decision: late });
    assert_eq!(used(&mut world, &mut a), (1000, 1000), "an older decision that lands later is void");
}

#[test]
fn inodes_are_limited_at_their_making() {
    let mut world = World::new();
    set(&mut world, None, Some(3));
    let mut a = world.open(1);
    world.mkdir(&mut a, ROOT, "a");
    world.mkfile(&mut a, ROOT, "b");
    for kind in [FileKind::File, FileKind::Dir, FileKind::Fifo] {
        assert_eq!(world.call(&mut a, create(ROOT, "c", kind)), Err(Refusal::QuotaExceeded));
    }
    assert_eq!(world.call(&mut a, create(ROOT, "b", FileKind::File)), Err(Refusal::Exists));
    let b = world.getattr(&mut a, Ino(ROOT.0 + 2)).ino;
    world.entry(&mut a, link(b, ROOT, "c"));
    world.call(&mut a, rmdir(ROOT, "a")).expect("empty");
    world.mkfile(&mut a, ROOT, "d");
    match world.call(&mut a, Op::View(View::Statfs)) {
        Ok(Outcome::Statfs { inodes_total, inodes_used, .. }) => assert_eq!((inodes_total, inodes_used), (3, 3)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_copy_counts_what_it_adds() {
    let (mut world, mut a) = limited(100);
    let file = world.mkfile(&mut a, ROOT, "a");
    let copy = world.mkfile(&mut a, ROOT, "b");
    world.call_with(&mut a, put(file, 0, 60, false), b"abcd").expect("fits");
    let clone = |len| {
        let from = proto::message::Range { ino: file, offset: 0, len };
        Op::Upload(Upload::Clone { from, to: copy, to_offset: 0 })
    };
    assert_eq!(world.call(&mut a, clone(60)), Err(Refusal::QuotaExceeded));
    world.call(&mut a, clone(40)).expect("fits");
    world.call(&mut a, clone(40)).expect("adds nothing");
    assert_eq!(used(&mut world, &mut a), (100, 100));
}

/// Whoever sent it has used up what it had reserved; others must not get that before it is executed.
#[test]
fn a_write_that_waits_for_a_delegation_keeps_its_reserve() {
    let mut world = World::new();
    set(&mut world, Some(100), None);
    let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
    let file = world.mkfile(&mut a, ROOT, "a");
    world.call(&mut a, reserve(0, 0)).expect("has heard");
    assert_eq!(reserved(world.call(&mut b, reserve(0, 60))), (60, false));
    let effects = world.send_with(&mut b, put(file, 0, 60, true), b"abcd");
    assert_eq!(answer_of(&effects, &b).expect("answered").result, Ok(Outcome::Waiting));
    assert_eq!(reserved(world.call(&mut b, reserve(0, 0))), (0, false));
    assert_eq!(
        reserved(world.call(
            &mut a,
            Op::Session(SessionOp::Reserve { of: Resource::Bytes, keep: 0, need: 90, extra: 0, part: true })
        ))
        .0,
        40
    );
    let effects = world.send(&mut a, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1), PushNo(2)] }));
    let written = pushes(&effects, &b).into_iter().find_map(|(_, push)| match push {
        Push::Outcome { result, .. } => Some(result),
        _ => None,
    });
    assert!(matches!(written, Some(Ok(Outcome::Entry(_)))), "{written:?}");
    world.assert_replayable();
}

/// What was not taken is sent again by its successor, and was reserved or needed not to be.
#[test]
fn a_session_of_which_something_was_not_taken_gives_nothing_back() {
    for has_heard in [false, true] {
        let mut world = World::new();
        let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
        let file = world.mkfile(&mut a, ROOT, "a");
        if has_heard {
            set(&mut world, Some(100), None);
            assert_eq!(reserved(world.call(&mut a, reserve(0, 60))), (60, false));
        }
        // It is away while somebody else comes, and loses what it was delegated.
        world.send(&mut b, create(ROOT, "b", FileKind::File));
        world.pass_ms(10_000);
        if !has_heard {
            set(&mut world, Some(100), None);
        }
        let effects = world.send_local(&mut a, create(ROOT, "x", FileKind::File));
        assert_eq!(answer_of(&effects, &a).expect("answered").result, Err(Refusal::NotDelegated));
        assert_eq!(world.call_with(&mut a, put(file, 0, 60, true), b"abcd"), Err(Refusal::NotDelegated));
        // It has heard of the quota by now, and believes to have used what it had reserved.
        world.call(&mut a, reserve(0, 0)).expect("nothing to keep");
        let other = world.mkfile(&mut b, ROOT, "c");
        let rest = if has_heard { 40 } else { 100 };
        assert_eq!(reserved(world.call(&mut b, reserve(0, rest))), (rest, false));
        world.send_with(&mut b, put(other, 0, rest as u32, true), b"abcd");

        let mut successor = world.open_ticket(&world.ticket(4), &[a.id]);
        world.send_with(&mut successor, put(file, 0, 60, true), b"abcd");
        assert_eq!(used(&mut world, &mut b), (100, 60 + rest), "its writer was told so");
        assert_eq!(world.machine.activity().reserved_bytes, 0);
        world.call(&mut successor, reserve(0, 0)).expect("nothing to keep");
        let more = world.call_with(&mut successor, put(file, 60, 1, true), b"abcd");
        assert_eq!(more, Err(Refusal::QuotaExceeded));
        world.restart();
        world.assert_replayable();
        super::audit::audit(&world);
    }
}

fn reserve_inodes(keep: u64, need: u64) -> Op {
    Op::Session(SessionOp::Reserve { of: Resource::Inodes, keep, need, extra: 0, part: false })
}

fn make(dir: Ino, at: &str) -> Op {
    match create(dir, at, FileKind::File) {
        Op::Upload(Upload::Create { dir, name, new }) => {
            Op::Upload(Upload::Create { dir, name, new: NewInode { reserved: true, ..new } })
        }
        other => other,
    }
}

fn inodes(world: &mut World, client: &mut Client) -> (u64, u64) {
    match world.call(client, Op::View(View::Statfs)) {
        Ok(Outcome::Statfs { inodes_total, inodes_used, .. }) => (inodes_total, inodes_used),
        other => panic!("{other:?}"),
    }
}

/// A world with a quota of so many inodes, and two sessions that know of it.
fn counted(inodes: u64) -> (World, Client, Client) {
    let mut world = World::new();
    set(&mut world, None, Some(inodes));
    let (a, b) = (world.open(DELEGABLE), world.open(1));
    (world, a, b)
}

#[test]
fn an_inode_that_is_reserved_is_nobody_elses_and_is_used_up_by_what_is_made() {
    let (mut world, mut a, mut b) = counted(4);
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(0, 2))), (2, false));
    assert_eq!(inodes(&mut world, &mut b), (4, 3));
    world.mkfile(&mut a, ROOT, "b");
    assert_eq!(world.call(&mut a, create(ROOT, "c", FileKind::File)), Err(Refusal::QuotaExceeded), "says no reserve");
    assert_eq!(reserved(world.call(&mut b, reserve_inodes(0, 1))), (0, true));

    world.entry(&mut a, make(ROOT, "d"));
    assert_eq!(inodes(&mut world, &mut b), (4, 4));
    // Whoever made it counts it as used up from when it was sent, whatever came of it.
    assert_eq!(world.call(&mut a, make(ROOT, "d")), Err(Refusal::Exists));
    assert_eq!(inodes(&mut world, &mut b), (4, 3));
    assert_eq!(reserved(world.call(&mut b, reserve_inodes(0, 1))), (1, false));
    assert_eq!(world.call(&mut a, make(ROOT, "e")), Err(Refusal::QuotaExceeded), "nothing is left of what it had");
    world.restart();
    assert_eq!(inodes(&mut world, &mut b), (4, 4));
    world.assert_replayable();
    super::audit::audit(&world);
}

#[test]
fn bytes_and_inodes_are_reserved_asked_back_and_given_back_apart() {
    let mut world = World::new();
    set(&mut world, Some(100), Some(10));
    let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(0, 9))), (9, false));
    assert_eq!(reserved(world.call(&mut a, reserve(0, 100))), (100, false));
    let effects = world.send(&mut b, reserve_inodes(0, 1));
    assert_eq!(pushes(&effects, &a), [(PushNo(1), Push::GiveBack(Resource::Inodes))]);
    let effects = world.send(&mut b, reserve(0, 1));
    assert_eq!(pushes(&effects, &a), [(PushNo(2), Push::GiveBack(Resource::Bytes))]);
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(4, 0))), (0, false));
    assert_eq!((inodes(&mut world, &mut b), used(&mut world, &mut b)), ((10, 5), (100, 100)));
    // A quota that is gone takes its reserves along, and leaves those of the other one.
    set(&mut world, Some(100), None);
    assert_eq!((inodes(&mut world, &mut b).1, used(&mut world, &mut b)), (1, (100, 100)));
    world.assert_replayable();
    super::audit::audit(&world);
}

/// Others must not get what it had reserved before it is executed, and it is not refused then.
#[test]
fn a_create_that_waits_for_a_delegation_keeps_its_reserve() {
    let (mut world, mut a, mut b) = counted(5);
    world.mkfile(&mut a, ROOT, "a");
    assert_eq!(reserved(world.call(&mut b, reserve_inodes(0, 2))), (2, false));
    let effects = world.send(&mut b, make(ROOT, "b"));
    assert_eq!(answer_of(&effects, &b).expect("answered").result, Ok(Outcome::Waiting));
    // What is not spoken for goes back; what waits is.
    assert_eq!(reserved(world.call(&mut b, reserve_inodes(0, 0))), (0, false));
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(0, 2))), (2, false));
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(2, 1))).0, 0);
    let effects = world.send(&mut a, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1)] }));
    let made = pushes(&effects, &b).into_iter().find_map(|(_, push)| match push {
        Push::Outcome { result, .. } => Some(result),
        _ => None,
    });
    assert!(matches!(made, Some(Ok(Outcome::Entry(_)))), "{made:?}");
    assert_eq!(inodes(&mut world, &mut b), (5, 5));
    world.assert_replayable();
}

#[test]
fn the_successor_of_a_session_that_vanished_makes_what_it_had_reserved() {
    let (mut world, mut a, mut other) = counted(3);
    assert_eq!(reserved(world.call(&mut a, reserve_inodes(0, 2))), (2, false));
    world.pass_ms(61_000);
    let mut successor = world.open_ticket(&world.ticket(4), &[a.id]);
    let effects = world.send(&mut other, create(ROOT, "x", FileKind::File));
    assert!(answer_of(&effects, &other).is_none(), "that session is over as well");
    let mut other = world.open(5);
    assert_eq!(world.call(&mut other, create(ROOT, "x", FileKind::File)), Err(Refusal::QuotaExceeded));
    world.entry(&mut successor, make(ROOT, "a"));
    world.entry(&mut successor, make(ROOT, "b"));
    assert_eq!(inodes(&mut world, &mut other), (3, 3));
    world.assert_replayable();
    super::audit::audit(&world);
}
