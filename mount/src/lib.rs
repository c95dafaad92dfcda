//! kfs
