//! Who answers, of several servers that all apply the same log: decisions only. Time
//! comes in as milliseconds of the server's own monotonic clock, heartbeats as they
//! are applied; out come heartbeats to send and the role to play.
//!
//! * The one that answers keeps it. When no heartbeat that claims to answer has been
//!   heard for [`Rules::silence_ms`], the live server with the lowest id claims it, and
//!   answers once its claim has come back in the log. Of two that claim the higher
//!   yields. Two at once say the same at the same positions, so it does no harm.
//! * What a quiet server would have said waits in [`unsaid`], to be said at a takeover;
//!   [`hashes`] finds servers that differ; [`upkeep`] is what only the answering one does.
//! * A server that was paused has not *observed* the silence: time counts only as far
//!   as it was looked at when it should have been.

pub mod hashes;
pub mod unsaid;
pub mod upkeep;

#[cfg(test)]
mod tests;

use crate::machine::Registered;
use proto::planted::{Bug, planted};
use proto::{IncarnationId, ServerId};
use std::collections::BTreeMap;

/// How much later than planned a look may come and still count whole.
const LATE_MS: u64 = 500;

/// For how long something done or learned makes heartbeats frequent.
const ACTIVE_MS: u64 = 5_000;

/// The times of the design's section 6, changed by tests only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Between heartbeats while there are sessions, or something is happening.
    pub heartbeat_ms: u64,
    /// Between heartbeats otherwise.
    pub idle_heartbeat_ms: u64,
    /// Without a claim for this long while there are sessions, another one takes over.
    pub silence_ms: u64,
    /// Likewise otherwise; more than one idle heartbeat.
    pub idle_silence_ms: u64,
    /// The log is trimmed, silent servers are deregistered and the version is raised at most this often.
    pub upkeep_every_ms: u64,
    /// A server that has brought nothing to disk for this long is waited for no longer.
    pub deregister_after_ms: u64,
    /// And the answering server must have watched it for this long itself: the broker's
    /// clock, which tells the other time, can jump.
    pub watch_before_ms: u64,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            heartbeat_ms: 500,
            idle_heartbeat_ms: 10_000,
            silence_ms: 2_000,
            idle_silence_ms: 12_000,
            upkeep_every_ms: 30_000,
            deregister_after_ms: 24 * 3_600_000,
            watch_before_ms: 3_600_000,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Applies, and keeps what it would have said.
    Quiet,
    /// Has claimed to answer, and waits for that claim to come back in the log. It
    /// holds the number of the first record that says so, once one was sent.
    Claiming { since_number: Option<u64> },
    /// Speaks to clients, ticks, delivers, serves, trims.
    Answering,
}

/// What has changed by something heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// From here on this server answers; what is unsaid is said first.
    Begin,
    /// Another server answers.
    End { to: ServerId },
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Send a heartbeat, which claims or not, and tell [`Replica::sent`] of it.
    pub heartbeat: Option<bool>,
    /// Look again at this time at the latest.
    pub next_ms: u64,
}

/// Another server, as far as it has been heard. Times are observed ones.
#[derive(Clone, Copy, Debug)]
struct Other {
    incarnation: IncarnationId,
    heard: u64,
    answers: bool,
}

/// One server's view of who answers. It begins once the server is open everywhere.
pub struct Replica {
    me: ServerId,
    incarnation: IncarnationId,
    rules: Rules,
    role: Role,
    others: BTreeMap<ServerId, Other>,
    /// How much time has been observed, and the clock's and the planned next look.
    observed: u64,
    looked_ms: u64,
    planned_ms: u64,
    /// When frequent heartbeats began to be due, if they are.
    busy_since: Option<u64>,
    active_until: u64,
    sent: Option<u64>,
    urgent: bool,
    /// Somebody is known to answer.
    settled: bool,
}

impl Replica {
    /// `known` are the registered servers as of the state.
    pub fn new(
        me: ServerId,
        incarnation: IncarnationId,
        rules: Rules,
        known: &BTreeMap<ServerId, Registered>,
        now_ms: u64,
    ) -> Replica {
        let other = |known: &Registered| Other { incarnation: known.incarnation, heard: 0, answers: known.answers };
        Replica {
            me,
            incarnation,
            rules,
            role: Role::Quiet,
            others: known.iter().filter(|(id, _)| **id != me).map(|(id, known)| (*id, other(known))).collect(),
            observed: 0,
            looked_ms: now_ms,
            planned_ms: now_ms,
            busy_since: Some(0),
            // Whoever hears this one's first heartbeat says at once that it answers.
            active_until: ACTIVE_MS,
            sent: None,
            urgent: false,
            settled: false,
        }
    }

    pub fn role(&self) -> Role {
        self.role
    }

    pub fn is_answering(&self) -> bool {
        self.role == Role::Answering
    }

