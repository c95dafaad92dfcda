//! Delegations: who is delegated what, how it is asked back and given back, who waits for that, and what becomes of
//! what a session has answered itself.

use super::audit::audit;
use super::*;
use LockMode::Exclusive;
use proto::frame::join;
use proto::message::{Access, Quota, RenameHow, Resource};

fn confirm(number: u64) -> Op {
    Op::Session(SessionOp::Confirm { pushes: vec![PushNo(number)] })
}

fn undelegated() -> Op {
    Op::Session(SessionOp::Undelegated)
}

fn renew() -> Op {
    Op::Session(SessionOp::Renew)
}

fn chmod(ino: Ino, mode: u32) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } })
}

fn rename((from_dir, from): (Ino, &str), (to_dir, to): (Ino, &str)) -> Op {
    let how = RenameHow::Replace;
    Op::Upload(Upload::Rename { from_dir, from: name(from), to_dir, to: name(to), how })
}

fn try_lock(ino: Ino) -> Op {
    let owner = LockOwner { id: 1, kind: LockKind::Process };
    let lock = Lock { owner, pid: 1, range: LockRange::WHOLE, mode: Exclusive };
    Op::Lock(LockOp::Lock { ino, lock, wait: false })
}

fn outcomes(effects: &[Effect], client: &Client) -> Vec<(u64, Result<Outcome, Refusal>)> {
    let outcome = |(_, push)| match push {
        Push::Outcome { number, result } => Some((number.0, result)),
        _ => None,
    };
    pushes(effects, client).into_iter().filter_map(outcome).collect()
}

fn recalls(effects: &[Effect], client: &Client) -> Vec<(u64, Vec<Promise>)> {
    let recall = |(number, push): (PushNo, Push)| match push {
        Push::Invalidate(things) => Some((number.0, things)),
        _ => None,
    };
    pushes(effects, client).into_iter().filter_map(recall).collect()
}

impl World {
    /// Sends what its program has been answered already.
    pub fn send_local(&mut self, client: &mut Client, op: Op) -> Vec<Effect> {
        let record = self.sealed_local(client, op);
        self.effects(&record)
    }

    pub fn sealed_local(&self, client: &mut Client, op: Op) -> Bytes {
        client.number += 1;
        let time = Time { secs: self.append_ms / 1000, nanos: 5 };
        let request = Request { acked: Acked::default(), time, op, local: true };
        client.last = self.sealed_request(client, client.number, &request, &[]);
        client.last.clone()
    }

    fn local(&mut self, client: &mut Client, op: Op) -> Result<Outcome, Refusal> {
        let effects = self.send_local(client, op);
        answer_of(&effects, client).expect("answered at once").result
    }

    fn answer(&mut self, client: &mut Client, op: Op) -> Answer {
        let effects = self.send(client, op);
        answer_of(&effects, client).expect("answered at once")
    }

    /// A request that must wait; what came of it beside.
    fn parks(&mut self, client: &mut Client, op: Op) -> Vec<Effect> {
        self.parks_with(client, op, &[])
    }

    fn parks_with(&mut self, client: &mut Client, op: Op, payload: &[u8]) -> Vec<Effect> {
        let effects = self.send_with(client, op, payload);
        let answer = answer_of(&effects, client).expect("whoever waits is told at once");
        assert_eq!(answer.result, Ok(Outcome::Waiting));
        assert!(answer.granted.is_empty() && answer.delegated.is_empty());
        effects
    }

    /// The directories that a session is delegated, asked back or not.
    fn delegated_to(&self, client: &Client) -> Vec<Promise> {
        let has = &self.machine.live.sessions[&client.id].delegations.has;
        has.keys().filter(|thing| matches!(thing, Promise::Dir(_))).copied().collect()
    }

    fn sound(&self) {
        audit(self);
        self.assert_replayable();
    }
}

const DIR_ROOT: Promise = Promise::Dir(ROOT);

/// A session that is delegated the root with a file and a directory in it, and one that has to do with nothing.
fn alone() -> (World, Client, Client, Ino, Ino) {
    let mut world = World::new();
    let mut maker = world.open(9);
    let (file, dir) = (world.mkfile(&mut maker, ROOT, "f"), world.mkdir(&mut maker, ROOT, "d"));
    world.send(&mut maker, Op::Session(SessionOp::Close));
    let (mut a, b) = (world.open(DELEGABLE), world.open(1));
    for dir in [ROOT, dir] {
        assert_eq!(world.answer(&mut a, lookup(dir, "nothing")).delegated, [Promise::Dir(dir)]);
    }
    (world, a, b, file, dir)
}

