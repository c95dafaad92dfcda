//! `kfs-server log dump`: the request log on paper, for whoever holds the cluster key.
//!
//! It needs no server, writes nothing, and reads each partition from its first record
//! on, whatever is to be shown: a session can be read once its open has been seen.
//! Where opens have been trimmed already, the sessions of the data directory's own
//! checkpoint help out, if no server is using it.

use super::{Cluster, Setting};
use crate::data::{DataDir, Identity};
use crate::disk::Disk;
use crate::machine::{Machine, user};
use crate::store::PartitionStore;
use crate::trace::{Line, Said, Trace};
use anyhow::bail;
use clap::{Args, Subcommand};
use proto::NamespaceId;
use proto::frame::Kind;
use proto::log::kafka::KafkaLog;
use proto::log::{Log, LogError, REQUEST_PARTITIONS, Record, Start, Tail, Topic};
use proto::message::UserName;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

/// Cached rows of a partition while its sessions are looked up, in bytes.
const CACHE_BYTES: usize = 4 << 20;

#[derive(Subcommand)]
pub(super) enum LogCommand {
    /// Show the request log unsealed, one line a request: no content and no keys.
    Dump(Dump),
}

#[derive(Args)]
pub(super) struct Dump {
    /// Only this user's namespace (or the one of this number), and what servers say
    /// about it. Default: all partitions.
    #[arg(long, value_name = "USER", conflicts_with = "partition")]
    namespace: Option<String>,
    /// Only this partition, with everything in it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..i64::from(REQUEST_PARTITIONS)))]
    partition: Option<u32>,
    /// The first offset to show.
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// The first offset not to show any more.
    #[arg(long, value_name = "OFFSET", conflicts_with = "follow")]
    to: Option<u64>,
    /// Go on with what is appended, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: Cluster,
}

pub(super) fn run(command: LogCommand) -> anyhow::Result<()> {
    let LogCommand::Dump(dump) = command;
    let setting = dump.cluster.setting()?;
    let identity = Identity::read(&setting.data, setting.key_file.as_deref())?;
    let log: Arc<dyn Log> = Arc::new(KafkaLog::connect(setting.kafka.clone())?);
    let mut reading = Reading { trace: Trace::new(identity.cluster_key.clone()), log, kept: Kept::new(setting) };

    let namespace = dump.namespace.as_deref().map(|wanted| reading.namespace(wanted)).transpose()?;
    let partitions = match (namespace, dump.partition) {
        (Some(namespace), _) => vec![namespace.0 % REQUEST_PARTITIONS],
        (None, Some(partition)) => vec![partition],
        (None, None) => (0..REQUEST_PARTITIONS).collect(),
    };
    let mut out = std::io::stdout().lock();
    let shown = reading.each(&partitions, dump.to, dump.follow, |trace, record| {
        for line in trace.lines(record) {
            let wanted = record.offset >= dump.from && namespace.is_none_or(|namespace| concerns(&line, namespace));
            if wanted {
                let text = if dump.json { serde_json::to_string(&line)? } else { line.to_string() };
                writeln!(out, "{text}")?;
            }
        }
        if dump.follow {
            out.flush()?;
        }
        Ok(())
    });
    match shown {
        // Whoever reads along has seen enough.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        shown => shown,
    }
}

/// Whether a line belongs to the story of one namespace: its own records, and those of
/// servers that are about more than the passing of time.
fn concerns(line: &Line, namespace: NamespaceId) -> bool {
    let Some(writer) = &line.writer else { return false };
    let is_beat = matches!(&line.said, Said::Words(words) if matches!(words.what, "tick" | "heartbeat"));
    writer.namespace == namespace.0 || (writer.kind == Kind::Server && !is_beat)
}

struct Reading {
    trace: Trace,
    log: Arc<dyn Log>,
    kept: Kept,
}

