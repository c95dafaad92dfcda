//! What `-o` and the source say: text in, a typed [`MountOptions`] or [`Source`] out.
//!
//! * Options follow mount(8): a later one overrides an earlier one, and what mount(8), systemd and
//!   fstab add for themselves (`_netdev`, `x-*`, ...) is accepted and ignored.
//! * What was not given stays `None`, so that the configuration file and the environment can fill
//!   it in; the defaults are the constants here.
//! * A bad or unknown option is an error that names it and says what is allowed. Only options that
//!   do something are known.
//! * Paths are made absolute while parsing, since a daemon leaves the caller's directory.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// How long an operation waits for broker or server when neither `timeout=` nor `hard` is given.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// How long an unmount waits for the daemon to drain and end when `umount_timeout=` is not given.
pub const UMOUNT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// The block cache's size when `cache=` is not given, in bytes.
pub const CACHE_BYTES_DEFAULT: u64 = 256 << 20;
/// The journal's size when `journal=` is not given, in bytes.
pub const JOURNAL_BYTES_DEFAULT: u64 = 1 << 30;

const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
const CACHE_BYTES_MIN: u64 = 1 << 20;
const CACHE_DIR_BYTES_MIN: u64 = 16 << 20;
const SIZE_BYTES_MAX: u64 = 1 << 44;

/// Every option that does something, as an error message and `--help` list them.
pub const KNOWN: &str = "ro, rw, uid=, gid=, umask=, allow_other, default_permissions, nonempty, exec, noexec, suid, \
                         nosuid, dev, nodev, noatime, timeout=, hard, umount_timeout=, cache=, cache_dir=, \
                         cache_dir_size=, journal=, \
                         password_file=, credential=, config=, remount";

/// The mount options of one call, each as given; `None` or `false` where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ro` (true) or `rw`.
    pub read_only: Option<bool>,
    /// `uid=`: the owner shown for every file.
    pub uid: Option<u32>,
    /// `gid=`: the group shown for every file.
    pub gid: Option<u32>,
    /// `umask=`: permission bits taken away from every file shown, at most 0o777.
    pub umask: Option<u32>,
    /// `allow_other`: users other than the mounting one may enter.
    pub allow_other: bool,
    /// `nonempty`: mount over a directory that has content.
    pub nonempty: bool,
    /// `exec` (true) or `noexec`.
    pub exec: Option<bool>,
    /// `suid` (true) or `nosuid`; unset means off for a plain user, on for root.
    pub suid: Option<bool>,
    /// `dev` (true) or `nodev`; unset means off for a plain user, on for root.
    pub dev: Option<bool>,
    /// `noatime`.
    pub noatime: bool,
    /// `timeout=`: 1 ms to 24 h.
    pub timeout: Option<Duration>,
    /// `hard`: operations wait for ever.
    pub hard: bool,
    /// `umount_timeout=`: 1 ms to 24 h.
    pub umount_timeout: Option<Duration>,
    /// `cache=`: bytes of file content kept in memory, 1 MiB to 16 TiB.
    pub cache_bytes: Option<u64>,
    /// `cache_dir=`, absolute: where file content is kept on disk, too.
    pub cache_dir: Option<PathBuf>,
    /// `cache_dir_size=`: bytes of that, 16 MiB to 16 TiB.
    pub cache_dir_bytes: Option<u64>,
    /// `journal=`: bytes, at most 16 TiB; 0 means that close() waits for the answer instead.
    pub journal_bytes: Option<u64>,
    /// `password_file=`, absolute.
    pub password_file: Option<PathBuf>,
    /// `credential=`, absolute.
    pub credential: Option<PathBuf>,
    /// `config=`, absolute.
    pub config: Option<PathBuf>,
    /// `remount`: change `ro`/`rw` of what is mounted already.
    pub remount: bool,
    /// Unknown options that were passed over because the caller asked to be sloppy (mount -s).
    pub skipped: Vec<String>,
}

