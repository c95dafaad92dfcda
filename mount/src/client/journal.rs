//! What is not known to be applied, kept on this machine: a crash of this
//! process loses nothing that it has taken. Not synced to disk: power loss is what fsync is for.
//!
//! * One file per client in the journals' directory, held by a lock. A client
//!   that starts adopts the unlocked ones of its user and cluster.
//! * An entry says under which session and number it was sent last, before it is
//!   sent: so a successor learns from the server whether it was applied.
//! * Requests stand in the order in which they were entered; content that they
//!   quote stands there from its upload until they are answered.
//! * What cannot be written is not journaled, and says so; nothing waits for it.

mod file;

#[cfg(test)]
mod tests;

use super::JournalConfig;
use super::core::Journaled;
use super::core::content::quotes;
use super::status::JournalStatus;
use bytes::Bytes;
use file::{Content, JournalFile, Pending, Request};
use proto::chunk::ChunkName;
use proto::clock::Clock;
use proto::message::{Op, Open};
use proto::planted::{Bug, planted};
use proto::seal::{Key, hash_of};
use proto::{RequestNo, SessionId, Time};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files end in this; their names begin with a tag of the user and cluster.
const SUFFIX: &str = "journal";

/// Where what no longer applies is kept, in the journals' directory.
const CONFLICTS: &str = "conflicts";

/// An own file larger than this is emptied as soon as nothing is pending.
const EMPTY_ABOVE_BYTES: u64 = 1 << 20;

/// The journals of one client: its own, and those that it has adopted.
pub(super) struct Journal {
    dir: PathBuf,
    own_path: PathBuf,
    max_bytes: u64,
    key: Key,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    /// By [`Journaled::file`]; the own one is missing if it could not be made.
    files: BTreeMap<u32, JournalFile>,
    next_entry: u64,
    /// The session that the next record is sent under.
    session: Option<SessionId>,
    /// Why nothing new is journaled.
    broken: Option<String>,
}

/// What earlier clients have left.
#[derive(Default)]
pub(super) struct Adopted {
    /// Their sessions, oldest first; at most [`Open::MAX_PREDECESSORS`].
    pub sessions: Vec<SessionId>,
    /// In the order in which they were entered.
    pub entries: Vec<AdoptedEntry>,
}

pub(super) struct AdoptedEntry {
    pub journaled: Journaled,
    /// Under which session and number it was sent last, if ever.
    pub sent: Option<(SessionId, RequestNo)>,
    pub op: Op,
    pub payload: Bytes,
    pub time: Time,
    /// It must not be applied in any other session.
    pub only_in: Option<SessionId>,
}

impl Journal {
    /// Makes this client's journal and adopts what earlier ones left. Trouble with
    /// the directory or a file is told (`status`, a warning), and costs only what it concerns.
    pub(super) fn open(config: &JournalConfig, key: &Key, prefix: &str, clock: &Clock) -> (Journal, Adopted) {
        let key = key.clone();
        let tag = key.derive("kfs 2026-11 journal name v1", &hash_of(prefix.as_bytes()));
        let tag: String = tag.as_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let own_path = config.dir.join(format!("{tag}-{}.{SUFFIX}", SessionId::random()));
        let mut state = State { files: BTreeMap::new(), next_entry: 1, session: None, broken: None };
        let mut adopted = Adopted::default();
        let made = make_dir(&config.dir)
            .and_then(|()| state.adopt(&config.dir, &tag, &key, &mut adopted))
            .and_then(|()| JournalFile::create(&own_path, clock.now_ms().max(0) as u64));
        match made {
            Ok(file) => {
                state.files.insert(Journaled::OWN_FILE, file);
            }
            Err(error) => {
                let reason = format!("cannot keep a journal in {}: {error}", config.dir.display());
                tracing::warn!("{reason}; closing a file waits for the server instead");
                state.broken = Some(reason);
            }
        }
        let journal = Journal {
            dir: config.dir.clone(),
            own_path,
            max_bytes: config.max_bytes,
            key,
            clock: clock.clone(),
            state: Mutex::new(state),
        };
        (journal, adopted)
    }

