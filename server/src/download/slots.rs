//! Slots for work that is done a few pieces at a time: sessions take turns, so that one that asks for little does not
//! wait for all that another has asked for.

use proto::SessionId;
use proto::turns::Turns;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

pub(super) struct Slots(Mutex<State>);

struct State {
    free: usize,
    /// Empty while any slot is free. As many as there are pieces of work.
    waiting: Turns<SessionId, oneshot::Sender<Slot>>,
}

/// One slot, taken until it is dropped.
pub(super) struct Slot(Option<Arc<Slots>>);

impl Slots {
    pub fn new(slots: usize) -> Arc<Slots> {
        Arc::new(Slots(Mutex::new(State { free: slots, waiting: Turns::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each step leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one.
    pub async fn take(self: &Arc<Slots>, session: SessionId) -> Slot {
        let given = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Slot(Some(self.clone()));
            }
            let (giver, given) = oneshot::channel();
            state.waiting.push(session, giver);
            given
        };
        given.await.expect("who waits is kept until it is given a slot")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(slots) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = slots.state();
                let next = state.waiting.pop();
                state.free += usize::from(next.is_none());
                next
            };
            let Some(next) = next else { return };
            match next.send(Slot(Some(slots.clone()))) {
                Ok(()) => return,
                // It waits no more, and this slot is still to be given back.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sessions_take_turns_and_no_slot_is_lost() {
        let slots = Slots::new(1);
        let (one, other) = (SessionId([1; 16]), SessionId([2; 16]));
        let held = slots.take(one).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for (session, number) in [(one, 1), (one, 2), (one, 3), (other, 10)] {
            let (slots, order) = (slots.clone(), order.clone());
            tasks.push(tokio::spawn(async move {
                let _slot = slots.take(session).await;
                order.lock().expect("nobody panics").push(number);
            }));
            tokio::task::yield_now().await;
        }
        // One that gives up is passed over.
        tasks.remove(1).abort();
        tokio::task::yield_now().await;
        drop(held);
        for task in tasks {
            task.await.expect("gets its slot");
        }
        assert_eq!(*order.lock().expect("nobody panics"), [1, 10, 3]);
        assert_eq!(slots.state().free, 1);
    }
}
