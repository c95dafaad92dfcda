//! Nothing but the very record opens, and only where it belongs.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Body {
    word: String,
    count: u64,
}

fn body() -> Body {
    Body { word: "sesame".into(), count: 300 }
}

fn key() -> Key {
    Key::from_bytes(std::array::from_fn(|i| i as u8))
}

fn head() -> Head {
    Head { kind: Kind::Request, namespace: NamespaceId(7), epoch: Epoch(2), sender: [9; 16], number: 41 }
}

fn context() -> Context {
    Context { direction: Direction::ToServer, topic: Topic::Requests, partition: 3, answers: None }
}

fn sealed(payload: &[u8]) -> Bytes {
    seal(&key(), &head(), &context(), &body(), payload).expect("small").record
}

fn try_open(record: Bytes, context: &Context) -> Result<Body, SealError> {
    open_record::<Body>(&key(), record, context).map(|(_, opened)| opened.body)
}

#[test]
fn a_sealed_record_is_as_pinned() {
    let pinned = include_bytes!("../../samples/record.bin");
    let nonce = std::array::from_fn(|i| 0x60 + i as u8);
    let payload = b"payload";
    let record =
        seal_with_nonce(&key(), &head(), &context(), &body(), payload, hash_of(payload), nonce).expect("small").record;
    assert_eq!(record[..], pinned[..]);
    let (frame, opened) =
        open_record::<Body>(&key(), Bytes::from_static(pinned), &context()).expect("old records open for ever");
    assert_eq!((opened.body, &frame.payload()[..]), (body(), &payload[..]));
    assert_eq!(opened.payload_hash, hash_of(payload));
}

#[test]
fn a_sealed_blob_is_as_pinned() {
    let pinned = include_bytes!("../../samples/blob.bin");
    assert_eq!(blob_with_nonce(&key(), "sample", b"bound", b"plain", [0x55; 24])[..], pinned[..]);
    assert_eq!(open_blob(&key(), "sample", b"bound", pinned).expect("old blobs open for ever")[..], b"plain"[..]);
}

#[test]
fn every_truncation_is_rejected() {
    let record = sealed(b"payload");
    for len in 0..record.len() {
        assert!(try_open(record.slice(..len), &context()).is_err(), "the first {len} bytes opened");
    }
}

#[test]
fn every_flipped_bit_is_rejected() {
    let record = sealed(b"payload");
    for bit in 0..record.len() * 8 {
        let mut bytes = record.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(try_open(bytes.into(), &context()).is_err(), "bit {bit} flipped, and it opened");
    }
}

#[test]
fn a_record_opens_nowhere_else() {
    let record = sealed(b"");
    let request = [5; 32];
    let elsewhere = [
        Context { direction: Direction::ToClient, ..context() },
        Context { direction: Direction::ServerToLog, ..context() },
        Context { topic: Topic::Reads, ..context() },
        Context { partition: 4, ..context() },
        Context { answers: Some(request), ..context() },
    ];
    for context in elsewhere {
        assert!(matches!(try_open(record.clone(), &context), Err(SealError::Forged)), "{context:?}");
    }
    assert_eq!(try_open(record, &context()).expect("its own place"), body());
}

#[test]
fn an_answer_belongs_to_one_request() {
    let first = Context { direction: Direction::ToClient, topic: Topic::Replies, partition: 1, answers: Some([1; 32]) };
    let second = Context { answers: Some([2; 32]), ..first };
    let record = seal(&key(), &head(), &first, &body(), b"").expect("small").record;
    assert!(try_open(record.clone(), &first).is_ok());
    assert!(matches!(try_open(record, &second), Err(SealError::Forged)));
}

#[test]
fn no_header_field_can_be_replaced() {
    let record = sealed(b"payload");
    let other = Header {
        kind: Kind::Read,
        namespace: NamespaceId(8),
        epoch: Epoch(3),
        sender: [8; 16],
        number: 42,
        ..*Frame::parse(record.clone()).expect("well-formed").header()
    }
    .encode();
    for field in [4..5, 8..12, 20..24, 24..40, 40..48] {
        let mut spliced = record.to_vec();
        spliced[field.clone()].copy_from_slice(&other[field.clone()]);
        assert!(matches!(try_open(spliced.into(), &context()), Err(SealError::Forged)), "bytes {field:?}");
    }
}

