//! `kfs dev`: embedded broker, server and mount in one process, to try everything
//! with one command. The only place of this crate that knows the server.
//!
//! * Files and keys are in the data directory and stay; the broker's log is in
//!   memory and new at each start, which begins a new epoch.
//! * The first start adds a user of the caller's name with a device credential; a
//!   start that finds the user missing (killed before the first checkpoint) adds
//!   it again.
//! * The end is the mount's: drained, detached; then the server's: a checkpoint. If the
//!   server ends first, by a full disk for one, so does everything, and says why.

mod data;

use crate::client::{Client, ClientConfig, JournalConfig, Secret};
use crate::fs::{Fs, FsConfig};
use crate::mounted::{End, Mounted};
use crate::program::owners;
use crate::sys::attach;
use crate::sys::guardian::Guardian;
use crate::sys::options::{MountOptions, UMOUNT_TIMEOUT_DEFAULT};
use crate::sys::signals::Signals;
use anyhow::Context;
use data::Data;
use proto::log::Log;
use proto::log::embedded::EmbeddedBroker;
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::login::{DeviceCredential, DeviceSecret};
use proto::message::UserName;
use server::admin::Admin;
use server::admin::users::UserSpec;
use server::{Server, ServerConfig};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// The topics' prefix on the embedded broker, which `kfs` and `kfs-mount` take when none is given.
const PREFIX: &str = "kfs";
/// Everything is on this machine; what takes longer is broken.
const TIMEOUT: Duration = Duration::from_secs(30);
const JOURNAL_BYTES: u64 = 256 << 20;

#[derive(clap::Args)]
pub struct DevArgs {
    /// Where to mount: created if missing, refused if it has content.
    #[arg(default_value = "kfs-dev")]
    dir: PathBuf,
    /// Where files and keys are kept [default: $XDG_DATA_HOME/kfs/dev].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Runs until Ctrl-C, SIGTERM or an unmount. Call it before any thread exists.
pub fn run(args: DevArgs) -> anyhow::Result<()> {
    let dir = std::path::absolute(&args.dir)?;
    let data = Data::open(args.data)?;
    anyhow::ensure!(
        !data.dir().starts_with(&dir) && !dir.starts_with(data.dir()),
        "the directory {} and the data in {} must not lie within one another",
        dir.display(),
        data.dir().display()
    );
    let options = MountOptions::default();
    let dir = prepare(&dir, &options)?;
    if !data.server().join("server.toml").exists() {
        server::data::init(&data.server(), &data.recovery_key())?;
    }
    let mut guardian = Guardian::fork()?;
    crate::logs::start();

    let broker = EmbeddedBroker::start(PREFIX)?;
    let brokers = broker.bootstrap_servers().to_owned();
    let server = Server::start(ServerConfig::embedded(data.server()), connect(&brokers)?)?;
    server.ready()?;
    let (tell, server_failed) = tokio::sync::oneshot::channel();
    let waiter = server.waiter();
    std::thread::Builder::new().name("kfs-watch".into()).spawn(move || tell.send(waiter.failed()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let credential = ensure_user(&data, connect(&brokers)?).await?;
        let source = OsString::from(format!("{}@{brokers}", credential.user));
        let fs = open(&data, &brokers, credential.clone(), &options).await?;
        let mounted = Mounted::start(fs, &source, &dir, &options, UMOUNT_TIMEOUT_DEFAULT, &mut guardian)?;
        println!("{}", greeting(&data, &dir, &source, &brokers)?);
        let say = |line: &str| crate::logs::say(format_args!("kfs dev: {line}"));
        let lost = async {
            if let Ok(error) = server_failed.await {
                say(&format!("the server has ended: {error}"));
            }
        };
        anyhow::Ok(mounted.until_end(&mut signals, lost, say).await)
    });
    // Kernel requests that still wait have nobody to wait for.
    runtime.shutdown_background();
    let stopped = server.stop();
    if let End::Left(left) = ended? {
        for line in &left {
            crate::logs::say(format_args!("kfs dev: not sent, kept in the journal for the next start: {line}"));
        }
        anyhow::bail!("ended with {} things not sent; they are in {}", left.len(), data.journal().display());
    }
    Ok(stopped?)
}

/// Makes the directory if it is missing, and checks all that can be checked of it.
fn prepare(dir: &Path, options: &MountOptions) -> anyhow::Result<PathBuf> {
    match std::fs::symlink_metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        }
        // What is wrong with it is said below, a dead mount of ours is mended there.
        _ => {}
    }
    Ok(attach::preflight(dir, options)?)
}

