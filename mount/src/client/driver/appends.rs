//! What the log says of records that were sent. It is looked at now and then, by whoever is here: mostly only failures
//! matter, and to be woken for each would cost more than the request itself. Only who waits for the log is woken.

use super::super::core::Stored;
use super::{Inner, State};
use proto::log::{Appended, LogError, Topic};
use proto::{RequestNo, SessionId};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use tokio::task::coop::unconstrained;

/// How long after its sending a record's fate is asked for.
const APPENDS_AFTER_MS: u64 = 50;
/// The same where others are sent when it is known; twice as long after each look that finds nothing, as in an outage.
const APPENDS_SOON_MS: u64 = 2;

/// Records whose fate the log has not told or was not asked for, with the numbers in them, in the order of their
/// sending. At most as many as the core has sent and not heard of.
pub(super) struct Appends {
    records: VecDeque<(SessionId, Vec<RequestNo>, Appended)>,
    due_ms: u64,
    /// From one look to the next.
    wait_ms: u64,
}

impl Default for Appends {
    fn default() -> Self {
        Appends { records: VecDeque::new(), due_ms: u64::MAX, wait_ms: APPENDS_AFTER_MS }
    }
}

impl Appends {
    /// What becomes of a record is looked at later.
    pub fn add(&mut self, now_ms: u64, session: SessionId, numbers: Vec<RequestNo>, appended: Appended) {
        self.due_ms = self.due_ms.min(now_ms + APPENDS_AFTER_MS);
        self.records.push_back((session, numbers, appended));
    }

    /// Takes the first record out, if the log has told of it; else `context` is woken when it does.
    fn next(&mut self, context: &mut Context<'_>) -> Option<(SessionId, Vec<RequestNo>, Result<u64, LogError>)> {
        let (_, _, appended) = self.records.front_mut()?;
        // A task of the runtime is told of 128 things at most before it is to yield, and that there are no more: of
        // many records those beyond would stay here for ever.
        let told = pin!(unconstrained(appended.as_mut())).poll(context);
        let Poll::Ready(result) = told else { return None };
        let (session, numbers, _) = self.records.pop_front()?;
        Some((session, numbers, result))
    }

    /// What becomes of them is looked at soon.
    pub fn hurry(&mut self, now_ms: u64) {
        self.wait_ms = APPENDS_SOON_MS;
        self.due_ms = self.due_ms.min(now_ms + APPENDS_SOON_MS);
    }

    /// They have been looked at.
    fn looked(&mut self, now_ms: u64) {
        self.wait_ms = (self.wait_ms * 2).min(APPENDS_AFTER_MS);
        self.due_ms = if self.records.is_empty() { u64::MAX } else { now_ms + self.wait_ms };
    }

    /// When they are to be looked at.
    pub fn due_ms(&self) -> u64 {
        self.due_ms
    }
}

impl Inner {
    /// Waits until all that has been answered under delegations is safe in the log. `false` says that only the server's
    /// answers can tell.
    pub(in crate::client) async fn stored(&self) -> bool {
        let upto = self.state().core.entered();
        let before = self.state().core.stored(self.now_ms(), upto);
        if before == Stored::Awaited {
            self.somebody_waits();
        }
        let _looks = self.looks_at_appends.lock().await;
        poll_fn(|context| {
            let mut state = self.state();
            let now_ms = self.now_ms();
            self.look_at_appends(&mut state, now_ms, context);
            match state.core.stored(now_ms, upto) {
                Stored::Safe => Poll::Ready(true),
                Stored::Unknown => Poll::Ready(false),
                Stored::Awaited => {
                    self.config.log.hurry(Topic::Requests);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The same as [`Inner::look_at_appends`] for nobody, and so not while somebody looks, who is to be woken.
    pub(super) fn look_at_appends_later(&self, state: &mut State, now_ms: u64) {
        match self.looks_at_appends.try_lock() {
            Ok(_looks) => {
                self.look_at_appends(state, now_ms, &mut Context::from_waker(Waker::noop()));
            }
            Err(_) => state.appends.due_ms = now_ms + APPENDS_AFTER_MS,
        }
    }

    /// Tells the core what became of appends, in the order in which they were made.
    fn look_at_appends(&self, state: &mut State, now_ms: u64, context: &mut Context<'_>) {
        let before = state.appends.records.len();
        while let Some((session, numbers, result)) = state.appends.next(context) {
            if let Err(error) = &result {
                self.log_error(error);
            }
            for number in numbers {
                let is_first = state.core.appended(now_ms, session, number, result.as_ref().ok().copied());
                self.counters.appended.fetch_add(u64::from(is_first), Ordering::Relaxed);
            }
        }
        state.appends.looked(now_ms);
        if state.appends.records.len() < before {
            self.hurry_appends(state, now_ms);
        }
    }

    /// Where nothing more is sent until the log has told of something, that is looked for soon.
    pub(super) fn hurry_appends(&self, state: &mut State, now_ms: u64) {
        if !state.core.has_room() && !state.appends.records.is_empty() {
            self.config.log.hurry(Topic::Requests);
            state.appends.hurry(now_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_tells_nothing_is_looked_at_less_and_less_often() {
        let mut appends = Appends::default();
        appends.add(0, SessionId::default(), Vec::new(), Box::pin(std::future::pending()));
        assert_eq!(appends.due_ms(), 50);
        appends.hurry(10);
        let looks: Vec<u64> = std::iter::repeat_with(|| {
            let due = appends.due_ms();
            appends.looked(due);
            due
        })
        .take(7)
        .collect();
        assert_eq!(looks, [12, 16, 24, 40, 72, 122, 172]);
    }

    #[tokio::test]
    async fn all_that_the_log_has_told_of_is_taken_at_once() {
        let mut appends = Appends::default();
        for number in 0..1000 {
            let (told, appended) = tokio::sync::oneshot::channel();
            told.send(Ok(number)).unwrap();
            let appended = Box::pin(async move { appended.await.unwrap() });
            appends.add(0, SessionId::default(), vec![RequestNo(number)], appended);
        }
        // In a task, which the runtime bounds.
        let taken = tokio::spawn(async move {
            let mut context = Context::from_waker(Waker::noop());
            std::iter::from_fn(|| appends.next(&mut context)).count()
        });
        assert_eq!(taken.await.unwrap(), 1000);
    }
}
