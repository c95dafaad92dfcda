//! Requests, answers and servers' records in words: what is done, and to what. Only
//! names, numbers and sizes: what is sealed, or helps to open it, is left out.

use proto::chunk::ChunkName;
use proto::message::{
    Acked, Admin, Answer, Attr, AttrChange, Delete, Heartbeat, Lock, LockOp, LockOwner, LockRange, Locked, NewUser, Op,
    Open, Outcome, Owner, Piece, Progress, Promise, Push, Quota, Refusal, Request, Resource, ServerRecord, SessionOp,
    Source, Ticket, Upload, View, WriteAt,
};
use proto::{Ino, Name, Time};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::fmt::{self, Display, Write as _};

/// What is done, and its parts in the order in which they are read best.
#[derive(Clone, Debug, Serialize)]
pub struct Words {
    pub what: &'static str,
    #[serde(rename = "with", serialize_with = "as_map")]
    pub parts: Vec<(&'static str, Part)>,
}

/// One part of what is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Number(i128),
    Flag(bool),
    /// Numbers that people see elsewhere as they are; here by namespace and counter.
    Ino(Ino),
    Text(String),
    List(Vec<Part>),
}

impl Words {
    fn new(what: &'static str) -> Words {
        Words { what, parts: Vec::new() }
    }

    fn with(mut self, name: &'static str, part: impl Into<Part>) -> Words {
        self.parts.push((name, part.into()));
        self
    }

    fn with_some<T: Into<Part>>(self, name: &'static str, part: Option<T>) -> Words {
        match part {
            Some(part) => self.with(name, part),
            None => self,
        }
    }

    pub fn open(open: &Open, ticket: &Ticket) -> Words {
        let replaces: Vec<Part> = open.predecessors.iter().map(|id| Part::Text(short(&id.0))).collect();
        Words::new("open")
            .with("namespace", ticket.namespace.0)
            .with("issued", ticket.issued.0)
            .with("replies", ticket.replies_partition)
            .with_some("replaces", (!replaces.is_empty()).then_some(replaces))
            .with_some("delegable", open.delegable.then_some(true))
    }

    pub fn request(request: &Request) -> Words {
        let Acked { floor, also } = &request.acked;
        Words::op(&request.op)
            .with("acked", floor.0)
            .with_some("acked_also", (!also.is_empty()).then(|| list(also, |number| number.0.into())))
            .with_some("local", request.local.then_some(true))
    }

    pub fn op(op: &Op) -> Words {
        match op {
            Op::View(view) => Words::view(view),
            Op::Upload(upload) => Words::upload(upload),
            Op::Delete(Delete::Unlink { dir, name }) => Words::new("unlink").with("dir", *dir).with("name", name),
            Op::Delete(Delete::Rmdir { dir, name }) => Words::new("rmdir").with("dir", *dir).with("name", name),
            Op::Lock(op) => Words::lock(op),
            Op::Session(op) => Words::session(op),
        }
    }

    fn view(view: &View) -> Words {
        match view {
            View::Lookup { dir, name } => Words::new("lookup").with("dir", *dir).with("name", name),
            View::Getattr { ino } => Words::new("getattr").with("ino", *ino),
            View::Readdir { dir, after, limit } => Words::new("readdir")
                .with("dir", *dir)
                .with_some("after", after.as_ref().map(|after| &after.name))
                .with("limit", *limit),
            View::Readlink { ino } => Words::new("readlink").with("ino", *ino),
            View::Xattrs { ino } => Words::new("xattrs").with("ino", *ino),
            View::Statfs => Words::new("statfs"),
            View::Extents { ino, from, limit } => {
                Words::new("extents").with("ino", *ino).with("from", *from).with("limit", *limit)
            }
        }
    }

