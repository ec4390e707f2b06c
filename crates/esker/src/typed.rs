//! Partitions of Rust values: keys whose bytes keep their order, values that serde knows.
//!
//! What must stay true: a typed partition is a partition, and nothing about it is stored but its
//! entries; what is on disk is the encoding of keys (`typed/key.rs`) and the format of postcard. What
//! cannot be decoded is an error that names the entry, never a panic and never left out.

mod key;

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use key::{AsKey, AsPrefix, Key, Place};

use crate::batch::Batch;
use crate::error::{Error, Result, Undecodable};
use crate::iter::{Iter, Keys};
use crate::keyspace::Keyspace;
use crate::partition::Partition;
use crate::readable::Readable;
use crate::transaction::WriteTx;
use crate::tree::Slice;

/// A partition of keys `K` and values `V` (feature `typed`). A cheap clone.
///
/// Entries are in the order of the keys. Values are stored as [postcard](https://docs.rs/postcard)
/// writes them: compact, without names of fields or types. So a type that has changed does not read
/// what was written before, and usually says so ([`Error::Undecodable`]), but not always. Values that
/// will change are best an enum with a variant for each version, to which variants are added at the
/// end. The types are not stored: to open a partition with others is a mistake that shows when
/// something is read.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
/// # struct User { name: String, born: u16 }
/// use esker::{TxKeyspace, TxKind};
///
/// let keyspace = TxKeyspace::open(dir.path().join("db"), TxKind::Optimistic)?;
/// let users = keyspace.partition("users", Default::default())?.typed::<u64, User>();
/// users.insert(7, &User { name: "Ada".into(), born: 1815 })?;
///
/// let snapshot = keyspace.snapshot();
/// keyspace.transact(|tx| {
///     users.update_in(tx, 7, |user| user.map(|user| User { born: 1816, ..user }))?;
///     users.insert_in(tx, 8, &User { name: "Grace".into(), born: 1906 })
/// })?;
/// assert_eq!(users.get(7)?.unwrap().born, 1816);
/// assert_eq!(users.at(&snapshot).get(7)?.unwrap().born, 1815);
/// for entry in users.range(8..)? {
///     let (id, user) = entry?;
///     assert_eq!((id, user.name.as_str()), (8, "Grace"));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TypedPartition<K, V> {
    partition: Partition,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for TypedPartition<K, V> {
    fn clone(&self) -> Self {
        Self { partition: self.partition.clone(), types: PhantomData }
    }
}

impl<K, V> fmt::Debug for TypedPartition<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = (type_name::<K>(), type_name::<V>());
        f.debug_tuple("TypedPartition").field(&self.partition).field(&types).finish()
    }
}

impl Partition {
    /// This partition with keys `K` and values `V`; see [`TypedPartition`]. Nothing is read or checked.
    pub fn typed<K: Key, V: Serialize + DeserializeOwned>(&self) -> TypedPartition<K, V> {
        TypedPartition { partition: self.clone(), types: PhantomData }
    }
}

mod sealed {
    use super::{Partition, Result};

    pub trait Change {
        /// Sets or removes an entry.
        fn change(
            &mut self,
            partition: &Partition,
            key: Vec<u8>,
            value: Option<Vec<u8>>,
        ) -> Result<()>;
    }
}

/// What changes are gathered in: a [`Batch`] or a [`WriteTx`].
pub trait Changing: sealed::Change {}

impl Changing for Batch {}
impl Changing for WriteTx {}

impl sealed::Change for Batch {
    fn change(
        &mut self,
        partition: &Partition,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    ) -> Result<()> {
        match value {
            Some(value) => self.insert(partition, key, value),
            None => self.remove(partition, key),
        };
        Ok(())
    }
}

impl sealed::Change for WriteTx {
    fn change(
        &mut self,
        partition: &Partition,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    ) -> Result<()> {
        match value {
            Some(value) => self.insert(partition, key, value),
            None => self.remove(partition, key),
        }
    }
}

