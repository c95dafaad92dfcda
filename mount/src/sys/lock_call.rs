//! By which system call a thread asks for a lock. The kernel tells a FUSE server (`lk_flags`), but
//! fuser drops that; while the caller waits, `/proc/<tid>/syscall` has the call and its arguments.
//!
//! Only root and those whom ptrace's rules allow may read it. A mount that cannot treats locks
//! as of unknown kind (`LockKind::Unknown`).

use proto::message::LockKind;
use std::fs;
use std::time::Duration;

/// How often a caller is looked at that is just going to sleep, and how long between, at first and then. It gets there,
/// since it waits for the answer, but on a busy machine only when it is given a turn; 2 s in all.
const LOOKS: u32 = 220;
const FIRST_LOOKS: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(1);
const BETWEEN_LATER: Duration = Duration::from_millis(10);

const F_OFD_GETLK: u64 = 36;
const F_OFD_SETLKW: u64 = 38;

/// Which kind of lock the thread asks for, as far as that can be told.
pub async fn kind(tid: u32) -> Option<LockKind> {
    if tid == 0 {
        return None;
    }
    for look in 0..LOOKS {
        let call = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
        if call.trim_end() != "running" {
            return parse(&call);
        }
        tokio::time::sleep(if look < FIRST_LOOKS { BETWEEN } else { BETWEEN_LATER }).await;
    }
    None
}

fn parse(call: &str) -> Option<LockKind> {
    let mut words = call.split_ascii_whitespace();
    let number: libc::c_long = words.next()?.parse().ok()?;
    let argument = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    if number == libc::SYS_flock {
        return Some(LockKind::Flock);
    }
    if number != libc::SYS_fcntl {
        return None;
    }
    match argument(words.nth(1)?)? {
        F_OFD_GETLK..=F_OFD_SETLKW => Some(LockKind::OpenFile),
        command if [libc::F_GETLK, libc::F_SETLK, libc::F_SETLKW].contains(&(command as i32)) => {
            Some(LockKind::Process)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: libc::c_long, command: u64) -> String {
        format!("{number} 0x3 {command:#x} 0x7ffd3c5f1a50 0x0 0x0 0x0 0x7ffd3c5f1a38 0x7f3a9b1c6a9a\n")
    }

    #[test]
    fn calls_are_told_apart() {
        assert_eq!(parse(&call(libc::SYS_flock, 2)), Some(LockKind::Flock));
        assert_eq!(parse(&call(libc::SYS_fcntl, libc::F_SETLKW as u64)), Some(LockKind::Process));
        assert_eq!(parse(&call(libc::SYS_fcntl, libc::F_GETLK as u64)), Some(LockKind::Process));
        assert_eq!(parse(&call(libc::SYS_fcntl, 0x26)), Some(LockKind::OpenFile));
        assert_eq!(parse(&call(libc::SYS_fcntl, libc::F_DUPFD as u64)), None);
        assert_eq!((parse(&call(libc::SYS_read, 6)), parse("running\n"), parse("-1 0x0 0x0\n")), (None, None, None));
    }
}
