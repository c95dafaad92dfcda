//! `kfs-mount` and `kfs`: a namespace as a directory, and its command line.

pub mod cli;
pub mod client;
pub mod connect;
pub mod dev;
pub mod error;
pub mod fs;
pub mod fuse;
mod inline;
mod logs;
mod mounted;
pub mod program;
pub mod sys;
pub mod tier;
mod worker;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs `kfs`, or, under the name `kfs-mount` or one of the helpers' for mount(8)
/// and umount(8), that program. Both binaries are this function, so a link with
/// another name is all that the other program needs.
pub fn main() -> ExitCode {
    proto::memory::give_back_large_buffers();
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().map(Path::new).and_then(Path::file_name);
    let is_kfs = name.is_some_and(|name| name == "kfs") && crate::sys::helper::called_as(&args).is_none();
    if is_kfs { cli::main(args) } else { program::main(args) }
}
