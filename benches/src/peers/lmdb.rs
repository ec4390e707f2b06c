//! LMDB (0.9.24) through `lmdb-rkv`: a memory-mapped copy-on-write B-tree.
//!
//! The newer `heed` can only be opened and set to `NOSYNC` in `unsafe` blocks, which this workspace
//! forbids.
//!
//! - Every put, batch and read is a transaction of its own. Only one write transaction is open at a
//!   time: writers queue.
//! - Unsynced: `NOSYNC`, written to the file in each commit; survives a kill (a power cut may leave
//!   the database corrupt). Durable: the default, a sync in each commit.
//! - No compression, no filters, no cache but the page cache: neither cache nor write buffer can be
//!   set, and the resident memory of a process includes what it has mapped and read.
//! - Settled: synced.
//! - Copies: `lmdb-rkv` does not offer `mdb_env_copy`. A read transaction is a snapshot, and what it
//!   sees is written into a new environment, in key order, in one commit: slower than `mdb_env_copy`,
//!   which writes pages as they are. Writers are not kept out.

use std::path::Path;

use ::lmdb::{
    Cursor as _, Database, DatabaseFlags, Environment, EnvironmentFlags, Error, Transaction as _,
    WriteFlags,
};

use super::{Direction, Durability, Key, Peer, Session, Settings, Survives, Taken, Variant, look};
use crate::Result;

/// Address space, not memory: more than any run will write.
const MAP_BYTES: usize = 512 << 30;
const READERS_MAX: u32 = 512;
// The cursor operations of lmdb.h.
const FIRST: u32 = 0;
const LAST: u32 = 6;
const NEXT: u32 = 8;
const PREVIOUS: u32 = 12;
const AT_OR_AFTER: u32 = 17;

struct Lmdb {
    environment: Environment,
    database: Database,
    durability: Durability,
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    std::fs::create_dir_all(dir)?;
    let (environment, database) = environment(dir, settings.durability)?;
    Ok(Box::new(Lmdb { environment, database, durability: settings.durability }))
}

fn environment(dir: &Path, durability: Durability) -> Result<(Environment, Database)> {
    let flags = match durability {
        Durability::Unsynced => EnvironmentFlags::NO_SYNC,
        Durability::Durable => EnvironmentFlags::empty(),
    };
    let mut builder = Environment::new();
    builder.set_flags(flags).set_map_size(MAP_BYTES).set_max_readers(READERS_MAX);
    let environment = builder.open(dir)?;
    let database = environment.create_db(None, DatabaseFlags::empty())?;
    Ok((environment, database))
}

/// None instead of the error that says there is nothing.
fn found<T>(result: ::lmdb::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Peer for Lmdb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(LmdbSession(self)))
    }

    fn survives(&self) -> Survives {
        match self.durability {
            Durability::Unsynced => Survives::Kill,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        Ok(self.environment.sync(true)?)
    }

    fn settle(&self) -> Result<()> {
        self.persist()
    }

    fn can_copy(&self, variant: Variant) -> bool {
        variant == Variant::Default
    }

    fn copy_to(&self, target: &Path, _: Variant) -> Result<Taken> {
        std::fs::create_dir(target)?;
        let (copy, database) = environment(target, Durability::Durable)?;
        let source = self.environment.begin_ro_txn()?;
        let mut transaction = copy.begin_rw_txn()?;
        for entry in source.open_ro_cursor(self.database)?.iter_start() {
            let (key, value) = entry?;
            transaction.put(database, &key, &value, WriteFlags::APPEND)?;
        }
        transaction.commit()?;
        std::fs::File::open(target)?.sync_all()?;
        Ok(Taken::default())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.persist()
    }
}

struct LmdbSession<'a>(&'a Lmdb);

impl Session for LmdbSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.put_batch(&[(*key, value)])
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let mut transaction = self.0.environment.begin_rw_txn()?;
        for (key, value) in entries {
            transaction.put(self.0.database, key, value, WriteFlags::empty())?;
        }
        Ok(transaction.commit()?)
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let transaction = self.0.environment.begin_ro_txn()?;
        let value = found(transaction.get(self.0.database, key))?;
        Ok(value.inspect(|value| look(value)).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let transaction = self.0.environment.begin_ro_txn()?;
        let cursor = transaction.open_ro_cursor(self.0.database)?;
        let (end, further) = match direction {
            Direction::Forward => (FIRST, NEXT),
            Direction::Reverse => (LAST, PREVIOUS),
        };
        let mut entry = match from {
            Some(key) => found(cursor.get(Some(key), None, AT_OR_AFTER))?,
            None => found(cursor.get(None, None, end))?,
        };
        let mut seen = 0;
        while let Some((_, value)) = entry {
            look(value);
            seen += 1;
            if seen == limit {
                break;
            }
            entry = found(cursor.get(None, None, further))?;
        }
        Ok(seen)
    }
}