/// Writing, and reading of the newest state.
impl<K: Key, V: Serialize + DeserializeOwned> TypedPartition<K, V> {
    /// The partition itself, with keys and values as bytes.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Sets `key` to `value`, in a commit of its own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a value that postcard cannot write, and for a key that is empty or
    /// longer than 65,535 bytes as it is stored; otherwise as [`Partition::insert`].
    pub fn insert(&self, key: impl AsKey<K>, value: &V) -> Result<()> {
        let key = encoded(&key);
        let value = self.encode_value(&key, value)?;
        self.partition.insert(key, value)
    }

    /// Removes `key`, which need not exist, in a commit of its own.
    ///
    /// # Errors
    ///
    /// As [`Partition::remove`].
    pub fn remove(&self, key: impl AsKey<K>) -> Result<()> {
        self.partition.remove(encoded(&key))
    }

    /// Sets `key` to `value` in a batch or a transaction.
    ///
    /// # Errors
    ///
    /// As [`TypedPartition::insert`]. A batch tells what is wrong with the key when it is committed.
    pub fn insert_in(
        &self,
        changes: &mut impl Changing,
        key: impl AsKey<K>,
        value: &V,
    ) -> Result<()> {
        let key = encoded(&key);
        let value = self.encode_value(&key, value)?;
        changes.change(&self.partition, key, Some(value))
    }

    /// Removes `key` in a batch or a transaction.
    ///
    /// # Errors
    ///
    /// As [`WriteTx::remove`]; a batch tells when it is committed.
    pub fn remove_in(&self, changes: &mut impl Changing, key: impl AsKey<K>) -> Result<()> {
        changes.change(&self.partition, encoded(&key), None)
    }

    /// Sets `key` to what `update` makes of its value, or removes it where that is `None`.
    ///
    /// # Errors
    ///
    /// As [`TypedView::get`] and [`TypedPartition::insert_in`].
    pub fn update_in(
        &self,
        tx: &mut WriteTx,
        key: impl AsKey<K>,
        update: impl FnOnce(Option<V>) -> Option<V>,
    ) -> Result<()> {
        let before = self.at(tx).get(&key)?;
        match update(before) {
            Some(value) => self.insert_in(tx, key, &value),
            None => self.remove_in(tx, key),
        }
    }

    /// Reads of a snapshot, of a transaction, or, with a keyspace, of the newest state.
    pub fn at<'a, R: Readable>(&'a self, view: &'a R) -> TypedView<'a, R, K, V> {
        TypedView { typed: self, view }
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// As [`TypedView::get`].
    pub fn get(&self, key: impl AsKey<K>) -> Result<Option<V>> {
        self.newest().get(key)
    }

    /// Whether there is a value for `key`.
    ///
    /// # Errors
    ///
    /// As [`Partition::contains_key`].
    pub fn contains_key(&self, key: impl AsKey<K>) -> Result<bool> {
        self.newest().contains_key(key)
    }

    /// The entries whose keys lie in `range`, in key order, as of now.
    ///
    /// # Errors
    ///
    /// As [`TypedView::range`].
    pub fn range<Q: AsKey<K>>(&self, range: impl RangeBounds<Q>) -> Result<TypedIter<K, V>> {
        self.newest().range(range)
    }

    /// The entries whose keys begin with `prefix`, as of now.
    ///
    /// # Errors
    ///
    /// As [`TypedView::range`].
    pub fn prefix(&self, prefix: impl AsPrefix<K>) -> Result<TypedIter<K, V>> {
        self.newest().prefix(prefix)
    }

    /// All entries, as of now.
    ///
    /// # Errors
    ///
    /// As [`TypedView::range`].
    pub fn iter(&self) -> Result<TypedIter<K, V>> {
        self.newest().iter()
    }

    fn newest(&self) -> TypedView<'_, Keyspace, K, V> {
        self.at(&self.partition.keyspace)
    }

