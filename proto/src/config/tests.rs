//! Configuration: the order of its sources, and what each mistake is told.

use super::*;
use std::collections::HashMap;

fn parse(text: &str) -> Result<Options, ConfigError> {
    file::parse(Path::new("/there/config.toml"), text)
}

fn complaint(text: &str) -> String {
    parse(text).expect_err("something is wrong").to_string()
}

#[test]
fn every_key_is_read() {
    let text = r#"
        brokers = "b1:9092,[::1]:9093"
        prefix = "shop"
        user = "anna"
        password_file = "secret"
        credential = "/abs/credential"

        [kafka]
        "sasl.mechanism" = "SCRAM-SHA-512"
        "socket.timeout.ms" = 5000
        "socket.keepalive.enable" = true

        [server]
        data = "/var/lib/kfs"
        key_file = "/etc/kfs/key"

        [mount]
        timeout = "500ms"
        hard = true
        cache = "512M"
        cache_dir = "pieces"
        cache_dir_size = "2G"
        journal = 1048576
        umount_timeout = 90
    "#;
    let options = parse(text).expect("all of it is right");
    assert_eq!(options.brokers.as_deref(), Some("b1:9092,[::1]:9093"));
    assert_eq!(options.prefix.as_deref(), Some("shop"));
    assert_eq!(options.user.as_deref(), Some("anna"));
    assert_eq!(options.password_file, Some("/there/secret".into()));
    assert_eq!(options.credential, Some("/abs/credential".into()));
    let kafka: Vec<(&str, &str)> = options.kafka.0.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected =
        [("sasl.mechanism", "SCRAM-SHA-512"), ("socket.keepalive.enable", "true"), ("socket.timeout.ms", "5000")];
    assert_eq!(kafka, expected);
    assert_eq!(options.server.data, Some("/var/lib/kfs".into()));
    assert_eq!(options.server.key_file, Some("/etc/kfs/key".into()));
    assert_eq!(options.mount.timeout, Some(Duration::from_millis(500)));
    assert_eq!(options.mount.hard, Some(true));
    assert_eq!((options.mount.cache, options.mount.journal), (Some(512 << 20), Some(1 << 20)));
    assert_eq!(options.mount.cache_dir, Some("/there/pieces".into()));
    assert_eq!(options.mount.cache_dir_size, Some(2 << 30));
    assert_eq!(options.mount.umount_timeout, Some(Duration::from_secs(90)));
}

#[test]
fn the_example_in_the_readme_is_right() {
    let readme = include_str!("../../README.md");
    let (_, example) = readme.split_once("```toml\n").expect("there is an example");
    let (example, _) = example.split_once("```").expect("it ends");
    parse(example).expect("all of it is right");
}

#[test]
fn what_is_wrong_is_named_with_its_file_and_line() {
    for (text, expected) in [
        ("user = \"a\"\nbrokrs = \"b:1\"", "/there/config.toml:2: unknown key `brokrs`; here stand brokers, prefix,"),
        ("[mount]\n\ncash = 3", "/there/config.toml:3: unknown key `cash`; in [mount] stand timeout, hard,"),
        ("[server]\ndat = \"x\"", "/there/config.toml:2: unknown key `dat`; in [server] stand data, key_file"),
        ("prefix = 3", "/there/config.toml:1: `prefix`: takes a string, but here stands an integer"),
        ("prefix = \"a b\"", "/there/config.toml:1: `prefix`: `a b` is not a prefix; it takes"),
        ("brokers = \"kafka\"", "/there/config.toml:1: `brokers`: `kafka` is not a broker; write HOST:PORT"),
        ("[mount]\ntimeout = \"soon\"", "/there/config.toml:2: `mount.timeout`: `soon` is not a duration"),
        ("[mount]\ncache = -1", "/there/config.toml:2: `mount.cache`: `-1` is not a size"),
        (
            "[mount]\nhard = \"yes\"",
            "/there/config.toml:2: `mount.hard`: takes true or false, but here stands a string",
        ),
        ("mount = 1", "/there/config.toml:1: `mount`: takes a table, but here stands an integer"),
        ("[kafka]\n\"no.such\" = 1", "/there/config.toml:2: `kafka.no.such`: No such configuration property"),
        ("[kafka]\n\"socket.timeout.ms\" = \"x\"", "/there/config.toml:2: `kafka.socket.timeout.ms`: "),
        ("[kafka]\nsasl.mechanism = \"PLAIN\"", "/there/config.toml:2: `kafka.sasl`: is a table; quote names"),
        (
            "[kafka]\n\"bootstrap.servers\" = \"b:1\"",
            "/there/config.toml:2: `kafka.bootstrap.servers`: stands at the top",
        ),
        ("user = \"a\"\nuser = \"b\"", "/there/config.toml:2: "),
        ("user = ", "/there/config.toml:1: "),
    ] {
        let complaint = complaint(text);
        assert!(complaint.starts_with(expected), "{text:?}: {complaint}");
        assert!(!complaint.contains('\n'), "one line: {complaint}");
    }
}

