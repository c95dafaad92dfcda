//! Holds a history against the promises.
//!
//! * Every request gave, at its place in the log, what the model gives there.
//! * Every operation of every mount can be put at a place in the log between its
//!   beginning and its end so that it saw what was there; what had ended before it began
//!   stands before it. A change stands where its request does.
//! * No change has taken effect twice; those of one client take effect in their order, and
//!   what there is of a killed client's changes is a prefix of them.
//! * What a mount has answered for itself comes about, though it was killed; if its machine's power went, what an fsync
//!   had covered.

mod places;

use self::places::{Apart, concerned, find_place, find_places, is_of_many_moments, nearby, show};
use super::counting;
use super::history::{Applied, ChangeId, Entered, Found, Inner, Operation, Room, Wrote};
use super::model::Model;
use mount::client::ContentKeys;
use proto::chunk::{ChunkName, ValuePurpose};
use proto::frame::Frame;
use proto::log::{Record, Topic};
use proto::message::{Op, Refusal, Resource, Source, Upload};
use proto::{Epoch, Ino, Position};
use std::collections::{BTreeMap, BTreeSet};

/// The epoch in which a run begins.
pub const FIRST_EPOCH: Epoch = Epoch(1);

/// What the checks know besides the history.
pub struct Known<'a> {
    /// What was done before the run.
    pub before: &'a [(Position, Applied)],
    pub root: Ino,
    pub keys: &'a ContentKeys,
    /// All records of the topic that there ever were.
    pub chunks: &'a [Record],
    /// The client that only looked when everything was over.
    pub fresh: usize,
    /// If the log was lost: by partition, the first offset that the new epoch's state lacks.
    pub kept: Option<&'a BTreeMap<u32, u64>>,
    /// It has lost ends of partitions only, and the new epoch's state has the rest.
    pub lost_ends: bool,
    /// Whether a killed client's successor takes over its session.
    pub journal: bool,
    /// Whether a client's journal can have been lost.
    pub power_goes: bool,
    /// Whether a server can have lost what it had applied and not brought to disk.
    pub may_lose: bool,
}

/// Who has seen something, or what was seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Client(usize),
    Inode(u64),
}

/// A part of the history that is to hold by itself.
struct View<'a> {
    applied: BTreeMap<Position, &'a Applied>,
    /// Each with its number.
    operations: Vec<(usize, &'a Operation)>,
    entered: &'a [Entered],
    /// Changes that went with the log.
    gone: BTreeSet<ChangeId>,
}

/// Says what is wrong, if anything is.
pub fn check(history: &Inner, known: &Known<'_>) -> Result<(), String> {
    if let Some(violation) = &history.violation {
        return Err(violation.clone());
    }
    quota(history)?;
    counting::check(history)?;
    let views = views(history, known);
    if let Some(view) = views.last().filter(|view| !view.gone.is_empty() && !known.may_lose) {
        return Err(format!("{} changes went with the log, though a server had applied them", view.gone.len()));
    }
    views.iter().try_for_each(|view| {
        let model = replay(view, known)?;
        let by_id = exactly_once(view)?;
        in_order(view, &by_id, &history.waited, known.journal)?;
        linearizable(view, &model, &Ahead::of(view, &by_id, &history.lives), &by_id, known.fresh)?;
        if known.kept.is_none() { nothing_lost(view, &by_id, history, known.power_goes) } else { Ok(()) }
    })
}

/// What mounts had answered for themselves has come to the server: of one whose journal was lost, what stood before an
/// fsync.
fn nothing_lost(
    view: &View<'_>,
    by_id: &BTreeMap<ChangeId, Position>,
    history: &Inner,
    power_goes: bool,
) -> Result<(), String> {
    let missing = view.entered.iter().filter(|entered| entered.is_local && !by_id.contains_key(&entered.id));
    for entered in missing.filter(|entered| !entered.is_bound) {
        let client = entered.id.client() as usize;
        let synced = history.synced.iter().any(|(of, at)| {
            let born = history.lives.get(&client).map_or(0, |lives| lives.iter().filter(|born| *born < at).count());
            *of == client && *at > entered.moment && born == entered.life
        });
        if synced || !power_goes {
            return Err(format!("client {client}'s change of {:?} was answered, and is lost", entered.id));
        }
    }
    Ok(())
}

