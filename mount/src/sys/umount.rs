//! What `umount.fuse.kfs` does: drain, unmount, wait for the daemon's end.
//!
//! * The kernel's umount does not wait for a FUSE daemon, so a plain one would return while changes
//!   are still on their way. Here the daemon is asked to send them first, with the mount in place.
//! * Everything together is bounded by the mount's `umount_timeout=`. When that runs out the mount
//!   is unmounted all the same: what is left stays in the journal, and is named.
//! * `-l` and `-f` do not drain: the daemon then goes on in the background.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::control::{Connection, ControlError, Pending, connect_for};
use super::detach::{DetachError, Detached, How, detach};
use super::helper::{CommandLine, RemountError, UsageError, check_type, enter_namespace};
use super::mountinfo::{MountEntry, MountIdentity, read, resolve};
use super::options::UMOUNT_TIMEOUT_DEFAULT;
use super::users_of::{User, users_of};

/// Users named in an error, at most.
const USERS_NAMED_MAX: usize = 5;

/// What umount(8) asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UmountCall {
    /// The directory, or the source of the mount.
    pub what: PathBuf,
    /// `-f`: at once, aborting what waits.
    pub force: bool,
    /// `-l`: out of sight at once.
    pub lazy: bool,
    /// `-v`: say what is done.
    pub verbose: bool,
    /// `-r`: if it is busy, make it read-only instead.
    pub read_only_instead: bool,
    /// `-N`: the mount namespace to work in.
    pub namespace: Option<PathBuf>,
}

const USAGE: &str = "umount.fuse.kfs DIR|SOURCE [-flnrv] [-N NAMESPACE] [-t TYPE]";

/// Parses what follows the name `umount.fuse.kfs`.
pub fn parse(arguments: &[OsString]) -> Result<UmountCall, UsageError> {
    let line = CommandLine::parse(arguments, "flnrv", "Nt", USAGE)?;
    let [what] = line.words.as_slice() else {
        return Err(UsageError::Count(line.words.len(), "DIR", USAGE));
    };
    let mut call = UmountCall { what: what.into(), ..UmountCall::default() };
    for (flag, value) in line.values {
        match flag {
            b'N' => call.namespace = Some(value.into()),
            _ => check_type(&value)?,
        }
    }
    call.force = line.flags.contains(&b'f');
    call.lazy = line.flags.contains(&b'l');
    call.verbose = line.flags.contains(&b'v');
    call.read_only_instead = line.flags.contains(&b'r');
    Ok(call)
}

/// What there is to tell while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The daemon still has this to send.
    Draining(Pending),
    /// It could not send everything, or could not be asked, for this reason; unmounting anyway.
    NotDrained(String),
    /// It is unmounted.
    Unmounted,
    /// It is unmounted, but the daemon has not ended within the time; it goes on in the background.
    StillDraining { pid: u32 },
    /// It was busy and has been made read-only (`-r`).
    MadeReadOnly,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Draining(left) => write!(f, "sending {} changes, {} bytes", left.changes, left.bytes),
            Self::NotDrained(why) => {
                write!(f, "not everything was sent: {why}; the rest stays in the journal for the next mount")
            }
            Self::Unmounted => write!(f, "unmounted"),
            Self::StillDraining { pid } => {
                write!(f, "unmounted; pid {pid} goes on sending in the background: kfs status")
            }
            Self::MadeReadOnly => write!(f, "busy, so it was made read-only"),
        }
    }
}

