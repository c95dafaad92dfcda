//! `kfs put` and `kfs get`: content in pieces of one chunk, several under way,
//! with a progress bar where a person watches.

use super::list::printable;
use super::remote::Remote;
use crate::connect::Access;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::message::FileKind;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What `put` and `get` take.
#[derive(clap::Args)]
pub(super) struct TransferArgs {
    #[command(flatten)]
    pub access: Access,
    /// Directories too, and all that is in them.
    #[arg(short, long)]
    recursive: bool,
    /// No progress bar.
    #[arg(short, long)]
    quiet: bool,
    /// What to copy, then the name or directory to copy it to.
    #[arg(required = true, num_args = 2..)]
    paths: Vec<OsString>,
}

pub(super) async fn put(remote: &Remote, args: &TransferArgs) -> anyhow::Result<()> {
    let (to, files) = args.paths.split_last().context("there is nothing to upload")?;
    let into_dir = match remote.resolve(to).await {
        Ok(attr) => attr.kind == FileKind::Dir,
        Err(_) if files.len() > 1 => {
            anyhow::bail!("{}: no such directory to put several files into", printable(to.as_bytes()))
        }
        Err(_) => false,
    };
    for file in files {
        let file = Path::new(file);
        let target = if into_dir { join(to, local_name(file)?) } else { to.clone() };
        let mut left = vec![(file.to_owned(), target)];
        while let Some((file, target)) = left.pop() {
            let meta = std::fs::symlink_metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if meta.is_dir() {
                anyhow::ensure!(args.recursive, "{} is a directory; -r uploads directories", file.display());
                remote.mkdir(&target, true).await?;
                for entry in std::fs::read_dir(&file).with_context(|| format!("cannot list {}", file.display()))? {
                    let entry = entry?;
                    left.push((entry.path(), join(&target, &entry.file_name())));
                }
            } else if meta.is_symlink() {
                remote.symlink(std::fs::read_link(&file)?.as_os_str(), &target).await?;
            } else if meta.is_file() {
                put_one(remote, &file, &target, args.quiet).await?;
            } else {
                eprintln!("kfs: {} is no file, directory or symlink: left out", file.display());
            }
        }
    }
    Ok(())
}

pub(super) async fn get(remote: &Remote, args: &TransferArgs) -> anyhow::Result<()> {
    let (to, names) = args.paths.split_last().context("there is nothing to download")?;
    let to = Path::new(to);
    let into_dir = to.is_dir();
    anyhow::ensure!(into_dir || names.len() == 1, "{}: no such directory to get several files into", to.display());
    for name in names {
        let target = if into_dir { to.join(local_name(Path::new(name))?) } else { to.to_owned() };
        let mut left: Vec<(OsString, PathBuf)> = vec![(name.clone(), target)];
        while let Some((name, target)) = left.pop() {
            let attr = remote.resolve(&name).await?;
            match attr.kind {
                FileKind::Dir => {
                    anyhow::ensure!(
                        args.recursive,
                        "{} is a directory; -r downloads directories",
                        printable(name.as_bytes())
                    );
                    if !target.is_dir() {
                        std::fs::create_dir(&target).with_context(|| format!("cannot make {}", target.display()))?;
                    }
                    remote
                        .each_entry(attr.ino, |entry| {
                            let child = OsStr::from_bytes(entry.name.as_bytes());
                            left.push((join(&name, child), target.join(child)));
                        })
                        .await?;
                }
                FileKind::File => get_one(remote, &name, &target, args.quiet).await?,
                FileKind::Symlink => {
                    let link = remote.readlink(attr.ino).await?;
                    std::os::unix::fs::symlink(OsStr::from_bytes(&link), &target)
                        .with_context(|| format!("cannot make the symlink {}", target.display()))?;
                }
                _ => eprintln!("kfs: {} is no file, directory or symlink: left out", printable(name.as_bytes())),
            }
        }
    }
    Ok(())
}

/// Uploads one file over whatever file has the name now.
pub(super) async fn put_one(remote: &Remote, file: &Path, name: &OsStr, quiet: bool) -> anyhow::Result<()> {
    let local = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let meta = local.metadata()?;
    anyhow::ensure!(meta.is_file(), "{} is not a file", file.display());
    let bar = progress(meta.len(), printable(name.as_bytes()), quiet);
    remote.write_file(name, local, meta.permissions().mode() & 0o777, |bytes| bar.inc(bytes)).await?;
    bar.finish_and_clear();
    Ok(())
}

/// Downloads one file; under a temporary name first, so that a download that
/// stops half-way leaves what was there before.
pub(super) async fn get_one(remote: &Remote, name: &OsStr, file: &Path, quiet: bool) -> anyhow::Result<()> {
    let attr = remote.resolve(name).await?;
    anyhow::ensure!(attr.kind == FileKind::File, "{} is not a file", printable(name.as_bytes()));
    let target = if file.is_dir() { file.join(local_name(Path::new(name))?) } else { file.to_owned() };
    // A name of its own length: the file's may be as long as names can be.
    let partial = target.with_file_name(format!(".{}.kfs-part", std::process::id()));
    // The file's own mode, as far as the caller's umask lets it.
    let new = OpenOptions::new().write(true).create_new(true).mode(attr.mode & 0o777).open(&partial);
    let local = new.with_context(|| format!("cannot write {}", partial.display()))?;
    let bar = progress(attr.size, printable(name.as_bytes()), quiet);
    let done = remote
        .read_file(name, &attr, |offset, content| {
            bar.set_position(offset + content.len() as u64);
            local.write_all_at(content, offset).with_context(|| format!("cannot write {}", partial.display()))
        })
        .await
        .and_then(|()| local.set_len(attr.size).with_context(|| format!("cannot write {}", partial.display())))
        .and_then(|()| {
            std::fs::rename(&partial, &target).with_context(|| format!("cannot write {}", target.display()))
        });
    if done.is_err() {
        // What is there is of no use; the download's own error says why.
        let _ = std::fs::remove_file(&partial);
    }
    bar.finish_and_clear();
    done
}

fn progress(bytes: u64, name: String, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template(
        "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("the template is a constant and well-formed");
    ProgressBar::new(bytes).with_style(style).with_message(name)
}

fn local_name(path: &Path) -> anyhow::Result<&OsStr> {
    path.file_name().with_context(|| format!("{} is not a file's name", path.display()))
}

fn join(dir: &OsStr, name: &OsStr) -> OsString {
    let mut path = dir.to_owned();
    if !dir.as_bytes().ends_with(b"/") {
        path.push("/");
    }
    path.push(name);
    path
}
