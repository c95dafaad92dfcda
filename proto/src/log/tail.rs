//! Reading a log: records one by one ([`Tail::next`]), or handed over on the very
//! thread that reads them ([`Tail::hand_to`]), which saves a wake-up each.

use super::{LogError, Record, block_on, memory};
use std::ops::ControlFlow;
#[cfg(feature = "simulation")]
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, watch};

/// What reading gives: a record, or trouble on the way to the next one.
pub type Item = Result<Record, LogError>;

/// Records of some partitions, in order within each, until dropped.
///
/// Filled by a polling thread of the log's own and bounded ([`Tail::QUEUE_RECORDS`],
/// [`Tail::QUEUE_BULK_RECORDS`]): a slow reader slows the thread, which then stops
/// fetching. Passing trouble (no broker) shows as `Err` once per outage; reading goes
/// on by itself after it. [`LogError::OutOfRange`] is a tail's last item: what comes
/// next has gone, and only the reader knows where to begin again.
pub struct Tail {
    source: Source,
}

enum Source {
    /// Nothing has been asked for yet: the first question starts the polling thread.
    Idle(Box<dyn Poller>),
    /// Filled by a polling thread, which ends when this end is dropped.
    Queue(mpsc::Receiver<Item>),
    Memory(memory::Reader),
    #[cfg(feature = "simulation")]
    Cuttable(Cuttable),
    Ended,
}

/// A queue of which nothing comes any more, not even what waits in it, once it is known how it ends.
#[cfg(feature = "simulation")]
struct Cuttable {
    records: mpsc::Receiver<Item>,
    end: Arc<OnceLock<LogError>>,
    ended: bool,
}

#[cfg(feature = "simulation")]
impl Cuttable {
    async fn next(&mut self) -> Option<Item> {
        match self.end.get() {
            Some(_) => self.ends(),
            None => self.records.recv().await.filter(|_| self.end.get().is_none()).or_else(|| self.ends()),
        }
    }

    fn try_next(&mut self) -> Option<Item> {
        match self.end.get() {
            Some(_) => self.ends(),
            None => self.records.try_recv().ok(),
        }
    }

    fn ends(&mut self) -> Option<Item> {
        let first = !std::mem::replace(&mut self.ended, true);
        self.end.get().filter(|_| first).cloned().map(Err)
    }
}

/// A reader that has a thread to itself.
pub(super) trait Poller: Send {
    /// Items that may wait where they are not handed over.
    fn queue(&self) -> usize;

    /// Reads until the sink breaks or `stop` is closed.
    fn run(self: Box<Self>, sink: &mut dyn Sink, stop: &watch::Receiver<()>);
}

/// Takes what a tail reads, on the thread that reads it.
pub trait Sink: Send {
    /// Takes one item, as [`Tail::next`] would give it. While this lasts nothing more is
    /// read. `Break` ends the reading.
    fn take(&mut self, item: Item) -> ControlFlow<()>;

    /// Nothing more is at hand, or [`Tail::BATCH`] items have come since the last rest.
    fn rest(&mut self) -> ControlFlow<()>;
}

/// A tail that is handed to a sink: reading ends soon after this is dropped.
pub struct Handing {
    /// Closed by being dropped.
    _stop: watch::Sender<()>,
    reading: Reading,
}

enum Reading {
    Thread(std::thread::JoinHandle<()>),
    /// Ends at its next turn after the sender has gone.
    #[cfg(feature = "simulation")]
    Task,
}

impl Handing {
    /// Ends the reading and waits until the sink is gone, at most some 100 ms longer than it
    /// takes an item. Not to be called by the sink itself.
    pub fn end(self) {
        let Handing { _stop: stop, reading } = self;
        drop(stop);
        match reading {
            // What panicked there has said so.
            Reading::Thread(thread) => drop(thread.join()),
            #[cfg(feature = "simulation")]
            Reading::Task => {}
        }
    }
}

impl Tail {
    /// Records that may wait in the queue.
    pub const QUEUE_RECORDS: usize = 1024;

    /// Likewise, where one of the topics is a bulk one: 16 records of at most 1 MB.
    pub const QUEUE_BULK_RECORDS: usize = 16;

    /// Items that a [`Sink`] is given without a rest.
    pub const BATCH: usize = 64;

    pub(super) fn polled(poller: Box<dyn Poller>) -> Self {
        Tail { source: Source::Idle(poller) }
    }

    /// The receiving end of a queue that somebody fills.
    pub fn queue(records: mpsc::Receiver<Item>) -> Self {
        Tail { source: Source::Queue(records) }
    }

