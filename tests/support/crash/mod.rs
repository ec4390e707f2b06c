//! What crashes, failing disks and rot can do to a keyspace: one layer per kind of failure.
//!
//! A layer explores states from a seed and judges each of them; the same seed explores the same
//! states. The command is `tests/crash/main.rs`, the short pass of every layer is `tests/crash/short.rs`.

use std::process::ExitCode;

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::chaos::Rng;

mod enospc;
pub mod faults;
pub mod judge;
mod kill;
mod opened;
mod power;
pub mod process;
pub mod recorder;
pub mod rot;
pub mod said;
pub mod script;
pub mod worker;

/// How much to explore, and from where.
#[derive(Copy, Clone, Debug)]
pub struct Options {
    pub states: u64,
    pub seed: u64,
}

/// The seed of one story of a layer, which is repeated as the first of a run with that seed. Those
/// of neighbouring seeds have nothing in common.
fn story_seed(seed: u64, number: u64) -> u64 {
    if number == 0 { seed } else { Rng::new(seed ^ (number << 32)).bits() }
}

/// What a layer found.
#[derive(Debug)]
pub enum Outcome {
    Ran {
        passed: u64,
        /// A sentence each, with all that is needed to see it again.
        failures: Vec<String>,
    },
    /// It cannot run on this machine.
    Skipped { missing: String },
}

/// One kind of failure.
#[derive(Debug)]
pub struct Layer {
    pub name: &'static str,
    /// So many states by default.
    pub states: u64,
    pub run: fn(&Options) -> Outcome,
}

/// All layers, in the order in which the documentation tells of them.
pub const LAYERS: &[Layer] = &[
    Layer { name: "recorder", states: 2000, run: recorder::recorder },
    Layer { name: "subset", states: 2000, run: recorder::subset },
    Layer { name: "kill", states: 1000, run: kill::run },
    Layer { name: "faults", states: 2000, run: faults::run },
    Layer { name: "power", states: 200, run: power::run },
    Layer { name: "enospc", states: 100, run: enospc::run },
    Layer { name: "rot", states: 5000, run: rot::run },
];

/// Does what a layer asks of the program that it starts again, if that is what these words say. The
/// first thing that such a program calls.
pub fn run_as_part(words: &[String]) -> Option<ExitCode> {
    crate::planted::plant_from_environment();
    let (command, words) = words.split_first()?;
    let understood = match command.as_str() {
        worker::COMMAND => {
            die_with_the_parent();
            worker::Work::parse(words).map(worker::run).is_some()
        }
        rot::worker::COMMAND => {
            die_with_the_parent();
            rot::worker::run(words)
        }
        _ => return None,
    };
    Some(if understood { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A worker has no end of its own, and nobody else would end it.
fn die_with_the_parent() {
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal that there is");
}
