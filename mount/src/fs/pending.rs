//! What changes that were answered here do to names and attributes, until the server has answered for them too.
//!
//! The log has a mount's changes in the order in which they were submitted, and a view's order says which of them stand before
//! it. So an answer shows all changes of a lower order, and none of a higher one: those are put over what it says.

use proto::message::{Acl, AclKind, Attr, AttrChange, Cursor, FileKind};
use proto::{Ino, Position, Time};
use std::collections::{BTreeMap, VecDeque};

/// What a name is of; `None` is a name that is absent.
pub type Target = Option<(Ino, FileKind)>;

/// What a change does to an inode's attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It was made: nothing is known of it from before.
    Made,
    Set {
        change: AttrChange,
        time: Time,
    },
    /// It ends somewhere else, and so much of its content takes room.
    Resized {
        size: u64,
        allocated: u64,
        time: Time,
    },
    /// An extended attribute was set or taken away: as [`Attr::xattrs_changed`] is told.
    Xattrs {
        has_xattrs: bool,
        capability: Option<bool>,
        time: Time,
    },
    /// An access control list was set or taken away: as [`Attr::set_acl`] is told.
    Acl {
        which: AclKind,
        acl: Option<Acl>,
        clear_setgid: bool,
        time: Time,
    },
    /// One of the directory's entries has changed, and so many of them are directories more.
    Entry {
        time: Time,
        links: i32,
    },
    /// So many bytes that take room were copied to its end, which is there now.
    Copied {
        end: u64,
        bytes: u64,
        time: Time,
    },
    /// It has one more name, in this directory.
    Linked {
        dir: Ino,
        time: Time,
    },
    /// It was written before what comes next.
    Written {
        time: Time,
    },
    /// One of its names stands in this directory now.
    Moved {
        dir: Ino,
        time: Time,
    },
    /// It has lost one of its names.
    Unlinked {
        time: Time,
    },
}

impl Effect {
    /// Brings attributes up to the change, as the server does.
    pub fn apply(&self, attr: &mut Attr) {
        match self {
            Effect::Made => {}
            Effect::Set { change, time } => attr.set(change, *time),
            Effect::Resized { size, allocated, time } => {
                (attr.size, attr.allocated, attr.mtime) = (*size, *allocated, *time);
            }
            Effect::Xattrs { has_xattrs, capability, time } => attr.xattrs_changed(*has_xattrs, *capability, *time),
            Effect::Acl { which, acl, clear_setgid, time } => {
                attr.set_acl(*which, acl.as_ref(), *clear_setgid, *time);
            }
            Effect::Entry { time, links } => {
                (attr.mtime, attr.ctime) = (*time, *time);
                attr.nlink = attr.nlink.saturating_add_signed(*links);
            }
            Effect::Copied { end, bytes, time } => {
                attr.size = attr.size.max(*end);
                attr.allocated += bytes;
                attr.written(*time);
            }
            Effect::Written { time } => attr.written(*time),
            Effect::Linked { dir, time } => attr.link(*dir, *time),
            Effect::Moved { dir, time } => attr.rename(*dir, *time),
            Effect::Unlinked { time } => attr.unlink(*time),
        }
    }
}

/// What one change touches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    pub inodes: Vec<Ino>,
    pub names: Vec<(Ino, Cursor)>,
}

/// The changes that are not answered for, by what they touch. As many as the filesystem lets be under way at once.
#[derive(Default)]
pub struct Pending {
    attrs: BTreeMap<Ino, VecDeque<(u64, Effect)>>,
    names: BTreeMap<(Ino, Cursor), VecDeque<(u64, Target)>>,
    /// The last change that was answered for stands here.
    settled_at: Position,
}

impl Pending {
    pub fn attr(&mut self, ino: Ino, order: u64, effect: Effect) {
        self.attrs.entry(ino).or_default().push_back((order, effect));
    }

    pub fn name(&mut self, dir: Ino, name: Cursor, order: u64, target: Target) {
        self.names.entry((dir, name)).or_default().push_back((order, target));
    }

    /// Puts the changes that came after `order` over attributes. Says whether there are any.
    pub fn put_over(&self, attr: &mut Attr, order: u64) -> bool {
        let Some(effects) = self.attrs.get(&attr.ino) else { return false };
        let later = effects.iter().filter(|(at, _)| *at > order);
        later.map(|(_, effect)| effect.apply(attr)).count() > 0
    }

    /// Whether a change after `order` has touched an inode.
    pub fn has_touched(&self, ino: Ino, order: u64) -> bool {
        self.attrs.get(&ino).is_some_and(|effects| effects.iter().any(|(at, _)| *at > order))
    }

    /// What the last change after `order` has made of a name, if there is one.
    pub fn name_after(&self, dir: Ino, name: &Cursor, order: u64) -> Option<Target> {
        let (last, target) = self.names.get(&(dir, name.clone()))?.back()?;
        (*last > order).then_some(*target)
    }

