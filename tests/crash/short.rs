//! A short pass of every layer of the crash harness.

mod faults;
mod rot;
mod states;

use std::sync::atomic::Ordering;
use std::time::Duration;

use esker::planted::Bug;
use esker_tests::chaos;
use esker_tests::crash::judge::{Cut, Story};
use esker_tests::crash::process::Running;
use esker_tests::crash::recorder::filesystem;
use esker_tests::crash::recorder::workload::{BLOBS_REWRITTEN, TAKEN_AWAY};
use esker_tests::crash::said::{Line, Said};
use esker_tests::crash::worker::{self, Work};
use esker_tests::crash::{LAYERS, Options, Outcome, script};
use esker_tests::planted::{Hunt, Hunter, hunters};
use esker_tests::skip;

/// Runs one layer with few states; a layer that cannot run here says so.
fn short(name: &str, states: u64) {
    worker::use_program(env!("CARGO_BIN_EXE_crash"));
    let layer = LAYERS.iter().find(|layer| layer.name == name).expect("a layer of that name");
    let options = Options { states: chaos::rounds(states), seed: chaos::seed(name) };
    match (layer.run)(&options) {
        Outcome::Ran { passed, failures } => {
            assert!(failures.is_empty(), "{passed} passed, {}", failures.join("\n"));
            assert!(passed > 0, "nothing was tried");
        }
        Outcome::Skipped { missing } => skip(name, missing),
    }
}

#[test]
fn every_ordered_prefix_of_the_operations_keeps_the_promises() {
    short("recorder", 300);
    let rewritten = BLOBS_REWRITTEN.load(Ordering::Relaxed);
    let taken = TAKEN_AWAY.load(Ordering::Relaxed);
    eprintln!("{rewritten} compactions rewrote blob files, a filter took {taken} entries away");
    assert!((rewritten > 0 && taken > 0) || filesystem::missing().is_some());
}

#[test]
fn every_subset_of_what_was_not_synced_keeps_the_promises() {
    short("subset", 600);
}

#[test]
fn kill() {
    short("kill", 10);
}

#[test]
fn faults() {
    short("faults", 40);
}

#[test]
fn enospc() {
    short("enospc", 3);
}

#[test]
fn rot() {
    short("rot", 400);
}

#[test]
fn power() {
    short("power", 6);
}

/// The whole table is what the program `planted` prints.
#[test]
fn planted_bugs_are_found_by_what_passes_without_them() {
    let program = env!("CARGO_BIN_EXE_planted").into();
    let limit = Duration::from_secs(600);
    let hunter = Hunter { program, seed: chaos::seed("planted"), limit };
    for bug in [Bug::ReplacedFileNotSynced, Bug::CatalogBeforeTree, Bug::FlushBoundaryTooHigh] {
        match hunter.hunt(bug, hunters(bug)) {
            Hunt::Found { layer, seed, how } => eprintln!("{bug:?}: {layer}, seed {seed}: {how}"),
            Hunt::Skipped { missing } => skip(&format!("{bug:?}"), missing),
            other => panic!("{bug:?}: {other:?}"),
        }
    }
}

/// The canary: a judge that accepts everything would be worth nothing.
#[test]
fn the_judge_refuses_what_is_lost_cut_or_invented() {
    worker::use_program(env!("CARGO_BIN_EXE_crash"));
    let place = chaos::memory_dir();
    let work = Work {
        dir: place.path().to_path_buf(),
        seed: 1,
        writers: 2,
        commits: 60,
        lives: 1,
        patience: Duration::ZERO,
        tidy: false,
    };
    let running = Running::start(work.command()).unwrap();
    let mut said = running.wait(Duration::from_secs(60)).unwrap().said;
    assert!(said.ended && said.failed.is_empty() && said.wrong.is_empty(), "{said:?}");
    let mut story = Story::new(place.path());
    let mut look = |said: &Said| story.look(said, said, Cut::Process);
    let seen = look(&said).unwrap();
    assert_eq!((seen.commits, seen.checkpoints), (120, said.checkpoints.len() as u64));
    // It was there, and the judge does not leave it.
    said.checkpoints.clear();
    look(&said).unwrap();

    let mut lost = said.clone();
    lost.hear(&Line::Commit { writer: 1, count: 60, seqno: 100_000, durable: true }.format());
    let sentence = look(&lost).unwrap_err();
    assert!(sentence.contains("had to survive"), "{sentence}");

    // Another one in its place is whole and is not the one that was acknowledged.
    let keyspace = script::config(&script::database(place.path())).open().unwrap();
    let report = keyspace.checkpoint().write_to(place.path().join("checkpoint-100")).unwrap();
    drop(keyspace);
    let mut renamed = said.clone();
    let line = Line::Checkpoint { name: "checkpoint-99".into(), seqno: report.seqno };
    renamed.hear(&line.format());
    let sentence = look(&renamed).unwrap_err();
    assert!(sentence.contains("checkpoint-99") && sentence.contains("is gone"), "{sentence}");

    let keyspace = script::config(&script::database(place.path())).open().unwrap();
    let one = keyspace.open_partition("one").unwrap().unwrap();
    let key = script::last_key(1);
    let value = one.get(&key).unwrap().unwrap();
    one.insert(key.clone(), script::last_value("one", 3)).unwrap();
    drop((one, keyspace));
    let sentence = look(&said).unwrap_err();
    assert!(sentence.contains("a batch is cut"), "{sentence}");

    let keyspace = script::config(&script::database(place.path())).open().unwrap();
    let one = keyspace.open_partition("one").unwrap().unwrap();
    one.insert(key, value).unwrap();
    one.insert("nobody wrote this", "").unwrap();
    drop((one, keyspace));
    let sentence = look(&said).unwrap_err();
    assert!(sentence.contains("nobody wrote this"), "{sentence}");

    // The content is right again; the numbers of three commits stand for nothing.
    let keyspace = script::config(&script::database(place.path())).open().unwrap();
    let one = keyspace.open_partition("one").unwrap().unwrap();
    one.remove("nobody wrote this").unwrap();
    drop((one, keyspace));
    let sentence = look(&said).unwrap_err();
    assert!(sentence.contains("are there"), "{sentence}");
}
