//! The operating-system side of a mount: the command line's options, the mount itself, the
//! processes around it, and how it ends. No filesystem logic, no protocol, no `fuser` session.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | `-o` and the source, as types |
//! | [`helper`], [`umount`] | what mount(8) and umount(8) call |
//! | [`mountinfo`] | what is mounted, and whether a directory can be mounted on |
//! | [`attach`], [`detach`] | the mount made and undone |
//! | [`daemon`], [`guardian`] | the processes: caller, daemon, and who cleans up after a kill -9 |
//! | [`control`] | the socket for `kfs status` and the drain |
//! | [`signals`], [`interrupt`], [`users_of`] | Ctrl-C on the daemon, Ctrl-C on its callers, who keeps it busy |
//!
//! The order matters: forks come before threads (`daemonize` and `Guardian::fork` refuse otherwise),
//! so a tokio runtime, a Kafka client or a log writer's thread is started after them, and a password
//! is asked for before them, while there is a terminal. Put together:
//!
//! ```no_run
//! # fn fuse_session(fd: std::os::fd::OwnedFd) -> std::io::Result<()> { Ok(()) }
//! # struct Mine;
//! # impl mount::sys::control::server::Controlled for Mine {
//! #     fn status(&self) -> serde_json::Value { serde_json::Value::Null }
//! #     fn drain(&self, _: tokio::sync::mpsc::Sender<mount::sys::control::Pending>)
//! #         -> mount::sys::control::server::Draining { Box::pin(async { Ok(Default::default()) }) }
//! # }
//! use mount::sys::control::{Hello, RunDir, server::ControlServer};
//! use mount::sys::daemon::{Readiness, Side, daemonize};
//! use mount::sys::options::{MountOptions, Source, UMOUNT_TIMEOUT_DEFAULT};
//! use mount::sys::signals::{Signals, Stop};
//! use mount::sys::{attach, detach, guardian::Guardian};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = MountOptions::parse("ro,timeout=10".as_ref())?;
//! let source = Source::parse("ann@localhost:9092".as_ref())?;
//! let dir = attach::preflight("/mnt".as_ref(), &options)?;
//! // ...ask for the password here, if one is needed.
//! let in_foreground = false;
//! let readiness = if in_foreground {
//!     Readiness::foreground()
//! } else {
//!     match daemonize()? {
//!         Side::Daemon(readiness) => readiness,
//!         Side::Caller(waiting) => {
//!             let outcome = waiting.wait();
//!             outcome.message.inspect(|message| eprintln!("kfs-mount: {message}"));
//!             std::process::exit(outcome.code.into());
//!         }
//!     }
//! };
//! let mut guardian = Guardian::fork()?;
//! // From here on threads are welcome: runtime, Kafka, login. Whatever fails until `ready` is told
//! // to the caller by `readiness.failed(code, message)`.
//! let runtime = tokio::runtime::Runtime::new()?;
//! let attached = attach::attach(&source.text, &dir, &options)?;
//! guardian.watch(&attached.identity)?;
//! // `Session::from_fd(filesystem, attached.fd, SessionACL::All, config)`: the kernel already checks
//! // who may enter, and read-ahead can be set once the handshake is done.
//! fuse_session(attached.fd)?;
//! if attach::set_read_ahead(&attached.identity).is_err() { /* plain users stay at 128 KiB */ }
//! let hello = Hello::new(&attached.identity, &source.text, UMOUNT_TIMEOUT_DEFAULT);
//! let control = ControlServer::bind(&RunDir::mine()?, hello)?;
//! runtime.block_on(async {
//!     let mut signals = Signals::listen()?;
//!     tokio::spawn(control.serve(std::sync::Arc::new(Mine)));
//!     // ...the first authenticated getattr, and only then:
//!     readiness.ready(None)?;
//!     if signals.next().await == Stop::Drain {
//!         // drain; a second signal (`Stop::AtOnce`) ends that
//!         detach::detach(&attached.identity, detach::How::Lazy)?;
//!     }
//!     Ok::<(), Box<dyn std::error::Error>>(())
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod attach;
pub mod control;
pub mod daemon;
pub mod detach;
pub mod group;
pub mod guardian;
pub mod helper;
pub mod holder;
pub mod interrupt;
pub mod lock_call;
pub mod mountinfo;
pub mod options;
pub mod signals;
pub mod umount;
pub mod users_of;
mod utab;