    /// Names of a directory that changes have touched, as they are now.
    pub fn names_of(&self, dir: Ino) -> impl Iterator<Item = (&Cursor, Target)> {
        let first = Cursor { hash: 0, name: proto::Name::new(b"\x01").expect("one byte is a name") };
        let names = self.names.range((dir, first)..).take_while(move |((of, _), _)| *of == dir);
        names.filter_map(|((_, name), targets)| Some((name, targets.back()?.1)))
    }

    /// Whether an answer as of `at` may be older than what has been known and is not remembered any more.
    pub fn is_before(&self, at: Position) -> bool {
        at < self.settled_at
    }

    /// The change of this order is answered for: it stands at `at`, or nowhere.
    pub fn settle(&mut self, touched: &Touched, order: u64, at: Option<Position>) {
        for ino in &touched.inodes {
            settle(&mut self.attrs, ino, order);
        }
        for name in &touched.names {
            settle(&mut self.names, name, order);
        }
        self.settled_at = at.map_or(self.settled_at, |at| self.settled_at.max(at));
    }
}

fn settle<K: Ord, T>(all: &mut BTreeMap<K, VecDeque<(u64, T)>>, key: &K, order: u64) {
    let Some(effects) = all.get_mut(key) else { return };
    effects.retain(|(at, _)| *at != order);
    if effects.is_empty() {
        all.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::message::Owner;
    use proto::{Epoch, Name};

    const DIR: Ino = Ino(1);
    const FILE: Ino = Ino(7);

    fn time(secs: i64) -> Time {
        Time { secs, nanos: 0 }
    }

    fn attr() -> Attr {
        Attr {
            ino: FILE,
            kind: FileKind::File,
            mode: 0o644,
            uid: Owner::Namespace,
            gid: Owner::Namespace,
            nlink: 1,
            size: 0,
            allocated: 0,
            atime: time(1),
            mtime: time(1),
            ctime: time(1),
            rdev: 0,
            version: Position::default(),
            parent: Some(DIR),
            has_xattrs: false,
            rights: None,
        }
    }

    fn touches(names: &[&Cursor]) -> Touched {
        Touched { inodes: vec![FILE], names: names.iter().map(|name| (DIR, (*name).clone())).collect() }
    }

    #[test]
    fn an_answer_lacks_what_was_submitted_after_its_request() {
        let mut pending = Pending::default();
        let mode =
            |mode| Effect::Set { change: AttrChange { mode: Some(mode), ..AttrChange::default() }, time: time(2) };
        pending.attr(FILE, 5, mode(0o600));
        pending.attr(FILE, 7, mode(0o640));
        let shown = |pending: &Pending, order| {
            let mut attr = attr();
            (pending.put_over(&mut attr, order), attr.mode)
        };
        assert_eq!(shown(&pending, 4), (true, 0o640));
        assert_eq!(shown(&pending, 6), (true, 0o640));
        assert_eq!(shown(&pending, 8), (false, 0o644), "it has them all");
        pending.settle(&touches(&[]), 7, None);
        assert_eq!(shown(&pending, 4), (true, 0o600));
        pending.settle(&touches(&[]), 5, None);
        assert_eq!(shown(&pending, 4), (false, 0o644));
    }

    #[test]
    fn a_name_is_what_the_last_change_has_made_of_it() {
        let mut pending = Pending::default();
        let name = |name: &str| Cursor::of(&Name::new(name.as_bytes()).unwrap());
        let (a, b) = (name("a"), name("b"));
        pending.name(DIR, a.clone(), 3, Some((FILE, FileKind::File)));
        pending.name(DIR, a.clone(), 4, None);
        pending.name(DIR, b.clone(), 4, Some((FILE, FileKind::File)));
        pending.name(Ino(2), b.clone(), 4, None);
        assert_eq!(pending.name_after(DIR, &a, 2), Some(None));
        assert_eq!(pending.name_after(DIR, &a, 4), None);
        let mut names: Vec<(Cursor, Target)> =
            pending.names_of(DIR).map(|(name, target)| (name.clone(), target)).collect();
        names.sort_by_key(|(name, _)| name.name.as_bytes().to_vec());
        assert_eq!(names, [(a.clone(), None), (b.clone(), Some((FILE, FileKind::File)))]);

        let at = Position { epoch: Epoch(1), partition: 0, offset: 9, index: 0 };
        pending.settle(&touches(&[&a]), 3, Some(at));
        pending.settle(&touches(&[&a, &b]), 4, None);
        assert_eq!((pending.name_after(DIR, &a, 0), pending.names_of(DIR).count()), (None, 0));
        assert!(pending.is_before(Position { offset: 8, ..at }) && !pending.is_before(at));
    }
}
