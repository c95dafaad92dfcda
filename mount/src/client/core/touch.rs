//! Which things an own change has touched: whatever was cached about them under
//! an earlier answer no longer counts.

use proto::Ino;
use proto::message::{Attr, Delete, Op, Outcome, Promise, Upload};

/// What a request that was applied with this outcome has changed; nothing for
/// requests that only read. More than was changed is harmless.
pub(crate) fn touched(op: &Op, outcome: &Outcome) -> Vec<Promise> {
    let mut out = Vec::new();
    let inode = |out: &mut Vec<Promise>, ino: Ino| {
        out.extend([Promise::Dir(ino), Promise::Inode(ino), Promise::Content(ino)]);
    };
    let attr = |out: &mut Vec<Promise>, attr: &Attr| {
        out.extend([Promise::Dir(attr.ino), Promise::Inode(attr.ino), Promise::Content(attr.ino)]);
        out.extend(attr.parent.map(Promise::Dir));
    };
    match op {
        Op::View(_) | Op::Lock(_) | Op::Session(_) => return out,
        Op::Upload(upload) => match upload {
            // Attributes go on as promised.
            Upload::Accessed { .. } => {}
            Upload::Create { dir, .. } => out.push(Promise::Dir(*dir)),
            Upload::Link { ino, dir, .. } => {
                out.push(Promise::Dir(*dir));
                inode(&mut out, *ino);
            }
            Upload::Rename { from_dir, to_dir, .. } => out.extend([Promise::Dir(*from_dir), Promise::Dir(*to_dir)]),
            Upload::Setattr { ino, .. }
            | Upload::Write { ino, .. }
            | Upload::SetXattr { ino, .. }
            | Upload::RemoveXattr { ino, .. }
            | Upload::SetAcl { ino, .. }
            | Upload::Fallocate { ino, .. }
            | Upload::Clone { to: ino, .. } => inode(&mut out, *ino),
        },
        Op::Delete(Delete::Unlink { dir, .. } | Delete::Rmdir { dir, .. }) => out.push(Promise::Dir(*dir)),
    }
    match outcome {
        Outcome::Entry(entry) => attr(&mut out, entry),
        Outcome::Cloned { to, .. } => attr(&mut out, to),
        Outcome::Removed(removed) => attr(&mut out, removed),
        Outcome::Renamed { moved, other } => {
            attr(&mut out, moved);
            other.iter().for_each(|other| attr(&mut out, other));
        }
        _ => {}
    }
    out.sort_unstable();
    out.dedup();
    out
}
