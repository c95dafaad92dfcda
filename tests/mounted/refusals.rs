//! What bad input and a wrong environment get: one line that says what is wrong
//! and what to do, exit code 1, and nothing left running or mounted.

use crate::{executable, needs_root, shared};
use harness::broker::{Broker, Kind};
use harness::cluster::{is_mounted, is_root, reason};
use harness::{Cluster, Scratch, command};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// `kfs-mount` for this user at `dir` is refused with a line that has one of `words`.
fn mount_refused(cluster: &Cluster, user: &str, options: &str, dir: &Path, words: &[&str]) {
    let line = cluster.mount_command(user, options, dir).refused(1).unwrap();
    let lower = line.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(word)), "{line:?} has none of {words:?}");
    assert!(line.contains(dir.to_str().unwrap()) || words.iter().any(|word| lower.contains(word)), "{line:?}");
}

#[test]
fn a_mountpoint_that_cannot_be_one_is_refused() {
    let cluster = shared();
    cluster.user_add("places").unwrap();
    let scratch = Scratch::new("places");
    mount_refused(cluster, "places", "", &scratch.join("absent"), &["no such", "does not exist", "missing"]);
    fs::write(scratch.join("file"), "").unwrap();
    mount_refused(cluster, "places", "", &scratch.join("file"), &["not a directory"]);
    fs::create_dir(scratch.join("full")).unwrap();
    fs::write(scratch.join("full/file"), "").unwrap();
    mount_refused(cluster, "places", "", &scratch.join("full"), &["not empty", "nonempty"]);
    assert!(!is_mounted(&scratch.join("full")));

    let mount = cluster.mount("places").unwrap();
    mount_refused(cluster, "places", "", mount.path(), &["already"]);
    assert!(is_mounted(mount.path()), "the first mount has not suffered");
    // An empty directory of root's, where the machine has one.
    let is_empty = |dir: &&&str| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    if let (false, Some(dir)) = (is_root(), ["/srv", "/media", "/opt", "/mnt"].iter().find(is_empty)) {
        mount_refused(cluster, "places", "", Path::new(dir), &["permi"]);
    }
}

#[test]
fn options_that_do_not_exist_are_wrong_usage() {
    let cluster = shared();
    cluster.user_add("options").unwrap();
    let dir = cluster.mountpoint().unwrap();
    let line = cluster.mount_command("options", "frobnicate=1", &dir).refused(2).unwrap();
    assert!(line.contains("frobnicate"), "{line}");
    assert_eq!(cluster.command("kfs-mount").output().unwrap().status.code(), Some(2));
    assert!(!is_mounted(&dir));
    // A wrong value in the configuration is named with its file and line.
    let config = cluster.dir().join("wrong.toml");
    fs::write(&config, "# fine\nbrokers = 7\n").unwrap();
    let wrong = cluster.mount_command("options", "", &dir).env("KFS_CONFIG", &config).refused(1).unwrap();
    assert!(wrong.contains("wrong.toml:2"), "{wrong}");
}

#[test]
fn an_unreachable_broker_is_named() {
    let cluster = shared();
    let port = harness::run::free_port();
    let dir = cluster.mountpoint().unwrap();
    let mut mount = cluster.mount_command("nobody-there", "timeout=3", &dir);
    fs::write(cluster.password_file("nobody-there"), "x").unwrap();
    mount.command = cluster.command("kfs-mount");
    let password = format!("timeout=3,password_file={}", cluster.password_file("nobody-there").display());
    let mount = mount.arg("-o").arg(password).arg(format!("nobody-there@127.0.0.1:{port}")).arg(&dir);
    let line = mount.refused(1).unwrap();
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
    assert!(!is_mounted(&dir));
    let line = cluster.kfs("nobody-there", &["ls", "--timeout", "3s", "--brokers", &format!("127.0.0.1:{port}")]);
    let line = line.refused(1).unwrap();
    assert!(line.contains(&format!("127.0.0.1:{port}")), "{line}");
}

#[test]
fn a_cluster_without_a_server_says_so() {
    let mut cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add("early").unwrap();
    cluster.stop_server().unwrap();
    let dir = cluster.mountpoint().unwrap();
    mount_refused(&cluster, "early", "timeout=3", &dir, &["kfs-server"]);
    assert!(!is_mounted(&dir));
}

#[test]
fn data_directories_are_checked_before_anything_is_served() {
    let cluster = Cluster::bare(&executable(), Broker::shared).unwrap();
    let line = cluster.server_command(&["run"]).refused(1).unwrap();
    assert!(line.contains("init"), "{line}");
    let recovery = cluster.dir().join("recovery.key");
    cluster.server_command(&["init"]).arg("--recovery").arg(&recovery).finish().unwrap();
    let again = cluster.server_command(&["init"]).arg("--recovery").arg(cluster.dir().join("other.key"));
    let line = again.refused(1).unwrap();
    assert!(line.contains(cluster.data().to_str().unwrap()), "{line}");
    for file in [&recovery, &cluster.dir().join("data")] {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "{file:?} has mode {mode:o}");
    }
}

