//! The daemon's side of the control socket.
//!
//! * Connections are served one task each, at most [`CONNECTIONS_MAX`] at once; one that asks
//!   nothing for [`IDLE_TIMEOUT`] is closed.
//! * Who connects must be the daemon's user or root, whatever the socket's mode says.
//! * The socket's file is removed when the server is dropped; what a killed daemon left is removed
//!   by the next one of that user.

use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};

use super::{Answer, Ask, Hello, Pending, RunDir, SOCKETS_MAX, socket_prefix};

/// Connections served at once, at most; further ones wait.
pub const CONNECTIONS_MAX: usize = 16;
/// How long a connection may stay silent, or take to accept a line.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A question is one short line.
const ASK_BYTES_MAX: u64 = 4096;

/// A drain under way: resolves to what could not be sent, or why it failed.
pub type Draining = Pin<Box<dyn Future<Output = Result<Pending, String>> + Send>>;

/// What a mount tells and does when asked.
pub trait Controlled: Send + Sync + 'static {
    /// The state for `kfs status`; must not wait.
    fn status(&self) -> serde_json::Value;

    /// Sends everything held, while the mount goes on serving. Tells `progress` how much is left
    /// every now and then (with `try_send`: a slow listener misses some). Dropped if the one who
    /// asked goes away; what it has started may go on.
    fn drain(&self, progress: mpsc::Sender<Pending>) -> Draining;
}

/// A bound socket.
#[derive(Debug)]
pub struct ControlServer {
    listener: StdListener,
    path: PathBuf,
    hello: Hello,
}

impl ControlServer {
    /// Binds the socket for this mount in `dir`, and removes what dead daemons left there.
    pub fn bind(dir: &RunDir, hello: Hello) -> io::Result<Self> {
        remove_dead(&dir.path);
        let name = format!("{}-{}-{}.sock", socket_prefix(hello.mount.mountpoint()), hello.mount.id, hello.pid);
        let path = dir.path.join(name);
        // Of a dead process with our pid; a living one cannot have it.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = StdListener::bind(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot make the control socket {}: {e}", path.display())))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path, hello })
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until dropped. Needs a tokio runtime with I/O and time.
    pub async fn serve(self, controlled: Arc<dyn Controlled>) -> io::Result<()> {
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let hello = Arc::new(line(&self.hello)?);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await.expect("never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely; others will be closed.
                    tracing::warn!("cannot accept on the control socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (controlled, hello) = (controlled.clone(), hello.clone());
            tokio::spawn(async move {
                if let Err(e) = converse(stream, &hello, controlled.as_ref()).await {
                    tracing::debug!("a control connection ended: {e}");
                }
                drop(place);
            });
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn line(value: &impl serde::Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

async fn converse(stream: UnixStream, hello: &[u8], controlled: &dyn Controlled) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("uid {peer} may not ask")));
    }
    let mut stream = BufReader::new(stream);
    send(&mut stream, hello).await?;
    loop {
        let mut text = Vec::new();
        let mut asked = (&mut stream).take(ASK_BYTES_MAX);
        tokio::time::timeout(IDLE_TIMEOUT, asked.read_until(b'\n', &mut text)).await??;
        if text.is_empty() {
            return Ok(());
        }
        match serde_json::from_slice(&text) {
            Ok(Ask::Status) => answer(&mut stream, &Answer::Status(controlled.status())).await?,
            Ok(Ask::Drain) => drain(&mut stream, controlled).await?,
            Err(e) => {
                answer(&mut stream, &Answer::Error(format!("not understood: {e}"))).await?;
                return Ok(());
            }
        }
    }
}

async fn drain(stream: &mut BufReader<UnixStream>, controlled: &dyn Controlled) -> io::Result<()> {
    let (sender, mut progress) = mpsc::channel(16);
    let mut draining = controlled.drain(sender);
    loop {
        tokio::select! {
            biased;
            Some(pending) = progress.recv() => answer(stream, &Answer::Progress(pending)).await?,
            done = &mut draining => {
                return match done {
                    Ok(left) => answer(stream, &Answer::Drained(left)).await,
                    Err(why) => answer(stream, &Answer::Error(why)).await,
                };
            }
        }
    }
}

async fn answer(stream: &mut BufReader<UnixStream>, answer: &Answer) -> io::Result<()> {
    send(stream, &line(answer)?).await
}

async fn send(stream: &mut BufReader<UnixStream>, line: &[u8]) -> io::Result<()> {
    tokio::time::timeout(IDLE_TIMEOUT, stream.write_all(line)).await??;
    Ok(())
}

/// Removes sockets that nobody listens on.
fn remove_dead(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().take(SOCKETS_MAX).map(|entry| entry.path()) {
        let is_socket = path.extension().is_some_and(|e| e == "sock");
        let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        if is_socket && StdStream::connect(&path).is_err_and(refused) {
            let _ = std::fs::remove_file(&path);
        }
    }
}
