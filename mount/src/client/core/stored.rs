//! Whether requests are safe in the log before the server has answered for them.
//!
//! What was answered under a delegation cannot be refused: nobody else has to do with it, and room is reserved. So it
//! takes effect, whatever happens to this process, once the log has it
//!
//! * while promises count, which is before the server can have taken a delegation back by a deadline;
//! * behind all numbered before it: a log that retries may put a record behind later ones, and what stands behind a
//!   gap in the numbers counts only when it is sent again.
//!
//! What names content that stands in the log by itself, or counts in one session only, is not told from here.

use super::content::quotes;
use super::flight::Append;
use super::{Core, Entry, Phase, Waiter};
use proto::planted::{Bug, planted};

/// What is known about requests in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// They take effect.
    Safe,
    /// The log has not told of all.
    Awaited,
    /// Only the server's answers can say.
    Unknown,
}

impl<W: Waiter> Core<W> {
    /// The order of the last request entered.
    pub(crate) fn entered(&self) -> u64 {
        self.entered
    }

    /// What the log says about all that was entered up to this order and whose program has been answered.
    pub(crate) fn stored(&self, now_ms: u64, upto: u64) -> Stored {
        if planted(Bug::SyncedBeforeStored) {
            return Stored::Safe;
        }
        let is_meant = |entry: &Entry<W>| entry.answered && (entry.order <= upto || entry.asked_again);
        let is_behind = self.waiting.iter().chain(self.parked.iter()).any(is_meant);
        if !matches!(self.phase, Phase::Live) || !self.promises.count(now_ms) || is_behind {
            return Stored::Unknown;
        }
        let Some((last, _)) = self.flight.iter().rfind(|(_, flight)| is_meant(&flight.entry)) else {
            return Stored::Safe;
        };
        // Those before the first one have been answered, from wherever they stand.
        let mut behind = self.answered_offset;
        let mut stored = Stored::Safe;
        for flight in self.flight.range(..=*last).map(|(_, flight)| flight) {
            let entry = &flight.entry;
            let counts = entry.local && !entry.asked_again && entry.only_in.is_none() && quotes(&entry.op).is_empty();
            match flight.append {
                _ if is_meant(entry) && !counts => return Stored::Unknown,
                Append::Queued => stored = Stored::Awaited,
                Append::Done { offset, .. } if offset >= behind => behind = offset,
                Append::Done { .. } | Append::Failed => return Stored::Unknown,
            }
        }
        stored
    }
}
