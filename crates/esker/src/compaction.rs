//! When and how far to compact.
//!
//! lsm-tree decides what to merge (leveled), or `tree/fifo.rs` does. We decide how large tables get: its
//! installs are quadratic in the number of tables of a level (779 ms under the lock that reads take, at
//! 10,000), so the table size grows with the data and a tree stays below about a thousand tables.
//!
//! What must stay true of compactions that lose entries: what they merge is known to CATALOG to be in
//! tables, so that no crash brings it back out of the journal; and a filter that fails is an error of
//! the compaction and of nothing else.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::jobs::Job;
use crate::keyspace::Shared;
use crate::options::{CompactionStrategy, PartitionOptions};
use crate::partition::PartitionCore;
use crate::planted::{Bug, is_planted};
use crate::tree::{Compacted, Limits, Losing, Slice, Strategy, Tree};

const TABLES_WANTED_MAX: u64 = 500;

/// The table size for a tree of `disk_bytes`: doubled until there are few enough tables.
fn table_bytes(options: &PartitionOptions, disk_bytes: u64) -> u64 {
    let mut bytes = options.table_bytes;
    while disk_bytes / bytes > TABLES_WANTED_MAX {
        bytes *= 2;
    }
    bytes
}

/// A FIFO's lots gather in the first level before that: fewer runs than slow writers down.
fn fifo_limits(options: &PartitionOptions) -> Option<Limits> {
    let CompactionStrategy::Fifo { limit_bytes, ttl_secs } = options.compaction_strategy else {
        return None;
    };
    let runs = usize::from(options.l0_runs) * 2 + 8;
    Some(Limits { bytes: limit_bytes, age: ttl_secs.map(Duration::from_secs), runs })
}

/// How often to look for what has grown too old.
fn look_again(limits: Limits) -> Option<Duration> {
    limits.age.map(|age| (age / 8).clamp(Duration::from_millis(250), Duration::from_secs(3600)))
}

/// So often CATALOG is written because flushes were faster than a compaction that loses entries.
const NOTES_MAX: usize = 8;

impl Shared {
    /// Compacts until the tree wants nothing more.
    pub(crate) fn compact_tree(&self, core: &PartitionCore, tree: &Tree) -> Result<()> {
        let fifo = fifo_limits(&core.options);
        if let Some(pause) = fifo.and_then(look_again) {
            self.jobs.request_in(Job::Compact(core.id), pause);
        }
        loop {
            let strategy = match fifo {
                Some(limits) => Strategy::Fifo(limits),
                None => Strategy::Leveled {
                    table_bytes: table_bytes(&core.options, tree.disk_space()),
                    l0_runs: core.options.l0_runs,
                },
            };
            let compacted = match self.compact_once(core, tree, strategy) {
                // It must not keep tables from being merged, for which writers may wait.
                Err(error @ Error::FilterFailed { .. }) => {
                    tracing::error!(%error, "compacting without the filter");
                    self.compact_losing(core, tree, strategy, Losing::Nothing)?
                }
                outcome => outcome?,
            };
            if compacted != Compacted::Something || self.is_closing() {
                break;
            }
            self.update_pressure();
        }
        self.compact_losing(core, tree, Strategy::Reap, Losing::Nothing)?;
        Ok(())
    }

    /// Loses what a filter says, or a FIFO has had too long, once a crash would not bring it back.
    fn compact_once(
        &self,
        core: &PartitionCore,
        tree: &Tree,
        strategy: Strategy,
    ) -> Result<Compacted> {
        for _ in 0..NOTES_MAX {
            match self.compact_losing(core, tree, strategy, Losing::Filtered)? {
                Compacted::NotYet => self.note_flushed()?,
                compacted => return Ok(compacted),
            }
        }
        self.compact_losing(core, tree, strategy, Losing::Nothing)
    }

    fn compact_losing(
        &self,
        core: &PartitionCore,
        tree: &Tree,
        strategy: Strategy,
        losing: Losing,
    ) -> Result<Compacted> {
        self.record_ingests(tree)?;
        let is_known = || {
            let map = self.versions.current();
            let entry = map.get(&core.id).filter(|entry| entry.tree.id == tree.id);
            // Of a tree that a clear has left behind nothing is replayed.
            // A flush that failed behind its install is in tables, and `versions` does not know it yet.
            let in_tables = tree.highest_persisted_seqno().unwrap_or(0);
            entry.is_none_or(|entry| core.is_stored_upto(entry.flushed_upto.max(in_tables)))
                || is_planted(Bug::LossNotKnown)
        };
        let before = tree.version_id();
        let compacted = tree.compact(&self.views, strategy, losing, &is_known);
        if tree.version_id() != before {
            // Also what was installed before it failed, or found nothing to do.
            self.versions.refresh(core, tree, None);
        }
        if matches!(compacted, Ok(Compacted::Something)) {
            self.compactions.fetch_add(1, Ordering::Relaxed);
        }
        compacted
    }

    /// Stores what is in tables, so that replay leaves it out.
    fn note_flushed(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        self.write_catalog(&mut catalog, |_| {})
    }

    /// `Partition::compact`.
    pub(crate) fn compact_partition(&self, core: &Arc<PartitionCore>) -> Result<()> {
        self.compact_range(core, &(Bound::Unbounded, Bound::Unbounded))
    }

    /// `Partition::compact_range`.
    pub(crate) fn compact_range(
        &self,
        core: &Arc<PartitionCore>,
        range: &(Bound<Slice>, Bound<Slice>),
    ) -> Result<()> {
        let _open = self.begin_operation()?;
        core.check_alive()?;
        let run = || {
            self.flush_partition(core)?;
            let tree = core.tree();
            tree.release_kept(&self.views)?;
            if fifo_limits(&core.options).is_some() {
                return self.compact_tree(core, &tree);
            }
            if tree.has_tables_in(range) {
                let table_bytes = table_bytes(&core.options, tree.disk_space());
                self.compact_once(core, &tree, Strategy::Everything { table_bytes })?;
            }
            self.compact_losing(core, &tree, Strategy::Reap, Losing::Nothing)?;
            Ok(())
        };
        run().map_err(|error| self.fail(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_with_the_data() {
        let options = PartitionOptions::default();
        assert_eq!(table_bytes(&options, 1 << 30), 64 << 20);
        assert_eq!(table_bytes(&options, 1 << 40), 4 << 30, "a terabyte in 256 tables");
    }
}
