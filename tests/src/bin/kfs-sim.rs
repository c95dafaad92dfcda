//! Runs seeds of the simulation: any number on all cores, or one alone with all
//! that happens in it. See `README.md`.

use clap::Parser;
use harness::sim::{Counts, Plan, minimise, run, run_with};
use proto::planted::Bug;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Runs whole kfs clusters from seeds, with faults, and checks every promise.
#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Threads; as many as there are cores by default.
    #[arg(long)]
    jobs: Option<usize>,
    /// One seed alone, with its plan and trace.
    #[arg(long, conflicts_with_all = ["from", "seeds"])]
    seed: Option<u64>,
    /// Make a failing seed smaller, with so many runs, before it is shown.
    #[arg(long, default_value_t = 0)]
    minimise: usize,
    /// Plants each bug in turn and tells how many seeds it takes to find it, at most `--seeds`;
    /// with a name, that one only.
    #[arg(long, value_name = "BUG", num_args = 0..=1, default_missing_value = "all")]
    plant: Option<String>,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
}

/// A seed that takes longer hangs: most take a fiftieth of a second. It cannot be ended from outside, so the
/// process is.
const SEED_TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(name) = &args.plant {
        return plant(&args, name);
    }
    match args.seed {
        Some(seed) => one(seed, args.minimise),
        None => many(&args),
    }
}

/// Shows everything of one seed.
fn one(seed: u64, tries: usize) -> ExitCode {
    let mut plan = Plan::draw(seed);
    if tries > 0 {
        plan = minimise(&plan, None, tries);
    }
    println!("{plan:#?}");
    let report = run(&plan, true);
    for line in &report.trace {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} operations, {} changes answered by mounts, {} records, {} ms of virtual time, fingerprint {:016x}",
        report.counts.operations,
        report.counts.local,
        report.counts.records,
        report.counts.virtual_ms,
        report.fingerprint.0
    );
    match report.violation {
        Some(violation) => {
            println!("VIOLATION: {violation}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn many(args: &Args) -> ExitCode {
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let begun = Instant::now();
    let (next, failed) = (AtomicU64::new(args.from), Mutex::new(Vec::new()));
    let total = Mutex::new(Counts::default());
    let end = args.from + args.seeds;
    let under_way = watched(jobs);
    std::thread::scope(|scope| {
        for mine in under_way.iter() {
            let (next, failed, total, begun) = (&next, &failed, &total, &begun);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = !args.keep_going && !failed.lock().expect("nobody panics here").is_empty();
                    if seed >= end || is_over {
                        return;
                    }
                    *mine.lock().expect("nobody panics here") = Some((seed, Instant::now()));
                    let report = run(&Plan::draw(seed), false);
                    *mine.lock().expect("nobody panics here") = None;
                    total.lock().expect("nobody panics here").add(&report.counts);
                    if let Some(violation) = report.violation {
                        println!("seed {seed}: VIOLATION: {violation}");
                        failed.lock().expect("nobody panics here").push(seed);
                    }
                    let done = seed + 1 - args.from;
                    if done.is_multiple_of(1000) {
                        println!("{done} seeds in {:.0} s", begun.elapsed().as_secs_f64());
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("nobody panics here");
    let total = total.into_inner().expect("nobody panics here");
    let seconds = begun.elapsed().as_secs_f64();
    let done = next.load(Ordering::Relaxed).min(end) - args.from;
    println!(
        "{done} seeds in {seconds:.1} s ({:.0} a second): {} operations, {} changes answered by mounts, {} records, \
         {} of virtual time; {} violations",
        done as f64 / seconds,
        total.operations,
        total.local,
        total.records,
        hours(total.virtual_ms),
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The seed that a thread is at, and since when.
type UnderWay = Mutex<Option<(u64, Instant)>>;

/// A place for each thread to say which seed it is at; a seed that hangs ends the process.
fn watched(jobs: usize) -> Arc<Vec<UnderWay>> {
    let under_way: Arc<Vec<UnderWay>> = Arc::new((0..jobs).map(|_| Mutex::default()).collect());
    let watched = under_way.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            for seed in watched.iter() {
                if let Some((seed, since)) = *seed.lock().expect("nobody panics here")
                    && since.elapsed() > SEED_TIMEOUT
                {
                    println!("seed {seed}: VIOLATION: it has not ended within {} s", SEED_TIMEOUT.as_secs());
                    std::process::exit(1);
                }
            }
        }
    });
    under_way
}

/// Looks for each planted bug, seed after seed.
fn plant(args: &Args, name: &str) -> ExitCode {
    let bugs: Vec<Bug> = Bug::ALL.iter().copied().filter(|bug| name == "all" || format!("{bug:?}") == name).collect();
    let (next, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let seeds = args.from..args.from + args.seeds;
                    let found = seeds.into_iter().find_map(|seed| {
                        let violation = run_with(&Plan::draw(seed), false, Some(*bug)).violation?;
                        Some((seed, violation))
                    });
                    match found {
                        Some((seed, violation)) => {
                            let violation: String = violation.chars().take(100).collect();
                            println!("| {bug:?} | {} | {} | {violation}", bug.text().trim(), seed - args.from + 1);
                        }
                        None => {
                            missed.fetch_add(1, Ordering::Relaxed);
                            println!("| {bug:?} | {} | NOT FOUND |", bug.text().trim());
                        }
                    }
                }
            });
        }
    });
    if missed.load(Ordering::Relaxed) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn hours(ms: u64) -> String {
    let time = Duration::from_millis(ms);
    format!("{:.1} h", time.as_secs_f64() / 3600.0)
}
