//! The server machines of a run: each with a data directory, a disk and a clock of its
//! own. What comes over them, and how they are started again.

mod epoch;
mod kept;

use super::bus::{Bus, SimLog};
use super::cluster::{BEGINNING_MS, server_config};
use super::disk::SimDisk;
use super::plan::{ANSWERING, Plan, What};
use super::rng::Rng;
use super::sound::check_server;
use super::template::{Template, scratch};
use epoch::{First, NewEpoch};
use kept::{is_of_version, kept, same};
use proto::ServerId;
use proto::clock::Clock;
use proto::log::{Log, LogError};
use proto::message::{Quota, UserName};
use proto::simulation::Node;
use server::admin::{Admin, epoch_of};
use server::data::{DataError, Identity};
use server::replica::Rules;
use server::snapshot::take::take;
use server::{ServerConfig, ServerError, Tasks};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Virtual time within which servers agree on who answers, after the last fault.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// Virtual time within which what was appended before has arrived everywhere.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// A server that ended because of its disk is started again after this long.
const START_AGAIN_US: u64 = 1_000_000;

/// Virtual time within which all packs have been read again, and what was damaged healed.
const HEALS_WITHIN: Duration = Duration::from_secs(120);

/// Virtual time within which a server that needs a snapshot has taken one, however often it tries.
const BOOTSTRAPS_WITHIN: Duration = Duration::from_secs(300);

/// Between a snapshot that was not taken and the next attempt.
const SNAPSHOT_AGAIN_US: u64 = 1_000_000;

/// A server that is well brings something to disk at least once in this time; whoever waits for one that
/// is not counts from then.
const PROGRESSES_WITHIN_MS: u64 = 65_000;

/// How long a program of an administrator's waits for an answer.
const ADMIN_WAIT: Duration = Duration::from_secs(10);

/// All servers of one run.
pub struct Servers {
    bus: Bus,
    rng: Rng,
    append_time: bool,
    rules: Rules,
    /// The version of the machine at the beginning.
    supports: u32,
    /// What every clock shows at the run's beginning.
    base_ms: i64,
    machines: Vec<Machine>,
    has_flipped: bool,
    /// What is done about the log, if it is lost.
    new_epoch: Option<NewEpoch>,
}

struct Machine {
    data: tempfile::TempDir,
    disk: SimDisk,
    skew_ms: Arc<AtomicI64>,
    life: Option<Life>,
    /// The newest version of the machine that its program knows.
    supports: u32,
    /// It has lost what it had, and has not taken a snapshot yet.
    is_lost: bool,
    /// Somebody has said, or was to say by himself, that nobody waits for it.
    is_given_up: bool,
    again_at_us: Option<u64>,
    /// When it last served with a disk that works.
    well_at_us: u64,
    /// As of the last look.
    is_answering: bool,
}

/// One life of a server between two crashes.
struct Life {
    node: Node,
    log: SimLog,
    doing: Doing,
    /// It was told to stop.
    is_stopping: bool,
}

enum Doing {
    Serving(Tasks),
    /// With what came of it, in the end.
    TakingSnapshot(Arc<Mutex<Option<Result<(), String>>>>),
}

impl Life {
    fn tasks(&self) -> Option<&Tasks> {
        match &self.doing {
            Doing::Serving(tasks) => Some(tasks),
            Doing::TakingSnapshot(_) => None,
        }
    }
}

impl Machine {
    fn tasks(&self) -> Option<&Tasks> {
        self.life.as_ref()?.tasks()
    }

    fn is_answering(&self) -> bool {
        self.tasks().is_some_and(Tasks::is_answering)
    }

    fn is_ready(&self) -> bool {
        self.tasks().is_some_and(Tasks::is_ready)
    }

    /// It is taking a snapshot, or about to.
    fn is_behind(&self) -> bool {
        self.again_at_us.is_some() || self.life.as_ref().is_some_and(|life| life.tasks().is_none())
    }

    /// It checkpoints, or could if there were anything to write.
    fn is_well(&self) -> bool {
        self.is_ready() && !self.disk.is_in_trouble()
    }
}

/// What comes later of what was begun.
#[derive(Clone, Copy, Debug)]
pub enum Later {
    Start,
    /// Once the one that was told to stop has stopped.
    Replace,
    Resume,
    /// Its disk works again.
    DiskWell,
}

/// In so many milliseconds.
pub type Due = Option<(u64, Later)>;

