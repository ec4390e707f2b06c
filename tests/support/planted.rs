//! Proves the tests: plants known bugs into the engine, one at a time, and looks which layer of the
//! crash harness finds each.
//!
//! A bug is planted in processes of its own, by way of an environment variable, so that the processes
//! which the layers start have it as well. A layer runs in portions, each from its own seed, until one
//! fails. What must stay true: the portion that fails with the bug passes without it, or finding
//! would mean nothing.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use esker::planted::{Bug, plant};

use crate::crash::process::Running;
use crate::crash::{LAYERS, Layer, Options, Outcome};

/// Names the bug to plant.
pub const VARIABLE: &str = "ESKER_PLANTED";
/// The subcommand that runs one portion: `hunt LAYER STATES SEED`.
pub const COMMAND: &str = "hunt";

/// Where a bug is to be found. The first layer is the one that should find it; the others have
/// their turn when it does not.
pub fn hunters(bug: Bug) -> &'static [&'static str] {
    use Bug::*;
    match bug {
        PayloadHashSkipped
        | ChainNotChecked
        | IdentityNotChecked
        | OwnerNotChecked
        | RotTakenForTornTail
        | ShortJournalAccepted
        | CatalogChecksumSkipped
        | CurrentNotChecked
        | FloorNotChecked
        | FloorNotRaised
        | TableHashSkipped => &["rot"],
        SyncRetried
        | FailedSyncForgotten
        | SyncErrorIgnored
        | WriteErrorIgnored
        | UndecidedInstallRetried => &["faults"],
        ShortWriteIgnored => &["faults", "enospc"],
        SnapshotsForgotten => &["model", "threads"],
        DeferredNotNoted | NotSettled => &["threads", "model"],
        ChangesNotNoted | OpenTransactionsForgotten => &["model", "threads"],
        OptionsNotCompared | LossNotHidden | LossNotKnown | WeakRemovalNotReplayed => &["model"],
        IngestNotRecorded => &["recorder", "model"],
        NotifyLost | HandOverLost | AnsweredBeforeApplied | FreezeInsideAGroup => &["threads"],
        AnsweredBeforeSync => &["subset", "threads"],
        SegmentFreedBeforeCatalog
        | CatalogBeforeSegment
        | CatalogBeforeTree
        | CatalogWrittenInPlace
        | BuiltUnderItsName
        | OldJournalRemovedBeforeCatalog
        | SupersededRemovedBeforeCatalog
        | TreeRemovedBeforeCatalog
        | FlushBoundaryTooHigh
        | SegmentFreedTooEarly
        | ClearNotReplayed
        | DropNotReplayed
        | CleanMarkKept
        | ReplayedNotFlushed
        | VersionsClonedAfterTheFreeze
        | ActiveSegmentLinked
        | JournalNotHeld
        | VersionsNotPinned => &["recorder", "subset"],
        _ => &["subset"],
    }
}

/// Tests that are no layers of the crash harness and find bugs all the same.
const OTHERS: &[Layer] = &[
    Layer { name: "model", states: 1, run: play_model },
    Layer { name: "threads", states: 1, run: explore_threads },
];
/// Of each run of the model.
const OPERATIONS: u64 = 5_000;
/// What the explorers of threads go through, and in how many schedules.
const SCENARIOS: [&str; 6] =
    ["commits", "hand-over", "freeze", "durable-and-buffered", "failed-sync", "snapshot"];
const SCHEDULES: u64 = 400;
const EXPLORER: &str = "threads-shuttle";

/// Whatever can find a bug.
pub fn layers() -> impl Iterator<Item = &'static Layer> {
    LAYERS.iter().chain(OTHERS)
}

/// The layer of a name.
pub fn layer(name: &str) -> Option<&'static Layer> {
    layers().find(|layer| layer.name == name)
}

fn play_model(options: &Options) -> Outcome {
    match crate::model::run(options.seed, OPERATIONS) {
        Ok(()) => Outcome::Ran { passed: 1, failures: Vec::new() },
        Err(text) => Outcome::Ran { passed: 0, failures: vec![text] },
    }
}

