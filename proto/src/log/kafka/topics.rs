//! The topics themselves: which are missing, creating them, and the commands for
//! an administrator who must do it instead.

use super::client::{self, refusal};
use super::{Cluster, KafkaLog, KafkaSettings, retried};
use crate::log::{Log, LogError, Start, Topic, block_on};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use std::time::{Duration, Instant};

/// A finite safety bound; the server trims long before it.
const DURABLE_RETENTION_MS: &str = "2592000000";
/// Answers and downloads that nobody has taken after 10 minutes never will be.
const PASSING_RETENTION_MS: &str = "600000";
/// Bounds the disk that 10 minutes of downloads can take: 1 GiB a partition.
const PASSING_RETENTION_BYTES: &str = "1073741824";
const PASSING_SEGMENT_BYTES: &str = "67108864";

/// What [`create_topics`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    pub topics: Vec<Topic>,
    /// Copies that Kafka keeps of each record.
    pub replication: u32,
    /// What the administrator should know, in one line.
    pub warning: Option<String>,
}

/// The topics that the cluster lacks. Blocks for at most the settings' timeout.
///
/// # Errors
/// [`LogError::NoTopic`] for one that is there with too few partitions.
pub fn missing_topics(settings: &KafkaSettings) -> Result<Vec<Topic>, LogError> {
    Ok(survey(settings)?.missing)
}

/// Creates what is missing. Blocks for at most four times the settings' timeout.
///
/// # Errors
/// [`LogError::Refused`] where creating is not permitted: print [`topic_commands`] then.
pub fn create_topics(settings: &KafkaSettings) -> Result<Created, LogError> {
    let survey = survey(settings)?;
    let replication = replication(survey.brokers);
    let warning = (replication == 1).then(|| {
        "Kafka keeps one copy of each record: losing a broker's disk loses acknowledged changes; \
         three brokers and replication 3 prevent it"
            .to_owned()
    });
    let created = Created { topics: survey.missing, replication, warning };
    if created.topics.is_empty() {
        return Ok(created);
    }
    let names: Vec<String> = created.topics.iter().map(|&topic| settings.topic_name(topic)).collect();
    let new: Vec<NewTopic<'_>> = created
        .topics
        .iter()
        .zip(&names)
        .map(|(&topic, name)| {
            let new = NewTopic::new(name, topic.partitions() as i32, TopicReplication::Fixed(replication as i32));
            properties(topic, replication).into_iter().fold(new, |new, (key, value)| new.set(key, value))
        })
        .collect();
    let timeout = Some(settings.timeout);
    let options = AdminOptions::new().request_timeout(timeout).operation_timeout(timeout);
    let admin = client::admin(settings)?;
    let outcomes = block_on(admin.create_topics(&new, &options))
        .map_err(|error| refusal(format!("create topics at {}", settings.brokers), &error))?;
    for outcome in outcomes {
        match outcome {
            // Another server was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(LogError::Refused {
                    tried: format!("create the topic {name}"),
                    reason: format!("{code}; `kfs-server topics --print` shows the commands for an administrator"),
                });
            }
        }
    }
    await_topics(settings)?;
    Ok(created)
}

/// A broker answers that topics are created before it knows of each partition's
/// leader. Waits until all can be read, at most the settings' timeout.
fn await_topics(settings: &KafkaSettings) -> Result<(), LogError> {
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + settings.timeout;
    let log = KafkaLog::connect(settings.clone())?;
    let all: Vec<(Topic, u32, Start)> = Topic::ALL
        .into_iter()
        .flat_map(|topic| (0..topic.partitions()).map(move |partition| (topic, partition, Start::End)))
        .collect();
    loop {
        match log.read_from(&all) {
            Err(LogError::NoTopic { .. }) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            read => return read.map(drop),
        }
    }
}

/// The commands that create every topic, for an administrator to run. Counts the
/// brokers for that if they answer within 3 s, else takes it that there are three.
pub fn topic_commands(settings: &KafkaSettings) -> Vec<String> {
    let hasty = KafkaSettings { timeout: settings.timeout.min(Duration::from_secs(3)), ..settings.clone() };
    let replication = survey(&hasty).map_or(3, |survey| replication(survey.brokers));
    commands(settings, replication)
}

