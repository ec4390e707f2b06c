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
        (_, Some(_)) => return traced::run(options),
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
            traced::run(options)
        }
        (None, Some(missing)) => {
            skip("traced faults", missing);
            outcome(exact::explore(options, Choice::Drawn("all", options.states), false))
        }
        (None, None) => {
            let exact = Choice::Drawn("all", options.states - traced);
            let exact = outcome(exact::explore(options, exact, false));
            exact.and(traced::run(&Options { states: traced, ..*options }))
        }
    }
}

/// Exact states on a filesystem that does not tell of failed syncs: the canary.
pub fn with_silent_syncs(options: &Options) -> Outcome {
    match filesystem::missing() {
        Some(missing) => Outcome::Skipped { missing },
        None => outcome(exact::explore(options, Choice::Drawn("EIO-sync", options.states), true)),
    }
}

fn outcome(explored: exact::Explored) -> Outcome {
    Outcome::Ran { passed: explored.passed, failures: explored.failures }
}
