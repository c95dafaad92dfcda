//! What every run begins with, made once: a cluster's keys, its data directory's
//! files, a log in which its user exists with a few directories, and the disks of
//! servers that have applied all of that.

use super::bus::{Bus, Net};
use super::cluster::{BEGINNING_MS, client_config, fs_config, patience, runtime, server_config};
use super::disk::SimDisk;
use super::history::{Applied, History};
use super::plan::DIRS;
use super::rng::Rng;
use super::trace::Trace;
use super::work::dir_name;
use mount::client::Client;
use mount::fs::{Caller, Fs, ROOT};
use proto::Position;
use proto::clock::Clock;
use proto::keys::ClusterKey;
use proto::log::{REQUEST_PARTITIONS, Record, Topic};
use proto::login::{DeviceCredential, DeviceSecret};
use proto::message::UserName;
use proto::simulation::{Node, Simulation, observe};
use server::Tasks;
use server::admin::Admin;
use server::admin::users::UserSpec;
use server::data::{Identity, epoch, init, join};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub struct Template {
    pub servers: Vec<Home>,
    /// The request log, from these first offsets on.
    pub firsts: Vec<u64>,
    pub records: Vec<Record>,
    /// What its requests have done.
    pub applied: Vec<(Position, Applied)>,
    pub credential: DeviceCredential,
    pub cluster: ClusterKey,
    /// How far virtual time had come.
    pub ends_us: u64,
}

/// What one server has.
pub struct Home {
    /// Of the data directory, by name.
    files: Vec<(PathBuf, Vec<u8>)>,
    pub disk: SimDisk,
}

/// Servers that a run can have.
const MOST_SERVERS: usize = 3;

/// The one of this process with so many servers; the same in every process.
pub fn template(servers: u8) -> &'static Template {
    static TEMPLATES: [OnceLock<Template>; MOST_SERVERS] = [const { OnceLock::new() }; MOST_SERVERS];
    let servers = usize::from(servers);
    TEMPLATES[servers - 1].get_or_init(|| {
        // On a thread of its own: the caller's may be simulated already.
        let made = std::thread::spawn(move || {
            let _simulation = Simulation::begin(1);
            server::limits::set_limits(super::sound::SHORT);
            runtime(0).block_on(make(servers))
        });
        made.join().expect("a cluster without faults can be made")
    })
}

impl Home {
    /// Writes the data directory's files.
    pub fn write(&self, dir: &Path) {
        for (name, content) in &self.files {
            std::fs::write(dir.join(name), content).expect("a temporary directory can be written");
        }
        set_private(&dir.join("cluster.key"));
    }
}

fn set_private(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("one's own file");
}

async fn make(servers: usize) -> Template {
    let (scratch, history) = (scratch(), History::default());
    let observer = history.clone();
    observe(move |seen| observer.observe(seen));
    let data = scratch.path().join("data");
    init(&data, &scratch.path().join("recovery.key")).expect("initialises");
    let mut places = vec![data.clone()];
    for number in 1..servers {
        let joined = scratch.path().join(format!("data-{number}"));
        join(&joined, &data, None).expect("joins");
        places.push(joined);
    }

    let bus = Bus::new(Net::default(), Rng::new(1, "template"), BEGINNING_MS, true, Trace::new(false));
    tokio::spawn(bus.clone().run());
    let mut running = Vec::new();
    for place in &places {
        let (node, disk) = (Node::new(), SimDisk::new());
        let log = Arc::new(bus.log("server", node.clone()));
        let config = server_config(place, &disk, Clock::new(|| i128::from(BEGINNING_MS) * 1_000_000), true);
        let server = node.enter(|| Tasks::start(&config, log.clone())).expect("starts");
        while !server.is_ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.push((node, disk, server, log));
    }

    let name = UserName::new("anna").expect("a name");
    let credential = DeviceCredential {
        user: name.to_string(),
        device: "sim".to_owned(),
        secret: DeviceSecret::random(),
        brokers: None,
    };
    let identity = Identity::read(&data, None).expect("reads");
    let epoch = epoch(&data).expect("the server has noted it");
    let mut admin =
        Admin::connect(&identity, epoch, running[0].3.clone(), Duration::from_secs(30)).await.expect("connects");
    let password = zeroize::Zeroizing::new(b"correct horse".to_vec());
    let spec = UserSpec { name, uid: 1000, gid: 1000, password, device: Some(credential.clone()) };
    admin.user_add(&[spec]).await.expect("adds");

    let log = Arc::new(bus.log("first", Node::new()));
    let clock = super::cluster::client_clock(&bus, 98, Arc::default());
    let client = Client::connect(client_config(log, &credential, clock, None)).await.expect("logs in");
    let fs = Fs::open_root(client.clone(), fs_config(), Path::new("/"), &patience()).await.expect("opens");
    for number in 1..DIRS {
        let who = Caller { uid: 1000, gid: 1000, umask: 0 };
        fs.mkdir(who, ROOT, &dir_name(number), 0o755, &patience()).await.expect("makes");
    }
    drop(fs);
    client.close().await;
    // Until the session is forgotten, nothing ticks any more, and all is on disk.
    tokio::time::sleep(Duration::from_secs(200)).await;
    for (node, _, server, _) in &running {
        server.stop();
        while server.ended().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.kill();
    }
    let homes = places.iter().zip(running).map(|(place, (_, disk, ..))| {
        let file = |name: &str| (PathBuf::from(name), std::fs::read(place.join(name)).expect("init has made it"));
        Home { files: ["cluster.key", "recovery.pub", "server.toml"].map(file).into(), disk: disk.copy() }
    });
    let firsts = (0..REQUEST_PARTITIONS).map(|partition| bus.first(Topic::Requests, partition)).collect();
    let records = (0..REQUEST_PARTITIONS).flat_map(|partition| bus.records(Topic::Requests, partition)).collect();
    let applied = std::mem::take(&mut history.lock().applied).into_iter().collect();
    Template {
        servers: homes.collect(),
        firsts,
        applied,
        records,
        credential,
        cluster: identity.cluster_key.clone(),
        ends_us: bus.now_us(),
    }
}

/// A directory in memory, if there is one.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}