/// Why it is still mounted; exit with [`super::helper::FAILED`].
#[derive(Debug, thiserror::Error)]
pub enum UmountError {
    #[error("{} is not mounted", .0.display())]
    NotMounted(PathBuf),
    #[error("{} is a {fstype} mount, not one of kfs; unmount it: umount -i {}", .dir.display(), .dir.display())]
    NotKfs { dir: PathBuf, fstype: String },
    #[error("{} is in use: {users}; end that, or detach it: umount -l {}", .dir.display(), .dir.display())]
    Busy { dir: PathBuf, users: String },
    #[error(transparent)]
    Detach(DetachError),
    #[error(transparent)]
    Remount(#[from] RemountError),
    #[error("cannot find out what is mounted at {}: {why}", .what.display())]
    Mounts { what: PathBuf, why: io::Error },
}

/// Unmounts. `tell` hears of every [`Step`].
pub fn umount(call: &UmountCall, mut tell: impl FnMut(&Step)) -> Result<(), UmountError> {
    if let Some(namespace) = &call.namespace {
        enter_namespace(namespace)?;
    }
    let entry = find(&call.what)?;
    let mounts = |why: io::Error| UmountError::Mounts { what: call.what.clone(), why };
    let identity = MountIdentity::of(&entry).map_err(mounts)?;
    if call.force || call.lazy {
        detach(&identity, if call.force { How::Force } else { How::Lazy }).map_err(UmountError::Detach)?;
        tell(&Step::Unmounted);
        return Ok(());
    }

    let begin = Instant::now();
    let (connection, timeout) = drain(&entry.mountpoint, &identity, &mut tell);
    match detach(&identity, How::Idle) {
        Ok(Detached::Done | Detached::WasGone) => {}
        Err(DetachError::Busy(dir)) if call.read_only_instead => {
            let options = super::options::MountOptions { read_only: Some(true), ..Default::default() };
            super::helper::remount(&dir, &options)?;
            tell(&Step::MadeReadOnly);
            return Ok(());
        }
        Err(DetachError::Busy(dir)) => return Err(UmountError::Busy { dir, users: named(&users_of(&identity)) }),
        Err(e) => return Err(UmountError::Detach(e)),
    }
    match connection {
        Some(connection) if !connection.wait_for_end(timeout.saturating_sub(begin.elapsed())) => {
            tell(&Step::StillDraining { pid: connection.hello().pid });
        }
        _ => tell(&Step::Unmounted),
    }
    Ok(())
}

fn find(what: &Path) -> Result<MountEntry, UmountError> {
    let failed = |why: io::Error| UmountError::Mounts { what: what.to_owned(), why };
    let mounts = read().map_err(failed)?;
    // umount(8) takes a source as well; the last one mounted from it is meant.
    let by_source = || mounts.iter().rev().find(|m| m.is_kfs() && m.source == what.as_os_str()).cloned();
    let found = match resolve(what, &mounts) {
        Ok((dir, None)) => by_source().ok_or(UmountError::NotMounted(dir)),
        Ok((_, Some(entry))) => Ok(entry),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            by_source().ok_or_else(|| UmountError::NotMounted(what.to_owned()))
        }
        Err(e) => Err(failed(e)),
    }?;
    match found.is_kfs() {
        true => Ok(found),
        false => Err(UmountError::NotKfs { dir: found.mountpoint, fstype: found.fstype }),
    }
}

/// Drains as well as it can be done, and returns the daemon, whose end is to be awaited, and for how
/// long all of it may take.
fn drain(dir: &Path, identity: &MountIdentity, tell: &mut impl FnMut(&Step)) -> (Option<Connection>, Duration) {
    let mut connection = match connect_for(dir) {
        Ok(connection) if connection.hello().mount == *identity => connection,
        // Its daemon is dead, or not one that we may ask.
        Ok(_) | Err(ControlError::NoDaemon(_)) => return (None, UMOUNT_TIMEOUT_DEFAULT),
        Err(e) => {
            tell(&Step::NotDrained(e.to_string()));
            return (None, UMOUNT_TIMEOUT_DEFAULT);
        }
    };
    let timeout = Duration::from_millis(connection.hello().umount_timeout_ms);
    match connection.drain(timeout, |pending| tell(&Step::Draining(pending))) {
        Ok(left) if left == Pending::default() => {}
        Ok(left) => tell(&Step::NotDrained(format!("{} changes, {} bytes are left", left.changes, left.bytes))),
        Err(e) => tell(&Step::NotDrained(e.to_string())),
    }
    (Some(connection), timeout)
}

/// Users for an error message.
pub fn named(users: &[User]) -> String {
    if users.is_empty() {
        return "by a process that cannot be seen from here".to_owned();
    }
    let mut names: Vec<String> = users.iter().take(USERS_NAMED_MAX).map(User::to_string).collect();
    if users.len() > USERS_NAMED_MAX {
        names.push(format!("and {} more", users.len() - USERS_NAMED_MAX));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn umount_8_s_command_lines_parse() {
        let words = |line: &str| line.split_ascii_whitespace().map(OsString::from).collect::<Vec<_>>();
        let call = parse(&words("/mnt -flv -n -r -t fuse.kfs")).expect("parses");
        assert!(call.force && call.lazy && call.verbose && call.read_only_instead);
        assert_eq!(call.what, Path::new("/mnt"));
        for bad in ["", "a b", "a -x", "a -t nfs", "a -N"] {
            parse(&words(bad)).expect_err(bad);
        }
    }
}