#[test]
fn whoever_is_alone_is_delegated_directories_and_content_by_every_answer_that_promises_them() {
    let mut world = World::new();
    let (mut a, mut deaf) = (world.open(DELEGABLE), world.open(1));
    let answer = world.answer(&mut a, lookup(ROOT, "f"));
    assert_eq!((answer.granted, answer.delegated), (vec![DIR_ROOT], vec![DIR_ROOT]));
    let answer = world.answer(&mut a, create(ROOT, "f", FileKind::File));
    let file = entry(answer.result).ino;
    assert_eq!(answer.delegated, [DIR_ROOT, Promise::Content(file)]);
    let answer = world.answer(&mut a, link(file, ROOT, "g"));
    assert_eq!((answer.granted, answer.delegated), (vec![DIR_ROOT], vec![DIR_ROOT]));
    // What has names in several directories is so by itself.
    let dir = world.mkdir(&mut a, ROOT, "d");
    let things = [Promise::Dir(dir), Promise::Inode(file)];
    let answer = world.answer(&mut a, link(file, dir, "g"));
    assert_eq!((&answer.granted[..], &answer.delegated[..]), (&things[..], &things[..]));
    // Who cannot answer for it is delegated nothing.
    assert_eq!(world.call(&mut deaf, Op::Session(SessionOp::Renew)), Ok(Outcome::Done));
    world.send(&mut a, Op::Session(SessionOp::Close));
    let answer = world.answer(&mut deaf, Op::View(View::Getattr { ino: dir }));
    assert_eq!((answer.granted, answer.delegated), (vec![Promise::Dir(dir)], vec![]));
    world.sound();
}

#[test]
fn nobody_is_delegated_what_another_is_promised_or_may_still_rely_on() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
    world.getattr(&mut b, ROOT);
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, []);
    // The change breaks the other's promise, but it has not heard of it.
    world.send(&mut a, create(ROOT, "f", FileKind::File));
    assert_eq!(world.delegated_to(&a), []);
    let effects = world.send(&mut b, confirm(1));
    assert!(!answers(&effects, a.id)[0].1.delegated.contains(&DIR_ROOT));
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, [DIR_ROOT]);
    world.sound();
}

#[test]
fn what_shows_or_changes_a_delegated_directory_waits_and_asks_it_back_once() {
    let asks = |file: Ino, dir: Ino| {
        [
            (lookup(ROOT, "f"), vec![DIR_ROOT]),
            (Op::View(View::Getattr { ino: file }), vec![DIR_ROOT]),
            (Op::View(View::Getattr { ino: dir }), vec![Promise::Dir(dir)]),
            (Op::View(View::Readdir { dir: ROOT, after: None, limit: 10 }), vec![DIR_ROOT, Promise::Dir(dir)]),
            (create(ROOT, "g", FileKind::File), vec![DIR_ROOT]),
            (create(dir, "g", FileKind::File), vec![Promise::Dir(dir)]),
            (chmod(file, 0o600), vec![DIR_ROOT]),
            (write(file, 0, 3, 3), vec![DIR_ROOT]),
            (rmdir(ROOT, "d"), vec![DIR_ROOT, Promise::Dir(dir)]),
        ]
    };
    for index in 0..asks(ROOT, ROOT).len() {
        let (mut world, mut a, mut b, file, dir) = alone();
        let (op, things) = asks(file, dir)[index].clone();
        let before = world.kv.clone();
        let effects = world.parks_with(&mut b, op.clone(), &[1, 2, 3]);
        assert_eq!(recalls(&effects, &a), [(1, things.clone())], "{op:?}");
        assert_eq!(world.kv, before, "{op:?} has changed something before its time");
        // Nobody is asked twice, and a repeat brings the same answer.
        let again = b.last.clone();
        let effects = world.effects(&again);
        assert_eq!(answer_of(&effects, &b).unwrap().result, Ok(Outcome::Waiting));
        assert_eq!(recalls(&effects, &a), []);
        // What the holder has answered itself stands before its confirmation.
        assert!(world.local(&mut a, create(ROOT, "own", FileKind::File)).is_ok());
        audit(&world);
        let effects = world.send(&mut a, confirm(1));
        let [(number, result)] = &outcomes(&effects, &b)[..] else { panic!("{op:?} has no outcome: {effects:?}") };
        assert_eq!(*number, b.number);
        match op {
            Op::View(_) => assert_eq!(*result, Err(Refusal::Again)),
            _ => assert!(result.is_ok(), "{op:?}: {result:?}"),
        }
        assert!(!world.delegated_to(&a).iter().any(|thing| things.contains(thing)));
        world.sound();
    }
}

