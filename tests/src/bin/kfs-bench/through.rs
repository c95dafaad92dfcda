//! Bulk content through a mount, and the server's memory while much of it passes.

use anyhow::{Context, Result, ensure};
use harness::Cluster;
use harness::tree::Random;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PIECE_BYTES: usize = 1 << 20;
/// Different pieces, which repeat; none of them compresses.
const PIECES: u64 = 16;

fn pieces(seed: u64) -> Vec<Vec<u8>> {
    (0..PIECES).map(|i| Random::new(seed * PIECES + i).bytes(PIECE_BYTES)).collect()
}

/// Writes `mib` MiB in pieces of 1 MiB, then fsync and close.
pub fn write_file(path: &Path, mib: usize, seed: u64) -> Result<()> {
    let pieces = pieces(seed);
    let mut file = File::create(path)?;
    for i in 0..mib {
        file.write_all(&pieces[i % pieces.len()]).with_context(|| format!("write MiB {i} of {path:?}"))?;
    }
    file.sync_all()?;
    Ok(())
}

/// Reads what [`write_file`] wrote, and compares it.
pub fn read_file(path: &Path, mib: usize, seed: u64) -> Result<()> {
    let pieces = pieces(seed);
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    for i in 0..mib {
        file.read_exact(&mut piece).with_context(|| format!("read MiB {i} of {path:?}"))?;
        ensure!(piece == pieces[i % pieces.len()], "MiB {i} of {path:?} is not what was written");
    }
    ensure!(file.read(&mut piece)? == 0, "{path:?} is too long");
    Ok(())
}

/// Resident bytes of a process, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("the process has no memory")?;
    let kib: f64 = line.split_whitespace().nth(1).context("VmRSS has a value")?.parse()?;
    Ok(kib / 1024.0)
}

/// Writes, reads and removes files of 256 MiB until `mib` have passed, and prints
/// the server's largest memory in each tenth of it.
pub fn watch(cluster: &mut Cluster, mib: usize) -> Result<()> {
    const FILE_MIB: usize = 256;
    let pid = cluster.server().pid();
    let mount = cluster.mount("bench")?;
    let files = mib.div_ceil(FILE_MIB).max(2);
    let stop = AtomicBool::new(false);
    let samples = std::thread::scope(|scope| -> Result<Vec<f64>> {
        let samples = scope.spawn(|| {
            let mut samples = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                samples.extend(resident_mib(pid));
                std::thread::sleep(Duration::from_millis(200));
            }
            samples
        });
        let passed = (0..files).try_for_each(|i| {
            let path = mount.join(format!("through{i}"));
            write_file(&path, FILE_MIB, i as u64)?;
            read_file(&path, FILE_MIB, i as u64)?;
            std::fs::remove_file(&path)?;
            eprintln!(
                "  {} of {} MiB; the server has {:.0} MiB",
                (i + 1) * FILE_MIB,
                files * FILE_MIB,
                resident_mib(pid)?
            );
            anyhow::Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let samples = samples.join().expect("sampling does not panic");
        passed?;
        Ok(samples)
    })?;
    let tenths = samples.chunks(samples.len().div_ceil(10).max(1));
    let largest: Vec<String> =
        tenths.map(|tenth| format!("{:.0}", tenth.iter().copied().fold(0.0, f64::max))).collect();
    println!(
        "the server's largest memory in each tenth of {} MiB that pass (flat is the goal), MiB: {}",
        files * FILE_MIB,
        largest.join(" ")
    );
    mount.unmount()
}