/// The program that explores schedules, beside this one.
fn explorer() -> PathBuf {
    std::env::current_exe().expect("the own program").with_file_name(EXPLORER)
}

/// Builds the explorer of threads, as a run of this program alone does not.
///
/// # Errors
///
/// A sentence, where that does not work: the layer `threads` is skipped, or as old as it is.
pub fn build_explorer() -> Result<(), String> {
    let release = explorer().parent().is_some_and(|dir| dir.ends_with("release"));
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.args(["build", "--locked", "--package", "esker-tests", "--bin", EXPLORER]);
    cargo.args(release.then_some("--release")).current_dir(env!("CARGO_MANIFEST_DIR"));
    match cargo.status() {
        Ok(status) if status.success() => Ok(()),
        other => Err(format!("{EXPLORER} cannot be built: {other:?}")),
    }
}

fn explore_threads(options: &Options) -> Outcome {
    let explorer = explorer();
    let mut passed = 0;
    for scenario in SCENARIOS {
        let mut command = Command::new(&explorer);
        let numbers = [options.seed, SCHEDULES].map(|number| number.to_string());
        match command.arg(scenario).args(numbers).output() {
            Err(error) => {
                return Outcome::Skipped { missing: format!("{}: {error}", explorer.display()) };
            }
            Ok(output) if output.status.success() => passed += 1,
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let said = text.lines().find(|line| line.contains("deadlock") || said_what(line));
                let said = said.unwrap_or("it failed");
                return Outcome::Ran { passed, failures: vec![format!("{scenario}: {said}")] };
            }
        }
    }
    Outcome::Ran { passed, failures: Vec::new() }
}

/// Whether a line of a panic is its message, and not where it happened.
fn said_what(line: &str) -> bool {
    !line.is_empty() && !line.starts_with("thread '") && !line.starts_with("note:")
}

/// So many states are one portion of a layer.
fn portion(layer: &str) -> u64 {
    match layer {
        "recorder" | "subset" => 700,
        "rot" => 1000,
        "faults" => 100,
        "kill" => 20,
        "power" => 10,
        "enospc" => 3,
        _ => 1,
    }
}

/// The bug of a name.
pub fn parse(name: &str) -> Option<Bug> {
    Bug::ALL.iter().map(|(bug, _)| *bug).find(|bug| format!("{bug:?}") == name)
}

/// Plants what the environment asks for: the first thing that a process of the harness does.
///
/// # Panics
///
/// If there is no bug of that name.
pub fn plant_from_environment() {
    if let Ok(name) = std::env::var(VARIABLE) {
        let bug = parse(&name);
        assert!(bug.is_some(), "{VARIABLE}: there is no bug {name:?}");
        plant(bug);
    }
}

/// How a hunt ended.
#[derive(Clone, Debug)]
pub enum Hunt {
    Found {
        layer: &'static str,
        seed: u64,
        how: String,
    },
    NotFound,
    /// No layer that could find it runs here, or not all of those that should find nothing.
    Skipped {
        missing: String,
    },
    /// The harness failed: it finds something where nothing is, or does not end.
    Wrong {
        how: String,
    },
}

/// Where and how long to look.
#[derive(Clone, Debug)]
pub struct Hunter {
    /// The program `planted`, which runs the portions.
    pub program: PathBuf,
    pub seed: u64,
    /// For each bug; without a bug, for each layer.
    pub limit: Duration,
}

enum Portion {
    Passed,
    Failed(String),
    Skipped(String),
    /// It was killed, and had found nothing.
    TimeIsUp,
}

