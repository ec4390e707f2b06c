//! Open, close, the worker threads, and what everything shares.
//!
//! Lock order. A thread that holds one of these may take only locks with a higher number:
//!
//!  0. the turn of a single writer (`WriterTurn`)
//!  1. `Shared::backup`: one checkpoint at a time
//!  2. `Tree::finishing` (an ingest that is being finished), then `Shared::catalog`: the set of
//!     partitions and the CATALOG file
//!  3. `Tree::flushing`: one flush of a tree at a time
//!  4. `Tree::compacting`: one compaction of a tree at a time
//!  5. `Tree::gate`: a compaction's inputs against the next seal
//!  6. the lead of the commit queue (`Committer::between`, commits)
//!  7. `Backlog::applying`: one thread puts commits into memtables at a time
//!  8. the turn to install in a tree that can lose entries (`Tree::take_turn`), `Versions::updating`,
//!     lsm-tree's own locks
//!  9. `Journal::syncing`
//! 10. `Journal::state`
//! 11. `Conflicts::state`
//! 12. leaves: the queue's mutex, the backlog's list, jobs, views, stall, accounts of memory
//!
//! What would go against the order only tries (`Tree::lock_to_compact`, leftovers in `tree.rs`). Views
//! that do not open (`Views::hold`) wait without a lock of their own, for an install.
//!
//! Closures run by the leader hold number 6 and so may take 7 to 12 only.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, ThreadId};

use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

use crate::backlog;
use crate::batch::Batch;
use crate::catalog::Catalog;
use crate::checkpoint::{CheckpointBuilder, CheckpointReport};
use crate::commit::Committer;
use crate::config::{Config, Durability, PersistMode};
use crate::conflict::Conflicts;
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::{Job, Jobs};
use crate::journal::writer::Journal;
use crate::lock::KeyspaceLock;
use crate::options::PartitionOptions;
use crate::partition::Partition;
use crate::queue;
use crate::recovery;
use crate::snapshot::Snapshot;
use crate::stall::{AtomicPressure, Stall};
use crate::statistics::Statistics;
use crate::transaction::{Held, TxKind, WriterTurn};
use crate::versions::Versions;
use crate::views::Views;
use crate::{partition, tree};

/// What all handles and worker threads of one open keyspace share.
pub(crate) struct Shared {
    /// What the user opened.
    pub(crate) path: PathBuf,
    /// Where the files are: `path`, or the private view of a read-only open.
    pub(crate) root: PathBuf,
    pub(crate) config: Config,
    pub(crate) uuid: u128,
    pub(crate) timeline: u128,
    pub(crate) journal: Arc<Journal>,
    pub(crate) views: Arc<Views>,
    pub(crate) committer: Committer,
    /// There are optimistic transactions.
    pub(crate) conflicts: Option<Arc<Conflicts<tree::Slice>>>,
    /// There are transactions, one at a time.
    turn: Option<Arc<WriterTurn>>,
    pub(crate) versions: Arc<Versions>,
    pub(crate) trees: tree::Shared,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) stall: Stall,
    pub(crate) tables_pressure: AtomicPressure,
    pub(crate) catalog: Mutex<Catalog>,
    pub(crate) backup: Mutex<()>,
    /// The operations under way that `close` has to wait for, each by its thread.
    operations: Mutex<Vec<ThreadId>>,
    idle: Condvar,
    pub(crate) flushes: AtomicU64,
    pub(crate) compactions: AtomicU64,
    pub(crate) ingests: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    /// Transactions that can write.
    pub(crate) open_transactions: Arc<AtomicU64>,
    closing: AtomicBool,
    closed: Mutex<bool>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Released when the keyspace is closed; iterators that outlive it hold it on, because they
    /// may still delete files.
    lock: Mutex<Option<Arc<KeyspaceLock>>>,
    /// Segments and bytes of the journal that a read-only open replayed.
    pub(crate) replayed_journal: (u64, u64),
    _view: Option<TempDir>,
}

