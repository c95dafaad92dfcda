//! From what a person said (flags, environment, configuration files) to what a
//! login needs: the same for `kfs`, `kfs-mount` and `kfs dev`.
//!
//! A secret comes from a credential file, a password file, stdin or a prompt,
//! never from an argument: arguments are everyone's to read.

use crate::client::{ClientConfig, JournalConfig, Secret};
use anyhow::Context;
use proto::clock::Clock;
use proto::config::{Config, Options};
use proto::log::kafka::{KafkaLog, KafkaSettings};
use proto::login::DeviceCredential;
use proto::message::UserName;
use std::io::{BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// Who one is and where the brokers are; whatever is not given comes from the
/// environment (`KFS_BROKERS`, `KFS_USER`, `KFS_PASSWORD_FILE`, `KFS_CONFIG`),
/// then from the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Access {
    /// Kafka brokers, HOST:PORT[,HOST:PORT].
    #[arg(long, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// The user to log in as [default: the credential's, else your own name].
    #[arg(long)]
    pub user: Option<String>,
    /// A file with the password on its first line, or - for stdin.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// A device credential, as `kfs-server user add --credential` writes it.
    #[arg(long, value_name = "FILE")]
    pub credential: Option<PathBuf>,
    /// The only configuration file to read.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cluster's topic prefix [default: kfs].
    #[arg(long)]
    pub prefix: Option<String>,
    /// Longest wait for brokers and server, such as 30s [default: 30s].
    #[arg(long, value_name = "DURATION", value_parser = proto::config::parse_duration)]
    pub timeout: Option<Duration>,
}

impl Access {
    /// The command line's layer of the configuration.
    pub fn options(&self) -> Options {
        let mut options = Options {
            config: self.config.clone(),
            brokers: self.brokers.clone(),
            prefix: self.prefix.clone(),
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            credential: self.credential.clone(),
            ..Options::default()
        };
        options.mount.timeout = self.timeout;
        options
    }
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

impl Login {
    /// Reads the secret that the configuration names, or asks for it.
    ///
    /// # Errors
    /// No brokers, a user name that cannot be one, a secret that cannot be read.
    pub fn from_config(config: &Config) -> anyhow::Result<Login> {
        let mut config = config.clone();
        let (user, secret) = match &config.credential {
            Some(file) => {
                let credential = DeviceCredential::read(file)?;
                config.brokers = config.brokers.or_else(|| credential.brokers.clone());
                let user = user_name(&credential.user)?;
                if let Some(named) = &config.user {
                    anyhow::ensure!(
                        named == user.as_str(),
                        "the credential {} is for the user {user}, not for {named}",
                        file.display()
                    );
                }
                (user, Secret::Device(credential))
            }
            None => {
                let name = config.user.clone().or_else(|| std::env::var("USER").ok());
                let name = name.context("no user is given; write USER@HOST:PORT, or set --user or KFS_USER")?;
                let user = user_name(&name)?;
                let password = password(config.password_file.as_deref(), &user)?;
                (user, Secret::Password(password))
            }
        };
        let mut kafka = config.kafka_settings()?;
        kafka.timeout = config.mount.timeout;
        let (timeout, hard) = (config.mount.timeout, config.mount.hard);
        Ok(Login { kafka, user, secret, timeout, hard, journal: None })
    }

    /// Connects to the brokers and makes the client's configuration. Blocks for at most the timeout.
    pub fn connect(self) -> anyhow::Result<ClientConfig> {
        let (prefix, brokers) = (self.kafka.prefix.clone(), self.kafka.brokers.clone());
        let log = KafkaLog::connect(self.kafka)?;
        Ok(ClientConfig {
            log: Arc::new(log),
            brokers,
            prefix,
            user: self.user,
            secret: self.secret,
            timeout: self.timeout,
            hard: self.hard,
            journal: self.journal,
            clock: Clock::default(),
        })
    }
}

fn user_name(name: &str) -> anyhow::Result<UserName> {
    UserName::new(name).with_context(|| format!("`{name}` cannot be a user"))
}

/// The password: from a file's first line, stdin (`-`) or a prompt.
fn password(file: Option<&Path>, user: &UserName) -> anyhow::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    match file {
        Some(file) if file == Path::new("-") => {
            std::io::stdin().lock().read_line(&mut line).context("cannot read the password from stdin")?;
        }
        Some(file) => {
            let opened = std::fs::File::open(file)
                .with_context(|| format!("cannot read the password file {}", file.display()))?;
            std::io::BufReader::new(opened)
                .read_line(&mut line)
                .with_context(|| format!("cannot read the password file {}", file.display()))?;
        }
        None => {
            anyhow::ensure!(
                std::io::stdin().is_terminal(),
                "no password for {user}: nobody is here to type one; give a credential or a password file"
            );
            let typed = rpassword::prompt_password(format!("kfs password for {user}: "));
            return Ok(Zeroizing::new(typed.context("cannot read the password")?));
        }
    }
    let password = Zeroizing::new(line.trim_end_matches(['\n', '\r']).to_owned());
    anyhow::ensure!(!password.is_empty(), "the password for {user} is empty");
    Ok(password)
}
