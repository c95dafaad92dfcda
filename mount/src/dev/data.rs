//! Where `kfs dev` keeps what outlives it: `$XDG_DATA_HOME/kfs/dev`, one process
//! at a time. Never in the directory that it mounts.

use anyhow::Context;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The data directory, ours while this lives.
pub(super) struct Data {
    dir: PathBuf,
    _lock: File,
}

impl Data {
    /// Opens the directory, makes it if need be, and locks it.
    pub fn open(given: Option<PathBuf>) -> anyhow::Result<Data> {
        let dir = match given {
            Some(dir) => std::path::absolute(dir)?,
            None => default_dir()?,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot make the data directory {}", dir.display()))?;
        let path = dir.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The holder's pid is for people; the lock itself is what counts.
                let _ = lock.read_to_string(&mut pid);
                anyhow::bail!(
                    "another `kfs dev` (pid {}) uses {}; end it, or give this one a directory of its own with --data",
                    pid.trim(),
                    dir.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        lock.set_len(0)?;
        lock.seek(SeekFrom::Start(0))?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Data { dir, _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn server(&self) -> PathBuf {
        self.dir.join("server")
    }

    pub fn credential(&self) -> PathBuf {
        self.dir.join("credential")
    }

    pub fn recovery_key(&self) -> PathBuf {
        self.dir.join("recovery.key")
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Programs of this very build under their own names, so that the commands
    /// printed work wherever `kfs` was started from.
    pub fn link_program(&self, name: &str) -> anyhow::Result<PathBuf> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let bin = self.dir.join("bin");
        std::fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        let link = bin.join(name);
        match std::fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", link.display()));
            }
            _ => {}
        }
        std::os::unix::fs::symlink(program, &link).with_context(|| format!("cannot make {}", link.display()))?;
        Ok(link)
    }
}

fn default_dir() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => dir,
        None => {
            let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
            PathBuf::from(home.context("neither XDG_DATA_HOME nor HOME is set; name a directory with --data")?)
                .join(".local/share")
        }
    };
    Ok(base.join("kfs/dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_dev_on_the_same_data_hears_who_has_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = Data::open(Some(dir.path().join("data"))).expect("nobody has it");
        let refused = Data::open(Some(dir.path().join("data"))).err().expect("the first still has it").to_string();
        assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        drop(first);
        Data::open(Some(dir.path().join("data"))).expect("the first has let go");
    }
}
