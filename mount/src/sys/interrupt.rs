//! Ends the wait of a program that is being interrupted.
//!
//! * fuser answers FUSE_INTERRUPT with ENOSYS, so a waiting program would not even die of SIGKILL.
//!   Instead, an operation that has waited [`PATIENCE`] looks at its caller's
//!   `/proc/<tid>/status`, again and again, until it is done or its wait must end with EINTR.
//! * Which signal ends what is in [`Kind`]. EINTR reaches the program even if it asked for
//!   SA_RESTART, which no local filesystem does to it; so timers and the like end no operation.
//!   Locks are the exception: there the kernel honours SA_RESTART.
//! * One thread looks for all waiting operations. At most [`WATCHED_MAX`] are watched and
//!   [`LOOKS_PER_ROUND`] threads looked at per round; what does not fit is only bounded by its
//!   timeout.
//! * A caller outside our pid namespace has tid 0: it cannot be watched, its timeout bounds it.
//!
//! This module can go when fuser passes FUSE_INTERRUPT on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// How long an operation waits before its caller is looked at.
pub const PATIENCE: Duration = Duration::from_millis(50);
/// Operations watched at once, at most.
pub const WATCHED_MAX: usize = 65_536;
/// Threads looked at in one round, at most: about 3 ms of work.
pub const LOOKS_PER_ROUND: usize = 128;

const ROUND: Duration = Duration::from_millis(25);

/// What waits; decides which signals end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ended by what kills the caller, and by SIGINT, SIGTERM, SIGHUP and SIGQUIT unless the caller
    /// blocks or ignores them.
    Ordinary,
    /// A read into the page cache, or a page fault: ended only by what kills the caller, or when
    /// the caller has gone without its answer.
    BufferedRead,
    /// Ended by every signal that the caller catches: the kernel turns EINTR into a restart of the
    /// call if the caller asked for SA_RESTART, just as for a local lock, and `flock -w` and alarm()
    /// lean on being interrupted.
    BlockingLock,
    /// close(): ended when the caller is killed or exits, since it then waits for no answer.
    Flush,
    /// What close() waits for even then: ended when the caller is killed, also when that is why it exits.
    Parting,
}

impl Kind {
    /// How long a wait of this kind lasts before its caller is looked at. Who is killed closes all that it
    /// has open, one after the other.
    fn patience(self) -> Duration {
        match self {
            Self::Ordinary | Self::BufferedRead | Self::BlockingLock => PATIENCE,
            Self::Flush | Self::Parting => PATIENCE / 4,
        }
    }
}

/// Why the wait must end. Every one of them is EINTR to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The caller is being killed, is exiting, or has gone.
    Ending,
    /// This signal waits for the caller.
    Signal(u8),
}

/// The watcher; clones share one thread, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Watcher {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    next: u64,
    /// By thread and number, so that one look serves all operations of a thread.
    waits: BTreeMap<(u32, u64), Wait>,
}

#[derive(Debug)]
struct Wait {
    kind: Kind,
    /// A signal for the whole process that was seen once: another thread may still take it.
    seen: Option<u8>,
    end: oneshot::Sender<Why>,
}