    /// A session is about to be opened: from now on records are sent under it.
    pub(super) fn session(&self, session: SessionId) {
        let mut state = self.state();
        state.session = Some(session);
        for file in state.files.values_mut() {
            // Where this fails, the entries themselves still name it.
            if let Err(error) = file.note_session(&self.key, session) {
                tracing::warn!("cannot note the session in {}: {error}", file.path().display());
            }
        }
    }

    /// Keeps a change that is about to enter the stream. `None` if the journal is
    /// full or cannot be written: then only its answer makes it safe.
    pub(super) fn request(
        &self,
        op: &Op,
        payload: &Bytes,
        time: Time,
        only_in: Option<SessionId>,
    ) -> Option<Journaled> {
        let mut state = self.state();
        let entry = state.next_entry;
        let quotes = quotes(op);
        let request = Request { entry, op: op.clone(), time, only_in, payload_hash: hash_of(payload) };
        let room = (payload.len() + 64 * quotes.len() + 4096) as u64;
        self.write(&mut state, room, |file, key| file.add_request(key, &request, payload, quotes))?;
        state.next_entry += 1;
        Some(Journaled { file: Journaled::OWN_FILE, entry })
    }

    /// Keeps uploaded content until the request that quotes it is answered. If it does not
    /// fit (`false`), nothing but the log has it after a crash, as without a journal.
    pub(super) fn keep(&self, name: &ChunkName, sealed: &Bytes) -> bool {
        let mut state = self.state();
        let content = Content { name: *name };
        let room = sealed.len() as u64 + 4096;
        self.write(&mut state, room, |file, key| file.add_content(key, &content, sealed)).is_some()
    }

    /// Notes that a change is about to be sent.
    pub(super) fn sent(&self, journaled: Journaled, session: SessionId, number: RequestNo) {
        if planted(Bug::JournalForgetsSending) {
            return;
        }
        if let Some(file) = self.state().files.get_mut(&journaled.file)
            && let Err(error) = file.sent(&self.key, journaled.entry, session, number)
        {
            tracing::warn!("cannot note a sending in {}: {error}", file.path().display());
        }
    }

    /// The change was answered.
    pub(super) fn done(&self, journaled: Journaled) {
        let mut state = self.state();
        let session = state.session;
        let Some(file) = state.files.get_mut(&journaled.file) else { return };
        if let Err(error) = file.done(journaled.entry) {
            tracing::warn!("cannot note an answer in {}: {error}", file.path().display());
        }
        if !file.is_idle() {
            return;
        }
        if journaled.is_adopted() {
            if let Some(file) = state.files.remove(&journaled.file) {
                file.remove();
            }
        } else if file.bytes() > EMPTY_ABOVE_BYTES
            && let Err(error) = file.empty(&self.key, session)
        {
            tracing::warn!("cannot empty {}: {error}", file.path().display());
        }
    }

    /// A change that can no longer be applied: kept beside the journals, sealed, and told.
    pub(super) fn conflict(&self, journaled: Journaled, op: &Op, reason: &str) {
        let what = super::status::describe(op);
        match self.keep_conflict(journaled) {
            Ok(path) => {
                tracing::warn!(
                    "could not finish to {what}, and now it no longer applies ({reason}); kept in {}",
                    path.display()
                );
                self.done(journaled);
            }
            // It stays in its journal, for the next start to try again.
            Err(error) => {
                tracing::warn!("could not finish to {what} ({reason}), and it cannot be set aside: {error}");
            }
        }
    }

    /// Content that a journal holds.
    pub(super) fn content(&self, name: &ChunkName) -> Option<Bytes> {
        let mut state = self.state();
        state.files.values_mut().find_map(|file| file.content(&self.key, name))
    }

    pub(super) fn status(&self) -> JournalStatus {
        let state = self.state();
        JournalStatus {
            path: self.own_path.clone(),
            bytes: state.files.values().map(JournalFile::bytes).sum(),
            max_bytes: self.max_bytes,
            entries: state.files.values().map(JournalFile::entries).sum(),
            broken: state.broken.clone(),
        }
    }

