//! A cluster in this process: its log, its data, its server, one user.

use crate::logs::{self, Losing};
use mount::client::{Client, ClientConfig, JournalConfig, Patience, Secret};
use mount::fs::{Caller, Fs, FsConfig, Owners};
use proto::clock::Clock;
use proto::frame::{Kind, frames};
use proto::log::embedded::EmbeddedBroker;
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::log::memory::MemoryLog;
use proto::log::{Log, Start, Topic};
use proto::message::{Quota, UserName};
use server::admin::Admin;
use server::admin::users::UserSpec;
use server::{Server, ServerConfig, data};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";
const WAIT: Duration = Duration::from_secs(30);

pub const ME: Caller = Caller { uid: 0, gid: 0, umask: 0 };

const OWNERS: Owners =
    Owners { keep_numbers: true, uid: 1000, gid: 1001, every_uid: false, every_gid: false, umask: 0 };

pub struct Place {
    // Ends first: its last checkpoint asks the broker.
    _server: Server,
    log: Arc<dyn Log>,
    broker: Option<EmbeddedBroker>,
    pub dir: tempfile::TempDir,
}

impl Place {
    pub async fn in_memory() -> Place {
        let log = Arc::new(MemoryLog::new());
        Place::with(log.clone(), log, None, ServerConfig::embedded).await
    }

    /// One whose server's answers can be lost.
    pub async fn losing() -> (Place, Arc<Losing>) {
        let log = Arc::new(MemoryLog::new());
        let losing = Arc::<Losing>::default();
        (Place::with(log.clone(), losing.log(log), None, ServerConfig::embedded).await, losing)
    }

    /// With a log that is taken for one that lasts, as Kafka's, so with its windows. It stamps nothing.
    pub async fn lasting() -> Place {
        let config = |data| ServerConfig { append_time: false, ..ServerConfig::new(data) };
        let log = Arc::new(MemoryLog::new());
        Place::with(log.clone(), log, None, config).await
    }

    /// Clients' requests that are in the log.
    pub fn sent(&self) -> usize {
        let first = |number| self.log.bounds(Topic::Requests, number).expect("is there").0;
        let partitions = 0..Topic::Requests.partitions();
        let starts: Vec<_> = partitions.map(|number| (Topic::Requests, number, Start::At(first(number)))).collect();
        let mut tail = self.log.read_from(&starts).expect("is there");
        let records = std::iter::from_fn(|| tail.try_next()).map(|record| record.expect("is there"));
        let sent = records.flat_map(|record| frames(record.value).expect("well-formed"));
        sent.filter(|frame| frame.header().kind == Kind::Request).count()
    }

    pub async fn on_broker() -> Place {
        let broker = EmbeddedBroker::start("kfs").expect("a broker starts");
        let (log, server_log) = (kafka(&broker), kafka(&broker));
        Place::with(log, server_log, Some(broker), ServerConfig::embedded).await
    }

    async fn with(
        log: Arc<dyn Log>,
        server_log: Arc<dyn Log>,
        broker: Option<EmbeddedBroker>,
        config: impl FnOnce(PathBuf) -> ServerConfig + Send + 'static,
    ) -> Place {
        // Shown when a test fails, or with RUST_LOG.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = dir.path().join("data");
        data::init(&data, &dir.path().join("recovery.key")).expect("initialises");
        let server = tokio::task::spawn_blocking({
            let data = data.clone();
            move || {
                let server = Server::start(config(data), server_log).expect("starts");
                server.ready().expect("becomes ready");
                server
            }
        });
        let place = Place { dir, log, broker, _server: server.await.expect("starts") };
        let identity = data::Identity::read(&data, None).expect("reads");
        let epoch = data::epoch(&data).expect("known");
        let mut admin = Admin::connect(&identity, epoch, Arc::clone(&place.log), WAIT).await.expect("connects");
        let password = Zeroizing::new(PASSWORD.as_bytes().to_vec());
        let spec = UserSpec { name: user(), uid: 1000, gid: 1001, password, device: None };
        admin.user_add(&[spec]).await.expect("adds");
        place
    }

