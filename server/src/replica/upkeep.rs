//! What only the answering server does, now and then: which of the log nobody needs
//! any more, whom to wait for no longer, and which version all can run.

use super::Rules;
use crate::machine::Registered;
use proto::ServerId;
use proto::log::{REQUEST_PARTITIONS, Topic};
use std::collections::BTreeMap;

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Records of the topic's partition before this offset can go.
    pub trims: Vec<(Topic, u32, u64)>,
    pub deregister: Vec<ServerId>,
    /// The version that every partition below it is raised to.
    pub version: Option<u32>,
}

#[derive(Default)]
pub struct Upkeep {
    done_ms: Option<u64>,
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
        let silent = |(id, server): (&ServerId, &Registered)| {
            let silent_ms = u64::try_from(known.time_ms.saturating_sub(server.progressed_ms)).unwrap_or(0);
            (*id != known.me && silent_ms >= rules.deregister_after_ms).then_some(*id)
        };
        due.deregister = known.servers.iter().filter_map(silent).collect();
        let supported = known.servers.values().map(|server| server.supports).min();
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
    let checkpointed = servers.values().map(|server| progress(server).checkpointed).min().unwrap_or(0);
    let ingested = servers.values().map(|server| progress(server).ingested).min().unwrap_or(0);
    // The last applied record is read again, and compared, at a server's start.
    [(Topic::Requests, checkpointed.saturating_sub(1)), (Topic::Chunks, ingested)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::IncarnationId;
    use proto::message::Progress;

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
        let rules = Rules { upkeep_every_ms: 30, deregister_after_ms: 500, ..Rules::default() };
        let mut upkeep = Upkeep::default();
        let due = |upkeep: &mut Upkeep, servers: &BTreeMap<_, _>, now_ms: u64, time_ms| {
            upkeep.due(now_ms, &rules, &Known { me, servers, time_ms, version: 1, trims: true })
        };
        let first = due(&mut upkeep, &servers, 0, 1400);
        assert_eq!(first.trims, [(Topic::Requests, 0, 19), (Topic::Chunks, 0, 50)]);
        assert_eq!((first.deregister, first.version), (vec![], None));
        assert_eq!(due(&mut upkeep, &servers, 29, 9999), Due::default(), "too soon");
        let second = due(&mut upkeep, &servers, 30, 1500);
        assert_eq!((second.trims, second.deregister), (vec![], vec![slow]));
        servers.remove(&slow);
        let third = due(&mut upkeep, &servers, 60, 99_999);
        assert_eq!(third.trims, [(Topic::Requests, 0, 99), (Topic::Requests, 1, 9)]);
        assert_eq!((third.deregister, third.version), (vec![], Some(2)));
        servers.clear();
        assert_eq!(due(&mut upkeep, &servers, 90, 99_999), Due::default());
    }
}
