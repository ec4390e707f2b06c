//! The layer `faults`: operations of the operating system fail, one at a time or from one on.
//!
//! Nine of ten states are exact (`exact.rs`: a filesystem of the harness's own, in process, numbered over
//! all threads); the rest run a process under strace (`traced.rs`: system calls below libc on a real
//! filesystem, numbered per thread). What one of the two needs and does not find is told, and the other
//! takes all.
//!
//! `ESKER_EVERY=all`, or names of failures with commas between (`ESKER_EVERY=EIO,ENOSPC`), runs every
//! exact state of these and no other, whatever the number of states asked for. `ESKER_FAULT` runs the one
//! state that a failure named.

mod exact;
mod program;
mod traced;
mod verdict;

use super::recorder::filesystem;
use super::{Options, Outcome};
use crate::skip;
use exact::Choice;

/// One state in so many is traced.
const TRACED: u64 = 10;

/// The layer.
pub fn run(options: &Options) -> Outcome {
    let (every, one) = (std::env::var("ESKER_EVERY").ok(), std::env::var("ESKER_FAULT").ok());
    let exact_missing = filesystem::missing();
    let chosen = match (&every, &one) {
        (_, Some(name)) if exact::is_exact(name) => Some(Choice::One(name)),
        (_, Some(_)) => {
            return match traced::missing() {
                Some(missing) => Outcome::Skipped { missing },
                None => outcome(traced::run(options)),
            };
        }
        (Some(names), None) => Some(Choice::Every(names)),
        (None, None) => None,
    };
    if let Some(choice) = chosen {
        return match exact_missing {
            Some(missing) => Outcome::Skipped { missing },
            None => outcome(exact::explore(options, choice, false)),
        };
    }
    let traced = options.states.div_ceil(TRACED);
    match (exact_missing, traced::missing()) {
        (Some(one), Some(other)) => Outcome::Skipped { missing: format!("{one}; {other}") },
        (Some(missing), None) => {
            skip("exact faults", missing);
            outcome(traced::run(options))
        }
        (None, Some(missing)) => {
            skip("traced faults", missing);
            outcome(exact::explore(options, Choice::Drawn("all", options.states), false))
        }
        (None, None) => {
            let exact = Choice::Drawn("all", options.states - traced);
            let mut explored = exact::explore(options, exact, false);
            explored.add(traced::run(&Options { states: traced, ..*options }));
            outcome(explored)
        }
    }
}

/// Exact states on a filesystem that does not tell of failed syncs: the canary.
pub fn with_silent_syncs(options: &Options) -> Outcome {
    match filesystem::missing() {
        Some(missing) => Outcome::Skipped { missing },
        None => {
            let choice = Choice::Drawn("EIO-sync", options.states);
            let Explored { passed, failures, .. } = exact::explore(options, choice, true);
            Outcome::Ran { passed, failures }
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
struct Explored {
    passed: u64,
    /// An operation was made to fail, in so many of those that passed.
    reached: u64,
    failures: Vec<String>,
}

impl Explored {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.reached += other.reached;
        self.failures.extend(other.failures);
    }
}

fn outcome(explored: Explored) -> Outcome {
    let Explored { passed, reached, mut failures } = explored;
    eprintln!("faults: {reached} of {passed} states that passed had an operation made to fail");
    if reached == 0 && failures.is_empty() {
        failures.push(format!("none of {passed} states reached its fault: they prove nothing"));
    }
    Outcome::Ran { passed, failures }
}
