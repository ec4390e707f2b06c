//! A transaction that can write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;

use super::keyspace::TxKeyspace;
use super::overlay::Own;
use super::turn::Held;
use crate::Durability;
use crate::batch::{Change, Changes};
use crate::conflict::{Check, Open, Reads};
use crate::error::{Error, Result};
use crate::iter::{Iter, count};
use crate::partition::{Partition, PartitionCore, owned_bounds};
use crate::snapshot::Snapshot;
use crate::tree::{Bounds, Slice, Update, prefix_bounds};

/// Reads of one moment and changes that happen together, or not at all: at [`WriteTx::commit`], or
/// never if the transaction is dropped.
///
/// It sees its own changes. In an optimistic keyspace everything that it reads is noted, ranges as
/// they were asked for, however much of them was read; [`WriteTx::commit`] fails with
/// [`Error::Conflict`] when something of it has been changed meanwhile, also by the same thread
/// beside the transaction. In a keyspace with a single writer everybody else who wants to change
/// something waits until the transaction is over; a thread that does so itself, beside its own
/// transaction, waits for ever. Only partitions can be created beside one.
///
/// While a transaction is open, compaction keeps what it sees, and an optimistic keyspace remembers
/// every key that is changed: do not hold one for longer than needed.
#[must_use = "a transaction does nothing until it is committed"]
pub struct WriteTx {
    keyspace: TxKeyspace,
    snapshot: Snapshot,
    changed: BTreeMap<u32, Changed>,
    /// What an optimistic transaction has read.
    reads: Option<Mutex<Reads<Slice>>>,
    durability: Option<Durability>,
    /// A change that could not be accepted; `commit` returns it.
    refused: Option<Error>,
    _counted: Counted,
    _open: Option<Open<Slice>>,
    /// Given back last.
    _turn: Option<Held>,
}

/// Counts among the open transactions.
struct Counted(Arc<AtomicU64>);

impl Counted {
    fn new(count: &Arc<AtomicU64>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The changes of one partition.
struct Changed {
    core: Arc<PartitionCore>,
    /// Iterators that look at them as they were share them.
    own: Arc<Own>,
    /// Those of the removals that are weak.
    weak: BTreeSet<Slice>,
}

/// What a partition without changes of this transaction has.
static UNCHANGED: LazyLock<Arc<Own>> = LazyLock::new(Arc::default);

impl fmt::Debug for WriteTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTx").field("seqno", &self.seqno()).finish_non_exhaustive()
    }
}

impl WriteTx {
    pub(super) fn begin(keyspace: &TxKeyspace) -> Result<Self> {
        let shared = keyspace.open_shared()?;
        shared.check_writable()?;
        let turn = shared.take_turn()?;
        // Whoever waited may find the keyspace closed.
        shared.check_writable()?;
        shared.committer.catch_up()?;
        let (snapshot, reads, open) = match &shared.conflicts {
            Some(conflicts) => {
                let (view, open) = conflicts.begin();
                let snapshot = Snapshot::of(view, (**keyspace).clone());
                (snapshot, Some(Mutex::default()), Some(open))
            }
            None => (keyspace.snapshot(), None, None),
        };
        let keyspace = keyspace.clone();
        let (changed, durability, refused) = (BTreeMap::new(), None, None);
        Ok(Self {
            keyspace,
            snapshot,
            changed,
            reads,
            durability,
            refused,
            _counted: Counted::new(&shared.open_transactions),
            _open: open,
            _turn: turn,
        })
    }

    /// The newest commit that the transaction sees.
    pub fn seqno(&self) -> u64 {
        self.snapshot.seqno()
    }

