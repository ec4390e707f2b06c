//! One LSM tree: the only module that names `lsm_tree`, with its parts below `tree/`.
//!
//! What must stay true (the numbers are the rules of docs/architecture.md, "Building on lsm-tree"):
//! - Trees get counters of their own (1): lsm-tree bumps them at every install, which would publish
//!   half-applied batches. The private counter is reset before each operation, so every
//!   super-version carries 0 or 1, and reads (at `READ_SEQNO_MIN` or above) always get the newest;
//!   but for that of an ingest, which only views that see the ingest get.
//! - Inserts go to the cached memtable (2); `rotate` runs only where no batch is in flight.
//! - One flush and one compaction run at a time; a compaction fixes its inputs before the next
//!   flush may seal (`gate`), which is what the merge thresholds of `views` rest on.
//! - A level never reaches 256 runs (5): a flush refuses to add one long before.
//! - Whatever lsm-tree leaves behind (super-versions, obsolete manifests) is collected after every
//!   operation (11).

mod blobs;
mod calls;
mod ingest;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lsm_tree::coding::Encode as _;
use lsm_tree::config::{
    BlockSizePolicy, BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry,
};
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, DescriptorTable, InternalValue,
    KvSeparationOptions, Memtable, SequenceNumberCounter, ValueType,
};
use parking_lot::{Mutex, MutexGuard, RwLock};

pub use lsm_tree::Slice;

pub(crate) use ingest::{Ingestion, Outcome};
pub(crate) use reading::{Bounds, End, RawIter, prefix_bounds};

use calls::{guarded, open_uninterrupted, wrap};

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::manifest::{self, BlobEntry, TableEntry, Version};
use crate::memory::{Account, WriteBuffer, entry_bytes};
use crate::options::{Compression, PartitionOptions};
use crate::planted::{Bug, is_planted};
use crate::views::Views;

/// Super-versions carry 0 or 1; this collects all but the newest.
const COLLECT_ALL_BUT_NEWEST: u64 = 2;
/// Reads below this would look for a super-version that may be gone. Nothing is lost by it: commit 1
/// creates the first partition and holds no entry.
const READ_SEQNO_MIN: u64 = 2;
/// Flushes wait for compaction beyond this many runs in the first level.
pub(crate) const L0_RUNS_MAX: usize = 200;
/// Open table files kept for all trees of a keyspace.
const OPEN_FILES: usize = 256;

/// Inode and time of change.
type CurrentFile = (u64, i64, i64);

/// What all trees of a keyspace share.
#[derive(Clone)]
pub(crate) struct Shared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
    closed: Arc<AtomicBool>,
    pub(crate) buffer: Arc<WriteBuffer>,
}

impl Shared {
    pub(crate) fn new(cache_bytes: u64) -> Self {
        Self {
            cache: Arc::new(Cache::with_capacity_bytes(cache_bytes)),
            descriptors: Arc::new(DescriptorTable::new(OPEN_FILES)),
            closed: Arc::new(AtomicBool::new(false)),
            buffer: Arc::default(),
        }
    }

    /// From here on trees delete nothing of their own accord.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache.size()
    }

    pub(crate) fn cache_bytes_max(&self) -> u64 {
        self.cache.capacity()
    }
}

/// A version whose files stay on disk while this lives.
pub(crate) struct PinnedVersion {
    pub(crate) id: u64,
    /// The version's type cannot be named outside of lsm-tree, so the clone lives in a closure.
    list: Box<dyn Fn() -> Version + Send + Sync>,
}

impl PinnedVersion {
    /// The files that make up the version.
    pub(crate) fn files(&self) -> Version {
        (self.list)()
    }
}

/// What a tree has installed: a version, and the hash of its manifest, unless a newer one has
/// replaced it meanwhile.
pub(crate) struct Installed {
    pub(crate) version: PinnedVersion,
    pub(crate) manifest: Option<u128>,
}

