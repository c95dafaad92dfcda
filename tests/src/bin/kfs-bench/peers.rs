//! kfs beside sshfs, both on loopback or both as far away, or beside a FUSE filesystem that only keeps all in memory (the
//! ceiling of what goes through the kernel), on the same machine, in the same run: each round does all the work in a fresh
//! directory of the one and then of the other, and the median of the rounds' own ratios is what counts.
//!
//! * "Cold" is after unmounting, mounting again and dropping the kernel's caches, on both alike.
//! * What a program was told counts as done, as for people who wait for it; how long it takes until the server
//!   has it all stands in a row of its own.
//! * The server's side of sshfs is a directory of this machine, of kfs one broker, which answers when its own
//!   page cache has a record, as Kafka does by default.

mod memory;
mod sshfs;
mod work;

use super::{executable, median};
use anyhow::{Context, Result};
use harness::broker::Broker;
use harness::distance::Distance;
use harness::run::Scratch;
use harness::{Cluster, Mount, tree};
use memory::Memory;
use sshfs::Sshfs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use work::{Material, Row, WORK, Works};

/// What kfs is measured beside.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    Sshfs,
    Memory,
}

#[derive(clap::Args)]
pub struct PeersArgs {
    /// Beside what.
    #[arg(long, value_enum, default_value_t = Peer::Sshfs)]
    beside: Peer,
    /// Rounds, each kfs and the other; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = super::at_least(1))]
    rounds: usize,
    /// Small files of 4 KiB.
    #[arg(long, default_value_t = 1000, value_parser = super::at_least(100))]
    files: usize,
    /// Files of the source tree.
    #[arg(long, default_value_t = 1500, value_parser = super::at_least(10))]
    tree: usize,
    /// Size of the large file, in MiB.
    #[arg(long = "bulk", value_name = "MIB", default_value_t = 256, value_parser = super::at_least(1))]
    bulk_mib: usize,
    /// Round trip between a mount and what it stands on, in milliseconds; 0 is loopback as it is.
    #[arg(long = "distance", value_name = "MS", default_value_t = 0)]
    distance_ms: u64,
    /// How fast the way is in each direction, in Mbit/s; 0 has no limit. With a distance.
    #[arg(long = "rate", value_name = "MBIT", default_value_t = 0, requires = "distance_ms")]
    rate_mbit: u32,
}

impl PeersArgs {
    fn distance(&self) -> Option<Distance> {
        let rate = (self.rate_mbit > 0).then(|| f64::from(self.rate_mbit) * 1e6 / 8.0);
        (self.distance_ms > 0).then(|| Distance { round_trip: Duration::from_millis(self.distance_ms), rate })
    }
}

/// A remote directory that can be mounted anew.
pub trait Remote {
    fn dir(&self) -> &Path;
    /// Unmounts and mounts again.
    fn remount(&mut self) -> Result<()>;
}

struct Kfs {
    dir: PathBuf,
    mount: Option<Mount>,
    cluster: Cluster,
}

impl Kfs {
    fn start(distance: Option<Distance>) -> Result<Kfs> {
        let cluster = Cluster::start_with(&executable()?, |prefix| match distance {
            Some(distance) => Broker::far_kafka(distance),
            None => Broker::own_kafka(prefix),
        })?;
        cluster.user_add("bench")?;
        let mount = cluster.mount("bench")?;
        Ok(Kfs { dir: mount.path().to_owned(), mount: Some(mount), cluster })
    }
}

impl Remote for Kfs {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn remount(&mut self) -> Result<()> {
        // Ended before the next begins: its own end unmounts what is there.
        if let Some(mount) = self.mount.take() {
            mount.unmount()?;
        }
        self.mount = Some(self.cluster.mount_at("bench", "", &self.dir)?);
        Ok(())
    }
}

pub fn measure(args: &PeersArgs) -> Result<()> {
    let scratch = Scratch::new("material");
    eprintln!("making what is worked with");
    let material = Material::make(&scratch, args.files, args.tree, args.bulk_mib)?;
    let mut kfs = Kfs::start(args.distance())?;
    let mut peer: Box<dyn Remote> = match args.beside {
        Peer::Sshfs => Box::new(Sshfs::start(args.distance())?),
        Peer::Memory => Box::new(Memory::start()?),
    };

    // Whatever is compiled, cached or allocated once.
    round(&mut kfs, &material, 0)?;
    round(&mut *peer, &material, 0)?;
    let mut rounds = Vec::new();
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        rounds.push((round(&mut kfs, &material, number)?, round(&mut *peer, &material, number)?));
    }

    let (name, goal_of): (_, fn(&Row) -> _) = match (args.beside, args.distance()) {
        (Peer::Sshfs, None) => ("sshfs", |row| row.goal),
        (Peer::Sshfs, Some(_)) => ("sshfs", |row| row.far_goal),
        (Peer::Memory, _) => ("memory", |row| row.ceiling_goal),
    };
    println!("{:<34} {:>12} {:>12} {:>8}   goal", "medians", "kfs", name, "ratio");
    for (index, row) in WORK.iter().enumerate() {
        let kfs = median(rounds.iter().map(|(kfs, _)| kfs[index]));
        let peer = median(rounds.iter().map(|(_, peer)| peer[index]));
        let ratio = median(rounds.iter().map(|(kfs, peer)| row.better_by(kfs[index], peer[index])));
        println!("{:<34} {kfs:>12.2} {peer:>12.2} {ratio:>7.2}x   {}", row.what, goal_of(row));
    }
    Ok(())
}

fn round(remote: &mut dyn Remote, material: &Material, number: usize) -> Result<Works> {
    let name = format!("round{number}");
    std::fs::create_dir(remote.dir().join(&name))?;
    let works = work::all(remote, &name, material)?;
    std::fs::remove_dir_all(remote.dir().join(&name)).context("what a round leaves cannot be removed")?;
    Ok(works)
}

/// A tree like a source tree, as a directory, as an archive, and as a repository.
fn source_tree(dir: &Path, files: usize) -> Result<(PathBuf, PathBuf, PathBuf)> {
    let (plain, archive, repository) = (dir.join("tree"), dir.join("tree.tar"), dir.join("tree.git"));
    tree::make(&plain, files, 7)?;
    let script = r#"
        # tar cannot unpack symbolic links on sshfs (which sets their targets' times), and cp cannot read them there.
        find "$1" -type l -delete
        tar -cf "$2" -C "$1" .
        export GIT_AUTHOR_NAME=b GIT_AUTHOR_EMAIL=b@localhost GIT_COMMITTER_NAME=b GIT_COMMITTER_EMAIL=b@localhost
        git init -q "$3.work"
        cp -r "$1/." "$3.work"
        git -C "$3.work" add -A -f .
        git -C "$3.work" commit -qm 1
        git clone -q --bare "$3.work" "$3"
        git -C "$3" repack -adq
        rm -rf "$3.work"
    "#;
    harness::command::sh(dir, script, &[&plain, &archive, &repository])?;
    Ok((plain, archive, repository))
}
