//! What a seed draws before anything runs: how many clients, what each does, what
//! the network is like, and which faults come when. A plan is data, so a failing
//! one can be made smaller piece by piece, and printed.

mod apart;
mod servers;

use super::bus::Net;
use super::counting::{self, Count};
use super::rng::Rng;
use super::workload::Kind;
use mount::fs::COPIED_HERE_BYTES;
use proto::log::Topic;
use proto::message::{FallocateHow, Quota};
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
    /// A client that crashes loses its journal, which nobody has brought to disk.
    pub power_goes: bool,
    pub servers: Servers,
    /// Requests that a client may have unanswered: where these are few, others wait for them.
    pub window: u32,
    /// Between two steps everybody thinks for up to so long.
    pub pace_ms: u32,
    /// By client, by worker: what is done, one after the other.
    pub clients: Vec<Vec<Vec<Step>>>,
    pub faults: Vec<Fault>,
    /// What an administrator lets the namespace hold, and when.
    pub quotas: Vec<(u64, Quota)>,
    /// When everything is over, the server goes on until all garbage must have gone.
    pub tidies_up: bool,
}

/// Stands for the number of whichever server answers.
pub const ANSWERING: u8 = u8::MAX;

/// A place for a name: directory and name, by number.
pub type Place = (u8, u8);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Create(Place),
    /// Makes a file in the directory that stands there.
    CreateIn(Place, u8),
    UnlinkIn(Place, u8),
    Mkdir(Place),
    Symlink(Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, How),
    Link(Place, Place),
    Chmod(Place, u16),
    /// Sets the extended attribute `user.mark` to this number, or takes it away; looks at it sometimes.
    Mark(Place, Option<u16>),
    Marked(Place),
    Truncate(Place, u32),
    /// Opens, makes a hole of so many bytes or the file reach so far or both, closes.
    Fallocate(Place, Range, FallocateHow),
    /// Opens both, copies so much of the first one to the second one, closes.
    Clone(Place, Range, Place, u32),
    /// Opens, writes, closes.
    Write(Place, Content),
    /// As `Write`, with an fsync before the close.
    WriteSynced(Place, Content),
    Append(Place, Content),
    /// Opens, writes one after the other, reads all of it back, closes.
    WriteSome(Place, Vec<Content>),
    /// Opens, removes the name, writes and reads through the handle.
    Unlinked(Place, Content),
    Lookup(Place),
    Stat(Place),
    List(u8),
    Read(Place),
    StatDir(u8),
    /// Looks at a place again and again, as `watch` and a file manager do.
    Watch {
        at: Place,
        times: u8,
        every_ms: u16,
    },
    /// Counts a number in a shared file up, under a lock.
    Count(Count),
    SleepMs(u32),
}

