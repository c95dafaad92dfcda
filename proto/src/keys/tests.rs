//! Derived keys stay what they are, files stay closed, wrapped keys open only where they belong.

use super::*;
use crate::ids::{Epoch, NamespaceId, SessionId};
use crate::login::{CredentialId, Known, server_start};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

/// A copy of a pinned file with the mode that it is read with.
fn closed_copy(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::copy(samples().join(name), &path).expect("the sample is there");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
    path
}

fn hex(key: &Key) -> String {
    key.as_bytes().iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn keys_are_derived_as_pinned() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster =
        ClusterKey::read(&closed_copy(dir.path(), "cluster-key.txt")).expect("old key files are read for ever");
    let session = SessionSecret::from_opaque(&[7; 64]);
    let user = KeyPair::from_private([3; 32]).expect("any bytes are");
    let namespace = NamespaceKey { epoch: 1, key: Key::from_bytes([5; 32]) };
    let derived = [
        ("cluster id", cluster.id().to_string()),
        ("ticket", hex(&cluster.ticket_key())),
        ("server", hex(&cluster.server_key(Epoch(2)))),
        ("admin", hex(&cluster.admin_key())),
        ("half-state", hex(&cluster.half_state_key())),
        ("chunk", hex(&cluster.chunk_key(SessionId([1; 16])))),
        ("partition", hex(&session.partition_key(3))),
        ("login", hex(&session.login_key())),
        ("login frames", hex(&crate::login::public_key())),
        ("user public", user.public().to_string()),
        ("journal", hex(&user.journal_key())),
        ("wrapping", hex(&namespace.wrapping_key())),
        ("value", hex(&namespace.value_key())),
    ];
    let text: String = derived.iter().map(|(name, key)| format!("{name}: {key}\n")).collect();
    assert_eq!(text, include_str!("../../samples/derived-keys.txt"));
}

#[test]
fn a_stored_credential_works_with_the_pinned_cluster_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let cluster = ClusterKey::read(&closed_copy(dir.path(), "cluster-key.txt")).expect("read");
    let device = CredentialId::Device("sample".into());
    let known = Known { record: include_bytes!("../../samples/device-record.bin"), version: 1 };
    let (client, ke1) = crate::login::ClientLogin::start(b"sample secret").expect("starts");
    let started = server_start(&cluster, "ann", &device, Some(known), &ke1, Default::default()).expect("answers");
    let done = client.finish(b"sample secret", &started.ke2, "ann", &device).expect("the right secret");
    let wrapped = include_bytes!("../../samples/private-key.bin");
    let pair = KeyPair::unwrap(wrapped, &done.export_key, "ann", &device).expect("opens for ever");
    assert_eq!(pair.public(), KeyPair::from_private([3; 32]).expect("any bytes are").public());
    let sealed = include_bytes!("../../samples/namespace-key.bin");
    let key = pair.open_namespace_key(NamespaceId(9), 1, sealed).expect("opens for ever");
    assert_eq!(key.key.as_bytes(), &[5; 32]);
}

#[test]
fn a_cluster_key_survives_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("cluster.key");
    let cluster = ClusterKey::generate();
    cluster.write(&path).expect("a new file");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o600);
    let read = ClusterKey::read(&path).expect("just written");
    assert_eq!(read.id(), cluster.id());
    assert_eq!(read.opaque().serialize(), cluster.opaque().serialize());
    assert_ne!(ClusterKey::generate().id(), cluster.id());

    let again = cluster.write(&path);
    assert!(matches!(again, Err(KeyFileError::Exists { .. })), "{again:?}");
}

#[test]
fn files_that_others_can_read_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("cluster.key");
    ClusterKey::generate().write(&path).expect("a new file");
    for mode in [0o640, 0o604, 0o660, 0o622, 0o601] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("ours");
        let error = ClusterKey::read(&path).expect_err("open to others");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).expect("ours");
    ClusterKey::read(&path).expect("closed");
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = ClusterKey::read(&dir.path().join("none")).expect_err("not there");
    assert!(matches!(missing, KeyFileError::Io { tried: "open", .. }), "{missing}");
    let title = "kfs cluster key, version 1";
    for (text, reason) in [
        ("", "first line"),
        ("kfs cluster key, version 2\n", "first line"),
        (&*format!("{title}\nsecret"), "line 2"),
        (&format!("{title}\n# nothing\n"), "no line"),
        (&format!("{title}\nopaque = AAAA\nsecret = AAAA\n"), "damaged"),
        (&format!("{title}\nopaque = *\nsecret = AAAA\n"), "base64"),
        (&format!("{title}\n{}", "#\n".repeat(40_000)), "larger"),
    ] {
        let path = dir.path().join("damaged");
        std::fs::write(&path, text).expect("ours");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
        let error = ClusterKey::read(&path).expect_err("damaged").to_string();
        assert!(error.contains(reason) && error.contains("damaged"), "{error}");
    }
}

