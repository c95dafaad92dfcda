//! The log on paper, and what an administrator needs to read it or to speak into it.

use crate::{executable, shared};
use harness::{Cluster, Scratch};
use serde_json::Value;
use std::fs;

#[test]
fn the_log_reads_as_what_was_done_and_tells_no_content() {
    // Of its own: the embedded broker forgets what others' load pushes out.
    let cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add("logged").unwrap();
    let mount = cluster.mount("logged").unwrap();
    fs::create_dir(mount.join("a directory")).unwrap();
    fs::write(mount.join("a directory/notes"), "nobody else may read this\n").unwrap();
    fs::rename(mount.join("a directory/notes"), mount.join("moved")).unwrap();
    std::os::unix::fs::symlink("a target to hide", mount.join("link")).unwrap();
    fs::remove_file(mount.join("moved")).unwrap();
    mount.unmount().unwrap();

    let dump = |args: &[&str]| {
        let mut all = vec!["log", "dump"];
        all.extend(args);
        cluster.server_command(&all).finish().unwrap().text()
    };
    let text = dump(&["--namespace", "logged"]);
    for (what, part) in [
        ("open", "namespace="),
        ("create", "name=\"a directory\" kind=dir"),
        ("create", "name=notes kind=file"),
        ("write", "pieces=[0..26:inline("),
        ("rename", "to=moved"),
        ("create", "name=link kind=symlink"),
        ("unlink", "name=moved"),
        ("close", "acked="),
    ] {
        let found = text.lines().any(|line| line.contains(&format!(" {what} ")) && line.contains(part));
        assert!(found, "no {what} with {part} in\n{text}");
    }
    assert!(!text.contains("nobody else") && !text.contains("a target to hide"), "{text}");
    assert!(!text.contains(" tick "), "a namespace's story needs no ticks:\n{text}");

    // The same for programs, and in parts.
    let objects: Vec<Value> = dump(&["--namespace", "logged", "--json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let create = objects.iter().find(|line| line["what"] == "create").expect("something was created");
    assert_eq!((create["user"].as_str(), create["with"]["name"].as_str()), (Some("logged"), Some("a directory")));
    let (partition, offset) = (create["partition"].to_string(), create["offset"].as_u64().unwrap());
    let (from, to) = (offset.to_string(), (offset + 1).to_string());
    let one = dump(&["--partition", &partition, "--from", &from, "--to", &to]);
    assert_eq!(one.lines().count(), 1, "{one}");
    assert!(one.contains("name=\"a directory\""), "{one}");
    let line = cluster.server_command(&["log", "dump", "--namespace", "never-there"]).refused(1).unwrap();
    assert!(line.contains("never-there"), "{line}");
}

#[test]
fn a_copy_of_the_keys_is_enough_for_an_administrator() {
    let cluster = shared();
    cluster.user_add("listed").unwrap();
    let scratch = Scratch::new("keys");
    for file in ["cluster.key", "recovery.pub", "server.toml"] {
        fs::copy(cluster.data().join(file), scratch.join(file)).unwrap();
    }
    let mut list = cluster.command("kfs-server");
    list.args(["user", "list", "--data"]).arg(scratch.path());
    let listed = harness::command::run(&mut list, harness::cluster::COMMAND_BOUND).unwrap().done().unwrap().text();
    assert!(listed.contains("listed"), "{listed}");
}
