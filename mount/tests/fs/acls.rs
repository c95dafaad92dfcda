//! Access control lists as programs and the kernel ask for them.

use crate::place::{ME, Place};
use mount::client::Patience;
use mount::fs::{Caller, CreateHow, NewNode, ROOT, SetAttr};
use proto::message::{AclKind, FileKind, XattrHow};
use std::time::Duration;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";

fn patience() -> Patience {
    Patience::within(Duration::from_secs(30))
}

/// Owner 7, user 5 6, group 5, mask 7, others 0, as Linux has it.
fn acl() -> Vec<u8> {
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let nobody = u32::MAX;
    let entries =
        [entry(1, 7, nobody), entry(2, 6, 5), entry(4, 5, nobody), entry(16, 7, nobody), entry(32, 0, nobody)];
    [&2_u32.to_le_bytes()[..], &entries.concat()].concat()
}

/// The kernel asks before every write, and for every step of a path: that must cost nothing.
#[tokio::test(flavor = "multi_thread")]
async fn asking_for_rights_costs_no_request() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let dir = fs.mkdir(ME, ROOT, b"d", 0o755, &p).await.expect("makes").ino;
    fs.set_acl(dir, AclKind::Default, &acl(), |_| true, &p).await.expect("sets");
    let (file, opened) = fs.create(ME, dir, b"f", 0o666, CreateHow::default(), &p).await.expect("makes");
    fs.release(opened.handle).expect("closes");
    fs.setxattr(file.ino, b"user.a", b"1", XattrHow::Set, &p).await.expect("sets");
    let listed = other.opendir(ROOT);
    other.readdir(listed, 0, true, &p).await.expect("lists");
    let seen = other.lookup(other.lookup(ROOT, b"d", &p).await.expect("is there").ino, b"f", &p).await;
    assert_eq!(seen.expect("is there").ino, file.ino);

    let before = place.sent();
    for _ in 0..100 {
        for fs in [&fs, &other] {
            assert_eq!(&fs.getxattr(dir, DEFAULT, &p).await.expect("has one")[..], acl());
            assert!(fs.getxattr(dir, ACCESS, &p).await.is_err());
            let access = fs.getxattr(file.ino, ACCESS, &p).await.expect("has one");
            // Owner, mask and others as the mode that was asked for allows.
            assert_eq!([access[6], access[14], access[22], access[30], access[38]], [6, 6, 5, 6, 0]);
            assert!(fs.getxattr(file.ino, b"security.capability", &p).await.is_err());
        }
    }
    // No more than renewals.
    assert!(place.sent() < before + 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_follow_the_mode_on_every_mount() {
    let place = Place::in_memory().await;
    let (fs, other) = (place.fs().await, place.fs().await);
    let p = patience();
    let who = Caller { umask: 0o027, ..ME };
    let node = NewNode { kind: FileKind::File, mode: 0o2666, rdev: 0 };
    let file = fs.mknod(who, ROOT, b"f", node, &p).await.expect("makes");
    assert_eq!(file.mode, 0o2640);
    assert_eq!(other.lookup(ROOT, b"f", &p).await.expect("is there").mode, 0o2640);

    fs.set_acl(file.ino, AclKind::Access, &acl(), |group| group == 0, &p).await.expect("sets");
    assert_eq!(other.lookup(ROOT, b"f", &p).await.expect("is there").mode, 0o2770);
    assert_eq!(&other.getxattr(file.ino, ACCESS, &p).await.expect("has one")[..], acl());
    assert_eq!(other.listxattr(file.ino, false, &p).await.expect("lists"), [ACCESS, b"\0"].concat());
    other.setattr(file.ino, SetAttr { mode: Some(0o2741), ..SetAttr::default() }, &p).await.expect("sets");
    fs.getattr(file.ino, &p).await.expect("is there");
    assert_eq!(fs.getxattr(file.ino, ACCESS, &p).await.expect("has one")[30], 4);
    // Set by someone else than a member of the group.
    fs.set_acl(file.ino, AclKind::Access, &acl(), |_| false, &p).await.expect("sets");
    assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").mode, 0o770);
    fs.removexattr(file.ino, ACCESS, &p).await.expect("removes");
    fs.removexattr(file.ino, ACCESS, &p).await.expect("is not there");
    assert!(fs.getxattr(file.ino, ACCESS, &p).await.is_err());
    assert_eq!(fs.getattr(file.ino, &p).await.expect("is there").mode, 0o770);

    let errno = |result: Result<(), mount::error::FsError>| i32::from(result.expect_err("is refused").errno());
    assert_eq!(errno(fs.set_acl(file.ino, AclKind::Access, b"\x02\0\0\0x", |_| true, &p).await), libc::EINVAL);
    assert_eq!(errno(fs.set_acl(file.ino, AclKind::Access, b"\x03\0\0\0", |_| true, &p).await), libc::EOPNOTSUPP);
}
