//! Why a server does not start, or stops. Each is one line for the operator.

use crate::data::DataError;
use crate::machine::effect::{NotApplied, short};
use crate::packs::PackError;
use crate::store::StoreError;
use proto::log::LogError;
use proto::{Epoch, ServerId};
use std::sync::Arc;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Data(#[from] Arc<DataError>),
    /// Requests wait safely in Kafka meanwhile.
    #[error("{0}; nothing is applied any more, requests wait in Kafka: see to it and start kfs-server again")]
    Store(#[from] StoreError),
    #[error("{0}; nothing is applied any more, requests wait in Kafka: see to it and start kfs-server again")]
    Packs(#[from] PackError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "{topic}/{partition} is not the log that this server has applied: {reason}. Was the topic recreated, truncated \
         or rolled back? Nothing was changed here; put the topic's old records back, or go on from the server that has \
         the newest state with `kfs-server epoch --from DIR`, and let the others take a snapshot of it"
    )]
    LogChanged { topic: &'static str, partition: u32, reason: String },
    #[error(
        "{topic}/{partition} ends at offset {end}, but the server {by} has applied it before {applied}: the log has lost \
         its end. Nothing was changed here; put the topic's old records back, or go on without them from the server that \
         has the newest state with `kfs-server epoch --from DIR --anyway`, and let the others take a snapshot of it"
    )]
    EndLost { topic: &'static str, partition: u32, end: u64, applied: u64, by: ServerId },
    #[error(
        "{topic}/{partition} begins at offset {first}, but this server has applied it only before {wanted}: records \
         that it needs were deleted (too short a retention, or a server away for too long); nothing was changed here. Take \
         a snapshot of another server with `kfs-server bootstrap`"
    )]
    RecordsGone { topic: &'static str, partition: u32, first: u64, wanted: u64 },
    #[error(
        "{topic}/{partition} has {records} records and none of this cluster: another kfs cluster uses these topics; \
         choose another prefix, or use that cluster's data directory or cluster.key"
    )]
    OtherCluster { topic: &'static str, partition: u32, records: u64 },
    #[error(transparent)]
    NotApplied(#[from] NotApplied),
    #[error(
        "the state of partition {partition} before offset {at} is {} here and {} on the server {by}, which answers: one of \
         the two is damaged or runs another program. This one stops; to go on, take a snapshot of the other one with \
         `kfs-server bootstrap`",
        short(.here), short(.there)
    )]
    Differs { partition: u32, at: u64, here: [u8; 32], there: [u8; 32], by: ServerId },
    #[error(
        "the log is the one that this server has applied, so no new epoch is needed: start it with `kfs-server run`. If \
         records are known to be lost that it had not applied, begin one with --anyway"
    )]
    SameLog,
    #[error(
        "another process has started as the server {server}: two data directories have the same id, one is a copy. Make \
         the other server's with `kfs-server init --join` instead"
    )]
    Superseded { server: ServerId },
    #[error("the epoch {} has begun while this server served the one before; start it again", .epoch.0)]
    EpochOver { epoch: Epoch },
    #[error("cannot restore partition {partition} from its checkpoint: {reason}")]
    Restore { partition: u32, reason: String },
    #[error("the log did not take this server's record in partition {partition} of epoch {}: {reason}", .epoch.0)]
    NotOpened { partition: u32, epoch: Epoch, reason: String },
    #[error("cannot {tried}: {reason}")]
    System { tried: &'static str, reason: String },
    #[error("a bug, or damage to the state, stopped the server while it {during}: {reason}")]
    Bug { during: &'static str, reason: String },
    #[error("the server was stopped")]
    Stopped,
}

impl From<DataError> for ServerError {
    fn from(error: DataError) -> ServerError {
        ServerError::Data(Arc::new(error))
    }
}
