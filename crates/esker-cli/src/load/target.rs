//! Where loaded entries go: batches one after the other, or one bulk load, sorted first if need be.

use std::path::Path;

use esker::{Batch, Error, Ingest, Keyspace, Partition, PersistMode, Slice};

use super::sort::Sorter;
use super::{Args, Tally};
use crate::failure::{Failure, Outcome};
use crate::output::Bar;

/// A batch is committed when its values reach this: large enough that a commit costs little beside
/// its bytes, small enough that reading goes on meanwhile.
const BATCH_BYTES_MAX: u64 = 4 << 20;

pub enum Target<'a> {
    Batches(Batches<'a>),
    /// Keys that ascend.
    Sorted(Box<Ingest>),
    /// Keys in any order.
    Sort {
        sorter: Sorter,
        partition: &'a Partition,
    },
}

impl<'a> Target<'a> {
    /// The target that the arguments ask for.
    pub fn new(args: &Args, keyspace: &'a Keyspace, partition: &'a Partition) -> Outcome<Self> {
        if args.sorted {
            return Ok(Self::Sorted(Box::new(partition.ingest()?)));
        }
        if args.bulk {
            let beside = keyspace.path().parent().filter(|dir| *dir != Path::new(""));
            let directory = args.temporary_directory.as_deref().or(beside);
            let memory_bytes_max = args.sort_memory as usize * (1 << 20);
            let sorter = Sorter::new(directory.unwrap_or(Path::new(".")), memory_bytes_max);
            return Ok(Self::Sort { sorter, partition });
        }
        Ok(Self::Batches(Batches {
            keyspace,
            partition,
            entries_max: args.batch,
            batch: keyspace.batch(),
            entries: 0,
            bytes: 0,
        }))
    }

    /// Adds an entry that the engine can take; `name` says where it came from.
    pub fn push(
        &mut self,
        key: Slice,
        value: Slice,
        name: impl FnOnce() -> String,
        tally: &mut Tally,
    ) -> Outcome {
        match self {
            Self::Batches(batches) => batches.push(key, value, tally),
            Self::Sort { sorter, .. } => sorter.push(key, value),
            Self::Sorted(ingest) => ingest.insert(key, value).map_err(|error| match error {
                Error::InvalidInput(reason) => {
                    let name = name();
                    Failure::Failed(format!("{name}: {reason}; nothing was loaded (--bulk sorts)"))
                }
                other => other.into(),
            }),
        }
    }

    /// Makes all of it durable.
    pub fn finish(self, keyspace: &Keyspace, bar: &Bar, tally: &mut Tally) -> Outcome {
        match self {
            Self::Batches(mut batches) => {
                batches.commit(tally)?;
                bar.say("syncing");
                Ok(keyspace.persist(PersistMode::SyncAll)?)
            }
            Self::Sorted(ingest) => {
                bar.say("finishing");
                tally.note(ingest.finish()?);
                Ok(())
            }
            Self::Sort { sorter, partition } => {
                bar.say("sorting");
                let mut ingest = partition.ingest()?;
                for entry in sorter.finish()? {
                    let (key, value) = entry?;
                    ingest.insert(key, value)?;
                }
                bar.say("finishing");
                tally.note(ingest.finish()?);
                Ok(())
            }
        }
    }
}

/// Commits of some entries each.
pub struct Batches<'a> {
    keyspace: &'a Keyspace,
    partition: &'a Partition,
    entries_max: u64,
    batch: Batch,
    entries: u64,
    bytes: u64,
}

impl Batches<'_> {
    /// Adds one entry; commits when the batch is full.
    fn push(&mut self, key: Slice, value: Slice, tally: &mut Tally) -> Outcome {
        self.entries += 1;
        self.bytes += (key.len() + value.len()) as u64;
        self.batch.insert(self.partition, key, value);
        if self.entries >= self.entries_max || self.bytes >= BATCH_BYTES_MAX {
            self.commit(tally)?;
        }
        Ok(())
    }

    /// Commits what is in the batch, if anything.
    fn commit(&mut self, tally: &mut Tally) -> Outcome {
        if self.entries == 0 {
            return Ok(());
        }
        std::mem::replace(&mut self.batch, self.keyspace.batch()).commit()?;
        tally.entries += std::mem::take(&mut self.entries);
        tally.bytes += std::mem::take(&mut self.bytes);
        Ok(())
    }
}
