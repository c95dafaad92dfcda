//! Measures the server's store under the real machine and the real schema: creates,
//! random setattr over millions of keys, and what a checkpoint costs when the
//! database is large. No Kafka is involved: records are sealed here and applied.
//!
//! `kfs-bench-store DIR [MILLION_KEYS] [GIGABYTES] [SECONDS]`; `DIR` is emptied of what
//! it wrote. Each of the two filling phases ends after SECONDS at the latest, so that
//! a run is bounded; what was reached is printed.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use proto::frame::Kind;
use proto::keys::ClusterKey;
use proto::log::Topic;
use proto::message::{
    Acked, AttrChange, FileKind, NewInode, Op, Open, Outcome, Owner, Request, ServerBody, ServerRecord, SessionOp,
    Ticket, Upload, UserName,
};
use proto::seal::{Context, Direction, Head, Key, seal};
use proto::{
    Epoch, IncarnationId, Ino, LogTime, Name, NamespaceId, Position, PushNo, RequestNo, ServerId, SessionId, Time,
};
use serde::Serialize;
use server::disk::Disk;
use server::machine::effect::Effect;
use server::machine::kv::Kv;
use server::machine::{Machine, seal_ticket};
use server::store::{Checkpoint, PartitionStore, Written};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// As in the server's loop.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
const CHANGED_BYTES: usize = 32 << 20;
const CHANGED_BYTES_MAX: usize = 64 << 20;
const CACHE_BYTES: usize = 32 << 20;

const NAMESPACE: NamespaceId = NamespaceId(16);
const EPOCH: Epoch = Epoch(1);
const FILES_PER_DIR: usize = 1000;
const CONTENT_BYTES: usize = 4096;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |at: usize, default: f64| args.get(at).map_or(Ok(default), |text| text.parse::<f64>());
    let Some(dir) = args.get(1) else { bail!("usage: kfs-bench-store DIR [MILLION_KEYS] [GIGABYTES] [SECONDS]") };
    let keys = (number(2, 5.0)? * 1e6) as usize;
    let bytes = (number(3, 10.0)? * 1e9) as u64;
    let bound = Duration::from_secs_f64(number(4, 120.0)?);
    let dir = Path::new(dir).join("kfs-bench-store");
    std::fs::create_dir_all(&dir)?;
    let outcome = measure(&dir, keys, bytes, bound);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn measure(dir: &Path, keys: usize, bytes: u64, bound: Duration) -> Result<()> {
    let mut world = World::open(dir)?;
    let started = Instant::now();
    let mut files = Vec::new();
    let mut parent = Ino::root(NAMESPACE);
    // A create puts two keys: the inode and its name.
    while files.len() * 2 < keys && started.elapsed() < bound {
        if files.len() % FILES_PER_DIR == 0 {
            parent = world.create(Ino::root(NAMESPACE), &format!("d{}", files.len()), FileKind::Dir)?;
        }
        files.push(world.create(parent, &format!("file-{}", files.len()), FileKind::File)?);
    }
    world.report(&format!("create, {} keys reached", files.len() * 2), dir)?;

    world.setattr_for(&files, Duration::from_secs(40))?;
    world.report(&format!("random setattr over {} keys", files.len() * 2), dir)?;

    let started = Instant::now();
    let mut rows = 0;
    while size(dir)? < bytes && started.elapsed() < bound {
        for _ in 0..1000 {
            world.fill(rows)?;
            rows += 1;
        }
    }
    world.report(&format!("{rows} rows of 4 KiB put beside the machine"), dir)?;

    world.setattr_for(&files, Duration::from_secs(30))?;
    world.report("random setattr, large database", dir)?;

    drop(world);
    let started = Instant::now();
    let (_store, checkpoint) = open(dir)?;
    ensure!(checkpoint.is_some(), "the checkpoint is gone");
    println!("reopened without a clean end in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn open(dir: &Path) -> Result<(PartitionStore, Option<Checkpoint>)> {
    Ok(PartitionStore::open(dir, 0, [0; 16], CACHE_BYTES, &Disk::default())?)
}

fn size(dir: &Path) -> Result<u64> {
    Ok(std::fs::metadata(dir.join("0.redb")).map_or(0, |file| file.len()))
}

/// Bytes that this process has had written to disk so far.
fn disk_bytes() -> Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok(line.trim().parse()?)
}