/// What is used and reserved together grows up to the quota and no further, and nothing is refused that fits.
fn quota(history: &Inner) -> Result<(), String> {
    let mut before: Option<Room> = None;
    let mut epoch = FIRST_EPOCH;
    for (at, room) in &history.rooms {
        if std::mem::replace(&mut epoch, at.epoch) != at.epoch {
            // It begins from what was kept.
            before = None;
        }
        for of in Resource::ALL {
            let Some(before) = before.filter(|before| before.quota == room.quota && !before.is_free[of]) else {
                continue;
            };
            let (was, is) = (before.full(of), room.full(of));
            if room.quota[of].is_some_and(|quota| is > quota.max(was)) {
                return Err(format!("at {at} more is used and reserved than the quota allows: {before:?}, {room:?}"));
            }
        }
        if let Some(applied) = history.applied.get(at)
            && applied.result == Err(Refusal::QuotaExceeded)
        {
            let (of, adds) = match &applied.op {
                Op::Upload(Upload::Create { .. }) => (Resource::Inodes, 1),
                Op::Upload(Upload::Write { pieces, .. }) => {
                    (Resource::Bytes, pieces.iter().map(|piece| u64::from(piece.len)).sum())
                }
                _ => (Resource::Bytes, u64::MAX),
            };
            let fits = room.quota[of].is_none_or(|quota| room.full(of).saturating_add(adds) <= quota);
            if fits {
                return Err(format!("at {at} was refused what fits: {room:?}, {:?}", applied.op));
            }
        }
        before = Some(*room);
    }
    Ok(())
}

/// The whole of it; or, if applied records went with the log, what was before that, and what
/// is without them.
fn views<'a>(history: &'a Inner, known: &Known<'_>) -> Vec<View<'a>> {
    let kept_before = |at: &Position| known.kept.and_then(|kept| kept.get(&at.partition)).copied();
    let is_gone = |at: &Position, applied: &Applied| {
        let is_lacked = match known.lost_ends {
            // Its state has what was lost there, so it has none of what has come to stand in those places.
            true => {
                let end = history.ends.get(&(Topic::Requests, at.partition)).copied();
                let is_other = || end.zip(kept_before(at)).is_some_and(|(end, kept)| kept > end);
                history.log_lost.is_some_and(|lost_at| applied.moment > lost_at) && is_other()
            }
            false => kept_before(at).is_some_and(|kept| at.offset >= kept),
        };
        is_lacked && at.epoch == FIRST_EPOCH
    };
    let entered = &history.entered[..];
    let applied = || history.applied.iter().map(|(at, applied)| (*at, applied));
    let is_kept = |at: &Position| kept_before(at).is_some_and(|kept| at.offset < kept);
    let lost = |kept: bool| history.lost.iter().filter(move |(at, _)| is_kept(at) == kept);
    let operations = || history.operations.iter().enumerate();
    let gone: BTreeSet<ChangeId> = applied()
        .filter(|(at, applied)| is_gone(at, applied))
        .chain(lost(false).map(|(at, applied)| (*at, applied)))
        .map(|(_, applied)| applied.id)
        .collect();
    let kept = || {
        applied().filter(|(at, applied)| !is_gone(at, applied)).chain(lost(true).map(|(at, applied)| (*at, applied)))
    };
    let Some(lost_at) = history.log_lost.filter(|_| !gone.is_empty()) else {
        return vec![View { applied: kept().collect(), operations: operations().collect(), entered, gone }];
    };
    // From when on each client has been heard in the new epoch, and so trusts nothing from before.
    let mut heard: BTreeMap<usize, u64> = BTreeMap::new();
    for (_, applied) in applied().filter(|(at, _)| at.epoch > FIRST_EPOCH) {
        heard.entry(applied.id.client() as usize).or_insert(applied.moment);
    }
    // What has come after the loss may stand in the place of something that was lost.
    let was_applied =
        |at: &Position, applied: &Applied| at.epoch == FIRST_EPOCH && (!known.lost_ends || applied.moment < lost_at);
    let was = View {
        applied: applied()
            .filter(|(at, applied)| was_applied(at, applied))
            .chain(history.lost.iter().map(|(at, applied)| (*at, applied)))
            .collect(),
        operations: operations().filter(|(_, one)| one.returned.is_some_and(|returned| returned < lost_at)).collect(),
        entered,
        gone: BTreeSet::new(),
    };
    let knows = |one: &Operation| heard.get(&one.client).is_some_and(|heard| one.invoked > *heard);
    let is = View {
        applied: kept().collect(),
        operations: operations().filter(|(_, one)| knows(one)).collect(),
        entered,
        gone,
    };
    vec![was, is]
}

