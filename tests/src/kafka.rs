//! Real Apache Kafka for tests: fetched by Maven, run by Java, one to three brokers.
//!
//! Each broker is a combined KRaft controller and broker with the defaults that a
//! fresh installation has, since kfs promises to work on those; only what one
//! machine needs (ports, directories, replication of internal topics) is set.
//! The class path is asked of Maven once and kept in a cache directory.

use crate::distance::{Distance, Far};
use crate::process::Process;
use crate::run::{self, Scratch};
use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Who may connect to a secured broker.
pub const USER: &str = "kfs";
pub const PASSWORD: &str = "a password for the broker";

const START_BOUND: Duration = Duration::from_secs(90);
const STOP_BOUND: Duration = Duration::from_secs(30);
const INSTALL: &str = "install both with `apt-get install -y openjdk-17-jre-headless maven`";

/// The newest 4.x that Maven knows of, and a logger that prints.
const POM: &str = r#"<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>kfs</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>[4.0,5.0)</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"#;

/// A Kafka cluster on this machine; ended and removed on drop.
pub struct Kafka {
    brokers: Vec<Broker>,
    class_path: String,
    client_properties: Vec<(&'static str, String)>,
    /// Where it is far away, one for each broker.
    far: Vec<Far>,
    dir: Scratch,
}

/// How brokers are reached.
#[derive(Clone, Copy)]
enum Reached {
    Plainly,
    Secured,
    /// Plainly, and by others from this far away.
    From(Distance),
}

struct Broker {
    /// For clients.
    port: u16,
    /// For whoever needs no password: the brokers among each other, and this harness.
    inner_port: u16,
    properties: PathBuf,
    log: PathBuf,
    process: Option<Process>,
}

impl Kafka {
    /// Starts `n_brokers` brokers and waits until all of them answer.
    pub fn start(n_brokers: usize) -> Result<Kafka> {
        Kafka::start_as(n_brokers, Reached::Plainly)
    }

    /// One broker that lets in only who speaks TLS with it and knows [`USER`]'s password.
    pub fn start_secured() -> Result<Kafka> {
        Kafka::start_as(1, Reached::Secured)
    }

    /// One broker that is far away for whoever comes by [`Kafka::far_bootstrap`].
    pub fn start_far(distance: Distance) -> Result<Kafka> {
        Kafka::start_as(1, Reached::From(distance))
    }

    fn start_as(n_brokers: usize, reached: Reached) -> Result<Kafka> {
        let secured = matches!(reached, Reached::Secured);
        let class_path = class_path()?;
        let dir = Scratch::new("kafka");
        let client_properties = if secured { make_certificates(dir.path())? } else { Vec::new() };
        let controllers: Vec<u16> = (0..n_brokers).map(|_| run::free_port()).collect();
        let mut voters = String::new();
        for (i, port) in controllers.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(voters, "{comma}{}@127.0.0.1:{port}", i + 1).expect("a string takes everything");
        }
        let (mut brokers, mut far) = (Vec::new(), Vec::new());
        for (i, controller) in controllers.iter().enumerate() {
            let port = run::free_port();
            let inner_port = if secured { run::free_port() } else { port };
            let data = dir.join(data_name(i));
            let properties = dir.join(format!("broker-{}.properties", i + 1));
            let mut text = [
                "process.roles=broker,controller".to_owned(),
                format!("node.id={}", i + 1),
                format!("controller.quorum.voters={voters}"),
                "controller.listener.names=CONTROLLER".to_owned(),
                format!("log.dirs={}", data.display()),
                format!("offsets.topic.replication.factor={n_brokers}"),
                format!("transaction.state.log.replication.factor={n_brokers}"),
                "transaction.state.log.min.isr=1".to_owned(),
                // Internal topics that kfs does not use; fewer partitions recover sooner.
                "offsets.topic.num.partitions=1".to_owned(),
                "transaction.state.log.num.partitions=1".to_owned(),
            ]
            .join("\n");
            let inner = format!("PLAINTEXT://127.0.0.1:{inner_port}");
            // A broker tells its clients where to go, so that has to lead over the same way.
            let (listeners, advertised, more) = match reached {
                Reached::Plainly => (inner.clone(), inner, String::new()),
                Reached::Secured => {
                    let both = format!("SASL_SSL://127.0.0.1:{port},{inner}");
                    (both.clone(), both, secured_listener(dir.path()))
                }
                Reached::From(distance) => {
                    let behind = run::free_port();
                    let way = Far::from(behind, distance)?;
                    let listeners = format!("{inner},FAR://127.0.0.1:{behind}");
                    let advertised = format!("{inner},FAR://127.0.0.1:{}", way.port());
                    far.push(way);
                    (listeners, advertised, far_listener())
                }
            };
            write!(text, "\nlisteners={listeners},CONTROLLER://127.0.0.1:{controller}\n")?;
            write!(text, "advertised.listeners={advertised}\n{more}")?;
            std::fs::write(&properties, text)?;
            let log = dir.join(format!("broker-{}.log", i + 1));
            format_storage(&class_path, &properties)?;
            brokers.push(Broker { port, inner_port, properties, log, process: None });
        }
        let mut kafka = Kafka { brokers, class_path, client_properties, far, dir };
        for i in 0..n_brokers {
            kafka.launch(i)?;
        }
        kafka.wait_ready()?;
        Ok(kafka)
    }

