//! Clients that mostly work in a directory of their own, as people do in their homes: so delegations last. Now and
//! then they go to another one's.

use super::{DIRS, Step};
use crate::sim::rng::Rng;

/// In permille: how many runs are like that, and how often a step goes elsewhere all the same.
const RUNS: u32 = 400;
const VISITS: u32 = 60;

/// Lets each client's steps stand in its own directory, in some of the runs.
pub fn apart(seed: u64, clients: &mut [Vec<Vec<Step>>]) {
    let mut rng = Rng::new(seed, "apart");
    if !rng.chance(RUNS) {
        return;
    }
    for (number, workers) in clients.iter_mut().enumerate() {
        let own = number as u8 % DIRS;
        for step in workers.iter_mut().flatten() {
            let is_visit = rng.chance(VISITS);
            for dir in dirs(step) {
                *dir = if is_visit { *dir } else { own };
            }
        }
    }
}

/// The directories that a step names.
fn dirs(step: &mut Step) -> Vec<&mut u8> {
    match step {
        Step::Create((dir, _))
        | Step::CreateIn((dir, _), _)
        | Step::UnlinkIn((dir, _), _)
        | Step::Mkdir((dir, _))
        | Step::Symlink((dir, _))
        | Step::Unlink((dir, _))
        | Step::Rmdir((dir, _))
        | Step::Chmod((dir, _), _)
        | Step::Truncate((dir, _), _)
        | Step::Fallocate((dir, _), ..)
        | Step::Write((dir, _), _)
        | Step::WriteSynced((dir, _), _)
        | Step::Append((dir, _), _)
        | Step::WriteSome((dir, _), _)
        | Step::Unlinked((dir, _), _)
        | Step::Lookup((dir, _))
        | Step::Stat((dir, _))
        | Step::Read((dir, _))
        | Step::Watch { at: (dir, _), .. }
        | Step::List(dir)
        | Step::StatDir(dir) => vec![dir],
        Step::Rename((from, _), (to, _), _)
        | Step::Link((from, _), (to, _))
        | Step::Clone((from, _), _, (to, _), _) => vec![from, to],
        // All count in one place.
        Step::Count(_) | Step::SleepMs(_) => Vec::new(),
    }
}
