//! Logging in by OPAQUE (RFC 9807): ristretto255, triple Diffie-Hellman, SHA-512,
//! Argon2id. Both ends as functions; what carries their messages is elsewhere.
//!
//! The password never leaves the client, both ends authenticate each other, and
//! what the servers keep helps to guess it only at Argon2's price a guess. The
//! server remembers nothing between its two steps: its half-state travels
//! sealed under the cluster key and is good for [`HALF_STATE_MS`] of log time. An
//! unknown user is answered like a known one, and fails at the same step.
//!
//! User names come here as plain strings; who may be a user is not this file's business.

mod device;

pub use device::{DeviceCredential, DeviceSecret};

use crate::ids::{LogTime, SessionId};
use crate::keys::{ClusterKey, ExportKey, SessionSecret};
use crate::random::Source;
use crate::seal::{Key, derive_key, hash_of, open_blob_of, seal_blob_of};
use opaque_ke::argon2::{Algorithm, Argon2, Params, Version};
use opaque_ke::{
    CipherSuite, ClientLoginFinishParameters, ClientRegistration, ClientRegistrationFinishParameters,
    CredentialFinalization, CredentialRequest, CredentialResponse, Identifiers, Ristretto255, ServerLogin,
    ServerLoginParameters, ServerRegistration, TripleDh,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How long a login may take between the server's two steps, in milliseconds of log time.
pub const HALF_STATE_MS: u64 = 60_000;

/// The longest password, in bytes.
pub const MAX_PASSWORD_BYTES: usize = 4096;

/// OPAQUE's primitives.
pub struct Suite;

impl CipherSuite for Suite {
    type OprfCs = Ristretto255;
    type KeyExchange = TripleDh<Ristretto255, sha2::Sha512>;
    type Ksf = Argon2<'static>;
}

/// Bound into every registration and login.
const SERVER: &[u8] = b"kfs";
const CONTEXT: &[u8] = b"kfs login v1";

/// Which of a user's credentials: a user has one password and any number of devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum CredentialId {
    Password,
    /// A machine's own, by its id: any string.
    Device(String),
}

impl CredentialId {
    /// How the secret is stretched. Part of what is stored: a changed parameter
    /// would lock out everyone who registered before.
    fn stretching(&self) -> Argon2<'static> {
        let (memory_kib, passes) = match self {
            // RFC 9106's second recommendation, on one lane: a tenth of a second.
            CredentialId::Password => (64 * 1024, 3),
            // 32 random bytes cannot be guessed, so there is nothing to slow down.
            CredentialId::Device(_) => (Params::MIN_M_COST, 1),
        };
        let params = Params::new(memory_kib, passes, 1, None).expect("constants within Argon2's bounds");
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialId::Password => f.write_str("password"),
            CredentialId::Device(id) => write!(f, "device {id}"),
        }
    }
}

/// User and credential as one unambiguous string of bytes, for whatever is bound to both.
pub(crate) fn bound_identity(user: &str, credential: &CredentialId) -> Vec<u8> {
    let (number, id) = match credential {
        CredentialId::Password => (0, ""),
        CredentialId::Device(id) => (1, id.as_str()),
    };
    let mut identity = vec![number];
    identity.extend_from_slice(&(user.len() as u32).to_le_bytes());
    identity.extend_from_slice(user.as_bytes());
    identity.extend_from_slice(id.as_bytes());
    identity
}

fn identifiers(identity: &[u8]) -> Identifiers<'_> {
    Identifiers { client: Some(identity), server: Some(SERVER) }
}

/// Why a login or a registration does not come about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// To a client, unknown users, removed ones and another cluster's servers look the same.
    #[error("wrong user name or password")]
    WrongPassword,
    #[error("a password has at most {MAX_PASSWORD_BYTES} bytes")]
    PasswordTooLong,
    #[error("the login took longer than {} s; try again", HALF_STATE_MS / 1000)]
    Expired,
    #[error("not a {0} of this login: damaged, forged, or of another login or cluster")]
    Malformed(&'static str),
    /// The server's own state is damaged, or of another cluster key.
    #[error("the stored credential cannot be used: it is damaged, or was made with another cluster key")]
    Record,
}

/// What a registration gives.
#[derive(Debug)]
pub struct Registered {
    /// What the servers keep.
    pub record: Vec<u8>,
    /// The client's alone; wraps the user's private key.
    pub export_key: ExportKey,
}