    fn upload(upload: &Upload) -> Words {
        match upload {
            Upload::Create { dir, name, new } => Words::new("create")
                .with("dir", *dir)
                .with("name", name)
                .with("kind", format!("{:?}", new.kind).to_lowercase())
                .with("mode", format!("{:04o}", new.mode))
                .with_some("umask", (new.umask != 0).then(|| format!("{:04o}", new.umask)))
                .with("uid", new.uid)
                .with("gid", new.gid)
                .with_some("ino", new.ino)
                .with_some("reserved", new.reserved.then_some(true))
                .with_some("target_bytes", new.target.as_ref().map(|target| target.sealed.len() as u64)),
            Upload::Link { ino, dir, name } => {
                Words::new("link").with("ino", *ino).with("dir", *dir).with("name", name)
            }
            Upload::Rename { from_dir, from, to_dir, to, how } => Words::new("rename")
                .with("from_dir", *from_dir)
                .with("from", from)
                .with("to_dir", *to_dir)
                .with("to", to)
                .with("how", format!("{how:?}").to_lowercase()),
            Upload::Setattr { ino, change } => {
                let AttrChange { mode, uid, gid, size, atime, mtime } = change;
                Words::new("setattr")
                    .with("ino", *ino)
                    .with_some("mode", mode.map(|mode| format!("{mode:04o}")))
                    .with_some("uid", *uid)
                    .with_some("gid", *gid)
                    .with_some("size", *size)
                    .with_some("atime", *atime)
                    .with_some("mtime", *mtime)
            }
            Upload::Write { ino, at, pieces, reserved } => {
                let what = match at {
                    WriteAt::Offsets => "write",
                    WriteAt::End => "append",
                };
                Words::new(what)
                    .with("ino", *ino)
                    .with("pieces", list(pieces, piece))
                    .with_some("reserved", reserved.then_some(true))
            }
            Upload::SetXattr { ino, name, value, how } => Words::new("setxattr")
                .with("ino", *ino)
                .with("name", name.escape_ascii().to_string())
                .with("value_bytes", value.sealed.len() as u64)
                .with("how", format!("{how:?}").to_lowercase()),
            Upload::RemoveXattr { ino, name } => {
                Words::new("removexattr").with("ino", *ino).with("name", name.escape_ascii().to_string())
            }
            Upload::SetAcl { ino, which, acl, clear_setgid } => Words::new("setacl")
                .with("ino", *ino)
                .with("which", format!("{which:?}").to_lowercase())
                .with_some("mode", acl.as_ref().map(|acl| format!("{:04o}", acl.shown(0))))
                .with_some("named", acl.as_ref().map(|acl| acl.named() as u64))
                .with_some("clear_setgid", clear_setgid.then_some(true)),
            Upload::Accessed { inodes } => {
                Words::new("accessed").with("inos", list(inodes, |access| access.ino.into()))
            }
            Upload::Fallocate { ino, offset, len, how } => Words::new("fallocate")
                .with("ino", *ino)
                .with("offset", *offset)
                .with("len", *len)
                .with("how", format!("{how:?}").to_lowercase()),
            Upload::Clone { from, to, to_offset } => Words::new("clone")
                .with("from", from.ino)
                .with("offset", from.offset)
                .with("len", from.len)
                .with("to", *to)
                .with("to_offset", *to_offset),
        }
    }

    fn lock(op: &LockOp) -> Words {
        let asked = |what, ino: &Ino, lock: &Lock| {
            Words::new(what)
                .with("ino", *ino)
                .with("owner", owner_of_lock(&lock.owner))
                .with("pid", lock.pid)
                .with("range", range_of_lock(&lock.range))
                .with("mode", format!("{:?}", lock.mode).to_lowercase())
        };
        match op {
            LockOp::Lock { ino, lock, wait } => asked("lock", ino, lock).with("wait", *wait),
            LockOp::Unlock { ino, owner, range } => Words::new("unlock")
                .with("ino", *ino)
                .with("owner", owner_of_lock(owner))
                .with("range", range_of_lock(range)),
            LockOp::Test { ino, lock } => asked("testlock", ino, lock),
        }
    }