#[test]
fn the_data_of_another_cluster_is_refused() {
    let mut cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add("someone").unwrap();
    cluster.stop_server().unwrap();
    // A second, fresh cluster key on the topics of the first one.
    let scratch = Scratch::new("foreign");
    let foreign = scratch.join("data");
    let mut init = cluster.command("kfs-server");
    init.args(["init", "--data"]).arg(&foreign).arg("--recovery").arg(scratch.join("key"));
    command::run(&mut init, Duration::from_secs(60)).unwrap().done().unwrap();
    let mut run = cluster.command("kfs-server");
    run.args(["run", "--data"]).arg(&foreign);
    let finished = command::run(&mut run, Duration::from_secs(60)).unwrap();
    assert_eq!(finished.code(), 1, "{finished:?}");
    let line = reason(&finished.stderr).unwrap();
    assert!(line.contains("another kfs cluster"), "{line}");
    // The right one still works.
    cluster.start_server().unwrap();
    cluster.mount("someone").unwrap().unmount().unwrap();
}

#[test]
fn topics_that_are_missing_and_cannot_be_created_are_named() {
    if Kind::asked_for() == Kind::Kafka {
        eprintln!("nothing to test: this broker creates topics for everyone");
        return;
    }
    let cluster = Cluster::bare(&executable(), Broker::own).unwrap();
    cluster.server_command(&["init"]).arg("--recovery").arg(cluster.dir().join("recovery.key")).finish().unwrap();
    let finished = cluster.server_command(&["run", "--prefix", "absent", "--timeout", "5s"]).run().unwrap();
    assert_eq!(finished.code(), 1, "{finished:?}");
    // Here more than one line helps: the commands that an administrator is to run.
    assert!(finished.stderr.contains("kafka-topics.sh") && finished.stderr.contains("absent.requests"), "{finished:?}");
}

/// Runs `script` in a mount namespace of its own, as root or as uid 65534.
/// `$MOUNT` is a complete `kfs-mount` command; the script says what is in its way.
fn in_namespace(user: &str, before: &str, as_nobody: bool, options: &str) -> (i32, String) {
    let cluster = shared();
    cluster.user_add(user).unwrap();
    let scratch = Scratch::new("namespace");
    let (dir, password, home) = (scratch.join("dir"), scratch.join("password"), scratch.join("home"));
    fs::write(&password, Cluster::password(user)).unwrap();
    for dir in [&dir, &home] {
        fs::create_dir(dir).unwrap();
    }
    let owner = if as_nobody { 65_534 } else { 0 };
    for path in [&dir, &password, &home] {
        std::os::unix::fs::chown(path, Some(owner), Some(owner)).unwrap();
    }
    let config = scratch.join("config.toml");
    fs::copy(cluster.dir().join("config.toml"), &config).unwrap();
    let become_user = if as_nobody { "setpriv --reuid 65534 --regid 65534 --clear-groups" } else { "" };
    let script =
        format!("{before}\nexec {become_user} kfs-mount -o \"password_file=$PASSWORD{options}\" \"$SOURCE\" \"$DIR\"");
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "bash", "-euc", &script]);
    cluster.surround(&mut shell);
    shell
        .env("DIR", &dir)
        .env("SCRATCH", scratch.path())
        .env("PASSWORD", &password)
        .env("SOURCE", cluster.source(user));
    shell.env("KFS_CONFIG", &config).env("HOME", &home).env("XDG_STATE_HOME", &home).env("XDG_RUNTIME_DIR", &home);
    let finished = command::run(&mut shell, Duration::from_secs(60)).unwrap();
    assert!(!is_mounted(&dir));
    (finished.code(), finished.stderr.trim_end().to_owned())
}

fn assert_told(told: (i32, String), words: &[&str]) {
    let (code, line) = told;
    assert_eq!((code, line.lines().count()), (1, 1), "{line}");
    assert!(words.iter().all(|word| line.contains(word)), "{line:?} has not all of {words:?}");
}

const OPEN_NODE: &str = "mkdir $SCRATCH/node; mount -t tmpfs tmpfs $SCRATCH/node; mknod -m 666 $SCRATCH/node/fuse c 10 229; mount --bind $SCRATCH/node/fuse /dev/fuse;";
const CLOSED_NODE: &str = "mkdir $SCRATCH/node; mount -t tmpfs tmpfs $SCRATCH/node; mknod -m 600 $SCRATCH/node/fuse c 10 229; mount --bind $SCRATCH/node/fuse /dev/fuse;";

#[test]
fn what_is_missing_on_the_machine_is_named() {
    if !needs_root("make a machine lack something") {
        return;
    }
    let no_device = "mkdir $SCRATCH/dev; mount -t tmpfs tmpfs $SCRATCH/dev; cp -a /dev/null /dev/zero /dev/urandom /dev/random $SCRATCH/dev/; mount --bind $SCRATCH/dev /dev;";
    assert_told(in_namespace("no-device", no_device, false, ""), &["/dev/fuse"]);
    assert_told(in_namespace("closed-device", CLOSED_NODE, true, ""), &["/dev/fuse"]);
    let no_fusermount = format!(
        "{OPEN_NODE} touch $SCRATCH/empty; mount --bind $SCRATCH/empty $(readlink -f $(command -v fusermount3));"
    );
    assert_told(in_namespace("no-fusermount", &no_fusermount, true, ""), &["fusermount3"]);
    let strict = format!("{OPEN_NODE} touch $SCRATCH/fuse.conf; mount --bind $SCRATCH/fuse.conf /etc/fuse.conf;");
    if Path::new("/etc/fuse.conf").exists() {
        assert_told(in_namespace("allow-other", &strict, true, ",allow_other"), &["user_allow_other"]);
    }
}
