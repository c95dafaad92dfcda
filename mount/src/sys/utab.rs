//! An entry for root's mounts in `/run/mount/utab`, so that umount(8) finds `umount.fuse.kfs`.
//!
//! * umount(8) reads the true type `fuse.kfs` only if utab has an entry for the directory (or if
//!   there is no utab at all). Otherwise it asks statfs(2), which says `fuse`, finds no helper of
//!   ours, and unmounts without a drain: tried with util-linux 2.38.
//! * Best effort: without the entry a plain umount still works, it only leaves the daemon draining
//!   in the background. Entries without a mount are passed over by umount(8).
//! * The file is replaced whole under libmount's own lock, which is waited for [`LOCK_TRIES`] times
//!   [`LOCK_PAUSE`] at most. Lines of others are kept byte for byte.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;

const DIR: &str = "/run/mount";
/// Tries to get libmount's lock.
pub const LOCK_TRIES: u32 = 20;
/// Pause between the tries.
pub const LOCK_PAUSE: Duration = Duration::from_millis(25);
/// A larger file is left alone, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Adds the entry for `source` mounted on `dir`.
pub(super) fn add(source: &OsStr, dir: &Path) -> io::Result<()> {
    change(|lines| {
        let key = key(source, dir);
        lines.retain(|line| !line.starts_with(&key));
        let mut line = key;
        line.extend_from_slice(b"ROOT=/ OPTS=_netdev,uhelper=fuse.kfs");
        lines.push(line);
        true
    })
}

/// Removes it again.
pub(super) fn remove(source: &OsStr, dir: &Path) -> io::Result<()> {
    if !Path::new(DIR).join("utab").exists() {
        return Ok(());
    }
    change(|lines| {
        let (key, before) = (key(source, dir), lines.len());
        lines.retain(|line| !line.starts_with(&key));
        lines.len() != before
    })
}

fn key(source: &OsStr, dir: &Path) -> Vec<u8> {
    let mut key = b"SRC=".to_vec();
    escape(source, &mut key);
    key.extend_from_slice(b" TARGET=");
    escape(dir.as_os_str(), &mut key);
    key.push(b' ');
    key
}

fn escape(text: &OsStr, out: &mut Vec<u8>) {
    for byte in text.as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => out.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
            other => out.push(*other),
        }
    }
}

fn change(edit: impl FnOnce(&mut Vec<Vec<u8>>) -> bool) -> io::Result<()> {
    match std::fs::create_dir(DIR) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let open = |name: &str| {
        File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(Path::new(DIR).join(name))
    };
    let lock = open("utab.lock")?;
    let mut tries = 1;
    while let Err(e) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if tries == LOCK_TRIES {
            return Err(e.into());
        }
        tries += 1;
        std::thread::sleep(LOCK_PAUSE);
    }
    let mut text = Vec::new();
    open("utab")?.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("utab is too large"));
    }
    let mut lines: Vec<Vec<u8>> =
        text.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    if !edit(&mut lines) {
        return Ok(());
    }
    let name = format!("utab.kfs-{}", std::process::id());
    let mut new = open(&name)?;
    new.set_len(0)?;
    for line in lines {
        new.write_all(&line)?;
        new.write_all(b"\n")?;
    }
    std::fs::rename(Path::new(DIR).join(&name), Path::new(DIR).join("utab"))
}
