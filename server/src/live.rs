//! Reads a topic whose records are soon worthless, as logins and downloads do: from
//! its end on, through every outage. What was asked and not seen is asked again.
#![allow(clippy::disallowed_methods)] // Attempts are spaced here.

use proto::frame::Frame;
use proto::log::{Log, LogError, Record, Start, Tail, Topic};
use proto::task::offload;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Between attempts to read a topic anew.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// All partitions of one topic.
pub(crate) struct Live {
    log: Arc<dyn Log>,
    starts: Vec<(Topic, u32, Start)>,
    tail: Tail,
}

impl Live {
    /// Blocks as [`Log::read_from`].
    pub fn open(log: Arc<dyn Log>, topic: Topic) -> Result<Live, LogError> {
        let starts: Vec<_> = (0..topic.partitions()).map(|partition| (topic, partition, Start::End)).collect();
        let tail = log.read_from(&starts)?;
        Ok(Live { log, starts, tail })
    }

    /// The next record.
    pub async fn next(&mut self) -> Record {
        loop {
            match self.tail.next().await {
                Some(Ok(record)) => return record,
                Some(Err(error)) => tracing::warn!("{error}; waiting for Kafka"),
                // What came next has gone, with a topic that was truncated or made anew.
                None => self.reopen().await,
            }
        }
    }

    async fn reopen(&mut self) {
        tokio::time::sleep(AGAIN_AFTER).await;
        let (log, starts) = (self.log.clone(), self.starts.clone());
        match offload(move || log.read_from(&starts)).await {
            Ok(Ok(tail)) => self.tail = tail,
            Ok(Err(error)) => tracing::warn!("{error}; trying again"),
            Err(error) => tracing::error!("{error}; trying again"),
        }
    }
}

/// The next frame, if one comes by then.
pub(crate) async fn next_frame(tail: &mut Tail, until: Instant) -> Option<Frame> {
    loop {
        match timeout_at(until, tail.next()).await {
            Err(_) | Ok(None) => return None,
            Ok(Some(Ok(record))) => {
                if let Ok(frame) = Frame::parse(record.value) {
                    return Some(frame);
                }
            }
            // It passes, or the time does.
            Ok(Some(Err(error))) => tracing::warn!("{error}; waiting for Kafka"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::log::memory::MemoryLog;

    #[tokio::test]
    async fn a_topic_that_was_cut_is_read_on_from_its_end() {
        let log = MemoryLog::new();
        let mut live = Live::open(Arc::new(log.clone()), Topic::Auth).expect("opens");
        for n in 0..3 {
            log.append(Topic::Auth, 0, Bytes::from(vec![n])).await.expect("appends");
        }
        log.trim(Topic::Auth, 0, 2).expect("trims");
        let next = live.next();
        let later = async {
            tokio::time::sleep(AGAIN_AFTER * 2).await;
            log.append(Topic::Auth, 0, Bytes::from(vec![9])).await.expect("appends");
        };
        let (record, ()) = tokio::join!(next, later);
        assert_eq!(record.value[..], [9]);
    }
}
