//! What a seed draws about servers: how many there are, how they are set, and which of
//! them each fault hits. These draws have a purpose of their own, so the others stay.

use super::{ANSWERING, Fault, What};
use crate::sim::rng::Rng;
use serde::{Deserialize, Serialize};
use server::machine::MACHINE_VERSION;
use server::replica::Rules;

/// The servers of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    pub count: u8,
    /// Between looks at what of the log nobody needs any more.
    pub upkeep_ms: u64,
    /// Nothing of the log goes, whatever servers need of it.
    pub keeps_log: bool,
    /// Between checkpoints of what clients change.
    pub checkpoint_ms: u64,
    /// A server that brings nothing to disk for longer is given up.
    pub deregister_ms: u64,
    /// No operation takes longer: there is nothing but one server that dies.
    pub pause_ms: Option<u64>,
    /// The version of the machine that all support at the beginning.
    pub supports: u32,
}

/// What a client may notice of a server's death, at most: the silence, a heartbeat's interval, and the way.
const PAUSE_MS: u64 = 4_000;

/// A live server checkpoints at least once a minute, so none of them is given up within this time.
const SOON_MS: u64 = 100_000;

impl Servers {
    /// One, set as in production.
    pub const ONE: Servers = Servers {
        count: 1,
        upkeep_ms: 30_000,
        keeps_log: false,
        checkpoint_ms: 5_000,
        deregister_ms: 24 * 3_600_000,
        pause_ms: None,
        supports: MACHINE_VERSION,
    };

    /// What `seed` draws. Spreads the faults over the servers, and adds some.
    pub fn draw(seed: u64, is_calm: bool, faults: &mut Vec<Fault>) -> Servers {
        let mut rng = Rng::new(seed, "servers");
        let count = match rng.below(10) {
            0..5 => return Servers::ONE,
            5..9 => 2,
            _ => 3,
        };
        let mut servers = Servers {
            count,
            upkeep_ms: *rng.pick(&[200, 1_000, 1_000, 5_000, 30_000]),
            checkpoint_ms: *rng.pick(&[50, 300, 1_000, 5_000]),
            ..Servers::ONE
        };
        for fault in faults.iter_mut() {
            fault.server = rng.below(u64::from(count)) as u8;
        }
        if is_calm {
            servers.pause_ms = Some(PAUSE_MS);
            let what = What::ServerCrash { for_ms: *rng.pick(&[50, 3_000, 20_000]) };
            faults.push(Fault { at_ms: rng.range(1_000, 4_000), server: ANSWERING, what });
        } else {
            for _ in 0..rng.below(5) {
                let at_ms = rng.range(100, 6_000);
                let for_ms = *rng.pick(&[50, 1_000, 3_000, 3_000, 6_000, 20_000]);
                let what = match rng.below(10) {
                    0..4 => What::ServerCrash { for_ms },
                    4..6 => What::ServerPause { for_ms },
                    6 => What::ServerRestart { for_ms },
                    7..9 => What::ServerCut { for_ms },
                    _ => What::ServerClock { by_ms: *rng.pick(&[-3_600_000, -20_000, 20_000, 3_600_000]) },
                };
                faults.push(Fault { at_ms, server: rng.below(u64::from(count)) as u8, what });
            }
            // One of these at most: somebody must have all that there is.
            let for_ms = *rng.pick(&[100, 3_000, 12_000]);
            let what = match rng.below(25) {
                0..4 => Some(What::ServerLost { for_ms }),
                4..6 => Some(What::ServerGivenUp { for_ms }),
                6 => {
                    servers.deregister_ms = SOON_MS;
                    Some(What::ServerLongDead { for_ms: SOON_MS + 50_000 })
                }
                7 => {
                    // The broker's clock says that a server which is back soon was away for an hour.
                    servers.deregister_ms = SOON_MS;
                    faults.push(Fault { at_ms: 2_500, server: 0, what: What::BrokerClock { by_ms: 3_600_000 } });
                    Some(What::ServerCrash { for_ms: 20_000 })
                }
                8..12 => {
                    servers.upkeep_ms = servers.upkeep_ms.min(1_000);
                    let left_out = rng.below(u64::from(count) * 2);
                    for server in (0..count).filter(|server| u64::from(*server) != left_out) {
                        let what = What::ServerUpgrade { for_ms: *rng.pick(&[50, 3_000]) };
                        faults.push(Fault { at_ms: rng.range(100, 8_000), server, what });
                    }
                    None
                }
                _ => None,
            };
            let (at_ms, server) = (rng.range(100, 3_000), rng.below(u64::from(count)) as u8);
            faults.extend(what.map(|what| Fault { at_ms, server, what }));
        }
        servers
    }

    /// As the servers are given it.
    pub fn rules(&self) -> Rules {
        let watch_before_ms = if self.deregister_ms == SOON_MS { 80_000 } else { Rules::default().watch_before_ms };
        let (upkeep_every_ms, deregister_after_ms) = (self.upkeep_ms, self.deregister_ms);
        Rules { upkeep_every_ms, deregister_after_ms, watch_before_ms, ..Rules::default() }
    }

    /// Likewise with less of it.
    pub fn smaller(&self) -> Vec<Servers> {
        let mut out = Vec::new();
        if self.count > 1 {
            // What they do now and then is done often enough for what was drawn with it.
            let one = Servers { keeps_log: self.keeps_log, upkeep_ms: self.upkeep_ms, ..Servers::ONE };
            out.push(one.clone());
            out.push(Servers { count: self.count - 1, ..self.clone() });
            out.push(Servers { count: self.count, ..one });
        }
        out.retain(|smaller| smaller != self);
        out
    }
}