#[test]
fn names_that_are_made_by_ones_own_word_are_asked_back_with_what_covers_their_inode() {
    let (mut world, mut a, mut b, file, dir) = alone();
    assert!(world.local(&mut a, link(file, ROOT, "g")).is_ok());
    assert_eq!(entry(world.local(&mut a, link(file, dir, "h"))).parent, None);
    assert!(world.local(&mut a, unlink(ROOT, "f")).is_ok());
    // Whichever way another comes to it.
    let effects = world.parks(&mut b, Op::View(View::Getattr { ino: file }));
    assert_eq!(recalls(&effects, &a), [(1, vec![Promise::Inode(file)])]);
    world.parks(&mut b, lookup(dir, "h"));
    assert!(world.local(&mut a, chmod(file, 0o640)).is_ok());
    world.send(&mut a, confirm(1));
    world.send(&mut a, confirm(2));
    let attr = world.getattr(&mut b, file);
    assert_eq!((attr.nlink, attr.mode), (2, 0o640));
    // Now both are promised it, so it is nobody's alone.
    assert_eq!(world.answer(&mut a, Op::View(View::Getattr { ino: file })).delegated, []);
    let effects = world.send_local(&mut a, chmod(file, 0o600));
    assert!(answer_of(&effects, &a).is_none(), "the other is told first");
    world.sound();
}

#[test]
fn what_has_to_do_with_nothing_delegated_does_not_wait() {
    let (mut world, mut a, mut b, file, _) = alone();
    assert!(world.call(&mut b, Op::View(View::Statfs)).is_ok());
    let access = Access { ino: file, atime: Time::from_millis(1), ctime: Time::from_millis(1) };
    assert!(world.call(&mut b, Op::Upload(Upload::Accessed { inodes: vec![access] })).is_ok());
    // What is written under a lock stands in the log before that is given up.
    assert!(world.call(&mut b, try_lock(file)).is_ok());
    // In a directory of its own it is at home, whoever has the rest.
    world.parks(&mut b, create(ROOT, "e", FileKind::Dir));
    let effects = world.send(&mut a, confirm(1));
    let Ok(Outcome::Entry(dir)) = outcomes(&effects, &b)[0].1.clone() else { panic!("made") };
    assert_eq!(world.delegated_to(&a).len(), 1, "of the rest");
    assert!(world.call(&mut b, create(dir.ino, "g", FileKind::File)).is_ok());
    assert_eq!(world.call(&mut b, create(dir.ino, "g", FileKind::File)), Err(Refusal::Exists));
    world.sound();
}

#[test]
fn what_one_record_has_asked_for_and_set_going_has_an_order() {
    let (mut world, mut a, mut b, file, _) = alone();
    // The second of two waits, with its content.
    b.number += 2;
    let view = world.sealed(&b, b.number - 1, renew(), &[]);
    let wait = world.sealed(&b, b.number, write(file, 0, 3, 3), b"abc");
    let effects = world.effects(&join(&[view, wait]));
    assert_eq!(answer_of(&effects, &b).unwrap().result, Ok(Outcome::Waiting));
    let asked_at = world.last_position();
    assert!(world.machine.is_waiting(asked_at.of_frame(1)) && !world.machine.is_waiting(asked_at));
    world.restart();

    // It goes on between two frames of the record that lets it.
    a.number += 2;
    let gives_back = world.sealed(&a, a.number - 1, confirm(1), &[]);
    let after = world.sealed(&a, a.number, create(ROOT, "g", FileKind::File), &[]);
    let effects = world.effects(&join(&[gives_back, after]));
    let at = world.last_position();
    let written = entry(outcomes(&effects, &b).remove(0).1);
    assert_eq!((written.version, written.version.effect()), (Position { index: 1, ..at }, 1));
    // The directory is the other's no more, or still: in either case later.
    let made = answer_of(&effects, &a).unwrap();
    assert_eq!((made.at, made.at.frame()), (at.of_frame(1), 1));
    assert!(written.version < made.at);
    let Ok(Outcome::Extents { extents, .. }) =
        world.call(&mut b, Op::View(View::Extents { ino: file, from: 0, limit: 10 }))
    else {
        panic!("extents")
    };
    assert_eq!(extents[0].chunk.position(), asked_at.of_frame(1));
    world.sound();
}

