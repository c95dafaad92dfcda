//! What the kernel in front of a mount keeps of names and attributes, for as long as it was told it may, how long
//! it takes to forget, and which calls it lets through only one after the other.

use super::rng::Rng;
use mount::client::Patience;
use mount::error::FsError;
use mount::fs::{self, DirEntry, Fs, KernelForget, Stat};
use proto::message::Refusal;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Longer than it may keep anything: a lookup in the directory is under way.
const BLOCKED: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Kernel(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    names: BTreeMap<(u64, Vec<u8>), (Option<Stat>, Instant)>,
    inodes: BTreeMap<u64, (Stat, Instant)>,
    /// Counts changes made through it, which it sees itself.
    changes: u64,
    /// By inode, for the calls that it holds the inode's lock for.
    locks: BTreeMap<u64, Arc<tokio::sync::Mutex<()>>>,
}

impl State {
    /// What stands under a name, as of one moment: with attributes that are asked for later it may be gone by then, as
    /// everywhere.
    fn known(&self, dir: u64, name: &[u8]) -> Option<Option<Stat>> {
        let now = Instant::now();
        match self.names.get(&(dir, name.to_vec())).filter(|(_, until)| *until > now)? {
            (None, _) => Some(None),
            (Some(found), _) => {
                self.inodes.get(&found.ino).filter(|(_, until)| *until > now).map(|(stat, _)| Some(stat.clone()))
            }
        }
    }
}

impl Kernel {
    /// Puts one before the mount.
    pub fn before(fs: &Fs, client: usize, pace_ms: u32) -> Kernel {
        let rng = Rng::new(u64::from(pace_ms) << 16 | client as u64, "kernel");
        let state = State { rng, names: BTreeMap::new(), inodes: BTreeMap::new(), changes: 0, locks: BTreeMap::new() };
        let kernel = Kernel(Arc::new(Mutex::new(state)));
        fs.set_kernel(Arc::new(kernel.clone()));
        kernel
    }

    pub async fn lookup(&self, fs: &Fs, dir: u64, name: &[u8], p: &Patience) -> Result<Option<Stat>, FsError> {
        if let Some(known) = self.state().known(dir, name) {
            return Ok(known);
        }
        let (showing, changes) = (fs.showing(), self.state().changes);
        let found = match fs.lookup(dir, name, p).await {
            Ok(stat) => Some(stat),
            Err(error) if error.is(Refusal::NotFound) => None,
            Err(error) => return Err(error),
        };
        let mut state = self.state();
        if state.changes == changes {
            let now = Instant::now();
            if let Some(stat) = &found {
                state.inodes.insert(stat.ino, (stat.clone(), now + showing.attributes(stat)));
            }
            state.names.insert((dir, name.to_vec()), (found.clone(), now + showing.name(dir, name)));
        }
        Ok(found)
    }

    pub async fn getattr(&self, fs: &Fs, ino: u64, p: &Patience) -> Result<Stat, FsError> {
        let now = Instant::now();
        if let Some((stat, _)) = self.state().inodes.get(&ino).filter(|(_, until)| *until > now) {
            return Ok(stat.clone());
        }
        let (showing, changes) = (fs.showing(), self.state().changes);
        let stat = fs.getattr(ino, p).await?;
        let mut state = self.state();
        if state.changes == changes {
            state.inodes.insert(ino, (stat.clone(), Instant::now() + showing.attributes(&stat)));
        }
        Ok(stat)
    }

    /// Some entries behind an offset. It keeps of each what it may, as of a lookup.
    pub async fn list(
        &self,
        fs: &Fs,
        dir: u64,
        (handle, offset): (u64, u64),
        p: &Patience,
    ) -> Result<Vec<DirEntry>, FsError> {
        let (showing, changes) = (fs.showing(), self.state().changes);
        let entries = fs.readdir(handle, offset, true, p).await?;
        let mut state = self.state();
        if state.changes == changes {
            for entry in &entries {
                let Some(stat) = &entry.stat else { continue };
                let until = Instant::now() + showing.entry(dir, &entry.name, stat);
                state.inodes.insert(stat.ino, (stat.clone(), until));
                state.names.insert((dir, entry.name.clone()), (Some(stat.clone()), until));
            }
        }
        Ok(entries)
    }

    /// Something has been changed through it. It knows what; this forgets all.
    pub fn changed(&self) {
        let mut state = self.state();
        state.changes += 1;
        state.names.clear();
        state.inodes.clear();
    }

    /// One call that writes to an inode, changes its attributes or reserves or copies content: only one at a time. It
    /// keeps no attributes of it then.
    pub fn alone<T>(&self, ino: u64, call: impl Future<Output = T>) -> impl Future<Output = T> {
        let call = Box::pin(call);
        let lock = self.state().locks.entry(ino).or_default().clone();
        let kernel = self.clone();
        async move {
            let _alone = lock.lock().await;
            let done = call.await;
            let mut state = kernel.state();
            state.changes += 1;
            state.inodes.remove(&ino);
            done
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fs::Kernel for Kernel {
    /// Pages are not simulated.
    fn inval_inode(&self, _ino: u64, _done: Option<oneshot::Sender<()>>) {}

    fn forget(&self, forget: KernelForget, done: Box<dyn FnOnce() + Send>) {
        let takes = match self.state().rng.below(20) {
            0 => BLOCKED,
            more => Duration::from_micros(more * more * 50),
        };
        let kernel = self.clone();
        proto::task::spawn(async move {
            tokio::time::sleep(takes).await;
            let mut state = kernel.state();
            for ino in &forget.inodes {
                state.inodes.remove(ino);
            }
            for (dir, name) in &forget.names {
                state.names.remove(&(*dir, name.as_bytes().to_vec()));
            }
            drop(state);
            done();
        });
    }

    fn attributes_changed(&self, ino: u64) {
        self.state().inodes.remove(&ino);
    }

    fn forgets_names(&self) -> bool {
        true
    }
}
