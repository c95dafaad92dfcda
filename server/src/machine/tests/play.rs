//! Random plays of two sessions against the model filesystem: requests, repeats,
//! gaps, lost and late pushes, ticks, restarts from a dump.
//!
//! The players cache what they are promised, as mounts do. Checked is that every
//! answer is the model's, that each change happens once, that no answer leaves
//! while another player still relies on something else, that in the end every
//! request is answered, and that a machine fed the same log is equal in every byte.

use super::model::{Model, Seen};
use super::*;
use proptest::prelude::*;
use proto::LogTime;
use proto::message::{Acl, AclKind, FallocateHow, PushBody, Range, RenameHow};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Request {
        who: usize,
        pick: Pick,
    },
    /// Sends an earlier frame again.
    Again {
        who: usize,
        back: usize,
    },
    /// Sends a frame before the one that comes before it.
    Ahead {
        who: usize,
    },
    /// The player sees the pushes that have arrived.
    See {
        who: usize,
    },
    /// They are lost instead.
    Lose {
        who: usize,
    },
    /// What has been seen is confirmed.
    Confirm {
        who: usize,
    },
    Tick {
        ms: u64,
    },
    Restart,
}

/// Random choices, from which an operation on what there is can be made.
#[derive(Clone, Debug)]
pub struct Pick {
    what: u8,
    dirs: (usize, usize),
    names: (usize, usize),
    ino: usize,
    offset: u64,
    len: u32,
}

