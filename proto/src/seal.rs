//! Sealing: XChaCha20-Poly1305 with a fresh random nonce every time.
//!
//! A record's body is encrypted; its header, its payload (by hash) and where it
//! travels are bound to it, and an answer binds the request that it answers. So
//! a record can be neither forged nor altered nor moved to another topic,
//! partition or request. Nonces are never derived from numbers: a resent number
//! may carry other content. With 24 random bytes, collisions are out of reach.
//!
//! The payload stays as it is: it is content that a client has sealed before
//! (`chunk.rs`), or a blob that protects itself. [`seal_blob`] is for such
//! small things that travel or rest outside a record.

use crate::frame::{Frame, FrameError, HEADER_BYTES, Header, Kind, TAG_BYTES};
use crate::ids::{Epoch, NamespaceId};
use crate::log::{MAX_RECORD_BYTES, Topic};
pub use crate::random::random;
use bytes::Bytes;
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;

/// What [`seal_blob`] adds to its plaintext.
pub const BLOB_OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// A 32-byte symmetric key. Wiped when dropped, never shown. Serializing it is
/// for tickets and other bodies that are sealed themselves, and for the server's own state.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(#[serde(with = "serde_bytes")] [u8; 32]);

impl Key {
    pub fn from_bytes(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// A fresh one from the system's random source.
    pub fn random() -> Key {
        Key(random())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for one purpose, from this one. `context` is a constant of the
    /// program, unique to the purpose; `input` may vary and must have a fixed
    /// length for each context.
    pub fn derive(&self, context: &'static str, input: &[u8]) -> Key {
        derive_key(context, &[&self.0, input])
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// BLAKE3's key derivation over the concatenation of `material`.
pub(crate) fn derive_key(context: &'static str, material: &[&[u8]]) -> Key {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in material {
        hasher.update(part);
    }
    Key(*hasher.finalize().as_bytes())
}

/// Which way a record travels, so that none can be turned round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    ToServer = 1,
    ToClient = 2,
    /// A server's own record in the log.
    ServerToLog = 3,
}

/// Where a record stands, as its reader knows it without reading the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub direction: Direction,
    pub topic: Topic,
    pub partition: u32,
    /// [`Frame::hash`] of the request that this record answers; `None` if it answers none.
    pub answers: Option<[u8; 32]>,
}

/// The header fields that a record's writer chooses; the rest follows from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    pub namespace: NamespaceId,
    pub epoch: Epoch,
    pub sender: [u8; 16],
    pub number: u64,
}

/// A record ready to be appended.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub record: Bytes,
    /// BLAKE3 of the payload, which is also part of a chunk's name.
    pub payload_hash: [u8; 32],
}

/// An authentic record's content.
#[derive(Clone, Debug)]
pub struct Opened<T> {
    pub body: T,
    /// BLAKE3 of the payload, which is also part of a chunk's name.
    pub payload_hash: [u8; 32],
}

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The record is malformed, and so of nobody who follows the protocol.
    #[error(transparent)]
    Malformed(#[from] FrameError),
    /// Forged, damaged, moved from elsewhere, or under another key. Such records
    /// are counted and skipped.
    #[error("does not authenticate: forged, damaged, out of its place, or sealed under another key")]
    Forged,
    /// Whoever holds the key wrote it, and this program does not understand it. Must not be skipped.
    #[error("authentic, but not understood (written by another version of kfs?): {reason}")]
    Unreadable { reason: String },
    #[error("sealing would give a record of {bytes} bytes, more than {MAX_RECORD_BYTES}")]
    TooLarge { bytes: usize },
    /// A bug of the caller: a body that MessagePack cannot express.
    #[error("cannot encode the body: {reason}")]
    Unwritable { reason: String },
}

/// Seals a record. The body is written as MessagePack with named fields, the
/// payload goes along as it is. Fails only if the record would be too large or
/// the body is one that MessagePack cannot express.
pub fn seal<T: Serialize + ?Sized>(
    key: &Key,
    head: &Head,
    context: &Context,
    body: &T,
    payload: &[u8],
) -> Result<Sealed, SealError> {
    seal_hashed(key, head, context, body, payload, hash_of(payload))
}

