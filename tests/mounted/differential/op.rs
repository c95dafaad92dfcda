//! What is played: operations, and sequences of them from a seed.
//!
//! An operation says everything that it does by itself. So any part of a sequence is a sequence too, which is what
//! makes a failing one shorter.

use harness::tree::Random;
use std::fmt;

/// Open files that a sequence has at a time.
pub const SLOTS: usize = 6;
pub type Slot = usize;

/// Those who act: uid, gid, and one more group.
pub const USERS: [(u32, u32, Option<u32>); 3] = [(0, 0, None), (65_534, 65_534, None), (1, 1, Some(65_534))];

/// Bytes of a path, a name or a link's target.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(pub Vec<u8>);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0..=60 => write!(f, "\"{}\"", self.0.escape_ascii()),
            len => write!(f, "\"{}...\"({len} bytes)", self.0[..20].escape_ascii()),
        }
    }
}

/// What a path starts from and the path, as the calls that end in `at` take them.
#[derive(Clone, Debug)]
pub struct Place {
    /// The tree's root, if it is none of the open files.
    pub base: Option<Slot>,
    pub path: Text,
}

/// Whose extended attributes are meant.
#[derive(Clone, Debug)]
pub enum Subject {
    Path(Text),
    Link(Text),
    Open(Slot),
}

/// Seconds and nanoseconds, which may also be `UTIME_NOW` and `UTIME_OMIT`.
pub type Time = (i64, i64);

#[derive(Clone, Debug)]
pub enum Op {
    Become {
        user: usize,
    },
    Umask {
        mask: u32,
    },
    Open {
        at: Place,
        flags: i32,
        mode: u32,
        slot: Slot,
    },
    /// Through `/proc/self/fd`, which works for what has no name (any more).
    Reopen {
        from: Slot,
        flags: i32,
        slot: Slot,
    },
    Close {
        slot: Slot,
    },
    Read {
        slot: Slot,
        len: usize,
        at: Option<i64>,
    },
    Write {
        slot: Slot,
        len: usize,
        at: Option<i64>,
        seed: u64,
    },
    Lseek {
        slot: Slot,
        offset: i64,
        whence: i32,
    },
    Truncate {
        path: Text,
        size: i64,
    },
    Ftruncate {
        slot: Slot,
        size: i64,
    },
    Fallocate {
        slot: Slot,
        mode: i32,
        offset: i64,
        len: i64,
    },
    Copy {
        from: Slot,
        at: Option<i64>,
        to: Slot,
        to_at: Option<i64>,
        len: usize,
        flags: u32,
    },
    Sync {
        slot: Slot,
        only_data: bool,
    },
    List {
        slot: Slot,
    },
    Mkdir {
        at: Place,
        mode: u32,
    },
    Mknod {
        at: Place,
        mode: u32,
        device: u64,
    },
    Symlink {
        target: Text,
        at: Place,
    },
    Readlink {
        at: Place,
    },
    Link {
        from: Place,
        to: Place,
        flags: i32,
    },
    Rename {
        from: Place,
        to: Place,
        flags: u32,
    },
    Unlink {
        at: Place,
        flags: i32,
    },
    Stat {
        at: Place,
        flags: i32,
    },
    Access {
        at: Place,
        mode: i32,
        flags: i32,
    },
    Chmod {
        at: Place,
        mode: u32,
        flags: i32,
    },
    Fchmod {
        slot: Slot,
        mode: u32,
    },
    Chown {
        at: Place,
        uid: u32,
        gid: u32,
        flags: i32,
    },
    Fchown {
        slot: Slot,
        uid: u32,
        gid: u32,
    },
    Utimens {
        at: Place,
        times: [Time; 2],
        flags: i32,
    },
    Futimens {
        slot: Slot,
        times: [Time; 2],
    },
    Setxattr {
        of: Subject,
        name: Text,
        value: Text,
        flags: i32,
    },
    Getxattr {
        of: Subject,
        name: Text,
        room: usize,
    },
    Listxattr {
        of: Subject,
        room: usize,
    },
    Removexattr {
        of: Subject,
        name: Text,
    },
}

/// Draws operations.
pub struct Generator {
    random: Random,
    /// Whether there is more than one user, and devices.
    as_root: bool,
}

