//! A running server: reads the log, applies it, answers. Everything around the
//! machine lives below here; see `README.md` for the picture.
//!
//! * [`apply`](self::apply) is the loop over the request log, on the thread that reads it and
//!   one that attends to timers and questions.
//! * A thread writes checkpoints, one ingests `chunks`, one writes packs; logins and
//!   downloads are tasks of the server's own small runtime. They ask the loop for
//!   what they need of the state ([`Ask`]), so only the loop touches it.
//! * Nothing is global: several servers can run in one process.
//!
#![allow(clippy::disallowed_methods)] // Clocks are read here, outside the machine: for deadlines, and for ticks.

mod answers;
mod apply;
mod asks;
mod checkpoints;
pub(crate) mod last;
pub(crate) mod own;
mod partition;
mod start;
#[cfg(feature = "simulation")]
pub mod tasks;

pub(crate) use asks::{Ask, Asker, LoginView, UserView};

use crate::data::DataDir;
use crate::disk::Disk;
use crate::download;
use crate::error::ServerError;
use crate::ingest;
use crate::keeper::{self, Keeper};
use crate::live::Live;
use crate::login;
use crate::machine::MACHINE_VERSION;
use crate::machine::effect::Peer;
use crate::packs::Packs;
use crate::replica::Rules;
use crate::snapshot::give;
use crate::store::Written;
use answers::Answers;
use apply::{Answering, Apply, Opening};
use checkpoints::Checkpoints;
use own::OwnRecords;
use partition::panic_reason;
use proto::clock::Clock;
use proto::keys::ClusterKey;
use proto::log::{Log, Tail, Topic};
use proto::{Epoch, IncarnationId, SessionId, task};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Questions and reports that may wait for the loop.
const CONTROL_QUEUE: usize = 1024;

/// How long tasks may take to notice that the server has ended.
const TASKS_END_WITHIN: Duration = Duration::from_secs(5);

/// What a server is started with.
#[derive(Clone)]
pub struct ServerConfig {
    /// The data directory, made by [`crate::data::init`].
    pub data: PathBuf,
    /// The cluster key, if it is not in the data directory.
    pub key_file: Option<PathBuf>,
    pub on_new_log: NewLog,
    /// The log may forget what it has acknowledged: a sync waits for a checkpoint.
    pub volatile: bool,
    /// The log stamps records with their append time.
    pub append_time: bool,
    /// Bytes of rows that are cached in memory, over all partitions.
    pub cache_bytes: usize,
    /// What this machine takes for civil time.
    pub clock: Clock,
    /// The newest version of the machine to run and to offer, at most what this program knows.
    pub supports: u32,
    /// How several servers agree on which one answers.
    pub rules: Rules,
    /// What rows and content stand on.
    pub disk: Disk,
}

impl ServerConfig {
    /// For a log that keeps what it acknowledges, as real Kafka does.
    pub fn new(data: impl Into<PathBuf>) -> ServerConfig {
        ServerConfig {
            data: data.into(),
            key_file: None,
            on_new_log: NewLog::Refuse,
            volatile: false,
            append_time: true,
            cache_bytes: 512 << 20,
            clock: Clock::default(),
            supports: MACHINE_VERSION,
            rules: Rules::default(),
            disk: Disk::default(),
        }
    }

    /// For the embedded broker, whose log is new at each start.
    pub fn embedded(data: impl Into<PathBuf>) -> ServerConfig {
        ServerConfig { on_new_log: NewLog::BeginEpoch, volatile: true, append_time: false, ..ServerConfig::new(data) }
    }
}

/// What to do when the log is not the one that this server has applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewLog {
    /// Stop and explain.
    Refuse,
    /// Keep the files, begin a new epoch: for a log that is new by design.
    BeginEpoch,
    /// Likewise, and stop if it is the same log: an administrator wants an epoch, and
    /// needs none.
    NewEpochOnly,
    /// Begin a new epoch even if it looks like the same log: an administrator knows that
    /// records are lost which this server had not on disk.
    NewEpochAnyway,
}

/// A server in this process. Dropping it stops it as [`Server::stop`] does.
pub struct Server {
    phases: Arc<Phases>,
    halt: watch::Sender<Halt>,
    loop_thread: Option<JoinHandle<()>>,
    services_thread: Option<JoinHandle<()>>,
    runtime: Option<Background>,
    #[cfg(test)]
    packs: Arc<Packs>,
    #[cfg(test)]
    asker: Asker,
}

/// A runtime that may be ended from inside another one, as whoever stops a server
/// may well be; ended, its tasks are gone, and what they held is released.
struct Background(Option<tokio::runtime::Runtime>);

