//! What crashes, failing disks and rot can do to a keyspace: one layer per kind of failure.
//!
//! A layer explores states from a seed and judges each of them; the same seed explores the same
//! states. The command is `tests/crash/main.rs`, the short pass of every layer is `tests/crash/short.rs`.

use std::process::ExitCode;

mod enospc;
pub mod faults;
pub mod judge;
mod kill;
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

impl Outcome {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Ran { passed, mut failures }, Self::Ran { passed: others, failures: more }) => {
                failures.extend(more);
                Self::Ran { passed: passed + others, failures }
            }
            (ran @ Self::Ran { .. }, Self::Skipped { .. }) => ran,
            (Self::Skipped { .. }, other) => other,
        }
    }
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
        worker::COMMAND => worker::Work::parse(words).map(worker::run).is_some(),
        rot::worker::COMMAND => rot::worker::run(words),
        _ => return None,
    };
    Some(if understood { ExitCode::SUCCESS } else { ExitCode::from(2) })
}
