//! What people do with a directory, each measured once.

use super::super::{median, through};
use super::Remote;
use anyhow::{Context, Result, ensure};
use harness::command::{self, SCRIPT_BOUND};
use harness::run::Scratch;
use harness::tree::Random;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Of each small file, in bytes.
const SMALL_BYTES: usize = 4096;
/// Who make files side by side.
const MAKERS: usize = 4;
/// Appends that are synced one by one, and names that are looked at one by one.
const SINGLE: usize = 200;

/// One row of the table.
pub struct Row {
    pub what: &'static str,
    pub goal: &'static str,
    /// At a distance.
    pub far_goal: &'static str,
    /// Beside the ceiling of FUSE.
    pub ceiling_goal: &'static str,
    /// A rate; else a time.
    more_is_better: bool,
}

impl Row {
    const fn rate(what: &'static str, goal: &'static str) -> Row {
        Row { what, goal, far_goal: "", ceiling_goal: "", more_is_better: true }
    }

    const fn time(what: &'static str, goal: &'static str) -> Row {
        Row { what, goal, far_goal: "", ceiling_goal: "", more_is_better: false }
    }

    const fn far(self, far_goal: &'static str) -> Row {
        Row { far_goal, ..self }
    }

    const fn ceiling(self, ceiling_goal: &'static str) -> Row {
        Row { ceiling_goal, ..self }
    }

    /// How many times as good `ours` is as `theirs`.
    pub fn better_by(&self, ours: f64, theirs: f64) -> f64 {
        if self.more_is_better { ours / theirs } else { theirs / ours }
    }
}

/// In the order in which [`all`] measures.
pub const WORK: [Row; 17] = [
    Row::rate("create 4 KiB files, files/s", ">= 5 x").ceiling(">= 0.5 x"),
    Row::rate("the same by four side by side, files/s", ">= 5 x"),
    Row::rate("untar, files/s", ">= 5 x").far(">= 50 x").ceiling(">= 0.5 x"),
    Row::rate("untar until it is synced, files/s", ""),
    Row::rate("cp -r inside, files/s", ">= 5 x").far(">= 50 x"),
    Row::rate("rm -rf, files/s", ">= 2 x").far(">= 50 x"),
    Row::rate("find, cold, entries/s", ">= 2 x"),
    Row::rate("ls -lR, cold, entries/s", ">= 2 x"),
    Row::rate("grep -r, cold, MB/s", ">= 2 x"),
    Row::rate("read 4 KiB files, cold, files/s", ">= 2 x"),
    Row::time("stat, cold, median us", ">= 2 x"),
    Row::rate("unlink, files/s", ">= 2 x"),
    Row::time("git clone, s", ">= 2 x").far(">= 50 x"),
    Row::time("git status, cold, s", ">= 2 x"),
    Row::time("append 4 KiB and fsync, median ms", ">= 1.4 x"),
    Row::rate("write in sequence and fsync, MB/s", ">= 1 x").far("80 % of the link"),
    Row::rate("read in sequence, cold, MB/s", ">= 1 x").far("80 % of the link"),
];

/// One figure for each of [`WORK`].
pub type Works = Vec<f64>;

/// What is copied in and compared with.
pub struct Material {
    files: usize,
    bulk_mib: usize,
    content: Vec<u8>,
    archive: PathBuf,
    repository: PathBuf,
    tree: Size,
}

impl Material {
    pub fn make(scratch: &Scratch, files: usize, tree: usize, bulk_mib: usize) -> Result<Material> {
        let (plain, archive, repository) = super::source_tree(scratch.path(), tree)?;
        let mut tree = Size::default();
        tree.add(&plain)?;
        Ok(Material { files, bulk_mib, content: Random::new(3).bytes(SMALL_BYTES), archive, repository, tree })
    }
}

/// How large a tree is.
#[derive(Default)]
struct Size {
    files: usize,
    entries: usize,
    megabytes: f64,
}

impl Size {
    fn add(&mut self, dir: &Path) -> Result<()> {
        self.entries += 1;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                self.add(&path)?;
                continue;
            }
            self.entries += 1;
            if metadata.is_file() {
                self.files += 1;
                self.megabytes += metadata.len() as f64 / 1e6;
            }
        }
        Ok(())
    }
}

