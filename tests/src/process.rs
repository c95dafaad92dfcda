//! A process of the run: started with the run's mark, its output kept in a file
//! that is shown when the test fails, ended at the latest when it is dropped.

use crate::run;
use anyhow::{Context, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Known once the process has been waited for.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts the command with both outputs appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let out = File::options().create(true).append(true).open(log).with_context(|| format!("open {log:?}"))?;
        let err = out.try_clone().context("duplicate a descriptor")?;
        let child = command
            .env(run::MARK, run::root())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("start {name} ({:?})", command.get_program()))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the child is ours");
        }
        self.ended
    }

    pub fn signal(&mut self, signal: i32) {
        if self.ended().is_none() {
            // SAFETY: plain system call; the child has not been waited for, so the pid is still its own.
            unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        }
    }

    /// Waits for the end, at most `bound` long.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        run::wait_for(&what, bound, || self.ended())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.wait(Duration::from_secs(10));
    }

    /// SIGTERM, then waits for the end, at most `bound` long.
    pub fn stop(&mut self, bound: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM);
        self.wait(bound)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            show_end(&self.name, &self.log);
        }
    }
}

/// A failed test's own words must not drown in a broker's: it writes lines of many kilobytes.
const SHOWN_LINES: usize = 40;
const SHOWN_OF_A_LINE: usize = 300;

/// Prints the last lines of a log, for the reader of a failed test.
pub(crate) fn show_end(name: &str, log: &Path) {
    let Ok(bytes) = std::fs::read(log) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(SHOWN_OF_A_LINE).collect()).collect();
    let last = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    eprintln!("---- the last {} lines of {name} ----\n{}\n----", last.len(), last.join("\n"));
}
