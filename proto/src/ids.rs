//! The numbers of kfs, each with a type of its own, so that an inode cannot be
//! passed where a request number is meant.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The generation of all topics together: it grows when they are recreated,
/// truncated or rolled back, so that offsets of different lives never meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

/// Where an effect stands in a partition's order. Orders every effect in a
/// namespace: epochs first, then offsets, then the effects of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub partition: u32,
    pub offset: u64,
    /// Tells apart the effects of one record: which of its frames in the high [`Position::FRAME_BITS`],
    /// counted from 0, and below that which of the frame's effects. 0 is what the frame itself asks for;
    /// requests that had to wait for it come after.
    pub index: u32,
}

impl Position {
    /// What tells apart the frames of a record.
    pub const FRAME_BITS: u32 = 8;
    const EFFECT_BITS: u32 = u32::BITS - Position::FRAME_BITS;

    /// The place of one of this record's frames.
    pub fn of_frame(self, frame: u8) -> Position {
        Position { index: u32::from(frame) << Position::EFFECT_BITS, ..self }
    }

    /// Which of the record's frames it belongs to.
    pub fn frame(&self) -> u8 {
        (self.index >> Position::EFFECT_BITS) as u8
    }

    /// Which of the frame's effects it is.
    pub fn effect(&self) -> u32 {
        self.index & (u32::MAX >> Position::FRAME_BITS)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.epoch.0, self.partition, self.offset)?;
        if self.frame() > 0 {
            write!(f, "+{}", self.frame())?;
        }
        write!(f, ".{}", self.effect())
    }
}

/// Log time in milliseconds: moved by ticks in the log only, so it is the same
/// on every replica and stands still while no server lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogTime(pub u64);

impl LogTime {
    /// This moment `ms` milliseconds later, at most the end of time.
    pub fn plus_ms(self, ms: u64) -> LogTime {
        LogTime(self.0.saturating_add(ms))
    }
}

/// A point in civil time, in nanoseconds since 1970; negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Time {
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Time {
    pub fn from_millis(ms: i64) -> Time {
        Time { secs: ms.div_euclid(1000), nanos: (ms.rem_euclid(1000) * 1_000_000) as u32 }
    }

    /// So many nanoseconds since 1970.
    pub fn from_nanos(nanos: i128) -> Time {
        Time { secs: nanos.div_euclid(1_000_000_000) as i64, nanos: nanos.rem_euclid(1_000_000_000) as u32 }
    }

    /// The next point in time that can be told apart.
    pub fn just_after(self) -> Time {
        match self.nanos {
            999_999_999.. => Time { secs: self.secs.saturating_add(1), nanos: 0 },
            nanos => Time { nanos: nanos + 1, ..self },
        }
    }
}

/// A user's tree. Fixed for its life to one partition of the request log.
/// At most [`NamespaceId::MAX`], since it is the upper part of its inode numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    pub const MAX: NamespaceId = NamespaceId((1 << (63 - Ino::COUNTER_BITS)) - 1);
}

/// An inode number: unique over all namespaces and never reused. The upper bits
/// are the namespace, the lower ones a counter that starts at 1, the root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ino(pub u64);

impl Ino {
    pub const COUNTER_BITS: u32 = 40;

    pub fn new(namespace: NamespaceId, counter: u64) -> Ino {
        debug_assert!(counter < 1 << Ino::COUNTER_BITS);
        Ino((u64::from(namespace.0) << Ino::COUNTER_BITS) | counter)
    }

    /// The root directory of a namespace.
    pub fn root(namespace: NamespaceId) -> Ino {
        Ino::new(namespace, 1)
    }

    pub fn namespace(self) -> NamespaceId {
        NamespaceId((self.0 >> Ino::COUNTER_BITS) as u32)
    }

    pub fn counter(self) -> u64 {
        self.0 & ((1 << Ino::COUNTER_BITS) - 1)
    }
}

/// A session: the hash of the login's transcript, so it is bound to that login
/// and cannot be chosen.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(#[serde(with = "serde_bytes")] pub [u8; 16]);

/// A server, for as long as its data directory lives.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(#[serde(with = "serde_bytes")] pub [u8; 16]);

/// One start of a server. A new one ends the one before.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IncarnationId(#[serde(with = "serde_bytes")] pub [u8; 16]);

macro_rules! hex_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
        impl $name {
            /// A fresh one from the system's random source.
            pub fn random() -> Self {
                let mut id = [0; 16];
                crate::random::fill(&mut id);
                Self(id)
            }
        }
    )*};
}
hex_id!(SessionId, ServerId, IncarnationId);

/// A request's number: dense per (session, partition), from 1. The open itself is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestNo(pub u64);

impl RequestNo {
    pub fn next(self) -> RequestNo {
        RequestNo(self.0 + 1)
    }
}

/// A push's number: dense per (session, partition), from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PushNo(pub u64);

impl PushNo {
    pub fn next(self) -> PushNo {
        PushNo(self.0 + 1)
    }
}

/// A directory entry's name: 1 to 255 bytes, no `/` and no NUL, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "serde_bytes::ByteBuf", into = "serde_bytes::ByteBuf")]
pub struct Name(Vec<u8>);

/// Why some bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name has at most {} bytes", Name::MAX_BYTES)]
    TooLong,
    #[error("a name is not empty, not `.` or `..`, and has no `/` and no NUL")]
    Invalid,
}

impl Name {
    pub const MAX_BYTES: usize = 255;

    pub fn new(bytes: &[u8]) -> Result<Name, NameError> {
        if bytes.len() > Name::MAX_BYTES {
            return Err(NameError::TooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(NameError::Invalid);
        }
        Ok(Name(bytes.to_vec()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<serde_bytes::ByteBuf> for Name {
    type Error = NameError;

    fn try_from(bytes: serde_bytes::ByteBuf) -> Result<Name, NameError> {
        Name::new(&bytes)
    }
}

impl From<Name> for serde_bytes::ByteBuf {
    fn from(name: Name) -> Self {
        serde_bytes::ByteBuf::from(name.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_a_directory_cannot_hold() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(Name::new(bad), Err(NameError::Invalid));
        }
        assert_eq!(Name::new(&[b'a'; 256]), Err(NameError::TooLong));
        assert!(Name::new(&[0xff; 255]).is_ok());
    }

    #[test]
    fn inode_numbers_carry_their_namespace() {
        let ino = Ino::root(NamespaceId::MAX);
        assert_eq!(ino.namespace(), NamespaceId::MAX);
        assert!(ino.0 < 1 << 63);
    }
}
