//! The remote tree as the command line sees it: paths, walked from the root of
//! the namespace over the client library. Symlinks are shown, never followed:
//! their targets mean something only inside a mount.

use super::list::printable;
use crate::client::{CallError, Client, ClientConfig, ConnectError, Reply};
use bytes::Bytes;
use proto::chunk::ValuePurpose;
use proto::message::{Attr, Delete, FileKind, Listed, NewInode, Op, Outcome, Owner, Refusal, RenameHow, Upload, View};
use proto::{Ino, Name};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What goes wrong with a remote path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    #[error("{path}: permission denied")]
    NotPermitted { path: String },
    #[error("{path}: {refusal}")]
    Refused { path: String, refusal: Refusal },
    #[error("{path}: is a directory; -r removes directories and all that is in them")]
    IsDirectory { path: String },
    #[error("{path}: cannot be a name ({reason})")]
    BadName { path: String, reason: &'static str },
    #[error("{path}: {source}")]
    Failed { path: String, source: CallError },
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

impl RemoteError {
    pub(super) fn call(path: &OsStr) -> impl Fn(CallError) -> RemoteError {
        let path = printable(path.as_bytes());
        move |error| {
            let path = path.clone();
            match error.refusal() {
                Some(Refusal::NotFound | Refusal::Stale) => RemoteError::NotFound { path },
                Some(Refusal::NotPermitted) => RemoteError::NotPermitted { path },
                Some(refusal) => RemoteError::Refused { path, refusal },
                None => RemoteError::Failed { path, source: error },
            }
        }
    }
}

/// One login's view of the tree.
pub(crate) struct Remote {
    pub(super) client: Client,
}

/// Entries asked for at once when a directory is walked.
const PAGE_ENTRIES: u32 = 1000;

impl Remote {
    pub async fn connect(config: ClientConfig) -> Result<Remote, RemoteError> {
        Ok(Remote { client: Client::connect(config).await? })
    }

    /// Logs out, so that nothing of the session stays behind.
    pub async fn close(self) {
        self.client.close().await;
    }

    pub(super) async fn call(&self, path: &OsStr, op: Op) -> Result<Reply, RemoteError> {
        self.client.call(op, Bytes::new(), &self.client.patience()).await.map_err(RemoteError::call(path))
    }

    async fn entry(&self, path: &OsStr, op: Op) -> Result<Attr, RemoteError> {
        match self.call(path, op).await?.outcome {
            Outcome::Entry(attr) => Ok(attr),
            _ => Err(wrong(path)),
        }
    }

    /// What the path names.
    pub async fn resolve(&self, path: &OsStr) -> Result<Attr, RemoteError> {
        let names = names(path)?;
        let mut attr = self.entry(path, Op::View(View::Getattr { ino: self.client.root() })).await?;
        for name in names {
            attr = self.entry(path, Op::View(View::Lookup { dir: attr.ino, name })).await?;
        }
        Ok(attr)
    }

    /// The directory that the path's last name stands in, and that name.
    pub(super) async fn parent(&self, path: &OsStr) -> Result<(Ino, Name), RemoteError> {
        let mut names = names(path)?;
        let Some(last) = names.pop() else {
            return Err(RemoteError::BadName { path: printable(path.as_bytes()), reason: "it is the root" });
        };
        let mut dir = self.client.root();
        for name in names {
            dir = self.entry(path, Op::View(View::Lookup { dir, name })).await?.ino;
        }
        Ok((dir, last))
    }

    /// Every entry of the directory, page by page.
    pub async fn each_entry(&self, dir: Ino, mut each: impl FnMut(Listed)) -> Result<(), RemoteError> {
        let path = OsStr::new("(directory)");
        let mut after = None;
        loop {
            let page = View::Readdir { dir, after: after.take(), limit: PAGE_ENTRIES };
            let Outcome::Listing { entries, end, .. } = self.call(path, Op::View(page)).await?.outcome else {
                return Err(wrong(path));
            };
            after = entries.last().map(Listed::cursor);
            entries.into_iter().for_each(&mut each);
            if end || after.is_none() {
                return Ok(());
            }
        }
    }

    pub async fn readlink(&self, ino: Ino) -> anyhow::Result<Vec<u8>> {
        let path = OsStr::new("(symlink)");
        match self.call(path, Op::View(View::Readlink { ino })).await?.outcome {
            Outcome::Link(value) => Ok(self.client.keys().open_value(ValuePurpose::SymlinkTarget, &value)?),
            _ => Err(wrong(path).into()),
        }
    }

    /// A new inode of this kind, owned by whoever owns the namespace.
    pub(super) async fn create(
        &self,
        path: &OsStr,
        place: (Ino, Name),
        kind: FileKind,
        mode: u32,
        target: Option<&[u8]>,
    ) -> Result<Attr, RemoteError> {
        let target = target.map(|target| self.client.keys().seal_value(ValuePurpose::SymlinkTarget, target));
        let new = NewInode {
            kind,
            mode,
            umask: 0,
            uid: Owner::Namespace,
            gid: Owner::Namespace,
            rdev: 0,
            target,
            ino: None,
            reserved: false,
        };
        let (dir, name) = place;
        self.entry(path, Op::Upload(Upload::Create { dir, name, new })).await
    }

    pub async fn mkdir(&self, path: &OsStr, parents: bool) -> Result<(), RemoteError> {
        if !parents {
            let place = self.parent(path).await?;
            return self.create(path, place, FileKind::Dir, 0o755, None).await.map(|_| ());
        }
        let mut dir = self.client.root();
        for name in names(path)? {
            let place = (dir, name.clone());
            let made = match self.create(path, place, FileKind::Dir, 0o755, None).await {
                Err(RemoteError::Refused { refusal: Refusal::Exists, .. }) => {
                    self.entry(path, Op::View(View::Lookup { dir, name })).await?
                }
                other => other?,
            };
            dir = made.ino;
        }
        Ok(())
    }

    pub async fn symlink(&self, target: &OsStr, path: &OsStr) -> Result<(), RemoteError> {
        let place = self.parent(path).await?;
        self.create(path, place, FileKind::Symlink, 0o777, Some(target.as_bytes())).await.map(|_| ())
    }

    /// `mv`: into a directory if the new name is one.
    pub async fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), RemoteError> {
        let (from_dir, from_name) = self.parent(from).await?;
        let (to_dir, to_name) = match self.resolve(to).await {
            Ok(attr) if attr.kind == FileKind::Dir => (attr.ino, from_name.clone()),
            Ok(_) | Err(RemoteError::NotFound { .. }) => self.parent(to).await?,
            Err(error) => return Err(error),
        };
        let how = RenameHow::Replace;
        self.call(from, Op::Upload(Upload::Rename { from_dir, from: from_name, to_dir, to: to_name, how })).await?;
        Ok(())
    }

    /// `rm`: with `recursive` directories too, deepest first.
    pub async fn remove(&self, path: &OsStr, recursive: bool) -> Result<(), RemoteError> {
        let (dir, name) = self.parent(path).await?;
        let attr = self.entry(path, Op::View(View::Lookup { dir, name: name.clone() })).await?;
        if attr.kind != FileKind::Dir {
            self.call(path, Op::Delete(Delete::Unlink { dir, name })).await?;
            return Ok(());
        }
        if !recursive {
            return Err(RemoteError::IsDirectory { path: printable(path.as_bytes()) });
        }
        // A directory stays on the stack, marked, until what was in it is gone.
        let mut left = vec![(dir, name, attr.ino, false)];
        while let Some((dir, name, ino, emptied)) = left.pop() {
            if emptied {
                self.call(path, Op::Delete(Delete::Rmdir { dir, name })).await?;
                continue;
            }
            left.push((dir, name, ino, true));
            let mut files = Vec::new();
            self.each_entry(ino, |entry| match entry.attr.kind {
                FileKind::Dir => left.push((ino, entry.name, entry.attr.ino, false)),
                _ => files.push(entry.name),
            })
            .await?;
            // Names do not depend on each other, so they need not wait for each other.
            let deletes: Vec<_> = files
                .into_iter()
                .map(|name| self.client.submit(Op::Delete(Delete::Unlink { dir: ino, name }), Bytes::new()))
                .collect();
            for delete in deletes {
                self.client.patience().wait(delete).await.and_then(|done| done).map_err(RemoteError::call(path))?;
            }
        }
        Ok(())
    }
}

pub(super) fn wrong(path: &OsStr) -> RemoteError {
    RemoteError::Failed { path: printable(path.as_bytes()), source: CallError::WrongAnswer { op: "view" } }
}

/// The names in a path from the root; `.` and empty ones count for nothing.
fn names(path: &OsStr) -> Result<Vec<Name>, RemoteError> {
    let mut names = Vec::new();
    for part in path.as_bytes().split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
        let bad = |reason| RemoteError::BadName { path: printable(path.as_bytes()), reason };
        if part == b".." {
            return Err(bad("`..` is not understood here"));
        }
        names.push(Name::new(part).map_err(|_| bad("a name has at most 255 bytes and no NUL"))?);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_walked_by_their_names() {
        let parts = |path: &str| names(OsStr::new(path)).map(|names| names.len());
        assert_eq!(parts("/").expect("the root"), 0);
        assert_eq!(parts("a//./b/").expect("a path"), 2);
        assert!(parts("a/../b").is_err());
    }
}
