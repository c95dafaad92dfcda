//! The operating-system side of a mount.
pub mod attach;
pub mod daemon;
pub mod detach;
pub mod guardian;
pub mod interrupt;
pub mod mountinfo;
pub mod options;