impl Step {
    /// Changes an inode's attributes, as often the extended one.
    pub fn chmod_or_mark(rng: &mut Rng, at: Place) -> Step {
        match rng.below(0o1000) as u16 {
            mode if mode % 2 == 0 => Step::Chmod(at, mode),
            mark => Step::Mark(at, (mark % 5 > 0).then_some(mark)),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub offset: u32,
    pub len: u32,
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
    /// If `busy`, as soon as it has something under way.
    ClientCrash {
        client: u8,
        for_ms: u64,
        busy: bool,
    },
    ClientPause {
        client: u8,
        for_ms: u64,
    },
    /// Nothing that it sends arrives before the end, nor does what it is sent.
    ClientCut {
        client: u8,
        for_ms: u64,
        forgetful: bool,
    },
    /// Nothing that it sends arrives before the end.
    ClientMute {
        client: u8,
        for_ms: u64,
    },
    /// What it sends arrives, but not what it is sent: that comes at the end, or never if `forgetful`.
    ClientDeaf {
        client: u8,
        for_ms: u64,
        forgetful: bool,
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
    /// A server's disk has no room for anything new.
    DiskFull {
        for_ms: u64,
    },
    /// So many in a thousand of a server's writes and syncs fail.
    DiskFails {
        for_ms: u64,
        often: u32,
    },
    /// So many bits flip in packs that lie on a server's disk.
    BitFlips {
        count: u8,
    },
    /// The broker comes back without some of what it had.
    LogLost {
        lost: Lost,
    },
}

/// What a broker comes back without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lost {
    All,
    /// All but what was uploaded.
    ButUploads,
    /// Only what was uploaded.
    Uploads,
    /// The last records of some partitions.
    Ends,
}

impl Lost {
    pub fn takes(self, topic: Topic) -> bool {
        match self {
            Lost::All => true,
            Lost::ButUploads => topic != Topic::Chunks,
            Lost::Uploads => topic == Topic::Chunks,
            Lost::Ends => topic.is_durable(),
        }
    }
}

impl What {
    /// Whether a server can lose by it what it has not on disk.
    pub fn takes_memory(&self) -> bool {
        matches!(
            self,
            What::ServerCrash { .. } | What::DiskFull { .. } | What::DiskFails { .. } | What::ServerCut { .. }
        ) || self.is_of_servers_that_differ()
    }

    /// Whether one server has not all that there is, or knows more than others: an epoch cannot begin from any.
    fn is_of_servers_that_differ(&self) -> bool {
        matches!(
            self,
            What::ServerLost { .. }
                | What::ServerGivenUp { .. }
                | What::ServerLongDead { .. }
                | What::ServerUpgrade { .. }
        )
    }
}

impl Plan {
    /// What `seed` draws. Faults stop coming at some moment, so that everything can converge.
    pub fn draw(seed: u64) -> Plan {
        let mut rng = Rng::new(seed, "plan");
        let clients = match rng.below(10) {
            0..2 => 1,
            2..7 => 2,
            _ => 3,
        };
        let is_calm = rng.chance(120);
        let kind = Kind::draw(&mut rng);
        // Whoever looks on sees little if it is over at once.
        let is_watched = matches!(kind, Kind::Watched | Kind::Links);
        let pace_ms = *rng.pick(if is_watched { &[40, 200, 1000, 3000] } else { &[0, 5, 40, 200, 1000, 3000] });
        let mut clients: Vec<Vec<Vec<Step>>> = (0..clients)
            .map(|client| {
                let workers = rng.range(1, 2);
                // Whoever thinks for long does less.
                let steps = rng.range(4, if pace_ms >= 1000 { 14 } else { 26 } / workers);
                (0..workers).map(|_| (0..steps).map(|_| kind.step(&mut rng, client)).collect()).collect()
            })
            .collect();
        let (mut holes, mut copies) = (Rng::new(seed, "holes"), Rng::new(seed, "copies"));
        for step in clients.iter_mut().flatten().flatten() {
            if let Step::Truncate(at, size) = *step
                && holes.chance(400)
            {
                let (offset, len) = (size / 2, 1 + holes.below(20_000) as u32);
                let how =
                    [FallocateHow::Extend, FallocateHow::Clear, FallocateHow::Clear, FallocateHow::ClearAndExtend];
                *step = Step::Fallocate(at, Range { offset, len }, *holes.pick(&how));
            }
            if let Step::Append(at, content) = *step
                && holes.chance(400)
            {
                // A short one is a write, between two files.
                let more = if copies.chance(700) { COPIED_HERE_BYTES as u32 } else { 0 };
                let range = Range { offset: content.offset / 2, len: content.len + more };
                let to = if holes.chance(800) { (at.0, at.1 ^ 1) } else { at };
                *step = Step::Clone(at, range, to, holes.below(20_000) as u32);
            }
        }
        let mut locks = Rng::new(seed, "locks");
        // A tenth of them.
        if seed % 10 == 8 {
            let kind = *locks.pick(&[counting::Kind::Range, counting::Kind::Flock]);
            for workers in &mut clients {
                for _ in 0..locks.range(1, 2) {
                    let counts = locks.range(3, 10);
                    workers.push((0..counts).map(|_| Step::Count(Count::draw(&mut locks, kind))).collect());
                }
            }
        }
        let net = if is_calm { Net { delay_us: 2000, ..Net::default() } } else { net(&mut rng) };
        let mut faults = Vec::new();
        if !is_calm {
            let takes_ms = clients.iter().flatten().map(|steps| takes_ms(steps, pace_ms)).max().unwrap_or(0);
            let theme = Theme::draw(&mut rng);
            for _ in 0..rng.below(5) {
                let at_ms = rng.range(20, takes_ms.clamp(200, 20_000));
                faults.push(Fault { at_ms, server: 0, what: theme.what(&mut rng, clients.len() as u8) });
            }
        }
        let mut servers = Servers::draw(seed, is_calm, &mut faults);
        let mut flips = Rng::new(seed, "flips");
        let they_differ = faults.iter().any(|fault| fault.what.is_of_servers_that_differ());
        if !is_calm && !they_differ && kind == Kind::Large && flips.chance(400) {
            // What flips can be healed, since the log keeps everything.
            servers.keeps_log = true;
            servers.upkeep_ms = 3_600_000;
            for _ in 0..flips.range(1, 4) {
                let (at_ms, server) = (flips.range(500, 20_000), flips.below(u64::from(servers.count)) as u8);
                faults.push(Fault { at_ms, server, what: What::BitFlips { count: flips.range(1, 20) as u8 } });
            }
        }
        let mut log = Rng::new(seed, "log");
        if !is_calm && !they_differ {
            for lost in [Lost::All, Lost::ButUploads, Lost::Uploads] {
                if log.chance(60) {
                    let what = What::LogLost { lost };
                    faults.push(Fault { at_ms: log.range(100, 5000), server: 0, what });
                    break;
                }
            }
        }
        let mut ends = Rng::new(seed, "ends");
        let is_lost = faults.iter().any(|fault| matches!(fault.what, What::LogLost { .. }));
        if !is_calm && !they_differ && !is_lost && ends.chance(80) {
            let at_ms = ends.range(100, 5000);
            faults.push(Fault { at_ms, server: 0, what: What::LogLost { lost: Lost::Ends } });
            if ends.chance(400) {
                // Whatever took the broker down.
                for server in 0..servers.count {
                    let for_ms = *ends.pick(&[50, 3_000]);
                    let at_ms = at_ms - ends.below(100);
                    faults.push(Fault { at_ms, server, what: What::ServerCrash { for_ms } });
                }
            }
        }
        faults.sort_by_key(|fault| fault.at_ms);
        let tidies_up = rng.chance(if kind == Kind::Large { 600 } else { 150 });
        let quotas = quotas(seed, &mut clients, &faults);
        let mut journal = rng.chance(500);
        if let Some(mut rng) = apart::draw(seed) {
            // Without one nothing is delegated.
            journal |= rng.chance(700);
            apart::apart(&mut rng, &mut clients);
        }
        let mut power = Rng::new(seed, "power");
        let power_goes = !is_calm && power.chance(150);
        if power_goes {
            // Without one nothing is answered before the server has it, and so nothing can be lost.
            journal = true;
            power_goes_at(&mut power, &mut clients, &mut faults);
        }
        let mut few = Rng::new(seed, "window");
        let window = if few.chance(200) { few.range(1, 5) as u32 } else { 256 };
        Plan {
            seed,
            net,
            append_time: true,
            journal,
            power_goes,
            servers,
            window,
            pace_ms,
            clients,
            faults,
            quotas,
            tidies_up,
        }
    }

    /// Whether partitions lose their last records, and nothing else.
    pub fn loses_ends(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault.what, What::LogLost { lost: Lost::Ends }))
    }

