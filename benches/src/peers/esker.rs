//! esker, with the options it has when nothing is said, but for cache and write buffer.
//!
//! - Unsynced: `Durability::Buffer`, in the operating system's hands when the put returns; survives
//!   a kill. Durable: `Durability::SyncData`, one `fdatasync` for a group of writers.
//! - LZ4 from the second level down, filters of 10 bits per key, blocks of 4 KiB, the write buffer
//!   as given (an entry counts with what it takes in memory); a memtable is flushed at 3/32 of it,
//!   the proportion of the defaults.
//! - Settled: flushed, then merged into the last level by `Partition::compact`.
//! - Bulk loads: `Partition::ingest`.

use std::ops::Bound;
use std::path::Path;
use std::time::{Duration, Instant};

use ::esker::{Config, Keyspace, Partition, PartitionOptions};

use super::{
    Direction, Durability, Key, Peer, Session, Settings, Source, Survives, Taken, Variant, look,
    walk,
};
use crate::Result;

struct Esker {
    keyspace: Keyspace,
    partition: Partition,
    durability: Durability,
}

/// Where a memtable is flushed, of a write buffer of this size: 24 of 256 MiB.
pub fn memtable_bytes(buffer_bytes: u64) -> u64 {
    buffer_bytes * 3 / 32
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    let durability = match settings.durability {
        Durability::Unsynced => ::esker::Durability::Buffer,
        Durability::Durable => ::esker::Durability::SyncData,
    };
    let keyspace = Config::new(dir)
        .cache_bytes(settings.cache_bytes)
        .write_buffer_bytes_max(settings.buffer_bytes)
        .memtable_bytes(memtable_bytes(settings.buffer_bytes))
        .durability(durability)
        .open()?;
    let partition = keyspace.partition("p", PartitionOptions::default())?;
    Ok(Box::new(Esker { keyspace, partition, durability: settings.durability }))
}

impl Peer for Esker {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(EskerSession { keyspace: &self.keyspace, partition: &self.partition }))
    }

    fn survives(&self) -> Survives {
        match self.durability {
            Durability::Unsynced => Survives::Kill,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        Ok(self.keyspace.persist(::esker::Durability::SyncData)?)
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.flush()?;
        Ok(self.partition.compact()?)
    }

    fn can_copy(&self, _: Variant) -> bool {
        true
    }

    fn copy_to(&self, target: &Path, variant: Variant) -> Result<Taken> {
        let report = match variant {
            Variant::Default | Variant::NoFlush => self.keyspace.backup_to(target)?,
            Variant::Flush => self.keyspace.checkpoint().flush_first(true).write_to(target)?,
        };
        Ok(Taken { freeze: Some(report.freeze) })
    }

    fn ingest(&self, source: &mut Source<'_>, _: &Path) -> Result<Option<Duration>> {
        let (mut key, mut value) = (Key::default(), Vec::new());
        let mut ingest = self.partition.ingest()?;
        while source(&mut key, &mut value) {
            ingest.insert(key.as_slice(), value.as_slice())?;
        }
        let began = Instant::now();
        ingest.finish()?;
        Ok(Some(began.elapsed()))
    }

    fn close(self: Box<Self>) -> Result<()> {
        drop(self.partition);
        Ok(self.keyspace.close()?)
    }
}

struct EskerSession<'a> {
    keyspace: &'a Keyspace,
    partition: &'a Partition,
}

impl Session for EskerSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.partition.insert(key.as_slice(), value)?)
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = self.keyspace.batch();
        for (key, value) in entries {
            batch.insert(self.partition, key.as_slice(), *value);
        }
        batch.commit()?;
        Ok(())
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let value = self.partition.get(key)?;
        Ok(value.inspect(|value| look(value)).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let bound = from.map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
        let entries = match direction {
            Direction::Forward => self.partition.range::<&[u8], _>((bound, Bound::Unbounded))?,
            Direction::Reverse => self.partition.range::<&[u8], _>((Bound::Unbounded, bound))?,
        };
        walk(entries, direction, limit, |entry| {
            look(&entry?.1);
            Ok(())
        })
    }
}
