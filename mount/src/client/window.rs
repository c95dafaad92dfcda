//! How much content may be asked for and not have come: what fills the way and hardly more, because what a program waits
//! for comes behind it. On a link of 10 Mbit/s the 32 MiB that a session may have under way would be half a minute.
//!
//! By delay, as LEDBAT does it (RFC 6817): the least time that a chunk has ever taken is the way's own; what one takes
//! longer it has stood in a queue. The window grows while that is short, by a chunk for each that comes, so that it
//! doubles with each round trip; and becomes as much smaller as the queue is too long, once with each round trip. Where a chunk
//! came so quickly that several would come within that time, there is room for these at once. Pure.

use std::time::Duration;
use tokio::time::Instant;

/// How long what comes may have stood in queues.
const QUEUED: Duration = Duration::from_millis(300);
/// Chunks under way at least, so that the way is not empty while one is asked for; and to begin with, since a slow way would
/// need minutes for more.
const LEAST: f64 = 2.0;
/// Chunks that are under way at once where the first one has shown that there is room for them.
const AT_ONCE: f64 = 32.0;
/// What shows that: content of less takes no time even on a slow way, in bytes.
const SHOWS_BYTES: usize = proto::chunk::CHUNK_BYTES / 2;
/// It becomes smaller by no more than this at once.
const SHRINK_MAX: f64 = 0.25;

/// In chunks.
#[derive(Debug)]
pub(super) struct Window {
    room: f64,
    /// The least time that a chunk has taken.
    way: Duration,
    /// When it was made smaller: what had been asked for before has no say in that again.
    shrunk: Option<Instant>,
}

impl Default for Window {
    fn default() -> Window {
        Window { room: LEAST, way: Duration::MAX, shrunk: None }
    }
}

impl Window {
    /// Chunks that may be under way.
    pub fn room(&self) -> usize {
        self.room as usize
    }

    /// What so many chunks take on this way, at most: each as long as the quickest. Nothing, as long as none has come.
    pub fn takes(&self, chunks: usize) -> Duration {
        match self.way {
            Duration::MAX => Duration::ZERO,
            way => way.saturating_mul(chunks as u32),
        }
    }

    /// A chunk of so many bytes has come that was asked for then; `under_way` were, it included, and `most` may be at all.
    pub fn came(&mut self, now: Instant, asked: Instant, bytes: usize, under_way: usize, most: usize) {
        let took = now.duration_since(asked);
        if bytes >= SHOWS_BYTES {
            self.room = self.room.max((QUEUED.as_secs_f64() / took.as_secs_f64()).min(AT_ONCE));
        }
        self.way = self.way.min(took);
        let queued = (took - self.way).as_secs_f64() / QUEUED.as_secs_f64();
        if queued <= 1.0 {
            // What was not filled has shown nothing.
            if under_way + 1 >= self.room() {
                self.room += 1.0 - queued;
            }
        } else if self.shrunk.is_none_or(|shrunk| asked >= shrunk) {
            let fits = (self.way + QUEUED).as_secs_f64() / took.as_secs_f64();
            self.room *= fits.max(SHRINK_MAX);
            self.shrunk = Some(now);
        }
        self.room = self.room.clamp(LEAST, (most as f64).max(LEAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// Downloads over a way that takes so long and lets one chunk pass each `each`. Gives the rooms after each tenth of
    /// `chunks`, the longest time that one of the last tenth took, and how much of the time nothing passed.
    fn download(window: &mut Window, way: Duration, each: Duration, chunks: u32) -> (Vec<usize>, Duration, Duration) {
        let begin = Instant::now();
        let (mut now, mut free, mut idle) = (begin, begin, Duration::ZERO);
        let mut under_way = VecDeque::new();
        let (mut rooms, mut longest) = (Vec::new(), Duration::ZERO);
        for number in 0..chunks {
            while under_way.len() < window.room() {
                let passes = (now + way).max(free);
                idle += passes.duration_since(free);
                free = passes + each;
                under_way.push_back((now, free));
            }
            let (asked, comes) = under_way.pop_front().expect("something is under way");
            now = comes;
            window.came(now, asked, SHOWS_BYTES, under_way.len() + 1, 64);
            if number % (chunks / 10) == 0 {
                rooms.push(window.room());
            }
            if number > chunks / 10 * 9 {
                longest = longest.max(comes - asked);
            }
        }
        (rooms, longest, idle)
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_fast_way_is_filled_at_once() {
        let (rooms, ..) = download(&mut Window::default(), 20 * MS, MS, 1000);
        assert!(rooms[1] == 64, "{rooms:?}");
        // Nor does it take long where the way is long: 400 ms are 40 chunks, to which it comes from 2 within five of them.
        let (rooms, _, idle) = download(&mut Window::default(), 400 * MS, 10 * MS, 1000);
        assert!(rooms[1] >= 40 && idle < 2000 * MS, "{rooms:?} {idle:?}");
    }

    #[test]
    fn a_slow_way_has_a_short_queue_and_is_never_idle() {
        // 10 Mbit/s: a chunk takes 420 ms.
        let (rooms, longest, idle) = download(&mut Window::default(), 20 * MS, 420 * MS, 100);
        assert!(rooms[2..].iter().all(|room| *room <= 3) && longest <= 1400 * MS, "{rooms:?} {longest:?}");
        assert!(idle <= 100 * MS, "{idle:?}");
        // 100 Mbit/s.
        let (_, longest, idle) = download(&mut Window::default(), 20 * MS, 42 * MS, 1000);
        assert!(longest <= 500 * MS && idle <= 100 * MS, "{longest:?} {idle:?}");
    }

    #[test]
    fn a_way_that_becomes_slow_and_fast_again_is_followed() {
        let mut window = Window::default();
        download(&mut window, 20 * MS, MS, 1000);
        let (_, longest, _) = download(&mut window, 20 * MS, 100 * MS, 200);
        assert!(longest <= 800 * MS, "{longest:?}");
        let (rooms, ..) = download(&mut window, 20 * MS, MS, 1000);
        assert!(rooms[2] == 64, "{rooms:?}");
    }

    #[test]
    fn what_is_not_filled_does_not_grow() {
        let (mut window, now) = (Window::default(), Instant::now());
        for _ in 0..100 {
            window.came(now + MS, now, 4096, 0, 64);
        }
        assert_eq!(window.room(), LEAST as usize);
    }
}
