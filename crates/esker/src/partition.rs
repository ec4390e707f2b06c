//! A partition: a named, ordered map from keys to values, one LSM tree at a time.
//!
//! `PartitionCore` is what the engine shares about it; [`Partition`] is the user's handle. `clear`
//! does not empty a tree, it moves on to a new one (a *generation*): read views from before the
//! clear keep reading the old one, which is deleted when the last of them is gone.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::error::{Error, Result};
use crate::iter::{Iter, count};
use crate::keyspace::{Keyspace, Shared};
use crate::options::PartitionOptions;
use crate::tree::{Bounds, RawIter, Slice, Tree, Update};
use crate::views::View;

pub(crate) const NAME_LEN_MAX: usize = 255;

/// One tree and the commit that made it this partition's: 0, or the clear it came from.
#[derive(Clone)]
struct Generation {
    since: u64,
    tree: Arc<Tree>,
}

pub(crate) struct PartitionCore {
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) options: PartitionOptions,
    /// Oldest first, never empty. Every read and every change looks here, so that nobody takes a lock
    /// or counts references.
    generations: ArcSwap<Vec<Generation>>,
    dropped: AtomicBool,
    /// CATALOG says that every commit up to this one is in tables.
    stored_upto: AtomicU64,
}

impl PartitionCore {
    pub(crate) fn new(id: u32, name: String, options: PartitionOptions, tree: Arc<Tree>) -> Self {
        let generations = ArcSwap::from_pointee(vec![Generation { since: 0, tree }]);
        let (dropped, stored_upto) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { id, name, options, generations, dropped, stored_upto }
    }

    /// A CATALOG that says so is stored.
    pub(crate) fn note_stored(&self, flushed_upto: u64) {
        self.stored_upto.fetch_max(flushed_upto, Ordering::AcqRel);
    }

    pub(crate) fn is_stored_upto(&self, flushed_upto: u64) -> bool {
        self.stored_upto.load(Ordering::Acquire) >= flushed_upto
    }

    /// The tree that commits go to.
    pub(crate) fn tree(&self) -> Arc<Tree> {
        Arc::clone(newest(&self.generations.load()))
    }

    /// The tree that a view at `read_seqno` reads.
    pub(crate) fn tree_at(&self, read_seqno: u64) -> Arc<Tree> {
        Arc::clone(seen_at(&self.generations.load(), read_seqno))
    }

    /// Runs a short read at `read_seqno`; `None` when a merge may have dropped what it should have seen.
    fn read_at<T>(
        &self,
        read_seqno: u64,
        read: impl FnOnce(&Tree) -> Result<T>,
    ) -> Option<Result<T>> {
        seen_at(&self.generations.load(), read_seqno).read(read_seqno, read)
    }

    /// Where compactions can lose entries a read holds a view: the super-version that its number leads
    /// to stays until it has found it, and nothing is lost between two keys of one read.
    fn view_if_losing(&self, shared: &Shared) -> Option<View> {
        newest(&self.generations.load()).loses().then(|| shared.views.open())
    }

    /// Applies one change of a committed batch; true when the memtable has just outgrown
    /// `memtable_bytes`.
    pub(crate) fn apply(
        &self,
        key: Slice,
        update: Update,
        seqno: u64,
        memtable_bytes: u64,
    ) -> bool {
        let generations = self.generations.load();
        let tree = newest(&generations);
        tree.apply(key, update, seqno) >= memtable_bytes && tree.ask_for_flush()
    }

    /// Commit `since` cleared the partition: later commits go to `tree`.
    pub(crate) fn begin_generation(&self, since: u64, tree: Arc<Tree>) {
        self.generations.rcu(|generations| {
            let mut longer = Vec::clone(generations);
            longer.push(Generation { since, tree: Arc::clone(&tree) });
            longer
        });
    }

    /// Lets go of trees that no view older than `oldest_view` can ask for, and dooms them. The
    /// caller drops them outside of every lock that readers take: that deletes their files.
    #[must_use = "dropping the trees deletes their files"]
    pub(crate) fn retire_generations(&self, oldest_view: Option<u64>) -> Vec<Arc<Tree>> {
        let superseded = |generations: &[Generation]| {
            let later = generations.iter().skip(1);
            later.take_while(|g| oldest_view.is_none_or(|oldest| g.since < oldest)).count()
        };
        if superseded(&self.generations.load()) == 0 {
            return Vec::new();
        }
        let before =
            self.generations.rcu(|generations| generations[superseded(generations)..].to_vec());
        let retired: Vec<_> =
            before[..superseded(&before)].iter().map(|g| Arc::clone(&g.tree)).collect();
        retired.iter().for_each(|tree| tree.doom());
        retired
    }

