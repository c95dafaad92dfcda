//! The loop's part in who answers: hears and sends heartbeats, and lets only the
//! answering server speak, tick, deliver and trim. Decisions are `crate::replica`'s.
//!
//! * What a quiet server would have said is kept, and said when it takes over: at the
//!   very record by which it does, so before anything that comes after.
//! * "Answered up to" is where this server had come when it sent the heartbeat before:
//!   what was said until then has long been acknowledged when the next one is written.

use super::Apply;
use crate::error::ServerError;
use crate::machine::Registered;
use crate::machine::effect::Effect;
use crate::packs::Reached;
use crate::replica::hashes::{Differs, Hashes};
use crate::replica::unsaid::Unsaid;
use crate::replica::upkeep::{Due, Known, Upkeep};
use crate::replica::{Replica, Rules, Turn};
use crate::run::partition::Partition;
use proto::log::{REQUEST_PARTITIONS, Topic};
use proto::message::{Heartbeat, Progress, ServerRecord};
use proto::planted::{Bug, planted};
use proto::{Epoch, IncarnationId, ServerId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A heartbeat tells of all partitions at least this often, since one can be lost.
const WHOLE_EVERY: Duration = Duration::from_secs(10);

/// What the loop remembers about servers.
pub struct Answering {
    server: ServerId,
    rules: Rules,
    /// Where the replica's milliseconds begin.
    began: Instant,
    /// Once this incarnation is open everywhere.
    replica: Option<Replica>,
    unsaid: Unsaid<(Epoch, Effect)>,
    hashes: Hashes,
    upkeep: Upkeep,
    /// By partition: before which offset everything has been answered, by anyone.
    answered: Vec<u64>,
    /// By partition: what had been applied when the last heartbeat was sent, if this server answered then.
    said: Option<Vec<u64>>,
    reported: Vec<Option<Progress>>,
    whole: Option<Instant>,
    /// How much of `chunks` is on disk.
    pub ingested: BTreeMap<u32, Reached>,
    trimming: Arc<AtomicBool>,
    /// Whether this server answers, for logins and downloads.
    speaking: watch::Sender<bool>,
}

impl Answering {
    pub fn new(server: ServerId, rules: Rules, speaking: watch::Sender<bool>) -> Answering {
        Answering {
            server,
            rules,
            began: Instant::now(),
            replica: None,
            unsaid: Unsaid::default(),
            hashes: Hashes::default(),
            upkeep: Upkeep::default(),
            answered: vec![0; REQUEST_PARTITIONS as usize],
            said: None,
            reported: vec![None; REQUEST_PARTITIONS as usize],
            whole: None,
            ingested: BTreeMap::new(),
            trimming: Arc::default(),
            speaking,
        }
    }

    fn ms(&self, now: Instant) -> u64 {
        now.duration_since(self.began).as_millis() as u64
    }

    pub fn is_answering(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::is_answering)
    }

    /// Somebody asks for something.
    pub fn active(&mut self, now: Instant) {
        let ms = self.ms(now);
        if let Some(replica) = &mut self.replica {
            replica.active(ms);
        }
    }

    /// Everything before `next` has been applied in a partition.
    pub fn applied(&mut self, partition: u32, next: u64, hash: [u8; 32]) -> Result<(), ServerError> {
        self.hashes.applied(partition, next, hash).map_err(|differs| self.differs(differs, None))
    }

    fn differs(&self, differs: Differs, by: Option<ServerId>) -> ServerError {
        let Differs { partition, at, here, there } = differs;
        let by = by.or_else(|| self.replica.as_ref()?.answering_other()).unwrap_or_default();
        ServerError::Differs { partition, at, here, there, by }
    }

    /// Takes in how far others say that everything has been answered.
    fn learn(&mut self, progress: &BTreeMap<u32, Progress>) {
        for (partition, progress) in progress {
            let known = &mut self.answered[*partition as usize];
            *known = (*known).max(progress.answered);
            self.unsaid.answered(*partition, *known);
        }
    }

    fn heartbeat(
        &mut self,
        partitions: &[Partition],
        servers: &BTreeMap<ServerId, Registered>,
        (answers, ends): (bool, bool),
        now: Instant,
    ) -> Heartbeat {
        if self.is_answering() {
            let applied = partitions.iter().map(Partition::answered_to).collect();
            if let Some(said) = self.said.replace(applied) {
                self.answered = said;
            }
        } else {
            servers.values().for_each(|known| self.learn(&known.progress));
        }
        let whole = self.whole.is_none_or(|whole| now.duration_since(whole) >= WHOLE_EVERY);
        if whole {
            self.whole = Some(now);
        }
        let mut told = Vec::new();
        for partition in partitions {
            let number = partition.number;
            let (hash_at, hash) = self.hashes.report(number);
            let ingested = self.ingested.get(&number).filter(|reached| reached.epoch == partition.machine.epoch());
            let progress = Progress {
                partition: number,
                applied: partition.next_offset,
                answered: self.answered[number as usize],
                checkpointed: partition.safe_offset(),
                ingested: ingested.map_or(0, |reached| reached.next_offset),
                hash_at,
                hash,
                agreed: self.hashes.agreed(number),
                activity: partition.machine.activity(),
            };
            let before = self.reported[number as usize].replace(progress.clone());
            if whole || before.as_ref() != Some(&progress) {
                told.push(progress);
            }
        }
        Heartbeat { answers, ends, partitions: told }
    }
}

