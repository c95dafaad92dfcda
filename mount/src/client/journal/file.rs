//! One journal file: `magic 8 | made 8 | id 16`, then records:
//! `sealed length 4 | raw length 4 | state 1 | sent 64 | sealed | raw`,
//! numbers little-endian.
//!
//! * `sealed` says what the record is and binds `raw` (a payload, a chunk) by hash.
//! * `state` and `sent` are overwritten in place, so that noting a sending or an
//!   answer needs no room and cannot fail for lack of it.
//! * A record that is cut off, or does not open, ends the file: what follows was
//!   never told to be safe.

use crate::client::core::content::quotes;
use bytes::Bytes;
use proto::chunk::{ChunkName, SEALED_MAX_BYTES};
use proto::log::MAX_RECORD_BYTES;
use proto::message::Op;
use proto::seal::{BLOB_OVERHEAD_BYTES, Key, hash_of, open_blob, open_blob_of, random, seal_blob, seal_blob_of};
use proto::{RequestNo, SessionId, Time};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

const MAGIC: [u8; 8] = *b"kfs-jrn\x01";
const HEADER_BYTES: u64 = 8 + 8 + 16;

const SENT_PLAIN_BYTES: usize = 16 + 8;
const SENT_BYTES: usize = SENT_PLAIN_BYTES + BLOB_OVERHEAD_BYTES;
const PREFIX_BYTES: usize = 4 + 4 + 1 + SENT_BYTES;
const STATE_AT: u64 = 8;
const SENT_AT: u64 = 9;

/// States of a record.
const PENDING: u8 = 0;
const OVER: u8 = 1;

/// Larger lengths are damage: nothing is allocated for them.
const MAX_SEALED_BYTES: usize = MAX_RECORD_BYTES;
const MAX_RAW_BYTES: usize = if SEALED_MAX_BYTES > MAX_RECORD_BYTES { SEALED_MAX_BYTES } else { MAX_RECORD_BYTES };

const RECORD_PURPOSE: &str = "kfs journal record v1";
const SENT_PURPOSE: &str = "kfs journal sending v1";

/// What a file is written anew as, before it takes the old one's place.
pub(super) const REWRITTEN: &str = "rewritten";

/// Content that nobody has quoted for this long is not waited for.
const QUOTED_WITHIN: Duration = Duration::from_secs(120);

/// What a record is.
#[derive(Serialize, Deserialize)]
enum Entry {
    Session(SessionId),
    Request(Request),
    Content(Content),
}

#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub entry: u64,
    pub op: Op,
    pub time: Time,
    /// The only session in which it may be applied.
    pub only_in: Option<SessionId>,
    pub payload_hash: [u8; 32],
}

/// A request that is not known to be applied.
pub(super) struct Pending {
    pub request: Request,
    /// Under which session and number it was sent last, if ever.
    pub sent: Option<(SessionId, RequestNo)>,
    pub payload: Bytes,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Content {
    pub name: ChunkName,
}

/// An open journal file, locked as long as it lives.
pub(super) struct JournalFile {
    file: File,
    path: PathBuf,
    id: [u8; 16],
    made_ms: u64,
    /// Where the next record goes.
    end: u64,
    requests: BTreeMap<u64, KeptRequest>,
    contents: BTreeMap<ChunkName, KeptContent>,
    /// The last session noted.
    session: Option<SessionId>,
}

#[derive(Clone, Copy)]
struct Place {
    at: u64,
    bytes: u64,
}

struct KeptRequest {
    place: Place,
    quotes: BTreeSet<ChunkName>,
}

struct KeptContent {
    place: Place,
    quoted_by: u32,
    since: Instant,
}

impl JournalFile {
    /// Makes and locks a new file.
    pub(super) fn create(path: &Path, made_ms: u64) -> io::Result<JournalFile> {
        JournalFile::create_as(path, random(), made_ms)
    }

