//! `kfs ls`, `stat` and `du`: views, printed for people or, with `--json`, for programs.

use super::remote::Remote;
use crate::connect::Access;
use proto::Time;
use proto::message::{Attr, FileKind, Owner};
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

#[derive(clap::Args)]
pub(super) struct LsArgs {
    #[command(flatten)]
    pub access: Access,
    /// One line for each entry with mode, links, owner, size and time.
    #[arg(short, long)]
    long: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[arg(default_value = "/")]
    path: OsString,
}

#[derive(clap::Args)]
pub(super) struct StatArgs {
    #[command(flatten)]
    pub access: Access,
    #[arg(long)]
    json: bool,
    #[arg(required = true)]
    paths: Vec<OsString>,
}

#[derive(clap::Args)]
pub(super) struct DuArgs {
    #[command(flatten)]
    pub access: Access,
    #[arg(long)]
    json: bool,
    #[arg(default_value = "/")]
    path: OsString,
}

pub(super) async fn ls(remote: &Remote, args: &LsArgs) -> anyhow::Result<()> {
    let attr = remote.resolve(&args.path).await?;
    let show = |name: &[u8], attr: &Attr| {
        if args.json {
            println!("{}", to_json(name, attr));
        } else if args.long {
            println!("{}", long_line(name, attr));
        } else {
            println!("{}", printable(name));
        }
    };
    if attr.kind != FileKind::Dir {
        show(args.path.as_bytes(), &attr);
        return Ok(());
    }
    // Sorted where that is cheap; a directory too large to hold is shown as it comes.
    const SORTED_ENTRIES: usize = 100_000;
    let mut held = Vec::new();
    let mut streaming = false;
    remote
        .each_entry(attr.ino, |entry| {
            if streaming {
                show(entry.name.as_bytes(), &entry.attr);
                return;
            }
            held.push(entry);
            if held.len() > SORTED_ENTRIES {
                streaming = true;
                held.drain(..).for_each(|entry| show(entry.name.as_bytes(), &entry.attr));
            }
        })
        .await?;
    held.sort_by(|a, b| a.name.cmp(&b.name));
    held.iter().for_each(|entry| show(entry.name.as_bytes(), &entry.attr));
    Ok(())
}

/// What the shell's VIEW shows.
pub(super) async fn print(remote: &Remote, path: &OsStr, long: bool) -> anyhow::Result<()> {
    let args = LsArgs { access: Access::default(), long, json: false, path: path.to_owned() };
    ls(remote, &args).await
}

pub(super) async fn stat(remote: &Remote, args: &StatArgs) -> anyhow::Result<()> {
    for path in &args.paths {
        let attr = remote.resolve(path).await?;
        if args.json {
            println!("{}", to_json(path.as_bytes(), &attr));
            continue;
        }
        println!("  File: {}", printable(path.as_bytes()));
        println!("  Kind: {}  Inode: {}  Links: {}", kind_name(attr.kind), attr.ino.0, attr.nlink);
        println!("  Size: {}  Stored: {}", attr.size, attr.allocated);
        println!("  Mode: {:04o}  Uid: {}  Gid: {}", attr.mode, owner(attr.uid), owner(attr.gid));
        println!("Access: {}", civil(attr.atime));
        println!("Modify: {}", civil(attr.mtime));
        println!("Change: {}", civil(attr.ctime));
        println!("Version: {}", attr.version);
    }
    Ok(())
}

pub(super) async fn du(remote: &Remote, args: &DuArgs) -> anyhow::Result<()> {
    let top = remote.resolve(&args.path).await?;
    let (mut bytes, mut files, mut dirs) = (0_u64, 0_u64, 0_u64);
    // Only directories still to be walked are held; hard links count once a name, as they are seen.
    let mut left = Vec::new();
    if top.kind == FileKind::Dir {
        dirs += 1;
        left.push(top.ino);
    } else {
        files += 1;
        bytes += top.allocated;
    }
    while let Some(dir) = left.pop() {
        remote
            .each_entry(dir, |entry| {
                if entry.attr.kind == FileKind::Dir {
                    dirs += 1;
                    left.push(entry.attr.ino);
                } else {
                    files += 1;
                    bytes += entry.attr.allocated;
                }
            })
            .await?;
    }
    if args.json {
        println!("{}", json!({ "bytes": bytes, "files": files, "directories": dirs }));
    } else {
        println!(
            "{} in {files} files and {dirs} directories: {}",
            indicatif::BinaryBytes(bytes),
            printable(args.path.as_bytes())
        );
    }
    Ok(())
}

/// A name as a terminal may safely show it.
pub(super) fn printable(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    }
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

fn owner(owner: Owner) -> String {
    match owner {
        Owner::Namespace => "owner".to_owned(),
        Owner::Number(n) => n.to_string(),
    }
}

fn long_line(name: &[u8], attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    format!(
        "{kind}{} {:>3} {:>6} {:>6} {:>12} {} {}",
        permissions(attr.mode),
        attr.nlink,
        owner(attr.uid),
        owner(attr.gid),
        attr.size,
        civil(attr.mtime),
        printable(name)
    )
}

fn permissions(mode: u32) -> String {
    let special = [(mode & 0o4000, 's'), (mode & 0o2000, 's'), (mode & 0o1000, 't')];
    let mut text = String::with_capacity(9);
    for (class, (set, letter)) in special.into_iter().enumerate() {
        let bits = mode >> (6 - 3 * class);
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, set != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// UTC, to the second, as in RFC 3339; seconds since 1970 where no calendar reaches.
fn civil(time: Time) -> String {
    match chrono::DateTime::from_timestamp(time.secs, time.nanos) {
        Some(date) => date.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        None => format!("@{}", time.secs),
    }
}

fn to_json(name: &[u8], attr: &Attr) -> serde_json::Value {
    let time = |t: Time| json!({ "secs": t.secs, "nanos": t.nanos });
    let number = |o: Owner| match o {
        Owner::Namespace => json!(null),
        Owner::Number(n) => json!(n),
    };
    json!({
        "name": String::from_utf8_lossy(name), "kind": kind_name(attr.kind), "ino": attr.ino.0, "mode": attr.mode,
        "nlink": attr.nlink, "uid": number(attr.uid), "gid": number(attr.gid), "size": attr.size,
        "allocated": attr.allocated, "atime": time(attr.atime), "mtime": time(attr.mtime), "ctime": time(attr.ctime),
        "rdev": attr.rdev, "version": attr.version.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_dates_before_and_after_1970() {
        assert_eq!(civil(Time { secs: 0, nanos: 0 }), "1970-01-01T00:00:00Z");
        assert_eq!(civil(Time { secs: -1, nanos: 0 }), "1969-12-31T23:59:59Z");
        assert_eq!(civil(Time { secs: 1_709_210_096, nanos: 5 }), "2024-02-29T12:34:56Z");
    }

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o4711), "rws--x--x");
        assert_eq!(permissions(0o1666), "rw-rw-rwT");
    }

    #[test]
    fn odd_names_cannot_speak_to_the_terminal() {
        assert_eq!(printable("grüße".as_bytes()), "grüße");
        assert_eq!(printable(b"a\x1b[31m"), "a\\x1b[31m");
        assert_eq!(printable(b"\xff"), "\\xff");
    }
}
