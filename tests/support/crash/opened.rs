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

/// One change: no value for a removal.
pub type Change = (Partition, Vec<u8>, Option<Vec<u8>>);

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
    for (partition, key, value) in changes {
        match value {
            Some(value) => batch.insert(partition, key.clone(), value.clone()),
            None => batch.remove(partition, key.clone()),
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
    for (partition, key, value) in changes {
        // What it finds does not matter, nor whether the disk lets it: that it is noted does.
        let _ = tx.get(partition, key);
        match value {
            Some(value) => tx.insert(partition, key.clone(), value.clone())?,
            None => tx.remove(partition, key.clone())?,
        }
    }
    if let Some(durability) = durability {
        tx.durability(durability);
    }
    tx.commit()
}
