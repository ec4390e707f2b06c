//! Known bugs that tests can switch on, to show that they would be found.
//!
//! Without the feature `planted` none can be planted, and the compiler drops all of it. The package
//! `esker-tests` asks for the feature, so a build of the whole workspace has it. Its command `planted`
//! plants one after the other and says which layer of the tests finds it.

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A bug that a test can plant.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        #[cfg(feature = "planted")]
        impl Bug {
            /// All of them, each with what is wrong.
            pub const ALL: &[(Self, &str)] = &[$((Self::$name, concat!($($doc),+)),)+];
        }
    };
}

bugs! {
    // Syncs that are left out.
    /// A durable commit returns without a sync.
    CommitNotSynced,
    /// A segment that was swapped out is sealed and never synced.
    SegmentNotSynced,
    /// A new segment's header is not synced.
    NewSegmentNotSynced,
    /// The directory of a new segment is not synced.
    NewSegmentNameNotSynced,
    /// A file that replaces another is not synced before the rename.
    ReplacedFileNotSynced,
    /// The directory of a replaced file is not synced.
    ReplacedNameNotSynced,
    /// The directory of the trees is not synced when one is added.
    NewTreeNameNotSynced,
    /// The directory of a new keyspace is not synced in the one above it.
    NewKeyspaceNameNotSynced,
    /// A published checkpoint's new name is not synced.
    PublishedNameNotSynced,
    /// What a checkpoint wrote or copied is not synced, nor the directories in it.
    CheckpointFilesNotSynced,
    /// A checkpoint's own directory is not synced.
    CheckpointDirNotSynced,
    /// Tables are installed before the journal is synced.
    FlushedBeforeSync,
    /// CATALOG is written before the journal is synced.
    CatalogBeforeSync,
    /// Ingested tables are installed before the journal is synced.
    IngestBeforeSync,
    /// Replay makes a tree for a clear and does not sync its name.
    ReplayedTreeNotSynced,
    /// The first open of a checkpoint removes its list of files and does not sync that.
    FileListRemovalNotSynced,

    // The wrong order.
    /// A segment is sealed first and synced then.
    SealedBeforeSync,
    /// Segments are deleted before CATALOG lets go of them.
    SegmentFreedBeforeCatalog,
    /// CATALOG lists a segment that is not there yet.
    CatalogBeforeSegment,
    /// CATALOG names a tree that is not there yet.
    CatalogBeforeTree,
    /// CATALOG is truncated and written where it is.
    CatalogWrittenInPlace,
    /// A checkpoint is built under its final name.
    BuiltUnderItsName,
    /// Recovery deletes the old journal before CATALOG lets go of it.
    OldJournalRemovedBeforeCatalog,
    /// Recovery deletes cleared and dropped trees before CATALOG lets go of them.
    SupersededRemovedBeforeCatalog,
    /// A dropped partition's tree is deleted before CATALOG lets go of it.
    TreeRemovedBeforeCatalog,

    // Checks that are left out.
    /// A frame's payload is not compared with its hash.
    PayloadHashSkipped,
    /// Frames are not compared with the chain.
    ChainNotChecked,
    /// A segment's uuid, timeline and number are not looked at.
    IdentityNotChecked,
    /// LOCK of another keyspace is accepted.
    OwnerNotChecked,
    /// Whole frames behind a broken one prove nothing.
    RotTakenForTornTail,
    /// A torn tail is taken for damage.
    TornTailTakenForRot,
    /// A journal that ends before what is known to be durable is accepted.
    ShortJournalAccepted,
    /// CATALOG's checksum is not looked at.
    CatalogChecksumSkipped,
    /// A version manifest is not compared with the checksum in `current`.
    CurrentNotChecked,
    /// A tree older than its floor is accepted.
    FloorNotChecked,
    /// CATALOG never raises the floor of a tree.
    FloorNotRaised,
    /// `verify` does not compare tables with their hashes.
    TableHashSkipped,
    /// Options that contradict those of an existing partition are ignored.
    OptionsNotCompared,

    // Failures that are handled badly.
    /// A sync that failed is tried again.
    SyncRetried,
    /// A sync that failed poisons nothing.
    FailedSyncForgotten,
    /// A sync that failed is taken for a success.
    SyncErrorIgnored,
    /// A write to the journal that failed is taken for a success.
    WriteErrorIgnored,
    /// Only one write is made for a group, however much of it was taken.
    ShortWriteIgnored,
    /// A version that may have been installed is installed again.
    UndecidedInstallRetried,

    // Concurrency and bookkeeping.
    /// A checkpoint takes the trees' versions after the freeze instead of in it.
    VersionsClonedAfterTheFreeze,
    /// A checkpoint links the segment that is still written to.
    ActiveSegmentLinked,
    /// A checkpoint lets go of the journal before it has linked it.
    JournalNotHeld,
    /// A checkpoint lets go of the versions before it has linked their tables.
    VersionsNotPinned,
    /// A flush claims commits that came after it.
    FlushBoundaryTooHigh,
    /// A segment is freed when one of its partitions does not need it any more.
    SegmentFreedTooEarly,
    /// A merge takes no notice of open snapshots.
    SnapshotsForgotten,
    /// What a filter or a FIFO takes away disappears from open snapshots.
    LossNotHidden,
    /// A filter, or a FIFO, takes away what a crash brings back.
    LossNotKnown,
    /// Replay leaves out what a clear did.
    ClearNotReplayed,
    /// Replay leaves out removals of what was written once.
    WeakRemovalNotReplayed,
    /// Replay leaves out drops.
    DropNotReplayed,
    /// An open keyspace still counts as cleanly closed.
    CleanMarkKept,
    /// What was replayed is not written to tables before the old journal goes.
    ReplayedNotFlushed,
    /// The outcome of a commit is stored, but its thread is not woken up.
    NotifyLost,
    /// A leader that leaves does not tell the next one.
    HandOverLost,
    /// A group is answered before it is applied and visible.
    AnsweredBeforeApplied,
    /// A group is answered before the sync that it asked for.
    AnsweredBeforeSync,
    /// A commit that is applied later is not noted for readers.
    DeferredNotNoted,
    /// A memtable is sealed, and partitions change, while commits wait to be applied.
    NotSettled,
    /// What belongs between two groups runs at once, beside a group that may be half applied.
    FreezeInsideAGroup,
    /// What commits have changed is not noted for transactions.
    ChangesNotNoted,
    /// What an open transaction has not seen is forgotten once it is visible.
    OpenTransactionsForgotten,
    /// Ingested tables are merged before CATALOG says that they are in.
    IngestNotRecorded,
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(NONE);
#[cfg(feature = "planted")]
const NONE: usize = usize::MAX;

/// Plants a bug for the whole process, or removes it.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    let bug = bug.map_or(NONE, |bug| bug as usize);
    PLANTED.store(bug, std::sync::atomic::Ordering::SeqCst);
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as usize
}

#[cfg(not(feature = "planted"))]
pub(crate) fn is_planted(_bug: Bug) -> bool {
    false
}

/// Does what is right, unless `bug` is planted.
pub fn unless<E>(bug: Bug, step: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    if is_planted(bug) { Ok(()) } else { step() }
}
