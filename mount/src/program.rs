//! `kfs-mount`, also under the names by which mount(8) and umount(8) call it:
//! from the command line to a daemon that serves the mount.
//!
//! The order is what matters (see [`crate::sys`]): everything that can be refused
//! without a broker comes first, then the password while there is a terminal, then
//! the forks, and only then threads, Kafka and the login. The caller hears `ready`
//! when an authenticated look at the directory has succeeded and it is mounted.

use crate::client::{Client, JournalConfig};
use crate::connect::Login;
use crate::fs::{Fs, FsConfig, Owners};
use crate::mounted::{End, Mounted};
use crate::sys::attach;
use crate::sys::daemon::{Readiness, Side, daemonize};
use crate::sys::guardian::Guardian;
use crate::sys::helper::{self, Helper, MountCall};
use crate::sys::options::{MountOptions, Source};
use crate::sys::signals::Signals;
use crate::sys::umount;
use crate::tier::{Tier, TierConfig};
use anyhow::Context;
use clap::Parser;
use proto::config::{Config, Options};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Mount what kfs stores as a directory. Returns when it is usable.
#[derive(Parser)]
#[command(name = "kfs-mount", version, max_term_width = 100)]
struct Args {
    /// Stay in the foreground.
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS", long_help = options_help())]
    options: Vec<OsString>,
    /// [USER@]HOST:PORT[,HOST:PORT][/PATH]
    source: OsString,
    /// The directory to mount on.
    dir: PathBuf,
}

fn options_help() -> String {
    format!(
        "Mount options, separated by commas: {}. Those of mount(8) that only fstab reads are accepted and ignored.",
        crate::sys::options::KNOWN
    )
}

/// What is to be mounted, whoever asked.
struct Call {
    name: &'static str,
    source: OsString,
    dir: PathBuf,
    options: MountOptions,
    foreground: bool,
    verbose: bool,
    /// The exit code for anything that fails.
    failed: u8,
}

/// Runs the program under whichever name it was called.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match helper::called_as(&args) {
        Some((Helper::Mount, rest)) => mount_helper(rest),
        Some((Helper::Umount, rest)) => umount_helper(rest),
        None => kfs_mount(args),
    }
}

fn kfs_mount(args: Vec<OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // A closed stdout is the reader's wish to hear no more.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let mut options = MountOptions::default();
    for text in &args.options {
        if let Err(error) = options.add(text, false) {
            eprintln!("kfs-mount: {error}");
            return ExitCode::from(2);
        }
    }
    if options.remount {
        return told("kfs-mount", helper::remount(&args.dir, &options), 1);
    }
    let (source, dir, foreground) = (args.source, args.dir, args.foreground);
    run(Call { name: "kfs-mount", source, dir, options, foreground, verbose: false, failed: 1 })
}

fn mount_helper(args: &[OsString]) -> ExitCode {
    let call = match helper::parse_mount(args) {
        Ok(call) => call,
        Err(error) => {
            eprintln!("mount.kfs: {error}");
            return ExitCode::from(helper::USAGE);
        }
    };
    let MountCall { source, dir, options, fake, verbose, namespace } = call;
    for skipped in &options.skipped {
        eprintln!("mount.kfs: unknown option `{skipped}` passed over (-s)");
    }
    if let Some(namespace) = namespace
        && let Err(error) = helper::enter_namespace(&namespace)
    {
        eprintln!("mount.kfs: {error}");
        return ExitCode::from(helper::FAILED);
    }
    if options.remount {
        return match fake {
            true => ExitCode::SUCCESS,
            false => told("mount.kfs", helper::remount(&dir, &options), helper::FAILED),
        };
    }
    if fake {
        let checked = Source::parse(&source).map_err(anyhow::Error::from);
        let checked = checked.and_then(|_| attach::preflight(&dir, &options).map_err(anyhow::Error::from));
        return told("mount.kfs", checked.map(drop), helper::FAILED);
    }
    run(Call { name: "mount.kfs", source, dir, options, foreground: false, verbose, failed: helper::FAILED })
}

