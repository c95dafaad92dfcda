//! Users, their credentials, and the slowing of guesses.

use super::super::effect::Verdict;
use super::*;
use proto::LogTime;
use proto::login::CredentialId;
use proto::message::{Admin, AdminOutcome, AdminRequest, NewCredential, NewUser};

fn user_name(name: &str) -> UserName {
    UserName::new(name).expect("valid")
}

fn credential(id: CredentialId, byte: u8) -> NewCredential {
    NewCredential { id, record: vec![byte; 192], wrapped_private_key: vec![byte; 72] }
}

fn new_user(name: &str) -> NewUser {
    NewUser {
        name: user_name(name),
        uid: 1000,
        gid: 1000,
        credentials: vec![credential(CredentialId::Password, 1)],
        public_key: vec![2; 32],
        namespace_keys: Vec::new(),
    }
}

impl World {
    fn admin(&mut self, admin: Admin) -> Result<AdminOutcome, Refusal> {
        let request = AdminRequest { replies_partition: 2, admin };
        let effects = self.server_record(ServerRecord::Admin(request));
        let found = effects.into_iter().find_map(|effect| match effect {
            Effect::Admin { answer, .. } => Some(answer.result),
            _ => None,
        });
        found.expect("admin records are answered")
    }

    fn seen(&mut self, name: &str) -> Position {
        match self.admin(Admin::User { user: user_name(name) }) {
            Ok(AdminOutcome::User { seen, .. }) => seen,
            other => panic!("{other:?}"),
        }
    }

