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
mod fifo;
mod filtering;
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

pub(crate) use fifo::Limits;
pub(crate) use filtering::{Losing, Lost};

use calls::{guarded, open_uninterrupted, wrap};
use filtering::Loss;

use crate::error::{Error, ErrorKind, Result};
use crate::files;
use crate::filter::Filters;
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

/// The deepest of lsm-tree's levels.
const LAST_LEVEL: u8 = 6;

/// Inode and time of change.
type CurrentFile = (u64, i64, i64);

/// What all trees of a keyspace share.
#[derive(Clone)]
pub(crate) struct Shared {
    cache: Arc<Cache>,
    descriptors: Arc<DescriptorTable>,
    closed: Arc<AtomicBool>,
    filters: Filters,
    pub(crate) buffer: Arc<WriteBuffer>,
}

impl Shared {
    pub(crate) fn new(cache_bytes: u64, filters: Filters) -> Self {
        Self {
            filters,
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
    /// The same without its blob files: what is ingested stays in tables.
    tables: AnyTree,
    /// If compactions can lose entries.
    loss: Option<Arc<Loss>>,
    /// How stale a blob file must be, and of which age, to be rewritten.
    rewriting: blobs::Rewriting,
    /// If separated values are compressed: what their lengths are compared with.
    lengths: Option<blobs::Lengths>,
    counter: SequenceNumberCounter,
    active: RwLock<Arc<Memtable>>,
    /// Held by an ingest that is finished: merges that have not begun wait.
    finishing: Mutex<()>,
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
    /// The version that the last ingest installed.
    ingested_version: AtomicU64,
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

/// What becomes of a key.
#[derive(Clone, Debug)]
pub(crate) enum Update {
    Put(Slice),
    Remove,
    /// The key was written once: the removal and what it removes go together.
    RemoveWeak,
}

impl Update {
    pub(crate) fn value(&self) -> Option<&[u8]> {
        if let Self::Put(value) = self { Some(value) } else { None }
    }
}

impl From<Option<Slice>> for Update {
    fn from(value: Option<Slice>) -> Self {
        value.map_or(Self::Remove, Self::Put)
    }
}

/// What a compaction run changed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compacted {
    Something,
    Nothing,
    /// Entries would be lost that a crash could bring back.
    NotYet,
}

impl Tree {
    /// Opens the tree of a partition in `dir`, or creates it. The caller has checked `current`.
    pub(crate) fn open(
        dir: &Path,
        id: u64,
        partition: &str,
        options: &PartitionOptions,
        shared: &Shared,
    ) -> Result<Self> {
        let counter = SequenceNumberCounter::default();
        let filter = shared.filters.of(partition);
        let loss = (filter.is_some() || options.is_fifo())
            .then(|| Arc::new(Loss::new(partition, filter, counter.clone())));
        let tree = open_uninterrupted(dir, || {
            configure(dir, options, shared, counter.clone())
                .with_compaction_filter_factory(loss.as_ref().map(filtering::factory))
        })?;
        let tables = match &tree {
            AnyTree::Standard(_) => tree.clone(),
            AnyTree::Blob(blobs) => AnyTree::Standard(blobs.index.clone()),
        };
        let this = Self {
            id,
            tables,
            loss,
            rewriting: blobs::Rewriting::of(options),
            dir: dir.to_path_buf(),
            active: RwLock::new(tree.active_memtable()),
            lengths: (options.separate_values_from.is_some()
                && options.values_compression() != Compression::None)
                .then(|| blobs::Lengths {
                    dir: Arc::from(dir),
                    tree_id: tree.id(),
                    descriptors: Arc::clone(&shared.descriptors),
                }),
            tree,
            counter,
            finishing: Mutex::new(()),
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
            ingested_version: AtomicU64::new(u64::MAX),
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
    pub(crate) fn apply(&self, key: Slice, update: Update, seqno: u64) -> u64 {
        let bytes = entry_bytes(&key, update.value());
        let item = match update {
            Update::Put(value) => {
                InternalValue::from_components(key, value, seqno, ValueType::Value)
            }
            Update::Remove => InternalValue::new_tombstone(key, seqno),
            Update::RemoveWeak => InternalValue::new_weak_tombstone(key, seqno),
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
        let turn = self.take_turn();
        let lock = self.tree.get_flush_lock();
        let flushed = guarded("flush into", &self.dir, || self.tree.flush(&lock, threshold));
        drop(lock);
        if let Some(loss) = &self.loss
            && flushed.is_ok()
            && threshold > loss.kept_below()
        {
            // lsm-tree has let go of everything below the threshold: no view needs it.
            loss.forget_kept();
        }
        drop(turn);
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

    /// One round of compaction, if the tree wants one. Entries are lost as `losing` says, and only if
    /// `is_known` says that what is in tables will not be replayed.
    pub(crate) fn compact(
        &self,
        views: &Arc<Views>,
        strategy: Strategy,
        losing: Losing,
        is_known: &dyn Fn() -> bool,
    ) -> Result<Compacted> {
        let compacted = self.compact_alone(views, strategy, losing, is_known);
        self.clean_up();
        compacted
    }

    fn compact_alone(
        &self,
        views: &Arc<Views>,
        strategy: Strategy,
        losing: Losing,
        is_known: &dyn Fn() -> bool,
    ) -> Result<Compacted> {
        let (compacting, flushing) = self.lock_to_compact();
        if self.is_unrecorded() {
            return Ok(Compacted::Nothing);
        }
        self.check_decided()?;
        self.check_stale_blobs()?;
        let Some((step, losing)) = self.plan(views, strategy, losing, is_known)? else {
            return Ok(Compacted::NotYet);
        };
        let Some(step) = step else { return Ok(Compacted::Nothing) };
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
        let first_new_blob = self.next_blob.load(Ordering::Acquire);
        let current = self.current_file();
        let ending = match step {
            Step::Expire(level, _) => self.tree.level_table_count(level.into()),
            _ => None,
        };
        match &self.loss {
            Some(loss) => loss.begin(losing, views),
            None => self.counter.set(0),
        }
        drop(flushing);
        let result = guarded("compact", &self.dir, || self.run_step(&step, threshold));
        let changed = self.tree.current_version().id() != before;
        // Before the gate, which a flush may hold that waits for its turn.
        let failure = self.loss.as_ref().and_then(|loss| loss.end(changed, ending));
        drop(choosing);
        let result = result.map_err(|e| self.decide(current, e));
        let result = filtering::outcome(failure, result);
        let left_over = |e: &Error| e.kind() == ErrorKind::Retry || is_filter_failure(e);
        if result.as_ref().is_err_and(left_over) {
            // Flushes only add files, and the next merge has not begun.
            self.abandon(first_new_table, first_new_blob);
        }
        drop(merge);
        self.note_install();
        drop(compacting);
        result?;
        self.collect()?;
        let changed = self.tree.current_version().id() != before;
        Ok(if changed { Compacted::Something } else { Compacted::Nothing })
    }

    /// Where entries can be lost, also keeps flushes away for now: none is between its seal and the note
    /// of what it has flushed. Others take the two locks in the other order.
    fn lock_to_compact(&self) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        loop {
            let compacting = self.compacting.lock();
            if self.finishing.is_locked() {
                // An ingest waited for the merge before, and others wait for the ingest.
                drop(compacting);
                drop(self.finishing.lock());
                continue;
            }
            if self.loss.is_none() {
                return (compacting, None);
            }
            if let Some(flushing) = self.flushing.try_lock() {
                return (compacting, Some(flushing));
            }
            drop(compacting);
            drop(self.flushing.lock());
        }
    }

    /// What to do, and what of it may be lost: `None` if that would not be known after a crash, and no
    /// step if there is nothing to do.
    fn plan(
        &self,
        views: &Arc<Views>,
        strategy: Strategy,
        losing: Losing,
        is_known: &dyn Fn() -> bool,
    ) -> Result<Option<(Option<Step>, Losing)>> {
        let Some(loss) = &self.loss else {
            return Ok(Some((self.step_of(strategy, false), Losing::Nothing)));
        };
        if loss.kept_below() > 0 {
            self.collect_kept(loss, views)?;
        }
        let can_lose = losing != Losing::Nothing && loss.kept_below() == 0;
        if can_lose && self.is_newest_ingested() {
            // What is kept must serve all views that are open.
            self.install_again()?;
        }
        let step = self.step_of(strategy, can_lose);
        let losing = match &step {
            Some(Step::Expire(..)) => Losing::All,
            Some(_) if can_lose && loss.has_filter() => Losing::Filtered,
            _ => Losing::Nothing,
        };
        let may_begin = losing == Losing::Nothing || is_known();
        Ok(may_begin.then_some((step, losing)))
    }

    fn step_of(&self, strategy: Strategy, can_lose: bool) -> Option<Step> {
        match strategy {
            Strategy::Leveled { table_bytes, l0_runs } => {
                Some(Step::Leveled { table_bytes, l0_runs })
            }
            Strategy::Everything { table_bytes } => Some(Step::Everything { table_bytes }),
            Strategy::Fifo(limits) => self.fifo_step(limits, can_lose),
            Strategy::Reap => self.reaping_step(),
        }
    }

    fn run_step(&self, step: &Step, threshold: u64) -> lsm_tree::Result<()> {
        use lsm_tree::compaction::{Leveled, MoveDown, PullDown};
        let tree = &self.tree;
        match step {
            Step::Leveled { table_bytes, l0_runs } => {
                let leveled = Leveled::default()
                    .with_table_target_size(*table_bytes)
                    .with_l0_threshold(*l0_runs);
                tree.compact(Arc::new(leveled), threshold)?;
            }
            Step::Everything { table_bytes } => tree.major_compact(*table_bytes, threshold)?,
            Step::Merge(from, to) => tree.compact(Arc::new(PullDown(*from, *to)), threshold)?,
            Step::Move(from, to) => tree.compact(Arc::new(MoveDown(*from, *to)), threshold)?,
            Step::Expire(_, Some((first, last))) => {
                tree.drop_range(first.clone()..=last.clone())?;
            }
            Step::Expire(level, None) => {
                tree.compact(Arc::new(PullDown(*level, LAST_LEVEL)), threshold)?;
            }
        }
        Ok(())
    }

    /// Nobody else installs meanwhile, where compactions can lose entries.
    fn take_turn(&self) -> Option<filtering::Turn> {
        let turn = self.loss.as_ref().map(|loss| loss.take_turn());
        if turn.is_none() {
            self.counter.set(0);
        }
        turn
    }

    /// Whether compactions can lose entries.
    pub(crate) fn loses(&self) -> bool {
        self.loss.is_some()
    }

    /// What filters did since the tree was opened.
    pub(crate) fn lost(&self) -> Lost {
        self.loss.as_ref().map(|loss| loss.lost()).unwrap_or_default()
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
        for id in self.rewriting.candidates(&stale, &live) {
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
        let _turn = self.loss.as_ref().map(|loss| loss.take_turn());
        if self.loss.as_ref().is_some_and(|loss| loss.kept_below() > 0) {
            return self.trim_history();
        }
        self.collect_below(COLLECT_ALL_BUT_NEWEST)
    }

    fn collect_below(&self, number: u64) -> Result<()> {
        let mut history = self.tree.get_version_history_lock();
        let collected = history.maintenance(&self.dir, number);
        drop(history);
        collected.map_err(|e| wrap("remove old manifests of", &self.dir, e))
    }

    /// Of the super-versions that views do not reach only the newest stays, beside the old one that
    /// they read. In a turn.
    fn trim_history(&self) -> Result<()> {
        let Some(loss) = &self.loss else { return Ok(()) };
        if self.is_newest_ingested() {
            // An ingest's own carries a higher number: views between the two need the one below it.
            return Ok(());
        }
        let mut history = self.tree.get_version_history_lock();
        if history.len() < 3 {
            return Ok(());
        }
        let kept_below = loss.kept_below();
        let (old, newest) =
            (history.get_version_for_snapshot(kept_below), history.latest_version());
        history.replace_latest_version(old);
        history.append_version(newest);
        // What lies before its new place goes.
        let collected = history.maintenance(&self.dir, kept_below);
        drop(history);
        collected.map_err(|e| wrap("remove old manifests of", &self.dir, e))
    }

    /// Lets go of the super-version that was kept for views, if they are closed.
    fn collect_kept(&self, loss: &Loss, views: &Views) -> Result<()> {
        let _turn = loss.take_turn();
        let kept_below = loss.kept_below();
        // In this order: a view that opens in between is above the first number.
        let next = views.read_seqno();
        let oldest = views.oldest().unwrap_or(u64::MAX).min(next);
        if kept_below == 0 || oldest <= kept_below {
            return Ok(());
        }
        // A read that has taken its number and not its super-version yet finds none: it starts again.
        self.gc_floor.fetch_max(kept_below + 1, Ordering::AcqRel);
        self.collect_below(kept_below + 1)?;
        loss.forget_kept();
        Ok(())
    }

    /// Lets go of what was kept for views that are closed, and was lost by a compaction.
    pub(crate) fn release_kept(&self, views: &Views) -> Result<()> {
        match &self.loss {
            Some(loss) if loss.kept_below() > 0 => self.collect_kept(loss, views),
            _ => Ok(()),
        }
    }

    /// The keyspace is closed, and its views answer nothing any more: what was kept for them goes now,
    /// and not when it may be another process's.
    pub(crate) fn forget_views(&self) {
        if let Some(loss) = &self.loss
            && let Err(error) = self.collect_kept(loss, &Views::new(u64::MAX - 1))
        {
            tracing::warn!(%error, "old tables stay until the next open");
        }
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
    /// The oldest goes.
    Fifo(Limits),
    /// Blob files to which nothing refers go.
    Reap,
}

/// One call of lsm-tree.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Leveled {
        table_bytes: u64,
        l0_runs: u8,
    },
    Everything {
        table_bytes: u64,
    },
    /// All of two levels into the second one.
    Merge(u8, u8),
    /// All of a level into another one, where it overlaps nothing.
    Move(u8, u8),
    /// A level, below which there is nothing, ends: unread, if it has the keys between two to itself.
    Expire(u8, Option<(Slice, Slice)>),
}

fn is_filter_failure(error: &Error) -> bool {
    matches!(error, Error::FilterFailed { .. })
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
    let values = match options.values_compression() {
        Compression::None => CompressionType::None,
        Compression::Lz4 => CompressionType::Lz4,
    };
    let separation = options.separate_values_from.map(|bytes| {
        KvSeparationOptions::default()
            .separation_threshold(bytes)
            .file_target_size(options.blob_file_bytes())
            .staleness_threshold(options.blob_staleness_threshold)
            .age_cutoff(options.blob_age_cutoff)
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

    fn open(dir: &Path, options: &PartitionOptions) -> Tree {
        Tree::open(dir, 1, "p", options, &Shared::new(1 << 20, Filters::default())).unwrap()
    }

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
        let tree = open(dir.path(), &PartitionOptions::default());
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
            let _ =
                tree.apply(Slice::from(key.to_be_bytes()), Update::Put(Slice::from(value)), *seqno);
        }
        tree.rotate();
        tree.flush(&tree.lock_flushing(), *seqno + 1).unwrap();
    }

    fn compact_everything(tree: &Tree, seqno: u64) -> Result<Compacted> {
        let (views, strategy) =
            (Arc::new(Views::new(seqno)), Strategy::Everything { table_bytes: 1 << 20 });
        tree.compact(&views, strategy, Losing::Nothing, &|| true)
    }

    fn separating_tree(dir: &Path) -> Tree {
        let options = PartitionOptions::default().separate_values_from(Some(1_000));
        open(dir, &options)
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

    /// All of it stays in the first level, which lsm-tree counts in a byte.
    #[test]
    fn a_fifo_empties_its_first_level_far_from_the_limit_of_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let fifo =
            crate::options::CompactionStrategy::Fifo { limit_bytes: None, ttl_secs: Some(1 << 30) };
        let tree = open(dir.path(), &PartitionOptions::default().compaction_strategy(fifo));
        let limits = Limits { bytes: None, age: Some(Duration::from_secs(1 << 30)), runs: 16 };
        let mut seqno = 1;
        for round in 0..300 {
            flush_values(&tree, [round % 7, 100 + round].into_iter(), &mut seqno);
            let views = Arc::new(Views::new(seqno));
            while tree.compact(&views, Strategy::Fifo(limits), Losing::Filtered, &|| true).unwrap()
                == Compacted::Something
            {}
            assert!(tree.l0_runs() <= 16, "{}", tree.l0_runs());
        }
        for key in 100..400_u32 {
            assert!(tree.get(&key.to_be_bytes(), seqno + 1).unwrap().is_some(), "{key}");
        }
        let newest = tree.get(&(299 % 7_u32).to_be_bytes(), seqno + 1).unwrap().unwrap();
        assert_eq!(newest[0], (seqno - 1) as u8);
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