fn umount_helper(args: &[OsString]) -> ExitCode {
    let call = match umount::parse(args) {
        Ok(call) => call,
        Err(error) => {
            eprintln!("umount.fuse.kfs: {error}");
            return ExitCode::from(helper::USAGE);
        }
    };
    let verbose = call.verbose;
    let done = umount::umount(&call, |step| {
        if verbose || !matches!(step, umount::Step::Unmounted) {
            eprintln!("umount.fuse.kfs: {step}");
        }
    });
    told("umount.fuse.kfs", done, helper::FAILED)
}

fn told<E: std::fmt::Display>(name: &str, done: Result<(), E>, failed: u8) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(failed)
        }
    }
}

/// Everything that a daemon needs and that is known before there is one.
struct Prepared {
    source: Source,
    dir: PathBuf,
    login: Login,
    config: Config,
}

fn prepare(call: &Call) -> anyhow::Result<Prepared> {
    let source = Source::parse(&call.source)?;
    let dir = attach::preflight(&call.dir, &call.options)?;
    let mut layer = Options {
        config: call.options.config.clone(),
        brokers: Some(source.brokers.join(",")),
        user: source.user.clone(),
        password_file: call.options.password_file.clone(),
        credential: call.options.credential.clone(),
        ..Options::default()
    };
    layer.mount.timeout = call.options.timeout;
    layer.mount.hard = call.options.hard.then_some(true);
    layer.mount.cache = call.options.cache_bytes;
    layer.mount.cache_dir = call.options.cache_dir.clone();
    layer.mount.cache_dir_size = call.options.cache_dir_bytes;
    layer.mount.journal = call.options.journal_bytes;
    layer.mount.umount_timeout = call.options.umount_timeout;
    let config = Config::load(&layer)?;
    let mut login = Login::from_config(&config)?;
    if config.mount.journal > 0 {
        let dir = journal_dir()
            .context("neither XDG_STATE_HOME nor HOME is set: no place for the journal (journal=0 does without)")?;
        login.journal = Some(JournalConfig { dir, max_bytes: config.mount.journal });
    }
    // Said to whoever mounts, before there is a daemon.
    if let Some(tier) = tier_config(&config) {
        tier.is_outside(&dir)?;
        tier.prepare()?;
    }
    Ok(Prepared { source, dir, login, config })
}

fn tier_config(config: &Config) -> Option<TierConfig> {
    let dir = config.mount.cache_dir.clone()?;
    Some(TierConfig { dir, max_bytes: config.mount.cache_dir_size })
}

/// Where journals are kept: `$XDG_STATE_HOME/kfs`; where that is not set
/// `/var/lib/kfs` for root, `~/.local/state/kfs` for others.
fn journal_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    if let Some(state) = absolute("XDG_STATE_HOME") {
        return Some(state.join("kfs"));
    }
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/kfs"));
    }
    absolute("HOME").map(|home| home.join(".local/state/kfs"))
}

fn run(call: Call) -> ExitCode {
    let prepared = match prepare(&call) {
        Ok(prepared) => prepared,
        Err(error) => return told(call.name, Err(error), call.failed),
    };
    let readiness = if call.foreground {
        Readiness::foreground()
    } else {
        match daemonize() {
            Ok(Side::Daemon(readiness)) => readiness,
            Ok(Side::Caller(waiting)) => {
                let outcome = waiting.wait();
                if let Some(message) = outcome.message {
                    eprintln!("{}: {message}", call.name);
                } else if call.verbose {
                    eprintln!("{}: {} mounted on {}", call.name, call.source.display(), call.dir.display());
                }
                return ExitCode::from(if outcome.code == 0 { 0 } else { call.failed });
            }
            Err(error) => return told(call.name, Err(error), call.failed),
        }
    };
    let guardian = match Guardian::fork() {
        Ok(guardian) => guardian,
        Err(error) => {
            readiness.failed(call.failed, &error.to_string());
            return ExitCode::from(call.failed);
        }
    };
    crate::logs::start();
    match serve(&call, prepared, readiness, guardian) {
        Ok(End::Drained) => ExitCode::SUCCESS,
        Ok(End::Left(left)) => {
            for line in left {
                tracing::warn!("not sent, kept in the journal for the next mount: {line}");
            }
            ExitCode::from(call.failed)
        }
        Err(()) => ExitCode::from(call.failed),
    }
}

