//! Proves the tests: plants known bugs into the engine, one at a time, and looks which layer of the
//! crash harness finds each.
//!
//! A bug is planted in processes of its own, by way of an environment variable, so that the processes
//! which the layers start have it as well. A layer runs in portions, each from its own seed, until one
//! fails. What must stay true: without a bug the same portions pass (`Bug` none), or finding would
//! mean nothing.

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
        SnapshotsForgotten => &["model"],
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

/// So many states are one portion of a layer.
fn portion(layer: &str) -> u64 {
    match layer {
        "recorder" | "subset" => 700,
        "rot" => 1000,
        "faults" => 40,
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
    /// No layer that could find it runs here.
    Skipped {
        missing: String,
    },
}

/// Hunts for a bug until it is found or the time is up; `None` hunts for nothing, which nobody may
/// find, with one portion of each layer.
pub fn hunt(bug: Option<Bug>, layers: &[&str], seed: u64, limit: Duration) -> Hunt {
    let began = Instant::now();
    let mut missing = Vec::new();
    for round in 0.. {
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() || missing.len() == layers.len() || (bug.is_none() && round > 0) {
            break;
        }
        missing.clear();
        for name in layers {
            let Some(layer) = LAYERS.iter().find(|layer| layer.name == *name) else {
                missing.push(format!("there is no layer {name}"));
                continue;
            };
            let seed = seed.wrapping_add(round);
            match portion_in_child(bug, layer, seed, limit.saturating_sub(began.elapsed())) {
                Portion::Passed => {}
                Portion::Failed(how) => return Hunt::Found { layer: layer.name, seed, how },
                Portion::Skipped(reason) => missing.push(reason),
            }
        }
    }
    if missing.is_empty() { Hunt::NotFound } else { Hunt::Skipped { missing: missing.join("; ") } }
}

enum Portion {
    Passed,
    Failed(String),
    Skipped(String),
}

fn portion_in_child(bug: Option<Bug>, layer: &Layer, seed: u64, limit: Duration) -> Portion {
    let mut command = Command::new(std::env::current_exe().expect("the own program"));
    command.arg(COMMAND).arg(layer.name);
    command.args([portion(layer.name), seed].map(|number| number.to_string()));
    command.env_remove(VARIABLE);
    command.envs(bug.map(|bug| (VARIABLE, format!("{bug:?}"))));
    let running = match Running::start(command) {
        Ok(running) => running,
        Err(error) => return Portion::Skipped(format!("start a process: {error}")),
    };
    match running.wait(limit) {
        Err(error) => Portion::Skipped(format!("wait for a process: {error}")),
        // The time is up; that alone says nothing.
        Ok(finished) if finished.hung => Portion::Passed,
        Ok(finished) => match finished.status.code() {
            Some(0) => Portion::Passed,
            Some(3) => Portion::Skipped(last_line(&finished.stderr)),
            Some(1) => Portion::Failed(last_line(&finished.stderr)),
            _ => Portion::Failed(format!("{}: {}", finished.status, last_line(&finished.stderr))),
        },
    }
}

fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// Runs one portion in this process. The result is the last line on standard error.
pub fn run_portion(layer: &Layer, options: &Options) -> std::process::ExitCode {
    match (layer.run)(options) {
        Outcome::Ran { failures, .. } => match failures.first() {
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
