//! `kfs dev`: everything in one process, files that stay, and an end that cleans up.

use crate::{executable, needs_root};
use harness::cluster::is_mounted;
use harness::programs::Programs;
use harness::tree::{self, Depth};
use harness::{Process, Scratch, command, run, sh};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

struct Dev {
    programs: Programs,
    scratch: Scratch,
}

impl Dev {
    fn new() -> Dev {
        let scratch = Scratch::new("dev");
        fs::create_dir(scratch.join("home")).unwrap();
        fs::create_dir(scratch.join("runtime")).unwrap();
        Dev { programs: Programs::install(&executable()).unwrap(), scratch }
    }

    fn dir(&self) -> PathBuf {
        self.scratch.join("mnt")
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = self.programs.command("kfs");
        command
            .arg("dev")
            .arg(dir)
            .env("HOME", self.scratch.join("home"))
            .env("XDG_DATA_HOME", self.scratch.join("share"));
        command.env("XDG_STATE_HOME", self.scratch.join("state")).env("XDG_RUNTIME_DIR", self.scratch.join("runtime"));
        for name in ["KFS_CONFIG", "KFS_BROKERS", "KFS_USER", "KFS_PASSWORD_FILE"] {
            command.env_remove(name);
        }
        command
    }

    /// Starts it and waits until it has printed what to paste.
    fn start(&self) -> (Process, String) {
        let log = self.scratch.join("log");
        let _ = fs::remove_file(&log);
        let mut process = Process::start("kfs dev", &mut self.command(&self.dir()), &log).unwrap();
        run::wait_for("kfs dev to be ready", Duration::from_secs(60), || {
            let output = process.output();
            (process.ended().is_some()
                || (is_mounted(&self.dir()) && output.contains("kfs-mount") && output.contains("ls")))
            .then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", process.output()));
        assert!(process.ended().is_none(), "kfs dev ended: {}", process.output());
        let output = process.output();
        (process, output)
    }

    fn end(&self, mut process: Process, signal: i32) {
        process.signal(signal);
        let status = process.wait(Duration::from_secs(60)).unwrap();
        assert!(status.success(), "{status}: {}", process.output());
        assert!(!is_mounted(&self.dir()));
        tree::lists(&self.dir(), &[]).unwrap();
    }
}

#[test]
fn everything_works_in_one_command_and_stays_for_the_next_time() {
    let dev = Dev::new();
    let source = dev.scratch.join("source");
    tree::make(&source, 300, 6).unwrap();

    let (process, printed) = dev.start();
    assert!(dev.dir().is_dir(), "it is created");
    sh(&dev.dir(), "cp -a \"$1\" copy && diff -r --no-dereference \"$1\" copy && mv copy moved", &[&source]).unwrap();

    // What it prints can be pasted: a second mount and a listing.
    let second = dev.scratch.join("second");
    let pasted: Vec<&str> =
        printed.lines().map(str::trim).filter(|line| line.contains("kfs-mount ") || line.contains(" ls")).collect();
    assert!(pasted.len() >= 2, "{printed}");
    for line in pasted {
        // The example's directory becomes ours.
        let line = match line.contains("kfs-mount ") {
            true => format!("{} {}", line.rsplit_once(' ').unwrap().0, second.display()),
            false => line.to_owned(),
        };
        fs::create_dir_all(&second).unwrap();
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &line])
            .env("HOME", dev.scratch.join("home"))
            .env("XDG_RUNTIME_DIR", dev.scratch.join("runtime"));
        shell.env("XDG_STATE_HOME", dev.scratch.join("state"));
        let finished = command::run(&mut shell, Duration::from_secs(60))
            .unwrap()
            .done()
            .unwrap_or_else(|error| panic!("{line}: {error:#}"));
        if line.contains(" ls") {
            assert!(finished.text().contains("moved"), "{line}: {finished:?}");
        }
    }
    tree::compare(&source, &second.join("moved"), Depth::Everything).unwrap();
    sh(dev.scratch.path(), "umount second 2>/dev/null || fusermount3 -u second", &[]).unwrap();
    dev.end(process, libc::SIGTERM);

