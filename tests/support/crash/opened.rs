//! A keyspace as the layers open it: plain, or with transactions of either kind.
//!
//! What must stay true: what a commit does is the same either way, so that judges need not know.

use std::ops::Deref;

use esker::{Config, Durability, Error, Keyspace, Partition, Result, TxKeyspace, TxKind};

#[derive(Clone)]
pub enum Opened {
    Plain(Keyspace),
    Transactional(TxKeyspace),
}

/// One change.
pub type Change = (Partition, Vec<u8>, Edit);

/// What becomes of a key.
#[derive(Clone, Debug)]
pub enum Edit {
    Insert(Vec<u8>),
    Remove,
    /// It was inserted once.
    RemoveWeak,
}

impl Edit {
    /// The value that it leaves.
    pub fn into_value(self) -> Option<Vec<u8>> {
        match self {
            Self::Insert(value) => Some(value),
            Self::Remove | Self::RemoveWeak => None,
        }
    }
}

impl From<Option<Vec<u8>>> for Edit {
    fn from(value: Option<Vec<u8>>) -> Self {
        value.map_or(Self::Remove, Self::Insert)
    }
}

impl Deref for Opened {
    type Target = Keyspace;

    fn deref(&self) -> &Keyspace {
        match self {
            Self::Plain(keyspace) => keyspace,
            Self::Transactional(keyspace) => keyspace,
        }
    }
}

impl Opened {
    /// Opens in one of the three ways.
    pub fn open(config: Config, way: u64) -> Result<Self> {
        let kind = match way % 3 {
            0 => TxKind::Optimistic,
            1 => TxKind::SingleWriter,
            _ => return config.open().map(Self::Plain),
        };
        config.open_transactional(kind).map(Self::Transactional)
    }

    pub fn close(self) -> Result<()> {
        match self {
            Self::Plain(keyspace) => keyspace.close(),
            Self::Transactional(keyspace) => keyspace.close(),
        }
    }

    /// Commits the changes under one number: as a batch, or where that is possible and wanted as a
    /// transaction that has read what it changes, begun again while others are faster.
    pub fn commit(
        &self,
        changes: &[Change],
        durability: Option<Durability>,
        transaction: bool,
    ) -> Result<u64> {
        match self {
            Self::Transactional(keyspace) if transaction => loop {
                match commit_transaction(keyspace, changes, durability) {
                    Err(Error::Conflict) => {}
                    outcome => return outcome,
                }
            },
            _ => commit_batch(self, changes, durability),
        }
    }
}

fn commit_batch(
    keyspace: &Keyspace,
    changes: &[Change],
    durability: Option<Durability>,
) -> Result<u64> {
    let mut batch = keyspace.batch();
    for (partition, key, edit) in changes {
        match edit {
            Edit::Insert(value) => batch.insert(partition, key.clone(), value.clone()),
            Edit::Remove => batch.remove(partition, key.clone()),
            Edit::RemoveWeak => batch.remove_weak(partition, key.clone()),
        };
    }
    if let Some(durability) = durability {
        batch.durability(durability);
    }
    batch.commit()
}

fn commit_transaction(
    keyspace: &TxKeyspace,
    changes: &[Change],
    durability: Option<Durability>,
) -> Result<u64> {
    let mut tx = keyspace.write_tx()?;
    for (partition, key, edit) in changes {
        // What it finds does not matter, nor whether the disk lets it: that it is noted does.
        let _ = tx.get(partition, key);
        match edit {
            Edit::Insert(value) => tx.insert(partition, key.clone(), value.clone())?,
            Edit::Remove => tx.remove(partition, key.clone())?,
            Edit::RemoveWeak => tx.remove_weak(partition, key.clone())?,
        }
    }
    if let Some(durability) = durability {
        tx.durability(durability);
    }
    tx.commit()
}
