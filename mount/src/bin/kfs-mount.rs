//! `kfs-mount`: see `mount::program`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mount::main()
}
