//! Keyspaces with a wanted number of partitions and tables.
//!
//! A tree gets its first tables by one compaction into small ones and further ones by flushing
//! ascending keys, which lsm-tree moves to the last level as they are.

use std::path::Path;

use esker::{Compression, Config, Keyspace, Partition, PartitionOptions};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::Result;

/// Small tables, of bytes that do not compress.
const TABLE_BYTES: u64 = 4 << 10;
const VALUE_BYTES: usize = 1 << 10;
/// Values per table of `TABLE_BYTES`, found by trying.
const VALUES_PER_TABLE: usize = 4;
/// Beyond this the engine makes larger tables instead of more.
const COMPACTED_TABLES_MAX: usize = 400;

/// An open keyspace that grows on demand.
pub struct Fixture {
    /// Open for as long as this lives.
    pub keyspace: Keyspace,
    /// `p0`, `p1`, …
    pub partitions: Vec<Partition>,
    random: SmallRng,
    next_key: u64,
}

impl Fixture {
    /// A new keyspace in `dir` with so many empty partitions.
    ///
    /// # Errors
    ///
    /// What the engine returns.
    pub fn create(dir: &Path, partitions: usize) -> Result<Self> {
        let keyspace = Config::new(dir).open()?;
        let options =
            PartitionOptions::default().table_bytes(TABLE_BYTES).compression(Compression::None);
        let partitions = (0..partitions)
            .map(|number| keyspace.partition(&format!("p{number}"), options.clone()))
            .collect::<esker::Result<_>>()?;
        Ok(Self { keyspace, partitions, random: SmallRng::seed_from_u64(1), next_key: 0 })
    }

    /// Tables in the keyspace.
    pub fn tables(&self) -> usize {
        self.keyspace.statistics().partitions.iter().map(|p| p.tables as usize).sum()
    }

    fn insert(&mut self, partition: usize) -> Result<()> {
        let mut value = vec![0; VALUE_BYTES];
        self.random.fill_bytes(&mut value);
        self.partitions[partition].insert(self.next_key.to_be_bytes(), value)?;
        self.next_key += 1;
        Ok(())
    }

    /// Adds tables until there are at least `wanted` (a few more, by how they are made).
    ///
    /// # Errors
    ///
    /// What the engine returns.
    pub fn grow(&mut self, wanted: usize) -> Result<()> {
        let each = wanted.div_ceil(self.partitions.len());
        if self.tables() == 0 && each > 1 {
            for partition in 0..self.partitions.len() {
                for _ in 0..each.min(COMPACTED_TABLES_MAX) * VALUES_PER_TABLE {
                    self.insert(partition)?;
                }
                self.partitions[partition].compact()?;
            }
        }
        while self.tables() < wanted {
            for partition in 0..self.partitions.len() {
                self.insert(partition)?;
            }
            self.keyspace.flush()?;
        }
        Ok(())
    }
}
