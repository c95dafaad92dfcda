//! The data directory: what a server keeps, and that only one server uses it.
//!
//! ```text
//! cluster.key    the cluster's secret, 0600 (or elsewhere: `--key-file`)
//! recovery.pub   the public half of the recovery key
//! server.toml    which server and which cluster this is
//! snapshot       only while a snapshot is taken: state and packs are not whole
//! epoch          the log's epoch when a server last opened it, for administrators' programs
//! lock           held by the running server, with its process id
//! state/         one database per partition
//! packs/         content, and the index of where each chunk stands
//! ```
//! `server.toml` is written last: a directory without it was never initialised.
//!
#![allow(clippy::disallowed_methods)] // Keys and the server's id are drawn at random here, once, outside the machine.

use proto::keys::{ClusterId, ClusterKey, KeyFileError, KeyPair, PublicKey};
use proto::{Epoch, ServerId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The layout of the directory. Another number is refused.
const FORMAT: u32 = 1;

/// Why a data directory cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot {tried} {path}: {reason}")]
    Io { tried: &'static str, path: PathBuf, reason: String },
    #[error("{path} is initialised already; use it with `kfs-server run --data {path}`, or name another directory")]
    Initialised { path: PathBuf },
    #[error("{path} is not empty; name a directory that is empty or does not exist")]
    NotEmpty { path: PathBuf },
    #[error("{path} is no data directory of kfs-server; make one with `kfs-server init --data {path}`")]
    NotInitialised { path: PathBuf },
    #[error("{path} is in use by a kfs-server{}; stop that one first", .pid.as_ref().map_or(String::new(), |pid| format!(" (process {pid})")))]
    InUse { path: PathBuf, pid: Option<String> },
    #[error(
        "{path} belongs to the cluster {here}, the key {key_file} to the cluster {other}; give the key that belongs to it"
    )]
    OtherCluster { path: PathBuf, here: String, key_file: PathBuf, other: ClusterId },
    #[error(
        "{path} has the format {format}, this kfs-server knows {FORMAT}; run the kfs-server that made it or a newer one"
    )]
    Format { path: PathBuf, format: u32 },
    #[error(
        "a snapshot into {path} was begun and has not ended; take it again with `kfs-server bootstrap --data {path}`"
    )]
    HalfASnapshot { path: PathBuf },
    #[error("a new epoch was begun from {path} and not finished; finish it with `kfs-server epoch --from {path}`")]
    HalfAnEpoch { path: PathBuf },
    #[error("no kfs-server has opened the log with {path} yet; start `kfs-server run` first")]
    NoEpoch { path: PathBuf },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

#[derive(Serialize, Deserialize)]
struct ServerFile {
    format: u32,
    server: String,
    cluster: String,
}

/// A data directory's keys and names, without the right to write into it: what
/// administrators' programs need while a server runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub server: ServerId,
    pub cluster_key: ClusterKey,
    pub recovery: PublicKey,
}

/// A data directory that this process alone may write into.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    pub identity: Identity,
    /// Unlocked when dropped.
    _lock: File,
}

/// Makes a data directory for the first server of a new cluster. The recovery
/// key's private half goes to `recovery`; neither is ever written over.
pub fn init(path: &Path, recovery: &Path) -> Result<Identity, DataError> {
    make_empty(path)?;
    let pair = KeyPair::generate();
    // First, since it is the one place outside: nothing is left behind if it cannot be written.
    pair.write_recovery(recovery)?;
    let identity =
        Identity { server: ServerId::random(), cluster_key: ClusterKey::generate(), recovery: pair.public() };
    fill(path, &identity).inspect_err(|_| drop(std::fs::remove_file(recovery)))?;
    Ok(identity)
}

/// Makes a data directory for another server of the cluster that `from` belongs to:
/// `from` is that server's data directory, or a copy of its `cluster.key`,
/// `recovery.pub` and `server.toml`. `key_file` stands in for `from`'s `cluster.key`.
pub fn join(path: &Path, from: &Path, key_file: Option<&Path>) -> Result<Identity, DataError> {
    let identity = Identity { server: ServerId::random(), ..Identity::read(from, key_file)? };
    make_empty(path)?;
    fill(path, &identity)?;
    Ok(identity)
}

/// Makes the directory; refuses one with anything in it.
fn make_empty(path: &Path) -> Result<(), DataError> {
    match std::fs::read_dir(path) {
        Ok(mut entries) => {
            if path.join("server.toml").exists() {
                return Err(DataError::Initialised { path: path.into() });
            }
            if entries.next().is_some() {
                return Err(DataError::NotEmpty { path: path.into() });
            }
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|e| io("create", path, &e))
        }
        Err(e) => Err(io("read the directory", path, &e)),
    }
}

