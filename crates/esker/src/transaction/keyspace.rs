//! Keyspaces with transactions, and their partitions.

use std::ops::Deref;
use std::path::Path;

use super::write::WriteTx;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::keyspace::Keyspace;
use crate::options::PartitionOptions;
use crate::partition::Partition;
use crate::snapshot::Snapshot;
use crate::tree::Slice;

/// How transactions keep out of each other's way.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum TxKind {
    /// One at a time: a transaction that can write begins when the one before it is over, and so
    /// does everything else that changes something, but for the creation of partitions. No
    /// transaction fails because of another.
    SingleWriter,
    /// Side by side, serialisable: a transaction whose reads were overtaken fails with
    /// [`Error::Conflict`] when it commits, and has to begin again.
    Optimistic,
}

/// A keyspace with transactions. A cheap clone. Everything that a [`Keyspace`] can do it can do as
/// well; what is changed without a transaction is a transaction by itself.
///
/// Its files are those of every keyspace: the kind is a matter of how it is opened.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// use esker::{PartitionOptions, TxKeyspace, TxKind};
///
/// let keyspace = TxKeyspace::open(dir.path().join("bank"), TxKind::Optimistic)?;
/// let accounts = keyspace.partition("accounts", PartitionOptions::default())?;
/// accounts.insert("ada", "100")?;
/// accounts.insert("bob", "20")?;
///
/// keyspace.transact(|tx| {
///     let read = |key: &str| -> esker::Result<u64> {
///         let value = tx.get(&accounts, key)?.unwrap_or_default();
///         Ok(String::from_utf8_lossy(&value).parse().unwrap_or(0))
///     };
///     let (ada, bob) = (read("ada")?, read("bob")?);
///     tx.insert(&accounts, "ada", (ada - 30).to_string())?;
///     tx.insert(&accounts, "bob", (bob + 30).to_string())
/// })?;
/// assert_eq!(accounts.get("bob")?.as_deref(), Some(&b"50"[..]));
/// keyspace.backup_to(dir.path().join("backup"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct TxKeyspace {
    keyspace: Keyspace,
    kind: TxKind,
}

impl Deref for TxKeyspace {
    type Target = Keyspace;

    fn deref(&self) -> &Keyspace {
        &self.keyspace
    }
}

impl TxKeyspace {
    /// Opens or creates the keyspace in `path` with default settings; see
    /// [`Config::open_transactional`].
    ///
    /// # Errors
    ///
    /// As [`Config::open`].
    pub fn open(path: impl AsRef<Path>, kind: TxKind) -> Result<Self> {
        Config::new(path).open_transactional(kind)
    }

    pub(crate) fn open_with(config: Config, kind: TxKind) -> Result<Self> {
        Ok(Self { keyspace: Keyspace::open_with(config, Some(kind))?, kind })
    }

    /// The kind it was opened with.
    pub fn kind(&self) -> TxKind {
        self.kind
    }

    /// The partition `name`; see [`Keyspace::partition`].
    ///
    /// # Errors
    ///
    /// As [`Keyspace::partition`].
    pub fn partition(&self, name: &str, options: PartitionOptions) -> Result<TxPartition> {
        let partition = self.keyspace.partition(name, options)?;
        Ok(TxPartition { partition, keyspace: self.clone() })
    }

    /// The partition `name`, if there is one.
    ///
    /// # Errors
    ///
    /// As [`Keyspace::open_partition`].
    pub fn open_partition(&self, name: &str) -> Result<Option<TxPartition>> {
        let partition = self.keyspace.open_partition(name)?;
        Ok(partition.map(|partition| TxPartition { partition, keyspace: self.clone() }))
    }

    /// A transaction that only reads: all partitions as of now. It waits for nobody, and has no
    /// conflicts.
    pub fn read_tx(&self) -> Snapshot {
        self.keyspace.snapshot()
    }

    /// A transaction that can write. With a single writer this waits for its turn.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`], [`Error::ReadOnly`].
    pub fn write_tx(&self) -> Result<WriteTx> {
        WriteTx::begin(self)
    }

    /// Runs `work` in a transaction and commits it; begins again, with what is there then, as often
    /// as that ends in a conflict. `work` may be run several times and should have no other
    /// effects. If it fails nothing is committed. What it changes beside the transaction and reads in
    /// it is a conflict every time, without end.
    ///
    /// # Errors
    ///
    /// What `work` returns, but for [`Error::Conflict`]; as [`WriteTx::commit`], but for that.
    pub fn transact<T>(&self, mut work: impl FnMut(&mut WriteTx) -> Result<T>) -> Result<T> {
        loop {
            let mut tx = self.write_tx()?;
            let done = work(&mut tx).and_then(|result| tx.commit().map(|_| result));
            match done {
                // Whoever was faster has committed: somebody gets ahead every time.
                Err(Error::Conflict) => std::thread::yield_now(),
                outcome => return outcome,
            }
        }
    }

    /// As [`Keyspace::close`].
    ///
    /// # Errors
    ///
    /// As [`Keyspace::close`].
    pub fn close(self) -> Result<()> {
        self.keyspace.close()
    }
}

/// A partition of a [`TxKeyspace`]: a [`Partition`] that can also change a value by what it is.
#[derive(Clone, Debug)]
pub struct TxPartition {
    partition: Partition,
    keyspace: TxKeyspace,
}

impl Deref for TxPartition {
    type Target = Partition;

    fn deref(&self) -> &Partition {
        &self.partition
    }
}

impl TxPartition {
    /// Removes `key` and returns the value that it had; see [`WriteTx::take`].
    ///
    /// # Errors
    ///
    /// As [`TxKeyspace::transact`].
    pub fn take(&self, key: impl Into<Slice>) -> Result<Option<Slice>> {
        self.fetch_update(key, |_| None)
    }

    /// Sets `key` to what `update` makes of its value, or removes it where that is `None`; returns
    /// the value before. `update` may be called several times.
    ///
    /// # Errors
    ///
    /// As [`TxKeyspace::transact`].
    pub fn fetch_update(
        &self,
        key: impl Into<Slice>,
        mut update: impl FnMut(Option<&Slice>) -> Option<Slice>,
    ) -> Result<Option<Slice>> {
        let key = key.into();
        self.keyspace.transact(|tx| tx.fetch_update(&self.partition, key.clone(), &mut update))
    }

    /// As [`TxPartition::fetch_update`]; returns the value afterwards.
    ///
    /// # Errors
    ///
    /// As [`TxKeyspace::transact`].
    pub fn update_fetch(
        &self,
        key: impl Into<Slice>,
        mut update: impl FnMut(Option<&Slice>) -> Option<Slice>,
    ) -> Result<Option<Slice>> {
        let key = key.into();
        self.keyspace.transact(|tx| tx.update_fetch(&self.partition, key.clone(), &mut update))
    }
}