/// The daemon's life. An error has been told already.
fn serve(call: &Call, prepared: Prepared, readiness: Readiness, mut guardian: Guardian) -> Result<End, ()> {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            readiness.failed(call.failed, &format!("cannot start the runtime: {error}"));
            return Err(());
        }
    };
    let umount_timeout = prepared.config.mount.umount_timeout;
    let log_file = prepared.login.journal.as_ref().and_then(|journal| log_file(&journal.dir));
    let ended = runtime.block_on(async {
        let started = async {
            let mut signals = Signals::listen().context("cannot listen for signals")?;
            let fs = tokio::select! {
                fs = open(&prepared.config, &call.options, prepared.login, &prepared.source) => fs?,
                _ = signals.next() => anyhow::bail!("interrupted"),
            };
            let mounted =
                Mounted::start(fs, &prepared.source.text, &prepared.dir, &call.options, umount_timeout, &mut guardian)?;
            Ok((mounted, signals))
        };
        let (mounted, mut signals) = match started.await {
            Ok(started) => started,
            Err(error) => {
                readiness.failed(call.failed, &format!("{error:#}"));
                return Err(());
            }
        };
        if call.foreground {
            eprintln!("{}: {} mounted on {}", call.name, call.source.display(), prepared.dir.display());
        }
        if readiness.ready(log_file.as_ref().map(AsFd::as_fd)).is_err() {
            // Whoever started it has gone: signalled, or killed. Nothing is left behind.
            mounted.give_up().await;
            return Err(());
        }
        Ok(mounted
            .until_end(&mut signals, std::future::pending(), |line| {
                crate::logs::say(format_args!("{}: {line}", call.name))
            })
            .await)
    });
    // Kernel requests that still wait have nobody to wait for.
    runtime.shutdown_background();
    ended
}

/// Logs in and looks at the directory that is to be mounted.
async fn open(config: &Config, options: &MountOptions, login: Login, source: &Source) -> anyhow::Result<Fs> {
    let client_config = tokio::task::spawn_blocking(move || login.connect()).await??;
    let client = Client::connect(client_config).await?;
    let fs_config = FsConfig {
        cache_bytes: usize::try_from(config.mount.cache).unwrap_or(usize::MAX),
        close_timeout: config.mount.timeout,
        relatime: !options.noatime && !options.is_read_only(),
        tier: tier_config(config).map(|tier| Tier::start(&tier)).transpose()?.map(Arc::new),
        ..FsConfig::new(owners(options, client.owner_ids()))
    };
    let opened = Fs::open_root(client.clone(), fs_config, Path::new(&source.path), &client.patience()).await;
    match opened {
        Ok(fs) => Ok(fs),
        Err(error) => {
            client.close().await;
            Err(error).with_context(|| format!("cannot mount {} of the remote tree", source.path.display()))
        }
    }
}

/// Who is shown as owner. A root mount keeps numbers; anyone else sees themselves.
pub(crate) fn owners(options: &MountOptions, namespace_owner: (u32, u32)) -> Owners {
    let (me, my_group) = (rustix::process::geteuid(), rustix::process::getegid());
    let (uid, gid) = if me.is_root() { namespace_owner } else { (me.as_raw(), my_group.as_raw()) };
    Owners {
        keep_numbers: me.is_root(),
        uid: options.uid.unwrap_or(uid),
        gid: options.gid.unwrap_or(gid),
        every_uid: !me.is_root() && options.uid.is_some(),
        every_gid: !me.is_root() && options.gid.is_some(),
        umask: options.umask.unwrap_or(0),
    }
}

/// What the daemon logs once nobody watches its stderr. Begun anew beyond 1 MiB.
fn log_file(dir: &Path) -> Option<File> {
    const MAX_BYTES: u64 = 1 << 20;
    std::fs::create_dir_all(dir).ok()?;
    let path = dir.join("mount.log");
    let full = std::fs::metadata(&path).is_ok_and(|meta| meta.len() > MAX_BYTES);
    std::fs::OpenOptions::new().create(true).append(!full).write(true).truncate(full).open(&path).ok()
}
