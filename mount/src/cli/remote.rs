//! The remote tree as the command line sees it: paths, walked from the root of
//! the namespace over [`Fs`], the same layer that a mount uses. Symlinks are
//! shown, never followed: their targets mean something only inside a mount.

use super::list::printable;
use crate::client::{Client, ConnectError};
use crate::connect::Login;
use crate::error::FsError;
use crate::fs::{Fs, FsOptions};
use proto::message::{Attr, Delete, FileKind, Listed, NewInode, Op, Outcome, Owner, Refusal, RenameHow, Upload, View};
use proto::{Ino, Name};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// What goes wrong with a remote path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("{path}: permission denied")]
    NotPermitted { path: String },
    #[error("{path}: not a directory")]
    NotDirectory { path: String },
    #[error("{path}: is a directory{hint}")]
    IsDirectory { path: String, hint: &'static str },
    #[error("{path}: exists already")]
    Exists { path: String },
    #[error("{path}: {source}")]
    Failed { path: String, source: FsError },
    #[error("{path}: the path leaves the tree or names nothing")]
    NoName { path: String },
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

pub(crate) struct Remote {
    client: Client,
    fs: Fs,
}

/// Entries asked for at once when a directory is walked.
const PAGE_ENTRIES: u32 = 1000;
