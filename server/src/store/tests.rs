//! The store at its checkpoints, after crashes and against a plain map.

use super::*;
use crate::machine::kv::MemoryKv;
use proptest::prelude::*;

const CLUSTER: [u8; 16] = [7; 16];
const CACHE: usize = 1 << 20;

fn at(next_offset: u64) -> Checkpoint {
    Checkpoint { epoch: Epoch(1), next_offset, last_hash: Some([next_offset as u8; 32]), machine: b"machine".to_vec() }
}

fn rows(kv: &mut dyn Kv, from: &[u8], to: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    kv.scan(from, to, &mut |key, value| {
        found.push((key.to_vec(), value.to_vec()));
        true
    });
    found
}

#[test]
fn comes_back_at_its_last_checkpoint() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut store, none) = PartitionStore::open(dir.path(), 3, CLUSTER, CACHE, &Disk::default()).expect("opens");
    assert_eq!(none, None);
    store.put(b"a", b"1");
    store.put(b"b", b"2");
    let written = store.freeze().write(at(10)).expect("writes");
    store.thaw(written);
    store.put(b"a", b"changed after");
    store.delete(b"b");
    drop(store);

    let (mut store, checkpoint) = PartitionStore::open(dir.path(), 3, CLUSTER, CACHE, &Disk::default()).expect("opens");
    assert_eq!(checkpoint, Some(at(10)));
    assert_eq!(rows(&mut store, b"", b"z"), [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    store.check().expect("nothing failed");
}

#[test]
fn another_clusters_database_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (mut store, _) = PartitionStore::open(dir.path(), 0, CLUSTER, CACHE, &Disk::default()).expect("opens");
    drop(store.freeze().write(at(1)).expect("writes"));
    drop(store);
    let error =
        PartitionStore::open(dir.path(), 0, [8; 16], CACHE, &Disk::default()).err().expect("refused").to_string();
    assert!(error.contains("another cluster"), "{error}");
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u8),
    Delete(u8),
    Freeze,
    Thaw,
    Reopen,
    Scan(u8, u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..32u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        4 => (0..32u8).prop_map(Step::Delete),
        1 => Just(Step::Freeze),
        1 => Just(Step::Thaw),
        1 => Just(Step::Reopen),
        3 => (0..32u8, 0..34u8, 1..8usize).prop_map(|(from, to, limit)| Step::Scan(from, to, limit)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is frozen, thawed or reopened, rows read as from a plain ordered map.
    #[test]
    fn reads_as_an_ordered_map(steps in proptest::collection::vec(step(), 1..120)) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = || PartitionStore::open(dir.path(), 0, CLUSTER, CACHE, &Disk::default()).expect("opens").0;
        let (mut store, mut model) = (open(), MemoryKv::default());
        let mut under_way = None;
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    store.put(&[key], &[value]);
                    model.put(&[key], &[value]);
                }
                Step::Delete(key) => {
                    store.delete(&[key]);
                    model.delete(&[key]);
                }
                Step::Freeze if under_way.is_none() => under_way = Some(store.freeze().write(at(1)).expect("writes")),
                Step::Freeze => {}
                Step::Thaw => {
                    if let Some(written) = under_way.take() {
                        store.thaw(written);
                    }
                }
                Step::Reopen => {
                    if let Some(written) = under_way.take() {
                        store.thaw(written);
                    }
                    let written = store.freeze().write(at(2)).expect("writes");
                    drop((store, written));
                    store = open();
                }
                Step::Scan(from, to, limit) => {
                    let (mut seen, mut expected) = (Vec::new(), Vec::new());
                    store.scan(&[from], &[to], &mut |k, v| { seen.push((k.to_vec(), v.to_vec())); seen.len() < limit });
                    model.scan(&[from], &[to], &mut |k, v| { expected.push((k.to_vec(), v.to_vec())); expected.len() < limit });
                    prop_assert_eq!(seen, expected);
                }
            }
            for key in 0..32u8 {
                prop_assert_eq!(store.get(&[key]), model.get(&[key]));
            }
            prop_assert!(store.check().is_ok());
        }
    }
}

#[test]
fn a_full_disk_stops_a_checkpoint_and_the_one_before_stays() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let full = crate::disk::full::Full::default();
    let open = || PartitionStore::open(dir.path(), 3, CLUSTER, CACHE, &full.disk()).expect("opens");
    let (mut store, _) = open();
    store.put(b"a", b"1");
    let written = store.freeze().write(at(10)).expect("writes");
    store.thaw(written);
    store.put(b"a", b"2");
    full.set(true);
    let error = store.freeze().write(at(20)).err().expect("the disk is full").to_string();
    assert!(error.contains("write a checkpoint"), "{error}");
    // Reads go on from memory and what was there.
    assert_eq!(store.get(b"a"), Some(b"2".to_vec()));
    drop(store);
    full.set(false);

    let (mut store, checkpoint) = open();
    assert_eq!(checkpoint, Some(at(10)));
    assert_eq!(store.get(b"a"), Some(b"1".to_vec()));
    store.put(b"a", b"2");
    drop(store.freeze().write(at(20)).expect("writes"));
    assert_eq!(open().1, Some(at(20)));
}
