//! Whether packs hold what is referred to, whole: every object is read, every
//! chunk's hash compared, and what the index counts is counted again.

use super::index::{Index, Where};
use super::{PackError, objects_of, pack_path};
use crate::disk::{Disk, Wait};
use crate::machine::check::Violations;
use object_store::{ObjectStore, ObjectStoreExt};
use proto::chunk::ChunkName;
use proto::log::Topic;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What was found in the packs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PacksReport {
    pub packs: u64,
    pub pack_bytes: u64,
    /// In packs.
    pub chunks: u64,
    /// In the index itself.
    pub tail_chunks: u64,
    pub tail_bytes: u64,
    /// Kept, and nothing refers to them: not quoted yet, or not dropped yet.
    pub orphans: u64,
    pub orphan_bytes: u64,
    /// Referred to, and still to be ingested from the log.
    pub awaited: u64,
    /// Referred to, and neither kept nor to come: a violation each.
    pub missing: Vec<ChunkName>,
    pub violations: Violations,
}

/// Checks the packs in `dir` against the chunks that are referred to, in rising order.
pub fn check(dir: &Path, cluster: [u8; 16], disk: &Disk, referred: &[ChunkName]) -> Result<PacksReport, PackError> {
    let index = Index::open(dir, cluster, disk)?;
    let objects = objects_of(dir, disk)?;
    let check = |wait: Wait| Check { index, objects, wait, referred, report: PacksReport::default() }.run();
    #[cfg(any(test, feature = "simulation"))]
    if disk.inline {
        return check(Wait::Never);
    }
    // On a thread of its own, since the caller's may belong to a runtime.
    let apart = || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| PackError::Index {
            tried: "start a runtime to read",
            path: dir.display().to_string(),
            reason: e.to_string(),
        })?;
        check(Wait::On(runtime.handle().clone()))
    };
    std::thread::scope(|scope| match scope.spawn(apart).join() {
        Ok(report) => report,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

struct Check<'a> {
    index: Index,
    objects: Arc<dyn ObjectStore>,
    wait: Wait,
    referred: &'a [ChunkName],
    report: PacksReport,
}

impl Check<'_> {
    fn run(mut self) -> Result<PacksReport, PackError> {
        let mut found = vec![false; self.referred.len()];
        for (name, content) in self.index.tail()? {
            self.report.tail_chunks += 1;
            self.report.tail_bytes += content.len() as u64;
            let whole = *blake3::hash(&content).as_bytes() == name.hash;
            self.report.violations.check(whole, || format!("the chunk {name} in the index does not have its hash"));
            self.count(&name, content.len() as u64, &mut found);
        }
        let mut by_pack: BTreeMap<u64, Vec<(ChunkName, Where)>> = BTreeMap::new();
        self.index.each(|name, place| by_pack.entry(place.pack).or_default().push((name, place)))?;
        let counted: BTreeMap<u64, (u64, u64)> =
            self.index.packs()?.into_iter().map(|(pack, bytes, used)| (pack, (bytes, used))).collect();
        for (pack, (bytes, used)) in &counted {
            self.report.packs += 1;
            self.report.pack_bytes += bytes;
            let held = by_pack.get(pack).map_or(0, |held| held.iter().map(|(_, place)| u64::from(place.bytes)).sum());
            self.report.violations.check(held == *used, || {
                format!("the pack {pack} holds {held} bytes in use, and the index counts {used}")
            });
        }
        for (pack, mut held) in by_pack {
            self.report
                .violations
                .check(counted.contains_key(&pack), || format!("the index does not count pack {pack}"));
            held.sort_unstable_by_key(|(_, place)| place.offset);
            for (name, place) in &held {
                self.report.chunks += 1;
                self.count(name, u64::from(place.bytes), &mut found);
            }
            self.pack(pack, &held);
        }
        self.absent(&found)?;
        Ok(self.report)
    }

    /// Notes that a chunk is kept.
    fn count(&mut self, name: &ChunkName, bytes: u64, found: &mut [bool]) {
        match self.referred.binary_search(name) {
            Ok(at) => found[at] = true,
            Err(_) => {
                self.report.orphans += 1;
                self.report.orphan_bytes += bytes;
            }
        }
    }

    /// Reads a pack and compares what stands in it.
    fn pack(&mut self, pack: u64, held: &[(ChunkName, Where)]) {
        let read = async { self.objects.get(&pack_path(pack)).await?.bytes().await };
        let content = match self.wait.wait(read) {
            Ok(content) => content,
            Err(error) => {
                return self.report.violations.add(|| format!("the pack {pack} cannot be read: {error}"));
            }
        };
        let mut end = 0;
        for (name, place) in held {
            let (from, to) = (place.offset as usize, place.offset as usize + place.bytes as usize);
            let whole = content.get(from..to).is_some_and(|part| *blake3::hash(part).as_bytes() == name.hash);
            self.report.violations.check(whole, || format!("the chunk {name} in pack {pack} does not have its hash"));
            self.report.violations.check(from >= end, || format!("chunks overlap in pack {pack} at {from}"));
            end = to;
        }
    }

    /// What is referred to and not kept must be still to come.
    fn absent(&mut self, found: &[bool]) -> Result<(), PackError> {
        let ingested = self.index.ingested()?;
        for (name, _) in self.referred.iter().zip(found).filter(|(_, found)| !**found) {
            let reached = ingested.get(&name.partition);
            let to_come = name.topic == Topic::Chunks
                && reached.is_none_or(|reached| reached.is_before(name.epoch, name.offset.saturating_add(1)));
            self.report.awaited += u64::from(to_come);
            if !to_come {
                self.report.violations.add(|| format!("the chunk {name} is referred to, and is not kept"));
                self.report.missing.push(*name);
            }
        }
        Ok(())
    }
}
