//! Bulk loading: a sorted stream becomes tables, past journal and memtables, and appears at once.
//!
//! A thread of its own writes the tables (lsm-tree's writer borrows the tree) and takes the entries
//! from a bounded channel, so that whoever brings them waits when the disk is slower. It is an
//! operation that `close` waits for, and gives up when it sees one coming.
//!
//! `finish` is one commit. What must stay true:
//! - The journal gets a frame for it, synced before the tables are installed: tables are never ahead
//!   of the journal, and every number is somebody's. The entries are in no journal. A crash before
//!   the install leaves the number without effect, and the tables are nobody's.
//! - Between the number and the install there is no other commit, no flush and no merge of the tree,
//!   and no checkpoint freezes: `versions` moves on in the same moment, or a checkpoint would have
//!   the frame and not the tables.
//! - CATALOG says that the partition is in tables up to that number before any merge of the tree (see
//!   `tree/ingest.rs`); a partition that was cleared or dropped meanwhile takes nothing.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::MutexGuard;

use crate::Durability;
use crate::error::{Error, ErrorKind, Result};
use crate::jobs::Job;
use crate::journal::items;
use crate::keyspace::Shared;
use crate::partition::{Partition, PartitionCore};
use crate::planted::{Bug, unless};
use crate::tree::{Ingestion, L0_RUNS_MAX, Outcome, Slice, Tree};

/// Entries that travel together: their way through the channel costs little then.
const BATCH_ENTRIES_MAX: usize = 1024;
/// The same in bytes of keys and values.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// Batches on their way. Beyond that whoever brings entries waits.
const BATCHES_MAX: usize = 4;
/// How often the writer looks whether the keyspace is being closed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A key, and its value unless it is removed.
type Entry = (Slice, Option<Slice>);

/// What the writer is told.
enum Order {
    Write(Vec<Entry>),
    /// Nothing more comes: bring everything to the disk and wait for `Install`.
    Prepare,
    Install(u64),
}

/// What the writer answers, each at most once.
enum Answer {
    Began,
    Prepared,
    Installed(Outcome),
    Failed(Error),
}

/// Both ends of the way to the writer.
#[derive(Clone)]
struct Line {
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    /// The directory of the tree.
    dir: PathBuf,
}

impl Line {
    /// Sends an order; the error is the writer's if it has given up.
    fn send(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| self.failure())
    }

    fn receive(&self) -> Result<Answer> {
        match self.answers.recv() {
            Ok(Answer::Failed(error)) => Err(error),
            Ok(answer) => Ok(answer),
            Err(_) => Err(self.gone()),
        }
    }

    fn failure(&self) -> Error {
        match self.answers.try_recv() {
            Ok(Answer::Failed(error)) => error,
            _ => self.gone(),
        }
    }

    /// The writer's thread ended without an answer, which only a panic can do.
    fn gone(&self) -> Error {
        let source = std::io::Error::other("the thread that does it panicked");
        Error::io("write the tables of an ingest into", &self.dir, source)
    }
}

/// What an ingest brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IngestReport {
    /// The commit that made the entries visible; without entries there is none, and this is the
    /// newest commit.
    pub seqno: u64,
    /// Entries, removals included.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// A bulk load that is under way: entries in ascending order of their keys go straight into tables
/// and become visible all at once, in [`Ingest::finish`], as one commit. Begun by
/// [`Partition::ingest`].
///
/// Reads, writes, checkpoints and other ingests go on meanwhile. The entries count as written when
/// `finish` is called: they hide what was written to the same keys before. Dropping the ingest
/// without `finish`, an error, a crash and closing the keyspace leave nothing of it.
///
/// Values stay in the tables, also where the partition separates large ones: they are rewritten when
/// tables are merged, until they are overwritten.
///
/// Memory does not grow with the number of entries. On their way are up to six batches of 256 KiB (or
/// of one larger value each), and lsm-tree keeps eight bytes for each key of the table that it writes,
/// until that has 64 MiB: some 20 MiB for entries of 32 bytes, more for what compresses very well.
/// Tables have that size whatever the partition's options say.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// let numbers = keyspace.partition("numbers", Default::default())?;
/// let mut ingest = numbers.ingest()?;
/// for number in 0..10_000_u32 {
///     ingest.insert(number.to_be_bytes(), "a number")?;
/// }
/// assert!(numbers.is_empty()?, "nothing shows before it is finished");
/// let report = ingest.finish()?;
/// assert_eq!((report.entries, numbers.len()?), (10_000, 10_000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Ingest {
    partition: Partition,
    /// Where the entries go.
    tree: Arc<Tree>,
    /// Gone when the writer is to end.
    line: Option<Line>,
    writer: Option<JoinHandle<()>>,
    waiting: Vec<Entry>,
    waiting_bytes: usize,
    last_key: Option<Slice>,
    entries: u64,
    bytes: u64,
    /// Why the writer gave up.
    failed: Option<Error>,
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.partition.core.name;
        f.debug_struct("Ingest").field("partition", name).field("entries", &self.entries).finish()
    }
}

