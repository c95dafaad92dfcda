//! Users and their passwords, as an administrator and as a user meets them.

use crate::{executable, shared};
use harness::cluster::is_mounted;
use harness::{Cluster, Scratch};
use std::fs;

/// `kfs-mount` refuses in one line and leaves nothing mounted.
fn refused(cluster: &Cluster, user: &str, password: &str) -> String {
    let scratch = Scratch::new("login");
    let (file, dir) = (scratch.join("password"), cluster.mountpoint().unwrap());
    fs::write(&file, password).unwrap();
    let mut invocation = cluster.mount_command(user, "", &dir);
    invocation.command = cluster.command("kfs-mount");
    let invocation = invocation.arg("-o").arg(format!("password_file={}", file.display()));
    let line = invocation.arg(cluster.source(user)).arg(&dir).refused(1).unwrap();
    assert!(!is_mounted(&dir), "{line}");
    assert!(!line.contains(password), "{line:?} tells the password");
    line
}

#[test]
fn wrong_passwords_and_unknown_users_look_alike() {
    let cluster = shared();
    cluster.user_add("known").unwrap();
    let wrong = refused(cluster, "known", "not the password");
    let unknown = refused(cluster, "unknown", "not the password");
    assert_eq!(wrong.replace("unknown", "USER").replace("known", "USER"), unknown.replace("unknown", "USER"));
    cluster.mount("known").expect("the right password still works").unmount().unwrap();
}

#[test]
fn a_removed_user_is_unknown() {
    let cluster = shared();
    cluster.user_add("leaving").unwrap();
    cluster.mount("leaving").unwrap().unmount().unwrap();
    cluster.server_command(&["user", "remove", "leaving"]).finish().unwrap();
    let removed = refused(cluster, "leaving", &Cluster::password("leaving"));
    let unknown = refused(cluster, "never-there", "x");
    assert_eq!(removed.replace("leaving", "USER"), unknown.replace("never-there", "USER"));
    let list = cluster.server_command(&["user", "list"]).finish().unwrap().text();
    assert!(!list.contains("leaving"), "{list}");
    let line = cluster.server_command(&["user", "remove", "leaving"]).refused(1).unwrap();
    assert!(line.contains("leaving"), "{line}");
}

#[test]
fn a_changed_password_replaces_the_old_one() {
    let cluster = shared();
    cluster.user_add("changing").unwrap();
    let mount = cluster.mount("changing").unwrap();
    fs::write(mount.join("file"), "kept").unwrap();
    mount.unmount().unwrap();
    let old = Cluster::password("changing");
    fs::write(cluster.password_file("changing"), "another one\n").unwrap();
    let file = cluster.password_file("changing");
    let passwd = cluster.server_command(&["user", "passwd", "changing"]).arg("--password-file").arg(&file);
    passwd.arg("--recovery").arg(cluster.dir().join("recovery.key")).finish().unwrap();
    refused(cluster, "changing", &old);
    let mount = cluster.mount("changing").unwrap();
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"kept");
}

#[test]
fn a_user_is_added_once_and_listed() {
    let cluster = shared();
    cluster.user_add("twice").unwrap();
    let again = cluster.server_command(&["user", "add", "twice", "--password-file", "-"]).input("x\n");
    let line = again.refused(1).unwrap();
    assert!(line.contains("twice"), "{line}");
    let list = cluster.server_command(&["user", "list"]).finish().unwrap().text();
    assert_eq!(list.lines().filter(|line| line.split_whitespace().next() == Some("twice")).count(), 1, "{list}");
    let bad = cluster.server_command(&["user", "add", "bad/name", "--password-file", "-"]).input("x\n").run().unwrap();
    assert!([1, 2].contains(&bad.code()), "{bad:?}");
}

#[test]
fn a_classic_password_file_is_imported_whole_or_not_at_all() {
    let cluster = Cluster::start(&executable()).unwrap();
    let scratch = Scratch::new("import");
    let file = scratch.join("users");
    let import = || cluster.server_command(&["user", "import"]).arg(&file);
    for (text, line) in [("anna:a\nmalformed\nbert:b\n", 2), ("anna:a\nbert:b\nanna:c\n", 3), ("anna:a\n:b\n", 2)] {
        fs::write(&file, text).unwrap();
        let refused = import().run().unwrap();
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert!(
            refused.stderr.contains(&format!("line {line}")) || refused.stderr.contains(&format!(":{line}")),
            "{}",
            refused.stderr
        );
    }
    let list = cluster.server_command(&["user", "list"]).finish().unwrap().text();
    assert!(!list.contains("anna") && !list.contains("bert"), "half imported: {list}");

    fs::write(&file, "anna:a\nbert:with:colons\n").unwrap();
    import().finish().unwrap();
    fs::write(cluster.password_file("anna"), "a").unwrap();
    fs::write(cluster.password_file("bert"), "with:colons").unwrap();
    for user in ["anna", "bert"] {
        let mount = cluster.mount(user).unwrap();
        fs::write(mount.join("file"), user).unwrap();
    }
}

#[test]
fn a_credential_file_logs_in_without_a_password() {
    let cluster = shared();
    let scratch = Scratch::new("credential");
    let credential = scratch.join("device.cred");
    let add = cluster.server_command(&["user", "add", "unattended", "--password-file", "-"]);
    add.arg("--credential").arg(&credential).input("a password\n").finish().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&credential).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let dir = cluster.mountpoint().unwrap();
    let mut mount = cluster.mount_command("unattended", "", &dir);
    mount.command = cluster.command("kfs-mount");
    let mount = mount.arg("-o").arg(format!("credential={}", credential.display()));
    mount.arg(cluster.source("unattended")).arg(&dir).finish().unwrap();
    assert!(is_mounted(&dir));
    fs::write(dir.join("file"), "x").unwrap();
    harness::sh(cluster.dir(), "umount \"$1\" 2>/dev/null || fusermount3 -u \"$1\"", &[&dir]).unwrap();
}