impl Watcher {
    /// Starts the watcher's thread.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        std::thread::Builder::new().name("kfs-interrupt".to_owned()).spawn(move || for_thread.run())?;
        Ok(Self { handle: Arc::new(Handle { shared }) })
    }

    /// Resolves when the operation of kind `kind` by thread `tid` must end with EINTR; never
    /// otherwise. Made for `tokio::select!` beside the operation itself; costs nothing but a timer
    /// during the first [`Kind::patience`]. Dropping it ends the watch.
    pub async fn interrupted(&self, tid: u32, kind: Kind) -> Why {
        if tid == 0 {
            return std::future::pending().await;
        }
        tokio::time::sleep(kind.patience()).await;
        let (end, ended) = oneshot::channel();
        let shared = &self.handle.shared;
        let Some(number) = shared.add(tid, Wait { kind, seen: None, end }) else {
            return std::future::pending().await;
        };
        let _remove = Remove { shared, key: (tid, number) };
        match ended.await {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// How many operations are being watched.
    pub fn watched(&self) -> usize {
        self.handle.shared.lock().waits.len()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
    }
}

struct Remove<'a> {
    shared: &'a Shared,
    key: (u32, u64),
}

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        self.shared.lock().waits.remove(&self.key);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it, and the map is whole at any point.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, tid: u32, wait: Wait) -> Option<u64> {
        let mut state = self.lock();
        if state.waits.len() >= WATCHED_MAX {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let first = state.waits.is_empty();
        state.waits.insert((tid, number), wait);
        drop(state);
        if first {
            self.changed.notify_all();
        }
        Some(number)
    }

    fn run(&self) {
        let mut after = 0;
        loop {
            let mut state = self.lock();
            while state.waits.is_empty() && !state.stopped {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stopped {
                return;
            }
            let tids = state.tids_after(after);
            drop(state);
            after = tids.last().copied().unwrap_or(0);
            for tid in tids {
                // Not under the lock: this is a system call or five.
                let caller = Caller::look(tid);
                self.lock().judge(tid, &caller);
            }
            std::thread::sleep(ROUND);
        }
    }
}

impl State {
    /// The next threads to look at, going round.
    fn tids_after(&self, after: u32) -> Vec<u32> {
        let ahead = self.waits.range((after.saturating_add(1), 0)..).map(|(key, _)| key.0);
        let around = self.waits.range(..=(after, u64::MAX)).map(|(key, _)| key.0);
        let mut tids: Vec<u32> = Vec::new();
        for tid in ahead.chain(around) {
            if tids.len() == LOOKS_PER_ROUND {
                break;
            }
            if tids.last() != Some(&tid) {
                tids.push(tid);
            }
        }
        tids
    }

    fn judge(&mut self, tid: u32, caller: &Caller) {
        let keys: Vec<_> = self.waits.range((tid, 0)..=(tid, u64::MAX)).map(|(key, _)| *key).collect();
        for key in keys {
            let Entry::Occupied(mut wait) = self.waits.entry(key) else { continue };
            let why = match caller.verdict(wait.get().kind) {
                Verdict::Wait => {
                    wait.get_mut().seen = None;
                    continue;
                }
                // A signal for the process is taken within microseconds if a thread is free for
                // it; if it is still there in the next round, it waits for this one.
                Verdict::IfStill(signal) if wait.get().seen != Some(signal) => {
                    wait.get_mut().seen = Some(signal);
                    continue;
                }
                Verdict::IfStill(signal) => Why::Signal(signal),
                Verdict::End(why) => why,
            };
            // The waiter may have ended by itself just now.
            let _ = wait.remove().end.send(why);
        }
    }
}

/// What `/proc/<tid>` says of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// No such thread (any more).
    Gone,
    /// Not to be read; only the timeout helps.
    Unknown,
    Alive(Signals),
}

/// Bit n-1 of each set is signal n.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Signals {
    pending_thread: u64,
    pending_process: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
    exiting: bool,
    /// It exits because of a signal.
    killed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Wait,
    IfStill(u8),
    End(Why),
}

const fn set(signals: &[i32]) -> u64 {
    let (mut bits, mut i) = (0, 0);
    while i < signals.len() {
        bits |= 1 << (signals[i] - 1);
        i += 1;
    }
    bits
}

const KILL: u64 = set(&[libc::SIGKILL]);
const ASKS_TO_END: u64 = set(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT]);
/// Uncaught, these dump core; the kernel does not turn them into a pending SIGKILL.
const DUMPS_CORE: u64 = set(&[
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
]);