    fn session(op: &SessionOp) -> Words {
        match op {
            SessionOp::Renew => Words::new("renew"),
            SessionOp::Confirm { pushes } => Words::new("confirm").with("pushes", list(pushes, |push| push.0.into())),
            SessionOp::Repeat { from } => Words::new("repeat").with("from", from.0),
            SessionOp::Release { inos } => Words::new("release").with("inos", list(inos, |ino| (*ino).into())),
            SessionOp::Reserve { of, keep, need, extra, part } => Words::new("reserve")
                .with("of", resource(*of))
                .with("keep", *keep)
                .with("need", *need)
                .with("extra", *extra)
                .with_some("part", part.then_some(true)),
            SessionOp::Sync => Words::new("sync"),
            SessionOp::Forget { ended } => {
                Words::new("forget").with("ended", list(ended, |id| Part::Text(short(&id.0))))
            }
            SessionOp::Inodes { count } => Words::new("inodes").with("count", *count),
            SessionOp::Undelegated => Words::new("undelegated"),
            SessionOp::Cancel { number } => Words::new("cancel").with("number", number.0),
            SessionOp::Close => Words::new("close"),
        }
    }

    pub fn server(record: &ServerRecord) -> Words {
        match record {
            ServerRecord::Incarnation { server, supports } => {
                Words::new("incarnation").with("server", short(&server.0)).with("supports", *supports)
            }
            ServerRecord::Epoch { server, supports, append_time, volatile, from } => Words::new("epoch")
                .with("server", short(&server.0))
                .with("supports", *supports)
                .with("append_time", *append_time)
                .with("volatile", *volatile)
                .with_some("from", from.as_ref().map(|hash| short(hash))),
            ServerRecord::Tick { elapsed_ms } => Words::new("tick").with("elapsed_ms", *elapsed_ms),
            ServerRecord::Version { version } => Words::new("version").with("version", *version),
            ServerRecord::LoginAttempt { attempt, user, credential } => Words::new("login_attempt")
                .with("attempt", short(attempt))
                .with("user", user.as_str())
                .with("credential", credential.to_string()),
            ServerRecord::LoginSuccess { attempt, user, credential } => Words::new("login_success")
                .with("attempt", short(attempt))
                .with("user", user.as_str())
                .with("credential", credential.to_string()),
            ServerRecord::Admin(request) => Words::admin(&request.admin),
            ServerRecord::UserEnded { user, decision } => {
                Words::new("user_ended").with("user", user.as_str()).with("decision", decision.to_string())
            }
            ServerRecord::Quota { namespace, quota, decision } => {
                limits(Words::new("quota").with("namespace", namespace.0), quota).with("decision", decision.to_string())
            }
            ServerRecord::Landed { decision } => Words::new("landed").with("decision", decision.to_string()),
            ServerRecord::Heartbeat(Heartbeat { answers, ends, partitions }) => Words::new("heartbeat")
                .with("answers", *answers)
                .with_some("ends", ends.then_some(true))
                .with("partitions", list(partitions, |progress| Part::Text(far(progress)))),
            ServerRecord::Deregister { server } => Words::new("deregister").with("server", short(&server.0)),
        }
    }

