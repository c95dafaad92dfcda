//! The commands about servers: one more of them, which there are, one less, and what
//! to do when the log is not what it was.

use super::{Cluster, connected, connected_by, start};
use crate::data::{self, Identity};
use crate::snapshot::take::{Taken, take};
use crate::{NewLog, ServerConfig};
use anyhow::bail;
use proto::ServerId;
use proto::log::kafka::KafkaLog;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn join(data: &Path, from: &Path, key_file: Option<&Path>) -> anyhow::Result<()> {
    let identity = data::join(data, from, key_file)?;
    println!("initialised {} as the server {} of {}", data.display(), identity.server, identity.cluster_key.id());
    println!("next: kfs-server run --brokers HOST:PORT --data {}", data.display());
    Ok(())
}

pub fn epoch(from: PathBuf, anyway: bool, cluster: Cluster) -> anyhow::Result<()> {
    let setting = Cluster { data: Some(from), ..cluster }.setting()?;
    let server = start(&setting, if anyway { NewLog::NewEpochAnyway } else { NewLog::NewEpochOnly })?;
    server.ready()?;
    server.stop()?;
    println!("began epoch {} from the state in {}", data::epoch(&setting.data)?.0, setting.data.display());
    println!("next: kfs-server run --data {}; then every other server takes a snapshot", setting.data.display());
    Ok(())
}

pub fn status(json: bool, cluster: &Cluster) -> anyhow::Result<()> {
    let setting = cluster.setting()?;
    let log = Arc::new(KafkaLog::connect(setting.kafka.clone())?);
    let status = connected_by(&setting, log.clone(), async |mut admin| Ok(admin.status(log.as_ref()).await?))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        println!("{status}");
    }
    Ok(())
}

pub fn deregister(server: ServerId, cluster: &Cluster) -> anyhow::Result<()> {
    if connected(&cluster.setting()?, async |mut admin| Ok(admin.deregister(server).await?))? {
        println!("deregistered {server}: the log is kept for it no longer");
        return Ok(());
    }
    bail!("no server {server} is registered; see `kfs-server status`");
}

pub fn server_id(text: &str) -> Result<ServerId, String> {
    data::unhex(text).map(ServerId).ok_or_else(|| "a server's id has 32 hex digits".to_owned())
}

pub fn bootstrap(cluster: &Cluster) -> anyhow::Result<()> {
    let setting = cluster.setting()?;
    let identity = Identity::read(&setting.data, setting.key_file.as_deref())?;
    let log = Arc::new(KafkaLog::connect(setting.kafka.clone())?);
    let config = ServerConfig { key_file: setting.key_file.clone(), ..ServerConfig::new(&setting.data) };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let shown = std::io::stderr().is_terminal();
    let told = |taken: &Taken| {
        if shown {
            eprint!("\r{} rows, {} chunks, {} MB", taken.rows, taken.chunks, taken.bytes / 1_000_000);
        }
    };
    let taken = runtime.block_on(take(&config, log, runtime.handle().clone(), told));
    if shown {
        eprintln!();
    }
    let Taken { of, rows, chunks, bytes, .. } = taken?;
    println!(
        "took a snapshot of the server {of} for {}: {rows} rows, {chunks} chunks, {} MB",
        identity.server,
        bytes / 1_000_000
    );
    println!("next: kfs-server run --brokers {} --data {}", setting.kafka.brokers, setting.data.display());
    Ok(())
}
