//! A log and a data directory as one version of kfs has written them, in one file:
//! what every later version must be able to go on from, and to apply to the same state.

use crate::run::Scratch;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use mount::client::{Client, ClientConfig, Patience, Secret};
use mount::fs::{Caller, CreateHow, Fs, FsConfig, Owners, ROOT, SetAttr};
use proto::clock::Clock;
use proto::keys::ClusterKey;
use proto::log::memory::MemoryLog;
use proto::log::{Appended, Log, LogError, REQUEST_PARTITIONS, Start, Tail, Topic};
use proto::message::{FileKind, RenameHow, UserName, XattrHow};
use serde::{Deserialize, Serialize};
use server::admin::Admin;
use server::admin::users::UserSpec;
use server::data::{Identity, epoch, init};
use server::disk::Disk;
use server::machine::Machine;
use server::machine::kv::{Kv, MemoryKv};
use server::store::PartitionStore;
use server::{Server, ServerConfig};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

const USER: &str = "anna";
const PASSWORD: &str = "correct horse";

/// For anything that a server or client is asked here.
const WAIT: Duration = Duration::from_secs(60);

/// What was recorded.
#[derive(Serialize, Deserialize)]
pub struct Recording {
    /// Of the data directory, by relative path. The server was killed some time after its last checkpoint.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// By topic and partition, from offset 0 on.
    log: Vec<(Topic, u32, Vec<Stored>)>,
    /// What a mount shows, by path.
    pub tree: BTreeMap<String, Node>,
    /// By partition, the state after the last record.
    pub states: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    append_time_ms: i64,
    #[serde(with = "serde_bytes")]
    value: Vec<u8>,
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub ino: u64,
    pub kind: FileKind,
    pub mode: u32,
    pub nlink: u32,
    pub size: u64,
    /// Of a file's content or a symlink's target.
    pub content: Option<[u8; 32]>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A log that keeps everything and tells the time.
#[derive(Clone)]
struct Recorder(MemoryLog);

impl Log for Recorder {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended {
        self.0.set_time(Clock::default().now_ms());
        self.0.append(topic, partition, value)
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        self.0.read_from(starts)
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        self.0.bounds(topic, partition)
    }

    fn trim(&self, _: Topic, _: u32, _: u64) -> Result<(), LogError> {
        Ok(())
    }
}

impl Recording {
    /// Records a cluster of this version at work.
    pub async fn make(scratch: &Scratch) -> Result<Recording> {
        let data = scratch.path().join("data");
        init(&data, &scratch.path().join("recovery.key"))?;
        let log = MemoryLog::new();
        let recorder = Arc::new(Recorder(log.clone()));
        let server = start(&data, &recorder)?;
        let identity = Identity::read(&data, None)?;
        let mut admin = Admin::connect(&identity, epoch(&data)?, recorder.clone(), WAIT).await?;
        let spec = UserSpec {
            name: UserName::new(USER).context("a user's name")?,
            uid: 1000,
            gid: 1000,
            password: Zeroizing::new(PASSWORD.into()),
            device: None,
        };
        admin.user_add(&[spec]).await?;

        let (client, fs) = connect(recorder.clone()).await?;
        work(&fs).await?;
        drop(fs);
        client.close().await;
        server.stop()?;
        // Of what comes now, only the log knows when the server is killed.
        let server = start(&data, &recorder)?;
        let (client, fs) = connect(recorder.clone()).await?;
        more_work(&fs).await?;
        let tree = tree(&fs).await?;
        server.crash();

        let mut recording = Recording { files: files(&data)?, log: Vec::new(), tree, states: Vec::new() };
        for topic in Topic::ALL.into_iter().filter(|topic| topic.is_durable()) {
            for partition in 0..topic.partitions() {
                let stored = |record: proto::log::Record| Stored {
                    append_time_ms: record.append_time_ms,
                    value: record.value.to_vec(),
                };
                let records = log.records(topic, partition).into_iter().map(stored).collect();
                recording.log.push((topic, partition, records));
            }
        }
        // It has a session open for ever.
        drop((client, fs));
        recording.states = recording.replayed(&identity.cluster_key)?;
        Ok(recording)
    }

    pub fn load(file: &Path) -> Result<Recording> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(rmp_serde::from_slice(&zstd::decode_all(bytes.as_slice())?)?)
    }

