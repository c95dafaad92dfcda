//! Random plays of two sessions against the model filesystem: requests, repeats,
//! gaps, lost and late pushes, ticks, restarts from a dump.
//!
//! The players cache what they are promised, as mounts do. Checked is that every
//! answer is the model's, that each change happens once, that no answer leaves
//! while another player still relies on something else, that in the end every
//! request is answered, and that a machine fed the same log is equal in every byte.
//!
//! Players that can answer for what they are delegated do so, and send it later. Then what is executed meanwhile for the
//! other must be as if it had been sent at once, and what is sent must do what it was answered, or be refused as all
//! that comes after it.

use super::model::{Model, Seen};
use super::*;
use proptest::prelude::*;
use proto::LogTime;
use proto::frame::join;
use proto::message::{Acl, AclKind, FallocateHow, PushBody, Range, RenameHow};
use std::collections::{BTreeMap, BTreeSet};

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
    /// The player answers something itself, if it can.
    Local {
        who: usize,
        pick: Pick,
    },
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
        10 => (who(), picks()).prop_map(|(who, pick)| Step::Local { who, pick }),
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

/// What a player has answered itself and not sent.
struct Owed {
    op: Op,
    result: Result<Seen, Refusal>,
}

/// A change that waits in the machine.
struct Waits {
    who: usize,
    number: u64,
    op: Op,
    offset: u64,
}

struct Player {
    client: Client,
    /// What it may answer for itself.
    delegated: BTreeSet<Promise>,
    owed: Vec<Owed>,
    /// What it has answered itself was not taken: nothing of it is any more.
    broken_off: bool,
    /// Numbers for what it makes itself.
    inodes: Vec<Ino>,
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

    /// Whether a change of its own is on its way.
    fn is_changing(&self) -> bool {
        self.sent.iter().any(|sent| !sent.answered && sent.op.is_change())
    }

