//! How long a caller waits, and what ends its wait early.

use super::CallError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Makes a future that resolves when the caller is interrupted, one for each wait.
pub type Interrupt = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// One caller's patience, over all the waits of one operation. It is for silence: while what is waited for, or what goes
/// before it, comes or goes, however slowly, the time begins anew.
#[derive(Default)]
pub struct Patience {
    started: Option<Instant>,
    /// So long after that the time began anew, in milliseconds.
    renewed_ms: AtomicU64,
    /// `None` waits for ever.
    pub timeout: Option<Duration>,
    pub interrupted: Option<Interrupt>,
}

impl Clone for Patience {
    fn clone(&self) -> Patience {
        Patience {
            started: self.started,
            renewed_ms: AtomicU64::new(self.renewed_ms.load(Ordering::Relaxed)),
            timeout: self.timeout,
            interrupted: self.interrupted.clone(),
        }
    }
}

impl Patience {
    /// Waits until `timeout` from now, in all waits together.
    pub fn within(timeout: Duration) -> Patience {
        Patience { started: Some(Instant::now()), timeout: Some(timeout), ..Patience::default() }
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
        // Nothing moves.
        self.wait_while(work, || 0).await
    }

    /// Waits for `work`, which is done by moving content: as long as `moved` rises at least once in each timeout, from now
    /// on. When it is done the time for what else the operation waits for begins anew.
    pub async fn wait_for_content<T>(
        &self,
        work: impl Future<Output = T>,
        moved: impl Fn() -> u64,
    ) -> Result<T, CallError> {
        self.renew();
        let done = self.wait_while(work, moved).await;
        if done.is_ok() {
            self.renew();
        }
        done
    }

    /// Waits for `work`, and longer than this caller would as long as `moved` rises at least once in each timeout.
    pub async fn wait_while<T>(&self, work: impl Future<Output = T>, moved: impl Fn() -> u64) -> Result<T, CallError> {
        // One timer and one look at the interrupt for each wait, none before the work is pending.
        let interrupted = async {
            match &self.interrupted {
                Some(interrupt) => interrupt().await,
                None => std::future::pending().await,
            }
        };
        let timed_out = async {
            let Some(timeout) = self.timeout else { return std::future::pending().await };
            let mut before = moved();
            loop {
                let renewed = Duration::from_millis(self.renewed_ms.load(Ordering::Relaxed));
                tokio::time::sleep_until(self.started.unwrap_or_else(Instant::now) + renewed + timeout).await;
                let now = moved();
                if now == before {
                    return timeout;
                }
                before = now;
                self.renew();
            }
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = interrupted => Err(CallError::Interrupted),
            waited = timed_out => Err(CallError::TimedOut { waited }),
        }
    }

    fn renew(&self) {
        if let Some(started) = self.started {
            self.renewed_ms.store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn waited<T>(work: impl Future<Output = T>) -> (T, u64) {
        let begun = Instant::now();
        (work.await, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn all_waits_of_one_operation_share_the_time() {
        let patience = Patience::within(10 * SECOND);
        assert!(patience.wait(tokio::time::sleep(8 * SECOND)).await.is_ok());
        let (ended, secs) = waited(patience.wait(tokio::time::sleep(8 * SECOND))).await;
        assert!(matches!(ended, Err(CallError::TimedOut { .. })) && secs == 2, "{secs}");
    }

    #[tokio::test(start_paused = true)]
    async fn content_that_comes_slowly_is_waited_for_and_silence_is_not() {
        let begun = Instant::now();
        // Something each 7 s, for two minutes.
        let moved = || begun.elapsed().as_secs().min(120) / 7;
        let patience = Patience::within(10 * SECOND);
        let (done, secs) = waited(patience.wait_for_content(tokio::time::sleep(100 * SECOND), moved)).await;
        assert!(done.is_ok() && secs == 100, "{secs}");
        // What follows has all the time.
        assert!(patience.wait(tokio::time::sleep(9 * SECOND)).await.is_ok());
        let (ended, secs) = waited(patience.wait_for_content(std::future::pending::<()>(), moved)).await;
        assert!(matches!(ended, Err(CallError::TimedOut { .. })), "nothing moves any more");
        assert!((11..=30).contains(&secs), "{secs}");
    }
}
