//! How requests enter the core, and how whoever asks hears of their end.

use super::super::core::{Action, Entry, Journaled, Waiter};
use super::super::{CallError, Reply, Terms};
use super::{Inner, State};
use bytes::Bytes;
use proto::message::{Op, View};
use proto::{RequestNo, SessionId, Time};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use tokio::sync::oneshot;

/// Who waits for an answer.
pub(super) struct Caller {
    pub answer: oneshot::Sender<Result<Reply, CallError>>,
    /// Taken when the server says that the request waits.
    parked: Option<oneshot::Sender<(SessionId, RequestNo)>>,
}

impl Waiter for Caller {
    fn is_gone(&self) -> bool {
        self.answer.is_closed()
    }

    fn parked(&mut self, session: SessionId, number: RequestNo) {
        if let Some(parked) = self.parked.take() {
            // Whoever has given up does not look.
            let _ = parked.send((session, number));
        }
    }
}

/// A request in the ordered stream; resolves to its answer. Dropping it does not
/// undo the request.
pub struct Submitted {
    answer: oneshot::Receiver<Result<Reply, CallError>>,
    parked: oneshot::Receiver<(SessionId, RequestNo)>,
    journaled: bool,
    order: u64,
}

impl Submitted {
    /// Its place among all that this client has submitted, which is their order in the log.
    pub fn order(&self) -> u64 {
        self.order
    }

    /// The journal holds it: a crash of this process does not lose it.
    pub fn is_journaled(&self) -> bool {
        self.journaled
    }

    /// What comes first: the answer, or the server's word that the request waits there. Afterwards the
    /// answer is waited for.
    pub async fn first(&mut self) -> First {
        std::future::poll_fn(|context| {
            if let Poll::Ready(answer) = Pin::new(&mut *self).poll(context) {
                return Poll::Ready(First::Answer(Box::new(answer)));
            }
            match Pin::new(&mut self.parked).poll(context) {
                Poll::Ready(Ok((session, number))) => Poll::Ready(First::Parked(session, number)),
                // Told with the answer.
                Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// See [`Submitted::first`].
pub enum First {
    Answer(Box<Result<Reply, CallError>>),
    /// The request waits under this number.
    Parked(SessionId, RequestNo),
}

impl Submitted {
    pub(super) fn new() -> (Caller, Submitted) {
        let ((answer, answered), (parked, waits)) = (oneshot::channel(), oneshot::channel());
        let caller = Caller { answer, parked: Some(parked) };
        (caller, Submitted { answer: answered, parked: waits, journaled: false, order: 0 })
    }
}

impl Future for Submitted {
    type Output = Result<Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(|answer| answer.unwrap_or(Err(CallError::Closed)))
    }
}

impl Inner {
    pub(in crate::client) fn submit(&self, op: Op, payload: Bytes, terms: Terms) -> Submitted {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let (caller, mut submitted) = Submitted::new();
        (submitted.journaled, submitted.order) = self.enter(Some(caller), op, payload, terms, None);
        submitted
    }

    /// Looks that nobody waits for yet, in as few records as they fit in.
    pub(in crate::client) fn look_ahead(&self, views: Vec<View>) -> Vec<Submitted> {
        self.counters.requests.fetch_add(views.len() as u64, Ordering::Relaxed);
        self.act(|state, now_ms, actions| {
            let look = |view| {
                let (caller, mut submitted) = Submitted::new();
                let asked = (Some(caller), Op::View(view), Bytes::new());
                (_, submitted.order) = self.entered(state, now_ms, asked, self.terms(), None, actions);
                submitted
            };
            views.into_iter().map(look).collect()
        })
    }

    /// Submits what the journal already holds.
    pub(super) fn submit_journaled(&self, op: Op, payload: Bytes, time: Time, journaled: Journaled) -> Submitted {
        let (caller, submitted) = Submitted::new();
        let terms = Terms { time, only_in: None, local: false };
        let (_, order) = self.enter(Some(caller), op, payload, terms, Some(journaled));
        Submitted { journaled: true, order, ..submitted }
    }

    /// Lets a request that waits in the server end.
    pub(in crate::client) fn cancel(&self, session: SessionId, number: RequestNo) {
        self.act(|state, now_ms, actions| {
            if state.core.session() == Some(session) {
                state.core.cancel(now_ms, number, actions);
            }
        });
    }

    pub(super) fn enter(
        &self,
        waiter: Option<Caller>,
        op: Op,
        payload: Bytes,
        terms: Terms,
        adopted: Option<Journaled>,
    ) -> (bool, u64) {
        self.act(|state, now_ms, actions| self.entered(state, now_ms, (waiter, op, payload), terms, adopted, actions))
    }

    fn entered(
        &self,
        state: &mut State,
        now_ms: u64,
        (waiter, op, payload): (Option<Caller>, Op, Bytes),
        Terms { time, only_in, local }: Terms,
        adopted: Option<Journaled>,
        actions: &mut Vec<Action<Caller>>,
    ) -> (bool, u64) {
        // Under the lock, so that the journal has changes in the order in which they are entered.
        let journaled = adopted.or_else(|| {
            let journal = self.journal.as_ref().filter(|_| op.outlives_session());
            journal.and_then(|journal| journal.request(&op, &payload, time, only_in))
        });
        #[cfg(feature = "simulation")]
        {
            let is_bound = only_in.is_some();
            proto::simulation::seen(&proto::simulation::Seen::Entered { time, op: &op, is_bound, is_local: local });
        }
        let entry = Entry {
            waiter,
            op,
            payload,
            time,
            journaled,
            only_in,
            answered: local,
            local,
            asked_again: false,
            order: 0,
            entered_ms: now_ms,
        };
        let order = state.core.submit(now_ms, entry, actions);
        (journaled.is_some(), order)
    }
}
