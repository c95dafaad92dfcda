//! What people do, as steps: a kind of work for each run, and something of everything
//! else in between.

use super::plan::{Content, DIRS, How, NAMES, Place, Step};
use super::rng::Rng;

/// What the run's clients do most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A little of everything.
    Names,
    /// Files move about and replace each other.
    Renames,
    /// A few files are written, cut, appended to and read from all sides.
    Contents,
    /// Everything happens in one directory.
    HotDir,
    /// Temporary files that lose their names while they are open.
    Unlinked,
    /// Long pauses, in which sessions expire.
    Idle,
    /// A large file with random writes.
    Large,
    /// A few names that all change and look at.
    FewNames,
    /// Directories that are made, filled, moved, emptied and removed.
    Trees,
    /// One looks on while the others work.
    Watched,
    /// Files have names in two directories.
    Links,
}

impl Kind {
    pub fn draw(rng: &mut Rng) -> Kind {
        *rng.pick(&[
            Kind::Names,
            Kind::Renames,
            Kind::Contents,
            Kind::Contents,
            Kind::HotDir,
            Kind::Unlinked,
            Kind::Idle,
            Kind::Large,
            Kind::Large,
            Kind::FewNames,
            Kind::FewNames,
            Kind::Trees,
            Kind::Watched,
            Kind::Watched,
            Kind::Watched,
            Kind::Links,
        ])
    }

    /// One step of this client.
    pub fn step(self, rng: &mut Rng, client: usize) -> Step {
        let special = match self {
            Kind::Names | Kind::HotDir => 0,
            Kind::Renames => 500,
            Kind::Contents | Kind::Large => 750,
            Kind::Unlinked => 300,
            Kind::Idle => 250,
            Kind::FewNames | Kind::Trees | Kind::Watched | Kind::Links => 850,
        };
        match rng.chance(special) {
            true => self.special(rng, client),
            false => self.common(rng),
        }
    }

    fn place(self, rng: &mut Rng) -> Place {
        let dirs = match self {
            Kind::HotDir | Kind::FewNames | Kind::Trees | Kind::Watched => 1,
            Kind::Links => 2,
            _ => u64::from(DIRS),
        };
        let names = match self {
            Kind::Contents | Kind::Large | Kind::FewNames | Kind::Trees | Kind::Watched => 2,
            Kind::Idle | Kind::Links => 3,
            _ => u64::from(NAMES),
        };
        (rng.below(dirs) as u8, rng.below(names) as u8)
    }

    fn content(self, rng: &mut Rng) -> Content {
        let (offsets, lens) = match self {
            Kind::Large => (400_000, 200_000),
            Kind::Contents => (20_000, 9_000),
            _ => (100, 2000),
        };
        Content {
            offset: if rng.chance(500) { 0 } else { rng.below(offsets) as u32 },
            len: rng.range(1, lens) as u32,
            fill: rng.next() as u32,
        }
    }

