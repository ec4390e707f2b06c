//! Backpressure: writers are slowed, then stopped, when flush and compaction fall behind.
//!
//! What must stay true: whoever waits here has first asked for the job that ends the wait; the wait
//! ends with an error when that job cannot be done (no space, poisoned, closed); it never ends only
//! because somebody forgot to notify (the condition is looked at again every few milliseconds).
//! Writers wait in line: while one waits, later ones queue behind it, so that a large batch is not
//! kept waiting for ever by small ones that fit. What is let in is reserved until it is applied or waits
//! for that (little does), so that several batches cannot all take the same room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::jobs::Job;
use crate::keyspace::Shared;

const LOOK_AGAIN: Duration = Duration::from_millis(20);
const SLOW_DOWN: Duration = Duration::from_micros(200);

/// Which resource is short, and how much.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    #[default]
    None,
    Slow,
    Stop,
}

#[derive(Default)]
pub(crate) struct Stall {
    changed: Mutex<()>,
    relieved: Condvar,
    /// Background jobs that ran out of space and will be tried again.
    trouble: Mutex<BTreeMap<Job, Error>>,
    /// Held by the writer that is next; the others queue for it.
    door: Mutex<()>,
    /// Writers at the door, the one that holds it included.
    waiting: AtomicU64,
    /// The bytes that the holder of the door wants.
    wanted: AtomicU64,
    /// Bytes of batches that were let in and are not answered yet.
    reserved: AtomicU64,
    pub(crate) count: AtomicU64,
    pub(crate) nanos: AtomicU64,
}

impl Stall {
    /// Something was flushed, compacted or freed.
    pub(crate) fn relieve(&self) {
        let _waiting = self.changed.lock();
        self.relieved.notify_all();
    }

    /// Notes how a background job ended.
    pub(crate) fn set_trouble(&self, job: Job, trouble: Option<Error>) {
        let mut jobs = self.trouble.lock();
        match trouble {
            Some(error) => _ = jobs.insert(job, error),
            None => _ = jobs.remove(&job),
        }
        drop(jobs);
        self.relieve();
    }

    /// The bytes of the batch that is next to be let in; 0 when nobody waits.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted.load(Ordering::Relaxed)
    }

    fn wait(&self) {
        let mut changed = self.changed.lock();
        self.relieved.wait_for(&mut changed, LOOK_AGAIN);
    }
}

/// Runs in the first level of one tree: where writers slow down and where they stop.
pub(crate) fn run_limits(l0_runs: u8) -> (usize, usize) {
    let trigger = usize::from(l0_runs);
    (trigger * 3 + 8, trigger * 4 + 20)
}

const _: () = assert!(32 * 4 + 20 < crate::tree::L0_RUNS_MAX, "stops come before the hard limit");

fn level(value: u64, slow: u64, stop: u64) -> Pressure {
    match value {
        v if v >= stop => Pressure::Stop,
        v if v >= slow => Pressure::Slow,
        _ => Pressure::None,
    }
}

impl Shared {
    /// Called before a batch of so many bytes joins the commit queue; the guard goes when it is
    /// answered.
    pub(crate) fn throttle(&self, bytes: u64) -> Result<Room<'_>> {
        if self.stall.waiting.load(Ordering::Relaxed) == 0 {
            match self.take_room(bytes) {
                (Some(room), Pressure::None) => return Ok(room),
                (Some(room), _) => {
                    self.ask_for_relief();
                    std::thread::sleep(SLOW_DOWN);
                    return Ok(room);
                }
                (None, _) => {}
            }
        }
        let began = Instant::now();
        self.stall.count.fetch_add(1, Ordering::Relaxed);
        self.stall.waiting.fetch_add(1, Ordering::Relaxed);
        let room = self.wait_for_room(bytes);
        self.stall.waiting.fetch_sub(1, Ordering::Relaxed);
        self.stall.nanos.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        room
    }

    fn wait_for_room(&self, bytes: u64) -> Result<Room<'_>> {
        let _door = self.stall.door.lock();
        self.stall.wanted.store(bytes, Ordering::Relaxed);
        let mut asked: Option<Instant> = None;
        let result = loop {
            if let Err(error) = self.check_writable().and_then(|()| self.journal.check_poison()) {
                break Err(error);
            }
            if let (Some(room), _) = self.take_room(bytes) {
                break Ok(room);
            }
            // Not at every wake-up: jobs that find nothing to do would wake us at once.
            if asked.is_none_or(|asked| asked.elapsed() >= LOOK_AGAIN) {
                self.ask_for_relief();
                asked = Some(Instant::now());
            }
            let trouble = self.stall.trouble.lock().values().next().cloned();
            if let Some(trouble) = trouble {
                break Err(trouble);
            }
            self.stall.wait();
        };
        self.stall.wanted.store(0, Ordering::Relaxed);
        result
    }

    /// Reserves `bytes`, unless something stops writers; says how short things are. What is larger
    /// than the whole write buffer needs it empty, not larger.
    fn take_room(&self, bytes: u64) -> (Option<Room<'_>>, Pressure) {
        let room = Room { shared: self, bytes };
        let before = self.stall.reserved.fetch_add(bytes, Ordering::Relaxed);
        let used = before + self.trees.buffer.unflushed();
        let max = self.trees.buffer.room(self.config.write_buffer_bytes_max);
        let full = used > 0 && used + bytes > max;
        let memory = if full { Pressure::Stop } else { level(used, max - max / 8, max) };
        let pressure = memory.max(self.tables_pressure.load());
        ((pressure < Pressure::Stop).then_some(room), pressure)
    }

    /// Looks at the trees and the journal. Workers call this after every job.
    pub(crate) fn update_pressure(&self) {
        let map = self.versions.current();
        let runs = map.values().map(|entry| {
            let (slow, stop) = run_limits(entry.core.options.l0_runs);
            level(entry.tree.l0_runs() as u64, slow as u64, stop as u64)
        });
        let runs = runs.max().unwrap_or_default();
        let (bytes, held) = self.journal.with_segments(|s| (s.bytes(), s.is_held()));
        let max = self.config.journal_bytes_max;
        // A checkpoint that is linking must not stop writers; it is gone in a moment.
        let journal = if held { Pressure::None } else { level(bytes, max + max / 2, max * 2) };
        self.tables_pressure.store(runs.max(journal));
        self.stall.relieve();
    }

    fn ask_for_relief(&self) {
        self.jobs.request(Job::Relieve);
        if self.tables_pressure.load() > Pressure::None {
            self.jobs.request(Job::Tidy);
            for entry in self.versions.current().values() {
                if entry.tree.l0_runs() >= run_limits(entry.core.options.l0_runs).0 {
                    self.jobs.request(Job::Compact(entry.core.id));
                }
            }
        }
    }
}

/// Room in the write buffer for a batch that is on its way.
pub(crate) struct Room<'a> {
    shared: &'a Shared,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.shared.stall.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A [`Pressure`] that many threads look at.
#[derive(Default)]
pub(crate) struct AtomicPressure(std::sync::atomic::AtomicU8);

impl AtomicPressure {
    pub(crate) fn load(&self) -> Pressure {
        match self.0.load(Ordering::Relaxed) {
            0 => Pressure::None,
            1 => Pressure::Slow,
            _ => Pressure::Stop,
        }
    }

    fn store(&self, pressure: Pressure) {
        self.0.store(pressure as u8, Ordering::Relaxed);
    }
}
