//! Memtable → tables, and the journal segments that this sets free.
//!
//! What must stay true: memtables are sealed only between groups; the journal is synced up to the
//! seal before tables are installed (a power cut must not leave half a batch in one partition's
//! tables and the other half nowhere); segments go only after a durable CATALOG says that they are
//! not needed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Durability;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::files;
use crate::jobs::Job;
use crate::journal::writer::Journal;
use crate::keyspace::Shared;
use crate::partition::PartitionCore;
use crate::planted::{Bug, is_planted, unless};
use crate::tree::L0_RUNS_MAX;
use crate::versions::flushed_upto;

impl Shared {
    /// Writes what the partition holds in memory now to tables.
    pub(crate) fn flush_partition(&self, core: &Arc<PartitionCore>) -> Result<()> {
        let tree = core.tree();
        if tree.l0_runs() >= L0_RUNS_MAX {
            self.compact_tree(core, &tree)?;
        }
        self.flush_now(core)
    }

    /// The same, whoever keeps compactions away: the caller has looked after the number of runs.
    pub(crate) fn flush_now(&self, core: &Arc<PartitionCore>) -> Result<()> {
        let tree = core.tree();
        let flushing = tree.lock_flushing();
        tree.settle();
        let boundary = {
            let _inputs_fixed = tree.lock_gate();
            let (core, tree) = (Arc::clone(core), Arc::clone(&tree));
            self.committer.between(move |turn| {
                // After a clear or drop what is left in the old tree's memory is nobody's.
                if core.tree().id == tree.id && core.check_alive().is_ok() {
                    tree.rotate();
                }
                Ok(turn.seqno())
            })?
        };
        unless(Bug::FlushedBeforeSync, || self.journal.sync(Durability::SyncData))?;
        tree.flush(&flushing, self.views.merge_threshold(boundary))?;
        let boundary = boundary + if is_planted(Bug::FlushBoundaryTooHigh) { 3 } else { 0 };
        self.versions.refresh(core, &tree, Some(boundary));
        drop(flushing);
        tree.clean_up();
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.jobs.request(Job::Compact(core.id));
        self.jobs.request(Job::Tidy);
        Ok(())
    }

    /// Flushes every partition.
    pub(crate) fn flush_all(&self) -> Result<()> {
        self.versions.current().values().try_for_each(|entry| self.flush_partition(&entry.core))
    }

    /// Flushes the largest memtables until the write buffer is half empty and has room for the
    /// batch that waits. What merges hold cannot be flushed and does not count.
    pub(crate) fn relieve_write_buffer(&self) -> Result<()> {
        let (buffer, max) = (&self.trees.buffer, self.config.write_buffer_bytes_max);
        let wanted = self.stall.wanted();
        let enough = || {
            let (unflushed, room) = (buffer.unflushed(), buffer.room(max));
            unflushed <= room / 2 && unflushed + wanted <= room
        };
        let map = self.versions.current();
        let unflushed = map.values().map(|entry| (entry.tree.account().unflushed(), entry));
        // Read once: the sizes change while they are sorted.
        let mut largest: Vec<_> = unflushed.filter(|(bytes, _)| *bytes > 0).collect();
        largest.sort_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (_, entry) in largest {
            if enough() {
                break;
            }
            self.flush_partition(&entry.core)?;
        }
        Ok(())
    }

    /// Keeps the journal in shape: the next segment ready, old ones gone, idle partitions flushed
    /// when they keep too much of it alive, and old generations let go.
    pub(crate) fn tidy(&self) -> Result<()> {
        self.retire_generations();
        // On a full disk some of these fail. The others still run: they are what frees space.
        let mut results = vec![self.journal.seal_retired(), self.free_segments()];
        let map = self.versions.current();
        results.extend(map.values().map(|entry| entry.tree.release_kept(&self.views)));
        drop(map);
        if self.journal.should_prepare() {
            results.push(self.prepare_segment());
        }
        results.push(self.end_oversized_segment());
        let map = self.versions.current();
        let (bytes, pinned_by) = self.journal.with_segments(|segments| {
            (segments.bytes(), segments.pinned_by(|partition| flushed_upto(&map, partition)))
        });
        if bytes > self.config.journal_bytes_max {
            pinned_by.into_iter().for_each(|partition| self.jobs.request(Job::Flush(partition)));
        }
        results.push(self.free_segments());
        results.into_iter().collect()
    }

    /// A journal over its limit whose oldest segment is the active one cannot shrink, and writers
    /// that wait for it to shrink do not append: end the segment here.
    fn end_oversized_segment(&self) -> Result<()> {
        let active = self.journal.position().active_segment;
        let stuck = self.journal.with_segments(|segments| {
            segments.bytes() > self.config.journal_bytes_max && segments.first() == active
        });
        if stuck {
            self.prepare_segment()?;
            self.committer.pause(|turn| Ok(turn.journal().swap()))?;
            self.journal.seal_retired()?;
        }
        Ok(())
    }

    /// Lets go of cleared trees that no view needs, where the CATALOG on disk names the newer one.
    fn retire_generations(&self) {
        let catalog = self.catalog.lock();
        let mut retired = Vec::new();
        for entry in self.versions.current().values() {
            if catalog.partition(entry.core.id).is_some_and(|stored| stored.tree == entry.tree.id) {
                retired.extend(entry.core.retire_generations(self.views.oldest()));
            }
        }
        drop(catalog);
        drop(retired);
    }

    /// Creates the next journal segment and lists it in CATALOG, unless there is one.
    pub(crate) fn prepare_segment(&self) -> Result<()> {
        let mut catalog = self.catalog.lock();
        // If the last CATALOG failed behind its rename, the one on disk may name this very segment.
        self.journal.check_poison()?;
        let Some(id) = self.journal.wants_segment() else { return Ok(()) };
        if is_planted(Bug::CatalogBeforeSegment) {
            self.write_catalog(&mut catalog, |stored| stored.last_segment = id)?;
        }
        let prepared = Journal::prepare(
            &self.root,
            self.journal.identity(),
            id,
            self.journal.segment_bytes(),
            crate::commit::now_ms(),
        )?;
        self.write_catalog(&mut catalog, |stored| stored.last_segment = id)?;
        self.journal.install_next(prepared);
        Ok(())
    }

    /// Deletes the segments that nobody needs, after a CATALOG that says so.
    pub(crate) fn free_segments(&self) -> Result<()> {
        let needed = || {
            let map = self.versions.current();
            self.journal.with_segments(|s| {
                if s.is_held() { s.first() } else { s.first_needed(|p| flushed_upto(&map, p)) }
            })
        };
        if needed() <= self.journal.with_segments(|s| s.first()) {
            return Ok(());
        }
        let mut catalog = self.catalog.lock();
        let first = needed();
        if is_planted(Bug::SegmentFreedBeforeCatalog) {
            let freed = self.journal.with_segments(|segments| segments.take_before(first));
            freed.iter().try_for_each(|id| files::remove(&files::segment(&self.root, *id)))?;
        }
        self.write_catalog(&mut catalog, |stored: &mut Catalog| stored.first_segment = first)?;
        for id in self.journal.with_segments(|segments| segments.take_before(first)) {
            files::remove_if_present(&files::segment(&self.root, id))?;
        }
        Ok(())
    }
}
