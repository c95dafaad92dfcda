//! The command line of `kfs-server`: reads flags and configuration, and hands over to the library.
//!
//! Exit codes: 0 done, 1 failed with a reason on stderr, 2 wrong usage. Secrets come
//! from a terminal or a file, never from an argument, and are never logged.
#![allow(clippy::disallowed_methods)] // A device's id is drawn at random here, and waits are bounded by the clock.

mod check;
mod log;
mod quota;
mod servers;

use crate::admin::users::UserSpec;
use crate::admin::{self, Admin};
use crate::data::{self, DataError, Identity};
use crate::{NewLog, Server, ServerConfig, ServerError, Waiter};
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use proto::config::{Config, Options, Properties, ServerOptions, check_brokers, check_prefix, parse_duration};
use proto::keys::KeyPair;
use proto::log::kafka::{KafkaLog, KafkaSettings, create_topics, missing_topics, topic_commands};
use proto::log::{LogError, Topic};
use proto::login::{DeviceCredential, DeviceSecret, MAX_PASSWORD_BYTES};
use proto::message::UserName;
use proto::{Epoch, ServerId};
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

/// The server of kfs: stores what mounts ask for over Apache Kafka.
#[derive(Parser)]
#[command(name = "kfs-server", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a data directory: with a new cluster's keys, or for one more server of a cluster.
    Init {
        /// The directory to make; empty, or not there yet.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Where the recovery private key goes. Move it offline: it opens every user's content.
        #[arg(long, value_name = "FILE", default_value = "kfs-recovery.key", conflicts_with = "join")]
        recovery: PathBuf,
        /// Join the cluster of this data directory, or of a copy of its cluster.key, recovery.pub and server.toml.
        #[arg(long, value_name = "DIR")]
        join: Option<PathBuf>,
        /// The cluster key, if it is not in the directory to join.
        #[arg(long, value_name = "FILE", requires = "join")]
        key_file: Option<PathBuf>,
    },
    /// Serve until SIGTERM or Ctrl-C.
    Run {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Add, change, remove and list users, through a running server.
    #[command(subcommand)]
    User(User),
    /// Show every server: which one answers, how far each is behind, when it brought its state to disk;
    /// and how many sessions, locks, waiting requests and reserved bytes there are.
    Status {
        /// As JSON, with every partition.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// After topics were recreated, truncated or rolled back: go on from what this server has. What it has not
    /// applied is given up, and every other server has to take a snapshot of it.
    Epoch {
        /// The data directory of the server with the newest state; it must not be running.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Even if the log is what this server has applied: records are lost that it had not applied.
        #[arg(long)]
        anyway: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Take a snapshot of another server that runs, into the data directory of one that is new (`init --join`) or
    /// was away for so long that records which it needs are gone. What was in it is replaced.
    Bootstrap {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Wait no longer for a server that is gone for good, so that the log can be trimmed.
    /// A running one registers itself again; one that comes back later needs a snapshot.
    Deregister {
        /// As `status` shows it.
        #[arg(value_parser = servers::server_id)]
        server: ServerId,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Check everything that a server keeps, while it does not run: exit code 1 if anything is wrong.
    Check(check::Args),
    /// Show which topics are missing, create them, or print the commands that do.
    Topics {
        /// Create what is missing.
        #[arg(long, conflicts_with = "print")]
        create: bool,
        /// Print the commands for a Kafka administrator.
        #[arg(long)]
        print: bool,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Look at what stands in the log.
    #[command(subcommand)]
    Log(log::LogCommand),
}

#[derive(Subcommand)]
enum User {
    /// Add a user with an empty tree.
    Add {
        name: String,
        /// The number that root mounts show as owner of what the user's plain mounts make. Default: yours.
        #[arg(long)]
        uid: Option<u32>,
        /// Likewise the group. Default: yours.
        #[arg(long)]
        gid: Option<u32>,
        /// Also write a device credential, for mounts that nobody types a password for.
        #[arg(long, value_name = "FILE")]
        credential: Option<PathBuf>,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Give a user another password. It needs the recovery key: the old password
    /// alone opens the user's private key, so a new one is made, and every namespace
    /// key is sealed to it anew. The user's sessions and device credentials end.
    Passwd {
        name: String,
        /// The recovery private key that `init` wrote.
        #[arg(long, value_name = "FILE")]
        recovery: PathBuf,
        #[command(flatten)]
        password: Password,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Let a user log in no more, and end the user's sessions. The content stays.
    Remove {
        name: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Show what a user's namespace holds and may hold, or limit it. Content that is there stays, and what is
    /// kept of earlier versions does not count.
    Quota {
        name: String,
        /// Bytes of content, such as 500M or 10G; `none` for no limit.
        #[arg(long, value_name = "SIZE", value_parser = quota::bytes)]
        bytes: Option<quota::Limit>,
        /// Files, directories and symlinks together; `none` for no limit.
        #[arg(long, value_name = "N", value_parser = quota::inodes)]
        inodes: Option<quota::Limit>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// List all users.
    List {
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Add the users of a file with lines `name:password`, all or none.
    Import {
        /// `-` for standard input.
        file: PathBuf,
        /// As for `user add`, for all of them.
        #[arg(long)]
        uid: Option<u32>,
        #[arg(long)]
        gid: Option<u32>,
        #[command(flatten)]
        cluster: Cluster,
    },
}

#[derive(Args)]
struct Password {
    /// Read the password from this file's first line, `-` for standard input. Without it: asked for.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Where the cluster is, for every command but `init`.
#[derive(Args)]
struct Cluster {
    /// Kafka, as HOST:PORT[,HOST:PORT...]. [env: KFS_BROKERS]
    #[arg(long, value_parser = checked(check_brokers))]
    brokers: Option<String>,
    /// The data directory.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Read this file instead of /etc/kfs/config.toml and ~/.config/kfs/config.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The topics are named PREFIX.requests and so on. Default: kfs.
    #[arg(long, value_parser = checked(check_prefix))]
    prefix: Option<String>,
    /// The cluster key, if it is not in the data directory.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How long to wait for Kafka and for a server, such as 30s or 2m.
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// A check of proto's as clap wants to see it.
fn checked<E: std::fmt::Display>(
    check: fn(&str) -> Result<(), E>,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync {
    move |text| check(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

/// Runs `kfs-server` with these arguments, the program's name first. Ends the
/// process by itself on wrong usage and after `--help`.
pub fn main(args: Vec<OsString>) -> ExitCode {
    proto::memory::give_back_large_buffers();
    let cli = Cli::parse_from(args);
    let level = if matches!(cli.command, Command::Run { .. }) { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("KFS_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // Where stderr is a file on a full disk, a line is lost and not the server.
        .log_internal_errors(false)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kfs-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { data, recovery, join: None, .. } => init(&data, &recovery),
        Command::Init { data, join: Some(from), key_file, .. } => servers::join(&data, &from, key_file.as_deref()),
        Command::Run { cluster } => serve(&cluster),
        Command::Check(args) => check::run(&args),
        Command::Topics { create, print, cluster } => topics(create, print, &cluster),
        Command::User(user) => users(user),
        Command::Log(command) => log::run(command),
        Command::Epoch { from, anyway, cluster } => servers::epoch(from, anyway, cluster),
        Command::Bootstrap { cluster } => servers::bootstrap(&cluster),
        Command::Status { json, cluster } => servers::status(json, &cluster),
        Command::Deregister { server, cluster } => servers::deregister(server, &cluster),
    }
}

fn init(data: &Path, recovery: &Path) -> anyhow::Result<()> {
    let identity = data::init(data, recovery)?;
    println!("initialised {} for the cluster {}", data.display(), identity.cluster_key.id());
    println!(
        "the recovery private key is in {}: move it offline; it gives back content when a password is lost",
        recovery.display()
    );
    println!("next: kfs-server run --brokers HOST:PORT --data {}", data.display());
    Ok(())
}

/// What a command works with once flags, files and environment are put together.
struct Setting {
    kafka: KafkaSettings,
    data: PathBuf,
    key_file: Option<PathBuf>,
}

impl Cluster {
    fn config(&self) -> anyhow::Result<Config> {
        let options = Options {
            config: self.config.clone(),
            brokers: self.brokers.clone(),
            prefix: self.prefix.clone(),
            kafka: Properties::default(),
            server: ServerOptions { data: self.data.clone(), key_file: self.key_file.clone() },
            ..Options::default()
        };
        Ok(Config::load(&options)?)
    }

    fn kafka(&self, config: &Config) -> anyhow::Result<KafkaSettings> {
        let mut kafka = config.kafka_settings()?;
        if let Some(timeout) = self.timeout {
            kafka.timeout = timeout;
        }
        Ok(kafka)
    }

    fn setting(&self) -> anyhow::Result<Setting> {
        let config = self.config()?;
        let kafka = self.kafka(&config)?;
        let Some(data) = config.server.data else {
            bail!("no data directory is given; name one with --data DIR, or `data` in [server] of the configuration");
        };
        Ok(Setting { kafka, data, key_file: config.server.key_file })
    }
}

fn serve(cluster: &Cluster) -> anyhow::Result<()> {
    let setting = cluster.setting()?;
    let server = start(&setting, NewLog::Refuse)?;
    wait_for_end(server, &setting.kafka)
}

fn start(setting: &Setting, on_new_log: NewLog) -> anyhow::Result<Server> {
    // Before Kafka is asked anything: what is wrong here is known at once.
    Identity::read(&setting.data, setting.key_file.as_deref())?;
    make_topics(&setting.kafka)?;
    let log = KafkaLog::connect(setting.kafka.clone())?;
    let embedded = log.is_embedded();
    let mut config = ServerConfig::new(&setting.data);
    config.key_file = setting.key_file.clone();
    config.on_new_log = on_new_log;
    config.volatile = embedded;
    config.append_time = !embedded;
    Ok(Server::start(config, Arc::new(log))?)
}

/// Creates what is missing, or tells who can.
fn make_topics(kafka: &KafkaSettings) -> anyhow::Result<()> {
    match create_topics(kafka) {
        Ok(created) => {
            if !created.topics.is_empty() {
                let names: Vec<_> = created.topics.iter().map(|topic| kafka.topic_name(*topic)).collect();
                tracing::info!("created {} with replication {}", names.join(", "), created.replication);
            }
            if let Some(warning) = created.warning {
                tracing::warn!("{warning}");
            }
            Ok(())
        }
        Err(error @ LogError::Refused { .. }) => {
            let commands = topic_commands(kafka).join("\n  ");
            bail!("{error}\nthe topics are missing; have them created with\n  {commands}");
        }
        Err(error) => Err(error.into()),
    }
}

fn wait_for_end(server: Server, kafka: &KafkaSettings) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let waiter = server.waiter();
    let brokers = kafka.brokers.clone();
    let (failed, failure) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("kfs-watch".into()).spawn(move || {
        let error = watch(&waiter, &brokers);
        // Nobody listens any more when the server was told to stop.
        let _ = failed.send(error);
    })?;
    let failure = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok::<_, std::io::Error>(None),
            _ = interrupt.recv() => Ok(None),
            failure = failure => Ok(failure.ok()),
        }
    })?;
    match failure {
        Some(error) => {
            // What it was is known; a second word about it would only confuse.
            let _ = server.stop();
            Err(error.into())
        }
        None => {
            tracing::info!("stopping: checkpointing everything applied");
            server.stop()?;
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Says when the server is ready, then waits for what ends it.
fn watch(waiter: &Waiter, brokers: &str) -> ServerError {
    match waiter.ready() {
        Ok(()) => {
            tracing::info!("ready: serving over {brokers}");
            waiter.failed()
        }
        Err(error) => error,
    }
}

fn topics(create: bool, print: bool, cluster: &Cluster) -> anyhow::Result<()> {
    let kafka = cluster.kafka(&cluster.config()?)?;
    if print {
        for command in topic_commands(&kafka) {
            println!("{command}");
        }
        return Ok(());
    }
    if create {
        let created = create_topics(&kafka)?;
        for topic in &created.topics {
            println!("created {} with {} partitions", kafka.topic_name(*topic), topic.partitions());
        }
        if created.topics.is_empty() {
            println!("nothing to create: all topics are there");
        }
        if let Some(warning) = created.warning {
            eprintln!("kfs-server: warning: {warning}");
        }
        return Ok(());
    }
    let missing = missing_topics(&kafka)?;
    for topic in Topic::ALL {
        let state = if missing.contains(&topic) { "missing" } else { "there" };
        println!("{:<24} {state}", kafka.topic_name(topic));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} topics are missing; create them with `kfs-server topics --create`", missing.len());
}

fn users(user: User) -> anyhow::Result<()> {
    match user {
        User::Add { name, uid, gid, credential, password, cluster } => {
            let setting = cluster.setting()?;
            let name = UserName::new(&name)?;
            let (uid, gid) = owner(uid, gid);
            let password = read_password(password.password_file.as_deref(), &format!("New password for {name}"))?;
            let device = credential.as_ref().map(|_| new_device(&name, &setting.kafka.brokers));
            let spec = UserSpec { name: name.clone(), uid, gid, password, device };
            connected(&setting, async |mut admin| {
                if let (Some(file), Some(device)) = (&credential, &spec.device) {
                    // First: a credential that cannot be written should not be registered.
                    device.write(file)?;
                }
                let added = admin.user_add(std::slice::from_ref(&spec)).await;
                if added.is_err()
                    && let Some(file) = &credential
                {
                    let _ = std::fs::remove_file(file);
                }
                Ok(added?)
            })?;
            println!("added the user {name}");
            if let Some(file) = credential {
                println!("its device credential is in {}", file.display());
            }
            Ok(())
        }
        User::Passwd { name, recovery, password, cluster } => {
            let setting = cluster.setting()?;
            let name = UserName::new(&name)?;
            let pair = KeyPair::read_recovery(&recovery)?;
            let password = read_password(password.password_file.as_deref(), &format!("New password for {name}"))?;
            connected(&setting, async |mut admin| Ok(admin.user_passwd(&name, &password, &pair).await?))?;
            println!("changed the password of {name}; its sessions and device credentials have ended");
            Ok(())
        }
        User::Remove { name, cluster } => {
            let name = UserName::new(&name)?;
            connected(&cluster.setting()?, async |mut admin| Ok(admin.user_remove(&name).await?))?;
            println!("removed the user {name}; the content stays");
            Ok(())
        }
        User::List { cluster } => {
            let (users, usages) = connected(&cluster.setting()?, async |mut admin| {
                let users = admin.user_list().await?;
                let usages = admin.usages(&users).await?;
                Ok((users, usages))
            })?;
            println!(
                "{:<32} {:>7} {:>7} {:>9} {:>15} {:>15}  DEVICES",
                "NAME", "UID", "GID", "NAMESPACE", "BYTES", "QUOTA"
            );
            for user in users {
                let devices = user.devices.join(", ");
                println!(
                    "{:<32} {:>7} {:>7} {:>9} {:>15} {:>15}  {devices}",
                    user.name.as_str(),
                    user.uid,
                    user.gid,
                    user.namespace.0,
                    usages.get(&user.namespace).map_or(0, |usage| usage.bytes),
                    quota::shown(user.quota.bytes),
                );
            }
            Ok(())
        }
        User::Quota { name, bytes, inodes, cluster } => quota::run(&name, bytes, inodes, &cluster),
        User::Import { file, uid, gid, cluster } => {
            let text = read_all(&file)?;
            let (uid, gid) = owner(uid, gid);
            let name = file.display().to_string();
            let setting = cluster.setting()?;
            let added = connected(&setting, async |mut admin| Ok(admin.user_import(&name, &text, uid, gid).await?))?;
            println!("added {added} users");
            Ok(())
        }
    }
}

/// Runs a command against whichever server answers.
fn connected<T>(setting: &Setting, command: impl AsyncFnOnce(Admin) -> anyhow::Result<T>) -> anyhow::Result<T> {
    connected_by(setting, Arc::new(KafkaLog::connect(setting.kafka.clone())?), command)
}

fn connected_by<T>(
    setting: &Setting,
    log: Arc<KafkaLog>,
    command: impl AsyncFnOnce(Admin) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let identity = Identity::read(&setting.data, setting.key_file.as_deref())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let epoch = epoch_of(setting, &identity, log.as_ref()).await?;
        let admin = Admin::connect(&identity, epoch, log, setting.kafka.timeout).await?;
        command(admin).await
    })
}

/// The cluster's epoch: from the log, where servers speak of it, so that a copy of the keys
/// is enough; else as the directory's own server noted it. A server that has just been
/// started may be about to write it.
async fn epoch_of(setting: &Setting, identity: &Identity, log: &KafkaLog) -> anyhow::Result<Epoch> {
    const LOOK_AGAIN: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + setting.kafka.timeout;
    loop {
        if let Some(epoch) = admin::epoch_of(&identity.cluster_key, log).await? {
            return Ok(epoch);
        }
        match data::epoch(&setting.data) {
            Err(DataError::NoEpoch { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            known => return Ok(known?),
        }
    }
}

fn owner(uid: Option<u32>, gid: Option<u32>) -> (u32, u32) {
    let (mine, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    (uid.unwrap_or(mine), gid.unwrap_or(group))
}

fn new_device(name: &UserName, brokers: &str) -> DeviceCredential {
    // Random, so that a user's devices never meet; the file's owner knows it by the file.
    let id: [u8; 4] = proto::seal::random();
    let device = format!("device-{:08x}", u32::from_le_bytes(id));
    DeviceCredential {
        user: name.as_str().to_owned(),
        device,
        secret: DeviceSecret::random(),
        brokers: Some(brokers.to_owned()),
    }
}

/// A password from a file's first line, or asked for twice on the terminal.
fn read_password(file: Option<&Path>, prompt: &str) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let password = match file {
        Some(file) => {
            let mut line = Zeroizing::new(Vec::new());
            let bound = MAX_PASSWORD_BYTES as u64 + 2;
            if file == Path::new("-") {
                std::io::stdin().lock().take(bound).read_until(b'\n', &mut line)
            } else {
                std::fs::File::open(file)
                    .and_then(|opened| std::io::BufReader::new(opened.take(bound)).read_until(b'\n', &mut line))
            }
            .with_context(|| format!("cannot read the password from {}", file.display()))?;
            while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                line.pop();
            }
            line
        }
        None => {
            let ask = |prompt: &str| rpassword::prompt_password(prompt).map(Zeroizing::new);
            let first = ask(&format!("{prompt}: "))
                .context("cannot ask for the password; give it with --password-file FILE, or - for standard input")?;
            if *first != *ask("Again: ")? {
                bail!("the two passwords differ");
            }
            Zeroizing::new(first.as_bytes().to_vec())
        }
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    if password.len() > MAX_PASSWORD_BYTES {
        bail!("a password has at most {MAX_PASSWORD_BYTES} bytes");
    }
    Ok(password)
}

fn read_all(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let read = || {
        let mut text = Zeroizing::new(String::new());
        if file == Path::new("-") {
            std::io::stdin().lock().read_to_string(&mut text)?;
        } else {
            std::fs::File::open(file)?.read_to_string(&mut text)?;
        }
        Ok::<_, std::io::Error>(text)
    };
    read().with_context(|| format!("cannot read {}", file.display()))
}