fn commands(settings: &KafkaSettings, replication: u32) -> Vec<String> {
    let secured = settings.properties.keys().any(|key| key == "security.protocol" || key.starts_with("sasl."));
    let login = if secured { " --command-config admin.properties" } else { "" };
    let command = |&topic: &Topic| {
        let mut line = format!(
            "kafka-topics.sh --bootstrap-server {}{login} --create --if-not-exists --topic {} --partitions {} --replication-factor {replication}",
            settings.brokers,
            settings.topic_name(topic),
            topic.partitions(),
        );
        for (key, value) in properties(topic, replication) {
            line.push_str(&format!(" --config {key}={value}"));
        }
        line
    };
    Topic::ALL.iter().map(command).collect()
}

fn replication(brokers: usize) -> u32 {
    brokers.clamp(1, 3) as u32
}

fn properties(topic: Topic, replication: u32) -> Vec<(&'static str, &'static str)> {
    let mut properties = vec![
        ("message.timestamp.type", "LogAppendTime"),
        ("cleanup.policy", "delete"),
        ("min.insync.replicas", if topic.is_durable() && replication >= 3 { "2" } else { "1" }),
    ];
    if topic.is_durable() {
        properties.push(("retention.ms", DURABLE_RETENTION_MS));
        properties.push(("retention.bytes", "-1"));
    } else {
        properties.push(("retention.ms", PASSING_RETENTION_MS));
        properties.push(("segment.ms", PASSING_RETENTION_MS));
        properties.push(("retention.bytes", PASSING_RETENTION_BYTES));
        properties.push(("segment.bytes", PASSING_SEGMENT_BYTES));
    }
    properties
}

struct Survey {
    missing: Vec<Topic>,
    brokers: usize,
}

fn survey(settings: &KafkaSettings) -> Result<Survey, LogError> {
    let cluster = Cluster::new(settings.clone());
    let watch = client::Watch::default();
    let trouble = watch.trouble.clone();
    let asking: BaseConsumer<client::Watch> = client::open(&client::config(settings, &[], &[]), watch)?;
    // All topics are asked for, since asking for one by name may create it.
    let metadata = retried(&cluster, &trouble, settings.timeout, |slice| {
        while asking.poll(Duration::ZERO).is_some() {}
        let answer = asking.fetch_metadata(None, slice);
        while asking.poll(Duration::ZERO).is_some() {}
        answer
    })?;
    let mut missing = Vec::new();
    for topic in Topic::ALL {
        match metadata.topics().iter().find(|found| found.name() == cluster.name(topic)) {
            None => missing.push(topic),
            Some(found) if found.partitions().len() < topic.partitions() as usize => {
                return Err(cluster.no_topic(topic));
            }
            Some(_) => {}
        }
    }
    Ok(Survey { missing, brokers: metadata.brokers().len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_every_topic_and_what_it_must_be_like() {
        let commands = commands(&KafkaSettings::new("b1:9092,b2:9092", "shop"), 3);
        assert_eq!(commands.len(), Topic::ALL.len());
        assert!(commands.iter().all(|command| command.contains("message.timestamp.type=LogAppendTime")));
        assert!(commands[0].contains("--topic shop.requests --partitions 16 --replication-factor 3"));
        assert!(commands[0].contains("min.insync.replicas=2"));
        assert!(commands[0].contains("retention.ms=2592000000"));
        assert!(commands[3].contains("--topic shop.replies --partitions 64"));
        assert!(commands[3].contains("retention.ms=600000"));
        assert!(commands[3].contains("segment.ms=600000"));
        assert!(!commands[0].contains("--command-config"));
    }

    #[test]
    fn few_brokers_keep_few_copies() {
        assert_eq!([0, 1, 2, 3, 9].map(replication), [1, 1, 2, 3, 3]);
    }
}
