//! Runs one scenario under random schedules: `threads-shuttle SCENARIO SEED ROUNDS [BUG]`.
//!
//! Half of the rounds choose the next thread at random, half by priorities that change a few times
//! (PCT), which finds what needs one thread to stay behind for long.
#![expect(clippy::print_stdout, reason = "the result is what the program is for")]

mod engine;
mod once;
mod scenarios;
#[path = "sync_shuttle.rs"]
mod sync;
mod world;

use std::time::Instant;

use engine::*;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

/// Changes of priority in one execution.
const DEPTH: usize = 4;

fn main() {
    esker_tests::planted::plant_from_environment();
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().unwrap_or_else(|| panic!("missing: {what}"));
    let name = next("the name of a scenario");
    let seed = next("a seed").parse::<u64>().expect("a seed is a number");
    let rounds = next("a number of rounds").parse::<usize>().expect("rounds are a number");
    if let Some(bug) = arguments.next() {
        planted::plant(&bug);
    }
    let (_, scenario) = *scenarios::ALL.iter().find(|(n, _)| *n == name).expect("a scenario");
    let size = |threads, commits| scenarios::Size { threads, commits, spins: 2 };
    scenarios::limit_time();
    scenarios::silence_planned_panics();
    let mut config = Config::default();
    config.silence_warnings = true;
    // The seed repeats a failure.
    config.failure_persistence = FailurePersistence::None;
    let began = Instant::now();
    let random = RandomScheduler::new_from_seed(seed, rounds.div_ceil(2));
    Runner::new(random, config.clone()).run(move || scenario(size(5, 2)));
    let priorities = PctScheduler::new_from_seed(seed, DEPTH, rounds.div_ceil(2));
    Runner::new(priorities, config).run(move || scenario(size(6, 2)));
    println!("{name}: {rounds} schedules in {:.1} s, seed {seed}", began.elapsed().as_secs_f64());
}
