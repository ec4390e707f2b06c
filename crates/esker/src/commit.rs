//! Group commit: the one way a write becomes durable and visible.
//!
//! Writers encode their batches outside of any lock and join a queue. One of them, the leader, takes
//! what has gathered, numbers it, writes all frames with one system call, syncs once if any member
//! asked for it, hands the batches on to be applied to the memtables (`backlog.rs`: at once, or a little
//! later by another thread), and answers the members; then it hands the lead to the next in line. While
//! one group syncs the next gathers.
//!
//! Everything that must happen *between* groups (sealing memtables, the freeze of a checkpoint,
//! creating, clearing and dropping partitions) joins the same queue as a closure, which the leader
//! runs itself: no thread has to wake up inside the pause.
//!
//! What must stay true: between two groups no batch is half-applied and everything appended is visible
//! (but in a pause, which looks at the journal alone), and the order of the journal is the order of
//! sequence numbers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use smallvec::smallvec;

use crate::Durability;
use crate::backlog::{self, Backlog, Then};
use crate::batch::{Change, Changes, Key};
use crate::conflict::{Check, Conflicts, Group};
use crate::error::{Error, Result};
use crate::jobs::{Job as BackgroundJob, Jobs};
use crate::journal::writer::{Journal, Outgoing};
use crate::planted::{Bug, is_planted};
use crate::queue::{Limits, Member, Queue, Serve};
use crate::sync::{AtomicBool, AtomicU64, Mutex, OnceLock, Ordering, Thread, park};
use crate::views::Views;

pub(crate) struct Write {
    outgoing: Outgoing,
    changes: Changes,
    /// What they will take in memory.
    bytes: u64,
    durability: Durability,
    /// What has to be unchanged.
    check: Option<Box<Check<Key>>>,
}

type Closure = Box<dyn FnOnce(&Turn<'_>) -> Result<()> + Send>;

pub(crate) struct Between {
    closure: Closure,
    /// Everything is applied before it runs.
    settled: bool,
}

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
    backlog: Backlog,
    /// There are optimistic transactions.
    conflicts: Option<Arc<Conflicts<Key>>>,
    applier: OnceLock<Thread>,
    pub(crate) commits: AtomicU64,
    pub(crate) groups: AtomicU64,
}

/// The moment between two groups.
pub(crate) struct Turn<'a> {
    committer: &'a Committer,
}

