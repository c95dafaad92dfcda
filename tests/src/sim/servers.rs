//! The server machines of a run: each with a data directory, a disk and a clock of its
//! own. What comes over them, and how they are started again.

use super::bus::{Bus, SimLog};
use super::cluster::{BEGINNING_MS, server_config};
use super::disk::SimDisk;
use super::plan::{Plan, What};
use super::rng::Rng;
use super::template::{Template, scratch};
use proto::clock::Clock;
use proto::log::REQUEST_PARTITIONS;
use proto::simulation::Node;
use server::data::Identity;
use server::replica::Rules;
use server::store::snapshot::RowPart;
use server::store::{Checkpoint, PartitionStore, StoreError};
use server::{ServerConfig, ServerError, Tasks};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Virtual time within which servers agree on who answers, after the last fault.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// Virtual time within which what was appended before has arrived everywhere.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// All servers of one run.
pub struct Servers {
    bus: Bus,
    rng: Rng,
    append_time: bool,
    rules: Rules,
    /// What every clock shows at the run's beginning.
    base_ms: i64,
    machines: Vec<Machine>,
}

struct Machine {
    data: tempfile::TempDir,
    disk: SimDisk,
    skew_ms: Arc<AtomicI64>,
    life: Option<Life>,
    /// As of the last look.
    is_answering: bool,
}

/// One life of a server between two crashes.
struct Life {
    node: Node,
    log: SimLog,
    tasks: Tasks,
    /// It was told to stop.
    is_stopping: bool,
}

/// What comes later of what was begun.
#[derive(Clone, Copy, Debug)]
pub enum Later {
    Start,
    /// Once the one that was told to stop has stopped.
    Replace,
    Resume,
}

/// In so many milliseconds.
pub type Due = Option<(u64, Later)>;

impl Servers {
    /// None of them runs yet.
    pub fn new(bus: Bus, template: &Template, plan: &Plan) -> Servers {
        let machines = template.servers.iter().map(|home| {
            let data = scratch();
            home.write(data.path());
            Machine { data, disk: home.disk.copy(), skew_ms: Arc::default(), life: None, is_answering: false }
        });
        Servers {
            bus,
            rng: Rng::new(plan.seed, "faults"),
            append_time: plan.append_time,
            rules: Rules { upkeep_every_ms: plan.servers.upkeep_ms, ..Rules::default() },
            base_ms: BEGINNING_MS + (template.ends_us / 1000) as i64,
            machines: machines.collect(),
        }
    }

    pub fn start_all(&mut self) -> Result<(), String> {
        (0..self.machines.len()).try_for_each(|number| self.start(number))
    }

    fn start(&mut self, number: usize) -> Result<(), String> {
        self.bus.trace(format_args!("server {number} starts"));
        let node = Node::new();
        let log = self.bus.log(&format!("server{number}"), node.clone());
        let machine = &mut self.machines[number];
        let (bus, skew_ms, base_ms) = (self.bus.clone(), machine.skew_ms.clone(), self.base_ms);
        let clock = Clock::new(move || {
            let ms = base_ms + skew_ms.load(Ordering::Relaxed) + (bus.now_us() / 1000) as i64;
            i128::from(ms) * 1_000_000
        });
        let config = server_config(machine.data.path(), &machine.disk, clock, self.append_time);
        let config = ServerConfig { rules: self.rules, ..config };
        let tasks = node.enter(|| Tasks::start(&config, Arc::new(log.clone())));
        let tasks = tasks.map_err(|error| format!("server {number} does not start: {error}"))?;
        machine.life = Some(Life { node, log, tasks, is_stopping: false });
        Ok(())
    }

    /// A server that ended by itself is a violation, unless what its killed life had on the way has
    /// come after its new one, which shows as another process: then it is started again, as systemd would.
    pub fn look_after(&mut self) -> Result<(), String> {
        for number in 0..self.machines.len() {
            self.tell_of_answering(number);
            match self.machines[number].life.as_ref().and_then(|life| life.tasks.ended()) {
                Some(Err(error @ ServerError::Superseded { .. })) => {
                    self.bus.trace(format_args!("server {number}: {error}"));
                    self.kill(number);
                    self.start(number)?;
                }
                Some(Err(error)) => return Err(format!("server {number} has stopped: {error}")),
                _ => {}
            }
        }
        Ok(())
    }