impl Caller {
    fn look(tid: u32) -> Self {
        let status = match std::fs::read(format!("/proc/{tid}/status")) {
            Ok(status) => status,
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
                return Self::Gone;
            }
            Err(_) => return Self::Unknown,
        };
        let stat = std::fs::read(format!("/proc/{tid}/stat")).unwrap_or_default();
        Self::parse(&status, &stat)
    }

    fn parse(status: &[u8], stat: &[u8]) -> Self {
        let status = String::from_utf8_lossy(status);
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let bits = |name: &str| u64::from_str_radix(field(name)?.trim(), 16).ok();
        let signals = || {
            Some(Signals {
                pending_thread: bits("SigPnd")?,
                pending_process: bits("ShdPnd")?,
                blocked: bits("SigBlk")?,
                ignored: bits("SigIgn")?,
                caught: bits("SigCgt")?,
                killed: is_exiting(stat) && is_killed(stat),
                exiting: is_exiting(stat) || field("State").is_some_and(|s| s.trim_start().starts_with(['Z', 'X'])),
            })
        };
        signals().map_or(Self::Unknown, Self::Alive)
    }

    fn verdict(&self, kind: Kind) -> Verdict {
        let signals = match self {
            // A buffered read too: its page stays locked until it is answered, and the next open of
            // the file waits for that, unkillably. Others who want the page ask again.
            Self::Gone => return Verdict::End(Why::Ending),
            Self::Unknown => return Verdict::Wait,
            Self::Alive(signals) => signals,
        };
        let is_going = match kind {
            Kind::Ordinary | Kind::BufferedRead | Kind::BlockingLock => false,
            Kind::Flush => signals.exiting,
            Kind::Parting => signals.killed,
        };
        if is_going || (signals.pending_thread | signals.pending_process) & KILL != 0 {
            return Verdict::End(Why::Ending);
        }
        let open = !signals.blocked & !signals.ignored;
        let fatal = DUMPS_CORE & !signals.caught;
        let ends = match kind {
            Kind::BufferedRead => 0,
            Kind::Flush | Kind::Parting => open & fatal,
            Kind::Ordinary => open & (ASKS_TO_END | fatal),
            Kind::BlockingLock => open & (ASKS_TO_END | fatal | signals.caught),
        };
        if signals.pending_thread & ends != 0 {
            return Verdict::End(Why::Signal(lowest(signals.pending_thread & ends)));
        }
        match signals.pending_process & ends {
            0 => Verdict::Wait,
            pending => Verdict::IfStill(lowest(pending)),
        }
    }
}

fn lowest(signals: u64) -> u8 {
    signals.trailing_zeros() as u8 + 1
}

