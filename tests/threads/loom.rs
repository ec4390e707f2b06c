//! Goes through one scenario with three threads: `threads-loom SCENARIO [BUG]`, the bug being planted.
//!
//! `ESKER_PREEMPTIONS=n` goes through all executions with at most n preemptions, `unbounded` through
//! all there are; `ESKER_COMMITS` sets the commits of each thread.
#![expect(clippy::print_stdout, reason = "the result is what the program is for")]

mod engine;
mod once;
mod scenarios;
#[path = "sync_loom.rs"]
mod sync;
mod world;

use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Plain;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use engine::*;

/// Executions with at most so many preemptions are gone through, all of them: more are out of reach.
const PREEMPTIONS: usize = 3;
/// With how many it is done instead.
const OTHERS: [(&str, Option<usize>); 6] = [
    ("queue", None),
    ("queue-hand-over", None),
    ("queue-long", None),
    ("no-space", Some(2)),
    ("optimistic", Some(2)),
    ("optimistic-deferred", Some(2)),
];

fn number(name: &str) -> Option<usize> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn main() {
    esker_tests::planted::plant_from_environment();
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().expect("the name of a scenario");
    if let Some(bug) = arguments.next() {
        planted::plant(&bug);
    }
    let (_, scenario) = *scenarios::ALL.iter().find(|(n, _)| *n == name).expect("a scenario");
    let commits = number("ESKER_COMMITS").unwrap_or(1);
    let size = scenarios::Size { threads: 3, commits, spins: 0 };
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    let own = OTHERS.iter().find(|(n, _)| *n == name).map(|(_, bound)| *bound);
    builder.preemption_bound = match std::env::var("ESKER_PREEMPTIONS").as_deref() {
        Ok("unbounded") => None,
        Ok(_) => number("ESKER_PREEMPTIONS"),
        Err(_) => own.unwrap_or(Some(PREEMPTIONS)),
    };
    let bound = builder.preemption_bound.map_or("all".into(), |n| format!("up to {n} preemptions"));
    scenarios::limit_time();
    scenarios::silence_planned_panics();
    let explored = Arc::new(Plain::new(0));
    let count = Arc::clone(&explored);
    let began = Instant::now();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        scenario(size);
    });
    let (count, seconds) = (explored.load(Relaxed), began.elapsed().as_secs_f64());
    println!("{name}: {count} interleavings ({bound}) in {seconds:.1} s");
}
