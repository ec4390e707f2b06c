//! `load --format files`: a tree of files as entries.
//!
//! One thread walks, a few read, the caller's thread commits. Entries must reach the sink in the
//! order of the walk whatever order the readers finish in: when two INPUTs hold the same key the
//! later one wins, and within one INPUT keys arrive sorted, which is the order an LSM tree likes
//! best.
//!
//! What is read but not yet committed stays within a budget of bytes. The walker takes from the
//! budget in walking order, so the entry the sink waits for always has its share and the pipeline
//! cannot block on itself. Both channels are unbounded: the budget bounds them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use esker::Slice;
use parking_lot::{Condvar, Mutex};

use super::walk::{Found, Walk};
use super::{Sink, VALUE_BYTES_TOO_MANY, acceptable};
use crate::failure::Outcome;

use crate::output::{Bar, Console};

/// Bytes of files that are read, or being read, and not yet in a batch.
const AHEAD_BYTES_MAX: u64 = 32 << 20;
/// What one entry takes beside its value: its path, key and bookkeeping.
const ENTRY_BYTES: u64 = 512;
/// Files read at once: more than there are cores, because readers wait for the disk.
const READERS: usize = 4;

/// Loads every regular file of `inputs`; leaves out the keyspace itself.
pub fn load(inputs: &[PathBuf], keyspace: &Path, console: Console, sink: &mut Sink<'_>) -> Outcome {
    let keyspace = &fs::canonicalize(keyspace).unwrap_or_else(|_| keyspace.to_owned());
    let budget = &Budget::default();
    let ended = &AtomicBool::new(false);
    let (jobs, queue) = mpsc::channel();
    let queue = &Mutex::new(queue);
    let (done, results) = mpsc::channel();
    let bar = sink.bar.clone();
    thread::scope(|scope| {
        if console.draws() {
            scope.spawn(move || measure(inputs, keyspace, ended, &bar));
        }
        for _ in 0..READERS {
            let done = done.clone();
            scope.spawn(move || read_all(queue, &done));
        }
        scope.spawn(move || walk_all(inputs, keyspace, budget, &jobs, &done));
        let outcome = collect(&results, budget, sink);
        // After a failure the walker and the readers have nothing left to do.
        ended.store(true, Ordering::Relaxed);
        budget.close();
        drop(results);
        outcome
    })
}

/// Tells the bar how many bytes there are; walks the tree once more, ahead of the load.
fn measure(inputs: &[PathBuf], keyspace: &Path, ended: &AtomicBool, bar: &Bar) {
    let mut total = 0;
    for found in inputs.iter().flat_map(|input| Walk::new(input, keyspace)) {
        if ended.load(Ordering::Relaxed) {
            return;
        }
        if let Found::File { bytes, .. } = found {
            total += bytes;
        }
    }
    bar.set_total(total);
}

/// A file to be read.
struct Job {
    index: u64,
    path: PathBuf,
    key: Vec<u8>,
    bytes: u64,
}

/// What became of one entry of the walk.
struct Done {
    index: u64,
    /// What it took from the budget.
    cost: u64,
    what: What,
}

enum What {
    Entry { path: PathBuf, key: Vec<u8>, value: Slice },
    Refused(String),
    LeftOut,
}

