//! Keyspaces whose files do not compress: one large table, or many small ones.

use std::path::{Path, PathBuf};

use esker::{Compression, Config, PartitionOptions};
use esker_bench::Result;
use esker_bench::compare::files;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const VALUE_BYTES: usize = 64 << 10;
/// With more tables in a partition the engine makes larger ones.
const SMALL_PARTITIONS: u64 = 16;

/// What the files of a keyspace are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All in one table.
    One,
    /// Tables of 1 MiB.
    Small,
}

impl Shape {
    pub const ALL: [Self; 2] = [Self::One, Self::Small];

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Small => "small",
        }
    }

    /// Makes a checkpoint of a keyspace with so many bytes of this shape below `dir`.
    pub fn make(self, dir: &Path, bytes: u64) -> Result<Made> {
        let path = dir.join(format!("{} keyspace", self.name()));
        let keyspace = Config::new(&path).open()?;
        let options = PartitionOptions::default().compression(Compression::None);
        let (partitions, options) = match self {
            Self::One => (1, options.table_bytes(1 << 40)),
            Self::Small => (SMALL_PARTITIONS, options.table_bytes(1 << 20)),
        };
        let mut random = SmallRng::seed_from_u64(7);
        let mut value = vec![0; VALUE_BYTES];
        for number in 0..partitions {
            let partition = keyspace.partition(&format!("p{number}"), options.clone())?;
            for key in 0..bytes / partitions / VALUE_BYTES as u64 {
                random.fill_bytes(&mut value);
                partition.insert(key.to_be_bytes(), &value[..])?;
            }
            partition.compact()?;
        }
        let checkpoint = dir.join(format!("{} checkpoint", self.name()));
        keyspace.backup_to(&checkpoint)?;
        keyspace.close()?;
        std::fs::remove_dir_all(path)?;
        let found = files::list(&checkpoint)?;
        let lengths = found.iter().map(|path| Ok(std::fs::metadata(path)?.len()));
        let bytes = lengths.sum::<Result<u64>>()?;
        Ok(Made { checkpoint, files: found.len() as u64, bytes })
    }
}

/// A checkpoint and how much it is.
pub struct Made {
    pub checkpoint: PathBuf,
    pub files: u64,
    pub bytes: u64,
}