/// The operations of this seed.
pub fn sequence(seed: u64, len: usize, as_root: bool) -> Vec<Op> {
    let mut generator = Generator { random: Random::new(seed), as_root };
    let root = |path: &str| Place { base: None, path: Text(path.into()) };
    let directory = |path| Op::Mkdir { at: root(path), mode: 0o777 };
    let mut ops = vec![directory("d"), directory("d/e"), directory("f")];
    ops.extend((0..len).map(|_| generator.op()));
    ops
}

/// One of these, each as likely as it stands there.
macro_rules! one_of {
    ($random:expr, $($value:expr),+ $(,)?) => {{
        let values = [$($value),+];
        values[$random.below(values.len() as u64) as usize].clone()
    }};
}

impl Generator {
    fn op(&mut self) -> Op {
        let slot = self.slot();
        match self.random.below(100) {
            0..=1 if self.as_root => Op::Become { user: self.random.below(USERS.len() as u64) as usize },
            0..=2 => Op::Umask { mask: one_of!(self.random, 0, 0o022, 0o022, 0o027, 0o007) },
            3..=18 => Op::Open { at: self.place(), flags: self.open_flags(), mode: self.mode(), slot },
            19 => Op::Reopen { from: self.slot(), flags: self.open_flags() & !libc::O_NOFOLLOW, slot },
            20..=23 => Op::Close { slot },
            24..=29 => Op::Read { slot, len: self.len(), at: self.maybe_offset() },
            30..=38 => Op::Write { slot, len: self.len(), at: self.maybe_offset(), seed: self.random.number() },
            39..=41 => {
                Op::Lseek { slot, offset: self.offset(), whence: one_of!(self.random, 0, 0, 1, 2, 3, 3, 4, 4, 7) }
            }
            42 => Op::Truncate { path: self.path(), size: self.offset() },
            43..=45 => Op::Ftruncate { slot, size: self.offset() },
            46..=48 => Op::Fallocate {
                slot,
                // Plain, keep size, punch (with and, wrongly, without keep size), zero, unaligned collapse and insert,
                // contradictions, no mode at all.
                mode: one_of!(self.random, 0, 1, 3, 3, 2, 16, 17, 18, 8 | 1, 32 | 1, 4096),
                offset: self.offset(),
                len: self.offset(),
            },
            49..=50 => Op::Copy {
                from: slot,
                at: self.maybe_offset(),
                to: self.slot(),
                to_at: self.maybe_offset(),
                len: self.len(),
                flags: if self.random.below(20) == 0 { 1 } else { 0 },
            },
            51 => Op::Sync { slot, only_data: self.random.below(2) == 0 },
            52..=53 => Op::List { slot },
            54..=57 => Op::Mkdir { at: self.place(), mode: self.mode() },
            58..=59 => self.mknod(),
            60..=62 => Op::Symlink { target: self.target(), at: self.place() },
            63 => Op::Readlink { at: self.place() },
            64..=67 => {
                let (from, to) = (self.place(), self.place());
                let flags = libc::AT_SYMLINK_FOLLOW;
                Op::Link { from, to, flags: one_of!(self.random, 0, 0, 0, flags, libc::AT_EMPTY_PATH, 1) }
            }
            68..=74 => {
                let (from, to) = (self.place(), self.place());
                // Not a whiteout (4): it would leave a device behind on one side.
                Op::Rename { from, to, flags: one_of!(self.random, 0, 0, 0, 0, 1, 2, 2, 3, 8) }
            }
            75..=80 => {
                let removes = libc::AT_REMOVEDIR;
                Op::Unlink { at: self.place(), flags: one_of!(self.random, 0, 0, 0, removes, removes, 1) }
            }
            81..=82 => Op::Stat { at: self.place(), flags: self.at_flags() },
            83 => {
                let flags = one_of!(self.random, 0, libc::AT_EACCESS, libc::AT_SYMLINK_NOFOLLOW, 1);
                Op::Access { at: self.place(), mode: self.random.below(9) as i32, flags }
            }
            84..=85 => {
                Op::Chmod { at: self.place(), mode: self.mode(), flags: one_of!(self.random, 0, 0, 0, 0, 256, 1) }
            }
            86 => Op::Fchmod { slot, mode: self.mode() },
            87..=88 => {
                let (uid, gid) = (self.owner(), self.owner());
                Op::Chown { at: self.place(), uid, gid, flags: self.at_flags() }
            }
            89 => Op::Fchown { slot, uid: self.owner(), gid: self.owner() },
            90..=91 => {
                let times = [self.time(), self.time()];
                Op::Utimens { at: self.place(), times, flags: one_of!(self.random, 0, 0, libc::AT_SYMLINK_NOFOLLOW, 1) }
            }
            92 => Op::Futimens { slot, times: [self.time(), self.time()] },
            93..=95 => {
                let flags = one_of!(self.random, 0, 0, 0, libc::XATTR_CREATE, libc::XATTR_REPLACE, 3, 4);
                // Never the value that is there already: ext4 then changes nothing, not even ctime.
                let len = if flags == libc::XATTR_CREATE { 0 } else { one_of!(self.random, 3, 10, 300) };
                Op::Setxattr { of: self.subject(), name: self.attribute(), value: Text(self.random.bytes(len)), flags }
            }
            96..=97 => {
                let room = one_of!(self.random, 0, 5, 4096);
                Op::Getxattr { of: self.subject(), name: self.attribute(), room }
            }
            98 => Op::Listxattr { of: self.subject(), room: one_of!(self.random, 0, 5, 4096) },
            _ => Op::Removexattr { of: self.subject(), name: self.attribute() },
        }
    }

