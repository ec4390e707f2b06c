//! Point reads of random keys, from the memtable and from tables.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::{Config, Partition, PartitionOptions};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

const ENTRIES: u64 = 500_000;
const VALUE_BYTES: usize = 100;

/// Even keys exist.
fn fill(partition: &Partition) {
    let mut random = SmallRng::seed_from_u64(4);
    let mut value = [b'v'; VALUE_BYTES];
    for number in 0..ENTRIES {
        random.fill_bytes(&mut value[..VALUE_BYTES / 2]);
        partition.insert((number * 2).to_be_bytes(), value.as_slice()).unwrap();
    }
}

fn get(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let keyspace = Config::new(dir.path().join("k")).memtable_bytes(128 << 20).open().unwrap();
    let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
    fill(&partition);
    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    for place in ["memtable", "tables"] {
        for (name, odd) in [("hit", 0), ("miss", 1)] {
            let mut random = SmallRng::seed_from_u64(5);
            group.bench_function(BenchmarkId::new(name, place), |bencher| {
                bencher.iter(|| {
                    let key = random.random_range(0..ENTRIES) * 2 + odd;
                    partition.get(key.to_be_bytes()).unwrap()
                });
            });
        }
        partition.compact().unwrap();
    }
}

criterion_group!(benches, get);
criterion_main!(benches);
