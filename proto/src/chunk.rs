//! Content: how a client seals it, how a chunk is named, how its key travels.
//!
//! Content is compressed if that helps, then sealed once, by the client that
//! wrote it, under a key used for nothing else; it stays sealed in Kafka, on
//! the server's disk and in disk caches. Its key travels wrapped in each extent
//! that quotes it ([`WrappedKey`]), so content is cloned and re-keyed without
//! being touched. Small values (xattrs, symlink targets) are sealed directly
//! under the namespace's key ([`SealedValue`]).
//!
//! Nothing is decompressed before it is authentic, and nothing is allocated for
//! more than [`CHUNK_BYTES`].

use crate::frame::{Frame, Kind, TAG_BYTES};
use crate::ids::{Epoch, NamespaceId, Position, SessionId};
use crate::keys::{ClusterKey, NamespaceKey};
use crate::log::{MAX_RECORD_BYTES, Topic};
use crate::seal::{
    BLOB_OVERHEAD_BYTES, Context, Direction, Head, Key, SealError, Sealed, open, open_blob, random, seal_blob,
    seal_hashed,
};
use bytes::Bytes;
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use openssl::error::ErrorStack;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The most plain content in one chunk, in bytes.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// The most plain content that travels inside the request itself, in bytes. What is larger is uploaded first, and what
/// follows on its file waits for that.
pub const INLINE_BYTES: usize = 256 * 1024;

/// What sealing adds at most: the format byte and the tag.
pub const SEALED_OVERHEAD_BYTES: usize = 1 + TAG_BYTES;

/// The largest sealed content, in bytes.
pub const SEALED_MAX_BYTES: usize = CHUNK_BYTES + SEALED_OVERHEAD_BYTES;

/// The smallest sealed content, in bytes: that of no content at all.
pub const SEALED_MIN_BYTES: usize = SEALED_OVERHEAD_BYTES;

const _: () = assert!(SEALED_MAX_BYTES + 1024 < MAX_RECORD_BYTES);

/// A piece of sealed content: where in the log it lies, who put it there, and
/// the BLAKE3 of its sealed bytes. It can be quoted by whoever knows the name,
/// and nothing else can be passed off as it.
///
/// Written as [`ChunkName::BYTES`] bytes that sort like the names themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(
    try_from = "serde_bytes::ByteArray<{ ChunkName::BYTES }>",
    into = "serde_bytes::ByteArray<{ ChunkName::BYTES }>"
)]
pub struct ChunkName {
    /// [`Topic::Chunks`], or [`Topic::Requests`] for content that came inside a request.
    pub topic: Topic,
    pub epoch: Epoch,
    pub partition: u32,
    pub offset: u64,
    /// Tells apart what came in one record: as in a [`Position`], its frame, and below that the piece within
    /// the frame's payload. 0 in `chunks`.
    pub index: u32,
    /// Who uploaded it.
    pub session: SessionId,
    /// BLAKE3 of the sealed content.
    pub hash: [u8; 32],
}

/// Bytes that are no chunk's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a chunk's name is of the topic {topic}, which holds no content")]
pub struct ChunkNameError {
    topic: u8,
}

impl ChunkName {
    /// The name of a piece of content that came in the payload of the request that stands there.
    pub fn inline(request: Position, piece: u32, session: SessionId, hash: [u8; 32]) -> ChunkName {
        let Position { epoch, partition, offset, index } = request;
        ChunkName { topic: Topic::Requests, epoch, partition, offset, index: index + piece, session, hash }
    }

    /// Topic 1, epoch 4, partition 4, offset 8, index 4, session 16, hash 32; numbers big-endian.
    pub const BYTES: usize = 1 + 4 + 4 + 8 + 4 + 16 + 32;

    pub fn to_bytes(self) -> [u8; ChunkName::BYTES] {
        let mut out = [0; ChunkName::BYTES];
        out[0] = self.topic as u8;
        out[1..5].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[5..9].copy_from_slice(&self.partition.to_be_bytes());
        out[9..17].copy_from_slice(&self.offset.to_be_bytes());
        out[17..21].copy_from_slice(&self.index.to_be_bytes());
        out[21..37].copy_from_slice(&self.session.0);
        out[37..69].copy_from_slice(&self.hash);
        out
    }

    pub fn from_bytes(bytes: &[u8; ChunkName::BYTES]) -> Result<ChunkName, ChunkNameError> {
        fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            bytes[at..at + N].try_into().expect("the range has the array's length")
        }
        Ok(ChunkName {
            topic: [Topic::Requests, Topic::Chunks]
                .into_iter()
                .find(|t| *t as u8 == bytes[0])
                .ok_or(ChunkNameError { topic: bytes[0] })?,
            epoch: Epoch(u32::from_be_bytes(part(bytes, 1))),
            partition: u32::from_be_bytes(part(bytes, 5)),
            offset: u64::from_be_bytes(part(bytes, 9)),
            index: u32::from_be_bytes(part(bytes, 17)),
            session: SessionId(part(bytes, 21)),
            hash: part(bytes, 37),
        })
    }

    /// The position that the name begins with. Only within one topic does it order anything.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, partition: self.partition, offset: self.offset, index: self.index }
    }
}

