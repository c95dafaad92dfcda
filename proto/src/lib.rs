//! What crosses Kafka between `kfs-mount` and `kfs-server`, and the log it travels on.

pub mod chunk;
pub mod clock;
pub mod config;
pub mod frame;
pub mod ids;
pub mod keys;
pub mod log;
pub mod login;
pub mod memory;
pub mod message;
mod numbered;
pub mod planted;
pub mod random;
pub mod seal;
#[cfg(feature = "simulation")]
pub mod simulation;
pub mod task;
pub mod turns;

pub use ids::{
    Epoch, IncarnationId, Ino, LogTime, Name, NameError, NamespaceId, Position, PushNo, RequestNo, ServerId, SessionId,
    Time,
};
