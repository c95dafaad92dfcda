//! Requests that take a name away.

use crate::ids::{Ino, Name};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delete {
    /// → `Removed`.
    Unlink { dir: Ino, name: Name },
    /// → `Removed`.
    Rmdir { dir: Ino, name: Name },
}