fn replay(view: &View<'_>, known: &Known<'_>) -> Result<Model, String> {
    let mut model = Model::new(known.root);
    let plain = |applied: &Applied| plain(applied, known.keys, known.chunks);
    let before = known.before.iter().map(|(at, applied)| (at, applied));
    for (at, applied) in before.chain(view.applied.iter().map(|(at, applied)| (at, *applied))) {
        model.apply(*at, applied, &plain).map_err(|reason| {
            format!(
                "the request at {at} ({:?}, number {} of {}): {reason}",
                applied.op, applied.number, applied.session
            )
        })?;
    }
    Ok(model)
}

/// A write's plain content, or that of an extended attribute, opened with the namespace's keys.
fn plain(applied: &Applied, keys: &ContentKeys, chunks: &[Record]) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let pieces = match &applied.op {
        Op::Upload(Upload::Write { pieces, .. }) => pieces,
        Op::Upload(Upload::SetXattr { value, .. }) => {
            let value = keys.open_value(ValuePurpose::Xattr, value);
            return Ok(vec![(0, value.map_err(|error| format!("an attribute: {error}"))?)]);
        }
        _ => return Ok(Vec::new()),
    };
    let mut out = Vec::new();
    for piece in pieces {
        let (sealed, hash) = match &piece.source {
            Source::Inline { payload_from, payload_len } => {
                let from = *payload_from as usize;
                let sealed = applied.payload.slice(from..from + *payload_len as usize);
                let hash = *blake3::hash(&sealed).as_bytes();
                (sealed, hash)
            }
            Source::Chunk(name) => (uploaded(name, chunks)?, name.hash),
        };
        let content = keys.open_content(&piece.key, &hash, &sealed).map_err(|error| format!("a piece: {error}"))?;
        let from = piece.chunk_from as usize;
        let Some(part) = content.get(from..from + piece.len as usize) else {
            return Err("a piece is larger than its content".into());
        };
        out.push((piece.offset, part.to_vec()));
    }
    Ok(out)
}

fn uploaded(name: &ChunkName, chunks: &[Record]) -> Result<bytes::Bytes, String> {
    let here = chunks.iter().filter(|record| {
        record.topic == Topic::Chunks && record.partition == name.partition && record.offset == name.offset
    });
    let mut contents = here.filter_map(|record| Some(Frame::parse(record.value.clone()).ok()?.payload()));
    // Each epoch has its own.
    let found = contents.find(|content| *blake3::hash(content).as_bytes() == name.hash);
    found.ok_or_else(|| format!("the chunk {name} is not in the log"))
}

/// Where each change took effect, or was refused.
fn exactly_once(view: &View<'_>) -> Result<BTreeMap<ChangeId, Position>, String> {
    let mut by_id = BTreeMap::new();
    for (at, applied) in view.applied.iter().filter(|(_, applied)| applied.op.outlives_session()) {
        // Even if it is refused then: it can have been refused for what it did itself.
        if let Some(before) = by_id.insert(applied.id, *at) {
            return Err(format!("a change was executed twice, at {before} and at {at}: {:?}", applied.op));
        }
    }
    Ok(by_id)
}