fn connect(brokers: &str) -> anyhow::Result<Arc<dyn Log>> {
    Ok(Arc::new(KafkaLog::connect(KafkaSettings::new(brokers, PREFIX))?))
}

/// The caller's own name if it can be a user's, else `dev`.
fn user_name() -> UserName {
    let own = std::env::var("USER").ok().and_then(|name| UserName::new(&name).ok());
    own.unwrap_or_else(|| UserName::new("dev").expect("a constant and a valid name"))
}

/// The device credential of the user, who exists from now on.
async fn ensure_user(data: &Data, log: Arc<dyn Log>) -> anyhow::Result<DeviceCredential> {
    let file = data.credential();
    let credential = if file.exists() {
        DeviceCredential::read(&file)?
    } else {
        let credential = DeviceCredential {
            user: user_name().as_str().to_owned(),
            device: "dev".to_owned(),
            secret: DeviceSecret::random(),
            brokers: None,
        };
        credential.write(&file)?;
        credential
    };
    let user = UserName::new(&credential.user).with_context(|| format!("{} names no user", file.display()))?;
    let identity = server::data::Identity::read(&data.server(), None)?;
    let epoch = server::data::epoch(&data.server())?;
    let mut admin = Admin::connect(&identity, epoch, log, TIMEOUT).await?;
    if admin.user_list().await?.iter().any(|known| known.name == user) {
        return Ok(credential);
    }
    // Nobody needs to know it: the credential is what logs in.
    let password = Zeroizing::new(DeviceSecret::random().as_password().to_vec());
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let device = Some(credential.clone());
    admin.user_add(&[UserSpec { name: user, uid, gid, password, device }]).await?;
    Ok(credential)
}

async fn open(data: &Data, brokers: &str, credential: DeviceCredential, options: &MountOptions) -> anyhow::Result<Fs> {
    let config = ClientConfig {
        log: connect(brokers)?,
        brokers: brokers.to_owned(),
        prefix: PREFIX.to_owned(),
        user: UserName::new(&credential.user)?,
        secret: Secret::Device(credential),
        timeout: TIMEOUT,
        hard: false,
        journal: Some(JournalConfig { dir: data.journal(), max_bytes: JOURNAL_BYTES }),
        clock: proto::clock::Clock::default(),
    };
    let client = Client::connect(config).await?;
    let relatime = !options.noatime && !options.is_read_only();
    let fs_config = FsConfig { relatime, ..FsConfig::new(owners(options, client.owner_ids())) };
    let patience = client.patience();
    Ok(Fs::open_root(client, fs_config, Path::new("/"), &patience).await?)
}

/// What to tell once everything works: commands to paste as they are.
fn greeting(data: &Data, dir: &Path, source: &OsStr, brokers: &str) -> anyhow::Result<String> {
    let kfs_mount = quoted(data.link_program("kfs-mount")?.as_os_str());
    let kfs = quoted(data.link_program("kfs")?.as_os_str());
    let credential = quoted(data.credential().as_os_str());
    let mut second = dir.as_os_str().to_owned();
    second.push("-2");
    let (second, shown) = (quoted(&second), dir.display());
    Ok(format!(
        "kfs dev: {source} is mounted on {shown}
Files and keys are kept in {data}; the embedded broker's log is in memory, so this is for trying, not for keeping data.

Mount it a second time:
  mkdir -p {second} && {kfs_mount} -o credential={credential} {source} {second}
Work without a mount:
  {kfs} ls -l --brokers {brokers} --credential {credential} /
See what is pending:
  {kfs} status {dir}

Ctrl-C ends everything; the files are there again next time.",
        source = source.display(),
        data = data.dir().display(),
        dir = quoted(dir.as_os_str()),
    ))
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    match word.chars().all(plain) {
        true => word.into_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}
