//! One run of a plan: the broker, servers, the clients, and the faults that come
//! over them, all in one thread and in virtual time.

use super::bus::{Bus, Net, SimLog};
use super::check::{Known, check};
use super::disk::SimDisk;
use super::history::History;
use super::plan::{Lost, Plan, Step, What};
use super::rng::Rng;
use super::servers::{self, Later, Servers};
use super::sound::{GARBAGE_GOES_WITHIN, SHORT};
use super::template::{Template, scratch, template};
use super::trace::Trace;
use super::work::{Todo, Work};
use mount::client::{Client, ClientConfig, JournalConfig, Patience, Secret};
use mount::fs::{Fs, FsConfig, Owners};
use proto::clock::Clock;
use proto::log::{Log, Topic};
use proto::login::DeviceCredential;
use proto::message::UserName;
use proto::planted::Bug;
use proto::simulation::{Node, Simulation, observe, plant};
use server::ServerConfig;
use server::limits::{Limits, limits, set_limits};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// What every clock shows at the beginning of the template, in milliseconds since 1970.
pub const BEGINNING_MS: i64 = 1_700_000_000_000;

/// Who looks at everything when it is over.
const FRESH: usize = 99;

/// Virtual time within which everything ends after the last fault and the last step.
const CONVERGES_WITHIN: Duration = Duration::from_secs(900);

/// How the violation begins that says so.
pub(super) const NO_END: &str = "no end";

/// A crash that is to hit a client at work waits no longer for it to have some.
const BUSY_WITHIN_US: u64 = 5_000_000;

/// What a program's write may take longer where there is a quota: it is several calls, each of which may ask the others for room.
const ROOM_MS: u64 = 4_000;

/// Records that no run of this size needs.
const RECORDS: u64 = 30_000;

/// Bytes of uploaded and dirty content that a simulated client may hold.
const DIRTY_BYTES: usize = 4 << 20;

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub violation: Option<String>,
    /// The same for the same plan, always.
    pub fingerprint: (u64, u64),
    /// Empty unless they were asked for.
    pub trace: Vec<String>,
    pub counts: Counts,
}

/// How much happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub operations: usize,
    /// Changes that a mount answered itself, ahead of the server.
    pub local: usize,
    pub records: u64,
    pub virtual_ms: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.operations += other.operations;
        self.local += other.local;
        self.records += other.records;
        self.virtual_ms += other.virtual_ms;
    }
}

/// Runs a plan on this thread. With `is_traced`, the report tells all that happened.
pub fn run(plan: &Plan, is_traced: bool) -> Report {
    run_with(plan, is_traced, None)
}

/// [`run`], with a bug planted in the real code.
pub fn run_with(plan: &Plan, is_traced: bool, bug: Option<Bug>) -> Report {
    let template = template(plan.servers.count);
    note_panics();
    let trace = Trace::new(is_traced);
    let simulation = Simulation::begin(plan.seed);
    if let Some(bug) = bug {
        plant(bug);
    }
    let before = limits();
    let checkpoint_every = Duration::from_millis(plan.servers.checkpoint_ms);
    set_limits(Limits { checkpoint_every, window_requests: plan.window, ..SHORT });
    let run = std::panic::AssertUnwindSafe(|| {
        let runtime = runtime(plan.seed);
        let done = runtime.block_on(World::run(plan, template, &trace));
        drop(runtime);
        done
    });
    let outcome = std::panic::catch_unwind(run);
    drop(simulation);
    set_limits(before);
    let panicked = PANIC.with_borrow_mut(Option::take);
    let (violation, counts) = match outcome {
        Ok((result, counts)) => (result.err(), counts),
        Err(_) => (Some("it panicked".to_owned()), Counts::default()),
    };
    Report {
        seed: plan.seed,
        violation: panicked.or(violation),
        fingerprint: trace.fingerprint(),
        trace: trace.lines(),
        counts,
    }
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A panic in a simulated machine is a violation, and told as one.
fn note_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if proto::simulation::is_on() {
                PANIC.with_borrow_mut(|noted| noted.get_or_insert(format!("panicked: {panic}")).len());
            } else {
                before(panic);
            }
        }));
    });
}

/// A runtime of one thread whose time is virtual, and what it draws by itself the seed's.
pub fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Whom a `watch` wakes first is drawn from it.
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime of one thread can be made")
}