    pub(crate) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Dooms every tree: the directories go with the last handle.
    pub(crate) fn doom(&self) {
        for generation in self.generations.load().iter() {
            generation.tree.doom();
        }
    }

    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) {
            return Err(Error::PartitionDropped { name: self.name.clone() });
        }
        Ok(())
    }
}

fn newest(generations: &[Generation]) -> &Arc<Tree> {
    &generations.last().expect("a partition has a tree").tree
}

fn seen_at(generations: &[Generation], read_seqno: u64) -> &Arc<Tree> {
    let seen = generations.iter().rev().find(|g| g.since < read_seqno);
    &seen.unwrap_or(&generations[0]).tree
}

/// Names are file-like words for people: not empty, at most 255 bytes, no slash, no NUL.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let complain = |what: &str| Err(Error::InvalidInput(format!("the partition name {what}")));
    if name.is_empty() {
        return complain("is empty");
    }
    if name.len() > NAME_LEN_MAX {
        return complain(&format!(
            "is {} bytes long; at most {NAME_LEN_MAX} are allowed",
            name.len()
        ));
    }
    if name.contains('/') || name.contains('\0') {
        return complain(&format!("{name:?} contains a slash or a NUL byte"));
    }
    Ok(())
}

/// A handle to a partition: a cheap clone, usable from any thread. It keeps the keyspace open.
#[derive(Clone)]
pub struct Partition {
    pub(crate) keyspace: Keyspace,
    pub(crate) core: Arc<PartitionCore>,
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition").field("name", &self.core.name).finish_non_exhaustive()
    }
}

/// Writing. Every call is a batch of one: see [`Batch`](crate::Batch) for several changes at once.
impl Partition {
    /// Sets `key` to `value`, with the keyspace's durability.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for an empty key, a key over 65,535 bytes or a value over
    /// 4 GiB − 1; otherwise as [`Batch::commit`](crate::Batch::commit).
    pub fn insert(&self, key: impl Into<Slice>, value: impl Into<Slice>) -> Result<()> {
        let shared = self.keyspace.open_shared()?;
        shared.commit_one(self, key.into(), Update::Put(value.into())).map(|_| ())
    }

    /// Removes `key`, which need not exist.
    ///
    /// # Errors
    ///
    /// As [`Partition::insert`].
    pub fn remove(&self, key: impl Into<Slice>) -> Result<()> {
        self.keyspace.open_shared()?.commit_one(self, key.into(), Update::Remove).map(|_| ())
    }

    /// Removes `key`, which has been inserted at most once since the partition was created or cleared,
    /// and never will be again: then the removal costs no space as soon as it meets what it removes.
    ///
    /// This is a promise of the caller's that nobody checks. Where it is broken, by an overwrite or by
    /// an insertion after the removal, an older value of the key can come back in a compaction. Use
    /// [`Partition::remove`] when in doubt.
    ///
    /// # Errors
    ///
    /// As [`Partition::insert`].
    pub fn remove_weak(&self, key: impl Into<Slice>) -> Result<()> {
        self.keyspace.open_shared()?.commit_one(self, key.into(), Update::RemoveWeak).map(|_| ())
    }

    /// Removes every entry in one step, whatever their number. It is durable when this returns.
    ///
    /// # Errors
    ///
    /// As [`Batch::commit`](crate::Batch::commit); also when the new tree cannot be created.
    pub fn clear(&self) -> Result<()> {
        self.keyspace.shared().clear_partition(&self.core)
    }

    /// Flushes the memtable and merges all tables into the last level: removes overwritten and
    /// deleted entries for good, shows everything to the compaction filter, and gives back blob files
    /// of which nothing is left. In a partition with a FIFO, what is over its limits goes, and no more.
    /// Blocks until it is done; reads and writes go on.
    ///
    /// # Errors
    ///
    /// When the disk fails or fills up; [`Error::FilterFailed`] when the compaction filter does:
    /// everything is as it was then.
    pub fn compact(&self) -> Result<()> {
        self.keyspace.shared().compact_partition(&self.core)
    }

    /// As [`Partition::compact`], if any table may hold keys of `range`; otherwise only flushes. lsm-tree
    /// 3.1.10 lets nobody choose tables, so everything is merged then, not the range alone.
    ///
    /// # Errors
    ///
    /// As [`Partition::compact`].
    pub fn compact_range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Result<()> {
        self.keyspace.shared().compact_range(&self.core, &owned_bounds(&range))
    }
}

