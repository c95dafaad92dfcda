//! Who owns what on a real mount, as root and as a plain user.

use crate::{executable, mounted, needs_root, shared};
use harness::Cluster;
use harness::cluster::is_root;
use rustix::process::{getegid, geteuid};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

fn owner(path: &Path) -> (u32, u32) {
    let meta = fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn me() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

#[test]
fn what_is_made_is_the_makers_and_shown_so_elsewhere() {
    let (one, other) = (mounted("owners"), shared().mount("owners").unwrap());
    fs::write(one.join("file"), "").unwrap();
    fs::create_dir(one.join("dir")).unwrap();
    std::os::unix::fs::symlink("file", one.join("link")).unwrap();
    for name in ["file", "dir", "link"] {
        assert_eq!(owner(&other.join(name)), me(), "{name}");
    }
    chown(one.join("file"), Some(me().0), Some(me().1)).unwrap();
    if is_root() {
        chown(one.join("file"), Some(1234), Some(5678)).unwrap();
        chown(one.join("dir"), None, Some(5678)).unwrap();
        std::os::unix::fs::lchown(one.join("link"), Some(1234), None).unwrap();
        assert_eq!(owner(&other.join("file")), (1234, 5678));
        assert_eq!(owner(&other.join("dir")), (0, 5678));
        assert_eq!(owner(&other.join("link")), (1234, 0));
        return;
    }
    for (uid, gid) in [(Some(0), None), (None, Some(0)), (Some(1234), Some(5678))] {
        let error = chown(one.join("file"), uid, gid).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{uid:?} {gid:?}");
    }
    assert_eq!(owner(&other.join("file")), me());
}

#[test]
fn options_say_who_is_shown() {
    let mount = mounted("owners-shown");
    fs::write(mount.join("file"), "").unwrap();
    fs::set_permissions(mount.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    // The mask leaves others, of whom a plain user is one here, the way in.
    let shown = shared().mount_with("owners-shown", "uid=4321,gid=8765,umask=022").unwrap();
    // Of a root mount only what belongs to the namespace: its root, here.
    assert_eq!(owner(shown.path()), (4321, 8765));
    assert_eq!(owner(&shown.join("file")), if is_root() { (0, 0) } else { (4321, 8765) });
    let mode = fs::metadata(shown.join("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    let mode = fs::metadata(mount.join("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666, "what is kept has not changed");
}

#[test]
fn a_root_mount_shows_the_owner_as_the_numbers_of_its_adding() {
    if !needs_root("see other owners than itself") {
        return;
    }
    let cluster = Cluster::start(&executable()).unwrap();
    let file = cluster.password_file("numbered");
    fs::write(&file, Cluster::password("numbered")).unwrap();
    let add = cluster.server_command(&["user", "add", "numbered", "--uid", "2345", "--gid", "6789"]);
    add.arg("--password-file").arg(&file).finish().unwrap();
    cluster.user_add("plain").unwrap();
    assert_eq!(owner(cluster.mount("numbered").unwrap().path()), (2345, 6789));
    assert_eq!(owner(cluster.mount("plain").unwrap().path()), (0, 0), "whoever added it");
}
