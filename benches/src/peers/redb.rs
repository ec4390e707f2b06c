//! redb: copy-on-write B-trees in one file.
//!
//! - Every put, batch and read is a transaction of its own, as single calls are for the others.
//!   Only one write transaction is open at a time: writers queue.
//! - Unsynced: `Durability::None`, which stays in the memory of the process: survives nothing (there
//!   is no `Eventual` any more). A commit like that every so often has to be a durable one, or the
//!   file grows without bounds: every 10,000th is. Durable: `Durability::Immediate`.
//! - No compression, no filters. Its cache holds dirty pages too, so it gets cache and write buffer
//!   together.
//! - Settled: one durable commit. `compact` needs the database to itself and is left out.
//! - Copies: it has none of its own; a read transaction is a snapshot, and what it sees is written
//!   into a new database, in key order, in one durable commit. Writers are not kept out.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use ::redb::{
    Builder, Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};

use super::{
    Direction, Durability, Key, Peer, Session, Settings, Survives, Taken, Variant, look, walk,
};
use crate::Result;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("p");
const FILE: &str = "data.redb";
const COMMITS_UNSYNCED_MAX: u64 = 10_000;

struct Redb {
    database: Database,
    durability: Durability,
    cache_bytes: usize,
    commits: AtomicU64,
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    std::fs::create_dir_all(dir)?;
    let cache_bytes = (settings.cache_bytes + settings.buffer_bytes) as usize;
    let database = Builder::new().set_cache_size(cache_bytes).create(dir.join(FILE))?;
    let transaction = database.begin_write()?;
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    let (durability, commits) = (settings.durability, AtomicU64::new(0));
    Ok(Box::new(Redb { database, durability, cache_bytes, commits }))
}

impl Redb {
    fn begin(&self) -> Result<WriteTransaction> {
        let mut transaction = self.database.begin_write()?;
        let number = self.commits.fetch_add(1, Ordering::Relaxed) + 1;
        if self.durability == Durability::Unsynced && !number.is_multiple_of(COMMITS_UNSYNCED_MAX) {
            transaction.set_durability(::redb::Durability::None)?;
        }
        Ok(transaction)
    }
}

impl Peer for Redb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(RedbSession(self)))
    }

    fn survives(&self) -> Survives {
        match self.durability {
            Durability::Unsynced => Survives::Nothing,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        Ok(self.database.begin_write()?.commit()?)
    }

    fn settle(&self) -> Result<()> {
        self.persist()
    }

    fn can_copy(&self, variant: Variant) -> bool {
        variant == Variant::Default
    }

    fn copy_to(&self, target: &Path, _: Variant) -> Result<Taken> {
        let source = self.database.begin_read()?.open_table(TABLE)?;
        std::fs::create_dir(target)?;
        let copy = Builder::new().set_cache_size(self.cache_bytes).create(target.join(FILE))?;
        let transaction = copy.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for entry in source.iter()? {
                let (key, value) = entry?;
                table.insert(key.value(), value.value())?;
            }
        }
        transaction.commit()?;
        Ok(Taken::default())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.persist()
    }
}

struct RedbSession<'a>(&'a Redb);

impl Session for RedbSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.put_batch(&[(*key, value)])
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let transaction = self.0.begin()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in entries {
                table.insert(key.as_slice(), *value)?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let table = self.0.database.begin_read()?.open_table(TABLE)?;
        let value = table.get(key.as_slice())?;
        Ok(value.inspect(|value| look(value.value())).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let table = self.0.database.begin_read()?.open_table(TABLE)?;
        let bound = from.map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
        let entries = match direction {
            Direction::Forward => table.range::<&[u8]>((bound, Bound::Unbounded))?,
            Direction::Reverse => table.range::<&[u8]>((Bound::Unbounded, bound))?,
        };
        walk(entries, direction, limit, |entry| {
            look(entry?.1.value());
            Ok(())
        })
    }
}
