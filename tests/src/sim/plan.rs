//! What a seed draws before anything runs: how many clients, what each does, what
//! the network is like, and which faults come when. A plan is data, so a failing
//! one can be made smaller piece by piece, and printed.

mod servers;

use super::bus::Net;
use super::rng::Rng;
use serde::{Deserialize, Serialize};
pub use servers::Servers;

/// Directories that are there from the beginning and are never moved: the root and these below it.
pub const DIRS: u8 = 3;

/// Names that operations draw from.
pub const NAMES: u8 = 6;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub seed: u64,
    pub net: Net,
    /// The broker stamps records.
    pub append_time: bool,
    /// Clients keep journals.
    pub journal: bool,
    pub servers: Servers,
    /// By client, by worker: what is done, one after the other.
    pub clients: Vec<Vec<Vec<Step>>>,
    pub faults: Vec<Fault>,
}

/// Stands for the number of whichever server answers.
pub const ANSWERING: u8 = u8::MAX;

/// A place for a name: directory and name, by number.
pub type Place = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Create(Place),
    Mkdir(Place),
    Symlink(Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, How),
    Link(Place, Place),
    Chmod(Place, u16),
    Truncate(Place, u32),
    /// Opens, writes, closes.
    Write(Place, Content),
    /// As `Write`, with an fsync before the close.
    WriteSynced(Place, Content),
    Append(Place, Content),
    /// Opens, removes the name, writes and reads through the handle.
    Unlinked(Place, Content),
    Lookup(Place),
    Stat(Place),
    List(u8),
    Read(Place),
    StatDir(u8),
    SleepMs(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    Replace,
    NoReplace,
    Exchange,
}

/// `len` bytes at `offset` that follow from `fill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub offset: u32,
    pub len: u32,
    pub fill: u32,
}

impl Content {
    pub fn bytes(&self) -> Vec<u8> {
        let mut state = u64::from(self.fill);
        let mut bytes = Vec::with_capacity(self.len as usize + 8);
        while bytes.len() < self.len as usize {
            bytes.extend_from_slice(&proto::simulation::split_mix(&mut state).to_le_bytes());
        }
        bytes.truncate(self.len as usize);
        bytes
    }
}

/// Something that goes wrong at a virtual moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub at_ms: u64,
    /// Which server, if it comes over one; [`ANSWERING`] for the one that answers then.
    pub server: u8,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Killed, and started again after so long.
    ServerCrash {
        for_ms: u64,
    },
    ServerPause {
        for_ms: u64,
    },
    /// Stopped cleanly, and started again.
    ServerRestart {
        for_ms: u64,
    },
    ClientCrash {
        client: u8,
        for_ms: u64,
    },
    ClientPause {
        client: u8,
        for_ms: u64,
    },
    /// Nothing that it sends arrives.
    ClientCut {
        client: u8,
        for_ms: u64,
    },
    ServerCut {
        for_ms: u64,
    },
    BrokerDown {
        for_ms: u64,
    },
    BrokerClock {
        by_ms: i64,
    },
    ClientClock {
        client: u8,
        by_ms: i64,
    },
    ServerClock {
        by_ms: i64,
    },
    /// Killed, and all that it had is gone; it takes a snapshot after so long.
    ServerLost {
        for_ms: u64,
    },
    /// Killed, and deregistered by an administrator; comes back after so long.
    ServerGivenUp {
        for_ms: u64,
    },
    /// Stopped, and started again as a newer program, which knows one more version of the machine.
    ServerUpgrade {
        for_ms: u64,
    },
    /// Killed for so long that the others deregister it.
    ServerLongDead {
        for_ms: u64,
    },
}

impl Plan {
    /// What `seed` draws. Faults stop coming at some moment, so that everything can converge.
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, "plan");
        let clients = match rng.below(10) {
            0..2 => 1,
            2..8 => 2,
            _ => 3,
        };
        let is_calm = rng.chance(150);
        let kind = rng.below(9);
        let clients = (0..clients)
            .map(|_| {
                let workers = rng.range(1, 2);
                let steps = rng.range(4, 22 / workers);
                (0..workers).map(|_| (0..steps).map(|_| step(&mut rng, kind)).collect()).collect()
            })
            .collect::<Vec<Vec<Vec<Step>>>>();
        let net = if is_calm { Net { delay_us: 2000, ..Net::default() } } else { net(&mut rng) };
        let mut faults = Vec::new();
        if !is_calm {
            for _ in 0..rng.below(5) {
                let at_ms = rng.range(100, 4000);
                faults.push(Fault { at_ms, server: 0, what: what(&mut rng, clients.len() as u8) });
            }
        }
        let servers = Servers::draw(seed, is_calm, &mut faults);
        faults.sort_by_key(|fault| fault.at_ms);
        Plan { seed, net, append_time: true, journal: rng.chance(500), servers, clients, faults }
    }

    /// How many things could be left out.
    pub fn size(&self) -> usize {
        self.clients.iter().flatten().map(Vec::len).sum::<usize>() + self.faults.len()
    }
}

