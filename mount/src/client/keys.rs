//! The keys of the namespace, as a client uses them: values and content are
//! sealed under the newest key epoch and opened under whichever they name.

use bytes::Bytes;
use proto::NamespaceId;
use proto::chunk::{ContentError, ContentKey, SealedValue, ValuePurpose, WrappedKey, open_content, seal_content};
use proto::keys::{KeyPair, NamespaceKey};
use proto::message::LoginDone;
use proto::seal::{Key, hash_of};
use std::collections::BTreeMap;

/// Seals and opens what a namespace holds.
pub struct ContentKeys {
    namespace: NamespaceId,
    /// By key epoch; never empty.
    epochs: BTreeMap<u32, NamespaceKey>,
    journal: Key,
}

/// Content ready to be uploaded or sent inline.
#[derive(Clone, Debug)]
pub struct SealedContent {
    pub sealed: Bytes,
    /// BLAKE3 of `sealed`: part of the chunk's name, and what `key` is bound to.
    pub hash: [u8; 32],
    pub key: WrappedKey,
}

/// Why something of the namespace cannot be opened or sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it needs key epoch {needed} of the namespace, which this login did not get; mount again")]
    NoEpoch { needed: u32 },
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl ContentKeys {
    /// The namespace's keys that a login gave, opened with the user's key pair.
    pub(super) fn open(pair: &KeyPair, done: &LoginDone) -> Result<ContentKeys, String> {
        let mut epochs = BTreeMap::new();
        for sealed in &done.namespace_keys {
            if sealed.recipient == pair.public().as_bytes() {
                let key = pair
                    .open_namespace_key(done.namespace, sealed.key_epoch, &sealed.sealed)
                    .map_err(|error| error.to_string())?;
                epochs.insert(sealed.key_epoch, key);
            }
        }
        if epochs.is_empty() {
            return Err("the server has no key of the namespace for this user; set the password again".to_owned());
        }
        Ok(ContentKeys { namespace: done.namespace, epochs, journal: pair.journal_key() })
    }

    /// Seals a symlink's target or an xattr's value under the newest key epoch.
    pub fn seal_value(&self, purpose: ValuePurpose, plain: &[u8]) -> SealedValue {
        SealedValue::seal(self.newest(), self.namespace, purpose, plain)
    }

    pub fn open_value(&self, purpose: ValuePurpose, value: &SealedValue) -> Result<Vec<u8>, KeyError> {
        Ok(value.open(self.epoch(value.key_epoch)?, self.namespace, purpose)?)
    }

    /// Seals at most [`proto::chunk::CHUNK_BYTES`] of content under a key of its own, wrapped for extents.
    /// Takes up to a millisecond a chunk.
    pub fn seal_content(&self, plain: &[u8]) -> Result<SealedContent, KeyError> {
        let (sealed, key) = seal_content(plain)?;
        let hash = hash_of(&sealed);
        Ok(SealedContent { sealed: sealed.into(), hash, key: self.wrap(&hash, &key) })
    }

    /// Opens sealed content of this hash with the key that came in its extent.
    pub fn open_content(&self, key: &WrappedKey, hash: &[u8; 32], sealed: &[u8]) -> Result<Bytes, KeyError> {
        Ok(open_content(&self.unwrap(hash, key)?, sealed)?)
    }

    pub fn wrap(&self, hash: &[u8; 32], key: &ContentKey) -> WrappedKey {
        WrappedKey::wrap(self.newest(), self.namespace, hash, key)
    }

    pub fn unwrap(&self, hash: &[u8; 32], key: &WrappedKey) -> Result<ContentKey, KeyError> {
        Ok(key.unwrap(self.epoch(key.key_epoch)?, self.namespace, hash)?)
    }

    /// What seals this user's journals.
    pub(super) fn journal_key(&self) -> &Key {
        &self.journal
    }

    fn newest(&self) -> &NamespaceKey {
        self.epochs.last_key_value().expect("never empty").1
    }

    fn epoch(&self, needed: u32) -> Result<&NamespaceKey, KeyError> {
        self.epochs.get(&needed).ok_or(KeyError::NoEpoch { needed })
    }
}
