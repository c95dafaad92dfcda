//! POSIX access control lists: who may do what, beyond what the permission bits can say.
//!
//! The machine knows them as it knows modes and owners, since it has to change them with those: a new inode
//! inherits from its directory in the very step that makes it. An access list stands beside the mode and always
//! agrees with it: its owner's, its mask's and everybody else's bits are the mode's.

use serde::{Deserialize, Serialize};

/// What decides about rights beside mode and owners. Nearly no inode has any, so it costs nothing where it is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    pub access: Option<Acl>,
    /// What is made in this directory begins with it. For directories only.
    pub default: Option<Acl>,
    /// There is an extended attribute [`Rights::CAPABILITY`]: who writes takes it away.
    pub capability: bool,
}

/// An access control list. Each permission is 0 to 7.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acl {
    pub user: u8,
    /// Named users with what each may do, in the order given.
    pub users: Vec<(u32, u8)>,
    pub group: u8,
    pub groups: Vec<(u32, u8)>,
    /// The most that named users, the group and named groups may do; there has to be one if anyone is named.
    pub mask: Option<u8>,
    pub other: u8,
}

/// Which of an inode's two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AclKind {
    Access,
    Default,
}

impl Rights {
    /// The extended attribute that `capability` tells of.
    pub const CAPABILITY: &[u8] = b"security.capability";

    /// As attributes have it.
    pub fn some(self) -> Option<Box<Rights>> {
        (self != Rights::default()).then(|| Box::new(self))
    }

    pub fn acl(&self, which: AclKind) -> Option<&Acl> {
        match which {
            AclKind::Access => self.access.as_ref(),
            AclKind::Default => self.default.as_ref(),
        }
    }

    /// Named users and groups in both lists.
    pub fn named(&self) -> usize {
        [&self.access, &self.default].into_iter().flatten().map(Acl::named).sum()
    }
}

impl Acl {
    /// Users and groups that one list may name: what the kernel takes within a page.
    pub const MAX_NAMED: usize = 507;
    /// The permission bits that a list stands for.
    const MODE: u32 = 0o777;

    pub fn named(&self) -> usize {
        self.users.len() + self.groups.len()
    }

    pub fn is_valid(&self) -> bool {
        let named = self.users.iter().chain(&self.groups).map(|(_, perm)| *perm);
        let all = named.chain([self.user, self.group, self.other]).chain(self.mask);
        let is_masked = self.mask.is_some() || self.named() == 0;
        is_masked && self.named() <= Acl::MAX_NAMED && all.into_iter().all(|perm| perm <= 7)
    }

    /// Whether permission bits say the same.
    pub fn is_mode(&self) -> bool {
        self.mask.is_none()
    }

    /// A mode with the bits that it shows for this list.
    pub fn shown(&self, mode: u32) -> u32 {
        let group = self.mask.unwrap_or(self.group);
        mode & !Acl::MODE | u32::from(self.user) << 6 | u32::from(group) << 3 | u32::from(self.other)
    }

    /// What chmod makes of it: the group's bits are the mask, if there is one.
    pub fn chmod(&mut self, mode: u32) {
        let perm = |shift: u32| (mode >> shift & 7) as u8;
        self.user = perm(6);
        *self.mask.as_mut().unwrap_or(&mut self.group) = perm(3);
        self.other = perm(0);
    }

    /// What is left of a default list for an inode that is made with this mode: no more than both allow.
    pub fn inherited(&self, mode: u32) -> Acl {
        let mut acl = self.clone();
        acl.chmod(self.shown(0) & mode);
        acl
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(mask: Option<u8>) -> Acl {
        Acl { user: 7, users: vec![(10, 6)], group: 5, groups: vec![(20, 4)], mask, other: 1 }
    }

    #[test]
    fn a_mode_shows_the_mask() {
        assert_eq!(acl(Some(4)).shown(0o106777), 0o106741);
        assert_eq!(Acl { users: vec![], groups: vec![], ..acl(None) }.shown(0o4000), 0o4751);
    }

    #[test]
    fn chmod_and_inheritance_touch_the_mask_and_no_group() {
        let mut one = acl(Some(4));
        one.chmod(0o640);
        assert_eq!(one, Acl { user: 6, mask: Some(4), other: 0, ..acl(None) });
        assert_eq!(acl(Some(6)).inherited(0o666), Acl { user: 6, mask: Some(6), other: 0, ..acl(None) });
        let plain = Acl { users: vec![], groups: vec![], ..acl(None) };
        assert_eq!(plain.inherited(0o666), Acl { user: 6, group: 4, other: 0, ..plain });
    }

    #[test]
    fn what_is_no_list_is_told() {
        assert!(acl(Some(7)).is_valid());
        assert!(!acl(None).is_valid(), "who is named needs a mask");
        assert!(!acl(Some(8)).is_valid());
        let many = Acl { users: vec![(1, 7); Acl::MAX_NAMED], ..acl(Some(7)) };
        assert!(!many.is_valid());
        assert!(Acl { groups: vec![], ..many }.is_valid());
    }

    #[test]
    fn attributes_without_rights_have_no_byte_of_them() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Has {
            a: u8,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            rights: Option<Box<Rights>>,
        }
        let none = Has { a: 1, rights: None };
        let some = Has { rights: Rights { access: Some(acl(Some(1))), ..Rights::default() }.some(), ..none };
        for has in [&none, &some] {
            // With named fields on the wire, without names in rows.
            let named = rmp_serde::to_vec_named(has).unwrap();
            let row = rmp_serde::to_vec(has).unwrap();
            assert_eq!(rmp_serde::from_slice::<Has>(&named).unwrap(), *has);
            assert_eq!(rmp_serde::from_slice::<Has>(&row).unwrap(), *has);
        }
        assert_eq!(rmp_serde::to_vec_named(&none).unwrap().len(), 4);
    }
}
