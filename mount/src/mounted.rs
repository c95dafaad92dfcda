//! A running mount: from a filesystem to a directory that works, and back:
//! drained, detached, its session closed. `kfs-mount` and `kfs dev` differ in
//! what stands before and after it.
//!
//! * SIGINT, SIGTERM and a request over the control socket drain while the mount
//!   goes on serving; then it is detached, lazily if someone still uses it, who
//!   is named.
//! * After a bare umount(2), or `umount -l`, the daemon drains what is left in the
//!   background, and can be asked about it.
//! * A second signal ends at once; what was not sent stays in the journal, and is said.

use crate::client::Client;
use crate::fs::Fs;
use crate::fuse;
use crate::sys::attach::{self, Attached};
use crate::sys::control::server::{ControlServer, Controlled, Draining};
use crate::sys::control::{Hello, Pending, RunDir};
use crate::sys::detach::{DetachError, How, detach};
use crate::sys::guardian::Guardian;
use crate::sys::mountinfo::MountIdentity;
use crate::sys::options::MountOptions;
use crate::sys::signals::{Signals, Stop};
use crate::sys::users_of::users_of;
use crate::tier::Tier;
use anyhow::Context;
use serde_json::json;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often a drain tells how much is left.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long the kernel's last requests may take after a detach before the daemon ends all the same.
const GOODBYE: Duration = Duration::from_secs(5);

/// A mount that serves.
pub struct Mounted {
    fs: Fs,
    identity: MountIdentity,
    umount_timeout: Duration,
    over: oneshot::Receiver<std::io::Result<()>>,
}

/// How a mount ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing is left to be sent.
    Drained,
    /// One line for each thing that was not sent; it stays in the journal, if there is one.
    Left(Vec<String>),
}

impl Mounted {
    /// Attaches `fs` to `dir` and serves it. Call it inside the runtime.
    pub fn start(
        fs: Fs,
        source: &OsStr,
        dir: &Path,
        options: &MountOptions,
        umount_timeout: Duration,
        guardian: &mut Guardian,
    ) -> anyhow::Result<Mounted> {
        let Attached { fd, identity } = attach::attach(source, dir, options)?;
        let undo = |error: anyhow::Error| {
            // What failed is told; a mount that cannot be undone is the guardian's.
            let _ = detach(&identity, How::Lazy);
            error
        };
        guardian.watch(&identity).context("cannot guard the mount").map_err(undo)?;
        let serving = fuse::serve(fs.clone(), fd).context("cannot serve the mount").map_err(undo)?;
        if let Err(error) = attach::set_read_ahead(&identity) {
            // Plain users may not; the mount's own read-ahead carries them.
            tracing::debug!("{error}");
        }
        let (ended, over) = oneshot::channel();
        std::thread::Builder::new()
            .name("kfs-serving".to_owned())
            .spawn(move || ended.send(serving.join()))
            .context("cannot start a thread")
            .map_err(undo)?;
        let mounted = Mounted { fs, identity: identity.clone(), umount_timeout, over };
        mounted.answer_control(source);
        Ok(mounted)
    }

    /// Who may ask about the mount is told by the socket's own rules. Without a
    /// place for sockets the mount works all the same, only unasked.
    fn answer_control(&self, source: &OsStr) {
        let hello = Hello::new(&self.identity, source, self.umount_timeout);
        let bound = RunDir::mine().map_err(anyhow::Error::from);
        match bound.and_then(|dir| ControlServer::bind(&dir, hello).map_err(anyhow::Error::from)) {
            Ok(server) => {
                let controlled = Arc::new(Control { fs: self.fs.clone(), identity: self.identity.clone() });
                tokio::spawn(server.serve(controlled));
            }
            Err(error) => tracing::warn!("{error:#}; `kfs status` will not find this mount"),
        }
    }

    /// Serves until unmounted or told to stop, then sends what is left; or until `lost`, when
    /// there is nobody left to send it to. `say` is for a person who watches.
    pub async fn until_end(mut self, signals: &mut Signals, lost: impl Future<Output = ()>, say: impl Fn(&str)) -> End {
        tokio::select! {
            () = lost => {
                if let Err(error) = detach(&self.identity, How::Lazy) {
                    say(&error.to_string());
                }
                return End::Left(self.left().await);
            }
            ended = &mut self.over => {
                if let Ok(Err(error)) = ended {
                    tracing::error!("the mount ended: {error}");
                }
            }
            stop = signals.next() => {
                if stop == Stop::AtOnce || !self.stop(signals, &say).await {
                    return End::Left(self.left().await);
                }
            }
        }
        // Whatever was written until the very end.
        let limit = self.umount_timeout;
        let left = tokio::select! {
            left = drain(&self.fs, limit) => left,
            () = at_once(signals) => self.left().await,
        };
        if left.is_empty() {
            self.fs.client().clone().close().await;
            return End::Drained;
        }
        End::Left(left)
    }