    /// Sets the user's quota, which is in force when this returns.
    pub async fn quota(&self, quota: Quota) {
        let data = self.dir.path().join("data");
        let identity = data::Identity::read(&data, None).expect("reads");
        let epoch = data::epoch(&data).expect("known");
        let mut admin = Admin::connect(&identity, epoch, Arc::clone(&self.log), WAIT).await.expect("connects");
        admin.user_quota(&user(), |_| quota).await.expect("sets");
    }

    /// A journal that no other client adopts.
    fn journal(&self) -> JournalConfig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        JournalConfig { dir: self.dir.path().join(format!("journal-{number}")), max_bytes: 64 << 20 }
    }

    pub async fn client(&self) -> Client {
        self.client_on(self.broker.as_ref().map_or_else(|| Arc::clone(&self.log), kafka)).await
    }

    async fn client_on(&self, log: Arc<dyn Log>) -> Client {
        self.client_with(log, Clock::default()).await
    }

    async fn client_with(&self, log: Arc<dyn Log>, clock: Clock) -> Client {
        let config = ClientConfig {
            log,
            brokers: "test".to_owned(),
            prefix: "kfs".to_owned(),
            user: user(),
            secret: Secret::Password(Zeroizing::new(PASSWORD.to_owned())),
            timeout: WAIT,
            hard: false,
            journal: Some(self.journal()),
            clock,
        };
        Client::connect(config).await.expect("logs in")
    }

    pub async fn fs(&self) -> Fs {
        self.fs_at("/").await
    }

    pub async fn fs_at(&self, path: &str) -> Fs {
        self.fs_made(path, OWNERS, false).await
    }

    /// One whose reads move atime.
    pub async fn fs_with_relatime(&self) -> Fs {
        self.fs_made("/", OWNERS, true).await
    }

    /// As one who shows owners like this sees it.
    pub async fn fs_of(&self, path: &str, owners: Owners) -> Fs {
        self.fs_made(path, owners, false).await
    }

    /// One whose requests take so long to the log, one record after the other.
    pub async fn fs_slow(&self, each: Duration) -> Fs {
        let client = self.client_on(logs::slow(Arc::clone(&self.log), each)).await;
        Place::made_with(client, "/", OWNERS, true).await
    }

    /// One on a machine with this clock.
    pub async fn fs_by(&self, clock: Clock) -> Fs {
        let client = self.client_with(Arc::clone(&self.log), clock).await;
        Place::made_with(client, "/", OWNERS, false).await
    }

    /// One whose records on a topic can be held back.
    pub async fn fs_held(&self, topic: Topic) -> (Fs, watch::Sender<bool>) {
        let (held, is_held) = watch::channel(false);
        let client = self.client_on(logs::held(Arc::clone(&self.log), topic, is_held)).await;
        (Place::made_with(client, "/", OWNERS, false).await, held)
    }

    async fn fs_made(&self, path: &str, owners: Owners, relatime: bool) -> Fs {
        Place::made_with(self.client().await, path, owners, relatime).await
    }

    async fn made_with(client: Client, path: &str, owners: Owners, relatime: bool) -> Fs {
        let patience = client.patience();
        let config = FsConfig { relatime, ..FsConfig::new(owners) };
        Fs::open_root(client, config, Path::new(path), &patience).await.expect("opens")
    }
}

/// Every name in a directory, read to its end in whatever pieces come.
pub async fn all_names(fs: &Fs, dir: u64) -> Vec<Vec<u8>> {
    let (handle, patience) = (fs.opendir(dir), Patience::within(WAIT));
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let entries = fs.readdir(handle, offset, true, &patience).await.expect("lists");
        let Some(last) = entries.last() else { break };
        offset = last.offset;
        names.extend(entries.into_iter().map(|entry| entry.name));
    }
    fs.releasedir(handle).expect("it is open");
    names
}

fn kafka(broker: &EmbeddedBroker) -> Arc<dyn Log> {
    Arc::new(KafkaLog::connect(KafkaSettings::new(broker.bootstrap_servers(), "kfs")).expect("connects"))
}

fn user() -> UserName {
    UserName::new("anna").expect("a name")
}
