//! What must be true of a partition's state, whatever has happened to it: links and
//! counts, extents, references, history, sessions. Tests ask after every play, the
//! simulator at its ends, operators by `kfs-server check`.
//!
//! Everything is read once, in the order of the keys, one namespace at a time;
//! memory grows with the largest namespace's inodes and chunks. A row that cannot be
//! read is a violation and not a panic.

mod history;
mod sessions;
mod tree;

use super::kv::Kv;
use super::rows::{after, table, try_decode};
use super::{Machine, is_referenced};
use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::{NamespaceId, SessionId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// Violations that are told in full; beyond them they are only counted.
pub const MAX_TOLD: usize = 100;

/// What was found in one partition's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StateReport {
    pub partition: u32,
    pub epoch: u32,
    /// The last applied record's offset.
    pub applied: Option<u64>,
    pub sessions: u64,
    pub namespaces: u64,
    pub inodes: u64,
    pub names: u64,
    pub extents: u64,
    /// Distinct chunks that something refers to, history included.
    pub chunks: u64,
    pub used_bytes: u64,
    pub history_rows: u64,
    pub history_bytes: u64,
    pub violations: Violations,
}

/// What is not as it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    pub count: u64,
    /// The first [`MAX_TOLD`], each a line.
    pub told: Vec<String>,
}

impl Violations {
    pub fn add(&mut self, violation: impl FnOnce() -> String) {
        self.count += 1;
        if self.told.len() < MAX_TOLD {
            self.told.push(violation());
        }
    }

    /// Notes a violation unless `holds`.
    pub fn check(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds {
            self.add(violation);
        }
    }

    pub fn extend(&mut self, others: Violations) {
        self.count += others.count;
        self.told.extend(others.told);
        self.told.truncate(MAX_TOLD);
    }
}

/// A check under way.
struct Check<'a> {
    machine: &'a Machine,
    kv: &'a mut dyn Kv,
    report: StateReport,
}

/// Checks a partition's machine with its rows. Names every chunk that something
/// refers to and the rows do not hold to `packed`, once per namespace, with the
/// namespace: it must be in the packs, once it has been ingested.
pub fn check(machine: &Machine, kv: &mut dyn Kv, packed: &mut dyn FnMut(NamespaceId, &ChunkName)) -> StateReport {
    let applied = machine.last_applied().map(|at| at.offset);
    let sessions = machine.live.sessions.len() as u64;
    let (partition, epoch) = (machine.partition, machine.live.epoch.0);
    let report = StateReport { partition, epoch, applied, sessions, ..StateReport::default() };
    let mut check = Check { machine, kv, report };
    check.tables();
    check.sessions();
    let mut owners = BTreeMap::new();
    for namespace in check.namespaces() {
        check.report.namespaces += 1;
        let references = check.namespace(namespace);
        check.references(namespace, &references, &mut owners, packed);
    }
    check.content();
    check.report
}

