//! The keys that open content: key pairs of users and of the recovery, and
//! namespaces' keys in their epochs.

use super::file::{KeyFileError, SecretFile, encode};
use crate::ids::NamespaceId;
use crate::login::{CredentialId, bound_identity};
use crate::random::Source;
use crate::seal::{Key, derive_key, open_blob, random, seal_blob};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What OPAQUE gives to the client alone, the same at each login with one password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct ExportKey([u8; 64]);

impl ExportKey {
    pub(crate) fn from_opaque(export_key: [u8; 64]) -> ExportKey {
        ExportKey(export_key)
    }

    fn wrapping_key(&self) -> Key {
        derive_key("kfs 2026-11 private key wrapping v1", &[&self.0])
    }
}

impl fmt::Debug for ExportKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExportKey(..)")
    }
}

/// Why a key cannot be opened or sealed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the user's private key does not open with this login: damaged, or of another user or credential")]
    Wrapped,
    #[error("the namespace's key does not open: damaged, or sealed to another key pair, namespace or key epoch")]
    Sealed,
    #[error("not a public key that anything can be sealed to")]
    PublicKey,
}

/// The public half of a [`KeyPair`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(#[serde(with = "serde_bytes")] pub [u8; 32]);

impl PublicKey {
    /// From bytes that came from elsewhere.
    pub fn from_slice(bytes: &[u8]) -> Result<PublicKey, KeyError> {
        bytes.try_into().map(PublicKey).map_err(|_| KeyError::PublicKey)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

const PRIVATE_KEY_PURPOSE: &str = "kfs user private key v1";

const RECOVERY_FILE: SecretFile = SecretFile {
    title: "kfs recovery key, version 1",
    remarks: &[
        "The private half of a cluster's recovery key. It opens the content of every user",
        "whose password is lost. Keep it offline; no server needs it to run.",
    ],
};

/// An X25519 key pair for HPKE: a user's, or a cluster's recovery pair.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KeyPair {
    private: [u8; 32],
    #[zeroize(skip)]
    public: PublicKey,
}

impl KeyPair {
    pub fn generate() -> KeyPair {
        KeyPair::from_private(random()).expect("every 32 bytes are an X25519 private key")
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The private half under a key from the login, bound to the user and the
    /// credential: the servers keep it, and only that login opens it.
    pub fn wrap(&self, export_key: &ExportKey, user: &str, credential: &CredentialId) -> Vec<u8> {
        let identity = bound_identity(user, credential);
        seal_blob(&export_key.wrapping_key(), PRIVATE_KEY_PURPOSE, &identity, &self.private)
    }

    /// The pair whose private half [`KeyPair::wrap`] wrapped.
    pub fn unwrap(
        wrapped: &[u8],
        export_key: &ExportKey,
        user: &str,
        credential: &CredentialId,
    ) -> Result<KeyPair, KeyError> {
        let identity = bound_identity(user, credential);
        let private = open_blob(&export_key.wrapping_key(), PRIVATE_KEY_PURPOSE, &identity, wrapped)
            .map_err(|_| KeyError::Wrapped)?;
        KeyPair::from_private(private[..].try_into().map_err(|_| KeyError::Wrapped)?)
    }

    /// A namespace's key that [`NamespaceKey::seal_to`] sealed to this pair.
    pub fn open_namespace_key(
        &self,
        namespace: NamespaceId,
        key_epoch: u32,
        sealed: &[u8],
    ) -> Result<NamespaceKey, KeyError> {
        let (encapped, text) = sealed.split_first_chunk::<ENCAPPED_BYTES>().ok_or(KeyError::Sealed)?;
        let encapped = <X25519HkdfSha256 as Kem>::EncappedKey::from_bytes(encapped).map_err(|_| KeyError::Sealed)?;
        let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&self.private).map_err(|_| KeyError::Sealed)?;
        let plain = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &private,
            &encapped,
            &namespace_info(namespace, key_epoch),
            text,
            &[],
        )
        .map_err(|_| KeyError::Sealed)?;
        let plain = Zeroizing::new(plain);
        let key = plain[..].try_into().map_err(|_| KeyError::Sealed)?;
        Ok(NamespaceKey { epoch: key_epoch, key: Key::from_bytes(key) })
    }

    /// What seals the journals that this user's mounts keep on their own machines.
    pub fn journal_key(&self) -> Key {
        derive_key("kfs 2026-11 journal key v1", &[&self.private])
    }

    /// Writes a recovery pair's file, mode 0600; never over an existing one.
    pub fn write_recovery(&self, path: &Path) -> Result<(), KeyFileError> {
        let public = self.public.to_string();
        RECOVERY_FILE.write(path, &[("public", &public), ("private", &encode(&self.private))])
    }

    /// Reads a recovery pair's file; refuses one that others can read.
    pub fn read_recovery(path: &Path) -> Result<KeyPair, KeyFileError> {
        let fields = RECOVERY_FILE.read(path)?;
        let pair = KeyPair::from_private(*fields.array("private")?)
            .map_err(|_| fields.malformed("the value of `private` is damaged".into()))?;
        if fields.get("public")? != pair.public.to_string() {
            return Err(fields.malformed("its public and private keys do not belong together".into()));
        }
        Ok(pair)
    }

    pub(crate) fn from_private(private: [u8; 32]) -> Result<KeyPair, KeyError> {
        let key = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&private).map_err(|_| KeyError::Wrapped)?;
        let public = X25519HkdfSha256::sk_to_pk(&key).to_bytes().into();
        Ok(KeyPair { private, public: PublicKey(public) })
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public)
    }
}

/// One key epoch of a namespace. Old epochs stay, for what was sealed under them.
#[derive(Clone, Debug)]
pub struct NamespaceKey {
    /// Rises by one when someone is to be shut out of what comes after.
    pub epoch: u32,
    pub(crate) key: Key,
}

impl NamespaceKey {
    pub fn generate(epoch: u32) -> NamespaceKey {
        NamespaceKey { epoch, key: Key::random() }
    }

    /// Seals the key by HPKE (RFC 9180: X25519, HKDF-SHA256, ChaCha20-Poly1305) so
    /// that only the recipient opens it, for this namespace and key epoch.
    /// Gives 32 bytes of encapsulated key, then 48 of sealed key.
    pub fn seal_to(&self, recipient: &PublicKey, namespace: NamespaceId) -> Result<Vec<u8>, KeyError> {
        let recipient =
            <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(&recipient.0).map_err(|_| KeyError::PublicKey)?;
        let (encapped, text) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256, _>(
            &OpModeS::Base,
            &recipient,
            &namespace_info(namespace, self.epoch),
            self.key.as_bytes(),
            &[],
            &mut Source,
        )
        .map_err(|_| KeyError::PublicKey)?;
        let mut sealed = encapped.to_bytes().to_vec();
        sealed.extend_from_slice(&text);
        Ok(sealed)
    }

    /// Wraps the keys of content.
    pub(crate) fn wrapping_key(&self) -> Key {
        self.key.derive("kfs 2026-11 namespace wrapping key v1", &[])
    }

    /// Seals small values.
    pub(crate) fn value_key(&self) -> Key {
        self.key.derive("kfs 2026-11 namespace value key v1", &[])
    }
}

const ENCAPPED_BYTES: usize = 32;

/// What HPKE binds a sealed namespace key to.
fn namespace_info(namespace: NamespaceId, key_epoch: u32) -> Vec<u8> {
    let mut info = b"kfs namespace key v1".to_vec();
    info.extend_from_slice(&namespace.0.to_le_bytes());
    info.extend_from_slice(&key_epoch.to_le_bytes());
    info
}
