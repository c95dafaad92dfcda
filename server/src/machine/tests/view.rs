//! Views: listings page by page, attributes, content maps.

use super::*;
use proto::message::Cursor;

fn page(world: &mut World, c: &mut Client, after: Option<Cursor>, limit: u32) -> (Vec<Name>, bool) {
    match world.call(c, Op::View(View::Readdir { dir: ROOT, after, limit })) {
        Ok(Outcome::Listing { dir, entries, end }) => {
            assert_eq!(dir.ino, ROOT);
            (entries.into_iter().map(|listed| listed.name).collect(), end)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_of_a_listing_are_all_of_it_once() {
    let mut world = World::new();
    let mut c = world.open(1);
    for i in 0..25 {
        world.mkfile(&mut c, ROOT, &format!("file{i}"));
    }
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (names, end) = page(&mut world, &mut c, after, 10);
        assert!(names.len() <= 10);
        after = names.last().map(Cursor::of);
        all.extend(names);
        if end {
            break;
        }
    }
    assert!(all.is_sorted_by_key(Cursor::of));
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 25);
}

#[test]
fn a_listing_stays_below_a_record() {
    let mut world = World::new();
    let mut c = world.open(1);
    for i in 0..1100 {
        world.mkdir(&mut c, ROOT, &format!("{i:0>250}"));
    }
    let effects = world.send(&mut c, Op::View(View::Readdir { dir: ROOT, after: None, limit: u32::MAX }));
    let answer = answer_of(&effects, &c).unwrap();
    assert!(rmp_serde::to_vec_named(&answer).unwrap().len() < 700_000);
    let Ok(Outcome::Listing { entries, end: false, .. }) = answer.result else { panic!() };
    assert!(entries.len() > 800, "{}", entries.len());
}

#[test]
fn extents_bring_content_from_the_state_along() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    for i in 0..100 {
        world.call_with(&mut c, write(ino, i * 10, 10, 4000), &[i as u8; 4000]).unwrap();
    }
    let (mut from, mut seen) = (0, 0);
    loop {
        let effects = world.send(&mut c, Op::View(View::Extents { ino, from, limit: 1000 }));
        let (answer, payload) = effects
            .iter()
            .find_map(|effect| match effect {
                Effect::Answer { answer, payload, .. } => Some((answer.clone(), payload.clone())),
                _ => None,
            })
            .unwrap();
        assert!(payload.len() <= 256 * 1024);
        let Ok(Outcome::Extents { extents, end, .. }) = answer.result else { panic!() };
        for extent in &extents {
            let (start, len) = extent.inline.expect("small enough for the state");
            assert_eq!(&payload[start as usize..(start + len) as usize], &[seen as u8; 4000]);
            seen += 1;
            from = extent.offset + u64::from(extent.len);
        }
        if end {
            break;
        }
    }
    assert_eq!(seen, 100);
}

#[test]
fn views_know_kinds_and_namespaces() {
    let mut world = World::new();
    let mut c = world.open(1);
    let file = world.mkfile(&mut c, ROOT, "f");
    let refused = [
        (View::Lookup { dir: ROOT, name: name("no") }, Refusal::NotFound),
        (View::Lookup { dir: file, name: name("no") }, Refusal::NotDirectory),
        (View::Getattr { ino: Ino::new(NAMESPACE, 99) }, Refusal::Stale),
        (View::Getattr { ino: Ino::root(NamespaceId(5)) }, Refusal::NotPermitted),
        (View::Readlink { ino: file }, Refusal::Invalid),
        (View::Extents { ino: ROOT, from: 0, limit: 1 }, Refusal::IsDirectory),
    ];
    for (view, refusal) in refused {
        assert_eq!(world.call(&mut c, Op::View(view)), Err(refusal));
    }
}