/// Registers a credential, both ends at once, by whoever holds the cluster key. Takes as long as a login.
pub fn register(
    cluster: &ClusterKey,
    user: &str,
    credential: &CredentialId,
    password: &[u8],
) -> Result<Registered, LoginError> {
    check_password(password)?;
    let identity = bound_identity(user, credential);
    let failed = |_| LoginError::Malformed("registration");
    let client = ClientRegistration::<Suite>::start(&mut Source, password).map_err(failed)?;
    let server = ServerRegistration::<Suite>::start(cluster.opaque(), client.message, &identity).map_err(failed)?;
    let stretching = credential.stretching();
    let parameters = ClientRegistrationFinishParameters::new(identifiers(&identity), Some(&stretching));
    let done = client.state.finish(&mut Source, password, server.message, parameters).map_err(failed)?;
    Ok(Registered {
        record: ServerRegistration::finish(done.message).serialize().to_vec(),
        export_key: ExportKey::from_opaque(done.export_key.into()),
    })
}

/// The client's side between its two steps.
pub struct ClientLogin {
    state: opaque_ke::ClientLogin<Suite>,
    ke1: Vec<u8>,
}

/// A login as the client sees it done; the server has still to accept `ke3`.
#[derive(Debug)]
pub struct ClientDone {
    /// To the server.
    pub ke3: Vec<u8>,
    pub session: SessionId,
    pub session_secret: SessionSecret,
    /// Opens the user's private key.
    pub export_key: ExportKey,
}

impl ClientLogin {
    /// Begins a login; the bytes are `ke1`, for the server.
    pub fn start(password: &[u8]) -> Result<(ClientLogin, Vec<u8>), LoginError> {
        check_password(password)?;
        let started = opaque_ke::ClientLogin::<Suite>::start(&mut Source, password)
            .map_err(|_| LoginError::Malformed("password"))?;
        let ke1 = started.message.serialize().to_vec();
        Ok((ClientLogin { state: started.state, ke1: ke1.clone() }, ke1))
    }

    /// Answers the server's `ke2`. For a password this takes a tenth of a second
    /// of one core, and 64 MiB; not for a thread that must not wait.
    pub fn finish(
        self,
        password: &[u8],
        ke2: &[u8],
        user: &str,
        credential: &CredentialId,
    ) -> Result<ClientDone, LoginError> {
        let response = CredentialResponse::deserialize(ke2).map_err(|_| LoginError::Malformed("challenge"))?;
        let identity = bound_identity(user, credential);
        let stretching = credential.stretching();
        let parameters = ClientLoginFinishParameters::new(Some(CONTEXT), identifiers(&identity), Some(&stretching));
        let done =
            self.state.finish(&mut Source, password, response, parameters).map_err(|_| LoginError::WrongPassword)?;
        let ke3 = done.message.serialize().to_vec();
        Ok(ClientDone {
            session: session_id(&hash_of(&self.ke1), &hash_of(ke2), &hash_of(&ke3)),
            session_secret: SessionSecret::from_opaque(&done.session_key),
            export_key: ExportKey::from_opaque(done.export_key.into()),
            ke3,
        })
    }
}

/// A credential as the servers know it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Of [`Registered`].
    pub record: &'a [u8],
    /// Changes whenever the credential does, so that a login begun with an old one can be refused.
    pub version: u64,
}

/// The server's first step, done.
#[derive(Debug)]
pub struct ServerStarted {
    /// To the client.
    pub ke2: Vec<u8>,
    /// To the client too, which returns it with `ke3`.
    pub half_state: Vec<u8>,
}

/// What the server has to know again at its second step. Everything of a fixed
/// length but the names that the client sent, so that it tells nothing by its length.
#[derive(Serialize, Deserialize)]
struct HalfState {
    user: String,
    credential: CredentialId,
    #[serde(with = "serde_bytes")]
    version: [u8; 8],
    #[serde(with = "serde_bytes")]
    issued_ms: [u8; 8],
    #[serde(with = "serde_bytes")]
    ke1_hash: [u8; 32],
    #[serde(with = "serde_bytes")]
    ke2_hash: [u8; 32],
    #[serde(with = "serde_bytes")]
    opaque: Vec<u8>,
}

const HALF_STATE_PURPOSE: &str = "kfs login half-state v1";