    fn create_as(path: &Path, id: [u8; 16], made_ms: u64) -> io::Result<JournalFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&made_ms.to_le_bytes());
        header.extend_from_slice(&id);
        file.write_all_at(&header, 0)?;
        Ok(JournalFile {
            file,
            path: path.to_owned(),
            id,
            made_ms,
            end: HEADER_BYTES,
            requests: BTreeMap::new(),
            contents: BTreeMap::new(),
            session: None,
        })
    }

    /// Takes over a file that nobody holds; `None` if someone does, or has just removed it.
    pub(super) fn adopt(path: &Path, key: &Key) -> io::Result<Option<JournalFile>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Its holder may have put another file in its place before letting go.
        if !fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|here| here.ino() == there.ino())) {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES as usize];
        let length = file.metadata()?.len();
        if length < HEADER_BYTES {
            // Its maker died before the first record.
            fs::remove_file(path)?;
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0)?;
        if header[..8] != MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a journal of this version of kfs"));
        }
        let mut adopted = JournalFile {
            file,
            path: path.to_owned(),
            id: header[16..32].try_into().expect("16 bytes"),
            made_ms: u64::from_le_bytes(header[8..16].try_into().expect("8 bytes")),
            end: HEADER_BYTES,
            requests: BTreeMap::new(),
            contents: BTreeMap::new(),
            session: None,
        };
        adopted.scan(key, length)?;
        Ok(Some(adopted))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn made_ms(&self) -> u64 {
        self.made_ms
    }

    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    pub(super) fn entries(&self) -> usize {
        self.requests.len()
    }

    /// Nothing is pending, and no content waits for a request that quotes it.
    pub(super) fn is_idle(&mut self) -> bool {
        self.contents.retain(|_, content| content.quoted_by > 0 || content.since.elapsed() < QUOTED_WITHIN);
        self.requests.is_empty() && self.contents.is_empty()
    }

    pub(super) fn live_bytes(&self) -> u64 {
        let requests = self.requests.values().map(|request| request.place.bytes);
        let contents = self.contents.values().map(|content| content.place.bytes);
        requests.chain(contents).sum::<u64>() + HEADER_BYTES
    }

    /// The session noted last.
    pub(super) fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub(super) fn note_session(&mut self, key: &Key, session: SessionId) -> io::Result<()> {
        self.append(key, &Entry::Session(session), &[])?;
        self.session = Some(session);
        Ok(())
    }

    pub(super) fn add_request(
        &mut self,
        key: &Key,
        request: &Request,
        payload: &[u8],
        quotes: BTreeSet<ChunkName>,
    ) -> io::Result<()> {
        // Sealing needs the request as an entry; the clone is of an op without its payload.
        let entry = Entry::Request(Request {
            entry: request.entry,
            op: request.op.clone(),
            time: request.time,
            only_in: request.only_in,
            payload_hash: request.payload_hash,
        });
        let place = self.append(key, &entry, payload)?;
        self.kept(request.entry, place, quotes);
        Ok(())
    }

    pub(super) fn add_content(&mut self, key: &Key, content: &Content, sealed: &[u8]) -> io::Result<()> {
        let place = self.append(key, &Entry::Content(*content), sealed)?;
        self.contents.insert(content.name, KeptContent { place, quoted_by: 0, since: Instant::now() });
        Ok(())
    }

    pub(super) fn sent(&mut self, key: &Key, entry: u64, session: SessionId, number: RequestNo) -> io::Result<()> {
        let Some(request) = self.requests.get(&entry) else { return Ok(()) };
        let mut plain = session.0.to_vec();
        plain.extend_from_slice(&number.0.to_le_bytes());
        let sealed = seal_blob(key, SENT_PURPOSE, &self.sent_data(entry), &plain);
        self.file.write_all_at(&sealed, request.place.at + SENT_AT)
    }

    pub(super) fn done(&mut self, entry: u64) -> io::Result<()> {
        let Some(request) = self.requests.remove(&entry) else { return Ok(()) };
        for name in &request.quotes {
            if let Some(content) = self.contents.get_mut(name) {
                content.quoted_by = content.quoted_by.saturating_sub(1);
                if content.quoted_by == 0 {
                    self.contents.remove(name);
                }
            }
        }
        self.file.write_all_at(&[OVER], request.place.at + STATE_AT)
    }

    /// Every pending request in order, with where it was sent last, and its payload.
    pub(super) fn requests(&mut self, key: &Key) -> io::Result<Vec<Pending>> {
        let mut out = Vec::new();
        for (entry, kept) in &self.requests {
            if let Some((Entry::Request(request), sent, payload)) = self.read(key, kept.place)? {
                out.push(Pending { request, sent: self.open_sent(key, *entry, &sent), payload });
            }
        }
        Ok(out)
    }

    pub(super) fn content(&mut self, key: &Key, name: &ChunkName) -> Option<Bytes> {
        let place = self.contents.get(name)?.place;
        match self.read(key, place) {
            Ok(Some((Entry::Content(_), _, sealed))) => Some(sealed),
            _ => None,
        }
    }

    /// Begins the file anew: nothing in it is pending.
    pub(super) fn empty(&mut self, key: &Key, session: Option<SessionId>) -> io::Result<()> {
        self.requests.clear();
        self.contents.clear();
        self.file.set_len(HEADER_BYTES)?;
        self.end = HEADER_BYTES;
        session.map_or(Ok(()), |session| self.note_session(key, session))
    }

    /// Puts a copy without what is over in the file's place.
    pub(super) fn rewrite(&mut self, key: &Key, session: Option<SessionId>) -> io::Result<()> {
        let path = self.path.with_extension(REWRITTEN);
        // Left by a crash in the middle of this; the file itself was still whole.
        let _ = fs::remove_file(&path);
        let mut copy = JournalFile::create_as(&path, self.id, self.made_ms)?;
        if let Some(session) = session {
            copy.note_session(key, session)?;
        }
        for (name, content) in &self.contents {
            let place = copy.copy(self, content.place)?;
            copy.contents.insert(*name, KeptContent { place, quoted_by: content.quoted_by, since: content.since });
        }
        for (entry, request) in &self.requests {
            let place = copy.copy(self, request.place)?;
            copy.requests.insert(*entry, KeptRequest { place, quotes: request.quotes.clone() });
        }
        fs::rename(&path, &self.path)?;
        copy.path = self.path.clone();
        *self = copy;
        Ok(())
    }

    /// Copies one request and what it quotes to a file of their own.
    pub(super) fn copy_entry(&mut self, key: &Key, entry: u64, path: &Path) -> io::Result<()> {
        let Some(request) = self.requests.get(&entry) else { return Err(io::ErrorKind::NotFound.into()) };
        let mut copy = JournalFile::create_as(path, self.id, self.made_ms)?;
        if let Some(session) = self.session {
            copy.note_session(key, session)?;
        }
        for name in &request.quotes {
            if let Some(content) = self.contents.get(name) {
                copy.copy(self, content.place)?;
            }
        }
        copy.copy(self, request.place)?;
        // The journal forgets it next: this one is worth waiting for the disk.
        copy.file.sync_all()
    }

    /// Removes the file and lets go of it.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the journal {}: {error}", self.path.display());
        }
    }

    fn append(&mut self, key: &Key, entry: &Entry, raw: &[u8]) -> io::Result<Place> {
        let sealed = seal_blob_of(key, RECORD_PURPOSE, &self.id, entry)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        let mut record = Vec::with_capacity(PREFIX_BYTES + sealed.len() + raw.len());
        record.extend_from_slice(&(sealed.len() as u32).to_le_bytes());
        record.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        record.push(PENDING);
        record.extend_from_slice(&[0; SENT_BYTES]);
        record.extend_from_slice(&sealed);
        record.extend_from_slice(raw);
        self.append_record(&record)
    }

    fn append_record(&mut self, record: &[u8]) -> io::Result<Place> {
        let place = Place { at: self.end, bytes: record.len() as u64 };
        if let Err(error) = self.file.write_all_at(record, place.at) {
            // A part of it may be there: it would end the file for a successor.
            let _ = self.file.set_len(place.at);
            return Err(error);
        }
        self.end += place.bytes;
        Ok(place)
    }

    fn copy(&mut self, from: &JournalFile, place: Place) -> io::Result<Place> {
        let mut record = vec![0; place.bytes as usize];
        from.file.read_exact_at(&mut record, place.at)?;
        self.append_record(&record)
    }

    fn kept(&mut self, entry: u64, place: Place, quotes: BTreeSet<ChunkName>) {
        for name in &quotes {
            if let Some(content) = self.contents.get_mut(name) {
                content.quoted_by += 1;
            }
        }
        self.requests.insert(entry, KeptRequest { place, quotes });
    }

    /// Finds what the file holds, up to the first record that is not whole.
    fn scan(&mut self, key: &Key, length: u64) -> io::Result<()> {
        while let Some(place) = self.place_at(self.end, length)? {
            let Some((entry, _, _)) = self.read(key, place)? else { break };
            let mut state = [0];
            self.file.read_exact_at(&mut state, place.at + STATE_AT)?;
            match entry {
                Entry::Session(session) => self.session = Some(session),
                Entry::Content(content) => {
                    let kept = KeptContent { place, quoted_by: 0, since: Instant::now() };
                    self.contents.insert(content.name, kept);
                }
                Entry::Request(request) if state[0] == PENDING => {
                    self.kept(request.entry, place, quotes(&request.op));
                }
                Entry::Request(_) => {}
            }
            self.end = place.at + place.bytes;
        }
        if self.end < length {
            tracing::warn!("{} ends in a record that was cut off; the rest of it is ignored", self.path.display());
        }
        Ok(())
    }

    fn place_at(&self, at: u64, length: u64) -> io::Result<Option<Place>> {
        if at + PREFIX_BYTES as u64 > length {
            return Ok(None);
        }
        let mut lengths = [0; 8];
        self.file.read_exact_at(&mut lengths, at)?;
        let (sealed, raw) = split_lengths(&lengths);
        let bytes = (PREFIX_BYTES + sealed + raw) as u64;
        let is_plausible = sealed <= MAX_SEALED_BYTES && raw <= MAX_RAW_BYTES;
        Ok((is_plausible && at + bytes <= length).then_some(Place { at, bytes }))
    }

    /// A record's meaning, its note of sending and its raw part; `None` if it is damaged.
    fn read(&self, key: &Key, place: Place) -> io::Result<Option<(Entry, Vec<u8>, Bytes)>> {
        let mut record = vec![0; place.bytes as usize];
        self.file.read_exact_at(&mut record, place.at)?;
        let lengths = record[..8].try_into().expect("8 bytes");
        let (sealed, raw) = split_lengths(&lengths);
        if PREFIX_BYTES + sealed + raw != record.len() {
            return Ok(None);
        }
        let record = Bytes::from(record);
        let raw = record.slice(PREFIX_BYTES + sealed..);
        let text = &record[PREFIX_BYTES..PREFIX_BYTES + sealed];
        let Ok(entry) = open_blob_of::<Entry>(key, RECORD_PURPOSE, &self.id, text) else { return Ok(None) };
        let is_whole = match &entry {
            Entry::Session(_) => raw.is_empty(),
            Entry::Request(request) => hash_of(&raw) == request.payload_hash,
            Entry::Content(content) => hash_of(&raw) == content.name.hash,
        };
        let sent = record[SENT_AT as usize..PREFIX_BYTES].to_vec();
        Ok(is_whole.then_some((entry, sent, raw)))
    }

    fn open_sent(&self, key: &Key, entry: u64, sent: &[u8]) -> Option<(SessionId, RequestNo)> {
        if sent.iter().all(|byte| *byte == 0) {
            return None;
        }
        let plain = open_blob(key, SENT_PURPOSE, &self.sent_data(entry), sent).ok()?;
        let (session, number) = plain.split_at_checked(16)?;
        Some((SessionId(session.try_into().ok()?), RequestNo(u64::from_le_bytes(number.try_into().ok()?))))
    }

    /// Binds a note of sending to its entry in this file.
    fn sent_data(&self, entry: u64) -> [u8; 24] {
        let mut data = [0; 24];
        data[..16].copy_from_slice(&self.id);
        data[16..].copy_from_slice(&entry.to_le_bytes());
        data
    }
}

/// Removes what a crash left in the middle of a rewriting; the file itself is still whole.
pub(super) fn remove_leftover(path: &Path) {
    let is_free = File::open(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
    if is_free && let Err(error) = fs::remove_file(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

fn split_lengths(lengths: &[u8; 8]) -> (usize, usize) {
    let sealed = u32::from_le_bytes([lengths[0], lengths[1], lengths[2], lengths[3]]);
    let raw = u32::from_le_bytes([lengths[4], lengths[5], lengths[6], lengths[7]]);
    (sealed as usize, raw as usize)
}
