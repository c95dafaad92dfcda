//! The command lines by which mount(8) and umount(8) call us, and the remount.
//!
//! * `mount.kfs SOURCE DIR [-sfnv] [-N NS] [-o OPTS] [-t TYPE]`, where `-f` means fake: check, but
//!   mount nothing. Exit codes are mount(8)'s: [`DONE`], [`USAGE`], [`FAILED`].
//! * The program looks at the name it was called by, or, installed behind a wrapper script, at
//!   `--as-helper NAME`: [`called_as`].

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::mountinfo::{MountEntry, read, resolve};
use super::options::{MountOptions, OptionError};

/// Exit code: done.
pub const DONE: u8 = 0;
/// Exit code: called in a wrong way, or not permitted.
pub const USAGE: u8 = 1;
/// Exit code: the mount or unmount failed.
pub const FAILED: u8 = 32;

/// Which helper we are called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// `mount.kfs` or `mount.fuse.kfs`.
    Mount,
    /// `umount.kfs` or `umount.fuse.kfs`.
    Umount,
}

/// Says whether `arguments` (the program's name first) call a helper, and returns what follows.
pub fn called_as(arguments: &[OsString]) -> Option<(Helper, &[OsString])> {
    let (name, rest) = arguments.split_first()?;
    if let Some(helper) = by_name(name) {
        return Some((helper, rest));
    }
    match rest {
        [flag, name, rest @ ..] if flag == "--as-helper" => Some((by_name(name)?, rest)),
        _ => None,
    }
}

fn by_name(program: &OsStr) -> Option<Helper> {
    match Path::new(program).file_name()?.to_str()? {
        "mount.kfs" | "mount.fuse.kfs" => Some(Helper::Mount),
        "umount.kfs" | "umount.fuse.kfs" => Some(Helper::Umount),
        _ => None,
    }
}

/// What mount(8) asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountCall {
    /// The first field of fstab, byte for byte.
    pub source: OsString,
    pub dir: PathBuf,
    pub options: MountOptions,
    /// `-f`: do everything but mount.
    pub fake: bool,
    /// `-v`: say what is done.
    pub verbose: bool,
    /// `-N`: the mount namespace to mount in, see [`enter_namespace`].
    pub namespace: Option<PathBuf>,
}

