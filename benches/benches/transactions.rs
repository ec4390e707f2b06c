//! Optimistic transactions of few keys among many, durable, beside plain durable commits.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::{Config, Durability, PartitionOptions, TxKeyspace, TxKind, TxPartition};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const KEYS: u64 = 100_000;
const VALUE: [u8; 100] = [b'v'; 100];

fn plain(_: &TxKeyspace, partition: &TxPartition, random: &mut SmallRng) {
    partition.insert(random.random_range(0..KEYS).to_be_bytes(), VALUE).unwrap();
}

/// Two reads and a write.
fn transaction(keyspace: &TxKeyspace, partition: &TxPartition, random: &mut SmallRng) {
    let [a, b] = [0; 2].map(|_: u64| random.random_range(0..KEYS).to_be_bytes());
    keyspace
        .transact(|tx| {
            tx.get(partition, a)?;
            tx.get(partition, b)?;
            tx.insert(partition, a, VALUE)
        })
        .unwrap();
}

type Work = fn(&TxKeyspace, &TxPartition, &mut SmallRng);

fn run(
    keyspace: &TxKeyspace,
    partition: &TxPartition,
    threads: u64,
    total: u64,
    work: Work,
) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(thread ^ total);
                (0..total.div_ceil(threads)).for_each(|_| work(keyspace, partition, &mut random));
            });
        }
    });
    began.elapsed()
}

fn commits(criterion: &mut Criterion) {
    for durability in [Durability::SyncData, Durability::Buffer] {
        let mut group = criterion.benchmark_group(format!("commit/{durability:?}"));
        group.throughput(Throughput::Elements(1)).measurement_time(Duration::from_secs(8));
        let kinds: [(&str, TxKind, Work); 3] = [
            ("plain", TxKind::Optimistic, plain),
            ("optimistic", TxKind::Optimistic, transaction),
            ("single writer", TxKind::SingleWriter, transaction),
        ];
        for (name, kind, work) in kinds {
            let dir = tempfile::tempdir().unwrap();
            let config = Config::new(dir.path().join("k")).durability(durability);
            let keyspace = config.open_transactional(kind).unwrap();
            let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
            for threads in [1, 8] {
                group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                    bencher.iter_custom(|total| run(&keyspace, &partition, threads, total, work));
                });
            }
        }
    }
}

criterion_group!(benches, commits);
criterion_main!(benches);
