//! Reading moves atime, and nothing else.

use super::*;
use proto::message::Access;

fn accessed(inodes: &[Access]) -> Op {
    Op::Upload(Upload::Accessed { inodes: inodes.to_vec() })
}

/// By somebody who knows the inode as it is.
fn read_at(world: &mut World, client: &mut Client, ino: Ino, atime: Time) -> Access {
    Access { ino, atime, ctime: world.getattr(client, ino).ctime }
}

#[test]
fn a_read_moves_atime_alone_and_breaks_no_promise() {
    let mut world = World::new();
    let (mut a, mut b, c) = (world.open(1), world.open(2), world.open(3));
    let ino = world.mkfile(&mut a, ROOT, "f");
    let gone = Ino(ino.0 + 100);
    world.pass_ms(2000);
    let before = world.entry(&mut b, lookup(ROOT, "f"));
    let read = Time { secs: world.append_ms / 1000, nanos: 1 };
    let rows = world.kv.rows.len();
    let known = read_at(&mut world, &mut b, ino, read);
    let effects = world.send(&mut a, accessed(&[Access { ino: gone, ..known }, known]));
    let answer = answer_of(&effects, &a).expect("answered at once, whoever was promised what");
    assert_eq!((answer.result, answer.granted), (Ok(Outcome::Accessed(vec![(ino, read)])), vec![]));
    assert_eq!(pushes(&effects, &b), [(PushNo(1), Push::Accessed(vec![(ino, read)]))]);
    assert!(pushes(&effects, &c).is_empty(), "it was promised nothing");
    assert_eq!(world.kv.rows.len(), rows, "history keeps no atime");
    let mut expected = before;
    expected.atime = read;
    assert_eq!(world.getattr(&mut b, ino), expected);

    // The promise still stands: the next change breaks it.
    world.send(&mut b, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1)] }));
    let effects = world.send(&mut a, truncate(ino, 5));
    let told = pushes(&effects, &b);
    assert!(matches!(&told[..], [(PushNo(2), Push::Invalidate(things))] if things.contains(&Promise::Dir(ROOT))));
    world.assert_replayable();
}

#[test]
fn what_was_said_later_counts() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    world.pass_ms(2000);
    let read = Time { secs: world.append_ms / 1000, nanos: 0 };
    let known = read_at(&mut world, &mut c, ino, read);
    world.pass_ms(2000);
    let past = Time { secs: 5, nanos: 0 };
    let change = AttrChange { atime: Some(past), ..AttrChange::default() };
    world.entry(&mut c, Op::Upload(Upload::Setattr { ino, change }));
    // However far ahead the reader's clock is.
    let ahead = Access { atime: Time { secs: 1 << 40, nanos: 0 }, ..known };
    assert_eq!(world.call(&mut c, accessed(&[known, ahead])), Ok(Outcome::Accessed(vec![])));
    assert_eq!(world.getattr(&mut c, ino).atime, past);
    // A clock that is ahead does not take atime with it.
    world.pass_ms(2000);
    let ahead = read_at(&mut world, &mut c, ino, ahead.atime);
    world.call(&mut c, accessed(&[ahead])).unwrap();
    assert_eq!(world.getattr(&mut c, ino).atime, Time { secs: world.append_ms / 1000, nanos: 5 });
    let many = vec![known; Upload::MAX_ACCESSED + 1];
    assert_eq!(world.call(&mut c, accessed(&many)), Err(Refusal::Invalid));
    let foreign = Access { ino: Ino::root(NamespaceId(32)), ..known };
    assert_eq!(world.call(&mut c, accessed(&[foreign])), Err(Refusal::NotPermitted));
}