/// What is wrong with an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Not one of ours.
    #[error("unknown mount option `{0}`; allowed are: {KNOWN}")]
    Unknown(String),
    /// `timeout` without `=VALUE`.
    #[error("mount option `{name}` needs a value: {name}={allowed}")]
    NeedsValue { name: &'static str, allowed: &'static str },
    /// `ro=1`.
    #[error("mount option `{name}` takes no value, but got `{value}`; write just `{name}`")]
    TakesNoValue { name: &'static str, value: String },
    /// A value that is no such thing, or outside the bounds.
    #[error("mount option `{name}={value}` is not usable; allowed is {allowed}")]
    BadValue { name: &'static str, value: String, allowed: &'static str },
    /// `"` without its partner.
    #[error("mount options `{0}` have a double quote without its partner")]
    Quote(String),
}

impl MountOptions {
    /// Parses one `-o` text.
    pub fn parse(text: &OsStr) -> Result<Self, OptionError> {
        let mut options = Self::default();
        options.add(text, false)?;
        Ok(options)
    }

    /// Parses a further `-o` text into these options; what it says wins. With `sloppy`, unknown
    /// options are noted in `skipped` instead of refused.
    pub fn add(&mut self, text: &OsStr, sloppy: bool) -> Result<(), OptionError> {
        for option in split_unquoted(text)? {
            match self.set(&option) {
                Err(OptionError::Unknown(name)) if sloppy => self.skipped.push(name),
                other => other?,
            }
        }
        Ok(())
    }

    /// Whether the mount is read-only (the default is not).
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(false)
    }

    fn set(&mut self, option: &[u8]) -> Result<(), OptionError> {
        let (name, value) = match option.iter().position(|b| *b == b'=') {
            Some(at) => (&option[..at], Some(&option[at + 1..])),
            None => (option, None),
        };
        match name {
            b"ro" => self.read_only = Some(flag("ro", value, true)?),
            b"rw" => self.read_only = Some(flag("rw", value, false)?),
            b"uid" => self.uid = Some(id("uid", value)?),
            b"gid" => self.gid = Some(id("gid", value)?),
            b"umask" => self.umask = Some(umask(value)?),
            b"allow_other" => self.allow_other = flag("allow_other", value, true)?,
            // Always on: the kernel checks mode bits, whatever is said here.
            b"default_permissions" => drop(flag("default_permissions", value, true)?),
            b"nonempty" => self.nonempty = flag("nonempty", value, true)?,
            b"exec" => self.exec = Some(flag("exec", value, true)?),
            b"noexec" => self.exec = Some(flag("noexec", value, false)?),
            b"suid" => self.suid = Some(flag("suid", value, true)?),
            b"nosuid" => self.suid = Some(flag("nosuid", value, false)?),
            b"dev" => self.dev = Some(flag("dev", value, true)?),
            b"nodev" => self.dev = Some(flag("nodev", value, false)?),
            b"noatime" => self.noatime = flag("noatime", value, true)?,
            b"timeout" => {
                self.timeout = Some(duration("timeout", value)?);
                self.hard = false;
            }
            b"hard" => {
                self.hard = flag("hard", value, true)?;
                self.timeout = None;
            }
            b"umount_timeout" => self.umount_timeout = Some(duration("umount_timeout", value)?),
            b"cache" => {
                let allowed = "SIZE from 1M to 16T, like 256M";
                self.cache_bytes = Some(size("cache", value, CACHE_BYTES_MIN, allowed)?);
            }
            b"cache_dir" => self.cache_dir = Some(path("cache_dir", value)?),
            b"cache_dir_size" => {
                let allowed = "SIZE from 16M to 16T, like 4G";
                self.cache_dir_bytes = Some(size("cache_dir_size", value, CACHE_DIR_BYTES_MIN, allowed)?);
            }
            b"journal" => {
                let allowed = "SIZE up to 16T, like 1G, or 0 for none";
                self.journal_bytes = Some(size("journal", value, 0, allowed)?);
            }
            b"password_file" => self.password_file = Some(path("password_file", value)?),
            b"credential" => self.credential = Some(path("credential", value)?),
            b"config" => self.config = Some(path("config", value)?),
            b"remount" => self.remount = flag("remount", value, true)?,
            _ if is_for_others(name) => {}
            _ => return Err(OptionError::Unknown(text(name))),
        }
        Ok(())
    }
}

