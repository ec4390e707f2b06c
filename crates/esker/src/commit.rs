//! Group commit: the one way a write becomes durable and visible.
//!
//! Writers encode their batches outside of any lock and join a queue. One of them, the leader, takes
//! what has gathered, numbers it, writes all frames with one system call, syncs once if any member
//! asked for it, applies the batches to the memtables, makes the last number visible and answers the
//! members; then it hands the lead to the next in line. While one group syncs the next gathers.
//!
//! Everything that must happen *between* groups (sealing memtables, the freeze of a checkpoint,
//! creating, clearing and dropping partitions) joins the same queue as a closure, which the leader
//! runs itself: no thread has to wake up inside the pause.
//!
//! What must stay true: between two groups no batch is half-applied, everything appended is visible,
//! and the order of the journal is the order of sequence numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::Durability;
use crate::batch::Change;
use crate::error::{Error, Result};
use crate::jobs::{Job as BackgroundJob, Jobs};
use crate::journal::writer::{Journal, Outgoing};
use crate::views::Views;

/// A group takes no more than this; the rest is the next group's.
const GROUP_BYTES_MAX: usize = 4 << 20;
const GROUP_LEN_MAX: usize = 256;
/// A leader serves so many groups beyond its own before it hands over: a hand-over costs a wake-up,
/// a leader kept longer costs its own caller.
const EXTRA_GROUPS: usize = 4;
/// Looks at the outcome this often before going to sleep.
const SPINS: usize = 60;

const WAITING: u8 = 0;
const LEAD: u8 = 1;
const DONE: u8 = 2;

struct Write {
    outgoing: Outgoing,
    changes: Vec<Change>,
    durability: Durability,
}

type Between = Box<dyn FnOnce(&Turn<'_>) -> Result<()> + Send>;

enum Job {
    Write(Write),
    Between(Between),
}

struct Request {
    state: AtomicU8,
    job: Mutex<Option<Job>>,
    outcome: Mutex<Option<Result<u64>>>,
    thread: Thread,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Request>>,
    led: bool,
}

pub(crate) struct Committer {
    pub(crate) journal: Arc<Journal>,
    views: Arc<Views>,
    queue: Mutex<Queue>,
    closed: AtomicBool,
    jobs: Arc<Jobs>,
    /// A memtable beyond this is flushed.
    memtable_bytes_max: u64,
    pub(crate) commits: AtomicU64,
    pub(crate) groups: AtomicU64,
}

/// The moment between two groups.
pub(crate) struct Turn<'a> {
    committer: &'a Committer,
}

impl Turn<'_> {
    /// The newest commit: everything up to it is applied and visible, nothing else exists.
    pub(crate) fn seqno(&self) -> u64 {
        self.committer.journal.position().last_seqno
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.committer.journal
    }

    /// Commits a change of the set of partitions as a frame of its own. It becomes visible when
    /// the closure returns.
    pub(crate) fn log(&self, item: &[u8], partition: u32) -> Result<u64> {
        let mut buffer = Outgoing::begin();
        buffer.extend_from_slice(item);
        let mut frame = Outgoing::new(buffer, 1, vec![partition]);
        let position = self.committer.journal.position();
        frame.seqno = position.last_seqno + 1;
        frame.time_ms = now_ms().max(position.last_time_ms);
        let seqno = frame.seqno;
        self.committer.journal.append(std::slice::from_mut(&mut frame))?;
        Ok(seqno)
    }
}

impl Committer {
    pub(crate) fn new(
        journal: Arc<Journal>,
        views: Arc<Views>,
        jobs: Arc<Jobs>,
        memtable_bytes_max: u64,
    ) -> Self {
        Self {
            jobs,
            memtable_bytes_max,
            journal,
            views,
            queue: Mutex::default(),
            closed: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            groups: AtomicU64::new(0),
        }
    }

    /// Commits a batch and returns its sequence number.
    pub(crate) fn commit(
        &self,
        outgoing: Outgoing,
        changes: Vec<Change>,
        durability: Durability,
    ) -> Result<u64> {
        self.submit(Job::Write(Write { outgoing, changes, durability }))
    }

