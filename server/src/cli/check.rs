//! `kfs-server check`: the invariants of a data directory, offline.

use crate::disk::Disk;
use anyhow::bail;
use proto::config::{Config, Options, ServerOptions};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Read this file instead of /etc/kfs/config.toml and ~/.config/kfs/config.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The cluster key, if it is not in the data directory.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let server = ServerOptions { data: args.data.clone(), key_file: args.key_file.clone() };
    let config = Config::load(&Options { config: args.config.clone(), server, ..Options::default() })?;
    let Some(data) = config.server.data else {
        bail!("no data directory is given; name one with --data DIR, or `data` in [server] of the configuration");
    };
    let report = crate::check::check(&data, config.server.key_file.as_deref(), &Disk::default())?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    match report.violations().count {
        0 => Ok(()),
        count => bail!(
            "{} is not sound, {count} violations; nothing was changed: restore a snapshot, or start from another replica's",
            data.display()
        ),
    }
}