    let (process, _) = dev.start();
    tree::compare(&source, &dev.dir().join("moved"), Depth::Everything).unwrap();
    dev.end(process, libc::SIGINT);
}

#[test]
fn a_killed_dev_is_cleaned_up_by_the_next_one() {
    let dev = Dev::new();
    let (mut process, _) = dev.start();
    for i in 0..50 {
        fs::write(dev.dir().join(format!("file{i}")), format!("content {i}")).unwrap();
    }
    // The embedded broker's log ends with it, so what an fsync covers is what must stay.
    fs::File::open(dev.dir().join("file49")).unwrap().sync_all().unwrap();
    process.kill();
    let (process, _) = dev.start();
    for i in 0..50 {
        assert_eq!(fs::read_to_string(dev.dir().join(format!("file{i}"))).unwrap(), format!("content {i}"));
    }
    dev.end(process, libc::SIGTERM);
}

#[test]
fn when_the_server_ends_so_does_everything() {
    if !needs_root("mount a small file system") {
        return;
    }
    let dev = Dev::new();
    let disk = dev.scratch.join("share");
    fs::create_dir(&disk).unwrap();
    sh(dev.scratch.path(), "mount -t tmpfs -o size=40m,mode=700 kfs-test share", &[]).unwrap();
    let (mut process, _) = dev.start();
    fs::write(dev.dir().join("file"), "content").unwrap();
    fs::File::open(dev.dir().join("file")).unwrap().sync_all().unwrap();
    sh(&disk, "cat /dev/zero > ballast || true", &[]).unwrap();
    // Whether this is told of depends on what comes first.
    let _ = fs::create_dir(dev.dir().join("late"));

    let status = process.wait(Duration::from_secs(60)).unwrap();
    assert_eq!(status.code(), Some(1), "{}", process.output());
    assert!(process.output().contains("the server has ended: "), "{}", process.output());
    assert!(process.output().contains("No space left on device"), "{}", process.output());
    assert!(!is_mounted(&dev.dir()));

    fs::remove_file(disk.join("ballast")).unwrap();
    let (process, _) = dev.start();
    assert_eq!(fs::read_to_string(dev.dir().join("file")).unwrap(), "content");
    dev.end(process, libc::SIGTERM);
}

#[test]
fn a_second_dev_and_a_directory_with_content_are_refused() {
    let dev = Dev::new();
    let full = dev.scratch.join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "mine").unwrap();
    let refused = |dir: &Path| {
        let finished = command::run(&mut dev.command(dir), Duration::from_secs(60)).unwrap();
        assert_eq!(finished.code(), 1, "{finished:?}");
        assert_eq!(finished.stderr.trim_end().lines().count(), 1, "{finished:?}");
        assert!(!is_mounted(dir));
        finished.stderr
    };
    assert!(refused(&full).contains(full.to_str().unwrap()));
    assert_eq!(fs::read(full.join("file")).unwrap(), b"mine");

    let (process, _) = dev.start();
    let line = refused(&dev.scratch.join("elsewhere"));
    assert!(line.contains(&process.pid().to_string()), "{line:?} names {}", process.pid());
    dev.end(process, libc::SIGTERM);
}

#[test]
fn who_still_uses_the_directory_is_named() {
    let dev = Dev::new();
    let (mut process, _) = dev.start();
    fs::create_dir(dev.dir().join("dir")).unwrap();
    let mut user = Command::new("sleep").arg("300").current_dir(dev.dir().join("dir")).spawn().unwrap();
    process.signal(libc::SIGTERM);
    let pid = user.id().to_string();
    let named = run::wait_for("the user's name", Duration::from_secs(30), || {
        let output = process.output();
        (output.contains(&pid) && output.contains("sleep")).then_some(())
    });
    user.kill().unwrap();
    user.wait().unwrap();
    named.unwrap_or_else(|error| panic!("{error}: {}", process.output()));
    process.wait(Duration::from_secs(60)).unwrap();
    assert!(!is_mounted(&dev.dir()));
}