/// Writes what belongs into a new directory, or nothing.
fn fill(path: &Path, identity: &Identity) -> Result<(), DataError> {
    let write = || -> Result<(), DataError> {
        identity.cluster_key.write(&path.join("cluster.key"))?;
        for dir in ["state", "packs"] {
            let dir = path.join(dir);
            std::fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|e| io("create", &dir, &e))?;
        }
        write_new(&path.join("recovery.pub"), &format!("{}\n", identity.recovery))?;
        let file = ServerFile {
            format: FORMAT,
            server: identity.server.to_string(),
            cluster: identity.cluster_key.id().to_string(),
        };
        let text = toml::to_string(&file).map_err(|e| damaged(path, &e))?;
        write_new(&path.join("server.toml"), &text)?;
        File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| io("make durable", path, &e))
    };
    write().inspect_err(|_| {
        // Made by this call, and of no use without the rest.
        for file in ["server.toml", "recovery.pub", "cluster.key"] {
            let _ = std::fs::remove_file(path.join(file));
        }
        for dir in ["state", "packs"] {
            let _ = std::fs::remove_dir(path.join(dir));
        }
    })
}

fn io(tried: &'static str, path: &Path, e: &std::io::Error) -> DataError {
    DataError::Io { tried, path: path.into(), reason: e.to_string() }
}

impl Identity {
    /// Reads which server and cluster a data directory belongs to. `key_file`
    /// stands in for its `cluster.key`.
    pub fn read(path: &Path, key_file: Option<&Path>) -> Result<Identity, DataError> {
        let file = path.join("server.toml");
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(DataError::NotInitialised { path: path.into() });
            }
            Err(e) => return Err(DataError::Io { tried: "read", path: file, reason: e.to_string() }),
        };
        let stored: ServerFile = toml::from_str(&text).map_err(|e| damaged(&file, &e.message()))?;
        if stored.format != FORMAT {
            return Err(DataError::Format { path: path.into(), format: stored.format });
        }
        let server = unhex(&stored.server).ok_or_else(|| damaged(&file, &"`server` is not 32 hex digits"))?;

        let key_file = key_file.map_or_else(|| path.join("cluster.key"), Path::to_path_buf);
        let cluster_key = ClusterKey::read(&key_file)?;
        if cluster_key.id().to_string() != stored.cluster {
            let other = cluster_key.id();
            return Err(DataError::OtherCluster { path: path.into(), here: stored.cluster, key_file, other });
        }

        let file = path.join("recovery.pub");
        let text = std::fs::read_to_string(&file).map_err(|e| DataError::Io {
            tried: "read",
            path: file.clone(),
            reason: e.to_string(),
        })?;
        let recovery = unhex(text.trim()).ok_or_else(|| damaged(&file, &"it is not 64 hex digits"))?;
        Ok(Identity { server: ServerId(server), cluster_key, recovery: PublicKey(recovery) })
    }
}

/// The log's epoch when a server last opened it with this data directory.
pub fn epoch(path: &Path) -> Result<Epoch, DataError> {
    epoch_in(&path.join("epoch"))?.ok_or_else(|| DataError::NoEpoch { path: path.into() })
}

fn epoch_in(file: &Path) -> Result<Option<Epoch>, DataError> {
    match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map(|epoch| Some(Epoch(epoch))).map_err(|e| damaged(file, &e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io("read", file, &e)),
    }
}

impl DataDir {
    /// Takes the directory for this process until dropped.
    pub fn open(path: &Path, key_file: Option<&Path>) -> Result<DataDir, DataError> {
        let data = DataDir::open_unfinished(path, key_file)?;
        if path.join("snapshot").exists() {
            return Err(DataError::HalfASnapshot { path: path.into() });
        }
        Ok(data)
    }

    /// Likewise, even if what it holds is not whole.
    fn open_unfinished(path: &Path, key_file: Option<&Path>) -> Result<DataDir, DataError> {
        let identity = Identity::read(path, key_file)?;
        let lock = lock(path)?;
        for dir in ["state", "packs"] {
            let dir = path.join(dir);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|e| DataError::Io {
                tried: "create",
                path: dir.clone(),
                reason: e.to_string(),
            })?;
        }
        Ok(DataDir { path: path.into(), identity, _lock: lock })
    }

    /// Takes the directory, and from here until [`DataDir::end_snapshot`] no server starts in it.
    pub(crate) fn begin_snapshot(path: &Path, key_file: Option<&Path>) -> Result<DataDir, DataError> {
        let data = DataDir::open_unfinished(path, key_file)?;
        let mark = path.join("snapshot");
        if !mark.exists() {
            write_new(&mark, "")?;
        }
        data.make_durable()?;
        Ok(data)
    }

    /// What the directory holds is whole.
    pub(crate) fn end_snapshot(&self) -> Result<(), DataError> {
        self.remove_mark("snapshot")
    }

    /// The epoch that was begun from here, if it is not known to have been finished.
    pub(crate) fn half_an_epoch(&self) -> Result<Option<Epoch>, DataError> {
        epoch_in(&self.path.join("epoch.begun"))
    }

    /// From here until [`DataDir::end_epoch`] nothing but beginning an epoch goes on from here.
    pub(crate) fn begin_epoch(&self, epoch: Epoch) -> Result<(), DataError> {
        let (new, mark) = (self.path.join("epoch.begun.new"), self.path.join("epoch.begun"));
        let written = File::create(&new).and_then(|mut file| {
            writeln!(file, "{}", epoch.0)?;
            file.sync_all()
        });
        written.and_then(|()| std::fs::rename(&new, &mark)).map_err(|e| io("write", &mark, &e))?;
        self.make_durable()
    }

    /// The epoch is on disk, in all partitions.
    pub(crate) fn end_epoch(&self) -> Result<(), DataError> {
        self.remove_mark("epoch.begun")
    }

    fn remove_mark(&self, name: &str) -> Result<(), DataError> {
        let mark = self.path.join(name);
        std::fs::remove_file(&mark).map_err(|e| io("remove", &mark, &e))?;
        self.make_durable()
    }

    fn make_durable(&self) -> Result<(), DataError> {
        let path = &self.path;
        File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| io("make durable", path, &e))
    }

    /// Tells administrators' programs the epoch. Replaced whole, so that it is never half read.
    pub(crate) fn note_epoch(&self, epoch: Epoch) -> Result<(), DataError> {
        let (new, file) = (self.path.join("epoch.new"), self.path.join("epoch"));
        std::fs::write(&new, format!("{}\n", epoch.0))
            .and_then(|()| std::fs::rename(&new, &file))
            .map_err(|e| DataError::Io { tried: "write", path: file, reason: e.to_string() })
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub fn packs(&self) -> PathBuf {
        self.path.join("packs")
    }
}

