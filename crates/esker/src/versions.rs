//! The newest installed version of every partition, pinned and kept ready for a freeze.
//!
//! What must stay true: an entry never holds anything newer than the commits that were visible when
//! it was read, and versions of a tree only go up. A stale entry is safe: the journal still covers
//! what it lacks, because segments are freed by these entries' `flushed_upto` alone. Taking the map
//! is one reference count, whatever the number of partitions and tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::partition::PartitionCore;
use crate::tree::{Installed, PinnedVersion, Tree};

/// One live partition as a checkpoint would take it.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) core: Arc<PartitionCore>,
    /// Held as well: a dropped tree removes its directory.
    pub(crate) tree: Arc<Tree>,
    pub(crate) version: Arc<PinnedVersion>,
    /// xxh3-128 of the version's manifest on disk, where it is known.
    pub(crate) manifest: Option<u128>,
    /// Every commit up to this one is in the version (or was cleared).
    pub(crate) flushed_upto: u64,
}

/// By partition id.
pub(crate) type VersionMap = Arc<BTreeMap<u32, Arc<Entry>>>;

#[derive(Default)]
pub(crate) struct Versions {
    map: RwLock<VersionMap>,
    /// Serialises updates, which copy the map outside of `map`.
    updating: Mutex<()>,
}

impl Versions {
    /// The map as it is.
    pub(crate) fn current(&self) -> VersionMap {
        Arc::clone(&self.map.read())
    }

    fn update(&self, change: impl FnOnce(&mut BTreeMap<u32, Arc<Entry>>)) {
        let one_at_a_time = self.updating.lock();
        let mut map = BTreeMap::clone(&self.current());
        change(&mut map);
        let old = std::mem::replace(&mut *self.map.write(), Arc::new(map));
        // The old map may be the last owner of versions, and so delete tables: not under a lock
        // that a freeze takes.
        drop(one_at_a_time);
        drop(old);
    }

    /// Adds a partition, or moves it to a new tree. Inside the commit queue only.
    pub(crate) fn put(
        &self,
        core: &Arc<PartitionCore>,
        tree: &Arc<Tree>,
        installed: Installed,
        flushed_upto: u64,
    ) {
        let entry = Entry {
            core: Arc::clone(core),
            tree: Arc::clone(tree),
            version: Arc::new(installed.version),
            manifest: installed.manifest,
            flushed_upto,
        };
        self.update(|map| {
            map.insert(core.id, Arc::new(entry));
        });
    }

    /// Forgets a partition. Inside the commit queue only.
    pub(crate) fn remove(&self, id: u32) {
        self.update(|map| {
            map.remove(&id);
        });
    }

    /// Takes note of what `tree` has installed; `flushed_upto` if a flush did it.
    pub(crate) fn refresh(&self, core: &PartitionCore, tree: &Tree, flushed_upto: Option<u64>) {
        let Installed { version, manifest } = tree.installed();
        self.update(|map| {
            let Some(entry) = map.get_mut(&core.id) else { return };
            // A clear may have moved the partition to another tree meanwhile.
            if entry.tree.id != tree.id {
                return;
            }
            let mut renewed = Entry::clone(entry);
            let (id, known) = (version.id, renewed.version.id);
            if id > known {
                renewed.version = Arc::new(version);
                renewed.manifest = manifest;
            } else if id == known {
                renewed.manifest = renewed.manifest.or(manifest);
            }
            renewed.flushed_upto = renewed.flushed_upto.max(flushed_upto.unwrap_or(0));
            *entry = Arc::new(renewed);
        });
    }
}

/// How far a partition is in tables; a partition that is gone needs nothing any more.
pub(crate) fn flushed_upto(map: &VersionMap, partition: u32) -> u64 {
    map.get(&partition).map_or(u64::MAX, |entry| entry.flushed_upto)
}
