//! What others change while it is in use here: caches need no telling (their
//! promise is over), but the kernel's pages do.

use super::Fs;
use crate::client::Invalidation;
use proto::Ino;
use proto::message::Promise;
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;

impl Fs {
    pub(super) fn watch_invalidations(&self) {
        let mut invalidations = self.inner.client.invalidations();
        // Weak: a filesystem that nobody uses any more ends.
        let inner = Arc::downgrade(&self.inner);
        proto::task::spawn_on(&self.inner.runtime, async move {
            loop {
                let received = invalidations.recv().await;
                let Some(fs) = Fs::if_there(&inner) else { return };
                match received {
                    Ok(Invalidation::Promises(promises)) => {
                        for promise in promises {
                            if let Promise::Content(ino) = promise {
                                fs.content_invalidated(ino);
                            }
                        }
                    }
                    Ok(Invalidation::All) | Err(RecvError::Lagged(_)) => fs.all_invalidated(),
                    Ok(Invalidation::Accessed { at, inodes }) => fs.cache().accessed(at, &inodes),
                    Ok(Invalidation::LastNameGone(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    fn content_invalidated(&self, ino: Ino) {
        self.inner.files.pages_unknown(ino);
        if self.inner.files.get(ino).is_some() {
            self.inval_pages(ino);
        }
    }

    fn all_invalidated(&self) {
        self.inner.files.all_pages_unknown();
        for file in self.inner.files.all() {
            self.find_lost_locks(&file);
            self.inval_pages(file.ino);
        }
    }

    /// Asks the kernel to drop its pages of an inode, some time soon.
    pub(super) fn inval_pages(&self, ino: Ino) {
        self.inner.files.pages_unknown(ino);
        if let Some(kernel) = self.inner.kernel.get() {
            kernel.inval_inode(self.shown_ino(ino), None);
        }
    }
}
