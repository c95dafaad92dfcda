//! What comes from the server: answers and pushes on `replies`, content on `bulk`,
//! taken on the threads that read them, since each wake-up between costs an answer
//! a tenth of its way.
//!
//! Sessions share partitions, so what is not ours is passed over by its header,
//! before any cryptography; what says that it is ours and does not authenticate
//! is counted and passed over too.

use super::*;
use crate::inline;
use proto::frame::{Frame, frames};
use proto::log::{Record, Sink, Start, Tail};
use proto::message::{Answer, PushBody, Refusal};
use proto::seal::{Opened, open};
use proto::{PushNo, RequestNo, task};
use std::ops::ControlFlow;

/// Between attempts to read again where the log lost its thread.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// Reads a partition from its end on.
pub(super) async fn tail(inner: &Arc<Inner>, topic: Topic, partition: u32) -> Result<Tail, ConnectError> {
    let log = Arc::clone(&inner.config.log);
    task::offload(move || log.read_from(&[(topic, partition, Start::End)]))
        .await
        .map_err(|error| ConnectError::Protocol { reason: error.to_string() })?
        .map_err(ConnectError::Log)
}

/// Reads on from the end, as often as it takes. What was missed shows in push
/// numbers, and requests without an answer are sent again.
async fn tail_again(inner: &Arc<Inner>, topic: Topic, partition: u32) -> Tail {
    loop {
        tokio::time::sleep(READ_AGAIN).await;
        match tail(inner, topic, partition).await {
            Ok(tail) => return tail,
            Err(ConnectError::Log(error)) => inner.log_error(&error),
            Err(_) => {}
        }
    }
}

/// Takes answers and pushes of one session until it is aborted.
pub(super) async fn replies(inner: Arc<Inner>, link: Arc<Link>, tail: Tail) {
    let partition = link.replies_partition;
    let sink = |lost| Inbox {
        inner: Arc::clone(&inner),
        link: Arc::clone(&link),
        // Whoever waited for it goes on right here.
        take: |inner, link, record| inline::run_woken(|| inner.reply(link, record)),
        // Nothing more is at hand, or enough has gathered: confirmations leave now.
        rest: |inner| inner.act(|state, now_ms, actions| state.core.flush(now_ms, actions)),
        lost,
    };
    read("kfs-replies", &inner, (Topic::Replies, partition), tail, sink).await;
}

/// Takes one session's content until it is aborted.
pub(super) async fn served(inner: Arc<Inner>, link: Arc<Link>, tail: Tail) {
    let partition = link.bulk_partition;
    let sink = |lost| Inbox {
        inner: Arc::clone(&inner),
        link: Arc::clone(&link),
        take: |inner, link, record| {
            if let Ok(frame) = Frame::parse(record.value)
                && frame.header().sender == link.session.0
                && frame.header().kind == Kind::Served
            {
                inner.transfers.served(inner, link, &frame);
            }
        },
        rest: |_| (),
        lost,
    };
    read("kfs-content", &inner, (Topic::Bulk, partition), tail, sink).await;
}

/// Lets a sink take what is read, on the thread that reads it, and reads again from the
/// end where the log has lost its thread. Being aborted ends the reading.
async fn read(
    name: &str,
    inner: &Arc<Inner>,
    (topic, partition): (Topic, u32),
    mut tail: Tail,
    sink: impl Fn(oneshot::Sender<()>) -> Inbox,
) {
    loop {
        let (lost, told) = oneshot::channel();
        match tail.hand_to(name, sink(lost)) {
            Ok(_reading) => {
                // Told by being dropped too: then the reader has ended by itself.
                let _ = told.await;
            }
            Err(error) => inner.log_error(&error),
        }
        tail = tail_again(inner, topic, partition).await;
    }
}

/// What an authentic frame tells this session.
enum Told {
    Answer { number: RequestNo, hash: [u8; 32], answer: Answer, payload: Bytes },
    Push(PushNo, PushBody),
}

