//! SQLite through `rusqlite`, in WAL mode: one table `kv (k BLOB PRIMARY KEY, v BLOB)`.
//!
//! - Rows of up to a twentieth of a page live in the tree of the primary key (`WITHOUT ROWID`),
//!   larger ones beside it, as its documentation advises.
//! - Every put is a transaction of its own, with prepared statements. Each thread has a connection.
//!   Only one can write at a time, and one that finds the lock taken sleeps and tries again, so
//!   writers here queue at a mutex first: in its favour.
//! - Unsynced: `synchronous = OFF`, written to the WAL; survives a kill. Durable:
//!   `synchronous = FULL`, which in WAL mode syncs the WAL in each commit (`NORMAL` does not).
//! - No compression, no filters. The cache is per connection: each gets its share of cache and
//!   write buffer together. The WAL is moved into the database every 1,000 pages, its default.
//! - Settled: `wal_checkpoint(TRUNCATE)`.
//! - Copies: the online backup API, all pages in one step: with smaller steps it begins anew at
//!   each write of another connection. In WAL mode writers are not kept out, but the WAL grows.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::rusqlite::backup::{Backup, StepResult};
use ::rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Direction, Durability, KEY_BYTES, Key, Peer, Session, Settings, Survives, Taken, Variant, look,
};
use crate::Result;

const FILE: &str = "data.sqlite";
const BUSY: Duration = Duration::from_secs(60);
/// A twentieth of a page of 4 KiB.
const ROW_BYTES_MAX: usize = 200;
const RETRY: Duration = Duration::from_millis(1);
const PUT: &str = "INSERT OR REPLACE INTO kv (k, v) VALUES (?1, ?2)";
const GET: &str = "SELECT v FROM kv WHERE k = ?1";
const FORWARD: &str = "SELECT v FROM kv WHERE k >= ?1 ORDER BY k LIMIT ?2";
const REVERSE: &str = "SELECT v FROM kv WHERE k <= ?1 ORDER BY k DESC LIMIT ?2";

struct Sqlite {
    path: PathBuf,
    settings: Settings,
    writing: Mutex<()>,
    /// Keeps the WAL alive, and does what is not for a session.
    main: Mutex<Connection>,
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(FILE);
    let main = connect(&path, settings)?;
    let shape =
        if KEY_BYTES + settings.value_bytes <= ROW_BYTES_MAX { "WITHOUT ROWID" } else { "" };
    main.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY NOT NULL, v BLOB NOT NULL) {shape}"
    ))?;
    let (writing, main) = (Mutex::new(()), Mutex::new(main));
    Ok(Box::new(Sqlite { path, settings: *settings, writing, main }))
}

fn connect(path: &Path, settings: &Settings) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = match settings.durability {
        Durability::Unsynced => "OFF",
        Durability::Durable => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    let kib = (settings.cache_bytes + settings.buffer_bytes) / settings.threads as u64 / 1024;
    connection.pragma_update(None, "cache_size", -(kib as i64))?;
    Ok(connection)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer for Sqlite {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        let connection = connect(&self.path, &self.settings)?;
        Ok(Box::new(SqliteSession { connection, writing: &self.writing }))
    }

    fn survives(&self) -> Survives {
        match self.settings.durability {
            Durability::Unsynced => Survives::Kill,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        // With `synchronous = OFF` not even a checkpoint syncs.
        std::fs::File::open(self.path.with_extension("sqlite-wal"))?.sync_data()?;
        Ok(std::fs::File::open(&self.path)?.sync_data()?)
    }

    fn settle(&self) -> Result<()> {
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        lock(&self.main).query_row(truncate, [], |_| Ok(()))?;
        self.persist()
    }

    fn can_copy(&self, variant: Variant) -> bool {
        variant == Variant::Default
    }

    fn copy_to(&self, target: &Path, _: Variant) -> Result<Taken> {
        std::fs::create_dir(target)?;
        let source = connect(&self.path, &self.settings)?;
        let path = target.join(FILE);
        let mut copy = Connection::open(&path)?;
        {
            let backup = Backup::new(&source, &mut copy)?;
            while backup.step(-1)? != StepResult::Done {
                std::thread::sleep(RETRY);
            }
        }
        drop(copy);
        std::fs::File::open(path)?.sync_all()?;
        std::fs::File::open(target)?.sync_all()?;
        Ok(Taken::default())
    }

    fn close(self: Box<Self>) -> Result<()> {
        // The last connection to close moves the WAL into the database.
        let main = self.main.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(main.close().map_err(|(_, error)| error)?)
    }
}

struct SqliteSession<'a> {
    connection: Connection,
    writing: &'a Mutex<()>,
}

impl Session for SqliteSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        let mut put = self.connection.prepare_cached(PUT)?;
        let _one = lock(self.writing);
        put.execute(params![key.as_slice(), value])?;
        Ok(())
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let _one = lock(self.writing);
        let transaction = self.connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(PUT)?;
            for (key, value) in entries {
                put.execute(params![key.as_slice(), value])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let mut get = self.connection.prepare_cached(GET)?;
        let row = get.query_row(params![key.as_slice()], |row| {
            look(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(row.optional()?.is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let (text, end) = match direction {
            Direction::Forward => (FORWARD, [0; 16]),
            Direction::Reverse => (REVERSE, [255; 16]),
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut scan = self.connection.prepare_cached(text)?;
        let mut rows = scan.query(params![from.unwrap_or(&end).as_slice(), limit])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            look(row.get_ref(0)?.as_blob()?);
            seen += 1;
        }
        Ok(seen)
    }
}