/// A client's clock: never the same twice, and in its last digits whose it is.
pub fn client_clock(bus: &Bus, client: u32, skew_ms: Arc<AtomicI64>) -> Clock {
    let (bus, count) = (bus.clone(), AtomicU64::new(0));
    Clock::new(move || {
        let ms = BEGINNING_MS + skew_ms.load(Ordering::Relaxed) + (bus.now_us() / 1000) as i64;
        let count = count.fetch_add(1, Ordering::Relaxed) % 10_000;
        i128::from(ms) * 1_000_000 + i128::from(client) * 10_000 + i128::from(count)
    })
}

pub fn client_config(
    log: Arc<dyn Log>,
    credential: &DeviceCredential,
    clock: Clock,
    journal: Option<&Path>,
) -> ClientConfig {
    ClientConfig {
        log,
        brokers: "simulated".to_owned(),
        prefix: "kfs".to_owned(),
        user: UserName::new(&credential.user).expect("the template's user has a name"),
        secret: Secret::Device(credential.clone()),
        timeout: Duration::from_secs(30),
        hard: false,
        journal: journal.map(|dir| JournalConfig { dir: dir.to_owned(), max_bytes: 16 << 20 }),
        clock,
    }
}

pub fn fs_config() -> FsConfig {
    let owners = Owners { keep_numbers: true, uid: 1000, gid: 1000, every_uid: false, every_gid: false, umask: 0 };
    // Few files have 256 KiB, and what is uploaded by itself meets other faults.
    FsConfig { cache_bytes: 1 << 20, dirty_bytes: DIRTY_BYTES, inline_bytes: 64 << 10, ..FsConfig::new(owners) }
}

pub fn server_config(data: &Path, disk: &SimDisk, clock: Clock, append_time: bool) -> ServerConfig {
    ServerConfig { clock, append_time, disk: disk.disk(), cache_bytes: 16 << 20, ..ServerConfig::new(data) }
}

pub fn patience() -> Patience {
    Patience::within(Duration::from_secs(60))
}

/// Everything in one run.
struct World<'a> {
    plan: &'a Plan,
    template: &'a Template,
    bus: Bus,
    history: History,
    journals: Option<tempfile::TempDir>,
    servers: Servers,
    clients: Vec<ClientNode>,
}

struct ClientNode {
    number: usize,
    todo: Vec<Todo>,
    skew_ms: Arc<AtomicI64>,
    life: Option<ClientLife>,
}

/// One life of a client between two crashes.
struct ClientLife {
    node: Node,
    log: SimLog,
    client: Arc<Mutex<Option<Client>>>,
    working: JoinHandle<()>,
}

impl<'a> World<'a> {
    async fn run(plan: &'a Plan, template: &'a Template, trace: &Trace) -> (Result<(), String>, Counts) {
        let clock_ms = BEGINNING_MS + (template.ends_us / 1000) as i64;
        trace.read_with(template.cluster.clone());
        let bus = Bus::new(plan.net.clone(), Rng::new(plan.seed, "net"), clock_ms, plan.append_time, trace.clone());
        bus.preload(&template.firsts, &template.records);
        if plan.servers.keeps_log {
            bus.keep_all();
        }
        tokio::spawn(bus.clone().run());
        let history = History::traced(bus.clone());
        let observer = history.clone();
        observe(move |seen| observer.observe(seen));
        let servers = Servers::new(bus.clone(), template, plan);
        let clients = plan.clients.iter().enumerate().map(|(number, workers)| {
            let todo = |steps: &Vec<Step>| Arc::new(Mutex::new(steps.iter().cloned().collect()));
            ClientNode { number, todo: workers.iter().map(todo).collect(), skew_ms: Arc::default(), life: None }
        });
        let mut world = World {
            plan,
            template,
            bus,
            history,
            journals: plan.journal.then(scratch),
            servers,
            clients: clients.collect(),
        };
        let result = world.live().await;
        world.end();
        let history = world.history.lock();
        let counts = Counts {
            operations: history.operations.len(),
            local: history.entered.iter().filter(|entered| entered.is_local).count(),
            records: world.bus.appends(),
            virtual_ms: world.bus.now_us() / 1000,
        };
        (result, counts)
    }

