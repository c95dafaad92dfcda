//! Speaking to clients: seals answers and pushes and puts them where their
//! session reads. A lost one is asked for again, so nothing here is retried.
//!
//! What one session is told share records, until the loop says that it leaves: many requests come in one record,
//! and for each record of answers broker and client do again what costs them more than an answer itself.

use crate::machine::effect::Peer;
use bytes::Bytes;
use proto::frame::{GROUP_BYTES, GROUP_FRAMES, Kind, join};
use proto::keys::ClusterKey;
use proto::log::{Appended, Log, Topic};
use proto::message::{AdminAnswer, Answer, PushBody, Refusal};
use proto::seal::{Context, Direction, Head, Key, seal};
use proto::{Epoch, IncarnationId, NamespaceId, Position, PushNo, RequestNo, SessionId};
use serde::Serialize;
use std::sync::Arc;

/// Frames for one session that have not left.
#[derive(Default)]
struct Group {
    sender: [u8; 16],
    partition: u32,
    frames: Vec<Bytes>,
    bytes: usize,
}

impl Group {
    fn takes(&self, head: &Head, partition: u32, bytes: usize) -> bool {
        let is_same = (self.sender, self.partition) == (head.sender, partition);
        is_same && self.frames.len() < GROUP_FRAMES && self.bytes + bytes <= GROUP_BYTES
    }
}

pub struct Answers {
    log: Arc<dyn Log>,
    cluster: Arc<ClusterKey>,
    group: Group,
    /// The latest append, to be waited for at a clean stop.
    latest: Option<Appended>,
}

impl Answers {
    pub fn new(log: Arc<dyn Log>, cluster: Arc<ClusterKey>) -> Answers {
        Answers { log, cluster, group: Group::default(), latest: None }
    }

    pub fn answer(
        &mut self,
        epoch: Epoch,
        to: &Peer,
        number: RequestNo,
        request: [u8; 32],
        answer: &Answer,
        payload: &Bytes,
    ) {
        let head = Head { kind: Kind::Answer, namespace: to.namespace, epoch, sender: to.session.0, number: number.0 };
        self.send(&to.key, &head, to.replies_partition, Some(request), answer, payload);
    }

    pub fn push(&mut self, epoch: Epoch, to: &Peer, number: PushNo, body: &PushBody) {
        let head = Head { kind: Kind::Push, namespace: to.namespace, epoch, sender: to.session.0, number: number.0 };
        self.send(&to.key, &head, to.replies_partition, None, body, &[]);
    }

    /// Tells a session that has ended so, under the key that outlives it.
    pub fn session_ended(
        &mut self,
        session: SessionId,
        replies_partition: u32,
        number: RequestNo,
        request: [u8; 32],
        at: Position,
    ) {
        let answer = Answer::bare(at, PushNo(0), Err(Refusal::SessionEnded));
        let head = Head {
            kind: Kind::Answer,
            namespace: NamespaceId(0),
            epoch: at.epoch,
            sender: session.0,
            number: number.0,
        };
        self.send(&self.cluster.chunk_key(session), &head, replies_partition, Some(request), &answer, &[]);
    }

    pub fn admin(
        &mut self,
        epoch: Epoch,
        to: IncarnationId,
        replies_partition: u32,
        number: u64,
        request: [u8; 32],
        answer: &AdminAnswer,
    ) {
        let head = Head { kind: Kind::AdminAnswer, namespace: NamespaceId(0), epoch, sender: to.0, number };
        // Such answers share records with nothing.
        self.leave();
        self.send(&self.cluster.admin_key(), &head, replies_partition, Some(request), answer, &[]);
        self.leave();
    }

    /// What has gathered leaves.
    pub fn leave(&mut self) {
        let Group { partition, frames, .. } = std::mem::take(&mut self.group);
        if !frames.is_empty() {
            self.latest = Some(self.log.append(Topic::Replies, partition, join(&frames)));
        }
    }

    /// The latest append, if any is left to wait for.
    pub fn latest(&mut self) -> Option<Appended> {
        self.latest.take()
    }

    fn send<T: Serialize>(
        &mut self,
        key: &Key,
        head: &Head,
        partition: u32,
        answers: Option<[u8; 32]>,
        body: &T,
        payload: &[u8],
    ) {
        let context = Context { direction: Direction::ToClient, topic: Topic::Replies, partition, answers };
        let frame = match seal(key, head, &context, body, payload) {
            Ok(sealed) => sealed.record,
            // The machine keeps answers within a record; the client would wait in vain.
            Err(error) => return tracing::error!("cannot seal the {:?} {}: {error}", head.kind, head.number),
        };
        if !self.group.takes(head, partition, frame.len()) {
            self.leave();
            (self.group.sender, self.group.partition) = (head.sender, partition);
        }
        self.group.bytes += frame.len();
        self.group.frames.push(frame);
    }
}
