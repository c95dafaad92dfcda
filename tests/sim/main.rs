//! Whole clusters from seeds, and whether the checks that hold them to their promises would
//! find a bug. A violation names its seed; `cargo sim --seed N` tells all that happened there.

mod planted;

use harness::sim::{Count, Fault, Kind, Plan, Step, What, minimise, run, run_with};
use proto::planted::Bug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds that every test run tries.
const SEEDS: u64 = 1_000;

/// Runs `work` for numbers below `count`, on all cores.
fn side_by_side(count: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

/// What the seeds break, each told with its seed.
fn broken_by(count: u64, seed: impl Fn(u64) -> u64 + Sync) -> Vec<String> {
    let broken = Mutex::new(Vec::new());
    side_by_side(count, |number| {
        let seed = seed(number);
        if let Some(violation) = run(&Plan::draw(seed), false).violation {
            broken.lock().expect("nobody panics here").push(format!("seed {seed}: {violation}"));
        }
    });
    broken.into_inner().expect("nobody panics here")
}

#[test]
fn a_thousand_seeds_break_no_promise() {
    let broken = broken_by(SEEDS, |number| number);
    assert!(broken.is_empty(), "{} of {SEEDS}, see `cargo sim --seed N`:\n{}", broken.len(), broken.join("\n"));
}

/// Seeds that have found bugs, whatever they draw by now.
const FOUND: &[u64] = &[
    20_007_961, 166, 2380, 4031, 1_001_228, 1_003_254, 1_005_248, 1_006_180, 1_007_146, 1_008_923, 1_009_847,
    1_010_869, 1_013_626, 1_014_878, 2_000_096, 4_002_342, 7_005_259, 7_010_085, 7_011_010, 7_014_853, 7_024_370,
    7_034_701, 7_043_172, 7_045_951, 7_046_510, 7_062_743, 7_128_794, 7_150_609, 8_007_878, 9_009_620, 10_012_147,
    10_060_457, 10_101_610, 10_108_189, 10_161_336, 12_083_067, 12_123_150, 12_131_110, 14_010_383, 20_000_111,
    20_000_811, 20_002_192, 20_003_978, 20_006_306, 20_008_675, 20_011_885, 20_025_528, 20_025_584, 20_046_903,
    20_067_216, 20_085_598, 20_055_729, 20_097_719, 20_101_278, 20_131_406, 20_154_074, 20_361_977, 20_372_548,
    20_374_679,
];

#[test]
fn seeds_that_have_found_bugs_find_none() {
    let broken = broken_by(FOUND.len() as u64, |number| FOUND[number as usize]);
    assert!(broken.is_empty(), "see `cargo sim --seed N`:\n{}", broken.join("\n"));
}

/// It looks twice while it has a shared lock. Before it hears the second answer its session ends, and another one counts.
#[test]
fn whoever_was_deaf_while_its_lock_was_lost_does_not_look_under_it() {
    let count = |looks, hold_ms| Step::Count(Count { looks, kind: Kind::Range, hold_ms, give_up_ms: None });
    let mut plan = Plan::draw(20_372_548);
    plan.clients = vec![vec![], vec![vec![count(true, 12_000)]], vec![vec![count(false, 1500)]]];
    let what = What::ClientDeaf { client: 1, for_ms: 75_000, forgetful: false };
    plan.faults = vec![Fault { at_ms: 4460, server: 0, what }];
    (plan.net.slow, plan.net.lost, plan.net.no_offset, plan.net.late_ack) = (0, 0, 0, 0);
    (plan.net.repeated, plan.net.reply_lost) = (0, 0);
    (plan.quotas, plan.window) = (Vec::new(), 256);
    (plan.journal, plan.power_goes, plan.append_time, plan.tidies_up) = (false, false, true, false);
    (plan.servers.count, plan.servers.upkeep_ms, plan.servers.keeps_log) = (1, 30_000, false);
    assert_eq!(run(&plan, false).violation, None);
}

#[test]
fn one_seed_is_one_run() {
    side_by_side(40, |number| {
        let plan = Plan::draw(700 + number);
        let (first, second) = (run(&plan, true), run(&plan, true));
        for (number, (one, other)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(one, other, "line {number} of seed {}", plan.seed);
        }
        assert_eq!(first.fingerprint, second.fingerprint, "seed {}", plan.seed);
    });
}

#[test]
fn a_failing_plan_is_made_smaller() {
    let bug = Some(Bug::LinkDoesNotCount);
    let plan = (0..200).map(Plan::draw).find(|plan| run_with(plan, false, bug).violation.is_some());
    let plan = plan.expect("the bug is found");
    let small = minimise(&plan, bug, 150);
    assert!(run_with(&small, false, bug).violation.is_some());
    assert!(small.size() < plan.size() && small.size() <= 6, "{small:?}");
    let steps: Vec<&Step> = small.clients.iter().flatten().flatten().collect();
    assert!(steps.iter().any(|step| matches!(step, Step::Link(..))), "{steps:?}");
}
