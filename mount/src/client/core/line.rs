//! The line of what waits to be sent: for a session, for the window, and for the log to tell of what was sent before.
//!
//! Changes leave in the order in which they were entered. They have mostly been answered here, and may wait for long on a
//! slow link; somebody waits for a view. So that goes before all that waits, unless some of it concerns what it looks at. Its
//! answer shows none of what waits then, and its order says so: what has a higher one is put over the answer, as over that of a
//! view which was entered before.

use super::acks::MAX_AHEAD;
use super::flight::{Append, Flight, RESEND_FIRST_MS};
use super::{Action, CallError, Core, Entry, Phase, Waiter, is_upkeep};
use proto::Ino;
use proto::message::{Acked, Delete, Op, Request, SessionOp, Upload, View};
use proto::planted::{Bug, planted};

impl<W: Waiter> Core<W> {
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

    /// Numbers and sends what the window has room for.
    pub(super) fn pump(&mut self, now_ms: u64, out: &mut Vec<Action<W>>) {
        while matches!(self.phase, Phase::Live)
            && (self.ordinary < self.window || self.owes_word())
            && (self.flight.have_room() || self.waiting.front().is_some_and(is_view))
            && self.next.0 - self.acks.floor().0 <= MAX_AHEAD
        {
            if !self.wants_content().is_empty() {
                return out.push(Action::WantContent);
            }
            let Some(entry) = self.waiting.pop_front() else { return };
            // Nobody waits for this view any more: sending it would only delay others.
            let is_moot = matches!(entry.op, Op::View(_)) && entry.waiter.as_ref().is_some_and(W::is_gone);
            if is_moot {
                out.push(Action::Done { entry, result: Err(CallError::Interrupted) });
            } else if entry.only_in.is_some_and(|only| self.session() != Some(only))
                && !planted(Bug::WrittenOutlivesLock)
            {
                out.push(Action::Done { entry, result: Err(CallError::SessionLost) });
            } else {
                self.number(now_ms, entry, out);
            }
        }
    }

    /// Whether what waits first stands before something that the server waits for, and others with it: answers that fill the
    /// window may be held until that comes, so it does not wait for the window.
    fn owes_word(&self) -> bool {
        self.waiting.front().is_some_and(|entry| entry.order <= self.owed)
    }

    /// Sends what the core itself has to say, beyond the window.
    pub(super) fn upkeep(&mut self, now_ms: u64, op: SessionOp, out: &mut Vec<Action<W>>) {
        self.number(now_ms, Entry::own(Op::Session(op), now_ms), out);
    }

    /// The same behind all that has been entered.
    pub(super) fn behind(&mut self, now_ms: u64, op: SessionOp, out: &mut Vec<Action<W>>) -> u64 {
        self.entered += 1;
        self.owed = self.entered;
        self.waiting.push_back(Entry { order: self.entered, ..Entry::own(Op::Session(op), now_ms) });
        self.pump(now_ms, out);
        self.entered
    }

    /// Gives the next number to an entry and sends it.
    pub(super) fn number(&mut self, now_ms: u64, mut entry: Entry<W>, out: &mut Vec<Action<W>>) {
        let Some((session, seal)) = &mut self.session else {
            return self.waiting.push_front(entry);
        };
        let number = self.next;
        let acked: Acked = self.acks.tell(number);
        let request = Request { acked, time: entry.time, op: entry.op, local: entry.local };
        let sealed = seal.request(number, &request, &entry.payload);
        entry.op = request.op;
        let record = match sealed {
            Ok(record) => record,
            Err(error) => {
                return out
                    .push(Action::Done { entry, result: Err(CallError::Unsendable { reason: error.to_string() }) });
            }
        };
        self.next = number.next();
        self.flight_session = Some(*session);
        self.ordinary += usize::from(!is_upkeep(&entry.op));
        self.numbered_ms = now_ms;
        self.silent_since.get_or_insert(now_ms);
        self.wake_at(now_ms + RESEND_FIRST_MS);
        // A program that has been answered waits all the same if the journal does not have what it did.
        let waits = !entry.answered || entry.journaled.is_none();
        out.push(Action::Send { number, frame: record.clone(), journaled: entry.journaled, again: false, waits });
        let hash = proto::frame::record_hash(&record);
        self.ordered.number(&entry);
        let flight = Flight {
            entry,
            record,
            hash,
            first_sent_ms: now_ms,
            sent_ms: now_ms,
            sends: 1,
            append: Append::Queued,
            first_at: None,
            overtaken: false,
        };
        self.flight.insert(number, flight);
    }
}

fn is_view<W>(entry: &Entry<W>) -> bool {
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
