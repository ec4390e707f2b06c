//! The fuzz targets without a fuzzer: every seed, and some thousand mutations of each target's
//! seeds and of what the engine writes today.

use std::fs;
use std::path::Path;

use esker::fuzzing::{self, SegmentTail};
use esker_tests::chaos::{self, Rng};
use esker_tests::fuzz::{TARGETS, examples, mutation, seeds, seeds_of};

/// Where the child leaves the input that it is about to run.
const LAST_INPUT: &str = "ESKER_FUZZ_LAST_INPUT";
/// The child's whole address space: enough for the test, not for a length that is believed.
const MEMORY_BYTES_MAX: u64 = 1 << 30;
const MUTATIONS: u64 = 4_000;

/// A child runs the inputs, with little memory: an allocation that an input asked for ends it.
#[test]
fn every_seed_and_its_mutations_keep_the_promises_in_little_memory() {
    if let Some(path) = std::env::var_os(LAST_INPUT) {
        let limit = rustix::process::Rlimit {
            current: Some(MEMORY_BYTES_MAX),
            maximum: Some(MEMORY_BYTES_MAX),
        };
        rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
        return run_all(Path::new(&path));
    }
    let dir = chaos::memory_dir();
    let last = dir.path().join("input");
    let name = "fuzz::every_seed_and_its_mutations_keep_the_promises_in_little_memory";
    let output = chaos::rerun(name).env(LAST_INPUT, &last).output().unwrap();
    let input = fs::read(&last).expect("the child ran no input");
    assert!(
        output.status.success(),
        "{}\n{}\nthe last input (target, newline, bytes): {}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        input.escape_ascii()
    );
}

fn run_all(last: &Path) {
    let seed = chaos::seed("fuzz");
    for (name, target) in TARGETS {
        let mut inputs: Vec<Vec<u8>> = seeds(name).into_iter().map(|(_, bytes)| bytes).collect();
        assert!(!inputs.is_empty(), "{name} has no seeds");
        inputs.extend(examples::of(name).into_iter().map(|(_, bytes)| bytes));
        let mut rng = Rng::new(seed);
        let mutations = chaos::rounds(MUTATIONS) as usize;
        let mutated = std::iter::repeat_with(|| mutation::mutated(&mut rng, &inputs));
        for input in inputs.iter().cloned().chain(mutated.take(mutations)) {
            fs::write(last, [name.as_bytes(), b"\n", &input].concat()).unwrap();
            target(&input);
        }
    }
}

/// Seeds called `valid-…` are accepted, so that mutations of them get past the first check.
#[test]
fn valid_seeds_are_what_the_engine_accepts() {
    for (target, _) in TARGETS {
        let kept = seeds(target);
        let fresh = examples::of(target);
        let valid: Vec<_> =
            kept.iter().chain(&fresh).filter(|(name, _)| name.starts_with("valid-")).collect();
        assert!(!kept.is_empty() && !fresh.is_empty(), "{target} has no seeds");
        for (name, bytes) in valid {
            assert!(is_accepted(target, bytes), "{target}/{name} is refused");
        }
    }
}

fn is_accepted(target: &str, bytes: &[u8]) -> bool {
    match target {
        "archive_manifest" => {
            let of_list = esker_archive::fuzzing::manifest_of(bytes);
            [bytes, &of_list].iter().any(|it| esker_archive::fuzzing::manifest_again(it).is_ok())
        }
        "archive_piece" => {
            let raw_bytes = u32::from_le_bytes(bytes[1..5].try_into().unwrap()) + 1;
            esker_archive::fuzzing::piece(bytes[0].into(), raw_bytes.into(), &bytes[5..]).is_ok()
        }
        "catalog" => fuzzing::catalog_again(bytes).is_ok_and(|again| again == bytes),
        "checkpoint" => fuzzing::checkpoint_again(bytes).is_ok_and(|again| again == bytes),
        "items" => fuzzing::changes(&bytes[1..], bytes[0].into()).is_some(),
        "preflight" => fuzzing::version_again(&bytes[..25], &bytes[25..])
            .is_ok_and(|(current, manifest)| [current, manifest].concat() == bytes),
        // Their targets make the frame of the input themselves; `cli` has no one form.
        _ => true,
    }
}

/// The reader of the fuzz target is the reader of files.
#[test]
fn a_segment_in_memory_reads_as_it_does_from_a_file() {
    let (store, mut frames) = (esker_tests::Store::new(), 0);
    let items = store.partition("items");
    for number in 0..50 {
        items.insert(format!("{number}"), vec![number; 100]).unwrap();
    }
    let image = esker_tests::crash_image(&store.path());
    for path in esker_tests::files::segments(&image.path().join("keyspace")) {
        let mut bytes = fs::read(path).unwrap();
        // Another keyspace's segment is refused in memory, too.
        assert!(fuzzing::segment(&bytes).is_err());
        esker_tests::fuzz::journal::adopt(&mut bytes);
        let segment = fuzzing::segment(&bytes).unwrap();
        assert!(segment.tail == SegmentTail::Open || segment.tail == SegmentTail::Sealed);
        frames += segment.frames.len();
    }
    assert!(frames >= 50, "{frames} frames of 50 commits");
}

/// Writes `fuzz/seeds` anew: after the format has changed.
#[test]
#[ignore = "writes fuzz/seeds"]
fn write_the_valid_seeds() {
    for (target, _) in TARGETS {
        fs::create_dir_all(seeds_of(target)).unwrap();
        for (name, bytes) in examples::of(target) {
            fs::write(seeds_of(target).join(name), bytes).unwrap();
        }
    }
}