#[test]
fn a_recovery_pair_survives_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("kfs-recovery.key");
    let pair = KeyPair::generate();
    pair.write_recovery(&path).expect("a new file");
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o600);
    let read = KeyPair::read_recovery(&path).expect("just written");
    let sealed = NamespaceKey::generate(4).seal_to(&pair.public(), NamespaceId(1)).expect("a good public key");
    read.open_namespace_key(NamespaceId(1), 4, &sealed).expect("the same pair");
    assert!(matches!(pair.write_recovery(&path), Err(KeyFileError::Exists { .. })));
    assert!(matches!(ClusterKey::read(&path), Err(KeyFileError::Format { .. })));
}

#[test]
fn a_private_key_opens_for_its_login_only() {
    let (export, other) = (ExportKey::from_opaque([1; 64]), ExportKey::from_opaque([2; 64]));
    let (password, device) = (CredentialId::Password, CredentialId::Device("d".into()));
    let pair = KeyPair::generate();
    let wrapped = pair.wrap(&export, "ann", &password);
    assert_eq!(KeyPair::unwrap(&wrapped, &export, "ann", &password).expect("its own").public(), pair.public());
    for (export, user, credential) in
        [(&other, "ann", &password), (&export, "bob", &password), (&export, "ann", &device)]
    {
        assert_eq!(KeyPair::unwrap(&wrapped, export, user, credential).err(), Some(KeyError::Wrapped));
    }
}

#[test]
fn a_namespace_key_opens_where_it_belongs_only() {
    let (ann, bob) = (KeyPair::generate(), KeyPair::generate());
    let key = NamespaceKey::generate(2);
    let sealed = key.seal_to(&ann.public(), NamespaceId(7)).expect("a good public key");
    let opened = ann.open_namespace_key(NamespaceId(7), 2, &sealed).expect("its own");
    assert_eq!((opened.epoch, opened.key.as_bytes()), (2, key.key.as_bytes()));
    assert_eq!(bob.open_namespace_key(NamespaceId(7), 2, &sealed).err(), Some(KeyError::Sealed));
    assert_eq!(ann.open_namespace_key(NamespaceId(8), 2, &sealed).err(), Some(KeyError::Sealed));
    assert_eq!(ann.open_namespace_key(NamespaceId(7), 3, &sealed).err(), Some(KeyError::Sealed));
    for len in 0..sealed.len() {
        assert!(ann.open_namespace_key(NamespaceId(7), 2, &sealed[..len]).is_err());
    }
    assert_ne!(sealed, key.seal_to(&ann.public(), NamespaceId(7)).expect("again"));
    // The neutral element: whatever is sealed to it, everyone can open.
    assert_eq!(key.seal_to(&PublicKey([0; 32]), NamespaceId(7)).err(), Some(KeyError::PublicKey));
    assert_eq!(PublicKey::from_slice(&[0; 31]).err(), Some(KeyError::PublicKey));
}

#[test]
fn keys_differ_by_partition_session_and_epoch() {
    let session = SessionSecret::from_opaque(&[7; 64]);
    assert_ne!(session.partition_key(0).as_bytes(), session.partition_key(1).as_bytes());
    let cluster = ClusterKey::generate();
    assert_ne!(cluster.server_key(Epoch(0)).as_bytes(), cluster.server_key(Epoch(1)).as_bytes());
    let (one, two) = (SessionId([1; 16]), SessionId([2; 16]));
    assert_ne!(cluster.chunk_key(one).as_bytes(), cluster.chunk_key(two).as_bytes());
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        SessionSecret::from_opaque(&[7; 64]),
        ExportKey::from_opaque([7; 64]),
        NamespaceKey { epoch: 1, key: Key::from_bytes([7; 32]) },
        KeyPair::from_private([7; 32]).expect("any bytes are"),
    );
    assert!(!shown.contains("0707") && !shown.contains("7, 7"), "{shown}");
}