    /// How many things could be left out.
    pub fn size(&self) -> usize {
        self.clients.iter().flatten().map(Vec::len).sum::<usize>() + self.faults.len()
    }
}

/// In some runs there is a quota, mostly a tight one for people who write much.
fn quotas(seed: u64, clients: &mut [Vec<Vec<Step>>], faults: &[Fault]) -> Vec<(u64, Quota)> {
    let mut rng = Rng::new(seed, "quota");
    // What stood in one place and what came to stand there cannot be told apart afterwards.
    let loses_ends = faults.iter().any(|fault| matches!(fault.what, What::LogLost { lost: Lost::Ends }));
    if loses_ends || !rng.chance(70) {
        return Vec::new();
    }
    let writes = rng.chance(600);
    if writes {
        for (client, workers) in clients.iter_mut().enumerate() {
            workers.iter_mut().flatten().for_each(|step| *step = Kind::Contents.step(&mut rng, client));
        }
    }
    let quota = |rng: &mut Rng| Quota {
        bytes: rng.chance(850).then(|| rng.range(1000, if writes { 60_000 } else { 10_000 })),
        inodes: rng.chance(400).then(|| rng.range(4, 16)),
    };
    let at_ms = if rng.chance(600) { 0 } else { rng.range(1, 3000) };
    let mut quotas = vec![(at_ms, quota(&mut rng))];
    if rng.chance(300) {
        let at_ms = at_ms + rng.range(50, 5000);
        quotas.push((at_ms, if rng.chance(400) { Quota::default() } else { quota(&mut rng) }));
    }
    quotas
}

