//! A few servers over one log in a small world of its own: appends take a while or are
//! lost, servers read late, pause, crash and come back. Checked is how long nobody
//! answers, that everything is said by somebody, and that in the end exactly one answers.

use super::unsaid::Unsaid;
use super::*;
use proptest::prelude::*;
use proto::message::Progress;
use std::collections::BTreeSet;

const STEP_MS: u64 = 20;

#[derive(Clone, Debug)]
enum Record {
    Heartbeat { server: ServerId, incarnation: IncarnationId, number: u64, answers: bool, answered: u64 },
    Request(u64),
}

/// How bad the world is.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    /// An append takes up to this long, and a server reads up to this late.
    delay_ms: u64,
    /// Appends lost, of 100.
    lost: u64,
    /// Of 1000 steps, how many crash the answering server, crash any server, or pause one.
    crash_answering: u64,
    crash_any: u64,
    pause: u64,
}

struct Node {
    id: ServerId,
    incarnation: u8,
    /// `None` while it is down.
    up: Option<Up>,
    back_at_ms: u64,
    paused_until_ms: u64,
}

struct Up {
    replica: Replica,
    unsaid: Unsaid<u64>,
    known: BTreeMap<ServerId, Registered>,
    applied: usize,
    said_to: u64,
    said_at_heartbeat: Option<u64>,
    number: u64,
    look_at_ms: u64,
    lag_ms: u64,
}

struct World {
    now_ms: u64,
    seed: u64,
    trouble: Trouble,
    log: Vec<(u64, Record)>,
    under_way: Vec<(u64, Record)>,
    nodes: Vec<Node>,
    requests: u64,
    said: BTreeSet<u64>,
    looks: u64,
    busy: bool,
    /// Since when nobody that is up answers, and the longest such time.
    nobody_since: Option<u64>,
    longest_ms: u64,
}

