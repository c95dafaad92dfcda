//! Who may do what: access control lists, setuid, setgid and sticky bits, groups. One script is run on a local disk
//! and on a mount, and must tell the same.

use crate::{mounted, needs_root, shared};
use harness::Scratch;
use harness::tree::Random;
use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;
use std::path::Path;

/// What the scripts share.
const PROLOGUE: &str = r#"
    umask 022
    export LC_ALL=C
    # Does something as nobody, with these further groups. No path leads here but the current directory.
    as() { local groups=$1; shift; setpriv --reuid 65534 --regid 65534 $groups "$@"; }
    nobody() { as --clear-groups "$@"; }
    # Says how it went.
    try() { echo "\$ $*"; "$@" 2>&1 || echo "= $?"; }
    shows() { stat -c '%n %A %u:%g' "$@"; }
    lists() { getfacl -n -p "$@"; }
    # Of a whole tree, in an order of its own; links have no list.
    lists_below() { find "$@" ! -type l | LC_ALL=C sort | getfacl -n -p -; }
    lists_of() { shows "$@"; lists "$@"; }
"#;

/// Runs the script on both, in directories of their own.
fn same_as_on_a_disk(user: &str, script: &str) -> String {
    let scratch = Scratch::new(user);
    shared().user_add(user).unwrap();
    let mount = shared().mount_with(user, "allow_other,suid,dev").unwrap();
    let script = format!("{PROLOGUE}{script}");
    let [disk, kfs] = [scratch.path(), mount.path()].map(|path| {
        let dir = path.join("here");
        std::fs::create_dir(&dir).unwrap();
        harness::sh(&dir, &script, &[]).unwrap()
    });
    assert_eq!(kfs, disk);
    kfs
}