impl Background {
    fn start() -> Result<Background, ServerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("kfs-server")
            .enable_all()
            .build()
            .map_err(|e| ServerError::System { tried: "start the runtime", reason: e.to_string() })?;
        Ok(Background(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("it is taken when dropped only").handle().clone()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            let end = move || runtime.shutdown_timeout(TASKS_END_WITHIN);
            if let Ok(thread) = std::thread::Builder::new().spawn(end) {
                // A panic there leaves nothing to do here.
                let _ = thread.join();
            }
        }
    }
}

/// Whether and how the server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    No,
    /// With a checkpoint of everything applied.
    Clean,
    /// At once, as a kill would.
    Now,
}

impl Server {
    /// Opens the data directory, compares it with the log and starts applying.
    /// Blocks until that comparison is done, at most a few of the log's timeouts;
    /// [`Server::ready`] says when the server answers.
    pub fn start(config: ServerConfig, log: Arc<dyn Log>) -> Result<Server, ServerError> {
        let runtime = Background::start()?;
        let Parts { data, apply, services, epoch, checkpoints, halt } = Parts::open(&config, &log, runtime.handle())?;
        let phases = services.phases.clone();
        #[cfg(test)]
        let (packs, asker) = (services.packs.clone(), Asker { control: services.control.clone() });
        let checkpoint_thread = spawn("kfs-checkpoint", {
            let runtime = runtime.handle();
            move || runtime.block_on(checkpoints.write())
        })?;
        let services_thread = spawn("kfs-ingest", move || services.run(epoch))?;
        let loop_thread = spawn("kfs-attend", {
            let phases = phases.clone();
            move || {
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| apply.run()));
                // The sender of checkpoints has gone with the loop, so the writer ends too.
                let _ = checkpoint_thread.join();
                drop(data);
                phases.ended(ended.unwrap_or_else(|panic| {
                    Err(ServerError::Bug { during: "applied the log", reason: panic_reason(&*panic) })
                }));
            }
        })?;
        Ok(Server {
            phases,
            halt,
            loop_thread: Some(loop_thread),
            services_thread: Some(services_thread),
            runtime: Some(runtime),
            #[cfg(test)]
            packs,
            #[cfg(test)]
            asker,
        })
    }

    /// Blocks until the server answers, however long the log's replay takes, or
    /// until it has failed.
    pub fn ready(&self) -> Result<(), ServerError> {
        self.waiter().ready()
    }

    /// For a thread that watches the server while another one may stop it.
    pub fn waiter(&self) -> Waiter {
        Waiter { phases: self.phases.clone() }
    }

    /// What stopped the server, if anything has.
    pub fn failure(&self) -> Option<ServerError> {
        self.phases.lock().ended.clone()?.err()
    }

    /// Applies no more, checkpoints everything applied, and ends.
    pub fn stop(mut self) -> Result<(), ServerError> {
        self.end(Halt::Clean)
    }

    /// Ends without a checkpoint, as a kill would. For tests.
    pub fn crash(mut self) {
        let _ = self.end(Halt::Now);
    }

    fn end(&mut self, how: Halt) -> Result<(), ServerError> {
        // The last checkpoints may wait for content, so that is ingested until the loop has ended.
        for (how, thread) in [(how, self.loop_thread.take()), (Halt::Now, self.services_thread.take())] {
            self.halt.send_replace(how);
            if let Some(thread) = thread {
                // Panics have been caught and told of inside.
                let _ = thread.join();
            }
        }
        self.runtime = None;
        self.phases.lock().ended.clone().unwrap_or(Ok(()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.loop_thread.is_some()
            && let Err(error) = self.end(Halt::Clean)
        {
            tracing::error!("{error}");
        }
    }
}

/// Waits for what becomes of a [`Server`].
#[derive(Clone)]
pub struct Waiter {
    phases: Arc<Phases>,
}

impl Waiter {
    /// As [`Server::ready`].
    pub fn ready(&self) -> Result<(), ServerError> {
        self.phases.wait(|phase| phase.ready)
    }

    /// Blocks until the server has ended, and says why: [`ServerError::Stopped`] if it was told to.
    pub fn failed(&self) -> ServerError {
        match self.phases.wait(|_| false) {
            Err(error) => error,
            Ok(()) => ServerError::Stopped,
        }
    }
}

/// A server that is open and compared with the log, before any of it runs.
struct Parts {
    data: Arc<DataDir>,
    apply: ApplyParts,
    services: Services,
    epoch: oneshot::Receiver<Epoch>,
    checkpoints: Checkpoints,
    halt: watch::Sender<Halt>,
}

impl Parts {
    fn open(config: &ServerConfig, log: &Arc<dyn Log>, runtime: tokio::runtime::Handle) -> Result<Parts, ServerError> {
        let data = Arc::new(DataDir::open(&config.data, config.key_file.as_deref())?);
        let cluster = Arc::new(data.identity.cluster_key.clone());
        let server = data.identity.server;
        let packs = Arc::new(Packs::open(&data.packs(), cluster.id().0, &config.disk, runtime.clone())?);
        let plan = start::plan(&data, config, &cluster, &packs, log.as_ref())?;
        packs.recover(&plan.checkpoints, Instant::now())?;

        let phases = Arc::new(Phases::default());
        let sessions = Arc::new(Sessions::default());
        let attempts = Arc::new(login::Attempts::default());
        let (halt, halted) = watch::channel(Halt::No);
        let (control, controlled) = mpsc::channel(CONTROL_QUEUE);
        let (epoch, epoch_known) = oneshot::channel();
        let (speaking, speaks) = watch::channel(false);
        let own = Arc::new(OwnRecords::new(log.clone(), cluster.clone(), IncarnationId::random()));
        let (checkpoints, checkpoints_wanted) = mpsc::unbounded_channel();
        let services = Services {
            data: data.clone(),
            log: log.clone(),
            cluster: cluster.clone(),
            packs: packs.clone(),
            sessions: sessions.clone(),
            attempts: attempts.clone(),
            phases: phases.clone(),
            control: control.clone(),
            own: own.clone(),
            halted: halted.clone(),
            begins_epoch: plan.new_epoch,
            uploads_changed: plan.uploads,
            clock: config.clock.clone(),
            speaks,
            runtime,
        };
        let written = Checkpoints {
            packs: packs.clone(),
            wanted: checkpoints_wanted,
            control: control.clone(),
            volatile: config.volatile.then(|| log.clone()),
            in_simulation: config.disk.is_inline(),
        };
        let start::Plan { partitions, tail, new_epoch, begun, .. } = plan;
        let apply = Apply {
            partitions,
            checkpoints,
            own,
            answers: Answers::new(log.clone(), cluster),
            packs: packs.clone(),
            sessions,
            attempts,
            phases,
            opening: Opening {
                server,
                supports: config.supports,
                new_epoch,
                begun,
                data: data.clone(),
                append_time: config.append_time,
                volatile: config.volatile,
                epoch: Some(epoch),
            },
            answering: Answering::new(server, config.rules, speaking),
            inline: config.disk.is_inline(),
            state: apply::State::default(),
        };
        let apply = ApplyParts { apply, tail, control: controlled, reports: control, halted };
        Ok(Parts { data, apply, services, epoch: epoch_known, checkpoints: written, halt })
    }
}

/// The loop, and what it is told by.
struct ApplyParts {
    apply: Apply,
    tail: Tail,
    control: mpsc::Receiver<Control>,
    reports: mpsc::Sender<Control>,
    halted: watch::Receiver<Halt>,
}

impl ApplyParts {
    fn run(self) -> Result<(), ServerError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| ServerError::System { tried: "start the loop", reason: e.to_string() })?;
        runtime.block_on(self.attend())
    }

    async fn attend(self) -> Result<(), ServerError> {
        apply::run(self.apply, self.tail, self.control, self.reports, self.halted).await
    }
}

