//! Whether what one operation costs stays the same as a tree grows.
//!
//! Two clusters of their own stand side by side, one with next to nothing in it and one that has been filled through
//! the log; each round does the same work in a fresh directory of the one, in one of the other, and in the other's
//! largest directory. The cluster that is not asked has nothing to do meanwhile.

use super::through::resident_mib;
use super::{WARM_UP, at_least, executable, median};
use anyhow::{Context, Result, bail};
use harness::Cluster;
use harness::broker::Broker;
use harness::tree::Random;
use mount::client::{CallError, Client};
use proto::message::{FileKind, NewInode, Op, Outcome, Owner, Upload, View};
use proto::{Ino, Name};
use std::path::Path;
use std::time::Instant;
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub struct GrowthArgs {
    /// Files of the large tree, in directories of 1,000.
    #[arg(long, default_value_t = 10_000_000, value_parser = at_least(1000))]
    tree: usize,
    /// Names in the large directory.
    #[arg(long, default_value_t = 1_000_000, value_parser = at_least(1000))]
    names: usize,
    /// Files that each round makes, reads and removes.
    #[arg(long, default_value_t = 2000, value_parser = at_least(100))]
    files: usize,
    /// Rounds; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = at_least(1))]
    rounds: usize,
}

const USER: &str = "bench";
const LARGE: &str = "large";
const IN_ONE: usize = 1000;
/// Requests under way while the tree is filled.
const AT_ONCE: usize = 256;
/// Of the large tree, how many inodes are asked for; everywhere in it.
const SAMPLES: usize = 20_000;

pub fn measure(args: &GrowthArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut empty = start()?;
    let mut full = start()?;
    let few = runtime.block_on(fill(&empty, SAMPLES, "few"))?;
    let many = runtime.block_on(async {
        let many = fill(&full, args.tree, "many").await?;
        large_directory(&full, args.names).await?;
        anyhow::Ok(many)
    })?;

    let rows: Vec<&str> = WORK.iter().chain(&ASKED).copied().collect();
    // The broker of the full one has been at work for long.
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        in_directory(&empty, "warm", args.files)?;
        runtime.block_on(asked(&empty, &few))?;
    }
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        let fresh = format!("fresh{number}");
        let mut in_empty = in_directory(&empty, &fresh, args.files)?;
        in_empty.extend(runtime.block_on(asked(&empty, &few))?);
        let mut in_full = in_directory(&full, &fresh, args.files)?;
        in_full.extend(runtime.block_on(asked(&full, &many))?);
        let in_large = in_directory(&full, LARGE, args.files)?;
        rounds.push((in_empty, in_full, in_large));
    }

    println!("{:<28} {:>10} {:>10} {:>8} {:>10} {:>8}   goal", "medians, ms", "empty", "full", "", "large", "");
    for (index, row) in rows.iter().enumerate() {
        let of = |pick: &dyn Fn(&Round) -> f64| median(rounds.iter().map(pick));
        let (small, large) = (of(&|round| round.0[index]), of(&|round| round.1[index]));
        print!("{row:<28} {small:>10.3} {large:>10.3} {:>7.2}x", of(&|round| round.1[index] / round.0[index]));
        if index < WORK.len() {
            print!(" {:>10.3} {:>7.2}x", of(&|round| round.2[index]), of(&|round| round.2[index] / round.0[index]));
        } else {
            print!(" {:>10} {:>8}", "", "");
        }
        println!("   <= 1.3x");
    }
    let (small, large) = (resident_mib(empty.server().pid())?, resident_mib(full.server().pid())?);
    println!("the server's memory, MiB: {small:.0} with next to nothing, {large:.0} full");
    Ok(())
}

type Round = (Vec<f64>, Vec<f64>, Vec<f64>);

fn start() -> Result<Cluster> {
    let cluster = Cluster::start_with(&executable()?, Broker::own_kafka)?;
    cluster.user_add(USER)?;
    Ok(cluster)
}

pub async fn create(client: &Client, dir: Ino, name: &str, kind: FileKind) -> Result<Ino> {
    let new = NewInode {
        kind,
        mode: 0o755,
        umask: 0,
        uid: Owner::Namespace,
        gid: Owner::Namespace,
        rdev: 0,
        target: None,
        ino: None,
        reserved: false,
    };
    let op = Op::Upload(Upload::Create { dir, name: Name::new(name.as_bytes())?, new });
    match client.call(op, Default::default(), &client.patience()).await?.outcome {
        Outcome::Entry(attr) => Ok(attr.ino),
        other => bail!("{name} was to be made: {other:?}"),
    }
}