    fn admin(admin: &Admin) -> Words {
        let names = |users: &[NewUser]| list(users, |user| user.name.as_str().into());
        match admin {
            Admin::State => Words::new("admin_state"),
            Admin::UserStage { users } => Words::new("user_stage").with("users", names(users)),
            Admin::UserAdd { first_namespace, users } => {
                Words::new("user_add").with("first_namespace", first_namespace.0).with("users", names(users))
            }
            Admin::UserPasswd { user, seen, public_key, .. } => Words::new("user_passwd")
                .with("user", user.as_str())
                .with("seen", seen.to_string())
                .with("new_key_pair", !public_key.is_empty()),
            Admin::DeviceAdd { user, seen, credential } => Words::new("device_add")
                .with("user", user.as_str())
                .with("seen", seen.to_string())
                .with("credential", credential.id.to_string()),
            Admin::UserQuota { user, seen, quota } => {
                limits(Words::new("user_quota").with("user", user.as_str()).with("seen", seen.to_string()), quota)
            }
            Admin::Usage { namespaces } => {
                Words::new("admin_usage").with("namespaces", list(namespaces, |namespace| namespace.0.into()))
            }
            Admin::UserRemove { user } => Words::new("user_remove").with("user", user.as_str()),
            Admin::User { user } => Words::new("admin_user").with("user", user.as_str()),
            Admin::UserList { after } => {
                Words::new("user_list").with_some("after", after.as_ref().map(|after| after.as_str()))
            }
            Admin::Servers => Words::new("admin_servers"),
        }
    }

    /// What a request came to.
    pub fn answer(answer: &Answer) -> Words {
        let words = match &answer.result {
            Ok(outcome) => Words::outcome(outcome),
            Err(refusal) => Words::refusal(*refusal),
        };
        words
            .with("at", answer.at.to_string())
            .with("pushed", answer.pushed.0)
            .with_some("granted", (!answer.granted.is_empty()).then(|| list(&answer.granted, promise)))
            .with_some("delegated", (!answer.delegated.is_empty()).then(|| list(&answer.delegated, promise)))
    }

    pub fn refusal(refusal: Refusal) -> Words {
        Words::new("refused").with("why", format!("{refusal:?}"))
    }

    fn outcome(outcome: &Outcome) -> Words {
        match outcome {
            Outcome::Done => Words::new("done"),
            Outcome::Accessed(moved) => Words::new("accessed").with("inos", list(moved, |(ino, _)| (*ino).into())),
            Outcome::Entry(attr) => attributes("entry", attr),
            Outcome::Inodes { first, count } => Words::new("inodes").with("first", *first).with("count", *count),
            Outcome::Listing { dir, entries, end } => Words::new("listing")
                .with("dir", dir.ino)
                .with("entries", list(entries, |entry| (&entry.name).into()))
                .with("end", *end),
            Outcome::Link(value) => Words::new("link").with("target_bytes", value.sealed.len() as u64),
            Outcome::Xattrs(xattrs) => {
                Words::new("xattrs").with("names", list(xattrs, |(name, _)| name.escape_ascii().to_string().into()))
            }
            Outcome::Statfs { bytes_total, bytes_used, inodes_total, inodes_used } => Words::new("statfs")
                .with("bytes_total", *bytes_total)
                .with("bytes_used", *bytes_used)
                .with("inodes_total", *inodes_total)
                .with("inodes_used", *inodes_used),
            Outcome::Extents { attr, extents, end } => attributes("extents", attr)
                .with(
                    "extents",
                    list(extents, |extent| {
                        let end = extent.offset + u64::from(extent.len);
                        format!("{}..{end}:{}", extent.offset, chunk(&extent.chunk)).into()
                    }),
                )
                .with("end", *end),
            Outcome::Renamed { moved, other } => {
                let of = |what: fn(&Attr) -> Part| other.as_deref().map(what);
                let names = of(|other| other.nlink.into());
                attributes("renamed", moved).with_some("other", of(|other| other.ino.into())).with_some("left", names)
            }
            Outcome::Cloned { to, len } => attributes("cloned", to).with("len", *len),
            Outcome::Removed(attr) => attributes("removed", attr),
            Outcome::Reserved { amount, more } => {
                Words::new("reserved").with("amount", *amount).with_some("more", more.then_some(true))
            }
            Outcome::Opened { root, ended, now, limited } => {
                let opened = Words::new("opened").with("root", root.ino).with("now", now.0);
                let limited: Vec<Resource> = Resource::ALL.into_iter().filter(|of| limited[*of]).collect();
                let limited = (!limited.is_empty()).then(|| list(&limited, |of| resource(*of).into()));
                opened.with_some("limited", limited).with_some(
                    "ended",
                    (!ended.is_empty()).then(|| {
                        list(ended, |ended| {
                            let known = if ended.known { ended.last.0.to_string() } else { "unknown".to_owned() };
                            format!("{}:{known}", short(&ended.session.0)).into()
                        })
                    }),
                )
            }
            Outcome::Locked(Locked { version }) => Words::new("locked").with("version", version.to_string()),
            Outcome::Waiting => Words::new("waiting"),
            Outcome::Holder(None) => Words::new("not_locked"),
            Outcome::Holder(Some(holder)) => Words::new("locked_by")
                .with("pid", holder.pid)
                .with("range", range_of_lock(&holder.range))
                .with("mode", format!("{:?}", holder.mode).to_lowercase()),
            Outcome::Gap { expected } => Words::new("gap").with("expected", expected.0),
        }
    }