impl World {
    fn new(servers: u8, seed: u64, trouble: Trouble) -> World {
        let node = |n: u8| Node {
            id: ServerId([n; 16]),
            incarnation: 0,
            up: None,
            back_at_ms: u64::from(n) * 30,
            paused_until_ms: 0,
        };
        World {
            now_ms: 1_000_000,
            seed: seed | 1,
            trouble,
            log: Vec::new(),
            under_way: Vec::new(),
            nodes: (1..=servers).map(node).collect(),
            requests: 0,
            said: BTreeSet::new(),
            looks: 0,
            busy: true,
            nobody_since: None,
            longest_ms: 0,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % below
    }

    fn append(&mut self, record: Record) {
        if self.random(100) < self.trouble.lost {
            return;
        }
        let at = self.now_ms + self.random(self.trouble.delay_ms + 1);
        self.under_way.push((at, record));
    }

    fn answering(&self) -> Vec<usize> {
        let is = |node: &Node| node.up.as_ref().is_some_and(|up| up.replica.is_answering());
        (0..self.nodes.len()).filter(|n| is(&self.nodes[*n])).collect()
    }

    fn crash(&mut self, n: usize) {
        self.nodes[n].up = None;
        self.nodes[n].back_at_ms = self.now_ms + 200 + self.random(8_000);
    }

    /// A server that is up again has applied the whole log, and kept nothing of what
    /// it had to say but what it finds behind the last "answered up to".
    fn start(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.incarnation += 1;
        let incarnation = IncarnationId([node.incarnation; 16]);
        let (mut known, mut unsaid) = (BTreeMap::new(), Unsaid::default());
        for (offset, (_, record)) in self.log.iter().enumerate() {
            apply(&mut known, &mut unsaid, offset as u64, record, None);
        }
        let replica = Replica::new(node.id, incarnation, Rules::default(), &known, self.now_ms);
        node.up = Some(Up {
            replica,
            unsaid,
            known,
            applied: self.log.len(),
            said_to: 0,
            said_at_heartbeat: None,
            number: 0,
            look_at_ms: self.now_ms,
            lag_ms: 0,
        });
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        if self.busy && self.random(3) == 0 {
            self.requests += 1;
            // A client's own retries see to it that it gets there.
            let at = now_ms + self.random(self.trouble.delay_ms + 1);
            self.under_way.push((at, Record::Request(self.requests)));
        }
        let Trouble { crash_answering, crash_any, pause, .. } = self.trouble;
        if self.random(1000) < crash_answering
            && let Some(n) = self.answering().first().copied()
        {
            self.crash(n);
        }
        let n = self.random(self.nodes.len() as u64) as usize;
        if self.random(1000) < crash_any {
            self.crash(n);
        }
        if self.random(1000) < pause {
            self.nodes[n].paused_until_ms = now_ms + self.random(6_000);
        }

        let mut arrived: Vec<_> = self.under_way.extract_if(.., |(at, _)| *at <= now_ms).collect();
        arrived.sort_by_key(|(at, _)| *at);
        self.log.extend(arrived.into_iter().map(|(_, record)| (now_ms, record)));
        for n in 0..self.nodes.len() {
            self.run(n);
        }

        let up = self.nodes.iter().any(|node| node.up.is_some() && node.paused_until_ms <= now_ms);
        let answered = self.answering().iter().any(|n| self.nodes[*n].paused_until_ms <= now_ms);
        if up && !answered {
            let since = *self.nobody_since.get_or_insert(now_ms);
            self.longest_ms = self.longest_ms.max(now_ms - since);
        } else {
            self.nobody_since = None;
        }
    }

    fn run(&mut self, n: usize) {
        let now_ms = self.now_ms;
        if self.nodes[n].up.is_none() {
            if self.nodes[n].back_at_ms <= now_ms {
                self.start(n);
            } else {
                return;
            }
        }
        if self.nodes[n].paused_until_ms > now_ms {
            return;
        }
        let lag_ms = self.random(self.trouble.delay_ms + 1);
        let new_lag = self.random(20) == 0;
        let node = &mut self.nodes[n];
        let Some(up) = &mut node.up else { return };
        if new_lag {
            up.lag_ms = lag_ms;
        }
        while let Some((at, record)) = self.log.get(up.applied)
            && at + up.lag_ms <= now_ms
        {
            let offset = up.applied as u64;
            up.applied += 1;
            let answering = up.replica.is_answering().then_some(&mut self.said);
            apply(&mut up.known, &mut up.unsaid, offset, record, answering);
            let Record::Heartbeat { server, incarnation, number, answers, .. } = record else { continue };
            match up.replica.heard(now_ms, *server, *incarnation, *number, *answers) {
                Some(Turn::Begin) => {
                    self.said.extend(std::iter::from_fn(|| up.unsaid.pop().map(|(_, request)| request)));
                    up.said_at_heartbeat = None;
                }
                Some(Turn::End { to }) => assert!(to < node.id, "the higher one yields"),
                None => {}
            }
        }
        let look_now = up.look_at_ms <= now_ms;
        if !look_now {
            return;
        }
        self.looks += 1;
        let look = up.replica.look(now_ms, self.busy);
        assert!(look.next_ms > now_ms, "it does not spin");
        up.look_at_ms = look.next_ms;
        if let Some(answers) = look.heartbeat {
            up.replica.sent(up.number);
            let other = up.replica.answering_other().and_then(|id| up.known.get(&id));
            if up.replica.is_answering() {
                if let Some(said) = up.said_at_heartbeat.replace(up.applied as u64) {
                    up.said_to = said;
                }
            } else if let Some(progress) = other.and_then(|other| other.progress.get(&0)) {
                up.said_to = progress.answered;
            }
            let (server, number, answered) = (node.id, up.number, up.said_to);
            up.number += 1;
            let incarnation = IncarnationId([node.incarnation; 16]);
            self.append(Record::Heartbeat { server, incarnation, number, answers, answered });
        }
    }

    fn run_for(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.step();
        }
    }
}

fn apply(
    known: &mut BTreeMap<ServerId, Registered>,
    unsaid: &mut Unsaid<u64>,
    offset: u64,
    record: &Record,
    answering: Option<&mut BTreeSet<u64>>,
) {
    match record {
        Record::Heartbeat { server, incarnation, answers, answered, .. } => {
            let progress = Progress { answered: *answered, ..Progress::default() };
            let registered = Registered {
                incarnation: *incarnation,
                supports: 1,
                answers: *answers,
                heard_ms: 0,
                progressed_ms: 0,
                progress: BTreeMap::from([(0, progress)]),
            };
            known.insert(*server, registered);
            if *answers {
                unsaid.answered(0, *answered);
            }
        }
        Record::Request(request) => match answering {
            Some(said) => drop(said.insert(*request)),
            None => unsaid.keep(0, offset, 1, *request),
        },
    }
}

const CALM: Trouble = Trouble { delay_ms: 40, lost: 0, crash_answering: 0, crash_any: 0, pause: 0 };

