//! What the kernel still keeps of places that were recalled.
//!
//! A recall is confirmed, and delegations are given up, when the kernel has forgotten what it was told it may keep there
//! ([`crate::client::Shown`]), or may not keep it any more. The driver says what it is to forget in the step that
//! takes a push in, so before the next one, which may confirm it.

use proto::PushNo;
use std::collections::{BTreeMap, VecDeque};

#[derive(Default)]
pub(super) struct KernelForgets {
    next: u64,
    /// What is being forgotten, and until when at most. As many as recalls come within [`crate::client::KEEP_MS`].
    forgetting: BTreeMap<u64, u64>,
    /// Each waits for all up to that one.
    held: VecDeque<(u64, Vec<PushNo>)>,
}

impl KernelForgets {
    pub fn begin(&mut self, until_ms: u64) -> u64 {
        self.next += 1;
        self.forgetting.insert(self.next, until_ms);
        self.next
    }

    pub fn done(&mut self, number: u64) {
        self.forgetting.remove(&number);
    }

    /// These are to be confirmed when what is being forgotten now is.
    pub fn hold(&mut self, pushes: Vec<PushNo>) {
        self.held.push_back((self.next, pushes));
    }

    /// What may be confirmed by now.
    pub fn release(&mut self, now_ms: u64) -> Option<Vec<PushNo>> {
        self.forgetting.retain(|_, until_ms| *until_ms > now_ms);
        let (upto, _) = self.held.front()?;
        let is_forgotten = self.forgetting.first_key_value().is_none_or(|(first, _)| first > upto);
        is_forgotten.then(|| self.held.pop_front())?.map(|(_, pushes)| pushes)
    }

    /// Nothing is being forgotten.
    pub fn is_clear(&mut self, now_ms: u64) -> bool {
        self.forgetting.retain(|_, until_ms| *until_ms > now_ms);
        self.forgetting.is_empty()
    }

    /// When time alone lets something go on.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.forgetting.values().min().copied()
    }

    /// Pushes of a session that is over need no confirmation.
    pub fn anew(&mut self) {
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recall_waits_for_what_was_shown_before_it_only() {
        let mut kernel = KernelForgets::default();
        let first = kernel.begin(1000);
        kernel.hold(vec![PushNo(1)]);
        let second = kernel.begin(1000);
        kernel.hold(vec![PushNo(2)]);
        assert_eq!(kernel.release(0), None);
        kernel.done(first);
        assert_eq!(kernel.release(0), Some(vec![PushNo(1)]));
        assert_eq!((kernel.release(0), kernel.is_clear(0)), (None, false));
        kernel.done(second);
        assert_eq!((kernel.release(0), kernel.is_clear(0)), (Some(vec![PushNo(2)]), true));
    }

    #[test]
    fn a_kernel_that_does_not_answer_is_waited_for_until_it_keeps_nothing() {
        let mut kernel = KernelForgets::default();
        kernel.begin(1000);
        kernel.hold(vec![PushNo(1)]);
        assert_eq!((kernel.release(999), kernel.deadline_ms()), (None, Some(1000)));
        assert_eq!(kernel.release(1000), Some(vec![PushNo(1)]));
    }
}
