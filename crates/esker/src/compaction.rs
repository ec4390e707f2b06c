//! When and how far to compact.
//!
//! lsm-tree decides what to merge (leveled). We decide how large tables get: its installs are
//! quadratic in the number of tables of a level (779 ms under the lock that reads take, at 10,000),
//! so the table size grows with the data and a tree stays below about a thousand tables.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::keyspace::Shared;
use crate::options::PartitionOptions;
use crate::partition::PartitionCore;
use crate::tree::{Compacted, Strategy, Tree};

const TABLES_WANTED_MAX: u64 = 500;

/// The table size for a tree of `disk_bytes`: doubled until there are few enough tables.
fn table_bytes(options: &PartitionOptions, disk_bytes: u64) -> u64 {
    let mut bytes = options.table_bytes;
    while disk_bytes / bytes > TABLES_WANTED_MAX {
        bytes *= 2;
    }
    bytes
}

impl Shared {
    /// Compacts until the tree wants nothing more.
    pub(crate) fn compact_tree(&self, core: &PartitionCore, tree: &Tree) -> Result<()> {
        loop {
            let strategy = Strategy::Leveled {
                table_bytes: table_bytes(&core.options, tree.disk_space()),
                l0_runs: core.options.l0_runs,
            };
            if self.compact_once(core, tree, strategy)? == Compacted::Nothing || self.is_closing() {
                return Ok(());
            }
            self.update_pressure();
        }
    }

    fn compact_once(
        &self,
        core: &PartitionCore,
        tree: &Tree,
        strategy: Strategy,
    ) -> Result<Compacted> {
        self.record_ingests(tree)?;
        let compacted = tree.compact(&self.views, strategy)?;
        if compacted == Compacted::Something {
            self.compactions.fetch_add(1, Ordering::Relaxed);
            self.versions.refresh(core, tree, None);
        }
        Ok(compacted)
    }

    /// `Partition::compact`.
    pub(crate) fn compact_partition(&self, core: &Arc<PartitionCore>) -> Result<()> {
        let _open = self.begin_operation()?;
        core.check_alive()?;
        let run = || {
            self.flush_partition(core)?;
            let tree = core.tree();
            let table_bytes = table_bytes(&core.options, tree.disk_space());
            self.compact_once(core, &tree, Strategy::Everything { table_bytes })?;
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
