//! What versions of kfs have recorded is replayed by every later one.

use harness::Scratch;
use harness::recorded::Recording;
use server::data::Identity;
use std::path::{Path, PathBuf};

fn recordings() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded");
    let paths = std::fs::read_dir(dir).expect("lies beside this file").map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "kfs")).collect()
}

/// From its first record and from its checkpoints on, it comes to the state that was recorded;
/// a server goes on from there.
async fn holds(recording: &Recording) {
    let scratch = Scratch::new("recorded");
    let data = scratch.join("data");
    recording.unpack(&data).expect("unpacks");
    let identity = Identity::read(&data, None).expect("reads");
    assert!(recording.replayed(&identity.cluster_key).expect("replays") == recording.states);
    assert!(recording.replayed_from(&data).expect("replays") == recording.states);
    recording.goes_on(&data).await.expect("goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_recorded_is_replayed() {
    let recordings = recordings();
    assert!(!recordings.is_empty());
    for path in recordings {
        eprintln!("{}", path.display());
        holds(&Recording::load(&path).expect("reads")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_now_can_be_replayed() {
    let scratch = Scratch::new("recording");
    let file = scratch.join("now.kfs");
    let made = Recording::make(&scratch).await.expect("records");
    assert!(made.tree.len() > 50, "{:?}", made.tree.keys());
    made.save(&file).expect("writes");
    holds(&Recording::load(&file).expect("reads")).await;
}
