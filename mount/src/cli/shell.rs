//! `kfs shell`: one command a line, from a terminal or a script. A command that
//! fails says why and the shell goes on; what it was told on stdin decides
//! nothing about the files but what it names.

use super::remote::{Remote, RemoteError};
use super::{list, transfer};
use crate::connect::Access;
use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

#[derive(clap::Args)]
pub(super) struct ShellArgs {
    #[command(flatten)]
    pub access: Access,
}

const COMMANDS: &str = "UPLOAD file [name], DOWNLOAD name [file], DELETE name, VIEW [name], EXIT";

/// One line, understood.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    Upload { file: OsString, name: OsString },
    Download { name: OsString, file: OsString },
    Delete { name: OsString },
    View { name: OsString },
    Exit,
}

/// Reads commands until EXIT or the end of the input. Fails if any command
/// failed and nobody was there to see it (stdin is no terminal).
pub(super) async fn run(remote: &Remote) -> anyhow::Result<()> {
    let prompt = std::io::stdin().is_terminal();
    let mut failed = 0_u32;
    loop {
        if prompt {
            print!("kfs> ");
            std::io::stdout().flush()?;
        }
        // A blocking read on a thread of its own: the session's renewals go on meanwhile.
        let read = tokio::task::spawn_blocking(|| {
            let mut line = Vec::new();
            std::io::stdin().lock().read_until(b'\n', &mut line).map(|bytes| (bytes, line))
        });
        let (bytes, line) = read.await??;
        if bytes == 0 {
            break;
        }
        let done = match parse(&String::from_utf8_lossy(&line)) {
            Ok(Line::Exit) => break,
            Ok(line) => execute(remote, line).await,
            Err(reason) => Err(anyhow::anyhow!(reason)),
        };
        if let Err(error) = done {
            failed += 1;
            eprintln!("{error:#}");
        }
    }
    anyhow::ensure!(prompt || failed == 0, "{failed} of the shell's commands failed");
    Ok(())
}

async fn execute(remote: &Remote, line: Line) -> anyhow::Result<()> {
    match line {
        Line::Nothing | Line::Exit => Ok(()),
        Line::Upload { file, name } => {
            let file = Path::new(&file);
            anyhow::ensure!(file.exists(), "UPLOAD: there is no local file {}", file.display());
            transfer::put_one(remote, file, &name, true).await?;
            println!("uploaded {} as {}", file.display(), name.display());
            Ok(())
        }
        Line::Download { name, file } => {
            remote_file("DOWNLOAD", remote.resolve(&name).await)?;
            transfer::get_one(remote, &name, Path::new(&file), true).await?;
            println!("downloaded {} to {}", name.display(), file.display());
            Ok(())
        }
        Line::Delete { name } => {
            remote_file("DELETE", remote.resolve(&name).await)?;
            remote.remove(&name, false).await?;
            println!("deleted {}", name.display());
            Ok(())
        }
        Line::View { name } => {
            remote_file("VIEW", remote.resolve(&name).await)?;
            list::print(remote, &name, true).await
        }
    }
}

/// The two things that go wrong with a remote name, in the shell's words.
fn remote_file<T>(command: &str, found: Result<T, RemoteError>) -> anyhow::Result<T> {
    found.map_err(|error| match error {
        RemoteError::NotFound { path } => anyhow::anyhow!("{command}: there is no remote file {path}"),
        RemoteError::NotPermitted { path } => anyhow::anyhow!("{command}: no permission for {path}"),
        other => anyhow::Error::from(other).context(command.to_owned()),
    })
}

/// Words are separated by blanks; one with blanks in it stands in double quotes.
fn parse(line: &str) -> Result<Line, String> {
    let words = words(line)?;
    let mut words = words.into_iter();
    let Some(command) = words.next() else {
        return Ok(Line::Nothing);
    };
    let command = command.to_uppercase();
    let mut args: Vec<OsString> = words.map(OsString::from).collect();
    let allowed = match command.as_str() {
        "UPLOAD" | "DOWNLOAD" => 1..=2,
        "DELETE" => 1..=1,
        "VIEW" => 0..=1,
        "EXIT" => 0..=0,
        _ => return Err(format!("unknown command {command}; there are {COMMANDS}")),
    };
    if !allowed.contains(&args.len()) {
        return Err(format!("{command} takes other arguments; the commands are {COMMANDS}"));
    }
    let second = (args.len() == 2).then(|| args.remove(1));
    let first = args.pop();
    Ok(match (command.as_str(), first) {
        ("UPLOAD", Some(file)) => {
            let name = second.or_else(|| Path::new(&file).file_name().map(OsString::from));
            let name = name.ok_or_else(|| "UPLOAD: that is not a file's name".to_owned())?;
            Line::Upload { file, name }
        }
        ("DOWNLOAD", Some(name)) => {
            let file = second.or_else(|| Path::new(&name).file_name().map(OsString::from));
            let file = file.ok_or_else(|| "DOWNLOAD: that is not a file's name".to_owned())?;
            Line::Download { name, file }
        }
        ("DELETE", Some(name)) => Line::Delete { name },
        ("VIEW", name) => Line::View { name: name.unwrap_or_else(|| "/".into()) },
        _ => Line::Exit,
    })
}

fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    if quoted {
        return Err("a double quote is not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_quotes_and_defaults() {
        assert_eq!(parse("  \n"), Ok(Line::Nothing));
        assert_eq!(
            parse("upload \"/tmp/a b.txt\""),
            Ok(Line::Upload { file: "/tmp/a b.txt".into(), name: "a b.txt".into() })
        );
        assert_eq!(parse("DOWNLOAD x/y z"), Ok(Line::Download { name: "x/y".into(), file: "z".into() }));
        assert_eq!(parse("View"), Ok(Line::View { name: "/".into() }));
        assert_eq!(parse("exit\n"), Ok(Line::Exit));
    }

    #[test]
    fn wrong_lines_say_what_there_is() {
        assert!(parse("FETCH x").unwrap_err().contains("unknown command FETCH"));
        assert!(parse("DELETE").unwrap_err().contains("DELETE name"));
        assert!(parse("DELETE a b").is_err());
        assert!(parse("UPLOAD \"a").unwrap_err().contains("quote"));
        assert!(parse("UPLOAD /").is_err());
    }
}
