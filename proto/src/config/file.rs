//! One configuration file: TOML, every key known, every value of the right kind,
//! else an error at its line.

use super::{ConfigError, Options, value};
use crate::log::kafka;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Larger files are not configuration.
const MAX_BYTES: u64 = 1 << 20;

const TOP: &[&str] = &["brokers", "prefix", "user", "password_file", "credential", "[kafka]", "[server]", "[mount]"];
const SERVER: &[&str] = &["data", "key_file"];
const MOUNT: &[&str] = &["timeout", "hard", "cache", "cache_dir", "cache_dir_size", "journal", "umount_timeout"];

/// Reads a file into a layer. Relative paths in it count from its directory.
pub(super) fn read(file: &Path) -> Result<Options, ConfigError> {
    let unreadable = |reason: String| ConfigError::Unreadable { file: file.to_owned(), reason };
    let bytes = std::fs::metadata(file).map_err(|error| unreadable(error.to_string()))?.len();
    if bytes > MAX_BYTES {
        return Err(unreadable(format!("it has {bytes} bytes, more than the {MAX_BYTES} that are read")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(error.to_string()))?;
    parse(file, &text)
}

pub(super) fn parse(file: &Path, text: &str) -> Result<Options, ConfigError> {
    let document = Document { file, text };
    let table = DeTable::parse(text)
        .map_err(|error| document.wrong(error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
    let mut options = Options::default();
    for (key, value) in table.get_ref() {
        let entry = Entry { document: &document, table: "", key, value };
        match entry.name() {
            "brokers" => options.brokers = Some(entry.checked(value::check_brokers)?),
            "prefix" => options.prefix = Some(entry.checked(value::check_prefix)?),
            "user" => options.user = Some(entry.checked(value::check_user)?),
            "password_file" => options.password_file = Some(entry.path()?),
            "credential" => options.credential = Some(entry.path()?),
            "kafka" => {
                for entry in entry.entries("kafka")? {
                    options.kafka.0.insert(entry.name().to_owned(), entry.property()?);
                }
            }
            "server" => {
                for entry in entry.entries("server")? {
                    match entry.name() {
                        "data" => options.server.data = Some(entry.path()?),
                        "key_file" => options.server.key_file = Some(entry.path()?),
                        _ => return Err(entry.unknown(SERVER)),
                    }
                }
            }
            "mount" => {
                let mount = &mut options.mount;
                for entry in entry.entries("mount")? {
                    match entry.name() {
                        "timeout" => mount.timeout = Some(entry.parsed("a duration", value::parse_duration)?),
                        "hard" => mount.hard = Some(entry.flag()?),
                        "cache" => mount.cache = Some(entry.parsed("a size", value::parse_size)?),
                        "cache_dir" => mount.cache_dir = Some(entry.path()?),
                        "cache_dir_size" => mount.cache_dir_size = Some(entry.parsed("a size", value::parse_size)?),
                        "journal" => mount.journal = Some(entry.parsed("a size", value::parse_size)?),
                        "umount_timeout" => {
                            mount.umount_timeout = Some(entry.parsed("a duration", value::parse_duration)?);
                        }
                        _ => return Err(entry.unknown(MOUNT)),
                    }
                }
            }
            _ => return Err(entry.unknown(TOP)),
        }
    }
    Ok(options)
}

struct Document<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    /// An error at the line that holds byte `at`.
    fn wrong(&self, at: usize, what: String) -> ConfigError {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        // The parser explains itself over several lines.
        let what = what.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ");
        ConfigError::InFile { file: self.file.to_owned(), line, what }
    }

    /// `~/` is the user's home; other relative paths count from the file's directory.
    fn path(&self, text: &str) -> PathBuf {
        if let Some(rest) = text.strip_prefix("~/")
            && let Some(home) = std::env::var_os("HOME")
        {
            return Path::new(&home).join(rest);
        }
        self.file.parent().unwrap_or(Path::new("")).join(text)
    }
}

/// A key with its value.
struct Entry<'a> {
    document: &'a Document<'a>,
    /// The table it stands in; empty at the top.
    table: &'a str,
    key: &'a Spanned<std::borrow::Cow<'a, str>>,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'a> {
    fn name(&self) -> &'a str {
        self.key.get_ref()
    }

    /// The key as the user would look for it.
    fn full_name(&self) -> String {
        match self.table {
            "" => self.name().to_owned(),
            table => format!("{table}.{}", self.name()),
        }
    }

    fn wrong(&self, what: String) -> ConfigError {
        self.document.wrong(self.value.span().start, format!("`{}`: {what}", self.full_name()))
    }

    fn unknown(&self, known: &[&str]) -> ConfigError {
        let place = if self.table.is_empty() { "here".to_owned() } else { format!("in [{}]", self.table) };
        let what = format!("unknown key `{}`; {place} stand {}", self.name(), known.join(", "));
        self.document.wrong(self.key.span().start, what)
    }

    fn expected(&self, what: &str) -> ConfigError {
        let found = match self.value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(format!("takes {what}, but here stands {found}"))
    }

    fn entries(&self, table: &'a str) -> Result<Vec<Entry<'a>>, ConfigError> {
        let DeValue::Table(found) = self.value.get_ref() else { return Err(self.expected("a table")) };
        Ok(found.iter().map(|(key, value)| Entry { document: self.document, table, key, value }).collect())
    }

    fn string(&self) -> Result<&'a str, ConfigError> {
        self.value.get_ref().as_str().ok_or_else(|| self.expected("a string"))
    }

    fn checked(&self, check: impl Fn(&str) -> Result<(), String>) -> Result<String, ConfigError> {
        let text = self.string()?;
        check(text).map_err(|what| self.wrong(what))?;
        Ok(text.to_owned())
    }

    fn path(&self) -> Result<PathBuf, ConfigError> {
        match self.string()? {
            "" => Err(self.wrong("a path is not empty".to_owned())),
            text => Ok(self.document.path(text)),
        }
    }

    fn flag(&self) -> Result<bool, ConfigError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.expected("true or false"))
    }

    /// A number, or a string that `parse` understands.
    fn parsed<T>(&self, what: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        let text = match self.value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(_) => self.integer()?.to_string(),
            _ => return Err(self.expected(what)),
        };
        parse(&text).map_err(|what| self.wrong(what))
    }

    fn integer(&self) -> Result<i64, ConfigError> {
        let DeValue::Integer(found) = self.value.get_ref() else { return Err(self.expected("an integer")) };
        i64::from_str_radix(found.as_str(), found.radix()).map_err(|error| self.wrong(error.to_string()))
    }

    /// A Kafka client property's value, as the client library reads it.
    fn property(&self) -> Result<String, ConfigError> {
        let text = match self.value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(_) => self.integer()?.to_string(),
            DeValue::Boolean(flag) => flag.to_string(),
            // `sasl.mechanism = ...` without quotes is a table in TOML.
            DeValue::Table(_) => {
                let what = "is a table; quote names with dots, like \"sasl.mechanism\" = \"SCRAM-SHA-512\"";
                return Err(self.wrong(what.to_owned()));
            }
            _ => return Err(self.expected("a string, an integer, true or false")),
        };
        if self.name() == "bootstrap.servers" {
            return Err(self.wrong("stands at the top of the file, as `brokers`".to_owned()));
        }
        kafka::check_property(self.name(), &text).map_err(|what| self.wrong(what))?;
        Ok(text)
    }
}
