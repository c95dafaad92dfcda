//! What a seed draws about servers: how many there are, how they are set, and which of
//! them each fault hits. These draws have a purpose of their own, so the others stay.

use super::{Fault, What};
use crate::sim::rng::Rng;
use serde::{Deserialize, Serialize};

/// The servers of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    pub count: u8,
    /// Between looks at what of the log nobody needs any more.
    pub upkeep_ms: u64,
    /// Between checkpoints of what clients change.
    pub checkpoint_ms: u64,
}

impl Servers {
    /// One, set as in production.
    pub const ONE: Servers = Servers { count: 1, upkeep_ms: 30_000, checkpoint_ms: 5_000 };

    /// What `seed` draws. Spreads the faults over the servers, and adds some.
    pub fn draw(seed: u64, is_calm: bool, faults: &mut Vec<Fault>) -> Servers {
        let mut rng = Rng::new(seed, "servers");
        let count = match rng.below(10) {
            0..5 => return Servers::ONE,
            5..9 => 2,
            _ => 3,
        };
        let servers = Servers {
            count,
            upkeep_ms: *rng.pick(&[200, 1_000, 1_000, 5_000, 30_000]),
            checkpoint_ms: *rng.pick(&[50, 300, 1_000, 5_000]),
        };
        for fault in faults.iter_mut() {
            fault.server = rng.below(u64::from(count)) as u8;
        }
        if !is_calm {
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
        }
        servers
    }

    /// Likewise with less of it.
    pub fn smaller(&self) -> Vec<Servers> {
        let mut out = Vec::new();
        if self.count > 1 {
            out.push(Servers::ONE);
            out.push(Servers { count: self.count - 1, ..self.clone() });
            out.push(Servers { count: self.count, ..Servers::ONE });
        }
        out.retain(|smaller| smaller != self);
        out
    }
}
