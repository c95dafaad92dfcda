//! Logins that succeed, and the ways in which they must not.

use super::*;
use crate::keys::KeyFileError;
use std::sync::LazyLock;

const NOW: LogTime = LogTime(1_000_000);

static CLUSTER: LazyLock<ClusterKey> = LazyLock::new(ClusterKey::generate);

fn device(id: &str) -> CredentialId {
    CredentialId::Device(id.into())
}

/// The client's and the server's end of a whole login of ann by one device credential.
fn log_in(known: Option<Known<'_>>, secret: &[u8]) -> Result<(ClientDone, ServerDone), LoginError> {
    let (client, ke1) = ClientLogin::start(secret)?;
    let server = server_start(&CLUSTER, "ann", &device("d"), known, &ke1, NOW)?;
    let client = client.finish(secret, &server.ke2, "ann", &device("d"))?;
    let server = server_finish(&CLUSTER, &server.half_state, &ke1, &client.ke3, NOW)?;
    Ok((client, server))
}

#[test]
fn a_password_logs_in_and_a_wrong_one_does_not() {
    let registered = register(&CLUSTER, "ann", &CredentialId::Password, b"correct").expect("registers");
    let known = Some(Known { record: &registered.record, version: 300 });
    let (client, ke1) = ClientLogin::start(b"correct").expect("starts");
    let server = server_start(&CLUSTER, "ann", &CredentialId::Password, known, &ke1, NOW).expect("answers");
    let client = client.finish(b"correct", &server.ke2, "ann", &CredentialId::Password).expect("the right one");
    let server = server_finish(&CLUSTER, &server.half_state, &ke1, &client.ke3, NOW).expect("accepts");
    assert_eq!(
        (server.user.as_str(), server.credential, server.credential_version),
        ("ann", CredentialId::Password, 300)
    );
    assert_eq!(client.session, server.session);
    assert_ne!(client.session, SessionId::default());
    assert_eq!(client.session_secret.login_key().as_bytes(), server.session_secret.login_key().as_bytes());

    let (client, ke1) = ClientLogin::start(b"wrong").expect("starts");
    let server = server_start(&CLUSTER, "ann", &CredentialId::Password, known, &ke1, NOW).expect("answers");
    let refused = client.finish(b"wrong", &server.ke2, "ann", &CredentialId::Password);
    assert_eq!(refused.expect_err("not this one"), LoginError::WrongPassword);
}

#[test]
fn the_export_key_is_the_same_each_time_and_the_session_is_not() {
    let registered = register(&CLUSTER, "ann", &device("d"), b"secret").expect("registers");
    let known = Some(Known { record: &registered.record, version: 1 });
    let pair = crate::keys::KeyPair::generate();
    let wrapped = pair.wrap(&registered.export_key, "ann", &device("d"));
    let (first, _) = log_in(known, b"secret").expect("logs in");
    let (second, _) = log_in(known, b"secret").expect("logs in");
    for done in [&first, &second] {
        let opened = crate::keys::KeyPair::unwrap(&wrapped, &done.export_key, "ann", &device("d"));
        assert_eq!(opened.expect("the export key is stable").public(), pair.public());
    }
    assert_ne!(first.session, second.session);
    assert_ne!(first.session_secret.login_key().as_bytes(), second.session_secret.login_key().as_bytes());
}

#[test]
fn an_unknown_user_looks_like_a_known_one() {
    let registered = register(&CLUSTER, "ann", &device("d"), b"secret").expect("registers");
    let known = Known { record: &registered.record, version: u64::MAX };
    let (_, ke1) = ClientLogin::start(b"other").expect("starts");
    let real = server_start(&CLUSTER, "ann", &device("d"), Some(known), &ke1, NOW).expect("answers");
    let fake = server_start(&CLUSTER, "ann", &device("d"), None, &ke1, NOW).expect("answers all the same");
    assert_eq!((real.ke2.len(), real.half_state.len()), (fake.ke2.len(), fake.half_state.len()));
    for known in [Some(known), None] {
        assert_eq!(log_in(known, b"other").expect_err("no way in"), LoginError::WrongPassword);
    }
}

#[test]
fn a_credential_is_bound_to_its_user_and_id() {
    let registered = register(&CLUSTER, "ann", &device("d"), b"secret").expect("registers");
    let known = Some(Known { record: &registered.record, version: 1 });
    for (user, credential) in [("bob", device("d")), ("ann", device("e"))] {
        let (client, ke1) = ClientLogin::start(b"secret").expect("starts");
        let server = server_start(&CLUSTER, user, &credential, known, &ke1, NOW).expect("answers");
        let refused = client.finish(b"secret", &server.ke2, user, &credential);
        assert_eq!(refused.expect_err("another's record"), LoginError::WrongPassword);
    }
}

