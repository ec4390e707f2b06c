//! A set of writes across partitions, and its way into the journal.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::Durability;
use crate::conflict::Check;
use crate::error::{Error, Result};
use crate::journal::items::{self, KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::journal::writer::{Named, Outgoing};
use crate::keyspace::{Keyspace, Shared};
use crate::memory::entry_bytes;
use crate::partition::{Partition, PartitionCore};
use crate::tree::{Slice, Update};

/// What a change is of.
pub(crate) type Key = Slice;

/// One change, as the memtables take it.
pub(crate) struct Change {
    pub(crate) core: Arc<PartitionCore>,
    pub(crate) key: Slice,
    pub(crate) value: Update,
}

/// What a batch changes, in order: most change one entry.
pub(crate) type Changes = SmallVec<[Change; 1]>;

/// Several changes that happen together or not at all, across partitions, in memory and after a
/// crash. Later changes of a key win over earlier ones.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let keyspace = esker::Keyspace::open(dir.path().join("db"))?;
/// let users = keyspace.partition("users", Default::default())?;
/// let names = keyspace.partition("names", Default::default())?;
/// let mut batch = keyspace.batch();
/// batch.insert(&users, "7", "Ada");
/// batch.insert(&names, "Ada", "7");
/// batch.durability(esker::Durability::SyncData);
/// batch.commit()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    keyspace: Keyspace,
    changes: Changes,
    durability: Option<Durability>,
    /// The first change that could not be accepted; `commit` returns it.
    refused: Option<Error>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("len", &self.changes.len()).finish_non_exhaustive()
    }
}

impl Batch {
    pub(crate) fn new(keyspace: Keyspace) -> Self {
        Self { keyspace, changes: Changes::new(), durability: None, refused: None }
    }

    /// Sets `key` to `value` in `partition`. What is wrong with them is reported by
    /// [`Batch::commit`].
    pub fn insert(
        &mut self,
        partition: &Partition,
        key: impl Into<Slice>,
        value: impl Into<Slice>,
    ) -> &mut Self {
        self.change(partition, key.into(), Update::Put(value.into()))
    }

    /// Removes `key` from `partition`; it need not exist.
    pub fn remove(&mut self, partition: &Partition, key: impl Into<Slice>) -> &mut Self {
        self.change(partition, key.into(), Update::Remove)
    }

    /// Removes `key` from `partition`, where it was inserted at most once; see
    /// [`Partition::remove_weak`].
    pub fn remove_weak(&mut self, partition: &Partition, key: impl Into<Slice>) -> &mut Self {
        self.change(partition, key.into(), Update::RemoveWeak)
    }

    fn change(&mut self, partition: &Partition, key: Slice, value: Update) -> &mut Self {
        match self.keyspace.shared().check_change(partition, &key, value.value()) {
            Ok(()) => {
                self.changes.push(Change { core: Arc::clone(&partition.core), key, value });
            }
            Err(error) => _ = self.refused.get_or_insert(error),
        }
        self
    }

    /// How durable the batch is when [`Batch::commit`] returns; the keyspace's default otherwise.
    pub fn durability(&mut self, durability: Durability) -> &mut Self {
        self.durability = Some(durability);
        self
    }

    /// The number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Commits every change under one sequence number, which is returned. Readers see all of them
    /// from then on. An empty batch commits nothing and returns the newest visible number.
    ///
    /// # Errors
    ///
    /// The first bad key or value, or a partition that was dropped: nothing was written.
    /// [`ErrorKind::Retry`](crate::ErrorKind::Retry): no space, nothing was written.
    /// [`Error::Poisoned`]: the disk failed; whether the batch survives is known after reopening.
    pub fn commit(self) -> Result<u64> {
        let shared = self.keyspace.open_shared()?;
        shared.check_writable()?;
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        if self.changes.is_empty() {
            return Ok(shared.committer.committed());
        }
        shared.commit(self.changes, self.durability)
    }
}

impl Shared {
    pub(crate) fn check_change(
        &self,
        partition: &Partition,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<()> {
        self.check_keyspace(partition)?;
        partition.core.check_alive()?;
        check_key(key).and_then(|()| value.map_or(Ok(()), check_value)).map_err(|what| {
            Error::InvalidInput(format!("{what} (in the partition {:?})", partition.core.name))
        })
    }

    /// Commits a batch of one change.
    pub(crate) fn commit_one(
        &self,
        partition: &Partition,
        key: Slice,
        value: Update,
    ) -> Result<u64> {
        self.check_writable()?;
        self.check_change(partition, &key, value.value())?;
        let change = Change { core: Arc::clone(&partition.core), key, value };
        self.commit(Changes::from_buf([change]), None)
    }

    fn commit(&self, changes: Changes, durability: Option<Durability>) -> Result<u64> {
        let _turn = self.take_turn()?;
        self.commit_in_turn(changes, durability, None)
    }

    /// Commits what nobody but a transaction could be in the way of, and that only if the check
    /// allows it.
    pub(crate) fn commit_in_turn(
        &self,
        changes: Changes,
        durability: Option<Durability>,
        check: Option<Box<Check<Key>>>,
    ) -> Result<u64> {
        let in_memory = |change: &Change| entry_bytes(&change.key, change.value.value());
        let bytes = changes.iter().map(in_memory).sum();
        let _room = self.throttle(bytes)?;
        let durability = durability.unwrap_or(self.config.durability);
        let outgoing = encode(&changes)?;
        let committed = self.committer.commit(outgoing, changes, bytes, durability, check);
        committed.inspect(|_| self.after_commit())
    }
}

/// The frame of a batch, encoded and hashed before any lock is taken.
fn encode(changes: &[Change]) -> Result<Outgoing> {
    let count = u32::try_from(changes.len()).map_err(|_| {
        Error::InvalidInput(format!("a batch of {} changes; at most 4294967295", changes.len()))
    })?;
    let mut buffer = Outgoing::begin();
    let mut partitions = Named::new();
    for Change { core, key, value } in changes {
        match value {
            Update::Put(value) => items::put(&mut buffer, core.id, key, value),
            Update::Remove => items::delete(&mut buffer, core.id, key),
            Update::RemoveWeak => items::delete_weak(&mut buffer, core.id, key),
        }
        if partitions.last() != Some(&core.id) && !partitions.contains(&core.id) {
            partitions.push(core.id);
        }
    }
    Ok(Outgoing::new(buffer, count, partitions))
}

/// What is wrong with a key.
fn check_key(key: &[u8]) -> std::result::Result<(), String> {
    match key.len() {
        0 => Err("the key is empty; keys have 1 to 65535 bytes".into()),
        len if len > KEY_LEN_MAX => {
            Err(format!("the key is {len} bytes long; keys have 1 to {KEY_LEN_MAX} bytes"))
        }
        _ => Ok(()),
    }
}

/// What is wrong with a value.
fn check_value(value: &[u8]) -> std::result::Result<(), String> {
    let len = value.len();
    if len > VALUE_LEN_MAX {
        return Err(format!("the value is {len} bytes long; at most {VALUE_LEN_MAX} are allowed"));
    }
    Ok(())
}