fn net(rng: &mut Rng) -> Net {
    let some = |rng: &mut Rng, often: u32, most: u64| if rng.chance(often) { rng.range(1, most) as u32 } else { 0 };
    Net {
        delay_us: *rng.pick(&[200, 1000, 3000, 10_000]),
        slow: some(rng, 600, 80),
        slow_us: *rng.pick(&[20_000, 200_000, 2_000_000]),
        lost: some(rng, 400, 80),
        no_offset: some(rng, 300, 60),
        late_ack: some(rng, 300, 200),
        repeated: some(rng, 400, 100),
        reply_lost: some(rng, 400, 60),
    }
}

fn what(rng: &mut Rng, clients: u8) -> What {
    let for_ms = *rng.pick(&[5, 50, 400, 1500, 5000, 12_000]);
    let client = rng.below(u64::from(clients)) as u8;
    let by_ms = *rng.pick(&[-3_600_000, -20_000, -500, 500, 20_000, 3_600_000]);
    match rng.below(14) {
        0..3 => What::ServerCrash { for_ms },
        3 => What::ServerPause { for_ms },
        4 => What::ServerRestart { for_ms },
        5..7 => What::ClientCrash { client, for_ms },
        7 => What::ClientPause { client, for_ms },
        8 => What::ClientCut { client, for_ms },
        9 => What::ServerCut { for_ms },
        10 => What::BrokerDown { for_ms },
        11 => What::BrokerClock { by_ms },
        12 => What::ClientClock { client, by_ms },
        _ => What::ServerClock { by_ms },
    }
}

/// One step of a workload: 0 names, 1 rename dance, 2 contents, 3 hot directory,
/// 4 unlinked files, 5 idle, 6 a large file, 7 and 8 a few names that all look at; each with something of everything.
fn step(rng: &mut Rng, kind: u64) -> Step {
    let dirs = if matches!(kind, 3 | 7 | 8) { 1 } else { u64::from(DIRS) };
    let names = if matches!(kind, 2 | 6 | 7 | 8) { 2 } else { u64::from(NAMES) };
    let place = |rng: &mut Rng| (rng.below(dirs) as u8, rng.below(names) as u8);
    let content = |rng: &mut Rng| {
        let (offsets, lens) = match kind {
            6 => (300_000, 150_000),
            2 => (20_000, 9_000),
            _ => (100, 2000),
        };
        Content {
            offset: if rng.chance(500) { 0 } else { rng.below(offsets) as u32 },
            len: rng.range(1, lens) as u32,
            fill: rng.next() as u32,
        }
    };
    let special = match kind {
        1 => 500,
        2 | 6 => 700,
        4 => 300,
        5 => 250,
        7 | 8 => 900,
        _ => 0,
    };
    if special > 0 && rng.chance(special) {
        let (one, other) = (place(rng), place(rng));
        return match kind {
            1 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::Replace, How::NoReplace, How::Exchange])),
            2 | 6 => match rng.below(8) {
                0..3 => Step::Write(one, content(rng)),
                3 => Step::WriteSynced(one, content(rng)),
                4 => Step::Append(one, content(rng)),
                5 => Step::Truncate(one, rng.below(10_000) as u32),
                _ => Step::Read(one),
            },
            4 => Step::Unlinked(one, content(rng)),
            7 | 8 => match rng.below(16) {
                0..3 => Step::Lookup(one),
                3..5 => Step::Stat(one),
                5 => Step::List(one.0),
                6..8 => Step::Read(one),
                8 => Step::Chmod(one, rng.below(0o1000) as u16),
                9..11 => Step::Create(one),
                11 => Step::Link(one, other),
                12 => Step::Unlink(one),
                13 => Step::Rename(one, other, How::Replace),
                14 => Step::Write(one, content(rng)),
                _ => Step::SleepMs(rng.range(1, 30) as u32),
            },
            _ => Step::SleepMs(*rng.pick(&[500, 3000, 9000, 15_000, 70_000])),
        };
    }
    let (one, other) = (place(rng), place(rng));
    match rng.below(25) {
        0..4 => Step::Create(one),
        4 => Step::Mkdir(one),
        5 => Step::Symlink(one),
        6..8 => Step::Unlink(one),
        8 => Step::Rmdir(one),
        9..11 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::NoReplace, How::Exchange])),
        11 => Step::Link(one, other),
        12 => Step::Chmod(one, rng.below(0o1000) as u16),
        13 => Step::Truncate(one, rng.below(3000) as u32),
        14..16 => Step::Write(one, content(rng)),
        16 => Step::Append(one, content(rng)),
        17..20 => Step::Lookup(one),
        20 => Step::Stat(one),
        21 => Step::List(one.0),
        22 => Step::Read(one),
        23 => Step::StatDir(one.0),
        _ => Step::SleepMs(rng.range(1, 300) as u32),
    }
}
