//! A way that takes time: a TCP proxy that hands on what passes only later, in both directions, and no faster than a
//! link of some rate would.
//!
//! What has not been handed on is bounded by what such a link has under way and a router's queue of [`QUEUE`]; whoever
//! sends more is not read from.

use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What a link of a limited rate takes in ahead.
const QUEUE: Duration = Duration::from_millis(50);
/// Read at once, in bytes; and so many pieces may be under way, on a link that has no limit.
const PIECE_BYTES: usize = 64 << 10;
const MAX_PIECES: usize = 1024;

/// How far away something is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    pub round_trip: Duration,
    /// Bytes a second in each direction; `None` has no limit.
    pub rate: Option<f64>,
}

/// A port of this machine behind which a service is far away; gone on drop, but for connections that are open.
pub struct Far {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Far {
    /// Leads to a port of this machine where something will listen by the time that somebody comes.
    pub fn from(target: u16, distance: Distance) -> Result<Far> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listen for who comes from afar")?;
        let port = listener.local_addr()?.port();
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        thread::Builder::new().name("far".into()).spawn(move || {
            while let Ok((near, _)) = listener.accept()
                && !is_over.load(Ordering::Relaxed)
            {
                // Who comes too early sees it closed, as without a proxy.
                let Ok(there) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                if let Err(error) = join(near, there, distance) {
                    eprintln!("a connection from afar is lost: {error}");
                }
            }
        })?;
        Ok(Far { port, over })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // So that it looks.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn join(here: TcpStream, there: TcpStream, distance: Distance) -> std::io::Result<()> {
    for stream in [&here, &there] {
        stream.set_nodelay(true)?;
    }
    carry(here.try_clone()?, there.try_clone()?, distance)?;
    carry(there, here, distance)
}

/// Carries what comes from one to the other until it ends.
fn carry(mut from: TcpStream, mut to: TcpStream, Distance { round_trip, rate }: Distance) -> std::io::Result<()> {
    let (pieces, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(MAX_PIECES);
    thread::Builder::new().name("far-read".into()).spawn(move || {
        let mut buffer = vec![0; PIECE_BYTES];
        let mut free_at = Instant::now();
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let now = Instant::now();
            let takes = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(len as f64 / rate));
            free_at = free_at.max(now) + takes;
            if pieces.send((free_at + round_trip / 2, buffer[..len].to_vec())).is_err() {
                break;
            }
            thread::sleep(free_at.saturating_duration_since(now).saturating_sub(QUEUE));
        }
    })?;
    thread::Builder::new().name("far-write".into()).spawn(move || {
        for (at, piece) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // Both see the end, and the reader too.
        let _ = to.shutdown(Shutdown::Both);
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_comes_later_and_whole() {
        let service = TcpListener::bind(("127.0.0.1", 0)).expect("listens");
        let round_trip = Duration::from_millis(40);
        let distance = Distance { round_trip, rate: Some(10e6) };
        let far = Far::from(service.local_addr().expect("has one").port(), distance).expect("starts");
        let echo = thread::spawn(move || {
            let (mut stream, _) = service.accept().expect("somebody comes");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).expect("reads");
            all
        });
        let mut stream = TcpStream::connect(("127.0.0.1", far.port())).expect("is let in");
        let sent: Vec<u8> = (0..2_000_000u32).map(|number| number as u8).collect();
        let begun = Instant::now();
        stream.write_all(&sent).expect("sends");
        stream.shutdown(Shutdown::Write).expect("ends");
        assert!(echo.join().expect("ends") == sent);
        // 200 ms at that rate, and the way.
        assert!(begun.elapsed() >= Duration::from_millis(200) + round_trip / 2, "{:?}", begun.elapsed());
    }
}