    /// All pushes up to this one count as seen, since nothing is cached any more.
    fn catch_up(&mut self, to: u64, at: Position) {
        self.forget_all(at);
        self.delegated.clear();
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
            self.delegated.retain(|thing| !things.contains(thing));
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
        self.delegated.extend(answer.delegated.iter().filter(|thing| fresh(thing)));
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
    /// What waits, by its order; and how what has waited must have ended.
    waits: BTreeMap<u64, Waits>,
    outcomes: BTreeMap<(usize, u64), Result<Seen, Refusal>>,
}

/// Inodes that a player may make itself.
const OWN_INODES: u32 = 64;

impl Play {
    fn new(ids: [u8; 2]) -> Play {
        let mut world = World::new();
        let players = ids
            .map(|id| Player {
                client: world.open(id),
                delegated: BTreeSet::new(),
                owed: Vec::new(),
                broken_off: false,
                inodes: Vec::new(),
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
        let (expected, waits, outcomes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut play = Play { world, model: Model::new(), players, expected, waits, outcomes };
        for who in 0..ids.len() {
            play.request(who, Op::Session(SessionOp::Inodes { count: OWN_INODES }), &[]);
            let first = 2 + u64::from(OWN_INODES) * who as u64;
            play.players[who].inodes = (0..u64::from(OWN_INODES)).map(|n| Ino::new(NAMESPACE, first + n)).collect();
            play.model.give_inodes(OWN_INODES);
        }
        play
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
                self.pass(*ms);
                for who in 0..self.players.len() {
                    let last = self.players[who].sent.last().map_or(LogTime(0), |sent| sent.at);
                    if self.world.machine.log_time() >= last.plus_ms(40_000) {
                        self.request(who, Op::Session(SessionOp::Renew), &[]);
                    }
                }
            }
            Step::Restart => self.world.restart(),
            Step::Local { who, pick } => self.answer_itself(*who, pick),
        }
    }

    /// Answers for what it is delegated, as a mount would: what it is about is all its own, and it is not waiting for
    /// an answer about it.
    fn answer_itself(&mut self, who: usize, pick: &Pick) {
        let now = self.world.machine.log_time();
        let player = &self.players[who];
        if now >= player.relied_until || player.sent.iter().any(|sent| !sent.answered) {
            return;
        }
        for (_, other) in self.players.iter().enumerate().filter(|(other, _)| *other != who) {
            let relies = |thing: &Promise| now < other.relied_until && player.delegated.contains(thing);
            assert!(!other.attrs.values().any(|(_, cover, _)| relies(cover)), "another relies on what is delegated");
            assert!(!other.names.keys().any(|(dir, _)| relies(&Promise::Dir(*dir))), "another relies on it");
        }
        let mut model = self.with_owed(who);
        let (mut op, payload) = pick.op(&model.inodes(true), &model.inodes(false));
        let is_its = |dir: &Ino| player.delegated.contains(&Promise::Dir(*dir));
        // It knows what stands there by having been shown it, for which it was asked back from whoever was at work there.
        let id = player.client.id;
        let is_left = |thing: Promise| self.world.machine.delegated.holder(&thing).is_none_or(|of| of == id);
        let is_shown = |ino: &Ino| is_left(Promise::Content(*ino)) && is_left(Promise::Dir(*ino));
        let is_its_file = |ino: &Ino| player.delegated.contains(&model.covering(*ino)) && is_shown(ino);
        let may = payload.is_empty()
            && match &op {
                Op::Upload(Upload::Create { dir, name, .. }) => {
                    let is_free = model.named(*dir, name).is_none_or(|ino| is_shown(&ino));
                    is_its(dir) && is_free && !player.inodes.is_empty()
                }
                Op::Upload(Upload::Setattr { ino, .. }) => is_its_file(ino),
                Op::Upload(Upload::Link { ino, dir, name }) => {
                    let is_free = model.named(*dir, name).is_none_or(|ino| is_shown(&ino));
                    is_its(dir) && is_free && is_its_file(ino)
                }
                Op::Delete(Delete::Unlink { dir, name }) => {
                    is_its(dir) && model.named(*dir, name).is_none_or(|ino| is_its_file(&ino))
                }
                Op::Upload(Upload::Rename { from_dir, from, to_dir, to, .. }) => {
                    // Of directories that are moved elsewhere or replaced more is looked at.
                    let is_file = |ino: &Ino| model.covering(*ino) != Promise::Dir(*ino);
                    let fits = |dir: &Ino, name, dirs: bool| {
                        model.named(*dir, name).is_none_or(|ino| is_its_file(&ino) && (dirs || is_file(&ino)))
                    };
                    is_its(from_dir)
                        && is_its(to_dir)
                        && fits(from_dir, from, from_dir == to_dir)
                        && fits(to_dir, to, false)
                }
                _ => false,
            };
        if !may {
            return;
        }
        if let Op::Upload(Upload::Create { new, .. }) = &mut op {
            new.ino = self.players[who].inodes.pop();
        }
        let result = model.execute(&op, 0);
        let player = &mut self.players[who];
        // Where it will stand is not known, and it is newer than all that is known here.
        player.attrs.clear();
        player.names.clear();
        if let (Op::Upload(Upload::Create { new, .. }), Ok(Seen::Entry(_))) = (&op, &result)
            && new.kind == FileKind::Dir
        {
            player.delegated.extend(new.ino.map(Promise::Dir));
        }
        // What is refused is not sent.
        if result.is_ok() {
            player.owed.push(Owed { op, result });
        }
    }

    /// What this player sees: what has been executed, and what it has answered itself.
    fn with_owed(&self, who: usize) -> Model {
        let mut model = self.model.clone();
        for owed in &self.players[who].owed {
            let _ = model.execute(&owed.op, 0);
        }
        model
    }

    /// Sends what the player has answered itself.
    fn send_owed(&mut self, who: usize) {
        let mut forfeited = false;
        let owed = std::mem::take(&mut self.players[who].owed);
        // All in one record, or each in its own.
        let together = if self.offset().is_multiple_of(2) { owed.len().max(1) } else { 1 };
        for owed in owed.chunks(together) {
            let (offset, at) = (self.offset(), self.world.machine.log_time());
            let id = self.players[who].client.id;
            forfeited |= self.world.machine.has_forfeited(id);
            let mut frames = Vec::new();
            for Owed { op, result } in owed {
                let player = &mut self.players[who];
                let record = self.world.sealed_local(&mut player.client, op.clone());
                frames.push(record.clone());
                player.sent.push(Sent { record, op: op.clone(), at, answered: false });
                let done = match forfeited {
                    true => Err(Refusal::NotDelegated),
                    false => {
                        assert_eq!(self.model.execute(op, offset), *result, "{op:?} is not what it was answered");
                        result.clone()
                    }
                };
                self.expected.insert((who, player.client.number, offset), done);
            }
            let effects = self.world.effects(&join(&frames));
            let place = Position { epoch: Epoch(1), partition: PARTITION, offset, index: 0 };
            self.players[who].forget_all(place.of_frame(frames.len() as u8 - 1));
            let waiting = |frame: usize| self.world.machine.is_waiting(place.of_frame(frame as u8));
            assert!(!(0..frames.len()).any(waiting), "what is its own waits for nobody");
            self.go_on();
            self.take(effects);
        }
        if forfeited {
            self.players[who].broken_off = true;
            self.players[who].delegated.clear();
            self.request(who, Op::Session(SessionOp::Undelegated), &[]);
        }
    }

    /// A record has been applied that may have let others go on, or wait.
    fn go_on(&mut self) {
        let gone: Vec<u64> =
            self.waits.keys().filter(|order| !self.world.machine.live.waiting.contains_key(order)).copied().collect();
        for order in gone {
            let Waits { who, number, op, offset } = self.waits.remove(&order).expect("just found");
            let result = match op.is_change() {
                true => self.execute(who, &op, offset),
                false => Err(Refusal::Again),
            };
            self.outcomes.insert((who, number), result);
        }
    }

    /// Executes something for a player. For others it must be as if what they have answered themselves had been sent.
    fn execute(&mut self, who: usize, op: &Op, offset: u64) -> Result<Seen, Refusal> {
        let seen_by = |player: &(usize, &Player)| {
            player.0 != who && !player.1.owed.is_empty() && !self.world.machine.has_forfeited(player.1.client.id)
        };
        let others: Vec<usize> = self.players.iter().enumerate().filter(seen_by).map(|(other, _)| other).collect();
        let seen: Vec<_> = others.into_iter().map(|other| self.with_owed(other).execute(op, offset)).collect();
        let result = self.model.execute(op, offset);
        for seen in seen {
            assert_eq!(seen, result, "{op:?} does not see what was answered");
        }
        result
    }

    /// A request has been applied: it has been executed, or waits, or has waited for a moment.
    fn applied(&mut self, who: usize, number: u64, op: &Op, offset: u64, effects: &[Effect]) {
        let id = self.players[who].client.id;
        let told = answers(effects, id).into_iter().find(|(of, _)| of.0 == number).map(|(_, answer)| answer);
        let mut waiting = self.world.machine.live.waiting.iter();
        let order = waiting.find(|(_, waiting)| (waiting.to.session, waiting.to.number.0) == (id, number));
        let order = order.map(|(order, _)| *order);
        let result = match (order, told.is_some_and(|answer| answer.is_waiting())) {
            (Some(order), _) => {
                self.waits.entry(order).or_insert_with(|| Waits { who, number, op: op.clone(), offset });
                Ok(Seen::Other)
            }
            (None, true) => {
                let result = if op.is_change() { self.execute(who, op, offset) } else { Err(Refusal::Again) };
                self.outcomes.entry((who, number)).or_insert(result);
                Ok(Seen::Other)
            }
            _ if self.players[who].broken_off && !matches!(op, Op::Session(_)) => Err(Refusal::NotDelegated),
            _ => self.execute(who, op, offset),
        };
        self.expected.insert((who, number, offset), result);
        self.go_on();
    }

    fn offset(&self) -> u64 {
        self.world.log.len() as u64
    }

    fn request(&mut self, who: usize, op: Op, payload: &[u8]) {
        self.send_owed(who);
        let (offset, at) = (self.offset(), self.world.machine.log_time());
        let player = &mut self.players[who];
        // An own change is learnt from its answer; and what has once lapsed is not
        // promised again by speaking again.
        if op.is_change() || at >= player.relied_until {
            player.forget_all(Position { epoch: Epoch(1), partition: PARTITION, offset, index: 0 });
        }
        if at >= player.relied_until && !player.delegated.is_empty() && op != Op::Session(SessionOp::Undelegated) {
            player.delegated.clear();
            self.request(who, Op::Session(SessionOp::Undelegated), &[]);
            return self.request(who, op, payload);
        }
        let number = player.client.number + 1;
        let mut client = player.client.clone();
        let effects = self.world.send_with(&mut client, op.clone(), payload);
        let player = &mut self.players[who];
        player.sent.push(Sent { record: client.last.clone(), op: op.clone(), at, answered: false });
        player.client = client;
        self.applied(who, number, &op, offset, &effects);
        self.take(effects);
    }

    fn again(&mut self, who: usize, back: usize) {
        let offset = self.offset();
        let player = &self.players[who];
        let Some(index) = player.sent.len().checked_sub(1 + back) else { return };
        let sent = &player.sent[index];
        let (record, op) = (sent.record.clone(), sent.op.clone());
        let effects = self.world.effects(&record);
        if !op.is_change() {
            self.applied(who, index as u64 + 1, &op, offset, &effects);
        }
        self.go_on();
        self.take(effects);
    }

    /// What leaves the machine reaches the players.
    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let who_is =
                |id: SessionId| self.players.iter().position(|player| player.client.id == id).expect("a player");
            match effect {
                Effect::Push { to, number, body } => {
                    let who = who_is(to.session);
                    if let Push::Outcome { number, result } = &body.push {
                        self.ended(who, number.0, body.at, result);
                    }
                    self.players[who].arrived.push((number, body));
                }
                Effect::Answer { to, number, answer, .. } => self.answered(who_is(to.session), number.0, &answer),
                Effect::SessionOver { session } => panic!("{session} is over"),
                _ => {}
            }
        }
    }

