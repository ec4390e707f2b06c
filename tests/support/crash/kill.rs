//! Kills a writing process (SIGKILL) at a random moment, again and again on the same keyspace.

use std::time::Duration;

use super::judge::{Cut, Story};
use super::process::Running;
use super::worker::Work;
use super::{Options, Outcome, story_seed};
use crate::chaos::{self, Rng};

/// So many kills hit the same keyspace before a new one is begun.
const GENERATIONS: u64 = 5;
/// One keyspace in so many is on a disk, the others are in memory.
const ON_DISK: u64 = 3;

pub fn run(options: &Options) -> Outcome {
    let (mut passed, mut failures) = (0, Vec::new());
    let mut left = options.states;
    let mut number = 0;
    while left > 0 {
        let kills = left.min(GENERATIONS);
        left -= kills;
        // A keyspace has a seed of its own: what fails can be repeated without the ones before it.
        let seed = story_seed(options.seed, number);
        match story(seed, kills) {
            Ok(()) => passed += kills,
            Err((before, sentence)) => {
                passed += before;
                failures
                    .push(format!("{sentence}; repeat: crash kill --states {kills} --seed {seed}"));
            }
        }
        number += 1;
    }
    Outcome::Ran { passed, failures }
}

/// One keyspace through some kills; on a failure, how many went well before.
fn story(seed: u64, kills: u64) -> Result<(), (u64, String)> {
    let mut rng = Rng::new(seed);
    let dir = if rng.one_in(ON_DISK) { chaos::disk_dir() } else { chaos::memory_dir() };
    let mut story = Story::new(dir.path());
    for kill in 0..kills {
        let looked = run_and_kill(dir.path(), &mut rng, &mut story);
        if let Err(sentence) = looked {
            return Err((kill, format!("kill {kill} of seed {seed}: {sentence}")));
        }
    }
    Ok(())
}

fn run_and_kill(dir: &std::path::Path, rng: &mut Rng, story: &mut Story) -> Result<(), String> {
    let work = Work {
        dir: dir.to_path_buf(),
        seed: rng.bits(),
        writers: 3,
        // Closes and opens are hit as well.
        commits: 100 + rng.below(400),
        lives: 0,
        patience: Duration::ZERO,
        tidy: false,
    };
    let mut running = Running::start_for_disturbance(&work, rng)?;
    std::thread::sleep(Duration::from_micros(rng.below(150_000)));
    let early = !running.is_alive();
    let finished = running.kill().map_err(|e| format!("kill: {e}"))?;
    let said = finished.said;
    if early || !said.wrong.is_empty() || !said.failed.is_empty() {
        let (wrong, failed) = (said.wrong, said.failed);
        return Err(format!("the worker: {wrong:?} {failed:?} {}", finished.stderr));
    }
    story.look(&said, &said, Cut::Process).map(|_| ())
}