pub(crate) struct Tree {
    pub(crate) id: u64,
    dir: PathBuf,
    tree: AnyTree,
    /// If separated values are compressed: what their lengths are compared with.
    lengths: Option<blobs::Lengths>,
    counter: SequenceNumberCounter,
    active: RwLock<Arc<Memtable>>,
    flushing: Mutex<()>,
    compacting: Mutex<()>,
    /// True while a compaction has taken its threshold and not fixed its inputs. Taken after
    /// `flushing` or `compacting`.
    gate: Mutex<bool>,
    /// Reads below this number may miss values that a merge dropped.
    gc_floor: AtomicU64,
    l0_runs: AtomicU64,
    account: Account,
    /// A flush was asked for since the last seal.
    flush_asked: AtomicBool,
    /// Above every blob file that was ever installed; lsm-tree reuses no number.
    next_blob: AtomicU64,
    /// Blob files whose lengths were checked before a merge. Locked by who holds `compacting`.
    walked_blobs: Mutex<BTreeSet<u64>>,
    /// `current` may name a version that is not in memory.
    undecided: AtomicBool,
    ingests: Mutex<ingest::Ingests>,
    /// Ingested tables that CATALOG does not know of: merges wait.
    unrecorded: AtomicBool,
    /// Delete the directory when the last handle goes.
    doomed: AtomicBool,
    /// The keyspace is closed, and its directory may be somebody else's by now.
    closed: Arc<AtomicBool>,
}

/// Opens the gate again, whatever way the compaction ends.
struct Choosing<'a>(&'a Mutex<bool>);

impl Drop for Choosing<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
    }
}

/// Gives back what a compaction held, whatever way it ends.
struct Merge<'a>(&'a Account);

impl Drop for Merge<'_> {
    fn drop(&mut self) {
        self.0.end_merge();
    }
}

/// What a compaction run changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compacted {
    Something,
    Nothing,
}

impl Tree {
    /// Opens the tree in `dir`, or creates it. The caller has checked `current`.
    pub(crate) fn open(
        dir: &Path,
        id: u64,
        options: &PartitionOptions,
        shared: &Shared,
    ) -> Result<Self> {
        let counter = SequenceNumberCounter::default();
        let tree = open_uninterrupted(dir, || configure(dir, options, shared, counter.clone()))?;
        let this = Self {
            id,
            dir: dir.to_path_buf(),
            active: RwLock::new(tree.active_memtable()),
            lengths: (options.separate_values_from.is_some()
                && options.compression != Compression::None)
                .then(|| blobs::Lengths {
                    dir: Arc::from(dir),
                    tree_id: tree.id(),
                    descriptors: Arc::clone(&shared.descriptors),
                }),
            tree,
            counter,
            flushing: Mutex::new(()),
            compacting: Mutex::new(()),
            gate: Mutex::new(false),
            gc_floor: AtomicU64::new(0),
            l0_runs: AtomicU64::new(0),
            account: Account::new(Arc::clone(&shared.buffer)),
            flush_asked: AtomicBool::new(false),
            next_blob: AtomicU64::new(0),
            walked_blobs: Mutex::default(),
            undecided: AtomicBool::new(false),
            ingests: Mutex::default(),
            unrecorded: AtomicBool::new(false),
            doomed: AtomicBool::new(false),
            closed: Arc::clone(&shared.closed),
        };
        this.note_install();
        Ok(this)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the directory once nobody uses the tree any more.
    pub(crate) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// The newest version, pinned.
    pub(crate) fn version(&self) -> PinnedVersion {
        let version = self.tree.current_version();
        let id = version.id();
        let list = move || {
            let levels = version.iter_levels().map(|level| {
                let runs = level.iter().map(|run| {
                    let tables = run.iter().map(|table| TableEntry {
                        id: table.id(),
                        checksum: table.checksum().into_u128(),
                        global_seqno: table.global_seqno(),
                    });
                    tables.collect()
                });
                runs.collect()
            });
            let blobs = version.blob_files.iter();
            Version {
                id: version.id(),
                separates_values: version.tree_type() == lsm_tree::TreeType::Blob,
                levels: levels.collect(),
                blobs: blobs
                    .map(|b| BlobEntry { id: b.id(), checksum: b.checksum().into_u128() })
                    .collect(),
                gc_stats: version.gc_stats().encode_into_vec(),
            }
        };
        PinnedVersion { id, list: Box::new(list) }
    }

    /// The newest version, pinned, and the hash of its manifest.
    pub(crate) fn installed(&self) -> Installed {
        let version = self.version();
        // A manifest whose hash cannot be read now is not compared at the next open, and that is all.
        let current = files::read(&files::current(&self.dir)).ok();
        let named = current.and_then(|bytes| manifest::decode_current(&bytes, &self.dir).ok());
        let manifest = named.filter(|(id, _)| *id == version.id).map(|(_, hash)| hash);
        Installed { version, manifest }
    }

    pub(crate) fn highest_persisted_seqno(&self) -> Option<u64> {
        self.tree.get_highest_persisted_seqno()
    }
}

/// Writing.
impl Tree {
    /// Adds an entry to the active memtable; returns what that takes in memory now.
    pub(crate) fn apply(&self, key: Slice, value: Option<Slice>, seqno: u64) -> u64 {
        let bytes = entry_bytes(&key, value.as_deref());
        let item = match value {
            Some(value) => InternalValue::from_components(key, value, seqno, ValueType::Value),
            None => InternalValue::new_tombstone(key, seqno),
        };
        self.active.read().insert(item);
        self.account.charge(bytes)
    }