/// One client's changes take effect in the order in which it entered them, and of
/// those of a life that was cut short the first ones.
fn in_order(
    view: &View<'_>,
    by_id: &BTreeMap<ChangeId, Position>,
    waited: &BTreeSet<ChangeId>,
    journal: bool,
) -> Result<(), String> {
    // By client; without a journal by its life too, since what the one before had on its way comes whenever it comes.
    let mut last: BTreeMap<(u32, usize), (Position, ChangeId)> = BTreeMap::new();
    // By client and life, the first change that never came to the server.
    let mut missing: BTreeMap<(u32, usize), ChangeId> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for entered in view.entered {
        // What a journal held is entered once more, behind itself.
        if !seen.insert(entered.id) || view.gone.contains(&entered.id) && !by_id.contains_key(&entered.id) {
            continue;
        }
        let client = entered.id.client();
        let Some(at) = by_id.get(&entered.id) else {
            // One that had to wait until its session's end comes once more, if its client lives or its journal does.
            if !entered.is_bound && !waited.contains(&entered.id) {
                missing.entry((client, entered.life)).or_insert(entered.id);
            }
            continue;
        };
        if let Some(before) = missing.get(&(client, entered.life)) {
            return Err(format!(
                "client {client}'s change of {before:?} is missing, though a later one took effect at {at}"
            ));
        }
        // It had to wait for what others were delegated, maybe until its session's end, and then came once more: nothing
        // that was entered since depends on it.
        if waited.contains(&entered.id) {
            continue;
        }
        let life = if journal { 0 } else { entered.life };
        if let Some((before, _)) = last.insert((client, life), (*at, entered.id))
            && before > *at
        {
            return Err(format!(
                "client {client} entered a change after another, and they took effect at {at} and {before}"
            ));
        }
    }
    Ok(())
}

