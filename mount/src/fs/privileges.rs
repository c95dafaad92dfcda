//! Setuid and setgid bits and capabilities: whoever changes what a file holds, or whose it is, takes them away.
//!
//! The kernel leaves this to us (`FUSE_HANDLE_KILLPRIV_V2`). If it saw to it itself it would ask for `security.capability`
//! before every single write, and for the attributes before every change of an owner.

use super::{Fs, SetAttr};
use crate::client::Patience;
use crate::error::FsError;
use proto::message::{Attr, FileKind, Rights};

const SETUID: u32 = 0o4000;
/// Together they are a setgid bit; without the second one the first means nothing to whoever runs the file.
const SETGID_OF_PROGRAMS: u32 = 0o2010;
const SETGID: u32 = 0o2000;

/// The mode without what makes its file more than what it holds.
fn disarmed(mode: u32) -> u32 {
    let setgid = if mode & SETGID_OF_PROGRAMS == SETGID_OF_PROGRAMS { SETGID } else { 0 };
    mode & !(SETUID | setgid)
}

pub(super) fn has_capability(attr: &Attr) -> bool {
    attr.rights.as_ref().is_some_and(|rights| rights.capability)
}

impl Fs {
    /// Whether a write to this file, which is open, may have to take something from it first: [`Fs::disarm`].
    pub fn is_armed(&self, ino: u64) -> bool {
        let known = self.cache().attr_once(self.ino(ino));
        known.is_none_or(|attr| disarmed(attr.mode) != attr.mode || has_capability(&attr))
    }

    /// Takes from a file what a change of its content takes. `keeps_setid` says whether whoever changes it may keep
    /// setuid and setgid bits; a capability always goes.
    pub async fn disarm(
        &self,
        ino: u64,
        keeps_setid: impl FnOnce() -> bool,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let attr = self.attr_once(self.ino(ino), patience).await?;
        if has_capability(&attr) {
            self.removexattr(ino, Rights::CAPABILITY, patience).await?;
        }
        let mode = disarmed(attr.mode);
        if mode == attr.mode || keeps_setid() {
            return Ok(());
        }
        self.setattr(ino, SetAttr { mode: Some(mode), ..SetAttr::default() }, patience).await?;
        if let Some(kernel) = self.inner.kernel.get() {
            // It learns nothing from the answer to a write.
            kernel.attributes_changed(ino);
        }
        Ok(())
    }

    /// A change of attributes with what it takes along: one of the owners always, and one that changes nothing is
    /// one that keeps both; one of the size as writing does. The kernel takes capabilities itself.
    pub async fn disarming(
        &self,
        ino: u64,
        set: SetAttr,
        keeps_setid: impl FnOnce() -> bool,
        patience: &Patience,
    ) -> Result<SetAttr, FsError> {
        let changes_owner = set.uid.is_some() || set.gid.is_some() || set == SetAttr::default();
        if set.mode.is_some() || !(changes_owner || set.size.is_some()) {
            return Ok(set);
        }
        let attr = self.attr_once(self.ino(ino), patience).await?;
        let mode = disarmed(attr.mode);
        if attr.kind == FileKind::Dir || mode == attr.mode || (!changes_owner && keeps_setid()) {
            return Ok(set);
        }
        Ok(SetAttr { mode: Some(mode), ..set })
    }
}

#[cfg(test)]
mod tests {
    use super::disarmed;

    #[test]
    fn a_setgid_bit_that_runs_nothing_stays() {
        let disarmed = [0o4777, 0o2777, 0o6755, 0o2767, 0o4666, 0o1777, 0o644].map(disarmed);
        assert_eq!(disarmed, [0o777, 0o777, 0o755, 0o2767, 0o666, 0o1777, 0o644]);
    }
}
