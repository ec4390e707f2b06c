//! What a backup is, and what it alone costs.

use std::collections::HashSet;

use serde::Serialize;

use crate::check::pieces_of;
use crate::error::{Error, Result};
use crate::layout::BackupId;
use crate::manifest::Manifest;
use crate::repository::Repository;

/// What [`Repository::info`] tells.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupInfo {
    /// The backup, as [`Repository::find`] takes it.
    pub backup: String,
    /// The id of the keyspace, 32 hex digits.
    pub uuid: String,
    /// The id of the history, 32 hex digits.
    pub timeline: String,
    /// The newest commit in it.
    pub seqno: u64,
    /// When its checkpoint was taken, in milliseconds since 1970, by the clock of the keyspace's machine.
    pub created_ms: u64,
    /// The name that keeps it for ever, if it has one.
    pub label: Option<String>,
    /// The partitions in it.
    pub partitions: Vec<String>,
    /// The partitions left out.
    pub left_out: Vec<String>,
    /// Its files, and their raw bytes.
    pub files: u64,
    /// The same in bytes.
    pub raw_bytes: u64,
    /// Bytes of the pieces that it names, as stored.
    pub stored_bytes: u64,
    /// Of these, bytes that its push added.
    pub added_bytes: u64,
    /// Bytes of pieces that no other backup names: what removing it would free.
    pub pinned_bytes: u64,
}

impl Repository {
    /// What a backup is. Reads all manifests, because what it pins depends on them.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchBackup`]; [`Error::Corrupt`] for any manifest; when the store refuses or cannot
    /// be reached.
    pub fn info(&self, backup: BackupId) -> Result<BackupInfo> {
        let manifests = self.run(self.all_manifests(|| {}))?;
        let manifest =
            manifests.iter().find(|manifest| manifest.id == backup).ok_or_else(|| {
                Error::NoSuchBackup {
                    location: self.store.location.clone(),
                    asked: backup.to_string(),
                }
            })?;
        let others = manifests.iter().filter(|manifest| manifest.id != backup);
        Ok(self.describe(manifest, self.pinned_bytes([manifest], others)))
    }

    /// Every backup, the oldest first. What each pins is what removing it alone would free: the sum is
    /// less than what removing several frees, where they share pieces.
    ///
    /// # Errors
    ///
    /// As [`Repository::info`].
    pub fn infos(&self) -> Result<Vec<BackupInfo>> {
        let manifests = self.run(self.all_manifests(|| {}))?;
        let mut names = std::collections::HashMap::<_, u64>::new();
        for manifest in &manifests {
            let unique: HashSet<_> = pieces_of(self, manifest).map(|(piece, _)| piece).collect();
            unique.into_iter().for_each(|piece| *names.entry(piece).or_default() += 1);
        }
        let describe = |manifest: &Manifest| {
            let mut own: HashSet<_> = pieces_of(self, manifest).collect();
            own.retain(|(piece, _)| names[piece] == 1);
            self.describe(manifest, own.into_iter().map(|(_, bytes)| bytes).sum())
        };
        Ok(manifests.iter().map(describe).collect())
    }

    fn describe(&self, manifest: &Manifest, pinned_bytes: u64) -> BackupInfo {
        BackupInfo {
            backup: manifest.id.to_string(),
            uuid: format!("{:032x}", manifest.id.uuid),
            timeline: format!("{:032x}", manifest.id.timeline),
            seqno: manifest.id.seqno,
            created_ms: manifest.created_ms,
            label: manifest.label.clone(),
            partitions: manifest.partitions.clone(),
            left_out: manifest.left_out.clone(),
            files: manifest.files.len() as u64,
            raw_bytes: manifest.raw_bytes(),
            stored_bytes: manifest.stored_bytes(),
            added_bytes: manifest.added_bytes,
            pinned_bytes,
        }
    }

    /// Bytes of pieces that some of `these` name and none of the `others`.
    pub(crate) fn pinned_bytes<'a>(
        &self,
        these: impl IntoIterator<Item = &'a Manifest>,
        others: impl IntoIterator<Item = &'a Manifest>,
    ) -> u64 {
        let mut own = std::collections::HashMap::new();
        for manifest in these {
            own.extend(pieces_of(self, manifest));
        }
        for manifest in others {
            for (piece, _) in pieces_of(self, manifest) {
                own.remove(&piece);
            }
        }
        own.values().sum()
    }

    /// All manifests, the oldest first; those that were removed since they were listed are left out.
    pub(crate) async fn all_manifests(&self, done: impl FnMut()) -> Result<Vec<Manifest>> {
        let listed = self.listed().await?;
        let mut manifests = Vec::with_capacity(listed.len());
        for (_, manifest) in self.manifests(&listed, done).await {
            match manifest {
                Err(Error::NoSuchBackup { .. }) => {}
                manifest => manifests.push(manifest?),
            }
        }
        Ok(manifests)
    }
}