#[test]
fn a_server_alone_answers_at_once_also_after_a_crash() {
    let mut world = World::new(1, 7, CALM);
    world.run_for(300);
    assert_eq!(world.answering(), [0]);
    world.crash(0);
    world.nodes[0].back_at_ms = world.now_ms + 100;
    world.run_for(500);
    assert_eq!(world.answering(), [0]);
    assert_eq!(world.said.len() as u64, world.requests - world.under_way.len() as u64);
}

#[test]
fn the_one_that_answers_keeps_it_when_a_lower_one_comes() {
    let mut world = World::new(2, 7, CALM);
    world.nodes[0].back_at_ms = u64::MAX;
    world.run_for(3_000);
    assert_eq!(world.answering(), [1]);
    world.nodes[0].back_at_ms = 0;
    world.run_for(60_000);
    assert_eq!(world.answering(), [1]);
}

#[test]
fn idle_servers_say_little_and_take_over_all_the_same() {
    let mut world = World::new(2, 7, CALM);
    world.busy = false;
    world.run_for(20_000);
    let before = world.log.len();
    world.run_for(100_000);
    assert!(world.log.len() - before <= 22, "{} in 100 s", world.log.len() - before);
    let n = world.answering()[0];
    world.crash(n);
    world.nodes[n].back_at_ms = u64::MAX;
    world.run_for(13_000);
    assert_eq!(world.answering(), [1 - n]);
}

#[test]
fn busy_servers_look_no_more_often_than_they_must() {
    let mut world = World::new(2, 7, CALM);
    world.run_for(20_000);
    world.looks = 0;
    world.run_for(100_000);
    assert!(world.looks <= 1000, "{} looks of two servers in 100 s", world.looks);
}

#[test]
fn one_that_says_that_it_ends_is_followed_at_once() {
    let (a, b) = (ServerId([1; 16]), ServerId([2; 16]));
    let inc = IncarnationId([1; 16]);
    let mut quiet = Replica::new(b, inc, Rules::default(), &BTreeMap::new(), 0);
    quiet.heard(10, a, inc, 1, true);
    quiet.look(20, true);
    quiet.sent(1);
    quiet.ended(a);
    assert_eq!(quiet.look(30, true).heartbeat, Some(true));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Only the answering one crashes, nothing is lost: nobody ever has to ask again.
    #[test]
    fn a_takeover_loses_nothing_and_is_quick(seed: u64, servers in 2..4_u8, delay_ms in 0..120_u64) {
        let trouble = Trouble { crash_answering: 3, delay_ms, ..CALM };
        let mut world = World::new(servers, seed, trouble);
        world.run_for(60_000);
        world.trouble = Trouble { crash_answering: 0, ..trouble };
        world.run_for(15_000);
        world.busy = false;
        world.run_for(1_000);
        prop_assert_eq!(world.answering().len(), 1);
        let missing: Vec<u64> = (1..=world.requests).filter(|n| !world.said.contains(n)).collect();
        prop_assert!(missing.is_empty(), "never said: {:?}", missing);
    }

    /// The longest time without anyone, with one crash at a time.
    #[test]
    fn nobody_answers_for_at_most_the_silence_and_one_interval(seed: u64, delay_ms in 0..60_u64, after in 0..3_000_u64) {
        let mut world = World::new(3, seed, Trouble { delay_ms, ..CALM });
        world.run_for(5_000 + after);
        world.longest_ms = 0;
        let first = world.answering()[0];
        world.crash(first);
        world.nodes[first].back_at_ms = u64::MAX;
        world.run_for(10_000);
        prop_assert_eq!(world.answering().len(), 1);
        let bound = 2_000 + 500 + 3 * (delay_ms + STEP_MS);
        prop_assert!(world.longest_ms <= bound, "{} ms", world.longest_ms);
    }

    /// Everything at once; afterwards one answers, and says what is asked.
    #[test]
    fn whatever_happens_in_the_end_exactly_one_answers(seed: u64, servers in 2..4_u8, delay_ms in 0..900_u64) {
        let trouble = Trouble { delay_ms, lost: 20, crash_answering: 2, crash_any: 4, pause: 6 };
        let mut world = World::new(servers, seed, trouble);
        world.run_for(60_000);
        world.trouble = Trouble { delay_ms: delay_ms.min(200), ..CALM };
        world.run_for(20_000);
        let answering = world.answering();
        prop_assert_eq!(answering.len(), 1, "{:?}", answering);
        let asked = world.requests;
        world.run_for(5_000);
        prop_assert_eq!(world.answering(), answering);
        world.busy = false;
        world.run_for(1_000);
        prop_assert!((asked + 50..=world.requests).all(|n| world.said.contains(&n)));
    }
}
