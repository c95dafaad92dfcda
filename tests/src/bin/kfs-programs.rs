//! `kfs-server`, `kfs` and `kfs-mount` in one, for the tests: see `programs.rs` of the harness.

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::programs::dispatch().unwrap_or_else(|| {
        eprintln!("kfs-programs: call it by the name of one of {:?}", harness::programs::NAMES);
        ExitCode::from(2)
    })
}
