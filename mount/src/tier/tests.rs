//! What is kept is found again, whole or not at all, and never grows too large.

use super::*;
use proto::log::Topic;
use proto::{Epoch, SessionId};

const WAIT: Duration = Duration::from_secs(30);

fn config(dir: &Path, max_bytes: u64) -> TierConfig {
    TierConfig { dir: dir.join("cache"), max_bytes }
}

/// On a disk of which others leave little free.
fn tier(dir: &Path, max_bytes: u64) -> Tier {
    Tier::leaving(&config(dir, max_bytes), u64::MAX).expect("starts")
}

/// Some content and its name.
fn piece(number: u32, len: usize) -> (ChunkName, Bytes) {
    let content: Bytes = number.to_le_bytes().into_iter().cycle().take(len).collect();
    let hash = *blake3::hash(&content).as_bytes();
    let (epoch, session) = (Epoch(1), SessionId::default());
    (ChunkName { topic: Topic::Chunks, epoch, partition: 0, offset: 0, index: 0, session, hash }, content)
}

/// When all that was put has been written.
async fn put(tier: &Tier, pieces: &[(ChunkName, Bytes)]) {
    for (name, content) in pieces {
        tier.put(name, content);
    }
    let (last, _) = pieces.last().expect("there is one");
    let written = async {
        while !tier.shelf.place(&last.hash).exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(WAIT, written).await.expect("is written");
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).expect("is a directory").map(|entry| entry.expect("is there"));
    entries
        .map(|entry| if entry.path().is_dir() { bytes_in(&entry.path()) } else { entry.metadata().unwrap().len() })
        .sum()
}

#[tokio::test]
async fn what_was_kept_is_there_for_the_next_mount_and_the_one_beside() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (tier(dir.path(), 1 << 30), tier(dir.path(), 1 << 30));
    let pieces: Vec<_> = [1, 4096, 500_000].iter().map(|len| piece(7, *len)).collect();
    assert_eq!(one.get(&pieces[0].0).await, None);
    put(&one, &pieces).await;
    drop(one);
    let three = tier(dir.path(), 1 << 30);
    for tier in [&two, &three] {
        for (name, content) in &pieces {
            assert_eq!(tier.get(name).await.as_ref(), Some(content));
        }
        assert_eq!(tier.seen(&[pieces[0].0, piece(8, 1).0]).await, [true, false]);
        assert_eq!((tier.status().hits, tier.status().misses), (3, 0));
    }
}

#[tokio::test]
async fn what_is_damaged_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let tier = tier(dir.path(), 1 << 30);
    let pieces: Vec<_> = (0..3).map(|number| piece(number, 5000)).collect();
    put(&tier, &pieces).await;
    let place = |number: usize| tier.shelf.place(&pieces[number].0.hash);
    fs::write(place(0), b"short").unwrap();
    fs::write(place(1), vec![0; SEALED_MAX_BYTES * 3]).unwrap();
    for (number, (name, content)) in pieces.iter().enumerate() {
        let expected = (number == 2).then_some(content);
        assert_eq!(tier.get(name).await.as_ref(), expected);
        assert_eq!(place(number).exists(), number == 2);
    }
    put(&tier, &pieces[..2]).await;
    assert_eq!(tier.get(&pieces[0].0).await.as_ref(), Some(&pieces[0].1), "it can be kept again");
}

#[tokio::test]
async fn it_stays_within_its_bounds_and_what_is_used_stays() {
    const MAX: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let strange = ["notes.txt", "kfs-content/notes.txt", "kfs-content/etc/notes.txt", "kfs-content/ab/notes.txt"];
    let strange = strange.map(|name| dir.path().join("cache").join(name));
    let tiers = [0, 1].map(|_| tier(dir.path(), MAX));
    for file in &strange {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, b"not ours").unwrap();
    }
    let used = piece(1_000_000, 32_768);
    put(&tiers[0], std::slice::from_ref(&used)).await;
    for number in 0..200 {
        let old = SystemTime::now() - NOTED_EVERY * 3;
        let one = piece(number, 32_768);
        put(&tiers[number as usize % 2], std::slice::from_ref(&one)).await;
        File::open(tiers[0].shelf.place(&one.0.hash))
            .unwrap()
            .set_modified(old + Duration::from_secs(number.into()))
            .unwrap();
        assert!(bytes_in(&tiers[0].shelf.dir) <= MAX + 2 * (MAX / 16 + 32_768), "after {number}");
    }
    assert_eq!(tiers[1].get(&used.0).await, Some(used.1), "what others have been used after is older");
    assert_eq!(tiers[1].get(&piece(0, 32_768).0).await, None);
    assert_eq!(tiers[1].get(&piece(199, 32_768).0).await, Some(piece(199, 32_768).1));
    assert!(strange.iter().all(|file| file.exists()));
}

#[tokio::test]
async fn on_a_full_disk_it_gives_way_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let pieces: Vec<_> = (0..16).map(|number| piece(number, 4096)).collect();
    let plenty = tier(dir.path(), 1 << 30);
    put(&plenty, &pieces).await;
    let count = || pieces.iter().filter(|(name, _)| plenty.shelf.place(&name.hash).exists()).count();
    assert_eq!(count(), 16);
    // Never free enough.
    let why = fails(&Tier::leaving(&config(dir.path(), 1 << 30), 1).unwrap(), || {}).await;
    assert_eq!(why, "less than 1/1 of the disk is free");
    assert!((8..16).contains(&count()), "{}", count());
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cache"), b"a file").unwrap();
    let error = Tier::start(&config(dir.path(), MAX_PIECES as u64)).expect_err("it is a file").to_string();
    assert!(error.contains("/cache: ") && error.contains("cache_dir="), "{error}");
    fs::remove_file(dir.path().join("cache")).unwrap();
    fails(&tier(dir.path(), 1 << 30), || fs::remove_dir_all(dir.path().join("cache")).unwrap()).await;
}

/// Keeps nothing, and says why.
async fn fails(tier: &Tier, before: impl FnOnce()) -> String {
    before();
    let (name, content) = piece(1, 10);
    tier.put(&name, &content);
    let failed = async {
        loop {
            if let Some(why) = tier.status().broken {
                return why;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let why = tokio::time::timeout(WAIT, failed).await.expect("is told");
    assert_eq!(tier.get(&name).await, None);
    why
}
