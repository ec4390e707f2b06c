//! Campaigns of random histories of repositories: `archive histories --count 10000 --seed 1`.

#![allow(clippy::print_stdout, reason = "a command")]

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
use esker_tests::archive::histories::{self, Tally};

#[derive(Parser)]
#[command(about = "Campaigns of the archive's tests")]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Plays random histories of repositories, each from a seed of its own.
    Histories(Histories),
}

#[derive(Args)]
struct Histories {
    /// How many.
    #[arg(long, default_value_t = 1_000)]
    count: u64,
    /// Of the first one; the others count on.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many failures end it.
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

fn main() -> ExitCode {
    let What::Histories(histories) = Command::parse().what;
    play(&histories)
}

fn play(options: &Histories) -> ExitCode {
    let began = Instant::now();
    let (mut tally, mut failed, mut passed) = (Tally::new(), Vec::new(), 0_u64);
    for seed in options.seed..options.seed.saturating_add(options.count) {
        // The panic and the steps are on the screen already.
        match std::panic::catch_unwind(|| histories::run(seed)) {
            Ok(of_one) => {
                passed += 1;
                of_one
                    .into_iter()
                    .for_each(|(what, count)| *tally.entry(what).or_default() += count);
            }
            Err(_) => {
                println!("FAILED: archive histories --count 1 --seed {seed}");
                failed.push(seed);
            }
        }
        if failed.len() >= options.failures {
            break;
        }
        if (seed - options.seed + 1).is_multiple_of(100) {
            let rate = (passed + failed.len() as u64) as f64 / began.elapsed().as_secs_f64();
            println!("{passed} passed, {} failed, {rate:.1} a second", failed.len());
        }
    }
    for (what, count) in tally {
        println!("{count:>9} {what}");
    }
    let secs = began.elapsed().as_secs_f64();
    println!("{passed} passed, {} failed {failed:?} in {secs:.0} s", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
