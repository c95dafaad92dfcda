//! The arguments of `kfs dev`.

use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct DevArgs {
    /// Where to mount: created if missing, refused if it has content.
    #[arg(default_value = "kfs-dev")]
    pub dir: PathBuf,
    /// Where files and keys are kept [default: $XDG_DATA_HOME/kfs/dev].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}
