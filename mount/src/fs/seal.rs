//! Sealing and opening with the namespace's keys, and its errors in one place.

use super::Fs;
use crate::error::FsError;
use proto::chunk::{SealedValue, ValuePurpose};

impl Fs {
    pub(super) fn seal_target(&self, target: &[u8]) -> SealedValue {
        self.inner.client.keys().seal_value(ValuePurpose::SymlinkTarget, target)
    }

    pub(super) fn open_target(&self, sealed: &SealedValue) -> Result<Vec<u8>, FsError> {
        let opened = self.inner.client.keys().open_value(ValuePurpose::SymlinkTarget, sealed);
        opened.map_err(|e| FsError::Sealed { what: "a symlink's target", reason: e.to_string() })
    }

    pub(super) fn seal_xattr(&self, value: &[u8]) -> SealedValue {
        self.inner.client.keys().seal_value(ValuePurpose::Xattr, value)
    }

    pub(super) fn open_xattr(&self, sealed: &SealedValue) -> Result<Vec<u8>, FsError> {
        let opened = self.inner.client.keys().open_value(ValuePurpose::Xattr, sealed);
        opened.map_err(|e| FsError::Sealed { what: "an extended attribute", reason: e.to_string() })
    }
}
