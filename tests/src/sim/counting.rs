//! A number in a file that everybody counts up under a lock: whoever reads it under a lock must see what
//! the one before wrote, and nobody's count may be lost as long as the session that had the lock lived.

use super::history::{Found, Inner, as_operation};
use super::rng::Rng;
use super::work::{ME, PATIENCE, Work};
use mount::client::{CallError, Patience};
use mount::error::FsError;
use mount::fs::{CreateHow, LockCall, ROOT};
use proto::message::{LockKind, LockMode, LockRange, Refusal};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// The file's name, which no other step uses.
const NAME: &[u8] = b"counter";

/// Who waits for a lock waits at most so long: everybody gives it up soon, or has lost it with the session.
const LOCK_WAIT: Duration = Duration::from_secs(600);

/// One time of counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Only looks, twice.
    pub looks: bool,
    pub kind: Kind,
    pub hold_ms: u16,
    /// Gives up waiting after so long.
    pub give_up_ms: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Range,
    Flock,
}

impl Count {
    /// What one worker counts. All of one run use one kind, since the kinds do not see each other.
    pub fn draw(rng: &mut Rng, kind: Kind) -> Count {
        Count {
            looks: rng.chance(200),
            kind,
            hold_ms: *rng.pick(&[0, 0, 5, 80, 1500, 12_000]),
            give_up_ms: if rng.chance(150) { Some(rng.range(1, 3000) as u16) } else { None },
        }
    }
}

/// A time of counting that went well from the lock to its being given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// What was there, and was written back with one more unless it was only looked at.
    pub value: u64,
    pub looked: bool,
    /// Between these moments the program believed that it had the lock.
    pub from: u64,
    pub to: u64,
}

impl Work {
    pub async fn count(&self, text: String, count: Count) {
        let operation = self.history.invoked(self.client, text);
        self.history.waits(operation);
        let counted = as_operation(operation, self.counting(count)).await;
        self.history.returned(operation, counted.map_or(Found::Nothing, Found::Counted));
    }

    async fn counting(&self, count: Count) -> Result<Counted, FsError> {
        let (fs, p) = (&self.fs, &Patience::within(PATIENCE));
        let how = CreateHow::default();
        let (_, opened) = fs.create(ME, ROOT, NAME, 0o600, how, p).await?;
        let kind = if count.kind == Kind::Range { LockKind::OpenFile } else { LockKind::Flock };
        let call = LockCall { owner: opened.handle, kind: Some(kind), pid: 0, range: LockRange::WHOLE };
        let counted = self.count_locked(opened.handle, call, count, p).await;
        let flushed = fs.flush(opened.handle, p).await;
        fs.release(opened.handle)?;
        flushed?;
        counted
    }

    async fn count_locked(&self, handle: u64, call: LockCall, count: Count, p: &Patience) -> Result<Counted, FsError> {
        let mode = if count.looks { LockMode::Shared } else { LockMode::Exclusive };
        let waits = count.give_up_ms.map_or(LOCK_WAIT, |ms| Duration::from_millis(ms.into()));
        let until = Patience::within(LOCK_WAIT).or(Arc::new(move || Box::pin(tokio::time::sleep(waits))));
        let locked = self.fs.lock(handle, call, mode, true, &until).await;
        if count.give_up_ms.is_none()
            && let Err(error) = &locked
            && (matches!(error, FsError::Call(CallError::Interrupted)) || error.is(Refusal::Cancelled))
        {
            self.history.violated(format!("client {} waits for a lock for ever", self.client));
        }
        locked?;
        let from = self.history.moment();
        let value = self.counter(handle, p).await?;
        tokio::time::sleep(Duration::from_millis(count.hold_ms.into())).await;
        let again = if count.looks { self.counter(handle, p).await? } else { value };
        if !count.looks {
            self.fs.write(handle, 0, &(value + 1).to_le_bytes(), p).await?;
        }
        let to = self.history.moment();
        self.fs.unlock(handle, call, p).await?;
        if again != value {
            self.history.violated(format!("under a lock the counter was {value} and then {again}"));
        }
        Ok(Counted { value, looked: count.looks, from, to })
    }

    async fn counter(&self, handle: u64, p: &Patience) -> Result<u64, FsError> {
        let read = self.fs.read(handle, 0, 8, p).await?;
        let mut bytes = [0; 8];
        bytes[..read.len()].copy_from_slice(&read);
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Nobody has a lock while another one has it exclusively, and no count is lost. What went with a lost log is
/// not counted; what a session's end interrupted may have counted or not.
pub fn check(history: &Inner) -> Result<(), String> {
    if history.log_lost.is_some() {
        return Ok(());
    }
    let counted = history.operations.iter().filter_map(|operation| match &operation.found {
        Found::Counted(counted) => Some((counted, operation)),
        _ => None,
    });
    let mut counted: Vec<_> = counted.collect();
    counted.sort_by_key(|(counted, _)| counted.from);
    for (index, (one, first)) in counted.iter().enumerate() {
        for (other, second) in &counted[index + 1..] {
            let says = |what: &str| {
                Err(format!(
                    "{what}: client {} counted from {} and client {} from {}",
                    first.client, one.value, second.client, other.value
                ))
            };
            let both_look = one.looked && other.looked;
            if other.from < one.to && !both_look {
                return says("two had a lock at once");
            }
            if other.from > one.to && other.value < one.value + u64::from(!one.looked) {
                return says("a count was lost");
            }
        }
    }
    Ok(())
}