fn net(rng: &mut Rng) -> Net {
    let some = |rng: &mut Rng, often: u32, most: u64| if rng.chance(often) { rng.range(1, most) as u32 } else { 0 };
    Net {
        delay_us: *rng.pick(&[200, 1000, 3000, 10_000]),
        slow: some(rng, 600, 80),
        slow_us: *rng.pick(&[20_000, 200_000, 2_000_000, 6_000_000]),
        lost: some(rng, 400, 80),
        no_offset: some(rng, 300, 60),
        late_ack: some(rng, 300, 200),
        repeated: some(rng, 400, 100),
        reply_lost: some(rng, 400, 120),
    }
}

/// Clients crash while something is under way, and what they write is often synced.
fn power_goes_at(rng: &mut Rng, clients: &mut [Vec<Vec<Step>>], faults: &mut Vec<Fault>) {
    for step in clients.iter_mut().flatten().flatten() {
        if let Step::Write(at, content) = *step
            && rng.chance(600)
        {
            *step = Step::WriteSynced(at, content);
        }
    }
    let clients = clients.len() as u64;
    for _ in 0..rng.range(1, 4) {
        let what = What::ClientCrash { client: rng.below(clients) as u8, for_ms: *rng.pick(&[50, 1500]), busy: true };
        faults.push(Fault { at_ms: rng.range(100, 8000), server: 0, what });
    }
    faults.sort_by_key(|fault| fault.at_ms);
}

/// About how long a worker's steps take if nothing goes wrong.
fn takes_ms(steps: &[Step], pace_ms: u32) -> u64 {
    let each = steps.iter().map(|step| match step {
        Step::SleepMs(ms) => u64::from(*ms),
        Step::Count(count) => u64::from(count.hold_ms),
        Step::Watch { times, every_ms, .. } => u64::from(*times) * u64::from(*every_ms),
        _ => 10,
    });
    each.map(|ms| ms + u64::from(pace_ms) / 2).sum()
}

/// What goes wrong in a run, mostly.
#[derive(Clone, Copy)]
enum Theme {
    Anything,
    Network,
    Clients,
    Server,
    Disk,
}

impl Theme {
    fn draw(rng: &mut Rng) -> Theme {
        *rng.pick(&[
            Theme::Anything,
            Theme::Anything,
            Theme::Network,
            Theme::Network,
            Theme::Network,
            Theme::Clients,
            Theme::Clients,
            Theme::Server,
            Theme::Disk,
        ])
    }

    fn what(self, rng: &mut Rng, clients: u8) -> What {
        let for_ms = match rng.chance(60) {
            // Sessions expire meanwhile.
            true => 75_000,
            false => *rng.pick(&[5, 50, 400, 1500, 5000, 12_000, 20_000]),
        };
        let client = rng.below(u64::from(clients)) as u8;
        let by_ms = *rng.pick(&[-3_600_000, -20_000, -500, 500, 20_000, 3_600_000]);
        let forgetful = rng.chance(400);
        let busy = rng.chance(700);
        let kind = match self {
            Theme::Anything => rng.below(24),
            Theme::Network => rng.below(10),
            Theme::Clients => 9 + rng.below(5),
            Theme::Server => 14 + rng.below(7),
            Theme::Disk => 18 + rng.below(6),
        };
        match kind {
            0..4 => What::ClientCut { client, for_ms, forgetful },
            4..7 => What::ClientDeaf { client, for_ms, forgetful },
            7 => What::ClientMute { client, for_ms },
            8 => What::BrokerDown { for_ms },
            9 => What::ClientPause { client, for_ms },
            10..13 => What::ClientCrash { client, for_ms, busy },
            13 => What::ClientClock { client, by_ms },
            14 => What::BrokerClock { by_ms },
            15 => What::ServerClock { by_ms },
            16 => What::ServerPause { for_ms },
            17 => What::ServerCut { for_ms },
            18..20 => What::ServerCrash { for_ms },
            20 => What::ServerRestart { for_ms },
            21 => What::DiskFull { for_ms },
            22 => What::DiskFails { for_ms, often: *rng.pick(&[5, 50, 500]) },
            _ => What::BitFlips { count: rng.range(1, 20) as u8 },
        }
    }
}