/// Options that mount(8), systemd or autofs act on, and that mean nothing to us.
fn is_for_others(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 14] = [
        b"",
        b"_netdev",
        b"nofail",
        b"user",
        b"nouser",
        b"users",
        b"owner",
        b"group",
        b"auto",
        b"noauto",
        b"defaults",
        b"comment",
        b"async",
        b"relatime",
    ];
    // What the kernel shows of a FUSE mount, and what `utab.rs` notes; at a remount mount(8) hands it back to us.
    const SHOWN: [&[u8]; 5] = [b"user_id", b"group_id", b"max_read", b"blksize", b"uhelper"];
    NAMES.contains(&name) || SHOWN.contains(&name) || name.starts_with(b"x-") || name.starts_with(b"X-")
}

/// Splits at commas outside double quotes (mount(8) quotes values that hold a comma) and takes the
/// quotes away.
fn split_unquoted(text_in: &OsStr) -> Result<Vec<Vec<u8>>, OptionError> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    for byte in text_in.as_bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b',' if !quoted => parts.push(Vec::new()),
            other => parts.last_mut().expect("starts with one part").push(*other),
        }
    }
    if quoted {
        return Err(OptionError::Quote(text(text_in.as_bytes())));
    }
    Ok(parts)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn flag(name: &'static str, value: Option<&[u8]>, means: bool) -> Result<bool, OptionError> {
    match value {
        None => Ok(means),
        Some(value) => Err(OptionError::TakesNoValue { name, value: text(value) }),
    }
}

fn needed<'a>(name: &'static str, value: Option<&'a [u8]>, allowed: &'static str) -> Result<&'a [u8], OptionError> {
    value.filter(|value| !value.is_empty()).ok_or(OptionError::NeedsValue { name, allowed })
}

fn id(name: &'static str, value: Option<&[u8]>) -> Result<u32, OptionError> {
    let allowed = "NUMBER below 4294967295, like 1000";
    let value = needed(name, value, allowed)?;
    // u32::MAX means "no id" to every system call that takes one.
    match decimal(value) {
        Some(number) if number < u64::from(u32::MAX) => Ok(number as u32),
        _ => Err(OptionError::BadValue { name, value: text(value), allowed }),
    }
}

fn umask(value: Option<&[u8]>) -> Result<u32, OptionError> {
    let (name, allowed) = ("umask", "OCTAL up to 777, like 022");
    let value = needed(name, value, allowed)?;
    let bad = || OptionError::BadValue { name, value: text(value), allowed };
    let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad)?;
    u32::from_str_radix(digits, 8).ok().filter(|mask| *mask <= 0o777).ok_or_else(bad)
}

fn duration(name: &'static str, value: Option<&[u8]>) -> Result<Duration, OptionError> {
    let allowed = "TIME from 1ms to 24h, like 30, 30s, 500ms or 2m (plain numbers are seconds)";
    let value = needed(name, value, allowed)?;
    let (number, unit) = split_unit(value);
    let unit_ms = match unit {
        b"ms" => Some(1),
        b"" | b"s" => Some(1000),
        b"m" | b"min" => Some(60_000),
        b"h" => Some(3_600_000),
        _ => None,
    };
    decimal(number)
        .zip(unit_ms)
        .and_then(|(number, unit_ms)| number.checked_mul(unit_ms))
        .map(Duration::from_millis)
        .filter(|time| !time.is_zero() && *time <= DURATION_MAX)
        .ok_or_else(|| OptionError::BadValue { name, value: text(value), allowed })
}

fn size(name: &'static str, value: Option<&[u8]>, min: u64, allowed: &'static str) -> Result<u64, OptionError> {
    let value = needed(name, value, allowed)?;
    let (number, unit) = split_unit(value);
    let shift = match unit.to_ascii_uppercase().as_slice() {
        b"" | b"B" => Some(0),
        b"K" | b"KB" | b"KIB" => Some(10),
        b"M" | b"MB" | b"MIB" => Some(20),
        b"G" | b"GB" | b"GIB" => Some(30),
        b"T" | b"TB" | b"TIB" => Some(40),
        _ => None,
    };
    decimal(number)
        .zip(shift)
        .and_then(|(number, shift)| number.checked_mul(1 << shift))
        .filter(|bytes| (min..=SIZE_BYTES_MAX).contains(bytes))
        .ok_or_else(|| OptionError::BadValue { name, value: text(value), allowed })
}