#[test]
fn a_wrong_secret_does_not_show() {
    let complaint = complaint("[kafka]\n\"sasl.passwort\" = \"hunter2\"");
    assert!(!complaint.contains("hunter2"), "{complaint}");
    let options = parse("[kafka]\n\"sasl.password\" = \"hunter2\"\n\"ssl.key.password\" = \"hunter3\"").expect("right");
    let mut config = options.complete(Vec::new());
    config.brokers = Some("b:1".to_owned());
    let shown = format!("{config:?} {:?}", config.kafka_settings().expect("complete"));
    assert!(shown.contains("sasl.password") && !shown.contains("hunter"), "{shown}");
}

/// A directory of files, and variables, as one run would find them.
struct Home {
    directory: tempfile::TempDir,
    variables: HashMap<&'static str, OsString>,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let variables = HashMap::from([("HOME", directory.path().join("home").into_os_string())]);
        Home { directory, variables }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.directory.path().join(name);
        std::fs::create_dir_all(file.parent().expect("inside")).expect("made");
        std::fs::write(&file, text).expect("written");
        file
    }

    fn load(&self, flags: &Options) -> Result<Config, ConfigError> {
        let variable = |name: &str| self.variables.get(name).cloned();
        let system_file = &self.directory.path().join("etc/config.toml");
        Config::load_in(&Surroundings { system_file, variable: &variable }, flags)
    }
}

#[test]
fn nothing_said_means_the_defaults() {
    let config = Home::new().load(&Options::default()).expect("nothing is wrong");
    assert_eq!(config.prefix, "kfs");
    assert_eq!(config.mount.timeout, Duration::from_secs(30));
    assert!(config.files.is_empty());
    let complaint = config.kafka_settings().expect_err("there are no brokers").to_string();
    assert!(complaint.starts_with("no Kafka broker is given; name one with --brokers"), "{complaint}");
}

#[test]
fn a_later_layer_replaces_what_it_names() {
    let mut home = Home::new();
    home.write("etc/config.toml", "brokers = \"etc:1\"\nprefix = \"etc\"\nuser = \"etc\"\n[mount]\ncache = 1");
    home.write("home/.config/kfs/config.toml", "brokers = \"own:1\"\nuser = \"own\"\n[mount]\njournal = 2");
    home.variables.insert("KFS_USER", "env".into());
    home.variables.insert("KFS_BROKERS", "".into());
    let flags = Options { mount: MountOptions { cache: Some(3), ..Default::default() }, ..Default::default() };
    let config = home.load(&flags).expect("nothing is wrong");
    assert_eq!(config.prefix, "etc");
    assert_eq!(config.brokers.as_deref(), Some("own:1"), "an empty variable says nothing");
    assert_eq!(config.user.as_deref(), Some("env"));
    assert_eq!((config.mount.cache, config.mount.journal), (3, 2));
    assert_eq!(config.files.len(), 2);
}

#[test]
fn the_last_way_to_log_in_counts() {
    let home = Home::new();
    home.write("etc/config.toml", "password_file = \"/p\"");
    let flags = Options { credential: Some("/c".into()), ..Default::default() };
    let config = home.load(&flags).expect("nothing is wrong");
    assert_eq!((config.password_file, config.credential), (None, Some("/c".into())));
}

#[test]
fn xdg_moves_the_users_file() {
    let mut home = Home::new();
    home.write("xdg/kfs/config.toml", "user = \"xdg\"");
    home.write("home/.config/kfs/config.toml", "user = \"home\"");
    home.variables.insert("XDG_CONFIG_HOME", home.directory.path().join("xdg").into());
    assert_eq!(home.load(&Options::default()).expect("right").user.as_deref(), Some("xdg"));
    home.variables.insert("XDG_CONFIG_HOME", "relative".into());
    assert_eq!(home.load(&Options::default()).expect("right").user.as_deref(), Some("home"));
}

#[test]
fn a_named_file_is_the_only_one_and_must_be_there() {
    let mut home = Home::new();
    home.write("etc/config.toml", "prefix = \"etc\"");
    let named = home.write("named.toml", "user = \"named\"");
    home.variables.insert("KFS_CONFIG", named.clone().into());
    let config = home.load(&Options::default()).expect("right");
    assert_eq!((config.prefix.as_str(), config.user.as_deref()), ("kfs", Some("named")));
    let flags = Options { config: Some(home.directory.path().join("absent.toml")), ..Default::default() };
    let complaint = home.load(&flags).expect_err("it is not there").to_string();
    assert!(complaint.contains("absent.toml: No such file"), "{complaint}");
}

#[test]
fn a_wrong_variable_is_named() {
    let mut home = Home::new();
    home.variables.insert("KFS_BROKERS", "kafka".into());
    let complaint = home.load(&Options::default()).expect_err("no port").to_string();
    assert!(complaint.starts_with("environment variable KFS_BROKERS: `kafka` is not a broker"), "{complaint}");
}

#[test]
fn sizes_and_durations_are_read_as_written() {
    for (text, bytes) in [("0", 0), ("7", 7), ("4k", 4096), ("1 GiB", 1 << 30), ("2T", 2 << 40)] {
        assert_eq!(parse_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "M", "1.5G", "-1", "1X", "99999999999T"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
    for (text, ms) in [("1", 1000), ("30s", 30_000), ("250ms", 250), ("2m", 120_000), ("1h", 3_600_000)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for text in ["", "0", "s", "1d", "-3", "99999999h"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}
