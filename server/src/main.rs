//! `kfs-server`: see `server::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::main(std::env::args_os().collect())
}
