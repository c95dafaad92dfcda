//! The loop: applies each record of all request partitions in order, and lets answers leave.
//!
//! * Latency first: a record is applied on the very thread that reads it, its answer
//!   queued before the next one is looked at. Nothing here waits for the disk, except
//!   when a checkpoint cannot keep up with changes (`Partition::is_full`).
//! * Whatever else concerns the state (timers, checkpoints done, questions by logins and
//!   downloads) is done by another thread, [`attend`], one at a time with records: whoever
//!   holds the lock has the state.
//! * What the log had at the start is applied first. Then this incarnation opens in
//!   every partition; the server is ready when all of these records have come back and it
//!   is known which server answers ([`Answering`]).

mod answering;
mod opening;

pub use answering::Answering;

use super::answers::Answers;
use super::own::{OwnRecords, Sent};
use super::partition::{Begun, Partition};
use super::{Control, Halt, Phases, Sessions};
use crate::data::DataDir;
use crate::error::ServerError;
use crate::login::Attempts;
use crate::machine::effect::{Effect, NotApplied};
use crate::packs::Packs;
use proto::frame::{HEADER_BYTES, Header, Kind};
use proto::log::{Appended, LogError, Record, Sink, Tail, Topic};
use proto::message::ServerRecord;
use proto::planted::{Bug, planted};
use proto::{Epoch, Position, ServerId, task};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

/// A record that opens this incarnation and may not have been appended is appended again after this long.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(500);

const TICK_EVERY: Duration = Duration::from_millis(500);

/// A tick that has not come back after this long is taken for lost.
const TICK_LOST_AFTER: Duration = Duration::from_secs(5);

/// A decision that has not landed is appended again after this long.
const DELIVER_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Skipped records are told of at most this often.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// How long a clean stop waits for the last answer to be sent.
const LAST_ANSWER_WAIT: Duration = Duration::from_secs(2);

/// What the loop has and knows.
pub struct Apply {
    pub partitions: Vec<Partition>,
    pub checkpoints: mpsc::UnboundedSender<Begun>,
    pub own: Arc<OwnRecords>,
    pub answers: Answers,
    pub packs: Arc<Packs>,
    pub sessions: Arc<Sessions>,
    pub attempts: Arc<Attempts>,
    pub phases: Arc<Phases>,
    pub opening: Opening,
    pub answering: Answering,
    /// Whoever waits does so on the caller's thread.
    pub inline: bool,
    pub state: State,
}

/// How this incarnation opens once everything is replayed.
pub struct Opening {
    pub server: ServerId,
    /// The newest version of the machine that this server runs.
    pub supports: u32,
    /// Begin an epoch above every known one, whatever the partitions' state.
    pub new_epoch: bool,
    /// An epoch that was begun before and not finished: the new one is above it.
    pub begun: Option<Epoch>,
    pub data: Arc<DataDir>,
    pub append_time: bool,
    pub volatile: bool,
    /// Told the epoch when it is known: from then on content can be ingested.
    pub epoch: Option<oneshot::Sender<Epoch>>,
}

/// What the loop itself remembers.
#[derive(Default)]
pub struct State {
    /// Decisions of partition 0 that have not landed yet.
    deliveries: BTreeMap<Position, Delivery>,
    /// Whether those that were open when this server began to answer have been asked for.
    deliveries_known: bool,
    opening_sent: bool,
    /// What servers say that they have applied has been compared with the log.
    compared: bool,
    /// Whether content is ingested, and downloads and logins are served.
    serving: bool,
    ready: bool,
    skipped: u64,
    skipped_told: Option<Instant>,
    /// Appends of the records that open this incarnation: if one fails, so does the server.
    opening: Vec<(u32, Appended)>,
    /// The epoch that it opens in.
    opening_epoch: Epoch,
    /// What [`attend`] sleeps until.
    armed: Option<Instant>,
    /// The last heartbeat's append.
    last_heartbeat: Option<Appended>,
    /// What has stopped the reading of records.
    failed: Option<ServerError>,
    /// No record is applied any more.
    over: bool,
}

/// A decision of partition 0 on its way to another partition.
struct Delivery {
    partition: u32,
    record: ServerRecord,
    sent: Instant,
    /// The number of the record that carried it last.
    number: u64,
}

/// The state, and those who wait for it.
struct Shared {
    apply: Mutex<Apply>,
    /// A checkpoint was taken in, or the loop is over.
    room: Condvar,
    /// Something is due earlier than [`attend`] thinks.
    wake: Notify,
}

