//! The log has lost what it held, or some of it: every server stops, and an administrator begins a new
//! epoch from the one whose state is the newest. The others take snapshots of it.

use super::kept::reached;
use super::{Doing, Life, Servers};
use crate::sim::plan::Lost;
use proto::log::Topic;
use proto::simulation::Node;
use server::machine::effect::NotApplied;
use server::{NewLog, ServerConfig, ServerError, Tasks};
use std::collections::BTreeMap;
use std::sync::Arc;

/// So long after all have stopped an administrator looks.
const LOOKS_AFTER_US: u64 = 1_000_000;

/// How far an administrator is.
pub struct NewEpoch {
    /// Since when no server runs.
    stopped_at_us: Option<u64>,
    /// Who begins it.
    from: Option<usize>,
    /// It was seen to be ready in it.
    is_ready: bool,
    has_begun: bool,
    /// By partition, the first offset of the lost log that the new epoch's state lacks.
    kept: BTreeMap<u32, u64>,
    lost: Lost,
}

/// What comes before a server is started again.
pub enum First {
    Nothing,
    BeginEpoch,
    /// Somebody sees to the log.
    Wait,
}

/// Whether the error says that the log is not what was applied.
fn concerns_the_log(error: &ServerError) -> bool {
    matches!(
        error,
        ServerError::LogChanged { .. }
            | ServerError::EndLost { .. }
            | ServerError::RecordsGone { .. }
            | ServerError::EpochOver { .. }
    ) || is_of_another_state(error)
}

/// Whether an epoch has stopped the server, since its log is not the one that the server has applied.
pub(super) fn is_of_another_state(error: &ServerError) -> bool {
    matches!(
        error,
        ServerError::NotApplied(
            NotApplied::OtherState { .. } | NotApplied::Unproven { .. } | NotApplied::NotBegun { .. }
        )
    )
}

impl Servers {
    pub fn log_is_lost(&mut self, lost: Lost) {
        self.new_epoch = Some(NewEpoch {
            stopped_at_us: None,
            from: None,
            is_ready: false,
            has_begun: false,
            kept: BTreeMap::new(),
            lost,
        });
    }

    /// Whether content that no server had ingested may have gone, though requests quote it.
    pub fn has_lost_uploads(&self) -> bool {
        self.new_epoch.as_ref().is_some_and(|epoch| matches!(epoch.lost, Lost::Uploads | Lost::Ends))
    }

    pub(super) fn is_epoch_due(&self) -> bool {
        self.new_epoch.as_ref().is_some_and(|epoch| !epoch.has_begun)
    }

    /// What the state of the new epoch holds of the lost log, if there is one.
    pub fn kept_by_epoch(&self) -> Option<&BTreeMap<u32, u64>> {
        self.new_epoch.as_ref().map(|epoch| &epoch.kept)
    }

    pub(super) fn is_about_lost_log(&self, error: &ServerError) -> bool {
        self.new_epoch.is_some() && concerns_the_log(error)
    }

    pub(super) fn epoch_first(&self, number: usize) -> First {
        match &self.new_epoch {
            Some(epoch) if !epoch.has_begun && epoch.from == Some(number) => First::BeginEpoch,
            Some(epoch) if !epoch.has_begun => First::Wait,
            _ => First::Nothing,
        }
    }

    /// What an administrator does next.
    pub(super) fn look_after_epoch(&mut self) -> Result<(), String> {
        let now_us = self.bus.now_us();
        let all_stopped = self.machines.iter().all(|machine| machine.life.is_none());
        let Some(epoch) = self.new_epoch.as_mut().filter(|epoch| !epoch.has_begun) else { return Ok(()) };
        let Some(number) = epoch.from else {
            if !all_stopped {
                return Ok(());
            }
            let since_us = *epoch.stopped_at_us.get_or_insert(now_us);
            return if now_us > since_us + LOOKS_AFTER_US { self.choose() } else { Ok(()) };
        };
        let is_ready = epoch.is_ready;
        let Some(tasks) = self.machines[number].tasks() else {
            // Killed meanwhile: it is done once more when it is started again.
            return Ok(());
        };
        match tasks.ended() {
            None if tasks.is_ready() => {
                tasks.stop();
                if let Some(epoch) = &mut self.new_epoch {
                    epoch.is_ready = true;
                }
            }
            None => {}
            Some(Ok(())) => {
                self.kill(number);
                // Or somebody told it to stop before.
                return if is_ready { self.epoch_has_begun(number) } else { self.begin_epoch(number) };
            }
            Some(Err(error)) => {
                self.kill(number);
                self.failed(number, &error, "does not begin an epoch")?;
            }
        }
        Ok(())
    }

    /// The server that has applied the most.
    fn choose(&mut self) -> Result<(), String> {
        let mut best = None;
        for (number, machine) in self.machines.iter().enumerate() {
            let reached = match reached(machine.data.path(), &machine.disk) {
                Ok(reached) => reached,
                // It is tried again a moment later.
                Err(_) if machine.disk.take_trouble() => return Ok(()),
                Err(error) => return Err(error),
            };
            let sum: u64 = reached.values().sum();
            if best.as_ref().is_none_or(|(most, _, _)| sum > *most) {
                best = Some((sum, number, reached));
            }
        }
        let Some((_, number, kept)) = best else { return Ok(()) };
        if let Some(epoch) = &mut self.new_epoch {
            epoch.from = Some(number);
            // What the log still has is applied before the epoch begins.
            epoch.kept = if epoch.lost.takes(Topic::Requests) { kept } else { BTreeMap::new() };
        }
        self.begin_epoch(number)
    }

    /// As `kfs-server epoch --from` does.
    pub(super) fn begin_epoch(&mut self, number: usize) -> Result<(), String> {
        self.bus.trace(format_args!("server {number} begins an epoch"));
        // It may have failed a moment ago and have been about to start by itself.
        self.machines[number].again_at_us = None;
        if let Some(epoch) = &mut self.new_epoch {
            // One that was killed may have been so far.
            epoch.is_ready = false;
        }
        let node = Node::new();
        let log = self.bus.log(&format!("server{number}"), node.clone());
        // Of ends that are lost the server may have had nothing.
        let anyway = self.new_epoch.as_ref().is_some_and(|epoch| epoch.lost == Lost::Ends);
        let on_new_log = if anyway { NewLog::NewEpochAnyway } else { NewLog::NewEpochOnly };
        let config = ServerConfig { on_new_log, ..self.config(number) };
        match node.enter(|| Tasks::start(&config, Arc::new(log.clone()))) {
            Ok(tasks) => {
                let doing = Doing::Serving(tasks);
                self.machines[number].life = Some(Life { node, log, doing, is_stopping: false });
                Ok(())
            }
            // It had come so far before it was killed.
            Err(ServerError::SameLog) => {
                node.kill();
                self.epoch_has_begun(number)
            }
            Err(error) => {
                node.kill();
                self.failed(number, &error, "does not begin an epoch")
            }
        }
    }

    fn epoch_has_begun(&mut self, from: usize) -> Result<(), String> {
        self.bus.trace(format_args!("the epoch has begun from server {from}"));
        if let Some(epoch) = &mut self.new_epoch {
            epoch.has_begun = true;
        }
        for number in 0..self.machines.len() {
            self.machines[number].is_lost |= number != from;
            self.start(number)?;
        }
        Ok(())
    }
}
