//! The differences in what an operation comes to that are allowed, each with its reason. They and those that the
//! generator keeps away from stand in `mount/README.md`.

use super::op::Op;
use super::world::{Errno, Outcome};

/// Whether an operation may come to this on the mount where it comes to that on a local disk.
type Rule = fn(op: &Op, local: &Outcome, mount: &Outcome) -> bool;

const ALLOWED: [Rule; 3] = [
    // setxattr(2) leaves open what both flags at once mean. ext4 looks at the one, then at the other.
    |op, local, mount| matches!(op, Op::Setxattr { flags: 3, .. }) && local.is_err() && mount.is_err(),
    // ext4 has read a directory up to a hash so large that no byte can follow.
    |op, local, mount| {
        let read = matches!(op, Op::Read { at: None, .. });
        read && *local == Err(Errno(libc::EINVAL)) && *mount == Err(Errno(libc::EISDIR))
    },
    // FUSE could pass O_TMPFILE on, but fuser does not; programs then make a file with a name.
    |op, local, mount| {
        let asked = matches!(op, Op::Open { flags, .. } if flags & libc::O_TMPFILE == libc::O_TMPFILE);
        asked && local.is_ok() && *mount == Err(Errno(libc::EOPNOTSUPP))
    },
];

pub fn allowed(op: &Op, local: &Outcome, mount: &Outcome) -> bool {
    ALLOWED.iter().any(|rule| rule(op, local, mount))
}
