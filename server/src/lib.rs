//! kfs-server: stores what mounts ask for. The deterministic machine over the
//! request log decides; what it decides is kept and told by what stands around it.

pub mod data;
pub mod machine;
pub mod packs;
pub mod store;
