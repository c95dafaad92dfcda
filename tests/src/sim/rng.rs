//! Draws for one purpose of one seed. What is drawn for one purpose never moves
//! what is drawn for another, so that taking something out of a run leaves the
//! rest of it alone.

use proto::simulation::split_mix;

#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The draws of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: &str) -> Rng {
        let mut state = seed;
        for byte in purpose.bytes() {
            state = split_mix(&mut state) ^ u64::from(byte);
        }
        Rng(split_mix(&mut state))
    }

    pub fn next(&mut self) -> u64 {
        split_mix(&mut self.0)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// From `low` up to and including `high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True `per_mille` times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
