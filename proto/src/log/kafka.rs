//! The log on real Kafka, through `rdkafka`, whose types never leave this module.
//!
//! * Up to four producers ([`lane`]), each opened when first used: durable or
//!   not (acks differ), control or bulk (a connection each, so that 1 MB never
//!   delays a small record).
//! * One consumer and one polling thread a tail ([`reader`]), with explicit
//!   offsets; consumer groups are never joined.
//! * Every blocking call ends within the settings' timeout.
//! * The embedded broker is recognised by its cluster id, since it does not
//!   wake a waiting fetch and so must be asked all the time.

mod client;
mod lane;
mod reader;
mod stalled;
#[cfg(test)]
mod tests;
pub mod topics;

use crate::log::{Appended, Log, LogError, MAX_RECORD_BYTES, Start, Tail, Topic, block_on};
use bytes::Bytes;
use client::{Trouble, refusal};
use lane::Lane;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use topics::{create_topics, missing_topics, topic_commands};

/// What it takes to reach a cluster.
#[derive(Clone)]
pub struct KafkaSettings {
    /// `HOST:PORT[,HOST:PORT...]`
    pub brokers: String,
    /// The topics are named `<prefix>.<suffix>`.
    pub prefix: String,
    /// Client properties given by the user, handed to librdkafka unchanged. They
    /// replace ours, except where the log would no longer keep its promises.
    pub properties: BTreeMap<String, String>,
    /// Bounds every blocking call and the time within which an append succeeds or fails.
    pub timeout: Duration,
}

impl KafkaSettings {
    pub fn new(brokers: impl Into<String>, prefix: impl Into<String>) -> Self {
        KafkaSettings {
            brokers: brokers.into(),
            prefix: prefix.into(),
            properties: BTreeMap::new(),
            timeout: Duration::from_secs(30),
        }
    }

    /// The topic's full name.
    pub fn topic_name(&self, topic: Topic) -> String {
        format!("{}.{}", self.prefix, topic.suffix())
    }
}

/// Passwords, keys and tokens among the properties do not show.
impl fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties: BTreeMap<&str, &str> = self
            .properties
            .iter()
            .map(|(key, value)| (key.as_str(), if is_secret(key) { "***" } else { value.as_str() }))
            .collect();
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("prefix", &self.prefix)
            .field("properties", &properties)
            .field("timeout", &self.timeout)
            .finish()
    }
}

/// Whether a client property's value must never be shown.
pub(crate) fn is_secret(property: &str) -> bool {
    ["password", "secret", "key.pem", "oauthbearer.config", "jaas", "token"].iter().any(|word| property.contains(word))
}

/// How long one attempt to be answered takes: at least, since answers come sooner, and at most.
const SLICE_MIN: Duration = Duration::from_millis(250);
const SLICE_MAX: Duration = Duration::from_secs(8);

/// What lanes and tails share.
pub(crate) struct Cluster {
    settings: KafkaSettings,
    names: BTreeMap<Topic, String>,
    /// Told by the cluster id; see the module's own words.
    embedded: bool,
    /// How long the last answer that [`retried`] got was waited for.
    slice_ms: AtomicU64,
}

impl Cluster {
    fn new(settings: KafkaSettings) -> Self {
        let names = Topic::ALL.iter().map(|&topic| (topic, settings.topic_name(topic))).collect();
        Cluster { settings, names, embedded: false, slice_ms: AtomicU64::new(SLICE_MIN.as_millis() as u64) }
    }

    fn name(&self, topic: Topic) -> &str {
        &self.names[&topic]
    }

    fn unreachable(&self, trouble: &Trouble) -> LogError {
        LogError::Unreachable {
            brokers: self.settings.brokers.clone(),
            reason: trouble.reason().unwrap_or_else(|| format!("no answer within {:?}", self.settings.timeout)),
        }
    }

