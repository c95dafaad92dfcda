//! What must be true of the rows whatever has happened, and random plays in which
//! sessions close, expire and replace each other, to see that it is.

use super::super::rows::{DirentRow, ExtentRow, InodeRow, NamespaceRow, decode, table};
use super::play::{Pick, picks};
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn u64_at(key: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(key[at..at + 8].try_into().expect("keys have their fields"))
}

/// Checks links, counts, extents and references against each other.
pub fn audit(world: &World) {
    let (mut inodes, mut names) = (BTreeMap::new(), BTreeMap::<Ino, u32>::new());
    let (mut entries, mut subdirs) = (BTreeMap::<Ino, u64>::new(), BTreeMap::<Ino, u32>::new());
    let (mut covered, mut last_end) = (BTreeMap::<Ino, u64>::new(), (Ino(0), 0));
    let (mut references, mut counted) = (BTreeMap::<Vec<u8>, u64>::new(), BTreeMap::new());
    let (mut contents, mut dirents, mut namespace) = (BTreeSet::new(), Vec::new(), None);
    for (key, value) in &world.kv.rows {
        match key[0] {
            table::INODE => {
                inodes.insert(Ino(u64_at(key, 1)), decode::<InodeRow>(value));
            }
            table::DIRENT => dirents.push((Ino(u64_at(key, 1)), decode::<DirentRow>(value).ino)),
            table::EXTENT => {
                let (ino, row) = (Ino(u64_at(key, 1)), decode::<ExtentRow>(value));
                assert_eq!(u64_at(key, 9), row.end());
                assert!(last_end.0 != ino || last_end.1 <= row.offset, "extents overlap");
                last_end = (ino, row.end());
                *covered.entry(ino).or_default() += u64::from(row.len);
                *references.entry(row.chunk.to_bytes().to_vec()).or_default() += 1;
            }
            // Table and namespace, then the key that the row had.
            table::HISTORY if key[5] == table::EXTENT => {
                *references.entry(decode::<ExtentRow>(value).chunk.to_bytes().to_vec()).or_default() += 1;
            }
            table::CHUNK => {
                counted.insert(key[5..].to_vec(), decode::<u64>(value));
            }
            table::CONTENT => {
                contents.insert(key[1..].to_vec());
            }
            table::NAMESPACE => namespace = Some(decode::<NamespaceRow>(value)),
            _ => {}
        }
    }
    for (dir, ino) in dirents {
        let child = &inodes[&ino];
        *names.entry(ino).or_default() += 1;
        *entries.entry(dir).or_default() += 1;
        if child.attr.kind == FileKind::Dir {
            assert_eq!(child.attr.parent, Some(dir));
            *subdirs.entry(dir).or_default() += 1;
        } else {
            assert!(child.attr.parent.is_none_or(|parent| parent == dir));
        }
    }
    for (ino, row) in &inodes {
        let named = names.get(ino).copied().unwrap_or(0);
        let is_dir = row.attr.kind == FileKind::Dir;
        let nlink = if is_dir { 2 + subdirs.get(ino).copied().unwrap_or(0) } else { named };
        assert_eq!(row.attr.nlink, nlink, "{row:?}");
        assert_eq!(row.entries, entries.get(ino).copied().unwrap_or(0));
        assert_eq!(row.attr.allocated, covered.get(ino).copied().unwrap_or(0));
        assert_eq!(named == 0 && *ino != ROOT, world.machine.live.nameless.contains_key(ino));
    }
    assert_eq!(references, counted);
    assert!(contents.iter().all(|name| references.contains_key(name)));
    if let Some(namespace) = namespace {
        assert_eq!(namespace.inodes_used, inodes.len() as u64);
        assert_eq!(namespace.bytes_used, covered.values().sum::<u64>());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Request { who: usize, pick: Pick },
    Release { who: usize, which: usize },
    Close { who: usize },
    Replace { who: usize },
    Tick { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..3_usize;
    let step = prop_oneof![
        20 => (who(), picks()).prop_map(|(who, pick)| Step::Request { who, pick }),
        3 => (who(), any::<usize>()).prop_map(|(who, which)| Step::Release { who, which }),
        1 => who().prop_map(|who| Step::Close { who }),
        1 => who().prop_map(|who| Step::Replace { who }),
        2 => (100..70_000_u64).prop_map(|ms| Step::Tick { ms }),
    ];
    prop::collection::vec(step, 1..120)
}

struct Ends {
    world: World,
    clients: Vec<Client>,
    next: u8,
}

impl Ends {
    fn open(&mut self, predecessors: &[SessionId]) -> Client {
        self.next += 1;
        let ticket = self.world.ticket(self.next);
        let last = self.world.sealed_open(&ticket, predecessors);
        self.world.effects(&last);
        Client { id: ticket.session, namespace: ticket.namespace, key: ticket.key, number: 0, last }
    }

    fn inodes(&self, dirs: bool) -> Vec<Ino> {
        let rows = self.world.kv.rows.iter().filter(|(key, _)| key[0] == table::INODE);
        let attrs = rows.map(|(_, value)| decode::<InodeRow>(value).attr);
        attrs.filter(|attr| (attr.kind == FileKind::Dir) == dirs).map(|attr| attr.ino).collect()
    }

    fn send(&mut self, who: usize, op: Op, payload: &[u8]) {
        let mut client = self.clients[who].clone();
        let lives = self.world.machine.sessions().any(|peer| peer.session == client.id);
        if !lives {
            client = self.open(&[client.id]);
        }
        self.world.send_with(&mut client, op, payload);
        self.clients[who] = client;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request { who, pick } => {
                let (op, payload) = pick.op(&self.inodes(true), &self.inodes(false));
                self.send(who, op, &payload);
            }
            Step::Release { who, which } => {
                let files = self.inodes(false);
                let inos = files.get(which % files.len().max(1)).copied().into_iter().collect();
                self.send(who, Op::Session(SessionOp::Release { inos }), &[]);
            }
            Step::Close { who } => self.send(who, Op::Session(SessionOp::Close), &[]),
            Step::Replace { who } => {
                let old = self.clients[who].id;
                self.clients[who] = self.open(&[old]);
            }
            Step::Tick { ms } => {
                self.world.pass_ms(ms);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_stay_sound_however_sessions_end(steps in steps()) {
        let mut ends = Ends { world: World::new(), clients: Vec::new(), next: 0 };
        for _ in 0..3 {
            let client = ends.open(&[]);
            ends.clients.push(client);
        }
        for step in steps {
            ends.step(step);
        }
        audit(&ends.world);
        ends.world.assert_replayable();

        // With the last session goes the last reason to keep what has no name.
        ends.world.pass_ms(121_000);
        audit(&ends.world);
        prop_assert!(ends.world.machine.live.nameless.is_empty());
        prop_assert!(!ends.world.machine.needs_ticks());
    }
}
