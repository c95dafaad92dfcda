//! Content comes back whole or not at all.

use super::*;
use crate::seal::hash_of;
use proptest::prelude::*;

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// Text-like bytes that compress well.
fn words(bytes: usize) -> Vec<u8> {
    (0..).flat_map(|i: u32| format!("line {} of text\n", i * 7).into_bytes()).take(bytes).collect()
}

/// Seals a plaintext as it stands, format byte included.
fn seal_text(text: &[u8]) -> (ContentKey, Vec<u8>) {
    let key = ContentKey([9; 32]);
    let mut text = text.to_vec();
    let tag = encrypt(&key, &mut text).expect("small");
    text.extend_from_slice(&tag);
    (key, text)
}

fn name() -> ChunkName {
    ChunkName {
        topic: Topic::Chunks,
        epoch: Epoch(1),
        partition: 2,
        offset: 3,
        index: 4,
        session: SessionId([5; 16]),
        hash: [6; 32],
    }
}

#[test]
fn content_comes_back() {
    for bytes in
        [0, 1, 15, 16, 17, 1000, SAMPLE_BYTES, 2 * SAMPLE_BYTES + 1, INLINE_BYTES, CHUNK_BYTES - 1, CHUNK_BYTES]
    {
        for plain in [noise(bytes), words(bytes), vec![0; bytes]] {
            let (sealed, key) = seal_content(&plain).expect("within the bound");
            assert!((SEALED_MIN_BYTES..=plain.len() + SEALED_OVERHEAD_BYTES).contains(&sealed.len()));
            assert!(open_content(&key, &sealed).expect("just sealed") == plain, "{bytes} bytes");
        }
    }
}

#[test]
fn only_what_gets_smaller_is_compressed() {
    for bytes in [1000, CHUNK_BYTES] {
        let (sealed, _) = seal_content(&words(bytes)).expect("within the bound");
        assert!(sealed.len() < bytes / 2, "{bytes} bytes of text became {}", sealed.len());
        let (sealed, _) = seal_content(&noise(bytes)).expect("within the bound");
        assert_eq!(sealed.len(), bytes + SEALED_OVERHEAD_BYTES);
    }
}

#[test]
fn more_than_a_chunk_is_refused() {
    assert_eq!(seal_content(&vec![0; CHUNK_BYTES + 1]).err(), Some(ContentError::TooLarge { bytes: CHUNK_BYTES + 1 }));
    let sealed = vec![0; SEALED_MAX_BYTES + 1];
    assert!(matches!(open_content(&ContentKey([0; 32]), &sealed), Err(ContentError::TooLarge { .. })));
}

#[test]
fn altered_content_is_rejected() {
    let (sealed, key) = seal_content(b"some content, some content, some content").expect("small");
    for len in 0..sealed.len() {
        assert_eq!(open_content(&key, &sealed[..len]).err(), Some(ContentError::Forged));
    }
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open_content(&key, &flipped).err(), Some(ContentError::Forged));
    }
    let (_, other) = seal_content(b"").expect("small");
    assert_eq!(open_content(&other, &sealed).err(), Some(ContentError::Forged));
}

#[test]
fn a_decompression_bomb_is_refused() {
    let frame = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
    let bomb = |said: u32| [&[FORMAT_ZSTD][..], &said.to_le_bytes(), &frame].concat();
    let (key, sealed) = seal_text(&bomb(64 << 20));
    assert_eq!(open_content(&key, &sealed).err(), Some(ContentError::TooLarge { bytes: 64 << 20 }));
    for said in [0, 1000, CHUNK_BYTES as u32] {
        let (key, sealed) = seal_text(&bomb(said));
        assert!(matches!(open_content(&key, &sealed), Err(ContentError::Malformed { .. })));
    }
}

