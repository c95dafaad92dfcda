//! `kfs` without a mount: single commands and the shell.

use crate::{mounted, shared};
use harness::Scratch;
use harness::tree::{self, Depth};
use std::fs;

#[test]
fn files_are_put_listed_moved_fetched_and_removed() {
    let cluster = shared();
    cluster.user_add("commands").unwrap();
    let scratch = Scratch::new("cli");
    let source = scratch.join("source");
    tree::make(&source, 60, 5).unwrap();
    let kfs = |args: &[&str]| cluster.kfs("commands", args);
    let text = |args: &[&str]| kfs(args).finish().unwrap().text();

    kfs(&["mkdir", "-p", "/a/b"]).finish().unwrap();
    kfs(&["put", "-r"]).arg(&source).arg("/a/b/tree").finish().unwrap();
    fs::write(scratch.join("one file"), "content\n").unwrap();
    kfs(&["put"]).arg(scratch.join("one file")).arg("/a/").finish().unwrap();
    assert!(text(&["ls", "/a"]).contains("one file"));
    assert!(text(&["stat", "/a/one file"]).contains('8'));
    kfs(&["mv", "/a/one file", "/a/renamed"]).finish().unwrap();
    kfs(&["get", "/a/renamed"]).arg(scratch.join("back")).finish().unwrap();
    assert_eq!(fs::read(scratch.join("back")).unwrap(), b"content\n");
    kfs(&["get", "-r", "/a/b/tree"]).arg(scratch.join("tree")).finish().unwrap();
    tree::compare(&source, &scratch.join("tree"), Depth::ContentAndModes).unwrap();
    assert!(!text(&["du", "/a"]).is_empty());

    // A mount shows the same.
    let mount = cluster.mount("commands").unwrap();
    tree::compare(&source, &mount.join("a/b/tree"), Depth::ContentAndModes).unwrap();
    kfs(&["rm", "-r", "/a"]).finish().unwrap();
    tree::lists(mount.path(), &[]).unwrap();
    let line = kfs(&["ls", "/absent"]).refused(1).unwrap();
    assert!(line.contains("/absent"), "{line}");
    assert_eq!(kfs(&["frobnicate"]).run().unwrap().code(), 2);
}

#[test]
fn the_shell_answers_each_mistake_with_its_own_words() {
    let cluster = shared();
    let mount = mounted("shell");
    let scratch = Scratch::new("shell");
    fs::write(scratch.join("local.txt"), "from here\n").unwrap();
    let session = |input: &str| {
        let mut shell = cluster.kfs("shell", &["shell"]).input(input);
        shell.command.current_dir(scratch.path());
        let finished = shell.run().unwrap();
        // As scripts want it: 1 if any command of the session failed.
        assert!([0, 1].contains(&finished.code()), "{finished:?}");
        format!("{}{}", finished.text(), finished.stderr)
    };
    session("UPLOAD local.txt\nEXIT\n");
    assert_eq!(fs::read(mount.join("local.txt")).unwrap(), b"from here\n");
    assert!(session("VIEW\nEXIT\n").contains("local.txt"));
    fs::write(mount.join("remote.txt"), "from there\n").unwrap();
    session("DOWNLOAD remote.txt\nDELETE local.txt\nEXIT\n");
    assert_eq!(fs::read(scratch.join("remote.txt")).unwrap(), b"from there\n");
    assert!(!mount.join("local.txt").exists());

    let said =
        ["FROBNICATE\nEXIT\n", "UPLOAD absent.txt\nEXIT\n", "DOWNLOAD absent.txt\nEXIT\n", "VIEW\nEXIT\n"].map(session);
    for (i, one) in said.iter().enumerate() {
        for other in &said[i + 1..] {
            assert_ne!(one, other, "each mistake has its own message");
        }
    }
    assert!(said[1].contains("absent.txt") && said[2].contains("absent.txt"), "{said:?}");
    // The end of input ends it as EXIT does.
    session("VIEW\n");
}

#[test]
fn status_says_how_a_mount_is() {
    let mount = mounted("status");
    fs::write(mount.join("file"), "x").unwrap();
    let status = shared().kfs("status", &["status"]).arg(mount.path()).finish().unwrap().text();
    assert!(status.contains("status") && status.contains("online"), "{status}");
    let nothing = Scratch::new("no-mount");
    let line = shared().kfs("status", &["status"]).arg(nothing.path()).refused(1).unwrap();
    assert!(line.contains(nothing.path().to_str().unwrap()), "{line}");
}

#[test]
fn bench_tells_rates_and_requests_and_leaves_nothing() {
    let mount = mounted("bench");
    let bench = |how: &str| shared().kfs("bench", &["bench", "--files=20", "--size=2M", how]);
    let text = bench("--").arg(mount.path()).finish().unwrap().text();
    assert!(text.contains("create, write 4 KiB, close") && text.contains("MB/s"), "{text}");
    let told: serde_json::Value =
        serde_json::from_str(&bench("--json").arg(mount.path()).finish().unwrap().text()).unwrap();
    let records = |what: &str| {
        let row = told["rows"].as_array().unwrap().iter().find(|row| row["what"] == what).unwrap();
        row["records"].as_u64().unwrap()
    };
    // Many of them may share one.
    assert!((1..=200).contains(&records("create, write 4 KiB, close")), "{told}");
    // 2 MiB of noise are at least four chunks.
    assert!(records("sequential write and fsync") >= 4, "{told}");
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 0);
    // Elsewhere nothing is counted.
    let scratch = Scratch::new("bench");
    assert!(bench("--").arg(scratch.path()).finish().unwrap().text().contains(" -"));
    let line = bench("--").arg(scratch.join("absent")).refused(1).unwrap();
    assert!(line.contains("absent"), "{line}");
}
