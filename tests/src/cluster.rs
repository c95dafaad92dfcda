//! A cluster as users run it: a broker, a `kfs-server` process or several (`servers.rs`),
//! users, and any number of `kfs-mount` processes, in directories and on ports of its own.
//!
//! Programs find it by `KFS_CONFIG`; what they keep outside of it (journals,
//! state) goes into its directory by the XDG variables and `HOME`.

use crate::broker::Broker;
use crate::command::{self, Finished};
use crate::process::Process;
use crate::programs::Programs;
use crate::run::{self, Scratch};
use anyhow::{Context, Result, bail, ensure};
use mount::client::{Client, ClientConfig, Secret};
use proto::clock::Clock;
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::message::UserName;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a program may take to be ready, on a machine that does ten other things.
pub const READY_BOUND: Duration = Duration::from_secs(60);
/// How long a command may take, an argon2 of a debug build included.
pub const COMMAND_BOUND: Duration = Duration::from_secs(90);

pub struct Cluster {
    pub broker: Broker,
    programs: Programs,
    prefix: String,
    // Before the directory, so that they have ended when that goes. The first has made the cluster.
    pub(crate) servers: Vec<Option<Process>>,
    dir: Scratch,
}

impl Cluster {
    /// A cluster with a server that is ready. `executable` must [`crate::programs::dispatch`].
    pub fn start(executable: &str) -> Result<Cluster> {
        Cluster::start_with(executable, Broker::shared)
    }

    /// The same on a broker that the test may stop.
    pub fn start_with_own_broker(executable: &str) -> Result<Cluster> {
        Cluster::start_with(executable, Broker::own)
    }

    /// The same on the broker that `broker` gives.
    pub fn start_with(executable: &str, broker: impl FnOnce(&str) -> Result<Broker>) -> Result<Cluster> {
        let mut cluster = Cluster::bare(executable, broker)?;
        let recovery = cluster.dir.join("recovery.key");
        cluster.server_command(&["init"]).arg("--recovery").arg(recovery).finish()?;
        cluster.start_server()?;
        Ok(cluster)
    }