#[test]
fn a_change_that_waited_has_the_position_at_which_it_ran_and_its_content_that_of_its_record() {
    let (mut world, mut a, mut b, file, _) = alone();
    world.parks_with(&mut b, write(file, 0, 3, 3), b"abc");
    let asked_at = world.last_position();
    assert!(world.machine.is_waiting(asked_at), "its content is still to be kept");
    world.parks(&mut b, chmod(file, 0o600));
    let effects = world.send(&mut a, confirm(1));
    let ran_at = world.log.len() as u64 - 1;
    assert!(!world.machine.is_waiting(asked_at));
    let attrs: Vec<Attr> = outcomes(&effects, &b).into_iter().map(|(_, result)| entry(result)).collect();
    assert_eq!((attrs[0].version.offset, attrs[0].version.index), (ran_at, 1));
    assert_eq!((attrs[0].size, attrs[1].size, attrs[1].mode), (3, 3, 0o600));
    let Ok(Outcome::Extents { extents, .. }) =
        world.call(&mut b, Op::View(View::Extents { ino: file, from: 0, limit: 10 }))
    else {
        panic!("extents")
    };
    assert_eq!(extents[0].chunk.position(), asked_at);
    world.sound();
}

#[test]
fn outcomes_wait_as_answers_do_until_others_have_heard() {
    let (mut world, mut a, mut b, file, dir) = alone();
    let mut c = world.open(2);
    // A third one is promised the directory in which the change will be.
    world.parks(&mut c, Op::View(View::Getattr { ino: dir }));
    world.send(&mut a, confirm(1));
    assert_eq!(world.answer(&mut c, Op::View(View::Getattr { ino: dir })).granted, [Promise::Dir(dir)]);
    world.parks(&mut b, rename((ROOT, "f"), (dir, "g")));
    let effects = world.send(&mut a, confirm(2));
    assert_eq!(outcomes(&effects, &b), []);
    let [(number, things)] = &recalls(&effects, &c)[..] else { panic!("told") };
    assert_eq!(things, &[Promise::Dir(dir)]);
    let effects = world.send(&mut c, confirm(*number));
    let [(_, Ok(Outcome::Renamed { moved, .. }))] = &outcomes(&effects, &b)[..] else { panic!("{effects:?}") };
    assert_eq!(moved.ino, file);
    world.sound();
}

#[test]
fn a_dead_holder_delays_others_by_its_lease_and_forfeits_what_it_has_not_sent() {
    let (mut world, mut a, mut b, _, dir) = alone();
    world.pass_ms(4_000);
    world.parks(&mut b, create(ROOT, "g", FileKind::File));
    // Speaking on renews nothing of what is asked back.
    assert!(world.local(&mut a, create(ROOT, "h", FileKind::File)).is_ok());
    let effects = world.pass_ms(5_500);
    assert_eq!(outcomes(&effects, &b), []);
    let effects = world.pass_ms(500);
    assert!(matches!(outcomes(&effects, &b)[..], [(_, Ok(Outcome::Entry(_)))]));
    audit(&world);
    // It has kept the rest. What is not answered yet is taken, and nothing more is delegated.
    assert_eq!(world.delegated_to(&a), [Promise::Dir(dir)]);
    world.send(&mut a, confirm(1));
    let answer = world.answer(&mut a, create(dir, "k", FileKind::File));
    assert!(answer.result.is_ok());
    let made = world.answer(&mut a, create(dir, "sub", FileKind::Dir));
    assert_eq!(made.delegated, []);
    // Until it begins anew.
    assert_eq!(world.call(&mut a, undelegated()), Ok(Outcome::Done));
    let said = a.last.clone();
    assert_eq!(world.delegated_to(&a), []);
    assert_eq!(world.answer(&mut a, Op::View(View::Getattr { ino: dir })).delegated, [Promise::Dir(dir)]);
    assert!(world.local(&mut a, create(dir, "l", FileKind::File)).is_ok());
    // A late repeat says nothing of what came after it.
    world.effects(&said);
    assert_eq!(world.delegated_to(&a), [Promise::Dir(dir)]);
    world.sound();
}

