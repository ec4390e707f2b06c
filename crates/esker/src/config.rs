//! How a keyspace is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::filter::{CompactionFilterFactory, Filters};
use crate::keyspace::Keyspace;
use crate::transaction::{TxKeyspace, TxKind};

/// When a commit counts as done.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Handed to the operating system: survives the death of the process, not of the machine.
    #[default]
    Buffer,
    /// `fdatasync`ed: survives power loss.
    SyncData,
    /// `fsync`ed: survives power loss, file metadata (times) included.
    SyncAll,
}

/// How far [`Keyspace::persist`] goes.
pub type PersistMode = Durability;

/// Settings of an open keyspace. None of them is stored: each open chooses its own.
///
/// ```no_run
/// use esker::{Config, Durability};
/// let keyspace = Config::new("data")
///     .cache_bytes(256 << 20)
///     .durability(Durability::SyncData)
///     .open()?;
/// # Ok::<(), esker::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Config {
    pub(crate) path: PathBuf,
    pub(crate) cache_bytes: u64,
    pub(crate) write_buffer_bytes_max: u64,
    pub(crate) journal_bytes_max: u64,
    pub(crate) journal_segment_bytes: u64,
    pub(crate) memtable_bytes: u64,
    pub(crate) worker_threads: usize,
    pub(crate) defer_after_changes: u64,
    pub(crate) durability: Durability,
    pub(crate) read_only: bool,
    pub(crate) create_if_missing: bool,
    pub(crate) filters: Filters,
}

const JOURNAL_SEGMENT_BYTES_MIN: u64 = 4 << 10;
const MEMTABLE_BYTES_MIN: u64 = 1 << 10;

impl Config {
    /// Settings for the keyspace in the directory `path`, which is created when missing.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            path: path.as_ref().to_path_buf(),
            cache_bytes: 64 << 20,
            write_buffer_bytes_max: 256 << 20,
            journal_bytes_max: 512 << 20,
            journal_segment_bytes: 64 << 20,
            memtable_bytes: 24 << 20,
            worker_threads: cpus.clamp(2, 4),
            // With one processor there is nobody to leave it to.
            defer_after_changes: if cpus > 1 { 16_384 } else { u64::MAX },
            durability: Durability::Buffer,
            read_only: false,
            create_if_missing: true,
            filters: Filters::default(),
        }
    }

    /// Memory for cached blocks of all partitions, in bytes; default 64 MiB.
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// Memory for entries that are not in tables yet, all partitions together, in bytes; default
    /// 256 MiB, at least `memtable_bytes`. An entry takes 110 to 180 bytes beside its key and value.
    /// Writers wait rather than exceed it. What compactions hold of it while they run counts for at
    /// most half; anything above that comes on top.
    pub fn write_buffer_bytes_max(mut self, bytes: u64) -> Self {
        self.write_buffer_bytes_max = bytes;
        self
    }

    /// How large the journal may grow on disk before partitions that keep old segments alive are
    /// flushed, in bytes; default 512 MiB. Writers wait at twice as much.
    pub fn journal_bytes_max(mut self, bytes: u64) -> Self {
        self.journal_bytes_max = bytes;
        self
    }

    /// Size of one journal segment, in bytes; default 64 MiB. Preallocated.
    pub fn journal_segment_bytes(mut self, bytes: u64) -> Self {
        self.journal_segment_bytes = bytes;
        self
    }

    /// A partition's memtable is written to a table beyond this size, in bytes; default 24 MiB.
    pub fn memtable_bytes(mut self, bytes: u64) -> Self {
        self.memtable_bytes = bytes;
        self
    }

    /// Threads for flush and compaction; default the number of processors, 2 to 4.
    pub fn worker_threads(mut self, threads: usize) -> Self {
        self.worker_threads = threads;
        self
    }

    /// After so many changes without a read in between, commits are put into memory by a thread of
    /// their own, which makes long loads faster; default 16,384, and never with one processor. The
    /// first read after that waits for what is left, a few milliseconds at most, and ends it.
    pub fn defer_after_changes(mut self, changes: u64) -> Self {
        self.defer_after_changes = changes;
        self
    }

    /// When a commit counts as done, unless the batch says otherwise; default
    /// [`Durability::Buffer`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Opens without changing anything on disk, the journal's last commits included: works on a
    /// private view (links and copies in a temporary directory). Other readers may do the same at
    /// the same time; a writer may not.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Whether a missing or empty directory becomes a new keyspace; default true.
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create_if_missing = create;
        self
    }

    /// Gives partitions compaction filters: called with the name of each partition that is opened,
    /// created or cleared. Not stored: a keyspace that is opened without them keeps what it has.
    ///
    /// A filter works while tables are merged, on background threads; it must not use the keyspace.
    /// See [`CompactionFilter`](crate::CompactionFilter).
    pub fn compaction_filters(
        mut self,
        assign: impl Fn(&str) -> Option<Arc<dyn CompactionFilterFactory>> + Send + Sync + 'static,
    ) -> Self {
        self.filters = Filters::new(assign);
        self
    }

    /// Opens the keyspace, recovering what an earlier crash left in its journal.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] when it is open elsewhere; [`Error::NotAKeyspace`] when the directory
    /// holds something else; [`Error::Corrupt`] with the file and offset when what is on disk is
    /// not what was written: nothing is changed then.
    pub fn open(self) -> Result<Keyspace> {
        self.validate()?;
        Keyspace::open_with(self, None)
    }

    /// Opens the keyspace with transactions of that kind. Its files are the same: it can be opened
    /// in every way, one after the other.
    ///
    /// # Errors
    ///
    /// As [`Config::open`].
    pub fn open_transactional(self, kind: TxKind) -> Result<TxKeyspace> {
        self.validate()?;
        TxKeyspace::open_with(self, kind)
    }

    fn validate(&self) -> Result<()> {
        let complain = |what: &str| Err(Error::InvalidInput(what.to_owned()));
        if self.worker_threads == 0 {
            return complain("worker_threads must be at least 1");
        }
        if self.journal_segment_bytes < JOURNAL_SEGMENT_BYTES_MIN {
            return complain("journal_segment_bytes must be at least 4096");
        }
        if self.memtable_bytes < MEMTABLE_BYTES_MIN {
            return complain("memtable_bytes must be at least 1024");
        }
        if self.write_buffer_bytes_max < self.memtable_bytes {
            return complain("write_buffer_bytes_max must be at least memtable_bytes");
        }
        if self.journal_bytes_max < self.journal_segment_bytes {
            return complain("journal_bytes_max must be at least journal_segment_bytes");
        }
        Ok(())
    }
}