/// Does all of it below `name`, which is empty; leaves it there.
pub fn all(remote: &mut dyn Remote, name: &str, material: &Material) -> Result<Works> {
    let dir = remote.dir().join(name);
    let (small, tree, copy, clone) = (dir.join("small"), dir.join("tree"), dir.join("copy"), dir.join("clone"));
    let (files, size) = (material.files, &material.tree);
    let file = |number: usize| small.join(format!("file{number}"));
    let mut works = Works::new();

    fs::create_dir(&small)?;
    let took = timed(|| (0..files).try_for_each(|number| Ok(fs::write(file(number), &material.content)?)))?;
    works.push(files as f64 / took);
    works.push(files as f64 / timed(|| side_by_side(&dir.join("beside"), files, &material.content))?);

    fs::create_dir(&tree)?;
    let untar = timed(|| program("tar", &["-xf".as_ref(), &material.archive, "-C".as_ref(), &tree]))?;
    let sync = timed(|| Ok(File::open(&tree)?.sync_all()?))?;
    works.push(size.files as f64 / untar);
    works.push(size.files as f64 / (untar + sync));
    works.push(size.files as f64 / timed(|| program("cp", &["-r".as_ref(), &tree, &copy]))?);
    works.push(size.files as f64 / timed(|| program("rm", &["-rf".as_ref(), &copy]))?);

    cold(remote)?;
    works.push(size.entries as f64 / timed(|| program("find", &[&tree]))?);
    cold(remote)?;
    works.push(size.entries as f64 / timed(|| program("ls", &["-lR".as_ref(), &tree]))?);
    cold(remote)?;
    // It exits with 1, since there is nothing like that.
    let searched = || program("sh", &["-c".as_ref(), "! grep -r qqzz_is_not_there_zzqq \"$0\"".as_ref(), &tree]);
    works.push(size.megabytes / timed(searched)?);

    cold(remote)?;
    let read = |number: usize| {
        let content = fs::read(file(number))?;
        ensure!(content == material.content, "{:?} is not what was written", file(number));
        Ok(())
    };
    works.push(files as f64 / timed(|| (0..files).try_for_each(read))?);
    cold(remote)?;
    fs::symlink_metadata(&small)?;
    // Not one behind the other, as a listing has them.
    let stat = |number: usize| timed(|| Ok(fs::symlink_metadata(file(number * 7919 % files)).map(|_| ())?));
    let times: Result<Vec<f64>> = (0..SINGLE.min(files)).map(stat).collect();
    works.push(median(times?.into_iter()) * 1e6);
    works.push(files as f64 / timed(|| (0..files).try_for_each(|number| Ok(fs::remove_file(file(number))?)))?);

    let git = |args: &[&Path]| {
        let safe = ["-c".as_ref(), "safe.directory=*".as_ref()];
        program("git", &[&safe[..], args].concat())
    };
    let cloned = || git(&["clone".as_ref(), "-q".as_ref(), "--no-hardlinks".as_ref(), &material.repository, &clone]);
    works.push(timed(cloned)?);
    cold(remote)?;
    works.push(timed(|| git(&["-C".as_ref(), &clone, "status".as_ref(), "--porcelain".as_ref()]))?);

    let mut appended = File::options().append(true).create(true).open(dir.join("appended"))?;
    let mut append = || {
        timed(|| {
            appended.write_all(&material.content)?;
            Ok(appended.sync_all()?)
        })
    };
    let times: Result<Vec<f64>> = (0..SINGLE).map(|_| append()).collect();
    works.push(median(times?.into_iter()) * 1e3);
    // What is open keeps a mount from being unmounted.
    drop(appended);

    let (bulk, megabytes) = (dir.join("bulk"), (material.bulk_mib << 20) as f64 / 1e6);
    works.push(megabytes / timed(|| through::write_file(&bulk, material.bulk_mib, 1))?);
    cold(remote)?;
    works.push(megabytes / timed(|| through::read_file(&bulk, material.bulk_mib, 1))?);
    ensure!(works.len() == WORK.len(), "a figure for each row");
    Ok(works)
}

/// How long it takes, in seconds.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn side_by_side(dir: &Path, files: usize, content: &[u8]) -> Result<()> {
    fs::create_dir(dir)?;
    std::thread::scope(|scope| {
        let make = |maker: usize| {
            (0..files / MAKERS).try_for_each(|number| fs::write(dir.join(format!("{maker}-{number}")), content))
        };
        let makers: Vec<_> = (0..MAKERS).map(|maker| scope.spawn(move || make(maker))).collect();
        makers.into_iter().try_for_each(|maker| maker.join().expect("making files does not panic"))
    })?;
    Ok(())
}

fn program(name: &str, args: &[&Path]) -> Result<()> {
    command::run(Command::new(name).args(args), SCRIPT_BOUND)?.done().with_context(|| name.to_owned())?;
    Ok(())
}

/// Nothing is known any more, neither to the mount nor to the kernel.
fn cold(remote: &mut dyn Remote) -> Result<()> {
    remote.remount()?;
    rustix::fs::sync();
    // Only root may.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    Ok(())
}