#[test]
fn behind_what_was_not_taken_nothing_is() {
    let (mut world, mut a, mut b, _, dir) = alone();
    world.parks(&mut b, create(ROOT, "g", FileKind::File));
    world.pass_ms(10_000);
    assert_eq!(world.local(&mut a, create(ROOT, "i", FileKind::File)), Err(Refusal::NotDelegated));
    let again = a.last.clone();
    assert_eq!(answers(&world.effects(&again), a.id)[0].1.result, Err(Refusal::NotDelegated));
    assert_eq!(world.local(&mut a, create(dir, "i", FileKind::File)), Err(Refusal::NotDelegated));
    for op in [create(dir, "j", FileKind::File), Op::View(View::Getattr { ino: dir }), try_lock(dir)] {
        assert_eq!(world.answer(&mut a, op).result, Err(Refusal::NotDelegated));
    }
    // Nor after its word that it begins anew: that was for what had been taken.
    assert_eq!(world.call(&mut a, undelegated()), Ok(Outcome::Done));
    assert_eq!(world.answer(&mut a, create(dir, "k", FileKind::File)).result, Err(Refusal::NotDelegated));
    // A successor goes on where that ended.
    let ticket = world.ticket(DELEGABLE + 1);
    let record = world.sealed_open(&ticket, &[a.id]);
    world.effects(&record);
    let mut c = Client { id: ticket.session, key: ticket.key, number: 0, ..a };
    assert!(world.answer(&mut c, create(dir, "j", FileKind::File)).result.is_ok());
    world.sound();
}

#[test]
fn what_a_lease_takes_along_is_forfeited_and_nothing_else() {
    let (mut world, mut a, mut b, ..) = alone();
    world.send(&mut b, renew());
    world.pass_ms(10_000);
    assert_eq!(world.delegated_to(&a), []);
    assert_eq!(world.local(&mut a, create(ROOT, "g", FileKind::File)), Err(Refusal::NotDelegated));
    // A session without any has nothing to lose.
    let mut c = world.open(DELEGABLE + 1);
    world.pass_ms(10_000);
    assert_eq!(world.answer(&mut c, lookup(ROOT, "f")).delegated, [DIR_ROOT]);
    assert!(world.local(&mut c, create(ROOT, "h", FileKind::File)).is_ok());
    world.sound();
}

/// What was made in a directory of its own before it heard of the quota has been answered.
#[test]
fn what_is_made_under_a_delegation_is_taken_until_its_session_has_heard_of_the_quota() {
    let (mut world, mut a, mut b, _, dir) = alone();
    let decision = Position { epoch: Epoch(1), partition: 0, offset: world.log.len() as u64, index: 0 };
    let quota = Quota { bytes: None, inodes: Some(3) };
    let effects = world.server_record(ServerRecord::Quota { namespace: NAMESPACE, quota, decision });
    assert_eq!(pushes(&effects, &a), [(PushNo(1), Push::Limited(Resource::Inodes))]);
    assert_eq!(recalls(&effects, &a), [], "nobody else has to do with its directories");
    world.local(&mut a, create(dir, "g", FileKind::File)).expect("was made before it heard");

    let heard = Op::Session(SessionOp::Reserve { of: Resource::Inodes, keep: 0, need: 1, extra: 0, part: false });
    assert_eq!(world.call(&mut a, heard), Ok(Outcome::Reserved { amount: 0, more: false }));
    assert_eq!(world.call(&mut a, create(dir, "h", FileKind::File)), Err(Refusal::QuotaExceeded));
    assert_eq!(world.delegated_to(&a), [DIR_ROOT, Promise::Dir(dir)], "and goes on to work in them");
    world.call(&mut b, Op::Session(SessionOp::Close)).expect("closes");
    world.sound();
}

#[test]
fn undelegated_frees_who_waits() {
    let (mut world, mut a, mut b, ..) = alone();
    world.parks(&mut b, create(ROOT, "g", FileKind::File));
    let effects = world.send(&mut a, undelegated());
    // The push stays to be confirmed: what is cached may still be believed.
    assert_eq!(outcomes(&effects, &b), []);
    assert!(world.kv.rows.keys().any(|key| key.ends_with(b"g")));
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(outcomes(&effects, &b).len(), 1);
    world.sound();
}

#[test]
fn a_holder_that_ends_or_is_replaced_frees_who_waits_and_its_successor_begins_with_nothing() {
    let (mut world, a, mut b, ..) = alone();
    world.parks(&mut b, create(ROOT, "g", FileKind::File));
    let ticket = world.ticket(DELEGABLE + 1);
    let record = world.sealed_open(&ticket, &[a.id]);
    let effects = world.effects(&record);
    assert!(matches!(outcomes(&effects, &b)[..], [(_, Ok(Outcome::Entry(_)))]));
    let mut c = Client { id: ticket.session, key: ticket.key, number: 0, ..a };
    assert_eq!(world.delegated_to(&c), []);

    let answer = world.answer(&mut c, lookup(ROOT, "g"));
    assert_eq!((answer.granted, answer.delegated), (vec![DIR_ROOT], vec![]), "somebody has just had to wait");
    world.pass_ms(1_000);
    assert_eq!(world.answer(&mut c, lookup(ROOT, "g")).delegated, [DIR_ROOT]);
    world.parks(&mut b, create(ROOT, "h", FileKind::File));
    let effects = world.send(&mut c, Op::Session(SessionOp::Close));
    assert!(matches!(outcomes(&effects, &b)[..], [(_, Ok(Outcome::Entry(_)))]));
    world.sound();
}

