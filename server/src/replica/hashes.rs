//! Whether servers that apply the same log have the same state: the hashes of lately
//! reached states, and those that the answering server has told of.

use proto::message::Progress;
use std::collections::{BTreeMap, VecDeque};

/// Hashes kept for each partition: those of the last 65,536 records.
const KEPT: usize = 1024;

/// Hashes told of that this server has not reached yet, for each partition.
const AHEAD: usize = 1024;

/// Two states of one partition that should be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    pub partition: u32,
    /// After everything before this offset.
    pub at: u64,
    pub here: [u8; 32],
    pub there: [u8; 32],
}

#[derive(Default)]
pub struct Hashes {
    partitions: BTreeMap<u32, Partition>,
}

#[derive(Default)]
struct Partition {
    /// The state as of now.
    applied: (u64, [u8; 32]),
    /// At multiples of [`Progress::HASH_EVERY`], rising.
    reached: VecDeque<(u64, [u8; 32])>,
    /// What the answering server has told of, beyond `applied`.
    ahead: BTreeMap<u64, [u8; 32]>,
    agreed: u64,
    /// How far it had been applied at the last report.
    reported: Option<u64>,
}

impl Hashes {
    /// Everything before `next` has been applied and has given this hash.
    pub fn applied(&mut self, partition: u32, next: u64, hash: [u8; 32]) -> Result<(), Differs> {
        let of = self.partitions.entry(partition).or_default();
        of.applied = (next, hash);
        if next.is_multiple_of(Progress::HASH_EVERY) {
            if of.reached.len() == KEPT {
                of.reached.pop_front();
            }
            of.reached.push_back((next, hash));
        }
        while let Some(first) = of.ahead.first_entry()
            && *first.key() <= next
        {
            let (at, there) = first.remove_entry();
            if at == next {
                of.compare(partition, at, hash, there)?;
            }
        }
        Ok(())
    }

    /// The answering server has told of its hash at `at`.
    pub fn told(&mut self, partition: u32, at: u64, there: [u8; 32]) -> Result<(), Differs> {
        let of = self.partitions.entry(partition).or_default();
        if at == 0 {
            return Ok(());
        }
        if at > of.applied.0 {
            of.ahead.insert(at, there);
            if of.ahead.len() > AHEAD {
                of.ahead.pop_first();
            }
            return Ok(());
        }
        let here = if at == of.applied.0 {
            Some(of.applied.1)
        } else {
            of.reached.binary_search_by_key(&at, |(at, _)| *at).ok().map(|found| of.reached[found].1)
        };
        here.map_or(Ok(()), |here| of.compare(partition, at, here, there))
    }

    /// What to tell others: an offset that they can compare at, and the hash there.
    /// (0, zeros) if there is none yet.
    pub fn report(&mut self, partition: u32) -> (u64, [u8; 32]) {
        let of = self.partitions.entry(partition).or_default();
        let still = of.reported.replace(of.applied.0) == Some(of.applied.0);
        if still { of.applied } else { of.reached.back().copied().unwrap_or_default() }
    }

    /// Up to where this server's state was the same as the answering one's; 0 if never compared.
    pub fn agreed(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |of| of.agreed)
    }
}

impl Partition {
    fn compare(&mut self, partition: u32, at: u64, here: [u8; 32], there: [u8; 32]) -> Result<(), Differs> {
        if here != there {
            return Err(Differs { partition, at, here, there });
        }
        self.agreed = self.agreed.max(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(of: u64) -> [u8; 32] {
        *blake3::hash(&of.to_le_bytes()).as_bytes()
    }

    fn at(next: u64) -> Hashes {
        let mut hashes = Hashes::default();
        for next in 1..=next {
            hashes.applied(3, next, hash(next)).expect("nothing was told");
        }
        hashes
    }

    #[test]
    fn hashes_are_compared_whoever_is_ahead() {
        let mut ahead = at(200);
        let mut behind = at(100);
        let (told, there) = ahead.report(3);
        assert_eq!((told, there), (192, hash(192)));
        behind.told(3, told, there).expect("not reached yet");
        assert_eq!(behind.agreed(3), 0);
        for next in 101..=192 {
            behind.applied(3, next, hash(next)).expect("the same");
        }
        assert_eq!(behind.agreed(3), 192);
        // The other way round, and where nothing moves.
        ahead.told(3, 64, hash(64)).expect("the same");
        ahead.told(3, 65, [0; 32]).expect("forgotten, so not compared");
        assert_eq!(ahead.agreed(3), 64);
        assert_eq!(ahead.report(3), (200, hash(200)));
        assert_eq!(at(10).report(3), (0, [0; 32]));
    }

    #[test]
    fn a_difference_is_told_of() {
        let mut hashes = at(130);
        let differs = hashes.told(3, 128, [9; 32]).expect_err("another state");
        assert_eq!((differs.at, differs.here, differs.there), (128, hash(128), [9; 32]));
        hashes.told(3, 192, [9; 32]).expect("not reached yet");
        for next in 131..192 {
            hashes.applied(3, next, hash(next)).expect("nothing told of it");
        }
        assert!(hashes.applied(3, 192, hash(192)).is_err());
    }
}