    /// How durable the changes are when [`WriteTx::commit`] returns; the keyspace's default
    /// otherwise.
    pub fn durability(&mut self, durability: Durability) -> &mut Self {
        self.durability = Some(durability);
        self
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`]; [`Error::InvalidInput`] for a partition of another keyspace.
    pub fn get(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let key = key.as_ref();
        match self.own(partition).get(key) {
            Some(own) => Ok(own.clone()),
            None => {
                self.note_key(partition, key);
                self.snapshot.get(partition, key)
            }
        }
    }

    /// The values of several keys, in their order.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        partition: &Partition,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        keys.iter().map(|key| self.get(partition, key)).collect()
    }

    /// Whether there is a value for `key`.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn contains_key(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<bool> {
        let key = key.as_ref();
        match self.own(partition).get(key) {
            Some(own) => Ok(own.is_some()),
            None => {
                self.note_key(partition, key);
                self.snapshot.contains_key(partition, key)
            }
        }
    }

    /// The length of the value of `key`, in bytes.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn size_of(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<u32>> {
        let key = key.as_ref();
        match self.own(partition).get(key) {
            Some(own) => Ok(own.as_ref().map(|value| value.len() as u32)),
            None => {
                self.note_key(partition, key);
                self.snapshot.size_of(partition, key)
            }
        }
    }

    /// The entries whose keys lie in `range`, in key order.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`]; damage shows in the items.
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        partition: &Partition,
        range: R,
    ) -> Result<Iter> {
        self.between(partition, owned_bounds(&range))
    }

    /// The entries whose keys begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::range`].
    pub fn prefix(&self, partition: &Partition, prefix: impl AsRef<[u8]>) -> Result<Iter> {
        self.between(partition, prefix_bounds(prefix.as_ref()))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::range`].
    pub fn iter(&self, partition: &Partition) -> Result<Iter> {
        self.between(partition, (Bound::Unbounded, Bound::Unbounded))
    }

    /// The entry with the smallest key.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn first_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let first = self.overlay(partition, all)?.next().transpose()?;
        // What lies behind it was not read.
        let end = first.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
        self.note_range(partition, (Bound::Unbounded, end));
        Ok(first)
    }

    /// The entry with the largest key.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn last_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>> {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let last = self.overlay(partition, all)?.next_back().transpose()?;
        let begin = last.as_ref().map_or(Bound::Unbounded, |(key, _)| Bound::Included(key.clone()));
        self.note_range(partition, (begin, Bound::Unbounded));
        Ok(last)
    }

    /// The number of entries, counted one by one.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn len(&self, partition: &Partition) -> Result<usize> {
        count(self.iter(partition)?)
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`].
    pub fn is_empty(&self, partition: &Partition) -> Result<bool> {
        Ok(self.first_key_value(partition)?.is_none())
    }

    /// Sets `key` to `value` in `partition`.
    ///
    /// # Errors
    ///
    /// A bad key or value, a partition that was dropped or is of another keyspace: the transaction
    /// cannot be committed any more.
    pub fn insert(
        &mut self,
        partition: &Partition,
        key: impl Into<Slice>,
        value: impl Into<Slice>,
    ) -> Result<()> {
        self.change(partition, key.into(), Some(value.into()))
    }

    /// Removes `key` from `partition`; it need not exist.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::insert`].
    pub fn remove(&mut self, partition: &Partition, key: impl Into<Slice>) -> Result<()> {
        self.change(partition, key.into(), None)
    }

    /// Removes `key`, which was inserted at most once; see [`Partition::remove_weak`].
    ///
    /// # Errors
    ///
    /// As [`WriteTx::insert`].
    pub fn remove_weak(&mut self, partition: &Partition, key: impl Into<Slice>) -> Result<()> {
        let key = key.into();
        self.change(partition, key.clone(), None)?;
        if let Some(changed) = self.changed.get_mut(&partition.core.id) {
            changed.weak.insert(key);
        }
        Ok(())
    }

    /// Removes `key` and returns the value that it had.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`] and [`WriteTx::insert`].
    pub fn take(&mut self, partition: &Partition, key: impl Into<Slice>) -> Result<Option<Slice>> {
        self.fetch_update(partition, key, |_| None)
    }

    /// Sets `key` to what `update` makes of its value, or removes it where that is `None`; returns
    /// the value before.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`] and [`WriteTx::insert`].
    pub fn fetch_update(
        &mut self,
        partition: &Partition,
        key: impl Into<Slice>,
        update: impl FnOnce(Option<&Slice>) -> Option<Slice>,
    ) -> Result<Option<Slice>> {
        self.update(partition, key.into(), update).map(|(before, _)| before)
    }

    /// As [`WriteTx::fetch_update`]; returns the value afterwards.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::get`] and [`WriteTx::insert`].
    pub fn update_fetch(
        &mut self,
        partition: &Partition,
        key: impl Into<Slice>,
        update: impl FnOnce(Option<&Slice>) -> Option<Slice>,
    ) -> Result<Option<Slice>> {
        self.update(partition, key.into(), update).map(|(_, after)| after)
    }

    /// Commits every change under one sequence number, which is returned. A transaction without
    /// changes commits nothing, never has a conflict, and returns the newest number that it sees.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`]: something that was read has been changed meanwhile, and nothing was
    /// written; [`TxKeyspace::transact`] begins again by itself. Otherwise as
    /// [`Batch::commit`](crate::Batch::commit).
    pub fn commit(self) -> Result<u64> {
        let shared = self.keyspace.open_shared()?;
        shared.check_writable()?;
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let mut changes = Changes::new();
        for Changed { core, own, weak } in self.changed.into_values() {
            let change = |(key, value)| {
                let is_weak = weak.contains(&key);
                let value = if is_weak { Update::RemoveWeak } else { Update::from(value) };
                Change { core: Arc::clone(&core), key, value }
            };
            changes.extend(Arc::unwrap_or_clone(own).into_iter().map(change));
        }
        if changes.is_empty() {
            return Ok(self.snapshot.seqno());
        }
        let read_seqno = self.snapshot.seqno() + 1;
        let check = |reads: Mutex<_>| Box::new(Check { read_seqno, reads: reads.into_inner() });
        shared.commit_in_turn(changes, self.durability, self.reads.map(check))
    }

    /// Gives up every change. Dropping the transaction does the same.
    pub fn rollback(self) {}

    fn own(&self, partition: &Partition) -> &Arc<Own> {
        match self.changed.get(&partition.core.id) {
            // A partition of another keyspace has no changes here, and is refused when it is read.
            Some(changed) if Arc::ptr_eq(&changed.core, &partition.core) => &changed.own,
            _ => &UNCHANGED,
        }
    }

    fn note_key(&self, partition: &Partition, key: &[u8]) {
        if let Some(reads) = &self.reads {
            reads.lock().key(partition.core.id, Slice::from(key));
        }
    }

    fn between(&self, partition: &Partition, bounds: Bounds) -> Result<Iter> {
        self.note_range(partition, bounds.clone());
        self.overlay(partition, bounds)
    }

    fn note_range(&self, partition: &Partition, bounds: Bounds) {
        if let Some(reads) = &self.reads {
            reads.lock().range(partition.core.id, bounds);
        }
    }

    fn overlay(&self, partition: &Partition, bounds: Bounds) -> Result<Iter> {
        let base = self.snapshot.between(partition, bounds.clone())?;
        Ok(base.with_changes(self.own(partition), bounds))
    }

    fn change(&mut self, partition: &Partition, key: Slice, value: Option<Slice>) -> Result<()> {
        let shared = self.keyspace.open_shared()?;
        if let Err(error) = shared.check_change(partition, &key, value.as_deref()) {
            self.refused.get_or_insert_with(|| error.clone());
            return Err(error);
        }
        let unchanged = || Changed {
            core: Arc::clone(&partition.core),
            own: Arc::default(),
            weak: BTreeSet::new(),
        };
        let changed = self.changed.entry(partition.core.id).or_insert_with(unchanged);
        changed.weak.remove(&key);
        Arc::make_mut(&mut changed.own).insert(key, value);
        Ok(())
    }

    fn update(
        &mut self,
        partition: &Partition,
        key: Slice,
        update: impl FnOnce(Option<&Slice>) -> Option<Slice>,
    ) -> Result<(Option<Slice>, Option<Slice>)> {
        let before = self.get(partition, &key)?;
        let after = update(before.as_ref());
        if before != after {
            self.change(partition, key, after.clone())?;
        }
        Ok((before, after))
    }
}