    /// A request that waited has ended.
    fn ended(&mut self, who: usize, number: u64, at: Position, result: &Result<Outcome, Refusal>) {
        let expected = &self.outcomes[&(who, number)];
        assert_eq!(&result.as_ref().map(Seen::of).map_err(|refusal| *refusal), expected);
        let answer = Answer { at, pushed: PushNo(0), result: result.clone(), granted: vec![], delegated: vec![] };
        self.shows(who, number, &answer);
        self.players[who].sent[number as usize - 1].answered = true;
    }

    /// An answer leaves: nobody else may still rely on something else.
    fn shows(&self, who: usize, number: u64, answer: &Answer) -> Op {
        let now = self.world.machine.log_time();
        let op = self.players[who].sent.get(number as usize - 1).map(|sent| sent.op.clone());
        let op = op.expect("answers follow requests");
        for (other, player) in self.players.iter().enumerate() {
            if other != who && now < player.relied_until {
                player.must_not_rely_on_less(&op, answer);
            }
        }
        op
    }

    fn answered(&mut self, who: usize, number: u64, answer: &Answer) {
        let expected = &self.expected[&(who, number, answer.at.offset)];
        assert_eq!(&answer.result.as_ref().map(Seen::of).map_err(|refusal| *refusal), expected);
        let op = (!answer.is_waiting()).then(|| self.shows(who, number, answer));
        let player = &mut self.players[who];
        let sent = &mut player.sent[number as usize - 1];
        sent.answered |= op.is_some();
        player.relied_until = player.relied_until.max(sent.at.plus_ms(10_000));
        if answer.pushed.0 > player.seen {
            player.catch_up(answer.pushed.0, answer.at);
        }
        // What an own change that is on its way may concern is not answered for from what is known.
        if let Some(op) = op.filter(|_| !player.is_changing()) {
            player.learn(&op, answer);
        }
    }

    fn pass(&mut self, ms: u64) {
        // Each tick may let somebody go on.
        for from in (0..ms).step_by(500) {
            let effects = self.world.pass_ms((ms - from).min(500));
            self.go_on();
            self.take(effects);
        }
    }

    /// Lets everything come to rest, and checks what must then be true.
    fn finish(mut self) {
        self.pass(11_000);
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

fn play(ids: [u8; 2], steps: &[Step]) {
    let mut play = Play::new(ids);
    for step in steps {
        play.step(step);
    }
    play.finish();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_play_keeps_its_promises(steps in steps()) {
        play([1, 2], &steps);
    }

    #[test]
    fn every_play_keeps_what_it_answers_itself(steps in steps()) {
        play([DELEGABLE, DELEGABLE + 1], &steps);
    }

    #[test]
    fn every_play_keeps_what_one_answers_itself(steps in steps()) {
        play([1, DELEGABLE], &steps);
    }
}