    async fn live(&mut self) -> Result<(), String> {
        self.servers.start_all()?;
        for (at_ms, quota) in &self.plan.quotas {
            let user = UserName::new(&self.template.credential.user).expect("the template's user has a name");
            self.servers.set_quota(user, *at_ms, *quota);
        }
        for number in 0..self.clients.len() {
            self.start_client(number);
        }
        let mut due: Vec<(u64, Due)> = self
            .plan
            .faults
            .iter()
            .map(|fault| (fault.at_ms * 1000, Due::Begin(fault.server, fault.what.clone())))
            .collect();
        let mut deadline_us = None;
        loop {
            due.sort_by_key(|(at_us, _)| *at_us);
            let now_us = self.bus.now_us();
            if due.first().is_some_and(|(at_us, _)| *at_us <= now_us) {
                let (_, next) = due.remove(0);
                if let Some(after) = self.carry_out(next)? {
                    due.push(after);
                }
                continue;
            }
            self.servers.look_after()?;
            if self.bus.appends() > RECORDS {
                return Err(format!("more than {RECORDS} records, and no end: {}", self.waiting()));
            }
            let is_done =
                self.clients.iter().all(|client| client.life.as_ref().is_some_and(|life| life.working.is_finished()));
            if is_done && due.is_empty() {
                break;
            }
            if due.is_empty() {
                let from_us = now_us.max(self.bus.cut_until_us());
                let until_us = *deadline_us.get_or_insert_with(|| from_us + CONVERGES_WITHIN.as_micros() as u64);
                if now_us > until_us {
                    let waiting = self.waiting();
                    return Err(format!(
                        "{NO_END} within {} s after the last fault: {waiting}",
                        CONVERGES_WITHIN.as_secs()
                    ));
                }
            }
            let next_us = due.first().map_or(u64::MAX, |(at_us, _)| *at_us);
            let wait_us = (next_us - now_us).min(20_000);
            tokio::time::sleep(Duration::from_micros(wait_us.max(1))).await;
        }
        self.look_back().await
    }

    fn waiting(&self) -> String {
        let history = self.history.lock();
        let waiting: Vec<_> = history
            .operations
            .iter()
            .filter(|operation| operation.returned.is_none())
            .map(|operation| format!("client {} `{}`", operation.client, operation.text))
            .collect();
        waiting.join(", ")
    }

    /// All faults are over: what is there must be what the log says.
    async fn look_back(&mut self) -> Result<(), String> {
        self.bus.trace(format_args!("faults and steps are over"));
        self.bus.set_net(Net { delay_us: 500, ..Net::default() });
        let cut_us = self.bus.cut_until_us().saturating_sub(self.bus.now_us());
        tokio::time::sleep(Duration::from_micros(cut_us)).await;
        self.servers.settle().await?;
        for client in &mut self.clients {
            let Some(life) = &client.life else { continue };
            let connected = life.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(connected) = connected {
                let left = connected.drain(Duration::from_secs(120)).await;
                if !left.left.is_empty() {
                    return Err(format!("client {} still waits for {:?}", client.number, left.left));
                }
            }
        }
        self.servers.heal().await;
        let node = Node::new();
        let log = Arc::new(self.bus.log("fresh", node.clone()));
        let clock = client_clock(&self.bus, FRESH as u32, Arc::default());
        let config = client_config(log, &self.template.credential, clock, None);
        let history = self.history.clone();
        let may_have_lost = self.servers.may_have_lost() || self.servers.has_lost_uploads();
        let looking = node.spawn(&tokio::runtime::Handle::current(), async move {
            let client = Client::connect(config).await.map_err(|error| format!("cannot log in any more: {error}"))?;
            let fs = Fs::open_root(client.clone(), fs_config(), Path::new("/"), &patience()).await;
            let fs = fs.map_err(|error| format!("cannot see the root any more: {error}"))?;
            let work = Work::begin(fs, history, FRESH, 0).await;
            let work = work.map_err(|error| format!("cannot find the first directories: {error}"))?;
            work.look_at_all(may_have_lost).await;
            Ok::<Client, String>(client)
        });
        let looked = tokio::time::timeout(Duration::from_secs(300), looking).await;
        let client = match looked {
            Ok(Ok(looked)) => looked?,
            Ok(Err(error)) => return Err(format!("looking at everything failed: {error}")),
            Err(_) => return Err("looking at everything takes for ever".into()),
        };
        let partition = client.namespace().0 as u32 % proto::log::REQUEST_PARTITIONS;
        let chunks = self.bus.all_records(Topic::Chunks, partition);
        let known = Known {
            before: &self.template.applied,
            root: client.root(),
            keys: client.keys(),
            chunks: &chunks,
            fresh: FRESH,
            kept: self.servers.kept_by_epoch(),
            lost_ends: self.plan.loses_ends(),
            journal: self.plan.journal && !self.plan.power_goes,
            power_goes: self.plan.power_goes,
            // Of several, none need be ahead of the others in every partition.
            may_lose: self.plan.servers.count > 1 || self.plan.faults.iter().any(|fault| fault.what.takes_memory()),
        };
        check(&self.history.lock(), &known)?;
        self.pauses()?;
        node.kill();
        if self.plan.tidies_up {
            self.kill_clients();
            self.bus.trace(format_args!("everybody has gone"));
            tokio::time::sleep(GARBAGE_GOES_WITHIN).await;
            self.servers.look_after()?;
        }
        self.kill_clients();
        self.servers.compare().await?;
        self.servers.check(self.plan.tidies_up).await
    }

