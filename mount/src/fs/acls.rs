//! Access control lists between programs and the server. Programs see them as the extended attributes
//! `system.posix_acl_access` and `system.posix_acl_default`; the server knows them with mode and owner. They come
//! with every answer that brings attributes, so that the kernel, which asks constantly, costs no request.

use super::Fs;
use super::local::Done;
use super::pending::Effect;
use crate::client::Patience;
use crate::error::FsError;
use bytes::Bytes;
use proto::Ino;
use proto::message::{Acl, AclKind, Attr, FileKind, Op, Outcome, Refusal, Upload};

/// The attributes' names.
const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Linux's format: this version, then entries of tag, permission and number, in the order of the tags.
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The number of an entry that names nobody.
const NOBODY: u32 = u32::MAX;

/// Which list an extended attribute is, if it is one.
pub fn acl_kind(name: &[u8]) -> Option<AclKind> {
    match name {
        ACCESS => Some(AclKind::Access),
        DEFAULT => Some(AclKind::Default),
        _ => None,
    }
}

pub(super) fn acl_name(which: AclKind) -> &'static [u8] {
    match which {
        AclKind::Access => ACCESS,
        AclKind::Default => DEFAULT,
    }
}

impl Fs {
    pub(super) async fn acl(&self, ino: u64, which: AclKind, patience: &Patience) -> Result<Bytes, FsError> {
        // As of the last look at the inode: the kernel has just taken one, and keeps what it is told until the next.
        let attr = self.attr_once(self.ino(ino), patience).await?;
        let acl = attr.rights.as_ref().and_then(|rights| rights.acl(which)).ok_or(FsError::NoAttribute)?;
        let mut acl = acl.clone();
        if which == AclKind::Access {
            // What is not shown of the mode is not shown here: the kernel goes by the list where there is one.
            acl.chmod(acl.shown(0) & !self.inner.config.owners.umask);
        }
        Ok(Bytes::from(formatted(&acl)))
    }

    /// Sets a list, or takes it away if the value has no entry. `keeps_setgid` tells of a group's number as it is
    /// shown whether the asker may have its setgid bit.
    pub async fn set_acl(
        &self,
        ino: u64,
        which: AclKind,
        value: &[u8],
        keeps_setgid: impl Fn(u32) -> bool,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let acl = parsed(value)?;
        let clear_setgid = match (which, &acl) {
            (AclKind::Access, Some(_)) => !keeps_setgid(self.getattr(ino, patience).await?.gid),
            _ => false,
        };
        self.change_acl(ino, which, acl, clear_setgid, patience).await
    }

    pub(super) async fn change_acl(
        &self,
        ino: u64,
        which: AclKind,
        acl: Option<Acl>,
        clear_setgid: bool,
        patience: &Patience,
    ) -> Result<(), FsError> {
        let ino = self.ino(ino);
        let has = |attr: Attr| attr.rights.is_some_and(|rights| rights.acl(which).is_some());
        if acl.is_none() && self.cache().attr(self.promises(), ino).is_some_and(|attr| !has(attr)) {
            return Ok(());
        }
        self.before_publishing(ino, patience).await?;
        self.one_more(patience).await?;
        if let Some(done) = self.set_acl_locally(ino, which, acl.as_ref(), clear_setgid) {
            return done?.safe(patience).await;
        }
        let op = Op::Upload(Upload::SetAcl { ino, which, acl, clear_setgid });
        let (reply, _changing) = self.change(op, patience).await?;
        let Outcome::Entry(attr) = &reply.outcome else { return Err(FsError::WrongAnswer { op: "setxattr" }) };
        self.cache().learn(self.promises(), &reply, |l| l.attr(attr));
        Ok(())
    }

    /// Answered here, if it may be.
    fn set_acl_locally(
        &self,
        ino: Ino,
        which: AclKind,
        acl: Option<&Acl>,
        clear_setgid: bool,
    ) -> Option<Result<Done<()>, FsError>> {
        self.change_locally(ino, |_, attr, time| {
            match (attr.kind, which) {
                (FileKind::Symlink, _) => return Some(Err(Refusal::Invalid)),
                (FileKind::Dir, _) | (_, AclKind::Access) => {}
                (_, AclKind::Default) if acl.is_some() => return Some(Err(Refusal::NotDirectory)),
                (_, AclKind::Default) => {}
            }
            let acl = acl.cloned();
            let upload = Upload::SetAcl { ino, which, acl: acl.clone(), clear_setgid };
            Some(Ok((upload, Effect::Acl { which, acl, clear_setgid, time })))
        })
    }
}

