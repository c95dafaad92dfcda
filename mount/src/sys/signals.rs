//! SIGINT, SIGTERM and SIGHUP as two requests: first drain, then end at once.
//!
//! * Terminals, shells and service managers like to send the same signal twice within a moment;
//!   what comes within [`SAME_PRESS`] of the first counts as the first.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals this close to the first are one request.
pub const SAME_PRESS: Duration = Duration::from_millis(200);

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Send what is held, unmount, end.
    Drain,
    /// End now; what is held stays in the journal.
    AtOnce,
}

/// Listens for the signals; from its making on they do not kill the process.
#[derive(Debug)]
pub struct Signals {
    kinds: [Signal; 3],
    first: Option<Instant>,
}

impl Signals {
    /// Starts listening. Needs a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self { kinds: [interrupt?, terminate?, hangup?], first: None })
    }

    /// The next request. May be dropped and called again without missing one.
    pub async fn next(&mut self) -> Stop {
        loop {
            let [interrupt, terminate, hangup] = &mut self.kinds;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            match self.first {
                None => {
                    self.first = Some(Instant::now());
                    return Stop::Drain;
                }
                Some(first) if first.elapsed() < SAME_PRESS => {}
                Some(_) => return Stop::AtOnce,
            }
        }
    }
}