    fn attempt(&mut self, user: &str, credential: CredentialId) -> Verdict {
        let record = ServerRecord::LoginAttempt { attempt: [1; 16], user: user_name(user), credential };
        match self.server_record(record)[..] {
            [Effect::Decision { verdict, .. }] => verdict,
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn users_are_added_all_or_none() {
    let mut world = World::new();
    let state = |world: &mut World| match world.admin(Admin::State) {
        Ok(AdminOutcome::State { next_namespace, users, .. }) => (next_namespace.0, users),
        other => panic!("{other:?}"),
    };
    assert_eq!(state(&mut world), (1, 0));
    world.admin(Admin::UserStage { users: vec![new_user("a"), new_user("b")] }).unwrap();
    let add = |first: u32, users| Admin::UserAdd { first_namespace: NamespaceId(first), users };
    assert_eq!(world.admin(add(1, vec![new_user("c")])), Ok(AdminOutcome::Done));
    assert_eq!(state(&mut world), (4, 3));
    assert_eq!(world.admin(add(4, vec![new_user("d"), new_user("a")])), Err(Refusal::UserExists));
    assert_eq!(world.admin(add(4, vec![new_user("d"), new_user("d")])), Err(Refusal::UserExists));
    assert_eq!(world.admin(add(3, vec![new_user("d")])), Err(Refusal::Conflict));
    assert_eq!(state(&mut world), (4, 3));

    let stored = super::super::user(&mut world.kv, &user_name("b")).unwrap();
    assert_eq!((stored.namespace, stored.partition), (NamespaceId(2), 2));
    let Ok(AdminOutcome::Users { users, end: true }) = world.admin(Admin::UserList { after: Some(user_name("a")) })
    else {
        panic!()
    };
    assert_eq!(users.iter().map(|user| user.name.as_str()).collect::<Vec<_>>(), ["b", "c"]);
}

#[test]
fn a_new_password_ends_sessions_until_landed() {
    let mut world = World::new();
    let users = (1..=16).map(|n| new_user(&format!("u{n}"))).collect();
    world.admin(Admin::UserAdd { first_namespace: NamespaceId(1), users }).unwrap();
    let ticket = Ticket { user: user_name("u16"), ..world.ticket(1) };
    world.open_ticket(&ticket, &[]);
    let seen = world.seen("u16");
    let passwd = |seen| Admin::UserPasswd {
        user: user_name("u16"),
        seen,
        credential: credential(CredentialId::Password, 9),
        public_key: Vec::new(),
        namespace_keys: Vec::new(),
    };
    assert_eq!(world.admin(passwd(Position::default())), Err(Refusal::Conflict));
    assert_eq!(world.admin(passwd(seen)), Ok(AdminOutcome::Done));
    let [Effect::Deliver { partition: 0, decision, record }] = &world.machine.deliveries(&mut world.kv)[..] else {
        panic!()
    };
    let (decision, record) = (*decision, record.clone());
    let effects = world.server_record(record.clone());
    assert!(effects.iter().any(|effect| matches!(effect, Effect::SessionOver { .. })));
    world.server_record(ServerRecord::Landed { decision });
    assert!(world.machine.deliveries(&mut world.kv).is_empty());

    // A ticket of a login before it is void, however late its log time; one of a login
    // with the new password is good in the same moment, and a late repeat changes nothing.
    let old = Ticket { session: SessionId([2; 16]), issued: LogTime(1_000_000), user_seen: seen, ..ticket.clone() };
    let sealed = world.sealed_open(&old, &[]);
    assert!(matches!(world.effects(&sealed)[..], [Effect::SessionEnded { .. }]));
    let user_seen = world.seen("u16");
    let new = Ticket { session: SessionId([3; 16]), issued: world.machine.log_time(), user_seen, ..ticket };
    world.open_ticket(&new, &[]);
    world.server_record(record);
    assert_eq!(world.machine.sessions().count(), 1);
}

#[test]
fn a_login_after_the_decision_outlives_its_landing() {
    let mut world = World::new();
    world.admin(Admin::UserAdd { first_namespace: NamespaceId(1), users: vec![new_user("a")] }).unwrap();
    let (user, user_seen) = (user_name("a"), world.seen("a"));
    let before = Ticket { user: user.clone(), user_seen, ..world.ticket(1) };
    world.open_ticket(&before, &[]);
    world.admin(Admin::UserRemove { user: user.clone() }).unwrap();
    let [Effect::Deliver { decision, record, .. }] = &world.machine.deliveries(&mut world.kv)[..] else { panic!() };
    let (decision, record) = (*decision, record.clone());
    world.admin(Admin::UserAdd { first_namespace: NamespaceId(2), users: vec![new_user("a")] }).unwrap();
    let user_seen = world.seen("a");
    assert!(user_seen > decision);

    // The removal lands late, after a login of the user of that name that came after it.
    let after = Ticket { user, user_seen, ..world.ticket(2) };
    let mut c = world.open_ticket(&after, &[]);
    let effects = world.server_record(record);
    let over = |effect: &&Effect| matches!(effect, Effect::SessionOver { .. });
    assert_eq!(effects.iter().filter(over).count(), 1);
    assert!(world.call(&mut c, Op::Session(SessionOp::Renew)).is_ok());
    let late = Ticket { session: SessionId([3; 16]), ..before };
    let sealed = world.sealed_open(&late, &[]);
    assert!(matches!(world.effects(&sealed)[..], [Effect::SessionEnded { .. }]));
    world.assert_replayable();
}

#[test]
fn devices_come_beside_the_password_and_go_with_a_new_key_pair() {
    let mut world = World::new();
    world.admin(Admin::UserAdd { first_namespace: NamespaceId(1), users: vec![new_user("a")] }).unwrap();
    let device = CredentialId::Device("laptop".into());
    let seen = world.seen("a");
    let add = |seen| Admin::DeviceAdd { user: user_name("a"), seen, credential: credential(device.clone(), 5) };
    assert_eq!(world.admin(add(seen)), Ok(AdminOutcome::Done));
    assert_eq!(world.admin(add(seen)), Err(Refusal::Conflict));
    let seen = world.seen("a");
    assert_eq!(world.admin(add(seen)), Err(Refusal::Exists));
    let passwd = Admin::UserPasswd {
        user: user_name("a"),
        seen,
        credential: credential(CredentialId::Password, 9),
        public_key: vec![3; 32],
        namespace_keys: Vec::new(),
    };
    assert_eq!(world.admin(passwd), Ok(AdminOutcome::Done));
    let stored = super::super::user(&mut world.kv, &user_name("a")).unwrap();
    assert!(stored.credential(&device).is_none());
    assert_eq!(stored.public_key, [3; 32]);
    assert_eq!(world.admin(Admin::UserRemove { user: user_name("a") }), Ok(AdminOutcome::Done));
    assert_eq!(world.admin(Admin::User { user: user_name("a") }), Err(Refusal::NoSuchUser));
}

#[test]
fn guessing_is_slowed_and_devices_are_not() {
    let mut world = World::new();
    for _ in 0..5 {
        assert_eq!(world.attempt("eve", CredentialId::Password), Verdict::Answer);
    }
    assert_eq!(world.attempt("eve", CredentialId::Password), Verdict::SlowDown { retry_ms: 1000 });
    assert_eq!(world.attempt("bob", CredentialId::Password), Verdict::Answer);
    assert_eq!(world.attempt("eve", CredentialId::Device("d".into())), Verdict::Answer);
    assert!(world.machine.needs_ticks());
    world.pass_ms(1000);
    assert_eq!(world.attempt("eve", CredentialId::Password), Verdict::Answer);
    assert_eq!(world.attempt("eve", CredentialId::Password), Verdict::SlowDown { retry_ms: 2000 });
    let record =
        ServerRecord::LoginSuccess { attempt: [1; 16], user: user_name("eve"), credential: CredentialId::Password };
    world.server_record(record);
    assert_eq!(world.attempt("eve", CredentialId::Password), Verdict::Answer);
    world.pass_ms(3_600_000);
    assert!(!world.machine.needs_ticks());
}