/// An operation that [`Shared::close`] waits for.
pub(crate) struct Operation<'a> {
    shared: &'a Shared,
    thread: ThreadId,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let mut operations = self.shared.operations.lock();
        if let Some(at) = operations.iter().rposition(|thread| *thread == self.thread) {
            operations.swap_remove(at);
        }
        drop(operations);
        self.shared.idle.notify_all();
    }
}

/// Closes the keyspace when the last user handle goes.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.0.close() {
            tracing::warn!(%error, path = %self.0.path.display(), "closing failed; the journal has everything");
        }
    }
}

/// An open keyspace: a directory of partitions that share one journal. A cheap clone, usable from
/// any thread; the last clone closes it.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("db");
/// let keyspace = esker::Keyspace::open(&path)?;
/// let items = keyspace.partition("items", Default::default())?;
/// items.insert("a", "hello")?;
/// assert_eq!(items.get("a")?.as_deref(), Some(&b"hello"[..]));
/// let report = keyspace.backup_to(dir.path().join("backup"))?;
/// assert_eq!(report.seqno, keyspace.seqno());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Keyspace {
    handle: Arc<Handle>,
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyspace").field("path", &self.path()).finish_non_exhaustive()
    }
}

impl Keyspace {
    /// Opens or creates the keyspace in `path` with default settings; see [`Config`].
    ///
    /// # Errors
    ///
    /// As [`Config::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Config::new(path).open()
    }

    pub(crate) fn open_with(config: Config, transactions: Option<TxKind>) -> Result<Self> {
        let recovered = recovery::open(&config)?;
        let shared = Arc::new(Shared::new(config, recovered, transactions));
        let keyspace = Self { handle: Arc::new(Handle(Arc::clone(&shared))) };
        shared.start_workers()?;
        Ok(keyspace)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.0
    }

    /// The shared state, unless the keyspace is closed.
    pub(crate) fn open_shared(&self) -> Result<&Arc<Shared>> {
        let shared = self.shared();
        shared.check_open()?;
        Ok(shared)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.shared().path
    }

    /// The id of the keyspace: checkpoints and copies share it.
    pub fn uuid(&self) -> u128 {
        self.shared().uuid
    }

    /// The id of this linear history: every copy that goes on has one of its own.
    pub fn timeline(&self) -> u128 {
        self.shared().timeline
    }

    /// The version of the files that this build writes; see `docs/format.md`.
    pub fn format_version(&self) -> u32 {
        crate::catalog::FORMAT_VERSION
    }

    /// The newest visible commit.
    pub fn seqno(&self) -> u64 {
        self.shared().committer.committed()
    }

    /// The partition `name`, created with `options` if there is none. An existing one keeps the
    /// options it was created with.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a name that is empty, over 255 bytes or contains a slash, and
    /// for options out of range; [`Error::ReadOnly`] when it would have to be created.
    pub fn partition(&self, name: &str, options: PartitionOptions) -> Result<Partition> {
        let core = self.open_shared()?.create_partition(name, options)?;
        Ok(Partition { keyspace: self.clone(), core })
    }

    /// The partition `name`, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a name that no partition can have.
    pub fn open_partition(&self, name: &str) -> Result<Option<Partition>> {
        partition::check_name(name)?;
        let core = self.open_shared()?.find_partition(name);
        Ok(core.map(|core| Partition { keyspace: self.clone(), core }))
    }

    /// The names of all partitions, sorted.
    pub fn partitions(&self) -> Vec<String> {
        let map = self.shared().versions.current();
        let mut names: Vec<_> = map.values().map(|entry| entry.core.name.clone()).collect();
        names.sort();
        names
    }

    /// Drops a partition with everything in it; false when there is none. It is durable when this
    /// returns. Open iterators, snapshots and handles go on reading; its files go with the last of
    /// them.
    ///
    /// # Errors
    ///
    /// As [`Batch::commit`].
    pub fn drop_partition(&self, name: &str) -> Result<bool> {
        self.open_shared()?.drop_partition(name)
    }

    /// An empty batch.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// A read view of all partitions as of now. While it is open compaction keeps what it sees.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.clone())
    }

    /// Makes every commit so far as durable as `mode` says, whatever durability it asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] when the sync fails.
    pub fn persist(&self, mode: PersistMode) -> Result<()> {
        let shared = self.open_shared()?;
        shared.check_writable()?;
        if mode == Durability::Buffer {
            return shared.journal.check_poison();
        }
        shared.journal.sync(mode)
    }

    /// Writes every memtable to tables. Not needed for durability; makes the journal short.
    ///
    /// # Errors
    ///
    /// When the disk fails or fills up.
    pub fn flush(&self) -> Result<()> {
        let shared = self.open_shared()?;
        let _open = shared.begin_operation()?;
        // Without partitions nothing below would say so.
        shared.journal.check_poison()?;
        shared.flush_all().map_err(|error| shared.fail(error))
    }

    /// Counters since the open, and the state of every partition.
    pub fn statistics(&self) -> Statistics {
        Statistics::of(self.shared())
    }

    /// Bytes on disk: the data blocks of tables, separated values and the journal. Index and filter
    /// blocks and preallocated journal space are not counted.
    pub fn disk_space(&self) -> u64 {
        let map = self.shared().versions.current();
        let tables: u64 = map.values().map(|entry| entry.tree.disk_space()).sum();
        tables + self.shared().journal_on_disk().1
    }

    /// Takes a checkpoint: a directory at `path`, which must not exist, that opens as a keyspace and
    /// holds exactly the commits up to one sequence number. Writers pause for microseconds whatever
    /// the size. Everything is synced when this returns. See [`Keyspace::checkpoint`] for options.
    ///
    /// # Errors
    ///
    /// As [`CheckpointBuilder::write_to`].
    pub fn backup_to(&self, path: impl AsRef<Path>) -> Result<CheckpointReport> {
        self.checkpoint().write_to(path)
    }

    /// A checkpoint with options.
    pub fn checkpoint(&self) -> CheckpointBuilder<'_> {
        CheckpointBuilder::new(self)
    }

    /// Writes everything in memory to tables, ends the journal and closes, so that the next open
    /// has nothing to replay. Checkpoints, flushes and compactions under way finish first; every
    /// clone and every partition handle answers [`Error::Closed`] from then on.
    ///
    /// # Errors
    ///
    /// When the disk fails or fills up: the keyspace is closed all the same, and the next open
    /// replays the journal.
    pub fn close(self) -> Result<()> {
        self.shared().close()
    }
}

