//! A server without threads, for simulations: every part is a task of the runtime
//! that it is started in, and belongs to the simulated machine that starts it.
//!
//! It is built of the same parts as [`super::Server`]. A crash is the machine's:
//! its tasks are gone, and nothing here is told.

use super::{ApplyParts, Halt, Parts, Phases, ServerConfig};
use crate::error::ServerError;
use proto::log::Log;
use proto::task;
use std::sync::Arc;
use tokio::sync::watch;

/// A server whose parts are tasks.
pub struct Tasks {
    phases: Arc<Phases>,
    halt: watch::Sender<Halt>,
    speaks: watch::Receiver<bool>,
}

impl Tasks {
    /// As [`super::Server::start`], in the current runtime. `config.disk` must be an inline one.
    pub fn start(config: &ServerConfig, log: Arc<dyn Log>) -> Result<Tasks, ServerError> {
        let Parts { data, apply, services, epoch, checkpoints, halt } =
            Parts::open(config, &log, tokio::runtime::Handle::current())?;
        let (phases, speaks) = (services.phases.clone(), services.speaks.clone());
        task::spawn(checkpoints.write());
        task::spawn(services.serve(epoch));
        task::spawn({
            let (phases, halt) = (phases.clone(), halt.clone());
            async move {
                let ended = ApplyParts::attend(apply).await;
                halt.send_replace(Halt::Now);
                drop(data);
                phases.ended(ended);
            }
        });
        Ok(Tasks { phases, halt, speaks })
    }

    /// Whether it is the one that answers.
    pub fn is_answering(&self) -> bool {
        *self.speaks.borrow() && self.phases.lock().ended.is_none()
    }

    /// Whether it has caught up, and somebody answers.
    pub fn is_ready(&self) -> bool {
        let phase = self.phases.lock();
        phase.ready && phase.ended.is_none()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Result<(), ServerError>> {
        self.phases.lock().ended.clone()
    }

    /// Applies no more, checkpoints everything applied, and ends some time later.
    pub fn stop(&self) {
        self.halt.send_replace(Halt::Clean);
    }
}
