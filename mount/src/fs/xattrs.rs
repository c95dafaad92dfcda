//! Extended attributes. All of an inode's come with one answer and are kept
//! together; most inodes have none, which their attributes already say.

use super::Fs;
use super::cache::{Xattrs, covering};
use crate::client::Patience;
use crate::error::FsError;
use bytes::Bytes;
use proto::Ino;
use proto::message::{Op, Outcome, Upload, View, XattrHow};
use std::sync::Arc;

impl Fs {
    pub async fn getxattr(&self, ino: u64, name: &[u8], patience: &Patience) -> Result<Bytes, FsError> {
        if is_acl(name) {
            return Err(FsError::Unsupported("a POSIX ACL"));
        }
        let ino = self.ino(ino);
        // The kernel asks this one before every write, whatever became of the promise.
        if name == b"security.capability" && !self.attr_once(ino, patience).await?.has_xattrs {
            return Err(FsError::NoAttribute);
        }
        let xattrs = self.xattrs(ino, patience).await?;
        let found = xattrs.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone()).ok_or(FsError::NoAttribute)
    }

    /// The names, each with a NUL behind it.
    pub async fn listxattr(&self, ino: u64, patience: &Patience) -> Result<Vec<u8>, FsError> {
        let xattrs = self.xattrs(self.ino(ino), patience).await?;
        let mut names = Vec::new();
        for (name, _) in xattrs.iter() {
            names.extend_from_slice(name);
            names.push(0);
        }
        Ok(names)
    }

    pub async fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
        patience: &Patience,
    ) -> Result<(), FsError> {
        if is_acl(name) {
            // Keeping one without obeying it would be a false promise.
            return Err(FsError::Unsupported("a POSIX ACL"));
        }
        if name.len() > Upload::MAX_XATTR_NAME_BYTES || value.len() > Upload::MAX_XATTR_VALUE_BYTES {
            return Err(FsError::AttributeTooLarge);
        }
        let value = self.seal_xattr(value);
        self.change_xattr(self.ino(ino), |ino| Upload::SetXattr { ino, name: name.to_vec(), value, how }, patience)
            .await
    }

    pub async fn removexattr(&self, ino: u64, name: &[u8], patience: &Patience) -> Result<(), FsError> {
        if is_acl(name) {
            return Err(FsError::Unsupported("a POSIX ACL"));
        }
        self.change_xattr(self.ino(ino), |ino| Upload::RemoveXattr { ino, name: name.to_vec() }, patience).await
    }

    async fn change_xattr(
        &self,
        ino: Ino,
        upload: impl FnOnce(Ino) -> Upload,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let (reply, _changing) = self.change(Op::Upload(upload(ino)), patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "setxattr" }) };
        self.cache().learn(self.promises(), &reply, |l| {
            l.attr(attr);
            l.xattrs_changed(ino);
        });
        Ok(())
    }

    async fn xattrs(&self, ino: Ino, patience: &Patience) -> Result<Xattrs, FsError> {
        let attr = self.attr(ino, patience).await?;
        if !attr.has_xattrs {
            return Ok(Arc::default());
        }
        if let Some(xattrs) = self.cache().xattrs(self.promises(), ino) {
            return Ok(xattrs);
        }
        let reply = self.view(View::Xattrs { ino }, patience).await?;
        let Outcome::Xattrs(sealed) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "getxattr" }) };
        let open =
            |(name, value): &(serde_bytes::ByteBuf, _)| Ok((name.to_vec(), Bytes::from(self.open_xattr(value)?)));
        let xattrs: Xattrs = Arc::new(sealed.iter().map(open).collect::<Result<_, FsError>>()?);
        self.cache().learn(self.promises(), &reply, |l| l.xattrs(covering(&attr), ino, xattrs.clone()));
        Ok(xattrs)
    }
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}