/// Runs until told to stop or something fails. A clean stop checkpoints. `reports` is the
/// other end of `control`, for what this itself has under way.
pub async fn run(
    mut apply: Apply,
    tail: Tail,
    mut control: mpsc::Receiver<Control>,
    reports: mpsc::Sender<Control>,
    mut halted: watch::Receiver<Halt>,
) -> Result<(), ServerError> {
    apply.register_sessions();
    apply.answering.ingested = apply.packs.ingested()?;
    let shared = Arc::new(Shared { apply: Mutex::new(apply), room: Condvar::new(), wake: Notify::new() });
    let reading = tail.hand_to("kfs-apply", Records(shared.clone()))?;
    let ended = attend(&shared, &mut control, &reports, &mut halted).await;
    shared.lock().state.over = true;
    shared.room.notify_all();
    reading.end();
    match ended {
        Ok(Halt::Clean) => finish(&shared, &mut control).await,
        Ok(_) => Ok(()),
        Err(error @ (ServerError::LogChanged { .. } | ServerError::RecordsGone { .. }))
            if !planted(Bug::LostLogUnsaved) =>
        {
            // What it has applied of a log that is no more may be nowhere else.
            if let Err(unsaved) = checkpoint_all(&shared, &mut control).await {
                tracing::error!("{unsaved}; what was applied since the last checkpoint is lost");
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Does everything but applying records, until told to stop.
async fn attend(
    shared: &Shared,
    control: &mut mpsc::Receiver<Control>,
    reports: &mpsc::Sender<Control>,
    halted: &mut watch::Receiver<Halt>,
) -> Result<Halt, ServerError> {
    loop {
        let (due, opening) = {
            let mut apply = shared.lock();
            if let Some(error) = apply.state.failed.take() {
                return Err(error);
            }
            let due = apply.settle(Instant::now())?;
            apply.state.armed = Some(due);
            (due, std::mem::take(&mut apply.state.opening))
        };
        for (partition, appended) in opening {
            let reports = reports.clone();
            task::spawn(async move {
                let report = match appended.await {
                    Ok(_) => return,
                    // It may stand in the log all the same, and will be read there then.
                    Err(LogError::NotAppended { .. } | LogError::Unreachable { .. }) => {
                        tokio::time::sleep(OPEN_AGAIN_AFTER).await;
                        Control::OpenAgain(partition)
                    }
                    Err(error) => Control::Failed(error.into()),
                };
                // Nobody listens any more when the loop has ended.
                let _ = reports.send(report).await;
            });
        }
        tokio::select! {
            biased;
            halt = wait_halt(halted) => return Ok(halt),
            control = control.recv() => match control {
                Some(control) => shared.control(control)?,
                None => return Ok(Halt::Now),
            },
            () = shared.wake.notified() => {}
            () = tokio::time::sleep_until(due) => {}
        }
    }
}

/// A clean end: everything applied is checkpointed, what waited for that is answered.
async fn finish(shared: &Shared, control: &mut mpsc::Receiver<Control>) -> Result<(), ServerError> {
    shared.lock().say_that_it_ends();
    checkpoint_all(shared, control).await?;
    shared.lock().end_epoch()?;
    let latest = {
        let mut apply = shared.lock();
        [apply.answers.latest(), apply.state.last_heartbeat.take()]
    };
    for latest in latest.into_iter().flatten() {
        // Its failure is nothing to a server that ends.
        let _ = tokio::time::timeout(LAST_ANSWER_WAIT, latest).await;
    }
    Ok(())
}

/// Brings everything applied to disk.
async fn checkpoint_all(shared: &Shared, control: &mut mpsc::Receiver<Control>) -> Result<(), ServerError> {
    while shared.lock().checkpoint_all() {
        match control.recv().await {
            Some(control) => shared.control(control)?,
            None => break,
        }
    }
    Ok(())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Apply> {
        // A panic while applying has stopped the server; this one only says so.
        self.apply.lock().expect("applying the log has panicked")
    }

    fn control(&self, control: Control) -> Result<(), ServerError> {
        self.lock().control(control)?;
        self.room.notify_all();
        Ok(())
    }
}

/// Applies records on the thread that reads them.
struct Records(Arc<Shared>);

impl Records {
    fn step(&self, apply: &mut Apply, step: impl FnOnce(&mut Apply) -> Result<(), ServerError>) -> ControlFlow<()> {
        match step(apply) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                apply.state.failed.get_or_insert(error);
                self.0.wake.notify_one();
                ControlFlow::Break(())
            }
        }
    }
}

impl Sink for Records {
    fn take(&mut self, item: Result<Record, LogError>) -> ControlFlow<()> {
        let mut apply = self.0.lock();
        while apply.is_full() && !apply.state.over {
            apply = self.0.room.wait(apply).expect("applying the log has panicked");
        }
        if apply.state.over {
            return ControlFlow::Break(());
        }
        self.step(&mut apply, |apply| apply.item(item, Instant::now()))
    }

    fn rest(&mut self) -> ControlFlow<()> {
        let mut apply = self.0.lock();
        self.step(&mut apply, |apply| {
            let due = apply.settle(Instant::now())?;
            if apply.state.armed.is_some_and(|armed| due < armed) || !apply.state.opening.is_empty() {
                apply.state.armed = None;
                self.0.wake.notify_one();
            }
            Ok(())
        })
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // Whoever attends finds out why.
        self.0.wake.notify_one();
    }
}

impl Apply {
    /// What is due, now that nothing more is at hand. Gives the time when something is due next.
    fn settle(&mut self, now: Instant) -> Result<Instant, ServerError> {
        self.open_when_caught_up()?;
        self.take_due_checkpoints(now);
        Ok(self.send_due_records(now))
    }

    fn item(&mut self, item: Result<Record, LogError>, now: Instant) -> Result<(), ServerError> {
        match item {
            Ok(record) => {
                let done = self.record(record, now);
                self.answers.leave();
                done
            }
            Err(error @ LogError::OutOfRange { .. }) => Err(out_of_range(error)),
            // It passes: reading goes on by itself.
            Err(error) => {
                tracing::warn!("{error}; waiting for Kafka");
                Ok(())
            }
        }
    }

    /// Whether applying must wait for a checkpoint under way.
    fn is_full(&self) -> bool {
        self.partitions.iter().any(Partition::is_full)
    }

    fn record(&mut self, record: Record, now: Instant) -> Result<(), ServerError> {
        // The first frame's. Whoever writes several frames into one record is no server.
        let header = record.value.first_chunk::<HEADER_BYTES>().and_then(|bytes| Header::decode(bytes).ok());
        let by_server = header.as_ref().is_some_and(|header| header.kind == Kind::Server);
        let own = header.filter(|header| by_server && header.sender == self.own.incarnation().0);
        if record.partition == 0 && record.offset >= self.partitions[0].existing_end {
            self.compare_with_servers()?;
        }
        let partition = &mut self.partitions[record.partition as usize];
        if partition.is_foreign && !partition.opened && own.is_none() {
            // The epoch begins from the state that this server has, not from what others
            // still write to the one that is over.
            partition.pass(&record, now);
            return Ok(());
        }
        let applied = match partition.apply(&record, now, !by_server) {
            // Of an attempt of our own that was not finished.
            Err(ServerError::NotApplied(NotApplied::OtherState { by, .. } | NotApplied::Unproven { by, .. }))
                if self.opening.new_epoch && by == self.opening.server =>
            {
                partition.pass(&record, now);
                return Ok(());
            }
            applied => applied?,
        };
        let Some(applied) = applied else { return Ok(()) };

        let epoch = partition.machine.epoch();
        if self.state.opening_sent && epoch > self.own.epoch(record.partition) {
            return Err(ServerError::EpochOver { epoch });
        }
        self.answering.applied(record.partition, partition.next_offset, partition.machine.state_hash())?;
        if header.as_ref().is_some_and(|header| header.kind == Kind::Open) {
            self.answering.active(now);
        }
        for effect in applied.effects {
            self.effect(record.partition, record.offset, epoch, effect, now)?;
        }
        match (own, applied.skipped) {
            (Some(header), None) => self.own_record_applied(record.partition, header.number, now),
            (Some(header), Some(reason)) => self.own_record_skipped(record.partition, header.number, reason)?,
            (None, _) => {}
        }
        if let Some(reason) = applied.skipped {
            self.skipped(&record, reason, now);
        }
        Ok(())
    }

    /// `offset` is the record's that it comes from.
    fn effect(
        &mut self,
        partition: u32,
        offset: u64,
        epoch: Epoch,
        effect: Effect,
        now: Instant,
    ) -> Result<(), ServerError> {
        match effect {
            // What the state depends on happens whether or not anyone is told.
            Effect::Keep { name, content } => self.packs.keep(name, content)?,
            Effect::Unreferenced { name } => self.packs.freed(partition, name),
            Effect::SessionOpened { to } => self.sessions.opened(partition, to),
            Effect::SessionOver { session } => self.sessions.over(partition, session),
            Effect::Heartbeat { server, incarnation, number, answers, ends } => {
                self.heard(server, incarnation, number, (answers, ends), now)?;
            }
            Effect::Deregistered { server } => self.deregistered(server),
            Effect::Deliver { partition, decision, record } => self.deliver(partition, decision, record, now),
            Effect::Decision { attempt, verdict } => {
                self.answering.active(now);
                self.attempts.decided(attempt, verdict);
            }
            Effect::Admin { .. } => {
                self.answering.active(now);
                self.say(partition, offset, epoch, effect, now);
            }
            Effect::Answer { .. } | Effect::Push { .. } | Effect::SessionEnded { .. } => {
                self.say(partition, offset, epoch, effect, now);
            }
        }
        Ok(())
    }

    /// Sends what only speaks to clients.
    fn speak(&mut self, epoch: Epoch, effect: Effect) {
        match effect {
            Effect::Answer { to, number, request, answer, payload, .. } => {
                self.answers.answer(epoch, &to, number, request, &answer, &payload);
            }
            Effect::Push { to, number, body } => self.answers.push(epoch, &to, number, &body),
            Effect::SessionEnded { session, replies_partition, number, request, at } => {
                self.answers.session_ended(session, replies_partition, number, request, at);
            }
            Effect::Admin { to, replies_partition, number, request, answer } => {
                self.answers.admin(epoch, to, replies_partition, number, request, &answer);
            }
            Effect::Keep { .. }
            | Effect::Unreferenced { .. }
            | Effect::Decision { .. }
            | Effect::Deliver { .. }
            | Effect::SessionOpened { .. }
            | Effect::SessionOver { .. }
            | Effect::Heartbeat { .. }
            | Effect::Deregistered { .. } => {}
        }
    }

    fn own_record_applied(&mut self, partition: u32, number: u64, now: Instant) {
        let at = &mut self.partitions[partition as usize];
        if number == 0 {
            // Before the epoch's first checkpoint, which hides what is behind the last one.
            self.packs.replayed(partition);
            at.opened = true;
            // A new epoch is made to last before anything is named by it.
            at.checkpoint_soon(now);
        }
        if at.tick_under_way == Some(number) {
            at.tick_under_way = None;
        }
        let landed =
            |(_, delivery): &(&Position, &Delivery)| delivery.partition == partition && delivery.number == number;
        if let Some(decision) = self.state.deliveries.iter().find(landed).map(|(decision, _)| *decision) {
            self.state.deliveries.remove(&decision);
            drop(self.own.append(0, ServerRecord::Landed { decision }));
        }
        if number == 0 {
            self.watch_when_open(now);
        }
    }

    fn deliver(&mut self, partition: u32, decision: Position, record: ServerRecord, now: Instant) {
        // Whoever takes over asks for those that have not landed.
        if self.answering.is_answering() && !self.state.deliveries.contains_key(&decision) {
            let Sent { number, .. } = self.own.append(partition, record.clone());
            self.state.deliveries.insert(decision, Delivery { partition, record, sent: now, number });
        }
    }

    fn skipped(&mut self, record: &Record, reason: &str, now: Instant) {
        self.state.skipped += 1;
        if self.state.skipped_told.is_none_or(|told| now.duration_since(told) >= WARN_EVERY) {
            self.state.skipped_told = Some(now);
            let hash = blake3::hash(&record.value).to_hex();
            tracing::warn!(
                "skipped the record at {}/{}@{} (BLAKE3 {}): {reason}; {} skipped since the start",
                Topic::Requests.suffix(),
                record.partition,
                record.offset,
                &hash[..16],
                self.state.skipped,
            );
        }
    }

    fn register_sessions(&self) {
        for partition in &self.partitions {
            for peer in partition.machine.sessions() {
                self.sessions.opened(partition.number, peer);
            }
        }
    }

    /// Sends ticks and deliveries that are due. Gives the time when anything is due next.
    fn send_due_records(&mut self, now: Instant) -> Instant {
        let mut next = now + Duration::from_secs(60);
        next = self.look_at_servers(now).map_or(next, |look| next.min(look));
        let answering = self.answering.is_answering();
        for partition in &mut self.partitions {
            next = partition.checkpoint_due().map_or(next, |due| next.min(due));
            if !answering || !partition.machine.needs_ticks() {
                // The next tick's time begins when ticking does.
                partition.ticked = None;
                continue;
            }
            let due = partition.ticked.map_or(now, |ticked| {
                ticked + if partition.tick_under_way.is_some() { TICK_LOST_AFTER } else { TICK_EVERY }
            });
            if due > now {
                next = next.min(due);
                continue;
            }
            let elapsed_ms = partition.ticked.map_or(0, |ticked| now.duration_since(ticked).as_millis() as u64);
            let Sent { number, .. } = self.own.append(partition.number, ServerRecord::Tick { elapsed_ms });
            partition.ticked = Some(now);
            partition.tick_under_way = Some(number);
            next = next.min(now + TICK_EVERY);
        }

        for delivery in self.state.deliveries.values_mut() {
            if now.duration_since(delivery.sent) >= DELIVER_AGAIN_AFTER {
                delivery.number = self.own.append(delivery.partition, delivery.record.clone()).number;
                delivery.sent = now;
            }
            next = next.min(delivery.sent + DELIVER_AGAIN_AFTER);
        }
        // Decisions made before this server answered, by anyone.
        if answering && !self.state.deliveries_known {
            self.state.deliveries_known = true;
            let zero = &mut self.partitions[0];
            for effect in zero.machine.deliveries(&mut zero.store) {
                if let Effect::Deliver { partition, decision, record } = effect {
                    self.deliver(partition, decision, record, now);
                }
            }
        }
        next
    }

    fn take_due_checkpoints(&mut self, now: Instant) {
        self.begin_checkpoints(|partition| partition.checkpoint_due().is_some_and(|due| due <= now));
    }

    fn begin_checkpoints(&mut self, wanted: impl Fn(&Partition) -> bool) {
        for partition in self.partitions.iter_mut().filter(|partition| wanted(partition)) {
            if let Some(begun) = partition.begin_checkpoint() {
                self.packs.cut(begun.cut);
                // Whoever writes them ends only with the loop, or after an error that stops it.
                let _ = self.checkpoints.send(begun);
            }
        }
    }

    fn control(&mut self, control: Control) -> Result<(), ServerError> {
        match control {
            Control::Checkpointed { partition, written, with_uploads } => {
                let partition = &mut self.partitions[partition as usize];
                let epoch = partition.machine.epoch();
                let (answers, cut) = partition.end_checkpoint(written?, with_uploads);
                for answer in answers {
                    self.speak(epoch, answer);
                }
                self.answers.leave();
                // A checkpoint has brought the content to disk as well.
                self.answering.ingested = self.packs.ingested()?;
                let now = Instant::now();
                if let Some(cut) = cut {
                    self.packs.covered(cut, now);
                }
                self.watch_when_open(now);
            }
            Control::Failed(error) => return Err(error),
            Control::OpenAgain(partition) => self.open_partition(partition),
            Control::Serving => {
                self.state.serving = true;
                self.watch_when_open(Instant::now());
            }
            Control::Ask(ask) => self.asked(ask)?,
        }
        Ok(())
    }

    /// Everything is on disk: so is the epoch that has begun here.
    fn end_epoch(&self) -> Result<(), ServerError> {
        if self.opening.new_epoch && self.state.ready {
            self.opening.data.end_epoch()?;
        }
        Ok(())
    }

    /// Begins a checkpoint wherever one is left to take. Whether any is under way.
    fn checkpoint_all(&mut self) -> bool {
        self.begin_checkpoints(|_| true);
        self.partitions.iter().any(|partition| partition.store.is_frozen())
    }
}

async fn wait_halt(halted: &mut watch::Receiver<Halt>) -> Halt {
    // An error means that whoever started the server is gone.
    halted.wait_for(|halt| *halt != Halt::No).await.map_or(Halt::Now, |halt| *halt)
}

/// The tail's own words, in the loop's.
fn out_of_range(error: LogError) -> ServerError {
    match error {
        LogError::OutOfRange { partition, offset, first, .. } if offset < first => {
            ServerError::RecordsGone { topic: Topic::Requests.suffix(), partition, first, wanted: offset }
        }
        LogError::OutOfRange { partition, offset, next, .. } => ServerError::LogChanged {
            topic: Topic::Requests.suffix(),
            partition,
            reason: format!("it now ends at offset {next}, before {offset}"),
        },
        other => other.into(),
    }
}
