//! The log on real Kafka through `rdkafka`.