/// One partition as the server's loop runs it, fed by one session.
struct World {
    machine: Machine,
    store: PartitionStore,
    cluster: Arc<ClusterKey>,
    session: SessionId,
    key: Key,
    offset: u64,
    number: u64,
    pushes: Vec<PushNo>,
    writing: Option<Receiver<Result<(Written, Duration)>>>,
    checkpointed: Instant,
    random: u64,
    phase: Phase,
}

/// What one phase measures.
struct Phase {
    started: Instant,
    disk_bytes: u64,
    applies: Vec<Duration>,
    checkpoints: Vec<Duration>,
    freezes: Vec<Duration>,
    stalled: Duration,
}

impl Phase {
    fn begin() -> Result<Phase> {
        Ok(Phase {
            started: Instant::now(),
            disk_bytes: disk_bytes()?,
            applies: Vec::new(),
            checkpoints: Vec::new(),
            freezes: Vec::new(),
            stalled: Duration::ZERO,
        })
    }
}

impl World {
    fn open(dir: &Path) -> Result<World> {
        let (store, _) = open(dir)?;
        let cluster = Arc::new(ClusterKey::generate());
        let mut world = World {
            machine: Machine::new(0, cluster.clone()),
            store,
            cluster,
            session: SessionId::random(),
            key: Key::random(),
            offset: 0,
            number: 0,
            pushes: Vec::new(),
            writing: None,
            checkpointed: Instant::now(),
            random: 0x9e37_79b9_7f4a_7c15,
            phase: Phase::begin()?,
        };
        let record = ServerRecord::Epoch {
            server: ServerId::random(),
            supports: 1,
            append_time: false,
            volatile: true,
            from: None,
        };
        let head = head(Kind::Server, NamespaceId(0), IncarnationId::random().0, 0);
        let key = world.cluster.server_key(EPOCH);
        let sealed = seal(&key, &head, &context(Direction::ServerToLog), &ServerBody { record }, &[])?;
        world.apply(sealed.record)?;

        let ticket = Ticket {
            session: world.session,
            user: UserName::new("bench")?,
            namespace: NAMESPACE,
            partition: 0,
            epoch: EPOCH,
            key: world.key.clone(),
            issued: LogTime(0),
            user_seen: Position::default(),
            replies_partition: 0,
            bulk_partition: 0,
            uid: 0,
            gid: 0,
        };
        let ticket = seal_ticket(&world.cluster, &ticket)?;
        world.send(Kind::Open, 0, &Open { predecessors: Vec::new(), delegable: false }, &ticket)?;
        Ok(world)
    }

    fn create(&mut self, dir: Ino, name: &str, kind: FileKind) -> Result<Ino> {
        let (uid, gid) = (Owner::Namespace, Owner::Namespace);
        let new = NewInode { kind, mode: 0o644, umask: 0, uid, gid, rdev: 0, target: None, ino: None, reserved: false };
        let op = Upload::Create { dir, name: Name::new(name.as_bytes())?, new };
        match self.call(Op::Upload(op))? {
            Outcome::Entry(attr) => Ok(attr.ino),
            other => bail!("a create was answered {other:?}"),
        }
    }

    fn setattr_for(&mut self, files: &[Ino], time: Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < time {
            for _ in 0..100 {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                let ino = files[self.random as usize % files.len()];
                let mtime = Some(Time::from_millis((self.random >> 24) as i64));
                let change = AttrChange { mtime, ..AttrChange::default() };
                self.call(Op::Upload(Upload::Setattr { ino, change }))?;
            }
        }
        Ok(())
    }

    /// A row as content in the state has it, past the machine: only to make the
    /// database large in the time there is.
    fn fill(&mut self, row: u64) -> Result<()> {
        self.checkpoint_if_due()?;
        let started = Instant::now();
        let key = [&b"B"[..], &row.to_be_bytes(), &[0x5a; 61]].concat();
        self.store.put(&key, &[0x5a; CONTENT_BYTES]);
        self.phase.applies.push(started.elapsed());
        Ok(())
    }

    fn call(&mut self, op: Op) -> Result<Outcome> {
        if self.pushes.len() >= 256 {
            let pushes = std::mem::take(&mut self.pushes);
            self.request(Op::Session(SessionOp::Confirm { pushes }))?;
        }
        self.request(op)
    }

    fn request(&mut self, op: Op) -> Result<Outcome> {
        self.number += 1;
        let acked = Acked { floor: RequestNo(self.number - 1), also: Vec::new() };
        let request = Request { acked, time: Time::from_millis(0), op, local: false };
        self.send(Kind::Request, self.number, &request, &[])
    }