/// A command line that cannot be followed; exit with [`USAGE`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    #[error("unknown flag `{0}`; usage: {1}")]
    Flag(String, &'static str),
    #[error("flag `{0}` needs a value; usage: {1}")]
    Value(String, &'static str),
    #[error("expected {1} but got {0} arguments; usage: {2}")]
    Count(usize, &'static str, &'static str),
    #[error("type `{0}` is not ours; allowed are kfs and fuse.kfs")]
    Type(String),
    #[error(transparent)]
    Options(#[from] OptionError),
}

const MOUNT_USAGE: &str = "mount.kfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]";

/// Parses what follows the name `mount.kfs`.
pub fn parse_mount(arguments: &[OsString]) -> Result<MountCall, UsageError> {
    let line = CommandLine::parse(arguments, "sfnv", "Not", MOUNT_USAGE)?;
    let [source, dir] = line.words.as_slice() else {
        return Err(UsageError::Count(line.words.len(), "SOURCE and DIR", MOUNT_USAGE));
    };
    let mut call = MountCall { source: source.clone(), dir: dir.into(), ..MountCall::default() };
    let sloppy = line.flags.contains(&b's');
    for (flag, value) in &line.values {
        match flag {
            b'o' => call.options.add(value, sloppy)?,
            b'N' => call.namespace = Some(value.into()),
            _ => check_type(value)?,
        }
    }
    call.fake = line.flags.contains(&b'f');
    call.verbose = line.flags.contains(&b'v');
    Ok(call)
}

pub(super) fn check_type(value: &OsStr) -> Result<(), UsageError> {
    match value.to_str() {
        Some("kfs" | "fuse.kfs") => Ok(()),
        _ => Err(UsageError::Type(value.to_string_lossy().into_owned())),
    }
}

/// Flags, flags with a value, and words, in any order, as getopt(3) would see them.
pub(super) struct CommandLine {
    pub flags: Vec<u8>,
    pub values: Vec<(u8, OsString)>,
    pub words: Vec<OsString>,
}

impl CommandLine {
    pub fn parse(
        arguments: &[OsString],
        flags: &str,
        with_value: &str,
        usage: &'static str,
    ) -> Result<Self, UsageError> {
        let mut line = Self { flags: Vec::new(), values: Vec::new(), words: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let Some(mut letters) = argument.as_bytes().strip_prefix(b"-").filter(|letters| !letters.is_empty()) else {
                line.words.push(argument.clone());
                continue;
            };
            if letters == b"-" {
                line.words.extend(arguments.cloned());
                break;
            }
            while let Some((letter, rest)) = letters.split_first() {
                letters = rest;
                let name = || format!("-{}", char::from(*letter));
                if with_value.as_bytes().contains(letter) {
                    let value = match rest {
                        [] => arguments.next().cloned().ok_or_else(|| UsageError::Value(name(), usage))?,
                        _ => OsString::from_vec(rest.to_vec()),
                    };
                    line.values.push((*letter, value));
                    break;
                }
                if !flags.as_bytes().contains(letter) {
                    return Err(UsageError::Flag(name(), usage));
                }
                line.flags.push(*letter);
            }
        }
        Ok(line)
    }
}

/// Why a remount, or entering a namespace, failed; exit with [`FAILED`].
#[derive(Debug, thiserror::Error)]
pub enum RemountError {
    #[error("{} is not mounted; mount it without -o remount", .0.display())]
    NotMounted(PathBuf),
    #[error("{} is a {fstype} mount, not one of kfs", .dir.display())]
    NotKfs { dir: PathBuf, fstype: String },
    #[error("only root may remount {}", .0.display())]
    NotPermitted(PathBuf),
    #[error("{} cannot become read-only while a file is open for writing; close it first", .0.display())]
    Busy(PathBuf),
    #[error("cannot remount {}: {why}", .dir.display())]
    Other { dir: PathBuf, why: io::Error },
    #[error("cannot enter the mount namespace {}: {why}", .namespace.display())]
    Namespace { namespace: PathBuf, why: io::Error },
}

/// Changes `ro`/`rw` (and `exec`, `suid`, `dev`, `noatime` where given) of the mount on `dir`; what
/// the options do not mention stays. Options of the daemon (`timeout=` and such) do not change.
pub fn remount(dir: &Path, options: &MountOptions) -> Result<(), RemountError> {
    let other = |why: io::Error| RemountError::Other { dir: dir.to_owned(), why };
    let mounts = read().map_err(other)?;
    let (path, entry) = resolve(dir, &mounts).map_err(other)?;
    let entry = entry.ok_or_else(|| RemountError::NotMounted(path.clone()))?;
    if !entry.is_kfs() {
        return Err(RemountError::NotKfs { dir: path, fstype: entry.fstype });
    }
    let flags = flags_after(&entry, options);
    use rustix::io::Errno;
    rustix::mount::mount_remount(&path, flags, c"").map_err(|e| match e {
        Errno::PERM | Errno::ACCESS => RemountError::NotPermitted(path),
        Errno::BUSY => RemountError::Busy(path),
        why => RemountError::Other { dir: path, why: why.into() },
    })
}

fn flags_after(entry: &MountEntry, options: &MountOptions) -> MountFlags {
    let has = |name: &str| entry.options.split(',').any(|option| option == name);
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only.unwrap_or_else(|| has("ro")));
    flags.set(MountFlags::NOEXEC, options.exec.map_or_else(|| has("noexec"), |on| !on));
    flags.set(MountFlags::NOSUID, options.suid.map_or_else(|| has("nosuid"), |on| !on));
    flags.set(MountFlags::NODEV, options.dev.map_or_else(|| has("nodev"), |on| !on));
    flags.set(MountFlags::NOATIME, options.noatime || has("noatime"));
    flags.set(MountFlags::RELATIME, has("relatime"));
    flags
}

/// Moves this process into the mount namespace `namespace`: a file such as `/proc/PID/ns/mnt`, or a
/// pid. Call it before any thread exists.
pub fn enter_namespace(namespace: &Path) -> Result<(), RemountError> {
    let failed = |why: io::Error| RemountError::Namespace { namespace: namespace.to_owned(), why };
    let is_pid = !namespace.as_os_str().is_empty() && namespace.as_os_str().as_bytes().iter().all(u8::is_ascii_digit);
    let file = if is_pid { Path::new("/proc").join(namespace).join("ns/mnt") } else { namespace.to_owned() };
    let file = std::fs::File::open(file).map_err(failed)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(file.as_fd(), kind).map_err(|e| failed(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_ascii_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn names_choose_the_helper() {
        let of = |line: &str| called_as(&words(line)).map(|(helper, rest)| (helper, rest.len()));
        assert_eq!(of("/sbin/mount.kfs s d"), Some((Helper::Mount, 2)));
        assert_eq!(of("mount.fuse.kfs"), Some((Helper::Mount, 0)));
        assert_eq!(of("/sbin/umount.fuse.kfs d"), Some((Helper::Umount, 1)));
        assert_eq!(of("kfs-mount --as-helper umount.fuse.kfs d -l"), Some((Helper::Umount, 2)));
        assert_eq!(of("kfs-mount --as-helper other"), None);
        assert_eq!(of("kfs-mount s d"), None);
    }

    #[test]
    fn mount_8_s_command_lines_parse() {
        // What util-linux passes, flags before or after the words.
        let call = parse_mount(&words("ann@h:1/p /mnt -sv -n -o rw,noexec,nosuid -o ro -t fuse.kfs -N /proc/7/ns/mnt"))
            .expect("parses");
        assert_eq!((call.source.as_os_str(), call.dir.as_path()), (OsStr::new("ann@h:1/p"), Path::new("/mnt")));
        assert_eq!((call.options.read_only, call.options.exec), (Some(true), Some(false)));
        assert_eq!((call.fake, call.verbose), (false, true));
        assert_eq!(call.namespace.as_deref(), Some(Path::new("/proc/7/ns/mnt")));
        let call = parse_mount(&words("-fvoro s -- -d")).expect("parses");
        assert_eq!((call.fake, call.options.read_only, call.dir.as_path()), (true, Some(true), Path::new("-d")));
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for (line, says) in [
            ("s", "SOURCE and DIR"),
            ("s d e", "SOURCE and DIR"),
            ("s d -x", "-x"),
            ("s d -o", "needs a value"),
            ("s d -t nfs", "nfs"),
            ("s d -o bogus", "bogus"),
        ] {
            let message = parse_mount(&words(line)).expect_err(line).to_string();
            assert!(message.contains(says), "{line}: {message}");
        }
        let call = parse_mount(&words("s d -s -o bogus,ro")).expect("sloppy");
        assert_eq!((call.options.skipped.len(), call.options.read_only), (1, Some(true)));
    }
}
