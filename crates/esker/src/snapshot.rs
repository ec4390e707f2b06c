//! A read view of the whole keyspace at one commit.

use std::ops::RangeBounds;
use std::sync::Arc;

use crate::error::Result;
use crate::iter::{Iter, count};
use crate::keyspace::Keyspace;
use crate::partition::{Partition, owned_bounds};
use crate::tree::{Bounds, Slice, Tree};
use crate::views::View;

/// Every partition as it was when the snapshot was taken, whatever is written, flushed, compacted,
/// cleared or dropped since. A cheap clone. While it is open, compaction keeps every version of
/// every key that it might see, so do not hold one for longer than needed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    view: Arc<View>,
    keyspace: Keyspace,
}

impl Snapshot {
    pub(crate) fn new(keyspace: Keyspace) -> Self {
        // What keeps it from catching up is found again by every read.
        let _ = keyspace.shared().committer.catch_up();
        Self::of(keyspace.shared().views.open(), keyspace)
    }

    /// The snapshot that a view sees.
    pub(crate) fn of(view: View, keyspace: Keyspace) -> Self {
        Self { view: Arc::new(view), keyspace }
    }

    /// The newest commit that the snapshot sees.
    pub fn seqno(&self) -> u64 {
        self.view.read_seqno() - 1
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// When the disk fails or a block is damaged.
    pub fn get(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.tree(partition)?.get(key.as_ref(), self.view.read_seqno())
    }

    /// The values of several keys, in their order.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        partition: &Partition,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        let tree = self.tree(partition)?;
        keys.iter().map(|key| tree.get(key.as_ref(), self.view.read_seqno())).collect()
    }

    /// Whether there is a value for `key`.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn contains_key(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<bool> {
        self.tree(partition)?.contains_key(key.as_ref(), self.view.read_seqno())
    }

    /// The length of the value of `key`, in bytes.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn size_of(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<u32>> {
        self.tree(partition)?.size_of(key.as_ref(), self.view.read_seqno())
    }

    /// The entries whose keys lie in `range`, in key order.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`](crate::Error::Closed); damage shows in the items.
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        partition: &Partition,
        range: R,
    ) -> Result<Iter> {
        self.between(partition, owned_bounds(&range))
    }

    pub(crate) fn between(&self, partition: &Partition, bounds: Bounds) -> Result<Iter> {
        let tree = self.tree(partition)?;
        let raw = tree.range(bounds, self.view.read_seqno());
        Ok(Iter::new(raw, tree, self.keyspace.clone()))
    }

    /// The entries whose keys begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::range`].
    pub fn prefix(&self, partition: &Partition, prefix: impl AsRef<[u8]>) -> Result<Iter> {
        let tree = self.tree(partition)?;
        let raw = tree.prefix(prefix.as_ref(), self.view.read_seqno());
        Ok(Iter::new(raw, tree, self.keyspace.clone()))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::range`].
    pub fn iter(&self, partition: &Partition) -> Result<Iter> {
        self.range::<&[u8], _>(partition, ..)
    }

    /// The entry with the smallest key.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn first_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>> {
        self.iter(partition)?.next().transpose()
    }

    /// The entry with the largest key.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn last_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>> {
        self.iter(partition)?.next_back().transpose()
    }

    /// The number of entries, counted one by one.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn len(&self, partition: &Partition) -> Result<usize> {
        count(self.iter(partition)?)
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Snapshot::get`].
    pub fn is_empty(&self, partition: &Partition) -> Result<bool> {
        Ok(self.iter(partition)?.keys().next().transpose()?.is_none())
    }

    fn tree(&self, partition: &Partition) -> Result<Arc<Tree>> {
        let shared = self.keyspace.open_shared()?;
        shared.check_keyspace(partition)?;
        shared.committer.check_applied()?;
        Ok(partition.core.tree_at(self.view.read_seqno()))
    }
}