    /// Whether somebody had to wait for too long because of nothing but a server's death.
    fn pauses(&self) -> Result<(), String> {
        let Some(mut most_ms) = self.plan.servers.pause_ms else { return Ok(()) };
        if !self.plan.quotas.is_empty() {
            most_ms += ROOM_MS;
        }
        let history = self.history.lock();
        let (took_us, operation) = history.longest;
        if took_us <= most_ms * 1000 {
            return Ok(());
        }
        let text = &history.operations[operation].text;
        Err(format!("`{text}` took {} ms, and nothing but one server had died", took_us / 1000))
    }

    fn start_client(&mut self, number: usize) {
        self.bus.trace(format_args!("client {number} starts"));
        self.history.born(number);
        let node = Node::new();
        let log = self.bus.log(&format!("client{number}"), node.clone());
        let journal = self.journals.as_ref().map(|dir| dir.path().join(number.to_string()));
        let state = &mut self.clients[number];
        let base_ms = state.skew_ms.clone();
        base_ms.fetch_add(0, Ordering::Relaxed);
        let clock = client_clock(&self.bus, number as u32, base_ms);
        let config = client_config(Arc::new(log.clone()), &self.template.credential, clock, journal.as_deref());
        let client = Arc::new(Mutex::new(None));
        let working = node.spawn(
            &tokio::runtime::Handle::current(),
            live(config, client.clone(), self.history.clone(), number, (state.todo.clone(), self.plan.pace_ms)),
        );
        state.life = Some(ClientLife { node, log, client, working });
    }

