//! What only the answering server does, now and then: which of the log nobody needs
//! any more, whom to wait for no longer, and which version all can run.

use super::Rules;
use crate::machine::Registered;
use proto::ServerId;
use proto::log::{REQUEST_PARTITIONS, Topic};
use proto::message::Progress;
use proto::planted::{Bug, planted};
use std::collections::BTreeMap;

/// Between words about servers that hold up the trimming.
const WARN_EVERY_MS: u64 = 3_600_000;

/// A log that brings nothing of this server's own for so long was away; more than an idle
/// heartbeat and the time between two looks.
const AWAY_MS: u64 = 60_000;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Records of the topic's partition before this offset can go.
    pub trims: Vec<(Topic, u32, u64)>,
    pub deregister: Vec<ServerId>,
    /// These hold up the trimming, and will be deregistered in so many milliseconds.
    pub warn: Vec<(ServerId, u64)>,
    /// The version that every partition below it is raised to.
    pub version: Option<u32>,
}

#[derive(Default)]
pub struct Upkeep {
    done_ms: Option<u64>,
    /// Which progress each server was seen with, and since when by this server's clock.
    watched: BTreeMap<ServerId, (i64, u64)>,
    /// The log's time as last seen, and when it was first seen so by this server's clock.
    log_time: Option<(i64, u64)>,
    warned_ms: Option<u64>,
    trimmed: BTreeMap<(Topic, u32), u64>,
}

/// The state's part in it, partition 0's.
pub struct Known<'a> {
    pub me: ServerId,
    pub servers: &'a BTreeMap<ServerId, Registered>,
    /// On the scale of [`Registered::progressed_ms`].
    pub time_ms: i64,
    /// The lowest version of any partition.
    pub version: u32,
    /// The log can be trimmed: it is one that lasts.
    pub trims: bool,
}

impl Upkeep {
    /// When there is something to be done next.
    pub fn due_ms(&self, rules: &Rules) -> u64 {
        self.done_ms.map_or(0, |done| done + rules.upkeep_every_ms)
    }

    /// What is due now; nothing if it was done lately.
    pub fn due(&mut self, now_ms: u64, rules: &Rules, known: &Known) -> Due {
        if now_ms < self.due_ms(rules) {
            return Due::default();
        }
        self.done_ms = Some(now_ms);
        let mut due = Due::default();
        // Without its own word there is nothing to go by.
        if !known.servers.contains_key(&known.me) {
            return due;
        }
        self.watched.retain(|id, _| known.servers.contains_key(id));
        let seen = self.log_time.get_or_insert((known.time_ms, now_ms));
        if now_ms > seen.1 + AWAY_MS {
            // Nobody could show progress, or start, meanwhile.
            self.watched.values_mut().for_each(|(_, since_ms)| *since_ms = now_ms);
        }
        if seen.0 != known.time_ms {
            *seen = (known.time_ms, now_ms);
        }
        let may_warn = self.warned_ms.is_none_or(|warned| now_ms >= warned + WARN_EVERY_MS);
        for (id, server) in known.servers.iter().filter(|(id, _)| **id != known.me) {
            let watched = self.watched.entry(*id).or_insert((server.progressed_ms, now_ms));
            if watched.0 != server.progressed_ms {
                *watched = (server.progressed_ms, now_ms);
            }
            let silent_ms = u64::try_from(known.time_ms.saturating_sub(server.progressed_ms)).unwrap_or(0);
            let left_ms = rules.deregister_after_ms.saturating_sub(silent_ms);
            let watch_ms = (watched.1 + rules.watch_before_ms).saturating_sub(now_ms);
            let left_ms = if planted(Bug::DeregisterByClock) { left_ms } else { left_ms.max(watch_ms) };
            if left_ms == 0 {
                due.deregister.push(*id);
            } else if silent_ms >= rules.deregister_after_ms / 4 && may_warn {
                self.warned_ms = Some(now_ms);
                due.warn.push((*id, left_ms));
            }
        }
        let supported = known.servers.values().map(|server| server.supports);
        let supported = if planted(Bug::VersionTooEarly) { supported.max() } else { supported.min() };
        due.version = supported.filter(|supported| *supported > known.version);
        if known.trims {
            for partition in 0..REQUEST_PARTITIONS {
                for (topic, before) in needed(known.servers, partition) {
                    let done = self.trimmed.entry((topic, partition)).or_insert(0);
                    if before > *done {
                        *done = before;
                        due.trims.push((topic, partition, before));
                    }
                }
            }
        }
        due
    }
}