    fn special(self, rng: &mut Rng, client: usize) -> Step {
        let (one, other) = (self.place(rng), self.place(rng));
        match self {
            Kind::Names | Kind::HotDir => self.common(rng),
            Kind::Renames => {
                Step::Rename(one, other, *rng.pick(&[How::Replace, How::Replace, How::NoReplace, How::Exchange]))
            }
            Kind::Contents | Kind::Large => match rng.below(16) {
                0 => Step::Create(one),
                1..4 => Step::Write(one, self.content(rng)),
                4 => Step::WriteSynced(one, self.content(rng)),
                5..7 => Step::WriteSome(one, (0..rng.range(2, 4)).map(|_| self.content(rng)).collect()),
                7..9 => Step::Append(one, self.content(rng)),
                9..12 => Step::Truncate(one, self.size(rng)),
                12 => Step::Stat(one),
                13 if rng.chance(300) => Step::Unlink(one),
                _ => Step::Read(one),
            },
            Kind::Unlinked => Step::Unlinked(one, self.content(rng)),
            Kind::Idle => Step::SleepMs(*rng.pick(&[500, 3000, 9000, 15_000, 70_000])),
            Kind::FewNames => match rng.below(16) {
                0..3 => Step::Lookup(one),
                3 => Step::Stat(one),
                4 => Step::Marked(one),
                5 => Step::List(one.0),
                6..8 => Step::Read(one),
                8 => Step::chmod_or_mark(rng, one),
                9..11 => Step::Create(one),
                11 => Step::Link(one, other),
                12 => Step::Unlink(one),
                13 => Step::Rename(one, other, How::Replace),
                14 => Step::Write(one, self.content(rng)),
                _ => Step::SleepMs(rng.range(1, 30) as u32),
            },
            Kind::Trees => match rng.below(12) {
                0..3 => Step::Mkdir(one),
                3..6 => Step::CreateIn(one, rng.below(2) as u8),
                6 => Step::UnlinkIn(one, rng.below(2) as u8),
                7..10 => Step::Rmdir(one),
                10 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::NoReplace, How::Exchange])),
                _ => Step::List(one.0),
            },
            Kind::Watched => match rng.below(if client == 0 { 4 } else { 14 }) {
                0..3 if client == 0 => {
                    let every_ms = *rng.pick(&[1, 7, 30, 300, 1500]);
                    Step::Watch { at: one, times: rng.range(5, 25) as u8, every_ms }
                }
                0 => Step::Stat(one),
                1..3 => Step::Create(one),
                3 => Step::Unlink(one),
                4..6 => Step::chmod_or_mark(rng, one),
                6..8 => Step::Write(one, self.content(rng)),
                8 => Step::Link(one, other),
                9 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::Exchange])),
                10 => Step::Lookup(one),
                11 => Step::Marked(one),
                12 => Step::List(one.0),
                _ => Step::Read(one),
            },
            Kind::Links if client == 0 && rng.chance(500) => {
                Step::Watch { at: one, times: rng.range(5, 25) as u8, every_ms: *rng.pick(&[1, 30, 300, 1500]) }
            }
            Kind::Links => match rng.below(16) {
                0..2 => Step::Create(one),
                2..5 => Step::Link(one, other),
                5 => Step::Unlink(one),
                6 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::NoReplace, How::Exchange])),
                7..9 => Step::chmod_or_mark(rng, one),
                9..11 => Step::Stat(one),
                11 => Step::Marked(one),
                12..14 => Step::Lookup(one),
                14 => Step::Write(one, self.content(rng)),
                _ => Step::Read(one),
            },
        }
    }

    fn size(self, rng: &mut Rng) -> u32 {
        let most = if self == Kind::Large { 500_000 } else { 30_000 };
        match rng.below(3) {
            0 => 0,
            1 => rng.below(most / 20) as u32,
            _ => rng.below(most) as u32,
        }
    }

    fn common(self, rng: &mut Rng) -> Step {
        let (one, other) = (self.place(rng), self.place(rng));
        match rng.below(25) {
            0..3 => Step::Create(one),
            3 => Step::CreateIn(one, rng.below(3) as u8),
            4 => Step::Mkdir(one),
            5 => Step::Symlink(one),
            6..8 => Step::Unlink(one),
            8 => Step::Rmdir(one),
            9..11 => Step::Rename(one, other, *rng.pick(&[How::Replace, How::NoReplace, How::Exchange])),
            11 => Step::Link(one, other),
            12 => Step::chmod_or_mark(rng, one),
            13 => Step::Truncate(one, rng.below(3000) as u32),
            14..16 => Step::Write(one, self.content(rng)),
            16 => Step::Append(one, self.content(rng)),
            17..19 => Step::Lookup(one),
            19 => Step::Marked(one),
            20 => Step::Stat(one),
            21 => Step::List(one.0),
            22 => Step::Read(one),
            23 => Step::StatDir(one.0),
            _ => Step::SleepMs(rng.range(1, 300) as u32),
        }
    }
}