fn path(name: &'static str, value: Option<&[u8]>) -> Result<PathBuf, OptionError> {
    let allowed = "FILE";
    let value = needed(name, value, allowed)?;
    std::path::absolute(OsStr::from_bytes(value)).map_err(|_| OptionError::BadValue {
        name,
        value: text(value),
        allowed: "a path (an absolute one if the current directory is gone)",
    })
}

fn split_unit(value: &[u8]) -> (&[u8], &[u8]) {
    value.split_at(value.iter().position(|b| !b.is_ascii_digit()).unwrap_or(value.len()))
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// A parsed source, `[USER@]HOST:PORT[,HOST:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The text as given: this, byte for byte, is what mountinfo must show.
    pub text: OsString,
    /// Who logs in, if the source says so. May hold `@` itself: the last one separates.
    pub user: Option<String>,
    /// Kafka's `bootstrap.servers`: at least one `HOST:PORT`, IPv6 addresses in brackets.
    pub brokers: Vec<String>,
    /// The directory inside the namespace that becomes the mount's root; starts with `/`, any bytes.
    pub path: OsString,
}

/// What is wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("the source is empty; write it as [USER@]HOST:PORT[,HOST:PORT][/PATH]")]
    Empty,
    #[error("source `{source_text}`: broker `{broker}` has no port; write HOST:PORT (Kafka's is usually 9092)")]
    NoPort { source_text: String, broker: String },
    #[error("source `{source_text}`: port `{port}` is not a number from 1 to 65535")]
    BadPort { source_text: String, port: String },
    #[error(
        "source `{source_text}`: `{broker}` is not a usable host; write HOST:PORT, an IPv6 address in brackets: [::1]:9092"
    )]
    BadHost { source_text: String, broker: String },
    #[error("source `{source_text}`: nothing stands before `@`; write USER@HOST:PORT, or leave the `@` out")]
    NoUser { source_text: String },
    #[error("source `{source_text}`: only its path may hold bytes that are not UTF-8")]
    NotText { source_text: String },
}

impl Source {
    /// Parses a source as `kfs-mount`, `mount.kfs` and fstab give it.
    pub fn parse(source: &OsStr) -> Result<Self, SourceError> {
        let bytes = source.as_bytes();
        let source_text = source.to_string_lossy().into_owned();
        let (head, path) = bytes.split_at(bytes.iter().position(|b| *b == b'/').unwrap_or(bytes.len()));
        let head = std::str::from_utf8(head).map_err(|_| SourceError::NotText { source_text: source_text.clone() })?;
        let (user, hosts) = match head.rsplit_once('@') {
            Some(("", _)) => return Err(SourceError::NoUser { source_text }),
            Some((user, hosts)) => (Some(user.to_owned()), hosts),
            None => (None, head),
        };
        if hosts.is_empty() {
            return Err(SourceError::Empty);
        }
        let brokers = hosts.split(',').map(|broker| check_broker(broker, &source_text)).collect::<Result<_, _>>()?;
        let path = if path.is_empty() { b"/" } else { path };
        Ok(Self { text: source.to_owned(), user, brokers, path: OsString::from_vec(path.to_vec()) })
    }
}

fn check_broker(broker: &str, source_text: &str) -> Result<String, SourceError> {
    let source_text = source_text.to_owned();
    let bad_host = || SourceError::BadHost { source_text: source_text.clone(), broker: broker.to_owned() };
    let no_port = || SourceError::NoPort { source_text: source_text.clone(), broker: broker.to_owned() };
    let port = if let Some(rest) = broker.strip_prefix('[') {
        let (address, rest) = rest.split_once(']').ok_or_else(bad_host)?;
        // A zone (fe80::1%eth0) is for the resolver to judge.
        let address = address.split('%').next().unwrap_or(address);
        address.parse::<std::net::Ipv6Addr>().map_err(|_| bad_host())?;
        rest.strip_prefix(':').ok_or_else(no_port)?
    } else {
        let (host, port) = broker.split_once(':').ok_or_else(no_port)?;
        let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(fits) || port.contains(':') {
            return Err(bad_host());
        }
        port
    };
    match decimal(port.as_bytes()) {
        Some(1..=65535) => Ok(broker.to_owned()),
        _ => Err(SourceError::BadPort { source_text, port: port.to_owned() }),
    }
}

#[cfg(test)]
mod tests;