impl From<ChunkName> for serde_bytes::ByteArray<{ ChunkName::BYTES }> {
    fn from(name: ChunkName) -> Self {
        name.to_bytes().into()
    }
}

impl TryFrom<serde_bytes::ByteArray<{ ChunkName::BYTES }>> for ChunkName {
    type Error = ChunkNameError;
    fn try_from(bytes: serde_bytes::ByteArray<{ ChunkName::BYTES }>) -> Result<ChunkName, ChunkNameError> {
        ChunkName::from_bytes(&bytes)
    }
}

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.topic.suffix(), self.position(), self.session)
    }
}

/// The key of one piece of content. Used once, then only to open.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ContentKey([u8; 32]);

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(..)")
    }
}

/// Why content or its key cannot be opened, or is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("{bytes} bytes are more than a chunk's {CHUNK_BYTES}")]
    TooLarge { bytes: usize },
    #[error("the content does not authenticate: damaged, exchanged, or not of this key")]
    Forged,
    /// Authentic, but not content: its writer is broken, or of another version.
    #[error("the content is authentic but malformed: {reason}")]
    Malformed { reason: &'static str },
    #[error("sealed under key epoch {needed} of the namespace, and the key at hand is of {have}")]
    KeyEpoch { needed: u32, have: u32 },
}

/// First byte of the plaintext: the rest is the content itself.
const FORMAT_RAW: u8 = 0;
/// First byte of the plaintext: then the content's length (u32, little-endian), then one zstd frame.
const FORMAT_ZSTD: u8 = 1;
const ZSTD_PREFIX_BYTES: usize = 1 + 4;
const ZSTD_LEVEL: i32 = 1;

/// Compressing this much tells cheaply whether compressing all of it is worth it.
const SAMPLE_BYTES: usize = 16 * 1024;

/// Every nonce of content. AES-GCM needs each pair of key and nonce to be used
/// once; the key is random and seals a single text, so the nonce may be fixed.
const CONTENT_NONCE: [u8; 12] = [0; 12];

/// Seals at most [`CHUNK_BYTES`] of content under a fresh key, compressed if that saves a sixteenth.
pub fn seal_content(plain: &[u8]) -> Result<(Vec<u8>, ContentKey), ContentError> {
    if plain.len() > CHUNK_BYTES {
        return Err(ContentError::TooLarge { bytes: plain.len() });
    }
    let key = ContentKey(random());
    let mut text = compressed(plain).unwrap_or_else(|| {
        let mut text = Vec::with_capacity(plain.len() + SEALED_OVERHEAD_BYTES);
        text.push(FORMAT_RAW);
        text.extend_from_slice(plain);
        text
    });
    let tag = encrypt(&key, &mut text).expect("the cipher takes any text of a chunk's size");
    text.extend_from_slice(&tag);
    Ok((text, key))
}