struct Inbox {
    inner: Arc<Inner>,
    link: Arc<Link>,
    take: fn(&Arc<Inner>, &Arc<Link>, Record),
    rest: fn(&Arc<Inner>),
    /// Dropped when the reading ends.
    #[expect(dead_code, reason = "being dropped is what tells")]
    lost: oneshot::Sender<()>,
}

impl Sink for Inbox {
    fn take(&mut self, item: Result<Record, LogError>) -> ControlFlow<()> {
        match item {
            Ok(record) => (self.take)(&self.inner, &self.link, record),
            Err(error) => {
                self.inner.log_error(&error);
                if matches!(error, LogError::OutOfRange { .. }) {
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn rest(&mut self) -> ControlFlow<()> {
        (self.rest)(&self.inner);
        ControlFlow::Continue(())
    }
}

impl Inner {
    /// Takes what one record tells.
    fn reply(&self, link: &Link, record: Record) {
        let partition = record.partition;
        let Ok(frames) = frames(record.value) else { return };
        if frames[0].header().sender != link.session.0 {
            return;
        }
        let awaited: Vec<Option<[u8; 32]>> = {
            let state = self.state();
            let number = |frame: &Frame| RequestNo(frame.header().number);
            frames.iter().map(|frame| state.core.awaited(link.session, number(frame))).collect()
        };
        let told =
            frames.iter().zip(awaited).filter_map(|(frame, hash)| self.opened_reply(link, partition, frame, hash));
        let mut told = told.collect::<Vec<Told>>().into_iter().peekable();
        while told.peek().is_some() {
            self.act(|state, now_ms, actions| {
                while let Some(Told::Answer { number, hash, answer, payload }) =
                    told.next_if(|told| matches!(told, Told::Answer { .. }))
                {
                    // Another session may have begun while the record was being opened.
                    if state.core.awaited(link.session, number) == Some(hash) {
                        state.core.answer(now_ms, number, answer, payload, actions);
                    }
                }
            });
            // A step of its own: what it takes back the kernel forgets before anything else is done.
            if let Some(Told::Push(number, body)) = told.next() {
                self.act(|state, now_ms, actions| {
                    if state.core.session() == Some(link.session) {
                        state.core.push(now_ms, number, body, actions);
                    }
                });
            }
        }
    }

    /// What one frame tells, if it is for us and awaited.
    fn opened_reply(&self, link: &Link, partition: u32, frame: &Frame, awaited: Option<[u8; 32]>) -> Option<Told> {
        let context = |answers| Context { direction: Direction::ToClient, topic: Topic::Replies, partition, answers };
        let header = frame.header();
        match header.kind {
            Kind::Answer => {
                let hash = awaited?;
                let context = context(Some(hash));
                let answer = match open::<Answer>(&link.key, frame, &context) {
                    Ok(Opened { body, .. }) => body,
                    Err(error) => self.notice_of_end(link, frame, &context).or_else(|| {
                        self.quarantined(&error);
                        None
                    })?,
                };
                self.counters.answers.fetch_add(1, Ordering::Relaxed);
                Some(Told::Answer { number: RequestNo(header.number), hash, answer, payload: frame.payload() })
            }
            Kind::Push => match open::<PushBody>(&link.key, frame, &context(None)) {
                Ok(Opened { body, .. }) => {
                    self.counters.pushes.fetch_add(1, Ordering::Relaxed);
                    Some(Told::Push(PushNo(header.number), body))
                }
                Err(error) => {
                    self.quarantined(&error);
                    None
                }
            },
            _ => None,
        }
    }

    /// A server that no longer has the session's key can only say that it has
    /// ended, under the key for its chunks; nothing else counts under that.
    fn notice_of_end(&self, link: &Link, frame: &Frame, context: &Context) -> Option<Answer> {
        let answer = open::<Answer>(&link.chunk_key, frame, context).ok()?.body;
        matches!(answer.result, Err(Refusal::SessionEnded)).then_some(answer)
    }

    pub(in crate::client) fn quarantined(&self, error: &SealError) {
        self.counters.quarantined.fetch_add(1, Ordering::Relaxed);
        tracing::warn!("passed over a record that names this session: {error}");
    }
}