#[test]
fn access_control_lists_are_as_on_a_local_disk() {
    if !needs_root("act as other users") {
        return;
    }
    let told = same_as_on_a_disk(
        "acls",
        r#"
        echo one > f; chmod 600 f
        setfacl -m u:65534:rw,g:7:r f; lists_of f
        try nobody sh -c 'echo two >> f'; try nobody cat f
        chmod 640 f; lists_of f
        try nobody sh -c 'echo three >> f'; try nobody cat f
        chmod 600 f; try nobody cat f
        chmod 677 f; lists_of f
        try as "--groups 7" cat f
        setfacl -m u:65534:- f; try as "--groups 7" cat f
        setfacl -x u:65534 f; lists_of f; try nobody cat f
        setfacl -m g:7:rwx,m::r f; lists_of f
        setfacl -x g:7 f; lists_of f
        setfacl -b f; lists_of f
        setfacl -m u::rw,g::r,o::- f; lists_of f

        mkdir d; setfacl -d -m u:65534:rwx,g::rx,o::r d; lists_of d
        for umask in 000 022 077; do (
            umask $umask
            mkdir d/dir$umask d/dir$umask/sub; echo > d/file$umask; mkfifo d/fifo$umask; ln -s file d/link$umask
            mkdir -m 700 d/private$umask; install -m 711 /dev/null d/installed$umask; cp f d/copied$umask
            mkdir plain$umask; echo > plain$umask/file; ln -s x plain$umask/link
        ) done
        shows d/* d/*/*; lists_below d; shows plain*/*
        chmod g+s d; mkdir d/setgid; lists_of d/setgid
        chmod 1777 d/setgid; lists_of d/setgid
        setfacl -k d; lists_of d; (umask 077; mkdir d/after); lists_of d/after
        setfacl -R -m u:3:rwX,d:u:3:rwX d; lists_below d
        cp -a d e; lists_below e
        lists -R d > was; lists_below d > before; setfacl -R -b d; lists_below d > bare
        setfacl --restore=was; lists_below d | cmp - before; cmp -s before bare || echo restored

        # Whoever does not own it sets nothing; what is no list is refused.
        echo > g
        try nobody setfacl -m u:3:r g; try nobody setfacl -m u:3:r d
        raw() { try setfattr -n "system.posix_acl_$1" -v "$2" "$3"; }
        good=0x0200000001000700ffffffff04000500ffffffff20000100ffffffff
        raw default $good g; raw default $good d; lists_of d
        raw access $good g; lists_of g
        raw access 0x0200000001000700ffffffff04000500ffffffff g
        raw access 0x0200000001000700ffffffff04000500ffffffff20000f00ffffffff g
        raw access 0x0200000001000700ffffffff02000700030000000400050000000000ffffffff20000100ffffffff g
        raw access 0x0200000001000700ffffffff020007000300000004000500ffffffff20000100ffffffff g
        raw access 0x03000000 g; raw access 0x0200 g; raw access 0x02000000 g; lists_of g
        ln -s g l; try setfattr -h -n system.posix_acl_access -v $good l
        try getfattr -h -n system.posix_acl_access l; try getfattr -n system.posix_acl_access g
        try setfattr -x system.posix_acl_access g; try setfattr -x system.posix_acl_default g
        setfacl -m u:3:r g; getfattr -m - g; getfattr -d -e hex -m - g
    "#,
    );
    assert!(told.contains("Permission denied") && told.contains("restored"), "{told}");
}

#[test]
fn special_bits_and_groups_are_as_on_a_local_disk() {
    if !needs_root("act as other users") {
        return;
    }
    let told = same_as_on_a_disk(
        "special-bits",
        r#"
        chmod 777 .
        fresh() { rm -f f; echo 0123456789 > f; chown "${2:-0:0}" f; chmod "$1" f; }
        # What clears setuid and setgid, by whom, of what. Of setgid where the group may not execute FUSE does not
        # let the kernel think: only chown, chmod and setfacl are as on a local disk there.
        for mode in 6777 2777 4777 4666; do
            for who in nobody command; do
                for what in 'echo >> f' 'echo 1<> f >&1' ': > f' 'truncate -s 3 f' 'truncate -s 100 f' 'cp /etc/hostname f' \
                    'fallocate -l 10 f' 'fallocate -p -o 0 -l 3 f' 'dd if=/dev/zero of=f bs=4096 count=1 conv=notrunc oflag=direct status=none' \
                    'touch f' 'cat f' 'mv f g' 'chmod u+x f'; do
                    fresh $mode; echo "$mode $who $what"
                    $who sh -c "$what" > said 2>&1 || sed 's/.*: //' said | tail -n 1
                    [ ! -e g ] || mv g f
                    shows f
                done
            done
            for owner in 65534 :65534 0:0 65534:7; do
                for mode in $mode 2767; do fresh $mode; try chown "$owner" f; shows f; done
            done
        done
        # Changes by the owner, of one group or several.
        for groups in --clear-groups '--groups 7' '--groups 7,8'; do
            for what in 'chgrp 7 f' 'chgrp 8 f' 'chgrp 65534 f' 'chown 0 f' 'chmod 2755 f' 'chmod 4755 f' 'setfacl -m u:3:r f' 'setfacl -m g::rwx f'; do
                for group in 7 8 65534; do
                    fresh 2755 65534:$group; echo "$groups $what $group"; try as "$groups" $what; shows f
                done
            done
        done
        # Setgid directories.
        mkdir s; chown 0:7 s; chmod 2777 s
        for groups in --clear-groups '--groups 7'; do
            as "$groups" sh -c 'umask 002; cd s; echo > f; mkdir d; ln -s f l; mkfifo p; install -m 2755 /dev/null i; install -m 2745 /dev/null j
                mkdir -m 2755 m; mkdir -m 755 n; echo > t; chmod 2755 t d; touch e; chmod 2745 e'
            shows s/*; rm -rf s/*
        done
        # Sticky directories.
        mkdir t; chmod 1777 t; echo > t/root; nobody sh -c 'echo > t/nobody'; as '--groups 7' true
        try nobody rm -f t/root; try nobody mv t/root t/other; try nobody mv t/nobody t/root; try nobody rm t/nobody
        mkdir t/d; try nobody rmdir t/d; try nobody chmod 777 t/root; try nobody touch t/root; try nobody touch -d 2001-01-01 t/root
        shows t t/*
        # Setuid and setgid bits where the handle was there before them, of files that are made one after the other.
        for who in nobody command; do
            for mode in 6777 2777 4777 2767; do
                $who sh -c "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do : > many-\$i; done
                    exec 3> many; echo 1 >&3; chmod $mode many; echo 2 >&3"
                shows many
                rm many*
            done
        done
        # A capability goes with a write, whoever writes.
        for who in nobody command; do
            fresh 777; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 f
            $who cat f; getfattr -m - f; $who sh -c 'echo > f'; getfattr -m - f
        done
        sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18; do : > many-$i; done
            exec 3> many; setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 many; getfattr -m - many; echo 3 >&3'
        getfattr -m - many; shows many
    "#,
    );
    assert!(told.contains("-rwsrwsrwx") && told.contains("Operation not permitted"), "{told}");
}

#[test]
fn attributes_of_all_namespaces_are_as_on_a_local_disk() {
    if !needs_root("set attributes that only root sees") {
        return;
    }
    let told = same_as_on_a_disk(
        "namespaces",
        r#"
        echo > f; mkdir d; ln -s f l; mkfifo p; chmod 666 f
        long=$(printf '%0248d' 0)
        for name in user.a trusted.a security.a system.a other.a a user. trusted. user.$long user.x$long user; do
            for file in f d l p; do
                try setfattr -h -n $name -v 1 $file; try getfattr -h -n $name $file; try nobody getfattr -h -n $name $file
                try nobody setfattr -h -n $name -v 2 $file; try nobody setfattr -h -x $name $file
            done
        done
        for file in f d l p; do
            echo $file; getfattr -h -d -m - $file | sort; nobody getfattr -h -d -m - $file | sort
            for name in user.a trusted.a security.a; do
                try setfattr -h -x $name $file; try setfattr -h -x $name $file
            done
        done
    "#,
    );
    assert!(told.contains("Operation not supported") && told.contains("trusted.a=\"1\""), "{told}");
}

/// What comes of calls with flags and bounds, in the directory.
fn told_of_values(dir: &Path) -> Vec<String> {
    let (file, none) = (dir.join("values"), dir.join("none"));
    std::fs::write(&file, "").unwrap();
    let mut told = Vec::new();
    let sets = [
        ("user.n", 1, XattrFlags::REPLACE),
        ("user.n", 2, XattrFlags::CREATE),
        ("user.n", 3, XattrFlags::CREATE),
        ("user.n", 4, XattrFlags::REPLACE),
        ("user.n", 65_537, XattrFlags::empty()),
        ("user.none", 0, XattrFlags::empty()),
    ];
    for (name, len, flags) in sets {
        told.push(format!("set {name} {len}: {:?}", setxattr(&file, name, &vec![b'x'; len], flags)));
        told.push(format!("set nothing's {name}: {:?}", setxattr(&none, name, b"", flags)));
    }
    for (name, room) in
        [("user.n", 0), ("user.n", 3), ("user.n", 4), ("user.n", 70_000), ("user.none", 0), ("user.o", 9)]
    {
        told.push(format!("get {name} {room}: {:?}", getxattr(&file, name, &mut vec![0; room][..])));
    }
    for room in [0, 1, 16, 17, 70_000] {
        told.push(format!("list {room}: {:?}", listxattr(&file, &mut vec![0; room][..])));
    }
    for name in ["user.n", "user.n", "user.none", &format!("user.{}", "x".repeat(251))] {
        told.push(format!("remove {name}: {:?}", removexattr(&file, name)));
    }
    told
}

#[test]
fn values_are_set_and_got_as_on_a_local_disk() {
    let scratch = Scratch::new("values");
    let mount = mounted("values");
    let (disk, kfs) = (told_of_values(scratch.path()), told_of_values(mount.path()));
    assert_eq!(kfs, disk);
    assert!(kfs.iter().any(|told| told.contains("Err")) && kfs.iter().any(|told| told.contains("Ok(4)")), "{kfs:?}");
}

/// What ext4 has no room for.
#[test]
fn values_may_have_64_kib_and_there_may_be_many() {
    let mount = mounted("large-values");
    let other = shared().mount("large-values").unwrap();
    let (here, there) = (mount.join("file"), other.join("file"));
    std::fs::write(&here, "").unwrap();
    let value = Random::new(3).bytes(65_536);
    let set = |name: &str, len: usize| setxattr(&here, name, &value[..len], XattrFlags::empty());
    let got = |name: &str| {
        let mut out = vec![0; 65_536];
        let len = getxattr(&there, name, &mut out[..]).unwrap();
        out.truncate(len);
        out
    };
    set("user.big", 65_536).unwrap();
    assert!(got("user.big") == value);
    // As many as fit; then there is no room, and nothing of what there was has gone.
    let name = |n: usize| format!("user.{n:0200}");
    let fitted = (0..100).find(|n| set(&name(*n), 10_000) == Err(Errno::NOSPC)).unwrap();
    assert!((15..30).contains(&fitted), "{fitted}");
    assert!(got(&name(fitted - 1)) == value[..10_000]);
    removexattr(&there, "user.big").unwrap();
    set(&name(fitted), 10_000).unwrap();
    assert!(got(&name(fitted)) == value[..10_000]);
    assert_eq!(listxattr(&there, &mut [0; 65_536][..]).unwrap(), (fitted + 1) * 206);
    for n in 0..=fitted {
        removexattr(&here, name(n)).unwrap();
    }
    // Names alone can be more than a list may have.
    for n in 0..320 {
        set(&name(n), 0).unwrap();
    }
    assert_eq!(listxattr(&there, &mut [0; 65_536][..]), Err(Errno::TOOBIG));
    assert!(got(&name(319)).is_empty());
}
