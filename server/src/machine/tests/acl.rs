//! Access control lists: set, inherited, kept in step with the mode.

use super::*;
use proto::message::{Acl, AclKind, Rights};

fn acl(user: u8, named: u8, group: u8, mask: u8, other: u8) -> Acl {
    Acl { user, users: vec![(7, named)], group, groups: vec![], mask: Some(mask), other }
}

fn plain(user: u8, group: u8, other: u8) -> Acl {
    Acl { user, users: vec![], group, groups: vec![], mask: None, other }
}

fn set_acl(ino: Ino, which: AclKind, acl: Option<Acl>) -> Op {
    Op::Upload(Upload::SetAcl { ino, which, acl, clear_setgid: false })
}

fn chmod(ino: Ino, mode: u32) -> Op {
    Op::Upload(Upload::Setattr { ino, change: AttrChange { mode: Some(mode), ..AttrChange::default() } })
}

fn rights(attr: &Attr) -> Rights {
    attr.rights.as_deref().cloned().unwrap_or_default()
}

#[test]
fn an_access_list_and_the_mode_change_together() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    world.entry(&mut c, chmod(ino, 0o6644));
    let before = world.getattr(&mut c, ROOT).ctime;
    world.pass_ms(2000);
    let attr = world.entry(&mut c, set_acl(ino, AclKind::Access, Some(acl(7, 6, 5, 6, 1))));
    assert_eq!((attr.mode, rights(&attr).access), (0o6761, Some(acl(7, 6, 5, 6, 1))));
    assert!(attr.ctime.secs > before.secs);
    let attr = world.entry(&mut c, chmod(ino, 0o2640));
    assert_eq!((attr.mode, rights(&attr).access), (0o2640, Some(acl(6, 6, 5, 4, 0))));
    // A list that says no more than a mode is kept as one.
    let op = Op::Upload(Upload::SetAcl { ino, which: AclKind::Access, acl: Some(plain(7, 5, 1)), clear_setgid: true });
    let attr = world.entry(&mut c, op);
    assert_eq!((attr.mode, &attr.rights), (0o751, &None));
    // Taking away what is not there changes nothing, not even ctime.
    world.pass_ms(2000);
    assert_eq!(world.entry(&mut c, set_acl(ino, AclKind::Access, None)), attr);
    world.entry(&mut c, set_acl(ino, AclKind::Access, Some(acl(7, 6, 5, 6, 1))));
    let attr = world.entry(&mut c, set_acl(ino, AclKind::Access, None));
    assert_eq!((attr.mode, attr.rights), (0o761, None));
    world.assert_replayable();
}

#[test]
fn a_default_list_is_inherited_instead_of_the_umask() {
    let mut world = World::new();
    let mut c = world.open(1);
    let dir = world.mkdir(&mut c, ROOT, "d");
    let default = acl(7, 7, 5, 7, 5);
    let attr = world.entry(&mut c, set_acl(dir, AclKind::Default, Some(default.clone())));
    assert_eq!((attr.mode, rights(&attr)), (0o644, Rights { default: Some(default.clone()), ..Rights::default() }));

    let file = world.entry(&mut c, make(dir, "f", FileKind::File, 0o4666, 0o077));
    assert_eq!((file.mode, rights(&file)), (0o4664, Rights { access: Some(acl(6, 7, 5, 6, 4)), ..Rights::default() }));
    let sub = world.entry(&mut c, make(dir, "s", FileKind::Dir, 0o777, 0o077));
    let expected = Rights { access: Some(acl(7, 7, 5, 7, 5)), default: Some(default), capability: false };
    assert_eq!((sub.mode, rights(&sub)), (0o775, expected));
    let link = world.entry(&mut c, make(dir, "l", FileKind::Symlink, 0o777, 0o077));
    assert_eq!((link.mode, link.rights), (0o777, None));
    let elsewhere = world.entry(&mut c, make(ROOT, "f", FileKind::File, 0o666, 0o027));
    assert_eq!((elsewhere.mode, elsewhere.rights), (0o640, None));

    // A default list that is no more than a mode makes no access list.
    world.entry(&mut c, set_acl(dir, AclKind::Default, Some(plain(6, 4, 0))));
    let file = world.entry(&mut c, make(dir, "g", FileKind::File, 0o777, 0));
    assert_eq!((file.mode, file.rights), (0o640, None));
    let attr = world.entry(&mut c, set_acl(dir, AclKind::Default, None));
    assert_eq!(attr.rights, None);
    let file = world.entry(&mut c, make(dir, "h", FileKind::File, 0o777, 0o022));
    assert_eq!(file.mode, 0o755);
}

#[test]
fn a_setgid_directory_hands_down_its_group() {
    let mut world = World::new();
    let mut c = world.open(1);
    let dir = world.mkdir(&mut c, ROOT, "d");
    let change = AttrChange { mode: Some(0o2775), gid: Some(Owner::Number(70)), ..AttrChange::default() };
    world.entry(&mut c, Op::Upload(Upload::Setattr { ino: dir, change }));
    let file = world.entry(&mut c, make(dir, "f", FileKind::File, 0o644, 0));
    let sub = world.entry(&mut c, make(dir, "s", FileKind::Dir, 0o755, 0));
    assert_eq!((file.mode, file.gid), (0o644, Owner::Number(70)));
    assert_eq!((sub.mode, sub.gid), (0o2755, Owner::Number(70)));
}

