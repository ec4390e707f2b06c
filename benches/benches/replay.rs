//! Opening a keyspace that was not closed: reading the journal back into memory and into tables.
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

use std::fs;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use esker::{Config, Durability, PartitionOptions};

const VALUE: [u8; 100] = [b'v'; 100];

/// What a crash would leave of a keyspace with so many commits in its journal and none in tables:
/// so few that nothing goes on in the background while it is copied.
fn crashed(at: &Path, commits: u64) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    let keyspace = Config::new(&path).open().unwrap();
    let partition = keyspace.partition("p", PartitionOptions::default()).unwrap();
    for number in 0..commits {
        partition.insert(number.to_be_bytes(), VALUE.as_slice()).unwrap();
    }
    keyspace.persist(Durability::SyncData).unwrap();
    copy(&path, at);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    group.sample_size(10);
    for commits in [1_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("template");
        crashed(&template, commits);
        let path = dir.path().join("k");
        group.throughput(Throughput::Elements(commits));
        group.bench_function(BenchmarkId::new("replay", commits), |bencher| {
            bencher.iter_batched(
                || {
                    fs::remove_dir_all(&path).or_else(|_| fs::exists(&path).map(|_| ())).unwrap();
                    copy(&template, &path);
                    // Or the first sync of the open would pay for the copy.
                    rustix::fs::syncfs(fs::File::open(&path).unwrap()).unwrap();
                },
                |()| Config::new(&path).open().unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
}

criterion_group!(benches, replay);
criterion_main!(benches);