#[test]
fn authentic_nonsense_is_malformed() {
    for text in [&[][..], &[2, 0, 0], &[FORMAT_ZSTD], &[FORMAT_ZSTD, 4, 0, 0, 0], &[FORMAT_ZSTD, 4, 0, 0, 0, 1, 2, 3]] {
        let (key, sealed) = seal_text(text);
        assert!(matches!(open_content(&key, &sealed), Err(ContentError::Malformed { .. })), "{text:?}");
    }
}

#[test]
fn old_content_opens_for_ever() {
    let key = ContentKey([9; 32]);
    for pinned in
        [&include_bytes!("../../samples/content-raw.bin")[..], include_bytes!("../../samples/content-zstd.bin")]
    {
        assert_eq!(open_content(&key, pinned).expect("pinned"), words(100));
    }
    let (_, raw) = seal_text(&[&[FORMAT_RAW][..], &words(100)].concat());
    assert_eq!(raw, include_bytes!("../../samples/content-raw.bin"));
    let under = NamespaceKey { epoch: 1, key: Key::from_bytes([5; 32]) };
    let wrapped = WrappedKey { key_epoch: 1, wrapped: *include_bytes!("../../samples/wrapped-key.bin") };
    assert_eq!(wrapped.unwrap(&under, NamespaceId(9), &hash_of(&raw)).expect("pinned").0, key.0);
    let value = SealedValue { key_epoch: 1, sealed: include_bytes!("../../samples/value.bin").to_vec() };
    assert_eq!(value.open(&under, NamespaceId(9), ValuePurpose::Xattr).expect("pinned"), b"value");
}

#[test]
fn names_are_as_pinned_and_sort_as_bytes() {
    let mut expected = vec![2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4];
    expected.extend_from_slice(&[5; 16]);
    expected.extend_from_slice(&[6; 32]);
    assert_eq!(name().to_bytes()[..], expected);
    let mut bytes = name().to_bytes();
    bytes[0] = Topic::Replies as u8;
    assert!(ChunkName::from_bytes(&bytes).is_err());
    let packed = rmp_serde::to_vec_named(&name()).expect("bytes");
    assert_eq!(packed.len(), 2 + ChunkName::BYTES);
    assert_eq!(rmp_serde::from_slice::<ChunkName>(&packed).expect("just packed"), name());
    let larger = ChunkName { offset: 256, hash: [0; 32], ..name() };
    assert!(larger > name() && larger.to_bytes() > name().to_bytes());
}

#[test]
fn a_wrapped_key_belongs_to_its_content_and_namespace() {
    let (sealed, key) = seal_content(b"content").expect("small");
    let under = NamespaceKey::generate(3);
    let (namespace, hash) = (NamespaceId(7), hash_of(&sealed));
    let wrapped = WrappedKey::wrap(&under, namespace, &hash, &key);
    let opened = wrapped.unwrap(&under, namespace, &hash).expect("its own");
    assert_eq!(open_content(&opened, &sealed).expect("the same key"), "content");

    assert_eq!(wrapped.unwrap(&under, NamespaceId(8), &hash).err(), Some(ContentError::Forged));
    assert_eq!(wrapped.unwrap(&under, namespace, &[0; 32]).err(), Some(ContentError::Forged));
    let renamed = NamespaceKey { epoch: 4, key: under.key.clone() };
    assert_eq!(wrapped.unwrap(&renamed, namespace, &hash).err(), Some(ContentError::KeyEpoch { needed: 3, have: 4 }));
    let relabelled = WrappedKey { key_epoch: 4, ..wrapped.clone() };
    assert_eq!(relabelled.unwrap(&renamed, namespace, &hash).err(), Some(ContentError::Forged));
    let other = NamespaceKey::generate(3);
    assert_eq!(wrapped.unwrap(&other, namespace, &hash).err(), Some(ContentError::Forged));
}

