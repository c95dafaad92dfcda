//! Writing past the kernel's pages.
//!
//! A write to a page that is not there in full takes a message for each page's part that it touches, and a file that has
//! just been made is filled with such writes by whoever does not write whole pages (tar). What is only written to need
//! have no pages: then one write is one message.
//!
//! * Only a file that is being made, by one that only writes to it: nobody has pages of it, and nobody can map it
//!   through this handle.
//! * Only where many files are made one after the other. They are small, then, and the pages of what is
//!   large are worth having when it is read back.
//! * All handles on an inode have pages or none has: whoever opens such a file while it is being written reads past the pages too.
//!   What is mapped meanwhile is dropped behind each write.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// So many files made within so long are many.
const MANY: usize = 16;
const WITHIN: Duration = Duration::from_secs(1);

/// When the last files were made.
#[derive(Default)]
pub(super) struct Making(Mutex<VecDeque<Instant>>);

impl Making {
    /// A file is made. Whether many have been just now.
    pub fn makes(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = if last.len() == MANY { last.pop_front() } else { None };
        last.push_back(now);
        first.is_some_and(|first| now.duration_since(first) <= WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_files_are_many_within_a_second() {
        let (making, begin) = (Making::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert!((0..16).all(|number| !making.makes(at(number * 10))));
        assert!(making.makes(at(160)) && making.makes(at(1010)));
        assert!(!making.makes(at(1100)), "the sixteenth before was made too long ago");
    }
}
