//! A device's credential: lets one machine log in unattended, until revoked.

use super::CredentialId;
use crate::keys::{KeyFileError, SecretFile, encode};
use crate::seal::random;
use std::fmt;
use std::path::Path;
use zeroize::{Zeroize, ZeroizeOnDrop};

const FILE: SecretFile = SecretFile {
    title: "kfs device credential, version 1",
    remarks: &[
        "Whoever has this file can log in as this user and read and change all that the",
        "user has. If it may have been copied, revoke the device.",
    ],
};

/// The random secret that stands in for a password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct DeviceSecret([u8; 32]);

impl DeviceSecret {
    pub fn random() -> DeviceSecret {
        DeviceSecret(random())
    }

    /// What is registered and logged in with.
    pub fn as_password(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DeviceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceSecret(..)")
    }
}

/// What a device credential's file says.
#[derive(Clone, Debug)]
pub struct DeviceCredential {
    pub user: String,
    /// Of [`CredentialId::Device`].
    pub device: String,
    pub secret: DeviceSecret,
    /// Where the cluster is reached, if the file says so: `HOST:PORT[,HOST:PORT]`.
    pub brokers: Option<String>,
}

impl DeviceCredential {
    pub fn id(&self) -> CredentialId {
        CredentialId::Device(self.device.clone())
    }

    /// Writes the file, mode 0600; never over an existing one. Fails as well if
    /// a field is empty or would not come back the same from a line of text.
    pub fn write(&self, path: &Path) -> Result<(), KeyFileError> {
        let secret = encode(&self.secret.0);
        let mut fields = vec![("user", self.user.as_str()), ("device", &self.device), ("secret", &secret)];
        fields.extend(self.brokers.as_deref().map(|brokers| ("brokers", brokers)));
        for (name, value) in &fields {
            if value.is_empty() || value.trim() != *value || value.contains(char::is_control) {
                let reason = format!("its {name} would be empty, or have control characters or spaces at an end");
                return Err(KeyFileError::Format { path: path.to_owned(), title: FILE.title, reason });
            }
        }
        FILE.write(path, &fields)
    }

    /// Reads a file; refuses one that others can read.
    pub fn read(path: &Path) -> Result<DeviceCredential, KeyFileError> {
        let fields = FILE.read(path)?;
        Ok(DeviceCredential {
            user: fields.get("user")?.to_owned(),
            device: fields.get("device")?.to_owned(),
            secret: DeviceSecret(*fields.array("secret")?),
            brokers: fields.find("brokers").map(str::to_owned),
        })
    }
}
