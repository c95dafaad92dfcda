//! The filesystem against a whole server in this process: over the log in memory
//! through its functions, and over the embedded broker through real mounts.

mod accessed;
mod acls;
mod content;
mod counts;
mod delegation;
mod locks;
mod logs;
mod mounted;
mod names;
mod owners;
mod place;
mod quota;
mod slow;