    fn encode_value(&self, key: &[u8], value: &V) -> Result<Vec<u8>> {
        postcard::to_allocvec(value).map_err(|error| {
            let (name, key) = (self.partition.name(), key.escape_ascii());
            let value = type_name::<V>();
            let what =
                format!("the value of \"{key}\" in {name:?} cannot be written as {value}: {error}");
            Error::InvalidInput(what)
        })
    }
}

/// Reads of one state of a typed partition; see [`Readable`].
#[derive(Debug)]
pub struct TypedView<'a, R, K, V> {
    typed: &'a TypedPartition<K, V>,
    view: &'a R,
}

impl<R: Readable, K: Key, V: Serialize + DeserializeOwned> TypedView<'_, R, K, V> {
    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// [`Error::Undecodable`] if what is there is no `V`; otherwise as [`Readable::get`].
    pub fn get(&self, key: impl AsKey<K>) -> Result<Option<V>> {
        let key = encoded(&key);
        let value = self.view.get(self.partition(), &key)?;
        value.map(|value| decode_value(self.partition(), &key, &value)).transpose()
    }

    /// The values of several keys, in their order.
    ///
    /// # Errors
    ///
    /// As [`TypedView::get`].
    pub fn multi_get<Q: AsKey<K>>(&self, keys: &[Q]) -> Result<Vec<Option<V>>> {
        let keys: Vec<_> = keys.iter().map(|key| encoded(key)).collect();
        let values = self.view.multi_get(self.partition(), &keys)?;
        let decode = |(key, value): (&Vec<u8>, Option<Slice>)| {
            value.map(|value| decode_value(self.partition(), key, &value)).transpose()
        };
        keys.iter().zip(values).map(decode).collect()
    }

    /// Whether there is a value for `key`; it is not looked at.
    ///
    /// # Errors
    ///
    /// As [`Readable::contains_key`].
    pub fn contains_key(&self, key: impl AsKey<K>) -> Result<bool> {
        self.view.contains_key(self.partition(), encoded(&key))
    }

    /// The entries whose keys lie in `range`, in key order.
    ///
    /// # Errors
    ///
    /// As [`Readable::range`]; what is no `K` or `V` shows in the items.
    pub fn range<Q: AsKey<K>>(&self, range: impl RangeBounds<Q>) -> Result<TypedIter<K, V>> {
        let bound = |bound: Bound<&Q>| bound.map(|key| encoded(key));
        let bounds = (bound(range.start_bound()), bound(range.end_bound()));
        self.typed_iter(self.view.range::<Vec<u8>, _>(self.partition(), bounds))
    }

    /// The entries whose keys begin with `prefix`, in key order.
    ///
    /// # Errors
    ///
    /// As [`TypedView::range`].
    pub fn prefix(&self, prefix: impl AsPrefix<K>) -> Result<TypedIter<K, V>> {
        let mut bytes = Vec::new();
        prefix.encode_prefix(&mut bytes);
        self.typed_iter(self.view.prefix(self.partition(), bytes))
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// As [`TypedView::range`].
    pub fn iter(&self) -> Result<TypedIter<K, V>> {
        self.typed_iter(self.view.iter(self.partition()))
    }

    /// The entry with the smallest key.
    ///
    /// # Errors
    ///
    /// As [`TypedView::get`].
    pub fn first_key_value(&self) -> Result<Option<(K, V)>> {
        let first = self.view.first_key_value(self.partition())?;
        first.map(|(key, value)| decode(self.partition(), &key, &value)).transpose()
    }

    /// The entry with the largest key.
    ///
    /// # Errors
    ///
    /// As [`TypedView::get`].
    pub fn last_key_value(&self) -> Result<Option<(K, V)>> {
        let last = self.view.last_key_value(self.partition())?;
        last.map(|(key, value)| decode(self.partition(), &key, &value)).transpose()
    }

    /// The number of entries, counted one by one and not decoded.
    ///
    /// # Errors
    ///
    /// As [`Readable::len`].
    pub fn len(&self) -> Result<usize> {
        self.view.len(self.partition())
    }

    /// Whether there is no entry.
    ///
    /// # Errors
    ///
    /// As [`Readable::is_empty`].
    pub fn is_empty(&self) -> Result<bool> {
        self.view.is_empty(self.partition())
    }

    fn partition(&self) -> &Partition {
        &self.typed.partition
    }

    fn typed_iter(&self, entries: Result<Iter>) -> Result<TypedIter<K, V>> {
        Ok(TypedIter { entries: entries?, partition: self.partition().clone(), types: PhantomData })
    }
}

