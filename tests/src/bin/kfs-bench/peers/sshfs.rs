//! sshfs with its default options, to an sshd of this run's own.

use super::Remote;
use anyhow::{Context, Result};
use harness::command::{self, sh};
use harness::distance::{Distance, Far};
use harness::process::Process;
use harness::run::{self, Scratch};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const READY_BOUND: Duration = Duration::from_secs(30);

pub struct Sshfs {
    mount: PathBuf,
    port: u16,
    _far: Option<Far>,
    _sshd: Process,
    // After what uses it.
    dir: Scratch,
}

impl Sshfs {
    pub fn start(distance: Option<Distance>) -> Result<Sshfs> {
        let dir = Scratch::new("sshfs");
        let port = run::free_port();
        let script = r#"
            for program in sshfs sshd ssh-keygen; do
                command -v "$program" > /dev/null || { echo "please install $program (sshfs, openssh-server)" >&2; exit 1; }
            done
            mkdir -p /run/sshd "$1/remote" "$1/mnt"
            ssh-keygen -q -t ed25519 -N '' -f "$1/host"
            ssh-keygen -q -t ed25519 -N '' -f "$1/id"
            cp "$1/id.pub" "$1/authorized_keys"
            command -v sshd
        "#;
        let sshd = sh(dir.path(), script, &[dir.path()])?;
        let at = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nPidFile none\n\
             Subsystem sftp internal-sftp\n",
            at("host"),
            at("authorized_keys")
        );
        std::fs::write(dir.join("config"), config)?;
        let mut sshd = Command::new(sshd.trim());
        sshd.args(["-D", "-e", "-f"]).arg(dir.join("config"));
        let sshd = Process::start("sshd", &mut sshd, &dir.join("sshd.log"))?;
        run::wait_for("sshd", READY_BOUND, || TcpStream::connect(("127.0.0.1", port)).ok())?;
        let far = distance.map(|distance| Far::from(port, distance)).transpose()?;
        let port = far.as_ref().map_or(port, Far::port);
        let sshfs = Sshfs { mount: dir.join("mnt"), port, _far: far, _sshd: sshd, dir };
        sshfs.mount()?;
        Ok(sshfs)
    }

    fn mount(&self) -> Result<()> {
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let options = format!(
            "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null,LogLevel=ERROR,IdentityFile={}",
            self.dir.join("id").display()
        );
        let mut command = Command::new("sshfs");
        command.args(["-p", &self.port.to_string(), "-o", &options]);
        command.arg(format!("{user}@127.0.0.1:{}", self.dir.join("remote").display())).arg(&self.mount);
        command::run(&mut command, READY_BOUND)?.done().context("sshfs does not mount")?;
        Ok(())
    }
}

impl Remote for Sshfs {
    fn dir(&self) -> &Path {
        &self.mount
    }

    fn remount(&mut self) -> Result<()> {
        command::run(Command::new("umount").arg(&self.mount), READY_BOUND)?.done()?;
        self.mount()
    }
}

impl Drop for Sshfs {
    fn drop(&mut self) {
        // Whatever is left the run takes away at its end.
        let _ = command::run(Command::new("umount").arg("-l").arg(&self.mount), READY_BOUND);
    }
}
