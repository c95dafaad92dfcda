//! Where in the log the model has what an operation found.

use crate::sim::history::Found;
use crate::sim::model::Model;
use proto::Position;
use std::collections::BTreeSet;

/// Where an inode became another one behind `from`, up to `to`.
fn changes(model: &Model, ino: u64, from: Position, to: Position) -> impl Iterator<Item = Position> {
    let versions = model.versions.get(&ino).into_iter().flatten();
    versions.map(|(at, _)| *at).filter(move |at| *at > from && *at <= to)
}

/// The first place of those allowed where the model has what was found.
pub fn find_place(model: &Model, found: &Found, from: Position, to: Position) -> Option<Position> {
    if matches(model, found, from) {
        return Some(from);
    }
    let mut places = Vec::new();
    for ino in concerned(found) {
        places.extend(changes(model, ino, from, to));
    }
    places.sort_unstable();
    places.into_iter().find(|at| matches(model, found, *at))
}

/// Whether a listing, while which its own mount changed the directory (`is_own` says which changes are), has of each name
/// what stood there at some moment of it. No more is promised then: what is added or removed meanwhile may be in it or not (POSIX, readdir).
pub fn is_of_many_moments(
    model: &Model,
    found: &Found,
    is_own: impl Fn(&Position) -> bool,
    from: Position,
    to: Position,
) -> bool {
    let Found::Names { dir, names } = found else { return false };
    let places: Vec<Position> = changes(model, *dir, from, to).collect();
    if !places.iter().any(is_own) {
        return false;
    }
    let moments: Vec<_> = [from].iter().chain(&places).filter_map(|at| model.version(*dir, *at)).collect();
    let all = moments.iter().flat_map(|moment| moment.entries.keys()).chain(names.keys());
    all.collect::<BTreeSet<_>>()
        .into_iter()
        .all(|name| moments.iter().any(|moment| moment.entries.get(name) == names.get(name)))
}

/// Where a directory had a name, and where what it names was what was found.
pub struct Apart {
    pub dir: (u64, Position),
    pub inode: (u64, Position),
}

impl Apart {
    pub fn first(&self) -> Position {
        self.dir.1.min(self.inode.1)
    }
}

/// The same of a name and of what it names, each at a place of its own.
pub fn find_places(model: &Model, found: &Found, from: impl Fn(u64) -> Position, to: Position) -> Option<Apart> {
    let Found::Entry { dir, name, entry: Some(entry) } = found else { return None };
    let is_named = |at: Position| model.version(*dir, at).is_some_and(|dir| dir.entries.get(name) == Some(&entry.ino));
    let from_dir = from(*dir);
    let named = [from_dir].into_iter().chain(changes(model, *dir, from_dir, to)).find(|at| is_named(*at))?;
    let inode = Found::Inode { ino: entry.ino, entry: Some(entry.clone()) };
    let at = find_place(model, &inode, from(entry.ino), to)?;
    Some(Apart { dir: (*dir, named), inode: (entry.ino, at) })
}

pub fn concerned(found: &Found) -> Vec<u64> {
    match found {
        Found::Entry { dir, entry, .. } => {
            [Some(*dir), entry.as_ref().map(|entry| entry.ino)].into_iter().flatten().collect()
        }
        Found::Inode { ino, .. } | Found::Content { ino, .. } | Found::Mark { ino, .. } => vec![*ino],
        Found::Names { dir, .. } => vec![*dir],
        Found::Nothing | Found::Changed(_) | Found::Written { .. } | Found::Counted(_) => Vec::new(),
    }
}

fn matches(model: &Model, found: &Found, at: Position) -> bool {
    match found {
        Found::Entry { dir, name, entry } => {
            let named = model.version(*dir, at).and_then(|dir| dir.entries.get(name));
            match (named, entry) {
                (None, None) => true,
                (Some(ino), Some(entry)) => {
                    *ino == entry.ino && model.version(*ino, at).is_some_and(|inode| inode.is_shown_as(entry))
                }
                _ => false,
            }
        }
        Found::Inode { ino, entry } => {
            let inode = model.version(*ino, at);
            match entry {
                Some(entry) => *ino == entry.ino && inode.is_some_and(|inode| inode.is_shown_as(entry)),
                None => inode.is_none_or(|inode| inode.nlink == 0),
            }
        }
        Found::Mark { ino, mark } => model.version(*ino, at).is_some_and(|inode| inode.mark == *mark),
        Found::Names { dir, names } => model.version(*dir, at).is_some_and(|dir| dir.entries == *names),
        Found::Content { ino, content } => model.version(*ino, at).is_some_and(|inode| *inode.content == *content),
        Found::Nothing | Found::Changed(_) | Found::Written { .. } | Found::Counted(_) => true,
    }
}

pub fn show(found: &Found) -> String {
    match found {
        Found::Content { ino, content } => format!("inode {ino} with {}", short(content)),
        other => format!("{other:?}"),
    }
}

/// What the model has instead.
pub fn nearby(model: &Model, found: &Found, from: Position, to: Position) -> String {
    let mut out = String::from("the model has");
    for ino in concerned(found) {
        for (at, inode) in model.versions.get(&ino).into_iter().flatten().filter(|(at, _)| *at <= to).rev().take(4) {
            let since = if *at <= from { "before" } else { "meanwhile" };
            out.push_str(&format!(
                " [{ino} at {at} ({since}): {:?} {:o} nlink {} {:?} {} {:?}]",
                inode.kind,
                inode.mode,
                inode.nlink,
                inode.entries.iter().map(|(name, ino)| (String::from_utf8_lossy(name), ino)).collect::<Vec<_>>(),
                short(&inode.content),
                inode.times
            ));
        }
    }
    out
}

/// Content in a message.
fn short(content: &[u8]) -> String {
    let hash = blake3::hash(content).to_hex();
    format!("{} bytes {}", content.len(), &hash[..8])
}
