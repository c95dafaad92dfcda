//! The log on paper: frames of `requests` and `replies` opened and said in words, one
//! line each, so that a real incident (`kfs-server log dump`) and a simulator's trace
//! read alike.
//!
//! The cluster key is enough: a session's key stands in the ticket of its open, so a
//! reader that has seen the open can open what follows. Names, numbers and sizes are
//! shown; never content, a key, or anything that is sealed itself.
//!
//! A line says what a record asks for, not what became of it: whether it was admitted
//! is the machine's to say.

mod words;

pub use words::{Part, Words};

use crate::machine::open_ticket;
use proto::frame::{self, Frame, Header, Kind};
use proto::keys::ClusterKey;
use proto::log::{REQUEST_PARTITIONS, Record, Topic};
use proto::message::{Answer, Open, PushBody, Request, ServerBody, Ticket, UserName};
use proto::seal::{Context, Direction, Key, SealError, open};
use proto::{NamespaceId, SessionId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// Sessions whose keys are remembered; beyond them the one seen first is forgotten.
const MAX_SESSIONS: usize = 1 << 20;

/// Requests whose answers can be opened, likewise.
const MAX_ASKED: usize = 1 << 16;

/// Reads records of `requests` in their order, partition by partition or mixed, and
/// answers and pushes after what they follow from.
pub struct Trace {
    cluster: ClusterKey,
    /// By partition too, since a session has a key for each.
    sessions: Recent<(u32, SessionId), Known>,
    /// Hashes of the frames that an answer binds, by session and number. One number can
    /// stand for several: a repeat is another frame.
    asked: Recent<(SessionId, u64, [u8; 32]), ()>,
}

/// What was remembered last, up to a bound.
struct Recent<K, V> {
    most: usize,
    known: BTreeMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Ord + Copy, V> Recent<K, V> {
    fn new(most: usize) -> Recent<K, V> {
        Recent { most, known: BTreeMap::new(), order: VecDeque::new() }
    }

    fn remember(&mut self, key: K, value: V) {
        if self.known.insert(key, value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.most
            && let Some(first) = self.order.pop_front()
        {
            self.known.remove(&first);
        }
    }
}

struct Known {
    key: Key,
    user: Option<UserName>,
}

/// One frame in words.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub epoch: u32,
    pub partition: u32,
    pub offset: u64,
    /// Which of the record's frames, counted from 0.
    pub frame: usize,
    /// Kafka's own, in milliseconds since 1970; 0 where the broker has none.
    pub append_time_ms: i64,
    /// `None` for what is no record of ours.
    #[serde(flatten)]
    pub writer: Option<Writer>,
    /// What it says, or why that cannot be told.
    #[serde(flatten)]
    pub said: Said,
    /// The frame's, or the record's if nothing in it can be read.
    pub bytes: usize,
    pub payload_bytes: u32,
}

/// Who wrote a record, as its header has it; authentic only if what it says could be read.
#[derive(Clone, Debug, Serialize)]
pub struct Writer {
    #[serde(serialize_with = "lower_case")]
    pub kind: Kind,
    /// A session, or a server's incarnation.
    #[serde(serialize_with = "hexadecimal")]
    pub sender: [u8; 16],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserName>,
    pub namespace: u32,
    pub number: u64,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Said {
    Words(Words),
    Unread { unread: String },
}

impl Trace {
    pub fn new(cluster: ClusterKey) -> Trace {
        Trace { cluster, sessions: Recent::new(MAX_SESSIONS), asked: Recent::new(MAX_ASKED) }
    }

    /// Makes a session readable whose open is not among the records, from a machine's dump.
    pub fn know(&mut self, partition: u32, session: SessionId, key: Key) {
        self.sessions.remember((partition, session), Known { key, user: None });
    }

    /// The record in words, one line for each of its frames. An open makes what follows of its session readable.
    pub fn lines(&mut self, record: &Record) -> Vec<Line> {
        let unread = |reason: String| Line {
            epoch: 0,
            partition: record.partition,
            offset: record.offset,
            frame: 0,
            append_time_ms: record.append_time_ms,
            writer: None,
            said: Said::Unread { unread: reason },
            bytes: record.value.len(),
            payload_bytes: 0,
        };
        let frames = match record.topic {
            Topic::Requests | Topic::Replies => frame::frames(record.value.clone()),
            _ => Frame::parse(record.value.clone()).map(|frame| vec![frame]),
        };
        let frames = match frames {
            Ok(frames) => frames,
            Err(error) => return vec![unread(error.to_string())],
        };
        let line = |(number, frame): (usize, &Frame)| {
            let Header { kind, namespace, epoch, sender, number: numbered, payload_bytes, .. } = *frame.header();
            let mut user = None;
            let read = match record.topic {
                Topic::Replies => self.read_reply(record.partition, frame, &mut user),
                _ => self.read(record.partition, frame, &mut user),
            };
            let said = match read {
                Ok(words) => Said::Words(words),
                Err(unread) => Said::Unread { unread },
            };
            let writer = Some(Writer { kind, sender, user, namespace: namespace.0, number: numbered });
            let (epoch, bytes) = (epoch.0, frame.record().len());
            Line { epoch, frame: number, writer, said, bytes, payload_bytes, ..unread(String::new()) }
        };
        frames.iter().enumerate().map(line).collect()
    }

    /// The user and namespace of an open, if the record is one.
    pub fn opened(&self, record: &Record) -> Option<(UserName, NamespaceId)> {
        let frame = Frame::parse(record.value.clone()).ok()?;
        if frame.header().kind != Kind::Open {
            return None;
        }
        let ticket = open_ticket(&self.cluster, &frame.payload()).ok()?;
        Some((ticket.user, ticket.namespace))
    }

    fn read(&mut self, partition: u32, frame: &Frame, user: &mut Option<UserName>) -> Result<Words, String> {
        let header = frame.header();
        let session = SessionId(header.sender);
        match header.kind {
            Kind::Server => {
                let key = self.cluster.server_key(header.epoch);
                let body: ServerBody = said(&key, frame, partition, Direction::ServerToLog)?;
                Ok(Words::server(&body.record))
            }
            Kind::Open => {
                let ticket = open_ticket(&self.cluster, &frame.payload()).map_err(|error| unread(&error))?;
                let body: Open = said(&ticket.key, frame, partition, Direction::ToServer)?;
                let words = Words::open(&body, &ticket);
                let Ticket { key, user: name, .. } = ticket;
                *user = Some(name.clone());
                self.sessions.remember((partition, session), Known { key, user: Some(name) });
                self.asked.remember((session, header.number, frame.hash()), ());
                Ok(words)
            }
            Kind::Request => {
                self.asked.remember((session, header.number, frame.hash()), ());
                let Some(known) = self.sessions.known.get(&(partition, session)) else {
                    return Err("sealed under the key of a session whose open is not there".to_owned());
                };
                let request: Request = said(&known.key, frame, partition, Direction::ToServer)?;
                user.clone_from(&known.user);
                Ok(Words::request(&request))
            }
            _ => Err("of a kind that does not belong into the request log".to_owned()),
        }
    }

    /// What a session is told: an answer to a request that was read, or a push.
    fn read_reply(&self, partition: u32, frame: &Frame, user: &mut Option<UserName>) -> Result<Words, String> {
        let header = frame.header();
        let session = SessionId(header.sender);
        // One without a namespace says that the session is over, under the key that outlives it.
        let known = self.sessions.known.get(&(header.namespace.0 % REQUEST_PARTITIONS, session));
        let key = match known {
            _ if header.namespace.0 == 0 => self.cluster.chunk_key(session),
            Some(known) => {
                user.clone_from(&known.user);
                known.key.clone()
            }
            None => return Err("sealed under the key of a session whose open is not there".to_owned()),
        };
        let context = |answers| Context { direction: Direction::ToClient, topic: Topic::Replies, partition, answers };
        match header.kind {
            Kind::Push => open::<PushBody>(&key, frame, &context(None))
                .map(|opened| Words::push(&opened.body.push))
                .map_err(|error| unread(&error)),
            Kind::Answer => {
                let of_number = (session, header.number, [0; 32])..=(session, header.number, [0xff; 32]);
                let asked = self.asked.known.range(of_number).map(|((_, _, hash), ())| *hash);
                asked
                    .filter_map(|hash| open::<Answer>(&key, frame, &context(Some(hash))).ok())
                    .map(|opened| Words::answer(&opened.body))
                    .next()
                    .ok_or_else(|| "answers a request that is not there".to_owned())
            }
            _ => Err("neither an answer nor a push to a session".to_owned()),
        }
    }
}

fn said<T: DeserializeOwned>(key: &Key, frame: &Frame, partition: u32, direction: Direction) -> Result<T, String> {
    let context = Context { direction, topic: Topic::Requests, partition, answers: None };
    open(key, frame, &context).map(|opened| opened.body).map_err(|error| unread(&error))
}

fn unread(error: &SealError) -> String {
    error.to_string()
}

fn lower_case<S: serde::Serializer>(kind: &Kind, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&format!("{kind:?}").to_lowercase())
}

fn hexadecimal<S: serde::Serializer>(id: &[u8; 16], out: S) -> Result<S::Ok, S::Error> {
    out.collect_str(&SessionId(*id))
}

/// For people: times in UTC, ids by their first 8 digits.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.epoch, self.partition, self.offset)?;
        if self.frame > 0 {
            write!(f, "+{}", self.frame)?;
        }
        write!(f, " ")?;
        match chrono::DateTime::from_timestamp_millis(self.append_time_ms) {
            Some(at) if self.append_time_ms != 0 => write!(f, "{} ", at.format("%Y-%m-%dT%H:%M:%S%.3fZ"))?,
            _ => write!(f, "- ")?,
        }
        write!(f, "{}", self.told())
    }
}

struct Told<'a>(&'a Line);

impl Line {
    /// Who says what, without where and when.
    pub fn told(&self) -> impl fmt::Display + '_ {
        Told(self)
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told(line) = self;
        if let Some(writer) = &line.writer {
            let who = match (&writer.user, writer.kind) {
                (Some(user), _) => user.as_str(),
                (None, Kind::Server) => "server",
                (None, _) => "session",
            };
            write!(f, "{who} {} #{} ", words::short(&writer.sender), writer.number)?;
        }
        match &line.said {
            Said::Words(words) => write!(f, "{words}")?,
            Said::Unread { unread } => write!(f, "UNREAD ({unread}) bytes={}", line.bytes)?,
        }
        if line.payload_bytes > 0 {
            write!(f, " payload={}", line.payload_bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
