//! How long a caller waits, and what ends its wait early.

use super::CallError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Makes a future that resolves when the caller is interrupted, one for each wait.
pub type Interrupt = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// One caller's patience, over all the waits of one operation.
#[derive(Clone, Default)]
pub struct Patience {
    started: Option<Instant>,
    /// `None` waits for ever.
    pub timeout: Option<Duration>,
    pub interrupted: Option<Interrupt>,
}

impl Patience {
    /// Waits until `timeout` from now, in all waits together.
    pub fn within(timeout: Duration) -> Patience {
        Patience { started: Some(Instant::now()), timeout: Some(timeout), interrupted: None }
    }

    pub fn for_ever() -> Patience {
        Patience::default()
    }

    /// The same, ended early when `interrupt`'s future resolves.
    pub fn or(self, interrupt: Interrupt) -> Patience {
        Patience { interrupted: Some(interrupt), ..self }
    }

    /// The same, but waiting `timeout` from now where it would wait for ever.
    pub fn bounded(self, timeout: Duration) -> Patience {
        match self.timeout {
            Some(_) => self,
            None => Patience { interrupted: self.interrupted, ..Patience::within(timeout) },
        }
    }

    /// The same, ended by an interrupt only.
    pub fn without_timeout(self) -> Patience {
        Patience { interrupted: self.interrupted, ..Patience::for_ever() }
    }

    /// Waits for `work`, but no longer than this caller would.
    pub async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, CallError> {
        // One timer and one look at the interrupt for each wait, none before the work is pending.
        let interrupted = async {
            match &self.interrupted {
                Some(interrupt) => interrupt().await,
                None => std::future::pending().await,
            }
        };
        let timed_out = async {
            match self.timeout {
                Some(timeout) => {
                    let started = self.started.unwrap_or_else(Instant::now);
                    tokio::time::sleep_until(started + timeout).await;
                    timeout
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = interrupted => Err(CallError::Interrupted),
            waited = timed_out => Err(CallError::TimedOut { waited }),
        }
    }
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