/// Numbers what the walk finds and hands it on, as far ahead as the budget allows.
fn walk_all(
    inputs: &[PathBuf],
    keyspace: &Path,
    budget: &Budget,
    jobs: &Sender<Job>,
    done: &Sender<Done>,
) {
    let found = inputs.iter().flat_map(|input| Walk::new(input, keyspace));
    for (index, found) in (0..).zip(found) {
        let cost = cost(&found);
        if !budget.take(cost) {
            return;
        }
        let sent = match found {
            Found::File { path, key, bytes } => match acceptable(key.len() as u64, bytes) {
                Ok(()) => jobs.send(Job { index, path, key, bytes }).is_ok(),
                Err(reason) => {
                    let what = What::Refused(format!("cannot load {}: {reason}", path.display()));
                    done.send(Done { index, cost, what }).is_ok()
                }
            },
            Found::Refused(sentence) => {
                done.send(Done { index, cost, what: What::Refused(sentence) }).is_ok()
            }
            Found::LeftOut => done.send(Done { index, cost, what: What::LeftOut }).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

fn cost(found: &Found) -> u64 {
    match found {
        // A file too large to load is never read.
        Found::File { bytes, .. } if *bytes < VALUE_BYTES_TOO_MANY => ENTRY_BYTES + bytes,
        _ => ENTRY_BYTES,
    }
}

/// Reads files until there are no more jobs, or nobody takes the results.
fn read_all(queue: &Mutex<Receiver<Job>>, done: &Sender<Done>) {
    loop {
        // The lock is held while waiting: whoever has it takes the next job, the others queue.
        let job = queue.lock().recv();
        let Ok(Job { index, path, key, bytes }) = job else { return };
        let what = match read(&path) {
            Ok(value) => What::Entry { path, key, value },
            Err(error) => What::Refused(format!("cannot read {}: {error}", path.display())),
        };
        if done.send(Done { index, cost: ENTRY_BYTES + bytes, what }).is_err() {
            return;
        }
    }
}

/// Reads a whole file straight into the memory the engine will keep: a large value is not copied.
fn read(path: &Path) -> io::Result<Slice> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len().min(VALUE_BYTES_TOO_MANY);
    let value = Slice::from_reader(&mut file, usize::try_from(bytes).unwrap_or(usize::MAX))?;
    // A file that grows, or one that does not know its size as those of /proc, has more.
    let mut more = Vec::new();
    file.take(VALUE_BYTES_TOO_MANY - bytes).read_to_end(&mut more)?;
    if more.is_empty() { Ok(value) } else { Ok(Slice::from([&value, more.as_slice()].concat())) }
}

/// Puts entries into the sink in the order of the walk.
fn collect(results: &Receiver<Done>, budget: &Budget, sink: &mut Sink<'_>) -> Outcome {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for done in results {
        early.insert(done.index, done);
        while let Some(Done { cost, what, .. }) = early.remove(&next) {
            next += 1;
            match what {
                What::Entry { path, key, value } => {
                    sink.bar.advance(value.len() as u64);
                    sink.push(key, value, || format!("cannot load {}", path.display()))?;
                }
                What::Refused(sentence) => sink.refuse(sentence),
                What::LeftOut => sink.tally.left_out += 1,
            }
            budget.give_back(cost);
        }
    }
    Ok(())
}

/// Bytes that may be in memory between the walk and the sink.
#[derive(Default)]
struct Budget {
    state: Mutex<BudgetState>,
    changed: Condvar,
}

#[derive(Default)]
struct BudgetState {
    taken: u64,
    closed: bool,
}

impl Budget {
    /// Waits for room; false once closed. What exceeds the whole budget goes alone.
    fn take(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        while !state.closed && state.taken > 0 && state.taken + bytes > AHEAD_BYTES_MAX {
            self.changed.wait(&mut state);
        }
        state.taken += bytes;
        !state.closed
    }

    fn give_back(&self, bytes: u64) {
        self.state.lock().taken -= bytes;
        self.changed.notify_one();
    }

    /// Ends all waiting.
    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_over_the_budget_waits_for_all_others_and_goes_alone() {
        let budget = Budget::default();
        assert!(budget.take(1));
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.take(AHEAD_BYTES_MAX + 1));
            thread::sleep(std::time::Duration::from_millis(50));
            assert!(!large.is_finished());
            budget.give_back(1);
            assert!(large.join().unwrap());
        });
        assert_eq!(budget.state.lock().taken, AHEAD_BYTES_MAX + 1);
    }

    #[test]
    fn a_closed_budget_lets_nobody_wait() {
        let budget = Budget::default();
        assert!(budget.take(AHEAD_BYTES_MAX));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.take(1));
            thread::sleep(std::time::Duration::from_millis(50));
            budget.close();
            assert!(!waiting.join().unwrap());
        });
    }
}
