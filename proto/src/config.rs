//! Configuration of all programs, in one place.
//!
//! In rising order: `/etc/kfs/config.toml`, `kfs/config.toml` in the user's
//! configuration directory (or only the file named by `--config` or `KFS_CONFIG`),
//! the environment, the command line. Each of these is a layer of [`Options`];
//! a later one replaces what it names and leaves the rest. What is wrong is named
//! with its file, line and key.

mod file;
#[cfg(test)]
mod tests;
mod value;

use crate::log::kafka::{KafkaSettings, is_secret};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use value::{check_brokers, check_prefix, check_user, parse_duration, parse_size};

/// The file for everyone on the machine.
pub const SYSTEM_FILE: &str = "/etc/kfs/config.toml";

/// One layer: whatever was said at one place. A program fills one from its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Only from the command line: read this file instead of the usual ones.
    pub config: Option<PathBuf>,
    pub brokers: Option<String>,
    pub prefix: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub credential: Option<PathBuf>,
    pub kafka: Properties,
    pub server: ServerOptions,
    pub mount: MountOptions,
}

/// The table `[server]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerOptions {
    pub data: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// The table `[mount]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    pub timeout: Option<Duration>,
    pub hard: Option<bool>,
    pub cache: Option<u64>,
    pub cache_dir: Option<PathBuf>,
    pub cache_dir_size: Option<u64>,
    pub journal: Option<u64>,
    pub umount_timeout: Option<Duration>,
}

/// Kafka client properties. Passwords, keys and tokens do not show in `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().map(|(key, value)| (key, if is_secret(key) { "***" } else { value.as_str() }));
        f.debug_map().entries(shown).finish()
    }
}

/// What holds after all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `HOST:PORT[,HOST:PORT...]`
    pub brokers: Option<String>,
    /// The cluster: its topics are named `<prefix>.<suffix>`. Default `kfs`.
    pub prefix: String,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    /// A device credential, for logins without a password.
    pub credential: Option<PathBuf>,
    /// Handed to every Kafka client unchanged.
    pub kafka: Properties,
    pub server: ServerConfig,
    pub mount: MountConfig,
    /// The files that were read, in rising order.
    pub files: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The data directory.
    pub data: Option<PathBuf>,
    /// The cluster key, if it is not in the data directory.
    pub key_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// How long an operation waits for Kafka and the server. Default 30 s.
    pub timeout: Duration,
    /// Wait for ever instead.
    pub hard: bool,
    /// Bytes of content cached in memory. Default 256 MiB.
    pub cache: u64,
    /// Where downloaded content is kept on disk, if it is.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of that. Default 4 GiB.
    pub cache_dir_size: u64,
    /// Bytes that the journal may take; 0 switches it off. Default 256 MiB.
    pub journal: u64,
    /// How long an unmount waits for what is pending. Default 60 s.
    pub umount_timeout: Duration,
}

/// Something is wrong with the configuration; the text is one line for the user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {file}: {reason}")]
    Unreadable { file: PathBuf, reason: String },
    #[error("{file}:{line}: {what}")]
    InFile { file: PathBuf, line: usize, what: String },
    #[error("environment variable {variable}: {what}")]
    InEnvironment { variable: &'static str, what: String },
    #[error("no {what} is given; {how}")]
    Missing { what: &'static str, how: &'static str },
}

impl Config {
    /// Reads all layers; `flags` is the last one.
    pub fn load(flags: &Options) -> Result<Self, ConfigError> {
        let variable = |name: &str| std::env::var_os(name);
        Self::load_in(&Surroundings { system_file: Path::new(SYSTEM_FILE), variable: &variable }, flags)
    }

