//! Logs that are not always as they should be.

use bytes::Bytes;
use proto::frame::{Kind, frames};
use proto::log::{Appended, Log, LogError, Start, Tail, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// For an answer to be lost.
const WAIT: Duration = Duration::from_secs(30);

/// What becomes of a record that is appended.
type Append = dyn Fn(&Arc<dyn Log>, Topic, u32, Bytes) -> Appended + Send + Sync;

/// A log that takes records in a way of its own.
struct Altered {
    log: Arc<dyn Log>,
    append: Box<Append>,
}

impl Log for Altered {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended {
        (self.append)(&self.log, topic, partition, value)
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        self.log.read_from(starts)
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        self.log.bounds(topic, partition)
    }

    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        self.log.trim(topic, partition, before)
    }
}

/// One that brings no record of a topic there while it is told so.
pub fn held(log: Arc<dyn Log>, topic: Topic, is_held: watch::Receiver<bool>) -> Arc<dyn Log> {
    let append = Box::new(move |log: &Arc<dyn Log>, of, partition, value| {
        if of != topic || !*is_held.borrow() {
            return log.append(of, partition, value);
        }
        let (log, mut is_held) = (Arc::clone(log), is_held.clone());
        let appended: Appended = Box::pin(async move {
            // Whoever held it back is gone, or lets it pass.
            let _ = is_held.wait_for(|held| !held).await;
            log.append(of, partition, value).await
        });
        appended
    });
    Arc::new(Altered { log, append })
}

/// One to which each record of requests takes its time, one after the other.
pub fn slow(log: Arc<dyn Log>, each: Duration) -> Arc<dyn Log> {
    let way: Arc<tokio::sync::Mutex<()>> = Arc::default();
    let append = Box::new(move |log: &Arc<dyn Log>, of, partition, value| {
        if of != Topic::Requests {
            return log.append(of, partition, value);
        }
        let (log, way) = (Arc::clone(log), Arc::clone(&way));
        let appended: Appended = Box::pin(async move {
            let _way = way.lock().await;
            tokio::time::sleep(each).await;
            log.append(of, partition, value).await
        });
        appended
    });
    Arc::new(Altered { log, append })
}

/// Whether answers are taken and forgotten.
#[derive(Default)]
pub struct Losing {
    loses: AtomicBool,
    lost: AtomicUsize,
}

impl Losing {
    /// Loses every answer from now on until one has been.
    pub async fn loses_while(&self, work: impl Future<Output = ()>) {
        let before = self.lost.load(Ordering::SeqCst);
        self.loses.store(true, Ordering::SeqCst);
        work.await;
        let lost = async {
            while self.lost.load(Ordering::SeqCst) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(WAIT, lost).await.expect("there is an answer to lose");
        self.loses.store(false, Ordering::SeqCst);
    }

    /// A log that does so.
    pub fn log(self: &Arc<Self>, log: Arc<dyn Log>) -> Arc<dyn Log> {
        let losing = Arc::clone(self);
        let append = Box::new(move |log: &Arc<dyn Log>, of, partition, value: Bytes| {
            let is_answer =
                || frames(value.clone()).is_ok_and(|all| all.iter().all(|one| one.header().kind == Kind::Answer));
            if of == Topic::Replies && losing.loses.load(Ordering::SeqCst) && is_answer() {
                losing.lost.fetch_add(1, Ordering::SeqCst);
                let lost: Appended = Box::pin(async { Ok(0) });
                return lost;
            }
            log.append(of, partition, value)
        });
        Arc::new(Altered { log, append })
    }
}
