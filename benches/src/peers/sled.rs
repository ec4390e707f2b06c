//! sled 0.34.7, its newest stable version.
//!
//! - Unsynced: `insert` alone; a thread flushes every 500 ms (its default), until then a write is in
//!   the memory of the process: survives nothing. Durable, as its users would have it: `insert`,
//!   then `flush`, where waiting threads share one. On Linux that is `sync_file_range`, which
//!   writes pages out but flushes neither the cache of the disk nor the metadata of the file: it
//!   promises no more than surviving a kill, so the number is not one of a durable write.
//! - No compression (zstd is a feature, off by default), no filters. Its cache holds dirty pages
//!   too, so it gets cache and write buffer together.
//! - Settled: flushed. It has no compaction to call.
//! - Copies: none. `export` walks a tree that goes on changing, and needs a program to import it.

use std::fs::File;
use std::path::{Path, PathBuf};

use ::sled::{Batch, Config, Db};
use rustix::fs::FlockOperation;

use super::{
    Direction, Durability, Key, Peer, Session, Settings, Survives, Taken, Variant, look, walk,
};
use crate::Result;

struct Sled {
    dir: PathBuf,
    database: Db,
    durability: Durability,
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    let cache_bytes = settings.cache_bytes + settings.buffer_bytes;
    let database = Config::new().path(dir).cache_capacity(cache_bytes).open()?;
    Ok(Box::new(Sled { dir: dir.to_path_buf(), database, durability: settings.durability }))
}

impl Peer for Sled {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(SledSession(self)))
    }

    fn survives(&self) -> Survives {
        match self.durability {
            Durability::Unsynced => Survives::Nothing,
            // See above.
            Durability::Durable => Survives::Kill,
        }
    }

    fn persist(&self) -> Result<()> {
        self.database.flush()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.persist()
    }

    fn can_copy(&self, _: Variant) -> bool {
        false
    }

    fn copy_to(&self, _: &Path, _: Variant) -> Result<Taken> {
        Err("sled cannot copy an open database".into())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.persist()?;
        let path = self.dir.join("db");
        drop(self.database);
        // Its threads let go of the file some time after that.
        rustix::fs::flock(File::open(path)?, FlockOperation::LockExclusive)?;
        Ok(())
    }
}

struct SledSession<'a>(&'a Sled);

impl SledSession<'_> {
    fn flush_if_durable(&self) -> Result<()> {
        if self.0.durability == Durability::Durable {
            self.0.database.flush()?;
        }
        Ok(())
    }
}

impl Session for SledSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.0.database.insert(key, value)?;
        self.flush_if_durable()
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = Batch::default();
        for (key, value) in entries {
            batch.insert(key.as_slice(), *value);
        }
        self.0.database.apply_batch(batch)?;
        self.flush_if_durable()
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let value = self.0.database.get(key)?;
        Ok(value.inspect(|value| look(value)).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let database = &self.0.database;
        let entries = match (direction, from) {
            (_, None) => database.iter(),
            (Direction::Forward, Some(key)) => database.range(key.as_slice()..),
            (Direction::Reverse, Some(key)) => database.range(..=key.as_slice()),
        };
        walk(entries, direction, limit, |entry| {
            look(&entry?.1);
            Ok(())
        })
    }
}
