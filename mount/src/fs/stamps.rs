//! Lives of promises, as the caches count them.
//!
//! The client gives a promise a new grant whenever it is broken, and also after
//! every change of our own (then it says what goes on: [`Continued`]). A cache
//! entry stores a [`Life`], which spans such continued grants, so that a change
//! of our own costs nothing but what it touched. A life that has ended never
//! comes back.

use crate::client::{Continued, Grant, Promises};
use proto::message::Promise;
use std::collections::HashMap;

/// One unbroken stretch of a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life(u64);

/// Promises whose lives are counted at once; beyond it those that are over are forgotten.
const MAX_LIVES: usize = 1 << 17;

#[derive(Default)]
pub struct Stamps {
    lives: HashMap<Promise, (Grant, Life)>,
    next: u64,
}

impl Stamps {
    /// The promise's current life, if it counts right now.
    pub fn life(&self, promises: &Promises, promise: &Promise) -> Option<Life> {
        let (grant, life) = self.lives.get(promise)?;
        (promises.grant(promise)? == *grant).then_some(*life)
    }

    /// An own change's answer says that what counted before goes on; whoever says
    /// so brings the caches up to that change in the same step. One that has
    /// overtaken another's answer changes nothing: the life ends, and with it
    /// what would miss the other's effect.
    pub fn go_on(&mut self, continued: &Continued) {
        if let Some((grant, _)) = self.lives.get_mut(&continued.promise)
            && *grant == continued.before
        {
            *grant = continued.now;
        }
    }

    /// An answer has granted this. The life that its facts belong to, unless they
    /// are over already. That life may have gone on since, by a change of our own
    /// whose answer is not taken in yet: then its effect comes over these facts.
    pub fn granted(&mut self, promises: &Promises, promise: Promise, grant: Grant) -> Option<Life> {
        if let Some((known, life)) = self.lives.get(&promise)
            && *known == grant
        {
            return Some(*life);
        }
        if promises.grant(&promise) != Some(grant) {
            return None;
        }
        if self.lives.len() >= MAX_LIVES {
            self.lives.retain(|promise, (grant, _)| promises.grant(promise) == Some(*grant));
        }
        self.next += 1;
        let life = Life(self.next);
        self.lives.insert(promise, (grant, life));
        Some(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::clock::monotonic_ms as now_ms;
    use proto::{Epoch, Ino, Position};

    const P: Promise = Promise::Content(Ino(7));

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch(1), partition: 0, offset, index: 0 }
    }

    #[test]
    fn changes_of_our_own_are_all_taken_in_though_the_client_is_ahead() {
        let (promises, now) = (Promises::default(), now_ms());
        promises.extend(now, now, at(0));
        let first = promises.granted(at(1), &[P])[0].1;
        let mut stamps = Stamps::default();
        let life = stamps.granted(&promises, P, first).expect("it counts");
        // The client has both answers before the first is taken in here.
        let (one, continued_one) = promises.changed_here(now, at(2), &[P], &[P]);
        let (two, continued_two) = promises.changed_here(now, at(3), &[P], &[P]);
        assert_eq!(stamps.life(&promises, &P), None, "what is not taken in yet may be missing");
        stamps.go_on(&continued_one[0]);
        assert_eq!(stamps.granted(&promises, P, one[0].1), Some(life), "its effect belongs to the same life");
        assert_eq!(stamps.life(&promises, &P), None);
        stamps.go_on(&continued_two[0]);
        assert_eq!(stamps.granted(&promises, P, two[0].1), Some(life));
        assert_eq!(stamps.life(&promises, &P), Some(life));
    }

    #[test]
    fn a_change_taken_in_out_of_order_begins_anew() {
        let (promises, now) = (Promises::default(), now_ms());
        promises.extend(now, now, at(0));
        let first = promises.granted(at(1), &[P])[0].1;
        let mut stamps = Stamps::default();
        let life = stamps.granted(&promises, P, first).expect("it counts");
        let (one, continued_one) = promises.changed_here(now, at(2), &[P], &[P]);
        let (two, continued_two) = promises.changed_here(now, at(3), &[P], &[P]);
        stamps.go_on(&continued_two[0]);
        let anew = stamps.granted(&promises, P, two[0].1).expect("it counts");
        assert_ne!(anew, life);
        stamps.go_on(&continued_one[0]);
        assert_eq!(stamps.granted(&promises, P, one[0].1), None);
        assert_eq!(stamps.life(&promises, &P), Some(anew));
    }
}