    fn tell_of_answering(&mut self, number: usize) {
        let machine = &mut self.machines[number];
        let is_answering = machine.life.as_ref().is_some_and(|life| life.tasks.is_answering());
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

    /// Lets something come over a server, if there is one of this number.
    pub fn begin(&mut self, number: usize, what: &What) -> Due {
        if number >= self.machines.len() {
            return None;
        }
        match *what {
            What::ServerCrash { for_ms } => self.crash(number, for_ms),
            What::ServerRestart { for_ms } => self.restart(number, for_ms),
            What::ServerPause { for_ms } => self.pause(number, for_ms),
            What::ServerCut { for_ms } => self.cut(number, for_ms),
            What::ServerClock { by_ms } => {
                self.machines[number].skew_ms.fetch_add(by_ms, Ordering::Relaxed);
                None
            }
            _ => None,
        }
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
        life.is_stopping = true;
        life.tasks.stop();
        Some((for_ms + 100, Later::Replace))
    }

    fn pause(&mut self, number: usize, for_ms: u64) -> Due {
        self.machines[number].life.as_ref()?.node.pause();
        Some((for_ms, Later::Resume))
    }

    fn cut(&mut self, number: usize, for_ms: u64) -> Due {
        self.machines[number].life.as_ref()?.log.cut_for(for_ms * 1000);
        None
    }

    pub fn carry_out(&mut self, number: usize, later: Later) -> Result<Due, String> {
        let life = &self.machines[number].life;
        match later {
            Later::Start if life.is_none() => self.start(number)?,
            Later::Start => {}
            Later::Replace => {
                let Some(life) = life.as_ref().filter(|life| life.is_stopping) else { return Ok(None) };
                if life.tasks.ended().is_none() {
                    return Ok(Some((100, Later::Replace)));
                }
                self.kill(number);
                self.start(number)?;
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
        let until_us = self.bus.now_us() + SETTLES_WITHIN.as_micros() as u64;
        loop {
            self.look_after()?;
            let serve = |machine: &Machine| machine.life.as_ref().is_some_and(|life| life.tasks.is_ready());
            let answer = |machine: &&Machine| machine.life.as_ref().is_some_and(|life| life.tasks.is_answering());
            let answering = self.machines.iter().filter(answer).count();
            if answering == 1 && self.machines.iter().all(serve) {
                return Ok(());
            }
            if self.bus.now_us() > until_us {
                let ready: Vec<bool> = self.machines.iter().map(serve).collect();
                let within = SETTLES_WITHIN.as_secs();
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
        self.bus.freeze();
        tokio::time::sleep(ARRIVES_WITHIN).await;
        self.look_after()?;
        for life in self.machines.iter().filter_map(|machine| machine.life.as_ref()) {
            life.tasks.stop();
        }
        let mut first = None;
        for number in 0..self.machines.len() {
            while let Some(life) = &self.machines[number].life {
                match life.tasks.ended() {
                    Some(Ok(())) => drop(self.kill(number)),
                    Some(Err(error)) => return Err(format!("server {number} does not stop cleanly: {error}")),
                    None => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
            let machine = &self.machines[number];
            let kept = kept(machine.data.path(), &machine.disk)?;
            match &first {
                None => first = Some(kept),
                Some(first) => same(first, &kept).map_err(|how| format!("servers 0 and {number} differ: {how}"))?,
            }
        }
        Ok(())
    }

    /// Nothing of them goes on.
    pub fn end(&mut self) {
        for number in 0..self.machines.len() {
            self.kill(number);
        }
    }
}

/// What a stopped server has on disk of a partition: how far it is, and its rows.
type Kept = Vec<(Checkpoint, Vec<RowPart>)>;

fn kept(data: &Path, disk: &SimDisk) -> Result<Kept, String> {
    let identity = Identity::read(data, None).map_err(|error| error.to_string())?;
    let cluster = identity.cluster_key.id().0;
    let partition = |number| -> Result<_, StoreError> {
        let (store, _) = PartitionStore::open(&data.join("state"), number, cluster, 1 << 20, &disk.disk())?;
        let Some(held) = store.reader().map(|reader| reader.hold()).transpose()?.flatten() else { return Ok(None) };
        let (rows, _) = held.rows(&[], 0, usize::MAX)?;
        Ok(Some((held.checkpoint, rows)))
    };
    let read = |number| partition(number).map_err(|error| error.to_string());
    (0..REQUEST_PARTITIONS).map(|number| read(number)?.ok_or(format!("partition {number} has no checkpoint"))).collect()
}

fn same(one: &Kept, other: &Kept) -> Result<(), String> {
    for (number, ((one, one_rows), (other, other_rows))) in one.iter().zip(other).enumerate() {
        if (one.epoch, one.next_offset, one.last_hash) != (other.epoch, other.next_offset, other.last_hash) {
            let places = [(one.epoch.0, one.next_offset), (other.epoch.0, other.next_offset)];
            return Err(format!("partition {number} ends at {places:?}"));
        }
        if one.machine != other.machine {
            return Err(format!("the machine of partition {number} at {}", one.next_offset));
        }
        if let Some((row, _)) = one_rows.iter().zip(other_rows).find(|(one, other)| one != other) {
            return Err(format!("the row {:?} of partition {number} at {}", row.0, one.next_offset));
        }
        if one_rows.len() != other_rows.len() {
            let counts = (one_rows.len(), other_rows.len());
            return Err(format!("partition {number} at {} has {counts:?} rows", one.next_offset));
        }
    }
    Ok(())
}