    fn no_topic(&self, topic: Topic) -> LogError {
        LogError::NoTopic { topic: self.name(topic).to_owned(), partitions: topic.partitions() }
    }
}

/// The log of one cluster on Kafka. Appends still queued when it is dropped are
/// sent for up to a second more; what must be known to be stored is awaited.
pub struct KafkaLog {
    cluster: Arc<Cluster>,
    /// By [`lane_of`].
    lanes: [Lane; 4],
    admin: OnceLock<AdminClient<client::Watch>>,
}

fn lane_of(topic: Topic) -> usize {
    usize::from(topic.is_durable()) * 2 + usize::from(topic.is_bulk())
}

impl KafkaLog {
    /// Reaches the cluster. Blocks for at most `settings.timeout`.
    ///
    /// # Errors
    /// [`LogError::Unreachable`] with librdkafka's own reason, or [`LogError::Refused`]
    /// at once when it is about who we are (TLS, SASL) or about a wrong property.
    pub fn connect(settings: KafkaSettings) -> Result<Self, LogError> {
        let mut cluster = Cluster::new(settings);
        // Whoever uses the log writes requests, so asking through this lane costs nothing extra.
        let asking = Lane::new(&cluster, true, false);
        let timeout = cluster.settings.timeout;
        cluster.embedded = asking.with_client(|client, trouble| {
            let topic = Some(cluster.name(Topic::Requests));
            retried(&cluster, trouble, timeout, |slice| client.fetch_metadata(topic, slice))?;
            // librdkafka looks for its producer id when metadata comes, but the first may come
            // before it is ready to; without a second the first append would wait for 0.5 s.
            retried(&cluster, trouble, timeout, |slice| client.fetch_metadata(topic, slice))?;
            Ok(client.fetch_cluster_id(timeout).is_some_and(|id| id.starts_with("mockCluster")))
        })??;
        let cluster = Arc::new(cluster);
        let lane = |durable, bulk| Lane::new(&cluster, durable, bulk);
        let lanes = [lane(false, false), lane(false, true), asking, lane(true, true)];
        Ok(KafkaLog { cluster, lanes, admin: OnceLock::new() })
    }

    /// Whether this is the embedded broker of `kfs dev` and tests: in memory,
    /// forgetful, without `LogAppendTime`.
    pub fn is_embedded(&self) -> bool {
        self.cluster.embedded
    }

    fn admin(&self) -> Result<&AdminClient<client::Watch>, LogError> {
        if let Some(admin) = self.admin.get() {
            return Ok(admin);
        }
        let admin = client::admin(&self.cluster.settings)?;
        Ok(self.admin.get_or_init(|| admin))
    }
}

impl Log for KafkaLog {
    fn append(&self, topic: Topic, partition: u32, value: Bytes) -> Appended {
        if value.len() > MAX_RECORD_BYTES {
            return Box::pin(std::future::ready(Err(LogError::TooLarge { bytes: value.len() })));
        }
        self.lanes[lane_of(topic)].append(&self.cluster, topic, partition, &value)
    }

    fn hurry(&self, topic: Topic) {
        self.lanes[lane_of(topic)].hurry();
    }

    fn read_from(&self, starts: &[(Topic, u32, Start)]) -> Result<Tail, LogError> {
        reader::start(&self.cluster, starts)
    }

    fn bounds(&self, topic: Topic, partition: u32) -> Result<(u64, u64), LogError> {
        let cluster = &self.cluster;
        self.lanes[lane_of(Topic::Requests)].with_client(|client, trouble| {
            bounds(cluster, client, trouble, topic, partition, cluster.settings.timeout)
        })?
    }

