//! What must be true of the rows whatever has happened, and random plays in which
//! sessions close, expire and replace each other, to see that it is.

use super::super::check::check;
use super::super::rows::{InodeRow, decode, table};
use super::play::{Pick, picks};
use super::*;
use proptest::prelude::*;

/// Whatever has happened, the state's invariants hold.
pub fn audit(world: &World) {
    let report = check(&world.machine, &mut world.kv.clone(), &mut |_, _| {});
    assert_eq!(report.violations.told, Vec::<String>::new());
}

#[derive(Clone, Debug)]
enum Step {
    Request { who: usize, pick: Pick },
    Release { who: usize, which: usize },
    Close { who: usize },
    Replace { who: usize },
    Tick { ms: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..3_usize;
    let step = prop_oneof![
        20 => (who(), picks()).prop_map(|(who, pick)| Step::Request { who, pick }),
        3 => (who(), any::<usize>()).prop_map(|(who, which)| Step::Release { who, which }),
        1 => who().prop_map(|who| Step::Close { who }),
        1 => who().prop_map(|who| Step::Replace { who }),
        2 => (100..70_000_u64).prop_map(|ms| Step::Tick { ms }),
    ];
    prop::collection::vec(step, 1..120)
}

struct Ends {
    world: World,
    clients: Vec<Client>,
    next: u8,
}

impl Ends {
    fn open(&mut self, predecessors: &[SessionId]) -> Client {
        self.next += 1;
        let ticket = self.world.ticket(self.next);
        let last = self.world.sealed_open(&ticket, predecessors);
        self.world.effects(&last);
        Client { id: ticket.session, namespace: ticket.namespace, key: ticket.key, number: 0, last }
    }

    fn inodes(&self, dirs: bool) -> Vec<Ino> {
        let rows = self.world.kv.rows.iter().filter(|(key, _)| key[0] == table::INODE);
        let attrs = rows.map(|(_, value)| decode::<InodeRow>(value).attr);
        attrs.filter(|attr| (attr.kind == FileKind::Dir) == dirs).map(|attr| attr.ino).collect()
    }

    fn send(&mut self, who: usize, op: Op, payload: &[u8]) {
        let mut client = self.clients[who].clone();
        let lives = self.world.machine.sessions().any(|peer| peer.session == client.id);
        if !lives {
            client = self.open(&[client.id]);
        }
        self.world.send_with(&mut client, op, payload);
        self.clients[who] = client;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Request { who, pick } => {
                let (op, payload) = pick.op(&self.inodes(true), &self.inodes(false));
                self.send(who, op, &payload);
            }
            Step::Release { who, which } => {
                let files = self.inodes(false);
                let inos = files.get(which % files.len().max(1)).copied().into_iter().collect();
                self.send(who, Op::Session(SessionOp::Release { inos }), &[]);
            }
            Step::Close { who } => self.send(who, Op::Session(SessionOp::Close), &[]),
            Step::Replace { who } => {
                let old = self.clients[who].id;
                self.clients[who] = self.open(&[old]);
            }
            Step::Tick { ms } => {
                self.world.pass_ms(ms);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rows_stay_sound_however_sessions_end(steps in steps()) {
        let mut ends = Ends { world: World::new(), clients: Vec::new(), next: 0 };
        for _ in 0..3 {
            let client = ends.open(&[]);
            ends.clients.push(client);
        }
        for step in steps {
            let (image, dump) = (ends.world.machine.image(), ends.world.machine.dump());
            ends.step(step);
            prop_assert!(image.dump() == dump, "an image changed with the state");
        }
        audit(&ends.world);
        ends.world.assert_replayable();

        // With the last session goes the last reason to keep what has no name.
        ends.world.pass_ms(121_000);
        audit(&ends.world);
        prop_assert!(ends.world.machine.live.nameless.is_empty());
        prop_assert!(!ends.world.machine.needs_ticks());
    }
}