#[test]
fn another_cluster_is_not_taken_for_this_one() {
    let registered = register(&CLUSTER, "ann", &device("d"), b"secret").expect("registers");
    let known = Some(Known { record: &registered.record, version: 1 });
    let (client, ke1) = ClientLogin::start(b"secret").expect("starts");
    let server = server_start(&ClusterKey::generate(), "ann", &device("d"), known, &ke1, NOW).expect("answers");
    let refused = client.finish(b"secret", &server.ke2, "ann", &device("d"));
    assert_eq!(refused.expect_err("its server does not know the cluster key"), LoginError::WrongPassword);
}

#[test]
fn a_half_state_is_good_once_begun_and_for_a_minute() {
    let registered = register(&CLUSTER, "ann", &device("d"), b"secret").expect("registers");
    let known = Some(Known { record: &registered.record, version: 1 });
    let (client, ke1) = ClientLogin::start(b"secret").expect("starts");
    let server = server_start(&CLUSTER, "ann", &device("d"), known, &ke1, NOW).expect("answers");
    let ke3 = client.finish(b"secret", &server.ke2, "ann", &device("d")).expect("the right one").ke3;
    let finish =
        |half: &[u8], ke1: &[u8], ke3: &[u8], now| server_finish(&CLUSTER, half, ke1, ke3, now).map(|d| d.session);

    let session = finish(&server.half_state, &ke1, &ke3, NOW.plus_ms(HALF_STATE_MS)).expect("in time");
    assert_eq!(finish(&server.half_state, &ke1, &ke3, NOW), Ok(session), "the same messages, the same session");
    let late = NOW.plus_ms(HALF_STATE_MS + 1);
    assert_eq!(finish(&server.half_state, &ke1, &ke3, late), Err(LoginError::Expired));
    assert_eq!(finish(&server.half_state, &ke1, &ke3, LogTime(NOW.0 - 1)), Err(LoginError::Expired));

    let (_, other_ke1) = ClientLogin::start(b"secret").expect("starts");
    assert!(matches!(finish(&server.half_state, &other_ke1, &ke3, NOW), Err(LoginError::Malformed(_))));
    let other = server_start(&CLUSTER, "ann", &device("d"), known, &ke1, NOW).expect("answers");
    assert_eq!(
        finish(&other.half_state, &ke1, &ke3, NOW),
        Err(LoginError::WrongPassword),
        "another challenge's answer"
    );

    for byte in 0..server.half_state.len() {
        let mut damaged = server.half_state.clone();
        damaged[byte] ^= 1;
        assert!(matches!(finish(&damaged, &ke1, &ke3, NOW), Err(LoginError::Malformed(_))));
    }
    let foreign = server_finish(&ClusterKey::generate(), &server.half_state, &ke1, &ke3, NOW);
    assert!(matches!(foreign, Err(LoginError::Malformed(_))));
    for byte in 0..ke3.len() {
        let mut damaged = ke3.clone();
        damaged[byte] ^= 1;
        assert!(finish(&server.half_state, &ke1, &damaged, NOW).is_err());
    }
}

#[test]
fn messages_that_are_none_are_refused() {
    for len in [0, 1, 31, 32, 33, 95, 96, 97, 1000] {
        for fill in [0, 0x55, 0xff] {
            let junk = vec![fill; len];
            let _ = server_start(&CLUSTER, "ann", &device("d"), None, &junk, NOW);
            assert!(server_finish(&CLUSTER, &junk, &junk, &junk, NOW).is_err());
            let (client, _) = ClientLogin::start(b"secret").expect("starts");
            assert!(client.finish(b"secret", &junk, "ann", &device("d")).is_err());
        }
    }
    let record = Some(Known { record: b"junk", version: 1 });
    let (_, ke1) = ClientLogin::start(b"secret").expect("starts");
    let result = server_start(&CLUSTER, "ann", &device("d"), record, &ke1, NOW);
    assert_eq!(result.expect_err("a damaged record"), LoginError::Record);
    let long = vec![b'x'; MAX_PASSWORD_BYTES + 1];
    assert_eq!(ClientLogin::start(&long).err(), Some(LoginError::PasswordTooLong));
}

#[test]
fn identities_are_unambiguous() {
    let ids = [
        bound_identity("a", &CredentialId::Password),
        bound_identity("a", &device("")),
        bound_identity("ab", &device("c")),
        bound_identity("a", &device("bc")),
    ];
    assert!(ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id)));
}

#[test]
fn a_device_credential_survives_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("device");
    let written = DeviceCredential {
        user: "ann".into(),
        device: "laptop = red".into(),
        secret: DeviceSecret::random(),
        brokers: Some("kafka:9092,other:9092".into()),
    };
    written.write(&path).expect("a new file");
    let read = DeviceCredential::read(&path).expect("just written");
    assert_eq!((&read.user, &read.device, &read.brokers), (&written.user, &written.device, &written.brokers));
    assert_eq!(read.secret.as_password(), written.secret.as_password());
    assert_eq!(read.id(), device("laptop = red"));
    let split = DeviceCredential { device: "a\nsecret = b".into(), ..written };
    assert!(matches!(split.write(&dir.path().join("other")), Err(KeyFileError::Format { .. })));
}