    pub fn push(push: &Push) -> Words {
        match push {
            Push::Invalidate(things) => Words::new("invalidate").with("things", list(things, promise)),
            Push::Accessed(inodes) => Words::new("accessed").with("inos", list(inodes, |(ino, _)| (*ino).into())),
            Push::LastNameGone(ino) => Words::new("last_name_gone").with("ino", *ino),
            Push::Limited(of) => Words::new("limited").with("of", resource(*of)),
            Push::GiveBack(of) => Words::new("give_back").with("of", resource(*of)),
            Push::Outcome { number, result } => {
                let words = match result {
                    Ok(outcome) => Words::outcome(outcome),
                    Err(refusal) => Words::refusal(*refusal),
                };
                words.with("of", number.0)
            }
        }
    }
}

fn resource(of: Resource) -> &'static str {
    match of {
        Resource::Bytes => "bytes",
        Resource::Inodes => "inodes",
    }
}

fn limits(words: Words, quota: &Quota) -> Words {
    let limit = |limit: Option<u64>| limit.map_or("none".into(), Part::from);
    words.with("bytes", limit(quota.bytes)).with("inodes", limit(quota.inodes))
}

fn owner_of_lock(owner: &LockOwner) -> String {
    format!("{}:{:x}", format!("{:?}", owner.kind).to_lowercase(), owner.id)
}

fn range_of_lock(range: &LockRange) -> String {
    match range.end {
        LockRange::LAST => format!("{}..", range.start),
        end => format!("{}..={end}", range.start),
    }
}

