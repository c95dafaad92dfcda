//! Clients that mostly work in a directory of their own, as people do in their homes: so delegations last. Now and
//! then they go to another one's. What they do there comes in bursts: trees are unpacked and removed, files are saved.

use super::{Content, DIRS, How, NAMES, Step};
use crate::sim::rng::Rng;

/// In permille: how many runs are like that, how often a step goes elsewhere all the same, and how often one is
/// preceded by a burst.
const RUNS: u32 = 400;
const VISITS: u32 = 60;
const BURSTS: u32 = 400;

/// Whether a seed's clients keep apart.
pub fn draw(seed: u64) -> Option<Rng> {
    let mut rng = Rng::new(seed, "apart");
    rng.chance(RUNS).then_some(rng)
}

/// Lets each client's steps stand in its own directory. With one client more than directories, two share one.
pub fn apart(rng: &mut Rng, clients: &mut [Vec<Vec<Step>>]) {
    for (number, workers) in clients.iter_mut().enumerate() {
        let own = 1 + number as u8 % (DIRS - 1);
        for worker in workers {
            let mut steps = Vec::new();
            for mut step in worker.drain(..) {
                let is_visit = rng.chance(VISITS);
                for dir in dirs(&mut step) {
                    *dir = if is_visit { *dir } else { own };
                }
                if rng.chance(BURSTS) {
                    steps.extend(burst(rng, own));
                }
                steps.push(step);
            }
            *worker = steps;
        }
    }
}

/// What one program does at once.
fn burst(rng: &mut Rng, dir: u8) -> Vec<Step> {
    let at = (dir, rng.below(u64::from(NAMES)) as u8);
    let content = Content { offset: 0, len: rng.range(1, 3000) as u32, fill: rng.next() as u32 };
    match rng.below(4) {
        // A file is unpacked.
        0 => vec![Step::Create(at), Step::Write(at, content), Step::chmod_or_mark(rng, at)],
        // A directory is.
        1 => {
            let mut steps = vec![Step::Mkdir(at)];
            steps.extend((0..rng.below(4) as u8).map(|number| Step::CreateIn(at, number)));
            steps
        }
        // One is removed, as far as it has been looked at.
        2 => {
            let mut steps: Vec<Step> = (0..4).map(|number| Step::UnlinkIn(at, number)).collect();
            steps.push(Step::Rmdir(at));
            steps
        }
        // A file is saved.
        _ => {
            let new = (dir, NAMES);
            let save = if rng.chance(600) { Step::WriteSynced(new, content) } else { Step::Write(new, content) };
            vec![Step::Create(new), save, Step::Rename(new, at, How::Replace)]
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
        | Step::Mark((dir, _), _)
        | Step::Marked((dir, _))
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
