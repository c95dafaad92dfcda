//! Bugs that a simulation plants, one at a time, to see whether its checks find them.
//!
//! Each is one line where it would be made: `planted(Bug::X)`. Without the feature
//! `simulation` that is the constant `false`, and the program is as if it were not there.

macro_rules! bugs {
    ($($(#[doc = $text:literal])* $name:ident,)*) => {
        /// What may be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $text])* $name,)*
        }

        impl Bug {
            pub const ALL: &[Bug] = &[$(Bug::$name,)*];

            /// What it does, for people.
            pub fn text(self) -> &'static str {
                match self {
                    $(Bug::$name => concat!($($text),*),)*
                }
            }
        }
    };
}

bugs! {
    /// machine: a repeated change is executed again instead of answered from memory
    SkipDedup,
    /// machine: a request is admitted though one before it is missing
    ApplyAcrossGap,
    /// machine: all requests of one record stand at the same place
    FramesShareAPlace,
    /// machine: a result leaves before others have confirmed the push about it
    AnswerBeforeConfirmed,
    /// machine: a view of something changed leaves before its pushes are confirmed
    ViewBeforeConfirmed,
    /// machine: nobody is told of a change to an inode with several names
    ForgetInodeInvalidation,
    /// machine: nobody is told of a change to a file's content
    ForgetContentInvalidation,
    /// machine: only the first holder of a promise is told that it is broken
    TellOneHolder,
    /// machine: a lease counts a second from its last record
    LeaseTooShort,
    /// machine: after a restart nobody is known to have been promised anything
    RestoreForgetsHolders,
    /// machine: log time goes by the broker's clock
    TickByBrokerClock,
    /// machine: an epoch gives out the numbers of inodes again that its state lacks
    EpochReusesNumbers,
    /// machine: a replaced session is said to have applied nothing
    ReplacedAppliedNothing,
    /// machine: a replaced session goes on
    ReplacedGoesOn,
    /// machine: a rename leaves the old name where it was
    RenameKeepsName,
    /// machine: a link does not count
    LinkDoesNotCount,
    /// machine: what is done in a directory does not move its times
    DirKeepsTimes,
    /// machine: a directory that is not empty can be removed
    RemoveFullDirectory,
    /// machine: what a truncation cuts off comes back when the file grows
    TruncateKeepsContent,
    /// machine: new content does not end the extents that it covers
    WriteKeepsExtents,
    /// machine: a write into the middle of an extent drops what stood behind it
    CutLosesTail,
    /// machine: what stays of an extent that is cut does not count as a reference
    CutPartNotCounted,
    /// machine: taking a name away does not count
    UnlinkDoesNotCount,
    /// machine: a file without a name is freed while it is open
    FreeOpenFile,
    /// machine: content at the end is put where the file ended for its writer
    AppendAtZero,
    /// machine: a write is let in though nothing was reserved for it and it does not fit
    WriteBeyondQuota,
    /// machine: a create is let in though there are as many inodes as the quota allows
    CreateBeyondQuota,
    /// machine: a request does not use up what was reserved for it
    ReserveNotSpent,
    /// machine: what a closed session had reserved stays reserved
    ReserveOutlivesSession,
    /// machine: what a session had reserved is not its successor's
    ReserveNotInherited,
    /// machine: a shared lock is given beside an exclusive one
    SharedBesideExclusive,
    /// machine: a lock outlives its session
    LockOutlivesSession,
    /// machine: whoever waits is not woken when a lock is given up
    UnlockWakesNobody,
    /// machine: who has given up waiting for a lock gets it all the same
    CancelForgotten,
    /// machine: a request does not wait for what is delegated to another session
    IgnoreDelegations,
    /// machine: a directory is delegated though another session is promised it
    DelegateShared,
    /// machine: a delegation is over as soon as it is asked back
    RecallDoesNotWait,
    /// machine: what a session has answered itself is taken though it has forfeited its delegations
    ForfeitedGoesOn,
    /// machine: a change overtakes an earlier one of its session that waits for a delegation
    WaitingOvertaken,
    /// loop: a checkpoint says that it holds one record more than it does
    CheckpointOffByOne,
    /// loop: a record that a replayed server has applied already is applied again
    ReplayOneTwice,
    /// loop: what was applied is not brought to disk when the log is lost
    LostLogUnsaved,
    /// store: a checkpoint does not write deleted rows
    CheckpointKeepsDeleted,
    /// store: a checkpoint leaves out one row
    CheckpointLosesRow,
    /// store: rows that are being written are not seen
    FrozenUnseen,
    /// store: after a checkpoint the old rows are read on
    ThawReadsOld,
    /// packs: how far content was ingested is one too high
    IngestOffByOne,
    /// servers: the log is trimmed up to what the fastest has checkpointed
    TrimIgnoresSlowest,
    /// servers: content is trimmed that one has not ingested
    TrimUningested,
    /// servers: nobody takes over
    NeverTakesOver,
    /// servers: of two that answer neither yields
    NeverYields,
    /// servers: a new answerer does not say what the old one may not have said
    TakeoverSaysNothing,
    /// servers: one is given up by the broker's clock alone
    DeregisterByClock,
    /// servers: the version is raised as soon as one of them supports it
    VersionTooEarly,
    /// servers: the version is raised in partition 0 only
    VersionInOnePartition,
    /// servers: a snapshot leaves out one row
    SnapshotLosesRow,
    /// servers: a snapshot says that it reaches one record further than it does
    SnapshotOffByOne,
    /// servers: a snapshot leaves out content
    SnapshotLosesContent,
    /// packs: a checkpoint is written without them
    CheckpointWithoutPacks,
    /// packs: uploads are swept though they are quoted
    SweepQuoted,
    /// packs: damaged content is served
    ServeDamaged,
    /// packs: damaged content is not healed
    NeverHeal,
    /// client: after a session's end everything is sent again without asking what was applied
    ResendWithoutAsking,
    /// client: a request that is sent again gets a new number
    ResendRenumbered,
    /// client: what was written under a lock is sent though the lock was lost
    WrittenOutlivesLock,
    /// client: a push is confirmed, and what it broke is relied on
    IgnorePush,
    /// client: a recall is confirmed while the kernel still keeps what it was shown there
    KernelKeepsRecalled,
    /// client: an answer older than the last push grants promises
    GrantFromOldAnswer,
    /// client: promises count although nothing renews them
    LeaseForever,
    /// client: a late answer revives promises that had run out
    LateAnswerRevives,
    /// client: the lease is counted from the answer, not from what it answers
    LeaseFromAnswer,
    /// client: an overtaken answer to a change of its own lets caches go on
    OvertakenGoesOn,
    /// client: a view goes before a change of what it looks at
    ViewOvertakesAll,
    /// client: content is buffered beyond what is reserved for it
    WriteUnreserved,
    /// client: something is made beyond what is reserved for it
    MakeUnreserved,
    /// client: what was written before a quota was set is not told of
    QuotaForgetsWritten,
    /// client: room that is given back is used all the same
    GiveBackKeeps,
    /// journal: a sending is not noted
    JournalForgetsSending,
    /// journal: what was sent is sent again whatever became of it
    JournalResendsAll,
    /// fs: a name once absent stays absent
    AbsentForEver,
    /// fs: attributes once known are shown for ever
    AttributesForEver,
    /// fs: the content map once known is used for ever
    ContentForEver,
    /// fs: a rename does not forget what stood at its target
    RenameForgetsTarget,
    /// client: an fsync returns before the log has what was written
    SyncedBeforeStored,
    /// fs: close returns before what was written is answered for
    CloseDoesNotWait,
    /// fs: a lock is given up before what was written under it is answered for
    UnlockDoesNotWait,
    /// fs: of two overlapping writes the older one wins
    OlderWriteWins,
    /// fs: what was written and not sent is not read
    ReadMissesWritten,
    /// fs: what was cut or copied here is read before the answer says what there is
    ReadMissesCut,
    /// fs: what was just written loses its time to a change behind it
    WrittenLosesTime,
    /// fs: extended attributes once known are shown for ever
    XattrsForEver,
}

/// Whether this bug is planted on this thread.
#[cfg(feature = "simulation")]
pub fn planted(bug: Bug) -> bool {
    crate::simulation::planted() == Some(bug)
}

/// Whether this bug is planted on this thread: never.
#[cfg(not(feature = "simulation"))]
pub const fn planted(_bug: Bug) -> bool {
    false
}