impl Servers {
    /// None of them runs yet.
    pub fn new(bus: Bus, template: &Template, plan: &Plan) -> Servers {
        let machines = template.servers.iter().map(|home| {
            let data = scratch();
            home.write(data.path());
            Machine {
                data,
                disk: home.disk.copy(),
                skew_ms: Arc::default(),
                life: None,
                supports: plan.servers.supports,
                is_lost: false,
                is_given_up: false,
                again_at_us: None,
                well_at_us: 0,
                is_answering: false,
            }
        });
        Servers {
            bus,
            rng: Rng::new(plan.seed, "faults"),
            append_time: plan.append_time,
            rules: plan.servers.rules(),
            supports: plan.servers.supports,
            base_ms: BEGINNING_MS + (template.ends_us / 1000) as i64,
            machines: machines.collect(),
            has_flipped: false,
            new_epoch: None,
        }
    }

    pub fn start_all(&mut self) -> Result<(), String> {
        (0..self.machines.len()).try_for_each(|number| self.start(number))
    }

    fn config(&self, number: usize) -> ServerConfig {
        let machine = &self.machines[number];
        let (bus, skew_ms, base_ms) = (self.bus.clone(), machine.skew_ms.clone(), self.base_ms);
        let clock = Clock::new(move || {
            let ms = base_ms + skew_ms.load(Ordering::Relaxed) + (bus.now_us() / 1000) as i64;
            i128::from(ms) * 1_000_000
        });
        let config = server_config(machine.data.path(), &machine.disk, clock, self.append_time);
        ServerConfig { rules: self.rules, supports: machine.supports, ..config }
    }

    /// What a server says, the same whatever directory this run was given.
    fn said(&self, number: usize, error: &dyn std::fmt::Display) -> String {
        let path = self.machines[number].data.path().display().to_string();
        error.to_string().replace(&path, &format!("data-{number}"))
    }

    /// Whoever cannot use its disk ends, and is started again a while later.
    fn failed(&mut self, number: usize, error: &ServerError, what: &str) -> Result<(), String> {
        let had_trouble = self.machines[number].disk.take_trouble();
        let is_expected = match error {
            ServerError::Store(_) | ServerError::Packs(_) => had_trouble,
            ServerError::Log(LogError::Unreachable { .. }) => true,
            _ => false,
        };
        if !is_expected {
            return Err(format!("server {number} {what}: {}", self.said(number, error)));
        }
        self.bus.trace(format_args!("server {number} {what}: {}", self.said(number, error)));
        self.kill(number);
        self.machines[number].again_at_us = Some(self.bus.now_us() + START_AGAIN_US);
        Ok(())
    }

    /// One that finds records gone that it needs takes a snapshot instead, where that may be.
    fn start(&mut self, number: usize) -> Result<(), String> {
        self.start_from(number, false)
    }

    fn start_from(&mut self, number: usize, snapshot: bool) -> Result<(), String> {
        self.machines[number].again_at_us = None;
        match self.epoch_first(number) {
            First::Nothing => {}
            First::BeginEpoch => return self.begin_epoch(number),
            First::Wait => return Ok(()),
        }
        let node = Node::new();
        let log = self.bus.log(&format!("server{number}"), node.clone());
        if snapshot {
            self.take_snapshot(number, node, log);
            return Ok(());
        }
        self.bus.trace(format_args!("server {number} starts"));
        let config = self.config(number);
        match node.enter(|| Tasks::start(&config, Arc::new(log.clone()))) {
            Ok(tasks) => {
                let doing = Doing::Serving(tasks);
                self.machines[number].life = Some(Life { node, log, doing, is_stopping: false });
                Ok(())
            }
            Err(error) if self.needs_snapshot(number, &error) => {
                // Without the error, which can name this run's directory.
                self.take_snapshot(number, node, log);
                Ok(())
            }
            Err(error) => {
                node.kill();
                self.failed(number, &error, "does not start")
            }
        }
    }

    /// Whether what it had applied has gone, or is not whole, as may be.
    fn needs_snapshot(&self, number: usize, error: &ServerError) -> bool {
        let lacks = match error {
            ServerError::RecordsGone { .. } => true,
            ServerError::Data(error) => matches!(**error, DataError::HalfASnapshot { .. }),
            error => self.is_about_lost_log(error),
        };
        lacks && self.may_lack(number)
    }

    /// Whether records that this server needs may have gone.
    fn may_lack(&self, number: usize) -> bool {
        let machine = &self.machines[number];
        let unwell_ms = (self.bus.now_us() - machine.well_at_us) / 1000;
        machine.is_lost || machine.is_given_up || unwell_ms + PROGRESSES_WITHIN_MS > self.rules.deregister_after_ms
    }

