//! Whole clusters from seeds.

use harness::sim::{Plan, run};

#[test]
fn seeds() {
    let count: u64 = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let from: u64 = std::env::var("FROM").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let is_traced = std::env::var("TRACE").is_ok();
    for seed in from..from + count {
        let begun = std::time::Instant::now();
        let report = run(&Plan::draw(seed), is_traced);
        for line in &report.trace {
            println!("{line}");
        }
        println!(
            "seed {seed}: {:?} {} ops {} records {} ms virtual, {:?}",
            report.violation,
            report.operations,
            report.records,
            report.virtual_ms,
            begun.elapsed()
        );
    }
}