#[test]
fn a_payload_cannot_be_exchanged() {
    let (one, two) = (sealed(b"payload one"), sealed(b"payload two"));
    let mut spliced = one[..one.len() - 11].to_vec();
    spliced.extend_from_slice(&two[two.len() - 11..]);
    assert!(matches!(try_open(spliced.into(), &context()), Err(SealError::Forged)));
}

#[test]
fn another_key_opens_nothing() {
    let result = open_record::<Body>(&Key::random(), sealed(b""), &context());
    assert!(matches!(result, Err(SealError::Forged)));
}

#[test]
fn authentic_and_not_understood_is_not_forged() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)] // What matters is that it cannot be decoded.
    struct Newer {
        word: String,
        added: u8,
    }
    let result = open_record::<Newer>(&key(), sealed(b""), &context());
    assert!(matches!(result, Err(SealError::Unreadable { .. })), "{result:?}");
    let trailing = open_blob_of::<u8>(&key(), "p", b"", &seal_blob(&key(), "p", b"", &[1, 2]));
    assert!(matches!(trailing, Err(SealError::Unreadable { .. })), "{trailing:?}");
}

#[test]
fn fields_added_later_are_skipped() {
    #[derive(Debug, Deserialize)]
    struct Older {
        count: u64,
    }
    let (_, opened) = open_record::<Older>(&key(), sealed(b""), &context()).expect("named fields allow it");
    assert_eq!(opened.body.count, 300);
}

#[test]
fn sealing_twice_differs() {
    assert_ne!(sealed(b""), sealed(b""));
}

#[test]
fn a_record_too_large_is_refused() {
    let payload = vec![0; MAX_RECORD_BYTES];
    let result = seal(&key(), &head(), &context(), &body(), &payload);
    assert!(matches!(result, Err(SealError::TooLarge { .. })));
    let overhead = sealed(b"").len();
    let fits = seal(&key(), &head(), &context(), &body(), &payload[overhead..]).expect("exactly the bound");
    assert_eq!(fits.record.len(), MAX_RECORD_BYTES);
    assert!(try_open(fits.record, &context()).is_ok());
}

#[test]
fn blobs_are_bound_to_purpose_and_data() {
    let blob = seal_blob(&key(), "ab", b"c", b"plain");
    for (purpose, associated) in [("a", &b"bc"[..]), ("abc", b""), ("ab", b""), ("ab", b"d")] {
        assert!(matches!(open_blob(&key(), purpose, associated, &blob), Err(SealError::Forged)));
    }
    for len in 0..blob.len() {
        assert!(open_blob(&key(), "ab", b"c", &blob[..len]).is_err());
    }
    for bit in 0..blob.len() * 8 {
        let mut flipped = blob.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(open_blob(&key(), "ab", b"c", &flipped).is_err());
    }
}

#[test]
fn keys_are_not_shown() {
    assert_eq!(format!("{:?}", key()), "Key(..)");
}

proptest! {
    #[test]
    fn records_round_trip(word: String, count: u64, payload in prop::collection::vec(any::<u8>(), 0..2000),
                          number: u64, partition: u32, answers: Option<[u8; 32]>) {
        let (head, body) = (Head { number, ..head() }, Body { word, count });
        let context = Context { partition, answers, ..context() };
        let sealed = seal(&key(), &head, &context, &body, &payload).expect("small");
        let (frame, opened) = open_record::<Body>(&key(), sealed.record.clone(), &context).expect("just sealed");
        prop_assert_eq!(opened.body, body);
        prop_assert_eq!(frame.payload(), payload);
        prop_assert_eq!(frame.header().number, number);
        prop_assert_eq!(opened.payload_hash, sealed.payload_hash);
        prop_assert_eq!(frame.hash(), crate::frame::record_hash(&sealed.record));
    }

    /// Whoever holds a key can send any body: decoding must not panic.
    #[test]
    fn random_bodies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read_body::<Body>(&bytes);
        let _ = read_body::<Vec<Option<(u32, Body)>>>(&bytes);
    }
}
