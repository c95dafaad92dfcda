//! A record's value: `header | body | payload`, and of what a session says, or is told, several of these one behind
//! the other.
//!
//! The header has a fixed size, little-endian numbers and no secrets, so any
//! reader can route, count and skip records without a key. It is associated
//! data of the body's seal (`seal.rs`): once opened, every bit of it is
//! authentic; before that nothing in it may be believed.
//!
//! Everything about sizes is checked here, before anything is allocated, and
//! parsing copies nothing. What the body means is not known here.

use crate::ids::{Epoch, NamespaceId, Position};
use crate::log::MAX_RECORD_BYTES;
use crate::numbered::numbered;
use bytes::Bytes;

/// Bytes of a header: 4 magic and version, 1 kind, 1 flags, 2 reserved, 4
/// namespace, 4 body length, 4 payload length, 4 epoch, 16 sender, 8 number, 24 nonce.
pub const HEADER_BYTES: usize = 72;

/// Bytes that a seal adds to a body.
pub const TAG_BYTES: usize = 16;

/// Frames in one record, at most: a position tells apart no more.
pub const MAX_FRAMES: usize = 1 << Position::FRAME_BITS;

/// What is gathered for one record leaves before it has more bytes or frames than this: as little as somebody may be kept
/// waiting for, and as much as makes the cost of a record, to broker and reader, small beside that of what is in it. Of
/// requests it is a quarter of what a server lets a session have under way, so that some are being answered while
/// others gather.
pub const GROUP_BYTES: usize = 64 << 10;
/// See [`GROUP_BYTES`].
pub const GROUP_FRAMES: usize = 64;

const _: () = assert!(GROUP_FRAMES <= MAX_FRAMES && GROUP_BYTES < MAX_RECORD_BYTES);

/// The format's mark; the last byte is its version.
const MAGIC: [u8; 4] = *b"KFS\x01";

const _: () = assert!(4 + 1 + 1 + 2 + 4 + 4 + 4 + 4 + 16 + 8 + 24 == HEADER_BYTES);
const _: () = assert!(MAX_RECORD_BYTES <= u32::MAX as usize);

numbered! {
    /// What a record is. The numbers are part of the format.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Kind {
        /// A session's first record in a partition.
        Open = 1,
        /// A session's numbered request.
        Request = 2,
        /// A server's own record in the log: incarnation, heartbeat, tick, admin decision.
        Server = 3,
        /// The answer to a request, an open or a read.
        Answer = 4,
        /// What a session is told unasked.
        Push = 5,
        /// Sealed content, on its way up.
        Chunk = 6,
        /// A download's request.
        Read = 7,
        /// Sealed content, on its way down.
        Served = 8,
        /// A step of a login, from the client.
        Login = 9,
        /// The server's side of a login.
        LoginAnswer = 10,
        /// The answer to an admin command.
        AdminAnswer = 11,
    }
}

/// Which frames share records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Joins {
    /// What a session says.
    Requests,
    /// What it is told.
    Replies,
}

impl Kind {
    fn joins(self) -> Option<Joins> {
        match self {
            Kind::Request => Some(Joins::Requests),
            Kind::Answer | Kind::Push => Some(Joins::Replies),
            _ => None,
        }
    }
}

/// A record's header. `body_bytes` counts the body as it stands in the record,
/// its seal's tag included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// The namespace concerned; 0 where there is none.
    pub namespace: NamespaceId,
    pub body_bytes: u32,
    pub payload_bytes: u32,
    pub epoch: Epoch,
    /// The session or server incarnation that speaks, or that is spoken to in
    /// answers and pushes.
    pub sender: [u8; 16],
    /// The request's or push's number; an incarnation's record number.
    pub number: u64,
    /// Fresh and random for each seal.
    pub nonce: [u8; 24],
}

