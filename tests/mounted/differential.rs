//! Random operations, legal and illegal, played on a mount and in a local directory: results, errnos, contents and
//! attributes must be the same, but for the differences in [`allowed`].
//!
//! `KFS_TEST_SEED=N` plays one seed alone, `KFS_TEST_SEEDS` and `KFS_TEST_OPERATIONS` say how many of how many operations.
//! What differs is shown with the shortest sequence that was found to show it.

mod allowed;
mod op;
mod world;

use crate::{number, shared};
use harness::Scratch;
use harness::cluster::is_root;
use op::Op;
use std::path::Path;
use std::time::Duration;
use world::{Picture, World, become_user};

/// Operations between two looks at everything there is.
const LOOK: usize = 5;
/// Looks between two at which content is read too.
const CONTENT: usize = 6;
/// Longer than a tick of the clock that a local filesystem takes its times from.
const TICK: Duration = Duration::from_millis(5);
/// Shorter sequences that are tried to find a short one.
const TRIALS: usize = 200;

#[test]
fn random_operations_do_what_they_do_on_a_local_disk() {
    let len = number("KFS_TEST_OPERATIONS").unwrap_or(500) as usize;
    let (from, seeds) = match number("KFS_TEST_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("KFS_TEST_SEEDS").unwrap_or(6)),
    };
    let scratch = Scratch::new("differential");
    let user = "differential";
    shared().user_add(user).unwrap();
    // Others act too, and devices are devices where they are on the local disk.
    let nodev = rustix::fs::statvfs(scratch.path()).unwrap().f_flag.contains(rustix::fs::StatVfsMountFlags::NODEV);
    let options = match (is_root(), nodev) {
        (false, _) => "",
        (true, true) => "allow_other,suid",
        (true, false) => "allow_other,suid,dev",
    };
    let (mount, cold) = (shared().mount_with(user, options).unwrap(), shared().mount_with(user, options).unwrap());
    // User, umask and what they are kept in are a thread's own from here on.
    let player = || {
        // SAFETY: a plain system call; this thread shares nothing of it with another afterwards.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FS) }, 0);
        for seed in from..from + seeds {
            let ops = op::sequence(seed, len, is_root());
            let mut attempt = 0;
            let mut play = |ops: &[Op]| {
                attempt += 1;
                let name = format!("{seed}-{attempt}");
                play(ops, &scratch.join(&name), &mount.join(&name), &cold.join(&name))
            };
            if let Err(difference) = play(&ops) {
                let ops = shorten(ops[..difference.played].to_vec(), |ops| play(ops).is_err());
                let last = play(&ops).err().map_or_else(|| "nothing, this time".to_owned(), |d| d.text);
                let shown: Vec<String> = ops.iter().map(|op| format!("    {op:?}")).collect();
                panic!(
                    "seed {seed} (KFS_TEST_SEED={seed} plays it alone): {}\n\nin short:\n{}\n{last}",
                    difference.text,
                    shown.join("\n")
                );
            }
        }
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(player).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Where two worlds came apart.
struct Difference {
    /// Operations played until then.
    played: usize,
    text: String,
}

/// Plays a sequence in two new directories, and looks at one of them from another mount at the end.
fn play(ops: &[Op], local: &Path, mounted: &Path, cold: &Path) -> Result<(), Difference> {
    set_user_and_mask(0, 0o022);
    for directory in [local, mounted] {
        std::fs::create_dir(directory).expect("the name is new");
    }
    let mut worlds = [World::new(local), World::new(mounted)];
    let mut acts = (0, 0o022);
    let mut before: Option<[Picture; 2]> = None;
    for (step, op) in ops.iter().enumerate() {
        let differ = |what: String| Difference { played: step + 1, text: format!("step {step}, {op:?}: {what}") };
        match op {
            Op::Become { user } => acts.0 = *user,
            Op::Umask { mask } => acts.1 = *mask,
            _ => {}
        }
        set_user_and_mask(acts.0, acts.1);
        let [expected, found] = worlds.each_mut().map(|world| world.play(op));
        if expected != found && !allowed::allowed(op, &expected, &found) {
            return Err(differ(format!("{expected:?} on the local disk, {found:?} on the mount")));
        }
        if matches!(op, Op::Unlink { .. } | Op::Rename { .. }) {
            for slot in worlds[0].kept_by_disks_alone() {
                worlds.iter_mut().for_each(|world| world.close(slot));
            }
        }
        if step % LOOK == LOOK - 1 || step == ops.len() - 1 {
            set_user_and_mask(0, 0);
            let with_content = step % (LOOK * CONTENT) == LOOK * CONTENT - 1;
            let now = worlds.each_ref().map(|world| world.picture(with_content));
            same(&now[0], &now[1]).map_err(&differ)?;
            if let Some(before) = &before {
                same_moves(before, &now).map_err(differ)?;
            }
            before = Some(now);
            std::thread::sleep(TICK);
        }
    }
    set_user_and_mask(0, 0);
    let differ = |what: String| Difference { played: ops.len(), text: format!("at the end: {what}") };
    let [expected, found] = worlds.each_ref().map(|world| world.picture(true));
    same(&expected, &found).map_err(differ)?;
    // Without what was open, which closes it.
    drop(worlds);
    let [expected, found] = [local, cold].map(|path| World::new(path).picture(true));
    same(&expected, &found).map_err(|what| differ(format!("on another mount: {what}")))
}

fn set_user_and_mask(user: usize, mask: u32) {
    if is_root() || user != 0 {
        become_user(user);
    }
    // SAFETY: a plain system call; the mask is this thread's own.
    unsafe { libc::umask(mask) };
}

fn same(expected: &Picture, found: &Picture) -> Result<(), String> {
    for (name, node) in &expected.nodes {
        match found.nodes.get(name) {
            None => return Err(format!("{name:?} is missing on the mount")),
            Some(other) if other != node => {
                return Err(format!("{name:?} is\n{node:?} on the local disk,\n{other:?} on the mount"));
            }
            Some(_) => {}
        }
    }
    match found.nodes.keys().find(|name| !expected.nodes.contains_key(*name)) {
        Some(name) => Err(format!("{name:?} is on the mount only")),
        None => Ok(()),
    }
}

/// Modification and change times must have moved on either side or on neither.
fn same_moves(before: &[Picture; 2], now: &[Picture; 2]) -> Result<(), String> {
    let [expected, found] = [0, 1].map(|i| now[i].moved_since(&before[i]));
    for (name, moves) in &expected {
        // An inode that only seems to be the same: local filesystems give numbers out again.
        let Some(others) = found.get(name) else { continue };
        if others != moves {
            return Err(format!(
                "{name:?}: mtime and ctime moved: {moves:?} on the local disk, {others:?} on the mount"
            ));
        }
    }
    Ok(())
}

/// Leaves out whatever can be left out, in ever smaller parts.
fn shorten(mut ops: Vec<Op>, mut fails: impl FnMut(&[Op]) -> bool) -> Vec<Op> {
    let (mut part, mut trials) = (ops.len().div_ceil(2), 0);
    while part > 0 {
        let mut at = 0;
        while at < ops.len() && trials < TRIALS {
            trials += 1;
            let mut fewer = ops.clone();
            fewer.drain(at..(at + part).min(ops.len()));
            if fails(&fewer) {
                ops = fewer;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    ops
}
