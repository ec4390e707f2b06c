//! The write path: frames encoded, hashed and appended; synced commits of many threads.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::{Config, Durability, Keyspace, Partition, PartitionOptions};

const VALUE: [u8; 100] = [b'v'; 100];
const BATCH: u64 = 100;

fn open(durability: Durability) -> (tempfile::TempDir, Keyspace, Partition) {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Config::new(dir.path().join("k")).durability(durability).open().unwrap();
    let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
    (dir, keyspace, partition)
}

/// How long `threads` threads take for `total` inserts of ascending keys together.
fn insert(partition: &Partition, threads: u64, total: u64, run: u64) -> Duration {
    let each = total.div_ceil(threads);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for number in 0..each {
                    let key = [run, thread, number].map(u64::to_be_bytes).concat();
                    partition.insert(key, VALUE.as_slice()).unwrap();
                }
            });
        }
    });
    began.elapsed()
}

fn commit(criterion: &mut Criterion, name: &str, durability: Durability, threads: &[u64]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(8));
    for &threads in threads {
        let (_dir, keyspace, partition) = open(durability);
        let mut run = 0;
        group.bench_function(BenchmarkId::new("threads", threads), |bencher| {
            bencher.iter_custom(|total| {
                run += 1;
                insert(&partition, threads, total, run)
            });
        });
        drop(partition);
        keyspace.close().unwrap();
    }
}

fn unsynced(criterion: &mut Criterion) {
    commit(criterion, "commit/buffer", Durability::Buffer, &[1, 4]);
}

fn synced(criterion: &mut Criterion) {
    commit(criterion, "commit/sync_data", Durability::SyncData, &[1, 8, 32]);
}

/// Encoding and hashing dominate here: one frame of many entries, one append.
fn batches(criterion: &mut Criterion) {
    let (_dir, keyspace, partition) = open(Durability::Buffer);
    let mut group = criterion.benchmark_group("commit/batch");
    let mut next = 0_u64;
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function(BenchmarkId::new("entries", BATCH), |bencher| {
        bencher.iter(|| {
            let mut batch = keyspace.batch();
            for _ in 0..BATCH {
                next += 1;
                batch.insert(&partition, next.to_be_bytes(), VALUE.as_slice());
            }
            batch.commit().unwrap()
        });
    });
}

criterion_group!(benches, batches, unsynced, synced);
criterion_main!(benches);
