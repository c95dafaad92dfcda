//! What the session has been delegated, as far as the order of its requests is concerned. Which things these are
//! stands with the promises, since it ends with them.
//!
//! * A push that takes back what may be delegated is confirmed behind all that has been entered, so behind
//!   everything that was answered under the delegation.
//! * Where promises end otherwise (missed pushes, a lease that ran out) the server is told, behind the same, and
//!   what answers to requests before that delegate does not count.

use proto::message::Push;

pub(super) struct Delegated {
    /// Whether sessions are opened as ones that can be delegated something.
    pub delegable: bool,
    /// This session has been, since it last gave all up.
    has: bool,
    /// The server is to be told that all is given up.
    due: bool,
    /// The last word to the server that all is given up, if that is not answered.
    giving_up: Option<u64>,
    /// The order of the last such word: answers to what was entered before it delegate nothing.
    from: u64,
}

impl Delegated {
    pub fn new(delegable: bool) -> Delegated {
        Delegated { delegable, has: false, due: false, giving_up: None, from: 0 }
    }

    /// A session has been opened, which has been delegated nothing.
    pub fn anew(&mut self, order: u64) {
        *self = Delegated { from: order, ..Delegated::new(self.delegable) };
    }

    /// Whether what the answer to this request delegates counts.
    pub fn takes(&self, order: u64) -> bool {
        self.delegable && !self.due && order > self.from
    }

    pub fn have(&mut self, something: bool) {
        self.has |= something;
    }

    /// Whether the push may take back what has been delegated.
    pub fn is_recall(&self, push: &Push) -> bool {
        (self.has || self.giving_up.is_some()) && matches!(push, Push::Invalidate(_))
    }

    /// All is to be given up, if there is anything.
    pub fn give_up(&mut self) {
        self.due = self.has;
    }

    pub fn is_to_be_given_up(&self) -> bool {
        self.due
    }

    pub fn giving_up(&mut self, order: u64) {
        *self = Delegated { giving_up: Some(order), from: order, ..Delegated::new(self.delegable) };
    }

    /// The server knows that what was delegated up to there is given up.
    pub fn given_up(&mut self, order: u64) {
        if self.giving_up == Some(order) {
            self.giving_up = None;
        }
    }
}
