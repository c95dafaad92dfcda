//! Which request numbers have been answered, and what the server still has to
//! be told of that: a floor, and a list of those above it.

use proto::RequestNo;
use proto::message::Acked;
use std::collections::BTreeMap;

/// How far numbering runs ahead of the floor, at most: the server remembers
/// 1024 unacknowledged numbers a session and the list must fit a record.
pub(crate) const MAX_AHEAD: u64 = 768;

const _: () = assert!(MAX_AHEAD < Acked::MAX_ALSO as u64);

#[derive(Default)]
pub(crate) struct Acks {
    /// Every number up to here has been answered.
    floor: RequestNo,
    /// Answered ones above the floor, each with the first request that said so.
    above: BTreeMap<RequestNo, Option<RequestNo>>,
    /// The highest answered number; all up to it have been admitted.
    top: RequestNo,
}

impl Acks {
    pub(crate) fn floor(&self) -> RequestNo {
        self.floor
    }

    pub(crate) fn top(&self) -> RequestNo {
        self.top
    }

    pub(crate) fn answered(&mut self, number: RequestNo) {
        self.top = self.top.max(number);
        if number <= self.floor {
            return;
        }
        self.above.insert(number, None);
        while self.above.remove(&self.floor.next()).is_some() {
            self.floor = self.floor.next();
        }
    }

    /// What request `number` tells the server. A number above the floor is told
    /// until a request that carried it is known to be admitted.
    pub(crate) fn tell(&mut self, number: RequestNo) -> Acked {
        let top = self.top;
        let mut also = Vec::new();
        for (answered, told_by) in &mut self.above {
            if told_by.is_none_or(|told_by| told_by > top) {
                told_by.get_or_insert(number);
                also.push(*answered);
            }
        }
        Acked { floor: self.floor, also }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_answered_out_of_order_is_told_until_it_has_arrived() {
        let mut acks = Acks::default();
        for n in [1, 3, 4] {
            acks.answered(RequestNo(n));
        }
        let told = Acked { floor: RequestNo(1), also: vec![RequestNo(3), RequestNo(4)] };
        assert_eq!(acks.tell(RequestNo(5)), told);
        assert_eq!(acks.tell(RequestNo(6)), told, "5 may be lost");
        acks.answered(RequestNo(5));
        assert_eq!(acks.tell(RequestNo(7)).also, [RequestNo(5)]);
        acks.answered(RequestNo(2));
        assert_eq!(acks.tell(RequestNo(8)), Acked { floor: RequestNo(5), also: vec![] });
    }
}