    /// Likewise; once `end` is set that is the next item and the last one. Whoever sets it drops the sender.
    #[cfg(feature = "simulation")]
    pub fn cuttable(records: mpsc::Receiver<Item>, end: Arc<OnceLock<LogError>>) -> Self {
        Tail { source: Source::Cuttable(Cuttable { records, end, ended: false }) }
    }

    pub(super) fn memory(reader: memory::Reader) -> Self {
        Tail { source: Source::Memory(reader) }
    }

    /// The next record; `None` when there will be no more. Nothing is lost when
    /// the future is dropped before it is ready.
    pub async fn next(&mut self) -> Option<Item> {
        self.start();
        match &mut self.source {
            Source::Queue(records) => records.recv().await,
            Source::Memory(reader) => reader.next().await,
            #[cfg(feature = "simulation")]
            Source::Cuttable(queue) => queue.next().await,
            Source::Idle(_) | Source::Ended => None,
        }
    }

    /// The next record if one is there already.
    pub fn try_next(&mut self) -> Option<Item> {
        self.start();
        match &mut self.source {
            Source::Queue(records) => records.try_recv().ok(),
            Source::Memory(reader) => reader.try_next(),
            #[cfg(feature = "simulation")]
            Source::Cuttable(queue) => queue.try_next(),
            Source::Idle(_) | Source::Ended => None,
        }
    }

    /// The next record, waiting on this thread; for threads outside a runtime.
    pub fn blocking_next(&mut self) -> Option<Item> {
        // What is there already needs no waiting, which a runtime could not be asked for here.
        self.try_next().or_else(|| block_on(self.next()))
    }

    /// Reads on a thread of its own, named `name`, which hands each item to the sink.
    ///
    /// # Errors
    /// [`LogError::Refused`] when the system gives no thread.
    pub fn hand_to(self, name: &str, mut sink: impl Sink + 'static) -> Result<Handing, LogError> {
        let (stop, stopped) = watch::channel(());
        #[cfg(feature = "simulation")]
        if crate::simulation::is_on() {
            crate::task::spawn(async move { self.pump(&mut sink, stopped).await });
            return Ok(Handing { _stop: stop, reading: Reading::Task });
        }
        let thread = spawn(name, move || match self.source {
            Source::Idle(poller) => poller.run(&mut sink, &stopped),
            _ => block_on(self.pump(&mut sink, stopped)),
        })?;
        Ok(Handing { _stop: stop, reading: Reading::Thread(thread) })
    }

    /// Hands over what waits in a queue or in memory.
    async fn pump(mut self, sink: &mut dyn Sink, mut stop: watch::Receiver<()>) {
        loop {
            let first = tokio::select! {
                biased;
                _ = stop.changed() => return,
                item = self.next() => item,
            };
            let mut next = first;
            let mut taken = 0;
            if next.is_none() {
                return;
            }
            while let Some(item) = next {
                if sink.take(item).is_break() {
                    return;
                }
                taken += 1;
                next = if taken < Self::BATCH { self.try_next() } else { None };
            }
            if sink.rest().is_break() {
                return;
            }
        }
    }

    /// Lets an idle source's thread fill a queue.
    fn start(&mut self) {
        let Source::Idle(_) = &self.source else { return };
        let Source::Idle(poller) = std::mem::replace(&mut self.source, Source::Ended) else { return };
        let (sender, queue) = mpsc::channel(poller.queue());
        let refused = sender.clone();
        let filling = move || {
            // Ends by the queue's closing, which the sink sees.
            let (_open, never) = watch::channel(());
            poller.run(&mut Queue(sender), &never);
        };
        if let Err(error) = spawn("kfs-tail", filling) {
            // The queue is new and has room.
            let _ = refused.try_send(Err(error));
        }
        self.source = Source::Queue(queue);
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, LogError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|error| LogError::Refused { tried: "start a reader".to_owned(), reason: error.to_string() })
}

/// Fills a tail's queue.
struct Queue(mpsc::Sender<Item>);

impl Sink for Queue {
    fn take(&mut self, item: Item) -> ControlFlow<()> {
        let sent = match self.0.try_send(item) {
            Ok(()) => true,
            // Ends when there is room or the tail is dropped.
            Err(mpsc::error::TrySendError::Full(item)) => self.0.blocking_send(item).is_ok(),
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        };
        if sent { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn rest(&mut self) -> ControlFlow<()> {
        if self.0.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