/// An id's first 8 hexadecimal digits: enough to tell those of one incident apart.
pub(super) fn short(id: &[u8]) -> String {
    id.iter().take(4).fold(String::with_capacity(8), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

fn attributes(what: &'static str, attr: &Attr) -> Words {
    Words::new(what)
        .with("ino", attr.ino)
        .with("kind", format!("{:?}", attr.kind).to_lowercase())
        .with("mode", format!("{:04o}", attr.mode))
        .with("nlink", attr.nlink)
        .with("size", attr.size)
        .with("version", attr.version.to_string())
}

/// `offset..end:where its content stands`.
fn piece(piece: &Piece) -> Part {
    let end = piece.offset.saturating_add(u64::from(piece.len));
    let source = match &piece.source {
        Source::Chunk(name) => chunk(name),
        Source::Inline { payload_len, .. } => format!("inline({payload_len})"),
    };
    Part::Text(format!("{}..{end}:{source}", piece.offset))
}

fn chunk(name: &ChunkName) -> String {
    format!("{}/{}", name.topic.suffix(), name.position())
}

fn promise(promise: &Promise) -> Part {
    let (kind, ino) = match promise {
        Promise::Dir(ino) => ("dir", ino),
        Promise::Inode(ino) => ("inode", ino),
        Promise::Content(ino) => ("content", ino),
    };
    Part::Text(format!("{kind}({})", Part::Ino(*ino)))
}

/// `partition:applied/answered/checkpointed/ingested`, and the hash with its offset.
fn far(progress: &Progress) -> String {
    let Progress { partition, applied, answered, checkpointed, ingested, hash_at, hash, .. } = progress;
    format!("{partition}:{applied}/{answered}/{checkpointed}/{ingested},{}@{hash_at}", short(hash))
}

fn list<T>(items: &[T], part: impl Fn(&T) -> Part) -> Part {
    Part::List(items.iter().map(part).collect())
}

impl Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        self.parts.iter().try_for_each(|(name, part)| write!(f, " {name}={part}"))
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Number(number) => write!(f, "{number}"),
            Part::Flag(flag) => write!(f, "{flag}"),
            Part::Ino(ino) => write!(f, "{}:{}", ino.namespace().0, ino.0 & ((1 << Ino::COUNTER_BITS) - 1)),
            // Parts stand apart by spaces, so what could be mistaken is put in quotes.
            Part::Text(text) if text.is_empty() || text.contains([' ', '"', '=', '[', ']']) => {
                write!(f, "\"{}\"", text.replace('"', "\\\""))
            }
            Part::Text(text) => f.write_str(text),
            Part::List(parts) => {
                f.write_str("[")?;
                for (i, part) in parts.iter().enumerate() {
                    let comma = if i == 0 { "" } else { " " };
                    write!(f, "{comma}{part}")?;
                }
                f.write_str("]")
            }
        }
    }
}

/// For programs: inode numbers as they are.
impl Serialize for Part {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Part::Number(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => out.serialize_u64(number),
                (_, Ok(number)) => out.serialize_i64(number),
                _ => out.collect_str(number),
            },
            Part::Flag(flag) => out.serialize_bool(*flag),
            Part::Ino(ino) => out.serialize_u64(ino.0),
            Part::Text(text) => out.serialize_str(text),
            Part::List(parts) => out.collect_seq(parts),
        }
    }
}

fn as_map<S: Serializer>(parts: &[(&'static str, Part)], out: S) -> Result<S::Ok, S::Error> {
    let mut map = out.serialize_map(Some(parts.len()))?;
    for (name, part) in parts {
        map.serialize_entry(name, part)?;
    }
    map.end()
}

macro_rules! part_from_numbers {
    ($($number:ty),+) => {
        $(impl From<$number> for Part {
            fn from(number: $number) -> Part {
                Part::Number(number.into())
            }
        })+
    };
}

part_from_numbers!(u32, u64);

impl From<bool> for Part {
    fn from(flag: bool) -> Part {
        Part::Flag(flag)
    }
}

impl From<Ino> for Part {
    fn from(ino: Ino) -> Part {
        Part::Ino(ino)
    }
}

impl From<&Name> for Part {
    /// UTF-8 as it is; other bytes, and what a terminal would act on, escaped.
    fn from(name: &Name) -> Part {
        Part::Text(match std::str::from_utf8(name.as_bytes()) {
            Ok(text) if !text.contains(|c: char| c.is_control() || c == '\\') => text.to_owned(),
            _ => name.as_bytes().escape_ascii().to_string(),
        })
    }
}

impl From<String> for Part {
    fn from(text: String) -> Part {
        Part::Text(text)
    }
}

impl From<&str> for Part {
    fn from(text: &str) -> Part {
        Part::Text(text.to_owned())
    }
}

impl From<Vec<Part>> for Part {
    fn from(parts: Vec<Part>) -> Part {
        Part::List(parts)
    }
}

impl From<Owner> for Part {
    fn from(owner: Owner) -> Part {
        match owner {
            Owner::Namespace => Part::Text("owner".to_owned()),
            Owner::Number(number) => number.into(),
        }
    }
}

impl From<Time> for Part {
    fn from(time: Time) -> Part {
        Part::Text(format!("{}.{:09}", time.secs, time.nanos))
    }
}
