//! What can be read from: one way for functions that do not care whether that is a snapshot, a
//! transaction, or the newest state.
//!
//! What must stay true: the trait has every read of [`Snapshot`], and each does what the method of the
//! same name does.

use std::ops::RangeBounds;

use crate::error::Result;
use crate::iter::Iter;
use crate::keyspace::Keyspace;
use crate::partition::Partition;
use crate::snapshot::Snapshot;
use crate::transaction::{TxKeyspace, WriteTx};
use crate::tree::Slice;

mod sealed {
    pub trait Sealed {}
}

/// Reads of one state: that of a [`Snapshot`], or of a [`WriteTx`] with its own changes. For a
/// [`Keyspace`] and a [`TxKeyspace`] each call reads the newest state at its moment, so two of them
/// may see two states.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use esker::{Partition, Readable, Result, TxKeyspace, TxKind};
///
/// fn is_known(view: &impl Readable, users: &Partition, name: &str) -> Result<bool> {
///     view.contains_key(users, name)
/// }
///
/// let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic)?;
/// let users = keyspace.partition("users", Default::default())?;
/// let before = keyspace.read_tx();
/// keyspace.transact(|tx| {
///     tx.insert(&users, "ada", "1815")?;
///     assert!(is_known(tx, &users, "ada")?);
///     assert!(!is_known(&keyspace, &users, "ada")?);
///     Ok(())
/// })?;
/// assert!(is_known(&keyspace, &users, "ada")?);
/// assert!(!is_known(&before, &users, "ada")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Readable: sealed::Sealed {
    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// When the disk fails or a block is damaged;
    /// [`Error::InvalidInput`](crate::Error::InvalidInput) for a partition of another keyspace;
    /// [`Error::Closed`](crate::Error::Closed).
    fn get(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<Slice>>;

    /// The values of several keys, in their order, all of one moment.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn multi_get<K: AsRef<[u8]>>(
        &self,
        partition: &Partition,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>>;

    /// Whether there is a value for `key`; does not load it.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn contains_key(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<bool>;

    /// The length of the value of `key`, in bytes.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn size_of(&self, partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<u32>>;

    /// The entries whose keys lie in `range`, in key order.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`]; damage shows in the items.
    fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        partition: &Partition,
        range: R,
    ) -> Result<Iter>;

    /// The entries whose keys begin with `prefix`.
    ///
    /// # Errors
    ///
    /// As [`Readable::range`].
    fn prefix(&self, partition: &Partition, prefix: impl AsRef<[u8]>) -> Result<Iter>;

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`Readable::range`].
    fn iter(&self, partition: &Partition) -> Result<Iter>;

    /// The entry with the smallest key.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn first_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>>;

    /// The entry with the largest key.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn last_key_value(&self, partition: &Partition) -> Result<Option<(Slice, Slice)>>;

    /// The number of entries, counted one by one.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn len(&self, partition: &Partition) -> Result<usize>;

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Readable::get`].
    fn is_empty(&self, partition: &Partition) -> Result<bool>;
}

/// Each read is the method of the same name of what is given, with the partition as its first argument
/// where that takes one.
macro_rules! readable {
    ($type:ty, |$self:ident, $partition:ident| $on:expr $(, $argument:ident)?) => {
        impl sealed::Sealed for $type {}

        impl Readable for $type {
            fn get(&$self, $partition: &Partition, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
                $on.get($($argument,)? key)
            }

            fn multi_get<K: AsRef<[u8]>>(
                &$self,
                $partition: &Partition,
                keys: &[K],
            ) -> Result<Vec<Option<Slice>>> {
                $on.multi_get($($argument,)? keys)
            }

            fn contains_key(&$self, $partition: &Partition, key: impl AsRef<[u8]>) -> Result<bool> {
                $on.contains_key($($argument,)? key)
            }

            fn size_of(
                &$self,
                $partition: &Partition,
                key: impl AsRef<[u8]>,
            ) -> Result<Option<u32>> {
                $on.size_of($($argument,)? key)
            }

            fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(
                &$self,
                $partition: &Partition,
                range: R,
            ) -> Result<Iter> {
                $on.range($($argument,)? range)
            }

            fn prefix(&$self, $partition: &Partition, prefix: impl AsRef<[u8]>) -> Result<Iter> {
                $on.prefix($($argument,)? prefix)
            }

            fn iter(&$self, $partition: &Partition) -> Result<Iter> {
                $on.iter($($argument)?)
            }

            fn first_key_value(&$self, $partition: &Partition) -> Result<Option<(Slice, Slice)>> {
                $on.first_key_value($($argument)?)
            }

            fn last_key_value(&$self, $partition: &Partition) -> Result<Option<(Slice, Slice)>> {
                $on.last_key_value($($argument)?)
            }

            fn len(&$self, $partition: &Partition) -> Result<usize> {
                $on.len($($argument)?)
            }

            fn is_empty(&$self, $partition: &Partition) -> Result<bool> {
                $on.is_empty($($argument)?)
            }
        }
    };
}

// The methods of the types themselves come before those of the trait.
readable!(Snapshot, |self, partition| self, partition);
readable!(WriteTx, |self, partition| self, partition);
readable!(Keyspace, |self, partition| newest(self, partition)?);
readable!(TxKeyspace, |self, partition| newest(self, partition)?);

/// The partition, whose own reads are those of the newest state.
fn newest<'a>(keyspace: &Keyspace, partition: &'a Partition) -> Result<&'a Partition> {
    keyspace.open_shared()?.check_keyspace(partition)?;
    Ok(partition)
}
