//! Which chunks that nothing refers to may still be quoted.
//!
//! Content travels apart from the log, so the machine never knows what has been
//! uploaded; it decides what may be quoted. A chunk of a session may be quoted by
//! that session while it lives, and by its successors until 24 h of log time
//! after its end, unless it has been referred to before and no longer is: what has once been
//! freed is dead for good. With an epoch ends what has been uploaded in it and is not yet
//! referred to: the log that held it may be lost. So a server can drop what has been freed, and what was
//! never referred to once its session's time is over, and nothing will ask for it.
//!
//! A chunk is only ever referred to in its session's own namespace. Were content to
//! be quoted across namespaces, a freed reference would no longer mean a dead chunk.

use super::Machine;
use super::rows::{Key, Turn, chunk_key, table};
use super::session::MAX_ENDED;
use crate::limits::limits;
use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::{LogTime, NamespaceId, SessionId};

/// Marks of freed chunks that one tick takes away.
const AT_ONCE: usize = 256;

fn freed_prefix(session: SessionId) -> Vec<u8> {
    Key::new(table::FREED).bytes(&session.0).done()
}

fn freed_key(name: &ChunkName) -> Vec<u8> {
    Key::new(table::FREED).bytes(&name.session.0).bytes(&name.to_bytes()).done()
}

impl Machine {
    /// Which of the sessions that `id` follows, itself included, it may quote from.
    pub(super) fn quotable(&self, id: SessionId, lineage: &[SessionId]) -> Vec<SessionId> {
        let now = self.live.now;
        let in_time = |ended: &SessionId| self.live.quotable.get(ended).is_some_and(|until| now < *until);
        lineage.iter().filter(|of| **of == id || in_time(of)).copied().collect()
    }

    /// A session has ended: its successors may quote its chunks for a while.
    pub(super) fn quotable_for_now(&mut self, id: SessionId) {
        let until = self.live.now.plus_ms(limits().quote_ms);
        self.live.quotable.insert(id, until);
        self.quotable_order.insert((until, id));
        if self.live.quotable.len() > MAX_ENDED
            && let Some((_, first)) = self.quotable_order.pop_first()
        {
            self.live.quotable.remove(&first);
            self.drop_reserve(first);
        }
    }

    /// Marks what this record has freed, as long as somebody might quote it again.
    pub(super) fn mark_freed(&mut self, turn: &mut Turn) {
        for name in std::mem::take(&mut turn.freed) {
            let live = &self.live;
            if name.topic == Topic::Chunks
                && (live.sessions.contains_key(&name.session) || live.quotable.contains_key(&name.session))
            {
                turn.put(&freed_key(&name), &());
            }
        }
    }

    /// Takes away the marks of a session whose time is over, some at a time.
    pub(super) fn expire_quotes(&mut self, turn: &mut Turn) {
        let Some((until, id)) = self.quotable_order.first().copied() else { return };
        if self.live.now < until {
            return;
        }
        let marks: Vec<(Vec<u8>, ())> = turn.rows(&freed_prefix(id), AT_ONCE);
        let last = marks.len() < AT_ONCE;
        for (key, ()) in marks {
            turn.delete(&key);
        }
        if last {
            self.quotable_order.remove(&(until, id));
            self.live.quotable.remove(&id);
            self.drop_reserve(id);
        }
    }

    /// Whether a session lives here.
    pub fn is_live(&self, session: SessionId) -> bool {
        self.live.sessions.contains_key(&session)
    }

    /// After a restore.
    pub(super) fn index_quotes(&mut self) {
        self.quotable_order = self.live.quotable.iter().map(|(id, until)| (*until, *id)).collect();
    }
}

impl Turn<'_> {
    /// Whether this request may quote a chunk.
    pub(super) fn may_quote(&mut self, name: &ChunkName) -> bool {
        if self.is_referenced(name) {
            return true;
        }
        // What came in a request was referred to by that very request. Of an epoch that is over
        // only what was referred to is known to be on a disk.
        let may = name.topic == Topic::Chunks
            && name.epoch == self.at.epoch
            && name.partition == self.at.partition
            && self.lineage.contains(&name.session)
            && self.get_bytes(&freed_key(name)).is_none();
        if may {
            self.quoted_before = self.quoted_before.max(name.offset.saturating_add(1));
        }
        may
    }
}

/// Whether a namespace refers to a chunk, history included.
pub fn is_referenced(kv: &mut dyn super::kv::Kv, namespace: NamespaceId, name: &ChunkName) -> bool {
    kv.get(&chunk_key(namespace, &name.to_bytes())).is_some()
}

/// When, in log time, a session that has been seen to be over may be quoted from no more.
pub fn quotes_over(seen: LogTime) -> LogTime {
    seen.plus_ms(limits().quote_ms)
}