#[test]
fn a_value_belongs_to_its_purpose_and_namespace() {
    let under = NamespaceKey::generate(1);
    let namespace = NamespaceId(7);
    for plain in [&b""[..], b"target/of/a/link"] {
        let value = SealedValue::seal(&under, namespace, ValuePurpose::SymlinkTarget, plain);
        assert_eq!(value.plain_bytes(), plain.len());
        assert_eq!(value.open(&under, namespace, ValuePurpose::SymlinkTarget).expect("its own"), plain);
        assert_eq!(value.open(&under, namespace, ValuePurpose::Xattr), Err(ContentError::Forged));
        assert_eq!(value.open(&under, NamespaceId(8), ValuePurpose::SymlinkTarget), Err(ContentError::Forged));
    }
}

#[test]
fn ingest_accepts_the_uploaders_chunk_and_nothing_else() {
    let cluster = ClusterKey::generate();
    let uploader = Uploader { session: SessionId([1; 16]), namespace: NamespaceId(7), epoch: Epoch(1), partition: 3 };
    let key = cluster.chunk_key(uploader.session);
    let (content, _) = seal_content(&words(CHUNK_BYTES)).expect("within the bound");
    let sealed = chunk_record(&key, &uploader, &content, hash_of(&content)).expect("within the bound");
    let verify = |record: bytes::Bytes, partition| verify_chunk(&Frame::parse(record)?, &cluster, partition);
    assert_eq!(verify(sealed.record.clone(), 3).expect("genuine"), sealed.payload_hash);
    assert!(matches!(verify(sealed.record.clone(), 4), Err(SealError::Forged)), "another partition");

    let mut damaged = sealed.record.to_vec();
    *damaged.last_mut().expect("not empty") ^= 1;
    assert!(matches!(verify(damaged.into(), 3), Err(SealError::Forged)), "damaged content");
    let mut renamed = sealed.record.to_vec();
    renamed[24] ^= 1;
    assert!(matches!(verify(renamed.into(), 3), Err(SealError::Forged)), "another session");
    let foreign = chunk_record(&Key::random(), &uploader, &content, hash_of(&content)).expect("within the bound");
    assert!(matches!(verify(foreign.record, 3), Err(SealError::Forged)), "another key");
    let oversized = vec![0; SEALED_MAX_BYTES + 1];
    let oversized = chunk_record(&key, &uploader, &oversized, hash_of(&oversized)).expect("a record can hold it");
    assert!(matches!(verify(oversized.record, 3), Err(SealError::Forged)), "more than a chunk");
}

#[test]
fn the_largest_chunk_fits_a_record() {
    let uploader = Uploader { session: SessionId([1; 16]), namespace: NamespaceId(7), epoch: Epoch(1), partition: 3 };
    let content = vec![0; SEALED_MAX_BYTES];
    chunk_record(&Key::random(), &uploader, &content, hash_of(&content)).expect("fits");
}

proptest! {
    #[test]
    fn any_content_comes_back(plain in prop::collection::vec(0..4u8, 0..5000)) {
        let (sealed, key) = seal_content(&plain).expect("within the bound");
        prop_assert_eq!(open_content(&key, &sealed).expect("just sealed"), plain);
    }

    #[test]
    fn any_plaintext_is_survived(mut text in prop::collection::vec(any::<u8>(), 0..200), zstd: bool) {
        if zstd && !text.is_empty() {
            text[0] = FORMAT_ZSTD;
        }
        let (key, sealed) = seal_text(&text);
        let _ = open_content(&key, &sealed);
    }

    #[test]
    fn names_round_trip(epoch: u32, partition: u32, offset: u64, index: u32, session: [u8; 16], hash: [u8; 32], inline: bool) {
        let name = ChunkName {
            topic: if inline { Topic::Requests } else { Topic::Chunks },
            epoch: Epoch(epoch), partition, offset, index, session: SessionId(session), hash,
        };
        prop_assert_eq!(ChunkName::from_bytes(&name.to_bytes()), Ok(name));
    }
}
