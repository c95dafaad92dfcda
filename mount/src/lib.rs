//! kfs
pub mod sys;