impl Header {
    /// Writes the header as it stands in a record.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        // 5 is flags and 6..8 reserved: zero in this version.
        out[8..12].copy_from_slice(&self.namespace.0.to_le_bytes());
        out[12..16].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[20..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..40].copy_from_slice(&self.sender);
        out[40..48].copy_from_slice(&self.number.to_le_bytes());
        out[48..72].copy_from_slice(&self.nonce);
        out
    }

    /// Reads a header and checks all that can be checked without its record:
    /// mark, version, kind, reserved bits, and that the sizes can be true.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        if bytes[0..3] != MAGIC[0..3] {
            return Err(FrameError::Foreign);
        }
        if bytes[3] != MAGIC[3] {
            return Err(FrameError::Version { version: bytes[3] });
        }
        let kind = Kind::from_number(bytes[4]).ok_or(FrameError::Kind { kind: bytes[4] })?;
        if bytes[5..8] != [0; 3] {
            return Err(FrameError::Reserved);
        }
        let header = Header {
            kind,
            namespace: NamespaceId(u32::from_le_bytes(array(&bytes[8..12]))),
            body_bytes: u32::from_le_bytes(array(&bytes[12..16])),
            payload_bytes: u32::from_le_bytes(array(&bytes[16..20])),
            epoch: Epoch(u32::from_le_bytes(array(&bytes[20..24]))),
            sender: array(&bytes[24..40]),
            number: u64::from_le_bytes(array(&bytes[40..48])),
            nonce: array(&bytes[48..72]),
        };
        if header.record_bytes() > MAX_RECORD_BYTES as u64 {
            return Err(FrameError::TooLarge { bytes: header.record_bytes() });
        }
        if (header.body_bytes as usize) < TAG_BYTES {
            return Err(FrameError::Unsealed);
        }
        Ok(header)
    }

    /// Bytes of the whole record, by the header's word; does not overflow.
    pub fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.body_bytes) + u64::from(self.payload_bytes)
    }
}

/// Why a record's value is not a frame. Such records are counted and skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a record of {bytes} bytes is too short for a frame, which has at least {HEADER_BYTES}")]
    TooShort { bytes: usize },
    #[error("the record is not from kfs: something else writes to this topic")]
    Foreign,
    #[error("the frame has format version {version}, this program knows {}; a newer kfs writes here", MAGIC[3])]
    Version { version: u8 },
    #[error("the frame has the unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("the frame's reserved bits are set")]
    Reserved,
    #[error("the frame says that it has {bytes} bytes, more than {MAX_RECORD_BYTES}")]
    TooLarge { bytes: u64 },
    #[error("the frame's lengths add up to {said} bytes, the record has {is}")]
    Length { said: u64, is: usize },
    #[error("the frame's body is too short to be sealed")]
    Unsealed,
    #[error("the record has more than {MAX_FRAMES} frames")]
    TooMany,
    #[error("the record's frames are neither all requests of one session nor all answers and pushes to one")]
    Mixed,
}

/// A well-formed frame; whether it is authentic is for `seal::open` to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    header: Header,
    record: Bytes,
}

/// Takes apart the value of a record that may have several frames: requests of one session, or answers and pushes to
/// one, in the order of their sending. How they are put together into records means nothing. Copies nothing; what does not hold together to
/// the last byte holds nothing at all.
pub fn frames(mut record: Bytes) -> Result<Vec<Frame>, FrameError> {
    if record.len() > MAX_RECORD_BYTES {
        return Err(FrameError::TooLarge { bytes: record.len() as u64 });
    }
    let mut frames = Vec::with_capacity(1);
    loop {
        let header = leading_header(&record)?;
        let bytes = header.record_bytes();
        if bytes > record.len() as u64 {
            return Err(FrameError::Length { said: bytes, is: record.len() });
        }
        frames.push(Frame { header, record: record.split_to(bytes as usize) });
        if record.is_empty() {
            break;
        }
        if frames.len() == MAX_FRAMES {
            return Err(FrameError::TooMany);
        }
    }
    let (first, rest) = frames.split_first().expect("at least one was taken apart");
    let joins = first.header.kind.joins();
    let goes_along = |frame: &Frame| frame.header.kind.joins() == joins && frame.header.sender == first.header.sender;
    if !rest.is_empty() && (joins.is_none() || !rest.iter().all(goes_along)) {
        return Err(FrameError::Mixed);
    }
    Ok(frames)
}

/// The value of the record that has these frames, each as it was sealed: what [`frames`] takes apart. At most
/// [`MAX_FRAMES`], which the caller sees to, as to the record's size.
pub fn join(frames: &[Bytes]) -> Bytes {
    match frames {
        [alone] => alone.clone(),
        frames => frames.concat().into(),
    }
}

fn leading_header(record: &[u8]) -> Result<Header, FrameError> {
    let (header, _) = record.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::TooShort { bytes: record.len() })?;
    Header::decode(header)
}