/// The server's first step. `known` is `None` for a user or credential that
/// does not exist; the answer then looks like any other.
pub fn server_start(
    cluster: &ClusterKey,
    user: &str,
    credential: &CredentialId,
    known: Option<Known<'_>>,
    ke1: &[u8],
    now: LogTime,
) -> Result<ServerStarted, LoginError> {
    let request = CredentialRequest::deserialize(ke1).map_err(|_| LoginError::Malformed("first message"))?;
    let record = match known {
        Some(known) => Some(ServerRegistration::deserialize(known.record).map_err(|_| LoginError::Record)?),
        None => None,
    };
    let identity = bound_identity(user, credential);
    let parameters = ServerLoginParameters { context: Some(CONTEXT), identifiers: identifiers(&identity) };
    let started = ServerLogin::start(&mut Source, cluster.opaque(), record, request, &identity, parameters)
        .map_err(|_| LoginError::Malformed("first message"))?;
    let ke2 = started.message.serialize().to_vec();
    let half_state = HalfState {
        user: user.to_owned(),
        credential: credential.clone(),
        version: known.map_or(0, |k| k.version).to_le_bytes(),
        issued_ms: now.0.to_le_bytes(),
        ke1_hash: hash_of(ke1),
        ke2_hash: hash_of(&ke2),
        opaque: started.state.serialize().to_vec(),
    };
    let half_state = seal_blob_of(&cluster.half_state_key(), HALF_STATE_PURPOSE, &[], &half_state)
        .expect("a struct of strings and bytes can be encoded");
    Ok(ServerStarted { ke2, half_state })
}

/// A login that is proven. Whether the credential still has this version is for the caller to check.
#[derive(Debug)]
pub struct ServerDone {
    pub user: String,
    pub credential: CredentialId,
    pub credential_version: u64,
    pub session: SessionId,
    pub session_secret: SessionSecret,
}

/// The server's second step: any server of the cluster can take it. The same
/// messages give the same session however often they are sent.
pub fn server_finish(
    cluster: &ClusterKey,
    half_state: &[u8],
    ke1: &[u8],
    ke3: &[u8],
    now: LogTime,
) -> Result<ServerDone, LoginError> {
    let half: HalfState = open_blob_of(&cluster.half_state_key(), HALF_STATE_PURPOSE, &[], half_state)
        .map_err(|_| LoginError::Malformed("half-state"))?;
    if half.ke1_hash != hash_of(ke1) {
        return Err(LoginError::Malformed("first message"));
    }
    // Log time never runs backwards, so a half-state from the future is of another life of the log.
    let age_ms = now.0.checked_sub(u64::from_le_bytes(half.issued_ms));
    if age_ms.is_none_or(|ms| ms > HALF_STATE_MS) {
        return Err(LoginError::Expired);
    }
    let finalization = CredentialFinalization::deserialize(ke3).map_err(|_| LoginError::Malformed("last message"))?;
    let state = ServerLogin::<Suite>::deserialize(&half.opaque).map_err(|_| LoginError::Malformed("half-state"))?;
    let identity = bound_identity(&half.user, &half.credential);
    let parameters = ServerLoginParameters { context: Some(CONTEXT), identifiers: identifiers(&identity) };
    let done = state.finish(finalization, parameters).map_err(|_| LoginError::WrongPassword)?;
    Ok(ServerDone {
        credential_version: u64::from_le_bytes(half.version),
        session: session_id(&half.ke1_hash, &half.ke2_hash, &hash_of(ke3)),
        session_secret: SessionSecret::from_opaque(&done.session_key),
        user: half.user,
        credential: half.credential,
    })
}

/// What seals the frames of logins: anyone can derive it, so it only tells
/// damaged frames from whole ones. OPAQUE brings the security.
pub fn public_key() -> Key {
    derive_key("kfs 2026-11 login frames v1", &[])
}

/// The session is named by its login's transcript, so nobody can choose a name.
fn session_id(ke1_hash: &[u8; 32], ke2_hash: &[u8; 32], ke3_hash: &[u8; 32]) -> SessionId {
    let hash = derive_key("kfs 2026-11 session id v1", &[ke1_hash, ke2_hash, ke3_hash]);
    SessionId(hash.as_bytes()[..16].try_into().expect("16 bytes"))
}

fn check_password(password: &[u8]) -> Result<(), LoginError> {
    match password.len() {
        0..=MAX_PASSWORD_BYTES => Ok(()),
        _ => Err(LoginError::PasswordTooLong),
    }
}

#[cfg(test)]
mod tests;