fn linearizable(
    view: &View<'_>,
    model: &Model,
    ahead: &Ahead,
    by_id: &BTreeMap<ChangeId, Position>,
    fresh: usize,
) -> Result<(), String> {
    let mut by_operation: BTreeMap<usize, Vec<Position>> = BTreeMap::new();
    let is_change = |operation: &Operation| matches!(operation.found, Found::Changed(_));
    let changes: BTreeSet<usize> =
        view.operations.iter().filter(|(_, operation)| is_change(operation)).map(|(number, _)| *number).collect();
    for entered in view.entered {
        if let (Some(operation), Some(at)) = (entered.operation, by_id.get(&entered.id)) {
            // What was written and had to go first is not the change itself, which may have been refused before it was sent.
            if entered.writes.is_none() || !changes.contains(&operation) {
                by_operation.entry(operation).or_default().push(*at);
            }
        }
    }
    // When each place came into being, in order of both.
    let mut moments: Vec<(u64, Position)> = Vec::new();
    let mut latest = Position::default();
    for (at, applied) in &view.applied {
        latest = latest.max(*at);
        let moment = moments.last().map_or(applied.moment, |(before, _)| applied.moment.max(*before));
        moments.push((moment, latest));
    }
    let up_to = |moment: u64| {
        let index = moments.partition_point(|(at, _)| *at < moment);
        index.checked_sub(1).map_or(Position::default(), |index| moments[index].1)
    };

    let mut order = view.operations.clone();
    order.retain(|(_, operation)| operation.returned.is_some());
    order.sort_by_key(|(_, operation)| operation.returned);
    let mut changed: BTreeMap<Position, Vec<u64>> = BTreeMap::new();
    for (ino, versions) in &model.versions {
        for (at, _) in versions {
            changed.entry(*at).or_default().push(*ino);
        }
    }
    // The highest place of anything that had returned by each moment: of what the same client had
    // done, and of what anybody had done with the same inode. Two changes that have nothing in common
    // have no order for anybody who has seen neither (Herlihy and Wing: linearizability is local).
    let mut returned: BTreeMap<Whose, Vec<(u64, Position)>> = BTreeMap::new();
    for (number, operation) in order {
        let end = operation.returned.expect("only those were kept");
        if ahead.is_doubtful(number, operation, end) {
            continue;
        }
        let highest = |whose: Whose| {
            let places = returned.get(&whose)?;
            let index = places.partition_point(|(at, _)| *at < operation.invoked);
            index.checked_sub(1).map(|index| places[index].1)
        };
        let inodes = match by_operation.get(&number).and_then(|places| places.last()) {
            Some(at) => changed.get(at).cloned().unwrap_or_default(),
            None => concerned(&operation.found),
        };
        let whose = || inodes.iter().map(|ino| Whose::Inode(*ino)).chain([Whose::Client(operation.client)]);
        let heard = up_to(end);
        let mut from = whose().filter_map(highest).max().unwrap_or_default();
        if operation.client == fresh {
            // Whoever has no cache asks for all of it anew.
            from = from.max(up_to(operation.invoked));
        }
        // What a mount has answered for itself it shows before the server has it.
        let to = heard.max(ahead.of_client(operation.client, end));
        let wrong = |reason: String| {
            Err(format!("client {} was given a wrong answer to `{}`: {reason}", operation.client, operation.text))
        };
        // A name may be this mount's alone, and what it names not; or the other way round.
        let since = |ino: u64| whose_since(&[Whose::Inode(ino), Whose::Client(operation.client)], &highest);
        let is_own = |at: &Position| {
            view.applied.get(at).is_some_and(|applied| applied.id.client() as usize == operation.client)
        };
        // The same where this mount itself changed one of them meanwhile, which the kernel would have kept out.
        let may_be_apart = |apart: &Apart| to > heard || is_own(&apart.dir.1) || is_own(&apart.inode.1);
        let apart = || find_places(model, &operation.found, since, to).filter(may_be_apart);
        let place = match &operation.found {
            Found::Nothing | Found::Counted(_) => None,
            Found::Changed(result) => {
                // A change that was sent before it, so that its data comes first, is not its own.
                let Some(at) = by_operation.get(&number).and_then(|places| places.last()) else {
                    if result.is_ok() {
                        return wrong("it is nowhere in the log".into());
                    }
                    continue;
                };
                if result.is_ok() != view.applied[at].result.is_ok() {
                    return wrong(format!("{result:?}, and at {at} the server gave {:?}", view.applied[at].result));
                }
                if *at < from || *at > to {
                    return wrong(format!("it took effect at {at}, which is not between {from} and {to}"));
                }
                // What was refused could have been refused earlier just as well.
                result.is_ok().then_some(*at)
            }
            Found::Written { ino, wrote } => written(view, model, by_id, operation, *ino, wrote)?,
            found => match find_place(model, found, from, to).or_else(|| apart().map(|apart| apart.first())) {
                Some(at) => Some(at),
                None if is_of_many_moments(model, found, is_own, from, to) => None,
                None => {
                    return wrong(format!(
                        "{}, which is nowhere between {from} and {to}; {}",
                        show(found),
                        nearby(model, found, from, to)
                    ));
                }
            },
        };
        let Some(place) = place else { continue };
        let apart = if place > heard { apart() } else { None };
        for whose in whose() {
            let place = match (whose, &apart) {
                // That it stands ahead of the log says nothing about what else its client sees, nor that the directory of
                // its name does, or the other way round.
                (Whose::Client(_), _) if place > heard => continue,
                (Whose::Inode(ino), Some(apart)) if ino == apart.dir.0 => apart.dir.1,
                (Whose::Inode(ino), Some(apart)) if ino == apart.inode.0 => apart.inode.1,
                _ => place,
            };
            let places = returned.entry(whose).or_default();
            let before = places.last().map_or(Position::default(), |(_, place)| *place);
            places.push((end, before.max(place)));
        }
    }
    Ok(())
}

/// What mounts have answered for themselves, before the server had it.
struct Ahead {
    /// By client, the places of its changes with the moments of their entering; rising.
    places: BTreeMap<usize, Vec<(u64, Position)>>,
    /// By client, from when until when it showed what did not come about like that: its delegation had ended.
    doubtful: BTreeMap<usize, Vec<(u64, u64)>>,
    /// Operations whose changes did not.
    void: BTreeSet<usize>,
}