impl Frame {
    /// Takes the value of a record with a single frame apart, without copying.
    pub fn parse(record: Bytes) -> Result<Frame, FrameError> {
        if record.len() > MAX_RECORD_BYTES {
            return Err(FrameError::TooLarge { bytes: record.len() as u64 });
        }
        let header = leading_header(&record)?;
        if header.record_bytes() != record.len() as u64 {
            return Err(FrameError::Length { said: header.record_bytes(), is: record.len() });
        }
        Ok(Frame { header, record })
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header as it stands in the record.
    pub fn header_bytes(&self) -> &[u8] {
        &self.record[..HEADER_BYTES]
    }

    /// The sealed body.
    pub fn body(&self) -> &[u8] {
        &self.record[HEADER_BYTES..self.payload_start()]
    }

    /// The payload, sharing the record's memory.
    pub fn payload(&self) -> Bytes {
        self.record.slice(self.payload_start()..)
    }

    /// The whole frame: a record's value, or its part of one.
    pub fn record(&self) -> &Bytes {
        &self.record
    }

    /// BLAKE3 of the whole frame: what an answer binds itself to, and what the
    /// machine remembers of a number. A resent request is therefore resent as
    /// the same bytes, never sealed anew under the same number.
    pub fn hash(&self) -> [u8; 32] {
        record_hash(&self.record)
    }

    fn payload_start(&self) -> usize {
        HEADER_BYTES + self.header.body_bytes as usize
    }
}

/// [`Frame::hash`] of a record that has not been parsed, such as one just sealed.
pub fn record_hash(record: &[u8]) -> [u8; 32] {
    *blake3::hash(record).as_bytes()
}

/// The array in a slice of exactly its length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller's range has the array's length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A header whose fields are all different, as pinned in `samples/`.
    fn sample() -> Header {
        Header {
            kind: Kind::Request,
            namespace: NamespaceId(0x0403_0201),
            body_bytes: 0x0102,
            payload_bytes: 0x0304,
            epoch: Epoch(0x1413_1211),
            sender: std::array::from_fn(|i| 0x20 + i as u8),
            number: 0x3736_3534_3332_3130,
            nonce: std::array::from_fn(|i| 0x40 + i as u8),
        }
    }

    #[test]
    fn the_header_is_as_pinned() {
        let pinned = include_bytes!("../samples/header.bin");
        assert_eq!(sample().encode(), *pinned);
        assert_eq!(Header::decode(pinned), Ok(sample()));
    }

    #[test]
    fn kinds_keep_their_numbers() {
        assert_eq!(Kind::ALL.map(|k| k as u8), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_number(12), None);
    }