fn lock(path: &Path) -> Result<File, DataError> {
    let file = path.join("lock");
    let io = |tried, e: std::io::Error| DataError::Io { tried, path: file.clone(), reason: e.to_string() };
    let mut options = OpenOptions::new();
    let mut lock = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&file)
        .map_err(|e| io("open", e))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only for the message; the lock itself says that it is in use.
            let _ = (&lock).take(32).read_to_string(&mut pid);
            let pid = Some(pid.trim().to_owned()).filter(|pid| !pid.is_empty());
            return Err(DataError::InUse { path: path.into(), pid });
        }
        Err(e) => return Err(io("lock", e.into())),
    }
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(|e| io("write", e))?;
    Ok(lock)
}

fn write_new(path: &Path, text: &str) -> Result<(), DataError> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| DataError::Io { tried: "write", path: path.into(), reason: e.to_string() })
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> DataError {
    DataError::Damaged { path: path.into(), reason: reason.to_string() }
}

/// The bytes that `N * 2` hex digits tell.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (data, recovery) = (dir.path().join("data"), dir.path().join("kfs-recovery.key"));
        (dir, data, recovery)
    }

    #[test]
    fn what_init_makes_opens_once_at_a_time() {
        let (_dir, data, recovery) = fresh();
        let made = init(&data, &recovery).expect("initialises");
        let open = DataDir::open(&data, None).expect("opens");
        assert_eq!(open.identity.server, made.server);
        assert_eq!(open.identity.recovery, KeyPair::read_recovery(&recovery).expect("reads").public());
        let error = DataDir::open(&data, None).expect_err("in use").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(open);
        DataDir::open(&data, None).expect("free again");
    }

    #[test]
    fn another_server_joins_with_the_same_keys_and_an_id_of_its_own() {
        let (dir, data, recovery) = fresh();
        let first = init(&data, &recovery).expect("initialises");
        let second = dir.path().join("second");
        let joined = join(&second, &data, None).expect("joins");
        let read = Identity::read(&second, None).expect("reads");
        assert_eq!(read.server, joined.server);
        assert_ne!(read.server, first.server);
        assert_eq!((read.cluster_key.id(), read.recovery), (first.cluster_key.id(), first.recovery));
        assert!(matches!(join(&second, &data, None), Err(DataError::Initialised { .. })));
        let third = dir.path().join("third");
        assert!(matches!(join(&third, dir.path(), None), Err(DataError::NotInitialised { .. })));
        assert!(!third.exists());
    }

    #[test]
    fn init_overwrites_nothing() {
        let (dir, data, recovery) = fresh();
        init(&data, &recovery).expect("initialises");
        let elsewhere = dir.path().join("other.key");
        assert!(matches!(init(&data, &elsewhere), Err(DataError::Initialised { .. })));
        assert!(!elsewhere.exists());
        let second = dir.path().join("second");
        assert!(matches!(init(&second, &recovery), Err(DataError::Key(_))));
        assert!(matches!(DataDir::open(&second, None), Err(DataError::NotInitialised { .. })));
        let taken = dir.path().join("taken");
        std::fs::create_dir(&taken).expect("a directory");
        std::fs::write(taken.join("file"), "mine").expect("writes");
        assert!(matches!(init(&taken, &elsewhere), Err(DataError::NotEmpty { .. })));
    }

    #[test]
    fn a_key_of_another_cluster_is_refused() {
        let (dir, data, recovery) = fresh();
        init(&data, &recovery).expect("initialises");
        let other = dir.path().join("other.key");
        ClusterKey::generate().write(&other).expect("writes");
        assert!(matches!(Identity::read(&data, Some(&other)), Err(DataError::OtherCluster { .. })));
    }
}
