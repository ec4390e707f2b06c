//! Randomised operations on a keyspace, compared with ordered maps after every few of them.
//!
//! One test for each set of options; all run the same operations. A failure prints its seed and the
//! step; `ESKER_SEED=… cargo test -p esker-tests --test model NAME` repeats it.

mod machine;

use esker::{Compression, Config, Durability, PartitionOptions};
use machine::{Machine, Settings};

const OPERATIONS: u64 = 2_000;

fn run(name: &str, config: fn(Config) -> Config, options: PartitionOptions) {
    let mut machine = Machine::new(name, Settings { config, options });
    for step in 0..OPERATIONS {
        machine.step(step);
    }
    machine.finish();
}

#[test]
fn the_model_holds_with_default_options() {
    run("default", |config| config, PartitionOptions::default());
}

#[test]
fn the_model_holds_with_tiny_memtables_and_segments() {
    run(
        "tiny",
        |config| {
            config.memtable_bytes(1024).journal_segment_bytes(4096).journal_bytes_max(16 << 10)
        },
        PartitionOptions::default().block_bytes(256).table_bytes(4096).l0_runs(1),
    );
}

#[test]
fn the_model_holds_with_separated_values() {
    run(
        "separated",
        |config| config.memtable_bytes(2048).journal_segment_bytes(4096),
        PartitionOptions::default()
            .separate_values_from(Some(24))
            .block_bytes(256)
            .table_bytes(8192)
            .l0_runs(2),
    );
}

#[test]
fn the_model_holds_with_one_worker_no_cache_and_no_filters() {
    run(
        "one worker",
        |config| {
            config
                .worker_threads(1)
                .cache_bytes(0)
                .memtable_bytes(1024)
                .write_buffer_bytes_max(2048)
                .journal_segment_bytes(8192)
        },
        PartitionOptions::default()
            .filter_bits_per_key(0.0)
            .compression(Compression::None)
            .block_bytes(1024)
            .l0_runs(32),
    );
}

#[test]
fn the_model_holds_with_synced_commits_and_every_value_separated() {
    run(
        "synced",
        |config| config.durability(Durability::SyncData).memtable_bytes(8192),
        PartitionOptions::default()
            .separate_values_from(Some(1))
            .compression(Compression::None)
            .table_bytes(4096),
    );
}
