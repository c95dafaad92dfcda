//! Through the kernel: real mounts, real programs. Only where mounting is possible.

use crate::place::Place;
use mount::fuse::{Serving, serve};
use mount::sys::attach::attach;
use mount::sys::options::MountOptions;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Mounted {
    dir: PathBuf,
    serving: Option<Serving>,
}

impl Mounted {
    async fn at(place: &Place, name: &str) -> Mounted {
        let fs = place.fs().await;
        let dir = place.dir.path().join(name);
        std::fs::create_dir(&dir).expect("makes");
        let attached = attach(OsStr::new("test"), &dir, &MountOptions::default()).expect("mounts");
        Mounted { serving: Some(serve(fs, attached.fd).expect("serves")), dir }
    }

    async fn run(&self, script: &str) -> String {
        let (script, dir) = (script.to_owned(), self.dir.clone());
        let run = move || {
            let out = Command::new("bash").args(["-euxc", &script]).current_dir(&dir).output().expect("bash runs");
            let err = String::from_utf8_lossy(&out.stderr).into_owned();
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(out.status.success(), "{script}: {} {err} {said}", out.status);
            said
        };
        tokio::task::spawn_blocking(run).await.expect("runs")
    }

    async fn unmount(mut self) {
        let dir = self.dir.clone();
        tokio::task::spawn_blocking(move || umount(&dir)).await.expect("unmounts");
        let serving = self.serving.take().expect("it is being served");
        tokio::task::spawn_blocking(|| serving.join()).await.expect("ends").expect("ends well");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.serving.is_some() {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}

fn umount(dir: &Path) {
    assert!(Command::new("umount").arg(dir).status().expect("umount runs").success());
}

fn can_mount() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_work_on_a_mount() {
    if !can_mount() {
        eprintln!("skipped: mounting needs root and /dev/fuse");
        return;
    }
    let place = Place::on_broker().await;
    let one = Mounted::at(&place, "one").await;
    let two = Mounted::at(&place, "two").await;
    let other = two.dir.display();
    one.run("mkdir -p a/b/c && echo hello > a/b/c/f && cat a/b/c/f | grep -q hello && ls -la a/b/c").await;
    one.run("for i in $(seq 300); do echo $i > a/f$i; done; test $(ls a | wc -l) = 301").await;
    one.run(&format!("diff -r a {other}/a")).await;
    one.run("dd if=/dev/urandom of=big bs=1M count=20 status=none && cp big big2 && cmp big big2").await;
    one.run(&format!("cmp big {other}/big2")).await;
    one.run("echo x >> a/f1; echo y >> a/f1; test \"$(cat a/f1 | tr '\\n' ' ')\" = '1 x y '").await;
    one.run(&format!("test \"$(cat {other}/a/f1 | tr '\\n' ' ')\" = '1 x y '")).await;
    one.run("truncate -s 3 a/f1 && test \"$(cat a/f1)\" = '1\nx'").await;
    one.run("ln a/f2 a/hard && ln -s f2 a/soft && test \"$(cat a/soft)\" = 2 && stat -c %h a/f2 | grep -qx 2").await;
    one.run("mv a/f3 a/moved && test ! -e a/f3 && test \"$(cat a/moved)\" = 3").await;
    one.run("touch -d '2001-02-03 04:05:06 UTC' a/f4 && stat -c %Y a/f4 | grep -qx 981173106").await;
    one.run("exec 3<>a/f5; rm a/f5; echo gone >&3; exec 3>&-").await;
    one.run(
        "cp -a a copy && diff -r a copy && chmod 2755 copy && mkdir copy/sub && stat -c %a copy/sub | grep -qx 2755",
    )
    .await;
    one.run("tar cf t.tar a && mkdir x && tar xf t.tar -C x && diff -r a x/a && rm -rf a copy x t.tar big big2 && test -z \"$(ls -A)\"").await;
    one.unmount().await;
    two.unmount().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_works_on_a_mount() {
    if !can_mount() {
        eprintln!("skipped: mounting needs root and /dev/fuse");
        return;
    }
    let place = Place::on_broker().await;
    let one = Mounted::at(&place, "one").await;
    one.run(
        "export HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a
         git init -q r; cd r; for i in $(seq 50); do echo $i > f$i; done; git add .; git commit -qm one
         for i in $(seq 20); do echo more >> f$i; done && git commit -qam two; git gc -q; git fsck --strict
         git checkout -q HEAD~1; test \"$(cat f1)\" = 1; test -z \"$(git status --porcelain)\"
         cd ..; git clone -q r s; diff -r r/f1 s/f1; rm -rf r s",
    )
    .await;
    one.unmount().await;
}
