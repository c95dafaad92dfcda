//! kfs

pub mod client;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod sys;
