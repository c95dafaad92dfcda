//! kfs

pub mod client;
pub mod sys;
