//! The set of partitions: create, clear, drop, and the CATALOG that records it.
//!
//! What must stay true: each change is one frame in the journal, made between two groups, so that it
//! has a place in the order of commits; CATALOG is written after the journal is synced and so never
//! shows a state that the journal could still lose. A crash between the frame and CATALOG is
//! finished by replay; between CATALOG and the removal of a directory by the next open.

use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::Durability;
use crate::catalog::{Catalog, Floor, PartitionEntry};
use crate::commit::Turn;
use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::journal::items;
use crate::keyspace::Shared;
use crate::options::PartitionOptions;
use crate::partition::{PartitionCore, check_name};
use crate::planted::{Bug, is_planted, unless};
use crate::tree::Tree;
use crate::versions::Entry;

impl Shared {
    pub(crate) fn find_partition(&self, name: &str) -> Option<Arc<PartitionCore>> {
        let map = self.versions.current();
        map.values().find(|entry| entry.core.name == name).map(|entry| Arc::clone(&entry.core))
    }

    /// The partition `name`, created if there is none.
    pub(crate) fn create_partition(
        &self,
        name: &str,
        options: PartitionOptions,
    ) -> Result<Arc<PartitionCore>> {
        check_name(name)?;
        let existing = |core: Arc<PartitionCore>| {
            options.check_against(&core.options, name)?;
            Ok(core)
        };
        if let Some(core) = self.find_partition(name) {
            return existing(core);
        }
        options.validate()?;
        let _open = self.begin_operation()?;
        let mut catalog = self.catalog.lock();
        if let Some(core) = self.find_partition(name) {
            return existing(core);
        }
        let (id, tree_id) = (catalog.next_partition, catalog.next_tree);
        let entry = PartitionEntry {
            id,
            tree: tree_id,
            name: name.to_owned(),
            options: options.clone(),
            floor: Floor::default(),
        };
        let add = |stored: &mut Catalog| {
            stored.next_partition = id + 1;
            stored.next_tree = tree_id + 1;
            stored.partitions.push(entry.clone());
        };
        if is_planted(Bug::CatalogBeforeTree) {
            self.write_catalog(&mut catalog, add)?;
        }
        let tree = self.create_tree(tree_id, name, &options)?;
        self.write_catalog(&mut catalog, add).inspect_err(|error| {
            // Only if CATALOG does not name it.
            if error.kind() == ErrorKind::Retry {
                tree.doom();
            }
        })?;
        let core = Arc::new(PartitionCore::new(id, name.to_owned(), options, Arc::clone(&tree)));
        self.register(&core, tree)?;
        Ok(core)
    }

    /// Makes a created partition part of the history.
    fn register(&self, core: &Arc<PartitionCore>, tree: Arc<Tree>) -> Result<()> {
        let (core, versions) = (Arc::clone(core), Arc::clone(&self.versions));
        let installed = tree.installed();
        self.committer.between(move |turn| {
            let seqno = turn.log(&items::create(core.id, &core.name), core.id)?;
            versions.put(&core, &tree, installed, seqno);
            Ok(())
        })
    }

    fn create_tree(
        &self,
        id: u64,
        partition: &str,
        options: &PartitionOptions,
    ) -> Result<Arc<Tree>> {
        // If the last CATALOG failed behind its rename, the one on disk may name this very id.
        self.journal.check_poison()?;
        let dir = files::tree(&self.root, id);
        // A leftover of an attempt that failed: CATALOG never named it.
        files::remove_dir_if_present(&dir)?;
        let create = || {
            files::create_dir(&dir)?;
            let tree = Tree::open(&dir, id, partition, options, &self.trees)?;
            files::sync_dir(&dir)?;
            let partitions = files::partitions(&self.root);
            unless(Bug::NewTreeNameNotSynced, || files::sync_dir(&partitions))?;
            Ok(Arc::new(tree))
        };
        create().inspect_err(|_| {
            // Give the space back; the next open removes what remains.
            let _ = files::remove_dir_if_present(&dir);
        })
    }

