//! What stopped servers have on disk, compared byte for byte.

use crate::sim::disk::SimDisk;
use proto::keys::ClusterKey;
use proto::log::REQUEST_PARTITIONS;
use server::data::Identity;
use server::machine::Machine;
use server::store::snapshot::RowPart;
use server::store::{Checkpoint, PartitionStore, StoreError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a stopped server has on disk of a partition: how far it is, and its rows.
pub struct Kept {
    cluster: Arc<ClusterKey>,
    partitions: Vec<(Checkpoint, Vec<RowPart>)>,
}

/// By partition, the offset up to which a stopped server has kept what it applied.
pub fn reached(data: &Path, disk: &SimDisk) -> Result<BTreeMap<u32, u64>, String> {
    let identity = Identity::read(data, None).map_err(|error| error.to_string())?;
    let (state, cluster) = (data.join("state"), identity.cluster_key.id().0);
    let reached = |number| -> Result<u64, StoreError> {
        let (_, checkpoint) = PartitionStore::open(&state, number, cluster, 1 << 20, &disk.disk())?;
        Ok(checkpoint.map_or(0, |checkpoint| checkpoint.next_offset))
    };
    (0..REQUEST_PARTITIONS).map(|number| Ok((number, reached(number).map_err(|error| error.to_string())?))).collect()
}

pub fn kept(data: &Path, disk: &SimDisk) -> Result<Kept, String> {
    let identity = Identity::read(data, None).map_err(|error| error.to_string())?;
    let cluster = Arc::new(identity.cluster_key);
    let partition = |number| -> Result<_, StoreError> {
        let (store, _) = PartitionStore::open(&data.join("state"), number, cluster.id().0, 1 << 20, &disk.disk())?;
        let Some(held) = store.reader().map(|reader| reader.hold()).transpose()?.flatten() else { return Ok(None) };
        let (rows, _) = held.rows(&[], 0, usize::MAX)?;
        Ok(Some((held.checkpoint, rows)))
    };
    let read = |number| partition(number).map_err(|error| error.to_string());
    let all =
        (0..REQUEST_PARTITIONS).map(|number| read(number)?.ok_or(format!("partition {number} has no checkpoint")));
    let partitions = all.collect::<Result<_, String>>()?;
    Ok(Kept { cluster, partitions })
}

/// Says where they differ.
pub fn same(one: &Kept, other: &Kept) -> Result<(), String> {
    for (number, ((one, one_rows), (other, other_rows))) in one.partitions.iter().zip(&other.partitions).enumerate() {
        if (one.epoch, one.next_offset, one.last_hash) != (other.epoch, other.next_offset, other.last_hash) {
            let places = [(one.epoch.0, one.next_offset), (other.epoch.0, other.next_offset)];
            return Err(format!("partition {number} ends at {places:?}"));
        }
        if one.machine != other.machine {
            return Err(format!("the machine of partition {number} at {}", one.next_offset));
        }
        if let Some((row, _)) = one_rows.iter().zip(other_rows).find(|(one, other)| one != other) {
            return Err(format!("the row {:?} of partition {number} at {}", row.0, one.next_offset));
        }
        if one_rows.len() != other_rows.len() {
            let counts = (one_rows.len(), other_rows.len());
            return Err(format!("partition {number} at {} has {counts:?} rows", one.next_offset));
        }
    }
    Ok(())
}

/// Whether every partition's machine has come to behave as this version does.
pub fn is_of_version(kept: &Kept, version: u32) -> Result<(), String> {
    for (number, (checkpoint, _)) in (0..).zip(&kept.partitions) {
        let machine = Machine::restore(number, kept.cluster.clone(), &checkpoint.machine);
        let is = machine.map_err(|error| error.to_string())?.version();
        if is != version {
            return Err(format!("the machine of partition {number} has version {is}, and all support {version}"));
        }
    }
    Ok(())
}