/// Opens content; the result has at most [`CHUNK_BYTES`].
pub fn open_content(key: &ContentKey, sealed: &[u8]) -> Result<Bytes, ContentError> {
    if sealed.len() > SEALED_MAX_BYTES {
        return Err(ContentError::TooLarge { bytes: sealed.len() });
    }
    let (text, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(ContentError::Forged)?;
    let mut text = text.to_vec();
    decrypt(key, &mut text, tag).map_err(|_| ContentError::Forged)?;
    match text.first() {
        Some(&FORMAT_RAW) => Ok(Bytes::from(text).slice(1..)),
        Some(&FORMAT_ZSTD) => decompressed(&text).map(Bytes::from),
        _ => Err(ContentError::Malformed { reason: "an unknown format" }),
    }
}

// AES-256-GCM by OpenSSL, which the Kafka client brings along: five times as fast
// as the pure-Rust one on content of this size.

fn encrypt(key: &ContentKey, text: &mut [u8]) -> Result<[u8; TAG_BYTES], ErrorStack> {
    let mut cipher = CipherCtx::new()?;
    cipher.encrypt_init(Some(Cipher::aes_256_gcm()), Some(&key.0), Some(&CONTENT_NONCE))?;
    let bytes = text.len();
    cipher.cipher_update_inplace(text, bytes)?;
    cipher.cipher_final(&mut [])?;
    let mut tag = [0; TAG_BYTES];
    cipher.tag(&mut tag)?;
    Ok(tag)
}

/// Leaves `text` in no useful state if it does not authenticate.
fn decrypt(key: &ContentKey, text: &mut [u8], tag: &[u8; TAG_BYTES]) -> Result<(), ErrorStack> {
    let mut cipher = CipherCtx::new()?;
    cipher.decrypt_init(Some(Cipher::aes_256_gcm()), Some(&key.0), Some(&CONTENT_NONCE))?;
    let bytes = text.len();
    cipher.cipher_update_inplace(text, bytes)?;
    cipher.set_tag(tag)?;
    cipher.cipher_final(&mut [])?;
    Ok(())
}

thread_local! {
    // A context costs more to make than a small chunk to compress.
    static COMPRESSOR: RefCell<zstd::bulk::Compressor<'static>> =
        RefCell::new(zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("only a lack of memory prevents it"));
    static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> =
        RefCell::new(zstd::bulk::Decompressor::new().expect("only a lack of memory prevents it"));
}

/// The compressed plaintext with its prefix and room for the tag, or `None` if
/// that would save less than a sixteenth.
fn compressed(plain: &[u8]) -> Option<Vec<u8>> {
    // Where compressed data must fit to be worth it; compression stops when it does not.
    let worth = |bytes: usize| (bytes - bytes / 16).saturating_sub(ZSTD_PREFIX_BYTES);
    COMPRESSOR.with_borrow_mut(|zstd| {
        if plain.len() > 2 * SAMPLE_BYTES {
            let mut scratch = [0; SAMPLE_BYTES];
            zstd.compress_to_buffer(&plain[..SAMPLE_BYTES], &mut scratch[..worth(SAMPLE_BYTES)]).ok()?;
        }
        let room = worth(plain.len());
        let mut text = vec![0; ZSTD_PREFIX_BYTES + room + TAG_BYTES];
        let bytes = zstd.compress_to_buffer(plain, &mut text[ZSTD_PREFIX_BYTES..ZSTD_PREFIX_BYTES + room]).ok()?;
        text[0] = FORMAT_ZSTD;
        text[1..ZSTD_PREFIX_BYTES].copy_from_slice(&(plain.len() as u32).to_le_bytes());
        text.truncate(ZSTD_PREFIX_BYTES + bytes);
        Some(text)
    })
}

/// The content of an authentic plaintext in the zstd format.
fn decompressed(text: &[u8]) -> Result<Vec<u8>, ContentError> {
    let (prefix, frame) = text
        .split_first_chunk::<ZSTD_PREFIX_BYTES>()
        .ok_or(ContentError::Malformed { reason: "its length is missing" })?;
    let bytes = u32::from_le_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if bytes > CHUNK_BYTES {
        return Err(ContentError::TooLarge { bytes });
    }
    let mut plain = vec![0; bytes];
    // The buffer bounds what is written, whatever the zstd frame says about itself.
    match DECOMPRESSOR.with_borrow_mut(|zstd| zstd.decompress_to_buffer(frame, &mut plain[..])) {
        Ok(written) if written == bytes => Ok(plain),
        _ => Err(ContentError::Malformed { reason: "it does not decompress to its length" }),
    }
}

/// A [`ContentKey`] under one key epoch of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WrappedKey {
    pub key_epoch: u32,
    /// Nonce 24, key 32, tag 16.
    #[serde(with = "serde_bytes")]
    pub wrapped: [u8; WrappedKey::BYTES],
}

impl WrappedKey {
    pub const BYTES: usize = 32 + BLOB_OVERHEAD_BYTES;

    const PURPOSE: &str = "kfs content key v1";

    /// Wraps a content's key for extents of this namespace. Bound to the sealed
    /// content's BLAKE3, so it cannot be moved to other content.
    pub fn wrap(under: &NamespaceKey, namespace: NamespaceId, hash: &[u8; 32], key: &ContentKey) -> WrappedKey {
        let data = WrappedKey::data(namespace, under.epoch, hash);
        let wrapped = seal_blob(&under.wrapping_key(), WrappedKey::PURPOSE, &data, &key.0);
        WrappedKey {
            key_epoch: under.epoch,
            wrapped: wrapped.try_into().expect("a key of 32 bytes gives a blob of a fixed length"),
        }
    }

    /// The content's key; `under` must be of [`WrappedKey::key_epoch`].
    pub fn unwrap(
        &self,
        under: &NamespaceKey,
        namespace: NamespaceId,
        hash: &[u8; 32],
    ) -> Result<ContentKey, ContentError> {
        check_key_epoch(self.key_epoch, under)?;
        let data = WrappedKey::data(namespace, self.key_epoch, hash);
        let plain = open_blob(&under.wrapping_key(), WrappedKey::PURPOSE, &data, &self.wrapped)
            .map_err(|_| ContentError::Forged)?;
        Ok(ContentKey(plain[..].try_into().expect("a wrapped key's length is fixed")))
    }

