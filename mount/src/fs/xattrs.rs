//! Extended attributes. All of an inode's come with one answer and are kept
//! together; most inodes have none, which their attributes already say.

use super::Fs;
use super::acls::{acl_kind, acl_name};
use super::cache::{Xattrs, covering};
use super::local::Done;
use super::pending::Effect;
use super::privileges::has_capability;
use crate::client::Patience;
use crate::error::FsError;
use bytes::Bytes;
use proto::Ino;
use proto::chunk::SealedValue;
use proto::message::{AclKind, Op, Outcome, Refusal, Rights, Upload, View, XattrHow};
use std::sync::Arc;

/// What attributes' names may begin with, beside the two of access control lists: as ext4 has it.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const TRUSTED: &[u8] = b"trusted.";

/// A file's label. Where the kernel uses labels it answers for them itself, so who asks here has none to expect.
const LABEL: &[u8] = b"security.selinux";

impl Fs {
    pub async fn getxattr(&self, ino: u64, name: &[u8], patience: &Patience) -> Result<Bytes, FsError> {
        if let Some(which) = acl_kind(name) {
            return self.acl(ino, which, patience).await;
        }
        may_be(name)?;
        let ino = self.ino(ino);
        // The kernel asks this one before it takes it away, whatever became of the promise.
        if name == Rights::CAPABILITY && !has_capability(&self.attr_once(ino, patience).await?) {
            return Err(FsError::NoAttribute);
        }
        let xattrs = self.xattrs(ino, patience).await?;
        match xattrs.iter().find(|(n, _)| n == name) {
            Some((_, value)) => Ok(value.clone()),
            // Then `ls -l` asks of no other file.
            None if name == LABEL => Err(FsError::Unsupported("a label that was not set")),
            None => Err(FsError::NoAttribute),
        }
    }

    /// The names, each with a NUL behind it; those in `trusted.` only if asked for.
    pub async fn listxattr(&self, ino: u64, trusted: bool, patience: &Patience) -> Result<Vec<u8>, FsError> {
        let ino = self.ino(ino);
        let xattrs = self.xattrs(ino, patience).await?;
        let rights = self.attr_once(ino, patience).await?.rights.unwrap_or_default();
        let acls = [AclKind::Access, AclKind::Default].into_iter().filter(|which| rights.acl(*which).is_some());
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            names.extend_from_slice(name);
            names.push(0);
        };
        acls.for_each(|which| add(acl_name(which)));
        let others = xattrs.iter().map(|(name, _)| &name[..]);
        others.filter(|name| trusted || !name.starts_with(TRUSTED)).for_each(add);
        Ok(names)
    }

    /// An access control list goes by [`Fs::set_acl`].
    pub async fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        how: XattrHow,
        patience: &Patience,
    ) -> Result<(), FsError> {
        may_be(name)?;
        if name.len() > Upload::MAX_XATTR_NAME_BYTES || value.len() > Upload::MAX_XATTR_VALUE_BYTES {
            return Err(FsError::AttributeTooLarge);
        }
        self.change_xattr(self.ino(ino), name, Some((value, how)), patience).await
    }

    pub async fn removexattr(&self, ino: u64, name: &[u8], patience: &Patience) -> Result<(), FsError> {
        if let Some(which) = acl_kind(name) {
            return self.change_acl(ino, which, None, false, patience).await;
        }
        may_be(name)?;
        self.change_xattr(self.ino(ino), name, None, patience).await
    }

    async fn change_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<(&[u8], XattrHow)>,
        patience: &Patience,
    ) -> Result<(), FsError> {
        self.before_publishing(ino, patience).await?;
        let upload = match value {
            Some((value, how)) => Upload::SetXattr { ino, name: name.to_vec(), value: self.seal_xattr(value), how },
            None => Upload::RemoveXattr { ino, name: name.to_vec() },
        };
        self.one_more(patience).await?;
        if let Some(done) = self.set_xattr_locally(ino, name, value, &upload) {
            return done?.safe(patience).await;
        }
        let (reply, _changing) = self.change(Op::Upload(upload), patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "setxattr" }) };
        self.cache().learn(self.promises(), &reply, |l| {
            l.attr(attr);
            l.xattrs_changed(ino);
        });
        Ok(())
    }

    /// Answered here, if it may be: all that the inode has is known.
    fn set_xattr_locally(
        &self,
        ino: Ino,
        name: &[u8],
        value: Option<(&[u8], XattrHow)>,
        upload: &Upload,
    ) -> Option<Result<Done<()>, FsError>> {
        self.change_locally(ino, |local, attr, time| {
            let mut xattrs = local.xattrs(&attr)?.to_vec();
            // Sorted, as the server gives them.
            match (value, xattrs.binary_search_by(|(known, _)| known[..].cmp(name))) {
                (None | Some((_, XattrHow::Replace)), Err(_)) => return Some(Err(Refusal::NoAttribute)),
                (Some((_, XattrHow::Create)), Ok(_)) => return Some(Err(Refusal::Exists)),
                (Some((value, _)), Ok(known)) => xattrs[known].1 = Bytes::copy_from_slice(value),
                (Some((value, _)), Err(place)) => xattrs.insert(place, (name.to_vec(), Bytes::copy_from_slice(value))),
                (None, Ok(known)) => drop(xattrs.remove(known)),
            }
            let bytes = xattrs.iter().map(|(name, value)| name.len() + value.len() + SealedValue::OVERHEAD_BYTES);
            if bytes.sum::<usize>() > Upload::MAX_XATTRS_BYTES {
                return Some(Err(Refusal::NoSpace));
            }
            let capability = (name == Rights::CAPABILITY).then_some(value.is_some());
            let effect = Effect::Xattrs { has_xattrs: !xattrs.is_empty(), capability, time };
            local.put_xattrs(&attr, Arc::new(xattrs));
            Some(Ok((upload.clone(), effect)))
        })
    }

    async fn xattrs(&self, ino: Ino, patience: &Patience) -> Result<Xattrs, FsError> {
        let attr = self.attr(ino, patience).await?;
        if let Some(xattrs) = self.cache().xattrs(self.promises(), &attr) {
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

/// Whether an attribute may have this name at all.
fn may_be(name: &[u8]) -> Result<(), FsError> {
    match NAMESPACES.into_iter().find_map(|namespace| name.strip_prefix(namespace)) {
        Some(b"") => Err(FsError::BadFlags),
        Some(_) => Ok(()),
        None => Err(FsError::Unsupported("such an extended attribute")),
    }
}