impl Shared {
    fn new(config: Config, recovered: recovery::Recovered, transactions: Option<TxKind>) -> Self {
        let jobs = Arc::new(Jobs::new(config.worker_threads));
        let views = Arc::new(Views::new(recovered.catalog.last_seqno));
        let optimistic = transactions == Some(TxKind::Optimistic);
        let conflicts = optimistic.then(|| Arc::new(Conflicts::new(Arc::clone(&views))));
        let one_at_a_time = transactions == Some(TxKind::SingleWriter);
        let committer = Committer::new(
            Arc::clone(&recovered.journal),
            Arc::clone(&views),
            Arc::clone(&jobs),
            config.memtable_bytes,
            queue::Limits::default(),
            backlog::Limits::new(config.defer_after_changes, config.write_buffer_bytes_max),
            conflicts.clone(),
        );
        Self {
            path: config.path.clone(),
            root: recovered.root,
            uuid: recovered.catalog.uuid,
            timeline: recovered.catalog.timeline,
            config,
            journal: recovered.journal,
            views,
            committer,
            conflicts,
            turn: one_at_a_time.then(Arc::default),
            versions: Arc::new(recovered.versions),
            trees: recovered.trees,
            jobs,
            stall: Stall::default(),
            tables_pressure: AtomicPressure::default(),
            catalog: Mutex::new(recovered.catalog),
            backup: Mutex::new(()),
            operations: Mutex::default(),
            idle: Condvar::new(),
            flushes: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            ingests: AtomicU64::new(0),
            checkpoints: AtomicU64::new(0),
            open_transactions: Arc::default(),
            closing: AtomicBool::new(false),
            closed: Mutex::new(false),
            workers: Mutex::new(Vec::new()),
            lock: Mutex::new(Some(Arc::new(recovered.lock))),
            replayed_journal: recovered.replayed_journal,
            _view: recovered.view,
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Waits until no transaction is open, where there is one at a time.
    pub(crate) fn take_turn(&self) -> Result<Option<Held>> {
        let Some(turn) = &self.turn else { return Ok(None) };
        let closed = || Error::Closed { path: self.path.clone() };
        turn.take().map(Some).ok_or_else(closed)
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closing() {
            return Err(Error::Closed { path: self.path.clone() });
        }
        Ok(())
    }

    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.config.read_only {
            return Err(Error::ReadOnly { path: self.path.clone() });
        }
        Ok(())
    }

    /// Keeps the keyspace from closing while the guard lives. Everything that writes files other
    /// than by a commit starts here; commits are refused by the queue itself.
    pub(crate) fn begin_operation(&self) -> Result<Operation<'_>> {
        let mut operations = self.operations.lock();
        self.check_writable()?;
        let thread = std::thread::current().id();
        operations.push(thread);
        Ok(Operation { shared: self, thread })
    }