    fn slot(&mut self) -> Slot {
        self.random.below(SLOTS as u64) as usize
    }

    fn place(&mut self) -> Place {
        match self.random.below(12) {
            // By an open file alone.
            0 => Place { base: Some(self.slot()), path: Text(Vec::new()) },
            1 => Place { base: Some(self.slot()), path: self.path() },
            _ => Place { base: None, path: self.path() },
        }
    }

    /// A few names in a few directories, so that they meet.
    ///
    /// No path leads out of the tree: `..` follows only a name that is not `.` or `..`, once, and is in no link's
    /// target. What such a name leads to lies at least one level down. An absolute path leads through a directory that
    /// is not there, also where it ends with that: else it could be made, and the disk's root may be on another device.
    fn path(&mut self) -> Text {
        const DIRECTORIES: [&str; 12] = ["", "", "", "", "", "d/", "d/", "d/", "d/e/", "d/e/", "f/", "f/"];
        const ODD_DIRECTORIES: [&str; 6] = ["a/", "./", "d//", "d/../", "b/a/", "/nonexistent/in-any-root/"];
        const NAMES: [&str; 12] = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "d", "e", "f"];
        let is_odd = self.random.below(16) == 0;
        let directory = if is_odd {
            one_of!(
                self.random,
                ODD_DIRECTORIES[0],
                ODD_DIRECTORIES[1],
                ODD_DIRECTORIES[2],
                ODD_DIRECTORIES[3],
                ODD_DIRECTORIES[4],
                ODD_DIRECTORIES[5]
            )
        } else {
            DIRECTORIES[self.random.below(12) as usize]
        };
        let mut path = directory.as_bytes().to_vec();
        match self.random.below(60) {
            0 => path.push(b'.'),
            1 if directory.starts_with(['d', 'f']) && !is_odd => path.extend(b".."),
            2 => path.extend([b'n'; 255]),
            3 => path.extend([b'n'; 256]),
            4 => path.extend((1..=255).filter(|byte| *byte != b'/').take(250)),
            5 => path.extend([0xff, 0xfe, b'\n', b' ']),
            6 => {}
            7..=8 => {
                path.extend(NAMES[self.random.below(12) as usize].as_bytes());
                path.push(b'/');
            }
            9 if is_odd => path.extend([b'/'; 4096]),
            _ => path.extend(NAMES[self.random.below(12) as usize].as_bytes()),
        }
        Text(path)
    }

    fn target(&mut self) -> Text {
        let long = "t/".repeat(2047) + "t";
        Text(match self.random.below(20) {
            0 => Vec::new(),
            1 => long.into_bytes(),
            2 => (long + "t").into_bytes(),
            3 => b"nowhere/to be found".to_vec(),
            4 => vec![0xff, b' ', 0x80],
            5..=7 => b"e/a".to_vec(),
            _ => one_of!(self.random, "a", "b", "c", "d", "d/e", "f", "e", "d/").as_bytes().to_vec(),
        })
    }

    fn subject(&mut self) -> Subject {
        match self.random.below(6) {
            0 => Subject::Open(self.slot()),
            1 => Subject::Link(self.path()),
            _ => Subject::Path(self.path()),
        }
    }

    fn attribute(&mut self) -> Text {
        let long = "user.".to_owned() + &"n".repeat(250);
        let too_long = long.clone() + "n";
        let names = [
            "user.a",
            "user.a",
            "user.b",
            "user.b",
            "trusted.a",
            "user.",
            "nonsense.a",
            "nonsense",
            "",
            &long,
            &too_long,
        ];
        Text(names[self.random.below(names.len() as u64) as usize].as_bytes().to_vec())
    }

    fn open_flags(&mut self) -> i32 {
        let mut flags = one_of!(self.random, libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR, libc::O_RDWR);
        for (flag, in_hundred) in [
            (libc::O_CREAT, 45),
            (libc::O_EXCL, 12),
            (libc::O_TRUNC, 15),
            (libc::O_APPEND, 15),
            (libc::O_DIRECTORY, 8),
            (libc::O_NOFOLLOW, 8),
            (libc::O_PATH, 5),
            (libc::O_NOATIME, 3),
            (libc::O_DSYNC, 2),
            (libc::O_TMPFILE, 1),
            (libc::O_ACCMODE, 2),
        ] {
            if self.random.below(100) < in_hundred {
                flags |= flag;
            }
        }
        // Nothing waits for the other end of a fifo.
        flags | libc::O_NONBLOCK | libc::O_CLOEXEC
    }

    fn mode(&mut self) -> u32 {
        one_of!(
            self.random,
            0o777,
            0o755,
            0o700,
            0o666,
            0o644,
            0o600,
            0o444,
            0o070,
            0,
            0o4755,
            0o2755,
            0o2777,
            0o1777,
            0o6777,
            0o7777,
        )
    }

    fn at_flags(&mut self) -> i32 {
        let nofollow = libc::AT_SYMLINK_NOFOLLOW;
        one_of!(self.random, 0, 0, nofollow, nofollow, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH | nofollow, 1)
    }

    fn owner(&mut self) -> u32 {
        if self.as_root { one_of!(self.random, 0, 1, 65_534, 4_000_000_000, u32::MAX) } else { u32::MAX }
    }

    fn mknod(&mut self) -> Op {
        let kind = one_of!(self.random, libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFREG, libc::S_IFCHR, libc::S_IFDIR, 0);
        // /dev/null, and a number that does not fit into 16 bits.
        let device = one_of!(self.random, libc::makedev(1, 3), libc::makedev(1, 3), libc::makedev(0x123, 0x4_5678));
        Op::Mknod { at: self.place(), mode: kind | self.mode(), device: if kind == libc::S_IFCHR { device } else { 0 } }
    }

    fn len(&mut self) -> usize {
        let most = one_of!(self.random, 1, 20, 20, 5_000, 5_000, 5_000, 70_000, 300_000);
        self.random.below(most) as usize
    }

    fn offset(&mut self) -> i64 {
        match self.random.below(16) {
            0 => -(1 + self.random.below(1000) as i64),
            1 => 0,
            2 => 4096 * self.random.below(40) as i64,
            _ => self.len() as i64,
        }
    }

    fn maybe_offset(&mut self) -> Option<i64> {
        (self.random.below(2) == 0).then(|| self.offset())
    }

    /// Before 1970, long ago, far from now, now, the old one, and nonsense.
    fn time(&mut self) -> Time {
        one_of!(
            self.random,
            (-2, 500_000_000),
            (-1_500_000_000, 1),
            (0, 0),
            (1_000_000_000, 123_456_789),
            (4_294_967_301, 999_999_999),
            (1, libc::UTIME_NOW),
            (1, libc::UTIME_OMIT),
            (1, 1_000_000_000),
        )
    }
}
