//! Drill: a backup counts when it was restored. Restores the newest one, opens it, reads all of it, and
//! removes it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker::{Config, Slice, VerifyOptions};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, IoContext as _, Result};
use crate::layout::BackupId;
use crate::repository::Repository;
use crate::restore::{RestoreOptions, RestoreReport};

/// What a drill did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DrillReport {
    /// What the restore did, and how long it took: the time that a real one takes from here.
    pub restore: RestoreReport,
    /// What was restored, by partition.
    pub partitions: Vec<DrilledPartition>,
    /// How long it took to verify all files.
    pub verify: Duration,
    /// How long it took to open it and to read all entries.
    pub read: Duration,
    /// From the call to the return.
    pub total: Duration,
}

/// The content of a partition that was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DrilledPartition {
    /// Its name.
    pub partition: String,
    /// Its number of entries.
    pub entries: u64,
    /// xxh3-128 of its entries in key order, as `esker digest` prints it: for each the length of the key
    /// (u32 little-endian), the key, the length of the value, the value.
    pub xxh3_128: String,
}

/// A directory that goes when this does.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "what was restored stays behind");
        }
    }
}

impl Repository {
    /// Restores the newest backup into a new directory in `scratch`, verifies it, opens it, reads every
    /// entry, and removes it again.
    ///
    /// # Errors
    ///
    /// As [`Repository::restore`]; [`Error::Corrupt`] when what was restored is not sound;
    /// [`Error::NoSuchBackup`] when there is none.
    pub fn drill(&self, scratch: impl AsRef<Path>, options: RestoreOptions) -> Result<DrillReport> {
        self.drill_backup(self.find(None)?, scratch, options)
    }

    /// The same with a certain backup.
    ///
    /// # Errors
    ///
    /// As [`Repository::drill`].
    pub fn drill_backup(
        &self,
        backup: BackupId,
        scratch: impl AsRef<Path>,
        options: RestoreOptions,
    ) -> Result<DrillReport> {
        let began = Instant::now();
        let name = format!(".esker-drill-{:016x}", rand::random::<u64>());
        let scratch = Scratch(scratch.as_ref().join(name));
        std::fs::create_dir_all(&scratch.0).at("create", &scratch.0)?;
        let target = scratch.0.join("keyspace");
        let restore = self.restore(backup, &target, options.delta(false))?;
        let verifying = Instant::now();
        let verified = esker::verify(&target, VerifyOptions::default())?;
        if let Some(problem) = verified.problems.first() {
            let count = verified.problems.len();
            let what = format!("it was restored with {count} problems, the first: {problem}");
            return Err(Error::corrupt(backup.object().to_string(), what));
        }
        let verify = verifying.elapsed();
        let reading = Instant::now();
        let partitions = read_all(&target)?;
        let read = reading.elapsed();
        let names: Vec<_> = partitions.iter().map(|partition| &partition.partition).collect();
        if names != restore.partitions.iter().collect::<Vec<_>>() {
            let what = format!("it was restored with the partitions {names:?}");
            return Err(Error::corrupt(backup.object().to_string(), what));
        }
        drop(scratch);
        Ok(DrillReport { restore, partitions, verify, read, total: began.elapsed() })
    }
}

fn read_all(path: &Path) -> Result<Vec<DrilledPartition>> {
    // For writing, as whoever restores it would: what is drilled is the open as well.
    let keyspace = Config::new(path).create_if_missing(false).open()?;
    let mut partitions = Vec::new();
    for name in keyspace.partitions() {
        let missing = || esker::Error::NoSuchPartition { name: name.clone() };
        let partition = keyspace.open_partition(&name)?.ok_or_else(missing)?;
        let (mut hash, mut entries) = (Xxh3::new(), 0);
        for entry in partition.iter()? {
            let (key, value): (Slice, Slice) = entry?;
            for part in [&key, &value] {
                // The engine keeps keys under 64 KiB and values under 4 GiB.
                hash.update(&(part.len() as u32).to_le_bytes());
                hash.update(part);
            }
            entries += 1;
        }
        let xxh3_128 = format!("{:032x}", hash.digest128());
        partitions.push(DrilledPartition { partition: name, entries, xxh3_128 });
    }
    keyspace.close()?;
    Ok(partitions)
}