    fn send<T: Serialize>(&mut self, kind: Kind, number: u64, body: &T, payload: &[u8]) -> Result<Outcome> {
        let head = head(kind, NAMESPACE, self.session.0, number);
        let sealed = seal(&self.key, &head, &context(Direction::ToServer), body, payload)?;
        let effects = self.apply(sealed.record)?;
        let mut outcome = None;
        for effect in effects {
            match effect {
                Effect::Answer { answer, .. } => outcome = Some(answer.result?),
                Effect::Push { number, .. } => self.pushes.push(number),
                _ => {}
            }
        }
        outcome.context("no answer")
    }

    fn apply(&mut self, record: Bytes) -> Result<Vec<Effect>> {
        self.checkpoint_if_due()?;
        let started = Instant::now();
        let applied = self.machine.apply(&mut self.store, self.offset, 0, &record)?;
        self.phase.applies.push(started.elapsed());
        self.store.check()?;
        self.offset += 1;
        match applied.skipped {
            None => Ok(applied.effects),
            Some(reason) => bail!("skipped: {reason}"),
        }
    }

    /// As the server's loop does it: written on another thread, waited for only
    /// when changes pile up.
    fn checkpoint_if_due(&mut self) -> Result<()> {
        let full = self.store.changed_bytes() >= CHANGED_BYTES_MAX;
        if let Some(writing) = &self.writing {
            let started = Instant::now();
            let done = if full { Some(writing.recv()?) } else { writing.try_recv().ok() };
            self.phase.stalled += started.elapsed();
            if let Some(done) = done {
                let (written, took) = done?;
                self.store.thaw(written);
                self.phase.checkpoints.push(took);
                self.writing = None;
            }
        }
        let due = self.checkpointed.elapsed() >= CHECKPOINT_EVERY || self.store.changed_bytes() >= CHANGED_BYTES;
        if due && self.writing.is_none() {
            let started = Instant::now();
            self.checkpointed = started;
            let (next_offset, machine, frozen) = (self.offset, self.machine.image(), self.store.freeze());
            self.phase.freezes.push(started.elapsed());
            let (done, writing) = channel();
            std::thread::spawn(move || {
                let started = Instant::now();
                let checkpoint =
                    Checkpoint { epoch: EPOCH, next_offset, last_hash: Some([0; 32]), machine: machine.dump() };
                let written = frozen.write(checkpoint).map(|written| (written, started.elapsed()));
                // Nobody waits for it any more when the run has failed.
                let _ = done.send(written.map_err(Into::into));
            });
            self.writing = Some(writing);
        }
        Ok(())
    }

    /// Ends a phase: the last checkpoint belongs to it.
    fn report(&mut self, what: &str, dir: &Path) -> Result<()> {
        let took = self.phase.started.elapsed();
        if let Some(writing) = self.writing.take() {
            let (written, took) = writing.recv()??;
            self.store.thaw(written);
            self.phase.checkpoints.push(took);
        }
        let mut phase = std::mem::replace(&mut self.phase, Phase::begin()?);
        let count = phase.applies.len().max(1);
        let written = disk_bytes()?.saturating_sub(phase.disk_bytes);
        println!("{what} ({:.2} GB database)", size(dir)? as f64 / 1e9);
        println!(
            "  {:.0}/s with sealing the requests; apply p50 {:.1} us, p99 {:.1} us; waited {:.1} s for checkpoints",
            count as f64 / took.as_secs_f64(),
            quantile(&mut phase.applies, 0.5) * 1e6,
            quantile(&mut phase.applies, 0.99) * 1e6,
            phase.stalled.as_secs_f64(),
        );
        println!(
            "  {} checkpoints: p50 {:.0} ms, max {:.0} ms beside the loop, max {:.1} ms in it; {:.0} bytes to disk each",
            phase.checkpoints.len(),
            quantile(&mut phase.checkpoints, 0.5) * 1e3,
            quantile(&mut phase.checkpoints, 1.0) * 1e3,
            quantile(&mut phase.freezes, 1.0) * 1e3,
            written as f64 / count as f64,
        );
        Ok(())
    }
}

fn head(kind: Kind, namespace: NamespaceId, sender: [u8; 16], number: u64) -> Head {
    Head { kind, namespace, epoch: EPOCH, sender, number }
}

fn context(direction: Direction) -> Context {
    Context { direction, topic: Topic::Requests, partition: 0, answers: None }
}

/// Seconds that this share of the times stays within.
fn quantile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let at = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, Duration::as_secs_f64)
}