impl Reading {
    /// Calls `show` with the partitions' records before `to`: those that are there now,
    /// or with `follow` all that ever come.
    fn each(
        &mut self,
        partitions: &[u32],
        to: Option<u64>,
        follow: bool,
        mut show: impl FnMut(&mut Trace, &Record) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut ends = BTreeMap::new();
        let mut nexts = BTreeMap::new();
        for partition in partitions {
            let (first, next) = self.log.bounds(Topic::Requests, *partition)?;
            let end = to.map_or(next, |to| to.min(next));
            if first < end || follow {
                nexts.insert(*partition, first);
                ends.insert(*partition, end);
            }
            if first > 0 {
                self.kept.tell_sessions(*partition, &mut self.trace);
            }
        }
        if nexts.is_empty() {
            return Ok(());
        }
        let mut tail = self.tail(&mut nexts)?;
        while follow || !ends.is_empty() {
            let record = match tail.blocking_next() {
                Some(Ok(record)) => record,
                // Trimmed between two looks: it goes on with what is left.
                Some(Err(LogError::OutOfRange { .. })) | None => {
                    ends.retain(|partition, end| {
                        self.log.bounds(Topic::Requests, *partition).map_or(true, |(first, _)| first < *end)
                    });
                    if ends.is_empty() && !follow {
                        break;
                    }
                    tail = self.tail(&mut nexts)?;
                    continue;
                }
                Some(Err(error)) => {
                    tracing::warn!("{error}; waiting for Kafka");
                    continue;
                }
            };
            nexts.insert(record.partition, record.offset + 1);
            let end = ends.get(&record.partition).copied();
            if follow || end.is_some_and(|end| record.offset < end) {
                show(&mut self.trace, &record)?;
            }
            if end.is_some_and(|end| record.offset + 1 >= end) {
                ends.remove(&record.partition);
            }
        }
        Ok(())
    }

    /// Reads on from these places, or from what the log still has after them.
    fn tail(&self, nexts: &mut BTreeMap<u32, u64>) -> anyhow::Result<Tail> {
        /// A log that is trimmed faster than it can be looked at has nothing to show.
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            for (partition, next) in &mut *nexts {
                let (first, _) = self.log.bounds(Topic::Requests, *partition)?;
                if *next < first {
                    tracing::warn!("partition {partition} was trimmed meanwhile: {next}..{first} are not shown");
                    *next = first;
                }
            }
            let starts: Vec<_> =
                nexts.iter().map(|(partition, next)| (Topic::Requests, *partition, Start::At(*next))).collect();
            match self.log.read_from(&starts) {
                Err(LogError::OutOfRange { .. }) => {}
                tail => return Ok(tail?),
            }
        }
        bail!("the log is trimmed faster than it can be read; try again, with --partition");
    }

    /// The namespace of this number or user: from the user's last open in the log, else
    /// from the data directory's checkpoint.
    fn namespace(&mut self, wanted: &str) -> anyhow::Result<NamespaceId> {
        if let Ok(number) = wanted.parse() {
            return Ok(NamespaceId(number));
        }
        let name = UserName::new(wanted)?;
        let mut found = None;
        let all: Vec<u32> = (0..REQUEST_PARTITIONS).collect();
        self.each(&all, None, false, |trace, record| {
            if let Some((user, namespace)) = trace.opened(record)
                && user == name
            {
                found = Some(namespace);
            }
            Ok(())
        })?;
        match found.or_else(|| self.kept.namespace(&name)) {
            Some(namespace) => Ok(namespace),
            None => bail!(
                "nothing in the log tells the namespace of {name}; give its number, as `kfs-server user list` shows it"
            ),
        }
    }
}

/// What the data directory's checkpoint can tell, unless a server is using it.
struct Kept {
    setting: Setting,
    /// Held only from the first question on.
    data: Option<Option<DataDir>>,
}

impl Kept {
    fn new(setting: Setting) -> Kept {
        Kept { setting, data: None }
    }

    fn data(&mut self) -> Option<&DataDir> {
        let Setting { data, key_file, .. } = &self.setting;
        let open = || {
            DataDir::open(data, key_file.as_deref())
                .inspect_err(|error| tracing::warn!("sessions whose open was trimmed cannot be read: {error}"))
                .ok()
        };
        self.data.get_or_insert_with(open).as_ref()
    }

    fn store(&mut self, partition: u32) -> Option<(PartitionStore, Option<Machine>)> {
        let data = self.data()?;
        let secrets = Arc::new(data.identity.cluster_key.clone());
        let cluster = secrets.id().0;
        let opened = PartitionStore::open(&data.state(), partition, cluster, CACHE_BYTES, &Disk::default());
        let (store, checkpoint) = opened.inspect_err(|error| tracing::warn!("{error}")).ok()?;
        let machine = checkpoint.and_then(|checkpoint| {
            let restored = Machine::restore(partition, secrets, &checkpoint.machine);
            restored.inspect_err(|error| tracing::warn!("{error}")).ok()
        });
        Some((store, machine))
    }

    fn tell_sessions(&mut self, partition: u32, trace: &mut Trace) {
        if let Some((_, Some(machine))) = self.store(partition) {
            for (session, key) in machine.session_keys() {
                trace.know(partition, session, key);
            }
        }
    }

    fn namespace(&mut self, name: &UserName) -> Option<NamespaceId> {
        let (mut store, _) = self.store(0)?;
        Some(user(&mut store, name)?.namespace)
    }
}
