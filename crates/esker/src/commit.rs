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

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::Durability;
use crate::batch::Change;
use crate::error::{Error, Result};
use crate::jobs::{Job as BackgroundJob, Jobs};
use crate::journal::writer::{Journal, Outgoing};
use crate::planted::{Bug, is_planted};
use crate::queue::{Limits, Member, Queue, Serve};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};
use crate::views::Views;

pub(crate) struct Write {
    outgoing: Outgoing,
    changes: Vec<Change>,
    durability: Durability,
}

pub(crate) type Between = Box<dyn FnOnce(&Turn<'_>) -> Result<()> + Send>;

pub(crate) enum Job {
    Write(Write),
    Between(Between),
}

pub(crate) struct Committer {
    pub(crate) journal: Arc<Journal>,
    views: Arc<Views>,
    queue: Queue<Job>,
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
        limits: Limits,
    ) -> Self {
        Self {
            jobs,
            memtable_bytes_max,
            journal,
            views,
            queue: Queue::new(limits),
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
        if is_planted(Bug::FreezeInsideAGroup) {
            return f(&Turn { committer: self });
        }
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
        self.queue.submit(self, job)
    }

    fn serve_between(&self, f: Between) -> Result<u64> {
        // Behind a failed sync, or a leader that panicked, the journal holds commits that are not
        // applied: nothing may be built on that, and they must not become visible.
        self.journal.check_poison()?;
        let outcome = f(&Turn { committer: self });
        let seqno = self.journal.position().last_seqno;
        self.views.publish(seqno);
        outcome.map(|()| seqno)
    }

    fn serve_writes(&self, writes: Vec<(Member<'_, Self>, Write)>) {
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
        let written = self.journal.append(&mut frames).and_then(|()| {
            if is_planted(Bug::AnsweredBeforeSync) {
                answer(&members);
            }
            match durability {
                Durability::Buffer => Ok(()),
                durability => self.sync_group(durability),
            }
        });
        if let Err(error) = written {
            for (request, ..) in members {
                request.finish(Err(error.clone()));
            }
            return;
        }
        if is_planted(Bug::AnsweredBeforeApplied) {
            answer(&members);
        }
        for (_, seqno, changes) in &mut members {
            self.apply(changes, *seqno);
        }
        self.views.publish(seqno);
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.commits.fetch_add(members.len() as u64, Ordering::Relaxed);
        answer(&members);
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

impl Serve for Committer {
    type Job = Job;

    fn shared_bytes(job: &Job) -> Option<usize> {
        match job {
            Job::Write(write) => Some(write.outgoing.buffer.len()),
            Job::Between(_) => None,
        }
    }

    fn serve(&self, group: Vec<Member<'_, Self>>) {
        let mut writes = Vec::with_capacity(group.len());
        for request in group {
            match request.take_job() {
                Some(Job::Write(write)) => writes.push((request, write)),
                Some(Job::Between(f)) => request.finish(self.serve_between(f)),
                None => {}
            }
        }
        if !writes.is_empty() {
            self.serve_writes(writes);
        }
    }

    fn panicked(&self) -> Error {
        self.journal.poison(Error::InvalidInput("a thread panicked while it committed".into()))
    }
}

/// What a member of a group waits for.
type Waiting<'a> = (Member<'a, Committer>, u64, Vec<Change>);

fn answer(members: &[Waiting<'_>]) {
    for (request, seqno, _) in members {
        request.finish(Ok(*seqno));
    }
}

/// Milliseconds since 1970; 0 for clocks before. Only recorded, never used for order.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
