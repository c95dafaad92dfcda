//! A running mount: from a client and an attached descriptor to a directory that
//! works, and back: drained, detached, its session closed. `kfs-mount` and `kfs
//! dev` differ in what stands before and after it.

use crate::client::{Client, ClientConfig, Drained, JournalConfig};
use crate::fs::{Fs, FsConfig, Owners};
use crate::fuse;
use crate::sys::attach::{self, Attached};
use crate::sys::detach::{How, detach};
use crate::sys::guardian::Guardian;
use crate::sys::options::MountOptions;
use anyhow::Context;
use proto::config::Config;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a mount's journal is kept: `/var/lib/kfs` for root, else `$XDG_STATE_HOME/kfs`.
pub fn journal_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/kfs"));
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state"))).map(|dir| dir.join("kfs"))
}
