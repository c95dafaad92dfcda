//! Reserving room under a quota: the ledger with its lock, and its words to the server.
//!
//! Where room is spent and where it is told of, the ledger is locked until the request has
//! its place in the session's order: the server must meet both in the same order.

use super::*;
use crate::client::reserve::{Ask, Ledger};
use proto::task;

/// What lies reserved and unused for so long is given back.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// The ledger, and whose turn it is to ask.
#[derive(Default)]
pub(in crate::client) struct Reserves {
    ledger: Mutex<Ledger>,
    turn: tokio::sync::Mutex<()>,
    /// A task looks whether what is reserved is used.
    watched: std::sync::atomic::AtomicBool,
}

/// What came of asking for room.
pub(in crate::client) struct Asked {
    /// Bytes taken, at most as many as were asked for.
    pub taken: u64,
    /// More may come.
    pub more: bool,
}

impl Inner {
    pub(in crate::client) fn is_limited(&self) -> bool {
        lock(&self.reserves.ledger).is_limited()
    }

    pub(in crate::client) fn take_room(&self, bytes: u64) -> bool {
        lock(&self.reserves.ledger).take(bytes)
    }

    pub(in crate::client) fn untake_room(&self, bytes: u64) {
        lock(&self.reserves.ledger).untake(bytes);
    }

    /// Submits a write whose content has been given room.
    pub(in crate::client) fn submit_reserved(&self, terms: Terms, op: Op, payload: Bytes, bytes: u64) -> Submitted {
        let mut ledger = lock(&self.reserves.ledger);
        ledger.spend(bytes);
        self.submit(op, payload, terms)
    }

    /// Asks the server for room for `bytes`, or with `part` for what there is. What is taken for a caller that has
    /// given up is free again.
    pub(in crate::client) async fn ask_for_room(self: &Arc<Self>, bytes: u64, part: bool) -> Result<Asked, CallError> {
        let (inner, (tell, told)) = (Arc::clone(self), oneshot::channel());
        task::spawn(async move {
            let asked = inner.ask(bytes, part).await;
            if let Err(Ok(Asked { taken, .. })) = tell.send(asked) {
                inner.untake_room(taken);
            }
        });
        told.await.unwrap_or(Err(CallError::Closed))
    }

    async fn ask(self: &Arc<Self>, bytes: u64, part: bool) -> Result<Asked, CallError> {
        let _turn = self.reserves.turn.lock().await;
        // What is gone is free for this.
        self.release_now();
        let asked = {
            let mut ledger = lock(&self.reserves.ledger);
            if ledger.take(bytes) {
                return Ok(Asked { taken: bytes, more: false });
            }
            let Ask { keep, need, extra } = ledger.ask(bytes);
            self.submit(Op::Session(SessionOp::Reserve { keep, need, extra, part }), Bytes::new(), self.terms())
        };
        let answer = asked.await;
        let (granted, more) = match &answer {
            Ok(Reply { outcome: Outcome::Reserved { bytes, more }, .. }) => (*bytes, *more),
            _ => (0, false),
        };
        let taken = {
            let mut ledger = lock(&self.reserves.ledger);
            let (taken, keep) = ledger.answered(bytes, granted, part || !more);
            self.tell(keep);
            taken
        };
        self.watch_reserves();
        match answer {
            Ok(Reply { outcome: Outcome::Reserved { .. }, .. }) => Ok(Asked { taken, more }),
            other => {
                self.untake_room(taken);
                Err(other.err().unwrap_or(CallError::WrongAnswer { op: "reserve" }))
            }
        }
    }

    /// A quota has been set, or there is one.
    pub(super) fn limited(&self) {
        let mut ledger = lock(&self.reserves.ledger);
        let keep = ledger.limit();
        self.tell(keep);
    }

    /// Gives back what is not spoken for.
    pub(in crate::client) fn give_back_room(&self) {
        let mut ledger = lock(&self.reserves.ledger);
        let keep = ledger.give_back();
        self.tell(keep);
    }

    /// Under the ledger's lock.
    fn tell(&self, keep: Option<u64>) {
        if let Some(keep) = keep {
            self.enter(
                None,
                Op::Session(SessionOp::Reserve { keep, need: 0, extra: 0, part: false }),
                Bytes::new(),
                self.terms(),
                None,
            );
        }
    }

    fn watch_reserves(self: &Arc<Self>) {
        if self.reserves.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::downgrade(self);
        task::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_AFTER).await;
                let Some(inner) = inner.upgrade() else { return };
                let mut ledger = lock(&inner.reserves.ledger);
                let (keep, again) = ledger.give_back_if_idle();
                inner.tell(keep);
                if !again {
                    inner.reserves.watched.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}
