//! mount(8), fstab and umount(8) through the helpers in `packaging/`, which are
//! put into /sbin in a mount namespace that only the test sees.

use crate::{needs_root, shared};
use harness::{Scratch, command};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

/// Runs a bash script as root in a mount namespace whose /sbin has the helpers.
/// `$SOURCE`, `$DIR` and `$OPTIONS` say what to mount.
pub fn in_namespace(user: &str, script: &str) -> String {
    in_namespace_within(command::SCRIPT_BOUND, user, script)
}

/// The same for a script that may take longer than others.
pub fn in_namespace_within(bound: Duration, user: &str, script: &str) -> String {
    let cluster = shared();
    cluster.user_add(user).unwrap();
    let scratch = Scratch::new("mount8");
    let prologue = r#"
        sbin=$(readlink -f /sbin)
        cp -a "$sbin/." "$SCRATCH/sbin"
        install -m 755 "$HELPER" "$SCRATCH/sbin/mount.kfs"
        install -m 755 "$HELPER" "$SCRATCH/sbin/mount.fuse.kfs"
        install -m 755 "$UNHELPER" "$SCRATCH/sbin/umount.fuse.kfs"
        mount --bind "$SCRATCH/sbin" "$sbin"
        # Helpers are run with a path of their own choice, so the programs stand where they look.
        mount --bind "$PROGRAMS" /usr/local/bin
        mounts() { findmnt -rno TARGET,FSTYPE,SOURCE | grep -F "$DIR" || true; }
        set -x
    "#;
    std::fs::create_dir(scratch.join("sbin")).unwrap();
    let dir = scratch.join("dir");
    std::fs::create_dir(&dir).unwrap();
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "bash", "-euc", &format!("{prologue}\n{script}")]);
    cluster.surround(&mut shell);
    shell.env("SCRATCH", scratch.path()).env("DIR", &dir).env("SOURCE", cluster.source(user));
    shell.env("HELPER", packaging("mount.kfs")).env("UNHELPER", packaging("umount.fuse.kfs"));
    shell.env("PROGRAMS", cluster.programs().dir());
    let options = format!(
        "password_file={},config={}",
        cluster.password_file(user).display(),
        cluster.dir().join("config.toml").display()
    );
    shell.env("OPTIONS", options);
    command::run(&mut shell, bound).unwrap().done().unwrap_or_else(|error| panic!("{error:#}")).text()
}

#[test]
fn mount_and_umount_work() {
    if !needs_root("run mount(8) with a type") {
        return;
    }
    in_namespace(
        "mount8",
        r#"
        mount -t kfs "$SOURCE" "$DIR" -o "$OPTIONS"
        mounts | grep -F "$DIR fuse.kfs $SOURCE"
        echo content > "$DIR/file"
        umount "$DIR"
        [ -z "$(mounts)" ]
        [ -z "$(ls -A "$DIR")" ]

        # Flags of mount(8): fake, verbose, no mtab, read-only.
        mount -f -t kfs "$SOURCE" "$DIR" -o "$OPTIONS"
        [ -z "$(mounts)" ]
        mount -n -v -r -t kfs "$SOURCE" "$DIR" -o "$OPTIONS"
        [ "$(cat "$DIR/file")" = content ]
        ! touch "$DIR/new" 2>/dev/null
        umount "$DIR"
        [ -z "$(mounts)" ]

        # A failure is told, with mount(8)'s code for it, and leaves nothing.
        code=0
        mount -t kfs "$SOURCE" "$DIR" -o "$OPTIONS,password_file=/dev/null" 2> "$SCRATCH/error" || code=$?
        [ "$code" = 32 ]
        [ -s "$SCRATCH/error" ]
        [ -z "$(mounts)" ]
        "#,
    );
}

#[test]
fn an_fstab_line_works() {
    if !needs_root("run mount -a") {
        return;
    }
    in_namespace(
        "fstab",
        r#"
        echo "$SOURCE $DIR kfs _netdev,nofail,user,x-systemd.automount,comment=test,$OPTIONS 0 0" > "$SCRATCH/fstab"
        mount -a -T "$SCRATCH/fstab"
        mounts | grep -F "$DIR fuse.kfs $SOURCE"
        echo content > "$DIR/file"
        # A second time mounts nothing on top.
        mount -a -T "$SCRATCH/fstab"
        [ "$(mounts | wc -l)" = 1 ]
        umount "$DIR"
        [ -z "$(mounts)" ]
        mount -T "$SCRATCH/fstab" "$DIR"
        [ "$(cat "$DIR/file")" = content ]
        umount -l "$DIR"
        [ -z "$(mounts)" ]
        "#,
    );
}