impl Ahead {
    fn of(view: &View<'_>, by_id: &BTreeMap<ChangeId, Position>, lives: &BTreeMap<usize, Vec<u64>>) -> Ahead {
        let mut ahead = Ahead { places: BTreeMap::new(), doubtful: BTreeMap::new(), void: BTreeSet::new() };
        for entered in view.entered.iter().filter(|entered| entered.is_local) {
            let client = entered.id.client() as usize;
            match by_id.get(&entered.id) {
                Some(at) if view.applied[at].local => {
                    let places = ahead.places.entry(client).or_default();
                    let before = places.last().map_or(Position::default(), |(_, place)| *place);
                    places.push((entered.moment, before.max(*at)));
                }
                fate => {
                    // Its next life does not know of it.
                    let next_life = || lives.get(&client).and_then(|lives| lives.get(entered.life)).copied();
                    let until = match fate {
                        Some(at) => view.applied[at].moment,
                        None => next_life().unwrap_or(u64::MAX),
                    };
                    ahead.doubtful.entry(client).or_default().push((entered.moment, until));
                    ahead.void.extend(entered.operation);
                }
            }
        }
        ahead
    }

    /// The highest place of what a client had answered for itself by then.
    fn of_client(&self, client: usize, moment: u64) -> Position {
        let Some(places) = self.places.get(&client) else { return Position::default() };
        let index = places.partition_point(|(at, _)| *at < moment);
        index.checked_sub(1).map_or(Position::default(), |index| places[index].1)
    }

    /// Whether an operation may have been shown what did not come about.
    fn is_doubtful(&self, number: usize, operation: &Operation, end: u64) -> bool {
        let doubtful = self.doubtful.get(&operation.client).into_iter().flatten();
        self.void.contains(&number)
            || doubtful.into_iter().any(|(from, until)| operation.invoked < *until && end > *from)
    }
}

/// The highest place that any of these have been seen at.
fn whose_since(whose: &[Whose], highest: &impl Fn(Whose) -> Option<Position>) -> Position {
    whose.iter().filter_map(|whose| highest(*whose)).max().unwrap_or_default()
}

/// Where everything that the mount had written to a file before took effect.
fn written(
    view: &View<'_>,
    model: &Model,
    by_id: &BTreeMap<ChangeId, Position>,
    operation: &Operation,
    ino: u64,
    wrote: &Wrote,
) -> Result<Option<Position>, String> {
    let end = operation.returned.expect("only those are looked at");
    let (mut last, mut requests) = (None, 0);
    for entered in view.entered.iter().filter(|entered| entered.moment > operation.invoked && entered.moment < end) {
        if entered.writes != Some(ino) || entered.id.client() as usize != operation.client {
            continue;
        }
        match by_id.get(&entered.id) {
            Some(at) if view.applied[at].moment < end || entered.is_local => {
                last = last.max(Some(*at));
                requests += 1;
            }
            _ => return Err(format!("`{}` ended before what it wrote was applied", operation.text)),
        }
    }
    // What it sent in several requests can have been written over in between.
    if let (Some(at), 1) = (last, requests)
        && let Some(inode) = model.version(ino, at)
    {
        let is_there = match wrote.appended {
            true => wrote
                .pieces
                .iter()
                .rev()
                .try_fold(&inode.content[..], |rest, (_, bytes)| rest.strip_suffix(&bytes[..]))
                .is_some(),
            false => is_in(&inode.content, &wrote.pieces),
        };
        if !is_there {
            return Err(format!("`{}` ended, and at {at} the file does not hold what it wrote", operation.text));
        }
    }
    Ok(last)
}

/// Whether writing the pieces once more would change nothing.
fn is_in(content: &[u8], pieces: &[(u64, Vec<u8>)]) -> bool {
    let mut written = content.to_vec();
    pieces.iter().all(|(offset, bytes)| {
        let from = *offset as usize;
        let place = written.get_mut(from..from + bytes.len());
        place.map(|place| place.copy_from_slice(bytes)).is_some()
    }) && written == content
}
