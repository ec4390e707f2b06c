//! Fills a small filesystem up while it is written to, and makes room again.
//!
//! Reads go on, what runs out of space says so, a failed checkpoint leaves nothing behind, writes
//! resume once there is room, without a reopen, and nothing acknowledged is lost.

use std::time::Duration;

use super::judge::{Cut, Story};
use super::process::Running;
use super::said::{Failure, Said};
use super::worker::Work;
use super::{Options, Outcome, story_seed};
use crate::chaos::{self, Rng};
use crate::mounts::Mount;

const DISK_BYTES: u64 = 96 << 20;
const BALLAST: &str = "ballast";
/// The disk fills up so many times at most in one state.
const TIMES: u64 = 3;
const LIMIT: Duration = Duration::from_secs(30);
/// A worker that got as far as this writes again.
const RESUMED_COMMITS: u64 = 20;
/// With less the workload itself has filled the disk.
const ROOM: u64 = 16 << 20;

pub fn run(options: &Options) -> Outcome {
    let place = chaos::memory_dir();
    if let Err(missing) = Mount::tmpfs(&place.path().join("probe"), 1 << 20) {
        return Outcome::Skipped { missing };
    }
    let (mut passed, mut failures, mut refused) = (0, Vec::new(), 0);
    for number in 0..options.states {
        let seed = story_seed(options.seed, number);
        match explore(seed) {
            Ok(count) => {
                passed += 1;
                refused += count;
            }
            Err(sentence) => failures.push(format!(
                "seed {seed}: {sentence}; repeat: crash enospc --states 1 --seed {seed}"
            )),
        }
    }
    eprintln!("enospc: {refused} calls ran out of space");
    Outcome::Ran { passed, failures }
}

/// One disk; returns how many calls were refused.
fn explore(seed: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let place = chaos::memory_dir();
    let disk = Mount::tmpfs(&place.path().join("disk"), DISK_BYTES)?;
    let dir = disk.path().join("work");
    std::fs::create_dir(&dir).map_err(|e| format!("create a directory: {e}"))?;
    let work = Work {
        dir: dir.clone(),
        seed: rng.bits(),
        writers: 1 + rng.below(3) as usize,
        commits: 200 + rng.below(2000),
        lives: 0,
        patience: Duration::from_secs(60),
        tidy: true,
    };
    // Now and then the disk is full before the keyspace is there.
    let mut running = Running::start_for_disturbance(&work, &mut rng)?;
    for _ in 0..1 + rng.below(TIMES) {
        fill_and_free(&disk, &mut running, &mut rng)?;
        if disk.free() < ROOM {
            break;
        }
    }
    if rng.one_in(2) {
        // The process ends on a full disk.
        disk.fill_up(BALLAST, rng.below(64 << 10)).map_err(|e| format!("ballast: {e}"))?;
        std::thread::sleep(Duration::from_millis(rng.below(100)));
    }
    let early = !running.is_alive();
    let finished = running.kill().map_err(|e| format!("kill: {e}"))?;
    let said = finished.said;
    if early || !said.wrong.is_empty() {
        return Err(format!("the worker: {:?} {:?} {}", said.wrong, said.failed, finished.stderr));
    }
    if let Some(failure) = said.failed.iter().find(|failure| !is_expected(failure)) {
        return Err(format!("an error of the wrong kind: {failure:?}"));
    }
    make_room(&disk)?;
    Story::new(&dir).look(&said, &said, Cut::Process)?;
    Ok(said.failed.len() as u64)
}

/// Fills the disk at a random moment, leaves it full for a while, and makes room again.
fn fill_and_free(disk: &Mount, running: &mut Running, rng: &mut Rng) -> Result<(), String> {
    std::thread::sleep(Duration::from_millis(rng.below(150)));
    let left = rng.below(256 << 10);
    disk.fill_up(BALLAST, left).map_err(|e| format!("ballast: {e}"))?;
    let before = running.said().failed.len();
    let limit = Duration::from_millis(100 + rng.below(1000));
    running.wait_until(limit, |said| said.failed.len() > before);
    std::thread::sleep(Duration::from_millis(rng.below(300)));
    make_room(disk)?;
    let enough = running.said().commit_count() + RESUMED_COMMITS;
    let resumes = |said: &Said| said.commit_count() >= enough;
    if !running.wait_until(LIMIT, resumes) && disk.free() >= ROOM {
        let said = running.said();
        let (wrong, failed) = (said.wrong, said.failed);
        return Err(format!("writes do not resume when there is room: {wrong:?} {failed:?}"));
    }
    Ok(())
}

fn make_room(disk: &Mount) -> Result<(), String> {
    match std::fs::remove_file(disk.path().join(BALLAST)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("make room: {e}")),
        _ => Ok(()),
    }
}

/// Only space runs out, and only for those that need some.
fn is_expected(failure: &Failure) -> bool {
    let reads = ["get", "scan", "read"].contains(&failure.what.as_str());
    match failure.kind.as_str() {
        "retry" => !reads,
        // docs/durability.md: a group that was written asks for a sync, and an older segment cannot
        // be sealed for lack of space.
        "poisoned" => failure.text.contains(".jnl") && failure.text.contains("os error 28"),
        _ => false,
    }
}