impl Partition {
    /// Begins to load entries that come in ascending order of their keys, which is many times faster
    /// than to write them one by one; see [`Ingest`].
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::PartitionDropped`]; when the disk fails or fills up.
    pub fn ingest(&self) -> Result<Ingest> {
        let shared = self.keyspace.open_shared()?;
        shared.check_writable()?;
        self.core.check_alive()?;
        shared.journal.check_poison()?;
        let tree = self.core.tree();
        let (orders, inbox) = bounded(BATCHES_MAX);
        let (outbox, answers) = unbounded();
        let writer = {
            let (shared, core, tree) =
                (Arc::clone(shared), Arc::clone(&self.core), Arc::clone(&tree));
            std::thread::Builder::new()
                .name("esker-ingest".into())
                .spawn(move || {
                    Writer { shared: &shared, core: &core, tree: &tree }.run(&inbox, &outbox);
                })
                .map_err(|e| Error::io("start a thread for", self.keyspace.path(), e))?
        };
        let line = Line { orders, answers, dir: tree.dir().to_path_buf() };
        let ingest = Ingest {
            partition: self.clone(),
            tree,
            line: Some(line.clone()),
            writer: Some(writer),
            waiting: Vec::with_capacity(BATCH_ENTRIES_MAX),
            waiting_bytes: 0,
            last_key: None,
            entries: 0,
            bytes: 0,
            failed: None,
        };
        // On an error `ingest` waits for the writer's end.
        line.receive().map(|_| ingest)
    }
}

impl Ingest {
    /// Adds an entry, whose key must be above all keys before it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a key that is not above the one before it, and as
    /// [`Partition::insert`]: the entry is not taken, and the ingest can go on.
    /// [`Error::PartitionCleared`], [`Error::PartitionDropped`], [`Error::Closed`], and when the disk
    /// fails or fills up: nothing will be loaded, and every later call says so again.
    pub fn insert(&mut self, key: impl Into<Slice>, value: impl Into<Slice>) -> Result<()> {
        self.add(key.into(), Some(value.into()))
    }

    /// Adds the removal of a key, which must be above all keys before it.
    ///
    /// # Errors
    ///
    /// As [`Ingest::insert`].
    pub fn remove(&mut self, key: impl Into<Slice>) -> Result<()> {
        self.add(key.into(), None)
    }

    /// Makes everything visible in one step, as one commit, which is durable when this returns. Waits
    /// for a compaction of the partition that is under way. Then writers of the keyspace wait as well,
    /// for the time it takes to sync and list the tables: some milliseconds, and a tenth of one more
    /// for each table.
    ///
    /// # Errors
    ///
    /// As [`Ingest::insert`] and [`Batch::commit`](crate::Batch::commit).
    pub fn finish(mut self) -> Result<IngestReport> {
        self.check_going_on()?;
        let shared = Arc::clone(self.partition.keyspace.open_shared()?);
        let (entries, bytes) = (self.entries, self.bytes);
        if entries == 0 {
            return Ok(IngestReport { seqno: shared.committer.committed(), entries, bytes });
        }
        self.hand_on()?;
        let line = self.line.clone().expect("the writer has not ended");
        line.send(Order::Prepare)?;
        line.receive()?;
        let seqno = shared.finish_ingest(&self.partition.core, &self.tree, line)?;
        Ok(IngestReport { seqno, entries, bytes })
    }

    fn add(&mut self, key: Slice, value: Option<Slice>) -> Result<()> {
        self.check_going_on()?;
        let shared = self.partition.keyspace.open_shared()?;
        shared.check_change(&self.partition, &key, value.as_deref())?;
        if self.last_key.as_ref().is_some_and(|last| *last >= key) {
            return Err(unsorted(&key));
        }
        let bytes = key.len() + value.as_ref().map_or(0, |value| value.len());
        self.last_key = Some(key.clone());
        self.waiting.push((key, value));
        self.waiting_bytes += bytes;
        self.entries += 1;
        self.bytes += bytes as u64;
        if self.waiting.len() >= BATCH_ENTRIES_MAX || self.waiting_bytes >= BATCH_BYTES_MAX {
            self.hand_on()?;
        }
        Ok(())
    }

    fn check_going_on(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Gives what waits to the writer.
    fn hand_on(&mut self) -> Result<()> {
        self.waiting_bytes = 0;
        let next = Vec::with_capacity(BATCH_ENTRIES_MAX);
        let batch = std::mem::replace(&mut self.waiting, next);
        let line = self.line.as_ref().expect("the writer has not ended");
        line.send(Order::Write(batch)).inspect_err(|error| self.failed = Some(error.clone()))
    }
}

fn unsorted(key: &[u8]) -> Error {
    const SHOWN: usize = 40;
    let text = key[..key.len().min(SHOWN)].escape_ascii();
    let more = if key.len() > SHOWN { "…" } else { "" };
    let what = format!(
        "the key \"{text}{more}\" is not above the one before it: an ingest takes sorted keys"
    );
    Error::InvalidInput(what)
}

/// An ingest that is in is no failure, whatever comes behind it.
fn warn(error: &Error) {
    tracing::warn!(%error, "an ingest is in, and what follows it will be tried again");
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // That ends the writer, which removes what it wrote unless it was installed.
        self.line = None;
        if let Some(writer) = self.writer.take() {
            // If it panicked, that was answered.
            let _ = writer.join();
        }
    }
}

/// The thread that writes the tables.
struct Writer<'a> {
    shared: &'a Shared,
    core: &'a PartitionCore,
    tree: &'a Tree,
}

impl Writer<'_> {
    fn run(&self, orders: &Receiver<Order>, answers: &Sender<Answer>) {
        // Before the ingestion, so that it ends after it.
        let operation = self.shared.begin_operation();
        let result = operation.as_ref().map_err(Error::clone).and_then(|_| {
            let ingestion = self.tree.begin_ingest()?;
            self.write(ingestion, orders, answers)
        });
        if let Err(error) = result {
            // Nobody may be there any more to hear it.
            let _ = answers.send(Answer::Failed(self.shared.fail(error)));
        }
    }

    fn write(
        &self,
        mut ingestion: Ingestion<'_>,
        orders: &Receiver<Order>,
        answers: &Sender<Answer>,
    ) -> Result<()> {
        let mut prepared = false;
        let answer = |answer| _ = answers.send(answer);
        answer(Answer::Began);
        loop {
            match self.next(orders, prepared)? {
                Some(Order::Write(entries)) => ingestion.add(entries)?,
                Some(Order::Prepare) => {
                    ingestion.sync()?;
                    prepared = true;
                    answer(Answer::Prepared);
                }
                Some(Order::Install(seqno)) => {
                    answer(Answer::Installed(ingestion.install(seqno)));
                    return Ok(());
                }
                None => return Ok(()),
            }
        }
    }

    /// The next order; `None` when nobody gives any more. Once all is prepared, who finishes it keeps
    /// the keyspace open and the partition as it is.
    fn next(&self, orders: &Receiver<Order>, prepared: bool) -> Result<Option<Order>> {
        if prepared {
            return Ok(orders.recv().ok());
        }
        loop {
            self.shared.check_open()?;
            self.core.check_takes(self.tree)?;
            match orders.recv_timeout(LOOK_AGAIN) {
                Ok(order) => return Ok(Some(order)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl PartitionCore {
    /// Whether `tree` is still the one that takes commits.
    fn check_takes(&self, tree: &Tree) -> Result<()> {
        self.check_alive()?;
        if self.tree().id != tree.id {
            return Err(Error::PartitionCleared { name: self.name.clone() });
        }
        Ok(())
    }
}

impl Shared {
    /// Commits what the writer at the other end of `line` has prepared.
    fn finish_ingest(
        &self,
        core: &Arc<PartitionCore>,
        tree: &Arc<Tree>,
        line: Line,
    ) -> Result<u64> {
        let _open = self.begin_operation()?;
        core.check_takes(tree)?;
        // A merge that is under way ends before anybody waits for us.
        drop(tree.lock_compacting());
        let _turn = self.take_turn()?;
        // As every other writer, so that runs do not gather faster than they are merged.
        let _room = self.throttle(0)?;
        let committed = self.install_and_record(core, tree, line);
        tree.clean_up();
        self.jobs.request(Job::Compact(core.id));
        self.jobs.request(Job::Tidy);
        committed.inspect(|_| _ = self.ingests.fetch_add(1, Ordering::Relaxed))
    }

    /// Everything that can take long comes before the first lock that others need.
    fn install_and_record(
        &self,
        core: &Arc<PartitionCore>,
        tree: &Arc<Tree>,
        line: Line,
    ) -> Result<u64> {
        let _finishing = self.keep_merges_from_beginning(core, tree)?;
        // The one that is under way ends first.
        drop(tree.lock_compacting());
        // Or all of it would have to be flushed while others wait.
        self.flush_now(core).map_err(|error| self.fail(error))?;
        let mut catalog = self.catalog.lock();
        core.check_takes(tree)?;
        let _locks = (tree.lock_flushing(), tree.lock_compacting());
        tree.settle();
        let seqno = self.install(core, tree, line)?;
        match unless(Bug::IngestNotRecorded, || self.write_catalog(&mut catalog, |_| {})) {
            Ok(()) => tree.set_unrecorded(false),
            // The entries are in and durable; the next merge tries again before it begins.
            Err(error) if error.kind() == ErrorKind::Retry => warn(&error),
            Err(error) => return Err(error),
        }
        Ok(seqno)
    }

    /// With room for the runs that are about to come.
    fn keep_merges_from_beginning<'a>(
        &self,
        core: &PartitionCore,
        tree: &'a Tree,
    ) -> Result<MutexGuard<'a, ()>> {
        loop {
            let finishing = tree.lock_finishing();
            if tree.l0_runs() < L0_RUNS_MAX {
                return Ok(finishing);
            }
            drop(finishing);
            self.compact_tree(core, tree).map_err(|error| self.fail(error))?;
        }
    }

    /// Numbers the ingest and installs it, between two groups. The caller keeps flushes, compactions
    /// and changes of the set of partitions away.
    fn install(&self, core: &Arc<PartitionCore>, tree: &Arc<Tree>, line: Line) -> Result<u64> {
        let (core, tree) = (Arc::clone(core), Arc::clone(tree));
        let (journal, versions) = (Arc::clone(&self.journal), Arc::clone(&self.versions));
        let installed = self.committer.between(move |turn| {
            tree.rotate();
            let seqno = turn.log_end(&items::ingest(core.id), core.id)?;
            unless(Bug::IngestBeforeSync, || journal.sync(Durability::SyncData))?;
            let recorded = !tree.is_unrecorded();
            tree.set_unrecorded(true);
            line.send(Order::Install(seqno))?;
            let Answer::Installed(outcome) = line.receive()? else { return Err(line.gone()) };
            if outcome.left_nothing() && recorded {
                tree.set_unrecorded(false);
            }
            if matches!(outcome, Outcome::Installed(_)) {
                versions.refresh(&core, &tree, Some(seqno));
            }
            match outcome {
                // What was left to do is done by the next install.
                Outcome::Installed(Err(error)) if error.kind() == ErrorKind::Retry => warn(&error),
                outcome => outcome.into_result()?,
            }
            Ok(seqno)
        });
        installed.map_err(|error| self.fail(error))
    }

    /// Makes merges of the tree possible again where CATALOG could not be written behind an ingest.
    pub(crate) fn record_ingests(&self, tree: &Tree) -> Result<()> {
        if !tree.is_unrecorded() {
            return Ok(());
        }
        let mut catalog = self.catalog.lock();
        self.write_catalog(&mut catalog, |_| {})?;
        tree.set_unrecorded(false);
        Ok(())
    }
}