    /// Runs `f` between two groups and returns what it returns.
    pub(crate) fn between<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Turn<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let slot = Arc::new(Mutex::new(None));
        let result = Arc::clone(&slot);
        self.submit(Job::Between(Box::new(move |turn| {
            *result.lock() = Some(f(turn)?);
            Ok(())
        })))?;
        let result = slot.lock().take();
        Ok(result.expect("a closure that succeeded left its result"))
    }

    /// No further batch is accepted; closures still are.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    fn submit(&self, job: Job) -> Result<u64> {
        let request = Arc::new(Request {
            state: AtomicU8::new(WAITING),
            job: Mutex::new(Some(job)),
            outcome: Mutex::new(None),
            thread: std::thread::current(),
        });
        let lead = {
            let mut queue = self.queue.lock();
            queue.waiting.push_back(Arc::clone(&request));
            !std::mem::replace(&mut queue.led, true)
        };
        if lead || request.wait() == LEAD {
            self.lead(&request);
        }
        let outcome = request.outcome.lock().take();
        outcome.expect("a request that is done has an outcome")
    }

    /// Serves groups until the own request is done and the lead is passed on.
    fn lead(&self, own: &Request) {
        let mut guard = LeadGuard { committer: self, finished: false };
        let mut extra = 0;
        loop {
            let group = self.take_group();
            self.serve(group);
            let done = own.state.load(Ordering::Acquire) == DONE;
            let mut queue = self.queue.lock();
            if queue.waiting.is_empty() {
                queue.led = false;
                break;
            }
            if done && extra >= EXTRA_GROUPS {
                let next = Arc::clone(&queue.waiting[0]);
                drop(queue);
                next.signal(LEAD);
                break;
            }
            extra += usize::from(done);
        }
        guard.finished = true;
    }

    /// The next closure alone, or the batches up to the next closure or the limits.
    fn take_group(&self) -> Vec<Member> {
        let mut queue = self.queue.lock();
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(front) = queue.waiting.front() {
            let (is_write, len) = match &*front.job.lock() {
                Some(Job::Write(write)) => (true, write.outgoing.buffer.len()),
                _ => (false, 0),
            };
            let full = bytes + len > GROUP_BYTES_MAX || group.len() >= GROUP_LEN_MAX;
            if !group.is_empty() && (!is_write || full) {
                break;
            }
            bytes += len;
            group.extend(queue.waiting.pop_front().map(Member));
            if !is_write {
                break;
            }
        }
        group
    }

    fn serve(&self, group: Vec<Member>) {
        let mut writes = Vec::with_capacity(group.len());
        for request in group {
            let job = request.job.lock().take();
            match job {
                Some(Job::Write(write)) => writes.push((request, write)),
                Some(Job::Between(f)) => {
                    let outcome = f(&Turn { committer: self });
                    let seqno = self.journal.position().last_seqno;
                    self.views.publish(seqno);
                    request.finish(outcome.map(|()| seqno));
                }
                None => {}
            }
        }
        if !writes.is_empty() {
            self.serve_writes(writes);
        }
    }

    fn serve_writes(&self, writes: Vec<(Member, Write)>) {
        let (mut members, mut frames) =
            (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        let mut durability = Durability::Buffer;
        let position = self.journal.position();
        let time_ms = now_ms().max(position.last_time_ms);
        let mut seqno = position.last_seqno;
        for (request, mut write) in writes {
            if let Err(refused) = self.admit(&write.changes) {
                request.finish(Err(refused));
                continue;
            }
            seqno += 1;
            write.outgoing.seqno = seqno;
            write.outgoing.time_ms = time_ms;
            durability = durability.max(write.durability);
            frames.push(write.outgoing);
            members.push((request, seqno, write.changes));
        }
        if members.is_empty() {
            return;
        }
        let written = self.journal.append(&mut frames).and_then(|()| match durability {
            Durability::Buffer => Ok(()),
            durability => self.sync_group(durability),
        });
        if let Err(error) = written {
            for (request, ..) in members {
                request.finish(Err(error.clone()));
            }
            return;
        }
        for (_, seqno, changes) in &mut members {
            self.apply(changes, *seqno);
        }
        self.views.publish(seqno);
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.commits.fetch_add(members.len() as u64, Ordering::Relaxed);
        for (request, seqno, _) in members {
            request.finish(Ok(seqno));
        }
    }

    /// The frames are in the journal: if they cannot be made durable, whether they exist is not
    /// known, so nothing may be added to them.
    fn sync_group(&self, durability: Durability) -> Result<()> {
        self.journal.sync(durability).map_err(|error| self.journal.poison(error))
    }

    fn apply(&self, changes: &mut Vec<Change>, seqno: u64) {
        for Change { core, key, value } in changes.drain(..) {
            if core.apply(key, value, seqno, self.memtable_bytes_max) {
                self.jobs.request(BackgroundJob::Flush(core.id));
            }
        }
    }

    fn admit(&self, changes: &[Change]) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { path: self.journal.root().to_path_buf() });
        }
        changes.iter().try_for_each(|change| change.core.check_alive())
    }
}

/// If the leader panics nobody must wait for ever: what is queued fails, and so does what follows.
struct LeadGuard<'a> {
    committer: &'a Committer,
    finished: bool,
}

impl Drop for LeadGuard<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let error = self.committer.journal.poison(panicked());
        let mut queue = self.committer.queue.lock();
        queue.led = false;
        for request in queue.waiting.drain(..) {
            request.finish(Err(error.clone()));
        }
    }
}

/// A request that somebody waits for: answered at the latest when it is dropped.
struct Member(Arc<Request>);

impl std::ops::Deref for Member {
    type Target = Request;
    fn deref(&self) -> &Request {
        &self.0
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.state.load(Ordering::Acquire) != DONE {
            self.finish(Err(Error::Poisoned { cause: Arc::new(panicked()) }));
        }
    }
}

fn panicked() -> Error {
    Error::InvalidInput("a thread panicked while it committed".into())
}

impl Request {
    fn finish(&self, outcome: Result<u64>) {
        *self.outcome.lock() = Some(outcome);
        self.signal(DONE);
    }

    fn signal(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.thread.unpark();
    }

    fn wait(&self) -> u8 {
        for _ in 0..SPINS {
            match self.state.load(Ordering::Acquire) {
                WAITING => std::hint::spin_loop(),
                state => return state,
            }
        }
        loop {
            match self.state.load(Ordering::Acquire) {
                WAITING => std::thread::park(),
                state => return state,
            }
        }
    }
}

/// Milliseconds since 1970; 0 for clocks before. Only recorded, never used for order.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
