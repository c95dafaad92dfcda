//! How fast kfs is, as ratios to what raw Kafka does on the same broker in the same run.
//!
//! Starts real Apache Kafka, a `kfs-server` and mounts of its own, measures raw
//! and kfs in turn, several rounds, and prints medians and their ratios beside
//! the goals. It judges nothing by its exit code: ratios move with the machine's load.
//! `kfs-bench peers` does the same beside other remote directories (`peers.rs`), `growth` a large tree beside an empty
//! one, `sessions` many sessions beside one.

mod growth;
mod peers;
mod raw;
mod sessions;
mod through;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use harness::broker::Broker;
use harness::{Cluster, Mount};
use mount::client::Client;
use proto::Ino;
use proto::message::{Op, View};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How fast kfs is beside what it stands on, and beside other remote directories.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    beside: Option<Beside>,
    #[command(flatten)]
    raw: RawArgs,
}

#[derive(Subcommand)]
enum Beside {
    /// Beside sshfs, on loopback: what people do with small files, trees, git and large files.
    Peers(peers::PeersArgs),
    /// A large tree beside an empty one.
    Growth(growth::GrowthArgs),
    /// Many sessions beside one.
    Sessions(sessions::SessionsArgs),
}

/// Beside raw Kafka on the same broker.
#[derive(clap::Args)]
struct RawArgs {
    /// Rounds, each raw and kfs; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = at_least(1))]
    rounds: usize,
    /// Files whose attributes are asked for, in each round.
    #[arg(long, default_value_t = 2000, value_parser = at_least(64))]
    files: usize,
    /// Size of the file written and read, in MiB.
    #[arg(long = "bulk", value_name = "MIB", default_value_t = 256, value_parser = at_least(1))]
    bulk_mib: usize,
    /// What passes while the server's memory is watched, in MiB; 0 is not measured, and the goal is 10240.
    #[arg(long = "through", value_name = "MIB", default_value_t = 0)]
    through_mib: usize,
}

/// Numbers from `least` on; with fewer there would be nothing to measure.
fn at_least(least: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |word| {
        let number = word.parse().map_err(|error| format!("{error}"))?;
        if number >= least { Ok(number) } else { Err(format!("at least {least}")) }
    }
}

fn main() -> ExitCode {
    // Called by the name of one of our programs, this is that program.
    if let Some(code) = harness::programs::dispatch() {
        return code;
    }
    let args = Args::parse();
    let done = match &args.beside {
        Some(Beside::Peers(peers)) => peers::measure(peers),
        Some(Beside::Growth(growth)) => growth::measure(growth),
        Some(Beside::Sessions(sessions)) => sessions::measure(sessions),
        None => measure(&args.raw),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kfs-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// This program, by whose path the programs that it measures are made.
fn executable() -> Result<String> {
    let path = std::env::current_exe()?;
    Ok(path.to_str().context("this program's path is not UTF-8")?.to_owned())
}

/// What passes before anything is measured.
const WARM_UP: Duration = Duration::from_secs(20);

/// In flight when the pipelined rates are measured.
const WINDOW: usize = 64;

fn measure(args: &RawArgs) -> Result<()> {
    let cluster = Cluster::start_with(&executable()?, Broker::own_kafka)?;
    cluster.user_add("bench")?;
    let raw = raw::Raw::start(&cluster.broker.bootstrap())?;

    {
        let mount = cluster.mount("bench")?;
        std::fs::create_dir(mount.join("many"))?;
        for i in 0..args.files {
            std::fs::write(mount.join(format!("many/file{i}")), b"x")?;
        }
        mount.unmount()?;
    }

    let mut one = Pair::new("one uncached getattr, ms", "<= 1.5 x");
    let mut library = Pair::new("the same by the client library, ms", "");
    let mut parallel = Pair::new("64 parallel uncached getattrs, 1/s", ">= 0.5 x");
    let mut library_parallel = Pair::new("the same by the client library, 1/s", "");
    let mut write = Pair::new("sequential write and fsync, MB/s", ">= 0.4 x");
    let mut read = Pair::new("cold sequential read, MB/s", ">= 0.4 x");
    // The broker is Java: what it does often is compiled while it runs, and that takes the
    // processors from whatever is measured meanwhile.
    eprintln!("warming up");
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        raw.pipelined(20 * args.files, WINDOW)?;
        raw.bulk(args.bulk_mib.min(64))?;
        by_the_library(&cluster, args.files)?;
    }
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        let raw_trip = raw.round_trip(args.files.min(2000))?;
        one.push(raw_trip, stats_one_by_one(&cluster, args.files)?);
        let raw_rate = raw.pipelined(20 * args.files, WINDOW)?;
        parallel.push(raw_rate, stats_in_parallel(&cluster, args.files)?);
        let (trip, rate) = by_the_library(&cluster, args.files)?;
        library.push(raw_trip, trip);
        library_parallel.push(raw_rate, rate);
        let raw_bulk = raw.bulk(args.bulk_mib)?;
        let (kfs_write, kfs_read) = bulk(&cluster, args.bulk_mib, round)?;
        write.push(raw_bulk, kfs_write);
        read.push(raw_bulk, kfs_read);
    }
    // Before the broker that its echo reads from.
    drop(raw);
    println!("{:<40} {:>10} {:>10} {:>8}   goal", "medians", "raw Kafka", "kfs", "ratio");
    for pair in [one, library, parallel, library_parallel, write, read] {
        pair.print();
    }
    if args.through_mib > 0 {
        let mut cluster = cluster;
        through::watch(&mut cluster, args.through_mib)?;
    }
    Ok(())
}