    fn data(namespace: NamespaceId, key_epoch: u32, hash: &[u8; 32]) -> [u8; 40] {
        let mut data = [0; 40];
        data[..4].copy_from_slice(&namespace.0.to_le_bytes());
        data[4..8].copy_from_slice(&key_epoch.to_le_bytes());
        data[8..].copy_from_slice(hash);
        data
    }
}

/// What a [`SealedValue`] is, so that one cannot be passed off as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValuePurpose {
    Xattr,
    SymlinkTarget,
}

impl ValuePurpose {
    fn name(self) -> &'static str {
        match self {
            ValuePurpose::Xattr => "kfs xattr v1",
            ValuePurpose::SymlinkTarget => "kfs symlink v1",
        }
    }
}

/// A small value sealed directly under a key epoch of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealedValue {
    pub key_epoch: u32,
    /// Nonce 24, value, tag 16.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

impl SealedValue {
    /// What sealing adds to a value, in bytes.
    pub const OVERHEAD_BYTES: usize = BLOB_OVERHEAD_BYTES;

    pub fn seal(under: &NamespaceKey, namespace: NamespaceId, purpose: ValuePurpose, plain: &[u8]) -> SealedValue {
        let data = SealedValue::data(namespace, under.epoch);
        SealedValue { key_epoch: under.epoch, sealed: seal_blob(&under.value_key(), purpose.name(), &data, plain) }
    }

    /// The value; `under` must be of [`SealedValue::key_epoch`].
    pub fn open(
        &self,
        under: &NamespaceKey,
        namespace: NamespaceId,
        purpose: ValuePurpose,
    ) -> Result<Vec<u8>, ContentError> {
        check_key_epoch(self.key_epoch, under)?;
        let data = SealedValue::data(namespace, self.key_epoch);
        match open_blob(&under.value_key(), purpose.name(), &data, &self.sealed) {
            Ok(mut plain) => Ok(std::mem::take(&mut *plain)),
            Err(_) => Err(ContentError::Forged),
        }
    }

    /// The plain value's length in bytes; 0 for what is too short to be sealed.
    pub fn plain_bytes(&self) -> usize {
        self.sealed.len().saturating_sub(SealedValue::OVERHEAD_BYTES)
    }

    fn data(namespace: NamespaceId, key_epoch: u32) -> [u8; 8] {
        let mut data = [0; 8];
        data[..4].copy_from_slice(&namespace.0.to_le_bytes());
        data[4..].copy_from_slice(&key_epoch.to_le_bytes());
        data
    }
}

fn check_key_epoch(needed: u32, key: &NamespaceKey) -> Result<(), ContentError> {
    match key.epoch == needed {
        true => Ok(()),
        false => Err(ContentError::KeyEpoch { needed, have: key.epoch }),
    }
}

/// The body of a chunk's record: nothing yet, but with room for named fields.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct ChunkBody {}

/// Who uploads a chunk, and whereto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploader {
    pub session: SessionId,
    pub namespace: NamespaceId,
    pub epoch: Epoch,
    /// Of `chunks`: the namespace's.
    pub partition: u32,
}

/// The record that uploads sealed content to `chunks`. `chunk_key` is what
/// [`ClusterKey::chunk_key`] gave for the session. The result's payload hash is
/// the name's; the rest of the name is known when the record's offset is.
pub fn chunk_record(chunk_key: &Key, uploader: &Uploader, sealed: &[u8], hash: [u8; 32]) -> Result<Sealed, SealError> {
    let head = Head {
        kind: Kind::Chunk,
        namespace: uploader.namespace,
        epoch: uploader.epoch,
        sender: uploader.session.0,
        number: 0,
    };
    seal_hashed(chunk_key, &head, &chunk_context(uploader.partition), &ChunkBody {}, sealed, hash)
}

/// Checks a record of `chunks` that stands in this partition, and gives the
/// hash for its name. Needs no state: who may quote the chunk is decided later.
pub fn verify_chunk(frame: &Frame, cluster: &ClusterKey, partition: u32) -> Result<[u8; 32], SealError> {
    let header = frame.header();
    let plausible = SEALED_MIN_BYTES..=SEALED_MAX_BYTES;
    if header.kind != Kind::Chunk || !plausible.contains(&(header.payload_bytes as usize)) {
        return Err(SealError::Forged);
    }
    let key = cluster.chunk_key(SessionId(header.sender));
    let opened = open::<ChunkBody>(&key, frame, &chunk_context(partition))?;
    Ok(opened.payload_hash)
}

fn chunk_context(partition: u32) -> Context {
    Context { direction: Direction::ToServer, topic: Topic::Chunks, partition, answers: None }
}

#[cfg(test)]
mod tests;