#[test]
fn a_directory_that_somebody_had_to_wait_for_is_shared_for_a_while() {
    let (mut world, mut a, mut b, ..) = alone();
    world.parks(&mut b, lookup(ROOT, "f"));
    world.send(&mut a, confirm(1));
    assert_eq!(world.answer(&mut b, lookup(ROOT, "f")).granted, [DIR_ROOT]);
    let effects = world.send(&mut a, create(ROOT, "g", FileKind::File));
    let [(number, _)] = recalls(&effects, &b)[..] else { panic!("told") };
    let effects = world.send(&mut b, confirm(number));
    assert!(!answers(&effects, a.id)[0].1.delegated.contains(&DIR_ROOT));
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, []);
    world.pass_ms(1_000);
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, [DIR_ROOT]);
    world.sound();
}

#[test]
fn what_a_session_makes_by_its_own_word_is_its_whatever_limits_there_are() {
    let (mut world, mut a, mut b, _, dir) = alone();
    // Barred, since it confirms nothing in time.
    for round in 0..3 {
        world.parks(&mut b, create(ROOT, &format!("b{round}"), FileKind::File));
        for _ in 0..10 {
            world.pass_ms(1_000);
            world.send(&mut a, renew());
        }
        world.send(&mut b, renew());
        world.send(&mut a, confirm(round + 1));
        world.pass_ms(1_000);
        world.send(&mut a, undelegated());
        if round < 2 {
            assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, [DIR_ROOT], "{round}");
        }
    }
    let answer = world.answer(&mut a, create(dir, "other", FileKind::Dir));
    assert_eq!((answer.granted, answer.delegated), (vec![], vec![]));
    let effects = world.send_local(&mut a, create(dir, "sub", FileKind::Dir));
    let answer = answer_of(&effects, &a).expect("answered");
    let Ok(Outcome::Entry(made)) = answer.result else { panic!("made") };
    assert_eq!((answer.granted, answer.delegated), (vec![Promise::Dir(made.ino)], vec![Promise::Dir(made.ino)]));
    world.parks(&mut b, create(made.ino, "g", FileKind::File));
    world.sound();
}

#[test]
fn there_is_an_end_to_what_one_session_is_delegated() {
    let mut world = World::new();
    let a = world.open(DELEGABLE);
    let many: Vec<Promise> = (0..16_385).map(|n| Promise::Dir(Ino::new(NAMESPACE, 1000 + n))).collect();
    let mut turn =
        super::super::rows::Turn::new(&mut world.kv, &[0; 32], Position::default(), world.machine.log_time());
    let granted = world.machine.grant(&mut turn, a.id, many.clone());
    assert_eq!(world.machine.delegate(&mut turn, a.id, &granted), many[..16_384]);
    // What it makes itself is none of that.
    turn.made = Some(many[16_384]);
    assert_eq!(world.machine.delegate(&mut turn, a.id, &many[16_384..]), many[16_384..]);
}

#[test]
fn a_directory_that_gets_another_name_in_its_own_concerns_nobody_above() {
    let mut world = World::new();
    let mut maker = world.open(9);
    let dir = world.mkdir(&mut maker, ROOT, "d");
    world.mkdir(&mut maker, dir, "x");
    let other = world.mkdir(&mut maker, dir, "other");
    world.send(&mut maker, Op::Session(SessionOp::Close));
    let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
    assert_eq!(world.answer(&mut a, lookup(ROOT, "nothing")).delegated, [DIR_ROOT]);
    assert!(world.call(&mut b, rename((dir, "x"), (dir, "y"))).is_ok());
    // One that moves could come to stand below itself.
    world.parks(&mut b, rename((dir, "y"), (other, "y")));
}