    /// What the memtables take.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    pub(crate) fn sealed_memtables(&self) -> usize {
        self.tree.sealed_memtable_count()
    }

    /// Keeps other flushes of this tree away while the guard lives.
    pub(crate) fn lock_flushing(&self) -> MutexGuard<'_, ()> {
        self.flushing.lock()
    }

    /// Waits until no compaction is between its threshold and its inputs, and keeps it so while
    /// the guard lives: the caller seals the memtable meanwhile.
    pub(crate) fn lock_gate(&self) -> MutexGuard<'_, bool> {
        loop {
            let gate = self.gate.lock();
            if !*gate || self.is_compacting() {
                return gate;
            }
            drop(gate);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn is_compacting(&self) -> bool {
        match &self.tree {
            AnyTree::Standard(tree) => tree.is_compacting(),
            AnyTree::Blob(tree) => tree.index.is_compacting(),
        }
    }

    /// Lets a version install that is under way finish, so that `rotate` need not wait for it.
    pub(crate) fn settle(&self) {
        drop(self.tree.get_version_history_lock());
    }

    /// Seals the active memtable. Only where no batch is in flight.
    pub(crate) fn rotate(&self) {
        let sealed = self.tree.rotate_memtable();
        *self.active.write() = self.tree.active_memtable();
        if sealed.is_some() {
            self.account.seal();
        }
        self.flush_asked.store(false, Ordering::Release);
    }

    /// True the first time since the last seal.
    pub(crate) fn ask_for_flush(&self) -> bool {
        !self.flush_asked.swap(true, Ordering::AcqRel)
    }

    /// Writes the sealed memtables to tables. `threshold` is for their newest entry, see `views`.
    /// The journal must be synced up to that entry.
    pub(crate) fn flush(&self, _flushing: &MutexGuard<'_, ()>, threshold: u64) -> Result<()> {
        // What this installs must be noted before a merge can supersede it.
        let _inputs_fixed = self.is_ingesting().then(|| self.lock_gate());
        self.flush_sealed(threshold)
    }

    /// The same for who holds `flushing` elsewhere.
    fn flush_sealed(&self, threshold: u64) -> Result<()> {
        if self.tree.sealed_memtable_count() == 0 {
            // An earlier attempt may have installed tables and failed behind that.
            self.collect()?;
            self.account.flushed();
            return Ok(());
        }
        self.check_decided()?;
        self.gc_floor.fetch_max(threshold, Ordering::AcqRel);
        let before = self.tree.current_version().id();
        let first_new_table = self.tree.next_table_id();
        let current = self.current_file();
        self.counter.set(0);
        let lock = self.tree.get_flush_lock();
        let flushed = guarded("flush into", &self.dir, || self.tree.flush(&lock, threshold));
        drop(lock);
        let flushed = flushed.map_err(|e| self.decide(current, e));
        if flushed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Retry)
            && let Some(_compacting) = self.compacting.try_lock()
        {
            self.remove_leftovers(before, first_new_table);
        }
        flushed?;
        self.collect()?;
        self.account.flushed();
        Ok(())
    }

    /// One round of compaction, if the tree wants one.
    pub(crate) fn compact(&self, views: &Views, strategy: Strategy) -> Result<Compacted> {
        let compacting = self.compacting.lock();
        if self.is_unrecorded() {
            return Ok(Compacted::Nothing);
        }
        self.check_decided()?;
        self.check_stale_blobs()?;
        let choosing = Choosing(&self.gate);
        let merge = Merge(&self.account);
        let threshold = {
            // A flush that sealed before this moment holds nothing newer than what is visible; one
            // that seals later waits at the gate until the inputs are fixed.
            let mut gate = self.gate.lock();
            *gate = true;
            self.account.begin_merge();
            views.merge_threshold(views.visible())
        };
        self.gc_floor.fetch_max(threshold, Ordering::AcqRel);
        let before = self.tree.current_version().id();
        let first_new_table = self.tree.next_table_id();
        let current = self.current_file();
        self.counter.set(0);
        let result = guarded("compact", &self.dir, || match strategy {
            Strategy::Leveled { table_bytes, l0_runs } => {
                let leveled = lsm_tree::compaction::Leveled::default()
                    .with_table_target_size(table_bytes)
                    .with_l0_threshold(l0_runs);
                self.tree.compact(Arc::new(leveled), threshold)
            }
            Strategy::Everything { table_bytes } => self.tree.major_compact(table_bytes, threshold),
        });
        drop(choosing);
        let result = result.map_err(|e| self.decide(current, e));
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Retry)
            && let Some(_flushing) = self.flushing.try_lock()
        {
            self.remove_leftovers(before, first_new_table);
        }
        drop(merge);
        self.note_install();
        drop(compacting);
        self.clean_up();
        result?;
        self.collect()?;
        let changed = self.tree.current_version().id() != before;
        Ok(if changed { Compacted::Something } else { Compacted::Nothing })
    }

    /// Looks once at every blob file that a merge may rewrite.
    fn check_stale_blobs(&self) -> Result<()> {
        let version = self.tree.current_version();
        let mut walked = self.walked_blobs.lock();
        walked.retain(|id| version.blob_files.contains_key(*id));
        let stale = blobs::stale_bytes(&version.gc_stats().encode_into_vec());
        if stale.keys().all(|id| walked.contains(id)) {
            return Ok(());
        }
        let mut live = BTreeMap::new();
        for table in version.iter_tables() {
            let linked = guarded("compact", &self.dir, || table.list_blob_file_references())?;
            for file in linked.unwrap_or_default() {
                *live.entry(file.blob_file_id).or_default() += file.bytes;
            }
        }
        for id in blobs::rewritable(&stale, &live) {
            if version.blob_files.contains_key(id) && !walked.contains(&id) {
                blobs::check_lengths(&files::blob(&self.dir, id))?;
                walked.insert(id);
            }
        }
        Ok(())
    }

    /// Lets go of every super-version but the newest, and of the files that only they held.
    fn collect(&self) -> Result<()> {
        self.note_install();
        if matches!(self.tree, AnyTree::Blob(_)) {
            // lsm-tree syncs new blob files but not the directory that names them (12).
            files::sync_dir(&files::blobs(&self.dir))?;
        }
        let mut history = self.tree.get_version_history_lock();
        let collected = history.maintenance(&self.dir, COLLECT_ALL_BUT_NEWEST);
        drop(history);
        collected.map_err(|e| wrap("remove old manifests of", &self.dir, e))
    }

    /// What tells one `current` from the next, without a descriptor: those may have run out.
    fn current_file(&self) -> Option<CurrentFile> {
        let metadata = std::fs::metadata(files::current(&self.dir)).ok()?;
        Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
    }

    /// An operation that failed may be tried again only if nothing of it was installed. lsm-tree
    /// replaces `current` and then opens and syncs it and its directory: a failure there leaves a
    /// `current` on disk that names the new version and its tables, while in memory the old one
    /// goes on. Another install would write over that version's manifest, and what looks like
    /// leftovers are its tables. So there is none any more, and the error is never `Retry`.
    fn decide(&self, before: Option<CurrentFile>, error: Error) -> Error {
        let (same, on_disk) = {
            // Nobody is between disk and memory.
            let _installing = self.tree.get_version_history_lock();
            let same = before.is_some() && before == self.current_file();
            (same, files::read(&files::current(&self.dir)))
        };
        let id = on_disk.ok().and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
        if same
            || is_planted(Bug::UndecidedInstallRetried)
            || id.is_some_and(|id| id <= self.tree.current_version().id())
        {
            return error;
        }
        self.undecided.store(true, Ordering::Release);
        match error.kind() {
            ErrorKind::Retry => {
                let cause = std::io::Error::other(error.to_string());
                Error::io("install a new version in", &self.dir, cause)
            }
            _ => error,
        }
    }

    /// Refuses where an earlier install may be on disk and is not in memory.
    fn check_decided(&self) -> Result<()> {
        if self.undecided.load(Ordering::Acquire) {
            let cause = std::io::Error::other("an earlier install failed halfway");
            return Err(Error::io("install a new version in", &self.dir, cause));
        }
        Ok(())
    }

    /// Gives back the space of tables and blob files that a failed operation left half-written.
    /// Those that the newest version lacks are nobody's while the caller holds both `flushing` and
    /// `compacting`, provided that nothing was installed since the operation began: what was may
    /// have been superseded already, and still be read.
    fn remove_leftovers(&self, version_before: u64, first_new_table: u64) {
        if self.tree.current_version().id() != version_before {
            return;
        }
        let first_new_blob = self.next_blob.load(Ordering::Acquire);
        self.unless_ingesting(|| {
            for file in self.files_from(first_new_table, first_new_blob) {
                // Best effort: the next open removes what remains.
                let _ = files::remove_if_present(&file.path);
            }
        });
    }

    /// After an install: what others ask for without lsm-tree's locks.
    fn note_install(&self) {
        self.l0_runs.store(self.tree.l0_run_count() as u64, Ordering::Release);
        if matches!(self.tree, AnyTree::Blob(_)) {
            let version = self.tree.current_version();
            let next = version.blob_files.list_ids().max().map_or(0, |id| id + 1);
            self.next_blob.fetch_max(next, Ordering::AcqRel);
        }
        self.note_for_ingests();
    }

    /// Runs in the first level, as of the last operation.
    pub(crate) fn l0_runs(&self) -> usize {
        self.l0_runs.load(Ordering::Acquire) as usize
    }
}