impl Check<'_> {
    /// That there are no rows but those of known tables, and no namespace without its row.
    fn tables(&mut self) {
        const KNOWN: [u8; 19] = [
            table::CONTENT,
            table::CHUNK,
            table::DIRENT,
            table::EXTENT,
            table::FREED,
            table::STAGED,
            table::HISTORY,
            table::INODE,
            table::LINK,
            table::META,
            table::NAMESPACE,
            table::OUTBOX,
            table::INCARNATION,
            table::ENDED,
            table::ENDED_BY_TIME,
            table::USER,
            table::USER_ENDED,
            table::PAST,
            table::XATTR,
        ];
        let mut from = vec![0];
        while let Some(key) = self.first(&from, &[0xff]) {
            self.report.violations.check(KNOWN.contains(&key[0]), || format!("a row of the unknown table {}", key[0]));
            from = after(&key[..1]);
        }
    }

    /// Every namespace that any row is about.
    fn namespaces(&mut self) -> Vec<NamespaceId> {
        let mut found = std::collections::BTreeSet::new();
        let by_number = [table::NAMESPACE, table::CHUNK, table::HISTORY, table::PAST];
        for (table, bytes) in by_number
            .map(|table| (table, 4))
            .into_iter()
            .chain([table::INODE, table::DIRENT, table::EXTENT, table::XATTR, table::LINK].map(|table| (table, 8)))
        {
            let mut from = vec![table];
            while let Some(key) = self.first(&from, &after(&[table])) {
                let number = key.get(1..5).zip(key.get(1..1 + bytes));
                let Some((short, long)) = number else {
                    self.report.violations.add(|| format!("the key {} is too short", hex(&key)));
                    from = [&key[..], &[0]].concat();
                    continue;
                };
                let namespace = match bytes {
                    4 => NamespaceId(u32_at(short)),
                    _ => proto::Ino(u64_at(long)).namespace(),
                };
                found.insert(namespace);
                from = match bytes {
                    4 => after(&[&[table], short].concat()),
                    _ => [&[table], &proto::Ino::new(NamespaceId(namespace.0 + 1), 0).0.to_be_bytes()[..]].concat(),
                };
            }
        }
        found.into_iter().collect()
    }

    /// That the chunks' counts are what refers to them. A chunk is referred to in
    /// one namespace only, or freeing it there would take it from another.
    fn references(
        &mut self,
        namespace: NamespaceId,
        references: &BTreeMap<ChunkName, u64>,
        owners: &mut BTreeMap<SessionId, NamespaceId>,
        packed: &mut dyn FnMut(NamespaceId, &ChunkName),
    ) {
        let prefix = [&[table::CHUNK][..], &namespace.0.to_be_bytes()].concat();
        let mut counted: BTreeMap<ChunkName, u64> = BTreeMap::new();
        self.rows::<u64>(&prefix, |violations, key, count| match name_in(&key[5..]) {
            Some(name) => drop(counted.insert(name, count)),
            None => violations.add(|| format!("a count of references for no chunk's name: {}", hex(key))),
        });
        for (name, count) in &counted {
            let found = references.get(name).copied().unwrap_or(0);
            self.report.violations.check(found == *count, || {
                format!("the chunk {name} counts {count} references in namespace {}, there are {found}", namespace.0)
            });
        }
        for (name, count) in references {
            self.report.chunks += 1;
            self.report.violations.check(counted.contains_key(name), || {
                format!("the chunk {name} has {count} references in namespace {} and no count", namespace.0)
            });
            let owner = *owners.entry(name.session).or_insert(namespace);
            self.report.violations.check(owner == namespace, || {
                format!("session {} has chunks in the namespaces {} and {}", name.session, owner.0, namespace.0)
            });
            let bytes = name.to_bytes();
            if self.kv.get(&[&[table::CONTENT][..], &bytes].concat()).is_none() {
                packed(namespace, name);
            }
            let freed = [&[table::FREED][..], &name.session.0, &bytes].concat();
            let is_freed = self.kv.get(&freed).is_some();
            self.report.violations.check(!is_freed, || format!("the chunk {name} is referred to, and marked as freed"));
        }
    }

    /// That content in the rows is whole and referred to.
    fn content(&mut self) {
        let mut names = Vec::new();
        let violations = &mut self.report.violations;
        self.kv.scan(&[table::CONTENT], &after(&[table::CONTENT]), &mut |key, content| {
            match name_in(&key[1..]) {
                Some(name) if name.topic == Topic::Requests => {
                    let whole = *blake3::hash(content).as_bytes() == name.hash;
                    violations.check(whole, || format!("the content {name} does not have its hash"));
                    names.push(name);
                }
                _ => violations.add(|| format!("content under no request's name: {}", hex(key))),
            }
            true
        });
        let namespaces = self.namespaces();
        for name in names {
            let referred = namespaces.iter().any(|namespace| is_referenced(self.kv, *namespace, &name));
            self.report.violations.check(referred, || format!("nothing refers to the content {name}"));
        }
    }

    fn first(&mut self, from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
        let mut found = None;
        self.kv.scan(from, to, &mut |key, _| {
            found = Some(key.to_vec());
            false
        });
        found
    }

    /// Visits all rows under a prefix that can be read.
    fn rows<T: DeserializeOwned>(&mut self, prefix: &[u8], mut visit: impl FnMut(&mut Violations, &[u8], T)) {
        let violations = &mut self.report.violations;
        self.kv.scan(prefix, &after(prefix), &mut |key, value| {
            match try_decode(value) {
                Ok(row) => visit(violations, key, row),
                Err(reason) => violations.add(|| format!("the row {} cannot be read: {reason}", hex(key))),
            }
            true
        });
    }
}

fn name_in(bytes: &[u8]) -> Option<ChunkName> {
    ChunkName::from_bytes(bytes.try_into().ok()?).ok()
}

/// The number that a key's field holds; fields that are too short hold 0.
fn u32_at(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn u64_at(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