/// [`seal`] for a payload whose BLAKE3 is known already, which halves the work for content.
/// With a wrong `payload_hash` the record will not open.
pub fn seal_hashed<T: Serialize + ?Sized>(
    key: &Key,
    head: &Head,
    context: &Context,
    body: &T,
    payload: &[u8],
    payload_hash: [u8; 32],
) -> Result<Sealed, SealError> {
    seal_with_nonce(key, head, context, body, payload, payload_hash, random())
}

fn seal_with_nonce<T: Serialize + ?Sized>(
    key: &Key,
    head: &Head,
    context: &Context,
    body: &T,
    payload: &[u8],
    payload_hash: [u8; 32],
    nonce: [u8; NONCE_BYTES],
) -> Result<Sealed, SealError> {
    // One buffer: the body is written and encrypted where it stays, and the
    // payload is copied once, behind it.
    let mut record = Vec::with_capacity(HEADER_BYTES + BODY_GUESS_BYTES + TAG_BYTES + payload.len());
    record.resize(HEADER_BYTES, 0);
    rmp_serde::encode::write_named(&mut record, body)
        .map_err(|error| SealError::Unwritable { reason: error.to_string() })?;
    let bytes = record.len() + TAG_BYTES + payload.len();
    if bytes > MAX_RECORD_BYTES {
        return Err(SealError::TooLarge { bytes });
    }
    let header = Header {
        kind: head.kind,
        namespace: head.namespace,
        body_bytes: (record.len() - HEADER_BYTES + TAG_BYTES) as u32,
        payload_bytes: payload.len() as u32,
        epoch: head.epoch,
        sender: head.sender,
        number: head.number,
        nonce,
    }
    .encode();
    record[..HEADER_BYTES].copy_from_slice(&header);
    let tag = cipher(key)
        .encrypt_in_place_detached(
            &nonce.into(),
            &associated_data(&header, context, &payload_hash),
            &mut record[HEADER_BYTES..],
        )
        .expect("a record is far below the cipher's limit of 256 GiB");
    record.extend_from_slice(&tag);
    record.extend_from_slice(payload);
    Ok(Sealed { record: record.into(), payload_hash })
}

/// Room for a body before it is written; a larger one costs a reallocation.
const BODY_GUESS_BYTES: usize = 512;

/// Opens a record: checks that it is authentic in this context, payload
/// included, and decodes its body.
pub fn open<T: DeserializeOwned>(key: &Key, frame: &Frame, context: &Context) -> Result<Opened<T>, SealError> {
    let (text, tag) = frame.body().split_last_chunk::<TAG_BYTES>().ok_or(SealError::Forged)?;
    let payload_hash = hash_of(&frame.payload());
    let header = frame.header_bytes().try_into().expect("a frame has a whole header");
    let mut body = text.to_vec();
    cipher(key)
        .decrypt_in_place_detached(
            &frame.header().nonce.into(),
            &associated_data(header, context, &payload_hash),
            &mut body,
            tag.into(),
        )
        .map_err(|_| SealError::Forged)?;
    let body = Zeroizing::new(body);
    Ok(Opened { body: read_body(&body)?, payload_hash })
}

/// Parses and opens a record in one go.
pub fn open_record<T: DeserializeOwned>(
    key: &Key,
    record: Bytes,
    context: &Context,
) -> Result<(Frame, Opened<T>), SealError> {
    let frame = Frame::parse(record)?;
    let opened = open(key, &frame, context)?;
    Ok((frame, opened))
}

/// Decodes MessagePack that fills its bytes exactly.
fn read_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, SealError> {
    let unreadable = |reason: String| SealError::Unreadable { reason };
    let mut decoder = rmp_serde::Deserializer::new(std::io::Cursor::new(bytes));
    let body = T::deserialize(&mut decoder).map_err(|error| unreadable(error.to_string()))?;
    match bytes.len() as u64 - decoder.position() {
        0 => Ok(body),
        rest => Err(unreadable(format!("{rest} bytes follow the body"))),
    }
}