    fn load_in(around: &Surroundings<'_>, flags: &Options) -> Result<Self, ConfigError> {
        let environment = around.options()?;
        let mut layers = Options::default();
        let mut files = Vec::new();
        match flags.config.as_ref().or(environment.config.as_ref()) {
            Some(named) => {
                layers.replace_by(file::read(named)?);
                files.push(named.clone());
            }
            None => {
                for usual in std::iter::once(around.system_file.to_owned()).chain(around.user_file()) {
                    match file::read(&usual) {
                        Ok(layer) => {
                            layers.replace_by(layer);
                            files.push(usual);
                        }
                        Err(error) if !is_there_for_us(&usual) => {
                            tracing::debug!("passed over: {error}");
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        layers.replace_by(environment);
        layers.replace_by(flags.clone());
        Ok(layers.complete(files))
    }

    /// The brokers, or how to name them.
    pub fn brokers(&self) -> Result<&str, ConfigError> {
        self.brokers.as_deref().ok_or(ConfigError::Missing {
            what: "Kafka broker",
            how: "name one with --brokers HOST:PORT, KFS_BROKERS, or `brokers` in the configuration file",
        })
    }

    /// What it takes to reach the cluster.
    pub fn kafka_settings(&self) -> Result<KafkaSettings, ConfigError> {
        Ok(KafkaSettings {
            brokers: self.brokers()?.to_owned(),
            prefix: self.prefix.clone(),
            properties: self.kafka.0.clone(),
            timeout: self.mount.timeout,
        })
    }
}

/// A usual file that is absent, or closed to us (an administrator's, with a
/// password), is passed over; a named one is not.
fn is_there_for_us(file: &Path) -> bool {
    match std::fs::File::open(file) {
        Ok(_) => true,
        Err(error) => {
            !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied)
        }
    }
}

impl Options {
    /// Takes over everything that `later` says.
    pub fn replace_by(&mut self, later: Options) {
        fn take<T>(mine: &mut Option<T>, later: Option<T>) {
            if later.is_some() {
                *mine = later;
            }
        }
        let Options { config, brokers, prefix, user, password_file, credential, kafka, server, mount } = later;
        take(&mut self.config, config);
        take(&mut self.brokers, brokers);
        take(&mut self.prefix, prefix);
        take(&mut self.user, user);
        // The two ways to log in exclude each other, so a later one ends an earlier other.
        if password_file.is_some() != credential.is_some() {
            self.password_file = None;
            self.credential = None;
        }
        take(&mut self.password_file, password_file);
        take(&mut self.credential, credential);
        self.kafka.0.extend(kafka.0);
        let ServerOptions { data, key_file } = server;
        take(&mut self.server.data, data);
        take(&mut self.server.key_file, key_file);
        let MountOptions { timeout, hard, cache, cache_dir, cache_dir_size, journal, umount_timeout } = mount;
        take(&mut self.mount.timeout, timeout);
        take(&mut self.mount.hard, hard);
        take(&mut self.mount.cache, cache);
        take(&mut self.mount.cache_dir, cache_dir);
        take(&mut self.mount.cache_dir_size, cache_dir_size);
        take(&mut self.mount.journal, journal);
        take(&mut self.mount.umount_timeout, umount_timeout);
    }

    fn complete(self, files: Vec<PathBuf>) -> Config {
        const MIB: u64 = 1 << 20;
        Config {
            brokers: self.brokers,
            prefix: self.prefix.unwrap_or_else(|| "kfs".to_owned()),
            user: self.user,
            password_file: self.password_file,
            credential: self.credential,
            kafka: self.kafka,
            server: ServerConfig { data: self.server.data, key_file: self.server.key_file },
            mount: MountConfig {
                timeout: self.mount.timeout.unwrap_or(Duration::from_secs(30)),
                hard: self.mount.hard.unwrap_or(false),
                cache: self.mount.cache.unwrap_or(256 * MIB),
                cache_dir: self.mount.cache_dir,
                cache_dir_size: self.mount.cache_dir_size.unwrap_or(4096 * MIB),
                journal: self.mount.journal.unwrap_or(256 * MIB),
                umount_timeout: self.mount.umount_timeout.unwrap_or(Duration::from_secs(60)),
            },
            files,
        }
    }
}

/// Where the layers come from; tests have their own.
struct Surroundings<'a> {
    system_file: &'a Path,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Surroundings<'_> {
    /// An empty variable counts as absent.
    fn get(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn text(
        &self,
        variable: &'static str,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Result<Option<String>, ConfigError> {
        let Some(value) = self.get(variable) else { return Ok(None) };
        let wrong = |what| ConfigError::InEnvironment { variable, what };
        let value = value.into_string().map_err(|_| wrong("not valid UTF-8".to_owned()))?;
        check(&value).map_err(wrong)?;
        Ok(Some(value))
    }

    fn options(&self) -> Result<Options, ConfigError> {
        Ok(Options {
            config: self.get("KFS_CONFIG").map(PathBuf::from),
            brokers: self.text("KFS_BROKERS", check_brokers)?,
            user: self.text("KFS_USER", check_user)?,
            password_file: self.get("KFS_PASSWORD_FILE").map(PathBuf::from),
            ..Options::default()
        })
    }

    /// The user's own file. A relative XDG_CONFIG_HOME is invalid and ignored, as its specification says.
    fn user_file(&self) -> Option<PathBuf> {
        let xdg = self.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let directory = xdg.or_else(|| Some(PathBuf::from(self.get("HOME")?).join(".config")))?;
        Some(directory.join("kfs/config.toml"))
    }
}
