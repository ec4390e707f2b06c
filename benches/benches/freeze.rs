//! The pause of a checkpoint while one thread writes. The program `checkpoint` shows the tail and
//! more shapes; this one is for comparing two versions of the code.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use esker_bench::fixture::Fixture;
use esker_bench::load::{Keys, Load};

const TABLES: usize = 1_000;

fn freeze(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("freeze");
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    for partitions in [1, 10, 100] {
        let dir = tempfile::tempdir().unwrap();
        let mut fixture = Fixture::create(&dir.path().join("k"), partitions).unwrap();
        fixture.grow(TABLES).unwrap();
        let target = dir.path().join("checkpoint");
        let load = Load::start(&fixture.partitions, 1, Keys::Ascending, 1);
        group.bench_function(BenchmarkId::new("partitions", partitions), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut frozen = Duration::ZERO;
                for _ in 0..rounds.min(MAX) {
                    // The pause is the same whatever is taken; nothing is quickest.
                    let nothing: [String; 0] = [];
                    let checkpoint = fixture.keyspace.checkpoint().include(nothing);
                    frozen += checkpoint.write_to(&target).unwrap().freeze;
                    std::fs::remove_dir_all(&target).unwrap();
                }
                frozen.mul_f64(rounds as f64 / rounds.min(MAX) as f64)
            });
        });
        load.finish().unwrap();
    }
}

/// Criterion plans by the time it is told, which is a thousandth of what a checkpoint takes.
const MAX: u64 = 50;

criterion_group!(benches, freeze);
criterion_main!(benches);