    pub fn save(&self, file: &Path) -> Result<()> {
        // What is in a pack is in the log as well, some way off.
        let mut encoder = zstd::Encoder::new(Vec::new(), 19)?;
        encoder.long_distance_matching(true)?;
        encoder.window_log(27)?;
        encoder.write_all(&rmp_serde::to_vec(self)?)?;
        std::fs::write(file, encoder.finish()?).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Puts the data directory there.
    pub fn unpack(&self, data: &Path) -> Result<()> {
        for (path, content) in &self.files {
            let path = data.join(path);
            std::fs::create_dir_all(path.parent().context("a file lies in a directory")?)?;
            std::fs::write(&path, content)?;
            private(&path)?;
        }
        Ok(())
    }

    /// The states of all partitions after all records, from the first one on.
    pub fn replayed(&self, cluster: &ClusterKey) -> Result<Vec<[u8; 32]>> {
        let replayed = |partition: u32| {
            let machine = Machine::new(partition, Arc::new(cluster.clone()));
            self.applied(partition, machine, &mut MemoryKv::default(), 0)
        };
        (0..REQUEST_PARTITIONS).map(replayed).collect()
    }

    /// Likewise from the checkpoints of an unpacked data directory on.
    pub fn replayed_from(&self, data: &Path) -> Result<Vec<[u8; 32]>> {
        let cluster = Arc::new(Identity::read(data, None)?.cluster_key);
        let replayed = |partition: u32| {
            let id = cluster.id().0;
            let (mut store, checkpoint) =
                PartitionStore::open(&data.join("state"), partition, id, 1 << 20, &Disk::default())?;
            let checkpoint = checkpoint.context("a partition has no checkpoint")?;
            let machine = Machine::restore(partition, cluster.clone(), &checkpoint.machine)?;
            self.applied(partition, machine, &mut store, checkpoint.next_offset)
        };
        (0..REQUEST_PARTITIONS).map(replayed).collect()
    }

    fn applied(&self, partition: u32, mut machine: Machine, kv: &mut dyn Kv, from: u64) -> Result<[u8; 32]> {
        let records = self.log.iter().find(|(topic, number, _)| (*topic, *number) == (Topic::Requests, partition));
        let (.., records) = records.context("a partition has no log")?;
        for (offset, record) in (0..).zip(records).skip(from as usize) {
            machine.apply(kv, offset, record.append_time_ms, &Bytes::from(record.value.clone()))?;
        }
        Ok(machine.state_hash())
    }

    /// A server of today goes on with it: shows the same tree, works, and leaves what is sound.
    pub async fn goes_on(&self, data: &Path) -> Result<()> {
        let log = MemoryLog::new();
        for (topic, partition, records) in &self.log {
            for record in records {
                log.set_time(record.append_time_ms);
                log.append(*topic, *partition, record.value.clone().into()).await?;
            }
        }
        let recorder = Arc::new(Recorder(log));
        let server = start(data, &recorder)?;
        let (client, fs) = connect(recorder).await?;
        let found = tree(&fs).await?;
        for path in found.keys().chain(self.tree.keys()) {
            let (found, recorded) = (found.get(path), self.tree.get(path));
            ensure!(found == recorded, "{path} was {recorded:?} and is {found:?}");
        }
        write(&fs, ROOT, "new", &[7; 300_000]).await?;
        drop(fs);
        client.close().await;
        server.stop()?;
        let report = server::check::check(data, None, &Disk::default())?;
        ensure!(report.violations().count == 0, "{report}");
        Ok(())
    }
}

fn start(data: &Path, log: &Arc<Recorder>) -> Result<Server> {
    let server = Server::start(ServerConfig::new(data), log.clone())?;
    server.ready()?;
    Ok(server)
}

async fn connect(log: Arc<dyn Log>) -> Result<(Client, Fs)> {
    let config = ClientConfig {
        log,
        brokers: "recorded".to_owned(),
        prefix: "kfs".to_owned(),
        user: UserName::new(USER).context("a user's name")?,
        secret: Secret::Password(Zeroizing::new(PASSWORD.to_owned())),
        timeout: WAIT,
        hard: false,
        journal: None,
        clock: Clock::default(),
    };
    let client = Client::connect(config).await?;
    let owners = Owners { keep_numbers: true, uid: 1000, gid: 1000, every_uid: false, every_gid: false, umask: 0 };
    let fs = Fs::open_root(client.clone(), FsConfig::new(owners), Path::new("/"), &patience()).await?;
    Ok((client, fs))
}

fn patience() -> Patience {
    Patience::within(WAIT)
}

const NEW: CreateHow = CreateHow { exclusive: true, append: false, may_bypass: false };

const WHO: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };

