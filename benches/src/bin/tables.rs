//! What many tables cost: one partition whose smallest table is tiny grows to what would be 50,000 of
//! them, and at each size one key is flushed again and again, and the keyspace is opened.
//!
//! lsm-tree's installs are quadratic in the number of tables of a level, so the engine lets tables grow
//! with the data. This shows how many there are, and what an install takes beside a reader.
#![expect(clippy::print_stdout, reason = "tables are what the program is for")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use esker::{Compression, Config, Keyspace, Partition, PartitionOptions};
use esker_bench::Result;
use esker_bench::arguments::Arguments;
use esker_bench::histogram::Histogram;
use esker_bench::table::{Table, mebibytes, micros, millis};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

const VALUE_BYTES: usize = 1000;
const KEY_BYTES: usize = 16;
/// Flushes of one key at each size.
const FLUSHES: usize = 20;

fn main() -> Result<()> {
    let arguments = Arguments::parse(&["tables", "table-bytes", "dir"])?;
    let sizes = arguments.list("tables", &[1_000_u64, 5_000, 10_000, 25_000, 50_000])?;
    let table_bytes = arguments.get("table-bytes", 4_096_u64)?;
    let parent = arguments.get("dir", std::env::temp_dir().display().to_string())?;
    let dir = tempfile::tempdir_in(parent)?;
    let path = dir.path().join("k");
    let mut keyspace = Config::new(&path).open()?;
    let options =
        PartitionOptions::default().table_bytes(table_bytes).compression(Compression::None);
    let mut rows = Table::new(&[
        "tables if none grew",
        "data",
        "tables",
        "mean table",
        "flush of one key p50",
        "max",
        "read beside it max",
        "open",
    ]);
    let mut random = SmallRng::seed_from_u64(1);
    let mut written = 0;
    for size in sizes {
        let partition = keyspace.partition("p", options.clone())?;
        while written < size * table_bytes {
            insert(&partition, &mut random)?;
            written += (KEY_BYTES + VALUE_BYTES) as u64;
        }
        keyspace.flush()?;
        settle(&keyspace);
        let (flushes, reads) = flush_one_key(&keyspace, &partition)?;
        let statistics = keyspace.statistics();
        let (tables, bytes) = (statistics.partitions[0].tables, partition.disk_space());
        keyspace.close()?;
        let began = Instant::now();
        keyspace = Config::new(&path).open()?;
        let opened = began.elapsed();
        rows.row([
            size.to_string(),
            mebibytes(bytes),
            tables.to_string(),
            format!("{} KiB", (bytes / tables.max(1)) >> 10),
            millis(flushes.median()),
            millis(flushes.max()),
            micros(reads.max()),
            millis(opened),
        ]);
    }
    println!("{rows}");
    Ok(())
}

fn insert(partition: &Partition, random: &mut SmallRng) -> Result<()> {
    let (mut key, mut value) = ([0; KEY_BYTES], vec![0; VALUE_BYTES]);
    random.fill_bytes(&mut key);
    random.fill_bytes(&mut value);
    Ok(partition.insert(key, value)?)
}

/// Waits until compaction has nothing left to do.
fn settle(keyspace: &Keyspace) {
    let (mut done, mut quiet) = (keyspace.statistics().compactions, 0);
    while quiet < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = keyspace.statistics().compactions;
        quiet = if now == done { quiet + 1 } else { 0 };
        done = now;
    }
}

/// How long flushes of one key take, and reads beside them.
fn flush_one_key(keyspace: &Keyspace, partition: &Partition) -> Result<(Histogram, Histogram)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> esker::Result<Histogram> {
            let mut reads = Histogram::default();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                partition.get([7; KEY_BYTES])?;
                reads.record(began.elapsed());
                std::thread::sleep(Duration::from_micros(50));
            }
            Ok(reads)
        });
        let mut flushes = Histogram::default();
        let mut run = || -> Result<()> {
            for number in 0..FLUSHES {
                partition.insert([7; KEY_BYTES], number.to_be_bytes())?;
                let began = Instant::now();
                keyspace.flush()?;
                flushes.record(began.elapsed());
            }
            Ok(())
        };
        let ran = run();
        stop.store(true, Ordering::Relaxed);
        let reads = reader.join().map_err(|_| "the reader panicked")??;
        ran.map(|()| (flushes, reads))
    })
}
