//! `kfs bench DIR`: how fast a directory is at what people do with one, and, on a kfs
//! mount, how many records that costs. Works on any directory, for comparison.
//!
//! * It makes one directory of its own below DIR and takes it away again; nothing else
//!   is read or changed. What it writes is bounded by `--files` and `--size`.
//! * Content does not compress, so that nothing looks faster than it is.

use crate::sys::control::{self, Connection};
use anyhow::Context;
use proto::config::parse_size;
use serde_json::{Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Of each small file, in bytes.
const SMALL_BYTES: usize = 4096;
/// Of each write and read of the large file, in bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// Appends that are synced one by one.
const SYNCED: usize = 20;

#[derive(clap::Args)]
pub(super) struct BenchArgs {
    /// A JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How many small files, of 4 KiB each.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    files: u32,
    /// How large the large file is.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size)]
    size: u64,
    /// The directory to work in: a mount, or any other one to compare it with.
    dir: PathBuf,
}

/// One row of the table.
struct Row {
    what: &'static str,
    /// How long each single step took, in order of length.
    steps: Vec<Duration>,
    /// What was moved, where that is what counts.
    bytes: Option<u64>,
    took: Duration,
    /// Records that the mount has sent for it.
    records: Option<u64>,
}

/// The directory that is worked in; it goes with this.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("kfs: cannot remove {}: {error}; please remove it by hand", self.0.display());
        }
    }
}

struct Bench {
    place: Place,
    /// Where a mount tells its counters, if DIR is one.
    mount: Option<Connection>,
    rows: Vec<Row>,
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<()> {
    let place = args.dir.join(format!(".kfs-bench-{}", std::process::id()));
    fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let mut bench = Bench { place: Place(place), mount: control::connect_for(&args.dir).ok(), rows: Vec::new() };
    bench.small_files(args.files)?;
    bench.large_file(args.size)?;
    if args.json {
        let rows: Vec<Value> = bench.rows.iter().map(Row::json).collect();
        println!("{}", json!({ "dir": args.dir.display().to_string(), "rows": rows }));
    } else {
        println!("{:<28} {:>14} {:>10} {:>10} {:>10}", "", "rate", "median", "p99", "records");
        bench.rows.iter().for_each(|row| println!("{}", row.line()));
    }
    Ok(())
}

impl Bench {
    fn small_files(&mut self, count: u32) -> anyhow::Result<()> {
        let dir = self.place.0.join("small");
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let path = |number: u32| dir.join(format!("file-{number}"));
        let mut content = Noise(1);
        self.row("create, write 4 KiB, close", count, |number| fs::write(path(number), content.bytes(SMALL_BYTES)))?;
        self.row("stat", count, |number| fs::metadata(path(number)).map(drop))?;
        self.row("stat of an absent name", count, |number| match fs::metadata(path(number + count)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("somebody else works here")),
        })?;
        self.row("list with attributes", 1, |_| fs::read_dir(&dir)?.try_for_each(|entry| entry?.metadata().map(drop)))?;
        self.row("read 4 KiB", count, |number| fs::read(path(number)).map(drop))?;
        self.row("rename", count, |number| fs::rename(path(number), dir.join(format!("renamed-{number}"))))?;
        self.row("remove", count, |number| fs::remove_file(dir.join(format!("renamed-{number}"))))
    }

    fn large_file(&mut self, size: u64) -> anyhow::Result<()> {
        let path = self.place.0.join("large");
        let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut content = Noise(2);
        self.row("append 4 KiB, fsync", SYNCED as u32, |_| {
            file.write_all(&content.bytes(SMALL_BYTES))?;
            file.sync_data()
        })?;
        self.moved("sequential write and fsync", size, |moved| {
            let block = content.bytes(BLOCK_BYTES);
            while *moved < size {
                let len = (size - *moved).min(block.len() as u64);
                file.write_all(&block[..len as usize])?;
                *moved += len;
            }
            file.sync_data()
        })?;
        drop(file);
        self.moved("sequential read", size, |moved| {
            let mut file = OpenOptions::new().read(true).open(&path)?;
            // The kernel's pages; what the mount itself keeps stays.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            let mut block = vec![0; BLOCK_BYTES];
            loop {
                match file.read(&mut block)? {
                    0 => return Ok(()),
                    len => *moved += len as u64,
                }
            }
        })
    }

    /// Does something `count` times.
    fn row(
        &mut self,
        what: &'static str,
        count: u32,
        mut step: impl FnMut(u32) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let before = self.records();
        let begun = Instant::now();
        let mut steps = Vec::with_capacity(count as usize);
        for number in 0..count {
            let since = Instant::now();
            step(number).with_context(|| format!("cannot {what} in {}", self.place.0.display()))?;
            steps.push(since.elapsed());
        }
        let took = begun.elapsed();
        steps.sort_unstable();
        let records = self.records().zip(before).map(|(after, before)| after.saturating_sub(before));
        self.rows.push(Row { what, steps, bytes: None, took, records });
        Ok(())
    }

    /// Does something once, of which the bytes count that it has moved.
    fn moved(
        &mut self,
        what: &'static str,
        size: u64,
        work: impl FnOnce(&mut u64) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let (mut moved, mut work) = (0, Some(work));
        self.row(what, 1, |_| work.take().map_or(Ok(()), |work| work(&mut moved)))?;
        anyhow::ensure!(moved >= size, "{what}: {moved} of {size} bytes");
        if let Some(row) = self.rows.last_mut() {
            row.bytes = Some(moved);
        }
        Ok(())
    }

    /// What the mount has sent so far: records of requests, reads and chunks.
    fn records(&mut self) -> Option<u64> {
        let status = self.mount.as_mut()?.status().ok()?;
        let counters = &status["client"]["counters"];
        ["records_sent", "reads", "chunks_uploaded"].iter().map(|counter| counters[*counter].as_u64()).sum()
    }
}

impl Row {
    fn rate(&self) -> f64 {
        let done = self.bytes.map_or(self.steps.len() as f64, |bytes| bytes as f64 / 1e6);
        done / self.took.as_secs_f64().max(1e-9)
    }

    /// The time within which so many of a hundred steps were done.
    fn within(&self, percent: usize) -> Duration {
        let last = self.steps.len().saturating_sub(1);
        self.steps.get(last * percent / 100).copied().unwrap_or_default()
    }

    fn line(&self) -> String {
        let rate = format!("{:.0} {}", self.rate(), if self.bytes.is_some() { "MB/s" } else { "/s" });
        let ms = |percent| format!("{:.2} ms", self.within(percent).as_secs_f64() * 1000.0);
        let records = self.records.map_or("-".to_owned(), |records| records.to_string());
        format!("{:<28} {rate:>14} {:>10} {:>10} {records:>10}", self.what, ms(50), ms(99))
    }

    fn json(&self) -> Value {
        json!({ "what": self.what, "count": self.steps.len(), "bytes": self.bytes, "seconds": self.took.as_secs_f64(),
            "median_us": self.within(50).as_micros() as u64, "p99_us": self.within(99).as_micros() as u64,
            "records": self.records })
    }
}

/// Bytes that no compression makes smaller: xorshift64*.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            out.extend_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
