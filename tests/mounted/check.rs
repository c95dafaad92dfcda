//! `kfs-server check`: what a server leaves behind, and that damage is told of.

use crate::executable;
use harness::Cluster;
use std::fs;

#[test]
fn a_data_directory_is_checked_while_no_server_runs_on_it() {
    let mut cluster = Cluster::start(&executable()).unwrap();
    cluster.user_add("ann").unwrap();
    let mount = cluster.mount("ann").unwrap();
    // Content that does not compress, so that there is a pack.
    let content: Vec<u8> = (0..8_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::create_dir(mount.join("dir")).unwrap();
    fs::write(mount.join("dir/large"), &content).unwrap();
    fs::write(mount.join("dir/small"), "a few bytes").unwrap();
    fs::hard_link(mount.join("dir/small"), mount.join("again")).unwrap();
    mount.unmount().unwrap();

    let line = cluster.server_command(&["check"]).refused(1).unwrap();
    assert!(line.contains("in use") && line.contains("stop that one first"), "{line}");
    cluster.stop_server().unwrap();
    let text = cluster.server_command(&["check"]).finish().unwrap().text();
    assert!(text.contains("sound: no violation"), "{text}");
    let json = cluster.server_command(&["check", "--json"]).finish().unwrap().text();
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names: u64 = report["partitions"].as_array().unwrap().iter().map(|p| p["names"].as_u64().unwrap()).sum();
    assert_eq!(names, 4, "{json}");
    assert!(report["packs"]["packs"].as_u64().unwrap() >= 1, "{json}");

    // A flipped bit is found and told of, with its pack and chunk.
    let packs = fs::read_dir(cluster.data().join("packs")).unwrap().map(|entry| entry.unwrap().path());
    let pack = packs.filter(|path| path.extension().is_some_and(|end| end == "pack")).min().unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1000] ^= 1;
    fs::write(&pack, &bytes).unwrap();
    let finished = cluster.server_command(&["check"]).run().unwrap();
    assert_eq!(finished.code(), 1);
    let text = finished.text();
    assert!(text.contains("VIOLATION") && text.contains("does not have its hash"), "{text}");
    assert!(finished.stderr.contains("1 violations"), "{}", finished.stderr);
    // The cluster is checked again at its end.
    bytes[1000] ^= 1;
    fs::write(&pack, &bytes).unwrap();
}
