//! Options and sources: what is accepted, what is refused, and what the refusal says.

use super::*;

fn parse(text: &str) -> Result<MountOptions, OptionError> {
    MountOptions::parse(OsStr::new(text))
}

fn source(text: &str) -> Result<Source, SourceError> {
    Source::parse(OsStr::new(text))
}

#[test]
fn every_listed_option_parses() {
    let options = parse(
        "ro,uid=1000,gid=100,umask=022,allow_other,default_permissions,nonempty,noexec,nosuid,nodev,noatime,\
         timeout=500ms,umount_timeout=2m,cache=64M,journal=0,password_file=/p,credential=/c,config=/k",
    )
    .expect("all are known");
    assert_eq!(options.read_only, Some(true));
    assert_eq!((options.uid, options.gid, options.umask), (Some(1000), Some(100), Some(0o22)));
    assert!(options.allow_other && options.nonempty && options.noatime && !options.hard);
    assert_eq!((options.exec, options.suid, options.dev), (Some(false), Some(false), Some(false)));
    assert_eq!(options.timeout, Some(Duration::from_millis(500)));
    assert_eq!(options.umount_timeout, Some(Duration::from_secs(120)));
    assert_eq!((options.cache_bytes, options.journal_bytes), (Some(64 << 20), Some(0)));
    assert_eq!(options.config.as_deref(), Some(std::path::Path::new("/k")));
}

#[test]
fn the_later_option_wins() {
    let options = parse("ro,rw,exec,noexec,nosuid,suid,hard,timeout=5").expect("known");
    assert_eq!((options.read_only, options.exec, options.suid), (Some(false), Some(false), Some(true)));
    assert_eq!((options.hard, options.timeout), (false, Some(Duration::from_secs(5))));
    let options = parse("timeout=5,hard").expect("known");
    assert_eq!((options.hard, options.timeout), (true, None));
}

#[test]
fn options_for_others_are_ignored() {
    let given = "_netdev,nofail,user,user=ann,users,auto,noauto,defaults,x-systemd.automount,x-a=b,comment=hi there,";
    assert_eq!(parse(given), Ok(MountOptions::default()));
}

#[test]
fn what_mount_8_hands_back_at_a_remount_parses() {
    let given = "rw,nosuid,relatime,remount,noexec,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072,\
                 _netdev,uhelper=fuse.kfs";
    let options = parse(given).expect("tried with util-linux 2.38");
    assert_eq!((options.remount, options.read_only, options.exec), (true, Some(false), Some(false)));
}

#[test]
fn unknown_options_are_named_with_what_is_allowed() {
    let message = parse("ro,tiemout=3").expect_err("misspelt").to_string();
    assert!(message.contains("`tiemout`") && message.contains("umount_timeout="), "{message}");
    assert!(parse("strict").is_err());
}

#[test]
fn sloppy_notes_unknown_options_but_not_bad_values() {
    let mut options = MountOptions::default();
    options.add(OsStr::new("what,ro"), true).expect("sloppy");
    assert_eq!((options.skipped.as_slice(), options.read_only), (["what".to_owned()].as_slice(), Some(true)));
    assert!(options.add(OsStr::new("uid=x"), true).is_err());
}

#[test]
fn bad_values_are_refused() {
    for bad in [
        "uid",
        "uid=",
        "uid=-1",
        "uid=ann",
        "uid=4294967295",
        "gid=+1",
        "umask=888",
        "umask=1000",
        "umask=+7",
        "timeout=0",
        "timeout=25h",
        "timeout=1d",
        "timeout=99999999999999999999",
        "timeout=18446744073709551615h",
        "cache=0",
        "cache=1K",
        "cache=17T",
        "cache=x",
        "cache=18446744073709551615T",
        "journal=-1",
        "ro=1",
        "hard=no",
        "config=",
        "a=\"b",
    ] {
        let error = parse(bad).expect_err(bad).to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn quotes_keep_commas_and_paths_become_absolute() {
    let options = parse("password_file=\"/a,b\",ro").expect("quoted");
    assert_eq!(options.password_file, Some(PathBuf::from("/a,b")));
    let relative = parse("config=c.toml").expect("relative").config.expect("given");
    assert!(relative.is_absolute() && relative.ends_with("c.toml"));
}

#[test]
fn sources_parse() {
    let s = source("ann@a.example:9092,b:9093/team/x").expect("full form");
    assert_eq!(
        (s.user.as_deref(), s.brokers, s.path),
        (Some("ann"), vec!["a.example:9092".to_owned(), "b:9093".to_owned()], OsString::from("/team/x"))
    );
    let s = source("localhost:9092").expect("shortest form");
    assert_eq!((s.user, s.path), (None, OsString::from("/")));
    let s = source("ann@example.org@[::1]:9092").expect("IPv6, and a user with an @");
    assert_eq!((s.user.as_deref(), s.brokers), (Some("ann@example.org"), vec!["[::1]:9092".to_owned()]));
    let s = source("h:1/a@b:c,d").expect("a path may hold anything");
    assert_eq!((s.user, s.path), (None, OsString::from("/a@b:c,d")));
    let odd = OsStr::from_bytes(b"h:1/\xff");
    assert_eq!(Source::parse(odd).expect("bytes").path.as_bytes(), b"/\xff");
}

#[test]
fn bad_sources_say_what_to_write() {
    for (bad, says) in [
        ("", "empty"),
        ("ann@", "empty"),
        ("/path", "empty"),
        ("host", "9092"),
        ("[::1]", "no port"),
        ("::1:9092", "brackets"),
        ("[zz]:1", "brackets"),
        ("[::1:1", "brackets"),
        ("h:0", "65535"),
        ("h:65536", "65535"),
        ("h:+1", "65535"),
        ("h:1,", "no port"),
        (":9092", "usable host"),
        ("a b:1", "usable host"),
        ("@h:1", "before `@`"),
    ] {
        let message = source(bad).expect_err(bad).to_string();
        assert!(message.contains(says), "{bad}: {message}");
    }
}
