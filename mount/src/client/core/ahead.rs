//! Views that go before changes that wait.
//!
//! What waits for room on the way to the log has mostly been answered here, and may wait for long on a slow link; somebody
//! waits for a view. So it goes before all that waits, unless some of that concerns what it looks at. Its answer shows
//! none of what waits then, and its order says so: what has a higher one is put over the answer, as over that of a view which
//! was entered before.

use super::{Core, Entry};
use proto::Ino;
use proto::message::{Delete, Op, Upload, View};
use proto::planted::{Bug, planted};

impl<W> Core<W> {
    /// Lets an entry wait: a view before changes that it may go before, all else behind everything.
    pub(super) fn line_up(&mut self, mut entry: Entry<W>) {
        match self.place_ahead(&entry.op) {
            Some(place) => {
                entry.order = self.order_ahead();
                self.waiting.insert(place, entry);
            }
            None => self.waiting.push_back(entry),
        }
    }

    /// The order of what is sent before all changes that wait, behind all that was sent.
    pub(super) fn order_ahead(&self) -> u64 {
        let first = self.waiting.iter().find(|entry| !is_view(entry)).map_or(u64::MAX, |entry| entry.order);
        self.ordered.numbered().min(first.saturating_sub(1))
    }

    /// Where a view is put that goes before something, behind other views that do.
    fn place_ahead(&self, op: &Op) -> Option<usize> {
        let Op::View(view) = op else { return None };
        let place = self.waiting.iter().position(|entry| !is_view(entry))?;
        let ino = looked_at(view)?;
        let is_free = !self.waiting.iter().any(|entry| concerns(&entry.op, ino)) || planted(Bug::ViewOvertakesAll);
        is_free.then_some(place)
    }
}

pub(super) fn is_view<W>(entry: &Entry<W>) -> bool {
    matches!(entry.op, Op::View(_))
}

/// What a view looks at; of the inodes in a directory it tells as well, and what waits of those is put over that. `None`
/// goes before nothing: what is used depends on everything.
fn looked_at(view: &View) -> Option<Ino> {
    match view {
        View::Lookup { dir, .. } | View::Readdir { dir, .. } => Some(*dir),
        View::Getattr { ino } | View::Readlink { ino } | View::Xattrs { ino } | View::Extents { ino, .. } => Some(*ino),
        View::Statfs => None,
    }
}

/// Whether a request makes this inode, or changes it, its content or its entries.
fn concerns(op: &Op, ino: Ino) -> bool {
    match op {
        Op::Upload(upload) => match upload {
            Upload::Create { dir, new, .. } => *dir == ino || new.ino == Some(ino),
            Upload::Link { ino: linked, dir, .. } => *linked == ino || *dir == ino,
            Upload::Rename { from_dir, to_dir, .. } => *from_dir == ino || *to_dir == ino,
            Upload::Setattr { ino: changed, .. }
            | Upload::Write { ino: changed, .. }
            | Upload::SetXattr { ino: changed, .. }
            | Upload::RemoveXattr { ino: changed, .. }
            | Upload::SetAcl { ino: changed, .. }
            | Upload::Fallocate { ino: changed, .. }
            | Upload::Clone { to: changed, .. } => *changed == ino,
            // Of when something was read whoever looks need not hear.
            Upload::Accessed { .. } => false,
        },
        Op::Delete(Delete::Unlink { dir, .. } | Delete::Rmdir { dir, .. }) => *dir == ino,
        Op::View(_) | Op::Lock(_) | Op::Session(_) => false,
    }
}
