//! How places, cuts and sessions' uploads are written in the index.

use proto::chunk::ChunkName;
use proto::log::Topic;
use proto::{Epoch, SessionId};

/// Where a chunk's content stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Where {
    pub pack: u64,
    pub offset: u32,
    pub bytes: u32,
}

/// A place in a partition's log: everything before `upto` in `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    pub partition: u32,
    pub epoch: Epoch,
    pub upto: u64,
}

/// Where the names begin of what came in a partition's requests from an offset of an epoch on.
pub fn requests_key(epoch: Epoch, partition: u32, offset: u64) -> Vec<u8> {
    let at = [&[Topic::Requests as u8][..], &epoch.0.to_be_bytes(), &partition.to_be_bytes(), &offset.to_be_bytes()];
    at.concat()
}

/// The epoch and partition that a name begins with, if it is of what came in a request.
pub fn requests_at(name: &[u8]) -> Option<(Epoch, u32)> {
    let rest = name.strip_prefix(&[Topic::Requests as u8])?;
    let (epoch, rest) = rest.split_first_chunk()?;
    let (partition, _) = rest.split_first_chunk()?;
    Some((Epoch(u32::from_be_bytes(*epoch)), u32::from_be_bytes(*partition)))
}

pub fn fresh_key(name: &ChunkName) -> Vec<u8> {
    [&name.session.0[..], &name.to_bytes()].concat()
}

pub fn split_fresh(key: &[u8]) -> Option<(SessionId, ChunkName)> {
    let (session, name) = key.split_first_chunk::<16>()?;
    Some((SessionId(*session), ChunkName::from_bytes(name.try_into().ok()?).ok()?))
}

/// Where keys of sessions after this one begin; `None` after the last.
pub fn next_session(session: SessionId) -> Option<Vec<u8>> {
    u128::from_be_bytes(session.0).checked_add(1).map(|next| next.to_be_bytes().to_vec())
}

pub fn freed_key(cut: Cut, name: &ChunkName) -> Vec<u8> {
    [&cut.encode()[..], &name.to_bytes()].concat()
}

impl Cut {
    const BYTES: usize = 4 + 4 + 8;

    /// partition 4 | epoch 4 | upto 8, big-endian.
    pub fn encode(&self) -> [u8; Cut::BYTES] {
        let mut key = [0; Cut::BYTES];
        key[0..4].copy_from_slice(&self.partition.to_be_bytes());
        key[4..8].copy_from_slice(&self.epoch.0.to_be_bytes());
        key[8..16].copy_from_slice(&self.upto.to_be_bytes());
        key
    }

    pub fn decode(key: &[u8]) -> Option<Cut> {
        let (partition, rest) = key.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (upto, _) = rest.split_first_chunk()?;
        let epoch = Epoch(u32::from_be_bytes(*epoch));
        Some(Cut { partition: u32::from_be_bytes(*partition), epoch, upto: u64::from_be_bytes(*upto) })
    }
}

const VALUE_BYTES: usize = 8 + 4 + 4;

impl Where {
    /// Which bytes of its pack.
    pub fn range(&self) -> std::ops::Range<u64> {
        u64::from(self.offset)..u64::from(self.offset) + u64::from(self.bytes)
    }

    /// pack 8 | offset 4 | bytes 4, big-endian.
    pub fn encode(&self) -> [u8; VALUE_BYTES] {
        let mut value = [0; VALUE_BYTES];
        value[0..8].copy_from_slice(&self.pack.to_be_bytes());
        value[8..12].copy_from_slice(&self.offset.to_be_bytes());
        value[12..16].copy_from_slice(&self.bytes.to_be_bytes());
        value
    }

    pub fn decode(value: &[u8]) -> Option<Where> {
        let (pack, rest) = value.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Where {
            pack: u64::from_be_bytes(*pack),
            offset: u32::from_be_bytes(*offset),
            bytes: u32::from_be_bytes(rest.try_into().ok()?),
        })
    }
}