#[test]
fn a_revoked_promise_takes_its_delegation_along_when_that_is_confirmed() {
    let (mut world, mut a, mut b, ..) = alone();
    let many: Vec<Promise> = (0..65_536).map(|n| Promise::Content(Ino::new(NAMESPACE, 1000 + n))).collect();
    let mut turn =
        super::super::rows::Turn::new(&mut world.kv, &[0; 32], Position::default(), world.machine.log_time());
    world.machine.grant(&mut turn, a.id, many);
    let (_, effects) = turn.finish();
    let [(number, things)] = &recalls(&effects, &a)[..] else { panic!("revoked") };
    assert!(things.contains(&DIR_ROOT));
    let effects = world.parks(&mut b, create(ROOT, "g", FileKind::File));
    assert_eq!(recalls(&effects, &a), [], "it has been asked for it");
    audit(&world);
    let effects = world.send(&mut a, confirm(*number));
    assert_eq!(outcomes(&effects, &b).len(), 1);
    audit(&world);
}

#[test]
fn changes_of_one_session_to_one_inode_stay_in_order() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(DELEGABLE), world.open(1));
    let (one, two) = (world.mkdir(&mut b, ROOT, "one"), world.mkdir(&mut b, ROOT, "two"));
    let own = world.mkdir(&mut b, ROOT, "own");
    let file = world.mkfile(&mut b, own, "f");
    world.send(&mut b, link(file, two, "f"));
    // Only what is in two is somebody else's; b has all the rest.
    world.pass_ms(10_000);
    for dir in [one, two] {
        assert_eq!(world.answer(&mut a, lookup(dir, "x")).delegated, [Promise::Dir(dir)]);
    }
    world.parks(&mut b, link(file, one, "g"));
    let first = b.number;
    // It has to do with nothing delegated, but with what the one before is about.
    let effects = world.parks(&mut b, chmod(file, 0o600));
    assert_eq!(recalls(&effects, &a), []);
    // The same of another inode does not wait.
    assert!(world.call(&mut b, create(own, "h", FileKind::File)).is_ok());
    // Another place, asked back later and given back earlier.
    world.parks(&mut b, create(two, "h", FileKind::File));
    let third = b.number;
    let effects = world.send(&mut a, confirm(2));
    assert_eq!(outcomes(&effects, &b).iter().map(|(number, _)| *number).collect::<Vec<u64>>(), [third]);
    audit(&world);
    let effects = world.send(&mut a, confirm(1));
    let done: Vec<(u64, u32)> =
        outcomes(&effects, &b).into_iter().map(|(number, result)| (number, entry(result).mode)).collect();
    assert_eq!(done, [(first, 0o644), (first + 1, 0o600)]);
    world.sound();
}

#[test]
fn what_is_freed_may_meet_something_else_and_waits_on() {
    let mut world = World::new();
    let mut maker = world.open(9);
    let (one, two) = (world.mkdir(&mut maker, ROOT, "one"), world.mkdir(&mut maker, ROOT, "two"));
    let file = world.mkfile(&mut maker, ROOT, "f");
    world.send(&mut maker, Op::Session(SessionOp::Close));
    let (mut a, mut b, mut c) = (world.open(DELEGABLE), world.open(1), world.open(DELEGABLE + 1));
    assert_eq!(world.answer(&mut a, lookup(one, "nothing")).delegated, [Promise::Dir(one)]);
    assert_eq!(world.answer(&mut c, lookup(two, "nothing")).delegated, [Promise::Dir(two)]);

    let effects = world.parks(&mut b, link(file, one, "g"));
    assert_eq!(recalls(&effects, &a), [(1, vec![Promise::Dir(one)])]);
    // It has not been looked at yet.
    let effects = world.parks(&mut b, link(file, two, "g"));
    assert_eq!(recalls(&effects, &c), []);
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(outcomes(&effects, &b).len(), 1);
    assert_eq!(recalls(&effects, &c), [(1, vec![Promise::Dir(two)])]);
    audit(&world);
    let effects = world.send(&mut c, confirm(1));
    let [(number, result)] = &outcomes(&effects, &b)[..] else { panic!("{effects:?}") };
    assert_eq!((*number, entry(result.clone()).nlink), (b.number, 3));
    world.sound();
}

#[test]
fn what_somebody_waits_for_is_delegated_to_nobody() {
    let (mut world, mut a, mut b, _, dir) = alone();
    let mut c = world.open(DELEGABLE + 1);
    world.parks(&mut b, lookup(dir, "nothing"));
    world.parks(&mut b, rename((ROOT, "f"), (dir, "g")));
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(outcomes(&effects, &b).len(), 1, "the view");
    world.pass_ms(1_000);
    // The rename waits for the root alone by now; but it has to do with this too.
    let answer = world.answer(&mut c, lookup(dir, "nothing"));
    assert_eq!((answer.granted, answer.delegated), (vec![Promise::Dir(dir)], vec![]));
    let effects = world.send(&mut a, confirm(2));
    let [(number, _)] = recalls(&effects, &c)[..] else { panic!("told") };
    assert_eq!(outcomes(&world.send(&mut c, confirm(number)), &b).len(), 1);
    world.sound();
}

