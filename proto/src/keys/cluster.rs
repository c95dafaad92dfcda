//! The cluster key: what every server of a cluster holds, and nobody else.

use super::file::{KeyFileError, SecretFile, encode};
use crate::ids::{Epoch, SessionId};
use crate::login::Suite;
use crate::random::Source;
use crate::seal::{Key, derive_key};
use opaque_ke::ServerSetup;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use zeroize::Zeroizing;

const FILE: SecretFile = SecretFile {
    title: "kfs cluster key, version 1",
    remarks: &[
        "Every server of the cluster needs this file, and nobody else may have it:",
        "whoever has it can pass for a server. It opens no file's content.",
        "Without it, no user of the cluster can ever log in again: keep a copy.",
    ],
};

/// A cluster's secret and its side of OPAQUE.
///
/// Which derived key seals what is part of the format; each is used with
/// contexts or purposes that tell apart what it seals.
#[derive(Clone)]
pub struct ClusterKey {
    secret: Key,
    opaque: ServerSetup<Suite>,
}

impl ClusterKey {
    /// A new cluster's.
    pub fn generate() -> ClusterKey {
        ClusterKey { secret: Key::random(), opaque: ServerSetup::new(&mut Source) }
    }

    /// Writes the key file, mode 0600; never over an existing one.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        let opaque = Zeroizing::new(self.opaque.serialize().to_vec());
        FILE.write(path, &[("secret", &encode(self.secret.as_bytes())), ("opaque", &encode(&opaque))])
    }

    /// Reads a key file; refuses one that others can read.
    pub fn read(path: &Path) -> Result<ClusterKey, KeyFileError> {
        let fields = FILE.read(path)?;
        let opaque = ServerSetup::deserialize(&fields.bytes("opaque")?)
            .map_err(|_| fields.malformed("the value of `opaque` is damaged".into()))?;
        Ok(ClusterKey { secret: Key::from_bytes(*fields.array("secret")?), opaque })
    }

    /// Says which cluster this is without telling anything of its secret.
    pub fn id(&self) -> ClusterId {
        let hash = self.derive("kfs 2026-11 cluster id v1", &[]);
        ClusterId(hash.as_bytes()[..16].try_into().expect("16 bytes"))
    }

    /// Seals the tickets that open sessions.
    pub fn ticket_key(&self) -> Key {
        self.derive("kfs 2026-11 cluster ticket key v1", &[])
    }

    /// Seals the servers' own records in the log, per epoch.
    pub fn server_key(&self, epoch: Epoch) -> Key {
        self.derive("kfs 2026-11 cluster server key v1", &epoch.0.to_le_bytes())
    }

    /// Seals answers to admin programs.
    pub fn admin_key(&self) -> Key {
        self.derive("kfs 2026-11 cluster admin key v1", &[])
    }

    /// Seals logins' half-states.
    pub(crate) fn half_state_key(&self) -> Key {
        self.derive("kfs 2026-11 cluster login key v1", &[])
    }

    /// Seals the headers of the chunks that a session uploads; given to it at
    /// login, and needs no state to be known again. A server that uploads takes
    /// its incarnation for the session.
    pub fn chunk_key(&self, session: SessionId) -> Key {
        self.derive("kfs 2026-11 cluster chunk key v1", &session.0)
    }

    pub(crate) fn opaque(&self) -> &ServerSetup<Suite> {
        &self.opaque
    }

    fn derive(&self, context: &'static str, input: &[u8]) -> Key {
        derive_key(context, &[self.secret.as_bytes(), input])
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.id())
    }
}

/// Tells clusters apart; public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(#[serde(with = "serde_bytes")] pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