    /// Refuses what would wait for an operation of its own thread, and so for ever: a checkpoint
    /// calls back while it is under way.
    pub(crate) fn check_not_called_back(&self) -> Result<()> {
        if self.operations.lock().contains(&std::thread::current().id()) {
            let what = "a checkpoint's callback can neither close the keyspace nor take another";
            return Err(Error::InvalidInput(what.into()));
        }
        Ok(())
    }

    /// Segments and bytes of the journal on disk.
    pub(crate) fn journal_on_disk(&self) -> (u64, u64) {
        if self.config.read_only {
            return self.replayed_journal;
        }
        self.journal.with_segments(|segments| (segments.count() as u64, segments.bytes()))
    }

    /// Keeps other processes out as long as the caller may touch files.
    pub(crate) fn lock_handle(&self) -> Option<Arc<KeyspaceLock>> {
        self.lock.lock().clone()
    }

    /// After every commit: three loads, and a request when something is due.
    pub(crate) fn after_commit(&self) {
        if self.journal.take_hint() {
            self.jobs.request(Job::Tidy);
        }
        let room = self.trees.buffer.room(self.config.write_buffer_bytes_max);
        if self.trees.buffer.unflushed() > room - room / 4 {
            self.jobs.request(Job::Relieve);
        }
    }

    fn start_workers(self: &Arc<Self>) -> Result<()> {
        if self.config.read_only {
            return Ok(());
        }
        let mut workers = self.workers.lock();
        for number in 0..self.config.worker_threads {
            let shared = Arc::clone(self);
            let worker = std::thread::Builder::new()
                .name(format!("esker-worker-{number}"))
                .spawn(move || shared.work())
                .map_err(|e| Error::io("start a worker thread for", &self.path, e))?;
            workers.push(worker);
        }
        self.start_applier(&mut workers)?;
        // What an earlier run left undone.
        self.update_pressure();
        for partition in self.versions.current().keys() {
            self.jobs.request(Job::Compact(*partition));
        }
        Ok(())
    }