impl Hunter {
    /// Hunts for a bug until it is found or the time is up.
    pub fn hunt(&self, bug: Bug, layers: &[&str]) -> Hunt {
        let began = Instant::now();
        let mut missing = Vec::new();
        for round in 0.. {
            if began.elapsed() >= self.limit || missing.len() == layers.len() {
                break;
            }
            missing.clear();
            for name in layers {
                let Some(layer) = layer(name) else {
                    missing.push(format!("there is no layer {name}"));
                    continue;
                };
                let (seed, left) = (self.seed.wrapping_add(round), self.limit);
                match self.portion(Some(bug), layer, seed, left.saturating_sub(began.elapsed())) {
                    Portion::Passed | Portion::TimeIsUp => {}
                    Portion::Failed(how) => return self.confirm(layer, seed, how),
                    Portion::Skipped(reason) => missing.push(reason),
                }
            }
        }
        let none_ran = missing.len() == layers.len();
        if none_ran { Hunt::Skipped { missing: missing.join("; ") } } else { Hunt::NotFound }
    }

    /// It counts as found if the same portion passes without the bug.
    fn confirm(&self, layer: &'static Layer, seed: u64, how: String) -> Hunt {
        match self.portion(None, layer, seed, self.limit) {
            Portion::Passed => Hunt::Found { layer: layer.name, seed, how },
            Portion::Failed(how) => Hunt::Wrong { how: format!("also without the bug: {how}") },
            Portion::Skipped(missing) => Hunt::Skipped { missing },
            Portion::TimeIsUp => Hunt::Wrong { how: format!("{} does not end", layer.name) },
        }
    }

    /// One portion of each layer without a bug: nobody may find anything.
    pub fn hunt_for_nothing(&self, layers: &[&str]) -> Hunt {
        let mut missing = Vec::new();
        for name in layers {
            let Some(layer) = layer(name) else {
                missing.push(format!("there is no layer {name}"));
                continue;
            };
            match self.portion(None, layer, self.seed, self.limit) {
                Portion::Passed => {}
                Portion::Failed(how) => return Hunt::Wrong { how: format!("{name}: {how}") },
                Portion::Skipped(reason) => missing.push(reason),
                Portion::TimeIsUp => return Hunt::Wrong { how: format!("{name} does not end") },
            }
        }
        match missing.is_empty() {
            true => Hunt::NotFound,
            false => Hunt::Skipped { missing: missing.join("; ") },
        }
    }

    fn portion(&self, bug: Option<Bug>, layer: &Layer, seed: u64, limit: Duration) -> Portion {
        let mut command = Command::new(&self.program);
        command.arg(COMMAND).arg(layer.name);
        command.args([portion(layer.name), seed].map(|number| number.to_string()));
        command.env_remove(VARIABLE);
        command.envs(bug.map(|bug| (VARIABLE, format!("{bug:?}"))));
        let finished = Running::start(command).and_then(|running| running.wait(limit));
        let finished = match finished {
            Ok(finished) => finished,
            Err(error) => return Portion::Skipped(format!("run a process: {error}")),
        };
        let last = last_line(&finished.stderr);
        match finished.status.code() {
            // Failures are told as they come, and a bug may make the rest hang.
            _ if finished.hung => {
                match finished.stderr.lines().find(|line| line.contains("repeat")) {
                    Some(failure) => Portion::Failed(failure.to_owned()),
                    None => Portion::TimeIsUp,
                }
            }
            Some(0) => Portion::Passed,
            Some(2 | 3) => Portion::Skipped(last),
            Some(1) => Portion::Failed(last),
            _ => Portion::Failed(format!("{}: {last}", finished.status)),
        }
    }
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// Runs one portion in this process. The result is the last line on standard error.
pub fn run_portion(layer: &Layer, options: &Options) -> std::process::ExitCode {
    match (layer.run)(options) {
        Outcome::Ran { passed, failures } => match failures.first() {
            None if passed == 0 => {
                eprintln!("{}: nothing was tried", layer.name);
                std::process::ExitCode::from(3)
            }
            None => std::process::ExitCode::SUCCESS,
            Some(first) => {
                eprintln!("{}", first.replace('\n', " "));
                std::process::ExitCode::FAILURE
            }
        },
        Outcome::Skipped { missing } => {
            eprintln!("{}: {missing}", layer.name);
            std::process::ExitCode::from(3)
        }
    }
}