/// PF_EXITING in the flags of `/proc/<tid>/stat`, the seventh field after the name.
fn is_exiting(stat: &[u8]) -> bool {
    const PF_EXITING: u64 = 0x4;
    stat_field(stat, 6).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Whether the exit code, the fiftieth field after the name, names a signal. It is 0 for whoever may not see it.
fn is_killed(stat: &[u8]) -> bool {
    const SIGNAL: u64 = 0x7f;
    stat_field(stat, 49).is_some_and(|code| code & SIGNAL != 0)
}

/// A number of `/proc/<tid>/stat`, counted from 0 behind the name, which may have anything in it.
fn stat_field(stat: &[u8], index: usize) -> Option<u64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    String::from_utf8_lossy(&stat[name_end + 1..]).split_ascii_whitespace().nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(change: impl FnOnce(&mut Signals)) -> Caller {
        let mut signals = Signals::default();
        change(&mut signals);
        Caller::Alive(signals)
    }

    const ALL: [Kind; 5] = [Kind::Ordinary, Kind::BufferedRead, Kind::BlockingLock, Kind::Flush, Kind::Parting];

    #[test]
    fn sigkill_ends_everything_at_once() {
        for kind in ALL {
            assert_eq!(caller(|s| s.pending_thread = KILL).verdict(kind), Verdict::End(Why::Ending));
            assert_eq!(caller(|s| s.pending_process = KILL).verdict(kind), Verdict::End(Why::Ending));
        }
    }

    #[test]
    fn a_caught_sigint_ends_ordinary_waits_and_locks_alone() {
        let int = set(&[libc::SIGINT]);
        let pending = caller(|s| (s.pending_thread, s.caught) = (int, int));
        let end = Verdict::End(Why::Signal(2));
        assert_eq!(ALL.map(|kind| pending.verdict(kind) == end), [true, false, true, false, false]);
        let blocked = caller(|s| (s.pending_thread, s.caught, s.blocked) = (int, int, int));
        assert!(ALL.iter().all(|kind| blocked.verdict(*kind) == Verdict::Wait));
    }

    #[test]
    fn other_caught_signals_end_locks_alone() {
        for signal in [libc::SIGUSR1, libc::SIGALRM, libc::SIGCHLD, libc::SIGURG, libc::SIGPROF, libc::SIGWINCH] {
            let pending = caller(|s| (s.pending_thread, s.caught) = (set(&[signal]), set(&[signal])));
            assert_eq!(ALL.map(|kind| pending.verdict(kind) != Verdict::Wait), [false, false, true, false, false]);
        }
        let uncaught = caller(|s| s.pending_thread = set(&[libc::SIGTSTP]));
        assert!(ALL.iter().all(|kind| uncaught.verdict(*kind) == Verdict::Wait));
    }

    #[test]
    fn a_signal_for_the_process_must_stay_for_two_looks() {
        let (end, mut ended) = oneshot::channel();
        let mut state = State::default();
        state.waits.insert((7, 0), Wait { kind: Kind::Ordinary, seen: None, end });
        let pending = caller(|s| s.pending_process = set(&[libc::SIGTERM]));
        state.judge(7, &pending);
        state.judge(7, &caller(|_| {}));
        state.judge(7, &pending);
        assert!(ended.try_recv().is_err(), "it had gone in between");
        state.judge(7, &pending);
        assert_eq!(ended.try_recv(), Ok(Why::Signal(15)));
        assert!(state.waits.is_empty());
    }

    /// The kernel turns these into no SIGKILL, since a core is to be written first.
    #[test]
    fn an_uncaught_sigquit_ends_all_but_buffered_reads() {
        let quit = set(&[libc::SIGQUIT]);
        let pending = caller(|s| s.pending_thread = quit);
        assert_eq!(ALL.map(|kind| pending.verdict(kind) != Verdict::Wait), [true, false, true, true, true]);
        let caught = caller(|s| (s.pending_thread, s.caught) = (quit, quit));
        assert_eq!(ALL.map(|kind| caught.verdict(kind) != Verdict::Wait), [true, false, true, false, false]);
    }

    #[test]
    fn flush_ends_when_its_caller_exits_or_has_gone_and_parting_when_it_was_killed() {
        let exiting = caller(|s| s.exiting = true);
        assert_eq!(ALL.map(|kind| exiting.verdict(kind) != Verdict::Wait), [false, false, false, true, false]);
        let killed = caller(|s| (s.exiting, s.killed) = (true, true));
        assert_eq!(ALL.map(|kind| killed.verdict(kind) != Verdict::Wait), [false, false, false, true, true]);
        assert_eq!(ALL.map(|kind| Caller::Gone.verdict(kind) != Verdict::Wait), [true; 5]);
        assert!(ALL.iter().all(|kind| Caller::Unknown.verdict(*kind) == Verdict::Wait));
    }

    #[test]
    fn proc_files_parse() {
        let status = b"Name:\tx\nState:\tS (sleeping)\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000002\n\
            SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\nSigCgt:\t0000000180014a07\n";
        let stat = b"12 (a ) b) D 1 2 3 4 5 4194308 0 0";
        let Caller::Alive(signals) = Caller::parse(status, stat) else { panic!("parses") };
        assert_eq!((signals.pending_thread, signals.pending_process, signals.caught), (0x100, 2, 0x1_8001_4a07));
        assert!(signals.exiting && !signals.killed);
        let code = |code: u32| format!("12 (a ) b) D 1 2 3 4 5 4194308 {}{code}", "0 ".repeat(42));
        let is_killed = |stat: String| matches!(Caller::parse(status, stat.as_bytes()), Caller::Alive(s) if s.killed);
        assert!(is_killed(code(9)) && is_killed(code(131)) && !is_killed(code(0)) && !is_killed(code(4 << 8)));
        assert_eq!(Caller::parse(b"State:\tS\n", b""), Caller::Unknown);
        assert!(matches!(Caller::look(std::process::id()), Caller::Alive(s) if !s.exiting));
        assert_eq!(Caller::look(u32::MAX), Caller::Gone);
    }

    #[test]
    fn rounds_visit_every_thread() {
        let mut state = State::default();
        for tid in 1..=300u32 {
            for number in 0..2 {
                let wait = Wait { kind: Kind::Ordinary, seen: None, end: oneshot::channel().0 };
                state.waits.insert((tid, u64::from(tid) * 2 + number), wait);
            }
        }
        let (mut after, mut seen) = (0, std::collections::BTreeSet::new());
        for _ in 0..3 {
            let tids = state.tids_after(after);
            assert_eq!(tids.len(), LOOKS_PER_ROUND);
            after = *tids.last().expect("not empty");
            seen.extend(tids);
        }
        assert_eq!(seen.len(), 300);
    }

    #[tokio::test]
    async fn a_watch_ends_with_its_future() {
        let watcher = Watcher::start().expect("started");
        let me = std::process::id();
        let watch = watcher.interrupted(me, Kind::Ordinary);
        assert!(tokio::time::timeout(PATIENCE * 4, watch).await.is_err(), "nobody interrupts this test");
        assert_eq!(watcher.watched(), 0);
        assert_eq!(watcher.interrupted(u32::MAX, Kind::Ordinary).await, Why::Ending);
        let never = watcher.interrupted(0, Kind::Ordinary);
        assert!(tokio::time::timeout(PATIENCE * 2, never).await.is_err());
    }
}