/// One figure, raw and kfs, of all rounds.
struct Pair {
    what: &'static str,
    goal: &'static str,
    rounds: Vec<(f64, f64)>,
}

impl Pair {
    fn new(what: &'static str, goal: &'static str) -> Pair {
        Pair { what, goal, rounds: Vec::new() }
    }

    fn push(&mut self, raw: f64, kfs: f64) {
        eprintln!("  {}: raw {raw:.2}, kfs {kfs:.2}", self.what);
        self.rounds.push((raw, kfs));
    }

    fn print(&self) {
        let raw = median(self.rounds.iter().map(|(raw, _)| *raw));
        let kfs = median(self.rounds.iter().map(|(_, kfs)| *kfs));
        // Of each round's own ratio: both halves of a round have had the same machine.
        let ratio = median(self.rounds.iter().map(|(raw, kfs)| kfs / raw));
        println!("{:<40} {raw:>10.2} {kfs:>10.2} {ratio:>7.2}x   {}", self.what, self.goal);
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median of stat(2) on files that a fresh mount has never heard of, in milliseconds.
fn stats_one_by_one(cluster: &Cluster, files: usize) -> Result<f64> {
    let mount = cluster.mount("bench")?;
    // The directory itself is known, so that each stat is about its file alone.
    std::fs::symlink_metadata(mount.join("many"))?;
    let mut times = Vec::with_capacity(files);
    for i in 0..files {
        let start = Instant::now();
        std::fs::symlink_metadata(mount.join(format!("many/file{i}")))?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    mount.unmount()?;
    Ok(median(times.into_iter()))
}

/// stat(2) a second on files that a fresh mount has never heard of, by 64 threads.
fn stats_in_parallel(cluster: &Cluster, files: usize) -> Result<f64> {
    let mount = cluster.mount("bench")?;
    std::fs::symlink_metadata(mount.join("many"))?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WINDOW)
            .map(|_| {
                scope.spawn(|| -> std::io::Result<()> {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= files {
                            return Ok(());
                        }
                        std::fs::symlink_metadata(mount.join(format!("many/file{i}")))?;
                    }
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    let rate = files as f64 / start.elapsed().as_secs_f64();
    mount.unmount()?;
    Ok(rate)
}

/// Getattr requests without a kernel in between: median milliseconds one by one,
/// and requests a second with 64 in flight.
fn by_the_library(cluster: &Cluster, files: usize) -> Result<(f64, f64)> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let client = cluster.client("bench").await?;
        let ino = client.root();
        let getattr = async |client: &Client, ino: Ino| {
            client.call(Op::View(View::Getattr { ino }), Default::default(), &client.patience()).await
        };
        let mut times = Vec::with_capacity(files);
        for _ in 0..files {
            let start = Instant::now();
            getattr(&client, ino).await?;
            times.push(start.elapsed().as_secs_f64() * 1000.0);
        }
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..WINDOW {
            let client = client.clone();
            tasks.spawn(async move {
                for _ in 0..10 * files / WINDOW {
                    client.call(Op::View(View::Getattr { ino }), Default::default(), &client.patience()).await?;
                }
                Ok::<_, mount::client::CallError>(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let rate = (10 * files / WINDOW * WINDOW) as f64 / start.elapsed().as_secs_f64();
        client.close().await;
        Ok((median(times.into_iter()), rate))
    })
}

/// MB/s of writing a new file of `mib` MiB with fsync, and of reading it in a fresh mount.
fn bulk(cluster: &Cluster, mib: usize, round: usize) -> Result<(f64, f64)> {
    let megabytes = (mib << 20) as f64 / 1e6;
    let name = format!("bulk{round}");
    let write = {
        let mount = cluster.mount("bench")?;
        let start = Instant::now();
        through::write_file(&mount.join(&name), mib, round as u64)?;
        let seconds = start.elapsed().as_secs_f64();
        mount.unmount()?;
        megabytes / seconds
    };
    let mount: Mount = cluster.mount("bench")?;
    ensure!(std::fs::metadata(mount.join(&name))?.size() == (mib as u64) << 20, "the file has another size");
    let start = Instant::now();
    through::read_file(&mount.join(&name), mib, round as u64)?;
    let read = megabytes / start.elapsed().as_secs_f64();
    std::fs::remove_file(mount.join(&name))?;
    mount.unmount()?;
    Ok((write, read))
}
