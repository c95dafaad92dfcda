//! A sample of everything once more as an unprivileged user: server, mounts and
//! tests as uid 65534, in a mount namespace where /dev/fuse is open to all.

use crate::executable;
use harness::broker::{Broker, GIVEN, Kind};
use harness::{Scratch, command};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

/// Which tests; those that only root can do anything in say so themselves.
const SAMPLE: [&str; 10] = [
    "jobs::git_works",
    "files::",
    "coherence::what_one_mount",
    "coherence::every_change",
    "crash::a_killed_mount",
    "crash::sigterm",
    "dev::everything",
    "owners::",
    "quota::the_quota_is_told",
    "refusals::a_mountpoint",
];

#[test]
fn a_plain_user_can_do_the_same() {
    if !harness::cluster::is_root() {
        eprintln!("nothing to test: all the other tests run as a plain user already");
        return;
    }
    let scratch = Scratch::new("u");
    // Where everybody reaches them: the target directory may lie in root's home.
    let (tests, programs) = (scratch.join("tests"), scratch.join("kfs-programs"));
    std::fs::copy(std::env::current_exe().unwrap(), &tests).unwrap();
    std::fs::copy(executable(), &programs).unwrap();
    let home = scratch.join("home");
    std::fs::create_dir(&home).unwrap();
    for path in [scratch.path(), &home] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let script = r#"
        mkdir "$HOME/node"
        mount -t tmpfs -o mode=755 tmpfs "$HOME/node"
        mknod -m 666 "$HOME/node/fuse" c 10 229
        mount --bind "$HOME/node/fuse" /dev/fuse
        cd "$HOME"
        exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
    "#;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "bash", "-euc", script, "script"]);
    shell.arg(&tests).args(["--test-threads", "2"]).args(SAMPLE);
    shell.env("HOME", &home).env("TMPDIR", scratch.path()).env("KFS_TEST_EXECUTABLE", &programs);
    shell.env_remove("XDG_CACHE_HOME").env_remove("XDG_RUNTIME_DIR");
    // Java and what Maven has fetched may be root's alone; any user can reach a broker.
    let broker = (Kind::asked_for() == Kind::Kafka).then(|| Broker::shared("unused").unwrap());
    if let Some(broker) = &broker {
        shell.env(GIVEN, broker.bootstrap());
    }
    let finished = command::run(&mut shell, Duration::from_secs(900)).unwrap();
    assert!(finished.status.success(), "{}\n{}\n{}", finished.status, finished.text(), finished.stderr);
    assert!(finished.text().contains("test result: ok."), "{}", finished.text());
    // A filter that matches nothing must not pass for a success.
    assert!(!finished.text().contains("running 0 tests"), "{}", finished.text());
}