    /// Lets something happen; gives what comes of it later.
    fn carry_out(&mut self, due: Due) -> Result<Option<(u64, Due)>, String> {
        let now_us = self.bus.now_us();
        if !matches!(due, Due::CrashBusy { .. }) {
            self.bus.trace(format_args!("{due:?}"));
        }
        let after = |ms: u64, due: Due| Ok(Some((now_us + ms * 1000, due)));
        let of_server = |number: usize, due: servers::Due| {
            Ok(due.map(|(ms, later)| (now_us + ms * 1000, Due::Server(number, later))))
        };
        match due {
            Due::Begin(
                number,
                ref what @ (What::ServerCrash { .. }
                | What::ServerRestart { .. }
                | What::ServerPause { .. }
                | What::ServerCut { .. }
                | What::ServerClock { .. }
                | What::ServerLost { .. }
                | What::ServerGivenUp { .. }
                | What::ServerUpgrade { .. }
                | What::ServerLongDead { .. }
                | What::DiskFull { .. }
                | What::DiskFails { .. }
                | What::BitFlips { .. }),
            ) => {
                let number = self.servers.meant(number);
                let due = self.servers.begin(number, what);
                of_server(number, due)
            }
            Due::Server(number, later) => {
                let due = self.servers.carry_out(number, later)?;
                of_server(number, due)
            }
            Due::Begin(_, What::BrokerDown { for_ms }) => {
                self.bus.down_for(for_ms * 1000);
                Ok(None)
            }
            Due::Begin(_, What::LogLost { lost }) => {
                let ends = match lost {
                    Lost::Ends => {
                        let mut rng = Rng::new(self.plan.seed, "lost");
                        let most = *rng.pick(&[3, 10, 40]);
                        self.bus.lose_ends(|topic| {
                            let loses = lost.takes(topic) && rng.chance(500);
                            if loses { rng.range(1, most) as usize } else { 0 }
                        })
                    }
                    _ => {
                        self.bus.lose(|topic| lost.takes(topic));
                        BTreeMap::new()
                    }
                };
                // No partition may have had anything at its end.
                if lost != Lost::Ends || !ends.is_empty() {
                    self.history.log_is_lost(&ends);
                    self.servers.log_is_lost(lost);
                }
                Ok(None)
            }
            Due::Begin(_, What::BrokerClock { by_ms }) => {
                self.bus.jump_clock(by_ms);
                Ok(None)
            }
            Due::Begin(_, What::ClientCrash { client, for_ms, busy: true }) => {
                let until_us = now_us + BUSY_WITHIN_US;
                Ok(Some((now_us, Due::CrashBusy { client, for_ms, until_us })))
            }
            Due::CrashBusy { client, for_ms, until_us } => {
                let power_goes = self.plan.power_goes;
                if self.history.is_busy(client.into(), power_goes) || now_us >= until_us {
                    // Somewhere between the first record's sending and its answer; or before that.
                    let mut rng = Rng::new(self.plan.seed ^ now_us, "busy");
                    let most_us = if power_goes { 500 } else { 4 * self.plan.net.delay_us + 2000 };
                    let after_us = rng.range(0, most_us);
                    return Ok(Some((
                        now_us + after_us,
                        Due::Begin(0, What::ClientCrash { client, for_ms, busy: false }),
                    )));
                }
                Ok(Some((now_us + 500, Due::CrashBusy { client, for_ms, until_us })))
            }
            Due::Begin(_, What::ClientCrash { client, for_ms, busy: false }) => {
                let number = usize::from(client);
                let Some(life) = self.clients.get_mut(number).and_then(|client| client.life.take()) else {
                    return Ok(None);
                };
                life.node.kill();
                if let Some(journals) = self.journals.as_ref().filter(|_| self.plan.power_goes) {
                    // There need be none yet.
                    let _ = std::fs::remove_dir_all(journals.path().join(number.to_string()));
                }
                after(for_ms, Due::StartClient(number))
            }
            Due::Begin(_, What::ClientPause { client, for_ms }) => match self.life(client) {
                Some(life) => {
                    life.node.pause();
                    after(for_ms, Due::ResumeClient(client))
                }
                None => Ok(None),
            },
            Due::Begin(_, What::ClientCut { client, for_ms, forgetful }) => {
                if let Some(life) = self.life(client) {
                    life.log.mute_for(for_ms * 1000);
                    life.log.deaf_for(for_ms * 1000, forgetful);
                }
                Ok(None)
            }
            Due::Begin(_, What::ClientMute { client, for_ms }) => {
                if let Some(life) = self.life(client) {
                    life.log.mute_for(for_ms * 1000);
                }
                Ok(None)
            }
            Due::Begin(_, What::ClientDeaf { client, for_ms, forgetful }) => {
                if let Some(life) = self.life(client) {
                    life.log.deaf_for(for_ms * 1000, forgetful);
                }
                Ok(None)
            }
            Due::Begin(_, What::ClientClock { client, by_ms }) => {
                if let Some(client) = self.clients.get(usize::from(client)) {
                    client.skew_ms.fetch_add(by_ms, Ordering::Relaxed);
                }
                Ok(None)
            }
            Due::StartClient(number) => {
                self.start_client(number);
                Ok(None)
            }
            Due::ResumeClient(client) => {
                if let Some(life) = self.life(client) {
                    life.node.resume();
                }
                Ok(None)
            }
        }
    }

    fn life(&self, client: u8) -> Option<&ClientLife> {
        self.clients.get(usize::from(client))?.life.as_ref()
    }

    fn kill_clients(&mut self) {
        for life in self.clients.iter_mut().filter_map(|client| client.life.take()) {
            life.node.kill();
        }
    }

    /// Nothing of it goes on.
    fn end(&mut self) {
        self.kill_clients();
        self.servers.end();
    }
}

#[derive(Debug)]
enum Due {
    /// With the server that it comes over, if it does.
    Begin(u8, What),
    CrashBusy {
        client: u8,
        for_ms: u64,
        until_us: u64,
    },
    Server(usize, Later),
    StartClient(usize),
    ResumeClient(u8),
}

/// A mount, from logging in until its programs have ended.
async fn live(
    config: ClientConfig,
    place: Arc<Mutex<Option<Client>>>,
    history: History,
    number: usize,
    (todo, pace_ms): (Vec<Todo>, u32),
) {
    loop {
        let client = match Client::connect(config.clone()).await {
            Ok(client) => client,
            Err(_) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        let work = loop {
            let Ok(fs) = Fs::open_root(client.clone(), fs_config(), Path::new("/"), &patience()).await else {
                continue;
            };
            if let Ok(work) = Work::begin(fs, history.clone(), number, pace_ms).await {
                break work;
            }
        };
        let workers: Vec<_> = todo.iter().map(|todo| proto::task::spawn(work.clone().run(todo.clone()))).collect();
        for worker in workers {
            // A worker that panicked has been noted.
            let _ = worker.await;
        }
        return;
    }
}
