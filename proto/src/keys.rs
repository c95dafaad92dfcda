//! Who holds which key, and what is derived from it.
//!
//! * [`ClusterKey`]: the servers'. Seals tickets, server records and logins'
//!   half-states; opens no content.
//! * [`SessionSecret`]: of one login, known to the client and to whoever holds
//!   the cluster key. One key per partition comes from it.
//! * [`KeyPair`]: a user's, its private half wrapped under the OPAQUE export
//!   key; or the cluster's recovery pair, its private half in a file kept offline.
//! * [`NamespaceKey`]: opens a namespace's content, in key epochs; sealed to key
//!   pairs by HPKE, so servers keep it and cannot read it.
//!
//! Derivation is BLAKE3's, each with a context of its own. Every context string
//! and every layout here is part of what is stored, and never changes.

mod cluster;
mod file;
mod user;

pub use cluster::{ClusterId, ClusterKey};
pub use file::KeyFileError;
pub(crate) use file::{SecretFile, encode};
pub use user::{ExportKey, KeyError, KeyPair, NamespaceKey, PublicKey};

use crate::seal::{Key, derive_key};
use std::fmt;

/// What a login leaves both ends with: the root of the session's keys.
#[derive(Clone)]
pub struct SessionSecret(Key);

impl SessionSecret {
    /// From OPAQUE's session key.
    pub(crate) fn from_opaque(session_key: &[u8]) -> SessionSecret {
        SessionSecret(derive_key("kfs 2026-11 session secret v1", &[session_key]))
    }

    /// What seals the session's requests, answers and pushes in one partition of the request log.
    pub fn partition_key(&self, partition: u32) -> Key {
        self.0.derive("kfs 2026-11 session partition key v1", &partition.to_le_bytes())
    }

    /// What seals the last message of the login.
    pub fn login_key(&self) -> Key {
        self.0.derive("kfs 2026-11 session login key v1", &[])
    }
}

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret(..)")
    }
}

#[cfg(test)]
mod tests;