    /// `Partition::clear`: the partition moves on to an empty tree.
    pub(crate) fn clear_partition(&self, core: &Arc<PartitionCore>) -> Result<()> {
        let _turn = self.take_turn()?;
        let _open = self.begin_operation()?;
        core.check_alive()?;
        let mut catalog = self.catalog.lock();
        let tree_id = catalog.next_tree;
        let tree = self.create_tree(tree_id, &core.name, &core.options)?;
        catalog.next_tree = tree_id + 1;
        let old = core.tree();
        let logged = {
            let (core, versions) = (Arc::clone(core), Arc::clone(&self.versions));
            let (tree, installed) = (Arc::clone(&tree), tree.installed());
            self.committer.between(move |turn| {
                core.check_alive()?;
                let seqno = turn.log_end(&items::clear(core.id), core.id)?;
                core.begin_generation(seqno, Arc::clone(&tree));
                versions.put(&core, &tree, installed, seqno);
                old.account().close();
                Ok(())
            })
        };
        logged.inspect_err(|_| tree.doom())?;
        self.write_catalog(&mut catalog, |_| {})?;
        drop(catalog);
        drop(core.retire_generations(self.views.oldest()));
        Ok(())
    }

    /// Drops the partition `name`; false when there is none.
    pub(crate) fn drop_partition(&self, name: &str) -> Result<bool> {
        let _turn = self.take_turn()?;
        let _open = self.begin_operation()?;
        let mut catalog = self.catalog.lock();
        let Some(core) = self.find_partition(name) else { return Ok(false) };
        let logged = {
            let (core, versions) = (Arc::clone(&core), Arc::clone(&self.versions));
            self.committer.between(move |turn: &Turn<'_>| {
                turn.log_end(&items::drop_partition(core.id), core.id)?;
                core.mark_dropped();
                versions.remove(core.id);
                core.tree().account().close();
                Ok(())
            })
        };
        logged?;
        if is_planted(Bug::TreeRemovedBeforeCatalog) {
            files::remove_dir_if_present(core.tree().dir())?;
        }
        self.write_catalog(&mut catalog, |_| {})?;
        core.doom();
        Ok(true)
    }

    /// Writes CATALOG as the keyspace is now, with `change` applied. The guard is the witness that
    /// the set of partitions does not change meanwhile.
    pub(crate) fn write_catalog(
        &self,
        catalog: &mut MutexGuard<'_, Catalog>,
        change: impl FnOnce(&mut Catalog),
    ) -> Result<()> {
        let map = self.versions.current();
        let position = self.journal.position();
        // CATALOG must not run ahead of the journal.
        unless(Bug::CatalogBeforeSync, || self.journal.sync(Durability::SyncData))?;
        let mut renewed = Catalog::clone(catalog);
        renewed.last_seqno = position.last_seqno;
        renewed.last_time_ms = position.last_time_ms;
        renewed.partitions = map.values().map(|entry| catalog_entry(entry)).collect();
        change(&mut renewed);
        let base = self.journal.with_segments(|s| s.after(renewed.first_segment));
        renewed.base_seqno = base.unwrap_or(renewed.base_seqno);
        renewed.store(&self.root).map_err(|error| self.fail(error))?;
        **catalog = renewed;
        map.values().for_each(|entry| entry.core.note_stored(entry.flushed_upto));
        Ok(())
    }

    /// A failure that is not about space leaves the disk in a state we do not know.
    pub(crate) fn fail(&self, error: Error) -> Error {
        match &error {
            Error::Io { .. } if error.kind() != ErrorKind::Retry => {
                self.journal.poison(error.clone());
                error
            }
            _ => error,
        }
    }
}

/// A live partition as CATALOG has it.
pub(crate) fn catalog_entry(entry: &Entry) -> PartitionEntry {
    let version = if is_planted(Bug::FloorNotRaised) { 0 } else { entry.version.id };
    PartitionEntry {
        id: entry.core.id,
        tree: entry.tree.id,
        name: entry.core.name.clone(),
        options: entry.core.options.clone(),
        floor: Floor { version, manifest: entry.manifest, flushed_upto: entry.flushed_upto },
    }
}
