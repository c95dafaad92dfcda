//! Whether a data directory is sound: every partition's state at its last checkpoint
//! (`machine::check`), and the packs against what the states refer to.
//!
//! Nothing is changed, beyond what opening a database after a kill repairs; no
//! server may be running on the directory. Everything is read, content included, and
//! every hash compared. Memory: the names of all chunks that are referred to, about
//! 150 MB for each TiB of content, and what the largest namespace's tree takes.

use crate::data::DataDir;
use crate::disk::Disk;
use crate::error::ServerError;
use crate::machine::Machine;
use crate::machine::check::{StateReport, Violations, check as check_state};
use crate::packs::PacksReport;
use crate::store::PartitionStore;
use proto::chunk::ChunkName;
use proto::log::REQUEST_PARTITIONS;
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of one partition's rows that are kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// What was found in a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of every partition that has a checkpoint.
    pub partitions: Vec<StateReport>,
    pub packs: PacksReport,
}

impl Report {
    /// Everything that is not as it must be.
    pub fn violations(&self) -> Violations {
        let mut all = Violations::default();
        for state in &self.partitions {
            let told = state.violations.told.iter().map(|line| format!("partition {}: {line}", state.partition));
            all.extend(Violations { count: state.violations.count, told: told.collect() });
        }
        all.extend(self.packs.violations.clone());
        all
    }
}

/// Checks the data directory of a server that does not run. `key_file` stands in for
/// its `cluster.key`.
pub fn check(data: &Path, key_file: Option<&Path>, disk: &Disk) -> Result<Report, ServerError> {
    let data = DataDir::open(data, key_file)?;
    let cluster = Arc::new(data.identity.cluster_key.clone());
    let mut report = Report::default();
    let mut referred: Vec<ChunkName> = Vec::new();
    for partition in 0..REQUEST_PARTITIONS {
        let (mut store, checkpoint) =
            PartitionStore::open(&data.state(), partition, cluster.id().0, CACHE_BYTES, disk)?;
        let Some(checkpoint) = checkpoint else { continue };
        let machine = Machine::restore(partition, cluster.clone(), &checkpoint.machine)
            .map_err(|e| ServerError::Restore { partition, reason: e.to_string() })?;
        let mut state = check_state(&machine, &mut store, &mut |_, name| referred.push(*name));
        store.check()?;
        // The last record of a partition that a new epoch leaves behind is not its state's.
        let applied = state.applied.map_or(0, |offset| offset + 1);
        let same_epoch = checkpoint.epoch.0 == state.epoch;
        state.violations.check(!same_epoch || applied <= checkpoint.next_offset, || {
            format!("the state has applied up to {applied}, the checkpoint says {}", checkpoint.next_offset)
        });
        report.partitions.push(state);
    }
    referred.sort_unstable();
    let twice = referred.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
    referred.dedup();
    report.packs = crate::packs::check(&data.packs(), cluster.id().0, disk, &referred)?;
    report.packs.violations.check(twice.is_none(), || {
        format!("two namespaces refer to the chunk {}", twice.map_or_else(String::new, |name| name.to_string()))
    });
    Ok(report)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "partition  epoch    applied  sessions  inodes   names  extents  chunks  history rows")?;
        for state in &self.partitions {
            let applied = state.applied.map_or("-".into(), |offset| offset.to_string());
            writeln!(
                f,
                "{:>9}  {:>5}  {applied:>9}  {:>8}  {:>6}  {:>6}  {:>7}  {:>6}  {:>12}",
                state.partition,
                state.epoch,
                state.sessions,
                state.inodes,
                state.names,
                state.extents,
                state.chunks,
                state.history_rows
            )?;
        }
        let packs = &self.packs;
        writeln!(
            f,
            "{} packs of {} bytes hold {} chunks; {} chunks ({} bytes) wait in the index for company",
            packs.packs, packs.pack_bytes, packs.chunks, packs.tail_chunks, packs.tail_bytes
        )?;
        writeln!(
            f,
            "nothing refers to {} chunks ({} bytes); {} that are referred to have not been ingested yet",
            packs.orphans, packs.orphan_bytes, packs.awaited
        )?;
        let violations = self.violations();
        for line in &violations.told {
            writeln!(f, "VIOLATION: {line}")?;
        }
        match violations.count {
            0 => write!(f, "sound: no violation"),
            1 => write!(f, "1 violation"),
            count => write!(f, "{count} violations"),
        }
    }
}
