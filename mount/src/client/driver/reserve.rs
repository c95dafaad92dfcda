//! Reserving room under a quota: a ledger of each resource with its lock, and its words to the server.
//!
//! Where room is spent and where it is told of, the ledger is locked until the request has
//! its place in the session's order: the server must meet both in the same order.

use super::*;
use crate::client::reserve::{Ask, Ledger};
use proto::task;

/// What lies reserved and unused for so long is given back.
const IDLE_AFTER: Duration = Duration::from_millis(500);

/// The ledger of a resource, and whose turn it is to ask.
pub(in crate::client) struct Reserve {
    ledger: Mutex<Ledger>,
    turn: tokio::sync::Mutex<()>,
    /// A task looks whether what is reserved is used.
    watched: std::sync::atomic::AtomicBool,
}

pub(in crate::client) type Reserves = Each<Reserve>;

impl Reserve {
    pub(in crate::client) fn new(of: Resource) -> Reserve {
        Reserve { ledger: Mutex::new(Ledger::new(of)), turn: Default::default(), watched: Default::default() }
    }
}

/// What came of asking for room.
pub(in crate::client) struct Asked {
    /// Taken, at most as much as was asked for.
    pub taken: u64,
    /// More may come.
    pub more: bool,
}

impl Inner {
    fn ledger(&self, of: Resource) -> MutexGuard<'_, Ledger> {
        lock(&self.reserves[of].ledger)
    }

    pub(in crate::client) fn is_limited(&self, of: Resource) -> bool {
        self.ledger(of).is_limited()
    }

    pub(in crate::client) fn take_room(&self, of: Resource, amount: u64) -> bool {
        self.ledger(of).take(amount)
    }

    pub(in crate::client) fn untake_room(&self, of: Resource, amount: u64) {
        self.ledger(of).untake(amount);
    }

    /// Submits a request for which room has been taken.
    pub(in crate::client) fn submit_reserved(
        &self,
        terms: Terms,
        op: Op,
        payload: Bytes,
        (of, amount): (Resource, u64),
    ) -> Submitted {
        let mut ledger = self.ledger(of);
        ledger.spend(amount);
        self.submit(op, payload, terms)
    }

    /// Asks the server for so much room, or with `part` for what there is. What is taken for a caller that has
    /// given up is free again.
    pub(in crate::client) async fn ask_for_room(
        self: &Arc<Self>,
        of: Resource,
        amount: u64,
        part: bool,
    ) -> Result<Asked, CallError> {
        let (inner, (tell, told)) = (Arc::clone(self), oneshot::channel());
        task::spawn(async move {
            let asked = inner.ask(of, amount, part).await;
            if let Err(Ok(Asked { taken, .. })) = tell.send(asked) {
                inner.untake_room(of, taken);
            }
        });
        told.await.unwrap_or(Err(CallError::Closed))
    }

    async fn ask(self: &Arc<Self>, of: Resource, amount: u64, part: bool) -> Result<Asked, CallError> {
        let _turn = self.reserves[of].turn.lock().await;
        // What is gone is free for this.
        self.release_now();
        let asked = {
            let mut ledger = self.ledger(of);
            if ledger.take(amount) {
                return Ok(Asked { taken: amount, more: false });
            }
            let Ask { keep, need, extra } = ledger.ask(amount);
            self.submit(Op::Session(SessionOp::Reserve { of, keep, need, extra, part }), Bytes::new(), self.terms())
        };
        self.somebody_waits();
        let answer = asked.await;
        let (granted, more) = match &answer {
            Ok(Reply { outcome: Outcome::Reserved { amount, more }, .. }) => (*amount, *more),
            _ => (0, false),
        };
        let taken = {
            let mut ledger = self.ledger(of);
            let (taken, keep) = ledger.answered(amount, granted, part || !more);
            self.tell(of, keep);
            taken
        };
        self.watch_reserve(of);
        match answer {
            Ok(Reply { outcome: Outcome::Reserved { .. }, .. }) => Ok(Asked { taken, more }),
            other => {
                self.untake_room(of, taken);
                Err(other.err().unwrap_or(CallError::WrongAnswer { op: "reserve" }))
            }
        }
    }

    /// A quota has been set, or there is one.
    pub(super) fn limited(&self, of: Resource) {
        let mut ledger = self.ledger(of);
        let keep = ledger.limit();
        self.tell(of, keep);
    }

    /// Gives back what is not spoken for.
    pub(in crate::client) fn give_back_room(&self, of: Resource) {
        let mut ledger = self.ledger(of);
        let keep = ledger.give_back();
        self.tell(of, keep);
    }

    /// Under the ledger's lock.
    fn tell(&self, of: Resource, keep: Option<u64>) {
        if let Some(keep) = keep {
            self.enter(
                None,
                Op::Session(SessionOp::Reserve { of, keep, need: 0, extra: 0, part: false }),
                Bytes::new(),
                self.terms(),
                None,
            );
        }
    }

    fn watch_reserve(self: &Arc<Self>, of: Resource) {
        if self.reserves[of].watched.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::downgrade(self);
        task::spawn(async move {
            loop {
                tokio::time::sleep(IDLE_AFTER).await;
                let Some(inner) = inner.upgrade() else { return };
                let mut ledger = inner.ledger(of);
                let (keep, again) = ledger.give_back_if_idle();
                inner.tell(of, keep);
                if !again {
                    inner.reserves[of].watched.store(false, Ordering::Release);
                    return;
                }
            }
        });
    }
}
