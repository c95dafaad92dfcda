//! What all librdkafka instances have in common: properties, where their log
//! lines go, and what went wrong last, in words that an administrator can use.

use super::KafkaSettings;
use crate::log::LogError;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::sync::{Arc, Mutex, PoisonError};

/// librdkafka's defaults are made for throughput; these are for request and reply.
const COMMON: &[(&str, &str)] = &[
    ("client.id", "kfs"),
    ("socket.nagle.disable", "true"),
    ("socket.keepalive.enable", "true"),
    // How long a broker that has silently gone can hold up a request.
    ("socket.timeout.ms", "10000"),
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "1000"),
    ("retry.backoff.ms", "50"),
    ("retry.backoff.max.ms", "1000"),
    ("log.connection.close", "false"),
    ("enable.metrics.push", "false"),
    ("allow.auto.create.topics", "false"),
];

/// How long it can hold up content, in milliseconds: two chunks take 8 s at 1 Mbit/s, and what a broker has not answered by then
/// begins anew.
pub(super) const BULK_TIMEOUT_MS: &str = "20000";

/// The properties of one instance: ours, then the user's, then `fixed`, which
/// the log's promises rest on.
pub(super) fn config(settings: &KafkaSettings, ours: &[(&str, &str)], fixed: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    // By itself it would ask the crate `log`, which nothing here listens to.
    let debugging = settings.properties.contains_key("debug");
    config.set_log_level(if debugging { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info });
    for (key, value) in COMMON.iter().chain(ours) {
        config.set(*key, *value);
    }
    for (key, value) in &settings.properties {
        config.set(key.as_str(), value.as_str());
    }
    config.set("bootstrap.servers", settings.brokers.as_str());
    for (key, value) in fixed {
        config.set(*key, *value);
    }
    config
}

/// Opens an instance, or says which property is wrong.
pub(super) fn open<C, T: FromClientConfigAndContext<C>>(config: &ClientConfig, context: C) -> Result<T, LogError>
where
    C: ClientContext,
{
    config.create_with_context(context).map_err(|error| match error {
        // Its own text would show the value, which may be a password.
        KafkaError::ClientConfig(_, description, key, _) => LogError::Refused {
            tried: format!("take the client property `{key}` (from [kafka] in the configuration)"),
            reason: description,
        },
        other => refusal("start a client".to_owned(), &other),
    })
}

pub(super) fn admin(settings: &KafkaSettings) -> Result<AdminClient<Watch>, LogError> {
    open(&config(settings, &[], &[]), Watch::default())
}

/// Kafka's considered no.
pub(super) fn refusal(tried: String, error: &KafkaError) -> LogError {
    let reason = match error.rdkafka_error_code() {
        Some(code) => code.to_string(),
        None => error.to_string(),
    };
    LogError::Refused { tried, reason }
}

/// Whether trying again may help.
pub(super) fn is_passing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::*;
    matches!(
        code,
        BrokerTransportFailure
            | Resolve
            | AllBrokersDown
            | OperationTimedOut
            | MessageTimedOut
            | TimedOutQueue
            | RequestTimedOut
            | Retry
            | WaitCache
            | NetworkException
            | BrokerNotAvailable
            | LeaderNotAvailable
            | NotLeaderForPartition
            | ReplicaNotAvailable
            | OffsetNotAvailable
            | FencedLeaderEpoch
            | UnknownLeaderEpoch
            | NotController
            | UnknownBroker
            | Authentication
            | SSL
    )
}

pub(super) fn is_no_topic(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::*;
    matches!(error.rdkafka_error_code(), Some(UnknownTopicOrPartition | UnknownTopic | UnknownPartition))
}

/// What went wrong last with an instance.
#[derive(Clone, Default)]
pub(super) struct Trouble(Arc<Mutex<Option<(RDKafkaErrorCode, String)>>>);

impl Trouble {
    fn note(&self, code: RDKafkaErrorCode, reason: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // "1/1 brokers are down" says less than why each of them is.
        if code == RDKafkaErrorCode::AllBrokersDown && last.is_some() {
            return;
        }
        *last = Some((code, reason.to_owned()));
    }

    pub(super) fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, reason)| reason.clone())
    }

    /// The reason, if it is about who we are: trying again will not help.
    pub(super) fn refused(&self) -> Option<String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL, reason)) => Some(reason.clone()),
            _ => None,
        }
    }

    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The context of a client instance: librdkafka's lines go to `tracing` at
/// debug, never to stderr, and its last error is kept.
#[derive(Clone, Default)]
pub(super) struct Watch {
    pub(super) trouble: Trouble,
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(target: "kafka", ?level, facility, "{line}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "kafka", %error, "{reason}");
        if let Some(code) = error.rdkafka_error_code() {
            self.trouble.note(code, reason);
        }
    }
}

impl ConsumerContext for Watch {}
