//! kfs-server: stores what mounts ask for.
//!
//! [`machine`] is pure: the same records give the same state, answers and pushes.
//! Everything else is an adapter around it: [`store`] keeps its rows, [`packs`]
//! content, [`Server`] reads the log and answers, [`admin`] is what administrators'
//! programs do. Start with `README.md`.

pub mod admin;
pub mod check;
pub mod cli;
pub mod data;
pub mod disk;
mod download;
mod error;
mod ingest;
mod keeper;
pub mod limits;
mod live;
mod login;
pub mod machine;
pub mod packs;
pub mod replica;
mod run;
pub mod snapshot;
pub mod store;
pub mod trace;

pub use error::ServerError;
#[cfg(feature = "simulation")]
pub use run::tasks::Tasks;
pub use run::{NewLog, Server, ServerConfig, Waiter};
