//! The broker that end-to-end tests run on: embedded, or real Apache Kafka where
//! `KFS_TEST_BROKER=kafka` says so. Nothing else in a test depends on which.

use crate::distance::Distance;
use crate::kafka::Kafka;
use anyhow::{Context, Result, bail};
use proto::log::embedded::EmbeddedBroker;
use std::sync::Mutex;

/// What `KFS_TEST_BROKER` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Embedded,
    Kafka,
}

impl Kind {
    /// # Panics
    /// On a value that is neither `embedded` nor `kafka`: a typing error must not test less in silence.
    pub fn asked_for() -> Kind {
        match std::env::var("KFS_TEST_BROKER").as_deref() {
            Err(_) | Ok("" | "embedded") => Kind::Embedded,
            Ok("kafka") => Kind::Kafka,
            Ok(other) => panic!("KFS_TEST_BROKER is {other:?}; it takes `embedded` or `kafka`"),
        }
    }
}

/// Names a broker that a parent process runs, for tests that re-execute their binary as another user.
pub const GIVEN: &str = "KFS_TEST_BOOTSTRAP";

pub struct Broker(Inner);

enum Inner {
    Embedded(EmbeddedBroker),
    Own(Kafka),
    /// One for the whole test binary, ended with the run.
    Shared(String),
}

impl Broker {
    /// A broker that this test may also stop.
    pub fn own(prefix: &str) -> Result<Broker> {
        Ok(Broker(match Kind::asked_for() {
            Kind::Embedded => Inner::Embedded(EmbeddedBroker::start(prefix)?),
            Kind::Kafka => Inner::Own(Kafka::start(1)?),
        }))
    }

    /// Real Kafka of its own, whatever the environment asks for.
    pub fn own_kafka(_prefix: &str) -> Result<Broker> {
        Ok(Broker(Inner::Own(Kafka::start(1)?)))
    }

    /// Real Kafka that wants TLS and a password, as [`Broker::client_properties`] tell.
    pub fn secured_kafka(_prefix: &str) -> Result<Broker> {
        Ok(Broker(Inner::Own(Kafka::start_secured()?)))
    }

    /// Real Kafka that is far away from mounts, and near to servers and administrators.
    pub fn far_kafka(distance: Distance) -> Result<Broker> {
        Ok(Broker(Inner::Own(Kafka::start_far(distance)?)))
    }

    /// Three real brokers, as a cluster that survives the loss of one: replication 3,
    /// and acknowledged means on two of them.
    pub fn replicated_kafka(_prefix: &str) -> Result<Broker> {
        Ok(Broker(Inner::Own(Kafka::start(3)?)))
    }

    /// A broker that other tests use too, where starting one takes seconds.
    pub fn shared(prefix: &str) -> Result<Broker> {
        static KAFKA: Mutex<Option<Kafka>> = Mutex::new(None);
        if Kind::asked_for() == Kind::Embedded {
            return Broker::own(prefix);
        }
        if let Ok(bootstrap) = std::env::var(GIVEN) {
            return Ok(Broker(Inner::Shared(bootstrap)));
        }
        let mut kafka = KAFKA.lock().expect("no test panics while it starts Kafka");
        let kafka = match &*kafka {
            Some(kafka) => kafka,
            None => kafka.insert(Kafka::start(1)?),
        };
        Ok(Broker(Inner::Shared(kafka.bootstrap())))
    }

    /// `HOST:PORT[,HOST:PORT...]`
    pub fn bootstrap(&self) -> String {
        match &self.0 {
            Inner::Embedded(broker) => broker.bootstrap_servers().to_owned(),
            Inner::Own(kafka) => kafka.bootstrap(),
            Inner::Shared(bootstrap) => bootstrap.clone(),
        }
    }

    /// The same for mounts.
    pub fn bootstrap_of_mounts(&self) -> String {
        match &self.0 {
            Inner::Own(kafka) => kafka.far_bootstrap(),
            Inner::Embedded(_) | Inner::Shared(_) => self.bootstrap(),
        }
    }

    /// What belongs into the `[kafka]` section of a client's configuration.
    pub fn client_properties(&self) -> &[(&'static str, String)] {
        match &self.0 {
            Inner::Own(kafka) => kafka.client_properties(),
            Inner::Embedded(_) | Inner::Shared(_) => &[],
        }
    }

    /// Nobody reaches it until [`Broker::up`]. Real Kafka is killed.
    pub fn down(&mut self) -> Result<()> {
        match &mut self.0 {
            Inner::Embedded(broker) => broker.down().context("stop the embedded broker"),
            Inner::Own(kafka) => {
                kafka.kill(0);
                Ok(())
            }
            Inner::Shared(_) => bail!("other tests use this broker; start one of the test's own"),
        }
    }

    /// Everything in it is lost, and it goes on empty; only real Kafka of the test's own can.
    pub fn wipe(&mut self) -> Result<()> {
        match &mut self.0 {
            Inner::Own(kafka) => kafka.wipe(),
            Inner::Embedded(_) | Inner::Shared(_) => bail!("only Kafka of the test's own can lose its disks"),
        }
    }

    pub fn up(&mut self) -> Result<()> {
        match &mut self.0 {
            Inner::Embedded(broker) => broker.up().context("start the embedded broker again"),
            Inner::Own(kafka) => kafka.restart(0),
            Inner::Shared(_) => Ok(()),
        }
    }
}
