//! A filesystem as simple as can be, to compare the machine's answers with. Inodes
//! without names stay for ever here, so its sessions must not end while it is used.

use super::*;
use proto::message::{Acl, AclKind, RenameHow, Rights};
use std::collections::BTreeMap;

/// What of an inode's attributes the model knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    ino: Ino,
    kind: FileKind,
    mode: u32,
    nlink: u32,
    size: u64,
    allocated: u64,
    /// The directory that covers it.
    parent: Option<Ino>,
    rights: Rights,
}

/// Which byte of the content of which record.
type Byte = Option<(u64, u32)>;

/// What of an outcome the model knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Entry(Brief),
    Listing(BTreeMap<Name, Brief>),
    Content(Brief, Vec<Byte>),
    Renamed(Brief, Option<Ino>),
    Other,
}

impl Brief {
    fn of(attr: &Attr) -> Brief {
        let (ino, kind, mode, nlink) = (attr.ino, attr.kind, attr.mode, attr.nlink);
        let size = if kind == FileKind::Dir { 0 } else { attr.size };
        let rights = attr.rights.as_deref().cloned().unwrap_or_default();
        Brief { ino, kind, mode, nlink, size, allocated: attr.allocated, parent: attr.parent, rights }
    }
}

impl Seen {
    pub fn of(outcome: &Outcome) -> Seen {
        match outcome {
            Outcome::Entry(attr) | Outcome::Removed(attr) | Outcome::Cloned { to: attr, .. } => {
                Seen::Entry(Brief::of(attr))
            }
            Outcome::Listing { entries, end: true, .. } => {
                Seen::Listing(entries.iter().map(|listed| (listed.name.clone(), Brief::of(&listed.attr))).collect())
            }
            Outcome::Extents { attr, extents, end: true } => {
                let mut bytes = vec![None; attr.size as usize];
                for extent in extents {
                    for i in 0..extent.len {
                        let byte = &mut bytes[extent.offset as usize + i as usize];
                        assert!(byte.is_none(), "extents overlap");
                        *byte = Some((extent.chunk.offset, extent.chunk_from + i));
                    }
                }
                Seen::Content(Brief::of(attr), bytes)
            }
            Outcome::Renamed { moved, other } => {
                let gone = other.as_ref().filter(|other| other.nlink == 0);
                Seen::Renamed(Brief::of(moved), gone.map(|gone| gone.ino))
            }
            _ => Seen::Other,
        }
    }
}

#[derive(Clone)]
struct Node {
    kind: FileKind,
    mode: u32,
    nlink: u32,
    entries: BTreeMap<Name, Ino>,
    /// Where a directory is; the covering directory of anything else.
    parent: Option<Ino>,
    content: Vec<Byte>,
    rights: Rights,
}

#[derive(Clone)]
pub struct Model {
    nodes: BTreeMap<Ino, Node>,
    next: u64,
}

impl Model {
    pub fn new() -> Model {
        let root = Node {
            kind: FileKind::Dir,
            mode: 0o755,
            nlink: 2,
            entries: BTreeMap::new(),
            parent: Some(ROOT),
            content: Vec::new(),
            rights: Rights::default(),
        };
        Model { nodes: BTreeMap::from([(ROOT, root)]), next: 2 }
    }

    /// So many numbers are given out for inodes to come.
    pub fn give_inodes(&mut self, count: u32) {
        self.next += u64::from(count);
    }

    /// What covers an inode's attributes.
    pub fn covering(&self, ino: Ino) -> Promise {
        let parent = self.nodes.get(&ino).and_then(|node| node.parent);
        match parent {
            _ if self.is_dir(ino) => Promise::Dir(ino),
            Some(dir) => Promise::Dir(dir),
            None => Promise::Inode(ino),
        }
    }

