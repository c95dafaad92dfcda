//! Logging for the mount's programs: to stderr, warnings unless `KFS_LOG` (in the
//! syntax of `tracing-subscriber`'s filters) says otherwise. Secrets are never
//! logged: the types that hold them do not show them.

use std::io::Write;
use tracing_subscriber::EnvFilter;

/// Starts logging; a second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_env("KFS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Where stderr is a file on a full disk, a mount loses a line and not its life.
    let _ = format.log_internal_errors(false).try_init();
}

/// Says something on stderr while a mount is being served, if that can be written at all.
pub(crate) fn say(line: std::fmt::Arguments) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