/// What runs beside the loop, and what it shares.
struct Services {
    data: Arc<DataDir>,
    log: Arc<dyn Log>,
    cluster: Arc<ClusterKey>,
    packs: Arc<Packs>,
    sessions: Arc<Sessions>,
    attempts: Arc<login::Attempts>,
    phases: Arc<Phases>,
    control: mpsc::Sender<Control>,
    own: Arc<OwnRecords>,
    halted: watch::Receiver<Halt>,
    begins_epoch: bool,
    uploads_changed: ingest::Changed,
    clock: Clock,
    /// Whether this server is the one that answers.
    speaks: watch::Receiver<bool>,
    runtime: tokio::runtime::Handle,
}

impl Services {
    /// Starts logins and downloads as soon as the epoch is known; then ingests, on this thread.
    fn run(self, epoch: oneshot::Receiver<Epoch>) {
        let runtime = self.runtime.clone();
        runtime.block_on(self.serve(epoch));
    }

    async fn serve(self, epoch: oneshot::Receiver<Epoch>) {
        // The loop has ended before it came so far, and has said why.
        let Ok(epoch) = epoch.await else { return };
        let ended = match self.begin(epoch) {
            Ok(chunks) => {
                // The loop may have ended already.
                let _ = self.control.send(Control::Serving).await;
                self.ingest(chunks, epoch).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            // The loop may have ended already.
            let _ = self.control.send(Control::Failed(error)).await;
        }
    }

    /// Starts logins and downloads; gives the content that is to be ingested.
    fn begin(&self, epoch: Epoch) -> Result<ingest::Uploads, ServerError> {
        let asker = Asker { control: self.control.clone() };
        let reads = Live::open(self.log.clone(), Topic::Reads)?;
        let auth = Live::open(self.log.clone(), Topic::Auth)?;
        let chunks = ingest::start(self.log.as_ref(), &self.packs, epoch, self.begins_epoch, &self.uploads_changed)?;
        let (pulls, pulled) = mpsc::channel(give::PULLS_WAITING);
        let giver = give::Giver {
            server: self.data.identity.server,
            log: self.log.clone(),
            cluster: self.cluster.clone(),
            packs: self.packs.clone(),
            asker: asker.clone(),
            epoch,
        };
        task::spawn_on(&self.runtime, give::serve(giver, pulled));
        let downloads = download::serve(download::Downloads {
            log: self.log.clone(),
            packs: self.packs.clone(),
            sessions: self.sessions.clone(),
            asker: asker.clone(),
            epoch,
            asks: reads,
            pulls,
            speaks: self.speaks.clone(),
        });
        task::spawn_on(&self.runtime, downloads);
        let logins = login::serve(login::Logins {
            log: self.log.clone(),
            cluster: self.cluster.clone(),
            own: self.own.clone(),
            asker,
            attempts: self.attempts.clone(),
            epoch,
            asks: auth,
            speaks: self.speaks.clone(),
            clock: self.clock.clone(),
        });
        task::spawn_on(&self.runtime, logins);
        let keeper = Keeper {
            log: self.log.clone(),
            packs: self.packs.clone(),
            cluster: self.cluster.clone(),
            asker: Asker { control: self.control.clone() },
        };
        task::spawn_on(&self.runtime, keeper::run(keeper));
        self.data.note_epoch(epoch)?;
        Ok(chunks)
    }

    async fn ingest(&self, chunks: ingest::Uploads, epoch: Epoch) -> Result<(), ServerError> {
        let mut halted = self.halted.clone();
        let stop = async move {
            // An error means that the server is gone.
            let _ = halted.wait_for(|halt| *halt == Halt::Now).await;
        };
        ingest::run(chunks, &self.packs, &self.cluster, epoch, stop).await
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ServerError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|e| ServerError::System { tried: "start a thread", reason: e.to_string() })
}

/// What the loop is told by the server's other parts.
pub(crate) enum Control {
    Checkpointed {
        partition: u32,
        written: Result<Written, ServerError>,
        /// Whether everything that answers may wait for is on disk: see [`checkpoints`].
        with_uploads: bool,
    },
    Ask(Ask),
    /// The record that opens this incarnation in a partition may not have been appended.
    OpenAgain(u32),
    /// Content is ingested, downloads and logins are served.
    Serving,
    Failed(ServerError),
}

/// The sessions that live, by partition: what downloads are checked against.
#[derive(Default)]
pub(crate) struct Sessions {
    live: RwLock<BTreeMap<(u32, SessionId), Peer>>,
}

impl Sessions {
    pub fn find(&self, partition: u32, session: SessionId) -> Option<Peer> {
        self.live.read().expect("nobody panics while holding it").get(&(partition, session)).cloned()
    }

    fn opened(&self, partition: u32, peer: Peer) {
        self.live.write().expect("nobody panics while holding it").insert((partition, peer.session), peer);
    }

    fn over(&self, partition: u32, session: SessionId) {
        self.live.write().expect("nobody panics while holding it").remove(&(partition, session));
    }
}

/// How far the server has come, for those who wait for it.
#[derive(Default)]
pub(crate) struct Phases {
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Default)]
struct Phase {
    ready: bool,
    ended: Option<Result<(), ServerError>>,
}

impl Phases {
    fn ready(&self) {
        self.lock().ready = true;
        self.changed.notify_all();
    }

    /// The first end counts.
    fn ended(&self, how: Result<(), ServerError>) {
        self.lock().ended.get_or_insert(how);
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&Phase) -> bool) -> Result<(), ServerError> {
        let mut phase = self.lock();
        loop {
            match &phase.ended {
                Some(Err(error)) => return Err(error.clone()),
                Some(Ok(())) => return Err(ServerError::Stopped),
                None if until(&phase) => return Ok(()),
                None => phase = self.changed.wait(phase).expect("nobody panics while holding it"),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.phase.lock().expect("nobody panics while holding it")
    }
}

#[cfg(test)]
mod tests;