/// Makes that many files below `top` in directories of 1,000, and says where some of them are, over all of it.
async fn fill(cluster: &Cluster, files: usize, top: &str) -> Result<Vec<(Ino, Name, Ino)>> {
    let started = Instant::now();
    let client = cluster.client(USER).await?;
    let top = create(&client, client.root(), top, FileKind::Dir).await?;
    let mut tasks = JoinSet::new();
    let every = (files / SAMPLES).max(1);
    for turn in 0..AT_ONCE {
        let client = client.clone();
        tasks.spawn(async move {
            let mut some = Vec::new();
            for number in (turn..files.div_ceil(IN_ONE)).step_by(AT_ONCE) {
                let dir = create(&client, top, &format!("dir{number}"), FileKind::Dir).await?;
                for file in number * IN_ONE..((number + 1) * IN_ONE).min(files) {
                    let name = format!("file{file}");
                    let ino = create(&client, dir, &name, FileKind::File).await?;
                    if file % every == 0 {
                        some.push((dir, Name::new(name.as_bytes())?, ino));
                    }
                }
            }
            anyhow::Ok(some)
        });
    }
    let mut some = Vec::new();
    while let Some(done) = tasks.join_next().await {
        some.extend(done??);
    }
    client.close().await;
    eprintln!("{files} files made in {:.0} s", started.elapsed().as_secs_f64());
    Ok(some)
}

async fn large_directory(cluster: &Cluster, names: usize) -> Result<()> {
    let started = Instant::now();
    let client = cluster.client(USER).await?;
    let dir = create(&client, client.root(), LARGE, FileKind::Dir).await?;
    let mut tasks = JoinSet::new();
    for turn in 0..AT_ONCE {
        let client = client.clone();
        tasks.spawn(async move {
            for name in (turn..names).step_by(AT_ONCE) {
                create(&client, dir, &format!("name{name}"), FileKind::File).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    client.close().await;
    eprintln!("{names} names made in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// What [`in_directory`] does with each file.
const WORK: [&str; 4] = ["create with 4 KiB", "lookup and attributes, cold", "read 4 KiB, cold", "unlink"];

/// Milliseconds a file of each of [`WORK`] by a mount.
fn in_directory(cluster: &Cluster, dir: &str, files: usize) -> Result<Vec<f64>> {
    let content = Random::new(files as u64).bytes(4096);
    let name = |number: usize| format!("{dir}/probe{number}");
    let each = |work: &dyn Fn(&Path) -> std::io::Result<()>| -> Result<f64> {
        // A new one knows nothing yet.
        let mount = cluster.mount(USER)?;
        if !mount.join(dir).try_exists()? {
            std::fs::create_dir(mount.join(dir))?;
        }
        let started = Instant::now();
        for number in 0..files {
            work(&mount.join(name(number))).with_context(|| name(number))?;
        }
        let took = started.elapsed().as_secs_f64() * 1000.0 / files as f64;
        mount.unmount()?;
        Ok(took)
    };
    Ok(vec![
        each(&|path| std::fs::write(path, &content))?,
        each(&|path| std::fs::symlink_metadata(path).map(drop))?,
        each(&|path| std::fs::read(path).map(drop))?,
        each(&|path| std::fs::remove_file(path))?,
    ])
}

/// What [`asked`] asks for, anywhere in the tree.
const ASKED: [&str; 3] = ["one getattr anywhere", "one lookup anywhere", "one getattr of 64 at once"];

/// Milliseconds of requests about inodes all over the tree, by the client library: nothing of it is cached but by the server.
async fn asked(cluster: &Cluster, all: &[(Ino, Name, Ino)]) -> Result<Vec<f64>> {
    const ONE_BY_ONE: usize = 3000;
    const SIDE_BY_SIDE: usize = 64;
    let client = cluster.client(USER).await?;
    let mut random = Random::new(all.len() as u64);
    let mut any = || all[random.below(all.len() as u64) as usize].clone();
    let view =
        async |client: &Client, view: View| client.call(Op::View(view), Default::default(), &client.patience()).await;
    let mut found = Vec::new();
    for lookup in [false, true] {
        let mut times = Vec::new();
        for _ in 0..ONE_BY_ONE {
            let (dir, name, ino) = any();
            let started = Instant::now();
            view(&client, if lookup { View::Lookup { dir, name } } else { View::Getattr { ino } }).await?;
            times.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        found.push(median(times.into_iter()));
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let (client, inodes) = (client.clone(), (0..500).map(|_| any().2).collect::<Vec<_>>());
        tasks.spawn(async move {
            for ino in inodes {
                client.call(Op::View(View::Getattr { ino }), Default::default(), &client.patience()).await?;
            }
            Ok::<_, CallError>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    found.push(started.elapsed().as_secs_f64() * 1000.0 / (SIDE_BY_SIDE * 500) as f64);
    client.close().await;
    Ok(found)
}