    /// What a name stands for.
    pub fn named(&self, dir: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&dir)?.entries.get(name).copied()
    }

    /// Every inode that there has been and is, in order.
    pub fn inodes(&self, dirs: bool) -> Vec<Ino> {
        self.nodes.iter().filter(|(_, node)| (node.kind == FileKind::Dir) == dirs).map(|(ino, _)| *ino).collect()
    }

    /// What the operation does as the record at `offset`.
    pub fn execute(&mut self, op: &Op, offset: u64) -> Result<Seen, Refusal> {
        match op {
            Op::View(View::Lookup { dir, name }) => {
                let ino = *self.dir(*dir)?.entries.get(name).ok_or(Refusal::NotFound)?;
                Ok(self.entry(ino))
            }
            Op::View(View::Getattr { ino }) => {
                self.node(*ino)?;
                Ok(self.entry(*ino))
            }
            Op::View(View::Readdir { dir, .. }) => {
                let entries = self.dir(*dir)?.entries.clone();
                Ok(Seen::Listing(entries.into_iter().map(|(name, ino)| (name, self.brief(ino))).collect()))
            }
            Op::View(View::Extents { ino, .. }) => {
                let content = self.file(*ino)?.content.clone();
                Ok(Seen::Content(self.brief(*ino), content))
            }
            Op::Upload(Upload::Create { dir, name, new }) => self.create(*dir, name, new),
            Op::Upload(Upload::Link { ino, dir, name }) => self.link(*ino, *dir, name),
            Op::Upload(Upload::Rename { from_dir, from, to_dir, to, how }) => {
                self.rename((*from_dir, from), (*to_dir, to), *how)
            }
            Op::Upload(Upload::Setattr { ino, change }) => {
                self.node(*ino)?;
                if let Some(size) = change.size {
                    self.file(*ino)?.content.resize(size as usize, None);
                }
                let node = self.node(*ino)?;
                if let Some(mode) = change.mode {
                    node.mode = mode;
                    if let Some(acl) = &mut node.rights.access {
                        (acl.user, acl.mask, acl.other) = (bits(mode, 6), Some(bits(mode, 3)), bits(mode, 0));
                    }
                }
                Ok(self.entry(*ino))
            }
            Op::Upload(Upload::SetAcl { ino, which, acl, clear_setgid: _ }) => {
                let node = self.node(*ino)?;
                match (which, acl) {
                    (AclKind::Default, Some(_)) if node.kind != FileKind::Dir => return Err(Refusal::NotDirectory),
                    (AclKind::Default, acl) => node.rights.default = acl.clone(),
                    (AclKind::Access, None) => node.rights.access = None,
                    (AclKind::Access, Some(acl)) => {
                        node.mode = node.mode & !0o777 | mode_of(acl);
                        node.rights.access = Some(acl.clone()).filter(|acl| acl.mask.is_some());
                    }
                }
                Ok(self.entry(*ino))
            }
            Op::Upload(Upload::Clone { from, to, to_offset }) => {
                let source = self.file(from.ino)?.content.clone();
                self.file(*to)?;
                let start = (from.offset as usize).min(source.len());
                let part = source[start..((from.offset + from.len) as usize).min(source.len()).max(start)].to_vec();
                let (at, end) = (*to_offset as usize, *to_offset as usize + part.len());
                if from.ino == *to && (from.offset as usize) < end && at < start + part.len() {
                    return Err(Refusal::Invalid);
                }
                if !part.is_empty() {
                    let content = &mut self.file(*to)?.content;
                    content.resize(content.len().max(end), None);
                    content[at..end].copy_from_slice(&part);
                }
                Ok(self.entry(*to))
            }
            Op::Upload(Upload::Fallocate { ino, offset: from, len, how }) => {
                let content = &mut self.file(*ino)?.content;
                let (from, end) = (*from as usize, (from + len) as usize);
                if how.extends() && content.len() < end {
                    content.resize(end, None);
                }
                let end = end.min(content.len());
                if how.clears() && from < end {
                    content[from..end].fill(None);
                }
                Ok(self.entry(*ino))
            }
            Op::Upload(Upload::Write { ino, at, pieces, .. }) => {
                let content = &mut self.file(*ino)?.content;
                let base = if *at == WriteAt::End { content.len() } else { 0 };
                for piece in pieces {
                    let start = base + piece.offset as usize;
                    let end = start + piece.len as usize;
                    content.resize(content.len().max(end), None);
                    for i in 0..piece.len {
                        content[start + i as usize] = Some((offset, piece.chunk_from + i));
                    }
                }
                Ok(self.entry(*ino))
            }
            Op::Delete(Delete::Unlink { dir, name }) => {
                let ino = *self.dir(*dir)?.entries.get(name).ok_or(Refusal::NotFound)?;
                if self.is_dir(ino) {
                    return Err(Refusal::IsDirectory);
                }
                self.nodes.get_mut(dir).unwrap().entries.remove(name);
                Ok(Seen::Entry(self.lose(ino)))
            }
            Op::Delete(Delete::Rmdir { dir, name }) => {
                let ino = *self.dir(*dir)?.entries.get(name).ok_or(Refusal::NotFound)?;
                if !self.is_dir(ino) {
                    return Err(Refusal::NotDirectory);
                }
                if !self.nodes[&ino].entries.is_empty() {
                    return Err(Refusal::NotEmpty);
                }
                let parent = self.nodes.get_mut(dir).unwrap();
                parent.entries.remove(name);
                parent.nlink -= 1;
                Ok(Seen::Entry(self.lose(ino)))
            }
            Op::Session(_) => Ok(Seen::Other),
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn node(&mut self, ino: Ino) -> Result<&mut Node, Refusal> {
        self.nodes.get_mut(&ino).ok_or(Refusal::Stale)
    }

    fn dir(&mut self, ino: Ino) -> Result<&mut Node, Refusal> {
        let node = self.node(ino)?;
        if node.kind == FileKind::Dir { Ok(node) } else { Err(Refusal::NotDirectory) }
    }

    fn file(&mut self, ino: Ino) -> Result<&mut Node, Refusal> {
        let node = self.node(ino)?;
        if node.kind == FileKind::File { Ok(node) } else { Err(Refusal::IsDirectory) }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes[&ino].kind == FileKind::Dir
    }

    fn brief(&self, ino: Ino) -> Brief {
        let node = &self.nodes[&ino];
        let (size, allocated) = (node.content.len() as u64, node.content.iter().flatten().count() as u64);
        let Node { kind, mode, nlink, parent, ref rights, .. } = *node;
        Brief { ino, kind, mode, nlink, size, allocated, parent, rights: rights.clone() }
    }

    fn entry(&self, ino: Ino) -> Seen {
        Seen::Entry(self.brief(ino))
    }

    fn create(&mut self, dir: Ino, name: &Name, new: &NewInode) -> Result<Seen, Refusal> {
        let ino = new.ino.unwrap_or(Ino::new(NAMESPACE, self.next));
        let parent = self.dir(dir)?;
        if parent.entries.contains_key(name) {
            return Err(Refusal::Exists);
        }
        parent.entries.insert(name.clone(), ino);
        let NewInode { kind, mut mode, umask, .. } = *new;
        let mut rights = Rights::default();
        match &parent.rights.default {
            Some(default) => {
                let mut acl = default.clone();
                acl.user &= bits(mode, 6);
                *acl.mask.as_mut().unwrap_or(&mut acl.group) &= bits(mode, 3);
                acl.other &= bits(mode, 0);
                mode = mode_of(&acl);
                rights.access = Some(acl).filter(|acl| acl.mask.is_some());
                rights.default = Some(default.clone()).filter(|_| kind == FileKind::Dir);
            }
            None => mode &= !umask,
        }
        let is_dir = kind == FileKind::Dir;
        parent.nlink += u32::from(is_dir);
        let nlink = 1 + u32::from(is_dir);
        let (entries, content) = (BTreeMap::new(), Vec::new());
        let node = Node { kind, mode, nlink, entries, parent: Some(dir), content, rights };
        self.nodes.insert(ino, node);
        self.next += u64::from(new.ino.is_none());
        Ok(self.entry(ino))
    }

    fn link(&mut self, ino: Ino, dir: Ino, name: &Name) -> Result<Seen, Refusal> {
        self.node(ino)?;
        if self.dir(dir)?.entries.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let node = self.node(ino)?;
        if node.kind == FileKind::Dir {
            return Err(Refusal::NotPermitted);
        }
        if node.nlink == 0 {
            return Err(Refusal::NotFound);
        }
        node.nlink += 1;
        if node.parent != Some(dir) {
            node.parent = None;
        }
        self.dir(dir)?.entries.insert(name.clone(), ino);
        Ok(self.entry(ino))
    }

    /// A name of `ino` has gone.
    fn lose(&mut self, ino: Ino) -> Brief {
        let node = self.nodes.get_mut(&ino).unwrap();
        if node.kind == FileKind::Dir {
            node.nlink = 0;
            let brief = self.brief(ino);
            self.nodes.remove(&ino);
            return brief;
        }
        node.nlink -= 1;
        if node.nlink == 0 {
            node.parent = None;
        }
        self.brief(ino)
    }

    fn is_within(&self, dir: Ino, ancestor: Ino) -> bool {
        dir == ancestor || (dir != ROOT && self.is_within(self.nodes[&dir].parent.unwrap(), ancestor))
    }

    fn rename(&mut self, from: (Ino, &Name), to: (Ino, &Name), how: RenameHow) -> Result<Seen, Refusal> {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let moved = *self.nodes[&from.0].entries.get(from.1).ok_or(Refusal::NotFound)?;
        let target = self.nodes[&to.0].entries.get(to.1).copied();
        match (how, target) {
            (RenameHow::NoReplace, Some(_)) => return Err(Refusal::Exists),
            (RenameHow::Exchange, None) => return Err(Refusal::NotFound),
            _ => {}
        }
        if self.is_dir(moved) && self.is_within(to.0, moved) {
            return Err(Refusal::Invalid);
        }
        let exchange = how == RenameHow::Exchange;
        if let Some(target) = target {
            if self.is_dir(target) && self.is_within(from.0, target) {
                return Err(if exchange { Refusal::Invalid } else { Refusal::NotEmpty });
            }
            if target == moved {
                return Ok(Seen::Renamed(self.brief(moved), None));
            }
            if !exchange {
                if self.is_dir(moved) && !self.is_dir(target) {
                    return Err(Refusal::NotDirectory);
                }
                if !self.is_dir(moved) && self.is_dir(target) {
                    return Err(Refusal::IsDirectory);
                }
                if !self.nodes[&target].entries.is_empty() {
                    return Err(Refusal::NotEmpty);
                }
            }
        }

        self.take(from);
        let mut gone = None;
        if let Some(target) = target {
            self.take(to);
            if exchange {
                self.give(from, target);
            } else {
                gone = (self.lose(target).nlink == 0).then_some(target);
            }
        }
        self.give(to, moved);
        Ok(Seen::Renamed(self.brief(moved), gone))
    }

    fn take(&mut self, (dir, name): (Ino, &Name)) {
        let node = self.nodes.get_mut(&dir).unwrap();
        let ino = node.entries.remove(name).unwrap();
        let lost = u32::from(self.is_dir(ino));
        self.nodes.get_mut(&dir).unwrap().nlink -= lost;
    }

    fn give(&mut self, (dir, name): (Ino, &Name), ino: Ino) {
        let won = u32::from(self.is_dir(ino));
        let node = self.nodes.get_mut(&dir).unwrap();
        node.entries.insert(name.clone(), ino);
        node.nlink += won;
        let node = self.nodes.get_mut(&ino).unwrap();
        let others_stay = node.kind != FileKind::Dir && node.nlink > 1 && node.parent != Some(dir);
        node.parent = node.parent.filter(|_| !others_stay).map(|_| dir);
    }
}

fn bits(mode: u32, shift: u32) -> u8 {
    (mode >> shift & 7) as u8
}

fn mode_of(acl: &Acl) -> u32 {
    let [user, group, other] = [acl.user, acl.mask.unwrap_or(acl.group), acl.other].map(u32::from);
    user << 6 | group << 3 | other
}