    /// What a client is given: `host:port[,host:port]`.
    pub fn bootstrap(&self) -> String {
        addresses(&self.brokers, |broker| broker.port)
    }

    /// The same for clients that are far away, where it was started for some.
    pub fn far_bootstrap(&self) -> String {
        match &self.far[..] {
            [] => self.bootstrap(),
            far => far.iter().map(|far| format!("127.0.0.1:{}", far.port())).collect::<Vec<_>>().join(","),
        }
    }

    /// What a client needs beside the addresses, as librdkafka's properties.
    pub fn client_properties(&self) -> &[(&'static str, String)] {
        &self.client_properties
    }

    /// Where the brokers' own files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of a broker that runs.
    pub fn pid(&self, broker: usize) -> Option<u32> {
        self.brokers[broker].process.as_ref().map(Process::pid)
    }

    /// SIGKILL to one broker (counted from 0).
    pub fn kill(&mut self, broker: usize) {
        if let Some(mut process) = self.brokers[broker].process.take() {
            process.kill();
        }
    }

    /// An orderly end of one broker.
    pub fn stop(&mut self, broker: usize) -> Result<()> {
        if let Some(mut process) = self.brokers[broker].process.take() {
            process.stop(STOP_BOUND)?;
        }
        Ok(())
    }

    /// Starts a stopped or killed broker again on its old port and data, and waits until all answer.
    pub fn restart(&mut self, broker: usize) -> Result<()> {
        self.stop(broker)?;
        self.launch(broker)?;
        self.wait_ready()
    }

    /// Ends all brokers and starts them again on the same ports with nothing on their disks.
    pub fn wipe(&mut self) -> Result<()> {
        for i in 0..self.brokers.len() {
            self.kill(i);
            std::fs::remove_dir_all(self.dir.join(data_name(i)))?;
            format_storage(&self.class_path, &self.brokers[i].properties)?;
        }
        for i in 0..self.brokers.len() {
            self.launch(i)?;
        }
        self.wait_ready()
    }

    fn launch(&mut self, i: usize) -> Result<()> {
        let broker = &mut self.brokers[i];
        let mut command = java(&self.class_path);
        command.args(["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=4"]);
        command.args([
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "-Dorg.slf4j.simpleLogger.log.state.change.logger=warn",
        ]);
        command.arg("kafka.Kafka").arg(&broker.properties);
        broker.process = Some(Process::start(&format!("Kafka broker {}", i + 1), &mut command, &broker.log)?);
        Ok(())
    }

    /// Waits until every running broker accepts connections and knows of all the running ones.
    fn wait_ready(&mut self) -> Result<()> {
        let mut running = 0;
        for (i, broker) in self.brokers.iter_mut().enumerate() {
            let Some(process) = &mut broker.process else { continue };
            running += 1;
            let address = SocketAddr::from(([127, 0, 0, 1], broker.port));
            let mut ended = None;
            run::wait_for(&format!("Kafka broker {} to listen", i + 1), START_BOUND, || {
                ended = process.ended();
                (ended.is_some() || TcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok())
                    .then_some(())
            })?;
            if let Some(status) = ended {
                bail!("Kafka broker {} ended at its start ({status}):\n{}", i + 1, process.output());
            }
        }
        let client: BaseConsumer = rdkafka::ClientConfig::new()
            .set("bootstrap.servers", addresses(&self.brokers, |broker| broker.inner_port))
            .set("reconnect.backoff.max.ms", "200")
            .create()
            .context("create a Kafka client")?;
        run::wait_for("all Kafka brokers to know of each other", START_BOUND, || {
            let known = client.fetch_metadata(None, Duration::from_secs(1)).ok()?.brokers().len();
            (known >= running).then_some(())
        })
    }
}

fn data_name(broker: usize) -> String {
    format!("data-{}", broker + 1)
}

fn addresses(brokers: &[Broker], port: impl Fn(&Broker) -> u16) -> String {
    let addresses: Vec<String> = brokers.iter().map(|broker| format!("127.0.0.1:{}", port(broker))).collect();
    addresses.join(",")
}

/// Makes a certificate authority and a certificate for the broker; gives what a client
/// is told to trust and to say.
fn make_certificates(dir: &Path) -> Result<Vec<(&'static str, String)>> {
    crate::command::sh(
        dir,
        r#"
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=kfs test authority" -keyout ca.key -out ca.pem
        openssl req -newkey rsa:2048 -nodes -subj "/CN=127.0.0.1" -keyout broker.key -out broker.csr
        printf 'subjectAltName=IP:127.0.0.1\n' >extensions
        openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out broker.crt
        cat broker.key broker.crt ca.pem >broker.pem
        "#,
        &[],
    )
    .context("make certificates with openssl (`apt-get install -y openssl`)")?;
    Ok(vec![
        ("security.protocol", "SASL_SSL".to_owned()),
        ("ssl.ca.location", dir.join("ca.pem").display().to_string()),
        ("sasl.mechanism", "PLAIN".to_owned()),
        ("sasl.username", USER.to_owned()),
        ("sasl.password", PASSWORD.to_owned()),
    ])
}

/// The broker's side of [`make_certificates`].
fn secured_listener(dir: &Path) -> String {
    [
        "listener.security.protocol.map=SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
        "inter.broker.listener.name=PLAINTEXT".to_owned(),
        "ssl.keystore.type=PEM".to_owned(),
        format!("ssl.keystore.location={}", dir.join("broker.pem").display()),
        "sasl.enabled.mechanisms=PLAIN".to_owned(),
        format!(
            "listener.name.sasl_ssl.plain.sasl.jaas.config=\
             org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
        ),
    ]
    .join("\n")
}

/// What [`Kafka::start_far`] adds.
fn far_listener() -> String {
    "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,FAR:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
     inter.broker.listener.name=PLAINTEXT\n"
        .to_owned()
}

fn java(class_path: &str) -> Command {
    let mut command = Command::new("java");
    command.arg("-cp").arg(class_path).env_remove("JAVA_TOOL_OPTIONS").stdin(Stdio::null());
    command
}

fn format_storage(class_path: &str, properties: &Path) -> Result<()> {
    // All brokers of one cluster carry one id; clusters of different tests never meet.
    const CLUSTER_ID: &str = "kfsTestsClusterIdAAAAA";
    let output = java(class_path)
        .args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format"])
        .args(["--cluster-id", CLUSTER_ID, "--config"])
        .arg(properties)
        .output()
        .with_context(|| format!("cannot run java; {INSTALL}"))?;
    ensure!(
        output.status.success(),
        "Kafka's StorageTool failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Kafka's class path, from Maven the first time and from the cache afterwards.
fn class_path() -> Result<String> {
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("create {cache:?}"))?;
    // Test binaries may run side by side; one asks Maven, the others wait for it.
    let lock = std::fs::File::create(cache.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let (pom, kept) = (cache.join("pom.xml"), cache.join("classpath"));
    if std::fs::read_to_string(&pom).is_ok_and(|text| text == POM)
        && let Ok(text) = std::fs::read_to_string(&kept)
        && !text.trim().is_empty()
        && text.trim().split(':').all(|jar| Path::new(jar).exists())
    {
        return Ok(text.trim().to_owned());
    }
    std::fs::write(&pom, POM)?;
    let _ = std::fs::remove_file(&kept);
    let output = Command::new("mvn")
        .args(["--batch-mode", "--quiet", "dependency:build-classpath", "-Dmdep.includeScope=runtime"])
        .arg(format!("-Dmdep.outputFile={}", kept.display()))
        .arg("--file")
        .arg(&pom)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run mvn, which fetches Apache Kafka for these tests; {INSTALL}"))?;
    ensure!(
        output.status.success(),
        "Maven could not fetch Apache Kafka ({}); look at its message and try again:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(&kept).with_context(|| format!("read {kept:?}"))?;
    Ok(text.trim().to_owned())
}

fn cache_dir() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()) {
        return Ok(PathBuf::from(cache).join("kfs-tests"));
    }
    let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/kfs-tests"))
}
