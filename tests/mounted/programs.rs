//! Programs that are particular about their filesystem, each checked by its own checker.

use crate::{mounted, shared};
use harness::tree::{self, Depth};
use harness::{Mount, Scratch, sh};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

/// Says which Debian package is missing, rather than how a script fails without it.
fn needs(program: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    assert!(found, "this test needs {program}: apt-get install -y {package}");
}

/// Runs a script in the mount, as [`sh`] does; what it had come to is shown if it fails.
fn script(mount: &Mount, script: &str, args: &[&Path]) {
    sh(mount.path(), &format!("set -x\n{script}"), args).unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn git_branches_packs_and_has_worktrees() {
    needs("git", "git");
    let mount = mounted("git-more");
    script(
        &mount,
        r#"
        clean() { [ -z "$(git status --porcelain)" ]; git fsck --full --strict; }
        git init -q -b main origin
        cd origin
        for i in $(seq 30); do mkdir -p "dir$((i % 7))"; seq "$i" 400 > "dir$((i % 7))/file$i"; done
        git add -A && git commit -q -m 'Begin'
        git checkout -q -b side
        git mv dir1 moved && sed -i 's/^17$/side/' dir2/file9 && git commit -qam 'Move a directory'
        git checkout -q main
        sed -i 's/^300$/main/' dir2/file9 && git commit -qam 'Change a line'
        git merge -q -m 'Merge' side
        grep -qx side dir2/file9 && grep -qx main dir2/file9 && [ -e moved/file1 ] && [ ! -e dir1 ]
        clean

        # Times that change say nothing; the index notices, and writes itself anew.
        touch dir*/* && clean
        touch -d '2001-02-03' dir0/file7 && clean
        # A change of the same size is noticed, whatever the time says.
        cp -p dir0/file7 keep && printf x | dd of=dir0/file7 conv=notrunc status=none
        [ "$(git status --porcelain dir0/file7)" = ' M dir0/file7' ]
        mv keep dir0/file7 && clean
        chmod +x dir0/file7 && [ "$(git diff --summary)" = ' mode change 100644 => 100755 dir0/file7' ]
        git stash -q && clean && [ ! -x dir0/file7 ] && git stash pop -q && [ -x dir0/file7 ]
        git checkout -q -- . && clean

        git worktree add -q ../tree side
        (cd ../tree && seq 10 > new && git add new && git commit -q -m 'From a worktree' && clean)
        [ "$(git log -1 --format=%s side)" = 'From a worktree' ]
        git worktree remove ../tree && [ ! -e ../tree ] && git worktree prune
        git rebase -q side && clean

        # A local clone shares objects by hard links.
        git clone -q ../origin ../linked
        [ "$(find ../linked/.git/objects -type f -links +1 | wc -l)" -gt 20 ]
        for i in 1 2 3; do git commit -q --allow-empty -m "$i"; git branch "b$i"; done
        git gc -q --prune=now
        [ "$(git count-objects)" = '0 objects, 0 kilobytes' ]
        git pack-refs --all && git branch -q -D b1 && clean
        cd ../linked && git pull -q --no-rebase && git gc -q --aggressive --prune=now && clean
        [ "$(git rev-parse HEAD)" = "$(git -C ../origin rev-parse HEAD)" ]
        "#,
        &[],
    );
    let other = shared().mount("git-more").unwrap();
    script(&other, "cd linked && git fsck --full --strict && [ -z \"$(git status --porcelain)\" ]", &[]);
}

/// What each of two processes does to one database at the same time, `$1` of them named.
const SQLITE_WRITER: &str = r#"
    writer() {
        for i in $(seq 25); do
            printf '.timeout 120000\nBEGIN IMMEDIATE;\nUPDATE counter SET n = n + 1;\nINSERT INTO log SELECT %s, n, randomblob(700) FROM counter;\nCOMMIT;\n' "$1"
        done | sqlite3 -bail "$2" > /dev/null
    }
    check() {
        [ "$(sqlite3 "$1" 'PRAGMA integrity_check')" = ok ]
        [ "$(sqlite3 "$1" 'SELECT n FROM counter')" = "$2" ]
        [ "$(sqlite3 "$1" 'SELECT count(DISTINCT n), max(n) FROM log')" = "$2|$2" ]
    }
"#;

#[test]
fn sqlite_keeps_its_databases_whole() {
    needs("sqlite3", "sqlite3");
    let mount = mounted("sqlite");
    for mode in ["delete", "truncate", "persist", "wal"] {
        let play = r#"
            cd "$(mktemp -d -p .)"
            sqlite3 -bail db "PRAGMA journal_mode = $MODE; CREATE TABLE counter(n); INSERT INTO counter VALUES (0);
                CREATE TABLE log(who, n UNIQUE, content)" | grep -qix "$MODE"
            writer 1 db & one=$!
            writer 2 db & two=$!
            wait "$one"
            wait "$two"
            check db 50

            # One that dies in the middle of a transaction leaves a journal behind, which the next one undoes.
            printf 'PRAGMA cache_size = 5;\nBEGIN;\nUPDATE counter SET n = 0;\nUPDATE log SET content = randomblob(900);\n.shell kill -9 $PPID\n' |
                sqlite3 db || [ $? = 137 ]
            [ "$MODE" = wal ] && [ -s db-wal ] || [ -s db-journal ]
            check db 50
            sqlite3 -bail db "DELETE FROM log WHERE n % 2; VACUUM; PRAGMA integrity_check" | grep -qx ok
            [ "$(sqlite3 db 'SELECT count(*) FROM log')" = 25 ]
        "#;
        script(&mount, &format!("MODE={mode}\n{SQLITE_WRITER}\n{play}"), &[]);
    }
    let other = shared().mount("sqlite").unwrap();
    // By locks that hold between mounts. Not with a WAL, whose index is memory that both would have to share.
    let apart = r#"
        mkdir apart
        sqlite3 -bail apart/db "CREATE TABLE counter(n); INSERT INTO counter VALUES (0); CREATE TABLE log(who, n UNIQUE, content)"
        writer 1 apart/db & one=$!
        writer 2 "$1/apart/db" & two=$!
        wait "$one"
        wait "$two"
        check apart/db 50
    "#;
    script(&mount, &format!("{SQLITE_WRITER}\n{apart}"), &[other.path()]);
    let check = "for db in */db; do [ \"$(sqlite3 $db 'PRAGMA integrity_check')\" = ok ]; done; ls -d */db | wc -l";
    assert_eq!(sh(other.path(), check, &[]).unwrap().trim(), "5");
}

#[test]
fn rsync_copies_there_and_back() {
    needs("rsync", "rsync");
    needs("setfattr", "attr");
    needs("setfacl", "acl");
    let scratch = Scratch::new("rsync");
    let source = scratch.join("source");
    tree::make(&source, 300, 5).expect("a tree on the local disk");
    sh(
        &source,
        r#"
        mkfifo fifo
        setfattr -n user.kind -v tree .
        mkdir listed && setfacl -m u:1234:rx,d:g:5678:rwx listed && echo inherits > listed/file
        setfattr -n user.empty 'a,b:c;d' && setfattr -n user.binary -v 0x00ff0a 'a,b:c;d'
        truncate -s 3M sparse && printf end >> sparse
        if [ "$(id -u)" = 0 ]; then
            mknod device c 1 7
            chown -h 12345:54321 ./-rf '~'
            chmod 2755 . && chmod 4711 '...'
        fi
        "#,
        &[],
    )
    .unwrap();
    let mount = mounted("rsync");
    let there_and_back = r#"
        same() { [ -z "$(rsync -aHAX --checksum --delete --numeric-ids --dry-run --itemize-changes "$1/" "$2/")" ]; }
        rsync -aHAXS --numeric-ids "$1/" there/
        same "$1" there
        # What has changed meanwhile, and what has gone.
        echo more >> there/sparse
        rm -f 'there/...' && touch there/additional && chmod 700 there/fifo
        setfattr -n user.kind -v other there
        rsync -aHAXS --numeric-ids --delete "$1/" there/
        same "$1" there
        rsync -aHAX --inplace --no-whole-file --numeric-ids there/ "$2/"
        same "$1" "$2"
        rsync -aHAX --append-verify --numeric-ids "$1/" there/
        same there "$2"
    "#;
    let back = scratch.join("back");
    script(&mount, there_and_back, &[&source, &back]);
    let other = shared().mount("rsync").unwrap();
    for copy in [&other.join("there"), &back] {
        tree::compare(&source, copy, Depth::Everything).unwrap();
    }
}

#[test]
fn tar_keeps_hard_links_holes_and_attributes() {
    needs("setfattr", "attr");
    let mount = mounted("tar-more");
    script(
        &mount,
        r#"
        mkdir -p tree/dir && cd tree
        seq 100000 > file
        ln file dir/hard && ln dir/hard hard
        ln -s dir/hard soft && ln soft soft-too 2>/dev/null
        mkfifo fifo dir/fifo
        truncate -s 40M sparse && printf middle | dd of=sparse bs=1 seek=20000001 conv=notrunc status=none
        ln sparse dir/sparse
        setfattr -n user.note -v value file
        touch -d '1971-11-22 12:30:00.123456789 UTC' dir/old
        chmod 4755 hard && chmod 1777 dir
        cd ..
        tar --format=posix --sparse --xattrs -cf tree.tar tree
        [ "$(stat -c %s tree.tar)" -lt 2000000 ]
        tar --xattrs -df tree.tar
        mkdir again
        tar --xattrs --xattrs-include='*' -xpf tree.tar -C again
        tar --xattrs -df tree.tar -C again
        cd again/tree
        [ "$(stat -c %i file)" = "$(stat -c %i dir/hard)" ] && [ "$(stat -c %h hard)" = 3 ]
        [ "$(stat -c %i soft)" = "$(stat -c %i soft-too)" ] && [ -p fifo ] && [ -p dir/fifo ]
        cmp sparse ../../tree/sparse && [ "$(stat -c %b dir/sparse)" -lt 2000 ]
        [ "$(getfattr --only-values -n user.note hard)" = value ]
        [ "$(TZ=UTC stat -c %y dir/old)" = '1971-11-22 12:30:00.123456789 +0000' ]
        [ "$(stat -c %a hard)" = 4755 ] && [ "$(stat -c %a dir)" = 1777 ]
        "#,
        &[],
    );
    let other = shared().mount("tar-more").unwrap();
    tree::compare(&mount.join("tree"), &other.join("again/tree"), Depth::Everything).unwrap();
}

#[test]
fn cargo_builds_into_the_mount() {
    let mount = mounted("cargo");
    script(
        &mount,
        r#"
        unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
        export CARGO_TARGET_DIR=$PWD/target
        cargo="${CARGO:-cargo}"
        mkdir -p tiny/src tiny/tests && cd tiny
        printf '[package]\nname = "tiny"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n' > Cargo.toml
        echo 'pub fn answer() -> u32 { 42 }' > src/lib.rs
        echo 'fn main() { println!("{}", tiny::answer()) }' > src/main.rs
        printf '#[test]\nfn works() { assert!(tiny::answer() > 40) }\n' > tests/works.rs
        "$cargo" build -q --offline
        [ "$(../target/debug/tiny)" = 42 ]
        # Built already, by the times and hashes of what stands there.
        [[ "$("$cargo" build --offline -v 2>&1)" == *'Fresh tiny'* ]]
        echo 'pub fn answer() -> u32 { 43 }' > src/lib.rs
        [[ "$("$cargo" build --offline -v 2>&1)" == *'Dirty tiny'* ]]
        [ "$("$cargo" run -q --offline)" = 43 ]
        [[ "$("$cargo" test -q --offline 2>&1)" == *'1 passed'* ]]
        "$cargo" clean -q && [ ! -e ../target/debug ]
        "#,
        &[],
    );
}

/// Replaces the content of `dir/file` as an editor does.
type Save = fn(dir: &Path, content: &[u8]);

fn write_new(path: &Path, mode: u32, content: &[u8]) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
}

/// Written beside, synced, renamed over, the directory synced: who reads sees the old or the new.
fn by_renaming_over(dir: &Path, content: &[u8]) {
    write_new(&dir.join(".file.tmp"), 0o640, content);
    fs::rename(dir.join(".file.tmp"), dir.join("file")).unwrap();
    File::open(dir).unwrap().sync_all().unwrap();
}

/// As vim does with `backupcopy=no`: tries whether the directory can be written to, moves the old one away and writes
/// a new one with its mode, then takes the backup away.
fn as_vim(dir: &Path, content: &[u8]) {
    let (file, backup) = (dir.join("file"), dir.join("file~"));
    let mode = fs::metadata(&file).unwrap().mode() & 0o7777;
    write_new(&dir.join("4913"), mode, b"");
    fs::remove_file(dir.join("4913")).unwrap();
    write_new(&dir.join(".file.swp"), 0o600, &content[..content.len() / 2]);
    fs::rename(&file, &backup).unwrap();
    write_new(&file, mode, content);
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    fs::remove_file(backup).unwrap();
    fs::remove_file(dir.join(".file.swp")).unwrap();
}

/// As vim does with `backupcopy=yes`, and nano: copies the old one, then writes into it.
fn in_place(dir: &Path, content: &[u8]) {
    let (file, backup) = (dir.join("file"), dir.join("file~"));
    fs::copy(&file, &backup).unwrap();
    let mut old = OpenOptions::new().write(true).truncate(true).open(file).unwrap();
    for part in content.chunks(8192) {
        old.write_all(part).unwrap();
    }
    old.sync_all().unwrap();
    drop(old);
    fs::remove_file(backup).unwrap();
}

/// As emacs does: a lock that is a symbolic link to nowhere, changes saved now and then in `#file#`, the old one kept
/// under a second name before it is replaced.
fn as_emacs(dir: &Path, content: &[u8]) {
    let (file, backup, lock, auto) = (dir.join("file"), dir.join("file~"), dir.join(".#file"), dir.join("#file#"));
    symlink("someone@here.1234:5678", &lock).unwrap();
    for end in [content.len() / 3, content.len() / 2] {
        fs::write(&auto, &content[..end]).unwrap();
    }
    let mode = fs::metadata(&file).unwrap().mode() & 0o7777;
    fs::hard_link(&file, &backup).unwrap();
    write_new(&dir.join("file-new"), mode, content);
    fs::rename(dir.join("file-new"), &file).unwrap();
    fs::remove_file(auto).unwrap();
    fs::remove_file(lock).unwrap();
    fs::remove_file(backup).unwrap();
}

#[test]
fn what_an_editor_saves_is_there_for_everyone() {
    const SAVES: [(&str, Save); 4] =
        [("renaming over", by_renaming_over), ("vim", as_vim), ("in place", in_place), ("emacs", as_emacs)];
    let mount = mounted("editor");
    let other = shared().mount("editor").unwrap();
    fs::write(mount.join("file"), "begin").unwrap();
    fs::set_permissions(mount.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
    let mut random = tree::Random::new(12);
    for round in 0..6 {
        for (how, save) in SAVES {
            // Alternately on either mount, so that each finds what the other has left.
            let (writer, reader) = if round % 2 == 0 { (&mount, &other) } else { (&other, &mount) };
            let before = File::open(reader.join("file")).unwrap();
            let (old, links) = (fs::read(reader.join("file")).unwrap(), before.metadata().unwrap().nlink());
            assert_eq!(links, 1, "before {how}");
            let len = random.below(200_000) as usize;
            let content = random.bytes(len);
            save(writer.path(), &content);
            for mount in [writer, reader] {
                assert!(fs::read(mount.join("file")).unwrap() == content, "{how} in round {round}");
                assert_eq!(fs::metadata(mount.join("file")).unwrap().mode() & 0o7777, 0o640, "{how}");
                tree::lists(mount.path(), &["file".as_ref()]).unwrap();
            }
            if how != "in place" {
                let mut kept = Vec::new();
                std::io::Read::read_to_end(&mut &before, &mut kept).unwrap();
                assert!(kept == old, "what was open before {how} stays what it was");
            }
        }
    }
}

/// Stressors of stress-ng, and the rounds that each does, which are of very different length.
///
/// Left out: what touches no file below the directory it is given (`dup, eventfd, fstat, getdent, io, ioprio, procfs`),
/// what FUSE has not (`chattr, dnotify, fanotify, fiemap, file-ioctl, inode-flags, inotify` of other mounts, `lease,
/// verity`), what makes mounts of its own (`bind-mount, binderfs`), and what takes minutes here for what others do too
/// (`chdir, link` and `symlink`, which make 8192 names at a time, `fsize, iomix, sync-file`).
const STRESSORS: [(&str, u32); 27] = [
    ("access", 2),
    ("chmod", 1),
    ("chown", 10),
    ("copy-file", 10),
    ("dentry", 50),
    ("dir", 50),
    ("dirdeep", 30),
    ("dirmany", 50),
    ("fallocate", 2),
    ("fcntl", 30),
    ("filename", 1),
    ("flock", 100),
    ("fpunch", 2),
    ("handle", 50),
    ("hdd", 20),
    ("locka", 50),
    ("lockf", 50),
    ("lockofd", 50),
    ("mknod", 20),
    ("open", 50),
    ("readahead", 20),
    ("rename", 30),
    ("seek", 50),
    ("sendfile", 20),
    ("touch", 30),
    ("utime", 10),
    ("xattr", 1),
];

#[test]
fn stressors_find_nothing() {
    needs("stress-ng", "stress-ng");
    let mount = mounted("stress");
    let chosen = |(name, rounds)| format!(" --{name} 1 --{name}-ops {rounds}");
    let all: String = STRESSORS.into_iter().map(chosen).collect();
    // All at once: they mostly wait, and so meet each other. The timeout bounds what a busy machine makes of it.
    script(&mount, &format!("stress-ng --temp-path . --verify --timeout 30 --hdd-bytes 8m --seek-size 4m {all}"), &[]);
    tree::lists(mount.path(), &[]).expect("each has removed what it made");
}
