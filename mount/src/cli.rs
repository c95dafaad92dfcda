//! The command line of `kfs`: files without a mount, `status` of a mount, and
//! `dev`. Each command is a file below; all of them stand on [`remote::Remote`],
//! which is the same filesystem layer that a mount uses.

mod bench;
mod content;
mod list;
mod remote;
mod shell;
mod status;
mod transfer;

use crate::connect::{Access, Login};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

/// Work with files that kfs stores, without a mount.
#[derive(Parser)]
#[command(name = "kfs", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try everything: embedded broker, server, a user and a mounted DIR.
    Dev(crate::dev::DevArgs),
    /// List a directory.
    Ls(list::LsArgs),
    /// Upload files or directories.
    Put(transfer::TransferArgs),
    /// Download files or directories.
    Get(transfer::TransferArgs),
    /// Remove files or, with -r, directories.
    Rm(RmArgs),
    /// Make directories.
    Mkdir(MkdirArgs),
    /// Move or rename.
    Mv(MvArgs),
    /// Show everything that is known of a file.
    Stat(list::StatArgs),
    /// Add up sizes.
    Du(list::DuArgs),
    /// UPLOAD, DOWNLOAD, DELETE, VIEW and EXIT, one command a line.
    Shell(shell::ShellArgs),
    /// What a mount has pending, and whether it is connected.
    Status(status::StatusArgs),
    /// How fast a mount is, or any other directory.
    Bench(bench::BenchArgs),
}

#[derive(clap::Args)]
struct RmArgs {
    #[command(flatten)]
    access: Access,
    /// Remove directories and all that is in them.
    #[arg(short, long)]
    recursive: bool,
    #[arg(required = true)]
    paths: Vec<OsString>,
}

#[derive(clap::Args)]
struct MkdirArgs {
    #[command(flatten)]
    access: Access,
    /// Make missing parents; a directory that exists is no error.
    #[arg(short, long)]
    parents: bool,
    #[arg(required = true)]
    paths: Vec<OsString>,
}

#[derive(clap::Args)]
struct MvArgs {
    #[command(flatten)]
    access: Access,
    from: OsString,
    /// A new name, or a directory to move into.
    to: OsString,
}

/// Runs `kfs` with these arguments, the program's name first. Exit codes: 0
/// done, 1 failed with a reason on stderr, 2 wrong usage.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // A closed stdout is the reader's wish to hear no more.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match args.command {
        Command::Dev(args) => crate::dev::run(args),
        Command::Status(args) => status::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Ls(args) => with_remote(args.access.clone(), async |remote| list::ls(remote, &args).await),
        Command::Stat(args) => with_remote(args.access.clone(), async |remote| list::stat(remote, &args).await),
        Command::Du(args) => with_remote(args.access.clone(), async |remote| list::du(remote, &args).await),
        Command::Put(args) => with_remote(args.access.clone(), async |remote| transfer::put(remote, &args).await),
        Command::Get(args) => with_remote(args.access.clone(), async |remote| transfer::get(remote, &args).await),
        Command::Rm(args) => with_remote(args.access, async |remote| {
            for path in &args.paths {
                remote.remove(path, args.recursive).await?;
            }
            Ok(())
        }),
        Command::Mkdir(args) => with_remote(args.access, async |remote| {
            for path in &args.paths {
                remote.mkdir(path, args.parents).await?;
            }
            Ok(())
        }),
        Command::Mv(args) => with_remote(args.access, async |remote| Ok(remote.rename(&args.from, &args.to).await?)),
        Command::Shell(args) => with_remote(args.access, async |remote| shell::run(remote).await),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kfs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Logs in, works, and logs out again, so that nothing of the session stays behind.
fn with_remote(access: Access, work: impl AsyncFnOnce(&remote::Remote) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let config = proto::config::Config::load(&access.options())?;
    let login = Login::from_config(&config)?.connect()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let remote = remote::Remote::connect(login).await?;
        let done = work(&remote).await;
        remote.close().await;
        done
    })
}