    /// On the embedded broker this does nothing: it cannot delete, and forgets by itself.
    fn trim(&self, topic: Topic, partition: u32, before: u64) -> Result<(), LogError> {
        if self.cluster.embedded {
            return Ok(());
        }
        let name = self.cluster.name(topic);
        let tried = || format!("delete the records of {name}/{partition} before {before}");
        let mut offsets = TopicPartitionList::new();
        offsets
            .add_partition_offset(name, partition as i32, Offset::Offset(before as i64))
            .map_err(|error| refusal(tried(), &error))?;
        let timeout = Some(self.cluster.settings.timeout);
        let options = AdminOptions::new().request_timeout(timeout).operation_timeout(timeout);
        let done = block_on(self.admin()?.delete_records(&offsets, &options));
        let outcome = done.and_then(|list| match list.elements().first() {
            Some(element) => element.error(),
            None => Ok(()),
        });
        match outcome {
            Ok(()) => Ok(()),
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::OffsetOutOfRange) => {
                    let (first, next) = self.bounds(topic, partition)?;
                    Err(LogError::OutOfRange { topic: name.to_owned(), partition, offset: before, first, next })
                }
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Err(self.cluster.no_topic(topic)),
                Some(code) if client::is_passing(code) => Err(LogError::Unreachable {
                    brokers: self.cluster.settings.brokers.clone(),
                    reason: format!("could not {}: {code}", tried()),
                }),
                _ => Err(refusal(tried(), &error)),
            },
        }
    }
}

/// First and next offset of a partition.
fn bounds<C: ClientContext>(
    cluster: &Cluster,
    client: &Client<C>,
    trouble: &Trouble,
    topic: Topic,
    partition: u32,
    timeout: Duration,
) -> Result<(u64, u64), LogError> {
    let name = cluster.name(topic);
    let asked =
        retried(cluster, trouble, timeout, |slice| match client.fetch_watermarks(name, partition as i32, slice) {
            Err(error) if client::is_no_topic(&error) => Ok(None),
            other => other.map(Some),
        })?;
    let (first, next) = asked.ok_or_else(|| cluster.no_topic(topic))?;
    Ok((first.max(0) as u64, next.max(0) as u64))
}

/// Asks again until there is an answer, the timeout has passed, or Kafka has
/// refused for good. In slices, so that a refusal is noticed soon. Each is twice as long as
/// the one before: an answer that comes later than its slice is lost, and the connection with
/// it (librdkafka's `socket.max.fails`), so a broker that is far away or busy would never
/// be heard. What was enough is begun with the next time.
fn retried<T>(
    cluster: &Cluster,
    trouble: &Trouble,
    timeout: Duration,
    mut ask: impl FnMut(Duration) -> Result<T, KafkaError>,
) -> Result<T, LogError> {
    let deadline = Instant::now() + timeout;
    let mut slice = Duration::from_millis(cluster.slice_ms.load(Ordering::Relaxed));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match ask(left.min(slice)) {
            Ok(answer) => {
                cluster.slice_ms.store(slice.as_millis() as u64, Ordering::Relaxed);
                trouble.clear();
                return Ok(answer);
            }
            Err(error) => error,
        };
        if let Some(reason) = trouble.refused() {
            return Err(LogError::Refused { tried: format!("let us in at {}", cluster.settings.brokers), reason });
        }
        match error.rdkafka_error_code() {
            Some(code) if client::is_passing(code) => {}
            _ => return Err(refusal(format!("answer at {}", cluster.settings.brokers), &error)),
        }
        if Instant::now() >= deadline {
            return Err(cluster.unreachable(trouble));
        }
        slice = (slice * 2).min(SLICE_MAX);
        // Some failures come back at once; this keeps the loop from spinning.
        std::thread::sleep(Duration::from_millis(10).min(left));
    }
}

/// Whether the client library knows the property and takes the value; if not, why. The reason shows no value.
pub(crate) fn check_property(property: &str, value: &str) -> Result<(), String> {
    let mut config = rdkafka::ClientConfig::new();
    config.set(property, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, description, ..)) => Err(description),
        Err(error) => Err(error.to_string()),
    }
}
