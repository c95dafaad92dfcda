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
    (Bug::ApplyAcrossGap, 13),
    (Bug::FramesShareAPlace, 0),
    (Bug::AnswerBeforeConfirmed, 222),
    (Bug::ViewBeforeConfirmed, 409),
    (Bug::ForgetInodeInvalidation, 1699),
    (Bug::ForgetContentInvalidation, 8),
    (Bug::TellOneHolder, 2),
    (Bug::LeaseTooShort, 2),
    (Bug::RestoreForgetsHolders, 10),
    (Bug::TickByBrokerClock, 2),
    (Bug::ReplacedAppliedNothing, 11),
    (Bug::ReplacedGoesOn, 69),
    (Bug::RenameKeepsName, 0),
    (Bug::LinkDoesNotCount, 35),
    (Bug::DirKeepsTimes, 0),
    (Bug::RemoveFullDirectory, 1),
    (Bug::TruncateKeepsContent, 10),
    (Bug::WriteKeepsExtents, 0),
    (Bug::CutLosesTail, 2),
    (Bug::CutPartNotCounted, 2),
    (Bug::UnlinkDoesNotCount, 1),
    (Bug::FreeOpenFile, 89),
    (Bug::AppendAtZero, 22),
    (Bug::WriteBeyondQuota, 32),
    (Bug::CreateBeyondQuota, 41),
    (Bug::ReserveNotSpent, 32),
    (Bug::ReserveOutlivesSession, 41),
    (Bug::SharedBesideExclusive, 8),
    (Bug::LockOutlivesSession, 18),
    (Bug::UnlockWakesNobody, 8),
    (Bug::CancelForgotten, 8),
    (Bug::IgnoreDelegations, 2),
    (Bug::DelegateShared, 13),
    (Bug::CheckpointOffByOne, 2),
    (Bug::ReplayOneTwice, 0),
    (Bug::LostLogUnsaved, 11),
    (Bug::CheckpointKeepsDeleted, 2),
    (Bug::CheckpointLosesRow, 0),
    (Bug::FrozenUnseen, 2),
    (Bug::ThawReadsOld, 0),
    (Bug::IngestOffByOne, 3),
    (Bug::TrimIgnoresSlowest, 2),
    (Bug::TrimUningested, 148),
    (Bug::NeverTakesOver, 20),
    (Bug::NeverYields, 58),
    (Bug::TakeoverSaysNothing, 4160),
    (Bug::DeregisterByClock, 2),
    (Bug::VersionTooEarly, 51),
    (Bug::VersionInOnePartition, 43),
    (Bug::SnapshotLosesRow, 3),
    (Bug::SnapshotOffByOne, 3),
    (Bug::SnapshotLosesContent, 47),
    (Bug::CheckpointWithoutPacks, 10),
    (Bug::SweepQuoted, 43),
    (Bug::ServeDamaged, 101),
    (Bug::NeverHeal, 101),
    (Bug::ResendWithoutAsking, 97),
    (Bug::ResendRenumbered, 0),
    (Bug::IgnorePush, 2),
    (Bug::KernelKeepsRecalled, 50),
    (Bug::GrantFromOldAnswer, 25),
    (Bug::ViewOvertakesAll, 1913),
    (Bug::WriteUnreserved, 32),
    (Bug::MakeUnreserved, 41),
    (Bug::QuotaForgetsWritten, 572),
    (Bug::JournalForgetsSending, 11),
    (Bug::JournalResendsAll, 11),
    (Bug::LeaseForever, 544),
    (Bug::AbsentForEver, 2),
    (Bug::AttributesForEver, 191),
    (Bug::XattrsForEver, 116),
    (Bug::ContentForEver, 8),
    (Bug::RenameForgetsTarget, 14),
    (Bug::SyncedBeforeStored, 4173),
    (Bug::CloseDoesNotWait, 1),
    (Bug::UnlockDoesNotWait, 8),
    (Bug::OlderWriteWins, 10),
    (Bug::LeaseFromAnswer, 544),
    (Bug::GiveBackKeeps, 74),
    (Bug::ReadMissesWritten, 34),
    (Bug::ReadMissesCut, 148),
    (Bug::WrittenLosesTime, 13),
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
