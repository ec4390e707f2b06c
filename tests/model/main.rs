//! Randomised operations on a keyspace, compared with ordered maps: one test for each set of
//! options.
//!
//! A failure prints its seed, the step, the last operations and a command that repeats it.
//! `ESKER_ROUNDS` plays so many runs of each set, with seeds one after the other.

use esker_tests::chaos::{Rng, rounds, seed};
use esker_tests::fuzz::seeds;
use esker_tests::model::{self, KINDS, SETTINGS};

const OPERATIONS: u64 = 5_000;
const FUZZED_INPUTS: u64 = 60;
const FUZZED_BYTES: u64 = 400;

/// Plays the rounds of one set of options; every kind of operation happens.
#[allow(clippy::print_stdout, reason = "the figures of a run are for people")]
fn hold(name: &str) {
    let first = seed(name);
    for round in 0..rounds(1) {
        let seed = first.wrapping_add(round);
        let counts = match model::run_with(model::named(name), seed, OPERATIONS) {
            Ok(counts) => counts,
            Err(report) => panic!("{report}"),
        };
        println!("{name}, seed {seed}: {} kinds of operation happened", KINDS.len());
        for (kind, count) in KINDS.iter().zip(&counts) {
            println!("{count:>6} {}", kind.name);
            assert!(*count > 0, "{name}, ESKER_SEED={seed}: never happened: {}", kind.name);
        }
    }
}

macro_rules! sets_of_options {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                hold(stringify!($name));
            }
        )*

        #[test]
        fn every_set_of_options_has_a_test() {
            let tested = [$(stringify!($name)),*];
            let named: Vec<_> = SETTINGS.iter().map(|settings| settings.name).collect();
            assert_eq!(named, tested);
        }
    };
}

sets_of_options! {
    default
    tiny
    separated
    one_worker_without_cache_and_filters
    synced_and_every_value_separated
    many_runs
    one_segment_of_journal
    all_synced
    large_blocks_in_tiny_tables
    many_workers
    many_filter_bits
    almost_no_filter_bits
    only_large_values_separated
    journal_alone
    narrow_write_buffer
    blob_files_rewritten_early
    blob_files_rewritten_late
    first_in_and_never_out
    a_table_for_each_memtable
}

#[test]
fn there_are_at_least_thirty_kinds_of_operation_and_each_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), KINDS.len());
    assert!(names.len() >= 30, "{} kinds", names.len());
}

/// The seeds of the fuzz target `operations`, which only a fuzzer would run otherwise.
#[test]
fn every_seed_of_the_fuzzer_keeps_the_model() {
    let seeds = seeds("operations");
    assert!(!seeds.is_empty(), "there are no seeds");
    for (name, bytes) in seeds {
        eprintln!("{name}: {} bytes", bytes.len());
        model::fuzz(&bytes);
    }
}

#[test]
fn any_bytes_are_operations_that_keep_the_model() {
    let mut rng = Rng::new(seed("fuzzed operations"));
    model::fuzz(&[]);
    for _ in 0..rounds(1) * FUZZED_INPUTS {
        let len = rng.below(FUZZED_BYTES) as usize;
        model::fuzz(&rng.bytes(len));
    }
}
