//! kfs-server: stores what mounts ask for.
pub mod data;
pub mod machine {
    pub mod kv;
}
pub mod packs;
pub mod store;
