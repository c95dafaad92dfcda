//! Records a log and a data directory of this version, for `tests/recorded`. See `README.md`.

use anyhow::Result;
use clap::Parser;
use harness::Scratch;
use harness::recorded::Recording;
use std::path::PathBuf;

/// Records a cluster of this version at work, for later versions to replay.
#[derive(Parser)]
struct Args {
    /// The file to write.
    file: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let recording = Recording::make(&Scratch::new("recording")).await?;
    recording.save(&args.file)?;
    println!("{} has {} entries of a tree", args.file.display(), recording.tree.len());
    Ok(())
}