    fn take_snapshot(&mut self, number: usize, node: Node, log: SimLog) {
        self.bus.trace(format_args!("server {number} takes a snapshot"));
        // What it had is of no use.
        self.machines[number].disk = SimDisk::new();
        let (config, outcome) = (self.config(number), Arc::new(Mutex::new(None)));
        let runtime = tokio::runtime::Handle::current();
        node.spawn(&runtime.clone(), {
            let (log, outcome) = (log.clone(), outcome.clone());
            async move {
                let taken = take(&config, Arc::new(log), runtime, |_| {}).await;
                let taken = taken.map(|_| ()).map_err(|error| error.to_string());
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
            }
        });
        let doing = Doing::TakingSnapshot(outcome);
        self.machines[number].life = Some(Life { node, log, doing, is_stopping: false });
    }

    /// Starts again what systemd or somebody would. A server that ended by itself for any other
    /// reason is a violation.
    pub fn look_after(&mut self) -> Result<(), String> {
        self.look_after_epoch()?;
        for number in 0..self.machines.len() {
            self.tell_of_answering(number);
            if self.machines[number].is_well() {
                self.machines[number].well_at_us = self.bus.now_us();
            }
            if self.machines[number].again_at_us.is_some_and(|at_us| at_us <= self.bus.now_us()) {
                self.start(number)?;
            }
            let Some(life) = &self.machines[number].life else { continue };
            match &life.doing {
                Doing::Serving(tasks) => {
                    if let Some(Err(error)) = tasks.ended() {
                        self.ended(number, &error)?;
                    }
                }
                Doing::TakingSnapshot(outcome) => {
                    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(taken) = outcome {
                        self.snapshot_taken(number, taken)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, number: usize, error: &ServerError) -> Result<(), String> {
        let goes_on = match error {
            // What its killed life had on the way has come after its new one, which shows as another process.
            ServerError::Superseded { .. } => true,
            error if self.is_about_lost_log(error) => true,
            error => self.needs_snapshot(number, error),
        };
        if !goes_on {
            return self.failed(number, error, "has stopped");
        }
        self.bus.trace(format_args!("server {number}: {}", self.said(number, error)));
        self.kill(number);
        // A log that has all since the epoch began lets any state start, and stops it there.
        self.start_from(number, epoch::is_of_another_state(error) && self.needs_snapshot(number, error))
    }

    fn snapshot_taken(&mut self, number: usize, taken: Result<(), String>) -> Result<(), String> {
        self.kill(number);
        match taken {
            Ok(()) => {
                self.bus.trace(format_args!("server {number} has taken a snapshot"));
                self.machines[number].is_lost = false;
                self.start(number)
            }
            Err(error) => {
                self.bus.trace(format_args!("server {number} has no snapshot: {}", self.said(number, &error)));
                self.machines[number].again_at_us = Some(self.bus.now_us() + SNAPSHOT_AGAIN_US);
                Ok(())
            }
        }
    }

    fn tell_of_answering(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let is_answering = machine.is_answering();
        if is_answering != std::mem::replace(&mut machine.is_answering, is_answering) {
            let word = if is_answering { "answers" } else { "answers no longer" };
            self.bus.trace(format_args!("server {number} {word}"));
        }
    }

    /// Whether there was anything to kill.
    fn kill(&mut self, number: usize) -> bool {
        let life = self.machines[number].life.take();
        life.inspect(|life| life.node.kill()).is_some()
    }

    /// The server that a fault's number stands for.
    pub fn meant(&self, number: u8) -> usize {
        match number {
            ANSWERING => self.machines.iter().position(Machine::is_answering).unwrap_or(0),
            number => usize::from(number),
        }
    }

    /// Lets something come over a server, if there is one of this number.
    pub fn begin(&mut self, number: usize, what: &What) -> Due {
        if number >= self.machines.len() {
            return None;
        }
        match *what {
            What::ServerCrash { for_ms } => self.crash(number, for_ms),
            What::ServerRestart { for_ms } => self.restart(number, for_ms),
            What::ServerUpgrade { for_ms } => {
                self.machines[number].supports = self.supports + 1;
                self.restart(number, for_ms)
            }
            What::ServerPause { for_ms } => self.pause(number, for_ms),
            What::ServerCut { for_ms } => self.cut(number, for_ms),
            What::ServerLost { for_ms } => {
                let due = self.crash(number, for_ms);
                self.machines[number].disk = SimDisk::new();
                self.machines[number].is_lost = true;
                due
            }
            What::ServerGivenUp { for_ms } => {
                let due = self.crash(number, for_ms);
                self.machines[number].is_given_up = true;
                self.deregister(number);
                due
            }
            What::ServerLongDead { for_ms } => {
                self.machines[number].is_given_up = true;
                self.crash(number, for_ms)
            }
            What::DiskFull { for_ms } => self.fill_disk(number, for_ms),
            What::DiskFails { for_ms, often } => self.fail_disk(number, for_ms, often),
            What::BitFlips { count } => {
                self.flip_bits(number, count);
                None
            }
            What::ServerClock { by_ms } => {
                self.machines[number].skew_ms.fetch_add(by_ms, Ordering::Relaxed);
                None
            }
            _ => None,
        }
    }

    /// As an administrator would, until it has worked.
    fn deregister(&self, number: usize) {
        let identity = Identity::read(self.machines[number].data.path(), None).expect("the template has written it");
        let node = Node::new();
        let log: Arc<dyn Log> = Arc::new(self.bus.log("admin", node.clone()));
        node.spawn(&tokio::runtime::Handle::current(), async move {
            while deregister(&identity, &log, identity.server).await.is_none() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    /// An administrator limits what a user's namespace may hold, at some moment.
    pub fn set_quota(&self, user: UserName, at_ms: u64, quota: Quota) {
        let identity = Identity::read(self.machines[0].data.path(), None).expect("the template has written it");
        let node = Node::new();
        let log: Arc<dyn Log> = Arc::new(self.bus.log("admin", node.clone()));
        node.spawn(&tokio::runtime::Handle::current(), async move {
            tokio::time::sleep(Duration::from_millis(at_ms)).await;
            while set_quota(&identity, &log, &user, quota).await.is_none() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    fn crash(&mut self, number: usize, for_ms: u64) -> Due {
        if !self.kill(number) {
            return None;
        }
        // A kill -9 loses nothing that was written; a power failure does.
        let keeps_all = self.rng.chance(300);
        self.machines[number].disk.crash(&mut self.rng, keeps_all);
        Some((for_ms, Later::Start))
    }

    fn restart(&mut self, number: usize, for_ms: u64) -> Due {
        let life = self.machines[number].life.as_mut().filter(|life| !life.is_stopping)?;
        life.tasks()?.stop();
        life.is_stopping = true;
        Some((for_ms + 100, Later::Replace))
    }

    fn pause(&mut self, number: usize, for_ms: u64) -> Due {
        self.machines[number].life.as_ref()?.node.pause();
        Some((for_ms, Later::Resume))
    }

    fn cut(&mut self, number: usize, for_ms: u64) -> Due {
        let log = &self.machines[number].life.as_ref()?.log;
        log.mute_for(for_ms * 1000);
        log.deaf_for(for_ms * 1000, false);
        None
    }

    fn fill_disk(&mut self, number: usize, for_ms: u64) -> Due {
        self.machines[number].disk.set_full(true);
        Some((for_ms, Later::DiskWell))
    }

    fn fail_disk(&mut self, number: usize, for_ms: u64, often: u32) -> Due {
        let rng = Rng::new(self.rng.next(), "failing");
        self.machines[number].disk.set_failing(often, rng);
        Some((for_ms, Later::DiskWell))
    }

    fn flip_bits(&mut self, number: usize, count: u8) {
        for _ in 0..count {
            self.has_flipped |= self.machines[number].disk.flip(&mut self.rng);
        }
    }

    /// Whether content may have been damaged and be in no log any more.
    pub fn may_have_lost(&self) -> bool {
        self.has_flipped && self.bus.has_lost_content()
    }

    /// Damage is found and healed meanwhile, as far as the log goes.
    pub async fn heal(&self) {
        if self.has_flipped {
            tokio::time::sleep(HEALS_WITHIN).await;
        }
    }

    pub fn carry_out(&mut self, number: usize, later: Later) -> Result<Due, String> {
        let life = &self.machines[number].life;
        match later {
            Later::Start if life.is_none() && self.machines[number].again_at_us.is_none() => self.start(number)?,
            Later::Start => {}
            Later::Replace => {
                let Some(life) = life.as_ref().filter(|life| life.is_stopping) else { return Ok(None) };
                if life.tasks().is_some_and(|tasks| tasks.ended().is_none()) {
                    return Ok(Some((100, Later::Replace)));
                }
                self.kill(number);
                self.start(number)?;
            }
            Later::DiskWell => {
                self.machines[number].disk.set_full(false);
                self.machines[number].disk.set_failing(0, self.rng.clone());
            }
            Later::Resume => {
                if let Some(life) = life {
                    life.node.resume();
                }
            }
        }
        Ok(None)
    }

    /// Waits, with all faults over, until all serve and one of them answers.
    pub async fn settle(&mut self) -> Result<(), String> {
        let begun_us = self.bus.now_us();
        let mut behind_us = begun_us;
        loop {
            self.look_after()?;
            let now_us = self.bus.now_us();
            let answering = self.machines.iter().filter(|machine| machine.is_answering()).count();
            if answering == 1 && !self.is_epoch_due() && self.machines.iter().all(Machine::is_ready) {
                return Ok(());
            }
            if self.is_epoch_due() || self.machines.iter().any(Machine::is_behind) {
                behind_us = now_us;
            }
            if now_us > behind_us + SETTLES_WITHIN.as_micros() as u64
                || now_us > begun_us + BOOTSTRAPS_WITHIN.as_micros() as u64
            {
                let ready: Vec<bool> = self.machines.iter().map(Machine::is_ready).collect();
                let within = (now_us - begun_us) / 1_000_000;
                return Err(format!("{within} s after the last fault {answering} servers answer; ready are {ready:?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops all of them where they have applied the same, and compares what they keep.
    pub async fn compare(&mut self) -> Result<(), String> {
        if self.machines.len() == 1 {
            return Ok(());
        }
        loop {
            // What was sent while the network was slow holds up what follows it.
            let arrives_us = self.bus.arrived_by_us().saturating_sub(self.bus.now_us());
            tokio::time::sleep(Duration::from_micros(arrives_us)).await;
            // The version is raised at one of the next looks.
            tokio::time::sleep(4 * Duration::from_millis(self.rules.upkeep_every_ms.min(1_000))).await;
            let has_ended = |machine: &Machine| machine.tasks().is_none_or(|tasks| tasks.ended().is_some());
            if !self.machines.iter().any(has_ended) {
                break;
            }
            self.look_after()?;
            self.settle().await?;
        }
        self.bus.freeze();
        for _ in 0..2 {
            // Whoever has ended meanwhile is started again, and reads what there is before all are stopped.
            tokio::time::sleep(ARRIVES_WITHIN).await;
            self.look_after()?;
        }
        for tasks in self.machines.iter().filter_map(Machine::tasks) {
            tasks.stop();
        }
        let mut first = None;
        for number in 0..self.machines.len() {
            while let Some(tasks) = self.machines[number].tasks() {
                match tasks.ended() {
                    Some(Ok(())) => drop(self.kill(number)),
                    Some(Err(error)) => {
                        return Err(format!("server {number} does not stop cleanly: {}", self.said(number, &error)));
                    }
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
            let machine = &self.machines[number];
            let kept = kept(machine.data.path(), &machine.disk)?;
            let version = self.machines.iter().map(|machine| machine.supports).min().unwrap_or(0);
            is_of_version(&kept, version).map_err(|how| format!("server {number}: {how}"))?;
            match &first {
                None => first = Some(kept),
                Some(first) => same(first, &kept).map_err(|how| format!("servers 0 and {number} differ: {how}"))?,
            }
        }
        Ok(())
    }

    /// Whatever they live with now, a kill leaves behind what is sound; `settled`: and no garbage,
    /// since everybody else has gone for long.
    pub async fn check(&mut self, settled: bool) -> Result<(), String> {
        self.end();
        // Their tasks are dropped meanwhile, and let go of their data.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let may_have_lost = self.may_have_lost();
        let check = |machine: &Machine| check_server(machine.data.path(), &machine.disk, settled, &self.bus);
        if may_have_lost { Ok(()) } else { self.machines.iter().try_for_each(check) }
    }

    /// Nothing of them goes on.
    pub fn end(&mut self) {
        for number in 0..self.machines.len() {
            self.kill(number);
        }
    }
}

/// `None` if it may not have worked.
async fn deregister(identity: &Identity, log: &Arc<dyn Log>, server: ServerId) -> Option<bool> {
    let epoch = epoch_of(&identity.cluster_key, log.as_ref()).await.ok()??;
    let mut admin = Admin::connect(identity, epoch, log.clone(), ADMIN_WAIT).await.ok()?;
    admin.deregister(server).await.ok()
}

/// `None` if it may not have worked.
async fn set_quota(identity: &Identity, log: &Arc<dyn Log>, user: &UserName, quota: Quota) -> Option<()> {
    let epoch = epoch_of(&identity.cluster_key, log.as_ref()).await.ok()??;
    let mut admin = Admin::connect(identity, epoch, log.clone(), ADMIN_WAIT).await.ok()?;
    admin.user_quota(user, |_| quota).await.ok().map(drop)
}
