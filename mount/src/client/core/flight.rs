//! One numbered request that is not answered, and when it is sent again.

use super::{Action, Entry};
use bytes::Bytes;
use proto::RequestNo;

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

impl<W> Flight<W> {
    pub(super) fn send_again(&mut self, now_ms: u64, number: RequestNo) -> Action<W> {
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