/// Reading: the newest committed state at the moment of the call.
impl Partition {
    /// The partition's name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// The options it was created with.
    pub fn options(&self) -> PartitionOptions {
        self.core.options.clone()
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// When the disk fails or a block is damaged.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let key = key.as_ref();
        self.newest(|tree, at| tree.get(key, at))
    }

    /// The values of several keys, in their order, all as of one moment.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Slice>>> {
        self.newest(|tree, at| keys.iter().map(|key| tree.get(key.as_ref(), at)).collect())
    }

    /// Whether there is a value for `key`; does not load it.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        self.newest(|tree, at| tree.contains_key(key, at))
    }

    /// The length of the value of `key`, in bytes.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn size_of(&self, key: impl AsRef<[u8]>) -> Result<Option<u32>> {
        let key = key.as_ref();
        self.newest(|tree, at| tree.size_of(key, at))
    }

    /// The entries whose keys lie in `range`, in key order, as of now.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; damage shows in the items.
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Result<Iter> {
        let bounds = owned_bounds(&range);
        self.newest_iter(|tree, at| tree.range(bounds.clone(), at))
    }

    /// The entries whose keys begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Partition::range`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Result<Iter> {
        let prefix = prefix.as_ref();
        self.newest_iter(|tree, at| tree.prefix(prefix, at))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`Partition::range`].
    pub fn iter(&self) -> Result<Iter> {
        self.range::<&[u8], _>(..)
    }

    /// The entry with the smallest key.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn first_key_value(&self) -> Result<Option<(Slice, Slice)>> {
        self.iter()?.next().transpose()
    }

    /// The entry with the largest key.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn last_key_value(&self) -> Result<Option<(Slice, Slice)>> {
        self.iter()?.next_back().transpose()
    }

    /// The number of entries: counts them one by one. See [`Partition::approximate_len`].
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn len(&self) -> Result<usize> {
        count(self.iter()?)
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Partition::get`].
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.iter()?.keys().next().transpose()?.is_none())
    }

    /// An upper estimate of [`Partition::len`] in constant time: overwritten and removed entries
    /// count until compaction drops them.
    pub fn approximate_len(&self) -> usize {
        self.keyspace.shared().committer.settle();
        self.core.tree().approximate_len()
    }

    /// Bytes of entries on disk, as lsm-tree counts them: data blocks and separated values, without
    /// the index and filter blocks of tables.
    pub fn disk_space(&self) -> u64 {
        self.core.tree().disk_space()
    }

    /// Reads at the newest visible commit, again when a merge overtook the read.
    fn newest<T>(&self, read: impl Fn(&Tree, u64) -> Result<T>) -> Result<T> {
        let shared = self.keyspace.open_shared()?;
        let _view = self.core.view_if_losing(shared);
        loop {
            shared.committer.catch_up()?;
            let at = shared.views.read_seqno();
            if let Some(result) = self.core.read_at(at, |tree| read(tree, at)) {
                return result;
            }
        }
    }

    fn newest_iter(&self, open: impl Fn(&Tree, u64) -> RawIter) -> Result<Iter> {
        let shared = self.keyspace.open_shared()?;
        let _view = self.core.view_if_losing(shared);
        loop {
            shared.committer.catch_up()?;
            let at = shared.views.read_seqno();
            let tree = self.core.tree_at(at);
            if let Some(raw) = tree.read(at, |tree| Ok(open(tree, at))) {
                return Ok(Iter::new(raw?, tree, self.keyspace.clone()));
            }
        }
    }
}

pub(crate) fn owned_bounds<K: AsRef<[u8]>>(range: &impl RangeBounds<K>) -> Bounds {
    let own = |bound: Bound<&K>| bound.map(|key| Slice::from(key.as_ref()));
    let bounds = (own(range.start_bound()), own(range.end_bound()));
    // A range that ends before it starts is empty, as in a BTreeMap it would be a panic.
    match &bounds {
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b))
            if a > b =>
        {
            (Bound::Included(a.clone()), Bound::Excluded(a.clone()))
        }
        _ => bounds,
    }
}

impl Shared {
    /// Handles of another keyspace would read or write the wrong trees.
    pub(crate) fn check_keyspace(&self, partition: &Partition) -> Result<()> {
        if std::ptr::eq(self, &**partition.keyspace.shared()) {
            return Ok(());
        }
        let name = &partition.core.name;
        Err(Error::InvalidInput(format!("the partition {name:?} belongs to another keyspace")))
    }
}
