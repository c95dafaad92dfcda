//! `kfs`: see `mount::cli`. Linked to as `kfs-mount` (as `kfs dev` does) it is that program.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount::main()
}