/// Which compaction to run.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Strategy {
    /// Leveled, as the sizes ask for it.
    Leveled { table_bytes: u64, l0_runs: u8 },
    /// Everything into the last level.
    Everything { table_bytes: u64 },
}

impl Drop for Tree {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire) && !self.closed.load(Ordering::Acquire) {
            // CATALOG no longer names it: what cannot be removed now is removed at the next open.
            if let Err(error) = files::remove_dir_if_present(&self.dir) {
                tracing::warn!(%error, "a dropped tree stays on disk until the next open");
            }
        }
    }
}

fn configure(
    dir: &Path,
    options: &PartitionOptions,
    shared: &Shared,
    counter: SequenceNumberCounter,
) -> lsm_tree::Config {
    let filter = if options.filter_bits_per_key > 0.0 {
        // lsm-tree counts whole bits and divides by their number: less than one must not become none.
        let bits = BloomConstructionPolicy::BitsPerKey(options.filter_bits_per_key.max(1.0));
        FilterPolicy::all(FilterPolicyEntry::Bloom(bits))
    } else {
        FilterPolicy::disabled()
    };
    let blocks = match options.compression {
        Compression::None => CompressionPolicy::disabled(),
        Compression::Lz4 => CompressionPolicy::new([CompressionType::None, CompressionType::Lz4]),
    };
    let values = match options.compression {
        Compression::None => CompressionType::None,
        Compression::Lz4 => CompressionType::Lz4,
    };
    let separation = options.separate_values_from.map(|bytes| {
        KvSeparationOptions::default()
            .separation_threshold(bytes)
            .file_target_size(options.table_bytes)
            .compression(values)
    });
    lsm_tree::Config::new(dir, counter, SequenceNumberCounter::default())
        .use_cache(Arc::clone(&shared.cache))
        .use_descriptor_table(Some(Arc::clone(&shared.descriptors)))
        .data_block_size_policy(BlockSizePolicy::all(options.block_bytes))
        .data_block_compression_policy(blocks)
        .filter_policy(filter)
        .with_kv_separation(separation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_descriptors() -> Error {
        let errno = rustix::io::Errno::MFILE.raw_os_error();
        Error::io("flush into", Path::new("tree"), std::io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn running_out_of_descriptors_for_a_temporary_file_is_recognised() {
        let errno = rustix::io::Errno::MFILE.raw_os_error();
        let source = std::io::Error::from_raw_os_error(errno);
        // As tempfile does it: the same kind, and a text.
        let hidden = std::io::Error::new(source.kind(), format!("{source} at path \"/x\""));
        let error = wrap("flush into", Path::new("tree"), lsm_tree::Error::Io(hidden));
        assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
    }

    #[test]
    fn an_install_that_failed_behind_its_rename_is_never_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path(), 1, &PartitionOptions::default(), &Shared::new(1 << 20));
        let tree = tree.unwrap();
        let before = tree.current_file();
        assert_eq!(tree.decide(before, no_descriptors()).kind(), ErrorKind::Retry);
        // As lsm-tree does it: what follows the rename has failed.
        let current = files::current(dir.path());
        let mut bytes = std::fs::read(&current).unwrap();
        std::fs::write(dir.path().join("new"), &bytes).unwrap();
        std::fs::rename(dir.path().join("new"), &current).unwrap();
        let error = tree.decide(before, no_descriptors());
        assert_eq!(error.kind(), ErrorKind::Retry, "another operation installed what is in memory");
        bytes[0] += 1;
        std::fs::write(dir.path().join("new"), &bytes).unwrap();
        std::fs::rename(dir.path().join("new"), &current).unwrap();
        let error = tree.decide(before, no_descriptors());
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        assert!(tree.check_decided().is_err(), "nothing is installed over it");
    }

    /// Flushes one value of 2,000 bytes for each key.
    fn flush_values(tree: &Tree, keys: impl Iterator<Item = u32>, seqno: &mut u64) {
        for key in keys {
            *seqno += 1;
            let value = vec![*seqno as u8; 2_000];
            let _ = tree.apply(Slice::from(key.to_be_bytes()), Some(Slice::from(value)), *seqno);
        }
        tree.rotate();
        tree.flush(&tree.lock_flushing(), *seqno + 1).unwrap();
    }

    fn compact_everything(tree: &Tree, seqno: u64) -> Result<Compacted> {
        tree.compact(&Views::new(seqno), Strategy::Everything { table_bytes: 1 << 20 })
    }

    fn separating_tree(dir: &Path) -> Tree {
        let options = PartitionOptions::default().separate_values_from(Some(1_000));
        Tree::open(dir, 1, &options, &Shared::new(1 << 20)).unwrap()
    }

    fn blob_ids(tree: &Tree) -> BTreeSet<u64> {
        tree.version().files().blobs.iter().map(|blob| blob.id).collect()
    }

    #[test]
    fn merges_rewrite_no_blob_file_that_was_not_walked() {
        let dir = tempfile::tempdir().unwrap();
        let tree = separating_tree(dir.path());
        let mut seqno = 1;
        for file in 0..16 {
            flush_values(&tree, file * 20..file * 20 + 20, &mut seqno);
        }
        let mut rewritten = 0;
        // Of every file more and more is overwritten, of none all.
        for round in 0..15 {
            flush_values(&tree, (0..16).map(|file| file * 20 + round), &mut seqno);
            let before = blob_ids(&tree);
            compact_everything(&tree, seqno).unwrap();
            let after = blob_ids(&tree);
            let walked = tree.walked_blobs.lock();
            let gone: Vec<_> = before.difference(&after).filter(|&&id| id < 16).collect();
            assert!(gone.iter().all(|id| walked.contains(id)), "{round}: {gone:?}, {walked:?}");
            rewritten += gone.len();
        }
        assert!(rewritten >= 4, "{rewritten} files were rewritten");
    }

    #[test]
    fn a_damaged_blob_file_fails_no_merge_that_leaves_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let tree = separating_tree(dir.path());
        let mut seqno = 1;
        for file in 0..8 {
            flush_values(&tree, file * 20..file * 20 + 20, &mut seqno);
        }
        std::fs::write(files::blob(dir.path(), 0), "not a blob file").unwrap();
        for overwritten in 1..=4 {
            let keys = (0..8).map(|file| file * 20 + overwritten);
            flush_values(&tree, keys, &mut seqno);
            compact_everything(&tree, seqno).unwrap();
            flush_values(&tree, std::iter::once(1_000), &mut seqno);
        }
        let error = compact_everything(&tree, seqno).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "enough of it is stale: {error}");
    }
}