impl Apply {
    /// Says something, or keeps it while another server answers. It comes from the
    /// record at `offset`.
    pub(super) fn say(&mut self, partition: u32, offset: u64, epoch: Epoch, effect: Effect, now: Instant) {
        if self.answering.is_answering() {
            self.voice(partition, epoch, effect, now);
        } else {
            self.answering.unsaid.keep(partition, offset, effect.weight(), (epoch, effect));
        }
    }

    fn voice(&mut self, partition: u32, epoch: Epoch, effect: Effect, now: Instant) {
        let waits = match &effect {
            Effect::Answer { after_checkpoint, .. } => after_checkpoint.is_some() || self.lacks_content(partition),
            // Where the log itself may be lost, a user who was told of must be safe: one added
            // again after a crash has other keys, and could not open what the first one wrote.
            Effect::Admin { .. } => self.opening.volatile,
            _ => false,
        };
        if waits {
            self.partitions[partition as usize].await_checkpoint(effect, now);
        } else {
            self.speak(epoch, effect);
        }
    }

    /// Whether content that requests have quoted is still to be ingested, from a log that forgets:
    /// an answer lets its client upload more.
    fn lacks_content(&self, partition: u32) -> bool {
        let (epoch, next_offset) = self.partitions[partition as usize].machine.quoted();
        self.opening.volatile && next_offset > 0 && !self.packs.has_ingested(partition, epoch, next_offset)
    }

    /// Once this incarnation is open in every partition: looks who answers. Nothing is said in
    /// an epoch that the next start of this server would not know of, nor by one that does not
    /// ingest yet: answers let clients upload more, and the embedded broker forgets.
    pub(super) fn watch_when_open(&mut self, now: Instant) {
        let is_open = self.partitions.iter().all(|partition| partition.opened && partition.is_of_this_log());
        if !is_open || !self.state.serving || self.answering.replica.is_some() {
            return;
        }
        let answering = &mut self.answering;
        let servers = self.partitions[0].machine.servers();
        let (ms, incarnation) = (answering.ms(now), self.own.incarnation());
        answering.replica = Some(Replica::new(answering.server, incarnation, answering.rules, servers, ms));
    }

    /// A heartbeat has been applied, own ones too.
    pub(super) fn heard(
        &mut self,
        server: ServerId,
        incarnation: IncarnationId,
        number: u64,
        (answers, ends): (bool, bool),
        now: Instant,
    ) -> Result<(), ServerError> {
        let known = self.partitions[0].machine.servers().get(&server);
        let answering = &mut self.answering;
        let ms = answering.ms(now);
        if answers && let Some(known) = known {
            answering.learn(&known.progress);
            // Hashes are chained, so that later ones tell as much. What the log holds from before this server was open
            // may be of an epoch that is over, in offsets that other records have now.
            if self.partitions[0].opened && server != answering.server && !answering.is_answering() {
                for progress in known.progress.values() {
                    let told = answering.hashes.told(progress.partition, progress.hash_at, progress.hash);
                    told.map_err(|differs| answering.differs(differs, Some(server)))?;
                }
            }
        }
        let Some(replica) = &mut answering.replica else { return Ok(()) };
        let turn = replica.heard(ms, server, incarnation, number, answers);
        if ends {
            replica.ended(server);
        }
        match turn {
            Some(Turn::Begin) => self.begin_answering(now),
            Some(Turn::End { to }) => self.end_answering(to),
            None => {}
        }
        if !self.state.ready && self.answering.replica.as_ref().is_some_and(Replica::is_settled) {
            self.state.ready = true;
            self.phases.ready();
        }
        Ok(())
    }

    pub(super) fn deregistered(&mut self, server: ServerId) {
        if server == self.answering.server {
            tracing::warn!("this server was deregistered; its next heartbeat registers it again");
        } else {
            tracing::info!("the server {server} was deregistered: the log is kept for it no longer");
        }
        if let Some(replica) = &mut self.answering.replica {
            replica.ended(server);
        }
    }