#[test]
fn what_is_no_list_is_refused_and_leaves_no_trace() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let link = world.entry(&mut c, make(ROOT, "l", FileKind::Symlink, 0o777, 0)).ino;
    let rows = world.kv.clone();
    let good = acl(7, 6, 5, 6, 1);
    let cases = [
        (ino, AclKind::Default, good.clone(), Refusal::NotDirectory),
        (link, AclKind::Access, good.clone(), Refusal::Invalid),
        (ino, AclKind::Access, Acl { mask: None, ..good.clone() }, Refusal::Invalid),
        (ino, AclKind::Access, acl(8, 0, 0, 0, 0), Refusal::Invalid),
        (ino, AclKind::Access, Acl { groups: vec![(1, 1); Acl::MAX_NAMED], ..good }, Refusal::Invalid),
        (Ino(ino.0 + 99), AclKind::Access, plain(7, 5, 1), Refusal::Stale),
    ];
    for (ino, which, acl, refusal) in cases {
        assert_eq!(world.call(&mut c, set_acl(ino, which, Some(acl))), Err(refusal));
    }
    assert_eq!(world.call(&mut c, set_acl(ino, AclKind::Default, None)).map(|_| ()), Ok(()));
    assert_eq!(world.kv, rows);
}

#[test]
fn attributes_tell_of_a_capability() {
    let mut world = World::new();
    let mut c = world.open(1);
    let ino = world.mkfile(&mut c, ROOT, "f");
    let named = b"security.capability".to_vec();
    let how = proto::message::XattrHow::Set;
    world.entry(&mut c, set_acl(ino, AclKind::Access, Some(acl(7, 6, 5, 6, 1))));
    let set = Op::Upload(Upload::SetXattr { ino, name: named.clone(), value: value(b"1"), how });
    let attr = world.entry(&mut c, set);
    assert!(rights(&attr).capability && rights(&attr).access.is_some());
    let attr = world.entry(&mut c, Op::Upload(Upload::RemoveXattr { ino, name: named }));
    assert!(!rights(&attr).capability && rights(&attr).access.is_some());
}

#[test]
fn another_list_is_a_change_of_attributes() {
    let mut world = World::new();
    let (mut a, mut b) = (world.open(1), world.open(2));
    let ino = world.mkfile(&mut a, ROOT, "f");
    world.entry(&mut b, lookup(ROOT, "f"));
    let effects = world.send(&mut a, set_acl(ino, AclKind::Access, Some(acl(7, 6, 5, 6, 1))));
    assert_eq!(pushes(&effects, &b), [(PushNo(1), Push::Invalidate(vec![Promise::Dir(ROOT)]))]);
    assert!(answer_of(&effects, &a).is_none(), "the other one relies on the old list until it has confirmed");
    let confirmed = world.send(&mut b, Op::Session(SessionOp::Confirm { pushes: vec![PushNo(1)] }));
    assert!(answer_of(&confirmed, &a).is_some());
    // History has the rights as they were.
    let kept = |world: &World| world.kv.rows.keys().filter(|key| key[0] == b'H').count();
    let before = kept(&world);
    world.pass_ms(70_000);
    let mut c = world.open(3);
    world.entry(&mut c, set_acl(ino, AclKind::Access, Some(acl(6, 6, 6, 6, 6))));
    assert!(kept(&world) > before);
}

/// Each of a page's entries names as many as it may; the listing still fits a record.
#[test]
fn a_listing_of_long_lists_comes_in_shorter_pages() {
    let mut world = World::new();
    let mut c = world.open(1);
    let long =
        Acl { users: (0..Acl::MAX_NAMED as u32).map(|id| (u32::MAX - 1 - id, 7)).collect(), ..acl(7, 7, 7, 7, 7) };
    for number in 0..100 {
        let dir = world.mkdir(&mut c, ROOT, &number.to_string());
        world.entry(&mut c, set_acl(dir, AclKind::Access, Some(long.clone())));
        world.entry(&mut c, set_acl(dir, AclKind::Default, Some(long.clone())));
    }
    let (mut after, mut names, mut pages) = (None, std::collections::BTreeSet::new(), 0);
    loop {
        let page = View::Readdir { dir: ROOT, after: after.take(), limit: 1000 };
        let outcome = world.call(&mut c, Op::View(page)).expect("lists");
        assert!(rmp_serde::to_vec_named(&outcome).unwrap().len() < 800_000);
        let Outcome::Listing { entries, end, .. } = outcome else { panic!() };
        assert!(!entries.is_empty());
        names.extend(entries.iter().map(|listed| listed.name.clone()));
        after = entries.last().map(proto::message::Listed::cursor);
        pages += 1;
        if end {
            break;
        }
    }
    assert_eq!(names.len(), 100);
    assert!(pages > 1);
}