/// Every kind of thing that a tree can hold, made in every way.
async fn work(fs: &Fs) -> Result<()> {
    let p = &patience();
    let dir = fs.mkdir(WHO, ROOT, b"dir", 0o750, p).await?.ino;
    let deep = fs.mkdir(WHO, dir, b"deep", 0o755, p).await?.ino;
    let small = write(fs, dir, "small", b"a few bytes").await?;
    fs.link(small, deep, b"another name", p).await?;
    fs.symlink(WHO, deep, b"symlink", b"../small", p).await?;
    fs.setxattr(small, b"user.comment", b"kept", XattrHow::Set, p).await?;
    fs.setattr(small, SetAttr { mode: Some(0o600), ..SetAttr::default() }, p).await?;
    let large = crate::tree::Random::new(1).bytes(530_000);
    let ino = write(fs, dir, "large", &large).await?;
    // Pieces of several chunks, inline ones, and holes.
    let handle = fs.open(ino, false, p).await?.handle;
    for (offset, len) in [(1_000_u64, 9_000_usize), (300_000, 80_000), (500_000, 7_000), (2_000_000, 6_000)] {
        fs.write(handle, offset, &large[len..2 * len], p).await?;
    }
    fs.fsync(handle, p).await?;
    fs.release(handle)?;
    for number in 0..50 {
        write(fs, deep, &format!("file{number}"), &large[..number * 100]).await?;
    }
    fs.rename((deep, b"file3"), (dir, b"moved"), RenameHow::Replace, p).await?;
    fs.rename((deep, b"file4"), (deep, b"file5"), RenameHow::Replace, p).await?;
    fs.unlink(deep, b"file6", p).await?;
    Ok(())
}

async fn more_work(fs: &Fs) -> Result<()> {
    let p = &patience();
    let dir = fs.lookup(ROOT, b"dir", p).await?.ino;
    let large = fs.lookup(dir, b"large", p).await?.ino;
    fs.setattr(large, SetAttr { size: Some(510_000), ..SetAttr::default() }, p).await?;
    let later = write(fs, dir, "later", &crate::tree::Random::new(2).bytes(90_000)).await?;
    // Open without a name, and so for ever.
    fs.open(later, false, p).await?;
    fs.link(later, dir, b"kept", p).await?;
    fs.unlink(dir, b"later", p).await?;
    let (nameless, _) = fs.create(WHO, dir, b"nameless", 0o644, NEW, p).await?;
    fs.unlink(dir, b"nameless", p).await?;
    fs.getattr(nameless.ino, p).await?;
    fs.fsyncdir(p).await?;
    Ok(())
}

async fn write(fs: &Fs, dir: u64, name: &str, content: &[u8]) -> Result<u64> {
    let p = &patience();
    let (stat, opened) = fs.create(WHO, dir, name.as_bytes(), 0o644, NEW, p).await?;
    fs.write(opened.handle, 0, content, p).await?;
    fs.fsync(opened.handle, p).await?;
    fs.release(opened.handle)?;
    Ok(stat.ino)
}

/// Everything below the root.
async fn tree(fs: &Fs) -> Result<BTreeMap<String, Node>> {
    let p = &patience();
    let (mut found, mut todo) = (BTreeMap::new(), vec![(String::new(), ROOT)]);
    while let Some((path, dir)) = todo.pop() {
        let handle = fs.opendir(dir);
        let mut offset = 0;
        loop {
            let entries = fs.readdir(handle, offset, true, p).await?;
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            for entry in entries.iter().filter(|entry| !matches!(&entry.name[..], b"." | b"..")) {
                let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                if entry.kind == FileKind::Dir {
                    todo.push((path.clone(), entry.ino));
                }
                found.insert(path, node(fs, entry.ino).await?);
            }
        }
        fs.releasedir(handle)?;
    }
    Ok(found)
}

async fn node(fs: &Fs, ino: u64) -> Result<Node> {
    let p = &patience();
    let stat = fs.getattr(ino, p).await?;
    let content = match stat.kind {
        FileKind::File => {
            let handle = fs.open(ino, false, p).await?.handle;
            let content = fs.read(handle, 0, stat.size as u32, p).await?;
            ensure!(content.len() as u64 == stat.size, "{} bytes were read of {}", content.len(), stat.size);
            fs.release(handle)?;
            Some(content)
        }
        FileKind::Symlink => Some(fs.readlink(ino, p).await?),
        _ => None,
    };
    let mut xattrs = BTreeMap::new();
    for name in fs.listxattr(ino, true, p).await?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        xattrs.insert(name.to_vec(), fs.getxattr(ino, name, p).await?.to_vec());
    }
    let content = content.map(|content| *blake3::hash(&content).as_bytes());
    Ok(Node { ino, kind: stat.kind, mode: stat.mode, nlink: stat.nlink, size: stat.size, content, xattrs })
}

/// All files below a directory.
fn files(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(next) = todo.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.push((path.strip_prefix(dir)?.to_owned(), std::fs::read(&path)?));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn private(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?)
}
