//! The servers of a [`Cluster`]: the one that made it, and others that have joined.

use crate::cluster::{COMMAND_BOUND, Cluster, READY_BOUND};
use crate::process::Process;
use crate::run;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::path::PathBuf;

impl Cluster {
    /// The data directory of the server with this index.
    pub fn data_of(&self, server: usize) -> PathBuf {
        match server {
            0 => self.data(),
            _ => self.dir().join(format!("data-{}", server + 1)),
        }
    }

    /// Starts the first server and waits until it says that it serves.
    pub fn start_server(&mut self) -> Result<()> {
        self.start_server_at(0)
    }

    /// The first server's process, for signals and measurements.
    pub fn server(&mut self) -> &mut Process {
        self.server_at(0)
    }

    /// kill -9.
    pub fn kill_server(&mut self) {
        self.kill_server_at(0);
    }

    /// SIGTERM; the exit code must be 0.
    pub fn stop_server(&mut self) -> Result<()> {
        let status = self.server().stop(READY_BOUND)?;
        ensure!(status.success(), "kfs-server answered SIGTERM by {status}: {}", self.server().output());
        Ok(())
    }

    /// Joins one more server to the cluster, waits until it is ready, and gives its index.
    pub fn add_server(&mut self) -> Result<usize> {
        let server = self.servers.len();
        let mut init = self.command("kfs-server");
        init.arg("init").arg("--data").arg(self.data_of(server)).arg("--join").arg(self.data());
        crate::command::run(&mut init, READY_BOUND)?.done()?;
        self.servers.push(None);
        self.start_server_at(server)?;
        Ok(server)
    }

    pub fn start_server_at(&mut self, server: usize) -> Result<()> {
        self.servers[server] = None;
        self.servers[server] = Some(self.launch_server(server)?);
        Ok(())
    }

    pub fn server_at(&mut self, server: usize) -> &mut Process {
        self.servers[server].as_mut().expect("the test has started this server")
    }

    pub fn kill_server_at(&mut self, server: usize) {
        self.server_at(server).kill();
    }

    /// `kfs-server status --json`
    pub fn status(&self) -> Result<Value> {
        let text = self.server_command(&["status", "--json"]).finish()?.text();
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// The index of the server that answers, as the one that answers says.
    pub fn answering(&self) -> Result<Option<usize>> {
        let status = self.status()?;
        let servers = status["servers"].as_array().context("the status lists the servers")?;
        let Some(answering) = servers.iter().find(|server| server["role"] == "answering") else { return Ok(None) };
        let id = answering["server"].as_str().context("a server has an id")?;
        for server in 0..self.servers.len() {
            if std::fs::read_to_string(self.data_of(server).join("server.toml"))?.contains(id) {
                return Ok(Some(server));
            }
        }
        bail!("the server {id} is none of this cluster's")
    }

    /// Kills every server and checks what it has on disk.
    pub fn check(&mut self) -> Result<()> {
        for server in 0..self.servers.len() {
            self.servers[server] = None;
            let data = self.data_of(server);
            if data.join("server.toml").exists() {
                let mut check = self.command("kfs-server");
                check.arg("check").arg("--data").arg(&data);
                let finished = crate::command::run(&mut check, COMMAND_BOUND)?;
                finished.done().with_context(|| format!("what server {server} keeps is damaged"))?;
            }
        }
        Ok(())
    }

    fn launch_server(&self, server: usize) -> Result<Process> {
        let mut command = self.command("kfs-server");
        command.arg("run").arg("--data").arg(self.data_of(server));
        let (name, log) = match server {
            0 => ("kfs-server".to_owned(), "server.log".to_owned()),
            _ => (format!("kfs-server {}", server + 1), format!("server-{}.log", server + 1)),
        };
        let log = self.dir().join(log);
        let before = std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) as usize;
        let mut process = Process::start(&name, &mut command, &log)?;
        let mut ended = None;
        run::wait_for(&format!("{name} to be ready"), READY_BOUND, || {
            ended = process.ended();
            (ended.is_some() || process.output().get(before..).is_some_and(|new| new.contains("ready"))).then_some(())
        })
        .with_context(|| process.output())?;
        if let Some(status) = ended {
            bail!("{name} ended at its start ({status}): {}", process.output());
        }
        Ok(process)
    }
}