    /// Undoes a mount that nobody waits for.
    pub async fn give_up(self) {
        if let Err(error) = detach(&self.identity, How::Lazy) {
            tracing::error!("{error}");
        }
        self.fs.client().clone().close().await;
    }

    /// Drains and detaches. `false` when it was told to end at once instead.
    async fn stop(&mut self, signals: &mut Signals, say: &impl Fn(&str)) -> bool {
        let dir = self.identity.mountpoint().display().to_string();
        say(&format!("stopping: sending what is pending in {dir} (press Ctrl-C again to end at once)"));
        tokio::select! {
            left = drain(&self.fs, self.umount_timeout) => {
                for line in left {
                    say(&format!("not sent within {} s: {line}", self.umount_timeout.as_secs()));
                }
            }
            () = at_once(signals) => {
                // Lazily, since nobody waits for anything any more.
                let _ = detach(&self.identity, How::Lazy);
                return false;
            }
        }
        match detach(&self.identity, How::Idle) {
            Ok(_) => {}
            Err(DetachError::Busy(_)) => {
                let identity = self.identity.clone();
                let users = tokio::task::spawn_blocking(move || users_of(&identity)).await.unwrap_or_default();
                for user in &users {
                    say(&format!("{dir} is still in use: {user}"));
                }
                say(&format!("detaching {dir} all the same; what uses it gets errors from now on"));
                if let Err(error) = detach(&self.identity, How::Lazy) {
                    say(&error.to_string());
                }
            }
            Err(error) => say(&error.to_string()),
        }
        // A busy mount goes on until its last user leaves; nobody waits for that.
        tokio::select! {
            _ = tokio::time::timeout(GOODBYE, &mut self.over) => true,
            () = at_once(signals) => false,
        }
    }

    async fn left(&self) -> Vec<String> {
        drain(&self.fs, Duration::ZERO).await
    }
}

async fn at_once(signals: &mut Signals) {
    while signals.next().await != Stop::AtOnce {}
}

/// Sends everything that is held, within `limit`. Gives what is left, in words.
async fn drain(fs: &Fs, limit: Duration) -> Vec<String> {
    let begun = Instant::now();
    let written = fs.sync_all(limit).await;
    let mut left = fs.client().drain(limit.saturating_sub(begun.elapsed())).await.left;
    let dirty = fs.dirty_bytes();
    if dirty > 0 {
        left.push(format!("{dirty} bytes of written content"));
    }
    if let Err(error) = written
        && !left.is_empty()
    {
        left.push(error.to_string());
    }
    left
}

/// What the control socket tells and does.
struct Control {
    fs: Fs,
    identity: MountIdentity,
}

impl Control {
    fn pending(fs: &Fs, client: &Client) -> Pending {
        let status = client.status();
        Pending { changes: status.unanswered as u64, bytes: fs.dirty_bytes() as u64 + status.upload_bytes }
    }
}

impl Controlled for Control {
    fn status(&self) -> serde_json::Value {
        let client = self.fs.client().status();
        let users: Vec<String> = users_of(&self.identity).iter().map(ToString::to_string).collect();
        let tier = self.fs.tier().map(Tier::status);
        json!({ "client": client, "dirty_bytes": self.fs.dirty_bytes(), "tier": tier, "used_by": users })
    }

    fn drain(&self, progress: mpsc::Sender<Pending>) -> Draining {
        let fs = self.fs.clone();
        Box::pin(async move {
            let client = fs.client().clone();
            let tell = async {
                loop {
                    tokio::time::sleep(PROGRESS_EVERY).await;
                    // A listener that is slow misses a line.
                    let _ = progress.try_send(Control::pending(&fs, &client));
                }
            };
            tokio::select! {
                // The one who asked decides how long to wait, and hangs up.
                left = drain(&fs, Duration::from_secs(24 * 3600)) => match left.as_slice() {
                    [] => Ok(Pending::default()),
                    _ => Ok(Control::pending(&fs, &client)),
                },
                () = tell => unreachable!("the loop never ends"),
            }
        })
    }
}