const ASSOCIATED_BYTES: usize = HEADER_BYTES + 1 + 1 + 4 + 32 + 32;

/// header 72 | direction 1 | topic 1 | partition 4 | payload's BLAKE3 32 | hash
/// of the request answered 32, or zeros.
fn associated_data(header: &[u8; HEADER_BYTES], context: &Context, payload_hash: &[u8; 32]) -> [u8; ASSOCIATED_BYTES] {
    let mut out = [0; ASSOCIATED_BYTES];
    out[..72].copy_from_slice(header);
    out[72] = context.direction as u8;
    out[73] = context.topic as u8;
    out[74..78].copy_from_slice(&context.partition.to_le_bytes());
    out[78..110].copy_from_slice(payload_hash);
    out[110..142].copy_from_slice(&context.answers.unwrap_or_default());
    out
}

fn cipher(key: &Key) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&key.0).into())
}

/// BLAKE3 of a payload.
pub fn hash_of(payload: &[u8]) -> [u8; 32] {
    *blake3::hash(payload).as_bytes()
}

/// Seals a small thing on its own: `nonce 24 | ciphertext | tag 16`. It opens
/// only for the same purpose (a constant of the program) and associated data.
pub fn seal_blob(key: &Key, purpose: &str, associated: &[u8], plain: &[u8]) -> Vec<u8> {
    blob_with_nonce(key, purpose, associated, plain, random())
}

pub(crate) fn blob_with_nonce(
    key: &Key,
    purpose: &str,
    associated: &[u8],
    plain: &[u8],
    nonce: [u8; NONCE_BYTES],
) -> Vec<u8> {
    let mut blob = Vec::with_capacity(plain.len() + BLOB_OVERHEAD_BYTES);
    blob.extend_from_slice(&nonce);
    blob.extend_from_slice(plain);
    let tag = cipher(key)
        .encrypt_in_place_detached(&nonce.into(), &blob_data(purpose, associated), &mut blob[NONCE_BYTES..])
        .expect("what fits into memory is below the cipher's limit of 256 GiB");
    blob.extend_from_slice(&tag);
    blob
}

/// Opens what [`seal_blob`] sealed; anything else is [`SealError::Forged`].
pub fn open_blob(key: &Key, purpose: &str, associated: &[u8], blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, rest) = blob.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Forged)?;
    let (text, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(SealError::Forged)?;
    let mut plain = Zeroizing::new(text.to_vec());
    cipher(key)
        .decrypt_in_place_detached(nonce.into(), &blob_data(purpose, associated), &mut plain, tag.into())
        .map_err(|_| SealError::Forged)?;
    Ok(plain)
}

/// [`seal_blob`] of a value, as MessagePack with named fields.
pub fn seal_blob_of<T: Serialize>(
    key: &Key,
    purpose: &str,
    associated: &[u8],
    value: &T,
) -> Result<Vec<u8>, SealError> {
    let plain = rmp_serde::to_vec_named(value).map_err(|error| SealError::Unwritable { reason: error.to_string() })?;
    Ok(seal_blob(key, purpose, associated, &Zeroizing::new(plain)))
}

/// Opens what [`seal_blob_of`] sealed.
pub fn open_blob_of<T: DeserializeOwned>(
    key: &Key,
    purpose: &str,
    associated: &[u8],
    blob: &[u8],
) -> Result<T, SealError> {
    read_body(&open_blob(key, purpose, associated, blob)?)
}

/// The purpose carries its length, so that no part of it can be taken for associated data.
fn blob_data(purpose: &str, associated: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + purpose.len() + associated.len());
    out.extend_from_slice(&(purpose.len() as u32).to_le_bytes());
    out.extend_from_slice(purpose.as_bytes());
    out.extend_from_slice(associated);
    out
}

#[cfg(test)]
mod tests;
