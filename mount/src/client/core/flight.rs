//! Numbered requests that are not answered, and when they are sent again.

use super::{Action, Entry};
use bytes::Bytes;
use proto::RequestNo;
use std::collections::BTreeMap;
use std::collections::btree_map::RangeMut;
use std::ops::{Deref, RangeBounds};

/// Silence after which a record is sent again, in milliseconds; doubled each time.
pub(super) const RESEND_FIRST_MS: u64 = 1_000;
const RESEND_MAX_MS: u64 = 8_000;

pub(super) struct Flight<W> {
    pub(super) entry: Entry<W>,
    pub(super) record: Bytes,
    pub(super) hash: [u8; 32],
    pub(super) first_sent_ms: u64,
    pub(super) sent_ms: u64,
    pub(super) sends: u32,
    pub(super) append: Append,
    /// The offset of the first copy, if the log has told it before there was another one.
    pub(super) first_at: Option<u64>,
    /// A later request has been answered, so this one has been applied.
    pub(super) overtaken: bool,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Append {
    /// The log has not said yet whether it has the record.
    Queued,
    /// It has it at this offset, as it told then; earlier ones may have been stored as well.
    Done {
        offset: u64,
        told_ms: u64,
    },
    Failed,
}

/// Bytes of requests that the log has not told of, above which no more are sent; one may be larger. At 1 Mbit/s they are on
/// their way for 4 s, and librdkafka waits for 10 before it sends them again.
const QUEUED_BYTES_MAX: usize = 512 << 10;

/// Those of one session, by number.
pub(super) struct Flights<W> {
    all: BTreeMap<RequestNo, Flight<W>>,
    /// Of those that the log has not told of.
    queued_bytes: usize,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Flights { all: BTreeMap::new(), queued_bytes: 0 }
    }
}

impl<W> Deref for Flights<W> {
    type Target = BTreeMap<RequestNo, Flight<W>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

impl<W> Flights<W> {
    /// Whether more had better be sent.
    pub(super) fn have_room(&self) -> bool {
        self.queued_bytes < QUEUED_BYTES_MAX
    }

    pub(super) fn insert(&mut self, number: RequestNo, flight: Flight<W>) {
        self.queued_bytes += flight.queued_bytes();
        self.all.insert(number, flight);
    }

    pub(super) fn remove(&mut self, number: &RequestNo) -> Option<Flight<W>> {
        let flight = self.all.remove(number)?;
        self.queued_bytes -= flight.queued_bytes();
        Some(flight)
    }

    pub(super) fn take(&mut self) -> BTreeMap<RequestNo, Flight<W>> {
        std::mem::take(self).all
    }

    /// To change anything but what the log has told.
    pub(super) fn range_mut(&mut self, range: impl RangeBounds<RequestNo>) -> RangeMut<'_, RequestNo, Flight<W>> {
        self.all.range_mut(range)
    }

    /// The log has told of one. Gives it, if it is not answered.
    pub(super) fn told(&mut self, number: RequestNo, append: Append) -> Option<&mut Flight<W>> {
        let flight = self.all.get_mut(&number)?;
        self.queued_bytes -= flight.queued_bytes();
        flight.append = append;
        Some(flight)
    }

    /// Sends those of `range` again that `is_due`.
    pub(super) fn send_again(
        &mut self,
        now_ms: u64,
        range: impl RangeBounds<RequestNo>,
        is_due: impl Fn(RequestNo, &Flight<W>) -> bool,
        out: &mut Vec<Action<W>>,
    ) {
        for (number, flight) in self.all.range_mut(range).filter(|(number, flight)| is_due(**number, flight)) {
            self.queued_bytes -= flight.queued_bytes();
            out.push(flight.send_again(now_ms, *number));
            self.queued_bytes += flight.queued_bytes();
        }
    }
}

impl<W> Flight<W> {
    fn queued_bytes(&self) -> usize {
        if self.append == Append::Queued { self.record.len() } else { 0 }
    }

    fn send_again(&mut self, now_ms: u64, number: RequestNo) -> Action<W> {
        self.sent_ms = now_ms;
        self.sends += 1;
        self.append = Append::Queued;
        let (frame, journaled) = (self.record.clone(), self.entry.journaled);
        Action::Send { number, frame, journaled, again: true, waits: true }
    }

    /// When to send it again. While the log still tries to store it, never (on a slow link large ones stand behind each
    /// other for seconds); and while the server is busy answering earlier ones, it will come to this one.
    pub(super) fn due_ms(&self, number: RequestNo, top: RequestNo, heard_ms: u64) -> u64 {
        let quiet_since = if number < top { self.sent_ms } else { self.sent_ms.max(heard_ms) };
        match self.append {
            Append::Queued => u64::MAX,
            Append::Done { told_ms, .. } => quiet_since.max(told_ms) + backoff_ms(self.sends),
            Append::Failed => self.sent_ms + RESEND_FIRST_MS,
        }
    }
}

pub(super) fn backoff_ms(sends: u32) -> u64 {
    (RESEND_FIRST_MS << sends.saturating_sub(1).min(3)).min(RESEND_MAX_MS)
}
