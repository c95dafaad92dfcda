//! Log time: moved by ticks in the log only. No clock can make it jump, since a
//! tick counts for at most what the broker's own time has passed, and for 2 s.

use super::rows::Turn;
use super::session::EXPIRY_MS;
use super::{Machine, users};
use proto::planted::{Bug, planted};
use proto::{IncarnationId, SessionId};

/// One tick moves log time by at most this.
const MAX_TICK_MS: u64 = 2_000;

impl Machine {
    pub(super) fn tick(&mut self, turn: &mut Turn, by: IncarnationId, elapsed_ms: u64, append_time_ms: i64) {
        let live = &mut self.live;
        let Some(incarnation) = live.incarnations.get_mut(&by) else { return };
        if !std::mem::replace(&mut incarnation.ticked, true) {
            // Nobody knows how long this server has been away.
            live.last_moved_append_ms.get_or_insert(append_time_ms);
            return;
        }
        let mut by_ms = elapsed_ms.min(MAX_TICK_MS);
        if live.append_time {
            let last = *live.last_moved_append_ms.get_or_insert(append_time_ms);
            if append_time_ms < last {
                // The broker's clock was set back, or its leader changed: log time must not stand
                // still until that clock shows again what it showed before.
                live.last_moved_append_ms = Some(append_time_ms);
            }
            let passed = append_time_ms.saturating_sub(last);
            let passed_ms = u64::try_from(passed).unwrap_or(0);
            by_ms = if planted(Bug::TickByBrokerClock) { passed_ms } else { by_ms.min(passed_ms) };
        }
        if by_ms == 0 {
            return;
        }
        live.now = live.now.plus_ms(by_ms);
        live.last_moved_append_ms = Some(append_time_ms);
        turn.now = live.now;
        self.expire(turn);
    }

    /// Everything that is over by now.
    fn expire(&mut self, turn: &mut Turn) {
        let now = self.live.now;
        let ids: Vec<SessionId> = self.live.sessions.keys().copied().collect();
        for id in ids {
            let session = &self.live.sessions[&id];
            if now >= session.admitted_at.plus_ms(EXPIRY_MS) {
                self.end_session(turn, id);
                continue;
            }
            if now >= session.lease_end() {
                self.lapse(id);
            }
            self.tick_pushes(turn, id);
        }
        while let Some((at, id)) = self.live.ended_order.first().copied() {
            if self.live.ended.get(&id).is_some_and(|mark| now < mark.until) {
                break;
            }
            self.live.ended_order.remove(&(at, id));
            self.live.ended.remove(&id);
        }
        if self.live.grace_until.is_some_and(|until| now >= until) {
            self.end_grace(turn);
        }
        self.forget_contended(now);
        users::forget_buckets(&mut self.live.buckets, now);
        self.forget_old_results(turn);
        self.expire_quotes(turn);
        self.expire_history(turn);
    }
}
