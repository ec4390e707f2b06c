//! RocksDB through the crate `rocksdb`.
//!
//! - Unsynced: the WAL is written, not synced; survives a kill. Durable: `WriteOptions::sync`,
//!   where writers that wait share an `fdatasync`.
//! - An LRU block cache of the given size, LZ4 from the second level down, filters of 10 bits per
//!   key (the full ones), blocks of 4 KiB (its default). Index and filter blocks stay outside of
//!   the cache, its default: faster, and memory on top of the cache, in its favour.
//! - The write buffer: four memtables of a quarter each, the largest that it holds before it stops
//!   writers. Background jobs: 2 to 4 by the processors, as esker's workers. `max_total_wal_size`
//!   512 MiB, the journal limit of esker and fjall.
//! - Settled: `flush`, then `compact_range` over everything with the bottommost level forced.
//! - Bulk loads: `SstFileWriter`, LZ4, tables of 64 MiB, then `ingest_external_file` by moving them.
//! - Copies: `Checkpoint`, which flushes memtables first; without a flush through
//!   `create_checkpoint_with_log_size(u64::MAX)`, which copies the WAL instead. It does not say how
//!   long it keeps writers out.

use std::path::Path;
use std::time::{Duration, Instant};

use ::rocksdb::checkpoint::Checkpoint;
use ::rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, CompactOptions, DB, DBCompressionType,
    DBRawIterator, IngestExternalFileOptions, Options, SstFileWriter, WriteBatch, WriteOptions,
};

use super::{
    Direction, Durability, Key, Peer, Session, Settings, Source, Survives, Taken, Variant, look,
};
use crate::Result;

const MEMTABLES: u64 = 4;
/// As lsm-tree cuts an ingest.
const SST_BYTES: u64 = 64 << 20;
const LEVELS: usize = 7;
const WAL_BYTES_MAX: u64 = 512 << 20;

struct RocksDb {
    database: DB,
    settings: Settings,
}

/// What the database and the tables that are made for it share.
fn table_options(settings: &Settings) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(settings.cache_bytes as usize));
    blocks.set_block_size(4 << 10);
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options
}

/// See [`super::Engine::open`].
pub fn open(dir: &Path, settings: &Settings) -> Result<Box<dyn Peer>> {
    let mut levels = [DBCompressionType::Lz4; LEVELS];
    levels[0] = DBCompressionType::None;
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    let mut options = table_options(settings);
    options.create_if_missing(true);
    options.set_compression_per_level(&levels);
    options.set_write_buffer_size((settings.buffer_bytes / MEMTABLES) as usize);
    options.set_max_write_buffer_number(MEMTABLES as i32);
    options.set_max_background_jobs(cpus.clamp(2, 4) as i32);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    let database = DB::open(&options, dir)?;
    Ok(Box::new(RocksDb { database, settings: *settings }))
}

impl Peer for RocksDb {
    fn session(&self) -> Result<Box<dyn Session + '_>> {
        let mut write = WriteOptions::default();
        write.set_sync(self.settings.durability == Durability::Durable);
        Ok(Box::new(RocksDbSession { database: &self.database, write }))
    }

    fn survives(&self) -> Survives {
        match self.settings.durability {
            Durability::Unsynced => Survives::Kill,
            Durability::Durable => Survives::Power,
        }
    }

    fn persist(&self) -> Result<()> {
        Ok(self.database.flush_wal(true)?)
    }

    fn settle(&self) -> Result<()> {
        self.database.flush()?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        self.database.compact_range_opt(None::<&[u8]>, None::<&[u8]>, &options);
        Ok(())
    }

    fn can_copy(&self, _: Variant) -> bool {
        true
    }

    fn copy_to(&self, target: &Path, variant: Variant) -> Result<Taken> {
        let checkpoint = Checkpoint::new(&self.database)?;
        match variant {
            Variant::Default | Variant::Flush => checkpoint.create_checkpoint(target)?,
            Variant::NoFlush => checkpoint.create_checkpoint_with_log_size(target, u64::MAX)?,
        }
        Ok(Taken::default())
    }

    fn ingest(&self, source: &mut Source<'_>, scratch: &Path) -> Result<Option<Duration>> {
        let mut options = table_options(&self.settings);
        options.set_compression_type(DBCompressionType::Lz4);
        let (mut key, mut value, mut tables) = (Key::default(), Vec::new(), Vec::new());
        let mut more = source(&mut key, &mut value);
        while more {
            let path = scratch.join(format!("{}.sst", tables.len()));
            let mut writer = SstFileWriter::create(&options);
            writer.open(&path)?;
            while more {
                writer.put(key, &value)?;
                more = source(&mut key, &mut value);
                if writer.file_size() >= SST_BYTES {
                    break;
                }
            }
            writer.finish()?;
            tables.push(path);
        }
        let began = Instant::now();
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.database.ingest_external_file_opts(&options, tables)?;
        Ok(Some(began.elapsed()))
    }

    fn close(self: Box<Self>) -> Result<()> {
        // A drop leaves unflushed memtables to the WAL; esker's close writes them to tables.
        self.database.flush()?;
        Ok(())
    }
}

struct RocksDbSession<'a> {
    database: &'a DB,
    write: WriteOptions,
}

impl Session for RocksDbSession<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.database.put_opt(key, value, &self.write)?)
    }

    fn put_batch(&mut self, entries: &[(Key, &[u8])]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in entries {
            batch.put(key, value);
        }
        Ok(self.database.write_opt(batch, &self.write)?)
    }

    fn get(&mut self, key: &Key) -> Result<bool> {
        let value = self.database.get_pinned(key)?;
        Ok(value.inspect(|value| look(value)).is_some())
    }

    fn scan(&mut self, from: Option<&Key>, direction: Direction, limit: u64) -> Result<u64> {
        let mut entries: DBRawIterator<'_> = self.database.raw_iterator();
        match (direction, from) {
            (Direction::Forward, None) => entries.seek_to_first(),
            (Direction::Forward, Some(key)) => entries.seek(key),
            (Direction::Reverse, None) => entries.seek_to_last(),
            (Direction::Reverse, Some(key)) => entries.seek_for_prev(key),
        }
        let mut seen = 0;
        while seen < limit {
            let Some((_, value)) = entries.item() else { break };
            look(value);
            seen += 1;
            match direction {
                Direction::Forward => entries.next(),
                Direction::Reverse => entries.prev(),
            }
        }
        entries.status()?;
        Ok(seen)
    }
}