/// The first offsets of a partition that some registered server still needs.
fn needed(servers: &BTreeMap<ServerId, Registered>, partition: u32) -> [(Topic, u64); 2] {
    let progress = |server: &Registered| server.progress.get(&partition).cloned().unwrap_or_default();
    let least = |ignored: Bug, of: fn(Progress) -> u64| {
        let all = servers.values().map(|server| of(progress(server)));
        if planted(ignored) { all.max() } else { all.min() }.unwrap_or(0)
    };
    let checkpointed = least(Bug::TrimIgnoresSlowest, |progress| progress.checkpointed);
    let ingested = least(Bug::TrimUningested, |progress| progress.ingested);
    // The last record of each is read again, and compared, at a server's start.
    [(Topic::Requests, checkpointed.saturating_sub(1)), (Topic::Chunks, ingested.saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::IncarnationId;

    fn server(supports: u32, progressed_ms: i64, at: &[(u32, u64, u64)]) -> Registered {
        let progress = |(partition, checkpointed, ingested): &(u32, u64, u64)| {
            let (partition, checkpointed, ingested) = (*partition, *checkpointed, *ingested);
            (partition, Progress { partition, checkpointed, ingested, ..Progress::default() })
        };
        Registered {
            incarnation: IncarnationId([0; 16]),
            supports,
            answers: false,
            heard_ms: progressed_ms,
            progressed_ms,
            progress: at.iter().map(progress).collect(),
        }
    }

    #[test]
    fn the_slowest_registered_server_decides_until_it_is_waited_for_no_longer() {
        let (me, slow) = (ServerId([1; 16]), ServerId([2; 16]));
        let mut servers = BTreeMap::from([
            (me, server(2, 1000, &[(0, 100, 50), (1, 10, 0)])),
            (slow, server(1, 1000, &[(0, 20, 70)])),
        ]);
        let rules = Rules { upkeep_every_ms: 30, deregister_after_ms: 500, watch_before_ms: 30, ..Rules::default() };
        let mut upkeep = Upkeep::default();
        let due = |upkeep: &mut Upkeep, servers: &BTreeMap<_, _>, now_ms: u64, time_ms| {
            upkeep.due(now_ms, &rules, &Known { me, servers, time_ms, version: 1, trims: true })
        };
        let first = due(&mut upkeep, &servers, 0, 1400);
        assert_eq!(first.warn, [(slow, 100)]);
        assert_eq!(first.trims, [(Topic::Requests, 0, 19), (Topic::Chunks, 0, 49)]);
        assert_eq!((first.deregister, first.version), (vec![], None));
        assert_eq!(due(&mut upkeep, &servers, 29, 9999), Due::default(), "too soon");
        let second = due(&mut upkeep, &servers, 30, 1500);
        assert_eq!((second.trims, second.deregister), (vec![], vec![slow]));
        servers.remove(&slow);
        let third = due(&mut upkeep, &servers, 60, 99_999);
        assert_eq!(third.trims, [(Topic::Requests, 0, 99), (Topic::Requests, 1, 9)]);
        assert_eq!((third.deregister, third.version), (vec![], Some(2)));
        // The broker's clock jumps: nobody is given up on its word alone.
        servers.insert(slow, server(2, 1500, &[]));
        let jumped = due(&mut upkeep, &servers, 90, 9_999_999);
        assert_eq!(jumped.deregister, vec![]);
        assert_eq!(due(&mut upkeep, &servers, 120, 9_999_999).deregister, vec![slow]);
        servers.clear();
        assert_eq!(due(&mut upkeep, &servers, 150, 99_999), Due::default());
    }

    #[test]
    fn while_the_log_is_away_nobody_is_given_up() {
        let (me, slow) = (ServerId([1; 16]), ServerId([2; 16]));
        let servers = BTreeMap::from([(me, server(1, 0, &[])), (slow, server(1, 0, &[]))]);
        let rules = Rules::default();
        let mut upkeep = Upkeep::default();
        // In looks, of half a minute each.
        let mut due = |look: u64, log_look: u64| {
            let time_ms = log_look as i64 * 30_000;
            let known = Known { me, servers: &servers, time_ms, version: 1, trims: true };
            upkeep.due(look * 30_000, &rules, &known).deregister
        };
        let (hour, day) = (120, 24 * 120);
        assert!((0..=50).all(|look| due(look, look).is_empty()));
        assert!((51..=50 + day).all(|look| due(look, 50).is_empty()), "Kafka is away for a day");
        // It is back, and they have an hour to show progress.
        assert!((51 + day..50 + day + hour).all(|look| due(look, look).is_empty()));
        assert_eq!(due(51 + day + hour, 51 + day + hour), [slow]);
    }
}