    /// Commits are applied later by a thread of its own, where that can happen.
    fn start_applier(self: &Arc<Self>, workers: &mut Vec<JoinHandle<()>>) -> Result<()> {
        if self.config.defer_after_changes == u64::MAX {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let applier = std::thread::Builder::new()
            .name("esker-applier".into())
            .spawn(move || shared.committer.run_applier(&|| shared.is_closing()))
            .map_err(|e| Error::io("start a thread for", &self.path, e))?;
        self.committer.set_applier(applier.thread().clone());
        workers.push(applier);
        Ok(())
    }

    fn work(&self) {
        while let Some(job) = self.jobs.next() {
            let run = std::panic::AssertUnwindSafe(|| self.run(job));
            let result = std::panic::catch_unwind(run).unwrap_or_else(|_| {
                let cause = Error::InvalidInput(format!("a worker panicked in {job:?}"));
                Err(self.journal.poison(cause))
            });
            self.jobs.finished(job);
            match result {
                Ok(()) => self.stall.set_trouble(job, None),
                Err(error) if error.kind() == ErrorKind::Retry => {
                    tracing::warn!(%error, ?job, "a background job ran out of space; it will be tried again");
                    self.stall.set_trouble(job, Some(error));
                    self.jobs.request_later(job);
                }
                Err(error @ Error::FilterFailed { .. }) => {
                    tracing::error!(%error, ?job, "a compaction filter failed");
                    self.stall.set_trouble(job, None);
                }
                Err(error) => {
                    tracing::error!(%error, ?job, "a background job failed");
                    self.journal.poison(error);
                }
            }
            self.update_pressure();
        }
    }

    fn run(&self, job: Job) -> Result<()> {
        // A partition that is gone needs no job. Only this entry is kept: the map would pin what
        // all other partitions have superseded meanwhile.
        let entry = |id: u32| self.versions.current().get(&id).cloned();
        match job {
            Job::Flush(id) => entry(id).map_or(Ok(()), |e| self.flush_partition(&e.core)),
            Job::Compact(id) => entry(id).map_or(Ok(()), |e| self.compact_tree(&e.core, &e.tree)),
            Job::Relieve => self.relieve_write_buffer(),
            Job::Tidy => self.tidy(),
        }
    }

    /// Closes once; later calls find it done.
    fn close(&self) -> Result<()> {
        self.check_not_called_back()?;
        let mut closed = self.closed.lock();
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        {
            // Checkpoints, flushes and changes of partitions that are under way finish first.
            let mut operations = self.operations.lock();
            self.closing.store(true, Ordering::Release);
            self.turn.iter().for_each(|turn| turn.close());
            self.idle.wait_while(&mut operations, |operations| !operations.is_empty());
        }
        self.committer.close();
        self.stall.relieve();
        self.jobs.stop();
        self.committer.wake_applier();
        for worker in self.workers.lock().drain(..) {
            // A worker that panicked has poisoned the journal, or made applying fail: `finish` reports it.
            let _ = worker.join();
        }
        let result = if self.config.read_only { Ok(()) } else { self.finish() };
        // Handles may outlive the lock: let go of superseded tables now, and delete nothing later.
        for entry in self.versions.current().values() {
            entry.tree.forget_views();
            self.versions.refresh(&entry.core, &entry.tree, None);
        }
        self.trees.close();
        self.lock.lock().take();
        result
    }

    /// Everything into tables, then a CATALOG that needs no journal.
    fn finish(&self) -> Result<()> {
        self.journal.check_poison()?;
        self.flush_all()?;
        for entry in self.versions.current().values() {
            if entry.tree.settle_ingests()? {
                self.versions.refresh(&entry.core, &entry.tree, None);
            }
        }
        self.journal.finish()?;
        let mut catalog = self.catalog.lock();
        let newest = self.journal.newest_segment();
        let position = self.journal.position();
        let mut last = Catalog::clone(&catalog);
        last.clean = true;
        last.first_segment = newest + 1;
        last.last_segment = newest;
        last.last_seqno = position.last_seqno;
        last.base_seqno = position.last_seqno;
        last.last_time_ms = position.last_time_ms;
        last.partitions =
            self.versions.current().values().map(|e| crate::structure::catalog_entry(e)).collect();
        last.store(&self.root)?;
        *catalog = last;
        for entry in self.versions.current().values() {
            drop(entry.core.retire_generations(None));
        }
        recovery::remove_segments_before(&self.root, newest + 1)
    }
}