    fn begin_answering(&mut self, now: Instant) {
        let answering = &mut self.answering;
        let servers = self.partitions[0].machine.servers();
        servers.values().for_each(|known| answering.learn(&known.progress));
        answering.said = None;
        tracing::info!(
            "answering from here on; {} answers are said that may not have been, {} were dropped before",
            answering.unsaid.len(),
            answering.unsaid.dropped(),
        );
        while let Some((partition, (epoch, effect))) = self.answering.unsaid.pop() {
            if !planted(Bug::TakeoverSaysNothing) {
                self.voice(partition, epoch, effect, now);
            }
        }
        // Those that nobody has delivered yet are asked for again.
        self.state.deliveries_known = false;
        self.answering.speaking.send_replace(true);
    }

    fn end_answering(&mut self, to: ServerId) {
        tracing::info!("the server {to} answers from here on");
        self.answering.said = None;
        self.answering.speaking.send_replace(false);
        self.state.deliveries.clear();
        for partition in &mut self.partitions {
            (partition.ticked, partition.tick_under_way) = (None, None);
        }
    }

    /// Sends a heartbeat if one is due, and does what only the answering server does now
    /// and then. Gives the time when to look again.
    pub(super) fn look_at_servers(&mut self, now: Instant) -> Option<Instant> {
        let busy = self.partitions.iter().any(|partition| partition.machine.needs_ticks());
        let ms = self.answering.ms(now);
        let look = self.answering.replica.as_mut()?.look(ms, busy);
        if let Some(answers) = look.heartbeat {
            self.send_heartbeat(answers, false, now);
        }
        let mut next_ms = look.next_ms;
        if self.answering.is_answering() {
            self.keep_up(ms);
            next_ms = next_ms.min(self.answering.upkeep.due_ms(&self.answering.rules));
        }
        Some(self.answering.began + Duration::from_millis(next_ms))
    }

    fn send_heartbeat(&mut self, answers: bool, ends: bool, now: Instant) {
        let servers = self.partitions[0].machine.servers();
        let heartbeat = self.answering.heartbeat(&self.partitions, servers, (answers, ends), now);
        let sent = self.own.append(0, ServerRecord::Heartbeat(heartbeat));
        if let Some(replica) = &mut self.answering.replica {
            replica.sent(sent.number);
        }
        // A lost one is followed by another.
        self.state.last_heartbeat = Some(sent.appended);
    }

    /// Says that this server ends, so that nobody waits for its silence.
    pub(super) fn say_that_it_ends(&mut self) {
        if self.answering.replica.is_some() {
            self.send_heartbeat(false, true, Instant::now());
            self.answering.speaking.send_replace(false);
        }
    }

    fn keep_up(&mut self, ms: u64) {
        let zero = &self.partitions[0].machine;
        let me = self.answering.server;
        let known = Known {
            me,
            servers: zero.servers(),
            time_ms: zero.servers().get(&me).map_or(0, |own| own.heard_ms),
            version: self.partitions.iter().map(|partition| partition.machine.version()).min().unwrap_or(0),
            trims: zero.append_time() && !zero.volatile() && !self.answering.trimming.load(Ordering::Acquire),
        };
        let Due { trims, deregister, warn, version } = self.answering.upkeep.due(ms, &self.answering.rules, &known);
        for (server, left_ms) in warn {
            tracing::warn!(
                "the log is kept for the server {server}, which has brought nothing to disk for long: start it, or \
                 `kfs-server deregister {server}`; in {} min that happens by itself, and it then needs a snapshot",
                left_ms / 60_000
            );
        }
        for server in deregister {
            tracing::warn!(
                "the server {server} has brought nothing to disk for {} h; deregistering it: it then needs a snapshot",
                self.answering.rules.deregister_after_ms / 3_600_000
            );
            drop(self.own.append(0, ServerRecord::Deregister { server }));
        }
        if let Some(version) = version {
            tracing::info!("every server can run the machine's version {version}; raising it");
            let below = |partition: &&Partition| {
                partition.machine.version() < version && (partition.number == 0 || !planted(Bug::VersionInOnePartition))
            };
            for partition in self.partitions.iter().filter(below) {
                drop(self.own.append(partition.number, ServerRecord::Version { version }));
            }
        }
        if !trims.is_empty() {
            self.trim(trims);
        }
    }

    /// Forgets records that nobody needs, on a thread of its own: Kafka may take its time.
    fn trim(&self, trims: Vec<(Topic, u32, u64)>) {
        let (log, under_way) = (self.own.log(), self.answering.trimming.clone());
        under_way.store(true, Ordering::Release);
        let work = move || {
            for (topic, partition, before) in trims {
                match log.trim(topic, partition, before) {
                    Ok(()) => tracing::debug!("trimmed {}/{partition} before {before}", topic.suffix()),
                    Err(error) => tracing::warn!("cannot trim {}/{partition}: {error}", topic.suffix()),
                }
            }
            under_way.store(false, Ordering::Release);
        };
        if self.inline {
            work();
        } else if let Err(error) = std::thread::Builder::new().name("kfs-trim".into()).spawn(work) {
            self.answering.trimming.store(false, Ordering::Release);
            tracing::warn!("cannot trim the log: {error}");
        }
    }
}