    #[test]
    fn malformed_headers_each_get_their_own_reason() {
        let good = sample().encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Header::decode(&bytes)
        };
        assert_eq!(with(0, b'k'), Err(FrameError::Foreign));
        assert_eq!(with(3, 2), Err(FrameError::Version { version: 2 }));
        assert_eq!(with(4, 99), Err(FrameError::Kind { kind: 99 }));
        assert_eq!(with(5, 1), Err(FrameError::Reserved));
        assert_eq!(with(7, 0x80), Err(FrameError::Reserved));
        assert!(matches!(with(15, 0xff), Err(FrameError::TooLarge { .. })));
        let untagged = Header { body_bytes: TAG_BYTES as u32 - 1, ..sample() };
        assert_eq!(Header::decode(&untagged.encode()), Err(FrameError::Unsealed));
    }

    #[test]
    fn lengths_must_be_exact_and_within_the_bound() {
        let mut record = sample().encode().to_vec();
        record.resize(sample().record_bytes() as usize, 7);
        let frame = Frame::parse(record.clone().into()).expect("the lengths are right");
        assert_eq!((frame.body().len(), frame.payload().len()), (0x0102, 0x0304));
        record.push(7);
        assert!(matches!(Frame::parse(record.into()), Err(FrameError::Length { .. })));
        let huge = Bytes::from(vec![0; MAX_RECORD_BYTES + 1]);
        assert!(matches!(Frame::parse(huge), Err(FrameError::TooLarge { .. })));
        assert_eq!(Frame::parse(Bytes::new()), Err(FrameError::TooShort { bytes: 0 }));
    }

    #[test]
    fn parsing_shares_the_records_memory() {
        let mut record = sample().encode().to_vec();
        record.resize(sample().record_bytes() as usize, 7);
        let record = Bytes::from(record);
        let frame = Frame::parse(record.clone()).expect("well-formed");
        assert_eq!(frame.payload().as_ptr(), record[HEADER_BYTES + 0x0102..].as_ptr());
    }

    /// A frame as it stands in a record.
    fn framed(kind: Kind, sender: u8, number: u64, body: usize, payload: usize) -> Bytes {
        let (body_bytes, payload_bytes) = (body as u32, payload as u32);
        let header = Header { kind, sender: [sender; 16], number, body_bytes, payload_bytes, ..sample() };
        let mut record = header.encode().to_vec();
        record.resize(header.record_bytes() as usize, number as u8);
        record.into()
    }

    fn request(number: u64) -> Bytes {
        framed(Kind::Request, 1, number, 20, number as usize)
    }

    #[test]
    fn a_record_has_one_frame_of_any_kind_or_several_that_one_session_says_or_is_told() {
        let together = [&[Kind::Request][..], &[Kind::Answer, Kind::Push]];
        for first in Kind::ALL {
            let alone = framed(first, 1, 1, 20, 3);
            assert_eq!(frames(alone.clone()), Ok(vec![Frame::parse(alone.clone()).expect("well-formed")]));
            for second in Kind::ALL {
                let may = together.iter().any(|kinds| kinds.contains(&first) && kinds.contains(&second));
                let expected = if may { None } else { Some(FrameError::Mixed) };
                assert_eq!(frames(join(&[alone.clone(), framed(second, 1, 2, 20, 0)])).err(), expected);
                let other = framed(second, 2, 2, 20, 0);
                assert_eq!(frames(join(&[alone.clone(), other])), Err(FrameError::Mixed));
            }
        }
    }

    #[test]
    fn a_record_has_so_many_frames_and_no_more() {
        let many: Vec<Bytes> = (0..MAX_FRAMES as u64 + 1).map(request).collect();
        let numbers = |frames: Vec<Frame>| frames.iter().map(|frame| frame.header().number).collect::<Vec<_>>();
        let most = frames(join(&many[1..])).map(numbers);
        assert_eq!(most, Ok((1..=MAX_FRAMES as u64).collect()));
        assert_eq!(frames(join(&many)), Err(FrameError::TooMany));
        let large = join(&[framed(Kind::Request, 1, 1, 20, 500_000), framed(Kind::Request, 1, 2, 20, 500_000)]);
        assert!(matches!(frames(large), Err(FrameError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn frames_that_are_joined_come_apart_the_same(payloads in prop::collection::vec(0..2000usize, 1..40), more in 1..72usize) {
            let sealed: Vec<Bytes> =
                payloads.iter().zip(1..).map(|(payload, number)| framed(Kind::Request, 1, number, 16, *payload)).collect();
            let record = join(&sealed);
            let apart = frames(record.clone()).expect("well-formed");
            prop_assert_eq!(apart.iter().map(|frame| frame.record().clone()).collect::<Vec<_>>(), sealed);
            // No copies.
            let ends: Vec<*const u8> = apart.iter().map(|frame| frame.record().as_ptr_range().end).collect();
            prop_assert_eq!(*ends.last().expect("one at least"), record.as_ptr_range().end);
            // What is cut off or added makes all of it void.
            prop_assert!(frames(record.slice(..record.len() - more)).is_err());
            prop_assert!(frames([&record[..], &vec![0; more]].concat().into()).is_err());
        }

        #[test]
        fn headers_round_trip(kind in 1..=11u8, namespace: u32, body in 16..400_000u32, payload in 0..400_000u32,
                              epoch: u32, sender: [u8; 16], number: u64, nonce: [u8; 24]) {
            let header = Header {
                kind: Kind::from_number(kind).expect("in range"),
                namespace: NamespaceId(namespace), body_bytes: body, payload_bytes: payload,
                epoch: Epoch(epoch), sender, number, nonce,
            };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), genuine: bool, kind in 0..=13u8) {
            // Half of them begin like a frame, else nothing would get past the mark.
            if genuine && bytes.len() > 8 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = kind;
                bytes[5..8].fill(0);
            }
            let bytes = Bytes::from(bytes);
            let _ = frames(join(&[request(1), bytes.clone()]));
            let alone = Frame::parse(bytes.clone());
            prop_assert_eq!(alone.is_ok(), frames(bytes).is_ok_and(|frames| frames.len() == 1));
        }
    }
}