impl Turn<'_> {
    /// The newest commit: nothing else exists, and unless this is a pause everything is visible.
    pub(crate) fn seqno(&self) -> u64 {
        self.committer.journal.position().last_seqno
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.committer.journal
    }

    /// Commits a change of the set of partitions as a frame of its own. It becomes visible when
    /// the closure returns. Not in a pause.
    pub(crate) fn log(&self, item: &[u8], partition: u32) -> Result<u64> {
        let mut buffer = Outgoing::begin();
        buffer.extend_from_slice(item);
        let mut frame = Outgoing::new(buffer, 1, smallvec![partition]);
        self.committer.journal.append(std::slice::from_mut(&mut frame), now_ms())
    }

    /// The same for what changes everything that was in the partition.
    pub(crate) fn log_end(&self, item: &[u8], partition: u32) -> Result<u64> {
        let seqno = self.log(item, partition)?;
        if let Some(conflicts) = &self.committer.conflicts {
            conflicts.note_all(partition, seqno);
        }
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
        waiting: backlog::Limits,
        conflicts: Option<Arc<Conflicts<Key>>>,
    ) -> Self {
        let seqno = journal.position().last_seqno;
        Self {
            jobs,
            memtable_bytes_max,
            journal,
            views,
            queue: Queue::new(limits),
            closed: AtomicBool::new(false),
            backlog: Backlog::new(seqno, waiting),
            conflicts,
            applier: OnceLock::new(),
            commits: AtomicU64::new(0),
            groups: AtomicU64::new(0),
        }
    }

    /// Commits a batch, if what it depends on is unchanged, and returns its sequence number.
    pub(crate) fn commit(
        &self,
        outgoing: Outgoing,
        changes: Changes,
        bytes: u64,
        durability: Durability,
        check: Option<Box<Check<Key>>>,
    ) -> Result<u64> {
        self.submit(Job::Write(Write { outgoing, changes, bytes, durability, check }))
    }

    /// Runs `f` between two groups, with everything applied and visible, and returns what it returns.
    pub(crate) fn between<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Turn<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run_between(f, true)
    }

    /// Runs `f` between two groups, whatever waits to be applied: for what needs the journal alone,
    /// and must not take long.
    pub(crate) fn pause<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Turn<'_>) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.run_between(f, false)
    }

    fn run_between<R: Send + 'static>(
        &self,
        f: impl FnOnce(&Turn<'_>) -> Result<R> + Send + 'static,
        settled: bool,
    ) -> Result<R> {
        if is_planted(Bug::FreezeInsideAGroup) {
            return f(&Turn { committer: self });
        }
        let slot = Arc::new(Mutex::new(None));
        let result = Arc::clone(&slot);
        let closure = Box::new(move |turn: &Turn<'_>| {
            *result.lock() = Some(f(turn)?);
            Ok(())
        });
        self.submit(Job::Between(Between { closure, settled }))?;
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

    fn serve_between(&self, Between { closure, settled }: Between) -> Result<u64> {
        // Behind a failed sync, or a leader that panicked, the journal holds commits that are not
        // applied: nothing may be built on that, and they must not become visible.
        self.journal.check_poison()?;
        let before = self.journal.position().last_seqno;
        if settled && !is_planted(Bug::NotSettled) {
            self.apply_upto(before)?;
        }
        let outcome = closure(&Turn { committer: self });
        let seqno = self.journal.position().last_seqno;
        assert!(settled || seqno == before, "a pause changes nothing");
        if seqno > before {
            self.views.publish(seqno);
            self.backlog.note_committed(seqno);
        }
        outcome.map(|()| seqno)
    }

    /// A group of one, by the thread whose it is.
    fn serve_write(&self, write: Write) -> Result<u64> {
        self.admit(&write, None)?;
        let Write { mut outgoing, changes, bytes, durability, .. } = write;
        let seqno = self.log(std::slice::from_mut(&mut outgoing), durability, || {})?;
        self.note(std::iter::once((seqno, &changes)));
        self.hand_on(std::iter::once((seqno, changes, bytes)))?;
        Ok(seqno)
    }

    fn serve_writes(&self, writes: Vec<(Member<'_, Self>, Write)>) {
        let (mut members, mut frames) =
            (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        let mut durability = Durability::Buffer;
        let mut together = self.conflicts.as_ref().map(|conflicts| conflicts.group());
        for (request, write) in writes {
            if let Err(refused) = self.admit(&write, together.as_mut()) {
                request.finish(Err(refused));
                continue;
            }
            durability = durability.max(write.durability);
            frames.push(write.outgoing);
            members.push((request, write.changes, write.bytes));
        }
        if members.is_empty() {
            return;
        }
        let count = members.len() as u64;
        // Nobody can name the numbers earlier than the journal gives them out.
        let planted = || answer(&members, self.journal.position().last_seqno + 1 - count);
        let last = match self.log(&mut frames, durability, planted) {
            Ok(last) => last,
            Err(error) => {
                refuse(&members, &error);
                return;
            }
        };
        let first = last + 1 - count;
        self.note(members.iter().zip(&frames).map(|((_, changes, _), f)| (f.seqno, changes)));
        if is_planted(Bug::AnsweredBeforeApplied) {
            answer(&members, first);
        }
        let group = members
            .iter_mut()
            .zip(&frames)
            .map(|((_, changes, bytes), frame)| (frame.seqno, std::mem::take(changes), *bytes));
        if let Err(error) = self.hand_on(group) {
            refuse(&members, &error);
            return;
        }
        answer(&members, first);
    }

    /// Appends the frames, and makes them as durable as is asked for; returns the last number.
    /// They are in the journal before they are synced: if that fails, whether they exist is not
    /// known, so nothing may be added to them.
    fn log(
        &self,
        frames: &mut [Outgoing],
        durability: Durability,
        before_sync: impl FnOnce(),
    ) -> Result<u64> {
        let seqno = self.journal.append(frames, now_ms())?;
        if is_planted(Bug::AnsweredBeforeSync) {
            before_sync();
        }
        if durability > Durability::Buffer {
            self.journal.sync(durability).map_err(|error| self.journal.poison(error))?;
        }
        Ok(seqno)
    }

    /// Hands commits that cannot fail any more to whoever applies them, each with its number and what
    /// it takes in memory. They can be answered then.
    fn hand_on(&self, group: impl ExactSizeIterator<Item = (u64, Changes, u64)>) -> Result<()> {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.commits.fetch_add(group.len() as u64, Ordering::Relaxed);
        match self.backlog.add(group) {
            Then::Nothing => {}
            Then::WakeApplier => self.wake_applier(),
            // Nothing is left to do where others were faster.
            Then::Help => _ = self.apply_some(),
            Then::Apply(upto) => {
                self.apply_upto(upto)?;
                self.backlog.note_committed(upto);
            }
        }
        Ok(())
    }

    fn apply_upto(&self, upto: u64) -> Result<()> {
        let applied = self.backlog.apply_upto(upto, &self.views, &|c, seqno| self.apply(c, seqno));
        if applied { Ok(()) } else { Err(self.panicked()) }
    }

    /// Applies what has waited longest; false when nothing is left.
    fn apply_some(&self) -> bool {
        self.backlog.apply_some(u64::MAX, &self.views, &|c, seqno| self.apply(c, seqno))
    }

    fn apply(&self, Change { core, key, value }: Change, seqno: u64) {
        if core.apply(key, value, seqno, self.memtable_bytes_max) {
            self.jobs.request(BackgroundJob::Flush(core.id));
        }
    }

    /// Before every read: what was answered is visible then.
    pub(crate) fn catch_up(&self) -> Result<()> {
        self.backlog.note_reader(&self.views).map_or(Ok(()), |upto| self.apply_upto(upto))
    }

    /// For whoever counts: what was answered is in memory then, if nothing is broken. Not a read.
    pub(crate) fn settle(&self) {
        let _ = self.apply_upto(self.backlog.committed());
    }

    /// Refuses reads of a state that may lack what was answered.
    pub(crate) fn check_applied(&self) -> Result<()> {
        if self.backlog.is_broken() { Err(self.panicked()) } else { Ok(()) }
    }

    /// The newest commit that was answered or can be read.
    pub(crate) fn committed(&self) -> u64 {
        self.backlog.committed().max(self.views.visible())
    }

    /// What the applier does until it is told to stop, and woken.
    pub(crate) fn run_applier(&self, stop: &dyn Fn() -> bool) {
        while !stop() {
            while self.apply_some() {}
            if !self.backlog.rest_applier() && !stop() {
                park();
            }
        }
    }

    /// The thread that runs [`Committer::run_applier`].
    pub(crate) fn set_applier(&self, thread: Thread) {
        self.applier.get_or_init(|| thread);
    }

    pub(crate) fn wake_applier(&self) {
        if let Some(applier) = self.applier.get() {
            applier.unpark();
        }
    }

    /// Whether a write can be committed, behind the others of its group.
    fn admit(&self, write: &Write, together: Option<&mut Group<'_, Key>>) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed { path: self.journal.root().to_path_buf() });
        }
        self.check_applied()?;
        write.changes.iter().try_for_each(|change| change.core.check_alive())?;
        let Some(conflicts) = &self.conflicts else { return Ok(()) };
        // Whoever begins again after a conflict must hear of it some time.
        self.journal.check_poison()?;
        let check = write.check.as_deref();
        match together {
            Some(group) => {
                let keys = write.changes.iter().map(|change| (change.core.id, &change.key));
                group.admit(check, keys)
            }
            None => check.map_or(Ok(()), |check| conflicts.check(check)),
        }
    }

    /// Notes what transactions may have read, before anybody can see it.
    fn note<'a>(&self, commits: impl Iterator<Item = (u64, &'a Changes)>) {
        if let Some(conflicts) = &self.conflicts
            && !is_planted(Bug::ChangesNotNoted)
        {
            let changes = |(seqno, changes): (u64, &'a Changes)| {
                changes.iter().map(move |change| (seqno, change.core.id, &change.key))
            };
            conflicts.note(commits.flat_map(changes));
        }
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

    fn is_long(job: &Job) -> bool {
        matches!(job, Job::Write(write) if write.durability > Durability::Buffer)
    }

    fn serve_alone(&self, job: Job) -> Result<u64> {
        match job {
            Job::Write(write) => self.serve_write(write),
            Job::Between(f) => self.serve_between(f),
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

/// A member of a group, its changes, and what they take in memory.
type Waiting<'a> = (Member<'a, Committer>, Changes, u64);

/// Answers the members of a group, whose numbers follow one another from `first` on.
fn answer(members: &[Waiting<'_>], first: u64) {
    for ((request, ..), seqno) in members.iter().zip(first..) {
        request.finish(Ok(seqno));
    }
}

fn refuse(members: &[Waiting<'_>], error: &Error) {
    for (request, ..) in members {
        request.finish(Err(error.clone()));
    }
}

/// Milliseconds since 1970; 0 for clocks before. Only recorded, never used for order.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as u64)
}
