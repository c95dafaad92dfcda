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
/// Continuations that have overtaken the one before them and wait for it.
const MAX_LINKS: usize = 1024;

#[derive(Default)]
pub struct Stamps {
    lives: HashMap<Promise, (Grant, Life)>,
    links: HashMap<(Promise, Grant), Grant>,
    next: u64,
}

impl Stamps {
    /// The promise's current life, if it counts right now.
    pub fn life(&self, promises: &Promises, promise: &Promise) -> Option<Life> {
        let (grant, life) = self.lives.get(promise)?;
        (promises.grant(promise)? == *grant).then_some(*life)
    }

    /// An own change's answer says that what counted before goes on.
    pub fn go_on(&mut self, continued: &Continued) {
        if self.links.len() >= MAX_LINKS {
            self.links.clear();
        }
        self.links.insert((continued.promise, continued.before), continued.now);
        let Some((grant, _)) = self.lives.get_mut(&continued.promise) else { return };
        while let Some(now) = self.links.remove(&(continued.promise, *grant)) {
            *grant = now;
        }
    }

    /// An answer has granted this. Its life, unless it is over already.
    pub fn granted(&mut self, promises: &Promises, promise: Promise, grant: Grant) -> Option<Life> {
        if promises.grant(&promise) != Some(grant) {
            return None;
        }
        if self.lives.len() >= MAX_LIVES {
            self.lives.retain(|promise, (grant, _)| promises.grant(promise) == Some(*grant));
        }
        let next = &mut self.next;
        let (known, life) = self.lives.entry(promise).or_insert_with(|| {
            *next += 1;
            (grant, Life(*next))
        });
        if *known != grant {
            *next += 1;
            (*known, *life) = (grant, Life(*next));
        }
        Some(*life)
    }
}