    /// A broker and a configuration; no server, and no data directory yet.
    pub fn bare(executable: &str, broker: impl FnOnce(&str) -> Result<Broker>) -> Result<Cluster> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let prefix = format!("t{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let broker = broker(&prefix)?;
        let programs = Programs::install(executable)?;
        let dir = Scratch::new("cluster");
        for name in ["home", "state", "share", "run", "cache", "mnt"] {
            std::fs::create_dir(dir.join(name))?;
        }
        // systemd's rule for XDG_RUNTIME_DIR; short, since sockets' paths have at most 107 bytes.
        std::fs::set_permissions(dir.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let mut config = format!("brokers = {:?}\nprefix = {prefix:?}\n[kafka]\n", broker.bootstrap());
        for (name, value) in broker.client_properties() {
            config += &format!("{name:?} = {value:?}\n");
        }
        std::fs::write(dir.join("config.toml"), config)?;
        Ok(Cluster { broker, programs, prefix, servers: vec![None], dir })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The server's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// A program of ours, told where this cluster is.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.programs.command(program);
        self.surround(&mut command);
        command
    }

    /// Sets what makes any program (a shell, mount(8)) work with this cluster.
    pub fn surround(&self, command: &mut Command) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.programs.dir().display()))
            .env("KFS_CONFIG", self.dir.join("config.toml"))
            .env("HOME", self.dir.join("home"))
            .env("XDG_STATE_HOME", self.dir.join("state"))
            .env("XDG_DATA_HOME", self.dir.join("share"))
            .env("XDG_RUNTIME_DIR", self.dir.join("run"))
            .env("XDG_CACHE_HOME", self.dir.join("cache"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("KFS_BROKERS")
            .env_remove("KFS_USER")
            .env_remove("KFS_PASSWORD_FILE");
    }

    /// `kfs-server ARGS --data DATA`.
    pub fn server_command(&self, args: &[&str]) -> Invocation {
        let mut command = self.command("kfs-server");
        command.args(args).arg("--data").arg(self.data());
        Invocation { command, input: String::new() }
    }

    /// `kfs ARGS`, as a user.
    pub fn kfs(&self, user: &str, args: &[&str]) -> Invocation {
        let mut command = self.command("kfs");
        command.args(args).env("KFS_USER", user).env("KFS_PASSWORD_FILE", self.password_file(user));
        Invocation { command, input: String::new() }
    }

    /// The password of every user of a test is made from the name.
    pub fn password(user: &str) -> String {
        format!("the password of {user}")
    }

    pub fn password_file(&self, user: &str) -> PathBuf {
        self.dir.join(format!("{user}.password"))
    }

    /// Adds a user whose password stands in [`Cluster::password_file`].
    pub fn user_add(&self, user: &str) -> Result<()> {
        let file = self.password_file(user);
        std::fs::write(&file, format!("{}\n", Cluster::password(user)))?;
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        self.server_command(&["user", "add", user]).arg("--password-file").arg(&file).finish()?;
        Ok(())
    }

    /// An empty directory to mount on.
    pub fn mountpoint(&self) -> Result<PathBuf> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let dir = self.dir.join(format!("mnt/{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// The user's namespace by the client library, without a mount and without a journal.
    pub async fn client(&self, user: &str) -> Result<Client> {
        let settings = KafkaSettings::new(self.broker.bootstrap(), self.prefix());
        let log = tokio::task::spawn_blocking(|| KafkaLog::connect(settings)).await??;
        let config = ClientConfig {
            log: Arc::new(log),
            brokers: self.broker.bootstrap(),
            prefix: self.prefix().to_owned(),
            user: UserName::new(user)?,
            secret: Secret::Password(Cluster::password(user).into()),
            timeout: COMMAND_BOUND,
            hard: false,
            journal: None,
            clock: Clock::default(),
        };
        Ok(Client::connect(config).await?)
    }

    /// `USER@HOST:PORT`
    pub fn source(&self, user: &str) -> String {
        format!("{user}@{}", self.broker.bootstrap_of_mounts())
    }

    /// `kfs-mount -o OPTIONS USER@BROKERS DIR` with the user's password, not yet run.
    pub fn mount_command(&self, user: &str, options: &str, dir: &Path) -> Invocation {
        let comma = if options.is_empty() { "" } else { "," };
        let mut command = self.command("kfs-mount");
        command.arg("-o").arg(format!("password_file={}{comma}{options}", self.password_file(user).display()));
        command.arg(self.source(user)).arg(dir);
        Invocation { command, input: String::new() }
    }

    /// Mounts the user's namespace on a directory of its own.
    pub fn mount(&self, user: &str) -> Result<Mount> {
        self.mount_with(user, "")
    }

    /// The same with more options for `-o`.
    pub fn mount_with(&self, user: &str, options: &str) -> Result<Mount> {
        let dir = self.mountpoint()?;
        Mount::start(self.mount_command(user, options, &dir), dir)
    }

    /// Mounts once more where an earlier mount was.
    pub fn mount_at(&self, user: &str, options: &str, dir: &Path) -> Result<Mount> {
        Mount::start(self.mount_command(user, options, dir), dir.to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            crate::process::show_end("the mounts", &self.dir.join("mounts.log"));
            return;
        }
        // However a test ends its servers, what they keep must be sound.
        self.check().unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// A command of ours before it runs.
pub struct Invocation {
    pub command: Command,
    input: String,
}

impl Invocation {
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Invocation {
        self.command.arg(arg);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Invocation {
        self.command.env(name, value);
        self
    }

    pub fn input(mut self, input: &str) -> Invocation {
        input.clone_into(&mut self.input);
        self
    }

    /// Runs it to its end, whatever that is.
    pub fn run(mut self) -> Result<Finished> {
        command::run_with(&mut self.command, &self.input, COMMAND_BOUND)
    }

    /// Runs it; any exit code but 0 is an error.
    pub fn finish(self) -> Result<Finished> {
        let shown = format!("{:?}", self.command);
        self.run()?.done().with_context(|| shown)
    }

    /// Runs it; it must fail with this exit code and one line on stderr, which is returned.
    pub fn refused(self, code: i32) -> Result<String> {
        let shown = format!("{:?}", self.command);
        let finished = self.run()?;
        ensure!(finished.code() == code, "{shown} ended with {}, not {code}: {}", finished.status, finished.stderr);
        let line = reason(&finished.stderr).with_context(|| shown.clone())?;
        ensure!(finished.stdout.is_empty(), "{shown} printed {:?} on stdout", finished.text());
        Ok(line)
    }
}

/// The one line that says why a program refused; only log lines may stand before it.
pub fn reason(stderr: &str) -> Result<String> {
    let is_log = |line: &&str| [" INFO ", " WARN ", " ERROR "].iter().any(|level| line.contains(level));
    let lines: Vec<&str> = stderr.lines().filter(|line| !is_log(line)).collect();
    match lines.as_slice() {
        [line] if !line.is_empty() => Ok((*line).to_owned()),
        _ => bail!("it printed {stderr:?}, not one line that says why"),
    }
}

/// One `kfs-mount` in the background; killed and detached on drop.
pub struct Mount {
    dir: PathBuf,
    pid: u32,
}

/// How long a mount may take to end once it has been unmounted.
const END_BOUND: Duration = Duration::from_secs(60);

impl Mount {
    /// Runs `kfs-mount`, which returns when the directory is usable.
    pub fn start(invocation: Invocation, dir: PathBuf) -> Result<Mount> {
        invocation.finish()?;
        ensure!(is_mounted(&dir), "kfs-mount has returned, but nothing is mounted at {dir:?}");
        let pid = daemon_of(&dir).with_context(|| format!("no process serves {dir:?}"))?;
        Ok(Mount { dir, pid })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// kill -9 of the daemon; waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL);
        self.wait_gone()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call on a process that serves this mount, hence is one of this run.
        unsafe { libc::kill(self.pid as libc::pid_t, signal) };
    }

    /// Waits until the daemon has ended.
    pub fn wait_gone(&self) -> Result<()> {
        run::wait_for(&format!("the end of the daemon of {:?}", self.dir), END_BOUND, || {
            (!is_running(self.pid)).then_some(())
        })
    }

    /// An orderly unmount; waits until the daemon has ended too.
    pub fn unmount(&self) -> Result<()> {
        let mut command = if is_root() { Command::new("umount") } else { Command::new("fusermount3") };
        if !is_root() {
            command.arg("-u");
        }
        command::run(command.arg(&self.dir), END_BOUND)?.done()?;
        self.wait_gone()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if is_running(self.pid) {
            self.signal(libc::SIGKILL);
            let _ = self.wait_gone();
        }
        if is_mounted(&self.dir) {
            let mut command = if is_root() { Command::new("umount") } else { Command::new("fusermount3") };
            command.args(if is_root() { &["-l"][..] } else { &["-u", "-z"] });
            let _ = command::run(command.arg(&self.dir), Duration::from_secs(10));
        }
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a kfs mount is visible at `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    let text = std::fs::read("/proc/self/mountinfo").expect("/proc is mounted");
    // Our own directories need no escapes in mountinfo.
    text.split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b' ').nth(4) == Some(dir.as_os_str().as_bytes()))
}

fn is_running(pid: u32) -> bool {
    // A zombie has ended, whoever is to wait for it.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X')))
}

/// The run's processes whose command line ends in this mountpoint: the daemon
/// first; its guardian, if it shows the same command line, is its child or parent
/// without a descriptor of /dev/fuse.
fn daemon_of(dir: &Path) -> Option<u32> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mentions = arguments.split(|byte| *byte == 0).any(|argument| argument == dir.as_os_str().as_bytes());
        if !mentions {
            continue;
        }
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        if descriptors.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/fuse"))) {
            return Some(pid);
        }
    }
    None
}
