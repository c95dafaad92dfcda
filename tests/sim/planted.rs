//! The checks are checked: each of these bugs, planted into the real code, is found.
//! The table of `tests/README.md` is made by `cargo sim --plant`.

use crate::side_by_side;
use harness::sim::{Plan, run_with};
use proto::planted::Bug;
use std::sync::Mutex;

/// Seeds within which a bug must be found, from the one where it was found last.
const BOUND: u64 = 1000;

/// A seed that finds each bug. Where the draws have changed since, the search goes on from seed 0.
const FOUND_BY: &[(Bug, u64)] = &[
    (Bug::SkipDedup, 0),
    (Bug::ApplyAcrossGap, 45),
    (Bug::AnswerBeforeConfirmed, 94),
    (Bug::ViewBeforeConfirmed, 268),
    (Bug::ForgetInodeInvalidation, 66),
    (Bug::ForgetContentInvalidation, 10),
    (Bug::TellOneHolder, 49),
    (Bug::LeaseTooShort, 6),
    (Bug::RestoreForgetsHolders, 10),
    (Bug::TickByBrokerClock, 20),
    (Bug::ReplacedAppliedNothing, 11),
    (Bug::ReplacedGoesOn, 93),
    (Bug::RenameKeepsName, 5),
    (Bug::LinkDoesNotCount, 24),
    (Bug::RemoveFullDirectory, 1),
    (Bug::TruncateKeepsContent, 10),
    (Bug::WriteKeepsExtents, 10),
    (Bug::CutLosesTail, 10),
    (Bug::CutPartNotCounted, 10),
    (Bug::UnlinkDoesNotCount, 2),
    (Bug::FreeOpenFile, 34),
    (Bug::AppendAtZero, 10),
    (Bug::WriteBeyondQuota, 240),
    (Bug::CreateBeyondQuota, 227),
    (Bug::ReserveNotSpent, 74),
    (Bug::ReserveOutlivesSession, 41),
    (Bug::SharedBesideExclusive, 8),
    (Bug::LockOutlivesSession, 48),
    (Bug::UnlockWakesNobody, 8),
    (Bug::CancelForgotten, 8),
    (Bug::CheckpointOffByOne, 2),
    (Bug::ReplayOneTwice, 0),
    (Bug::LostLogUnsaved, 11),
    (Bug::CheckpointKeepsDeleted, 2),
    (Bug::CheckpointLosesRow, 2),
    (Bug::FrozenUnseen, 2),
    (Bug::ThawReadsOld, 1),
    (Bug::IngestOffByOne, 3),
    (Bug::TrimIgnoresSlowest, 2),
    (Bug::TrimUningested, 148),
    (Bug::NeverTakesOver, 20),
    (Bug::NeverYields, 12),
    (Bug::TakeoverSaysNothing, 20),
    (Bug::DeregisterByClock, 2),
    (Bug::VersionTooEarly, 51),
    (Bug::VersionInOnePartition, 43),
    (Bug::SnapshotLosesRow, 3),
    (Bug::SnapshotOffByOne, 3),
    (Bug::SnapshotLosesContent, 47),
    (Bug::CheckpointWithoutPacks, 10),
    (Bug::SweepQuoted, 26),
    (Bug::ServeDamaged, 26),
    (Bug::NeverHeal, 26),
    (Bug::ResendWithoutAsking, 104),
    (Bug::ResendRenumbered, 0),
    (Bug::IgnorePush, 2),
    (Bug::GrantFromOldAnswer, 237),
    (Bug::WriteUnreserved, 74),
    (Bug::JournalForgetsSending, 11),
    (Bug::JournalResendsAll, 11),
    (Bug::LeaseForever, 712),
    (Bug::AbsentForEver, 10),
    (Bug::AttributesForEver, 3),
    (Bug::ContentForEver, 10),
    (Bug::RenameForgetsTarget, 65),
    (Bug::CloseDoesNotWait, 7),
    (Bug::UnlockDoesNotWait, 8),
    (Bug::OlderWriteWins, 10),
    (Bug::ReadMissesWritten, 34),
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
