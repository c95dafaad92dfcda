//! Commands that a test runs to their end: always bounded, output captured in
//! files (so that no full pipe stalls them), killed with their process group
//! when the bound is hit.

use crate::run::{self, Scratch};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    /// The exit code; -1 if a signal ended it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Itself if the exit code is 0, else an error that shows everything.
    pub fn done(self) -> Result<Finished> {
        ensure!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.text(), self.stderr);
        Ok(self)
    }
}

/// Runs the command with `input` on its stdin.
pub fn run_with(command: &mut Command, input: &str, bound: Duration) -> Result<Finished> {
    let scratch = Scratch::new("command");
    let (out, err, inp) = (scratch.join("out"), scratch.join("err"), scratch.join("in"));
    std::fs::write(&inp, input)?;
    let mut child = command
        .env(run::MARK, run::root())
        .stdin(File::open(&inp)?)
        .stdout(File::create(&out)?)
        .stderr(File::create(&err)?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {command:?}"))?;
    let group = child.id() as libc::pid_t;
    let waited = run::wait_for(&format!("the end of {command:?}"), bound, || child.try_wait().transpose());
    let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let status = match waited {
        Ok(status) => status?,
        Err(late) => {
            // SAFETY: a plain system call; the leader has not been waited for, so its group is still its own.
            unsafe { libc::kill(-group, libc::SIGKILL) };
            // A process that hangs in the kernel is left to the janitor.
            let _ = run::wait_for("its end after SIGKILL", Duration::from_secs(5), || child.try_wait().transpose());
            bail!("{late}\nstdout: {}\nstderr: {}", read(&out), read(&err));
        }
    };
    Ok(Finished { status, stdout: std::fs::read(&out)?, stderr: read(&err) })
}

/// Runs the command with nothing on its stdin.
pub fn run(command: &mut Command, bound: Duration) -> Result<Finished> {
    run_with(command, "", bound)
}

/// The longest that a script of a test takes on a busy machine.
pub const SCRIPT_BOUND: Duration = Duration::from_secs(300);

/// Runs a bash script in `dir`; anything but exit code 0 is an error that shows
/// what it printed. `$1`, `$2`... are `args`.
pub fn sh(dir: &Path, script: &str, args: &[&Path]) -> Result<String> {
    let mut command = Command::new("bash");
    command.args(["-e", "-u", "-o", "pipefail", "-c", script, "script"]).args(args).current_dir(dir);
    // Programs are to speak one language, and to ask nobody.
    command.env("LC_ALL", "C.UTF-8").env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_GLOBAL", git_config()?);
    let finished = run(&mut command, SCRIPT_BOUND)?.done().with_context(|| format!("in {dir:?}:\n{script}"))?;
    Ok(finished.text())
}

/// Makes git independent of the person, and of who owns the checkout that it clones.
fn git_config() -> Result<PathBuf> {
    let path = run::root().join("gitconfig");
    if !path.exists() {
        let new = tempfile::NamedTempFile::new_in(run::root())?;
        std::fs::write(new.path(), "[user]\nname = A\nemail = a@example.org\n[safe]\ndirectory = *\n[gc]\nauto = 0\n")?;
        new.persist(&path)?;
    }
    Ok(path)
}
