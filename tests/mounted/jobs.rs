//! The main job on real input: what people do to source trees, with the programs they do it with.

use crate::{mounted, shared};
use harness::tree::{self, Depth};
use harness::{Scratch, sh};
use std::path::Path;

/// Thousands of files, as the trees have that people copy; few enough for a debug build.
const FILES: usize = 2000;

#[test]
fn a_source_tree_is_copied_compared_listed_moved_and_removed() {
    let scratch = Scratch::new("jobs");
    let source = scratch.join("source");
    tree::make(&source, FILES, 1).expect("a tree on the local disk");
    let mount = mounted("jobs");
    let copy = mount.join("copy");

    sh(mount.path(), "cp -r \"$1\" copy && diff -r --no-dereference \"$1\" copy", &[&source]).unwrap();
    tree::compare(&source, &copy, Depth::ContentAndModes).unwrap();
    sh(mount.path(), "diff <(cd \"$1\" && ls -AR) <(cd copy && ls -AR); ls -lR copy >/dev/null", &[&source]).unwrap();
    sh(mount.path(), "rm -rf copy && cp -a \"$1\" copy", &[&source]).unwrap();
    tree::compare(&source, &copy, Depth::Everything).unwrap();

    // Nothing of it was only in this mount's caches.
    let other = shared().mount("jobs").unwrap();
    tree::compare(&source, &other.join("copy"), Depth::Everything).unwrap();
    other.unmount().unwrap();

    sh(
        mount.path(),
        r#"
        mkdir -p a/b
        mv copy a/b/moved
        [ ! -e copy ]
        echo content > file
        ln file hard
        ln -s file soft
        [ "$(stat -c %h file)" = 2 ]
        [ "$(cat soft)" = content ]
        echo more >> hard
        [ "$(tail -n 1 file)" = more ]
        chmod 640 file
        [ "$(stat -c %a hard)" = 640 ]
        touch -d '2001-02-03 04:05:06.789 UTC' file
        [ "$(TZ=UTC stat -c %y hard)" = '2001-02-03 04:05:06.789000000 +0000' ]
        mv -f hard soft
        [ "$(stat -c %h soft)" = 2 ]
        rm file
        [ "$(stat -c %h soft)" = 1 ]
        "#,
        &[],
    )
    .unwrap();
    tree::compare(&source, &mount.join("a/b/moved"), Depth::Everything).unwrap();
    sh(mount.path(), "rm -rf a soft", &[]).unwrap();
    tree::lists(mount.path(), &[]).unwrap();
}

#[test]
fn an_archive_is_unpacked_exactly() {
    let scratch = Scratch::new("tar");
    let source = scratch.join("source");
    tree::make(&source, FILES / 2, 2).expect("a tree on the local disk");
    let mount = mounted("tar");
    sh(scratch.path(), "tar --format=posix -cf source.tar source", &[]).unwrap();
    sh(mount.path(), "tar xpf \"$1\"", &[&scratch.join("source.tar")]).unwrap();
    tree::compare(&source, &mount.join("source"), Depth::Everything).unwrap();
    // And back: what is read through the mount makes the same archive.
    sh(mount.path(), "tar --format=posix -cf \"$1\" source", &[&scratch.join("again.tar")]).unwrap();
    sh(scratch.path(), "tar df again.tar", &[]).unwrap();
}

#[test]
fn git_works_on_a_clone_in_the_mount() {
    let scratch = Scratch::new("git");
    let source = scratch.join("source");
    tree::make(&source, 600, 3).expect("a tree on the local disk");
    sh(&source, "git init -q -b main . && git add -A && git commit -q -m 'Begin'", &[]).unwrap();
    let mount = mounted("git");
    sh(
        mount.path(),
        r#"
        git clone -q --no-hardlinks "$1" clone
        cd clone
        git fsck --full --strict
        [ -z "$(git status --porcelain)" ]
        echo line >> new
        git add new
        git commit -q -m 'Add a file'
        git checkout -q -b other HEAD~1
        [ ! -e new ]
        git checkout -q main
        git repack -adq
        git fsck --full --strict
        [ -z "$(git status --porcelain)" ]
        "#,
        &[&source],
    )
    .unwrap();

    // This project's own history, where the tests run from a checkout.
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace");
    if checkout.join(".git").exists() {
        sh(
            mount.path(),
            "git clone -q --no-local \"$1\" own && cd own && git fsck --full && [ -z \"$(git status --porcelain)\" ]",
            &[checkout],
        )
        .unwrap();
    }
}
