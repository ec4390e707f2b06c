//! fjall 3: the same trees as esker's, under another journal.
//!
//! - Unsynced: its default, where every write is handed to the operating system (its journal
//!   buffer of 8 KiB is flushed per write unless `manual_journal_persist` is set); survives a kill.
//!   Durable: `insert`, then `Database::persist(SyncData)`, as its documentation has it; a batch
//!   carries `durability(SyncData)`. There is no group commit: each thread syncs for itself.
//! - Its default leaves two levels uncompressed and gives the first a larger filter; here LZ4 from
//!   the second level down and 10 bits per key everywhere, as for esker.
//! - The write buffer: `max_write_buffer_size` is accepted and used nowhere in 3.1.13. What holds
//!   memory down is the memtable size, with four sealed ones at most: a fifth of the buffer each.
//! - Settled: `rotate_memtable_and_wait`, then `major_compact`.
//! - Bulk loads: `Keyspace::start_ingestion`.
//! - It has no copy of an open database, so it is stopped and copied: writers are kept out, flushes
//!   and compactions waited for, the journal synced, and the directory copied and synced. Its
//!   counters can be zero between two jobs, so a copy during which a file changed is made again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::fjall::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use ::fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{
    Direction, Durability, Key, Peer, Session, Settings, Source, Survives, Taken, Variant, look,
    walk,
};
use crate::Result;
use crate::compare::files;

/// Four sealed memtables and the active one.
const MEMTABLES: u64 = 5;
/// Copies that may be disturbed by the background.
const ATTEMPTS: usize = 100;

struct Fjall {
    dir: PathBuf,
    database: Database,
    keyspace: Keyspace,
    durability: Durability,
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    let database = Database::builder(dir).cache_size(settings.cache_bytes).open()?;
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
    let keyspace = database.keyspace("p", || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(settings.buffer_bytes / MEMTABLES)
            .filter_policy(FilterPolicy::all(filter))
            .data_block_compression_policy(CompressionPolicy::new([
                CompressionType::None,
                CompressionType::Lz4,
            ]))
    })?;
    Ok(Box::new(Fjall {
        dir: dir.to_path_buf(),
        database,
        keyspace,
        durability: settings.durability,
    }))
}

impl Peer for Fjall {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        Ok(Box::new(FjallSession(self)))
    }

    fn survives(&self) -> Survives {
        match self.durability {
            Durability::Unsynced => Survives::Kill,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    fn settle(&self) -> Result<()> {
        self.keyspace.rotate_memtable_and_wait()?;
        Ok(self.keyspace.major_compact()?)
    }

    fn copy_needs_stop(&self) -> bool {
        true
    }

    fn can_copy(&self, variant: Variant) -> bool {
        variant == Variant::Default
    }

    fn copy_to(&self, target: &Path, _: Variant) -> Result<Taken> {
        self.database.persist(PersistMode::SyncAll)?;
        for _ in 0..ATTEMPTS {
            let busy = || self.database.outstanding_flushes() + self.database.active_compactions();
            while busy() > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let before = files::stamp(&self.dir)?;
            fs::create_dir(target)?;
            // A file that vanished meanwhile fails the copy; the stamp tells.
            let copied = files::copy_directory(&self.dir, target);
            if files::stamp(&self.dir)? == before {
                copied?;
                files::sync_filesystem(target)?;
                return Ok(Taken::default());
            }
            fs::remove_dir_all(target)?;
        }
        Err("fjall went on changing its files while nobody wrote".into())
    }

    fn ingest(&self, source: &mut Source<'_>, _: &Path) -> Result<Option<Duration>> {
        let (mut key, mut value) = (Key::default(), Vec::new());
        let mut ingestion = self.keyspace.start_ingestion()?;
        while source(&mut key, &mut value) {
            ingestion.write(key.as_slice(), value.as_slice())?;
        }
        let began = Instant::now();
        ingestion.finish()?;
        Ok(Some(began.elapsed()))
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.database.persist(PersistMode::SyncAll)?;
        Ok(())
    }
}

struct FjallSession<'a>(&'a Fjall);

impl Session for FjallSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        self.0.keyspace.insert(key.as_slice(), value)?;
        if self.0.durability == Durability::Durable {
            self.0.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = self.0.database.batch();
        if self.0.durability == Durability::Durable {
            batch = batch.durability(Some(PersistMode::SyncData));
        }
        for (key, value) in entries {
            batch.insert(&self.0.keyspace, key.as_slice(), *value);
        }
        Ok(batch.commit()?)
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let value = self.0.keyspace.get(key)?;
        Ok(value.inspect(|value| look(value)).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let keyspace = &self.0.keyspace;
        let entries = match (direction, from) {
            (_, None) => keyspace.iter(),
            (Direction::Forward, Some(key)) => keyspace.range(key.as_slice()..),
            (Direction::Reverse, Some(key)) => keyspace.range(..=key.as_slice()),
        };
        walk(entries, direction, limit, |entry| {
            look(&entry.into_inner()?.1);
            Ok(())
        })
    }
}