#[test]
fn who_waits_may_give_up_and_ends_with_its_session() {
    let (mut world, mut a, mut b, file, _) = alone();
    world.parks(&mut b, chmod(file, 0o600));
    world.parks(&mut b, chmod(file, 0o640));
    let first = b.number - 1;
    let effects = world.send(&mut b, Op::Session(SessionOp::Cancel { number: RequestNo(first) }));
    assert_eq!(outcomes(&effects, &b), [(first, Err(Refusal::Cancelled))]);
    audit(&world);
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(entry(outcomes(&effects, &b)[0].1.clone()).mode, 0o640);

    world.pass_ms(1_000);
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).delegated, [DIR_ROOT]);
    world.parks(&mut b, chmod(file, 0o666));
    world.send(&mut b, Op::Session(SessionOp::Close));
    audit(&world);
    world.send(&mut a, confirm(2));
    assert_eq!(world.getattr(&mut a, file).mode, 0o640);
    assert_eq!(world.machine.waiting_bytes, 0);
    world.sound();
}

#[test]
fn a_successor_hears_what_has_been_executed_of_what_waited() {
    let (mut world, mut a, mut b, file, dir) = alone();
    world.parks(&mut b, chmod(file, 0o600));
    world.parks(&mut b, create(dir, "g", FileKind::File));
    world.parks(&mut b, Op::View(View::Getattr { ino: dir }));
    let (done, undone) = (b.number - 2, b.number - 1);
    // The first has been executed, and its session has not heard of it; the second goes with the session.
    world.send(&mut a, confirm(1));
    let ticket = world.ticket(3);
    let record = world.sealed_open(&ticket, &[b.id]);
    let effects = world.effects(&record);
    let opened = answers(&effects, ticket.session).remove(0).1;
    let Ok(Outcome::Opened { ended, .. }) = opened.result else { panic!("opened") };
    let results: Vec<_> = ended[0].results.iter().map(|(number, answer)| (number.0, answer.result.clone())).collect();
    let [(first, Ok(Outcome::Entry(attr))), (second, Err(Refusal::Again))] = &results[..] else {
        panic!("{results:?}");
    };
    assert_eq!((*first, attr.mode, *second), (done, 0o600, undone));
    world.sound();
}

#[test]
fn an_epoch_ends_it_all_and_a_successor_hears_what_was_not_executed() {
    let (mut world, _, mut b, ..) = alone();
    world.parks(&mut b, create(ROOT, "g", FileKind::File));
    let number = b.number;
    world.begin_epoch(2);
    world.after_grace();
    assert!(world.machine.live.waiting.is_empty() && world.machine.live.parked.is_empty());
    let ticket = world.ticket(3);
    let record = world.sealed_open(&ticket, &[b.id]);
    let opened = answers(&world.effects(&record), ticket.session).remove(0).1;
    let Ok(Outcome::Opened { ended, .. }) = opened.result else { panic!("opened") };
    let result = ended[0].results.iter().find(|(of, _)| of.0 == number).map(|(_, answer)| answer.result.clone());
    assert_eq!(result, Some(Err(Refusal::Again)));
    world.sound();
}

#[test]
fn a_restart_in_the_middle_changes_nothing() {
    let (mut world, mut a, mut b, file, _) = alone();
    world.restart();
    world.parks_with(&mut b, write(file, 0, 3, 3), b"abc");
    world.parks(&mut b, chmod(file, 0o600));
    world.restart();
    audit(&world);
    assert_eq!(world.answer(&mut a, lookup(ROOT, "f")).granted, []);
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(outcomes(&effects, &b).len(), 2);
    world.restart();
    world.sound();
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    let (mut world, mut a, mut b, file, _) = alone();
    let payload = vec![1; 500_000];
    let mut waiting = 0;
    loop {
        let effects = world.send_with(&mut b, write(file, 0, 3, 3), &payload);
        match answer_of(&effects, &b).expect("answered").result {
            Ok(Outcome::Waiting) => waiting += 1,
            result => break assert_eq!(result, Err(Refusal::Again)),
        }
    }
    assert!(waiting > 100 && world.machine.waiting_bytes <= 64 << 20, "{waiting}");
    let effects = world.send(&mut a, confirm(1));
    assert_eq!(outcomes(&effects, &b).len(), waiting);
    assert_eq!(world.machine.waiting_bytes, 0);
}
