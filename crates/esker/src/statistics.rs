//! Counters and sizes, as one value to print or to export.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use crate::keyspace::Shared;
use crate::versions::Entry;

/// What an open keyspace did since it was opened, and what it holds now.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Statistics {
    /// The newest visible commit.
    pub seqno: u64,
    /// Batches committed.
    pub commits: u64,
    /// Groups they were committed in: `commits / groups` is how well group commit works.
    pub groups: u64,
    /// Bytes appended to the journal.
    pub journal_bytes_written: u64,
    /// Times the journal was synced.
    pub journal_syncs: u64,
    /// Journal segments on disk.
    pub journal_segments: u64,
    /// Their size in bytes, preallocated space not counted.
    pub journal_bytes: u64,
    /// Bytes in memtables, as they lie in memory: not in tables yet, or held by a compaction.
    pub memtable_bytes: u64,
    /// Memtables waiting to be flushed.
    pub sealed_memtables: u64,
    /// Memtables written to tables.
    pub flushes: u64,
    /// Compactions that changed something.
    pub compactions: u64,
    /// Bulk loads finished.
    pub ingests: u64,
    /// Times a writer had to wait for flush, compaction or journal space.
    pub stalls: u64,
    /// How long writers waited, added up.
    pub stall_time: Duration,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Read views that are open: snapshots, and transactions that can write.
    pub open_snapshots: u64,
    /// Transactions that can write and are not over.
    pub open_transactions: u64,
    /// Changes that are remembered because a transaction may conflict with them: they take memory as
    /// long as the oldest open transaction lives. 0 but for optimistic transactions.
    pub conflict_entries: u64,
    /// Transactions that were refused with [`Error::Conflict`](crate::Error::Conflict).
    pub conflicts: u64,
    /// Bytes in the block cache.
    pub cache_bytes: u64,
    /// Its capacity in bytes.
    pub cache_bytes_max: u64,
    /// In name order.
    pub partitions: Vec<PartitionStatistics>,
}

/// What one partition holds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PartitionStatistics {
    /// Its name.
    pub name: String,
    /// Tables on disk.
    pub tables: u64,
    /// Blob files on disk.
    pub blob_files: u64,
    /// Bytes in them that are overwritten or removed, as far as compactions have found out: they go
    /// when enough of a file is stale.
    pub stale_blob_bytes: u64,
    /// Runs in the first level: writers slow down when they gather.
    pub l0_runs: u64,
    /// Bytes of data blocks and separated values on disk; index and filter blocks not counted.
    pub disk_bytes: u64,
    /// Bytes in its memtables, as they lie in memory, those that a compaction holds included.
    pub memtable_bytes: u64,
    /// Entries, overwritten and removed ones included.
    pub approximate_len: u64,
    /// Entries that the compaction filter removed. This and what follows counts since the keyspace was
    /// opened, or the partition cleared.
    pub filter_removed: u64,
    /// Values that it replaced.
    pub filter_replaced: u64,
    /// Compactions in which it failed, and which were done without it.
    pub filter_failures: u64,
    /// Tables that were dropped because the partition is a FIFO over its limits.
    pub fifo_dropped_tables: u64,
}

impl PartitionStatistics {
    fn of(entry: &Entry) -> Self {
        let (tree, lost) = (&entry.tree, entry.tree.lost());
        Self {
            name: entry.core.name.clone(),
            tables: tree.table_count() as u64,
            blob_files: tree.blob_file_count() as u64,
            stale_blob_bytes: tree.stale_blob_bytes(),
            l0_runs: tree.l0_runs() as u64,
            disk_bytes: tree.disk_space(),
            memtable_bytes: tree.account().total(),
            approximate_len: tree.approximate_len() as u64,
            filter_removed: lost.removed,
            filter_replaced: lost.replaced,
            filter_failures: lost.failures,
            fifo_dropped_tables: lost.tables,
        }
    }
}

impl Statistics {
    pub(crate) fn of(shared: &Shared) -> Self {
        shared.committer.settle();
        let map = shared.versions.current();
        let mut partitions: Vec<_> =
            map.values().map(|entry| PartitionStatistics::of(entry)).collect();
        partitions.sort_by(|a, b| a.name.cmp(&b.name));
        let (journal_segments, journal_bytes) = shared.journal_on_disk();
        let conflicts = shared.conflicts.as_ref().map(|c| c.extent()).unwrap_or_default();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            seqno: shared.committer.committed(),
            commits: load(&shared.committer.commits),
            groups: load(&shared.committer.groups),
            journal_bytes_written: shared.journal.bytes_written(),
            journal_syncs: shared.journal.syncs(),
            journal_segments,
            journal_bytes,
            memtable_bytes: shared.trees.buffer.used(),
            sealed_memtables: map.values().map(|e| e.tree.sealed_memtables() as u64).sum(),
            flushes: load(&shared.flushes),
            compactions: load(&shared.compactions),
            ingests: load(&shared.ingests),
            stalls: load(&shared.stall.count),
            stall_time: Duration::from_nanos(load(&shared.stall.nanos)),
            checkpoints: load(&shared.checkpoints),
            open_snapshots: shared.views.count() as u64,
            open_transactions: load(&shared.open_transactions),
            conflict_entries: conflicts.entries,
            conflicts: conflicts.refused,
            cache_bytes: shared.trees.cache_bytes(),
            cache_bytes_max: shared.trees.cache_bytes_max(),
            partitions,
        }
    }
}