/// Typed entries in key order, from both ends; as [`Iter`]. An entry that cannot be decoded is an error,
/// and those behind it follow.
pub struct TypedIter<K, V> {
    entries: Iter,
    partition: Partition,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: DeserializeOwned> TypedIter<K, V> {
    /// The keys alone; values are not looked at, and separated ones not loaded.
    pub fn keys(self) -> TypedKeys<K> {
        TypedKeys { keys: self.entries.keys(), partition: self.partition, types: PhantomData }
    }

    fn decode(&self, entry: Result<(Slice, Slice)>) -> Result<(K, V)> {
        entry.and_then(|(key, value)| decode(&self.partition, &key, &value))
    }
}

impl<K: Key, V: DeserializeOwned> Iterator for TypedIter<K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.entries.next().map(|entry| self.decode(entry))
    }
}

impl<K: Key, V: DeserializeOwned> DoubleEndedIterator for TypedIter<K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.entries.next_back().map(|entry| self.decode(entry))
    }
}

impl<K, V> fmt::Debug for TypedIter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedIter").field("partition", &self.partition).finish_non_exhaustive()
    }
}

/// Typed keys in order, from both ends.
pub struct TypedKeys<K> {
    keys: Keys,
    partition: Partition,
    types: PhantomData<fn() -> K>,
}

impl<K: Key> TypedKeys<K> {
    fn decode(&self, key: Result<Slice>) -> Result<K> {
        key.and_then(|key| decode_key(&self.partition, &key))
    }
}

impl<K: Key> Iterator for TypedKeys<K> {
    type Item = Result<K>;

    fn next(&mut self) -> Option<Self::Item> {
        self.keys.next().map(|key| self.decode(key))
    }
}

impl<K: Key> DoubleEndedIterator for TypedKeys<K> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.keys.next_back().map(|key| self.decode(key))
    }
}

impl<K> fmt::Debug for TypedKeys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedKeys").field("partition", &self.partition).finish_non_exhaustive()
    }
}

fn encoded<K>(key: &(impl AsKey<K> + ?Sized)) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes, Place::Last);
    bytes
}

fn decode<K: Key, V: DeserializeOwned>(
    partition: &Partition,
    key: &[u8],
    value: &[u8],
) -> Result<(K, V)> {
    Ok((decode_key(partition, key)?, decode_value(partition, key, value)?))
}

fn decode_key<K: Key>(partition: &Partition, key: &[u8]) -> Result<K> {
    let mut rest = key;
    match K::decode(&mut rest, Place::Last) {
        Some(decoded) if rest.is_empty() => Ok(decoded),
        Some(_) => Err(undecodable(partition, key, "key", type_name::<K>(), "it is longer")),
        None => Err(undecodable(partition, key, "key", type_name::<K>(), "the bytes do not fit")),
    }
}

fn decode_value<V: DeserializeOwned>(partition: &Partition, key: &[u8], value: &[u8]) -> Result<V> {
    let wrong = |reason: &str| undecodable(partition, key, "value", type_name::<V>(), reason);
    match postcard::take_from_bytes(value) {
        Ok((decoded, [])) => Ok(decoded),
        Ok((_, rest)) => Err(wrong(&format!("{} bytes are left over", rest.len()))),
        Err(error) => Err(wrong(&error.to_string())),
    }
}

fn undecodable(
    partition: &Partition,
    key: &[u8],
    part: &'static str,
    expected: &'static str,
    reason: &str,
) -> Error {
    let (partition, key) = (partition.name().to_owned(), key.to_vec());
    let reason = reason.to_owned();
    Error::Undecodable(Box::new(Undecodable { partition, key, part, expected, reason }))
}
