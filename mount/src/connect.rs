//! From what a person said (flags, environment, configuration files) to a
//! logged-in [`Client`]: the same for `kfs`, `kfs-mount` and `kfs dev`.

use crate::client::{Client, ClientConfig, JournalConfig, Secret};
use anyhow::Context;
use proto::config::{Config, Options};
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::login::DeviceCredential;
use proto::message::UserName;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Who one is and where the brokers are; whatever is not given comes from the
/// environment, then from the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Access {
    /// Kafka brokers, HOST:PORT[,HOST:PORT].
    #[arg(long, env = "KFS_BROKERS", value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// The user to log in as.
    #[arg(long, env = "KFS_USER")]
    pub user: Option<String>,
    /// A file with the password on its first line, or - for stdin.
    #[arg(long, env = "KFS_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// A device credential, as `kfs-server user add --credential` writes it.
    #[arg(long, value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// The only configuration file to read.
    #[arg(long, env = "KFS_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cluster's topic prefix.
    #[arg(long)]
    pub prefix: Option<String>,
    /// Longest wait for the servers, in seconds.
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// Everything that a login needs.
pub struct Login {
    pub kafka: KafkaSettings,
    pub user: UserName,
    pub secret: Secret,
    pub timeout: Duration,
    pub hard: bool,
    pub journal: Option<JournalConfig>,
}
