//! Logging for the mount's programs: to stderr, warnings unless `KFS_LOG` (in the
//! syntax of `tracing-subscriber`'s filters) says otherwise. Secrets are never
//! logged: the types that hold them do not show them.

use tracing_subscriber::EnvFilter;

/// Starts logging; a second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env("KFS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).try_init();
}
