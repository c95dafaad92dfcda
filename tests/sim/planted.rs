//! The checks are checked: each of these bugs, planted into the real code, is found.
//! The table of `tests/README.md` is made by `cargo sim --plant`.

use crate::side_by_side;
use harness::sim::{Plan, run_with};
use proto::planted::Bug;
use std::sync::Mutex;

/// Seeds within which a bug must be found, from the one where it was found last.
const BOUND: u64 = 300;

/// A seed that finds each bug. Where the draws have changed since, the search goes on from seed 0.
const FOUND_BY: &[(Bug, u64)] = &[
    (Bug::SkipDedup, 44),
    (Bug::AnswerBeforeConfirmed, 48),
    (Bug::ForgetInodeInvalidation, 132),
    (Bug::ForgetContentInvalidation, 14),
    (Bug::TellOneHolder, 2),
    (Bug::LeaseTooShort, 90),
    (Bug::RenameKeepsName, 4),
    (Bug::LinkDoesNotCount, 8),
    (Bug::WriteKeepsExtents, 7),
    (Bug::FreeOpenFile, 19),
    (Bug::AppendAtZero, 11),
    (Bug::CheckpointOffByOne, 6),
    (Bug::ReplayOneTwice, 0),
    (Bug::CheckpointKeepsDeleted, 4),
    (Bug::CheckpointLosesRow, 1),
    (Bug::FrozenUnseen, 36),
    (Bug::ThawReadsOld, 1),
    (Bug::IngestOffByOne, 58),
    (Bug::TrimIgnoresSlowest, 2),
    (Bug::TrimUningested, 103),
    (Bug::NeverTakesOver, 28),
    (Bug::NeverYields, 23),
    (Bug::DeregisterByClock, 151),
    (Bug::VersionTooEarly, 24),
    (Bug::VersionInOnePartition, 10),
    (Bug::SnapshotLosesRow, 3),
    (Bug::SnapshotOffByOne, 3),
    (Bug::ResendRenumbered, 1),
    (Bug::IgnorePush, 2),
    (Bug::GrantFromOldAnswer, 14),
];

#[test]
fn every_planted_bug_is_found() {
    let missed = Mutex::new(Vec::new());
    side_by_side(FOUND_BY.len() as u64, |number| {
        let (bug, seed) = FOUND_BY[number as usize];
        let is_found = |seed| run_with(&Plan::draw(seed), false, Some(bug)).violation.is_some();
        if !is_found(seed) && !(0..BOUND).any(is_found) {
            missed.lock().expect("nobody panics here").push(bug);
        }
    });
    let missed = missed.into_inner().expect("nobody panics here");
    assert!(missed.is_empty(), "not found within {BOUND} seeds: {missed:?}");
}