fn parsed(value: &[u8]) -> Result<Option<Acl>, FsError> {
    let (version, entries) = value.split_first_chunk().ok_or(FsError::BadAcl)?;
    if u32::from_le_bytes(*version) != VERSION {
        return Err(FsError::Unsupported("an access control list of another version"));
    }
    if !entries.len().is_multiple_of(ENTRY_BYTES) {
        return Err(FsError::BadAcl);
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut acl = Acl { user: 0, users: Vec::new(), group: 0, groups: Vec::new(), mask: None, other: 0 };
    let mut last = 0;
    let mut seen = 0;
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let perm = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let is_named = matches!(tag, USER | GROUP);
        if perm > 7 || tag < last || (tag == last && !is_named) || (is_named && id == NOBODY) {
            return Err(FsError::BadAcl);
        }
        let perm = perm as u8;
        match tag {
            USER_OBJ => acl.user = perm,
            USER => acl.users.push((id, perm)),
            GROUP_OBJ => acl.group = perm,
            GROUP => acl.groups.push((id, perm)),
            MASK => acl.mask = Some(perm),
            OTHER => acl.other = perm,
            _ => return Err(FsError::BadAcl),
        }
        last = tag;
        seen |= tag;
    }
    const NEEDED: u16 = USER_OBJ | GROUP_OBJ | OTHER;
    if acl.named() > Acl::MAX_NAMED {
        return Err(FsError::AttributeTooLarge);
    }
    if seen & NEEDED != NEEDED || !acl.is_valid() {
        return Err(FsError::BadAcl);
    }
    Ok(Some(acl))
}

fn formatted(acl: &Acl) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    let mut entry = |tag: u16, perm: u8, id: u32| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&u16::from(perm).to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    };
    entry(USER_OBJ, acl.user, NOBODY);
    acl.users.iter().for_each(|(id, perm)| entry(USER, *perm, *id));
    entry(GROUP_OBJ, acl.group, NOBODY);
    acl.groups.iter().for_each(|(id, perm)| entry(GROUP, *perm, *id));
    acl.mask.iter().for_each(|perm| entry(MASK, *perm, NOBODY));
    entry(OTHER, acl.other, NOBODY);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl() -> Acl {
        Acl { user: 7, users: vec![(9, 6), (5, 1)], group: 5, groups: vec![(20, 4)], mask: Some(7), other: 0 }
    }

    #[test]
    fn a_list_survives_the_way_there_and_back() {
        let plain = Acl { users: vec![], groups: vec![], mask: None, ..acl() };
        for acl in [acl(), plain, Acl { users: vec![(1, 7); Acl::MAX_NAMED], groups: vec![], ..acl() }] {
            let value = formatted(&acl);
            assert!(value.len() <= 4096, "the kernel asks for no more");
            assert_eq!(parsed(&value).expect("is a list"), Some(acl));
        }
        assert_eq!(parsed(&VERSION.to_le_bytes()).expect("is none"), None);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let good = formatted(&acl());
        let entry = |n: usize| 4 + n * ENTRY_BYTES..4 + (n + 1) * ENTRY_BYTES;
        let without = |n| [&good[..entry(n).start], &good[entry(n).end..]].concat();
        let twice = |n| [&good[..entry(n).end], &good[entry(n)], &good[entry(n).end..]].concat();
        // Owner, two users, group, a group, mask, others.
        let mut wrong = vec![Vec::new(), good[..5].to_vec(), good[4..].to_vec()];
        wrong.extend([0, 3, 5, 6].map(without));
        wrong.extend([0, 3, 5, 6].map(twice));
        wrong.push([&good[..4], &good[entry(6)], &good[entry(0).start..entry(5).end]].concat());
        let mut perm = good.clone();
        perm[entry(6).start + 2] = 8;
        wrong.push(perm);
        let mut nobody = good.clone();
        nobody[entry(1).start + 4..entry(1).end].fill(0xff);
        wrong.push(nobody);
        for value in wrong {
            assert!(parsed(&value).is_err(), "{value:?}");
        }
        assert!(parsed(&without(1)).is_ok() && parsed(&twice(4)).is_ok());
        let many = Acl { users: vec![(1, 7); Acl::MAX_NAMED + 1], ..acl() };
        assert!(matches!(parsed(&formatted(&many)), Err(FsError::AttributeTooLarge)));
    }
}