    /// Lets go of all files; those without pending entries are removed.
    pub(super) fn close(&self) {
        for (_, file) in std::mem::take(&mut self.state().files) {
            if file.entries() == 0 {
                file.remove();
            }
        }
    }

    /// Writes to the own file, within its bound; rewrites it without what is over if that makes room.
    fn write(
        &self,
        state: &mut State,
        room: u64,
        write: impl FnOnce(&mut JournalFile, &Key) -> io::Result<()>,
    ) -> Option<()> {
        let session = state.session;
        let file = state.files.get_mut(&Journaled::OWN_FILE)?;
        let outcome = (|| {
            if file.bytes() + room > self.max_bytes {
                // Half of it must be over, else every write would copy the file.
                if file.live_bytes() + room > self.max_bytes / 2 {
                    return Ok(None);
                }
                file.rewrite(&self.key, session)?;
            }
            write(file, &self.key).map(Some)
        })();
        match outcome {
            Ok(written) => {
                state.broken = None;
                written
            }
            Err(error) => {
                let reason = format!("cannot write {}: {error}", file.path().display());
                if state.broken.as_ref() != Some(&reason) {
                    tracing::warn!("{reason}; closing a file waits for the server meanwhile");
                }
                state.broken = Some(reason);
                None
            }
        }
    }

    fn keep_conflict(&self, journaled: Journaled) -> io::Result<PathBuf> {
        let mut state = self.state();
        let file = state.files.get_mut(&journaled.file).ok_or(io::ErrorKind::NotFound)?;
        let dir = self.dir.join(CONFLICTS);
        make_dir(&dir)?;
        let path =
            dir.join(format!("{}-{}-{}.{SUFFIX}", self.clock.now_ms() / 1000, journaled.entry, SessionId::random()));
        file.copy_entry(&self.key, journaled.entry, &path)?;
        Ok(path)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panic could have left half done is on disk, where torn records are expected.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes over every unlocked journal of this tag, oldest first, while the
    /// sessions to be named fit one open; the rest is for the next start.
    fn adopt(&mut self, dir: &Path, tag: &str, key: &Key, adopted: &mut Adopted) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !name.starts_with(&format!("{tag}-")) {
                continue;
            }
            if path.extension().is_some_and(|suffix| suffix == file::REWRITTEN) {
                file::remove_leftover(&path);
            }
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                continue;
            }
            match JournalFile::adopt(&path, key) {
                Ok(Some(file)) => found.push(file),
                // Another client's, running.
                Ok(None) => {}
                Err(error) => tracing::warn!("cannot adopt the journal {}: {error}", path.display()),
            }
        }
        // Two made in one millisecond, or by a clock that was set back: by name, in whatever order the directory is.
        found.sort_by_key(|file| (file.made_ms(), file.path().to_owned()));
        let mut seen = HashSet::new();
        for (index, mut file) in found.into_iter().enumerate() {
            let requests = match file.requests(key) {
                Ok(requests) => requests,
                Err(error) => {
                    tracing::warn!("cannot read the journal {}: {error}", file.path().display());
                    continue;
                }
            };
            let sent_under = requests.iter().filter_map(|pending| pending.sent.map(|(session, _)| session));
            let mut new: Vec<SessionId> = sent_under.chain(file.session()).collect();
            new.retain(|session| !seen.contains(session));
            let mut once = HashSet::new();
            new.retain(|session| once.insert(*session));
            if seen.len() + new.len() > Open::MAX_PREDECESSORS {
                tracing::warn!("{} is left for the next start: too many journals at once", file.path().display());
                continue;
            }
            seen.extend(once);
            adopted.sessions.extend(new);
            if requests.is_empty() {
                file.remove();
                continue;
            }
            let number = Journaled::OWN_FILE + 1 + index as u32;
            for Pending { request, sent, payload } in requests {
                adopted.entries.push(AdoptedEntry {
                    journaled: Journaled { file: number, entry: request.entry },
                    sent,
                    op: request.op,
                    payload,
                    time: request.time,
                    only_in: request.only_in,
                });
            }
            self.files.insert(number, file);
        }
        Ok(())
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
