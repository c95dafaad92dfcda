//! Requests that leave together: one record carries several of them, one behind the other.
//!
//! What nobody waits for is held back for a moment, so that what comes right behind it shares its record;
//! what somebody waits for takes along all that is held. It is the order of numbers that counts, so nothing
//! ever overtakes anything, and how requests are put together means nothing to the server.

use super::{Inner, State};
use bytes::Bytes;
use proto::frame::{GROUP_BYTES, GROUP_FRAMES, join};
use proto::log::Topic;
use proto::{RequestNo, SessionId};
use std::sync::atomic::Ordering;

/// How long a request is held back while nothing comes behind it: longer than a program takes from one call to the
/// next (make, write, close, set mode and times), and little beside the round trip that nobody waits for here.
const IDLE_MS: u64 = 2;

/// How long it is held back at most, so that what a busy program does is on its way all the time.
const HOLD_MS: u64 = 10;

/// Requests of one session that are numbered, and not appended yet. The core has them in flight: if the session ends
/// first, they are forgotten here and come again from there.
pub(super) struct Group {
    session: SessionId,
    numbers: Vec<RequestNo>,
    frames: Vec<Bytes>,
    bytes: usize,
    /// One of them at least was not sent before.
    is_new: bool,
    /// When the first and the last came.
    since_ms: u64,
    last_ms: u64,
}

impl Default for Group {
    fn default() -> Self {
        let session = SessionId::default();
        let (numbers, frames) = (Vec::new(), Vec::new());
        Group { session, numbers, frames, bytes: 0, is_new: false, since_ms: 0, last_ms: 0 }
    }
}

impl Group {
    /// When it leaves at the latest.
    pub fn due_ms(&self) -> u64 {
        if self.frames.is_empty() { u64::MAX } else { (self.last_ms + IDLE_MS).min(self.since_ms + HOLD_MS) }
    }

    fn has_room(&self, frame: &Bytes) -> bool {
        self.frames.is_empty() || self.frames.len() < GROUP_FRAMES && self.bytes + frame.len() <= GROUP_BYTES
    }
}

impl Inner {
    /// Holds a frame back, behind all that is held of its session. (Beside an open there is nothing: before it is
    /// answered, nothing else is sent.)
    pub(super) fn hold(
        &self,
        state: &mut State,
        now_ms: u64,
        session: SessionId,
        (number, frame): (RequestNo, Bytes),
        again: bool,
    ) {
        if state.group.session != session {
            state.group = Group { session, ..Group::default() };
        }
        if !state.group.has_room(&frame) {
            self.append_group(state, now_ms);
        }
        let group = &mut state.group;
        if group.frames.is_empty() {
            group.since_ms = now_ms;
        }
        group.last_ms = now_ms;
        group.bytes += frame.len();
        group.is_new |= !again;
        group.numbers.push(number);
        group.frames.push(frame);
    }

    /// Appends what is held, if anything is.
    pub(super) fn append_group(&self, state: &mut State, now_ms: u64) {
        let Group { session, numbers, frames, is_new, .. } = std::mem::take(&mut state.group);
        state.group.session = session;
        let Some(link) = state.link.as_ref().filter(|link| link.session == session && !frames.is_empty()) else {
            return;
        };
        let count = if is_new { &self.counters.sent } else { &self.counters.resent };
        count.fetch_add(1, Ordering::Relaxed);
        let appended = self.config.log.append(Topic::Requests, link.partition, join(&frames));
        state.appends.add(now_ms, session, numbers, appended);
        self.hurry_appends(state, now_ms);
    }
}
