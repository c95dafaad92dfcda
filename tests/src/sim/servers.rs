//! The server machines of a run: each with a data directory, a disk and a clock of its
//! own. What comes over them, and how they are started again.

use super::bus::{Bus, SimLog};
use super::cluster::{BEGINNING_MS, server_config};
use super::disk::SimDisk;
use super::rng::Rng;
use super::template::{Template, scratch};
use proto::clock::Clock;
use proto::simulation::Node;
use server::{ServerError, Tasks};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// All servers of one run.
pub struct Servers {
    bus: Bus,
    rng: Rng,
    append_time: bool,
    /// What every clock shows at the run's beginning.
    base_ms: i64,
    machines: Vec<Machine>,
}

struct Machine {
    data: tempfile::TempDir,
    disk: SimDisk,
    skew_ms: Arc<AtomicI64>,
    life: Option<Life>,
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
    pub fn new(bus: Bus, template: &Template, append_time: bool, rng: Rng) -> Servers {
        let data = scratch();
        template.write(data.path());
        let machine = Machine { data, disk: template.disk.copy(), skew_ms: Arc::default(), life: None };
        let base_ms = BEGINNING_MS + (template.ends_us / 1000) as i64;
        Servers { bus, rng, append_time, base_ms, machines: vec![machine] }
    }

    pub fn start_all(&mut self) -> Result<(), String> {
        (0..self.machines.len()).try_for_each(|number| self.start(number))
    }

    fn start(&mut self, number: usize) -> Result<(), String> {
        self.bus.trace(format_args!("the server starts"));
        let node = Node::new();
        let log = self.bus.log("server", node.clone());
        let machine = &mut self.machines[number];
        let (bus, skew_ms, base_ms) = (self.bus.clone(), machine.skew_ms.clone(), self.base_ms);
        let clock = Clock::new(move || {
            let ms = base_ms + skew_ms.load(Ordering::Relaxed) + (bus.now_us() / 1000) as i64;
            i128::from(ms) * 1_000_000
        });
        let config = server_config(machine.data.path(), &machine.disk, clock, self.append_time);
        let tasks = node.enter(|| Tasks::start(&config, Arc::new(log.clone())));
        let tasks = tasks.map_err(|error| format!("the server does not start: {error}"))?;
        machine.life = Some(Life { node, log, tasks, is_stopping: false });
        Ok(())
    }

    /// A server that ended by itself is a violation, unless what its killed life had on the way has
    /// come after its new one, which shows as another process: then it is started again, as systemd would.
    pub fn look_after(&mut self) -> Result<(), String> {
        for number in 0..self.machines.len() {
            match self.machines[number].life.as_ref().and_then(|life| life.tasks.ended()) {
                Some(Err(error @ ServerError::Superseded { .. })) => {
                    self.bus.trace(format_args!("{error}"));
                    self.kill(number);
                    self.start(number)?;
                }
                Some(Err(error)) => return Err(format!("the server has stopped: {error}")),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there was anything to kill.
    fn kill(&mut self, number: usize) -> bool {
        let life = self.machines[number].life.take();
        life.inspect(|life| life.node.kill()).is_some()
    }

    pub fn crash(&mut self, number: usize, for_ms: u64) -> Due {
        if !self.kill(number) {
            return None;
        }
        // A kill -9 loses nothing that was written; a power failure does.
        let keeps_all = self.rng.chance(300);
        self.machines[number].disk.crash(&mut self.rng, keeps_all);
        Some((for_ms, Later::Start))
    }

    pub fn restart(&mut self, number: usize, for_ms: u64) -> Due {
        let life = self.machines[number].life.as_mut().filter(|life| !life.is_stopping)?;
        life.is_stopping = true;
        life.tasks.stop();
        Some((for_ms + 100, Later::Replace))
    }

    pub fn pause(&mut self, number: usize, for_ms: u64) -> Due {
        self.machines[number].life.as_ref()?.node.pause();
        Some((for_ms, Later::Resume))
    }

    pub fn cut(&mut self, number: usize, for_ms: u64) {
        if let Some(life) = &self.machines[number].life {
            life.log.cut_for(for_ms * 1000);
        }
    }

    pub fn jump_clock(&mut self, number: usize, by_ms: i64) {
        self.machines[number].skew_ms.fetch_add(by_ms, Ordering::Relaxed);
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

    /// Nothing of them goes on.
    pub fn end(&mut self) {
        for number in 0..self.machines.len() {
            self.kill(number);
        }
    }
}