pub fn picks() -> impl Strategy<Value = Pick> {
    (0..31_u8, (any::<usize>(), any::<usize>()), (0..4_usize, 0..4_usize), any::<usize>(), 0..60_u64, 1..30_u32)
        .prop_map(|(what, dirs, names, ino, offset, len)| Pick { what, dirs, names, ino, offset, len })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..2_usize;
    let step = prop_oneof![
        20 => (who(), picks()).prop_map(|(who, pick)| Step::Request { who, pick }),
        2 => (who(), 0..6_usize).prop_map(|(who, back)| Step::Again { who, back }),
        1 => who().prop_map(|who| Step::Ahead { who }),
        4 => who().prop_map(|who| Step::See { who }),
        1 => who().prop_map(|who| Step::Lose { who }),
        4 => who().prop_map(|who| Step::Confirm { who }),
        2 => (100..12_000_u64).prop_map(|ms| Step::Tick { ms }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..120)
}

impl Pick {
    /// The operation, and its payload.
    pub fn op(&self, dirs: &[Ino], files: &[Ino]) -> (Op, Vec<u8>) {
        const NAMES: [&str; 4] = ["a", "b", "c", "d"];
        let (dir, other) = (dirs[self.dirs.0 % dirs.len()], dirs[self.dirs.1 % dirs.len()]);
        let all: Vec<Ino> = dirs.iter().chain(files).copied().collect();
        let any = all[self.ino % all.len()];
        let file = files.get(self.ino % files.len().max(1)).copied().unwrap_or(ROOT);
        let (at, to) = (NAMES[self.names.0], NAMES[self.names.1]);
        let rename =
            |how| Op::Upload(Upload::Rename { from_dir: dir, from: name(at), to_dir: other, to: name(to), how });
        let op = match self.what {
            0..=2 => lookup(dir, at),
            3..=5 => Op::View(View::Getattr { ino: any }),
            6 | 7 => Op::View(View::Readdir { dir, after: None, limit: 1000 }),
            8 | 9 => Op::View(View::Extents { ino: file, from: 0, limit: 1000 }),
            10 | 11 => make(dir, at, FileKind::File, 0o666, self.len),
            12 => make(dir, at, FileKind::Dir, 0o777, self.len),
            13 => link(any, dir, at),
            14 | 15 => rename(RenameHow::Replace),
            16 => rename(RenameHow::NoReplace),
            17 => rename(RenameHow::Exchange),
            18 => truncate(file, self.offset),
            19 => {
                let change = AttrChange { mode: Some(self.len), ..AttrChange::default() };
                Op::Upload(Upload::Setattr { ino: any, change })
            }
            20 | 21 => {
                let source = Source::Inline { payload_from: 0, payload_len: 4 };
                let at = if self.what == 20 { WriteAt::Offsets } else { WriteAt::End };
                let (offset, len) = (if self.what == 20 { self.offset } else { 0 }, self.len);
                let piece = Piece { offset, len, source, chunk_from: 3, key: wrapped_key() };
                let op = Op::Upload(Upload::Write { ino: file, at, pieces: vec![piece], reserved: false });
                return (op, vec![self.len as u8; 4]);
            }
            22 => unlink(dir, at),
            25 | 26 => {
                let other = files.get(self.dirs.0 % files.len().max(1)).copied().unwrap_or(ROOT);
                let from = Range { ino: other, offset: self.dirs.1 as u64 % 70, len: self.len.into() };
                Op::Upload(Upload::Clone { from, to: file, to_offset: self.offset })
            }
            23 | 24 => {
                use FallocateHow::{Clear, ClearAndExtend, Extend, Keep};
                let how = [Extend, Clear, ClearAndExtend, Keep][self.names.0 % 4];
                Op::Upload(Upload::Fallocate { ino: file, offset: self.offset, len: self.len.into(), how })
            }
            28..=30 => {
                let which = if self.what == 28 { AclKind::Access } else { AclKind::Default };
                let ino = if self.what == 30 { dir } else { any };
                let perm = |shift: u32| (self.offset as u32 >> shift & 7) as u8;
                let users: Vec<(u32, u8)> = (0..self.names.0).map(|id| (id as u32, perm(1))).collect();
                let mask = (!users.is_empty() || self.names.1 == 0).then(|| perm(2));
                let acl = Acl { user: perm(0), users, group: perm(3), groups: vec![], mask, other: perm(2) };
                Op::Upload(Upload::SetAcl { ino, which, acl: (self.names.1 < 3).then_some(acl), clear_setgid: false })
            }
            _ => rmdir(dir, at),
        };
        (op, Vec::new())
    }
}

/// What a player sent, and when in log time.
struct Sent {
    record: Bytes,
    op: Op,
    at: LogTime,
    answered: bool,
}

struct Player {
    client: Client,
    sent: Vec<Sent>,
    arrived: Vec<(PushNo, PushBody)>,
    seen: u64,
    to_confirm: Vec<PushNo>,
    /// Attributes, under what covers them.
    attrs: BTreeMap<Ino, (Attr, Promise, Position)>,
    names: BTreeMap<(Ino, Name), (Option<Ino>, Position)>,
    invalidated: BTreeMap<Promise, Position>,
    /// Answers from before this are not cached.
    not_before: Position,
    relied_until: LogTime,
}

impl Player {
    fn forget_all(&mut self, at: Position) {
        self.attrs.clear();
        self.names.clear();
        self.not_before = self.not_before.max(at);
    }

    /// All pushes up to this one count as seen, since nothing is cached any more.
    fn catch_up(&mut self, to: u64, at: Position) {
        self.forget_all(at);
        self.to_confirm.extend((self.seen + 1..=to).map(PushNo));
        self.seen = to;
    }

    fn see(&mut self, number: PushNo, body: &PushBody) {
        if number.0 > self.seen + 1 {
            return self.catch_up(number.0, body.at);
        }
        self.seen = self.seen.max(number.0);
        self.to_confirm.push(number);
        if let Push::Invalidate(things) = &body.push {
            for thing in things {
                let at = self.invalidated.entry(*thing).or_default();
                *at = (*at).max(body.at);
            }
            self.attrs.retain(|_, (_, cover, _)| !things.contains(cover));
            self.names.retain(|(dir, _), _| !things.contains(&Promise::Dir(*dir)));
        }
    }

    /// Caches what an answer shows, as far as it is promised.
    fn learn(&mut self, op: &Op, answer: &Answer) {
        let fresh = |thing: &Promise| {
            answer.granted.contains(thing)
                && answer.at >= self.not_before
                && self.invalidated.get(thing).is_none_or(|at| *at <= answer.at)
        };
        for attr in shown_attrs(answer) {
            let cover = super::super::rows::covering(&attr);
            if fresh(&cover) {
                self.attrs.insert(attr.ino, (attr, cover, answer.at));
            }
        }
        for (place, ino) in shown_names(op, answer) {
            if fresh(&Promise::Dir(place.0)) {
                self.names.insert(place, (ino, answer.at));
            }
        }
    }
}

fn shown_attrs(answer: &Answer) -> Vec<Attr> {
    match &answer.result {
        Ok(Outcome::Entry(attr) | Outcome::Extents { attr, .. } | Outcome::Cloned { to: attr, .. }) => {
            vec![attr.clone()]
        }
        Ok(Outcome::Renamed { moved, other }) => {
            let other = other.as_deref().filter(|other| other.nlink > 0 && other.ino != moved.ino);
            other.into_iter().chain([moved]).cloned().collect()
        }
        Ok(Outcome::Removed(attr)) if attr.nlink > 0 => vec![attr.clone()],
        Ok(Outcome::Listing { dir, entries, .. }) => {
            entries.iter().map(|listed| listed.attr.clone()).chain([dir.clone()]).collect()
        }
        _ => Vec::new(),
    }
}

fn shown_names(op: &Op, answer: &Answer) -> Vec<((Ino, Name), Option<Ino>)> {
    match (op, &answer.result) {
        (Op::View(View::Lookup { dir, name }), Ok(Outcome::Entry(attr)))
        | (Op::Upload(Upload::Create { dir, name, .. } | Upload::Link { dir, name, .. }), Ok(Outcome::Entry(attr))) => {
            vec![((*dir, name.clone()), Some(attr.ino))]
        }
        (Op::View(View::Lookup { dir, name }), Err(Refusal::NotFound))
        | (Op::Delete(Delete::Unlink { dir, name } | Delete::Rmdir { dir, name }), Ok(_)) => {
            vec![((*dir, name.clone()), None)]
        }
        (Op::Upload(Upload::Rename { to_dir, to, .. }), Ok(Outcome::Renamed { moved, .. })) => {
            vec![((*to_dir, to.clone()), Some(moved.ino))]
        }
        (Op::View(View::Readdir { dir, .. }), Ok(Outcome::Listing { entries, .. })) => {
            entries.iter().map(|listed| ((*dir, listed.name.clone()), Some(listed.attr.ino))).collect()
        }
        _ => Vec::new(),
    }
}

struct Play {
    world: World,
    model: Model,
    players: Vec<Player>,
    /// By player, number and offset of the record that was executed.
    expected: BTreeMap<(usize, u64, u64), Result<Seen, Refusal>>,
}

impl Play {
    fn new() -> Play {
        let mut world = World::new();
        let players = [1, 2]
            .map(|id| Player {
                client: world.open(id),
                sent: Vec::new(),
                arrived: Vec::new(),
                seen: 0,
                to_confirm: Vec::new(),
                attrs: BTreeMap::new(),
                names: BTreeMap::new(),
                invalidated: BTreeMap::new(),
                not_before: Position::default(),
                relied_until: LogTime(0),
            })
            .into();
        Play { world, model: Model::new(), players, expected: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Request { who, pick } => {
                let (op, payload) = pick.op(&self.model.inodes(true), &self.model.inodes(false));
                self.request(*who, op, &payload);
            }
            Step::Again { who, back } => self.again(*who, *back),
            Step::Ahead { who } => {
                let client = &self.players[*who].client;
                let record = self.world.sealed(client, client.number + 2, lookup(ROOT, "a"), &[]);
                let effects = self.world.effects(&record);
                let answer = answers(&effects, self.players[*who].client.id).remove(0).1;
                let expected = RequestNo(self.players[*who].client.number + 1);
                assert_eq!(answer.result, Ok(Outcome::Gap { expected }));
            }
            Step::See { who } => {
                let player = &mut self.players[*who];
                for (number, body) in std::mem::take(&mut player.arrived) {
                    player.see(number, &body);
                }
            }
            Step::Lose { who } => self.players[*who].arrived.clear(),
            Step::Confirm { who } => {
                let pushes = std::mem::take(&mut self.players[*who].to_confirm);
                self.request(*who, Op::Session(SessionOp::Confirm { pushes }), &[]);
            }
            Step::Tick { ms } => {
                let effects = self.world.pass_ms(*ms);
                self.take(effects);
                for who in 0..self.players.len() {
                    let last = self.players[who].sent.last().map_or(LogTime(0), |sent| sent.at);
                    if self.world.machine.log_time() >= last.plus_ms(40_000) {
                        self.request(who, Op::Session(SessionOp::Renew), &[]);
                    }
                }
            }
            Step::Restart => self.world.restart(),
        }
    }

    fn offset(&self) -> u64 {
        self.world.log.len() as u64
    }

    fn request(&mut self, who: usize, op: Op, payload: &[u8]) {
        let (offset, at) = (self.offset(), self.world.machine.log_time());
        let player = &mut self.players[who];
        // An own change is learnt from its answer; and what has once lapsed is not
        // promised again by speaking again.
        if op.is_change() || at >= player.relied_until {
            player.forget_all(Position { epoch: Epoch(1), partition: PARTITION, offset, index: 0 });
        }
        let number = player.client.number + 1;
        self.expected.insert((who, number, offset), self.model.execute(&op, offset));
        let mut client = player.client.clone();
        let effects = self.world.send_with(&mut client, op.clone(), payload);
        let player = &mut self.players[who];
        player.sent.push(Sent { record: client.last.clone(), op, at, answered: false });
        player.client = client;
        self.take(effects);
    }

    fn again(&mut self, who: usize, back: usize) {
        let offset = self.offset();
        let player = &self.players[who];
        let Some(index) = player.sent.len().checked_sub(1 + back) else { return };
        let sent = &player.sent[index];
        if !sent.op.is_change() {
            let expected = self.model.execute(&sent.op, offset);
            self.expected.insert((who, index as u64 + 1, offset), expected);
        }
        let record = sent.record.clone();
        let effects = self.world.effects(&record);
        self.take(effects);
    }

    /// What leaves the machine reaches the players.
    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let who_is = |id: SessionId| usize::from(id.0[0]) - 1;
            match effect {
                Effect::Push { to, number, body } => self.players[who_is(to.session)].arrived.push((number, body)),
                Effect::Answer { to, number, answer, .. } => self.answered(who_is(to.session), number.0, &answer),
                Effect::SessionOver { session } => panic!("{session} is over"),
                _ => {}
            }
        }
    }

    fn answered(&mut self, who: usize, number: u64, answer: &Answer) {
        let expected = &self.expected[&(who, number, answer.at.offset)];
        assert_eq!(&answer.result.as_ref().map(Seen::of).map_err(|refusal| *refusal), expected);
        let now = self.world.machine.log_time();
        let op = self.players[who].sent.get(number as usize - 1).map(|sent| sent.op.clone());
        let op = op.expect("answers follow requests");
        for (other, player) in self.players.iter().enumerate() {
            if other != who && now < player.relied_until {
                player.must_not_rely_on_less(&op, answer);
            }
        }
        let player = &mut self.players[who];
        let sent = &mut player.sent[number as usize - 1];
        sent.answered = true;
        player.relied_until = player.relied_until.max(sent.at.plus_ms(10_000));
        if answer.pushed.0 > player.seen {
            player.catch_up(answer.pushed.0, answer.at);
        }
        player.learn(&op, answer);
    }

    /// Lets everything come to rest, and checks what must then be true.
    fn finish(mut self) {
        let effects = self.world.pass_ms(11_000);
        self.take(effects);
        for player in &self.players {
            assert!(player.sent.iter().all(|sent| sent.answered), "every request is answered in the end");
        }
        self.world.assert_replayable();
        super::audit::audit(&self.world);
    }
}

impl Player {
    /// Another player is shown this, so nothing older may still be believed here.
    fn must_not_rely_on_less(&self, op: &Op, answer: &Answer) {
        for attr in shown_attrs(answer) {
            if let Some((believed, cover, at)) = self.attrs.get(&attr.ino) {
                assert!(*at >= answer.at || *believed == attr, "{believed:?} under {cover:?} is over: {attr:?}");
            }
        }
        for (place, ino) in shown_names(op, answer) {
            if let Some((believed, at)) = self.names.get(&place) {
                assert!(*at >= answer.at || *believed == ino, "{place:?} is no longer {believed:?} but {ino:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_play_keeps_its_promises(steps in steps()) {
        let mut play = Play::new();
        for step in &steps {
            play.step(step);
        }
        play.finish();
    }
}