    /// Whether it is known who answers: this server, or another that has been heard.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// The other server that claims to answer, as far as is known.
    pub fn answering_other(&self) -> Option<ServerId> {
        let claims = self.others.iter().filter(|(_, other)| other.answers);
        claims.max_by_key(|(id, other)| (other.heard, std::cmp::Reverse(**id))).map(|(id, _)| *id)
    }

    /// Somebody asks for something, so it matters that somebody answers.
    pub fn active(&mut self, now_ms: u64) {
        self.observe(now_ms);
        self.active_until = self.observed + ACTIVE_MS;
    }

    /// A heartbeat has been applied, this server's own ones too.
    pub fn heard(
        &mut self,
        now_ms: u64,
        server: ServerId,
        incarnation: IncarnationId,
        number: u64,
        answers: bool,
    ) -> Option<Turn> {
        self.observe(now_ms);
        if server == self.me {
            if incarnation == self.incarnation
                && answers
                && let Role::Claiming { since_number: Some(since) } = self.role
                && number >= since
            {
                self.role = Role::Answering;
                self.settled = true;
                return Some(Turn::Begin);
            }
            return None;
        }

        let other = Other { incarnation, heard: self.observed, answers };
        let before = self.others.insert(server, other);
        if before.is_none_or(|before| before.incarnation != incarnation) {
            // A start of a server: it wants to know who answers.
            self.active_until = self.observed + ACTIVE_MS;
        }
        if !answers {
            return None;
        }
        self.settled = true;
        match self.role {
            Role::Quiet => None,
            Role::Claiming { .. } | Role::Answering if server > self.me || planted(Bug::NeverYields) => {
                // It yields as soon as it hears this.
                self.urgent = true;
                None
            }
            Role::Claiming { .. } => {
                self.role = Role::Quiet;
                None
            }
            Role::Answering => {
                self.role = Role::Quiet;
                Some(Turn::End { to: server })
            }
        }
    }

    /// A server stops in good order, or is no longer registered: nobody waits for its silence.
    pub fn ended(&mut self, server: ServerId) {
        self.others.remove(&server);
    }

    /// What is due. `busy` says that there are sessions, or anything else that time
    /// in the log matters to.
    pub fn look(&mut self, now_ms: u64, busy: bool) -> Look {
        self.observe(now_ms);
        let busy = busy || self.observed < self.active_until;
        self.busy_since = if busy { self.busy_since.or(Some(self.observed)) } else { None };

        if self.role == Role::Quiet && self.observed >= self.silent_at() && self.is_lowest() {
            self.role = Role::Claiming { since_number: None };
            self.urgent = true;
        }
        let every = if busy { self.rules.heartbeat_ms } else { self.rules.idle_heartbeat_ms };
        let due = self.sent.map_or(self.observed, |sent| sent + every);
        let heartbeat = (self.urgent || due <= self.observed).then_some(self.role != Role::Quiet);

        let mut next = if heartbeat.is_some() { self.observed + every } else { due };
        if self.observed < self.active_until {
            // It may be idle from then on.
            next = next.min(self.active_until + 1);
        }
        if self.role == Role::Quiet {
            // One that waits for a lower server looks again soon.
            let silent = self.silent_at();
            next = next.min(if silent > self.observed { silent } else { self.observed + LATE_MS });
        }
        self.planned_ms = now_ms + (next - self.observed);
        Look { heartbeat, next_ms: self.planned_ms }
    }

    /// The heartbeat that was due has left, with this number.
    pub fn sent(&mut self, number: u64) {
        self.sent = Some(self.observed);
        self.urgent = false;
        if let Role::Claiming { since_number: since @ None } = &mut self.role {
            *since = Some(number);
        }
    }

    fn observe(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.looked_ms);
        let planned = self.planned_ms.saturating_sub(self.looked_ms);
        self.observed += passed.min(planned + LATE_MS);
        self.looked_ms = self.looked_ms.max(now_ms);
    }

    /// When the silence about who answers has lasted long enough; at once where
    /// nobody is known to claim it.
    fn silent_at(&self) -> u64 {
        let Some(claimed) = self.others.values().filter(|other| other.answers).map(|other| other.heard).max() else {
            return 0;
        };
        if planted(Bug::NeverTakesOver) {
            return u64::MAX;
        }
        let idle = claimed + self.rules.idle_silence_ms;
        self.busy_since.map_or(idle, |since| idle.min(claimed.max(since) + self.rules.silence_ms))
    }

    /// Whether no server with a lower id has been heard lately.
    fn is_lowest(&self) -> bool {
        let patience = match self.busy_since {
            Some(since) if self.observed - since >= self.rules.silence_ms => self.rules.silence_ms,
            _ if self.others.values().any(|other| other.answers) => self.rules.idle_silence_ms,
            // Nobody has ever answered, or the one that did has said that it ends.
            _ => self.rules.silence_ms,
        };
        !self.others.range(..self.me).any(|(_, other)| self.observed < other.heard + patience)
    }
}
