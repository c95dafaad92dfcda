//! Trees of files that look like real source trees, the same for the same seed,
//! and the exact comparison of two trees.

use anyhow::{Context, Result, ensure};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// Numbers that look random (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Lines of words, which compress about as well as source code.
    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 12] =
            ["let ", "mut ", "position", "fn ", "(self", ") {\n", "    ", "return ", ";\n", "}\n", "// why ", "chunk"];
        let mut text = Vec::with_capacity(len + 8);
        while text.len() < len {
            text.extend_from_slice(WORDS[self.below(WORDS.len() as u64) as usize].as_bytes());
            if self.below(4) == 0 {
                text.extend_from_slice(self.below(100_000).to_string().as_bytes());
            }
        }
        text.truncate(len);
        text
    }

    /// Mostly small, some large: how source trees are.
    fn size(&mut self) -> usize {
        match self.below(200) {
            0 => self.below(3 << 20) as usize,
            1..=12 => self.below(200 << 10) as usize,
            13..=80 => self.below(24 << 10) as usize,
            81..=90 => 0,
            _ => self.below(4 << 10) as usize,
        }
    }
}

/// Names that break programs which take names for text.
pub fn odd_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        " leading and trailing ",
        "-rf",
        "new\nline",
        "tab\tand\\backslash",
        "ünï©ødé",
        "*?[x]",
        "...",
        "~",
        "a,b:c;d",
        "'\"`$(x)",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    names.push(OsString::from_vec(vec![0xff, 0xfe, 0x01, 0x80]));
    names.push(OsString::from_vec((1..=255).filter(|byte| *byte != b'/').take(250).collect()));
    names.push(OsString::from("n".repeat(255)));
    names
}

/// Makes `root` with about `files` files in it: sizes, modes and times as they
/// occur, symbolic and hard links, odd names.
pub fn make(root: &Path, files: usize, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut directories = vec![root.to_owned()];
    fs::create_dir(root).with_context(|| format!("create {root:?}"))?;
    let mut regular: Vec<PathBuf> = Vec::new();
    for name in odd_names() {
        let path = root.join(name);
        fs::write(&path, random.text(100))?;
    }
    for i in 0..files {
        if i % 13 == 0 {
            let parent = &directories[random.below(directories.len() as u64) as usize];
            // Deep enough for real paths, not for PATH_MAX.
            if parent.components().count() < root.components().count() + 8 {
                let path = parent.join(format!("dir{i}"));
                fs::create_dir(&path)?;
                directories.push(path);
            }
        }
        let parent = directories[random.below(directories.len() as u64) as usize].clone();
        let path = parent.join(format!("file{i}.{}", ["rs", "c", "md", "toml", "bin"][random.below(5) as usize]));
        match random.below(40) {
            0 if !regular.is_empty() => symlink(&regular[random.below(regular.len() as u64) as usize], &path)?,
            1 => symlink(format!("nowhere/{i}"), &path)?,
            2 if !regular.is_empty() => fs::hard_link(&regular[random.below(regular.len() as u64) as usize], &path)?,
            kind => {
                let size = random.size();
                let content = if kind % 4 == 0 { random.bytes(size) } else { random.text(size) };
                fs::write(&path, content)?;
                let mode = [0o644, 0o644, 0o644, 0o755, 0o600, 0o444, 0o751][random.below(7) as usize];
                fs::set_permissions(&path, Permissions::from_mode(mode))?;
                let seconds =
                    Duration::new(1_000_000_000 + random.below(700_000_000), random.below(1_000_000_000) as u32);
                let times = FileTimes::new().set_modified(UNIX_EPOCH + seconds).set_accessed(UNIX_EPOCH + seconds);
                // Times are the owner's to set, also on a file that cannot be written; read access suffices.
                File::open(&path)?.set_times(times)?;
                regular.push(path);
            }
        }
    }
    Ok(())
}

/// What two trees are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Names, kinds, modes, sizes, link counts of files, modification times of files, link targets, content.
    Everything,
    /// All but times and hard links, for copies that do not keep them.
    ContentAndModes,
}

/// Fails with the first differences (at most ten) between two trees.
pub fn compare(left: &Path, right: &Path, depth: Depth) -> Result<()> {
    let mut found = Vec::new();
    compare_into(left, right, Path::new(""), depth, &mut found)?;
    ensure!(found.is_empty(), "{left:?} and {right:?} differ:\n{}", found.join("\n"));
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {dir:?}"))? {
        names.push(entry.with_context(|| format!("list {dir:?}"))?.file_name());
    }
    names.sort();
    Ok(names)
}

fn compare_into(left: &Path, right: &Path, below: &Path, depth: Depth, found: &mut Vec<String>) -> Result<()> {
    let (a, b) = (entries(&left.join(below))?, entries(&right.join(below))?);
    for name in a.iter().filter(|name| !b.contains(name)) {
        found.push(format!("{:?} is only in the first", below.join(name)));
    }
    for name in b.iter().filter(|name| !a.contains(name)) {
        found.push(format!("{:?} is only in the second", below.join(name)));
    }
    for name in a.iter().filter(|name| b.contains(name)) {
        if found.len() >= 10 {
            return Ok(());
        }
        let path = below.join(name);
        let (one, other) = (left.join(&path), right.join(&path));
        let (m, n) = (fs::symlink_metadata(&one)?, fs::symlink_metadata(&other).with_context(|| format!("{other:?}"))?);
        let mut differ = |what: &str, a: String, b: String| {
            if a != b {
                found.push(format!("{path:?}: {what} {a} and {b}"));
            }
        };
        differ("mode", format!("{:o}", m.mode()), format!("{:o}", n.mode()));
        if m.is_file() {
            differ("size", m.len().to_string(), n.len().to_string());
            if depth == Depth::Everything {
                differ("links", m.nlink().to_string(), n.nlink().to_string());
                differ(
                    "mtime",
                    format!("{}.{:09}", m.mtime(), m.mtime_nsec()),
                    format!("{}.{:09}", n.mtime(), n.mtime_nsec()),
                );
            }
            let read = |path: &Path| fs::read(path).with_context(|| format!("read {path:?}"));
            let (content, also) = (read(&one)?, read(&other)?);
            if content != also {
                let at = content.iter().zip(&also).take_while(|(a, b)| a == b).count();
                let (len, other_len) = (content.len(), also.len());
                found.push(format!("{path:?}: content differs from byte {at} on, of {len} and {other_len}"));
            }
        } else if m.is_symlink() {
            differ("target", format!("{:?}", fs::read_link(&one)?), format!("{:?}", fs::read_link(&other)?));
        } else if m.is_dir() && n.is_dir() {
            compare_into(left, right, &path, depth, found)?;
        }
    }
    Ok(())
}

/// Whether a directory lists exactly these names, in any order.
pub fn lists(dir: &Path, names: &[&OsStr]) -> Result<()> {
    let mut expected: Vec<OsString> = names.iter().map(|name| OsString::from_vec(name.as_bytes().to_vec())).collect();
    expected.sort();
    let listed = entries(dir)?;
    ensure!(listed == expected, "{dir:?} lists {listed:?}, not {expected:?}");
    Ok(())
}
