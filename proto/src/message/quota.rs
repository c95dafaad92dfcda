//! What a namespace may hold, and holds.

use serde::{Deserialize, Serialize};
use std::ops::{Index, IndexMut};

/// What a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// Bytes of content, without history.
    Bytes,
    /// Files, directories and everything else that has an inode, the root included.
    Inodes,
}

impl Resource {
    pub const ALL: [Resource; 2] = [Resource::Bytes, Resource::Inodes];
}

/// One of each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Each<T> {
    pub bytes: T,
    pub inodes: T,
}

impl<T> Each<T> {
    /// What `of` says of each.
    pub fn of(mut of: impl FnMut(Resource) -> T) -> Each<T> {
        Each { bytes: of(Resource::Bytes), inodes: of(Resource::Inodes) }
    }
}

impl<T> Index<Resource> for Each<T> {
    type Output = T;

    fn index(&self, of: Resource) -> &T {
        match of {
            Resource::Bytes => &self.bytes,
            Resource::Inodes => &self.inodes,
        }
    }
}

impl<T> IndexMut<Resource> for Each<T> {
    fn index_mut(&mut self, of: Resource) -> &mut T {
        match of {
            Resource::Bytes => &mut self.bytes,
            Resource::Inodes => &mut self.inodes,
        }
    }
}

/// What a namespace may hold; `None` is no limit.
pub type Quota = Each<Option<u64>>;

/// What a namespace holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    /// What is in force there.
    pub quota: Quota,
}
