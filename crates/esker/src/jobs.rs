//! What the worker threads do, in which order, and what makes them wait.
//!
//! Flushes come first (writers may wait for them), then tidying (journal segments), then
//! compaction, which leaves one thread free for flushes and is held off while a checkpoint links.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a job that ran out of space waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(200);

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Job {
    /// Write a partition's memtable to tables.
    Flush(u32),
    /// Flush the largest memtables until the write buffer has room.
    Relieve,
    /// Prepare the next journal segment, free old ones.
    Tidy,
    /// Compact a partition's tree until it is content.
    Compact(u32),
}

#[derive(Default)]
struct State {
    urgent: VecDeque<Job>,
    compactions: VecDeque<Job>,
    running: BTreeSet<Job>,
    /// Jobs that failed for lack of space, or are not due yet, and when to try.
    later: Vec<(Instant, Job)>,
    threads: usize,
    holds: usize,
    stop: bool,
}

#[derive(Default)]
pub(crate) struct Jobs {
    state: Mutex<State>,
    wake: Condvar,
}

impl Jobs {
    pub(crate) fn new(threads: usize) -> Self {
        let state = State { threads, ..State::default() };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    /// Asks for a job; asking again before it starts changes nothing.
    pub(crate) fn request(&self, job: Job) {
        let mut state = self.state.lock();
        let queue = match job {
            Job::Compact(_) => &mut state.compactions,
            _ => &mut state.urgent,
        };
        if !queue.contains(&job) {
            queue.push_back(job);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Asks for a job again, a little later.
    pub(crate) fn request_later(&self, job: Job) {
        self.state.lock().later.push((Instant::now() + RETRY_AFTER, job));
    }

    /// Asks for a job that is due after a while, unless one like it is due before.
    pub(crate) fn request_in(&self, job: Job, pause: Duration) {
        let mut state = self.state.lock();
        let at = Instant::now() + pause;
        if !state.later.iter().any(|(due, other)| *other == job && *due <= at) {
            state.later.push((at, job));
            drop(state);
            self.wake.notify_one();
        }
    }

    /// The next job for a worker, which calls `finished` afterwards; `None`: stop.
    pub(crate) fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.stop {
                return None;
            }
            state.revive();
            if let Some(job) = state.pick() {
                state.running.insert(job);
                return Some(job);
            }
            match state.later.iter().map(|(at, _)| *at).min() {
                Some(at) => _ = self.wake.wait_until(&mut state, at),
                None => self.wake.wait(&mut state),
            }
        }
    }

    pub(crate) fn finished(&self, job: Job) {
        self.state.lock().running.remove(&job);
        // A job of the same kind may have waited for this one.
        self.wake.notify_all();
    }

    /// Compactions that have not begun wait until the guard goes.
    pub(crate) fn hold_compactions(self: &Arc<Self>) -> CompactionHold {
        self.state.lock().holds += 1;
        CompactionHold(Arc::clone(self))
    }

    /// Workers end after their current job.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.wake.notify_all();
    }
}

impl State {
    fn revive(&mut self) {
        let now = Instant::now();
        let due = self.later.extract_if(.., |(at, _)| *at <= now);
        for (_, job) in due.collect::<Vec<_>>() {
            let queue = match job {
                Job::Compact(_) => &mut self.compactions,
                _ => &mut self.urgent,
            };
            if !queue.contains(&job) {
                queue.push_back(job);
            }
        }
    }

    fn pick(&mut self) -> Option<Job> {
        let running = &self.running;
        if let Some(at) = self.urgent.iter().position(|job| !running.contains(job)) {
            return self.urgent.remove(at);
        }
        let compacting = running.iter().filter(|job| matches!(job, Job::Compact(_))).count();
        if self.holds > 0 || compacting + 1 > self.threads.saturating_sub(1).max(1) {
            return None;
        }
        let at = self.compactions.iter().position(|job| !running.contains(job))?;
        self.compactions.remove(at)
    }
}

/// Held by a checkpoint while it links files.
pub(crate) struct CompactionHold(Arc<Jobs>);

impl Drop for CompactionHold {
    fn drop(&mut self) {
        self.0.state.lock().holds -= 1;
        self.0.wake.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_go_before_compactions_and_holds_keep_those_back() {
        let jobs = Arc::new(Jobs::new(2));
        jobs.request(Job::Compact(1));
        jobs.request(Job::Flush(2));
        jobs.request(Job::Flush(2));
        assert_eq!(jobs.next(), Some(Job::Flush(2)));
        let hold = jobs.hold_compactions();
        jobs.request(Job::Tidy);
        assert_eq!(jobs.next(), Some(Job::Tidy));
        drop(hold);
        assert_eq!(jobs.next(), Some(Job::Compact(1)));
    }

    #[test]
    fn a_job_does_not_run_twice_at_once_and_compaction_leaves_a_thread_free() {
        let jobs = Jobs::new(2);
        jobs.request(Job::Compact(1));
        assert_eq!(jobs.next(), Some(Job::Compact(1)));
        jobs.request(Job::Compact(1));
        jobs.request(Job::Compact(2));
        assert_eq!(jobs.state.lock().pick(), None);
        jobs.finished(Job::Compact(1));
        assert!(jobs.next().is_some());
    }
}
