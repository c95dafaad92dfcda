//! The programs under test: `kfs-server`, `kfs` and `kfs-mount`.
//!
//! Cargo builds a package's own binaries for its tests, but not those of other
//! packages. So this package has one binary, `kfs-programs`, that is each of the
//! three, by the name it is called by, through the very `main` functions that
//! the real ones call. It is never stale, has the tests' profile, and costs one link.

use crate::run;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

/// The programs' names.
pub const NAMES: [&str; 3] = ["kfs-server", "kfs", "kfs-mount"];

/// Runs the program that this process was called by the name of; `None` if it is none of ours.
pub fn dispatch() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = Path::new(args.first()?).file_name()?.to_str()?.to_owned();
    match name.as_str() {
        "kfs-server" => Some(server::cli::main(args)),
        "kfs" | "kfs-mount" => Some(mount::main()),
        _ => None,
    }
}

/// Where the programs stand under their own names.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Puts `executable`, which must [`dispatch`], under the three names into the
    /// run's directory, where other users reach them too.
    pub fn install(executable: &str) -> Result<Programs> {
        static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
        let dir = INSTALLED.get_or_init(|| run::root().join("bin"));
        if !dir.exists() {
            // In one step, since tests run side by side.
            let new = tempfile::Builder::new()
                .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .tempdir_in(run::root())?
                .keep();
            for name in NAMES {
                let path = new.join(name);
                let linked = match name {
                    // Links of one copy, so that each knows by its own path what it is.
                    "kfs-server" => std::fs::copy(executable, &path).map(|_| ()),
                    _ => std::fs::hard_link(new.join("kfs-server"), &path),
                };
                linked.with_context(|| format!("put {executable} at {path:?}"))?;
            }
            if std::fs::rename(&new, dir).is_err() {
                // Another test was quicker.
                std::fs::remove_dir_all(&new)?;
            }
        }
        Ok(Programs { dir: dir.clone() })
    }

    /// The directory that has them, for `PATH`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn command(&self, name: &str) -> Command {
        assert!(NAMES.contains(&name), "{name} is no program of kfs");
        Command::new(self.dir.join(name))
    }
}
