//! Secrets in small text files: a title line, remarks, `name = value` lines.
//!
//! Written once with mode 0600 and never over another file; read only if
//! nobody but the owner can. The title carries the format's version.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest secret file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Why a file with a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("{path} exists; it is never overwritten, move it away if it is not needed")]
    Exists { path: PathBuf },
    #[error("cannot {tried} {path}: {source}")]
    Io { tried: &'static str, path: PathBuf, source: std::io::Error },
    #[error(
        "{path} can be read by others (mode {mode:04o}): the secret in it may be known; if not, `chmod 600 {path}`"
    )]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path} is not a {title}: {reason}")]
    Format { path: PathBuf, title: &'static str, reason: String },
}

/// One kind of secret file.
pub(crate) struct SecretFile {
    /// The first line, version included.
    pub title: &'static str,
    /// Remarks for whoever opens it, without their `# `.
    pub remarks: &'static [&'static str],
}

/// What a secret file says, in the file's order.
pub(crate) struct Fields {
    path: PathBuf,
    title: &'static str,
    fields: Vec<(String, Zeroizing<String>)>,
}

impl SecretFile {
    /// Writes a new file and makes it last; values must be single lines.
    pub fn write(&self, path: &Path, fields: &[(&str, &str)]) -> Result<(), KeyFileError> {
        let io = |tried, source| KeyFileError::Io { tried, path: path.to_owned(), source };
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(KeyFileError::Exists { path: path.to_owned() });
            }
            other => other.map_err(|e| io("create", e))?,
        };
        let written = file.write_all(self.text(fields).as_bytes()).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // Half a key must not be taken for one, nor keep the place.
            let _ = std::fs::remove_file(path);
            return Err(io("write", error));
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|d| d.sync_all()).map_err(|e| io("make durable", e))
    }

    /// Reads a file that only its owner can read.
    pub fn read(&self, path: &Path) -> Result<Fields, KeyFileError> {
        let io = |tried, source| KeyFileError::Io { tried, path: path.to_owned(), source };
        let file = File::open(path).map_err(|e| io("open", e))?;
        // Of the open file, so that it cannot be exchanged in between.
        let mode = file.metadata().map_err(|e| io("examine", e))?.mode() & 0o7777;
        if mode & 0o077 != 0 && !is_systemd_credential(path) {
            return Err(KeyFileError::Readable { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        let bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| io("read", e))?;
        if bytes as u64 > MAX_BYTES {
            return Err(self.malformed(path, format!("it is larger than {MAX_BYTES} bytes")));
        }
        self.parse(path, &text)
    }

    fn text(&self, fields: &[(&str, &str)]) -> Zeroizing<String> {
        let mut text = Zeroizing::new(format!("{}\n", self.title));
        for remark in self.remarks {
            *text += &format!("# {remark}\n");
        }
        for (name, value) in fields {
            debug_assert!(!value.contains('\n'));
            text.push_str(name);
            text.push_str(" = ");
            text.push_str(value);
            text.push('\n');
        }
        text
    }

    fn parse(&self, path: &Path, text: &str) -> Result<Fields, KeyFileError> {
        let mut lines = text.lines().map(str::trim).zip(1u32..);
        match lines.next() {
            Some((title, _)) if title == self.title => {}
            _ => return Err(self.malformed(path, format!("its first line is not \"{}\"", self.title))),
        }
        let mut fields = Vec::new();
        for (line, number) in lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| self.malformed(path, format!("line {number} is not `name = value`")))?;
            fields.push((name.trim().to_owned(), Zeroizing::new(value.trim().to_owned())));
        }
        Ok(Fields { path: path.to_owned(), title: self.title, fields })
    }

    fn malformed(&self, path: &Path, reason: String) -> KeyFileError {
        KeyFileError::Format { path: path.to_owned(), title: self.title, reason }
    }
}

/// systemd keeps credentials in a directory of the service's own; there an ACL's
/// mask shows as group bits although no group may read.
fn is_systemd_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .is_some_and(|dir| !dir.is_empty() && path.parent() == Some(Path::new(&dir)))
}

impl Fields {
    /// The value of a line that may be missing.
    pub fn find(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a line that must be there.
    pub fn get(&self, name: &str) -> Result<&str, KeyFileError> {
        self.find(name).ok_or_else(|| self.malformed(format!("it has no line `{name} = ...`")))
    }

    /// A value's bytes, written in base64.
    pub fn bytes(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
        decode(self.get(name)?)
            .map(Zeroizing::new)
            .ok_or_else(|| self.malformed(format!("the value of `{name}` is not base64")))
    }

    /// As [`Fields::bytes`], of exactly `N` bytes.
    pub fn array<const N: usize>(&self, name: &str) -> Result<Zeroizing<[u8; N]>, KeyFileError> {
        let bytes = self.bytes(name)?;
        let array = bytes[..].try_into().map_err(|_| self.malformed(format!("`{name}` does not have {N} bytes")))?;
        Ok(Zeroizing::new(array))
    }

    pub fn malformed(&self, reason: String) -> KeyFileError {
        KeyFileError::Format { path: self.path.clone(), title: self.title, reason }
    }
}

/// The base64 of a secret, wiped when dropped.
pub(crate) fn encode(bytes: &[u8]) -> Zeroizing<String> {
    use base64::Engine;
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
